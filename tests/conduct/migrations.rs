//! Living with AKS, and with what other network plugins have left behind.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use vnetpool_azure_sim::NewVm;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{ADOPTED, READY};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    nodes_of_aks_without_a_network_plugin_are_served_like_any_others,
    ip_configurations_of_another_plugin_stay_and_count_against_the_nics_room,
    ip_configurations_of_another_plugin_are_adopted_once_allowed_and_unused_by_pods,
];

/// The secondary ipConfigurations that a plugin makes: as many, named by it, on the NIC of a node.
async fn leave(stage: &Stage<'_>, node: &str, count: usize) -> Result<()> {
    let nic = stage.sim.nic(&format!("{node}-nic")).context("no NIC")?;
    let mut all = nic["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
    for _ in 0..count {
        let properties = json!({ "primary": false, "privateIPAllocationMethod": "Dynamic" });
        // azure-vnet counts on from the primary, ipconfig1.
        all.push(json!({ "name": format!("ipconfig{}", all.len() + 1), "properties": properties }));
    }
    let patch = json!({ "properties": { "ipConfigurations": all } });
    stage.sim.patch_nic(&format!("{node}-nic"), &patch).await?;
    Ok(())
}

/// Names on a node's NIC that aren't ours.
fn theirs(stage: &Stage<'_>, node: &str) -> Vec<String> {
    let all = stage.nic(node)["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
    let names = all.iter().filter_map(|one| one["name"].as_str().map(str::to_owned));
    names.filter(|name| !name.starts_with("vnp-")).collect()
}

/// As `az aks create --network-plugin none` makes them: machines in a group of their own, whose name Azure's
/// cloud provider writes in lower case into the providerID, and AKS' labels.
async fn nodes_of_aks_without_a_network_plugin_are_served_like_any_others(
    plane: &ControlPlane,
) -> Result<()> {
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    let node = "aks-system-12345678-vms1";
    let group = "MC_shop_cluster_westeurope";
    let vm = NewVm { name: node.into(), resource_group: Some(group.into()), ..NewVm::default() };
    let vm = stage.sim.add_vm(vm).await?;
    stage.join(node, &vm.provider_id.replace(group, &group.to_lowercase())).await?;
    let labels = json!({ "metadata": { "labels": {
        "kubernetes.azure.com/agentpool": "system", "kubernetes.azure.com/mode": "system", "kubernetes.azure.com/cluster": group,
    } } });
    let nodes = Api::<Node>::all(stage.client.clone());
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(labels)).await?;
    stage.bind(node, 6).await?;
    stage.until_holds(node, 6).await?;
    // A pool for one of the cluster's pools, by AKS' own label.
    let selector = json!({ "matchLabels": { "kubernetes.azure.com/agentpool": "system" } });
    let spec =
        json!({ "nodeSelector": selector, "weight": 1, "sizing": { "minimum": 8, "warm": 0, "batch": 1 } });
    stage.pool("system", spec).await?;
    stage.until_holds(node, 8).await?;
    ensure!(stage.allocation(node).await?.spec.pool == "system");
    Ok(())
}

async fn ip_configurations_of_another_plugin_stay_and_count_against_the_nics_room(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.node("n1", None).await?;
    leave(&stage, "n1", 250).await?;
    let before = theirs(&stage, "n1");
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    stage.start().await?;
    stage.bind("n1", 8).await?;
    // 256 take 251 of theirs and the primary, and five of ours.
    stage.until_holds("n1", 5).await?;
    let condition = stage.until_condition("n1", READY, "MaximumReached").await?;
    ensure!(
        condition.message.contains("256 ipConfigurations") && condition.message.contains("others use 251"),
        "{}",
        condition.message
    );
    ensure!(theirs(&stage, "n1") == before);
    ensure!(find(&stage.allocation("n1").await?, ADOPTED).is_none());
    Ok(())
}

async fn ip_configurations_of_another_plugin_are_adopted_once_allowed_and_unused_by_pods(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.node("n1", None).await?;
    leave(&stage, "n1", 30).await?;
    // A pod that the other plugin has wired: our agent doesn't know it.
    let pods = Api::<Pod>::namespaced(stage.client.clone(), "default");
    let stranger = json!({ "metadata": { "name": "stranger" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] } });
    let spec = |cooldown: &str| json!({ "adopt": "Secondaries", "cooldown": cooldown, "sizing": { "minimum": 4, "warm": 0, "batch": 1 } });
    stage.pool("default", spec("30s")).await?;
    stage.start().await?;
    stage.bind("n1", 3).await?;
    pods.create(&PostParams::default(), &serde_json::from_value(stranger)?).await?;
    let are_named = |seen: &NodeIPAllocation| (seen.status.as_ref()?.holders.len() == 3).then_some(());
    stage.until("the agent has named its three pods", "n1", are_named).await?;
    // The reconcile after that has ended when there has been one for each of two edits.
    for cooldown in ["29s", "28s"] {
        stage.pool("default", spec(cooldown)).await?;
        let is_edited = |seen: &NodeIPAllocation| (json!(seen.spec)["cooldown"] == cooldown).then_some(());
        stage.until("the edit has reached the node", "n1", is_edited).await?;
    }
    let condition = stage.until_condition("n1", ADOPTED, "PodsOfOthers").await?;
    ensure!(condition.message.contains("Restart"), "{}", condition.message);
    ensure!(theirs(&stage, "n1").len() == 31, "{:?}", theirs(&stage, "n1"));

    pods.delete("stranger", &DeleteParams::default().grace_period(0)).await?;
    stage.until_condition("n1", ADOPTED, "Adopted").await?;
    ensure!(theirs(&stage, "n1") == ["ipconfig1"], "{:?}", theirs(&stage, "n1"));
    ensure!(stage.held("n1").len() >= 4);
    stage.until_reported("n1", "OthersRemoved", &["Node", "NodeIPAllocation"]).await
}
