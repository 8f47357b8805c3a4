//! Dry run: everything is planned and reported, and nothing is written to Azure.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{DRY_RUN, READY, RESERVED};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_dry_run_reports_its_plan_and_writes_nothing_to_azure,
    a_dry_run_after_the_real_thing_takes_nothing_from_nodes_or_pods,
];

async fn a_dry_run_reports_its_plan_and_writes_nothing_to_azure(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.start_with(|config| config.azure.dry_run = true).await?;
    stage.node("n1", None).await?;
    let would = |count: usize| {
        move |seen: &NodeIPAllocation| {
            let message = find(seen, DRY_RUN)?.message;
            message.contains(&format!("would reserve {count} addresses on")).then_some(())
        }
    };
    stage.until("it reports what it would do", "n1", would(4)).await?;
    stage.until_condition("n1", RESERVED, "DryRun").await?;
    stage.bind("n1", 7).await?;
    stage.until("it reports what it would do for the pods", "n1", would(8)).await?;
    let seen = stage.allocation("n1").await?;
    ensure!(seen.spec.interfaces.len() == 1 && seen.spec.addresses() == 0, "{:?}", seen.spec);
    let events = stage.until_events("n1", "DryRun", 2).await?;
    let kinds: Vec<_> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    ensure!(kinds == ["Node", "NodeIPAllocation"], "{events:?}");
    stage.nothing_was_written()
}

async fn a_dry_run_after_the_real_thing_takes_nothing_from_nodes_or_pods(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 8, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    for node in ["n1", "n2"] {
        stage.node(node, None).await?;
        stage.until_holds(node, 8).await?;
    }
    stage.bind("n1", 2).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    let held = stage.held("n1");
    stage.stop().await?;
    stage.sim.clear_log();
    // Much less is wanted now, and one machine is gone without its NIC.
    let sizing = json!({ "minimum": 3, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    stage.pool("default", json!({ "sizing": sizing })).await?;
    stage.sim.delete_vm("n2", true).await?;
    Api::<Node>::all(stage.client.clone()).delete("n2", &DeleteParams::default()).await?;
    stage.start_with(|config| config.azure.dry_run = true).await?;
    let give_back = |seen: &NodeIPAllocation| {
        find(seen, DRY_RUN)?.message.contains("would have 5 addresses given back").then_some(())
    };
    stage.until("it reports what it would do", "n1", give_back).await?;
    stage.until_condition("n2", READY, "DryRun").await?;
    let seen = stage.allocation("n1").await?;
    ensure!(seen.spec.target == 8, "the agent is asked to give up: {:?}", seen.spec);
    let status = seen.status.unwrap_or_default();
    ensure!(status.relinquished.is_empty() && status.assigned == 2, "{status:?}");
    ensure!(stage.held("n1") == held && stage.held("n2").len() == 8);
    stage.nothing_was_written()?;
    // Then for real: the reported writes are made, and nothing of the dry run is left.
    stage.stop().await?;
    stage.start().await?;
    stage.until_holds("n1", 3).await?;
    stage.until_gone("n2").await?;
    ensure!(stage.held("n2").is_empty(), "the NIC without a VM still holds {:?}", stage.held("n2"));
    stage.until("no word of a dry run", "n1", |seen| find(seen, DRY_RUN).is_none().then_some(())).await
}
