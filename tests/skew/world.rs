//! The cluster, and which release each program on it is of.

use crate::connection::Watched;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::OnceCell;
use vnetpool_tests::audit::excuses::Excuses;
use vnetpool_tests::audit::observer::Observer;
use vnetpool_tests::audit::rest::Sizing;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::eventually;
use vnetpool_tests::later::Release;
use vnetpool_tests::place::Place;
use vnetpool_tests::project::root;
use vnetpool_tests::workload::ProbePod;

pub const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// By what the pool has each node hold addresses. The minimum is what it holds as long as few pods are there.
pub const SIZING: Sizing = Sizing { minimum: 8, warm: 2, batch: 2, grain: 1 };
/// Each pod of the test has this label, by which deployments find theirs.
pub const LABEL: &str = "app";
/// How long a pod takes to run, at most.
pub const STARTED: Duration = Duration::from_secs(60);
/// How long addresses take to come or go, and programs to follow each other, at most.
pub const SETTLED: Duration = Duration::from_secs(180);

const NAMESPACE: &str = "--namespace=vnetpool-system";
const OPERATOR: &str = "deployment/vnetpool-operator";
const AGENT: &str = "daemonset/vnetpool-node-agent";

/// The later release, once for all worlds.
static LATER: OnceCell<Release> = OnceCell::const_new();

/// Takes the later release from the disk, after all worlds.
pub fn end() {
    if let Some(later) = LATER.get() {
        later.remove();
    }
}

/// Which of the programs are of the later release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    pub operator: bool,
    pub agent: bool,
    pub plugin: bool,
}

impl Later {
    pub const NONE: Self = Self { operator: false, agent: false, plugin: false };
    pub const ALL: Self = Self { operator: true, agent: true, plugin: true };

    fn tags(self) -> [&'static str; 2] {
        let of_agent = match (self.agent, self.plugin) {
            (false, false) => "dev",
            (true, true) => "later",
            (true, false) => "later-agent",
            (false, true) => "later-plugin",
        };
        [if self.operator { "later" } else { "dev" }, of_agent]
    }
}

/// The state that all chapters share. The connection ends before its pods do.
pub struct World {
    /// It is there from the first chapter to the last.
    pub connection: Watched,
    _echo: Child,
    /// A pod on each node that stays, too.
    kept: Vec<ProbePod>,
    pub later: &'static Release,
    pub cluster: Cluster,
    number: AtomicUsize,
}

impl World {
    pub async fn make() -> Result<Self> {
        let later =
            LATER.get_or_try_init(|| async { tokio::task::spawn_blocking(Release::build).await? }).await?;
        let cluster = Cluster::up(&root().join("target/cluster/skew"), 3, 1).await?;
        for archive in later.archives() {
            cluster.load_archive(&archive).await?;
        }
        cluster.install().await?;
        cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": 1, "limits": false })).await?;
        let Sizing { minimum, warm, batch, .. } = SIZING;
        let sizing = json!({ "minimum": minimum, "warm": warm, "batch": batch, "releaseAfter": "5s" });
        cluster.patch_pool(json!({ "cooldown": "2s", "sizing": sizing })).await?;
        let mut kept = vec![];
        for node in NODES {
            let name = format!("kept-{node}");
            cluster.deploy(&name, 1, Some(node)).await?;
            kept.extend(cluster.running(&name, 1, SETTLED).await?);
        }
        let [from, to, ..] = &kept[..] else { anyhow::bail!("no two pods") };
        let (from, to) = (Place::pod(from)?, Place::pod(to)?);
        let echo = to.probe(&["echo"])?.spawn()?;
        let flow = eventually("a connection between pods of two nodes", STARTED, || async {
            from.flow_to(&to.address).await.map(Some)
        })
        .await?;
        ensure!(flow.source == from.address, "{} is seen as {}", from.address, flow.source);
        let connection = Watched::new(flow);
        Ok(Self { connection, _echo: echo, kept, later, cluster, number: AtomicUsize::new(0) })
    }

