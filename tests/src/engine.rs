//! An engine of NetworkPolicy beside Vnetpool: Calico's Felix, for policy only; and the policies that it
//! holds pods to.

use crate::cluster::Cluster;
use crate::eventually;
use crate::project::root;
use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Felix's configuration, as docs/network-policy.md explains it.
const SETTINGS: [&str; 14] = [
    "FELIX_INTERFACEPREFIX=vnp",
    "FELIX_ROUTESYNCDISABLED=true",
    "FELIX_DEFAULTENDPOINTTOHOSTACTION=ACCEPT",
    "FELIX_IPTABLESBACKEND=NFT",
    "FELIX_IPV6SUPPORT=false",
    "FELIX_DATASTORETYPE=kubernetes",
    "FELIX_HEALTHENABLED=true",
    // The rest is for the test only: Felix reads nothing beyond its node and the cluster, and logs to where
    // we have it.
    "FELIX_METADATAADDR=none",
    "FELIX_USAGEREPORTINGENABLED=false",
    "FELIX_XDPENABLED=false",
    "FELIX_LOGFILEPATH=none",
    "FELIX_LOGSEVERITYSYS=none",
    "FELIX_LOGSEVERITYSCREEN=Info",
    "KUBECONFIG=/etc/kubernetes/kube-proxy.kubeconfig",
];

/// Felix on each node of a cluster. Its rules stay when this is dropped, and Felix ends with its node.
pub struct Engine {
    _felix: Vec<Child>,
}

impl Engine {
    /// Starts Felix on each node, in the node's namespaces as its kube-proxy is, and waits until it reports
    /// that it is ready.
    ///
    /// # Errors
    /// When the cluster doesn't take the objects that Felix needs, or Felix isn't ready in time:
    /// `logs/NODE.felix.log` has the reason.
    pub async fn bring(cluster: &Cluster) -> Result<Self> {
        let crds = calico().await?.join("manifests/crds.yaml");
        cluster.kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()]).await?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await?;
        cluster.apply(include_str!("felix.yaml")).await?;
        let nodes = cluster.state.nodes.iter().map(|node| node.name.as_str());
        Ok(Self { _felix: try_join_all(nodes.map(|node| start(cluster, node))).await? })
    }
}

/// The folder of Calico's module, which has its CRDs.
async fn calico() -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.args(["list", "-m", "-f", "{{.Dir}}", "github.com/projectcalico/calico"]);
    let output = go.current_dir(root().join("tests/cluster/felix")).output().await?;
    ensure!(output.status.success(), "go list: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

async fn start(cluster: &Cluster, node: &str) -> Result<Child> {
    let name = format!("FELIX_FELIXHOSTNAME={node}");
    let command = [&["env", &name][..], &SETTINGS, &["calico-felix"]].concat();
    let felix = cluster.start_on(node, "felix", &command)?;
    let ready = ["curl", "-sS", "--fail", "http://127.0.0.1:9099/readiness"];
    eventually(&format!("Felix on {node} ready"), Duration::from_secs(60), || async {
        cluster.run_on(node, &ready).await.map(Some)
    })
    .await?;
    Ok(felix)
}

impl Cluster {
    /// Replaces the NetworkPolicy for the pods of `default` with the label `app` by this; an engine follows
    /// within seconds.
    pub async fn rule(&self, app: &str, mut spec: Value) -> Result<()> {
        spec["podSelector"] = json!({ "matchLabels": { "app": app } });
        let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": app, "namespace": "default" }, "spec": spec });
        self.apply(&policy.to_string()).await.map(drop)
    }

    /// Takes it away.
    pub async fn unrule(&self, app: &str) -> Result<()> {
        self.kubectl(&["delete", "networkpolicy", app]).await.map(drop)
    }
}

/// Only these may connect, a list of [`pods`] and [`block`]s.
pub fn lets_in(callers: impl IntoIterator<Item = Value>) -> Value {
    json!({ "policyTypes": ["Ingress"], "ingress": [{ "from": Vec::from_iter(callers) }] })
}

/// Only these may be connected to.
pub fn lets_out(called: impl IntoIterator<Item = Value>) -> Value {
    json!({ "policyTypes": ["Egress"], "egress": [{ "to": Vec::from_iter(called) }] })
}

/// Only the former may connect, and only the latter may be connected to.
pub fn lets_through(
    callers: impl IntoIterator<Item = Value>,
    called: impl IntoIterator<Item = Value>,
) -> Value {
    json!({ "policyTypes": ["Ingress", "Egress"], "ingress": [{ "from": Vec::from_iter(callers) }],
        "egress": [{ "to": Vec::from_iter(called) }] })
}

/// The pods of the policy's namespace with the label `app`.
pub fn pods(app: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": app } } })
}

/// One address, `a.b.c.d`, or a range of them.
pub fn block(range: &str) -> Value {
    let cidr = if range.contains('/') { range.to_owned() } else { format!("{range}/32") };
    json!({ "ipBlock": { "cidr": cidr } })
}
