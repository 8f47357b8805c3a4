//! Long-running operations: writes that Azure takes its time for, and an operator that ends meanwhile.

use crate::Test;
use crate::stage::{Stage, find};
use anyhow::{Result, ensure};
use serde_json::json;
use vnetpool_azure_sim::{Config, Effect};
use vnetpool_crds::condition::WRITING;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    an_operator_killed_in_the_middle_of_a_write_is_followed_by_one_that_finds_it,
    an_operator_asked_to_stop_finishes_its_write_first,
];

async fn an_operator_killed_in_the_middle_of_a_write_is_followed_by_one_that_finds_it(
    plane: &ControlPlane,
) -> Result<()> {
    let slow = Config { write_seconds: 4.0, ..Config::default() };
    let stage = Stage::set(plane, slow, json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    // Applied, but the answer never comes: the operator can't know.
    let fault = stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::Hold);
    stage.node("n1", None).await?;
    let writes = |_: &_| (stage.held("n1").len() == 4).then_some(());
    stage.until("Azure has the write", "n1", writes).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    let left = stage.allocation("n1").await?;
    ensure!(find(&left, WRITING).is_some_and(|one| one.status == "True"), "Writing isn't set: {left:?}");
    ensure!(left.spec.ip_configurations().count() == 0, "published before it was read: {left:?}");
    stage.start().await?;
    stage.until_holds("n1", 4).await?;
    ensure!(stage.writes("n1").len() == 1, "written twice: {:?}", stage.writes("n1"));
    Ok(())
}

async fn an_operator_asked_to_stop_finishes_its_write_first(plane: &ControlPlane) -> Result<()> {
    let slow = Config { write_seconds: 2.0, ..Config::default() };
    let stage = Stage::set(plane, slow, json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.node("n1", None).await?;
    let accepted = |_: &_| (stage.held("n1").len() == 4).then_some(());
    stage.until("Azure has the write", "n1", accepted).await?;
    stage.stop().await?;
    stage.until_holds("n1", 4).await?;
    // What was published needs no look at Azure.
    stage.sim.clear_log();
    stage.start().await?;
    stage.bind("n1", 1).await?;
    stage
        .until("the pod is served", "n1", |seen| (seen.status.as_ref()?.assigned == 1).then_some(()))
        .await?;
    let nics = stage.asked().iter().filter(|one| one.path.contains("networkInterfaces")).count();
    ensure!(nics == 0, "asked again: {:?}", stage.asked());
    Ok(())
}
