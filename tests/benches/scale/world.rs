//! A cluster of many nodes without machines: simulated VMs in several subscriptions, Nodes, pods, and the
//! agents of all nodes.

use crate::stage::Stage;
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vnetpool_azure_sim::{Config, NewVm, Sim, VnetConfig};
use vnetpool_crds::{NodeIPAllocation, condition};
use vnetpool_plugin::ledger;
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub nodes: usize,
    pub subscriptions: usize,
    /// How many addresses a node holds.
    pub each: usize,
    /// How many pods a node has.
    pub pods: usize,
}

impl Size {
    /// How many seconds the writes of all NICs take at least within our 80 % of Azure's limits: 200 writes of
    /// a subscription at once and 10 a second after that, 1,000 of its network provider in five minutes
    /// (learn.microsoft.com, "Throttling"), and the ten seconds of the last write itself.
    pub fn bound(self) -> f64 {
        const SHARE: f64 = 0.8;
        let (at_once, a_second, in_window) = (200.0 * SHARE, 10.0 * SHARE, 1000.0 * SHARE);
        let writes = self.nodes.div_ceil(self.subscriptions) as f64;
        let windows = ((writes - 1.0) / in_window).floor();
        let in_last = writes - windows * in_window;
        // Before the last window opens again, the bucket has filled up.
        windows * 300.0 + ((in_last - at_once) / a_second).max(0.0) + 10.0
    }

    /// No scenario takes longer: twice what Azure's limits take, twice what two cores took to make the nodes,
    /// and the time without ARM with what trails it.
    pub fn patience(self) -> Duration {
        Duration::from_secs_f64(2.0 * self.bound() + 0.4 * self.nodes as f64 + 1500.0)
    }
}

/// So many requests of the benchmark's own are under way at once.
pub const AT_ONCE: usize = 32;

/// How a count has risen since the beginning, with the seconds of each change; now and then it is printed.
struct Progress {
    began: Instant,
    steps: Vec<(f64, u32)>,
    printed: Instant,
}

impl Progress {
    const PRINTED_EVERY: Duration = Duration::from_secs(30);

    fn begin(steps: Vec<(f64, u32)>) -> Mutex<Progress> {
        let began = Instant::now();
        Mutex::new(Progress { began, steps, printed: began })
    }

    fn note(&mut self, what: &str, count: u32, of: u32) {
        let seconds = self.began.elapsed().as_secs_f64();
        if self.steps.last().is_none_or(|(_, before)| *before != count) {
            self.steps.push((seconds, count));
        }
        if self.printed.elapsed() >= Progress::PRINTED_EVERY {
            self.printed = Instant::now();
            println!("  after {seconds:.0} s: {count} of {of} {what}");
        }
    }
}

pub struct World<'a> {
    pub plane: &'a ControlPlane,
    pub stage: Stage<'a>,
    pub size: Size,
    /// Name and providerID.
    vms: Vec<(String, String)>,
    pods: Mutex<BTreeMap<String, Vec<ledger::Pod>>>,
    next: AtomicUsize,
    /// Azure's other subscriptions; the stage has the first.
    others: Vec<Sim>,
}

