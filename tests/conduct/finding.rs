//! Finding things: the operator's requests to Azure to find a node's NIC and to keep knowing it, and those
//! that it never makes.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use vnetpool_azure_sim::{NewInstance, NewScaleSet};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_new_node_costs_a_read_of_its_vm_one_of_its_nic_a_write_and_a_read_back,
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
    nothing_was_listed(&stage)
}

/// # Errors
/// Names the first list that was asked for.
pub fn nothing_was_listed(stage: &Stage<'_>) -> Result<()> {
    for entry in stage.asked() {
        ensure!(is_of_one_thing(&entry.path), "a list: {} {}", entry.method, entry.path);
    }
    Ok(())
}

/// A resource, a part of one, or an operation; not all resources of a kind in a subscription or a group. How
/// full the subnets of one VNet are is part of that VNet.
fn is_of_one_thing(path: &str) -> bool {
    let path = path.to_lowercase();
    let Some((scope, resource)) = path.split_once("/providers/") else { return false };
    let names = resource.split('/').skip(1).count();
    let in_group = scope.contains("/resourcegroups/");
    path.contains("/operations/") || in_group && (names % 2 == 0 || resource.ends_with("/usages"))
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
    let reconciles = |metrics: &Metrics| {
        metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#, r#"outcome="ok""#])
    };
    for round in 0..3 {
        let before = reconciles(&Metrics::scrape(&stage).await?);
        for node in nodes {
            let label = Patch::Merge(json!({ "metadata": { "labels": { "round": round.to_string() } } }));
            let api = Api::<Node>::all(stage.client.clone());
            api.patch(node, &PatchParams::default(), &label).await.context("no label")?;
        }
        let enough = |metrics: &Metrics| reconciles(metrics) >= before + nodes.len() as f64;
        Metrics::until(&stage, "each node was reconciled", enough).await?;
    }
    ensure!(stage.asked().is_empty(), "{:?}", stage.asked());
    Ok(())
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
