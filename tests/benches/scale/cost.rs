//! The cost of a phase: the difference of two readings of the operator's process, its requests to Azure, and
//! those the API server has served.

use crate::process::{Process, Usage};
use crate::world::World;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Everything so far: counts by name.
pub struct Cost {
    since: Instant,
    counts: BTreeMap<String, f64>,
    usage: Usage,
}

/// The verbs that change an object.
const WRITES: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
/// The objects that only the operator and the agents write here.
const OURS: [&str; 4] = ["nodeipallocations", "nodeippools", "events", "leases"];

impl Cost {
    pub async fn so_far(world: &World<'_>, operator: &Process) -> Result<Cost> {
        let mut counts = BTreeMap::new();
        let mut add = |what: String, count: f64| *counts.entry(what).or_default() += count;
        // An operator that has just started has made no request yet, and has no counter either.
        if let Ok(metrics) = operator.metrics().await {
            for kind in ["read", "write", "poll", "delete"] {
                let all = metrics.sum("vnetpool_operator_arm_requests_total", &[&format!("kind=\"{kind}\"")]);
                add(format!("Azure: {kind}"), all);
            }
            let throttled = metrics.sum("vnetpool_operator_arm_requests_total", &[r#"status="429""#]);
            add("Azure: throttled".into(), throttled);
        }
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
                if WRITES.contains(&verb.as_str()) && OURS.contains(&resource.as_str()) {
                    add("API writes".into(), count);
                }
                add(format!("API: {verb} {resource} {part}, {}", what("code")), count);
            } else if line.starts_with("apiserver_request_body_size_bytes_sum{")
                && OURS.contains(&resource.as_str())
            {
                add("API bytes written".into(), count);
            }
        }
        add("agents' reports".into(), world.stage.agents.reports.load(Ordering::Relaxed) as f64);
        Ok(Cost { since: Instant::now(), counts, usage: operator.usage()? })
    }

    /// Prints the increase since, and returns it, and the total so far.
    pub async fn until_now(
        &self,
        phase: &str,
        world: &World<'_>,
        operator: &Process,
    ) -> Result<(Value, Cost)> {
        let took = self.since.elapsed().as_secs_f64();
        let now = Cost::so_far(world, operator).await?;
        let [memory, most] = now.usage.memory;
        let processor = now.usage.processor - self.usage.processor;
        println!(
            "\n{phase}: {took:.1} s, operator {processor:.1} s of processor, {memory:.0} MB now, {most:.0} MB at most"
        );
        let mut requests = Map::new();
        for (kind, count) in &now.counts {
            let count = count - self.counts.get(kind).copied().unwrap_or_default();
            if count > 0.0 {
                println!("  {count:7} {kind}");
                requests.insert(kind.clone(), json!(count));
            }
        }
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let cost = json!({ "seconds": took, "processorSeconds": processor, "memoryMB": memory, "mostMemoryMB": most,
            "loadOfMachine": load.split_whitespace().next(), "requests": requests });
        Ok((cost, now))
    }
}

/// Each one's part of a phase's cost, for so many.
pub fn each(cost: &Value, count: usize) -> Value {
    let share = |total: &Value| total.as_f64().unwrap_or_default() / count as f64;
    let requests = ["API writes", "API bytes written", "Azure: read", "Azure: write"];
    let mut shares: Map<String, Value> =
        requests.iter().map(|one| ((*one).to_owned(), json!(share(&cost["requests"][one])))).collect();
    shares.insert("processorMilliseconds".into(), json!(share(&cost["processorSeconds"]) * 1000.0));
    println!("  each: {}", json!(shares));
    Value::Object(shares)
}
