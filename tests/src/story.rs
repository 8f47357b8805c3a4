//! The main job, step by step. Each step does one thing to the cluster and returns what it observed; the demo
//! narrates it, the end-to-end tests check it.

use crate::cluster::Cluster;
use crate::workload::{Dial, ProbePod, target};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde_json::json;
use std::time::{Duration, Instant};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

/// The demo's observations, as `target/demo.json` holds them. A step that wasn't reached is null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Observed {
    pub pods_running: Option<usize>,
    pub pairs_total: Option<usize>,
    pub pairs_reachable: Option<usize>,
    pub pod_source_seen_by_vm: Option<String>,
    pub vm_source_seen_by_pod: Option<String>,
    pub internet_source_seen: Option<String>,
    pub burst_nic_writes: Option<usize>,
    pub pods_started_with_agent_down: Option<usize>,
    pub addresses_held_after_settle: Option<usize>,
    pub addresses_wanted_after_settle: Option<usize>,
    pub leaked_records: Option<usize>,
    pub seconds_cluster_up: Option<f64>,
    pub seconds_60_pods: Option<f64>,
}

/// Every pair of pods' view of each other.
pub struct Pairs {
    pub total: usize,
    /// Pairs where the connection came through and the far side saw the pod's own address.
    pub reachable: usize,
    /// The others, in words.
    pub failures: Vec<String>,
}

/// The cost of a burst of pods onto one node.
pub struct Burst {
    pub nic_writes: usize,
    /// Seconds between the first pod's binding and the last one's, by the API server's time stamps.
    pub bound_within: i64,
    pub seconds: f64,
}

