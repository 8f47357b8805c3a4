//! A real cluster in the network that `examples/new-vnet` makes: pods have addresses of its subnet, all of it
//! works for them, and foreign machines in the same subnet take part of it. The nodes' runtimes read the
//! folders of k3s. The chapters come one after the other.

mod folders;

use anyhow::{Context, Result, ensure};
use folders::{BIN, CONF};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;
use vnetpool_tests::chapters;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::place::{Machine, Place, Seen, arm};
use vnetpool_tests::project::root;
use vnetpool_tests::workload::{PORT, ProbePod};
use vnetpool_tests::{eventually, probe};

/// The template's subnet for nodes, without its last two numbers.
const NODES: [u8; 2] = [10, 224];
const PATIENCE: Duration = Duration::from_secs(90);

/// The cluster, with a pod on each of two nodes and a machine in the template's other subnet.
struct World {
    cluster: Cluster,
    pods: [ProbePod; 2],
    machine: Machine,
}

impl World {
    async fn make() -> Result<Self> {
        let template = root().join("examples/new-vnet/template.json");
        let cluster = Cluster::up_in(&template, &root().join("target/cluster/new-vnet"), 2, 1).await?;
        folders::lay_out_as_k3s(&cluster)?;
        let folders = format!("nodeAgent.cni.binDir={BIN},nodeAgent.cni.confDir={CONF}");
        let further = folders::further_plugins();
        cluster.install_with(&["--set", &folders, "--set-json", &further]).await?;
        cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": 1, "limits": false })).await?;
        let machine = Machine::vm(&cluster, "machine", json!({ "subnet": "other-machines" })).await?;
        cluster.deploy("one", 1, Some("node-1")).await?;
        cluster.deploy("two", 1, Some("node-2")).await?;
        let (one, two) =
            tokio::try_join!(cluster.running("one", 1, PATIENCE), cluster.running("two", 1, PATIENCE))?;
        let [Some(one), Some(two)] = [one, two].map(|pods| pods.into_iter().next()) else {
            anyhow::bail!("the probes don't run")
        };
        Ok(Self { pods: [one, two], machine, cluster })
    }
}

fn is_of_the_nodes_subnet(address: Ipv4Addr) -> bool {
    address.octets()[..2] == NODES
}

async fn pods_have_addresses_of_the_templates_subnet_and_reach_each_other(world: &World) -> Result<()> {
    let [one, two] = &world.pods;
    ensure!(
        one.node != two.node && is_of_the_nodes_subnet(one.address) && is_of_the_nodes_subnet(two.address)
    );
    for (from, to) in [(one, two), (two, one)] {
        let seen = Place::pod(from)?.seen_by(to.address).await?;
        ensure!(seen == Seen::new(from.address, to.address), "{} to {}: {seen:?}", from.address, to.address);
    }
    Ok(())
}

async fn a_machine_in_the_templates_other_subnet_and_a_pod_see_each_others_own_addresses(
    world: &World,
) -> Result<()> {
    let (pod, machine) = (Place::pod(&world.pods[0])?, &world.machine.place);
    let seen = pod.seen_by(&machine.address).await?;
    ensure!(seen == Seen::new(&pod.address, &machine.address), "the machine sees {seen:?}");
    let seen = machine.seen_by(&pod.address).await?;
    ensure!(seen == Seen::new(&machine.address, &pod.address), "the pod sees {seen:?}");
    Ok(())
}

/// Adds an element to a list of the document at `resource`, checks, and puts the document back.
async fn with(
    world: &World,
    (resource, list): (&str, &str),
    element: Value,
    check: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let before = arm(&world.cluster, "GET", resource, json!({})).await?;
    let mut after = before.clone();
    after["properties"][list].as_array_mut().context("no list")?.push(element);
    arm(&world.cluster, "PUT", resource, after).await?;
    let checked = check().await;
    let put_back = arm(&world.cluster, "PUT", resource, before).await.map(drop);
    checked.and(put_back)
}

async fn the_templates_security_group_and_route_table_act_on_pods(world: &World) -> Result<()> {
    let (pod, machine) = (Place::pod(&world.pods[0])?, &world.machine.place);
    let connects = async || -> Result<()> {
        pod.seen_by(&machine.address).await?;
        machine.seen_by(&pod.address).await.map(drop)
    };
    let rule = json!({ "priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "*",
        "sourceAddressPrefix": machine.address, "sourcePortRange": "*",
        "destinationAddressPrefix": pod.address, "destinationPortRange": "*" });
    let rule = json!({ "name": "not-from-the-machine", "properties": rule });
    with(world, ("networkSecurityGroups/vnetpool-nodes", "securityRules"), rule, async || {
        machine.is_dropped(&pod.address, PORT).await.context("the group's rule")?;
        pod.seen_by(&machine.address).await.map(drop)
    })
    .await?;
    connects().await?;
    let nowhere = json!({ "addressPrefix": format!("{}/32", machine.address), "nextHopType": "None" });
    let nowhere = json!({ "name": "nowhere", "properties": nowhere });
    with(world, ("routeTables/vnetpool-nodes", "routes"), nowhere, async || {
        pod.is_dropped(&machine.address, PORT).await.context("the table's route")
    })
    .await?;
    connects().await
}

async fn foreign_machines_take_addresses_of_the_same_subnet_and_keep_them(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    let mut foreign = BTreeSet::new();
    for index in 0..3 {
        let made = cluster.azure.make_vm(&format!("foreign-{index}"), "nodes").await?;
        foreign.insert(made["address"].as_str().context("no address")?.parse::<Ipv4Addr>()?);
        // In between pods come, too many for what the node holds.
        cluster.deploy(&format!("more-{index}"), 4, Some("node-1")).await?;
    }
    for index in 0..3 {
        let pods = cluster.running(&format!("more-{index}"), 4, PATIENCE).await?;
        ensure!(
            pods.iter().all(|pod| is_of_the_nodes_subnet(pod.address) && !foreign.contains(&pod.address))
        );
    }
    ensure!(foreign.len() == 3 && foreign.iter().all(|address| is_of_the_nodes_subnet(*address)));
    for index in 0..3 {
        cluster.undeploy(&format!("more-{index}")).await?;
    }
    // Each foreign NIC is as it was made.
    eventually("the foreign machines have their addresses", PATIENCE, || async {
        let mut held = BTreeSet::new();
        for index in 0..3 {
            let nic =
                arm(cluster, "GET", &format!("networkInterfaces/foreign-{index}-nic"), json!({})).await?;
            let all = nic["properties"]["ipConfigurations"].as_array().context("no ipConfigurations")?;
            ensure!(all.len() == 1, "{nic}");
            let address = &all[0]["properties"]["privateIPAddress"];
            held.insert(address.as_str().context("no address")?.parse::<Ipv4Addr>()?);
        }
        Ok((held == foreign).then_some(()))
    })
    .await
}

fn main() -> Result<ExitCode> {
    if let Some(probe) = probe::asked_for() {
        return probe;
    }
    chapters![
        World::make;
        pods_have_addresses_of_the_templates_subnet_and_reach_each_other,
        a_machine_in_the_templates_other_subnet_and_a_pod_see_each_others_own_addresses,
        the_templates_security_group_and_route_table_act_on_pods,
        foreign_machines_take_addresses_of_the_same_subnet_and_keep_them,
        folders::a_further_plugin_of_the_values_is_run_for_each_pod_and_none_starts_without_it,
        folders::a_host_port_leads_to_its_pod_where_the_runtime_has_the_folders_of_k3s,
    ]
}
