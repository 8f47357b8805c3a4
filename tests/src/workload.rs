//! Deployments of probe pods, and each pod's view of the addresses it dials.

use crate::cluster::Cluster;
use crate::wait::eventually;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Duration;

/// The port probes serve at, in pods and on plain VMs.
pub const PORT: u16 = 8080;

/// One dial: its target, whether it came through, and the source address that the far side saw.
#[derive(Clone, Debug, Deserialize)]
pub struct Dial {
    pub target: String,
    pub ok: bool,
    #[serde(default)]
    pub source_seen_by_target: String,
    #[serde(default)]
    pub error: String,
}

/// A running probe pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePod {
    pub name: String,
    pub node: String,
    pub address: Ipv4Addr,
}

impl ProbePod {
    /// A pod that is ready and isn't ending.
    pub fn of(pod: &Pod) -> Option<ProbePod> {
        let status = pod.status.as_ref()?;
        let ready =
            status.conditions.as_ref()?.iter().any(|one| one.type_ == "Ready" && one.status == "True");
        (ready && pod.metadata.deletion_timestamp.is_none()).then_some(())?;
        Some(ProbePod {
            name: pod.metadata.name.clone()?,
            node: pod.spec.as_ref()?.node_name.clone()?,
            address: status.pod_ip.as_ref()?.parse().ok()?,
        })
    }
}

impl Cluster {
    /// Makes a deployment of probes; `node` pins it to one node.
    pub async fn deploy(&self, name: &str, replicas: u32, node: Option<&str>) -> Result<()> {
        let selector = node.map(|node| json!({ "kubernetes.io/hostname": node }));
        let labels = json!({ "app": name });
        let manifest = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "automountServiceAccountToken": false,
                        "enableServiceLinks": false,
                        "nodeSelector": selector,
                        "containers": [container(PORT)],
                    },
                },
            },
        });
        self.apply(&manifest.to_string()).await.map(drop)
    }

    pub async fn scale(&self, name: &str, replicas: u32) -> Result<()> {
        self.kubectl(&["scale", "deployment", name, &format!("--replicas={replicas}")]).await.map(drop)
    }

    /// Deletes a deployment and waits until its pods are gone.
    pub async fn undeploy(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "deployment", name, "--ignore-not-found"]).await?;
        self.no_pods(name).await
    }

    /// Waits until no pod of the deployment is left.
    pub async fn no_pods(&self, name: &str) -> Result<()> {
        eventually(&format!("all pods of {name} gone"), Duration::from_secs(180), || async {
            Ok(self.pods(name).await?.is_empty().then_some(()))
        })
        .await
    }

    /// All pods of a deployment as the API server has them.
    pub async fn pods(&self, name: &str) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        Ok(api.list(&ListParams::default().labels(&format!("app={name}"))).await?.items)
    }

    /// Waits until the runtime reports that a pod of the deployment can't start for want of this plugin.
    pub async fn until_plugin_is_missed(&self, name: &str, plugin: &str, within: Duration) -> Result<()> {
        eventually(&format!("the runtime misses {plugin}"), within, || async {
            let pods = self.pods(name).await?;
            let pod = pods.first().and_then(|pod| pod.metadata.name.as_deref()).context("no pod")?;
            let about = format!("involvedObject.name={pod},reason=FailedCreatePodSandBox");
            let events =
                ["get", "events", "--field-selector", &about, "--output=jsonpath={.items[*].message}"];
            Ok(self.kubectl(&events).await?.contains(plugin).then_some(()))
        })
        .await
    }

    /// Waits until `count` pods of the deployment are Running, and gives them.
    pub async fn running(&self, name: &str, count: usize, within: Duration) -> Result<Vec<ProbePod>> {
        eventually(&format!("{count} pods of {name} Running"), within, || async {
            let pods = self.pods(name).await?;
            let running: Vec<_> = pods.iter().filter_map(ProbePod::of).collect();
            anyhow::ensure!(running.len() == count && pods.len() == count, "{} of {count}", running.len());
            Ok(Some(running))
        })
        .await
    }

    /// Has a pod dial addresses: the request goes in from a plain VM, as any client of the VNet would send
    /// it.
    pub async fn dial_from_pod(&self, pod: &ProbePod, targets: &[String]) -> Result<Vec<Dial>> {
        self.dial_via(&target(pod.address), targets).await
    }

    /// Has the probe at `via` dial `address:port` or `name:port`, as it resolves names where it is.
    pub async fn dial_via(&self, via: &str, targets: &[String]) -> Result<Vec<Dial>> {
        let vm = &self.state.vms.first().context("no plain VM")?.name;
        self.probe(vm, &["--via", via], targets).await
    }

    /// Dials addresses from a machine itself.
    pub async fn dial_from(&self, host: &str, targets: &[String]) -> Result<Vec<Dial>> {
        self.probe(host, &[], targets).await
    }

    async fn probe(&self, host: &str, flags: &[&str], targets: &[String]) -> Result<Vec<Dial>> {
        let probe = crate::project::tool("probe");
        let probe = probe.to_string_lossy();
        let mut command = vec![probe.as_ref(), "dial", "--timeout", "5s"];
        command.extend(flags);
        command.extend(targets.iter().map(String::as_str));
        let output = self.run_on(host, &command).await?;
        serde_json::from_str(&output).with_context(|| format!("what the probe on {host} printed: {output}"))
    }
}

/// The container of a probe that serves at this port. Its pod is Ready once the port answers; it is asked no
/// more after that.
pub fn container(port: u16) -> Value {
    json!({ "name": "probe", "image": "localhost/probe:dev", "imagePullPolicy": "Never",
        "args": ["serve", "--listen", format!(":{port}")],
        "startupProbe": { "tcpSocket": { "port": port }, "periodSeconds": 1, "failureThreshold": 60 } })
}

/// `address:port` of a probe.
pub fn target(address: impl std::fmt::Display) -> String {
    format!("{address}:{PORT}")
}
