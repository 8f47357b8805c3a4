//! Recorded ARM traffic, sent to the simulator request by request, and the two answers compared.

use crate::client::{Answer, Client, path_of};
use libtest_mimic::Failed;
use serde_json::Value;
use std::path::Path;
use vnetpool_azure_sim::schema::Documents;
use vnetpool_azure_sim::{Config, Sim};

/// The parts of a recorded answer that the simulator need not have: where, and why.
const LEFT_OUT: [(&str, &str, &str); 4] = [
    (
        "/resourcegroups/aks-cit-VirtualMachine",
        "/tags",
        "a policy of the recorded subscription tags its groups; the request asks for no tag",
    ),
    (
        "/resourcegroups/aks-cit-NatGateway",
        "/tags",
        "a policy of the recorded subscription tags its groups; the request asks for no tag",
    ),
    (
        "/aks-cit-NatGateway/providers/Microsoft.Network/publicIPAddresses/pip1",
        "/properties/provisioningState",
        "the write that had made it was still going on",
    ),
    (
        "/aks-cit-NatGateway/providers/Microsoft.Network/natGateways",
        "the header x-ms-original-request-ids",
        "ARM shows there which of its own requests a list was made from",
    ),
];

/// A recording that starts in a world where the first so many of its writes had been made before.
const MADE_BEFORE: [(&str, usize); 1] = [("natgateway", 2)];

/// Where a recorded request itself departs from the document, and how.
const REQUESTS: [(&str, &str); 1] = [(
    "/virtualMachineScaleSets/testParentResource/virtualMachines/0",
    "\"location\" is a required property",
)];

/// Values that are as much part of the contract as their type.
const EQUAL: [&str; 8] =
    ["provisioningState", "code", "status", "type", "name", "privateIPAddress", "addressPrefix", "location"];

