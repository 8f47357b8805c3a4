//! Reads Azure, the kernels, the objects and the pods' answers again and again. How, and the invariants of
//! what it sees, stand in `vnetpool_tests::audit`.

use crate::churn::LABEL;
use crate::logs::{keep_plugin_logs, read_all};
use crate::world::World;
use anyhow::{Context, Result};
use jiff::{Timestamp, Zoned};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use vnetpool_tests::audit::observer::Observer;
use vnetpool_tests::timeline;
use vnetpool_tests::workload::ProbePod;

const BETWEEN: Duration = Duration::from_secs(1);
/// So many lines of the logs are printed about an address.
const LINES: usize = 60;

pub struct Auditor<'a> {
    world: &'a World,
    last: Instant,
}

impl<'a> Auditor<'a> {
    pub fn new(world: &'a World) -> Self {
        Self { world, last: Instant::now() }
    }

    /// Observes again and again until then.
    pub async fn run(&mut self, until: Instant) -> Result<()> {
        self.last = Instant::now();
        while Instant::now() < until {
            self.judge().await?;
            sleep(BETWEEN).await;
        }
        Ok(())
    }

    async fn judge(&mut self) -> Result<()> {
        let began = Instant::now();
        let observation = self.observer().observe().await?;
        let elapsed = self.last.elapsed();
        self.last = Instant::now();
        let news = self.world.sums(|sums| {
            sums.excuses.end(began, &observation);
            let found = observation.found(&sums.excuses);
            sums.observed(began, &observation, &found, elapsed)
        });
        for one in news {
            println!("VIOLATION: {one}");
            self.print_history(&one).await?;
        }
        Ok(())
    }

    /// The readings; new pods that are ready are reported to the sums.
    fn observer(&self) -> Observer<'a> {
        let world = self.world;
        let met = move |pod: &Pod| {
            let (uid, made) = (pod.uid().context("a pod without a UID")?, made(pod)?);
            if let Some(pod) = ProbePod::of(pod) {
                world.sums(|sums| sums.ready(&uid, &pod.node, made));
            }
            Ok(())
        };
        Observer::of(&world.cluster, LABEL).meeting(met)
    }

    /// The lines about the address of a violation in all logs of the cluster and of Azure, oldest first.
    async fn print_history(&self, violation: &str) -> Result<()> {
        let Some(address) = violation.split([' ', ',']).find_map(|word| word.parse::<Ipv4Addr>().ok()) else {
            return Ok(());
        };
        for node in &self.world.cluster.state.nodes {
            // A node that is down has none.
            if let Err(error) = keep_plugin_logs(self.world, &node.name) {
                println!("  no log of the plugins of {}: {error:#}", node.name);
            }
        }
        let mut logs = read_all(&self.world.dir.join("logs"))?;
        logs.push(("azure".to_owned(), written(&self.world.cluster.azure.raw_log().await?)));
        let lines = timeline::about(address, &logs, Zoned::now().year());
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            println!("  {line}");
        }
        Ok(())
    }

    /// Whether all pods run and are reached, and NIC, `spec`, ledger, kernel and pods show the same of each
    /// node, which holds no more than it should.
    pub async fn agreement(&self) -> Result<Option<()>> {
        let observer = self.observer();
        let pods = observer.pods().await?.len();
        let rest = observer.rest(self.world.sizing).await?;
        self.world.sums(|sums| rest.agrees(pods, &sums.excuses)).map(Some)
    }

    /// Whether no route, link, record or address for a pod is left anywhere.
    pub async fn emptiness(&self) -> Result<Option<()>> {
        let mut links = BTreeMap::new();
        for node in &self.world.cluster.state.nodes {
            let shown = self.world.cluster.run_on(&node.name, &["ip", "-brief", "link", "show"]).await?;
            links.insert(node.name.clone(), shown.lines().map(str::to_owned).collect());
        }
        self.observer().rest(self.world.sizing).await?.is_empty(&links).map(Some)
    }
}

/// When a pod was made, or less than a second before.
fn made(pod: &Pod) -> Result<Instant> {
    let made = pod.creation_timestamp().context("a pod without a time")?;
    let age = Timestamp::now().duration_since(made.0);
    Instant::now().checked_sub(age.try_into().unwrap_or_default()).context("a pod older than this machine")
}

/// All that was written to Azure, a line for each request.
fn written(log: &Value) -> String {
    let writes = log.as_array().into_iter().flatten().filter(|one| one["method"] != "GET");
    let line = |one: &Value| {
        let [time, method, path, status, response] =
            ["time", "method", "path", "status", "response"].map(|field| &one[field]);
        let addresses = addresses(response);
        format!("{} {method} {path}: {status}, holds {addresses:?}\n", time.as_str().unwrap_or_default())
    };
    writes.map(line).collect()
}

/// The addresses of a NIC's document.
fn addresses(nic: &Value) -> Vec<&str> {
    let all = nic["properties"]["ipConfigurations"].as_array().into_iter().flatten();
    all.filter_map(|one| one["properties"]["privateIPAddress"].as_str()).collect()
}
