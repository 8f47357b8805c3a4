//! Nodes that run Windows, virtual ones, and those that no image is for: left alone, and named.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::condition::{self, NODES_SUPPORTED};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_windows_node_is_left_alone_and_its_pool_names_it,
    a_virtual_node_is_left_alone_and_its_pool_names_it,
    a_node_of_an_architecture_without_an_image_costs_no_address_and_its_pool_names_it,
];

async fn a_windows_node_is_left_alone_and_its_pool_names_it(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 2, "warm": 0 } })).await?;
    let vm = stage.sim.add_vm(vnetpool_azure_sim::NewVm { name: "win".into(), ..Default::default() }).await?;
    let node = json!({ "metadata": { "name": "win", "labels": { "kubernetes.io/os": "windows" } },
        "spec": { "providerID": vm.provider_id } });
    is_left_alone(&stage, "win", &node, "WindowsNodes").await?;
    ensure!(stage.held("win").is_empty() && stage.writes("win").is_empty(), "its NIC was written");
    Ok(())
}

async fn a_virtual_node_is_left_alone_and_its_pool_names_it(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 2, "warm": 0 } })).await?;
    let taint = json!({ "key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule" });
    let labels = json!({ "kubernetes.io/os": "linux", "type": "virtual-kubelet" });
    let node = json!({ "metadata": { "name": "aci", "labels": labels }, "spec": { "taints": [taint] } });
    is_left_alone(&stage, "aci", &node, "VirtualNodes").await?;
    let pool = stage.node_pool("default").await?.status.unwrap_or_default();
    ensure!(condition::is_true(&pool.conditions, condition::READY), "{:?}", pool.conditions);
    Ok(())
}

async fn a_node_of_an_architecture_without_an_image_costs_no_address_and_its_pool_names_it(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 2, "warm": 0 } })).await?;
    stage.start_with(|config| config.architectures = ["amd64".to_owned()].into_iter().collect()).await?;
    let vm = stage.sim.add_vm(vnetpool_azure_sim::NewVm { name: "arm".into(), ..Default::default() }).await?;
    let labels = json!({ "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64" });
    let node =
        json!({ "metadata": { "name": "arm", "labels": labels }, "spec": { "providerID": vm.provider_id } });
    is_left_alone(&stage, "arm", &node, "ForeignArchitecture").await?;
    ensure!(stage.held("arm").is_empty() && stage.writes("arm").is_empty(), "its NIC was written");
    Ok(())
}

/// Makes a Node that is to be left alone, and deletes it once its pool has named it.
async fn is_left_alone(stage: &Stage<'_>, name: &str, node: &Value, reason: &'static str) -> Result<()> {
    let nodes = Api::<Node>::all(stage.client.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(node.clone())?).await?;
    // One that comes after it is served, so the operator has seen both.
    stage.node("lin", None).await?;
    stage.until_holds("lin", 4).await?;
    let until_reported = async |reason: &str| {
        let with_reason = |pool: &NodeIPPool| {
            let condition = condition::find(&pool.status.as_ref()?.conditions, NODES_SUPPORTED)?;
            (condition.reason == reason).then(|| condition.clone())
        };
        stage.until_pool(reason, "default", with_reason).await
    };
    let condition = until_reported(reason).await?;
    ensure!(condition.status == "False" && condition.message.contains("alone"), "{}", condition.message);
    ensure!(condition.message.contains(&format!(": {name}.")), "{}", condition.message);
    ensure!(stage.allocation(name).await.is_err(), "{name} has a NodeIPAllocation");
    nodes.delete(name, &Default::default()).await?;
    until_reported("Supported").await.map(drop)
}
