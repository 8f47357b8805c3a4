//! Finding things: the operator's requests to Azure to find a node's NIC and to keep knowing it, and those
//! that it never makes.

use crate::Test;
use crate::attachments::{beside_balancer, kept};
use crate::machines::{NODE, instance};
use crate::metrics::Metrics;
use crate::routes;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use vnetpool_azure_sim::{NewInstance, NewScaleSet};
use vnetpool_crds::condition::{ATTACHED, READY};
use vnetpool_crds::names;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_new_node_costs_a_read_of_its_vm_one_of_its_nic_a_write_and_a_read_back,
    a_new_node_with_blocks_costs_the_same_requests,
    a_new_instance_costs_the_same_requests_with_the_write_to_its_model,
    a_new_node_with_a_range_costs_a_write_of_its_nic_and_one_of_the_table,
    a_pod_that_joins_a_backend_pool_costs_a_write_and_a_read_back,
    a_pod_with_a_public_address_costs_that_and_the_making_of_the_address,
    no_event_of_nodes_pods_or_operator_makes_the_operator_list_resources,
    another_reconcile_of_unchanged_nodes_asks_azure_nothing,
    sixty_pods_that_are_bound_at_once_cost_two_nic_writes_at_most,
];

async fn a_new_node_costs_a_read_of_its_vm_one_of_its_nic_a_write_and_a_read_back(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    let nodes = ["n1", "n2", "n3"];
    for node in nodes {
        stage.node(node, None).await?;
    }
    for node in nodes {
        stage.until_holds(node, 4).await?;
    }
    let log = stage.asked();
    for node in nodes {
        let about = |end: &str| {
            let ours = log.iter().filter(|one| one.path.to_lowercase().ends_with(&end.to_lowercase()));
            ours.map(|one| one.method.as_str()).collect::<Vec<_>>()
        };
        let vm = about(&format!("/virtualMachines/{node}"));
        let nic = about(&format!("/networkInterfaces/{node}-nic"));
        ensure!(vm == ["GET"] && nic == ["GET", "PUT", "GET"], "{node}: {vm:?}, {nic:?}");
    }
    let polls = log.iter().filter(|one| one.path.contains("/operations/")).count();
    let network = log.iter().filter(|one| one.path.contains("/virtualNetworks/")).count();
    ensure!(log.len() == nodes.len() * 4 + polls + network && network <= 2, "{log:?}");
    Ok(())
}

/// The requests about machines, NICs, route tables and public addresses, each with the last part of its path.
/// The polls of operations are left out, whose number depends on Azure, and virtual networks, which all nodes
/// share.
fn requests(stage: &Stage<'_>) -> Vec<String> {
    let is_shared = |path: &str| path.contains("/operations/") || path.contains("/virtualNetworks/");
    let asked = stage.asked().into_iter().filter(|one| !is_shared(&one.path));
    asked.map(|one| format!("{} {}", one.method, one.path.rsplit('/').next().unwrap_or_default())).collect()
}

/// Since the log was cleared, exactly this was asked; and nothing is asked when the node is looked at again.
async fn costs(stage: &Stage<'_>, node: &str, requests_of_it: &[&str]) -> Result<()> {
    ensure!(requests(stage) == requests_of_it, "{:?}", requests(stage));
    stage.sim.clear_log();
    reconcile_again(stage, &[node]).await?;
    ensure!(requests(stage).is_empty(), "idle: {:?}", requests(stage));
    Ok(())
}

async fn a_new_node_with_blocks_costs_the_same_requests(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "mode": "Prefix" })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 1).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    costs(&stage, "n1", &["GET n1", "GET n1-nic", "PUT n1-nic", "GET n1-nic"]).await
}

async fn a_new_instance_costs_the_same_requests_with_the_write_to_its_model(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() })?;
    stage.join(NODE, &instance(&stage).await?.provider_id).await?;
    stage.until_offers(NODE, 4).await?;
    stage.until_condition(NODE, READY, "Ready").await?;
    costs(&stage, NODE, &["GET 0", "GET primary", "PUT 0", "GET primary"]).await
}

async fn a_new_node_with_a_range_costs_a_write_of_its_nic_and_one_of_the_table(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _) = routes::stage(plane).await?;
    stage.sim.clear_log();
    stage.node("n1", Some("nodes")).await?;
    stage.until_offers("n1", 256).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    let of_nic = ["GET n1", "GET n1-nic", "GET pods", "PUT n1-nic", "GET n1-nic"];
    costs(&stage, "n1", &[&of_nic[..], &["PUT pods", "GET pods"]].concat()).await
}

