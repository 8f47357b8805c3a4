//! The networks a cluster may be put into: one that the example's template makes, and one that others use,
//! too.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use vnetpool_azure_sim::{Config, NewVm};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{self, RESERVED};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::project::root;

pub const TESTS: &[Test] = crate::tests![
    nodes_in_the_network_of_the_template_get_addresses_of_it,
    foreign_machines_in_the_same_subnet_are_never_touched_and_free_addresses_are_used,
    a_peered_network_sees_pods_under_their_own_addresses_while_its_peering_is_whole_and_open,
    a_range_that_a_peer_has_got_counts_once_the_peering_is_synchronised,
];

/// As `az deployment group create` does it, with the resource group there already.
async fn deploy(stage: &Stage<'_>, template: &Value, parameters: Value) -> Result<Value> {
    let Config { subscription, resource_group, .. } = Config::default();
    let client = reqwest::Client::new();
    let url = format!(
        "{}/subscriptions/{subscription}/resourcegroups/{resource_group}/providers/Microsoft.Resources/deployments/new?api-version=2021-04-01",
        stage.sim.arm_url()
    );
    let body =
        json!({ "properties": { "mode": "Incremental", "template": template, "parameters": parameters } });
    let accepted = client.put(&url).bearer_auth("a person's").json(&body).send().await?;
    ensure!(accepted.status() == 201, "{}", accepted.text().await?);
    let operation = accepted.headers()["azure-asyncoperation"].to_str()?.to_owned();
    let status: Value = client.get(operation).bearer_auth("a person's").send().await?.json().await?;
    ensure!(status["status"] == "Succeeded", "{status}");
    Ok(client.get(&url).bearer_auth("a person's").send().await?.json().await?)
}

async fn nodes_in_the_network_of_the_template_get_addresses_of_it(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, Config { vnets: vec![], ..quick() }).await?;
    let template = std::fs::read_to_string(root().join("examples/new-vnet/template.json"))?;
    let template: Value = serde_json::from_str(&template)?;
    let parameters = json!({ "nodesPrefix": { "value": "10.224.0.0/24" } });
    let deployment = deploy(&stage, &template, parameters).await?;
    let subnet =
        deployment["properties"]["outputs"]["nodesSubnetId"]["value"].as_str().context("no output")?;
    stage
        .pool("default", json!({ "subnetID": subnet, "sizing": { "minimum": 2, "warm": 1, "batch": 1 } }))
        .await?;
    stage.start().await?;
    for node in ["n1", "n2"] {
        stage.node(node, Some("nodes")).await?;
        stage.bind(node, 5).await?;
    }
    for node in ["n1", "n2"] {
        stage.until_holds(node, 6).await?;
        let spec = stage.allocation(node).await?.spec;
        let own = spec.ip_configurations().all(|one| one.address.starts_with("10.224.0."));
        ensure!(own && spec.interfaces[0].subnet.id == subnet, "{:?}", spec.interfaces);
        ensure!(spec.snat_exclusions == ["10.224.0.0/12"], "{:?}", spec.snat_exclusions);
    }
    // A machine in the other subnet is no node of this pool.
    let vm = stage.node("stray", Some("other-machines")).await?;
    let condition = stage.until_condition("stray", condition::INTERFACE_FOUND, "SubnetMismatch").await?;
    ensure!(condition.message.contains("other-machines"), "{}: {}", vm.nic_id, condition.message);
    Ok(())
}

/// A peering of one network to the other.
async fn peer(stage: &Stage<'_>, from: &str, to: &str, is_open: bool) -> Result<String> {
    let Config { subscription, resource_group, .. } = Config::default();
    let remote = format!(
        "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.Network/virtualNetworks/{to}"
    );
    let body = json!({ "properties": { "remoteVirtualNetwork": { "id": remote },
        "allowVirtualNetworkAccess": is_open } });
    stage.put(&format!("Microsoft.Network/virtualNetworks/{from}/virtualNetworkPeerings/to-{to}"), body).await
}

/// The range of the network that is peered with.
const RANGE: &str = "10.60.0.0/16";

/// A pool, and another network to which ours has a peering. Gives the ids of that network and of the peering.
async fn beside_other(plane: &ControlPlane) -> Result<(Stage<'_>, String, String)> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })).await?;
    let other = json!({ "properties": { "addressSpace": { "addressPrefixes": [RANGE] }, "subnets": [] } });
    let other = stage.put("Microsoft.Network/virtualNetworks/other", other).await?;
    let ours = peer(&stage, "vnet", "other", true).await?;
    Ok((stage, other, ours))
}

async fn a_peered_network_sees_pods_under_their_own_addresses_while_its_peering_is_whole_and_open(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, _) = beside_other(plane).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let excluded = |seen: &NodeIPAllocation| seen.spec.snat_exclusions.iter().any(|range| range == RANGE);
    ensure!(!excluded(&stage.allocation("n1").await?), "a peering that is only initiated has no routes");
    // The read of an operator that starts, so that the test needn't wait for the next minute's.
    let until_read = async |is_excluded: bool, what: &str| {
        stage.kill().await?;
        stage.start().await?;
        stage.until(what, "n1", |seen| (excluded(seen) == is_excluded).then_some(())).await
    };
    let back = peer(&stage, "other", "vnet", true).await?;
    until_read(true, "the peering is whole").await?;
    peer(&stage, "vnet", "other", false).await?;
    until_read(false, "it is closed").await?;
    peer(&stage, "vnet", "other", true).await?;
    until_read(true, "it is open again").await?;
    stage.delete(&back).await?;
    until_read(false, "the other side has gone").await
}