impl Cluster {
    /// Patches the sizing, or another part of the spec, of the default pool.
    pub async fn patch_pool(&self, spec: serde_json::Value) -> Result<()> {
        let pools: Api<NodeIPPool> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({ "spec": spec }));
        pools
            .patch("default", &PatchParams::default(), &patch)
            .await
            .map(drop)
            .context("patching the default pool")
    }

    pub async fn allocation(&self, node: &str) -> Result<NodeIPAllocation> {
        let api: Api<NodeIPAllocation> = Api::all(self.client.clone());
        api.get(node).await.with_context(|| format!("nodeipallocation {node}"))
    }

    /// Waits until each node's NIC holds exactly `each` pod addresses, and the ledger on the node the same
    /// ones.
    pub async fn settled(&self, each: usize, within: Duration) -> Result<()> {
        let nodes = self.state.nodes.iter().map(|node| self.settled_on(&node.name, each, within));
        futures::future::try_join_all(nodes).await.map(drop)
    }

    /// The same for one node.
    pub async fn settled_on(&self, node: &str, each: usize, within: Duration) -> Result<()> {
        let what = format!("the NIC and the ledger of {node} at {each} addresses");
        crate::eventually(&what, within, || async { self.is_settled(node, each).await.map(Some) }).await
    }

    /// Whether one node's NIC holds exactly `each` pod addresses, published and in its ledger.
    async fn is_settled(&self, node: &str, each: usize) -> Result<()> {
        let host = self.host(node)?;
        let mut on_nic = self.azure.nic(&host.nic_id).await?.pod_addresses();
        ensure!(on_nic.len() == each, "the NIC of {node} holds {}", on_nic.len());
        let ledger = host.ledger()?;
        let mut in_ledger: Vec<_> = ledger.records().iter().map(|record| record.entry().address).collect();
        on_nic.sort();
        in_ledger.sort();
        ensure!(on_nic == in_ledger, "the NIC of {node} holds {on_nic:?}, its ledger {in_ledger:?}");
        let published = self.allocation(node).await?.spec.ip_configurations().count();
        ensure!(published == each, "{published} addresses published for {node}");
        Ok(())
    }

    /// Scales a deployment and waits until that many pods run, each with an address of its node's NIC.
    pub async fn grow(&self, name: &str, replicas: u32) -> Result<(Vec<ProbePod>, f64)> {
        let start = Instant::now();
        self.scale(name, replicas).await?;
        let pods = self.running(name, replicas as usize, Duration::from_secs(300)).await?;
        let seconds = start.elapsed().as_secs_f64();
        self.addresses_are_held(&pods).await?;
        Ok((pods, seconds))
    }

    /// Checks that each pod has an address of its own, and that its node's NIC holds it.
    pub async fn addresses_are_held(&self, pods: &[ProbePod]) -> Result<()> {
        let nics = self.azure.nics().await?;
        let mut seen = std::collections::BTreeMap::new();
        for pod in pods {
            let nic = &nics[&self.host(&pod.node)?.nic_id.to_lowercase()];
            let held = nic.pod_addresses().contains(&pod.address);
            ensure!(held, "{} has {}, which the NIC of {} doesn't hold", pod.name, pod.address, pod.node);
            if let Some(other) = seen.insert(pod.address, &pod.name) {
                anyhow::bail!("{} and {other} both have {}", pod.name, pod.address);
            }
        }
        Ok(())
    }

    /// Each pod opens TCP to each other one; the accepting side reports the source that it saw.
    pub async fn all_pairs(&self, pods: &[ProbePod]) -> Result<Pairs> {
        let rows: Vec<(&ProbePod, Vec<Dial>)> = stream::iter(pods)
            .map(|pod| async move {
                let others = pods.iter().filter(|other| other.address != pod.address);
                let targets: Vec<_> = others.map(|other| target(other.address)).collect();
                anyhow::Ok((pod, self.dial_from_pod(pod, &targets).await?))
            })
            .buffer_unordered(4)
            .try_collect()
            .await?;
        let dials = rows.iter().flat_map(|(pod, dials)| dials.iter().map(move |dial| (pod, dial)));
        let failures: Vec<_> = dials
            .filter(|(pod, dial)| !dial.ok || dial.source_seen_by_target != pod.address.to_string())
            .map(|(pod, dial)| {
                let Dial { target, source_seen_by_target, error, .. } = dial;
                format!(
                    "{} ({}) to {target}: seen as {source_seen_by_target:?} {error}",
                    pod.name, pod.address
                )
            })
            .collect();
        let total = pods.len() * pods.len().saturating_sub(1);
        let dialled: usize = rows.iter().map(|(_, dials)| dials.len()).sum();
        ensure!(dialled == total, "{dialled} dials for {total} pairs");
        Ok(Pairs { total, reachable: total - failures.len(), failures })
    }

    /// The source address that the probe on `host` sees when `pod` dials it.
    pub async fn seen_from_pod(&self, pod: &ProbePod, host: &str) -> Result<String> {
        let dials = self.dial_from_pod(pod, &[target(&self.host(host)?.address)]).await?;
        source(&dials)
    }

    /// The source address that `pod` sees when `host` dials it.
    pub async fn seen_by_pod(&self, host: &str, pod: &ProbePod) -> Result<String> {
        source(&self.dial_from(host, &[target(pod.address)]).await?)
    }

    /// Puts `count` pods onto one node at once and counts the NIC writes it takes.
    pub async fn burst(&self, name: &str, node: &str, count: u32) -> Result<Burst> {
        let before = self.azure.now().await?;
        self.deploy(name, 0, Some(node)).await?;
        let (_, seconds) = self.grow(name, count).await?;
        let nic_writes = self.azure.nic_writes(&self.host(node)?.nic_id, before).await?.len();
        let bound: Vec<Timestamp> = self
            .pods(name)
            .await?
            .iter()
            .filter_map(|pod| {
                pod.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == "PodScheduled")
            })
            .filter_map(|scheduled| Some(scheduled.last_transition_time.as_ref()?.0))
            .collect();
        let (first, last) =
            (bound.iter().min().context("no pod bound")?, bound.iter().max().context("no pod bound")?);
        Ok(Burst { nic_writes, bound_within: last.as_second() - first.as_second(), seconds })
    }

    /// Starts and stops pods on a node while no agent process exists there; gives how many started.
    pub async fn without_agent(&self, node: &str) -> Result<usize> {
        self.agent_away(node).await?;
        let watch = NoProcess::watch(self.host(node)?, "vnetpool-node-agent");
        let mut started = 0;
        for round in ["agentless-a", "agentless-b"] {
            self.deploy(round, 3, Some(node)).await?;
            let pods = self.running(round, 3, Duration::from_secs(120)).await?;
            self.addresses_are_held(&pods).await?;
            started += pods.len();
            self.undeploy(round).await?;
        }
        let seen = watch.stop().await?;
        ensure!(seen.is_empty(), "an agent process ran on {node} in the meantime: {seen:?}");
        self.agent_back(node).await?;
        Ok(started)
    }

    /// The pod addresses that all nodes' NICs hold together.
    pub async fn held(&self) -> Result<usize> {
        let nics = self.azure.nics().await?;
        let of = |nic_id: &str| nics.get(&nic_id.to_lowercase()).map_or(0, |nic| nic.pod_addresses().len());
        Ok(self.state.nodes.iter().map(|node| of(&node.nic_id)).sum())
    }

    /// The names of the nodes that have an allocation.
    pub async fn allocations(&self) -> Result<Vec<String>> {
        let api: Api<NodeIPAllocation> = Api::all(self.client.clone());
        Ok(api.list(&Default::default()).await?.items.iter().map(ResourceExt::name_any).collect())
    }
}

fn source(dials: &[Dial]) -> Result<String> {
    let dial = dials.first().context("no dial")?;
    ensure!(dial.ok, "no connection to {}: {}", dial.target, dial.error);
    Ok(dial.source_seen_by_target.clone())
}

/// A check, many times a second, whether a program runs on a machine.
struct NoProcess {
    stop: tokio::sync::oneshot::Sender<()>,
    seen: tokio::task::JoinHandle<Vec<u32>>,
}

impl NoProcess {
    fn watch(host: crate::cluster::Host, program: &'static str) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let seen = tokio::spawn(async move {
            let mut seen = vec![];
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    _ = &mut stopped => return seen,
                    _ = tick.tick() => seen.extend(host.processes(program)),
                }
            }
        });
        Self { stop, seen }
    }

    async fn stop(self) -> Result<Vec<u32>> {
        drop(self.stop);
        Ok(self.seen.await?)
    }
}
