//! The aims beside what was measured, and how costs grow with the number of nodes. Pure.

use serde_json::{Value, json};

/// What is measured, at most how much it is to be, in which unit, and where a run has it.
type Aim = (&'static str, f64, &'static str, fn(&Value) -> Option<f64>);

const KILOBYTE: f64 = 1024.0;

const AIMS: &[Aim] = &[
    ("all nodes hold their addresses", 1.15, "times what Azure's limits or the nodes' coming takes", |run| {
        // Two cores make nodes and pods for longer than Azure's limits take for them.
        let bound = number(run, "/join/bound")?.max(number(run, "/join/madeAfter")?);
        Some(number(run, "/join/seconds")? / bound)
    }),
    ("reads of Azure for a node that comes", 3.0, "", |run| number(run, "/join/aNode/Azure: read")),
    ("writes to Azure for a node that comes", 1.0, "", |run| number(run, "/join/aNode/Azure: write")),
    ("writes to the API server for a node that comes", 10.0, "", |run| number(run, "/join/aNode/API writes")),
    ("of these, refused as outdated", 0.5, "", |run| number(run, "/join/aNode/API writes refused")),
    ("a node's object", 12.0, "KB", |run| Some(run["objectBytes"].as_f64()? / KILOBYTE)),
    ("memory while nodes come", 200.0, "MiB", |run| number(run, "/join/mostMemoryMB")),
    ("memory after all was listed anew", 200.0, "MiB", |run| number(run, "/relist/mostMemoryMB")),
    ("memory after a takeover", 200.0, "MiB", |run| {
        let of = |end: &str| number(run, &format!("/takeover/{end}/mostMemoryMB"));
        Some(of("killed")?.max(of("asked to end")?))
    }),
    ("leader killed: the Lease is won", 21.0, "s", |run| number(run, "/takeover/killed/leaseWon")),
    ("leader asked to end: the Lease is won", 6.0, "s", |run| number(run, "/takeover/asked to end/leaseWon")),
    ("from the Lease to the first node", 5.0, "s", |run| after_lease(run, "firstReconciled")),
    ("from the Lease to all nodes", 10.0, "s", |run| after_lease(run, "allReconciled")),
    ("requests to Azure of a new leader", 49.0, "", |run| number(run, "/takeover/killed/azureRequests")),
    ("writes to the API server for a pod start", 0.1, "", |run| number(run, "/churn/aPodStart/API writes")),
    ("bodies of these writes", 2.0, "KB", |run| {
        Some(number(run, "/churn/aPodStart/API bytes written")? / KILOBYTE)
    }),
    ("processor for a pod start", 1.0, "ms", |run| number(run, "/churn/aPodStart/processorMilliseconds")),
];

/// What must grow no faster than the nodes.
const GROWING: &[(&str, &str)] = &[
    ("processor of the operator while nodes come", "/join/processorSeconds"),
    ("writes to the API server while nodes come", "/join/requests/API writes"),
    ("reads of Azure while nodes come", "/join/requests/Azure: read"),
    ("memory while nodes come", "/join/mostMemoryMB"),
    ("time to list all anew", "/relist/syncSeconds"),
    ("time from the Lease to all nodes", "/takeover/killed/allReconciled"),
];
/// Of the power of the number of nodes with which they grow.
const EXPONENT: f64 = 1.05;

fn number(run: &Value, path: &str) -> Option<f64> {
    run["scenarios"].pointer(path)?.as_f64()
}

/// The longer of both takeovers.
fn after_lease(run: &Value, event: &str) -> Option<f64> {
    let of = |end: &str| {
        let at = |event: &str| number(run, &format!("/takeover/{end}/{event}"));
        Some(at(event)? - at("leaseWon")?)
    };
    Some(of("killed")?.max(of("asked to end")?))
}

fn row(what: &str, unit: &str, at_most: f64, measured: Option<f64>) -> Value {
    json!({ "aim": what, "unit": unit, "atMost": at_most, "measured": measured, "met": measured.map(|one| one <= at_most) })
}

/// A run's aims; what its scenarios don't show is null.
pub fn met(run: &Value) -> Vec<Value> {
    AIMS.iter().map(|(what, at_most, unit, of)| row(what, unit, *at_most, of(run))).collect()
}

/// With which power of the number of nodes costs grow, from one run to a larger one of as many addresses a
/// node.
pub fn exponents(small: &Value, large: &Value) -> Vec<Value> {
    let nodes = |run: &Value| run["nodes"].as_f64();
    let of = |path: &str| {
        let cost = number(large, path)?.ln() - number(small, path)?.ln();
        Some(cost / (nodes(large)?.ln() - nodes(small)?.ln())).filter(|power| power.is_finite())
    };
    GROWING.iter().map(|(what, path)| row(what, "power of the nodes", EXPONENT, of(path))).collect()
}

/// As lines.
pub fn shown(rows: &[Value]) -> String {
    let line = |row: &Value| {
        let measured = row["measured"].as_f64()?;
        let mark = if row["met"] == true { "met   " } else { "MISSED" };
        let (aim, unit) = (row["aim"].as_str()?, row["unit"].as_str()?);
        Some(format!("  {mark} {aim}: {measured:.2} {unit} (aim {})", row["atMost"]))
    };
    rows.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}
