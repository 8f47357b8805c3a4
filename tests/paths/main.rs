//! Every path a pod's packets take, observed at the far end: one real cluster in simulated Azure, with the
//! network around it that each path needs. The chapters come one after the other, in any order: each makes
//! what it needs and leaves the world as it was.

mod beyond;
mod engine;
mod hostile;
mod inside;
mod policy;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::OnceCell;
use vnetpool_tests::chapters;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::engine::Engine;
use vnetpool_tests::place::{Machine, Place, peer};
use vnetpool_tests::probe;
use vnetpool_tests::project::root;
use vnetpool_tests::workload::ProbePod;

/// The cluster, and the machines that the test has put around it.
pub struct World {
    pub cluster: Cluster,
    /// One pod on each of two nodes.
    pub pods: [ProbePod; 2],
    /// A VM in the nodes' VNet.
    pub vm: Place,
    pub internet: Place,
    /// A VM in a peered VNet, 10.60.0.0/16.
    pub far: Machine,
    /// The host of the network on premises, 192.168.0.0/16.
    pub premises: Machine,
    /// A host of the storage service.
    pub storage: Machine,
    /// A VM in the nodes' VNet, in the subnet `small`, that forwards packets of others.
    pub appliance: Machine,
    /// Comes with the first chapter that asks for it, after those that show the paths without one.
    engine: OnceCell<Engine>,
}

impl World {
    async fn make() -> Result<Self> {
        let cluster = Cluster::up(&root().join("target/cluster/paths"), 2, 1).await?;
        cluster.install().await?;
        cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": 1, "limits": false })).await?;
        let far = Machine::far(&cluster, "far", "10.60.0.0/16").await?;
        peer(&cluster, "far").await?;
        let appliance = Machine::vm(&cluster, "appliance", json!({ "subnet": "small" })).await?;
        let premises = Machine::premises(&cluster).await?;
        let storage = Machine::storage(&cluster).await?;
        cluster.patch_pool(json!({ "snat": { "nonMasqueradeCIDRs": ["192.168.0.0/16"] } })).await?;
        cluster.deploy("one", 1, Some("node-1")).await?;
        cluster.deploy("two", 1, Some("node-2")).await?;
        let within = Duration::from_secs(120);
        let (one, two) =
            tokio::try_join!(cluster.running("one", 1, within), cluster.running("two", 1, within))?;
        let pods = [one, two].map(|pods| pods.into_iter().next());
        let [Some(one), Some(two)] = pods else { anyhow::bail!("the probes don't run") };
        ensure!(one.node != two.node);
        let vm = Place::host(cluster.state.vms.first().context("no plain VM")?);
        let internet = Place::host(&cluster.state.internet);
        let (pods, engine) = ([one, two], OnceCell::new());
        Ok(Self { pods, vm, internet, far, premises, storage, appliance, engine, cluster })
    }

    /// Brings an engine of NetworkPolicy to the nodes, unless it is there.
    pub async fn bring_engine(&self) -> Result<()> {
        self.engine.get_or_try_init(|| Engine::bring(&self.cluster)).await.map(drop)
    }

    /// Where a pod's processes are.
    pub fn pod(&self, index: usize) -> Result<Place> {
        Place::pod(&self.pods[index])
    }

    /// The node of a pod.
    pub fn node(&self, index: usize) -> Result<Place> {
        Ok(Place::host(&self.cluster.host(&self.pods[index].node)?))
    }
}

fn main() -> Result<ExitCode> {
    if let Some(probe) = probe::asked_for() {
        return probe;
    }
    chapters![
        World::make;
        inside::pods_reach_each_other_on_a_node_and_across_under_their_own_addresses,
        inside::a_pod_and_its_own_node_reach_each_other,
        inside::a_pod_on_the_nodes_own_network_and_a_pod_reach_each_other,
        inside::the_kubelet_probes_a_pod_at_its_address,
        beyond::a_pod_and_a_vm_of_the_vnet_reach_each_other_under_their_own_addresses,
        beyond::premises_behind_the_gateway_see_the_pods_own_address,
        beyond::the_internet_and_the_platform_see_the_nodes_primary_address,
        beyond::pods_get_no_token_of_their_nodes_identity_unless_the_pool_allows_it,
        beyond::a_pod_that_asks_for_a_token_is_counted_and_named_once,
        hostile::a_pod_with_a_containers_default_capabilities_gets_nowhere_by_forged_packets,
        hostile::neither_a_pod_nor_a_vm_reaches_the_ports_of_agents_and_operator,
        beyond::a_new_peering_is_followed_within_the_next_read_and_disturbs_no_flow,
        policy::a_security_group_acts_on_the_addresses_of_pods,
        policy::a_route_table_steers_a_pods_packets_through_an_appliance_and_back,
        policy::a_service_endpoint_sees_the_nodes_primary_or_the_pod_where_its_prefix_is_not_translated,
        policy::a_pod_is_in_the_application_security_groups_of_its_nodes_nic,
        policy::a_pool_puts_its_pods_into_its_application_security_groups,
        inside::flows_and_new_pods_go_on_while_the_agent_is_down,
        engine::a_peer_and_premises_reach_the_pods_whose_policies_let_them_in_and_no_other,
        engine::a_pod_on_the_nodes_own_network_reaches_the_pods_whose_policies_let_it_in_and_no_other,
    ]
}