pub(crate) fn run(folder: &Path, name: &str) -> Result<(), Failed> {
    let text = std::fs::read_to_string(folder.join(format!("arm-recordings/{name}.json")))?;
    let exchanges: Vec<Value> = serde_json::from_str(&text)?;
    let documents = Documents::load(&folder.join("specification"))?;
    let made_before =
        MADE_BEFORE.iter().find(|(recording, _)| *recording == name).map_or(0, |(_, count)| *count);
    let (differences, log) = crate::block_on(replay(&exchanges, made_before));
    let mut invalid = Vec::new();
    for entry in &log {
        if let Err(mut wrong) = documents.validate(entry) {
            let is_recorded = |error: &str| {
                REQUESTS.iter().any(|(path, what)| {
                    entry.path.ends_with(path) && error.starts_with("request:") && error.ends_with(what)
                })
            };
            wrong.retain(|error| !is_recorded(error));
            invalid
                .extend(wrong.into_iter().map(|wrong| format!("{} {}: {wrong}", entry.method, entry.path)));
        }
    }
    println!("{name}: {} exchanges replayed, {} left out", log.len(), exchanges.len() - log.len());
    for (path, place, reason) in LEFT_OUT.iter().filter(|(path, ..)| text.contains(path)) {
        println!("{name}: left out in the answer to {path}: {place} ({reason})");
    }
    let wrong: Vec<String> = differences.into_iter().chain(invalid).collect();
    if log.len() != exchanges.len() {
        return Err(format!("{} of {} exchanges were replayed", log.len(), exchanges.len()).into());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Returns the differences, and the exchanges that the simulator saw.
async fn replay(exchanges: &[Value], made_before: usize) -> (Vec<String>, Vec<vnetpool_azure_sim::LogEntry>) {
    let config = Config {
        subscription: "00000000-0000-0000-0000-000000000000".into(),
        // The recordings have every operation done at its first poll.
        write_seconds: 0.0,
        ..Config::default()
    };
    let sim = Sim::start(config).await.unwrap();
    let client = Client::of(&sim);
    let mut differences = Vec::new();
    let mut promised = String::new();
    for exchange in &exchanges[..made_before] {
        let path = path_of(exchange["request"]["url"].as_str().unwrap());
        client.put(path, &exchange["request"]["body"]).await;
    }
    sim.clear_log();
    for (index, exchange) in exchanges.iter().enumerate() {
        let request = &exchange["request"];
        let recorded_url = request["url"].as_str().unwrap();
        let recorded_path = path_of(recorded_url);
        // A poll goes where the simulator's own answer pointed.
        let is_poll = ["/operations/", "/operationresults/"].iter().any(|part| recorded_path.contains(part));
        let path = if is_poll { promised.clone() } else { recorded_path.to_owned() };
        let method = request["method"].as_str().unwrap();
        let headers: Vec<(&str, &str)> = ["If-Match", "Content-Type"]
            .iter()
            .filter_map(|name| Some((*name, request["headers"][name][0].as_str()?)))
            .collect();
        let body = Some(&request["body"]).filter(|body| body.is_object());
        let answer = client.send(method, &path, &headers, body).await.unwrap();
        for name in ["location", "azure-asyncoperation"] {
            if let Some(url) = answer.headers.get(name) {
                promised = path_of(url).to_owned();
            }
        }
        let place = format!("exchange {index}, {method} {recorded_path}");
        compare(&exchange["response"], &answer, recorded_path, &mut |difference| {
            differences.push(format!("{place}: {difference}"));
        });
    }
    (differences, sim.log())
}

fn compare(recorded: &Value, answer: &Answer, path: &str, report: &mut impl FnMut(String)) {
    if recorded["code"] != answer.status {
        report(format!("status {} instead of {}: {}", answer.status, recorded["code"], answer.body));
    }
    let left_out: Vec<&str> =
        LEFT_OUT.iter().filter(|(part, ..)| path.contains(part)).map(|(_, place, _)| *place).collect();
    for name in recorded["headers"].as_object().into_iter().flatten().map(|(name, _)| name.to_lowercase()) {
        let header = format!("the header {name}");
        if !answer.headers.contains_key(&name) && !left_out.contains(&header.as_str()) {
            report(format!("{header} is missing"));
        }
    }
    compare_bodies(&recorded["body"], &answer.body, "", &left_out, report);
}

fn compare_bodies(
    recorded: &Value,
    own: &Value,
    place: &str,
    left_out: &[&str],
    report: &mut impl FnMut(String),
) {
    match (recorded, own) {
        // The recording writes a missing body as an empty text.
        (Value::String(text), Value::Null) if text.is_empty() && place.is_empty() => {}
        (Value::Object(recorded), Value::Object(own)) => {
            for (name, value) in recorded {
                let place = format!("{place}/{name}");
                match own.get(name) {
                    _ if left_out.contains(&place.as_str()) => {}
                    Some(own) => {
                        compare_bodies(value, own, &place, left_out, report);
                        if EQUAL.contains(&name.as_str())
                            && value.is_string()
                            && !is_made_up(value)
                            && value != own
                        {
                            report(format!("{place} is {own} instead of {value}"));
                        }
                    }
                    None => report(format!("{place} is missing")),
                }
            }
            for name in own.keys().filter(|name| !recorded.contains_key(*name)) {
                let place = format!("{place}/{name}");
                if !left_out.contains(&place.as_str()) {
                    report(format!("{place} is more than was recorded"));
                }
            }
        }
        (Value::Array(recorded), Value::Array(own)) => {
            if recorded.len() != own.len() {
                report(format!("{place} has {} items instead of {}", own.len(), recorded.len()));
            }
            for (index, (recorded, own)) in recorded.iter().zip(own).enumerate() {
                compare_bodies(recorded, own, &format!("{place}/{index}"), left_out, report);
            }
        }
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => {}
        _ => report(format!("{place} is {own} instead of {recorded}")),
    }
}

/// The recordings have their ids blotted out, and the disk of an instance is named at random.
fn is_made_up(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with("00000000-") || text.contains("_OS__1_"))
}
