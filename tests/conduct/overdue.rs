//! A reconcile that takes longer than it may is given up; one that waits for Azure's limits, or for the end
//! of a write, isn't.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Duration;
use vnetpool_azure_sim::{Config, Effect};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_reconcile_past_its_deadline_is_dropped_and_its_nic_is_read_first,
    a_reconcile_that_waits_for_azures_limits_or_for_a_write_to_end_is_not_dropped,
];

/// Well below the minute in which Azure must answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// How many reconciles were dropped.
fn dropped(metrics: &Metrics) -> f64 {
    metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#, r#"outcome="Overdue""#])
}

async fn set(plane: &ControlPlane, azure: Config) -> Result<Stage<'_>> {
    let stage = Stage::empty(plane, azure).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })).await?;
    stage.start_with(|config| config.waits.deadline = DEADLINE).await?;
    Ok(stage)
}

async fn a_reconcile_past_its_deadline_is_dropped_and_its_nic_is_read_first(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = set(plane, quick()).await?;
    let fault = stage.fault("PUT", "/networkInterfaces/", None, Effect::Hold);
    stage.node("n1", None).await?;
    Metrics::until(&stage, "a reconcile is dropped", |metrics| dropped(metrics) >= 1.0).await?;
    stage.until_holds("n1", 2).await?;
    stage.sim.lift_fault(fault)?;
    let of_nic: Vec<_> = stage.asked().into_iter().filter(|one| one.path.ends_with("/n1-nic")).collect();
    let write = of_nic.iter().position(|one| one.method == "PUT").context("nothing was written")?;
    ensure!(of_nic[write + 1..].iter().all(|one| one.method == "GET"), "written twice: {of_nic:?}");
    ensure!(of_nic.len() > write + 1, "not read: {of_nic:?}");
    Ok(())
}

async fn a_reconcile_that_waits_for_azures_limits_or_for_a_write_to_end_is_not_dropped(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = set(plane, Config { write_seconds: 5.0, ..quick() }).await?;
    let body =
        json!({ "error": { "code": "TooManyRequests", "message": "Please try again after '15' seconds." } });
    let headers = [("Retry-After".to_owned(), "15".to_owned())].into();
    let effect = Effect::Status { status: 429, body, headers };
    stage.fault("GET", "/virtualMachines/n1", Some(1), effect);
    stage.node("n1", None).await?;
    let is_throttled =
        |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_budget_closed_seconds", &[]) > 0.0;
    Metrics::until(&stage, "Azure's limits are closed", is_throttled).await?;
    stage.node("n2", None).await?;
    stage.until_holds("n2", 2).await?;
    stage.until_holds("n1", 2).await?;
    let metrics = Metrics::scrape(&stage).await?;
    let waited = metrics.sum("vnetpool_operator_arm_budget_wait_seconds_total", &[]);
    ensure!(waited > DEADLINE.as_secs_f64(), "nobody had to wait for longer than {waited} s");
    ensure!(dropped(&metrics) == 0.0, "dropped");
    Ok(())
}
