//! Reads Azure, the kernels, the objects and the pods' answers again and again. The invariants of what it
//! sees stand in `vnetpool_tests::audit`.

use crate::World;
use crate::churn::{self, LABEL};
use anyhow::{Context, Result};
use kube::ResourceExt;
use kube::api::ListParams;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use vnetpool_process::lock::lock;
use vnetpool_tests::audit::{self, Addresses, Found, Observation, Ready, Rest};
use vnetpool_tests::workload::{ProbePod, target};

const BETWEEN: Duration = Duration::from_secs(1);
/// An API server that stands still holds an observation up no longer.
const REQUEST: Duration = Duration::from_secs(5);
/// So many lines of the logs are printed about an address.
const LINES: usize = 60;

pub struct Auditor<'a> {
    world: &'a World,
    /// When a pod was first seen, by its UID.
    made: Mutex<BTreeMap<String, Instant>>,
    /// The violations of the observation before: two places that one observation reads may have changed in
    /// between.
    suspected: BTreeSet<String>,
    last: Instant,
}

impl<'a> Auditor<'a> {
    pub fn new(world: &'a World) -> Self {
        Self { world, made: Mutex::default(), suspected: BTreeSet::new(), last: Instant::now() }
    }

    /// Observes again and again until then.
    pub async fn run(&mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            if let Err(error) = self.observe().await {
                // A machine that reboots can't be read, nor can an API server that stands still.
                println!("the auditor sees nothing: {error:#}");
            }
            sleep(BETWEEN).await;
        }
        Ok(())
    }

    async fn observe(&mut self) -> Result<()> {
        let began = Instant::now();
        let before = self.ready().await?;
        let answers = self.answers(&before).await?;
        let wired = self.wired().await?;
        let nics = self.nics().await?;
        let observation = Observation { before, answers, wired, nics, after: self.ready().await? };
        let elapsed = self.last.elapsed();
        self.last = Instant::now();
        let news: Vec<String> = self.world.sums(|sums| {
            sums.excuses.end(began, &observation);
            let Found { violations, excused } = observation.found(&sums.excuses);
            let certain: Vec<String> = violations.intersection(&self.suspected).cloned().collect();
            self.suspected = violations;
            sums.observed(&observation, elapsed * excused);
            certain.into_iter().filter(|one| sums.violations.insert(one.clone())).collect()
        });
        for one in news {
            println!("VIOLATION: {one}");
            self.print_history(&one)?;
        }
        Ok(())
    }

    /// The lines about the addresses of a violation in all logs of the cluster, oldest first.
    fn print_history(&self, violation: &str) -> Result<()> {
        let Some(address) = violation.split([' ', ',']).find_map(|word| word.parse::<Ipv4Addr>().ok()) else {
            return Ok(());
        };
        let mut lines = vec![];
        visit(&self.world.dir.join("logs"), &address.to_string(), &mut lines)?;
        // Each begins with its time.
        lines.sort();
        for line in lines.iter().rev().take(LINES).rev() {
            println!("  {line}");
        }
        Ok(())
    }

    /// The pods that are ready; reports new ones to the sums.
    async fn ready(&self) -> Result<Ready> {
        let all = ListParams::default().labels(LABEL);
        let pods = timeout(REQUEST, churn::pods(self.world).list(&all)).await??;
        let mut ready = Ready::new();
        for pod in &pods {
            let uid = pod.uid().context("a pod without a UID")?;
            let made = *lock(&self.made).entry(uid.clone()).or_insert_with(Instant::now);
            if let Some(pod) = ProbePod::of(pod) {
                self.world.sums(|sums| sums.ready(&uid, &pod.node, made));
                ready.insert(uid, pod);
            }
        }
        Ok(ready)
    }

    /// The pod that answers a plain VM at each of these addresses.
    async fn answers(&self, pods: &Ready) -> Result<BTreeMap<Ipv4Addr, String>> {
        if pods.is_empty() {
            return Ok(BTreeMap::new());
        }
        let urls = pods.values().map(|pod| format!("http://{}/whoami", target(pod.address)));
        let urls: Vec<String> = urls.collect();
        let vm = &self.world.cluster.state.vms.first().context("no plain VM")?.name;
        // Pods that end meanwhile don't answer, and nor does one whose packets others drop.
        let curl = "curl --silent --parallel --max-time 2 \"$@\" || true";
        let mut command = vec!["sh", "-c", curl, "sh"];
        command.extend(urls.iter().map(String::as_str));
        Ok(audit::answers(&self.world.cluster.run_on(vm, &command).await?))
    }

    async fn wired(&self) -> Result<Addresses> {
        let mut wired = Addresses::new();
        for node in &self.world.cluster.state.nodes {
            let routes = self.world.cluster.run_on(&node.name, &["ip", "-json", "route", "show"]).await?;
            wired.insert(node.name.clone(), audit::led_to_pods(&routes)?);
        }
        Ok(wired)
    }

    /// The secondary addresses of each node's NIC.
    async fn nics(&self) -> Result<Addresses> {
        let nics = self.world.cluster.azure.nics().await?;
        let of = |node: &vnetpool_tests::cluster::Host| {
            let nic = nics.get(&node.nic_id.to_lowercase());
            (node.name.clone(), nic.into_iter().flat_map(|nic| nic.pod_addresses()).collect())
        };
        Ok(self.world.cluster.state.nodes.iter().map(of).collect())
    }

    async fn rest(&self) -> Result<Rest> {
        let list = self.world.cluster.kubectl(&["get", "nodeipallocations", "--output", "json"]).await?;
        let mut ledgers = Addresses::new();
        for node in &self.world.cluster.state.nodes {
            let file = self.world.cluster.host(&node.name)?.path("/run/vnetpool/ledger");
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            ledgers.insert(node.name.clone(), audit::assigned(&text));
        }
        let specs = audit::reserved(&serde_json::from_str(&list)?);
        Ok(Rest { nics: self.nics().await?, specs, ledgers, wired: self.wired().await? })
    }

    /// Whether all pods run, and NIC, `spec`, ledger and kernel show the same of each node.
    pub async fn agreement(&self) -> Result<Option<()>> {
        let all = ListParams::default().labels(LABEL);
        let pods = churn::pods(self.world).list(&all).await?.items.len();
        let (ready, rest) = (self.ready().await?, self.rest().await?);
        self.world.sums(|sums| rest.agrees(pods, &ready, &sums.excuses)).map(Some)
    }

    /// Whether no route, link or record of a pod is left anywhere.
    pub async fn emptiness(&self) -> Result<Option<()>> {
        let mut links = BTreeMap::new();
        for node in &self.world.cluster.state.nodes {
            let shown = self.world.cluster.run_on(&node.name, &["ip", "-brief", "link", "show"]).await?;
            links.insert(node.name.clone(), shown.lines().map(str::to_owned).collect());
        }
        self.rest().await?.is_empty(&self.ready().await?, &links).map(Some)
    }
}

/// The lines with this word in all files below a folder.
fn visit(folder: &std::path::Path, word: &str, lines: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            visit(&path, word, lines)?;
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let about = text.lines().filter(|line| line.contains(word));
            lines.extend(about.map(|line| format!("{line} [{name}]")));
        }
    }
    Ok(())
}
