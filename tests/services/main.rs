//! Services by the real kube-proxy, in both of its modes that Linux nodes use, and traffic that comes
//! straight to pods from Azure: observed at the far end, on one cluster for each mode; and on a third with a
//! real engine of NetworkPolicy on each node.

mod admitted;
mod attached;
mod balanced;
mod gateway;
mod guarded;
mod ingress;
mod inside;
mod names;
mod policy;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;
use vnetpool_tests::chapters;
use vnetpool_tests::chapters::Chapters;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::engine::Engine;
use vnetpool_tests::place::Place;
use vnetpool_tests::probe;
use vnetpool_tests::project::root;
use vnetpool_tests::workload::{PORT, ProbePod, container};

/// How long kube-proxy and an engine take to follow, at most.
const SOON: Duration = Duration::from_secs(20);
/// The port of every Service here.
const SERVED: u16 = 80;

/// A cluster with kube-proxy in one mode.
pub struct World {
    mode: &'static str,
    /// On each node of the world that has one.
    _engine: Option<Engine>,
    pub cluster: Cluster,
    /// The pod behind most Services, on node-1; then a client beside it and one on node-2.
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
        cluster.bring_coredns().await?;
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
        Ok(Self { mode, _engine: None, web, near, away, nodes, vm, internet, cluster })
    }

    /// With an engine of NetworkPolicy. The one that can be had here doesn't know kube-proxy's nftables mode.
    async fn make_with_engine() -> Result<Self> {
        let mut world = Self::make("iptables").await?;
        world._engine = Some(Engine::bring(&world.cluster).await?);
        Ok(world)
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

    /// What the agent of a node has put right since it began, and how often: of each kind that its metrics
    /// know.
    pub async fn repairs(&self, node: &str) -> Result<BTreeMap<String, u32>> {
        let metrics = self.cluster.run_on(node, &["curl", "-sS", "http://127.0.0.1:9471/metrics"]).await?;
        let series =
            metrics.lines().filter_map(|line| line.strip_prefix("vnetpool_agent_repairs_total{kind=\""));
        series
            .map(|series| {
                let (kind, count) =
                    series.split_once("\"} ").with_context(|| format!("repairs of {series}"))?;
                Ok((kind.to_owned(), count.parse()?))
            })
            .collect()
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
        let mut spec = json!({ "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "nodeSelector": { "kubernetes.io/hostname": node }, "containers": [container(port)] });
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more);
        }
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        self.cluster.apply(&pod.to_string()).await?;
        let running = self.cluster.running(name, 1, Duration::from_secs(60)).await?;
        running.into_iter().next().context("no pod")
    }
}

fn main() -> Result<ExitCode> {
    if let Some(probe) = probe::asked_for() {
        return probe;
    }
    let mut tests = Chapters::new()?;
    for mode in ["iptables", "nftables"] {
        chapters![
            tests, mode, async move || World::make(mode).await;
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
    // No Service is on these ways, so kube-proxy's mode doesn't matter to them. Only in this mode a flush of
    // nftables takes all of its rules.
    chapters![
        tests, "nftables", async || World::make("nftables").await;
        guarded::a_deleted_table_of_ours_is_back_within_a_second_beside_a_busy_kube_proxy,
        guarded::after_a_flush_of_all_tables_ours_is_back_within_a_second_and_lost_host_ports_are_named,
        attached::a_pod_straight_behind_a_public_load_balancer_sees_its_client_of_the_internet,
        ingress::an_ingress_calls_pods_at_their_own_addresses_and_follows_them,
        gateway::an_application_gateway_in_another_subnet_calls_pods_at_their_own_addresses,
    ];
    chapters![
        tests, "engine", World::make_with_engine;
        policy::the_engine_finds_the_link_of_every_pod,
        policy::with_an_engine_and_without_a_policy_every_path_is_as_ever,
        policy::only_packets_that_a_policy_lets_in_arrive_with_their_own_address,
        policy::a_policy_lets_out_only_its_packets_and_these_leave_as_before,
        policy::the_kubelet_probes_a_pod_that_a_policy_closes,
        policy::a_policy_holds_for_a_pod_of_the_name_of_one_that_was_deleted_by_force,
        admitted::a_cluster_ip_leads_to_a_pod_whose_policy_lets_in_its_caller_and_to_no_other,
        admitted::a_pod_on_the_nodes_network_reaches_a_cluster_ip_where_a_policy_lets_in_its_node,
        admitted::a_pod_reaches_itself_through_its_own_service_only_where_its_policy_lets_it_in,
        admitted::an_affinity_keeps_a_client_with_one_pod_where_a_policy_lets_it_in,
        admitted::a_vm_reaches_the_pods_of_a_headless_service_where_a_policy_lets_it_in,
        admitted::names_are_resolved_and_called_where_policies_let_the_questions_through,
        admitted::a_node_port_leads_to_a_pod_whose_policy_lets_in_its_client_and_to_no_other,
        admitted::a_load_balancer_leads_to_a_pod_whose_policy_lets_in_its_client_and_to_no_other,
        admitted::a_pod_straight_behind_a_load_balancer_lets_in_its_client_and_the_probe,
        admitted::a_pod_with_a_public_address_connects_and_is_reached_as_its_policy_allows,
        admitted::an_ingress_calls_the_pods_that_let_it_in_and_no_other,
        admitted::an_application_gateway_calls_the_pods_that_let_in_its_subnet,
        policy::the_engine_and_the_agent_do_not_disturb_each_other,
    ];
    Ok(tests.run())
}
