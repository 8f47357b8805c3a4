//! Nodes that run Windows: left alone, and named.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use std::time::Duration;
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::condition::{self, NODES_SUPPORTED};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![a_windows_node_is_left_alone_and_its_pool_names_it];

async fn a_windows_node_is_left_alone_and_its_pool_names_it(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 2, "warm": 0 } })).await?;
    let vm = stage.sim.add_vm(vnetpool_azure_sim::NewVm { name: "win".into(), ..Default::default() }).await?;
    let node = json!({ "metadata": { "name": "win", "labels": { "kubernetes.io/os": "windows" } },
        "spec": { "providerID": vm.provider_id } });
    let nodes = Api::<Node>::all(stage.client.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    // One that comes after it is served, so the operator has seen both.
    stage.node("lin", None).await?;
    stage.until_holds("lin", 4).await?;

    let pools = Api::<NodeIPPool>::all(stage.client.clone());
    let says = |reason: &'static str| {
        let pools = pools.clone();
        eventually(reason, Duration::from_secs(20), move || {
            let pools = pools.clone();
            async move {
                let conditions = pools.get("default").await?.status.unwrap_or_default().conditions;
                Ok(condition::find(&conditions, NODES_SUPPORTED).filter(|one| one.reason == reason).cloned())
            }
        })
    };
    let said = says("WindowsNodes").await?;
    ensure!(said.status == "False" && said.message.contains("left alone"), "{}", said.message);
    ensure!(said.message.contains(": win."), "{}", said.message);
    ensure!(stage.allocation("win").await.is_err(), "a Windows node has a NodeIPAllocation");
    ensure!(stage.held("win").is_empty() && stage.writes("win").is_empty(), "its NIC was written");
    nodes.delete("win", &Default::default()).await?;
    says("Supported").await.map(drop)
}
