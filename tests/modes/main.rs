//! The ways of reserving and of wiring, and the end of it all, by packets under the real kubelet: one real
//! cluster in simulated Azure, whose nodes go from pool to pool. The chapters come one after the other, in
//! any order: each takes the nodes that it needs into its pool, and takes its pods away.

mod blocks;
mod full;
mod installers;
mod interfaces;
mod leaving;
mod meshed;
mod ranges;
mod wired;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use vnetpool_tests::chapters;
use vnetpool_tests::chapters::{Anew, Chapters};
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::place::{Machine, Place, arm, id, peer, put_subnet};
use vnetpool_tests::probe;
use vnetpool_tests::project::root;
use vnetpool_tests::workload::ProbePod;

/// How long a pod takes to run whose address is there, at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nodes take to give back the addresses of one pool and to reserve those of the next one, at most.
const MOVES: Duration = Duration::from_secs(120);

/// The cluster, and the objects that the test has put around it.
pub struct World {
    pub cluster: Cluster,
    /// A VM in the nodes' subnet.
    pub vm: Place,
    pub internet: Place,
    /// A VM in a peered VNet, 10.60.0.0/16.
    pub far: Machine,
    /// The host of the network on premises, 192.168.0.0/16.
    pub premises: Machine,
    /// A host of the storage service.
    pub storage: Machine,
    /// The address of node-3's second NIC, `eth1`, which is in the subnet `small`.
    pub second: String,
    /// The cluster and two of its nodes before anything of ours was there.
    pub before: leaving::Listing,
    /// Of the pool that was made or taken up last.
    weight: AtomicU32,
    /// Nothing of ours is there any more.
    is_gone: AtomicBool,
}

impl World {
    async fn make() -> Result<Self> {
        let cluster = Cluster::up(&root().join("target/cluster/modes"), 3, 1).await?;
        let quick = json!({ "write_seconds": 1, "limits": false });
        cluster.azure.admin("PATCH", "/settings", quick).await?;
        let nic = cluster.azure.admin("POST", "/vms/node-3/nics", json!({ "subnet": "small" })).await?;
        let second = nic["address"].as_str().context("a NIC without an address")?.to_owned();
        let far = Machine::far(&cluster, "far", "10.60.0.0/16").await?;
        peer(&cluster, "far").await?;
        let premises = Machine::premises(&cluster).await?;
        let storage = Machine::storage(&cluster).await?;
        // Before the operator reads the table, which it does once a minute.
        arm(&cluster, "PUT", ranges::TABLE, json!({ "properties": {} })).await?;
        let table = json!({ "routeTable": { "id": id(ranges::TABLE) } });
        put_subnet(&cluster, "vnet/subnets/nodes", table).await?;
        let before = leaving::Listing::at(&cluster).await?;
        install(&cluster).await?;
        let vm = Place::host(cluster.state.vms.first().context("no plain VM")?);
        let internet = Place::host(&cluster.state.internet);
        let (weight, is_gone) = (AtomicU32::new(1), AtomicBool::new(false));
        Ok(Self { cluster, vm, internet, far, premises, storage, second, before, weight, is_gone })
    }

    /// Has a pool of this name serve these nodes, which outweighs those before it.
    ///
    /// # Errors
    /// Also when one of the nodes has gone in an earlier chapter: then the world is made anew.
    pub async fn pool(&self, name: &str, nodes: &[&str], mut spec: Value) -> Result<()> {
        if self.is_gone.swap(false, Ordering::Relaxed) {
            install(&self.cluster).await?;
        }
        for node in nodes {
            let known =
                self.cluster.kubectl(&["get", "node", node, "--ignore-not-found", "-o", "name"]).await?;
            ensure!(!known.trim().is_empty(), Anew(format!("{node} has gone")));
        }
        spec["weight"] = json!(self.weight.fetch_add(1, Ordering::Relaxed));
        spec["nodeSelector"] = json!({ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "In", "values": nodes }] });
        // The chapters move nodes on purpose.
        let now = "vnetpool.io/release=true";
        self.cluster.kubectl(&["annotate", "nodeipallocations", "--all", "--overwrite", now]).await?;
        let pool = json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPPool",
            "metadata": { "name": name }, "spec": spec });
        self.cluster.apply(&pool.to_string()).await.map(drop)
    }

    /// A deployment of so many probes on a node, as soon as they run.
    pub async fn start(&self, name: &str, node: &str, count: u32) -> Result<Vec<ProbePod>> {
        self.cluster.deploy(name, count, Some(node)).await?;
        self.cluster.running(name, count as usize, PATIENCE).await
    }

    /// Takes the pods of these deployments away.
    pub async fn end(&self, names: &[&str]) -> Result<()> {
        for name in names {
            self.cluster.undeploy(name).await?;
        }
        Ok(())
    }

    pub fn node(&self, name: &str) -> Result<Place> {
        Ok(Place::host(&self.cluster.host(name)?))
    }
}

/// Our chart, and small sizes for all nodes that no other pool has.
async fn install(cluster: &Cluster) -> Result<()> {
    cluster.install().await?;
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    cluster.patch_pool(json!({ "cooldown": "1s", "sizing": sizing })).await
}

fn main() -> Result<ExitCode> {
    if let Some(probe) = probe::asked_for() {
        return probe;
    }
    let mut tests = Chapters::new()?;
    if chapters::is_nightly() {
        chapters![
            tests, World::make;
            full::a_node_runs_250_pods_and_replaces_half_of_them_while_their_addresses_cool,
        ];
    }
    chapters![
        tests, World::make;
        blocks::pods_of_a_block_have_its_addresses_and_keep_every_path,
        blocks::a_block_goes_back_to_azure_when_no_pod_has_an_address_of_it,
        wired::a_host_port_leads_to_a_routed_pod,
        wired::new_pods_are_behind_the_bridge_and_old_ones_reach_them,
        wired::a_host_port_leads_to_a_pod_behind_the_bridge,
        wired::the_bandwidth_annotation_limits_its_pod_and_no_other,
        meshed::a_mesh_behind_ours_sees_every_pod_and_without_its_program_no_pod_starts,
        meshed::an_installer_that_watches_our_file_is_not_fought_and_no_pod_starts_outside_its_mesh,
        meshed::a_plugin_in_front_that_hands_pods_on_to_ours_is_accepted_and_reported,
        interfaces::packets_of_a_second_nics_pods_leave_by_it_under_strict_reverse_path_filters,
        interfaces::a_service_endpoint_sees_the_primary_address_of_the_nic_that_pods_use,
        ranges::pods_of_a_range_reach_each_other_by_the_route_table,
        ranges::the_vnet_sees_a_pod_of_a_range_and_a_network_without_the_route_sees_its_node,
        ranges::packets_to_a_free_address_of_a_range_end_on_its_node,
        ranges::a_node_that_goes_loses_its_route,
        leaving::the_last_node_can_be_drained_and_the_namespace_deleted_and_each_hang_is_documented,
        leaving::nothing_stays_after_the_uninstall_that_is_documented,
    ];
    Ok(tests.run())
}
