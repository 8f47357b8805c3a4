//! Refusals that only a person can end: said once, by condition and Event, and retried slowly.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use vnetpool_crds::condition::RESERVED;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![a_missing_permission_is_said_once_and_ends_when_the_pool_is_edited];

async fn a_missing_permission_is_said_once_and_ends_when_the_pool_is_edited(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let write = "Microsoft.Network/networkInterfaces/write";
    stage.sim.deny(vec![write.into()]);
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    let says = stage.until_says("n1", RESERVED, "PermissionDenied").await?;
    ensure!(says.message.contains(write) && says.message.contains("Grant"), "{}", says.message);
    // More reasons to grow change nothing.
    stage.bind("n1", 5).await?;
    stage.until("the pods wait", "n1", |seen| (seen.status.as_ref()?.waiting == 5).then_some(())).await?;
    ensure!(stage.writes("n1").len() == 1, "tried again: {:?}", stage.writes("n1"));
    let mut about = stage.events("n1", "PermissionDenied").await?;
    about.sort();
    ensure!(about == [("Node".to_owned(), 1), ("NodeIPAllocation".to_owned(), 1)], "{about:?}");
    stage.sim.deny(vec![]);
    stage.pool("default", json!({ "sizing": { "minimum": 6, "warm": 0, "batch": 1 } })).await?;
    stage.until_holds("n1", 6).await
}
