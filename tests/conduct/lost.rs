//! Answers that don't come: what was reserved is found and used, never leaked.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use vnetpool_azure_sim::Effect;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_node_gets_its_addresses_and_gives_the_surplus_back,
    a_write_whose_answer_is_cut_off_is_found_and_used,
];

async fn a_node_gets_its_addresses_and_gives_the_surplus_back(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 1, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    stage.bind("n1", 5).await?;
    stage.until_holds("n1", 6).await?;
    stage.unbind("n1", 5).await?;
    stage.until_holds("n1", 2).await
}

async fn a_write_whose_answer_is_cut_off_is_found_and_used(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::CutAfterApply);
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    ensure!(stage.writes("n1").len() == 1, "written again: {:?}", stage.asked());
    Ok(())
}