async fn a_pod_that_joins_a_backend_pool_costs_a_write_and_a_read_back(plane: &ControlPlane) -> Result<()> {
    let stage = beside_balancer(plane).await?;
    stage.sim.clear_log();
    stage.pod("n1", json!({ names::BACKEND_POOLS: "web" })).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    costs(&stage, "n1", &["PUT n1-nic", "GET n1-nic"]).await
}

async fn a_pod_with_a_public_address_costs_that_and_the_making_of_the_address(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = beside_balancer(plane).await?;
    stage.sim.clear_log();
    let pod = stage.pod("n1", json!({ names::PUBLIC_ADDRESS: "true" })).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    let public = format!("vnp-{}", stage.uid(&pod).await?);
    let (put, get) = (format!("PUT {public}"), format!("GET {public}"));
    costs(&stage, "n1", &[&put, &get, "PUT n1-nic", "GET n1-nic"]).await?;
    stage.remove("n1", &pod).await?;
    stage.until("nothing is kept", "n1", |seen| kept(seen).is_none().then_some(())).await?;
    let delete = format!("DELETE {public}");
    costs(&stage, "n1", &["PUT n1-nic", "GET n1-nic", &delete]).await
}

async fn no_event_of_nodes_pods_or_operator_makes_the_operator_list_resources(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    for node in ["n1", "n2", "n3"] {
        stage.node(node, None).await?;
        stage.until_holds(node, 2).await?;
    }
    stage.bind("n1", 5).await?;
    stage.until_holds("n1", 5).await?;
    stage.unbind("n1", 5).await?;
    stage.until_holds("n1", 2).await?;
    stage.boot("n1", "boot-2").await?;
    stage.bind("n1", 3).await?;
    stage.until_holds("n1", 3).await?;
    // An instance of a Uniform scale set is found and written by other ways.
    stage.sim.add_scale_set(NewScaleSet { name: "set".into(), ..NewScaleSet::default() })?;
    let instance = stage.sim.add_instance("set", NewInstance::default()).await?;
    stage.join("u1", &instance.provider_id).await?;
    stage.until_offers("u1", 2).await?;
    // A machine goes with its Node, another keeps its NIC.
    let nodes = Api::<Node>::all(stage.client.clone());
    for (node, keep_nic) in [("n2", false), ("n3", true)] {
        stage.sim.delete_vm(node, keep_nic).await?;
        nodes.delete(node, &DeleteParams::default()).await?;
    }
    stage.kill().await?;
    stage.start().await?;
    stage.node("n4", None).await?;
    stage.until_holds("n4", 2).await?;
    let released = |_: &Metrics| stage.held("n3").is_empty();
    Metrics::until(&stage, "the NIC that was left is emptied", released).await?;
    stage.nothing_was_listed()
}

async fn another_reconcile_of_unchanged_nodes_asks_azure_nothing(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 2, "warm": 0 } })).await?;
    let nodes = ["n1", "n2", "n3"];
    for node in nodes {
        stage.node(node, None).await?;
        stage.until_holds(node, 4).await?;
    }
    Metrics::until(&stage, "the network is known", |_| {
        stage.asked().iter().any(|one| one.path.ends_with("/usages"))
    })
    .await?;
    stage.sim.clear_log();
    for _ in 0..3 {
        reconcile_again(&stage, &nodes).await?;
    }
    ensure!(stage.asked().is_empty(), "{:?}", stage.asked());
    Ok(())
}

/// A label of these nodes changes, and each is reconciled.
async fn reconcile_again(stage: &Stage<'_>, nodes: &[&str]) -> Result<()> {
    let reconciles = |metrics: &Metrics| {
        metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#, r#"outcome="ok""#])
    };
    let before = reconciles(&Metrics::scrape(stage).await?);
    for node in nodes {
        let label = Patch::Merge(json!({ "metadata": { "labels": { "round": format!("{before}") } } }));
        let api = Api::<Node>::all(stage.client.clone());
        api.patch(node, &PatchParams::default(), &label).await.context("no label")?;
    }
    let enough = |metrics: &Metrics| reconciles(metrics) >= before + nodes.len() as f64;
    Metrics::until(stage, "each node was reconciled", enough).await.map(drop)
}

/// The test itself binds the pods: a scheduler on a busy machine would make several bursts of them.
async fn sixty_pods_that_are_bound_at_once_cost_two_nic_writes_at_most(plane: &ControlPlane) -> Result<()> {
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 8, "warm": 8, "batch": 4 } })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 8).await?;
    stage.sim.clear_log();
    stage.bind("n1", 60).await?;
    stage.until_holds("n1", 68).await?;
    let writes = stage.writes("n1").len();
    ensure!((1..=2).contains(&writes), "{writes} writes of the NIC");
    Ok(())
}
