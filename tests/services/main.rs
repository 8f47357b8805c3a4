//! Services by the real kube-proxy, in both of its modes that Linux nodes use, and what comes straight to pods from Azure: observed at
//! the far end, on one cluster for each mode.

mod attached;
mod balanced;
mod gateway;
mod ingress;
mod inside;
mod names;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use vnetpool_tests::cluster::{Cluster, root};
use vnetpool_tests::place::Place;
use vnetpool_tests::workload::{PORT, ProbePod};

const MODES: [&str; 2] = ["iptables", "nftables"];
/// How long kube-proxy takes to follow, at most.
const SOON: Duration = Duration::from_secs(20);
/// The port of every Service here.
const SERVED: u16 = 80;

/// A cluster with kube-proxy in one mode.
pub struct World {
    mode: &'static str,
    pub cluster: Cluster,
    /// What most Services lead to, on node-1; then a client beside it and one on node-2.
    pub web: ProbePod,
    pub near: ProbePod,
    pub away: ProbePod,
    /// The node of `web`, and the other, which has no endpoint.
    pub nodes: [Place; 2],
    /// A VM in the nodes' VNet.
    pub vm: Place,
    pub internet: Place,
}

impl World {
    async fn make(mode: &'static str) -> Result<Self> {
        let dir = root().join("target/cluster/services");
        let cluster = Cluster::up_with(&dir, 2, 1, mode).await?;
        cluster.install().await?;
        let quick = json!({ "write_seconds": 1, "probe_seconds": 0.5, "limits": false });
        cluster.azure.admin("PATCH", "/settings", quick).await?;
        names::bring_coredns(&cluster).await?;
        let probes = [("web", "node-1"), ("near", "node-1"), ("away", "node-2")];
        for (name, node) in probes {
            cluster.deploy(name, 1, Some(node)).await?;
        }
        let one = async |name: &str| -> Result<ProbePod> {
            let pods = cluster.running(name, 1, Duration::from_secs(120)).await?;
            pods.into_iter().next().context("no pod")
        };
        let (web, near, away) = (one("web").await?, one("near").await?, one("away").await?);
        let nodes = [Place::host(&cluster.host("node-1")?), Place::host(&cluster.host("node-2")?)];
        let vm = Place::host(cluster.state.vms.first().context("no plain VM")?);
        let internet = Place::host(&cluster.state.internet);
        Ok(Self { mode, web, near, away, nodes, vm, internet, cluster })
    }

    /// Makes or changes a Service for the pods with the label `app`; gives it as the API server has it.
    pub async fn serve(&self, name: &str, app: &str, more: Value) -> Result<Value> {
        let mut spec =
            json!({ "selector": { "app": app }, "ports": [{ "port": SERVED, "targetPort": PORT }] });
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more);
        }
        let service = json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": "default" }, "spec": spec });
        self.cluster.apply(&service.to_string()).await?;
        Ok(serde_json::from_str(&self.cluster.kubectl(&["get", "service", name, "-o", "json"]).await?)?)
    }

    pub async fn unserve(&self, name: &str) -> Result<()> {
        self.cluster.kubectl(&["delete", "service", name]).await.map(drop)
    }

    /// Starts a pod of its own with these annotations, and waits until it runs.
    pub async fn pod(&self, name: &str, node: &str, annotations: Value) -> Result<ProbePod> {
        self.pod_with(name, node, PORT, annotations, json!({})).await
    }

    /// The same with a probe at another port, and with more in its specification.
    pub async fn pod_with(
        &self,
        name: &str,
        node: &str,
        port: u16,
        annotations: Value,
        more: Value,
    ) -> Result<ProbePod> {
        let metadata = json!({ "name": name, "namespace": "default", "labels": { "app": name }, "annotations": annotations });
        let container = json!({ "name": "probe", "image": "localhost/probe:dev", "imagePullPolicy": "Never",
            "args": ["serve", "--listen", format!(":{port}")] });
        let mut spec = json!({ "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "nodeSelector": { "kubernetes.io/hostname": node }, "containers": [container] });
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more);
        }
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        self.cluster.apply(&pod.to_string()).await?;
        let running = self.cluster.running(name, 1, Duration::from_secs(60)).await?;
        running.into_iter().next().context("no pod")
    }
}

/// The mode of a cluster, and the cluster unless it could not be made.
type Made = (&'static str, Result<World, String>);

fn main() -> Result<ExitCode> {
    let runtime = Arc::new(Runtime::new()?);
    // There is one cluster at a time: the first chapter of a mode takes that of the other down. Made once, also when that
    // fails: the other chapters would fail in the same way, only later.
    let world: Arc<Mutex<Option<Made>>> = Arc::default();
    let mut trials = vec![];
    macro_rules! tests {
        ($mode:expr, $($chapter:path),* $(,)?) => { $({
            let (runtime, world) = (Arc::clone(&runtime), Arc::clone(&world));
            let name = stringify!($chapter).replace(' ', "");
            let name = format!("{}::{}", $mode, name.rsplit("::").next().unwrap_or_default());
            trials.push(Trial::test(name, move || {
                let chapter = async {
                    let mut world = world.lock().await;
                    if world.as_ref().is_none_or(|(mode, _)| *mode != $mode) {
                        *world = None;
                        *world = Some(($mode, World::make($mode).await.map_err(|error| format!("{error:#}"))));
                    }
                    let (_, made) = world.as_ref().context("no world")?;
                    $chapter(made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?).await
                };
                runtime.block_on(chapter).map_err(|error| {
                    // Now, not when all is over: what comes after may take long.
                    eprintln!("{error:#}");
                    Failed::from(format!("{error:#}"))
                })
            }));
        })* };
    }
    for mode in MODES {
        tests![
            mode,
            inside::kube_proxy_runs_in_the_mode_that_is_meant,
            inside::a_cluster_ip_leads_to_a_pod_that_sees_its_callers_own_address,
            inside::a_pod_on_the_nodes_network_reaches_a_cluster_ip_under_the_nodes_address,
            inside::a_pod_reaches_itself_through_its_own_service,
            inside::an_affinity_keeps_a_client_with_one_pod,
            inside::a_headless_service_names_the_pods_addresses_and_a_vm_reaches_them,
            names::a_name_of_a_private_zone_resolves_in_a_pod_and_azure_is_asked_by_the_nodes_primary_address,
            names::a_service_is_called_by_its_name,
            names::a_headless_service_gives_names_to_its_pods_that_lead_to_their_own_addresses,
            balanced::a_node_port_leads_from_any_node_or_keeps_the_clients_address,
            balanced::a_load_balancer_leads_from_any_node_or_keeps_the_clients_address,
            attached::a_pod_straight_behind_a_load_balancer_sees_its_client,
            attached::a_pod_with_a_public_address_leaves_by_it_and_is_reached_under_it,
        ];
    }
    // No Service is on these ways, so kube-proxy's mode is nothing to them.
    let [_, last] = MODES;
    tests![
        last,
        ingress::an_ingress_calls_pods_at_their_own_addresses_and_follows_them,
        gateway::an_application_gateway_in_another_subnet_calls_pods_at_their_own_addresses,
    ];
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Taken down here, not when the process ends: nothing drops what a thread of the runtime may still hold.
    drop(world);
    Ok(if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
