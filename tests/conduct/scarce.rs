//! Writes that Azure lets through are fewer than nodes want: they write less often and more at once, and
//! their pool says so.

use crate::Test;
use crate::budget::used_up;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use vnetpool_crds::condition::{self, WRITES_SCARCE};
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};
use vnetpool_tests::control_plane::ControlPlane;

pub const LONG: &[Test] =
    crate::tests![while_writes_are_scarce_nodes_write_less_often_and_their_pool_reports_it,];

/// Four pods come to a node one after the other; gives how many writes that took.
async fn pods_come(stage: &Stage<'_>, node: &str) -> Result<usize> {
    let before = stage.writes(node).len();
    for pods in 1..=4 {
        stage.bind(node, 1).await?;
        stage.until_assigned(node, pods).await?;
    }
    Ok(stage.writes(node).len() - before)
}

async fn while_writes_are_scarce_nodes_write_less_often_and_their_pool_reports_it(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 1, "warm": 0, "batch": 1 } })).await?;
    stage.start_with(|config| config.waits.scarce = Duration::from_millis(500)).await?;
    for node in ["n1", "n2"] {
        stage.node(node, None).await?;
    }
    for node in ["n1", "n2"] {
        stage.until_holds(node, 1).await?;
    }
    let plenty = pods_come(&stage, "n1").await?;

    // Others use the subscription's writes up. They come back in 20 s.
    stage.fault("PUT", "/networkInterfaces/", Some(1), used_up(1, "writes"));
    stage.node("n3", None).await?;
    let with_status = |turned: &'static str| {
        move |pool: &NodeIPPool| {
            let status: NodeIPPoolStatus = pool.status.clone()?;
            let condition = condition::find(&status.conditions, WRITES_SCARCE)?.clone();
            (condition.status == turned).then_some((status.scarce_writes, condition.message))
        }
    };
    let (scarce, message) = stage.until_pool("writes are scarce", "default", with_status("True")).await?;
    let subscription = vnetpool_azure_sim::Config::default().subscription;
    let there = scarce.iter().map(|one| (one.subscription.as_str(), one.coarseness)).collect::<Vec<_>>();
    ensure!(there == [(subscription.as_str(), 4)], "{there:?}");
    ensure!(message.contains(&subscription) && message.contains("Raise sizing.batch"), "{message}");
    let scarce = pods_come(&stage, "n2").await?;
    ensure!((plenty, scarce) == (3, 1), "{plenty} writes, and {scarce} where they are scarce");
    let n3 = stage.writes("n3").len();
    ensure!(n3 == 2, "a new node is served, with a second try: {n3}");

    let (scarce, _) = stage.until_pool("there are enough again", "default", with_status("False")).await?;
    ensure!(scarce.is_empty(), "{scarce:?}");
    stage.until_holds("n2", 4).await
}