async fn a_range_that_a_peer_has_got_counts_once_the_peering_is_synchronised(
    plane: &ControlPlane,
) -> Result<()> {
    const NEW: &str = "10.61.0.0/16";
    let (stage, other, ours) = beside_other(plane).await?;
    peer(&stage, "other", "vnet", true).await?;
    let mut grown = stage.get(&other).await?;
    grown["properties"]["addressSpace"]["addressPrefixes"] = json!([RANGE, NEW]);
    stage.put("Microsoft.Network/virtualNetworks/other", grown).await?;
    let peering = stage.get(&ours).await?;
    let shows = |space: &str| peering["properties"][space]["addressPrefixes"].to_string().contains(NEW);
    ensure!(shows("remoteVirtualNetworkAddressSpace") && !shows("remoteAddressSpace"), "{peering}");
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let seen = stage.allocation("n1").await?.spec.snat_exclusions;
    ensure!(seen.iter().any(|range| range == RANGE), "{seen:?}");
    ensure!(seen.iter().all(|range| range != NEW), "no packet gets there: {seen:?}");
    let url = format!("{}{ours}?api-version=2025-05-01&syncRemoteAddressSpace=true", stage.sim.arm_url());
    let synced = reqwest::Client::new().put(url).bearer_auth("owner").json(&peering).send().await?;
    ensure!(synced.status().is_success(), "{}", synced.text().await?);
    stage.kill().await?;
    stage.start().await?;
    let is_excluded =
        |seen: &NodeIPAllocation| seen.spec.snat_exclusions.iter().any(|range| range == NEW).then_some(());
    stage.until("the peering is synchronised", "n1", is_excluded).await
}

/// Every NIC's etag and addresses by name.
fn nics(stage: &Stage<'_>) -> BTreeMap<String, (Value, Vec<String>)> {
    let state = stage.sim.state();
    let nics = state["nics"].as_array().cloned().unwrap_or_default();
    let name = |nic: &Value| {
        nic["id"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned()
    };
    let addresses = |nic: &Value| {
        let all = nic["ip_configurations"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|one| one["address"].as_str().map(str::to_owned)).collect()
    };
    nics.iter().map(|nic| (name(nic), (nic["etag"].clone(), addresses(nic)))).collect()
}

async fn foreign_machines_in_the_same_subnet_are_never_touched_and_free_addresses_are_used(
    plane: &ControlPlane,
) -> Result<()> {
    // A /28 has eleven addresses to give.
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 1, "warm": 0, "batch": 1 } })).await?;
    let foreign = |name: &str| NewVm { name: name.into(), subnet: Some("small".into()), ..NewVm::default() };
    stage.sim.add_vm(foreign("f1")).await?;
    stage.node("n1", Some("small")).await?;
    stage.until_holds("n1", 1).await?;
    for name in ["f2", "f3"] {
        stage.sim.add_vm(foreign(name)).await?;
    }
    // One of them has a second address, which Azure chose under a name that isn't ours.
    let second = json!({ "name": "theirs", "properties": { "primary": false, "privateIPAllocationMethod": "Dynamic" } });
    let f3 = stage.sim.nic("f3-nic").context("no NIC")?;
    let mut all = f3["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
    all.push(second);
    stage.sim.patch_nic("f3-nic", &json!({ "properties": { "ipConfigurations": all } })).await?;

    // Six are taken, so five are left; a machine takes one of them while the node grows.
    stage.bind("n1", 4).await?;
    stage.sim.add_vm(foreign("f4")).await?;
    stage.until_holds("n1", 4).await?;
    stage.bind("n1", 3).await?;
    stage.until_condition("n1", RESERVED, "SubnetFull").await?;
    stage.until("it has all there is", "n1", |_| (stage.held("n1").len() == 5).then_some(())).await?;
    let before = nics(&stage);

    // Another client makes room: the addresses that it leaves are taken, those that it keeps are left alone.
    for gone in ["f1", "f2"] {
        stage.sim.delete_vm(gone, false).await?;
    }
    stage.pool("default", json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })).await?;
    stage.until_holds("n1", 7).await?;
    let after = nics(&stage);
    for theirs in ["f3-nic", "f4-nic"] {
        ensure!(before[theirs] == after[theirs], "{theirs}: {:?} became {:?}", before[theirs], after[theirs]);
    }
    let mut addresses: Vec<_> = after.values().flat_map(|(_, addresses)| addresses).collect();
    let count = addresses.len();
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == count && count == 11, "{after:?}");
    let asked: Vec<String> = stage.asked().into_iter().map(|one| one.path).collect();
    ensure!(!asked.iter().any(|path| path.ends_with("f3-nic") || path.ends_with("f4-nic")), "{asked:?}");
    Ok(())
}