    /// A number that no other call gets.
    pub fn number(&self) -> usize {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// Has each program be of this release. Kinds come first, as they do in an upgrade.
    pub async fn run(&self, later: Later) -> Result<()> {
        println!("later: {later:?}");
        if later != Later::NONE {
            self.take_up_kinds().await?;
        }
        let [operator, agent] = later.tags();
        self.operator_image(operator).await?;
        self.agent_image(agent).await?;
        self.rolled_out().await
    }

    async fn take_up_kinds(&self) -> Result<()> {
        let folder = self.later.folder().join("charts/vnetpool/crds");
        let folder = folder.to_string_lossy();
        // As the operator's own hook applies them.
        let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=vnetpool-operator"];
        self.cluster.kubectl(&[&apply[..], &["--filename", &folder]].concat()).await.map(drop)
    }

    async fn operator_image(&self, tag: &str) -> Result<()> {
        let image = format!("operator=localhost/vnetpool/operator:{tag}");
        self.cluster.kubectl(&["set", "image", OPERATOR, &image, NAMESPACE]).await.map(drop)
    }

    /// Has the agents be replaced one after the other, and waits for none.
    pub async fn agent_image(&self, tag: &str) -> Result<()> {
        let image = format!("node-agent=localhost/vnetpool/node-agent:{tag}");
        self.cluster.kubectl(&["set", "image", AGENT, &image, NAMESPACE]).await.map(drop)
    }

    /// Waits until the programs are the ones that were asked for last, and ready.
    pub async fn rolled_out(&self) -> Result<()> {
        for program in [OPERATOR, AGENT] {
            self.cluster.kubectl(&["rollout", "status", program, NAMESPACE, "--timeout=240s"]).await?;
        }
        Ok(())
    }

    /// The name of the agent's pod on a node, if it runs from this image.
    pub async fn agent_of(&self, node: &str, tag: &str) -> Result<Option<String>> {
        let list = ["get", "pods", "--selector=app.kubernetes.io/component=node-agent", NAMESPACE];
        let on_node = format!("--field-selector=spec.nodeName={node}");
        let list = self.cluster.kubectl(&[&list[..], &["--output=json", &on_node]].concat()).await?;
        let list: Value = serde_json::from_str(&list)?;
        let runs = |pod: &&Value| {
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
            let state = &pod["status"]["containerStatuses"][0]["state"];
            image.ends_with(&format!(":{tag}")) && state["running"].is_object()
        };
        let pod = list["items"].as_array().into_iter().flatten().find(runs);
        Ok(pod.and_then(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned))
    }

    /// The node's NodeIPAllocation with all fields that the API server knows.
    pub async fn allocation(&self, node: &str) -> Result<Value> {
        let object = self.cluster.kubectl(&["get", "nodeipallocation", node, "--output=json"]).await?;
        Ok(serde_json::from_str(&object)?)
    }

    /// The names of the ipConfigurations for pods on a node's NIC.
    pub async fn reserved(&self, node: &str) -> Result<Vec<String>> {
        let nic = self.cluster.azure.nic(&self.cluster.host(node)?.nic_id).await?;
        let ours = nic.ip_configurations.into_iter().filter(|one| !one.primary);
        Ok(ours.map(|one| one.name).collect())
    }

    /// Waits until NIC, `spec`, ledger, kernel and pods show the same of each node, no address is on two of
    /// anything, and the pods that stay are as they were.
    pub async fn agree(&self) -> Result<()> {
        let observer = Observer::of(&self.cluster, LABEL);
        let excuses = Excuses::default();
        eventually("NIC, spec, ledger, kernel and pods agree", SETTLED, || async {
            let pods = observer.pods().await?.len();
            observer.rest(SIZING).await?.agrees(pods, &excuses).map(Some)
        })
        .await?;
        for pod in &self.kept {
            let now = self.cluster.running(&format!("kept-{}", pod.node), 1, STARTED).await?;
            ensure!(now == [pod.clone()], "{pod:?} was there, and now {now:?}");
            let restarts = "jsonpath={.status.containerStatuses[*].restartCount}";
            let restarts = self.cluster.kubectl(&["get", "pod", &pod.name, "--output", restarts]).await?;
            ensure!(restarts == "0", "{} was restarted {restarts} times", pod.name);
        }
        self.connection.goes_on().context("between pods of node-1 and node-2")
    }
}
