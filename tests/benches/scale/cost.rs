//! The cost of a phase: the difference of two readings of the operator's process, its requests to Azure, and
//! those the API server has served.

use crate::process::{Process, Usage};
use crate::world::World;
use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Everything so far: counts by name.
pub struct Cost {
    at: Instant,
    /// How often the Lease has changed hands.
    transitions: Option<i32>,
    counts: BTreeMap<String, f64>,
    usage: Usage,
    /// How many time series the operator exports.
    series: usize,
    /// How large etcd's file is.
    store: f64,
}

/// The verbs that change an object.
const WRITES: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
/// Some 180 for any number of nodes, and two dozen for each further subscription.
const MOST_SERIES: usize = 500;
/// The objects that only the operator and the agents write here.
const OURS: [&str; 4] = ["nodeipallocations", "nodeippools", "events", "leases"];

impl Cost {
    pub async fn so_far(world: &World<'_>, operator: &Process) -> Result<Cost> {
        let (mut counts, mut store) = (BTreeMap::new(), 0.0);
        let mut add = |what: String, count: f64| *counts.entry(what).or_default() += count;
        let metrics = operator.metrics().await?;
        let series = metrics.series();
        for kind in ["read", "write", "poll", "delete"] {
            let all = metrics.sum("vnetpool_operator_arm_requests_total", &[&format!("kind=\"{kind}\"")]);
            add(format!("Azure: {kind}"), all);
        }
        let throttled = metrics.sum("vnetpool_operator_arm_requests_total", &[r#"status="429""#]);
        add("Azure: throttled".into(), throttled);
        let of_nodes = [r#"controller="node""#];
        add("reconciles".into(), metrics.sum("vnetpool_operator_reconciles_total", &of_nodes));
        let text = world.plane.kubectl(&["get", "--raw", "/metrics"])?;
        for line in text.lines() {
            let label = |name: &str| {
                let from = line.split_once(&format!("{name}=\""))?.1;
                Some(from.split_once('"')?.0.to_owned())
            };
            let what = |name: &str| label(name).unwrap_or_default();
            let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
            let count = count.unwrap_or_default();
            let resource = what("resource");
            if line.starts_with("apiserver_request_total{") {
                let (verb, part) = (what("verb"), what("subresource"));
                let code = what("code");
                if WRITES.contains(&verb.as_str()) && OURS.contains(&resource.as_str()) {
                    add("API writes".into(), count);
                    if code == "409" {
                        add("API writes refused".into(), count);
                    }
                }
                add(format!("API: {verb} {resource} {part}, {code}"), count);
            } else if line.starts_with("apiserver_request_body_size_bytes_sum{")
                && OURS.contains(&resource.as_str())
            {
                add("API bytes written".into(), count);
            } else if line.starts_with("apiserver_storage_size_bytes{") {
                store = count;
            }
        }
        add("agents' reports".into(), world.stage.agents.reports.load(Ordering::Relaxed) as f64);
        let transitions = world.stage.leader().await.ok().and_then(|(_, transitions)| transitions);
        Ok(Cost { at: Instant::now(), transitions, counts, usage: operator.usage()?, series, store })
    }

    /// The seconds from that reading to this one.
    pub fn since(&self, before: &Cost) -> f64 {
        (self.at - before.at).as_secs_f64()
    }

    /// Prints the increase from that reading to this one, of a phase that took so many seconds, and returns
    /// it.
    ///
    /// # Errors
    /// When the leadership has changed hands in between: the operator's counters began anew then.
    pub fn less(&self, before: &Cost, phase: &str, took: f64) -> Result<Value> {
        ensure!(self.transitions == before.transitions, "the Lease was lost and won in the phase: {phase}");
        ensure!(self.series <= MOST_SERIES, "{} time series: {phase}", self.series);
        let [memory, most] = self.usage.memory;
        let processor = self.usage.processor - before.usage.processor;
        println!(
            "\n{phase}: {took:.1} s, operator {processor:.1} s of processor, {memory:.0} MB now, {most:.0} MB at most"
        );
        let mut requests = Map::new();
        for (kind, count) in &self.counts {
            let count = count - before.counts.get(kind).copied().unwrap_or_default();
            if count > 0.0 {
                println!("  {count:7} {kind}");
                requests.insert(kind.clone(), json!(count));
            }
        }
        println!("  {} time series, {:.0} MB in etcd's file", self.series, self.store / 1e6);
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let load = load.split_whitespace().next();
        Ok(json!({ "seconds": took, "processorSeconds": processor, "memoryMB": memory, "mostMemoryMB": most,
            "loadOfMachine": load, "operatorSeries": self.series, "storeBytes": self.store, "requests": requests }))
    }
}

/// Each one's part of a phase's cost, for so many.
pub fn each(cost: &Value, count: usize) -> Value {
    let share = |total: &Value| total.as_f64().unwrap_or_default() / count as f64;
    let requests = [
        "API writes",
        "API writes refused",
        "API bytes written",
        "Azure: read",
        "Azure: write",
        "reconciles",
    ];
    let mut shares: Map<String, Value> =
        requests.iter().map(|one| ((*one).to_owned(), json!(share(&cost["requests"][one])))).collect();
    shares.insert("processorMilliseconds".into(), json!(share(&cost["processorSeconds"]) * 1000.0));
    println!("  each: {}", json!(shares));
    Value::Object(shares)
}