impl<'a> World<'a> {
    /// Machines, without Nodes yet.
    pub async fn new(plane: &'a ControlPlane, size: Size) -> Result<World<'a>> {
        let Size { nodes, subscriptions, each, .. } = size;
        let stage = Stage::empty(plane, azure(0)?).await?;
        let mut others = vec![];
        for index in 1..subscriptions {
            let other = Sim::start(azure(index)?).await?;
            stage.sim.join(&other);
            others.push(other);
        }
        let mut vms = vec![];
        for index in 0..nodes {
            let name = format!("n{index}");
            let new = NewVm { name: name.clone(), ..NewVm::default() };
            let made = match index % subscriptions {
                0 => stage.sim.add_vm(new).await?,
                other => others[other - 1].add_vm(new).await?,
            };
            vms.push((name, made.provider_id));
        }
        let sizing = json!({ "minimum": each, "warm": 0 });
        stage.pool("default", json!({ "sizing": sizing })).await?;
        stage.agents.pace();
        let (pods, next) = (Mutex::default(), AtomicUsize::default());
        Ok(World { plane, stage, size, vms, pods, next, others })
    }

    pub fn nodes(&self) -> usize {
        self.vms.len()
    }

    /// All nodes come, each with its pods.
    pub async fn join(&self) -> Result<()> {
        let labels: Vec<(String, String)> = (0..LABELS)
            .map(|n| (format!("kubernetes.azure.com/some-label-{n}"), format!("value-of-label-{n}")))
            .collect();
        let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        let joins = stream::iter(&self.vms).map(async |(name, id)| {
            self.stage.join_labelled(name, id, &labels).await?;
            for _ in 0..self.size.pods {
                self.start_pod(name).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        joins.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Azure's subscriptions. The node `n<index>` is in the one at `index` modulo their number.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Sim> {
        std::iter::once(&self.stage.sim).chain(&self.others)
    }

    /// A pod comes to a node, as the scheduler and the kubelet would have it.
    pub async fn start_pod(&self, node: &str) -> Result<ledger::Pod> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let pod: Pod = serde_json::from_value(pod(&format!("web-{number}"), node))?;
        let made = self.api().create(&PostParams::default(), &pod).await?;
        let uid = made.uid().context("a pod without a UID")?;
        let pod = ledger::Pod { namespace: NAMESPACE.into(), name: made.name_any(), uid };
        self.serve(node, |pods| pods.push(pod.clone()));
        Ok(pod)
    }

    /// Pods come until each address of the node has one, and then another one, which is returned: it waits.
    pub async fn start_pod_beyond(&self, node: &str) -> Result<ledger::Pod> {
        let held = self.stage.allocation(node).await?.spec.ip_configurations().count();
        let pods = lock(&self.pods).get(node).map_or(0, Vec::len);
        for _ in pods..held {
            self.start_pod(node).await?;
        }
        self.start_pod(node).await
    }

    /// A pod comes to a node, and the kubelet reports that it runs.
    pub async fn run_pod(&self, node: &str) -> Result<()> {
        let ledger::Pod { name, .. } = self.start_pod(node).await?;
        let status = json!({ "status": { "phase": "Running", "podIP": "10.16.0.1" } });
        self.api().patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// The oldest pod of a node goes.
    pub async fn end_pod(&self, node: &str) -> Result<()> {
        let mut gone = None;
        self.serve(node, |pods| gone = (!pods.is_empty()).then(|| pods.remove(0)));
        let gone = gone.context("no pod")?;
        self.api().delete(&gone.name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// The agent of the node has these pods now.
    fn serve(&self, node: &str, change: impl FnOnce(&mut Vec<ledger::Pod>)) {
        let mut all = lock(&self.pods);
        let pods = all.entry(node.to_owned()).or_default();
        change(pods);
        self.stage.agents.serve(node, pods.clone());
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.stage.client.clone(), NAMESPACE)
    }

    /// Waits until the pool's status counts all nodes and their addresses, and reports that all are ready.
    /// Gives how many addresses were held after how many seconds, each time that had changed.
    pub async fn until_served(&self) -> Result<Vec<(f64, u32)>> {
        let (nodes, held) = (self.nodes() as u32, (self.nodes() * self.size.each) as u32);
        let progress = Progress::begin(vec![(0.0, 0)]);
        self.until("all nodes hold addresses", async || {
            let pool = self.stage.node_pool("default").await?;
            let status = pool.status.unwrap_or_default();
            lock(&progress).note("addresses are held", status.held, held);
            let are_ready = condition::is_true(&status.conditions, condition::NODES_READY);
            Ok(status.nodes == nodes && status.held >= held && are_ready)
        })
        .await?;
        Ok(std::mem::take(&mut lock(&progress).steps))
    }

    /// Every node is to hold one address more. Gives how many nodes the pool counts as updated after how many
    /// seconds.
    pub async fn edit(&self) -> Result<Vec<(f64, u32)>> {
        let sizing = json!({ "minimum": self.size.each + 1, "warm": 0 });
        self.stage.pool("default", json!({ "sizing": sizing })).await?;
        let wanted = self.stage.node_pool("default").await?.metadata.generation;
        let progress = Progress::begin(vec![]);
        self.until("the edit has reached every node", async || {
            let status = self.stage.node_pool("default").await?.status.unwrap_or_default();
            let is_seen = status.observed_generation == wanted;
            if is_seen {
                lock(&progress).note("nodes have taken the edit up", status.updated_nodes, status.nodes);
            }
            let held = (self.nodes() * (self.size.each + 1)) as u32;
            Ok(is_seen && status.updated_nodes == status.nodes && status.held >= held)
        })
        .await?;
        Ok(std::mem::take(&mut lock(&progress).steps))
    }

    pub async fn until(&self, what: &str, is: impl AsyncFn() -> Result<bool>) -> Result<()> {
        // An endpoint may not be up yet.
        let seen = eventually(what, self.size.patience(), || async { Ok(is().await?.then_some(())) }).await;
        if seen.is_err() {
            println!("{:?}", self.stage.node_pool("default").await?.status);
        }
        seen
    }

    /// How many bytes the object of a node has, as JSON.
    pub async fn object_size(&self) -> Result<usize> {
        let api = Api::<NodeIPAllocation>::all(self.stage.client.clone());
        Ok(serde_json::to_vec(&api.get("n0").await?)?.len())
    }
}

/// A node of a managed cluster has so many labels, which the operator keeps.
const LABELS: usize = 26;

/// A subnet that holds too few addresses for the few nodes that come to it.
pub const SMALL: (&str, &str) = ("small", "10.15.0.0/26");

/// Where pods are made.
const NAMESPACE: &str = "default";

/// As large as pods usually are.
fn pod(name: &str, node: &str) -> Value {
    let env: Vec<Value> = (0..20)
        .map(|n| json!({ "name": format!("SETTING_{n}"), "value": "some value of a setting" }))
        .collect();
    let labels =
        json!({ "app": "web", "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d9c5b8f66" });
    let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 10 });
    json!({
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "nodeName": node,
            "containers": [{ "name": "web", "image": "registry.example/shop/web:1.2.3", "env": env,
                "livenessProbe": probe, "readinessProbe": probe,
                "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "64Mi" } },
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    })
}

/// Of a subscription of its own, with room for every node.
fn azure(index: usize) -> Result<Config> {
    let vnet = VnetConfig {
        name: "vnet".into(),
        address_prefixes: vec!["10.0.0.0/8".parse()?],
        subnets: vec![("nodes".into(), "10.16.0.0/13".parse()?), (SMALL.0.into(), SMALL.1.parse()?)],
    };
    let subscription = format!("00000000-0000-0000-0000-{:012}", index + 1);
    Ok(Config { vnets: vec![vnet], subscription, ..Config::default() })
}
