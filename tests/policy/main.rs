//! NetworkPolicy by a real engine, Calico's Felix: what it allows keeps its paths, what it denies doesn't pass; observed at the far end,
//! on one real cluster in simulated Azure.

mod chapters;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::process::{Child, Command};
use vnetpool_tests::cluster::{Cluster, root, tool};
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, until_seen};
use vnetpool_tests::workload::{PORT, ProbePod};

/// How long Felix and kube-proxy take to follow, at most.
pub const SOON: Duration = Duration::from_secs(20);

/// What Felix is told, as docs/network-policy.md explains it.
const SETTINGS: [&str; 14] = [
    "FELIX_INTERFACEPREFIX=vnp",
    "FELIX_ROUTESYNCDISABLED=true",
    "FELIX_DEFAULTENDPOINTTOHOSTACTION=ACCEPT",
    "FELIX_IPTABLESBACKEND=NFT",
    "FELIX_IPV6SUPPORT=false",
    "FELIX_DATASTORETYPE=kubernetes",
    "FELIX_HEALTHENABLED=true",
    // What follows is for the test only: it looks nowhere beyond its node and the cluster, and logs to where we have it.
    "FELIX_METADATAADDR=none",
    "FELIX_USAGEREPORTINGENABLED=false",
    "FELIX_XDPENABLED=false",
    "FELIX_LOGFILEPATH=none",
    "FELIX_LOGSEVERITYSYS=none",
    "FELIX_LOGSEVERITYSCREEN=Info",
    "KUBECONFIG=/etc/kubernetes/kube-proxy.kubeconfig",
];

/// A cluster with an engine on each node.
pub struct World {
    /// They end with their nodes.
    _engines: Vec<Child>,
    pub cluster: Cluster,
    /// What is called; then a caller beside it on node-1, and one on node-2.
    pub web: ProbePod,
    pub near: ProbePod,
    pub away: ProbePod,
    pub nodes: [Place; 2],
    /// A VM in the nodes' VNet.
    pub vm: Place,
    pub internet: Place,
}

impl World {
    async fn make() -> Result<Self> {
        let dir = root().join("target/cluster/policy");
        let cluster = Cluster::up(&dir, 2, 1).await?;
        cluster.install().await?;
        cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": 1, "limits": false })).await?;
        let crds = calico().await?.join("manifests/crds.yaml");
        cluster.kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()]).await?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await?;
        cluster.apply(&std::fs::read_to_string(root().join("tests/policy/felix.yaml"))?).await?;
        let probes = [("web", "node-1"), ("near", "node-1"), ("away", "node-2")];
        for (name, node) in probes {
            cluster.deploy(name, 1, Some(node)).await?;
        }
        let one = async |name: &str| -> Result<ProbePod> {
            let pods = cluster.running(name, 1, Duration::from_secs(120)).await?;
            pods.into_iter().next().context("no pod")
        };
        let (web, near, away) = (one("web").await?, one("near").await?, one("away").await?);
        let mut engines = vec![];
        for node in ["node-1", "node-2"] {
            engines.push(engine(&cluster, &dir, node).await?);
        }
        let nodes = [Place::host(&cluster.host("node-1")?), Place::host(&cluster.host("node-2")?)];
        let vm = Place::host(cluster.state.vms.first().context("no plain VM")?);
        let internet = Place::host(&cluster.state.internet);
        Ok(Self { web, near, away, nodes, vm, internet, cluster, _engines: engines })
    }

    /// Makes a NetworkPolicy for the pods with the label `app`.
    pub async fn rule(&self, app: &str, mut spec: Value) -> Result<()> {
        spec["podSelector"] = json!({ "matchLabels": { "app": app } });
        let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": app, "namespace": "default" }, "spec": spec });
        self.cluster.apply(&policy.to_string()).await.map(drop)
    }

    pub async fn unrule(&self, app: &str) -> Result<()> {
        self.cluster.kubectl(&["delete", "networkpolicy", app]).await.map(drop)
    }

    /// The rules of iptables on a node.
    pub async fn rules(&self, node: &str) -> Result<String> {
        self.cluster.run_on(node, &["iptables-nft-save"]).await
    }
}

/// The folder of Calico's module, which has its CRDs.
async fn calico() -> Result<std::path::PathBuf> {
    let mut go = Command::new("go");
    go.args(["list", "-m", "-f", "{{.Dir}}", "github.com/projectcalico/calico"]);
    let output = go.current_dir(root().join("tests/cluster/felix")).output().await?;
    ensure!(output.status.success(), "go list: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// Felix on a node, in the node's namespaces as its kube-proxy is, once it says that it is ready.
async fn engine(cluster: &Cluster, dir: &Path, node: &str) -> Result<Child> {
    let log = std::fs::File::create(dir.join(format!("logs/{node}.felix.log")))?;
    let mut felix = Command::new(tool("cluster"));
    felix.args(["exec", "--dir"]).arg(dir).args([node, "--", "env", &format!("FELIX_FELIXHOSTNAME={node}")]);
    felix.args(SETTINGS).arg("calico-felix").stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    let felix = felix.spawn()?;
    let url = "http://127.0.0.1:9099/readiness";
    eventually(&format!("Felix on {node} ready"), Duration::from_secs(60), || async {
        cluster.run_on(node, &["curl", "-sS", "--fail", url]).await.map(Some)
    })
    .await?;
    Ok(felix)
}

/// Waits until the probe at `address` sees the caller under the caller's own address.
pub async fn until_reached(from: &Place, address: impl std::fmt::Display) -> Result<()> {
    until_seen(from, &address.to_string(), PORT, &Seen::new(&from.address, &address)).await
}

fn main() -> Result<ExitCode> {
    vnetpool_tests::chapters![
        World::make;
        chapters::the_engine_finds_the_link_of_every_pod,
        chapters::with_an_engine_and_without_a_policy_every_path_is_as_ever,
        chapters::what_a_policy_lets_in_arrives_under_its_own_address_and_nothing_else_does,
        chapters::what_a_policy_lets_out_leaves_as_ever_and_nothing_else_does,
        chapters::a_policy_holds_for_calls_by_way_of_a_service,
        chapters::the_kubelet_probes_a_pod_that_a_policy_closes,
        chapters::a_policy_holds_for_a_pod_of_the_name_of_one_that_was_deleted_by_force,
        chapters::the_engine_and_the_agent_do_not_disturb_each_other,
    ]
}
