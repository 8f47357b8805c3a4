//! A replica that stands by, and comes to lead.

use crate::Test;
use crate::budget::used_up;
use crate::metrics::Metrics;
use crate::operator::End;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use vnetpool_crds::condition::ATTACHED;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::wait::throughout;

pub const TESTS: &[Test] = crate::tests![
    a_standby_has_its_caches_synced_and_lists_no_pods_when_it_comes_to_lead,
    changes_while_no_operator_leads_are_handled_by_the_next_leader,
    the_operator_and_its_lease_have_flows_of_their_own,
    a_leaders_work_beside_its_reconciles_ends_when_its_lease_is_taken,
];

fn sizing() -> serde_json::Value {
    json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })
}

/// A standby that is ready, beside an operator at work.
async fn ready(stage: &Stage<'_>) -> Result<crate::operator::Operator> {
    let (standby, admin) = stage.stand_by().await?;
    crate::operator::until_ready(admin, Duration::from_secs(60)).await?;
    Ok(standby)
}

async fn a_standby_has_its_caches_synced_and_lists_no_pods_when_it_comes_to_lead(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let standby = ready(&stage).await?;
    let lists = || -> Result<f64> {
        let labels = [r#"verb="LIST""#, r#"resource="pods""#, r#"scope="cluster""#];
        Ok(Metrics::of(stage.served()?).sum("apiserver_request_total", &labels))
    };
    let before = lists()?;
    ensure!(before > 0.0, "the API server has counted no list of all pods");
    stage.kill().await?;
    stage.bind("n1", 6).await?;
    stage.until_holds("n1", 6).await?;
    ensure!(before > 0.0, "the standby's own list isn't counted");
    ensure!(lists()? == before, "{before} lists of all pods before, {} after", lists()?);
    standby.end(End::Term)
}

async fn changes_while_no_operator_leads_are_handled_by_the_next_leader(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let standby = ready(&stage).await?;
    stage.kill().await?;
    // The standby hears of all of this long before it may do anything.
    stage.node("n2", None).await?;
    stage.bind("n1", 6).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 5, "warm": 0, "batch": 1 } })).await?;
    stage.until_holds("n1", 6).await?;
    stage.until_holds("n2", 5).await?;
    standby.end(End::Term)
}

async fn the_operator_and_its_lease_have_flows_of_their_own(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let served = Metrics::of(stage.served()?);
    for (flow, level) in
        [("vnetpool-operator", "workload-high"), ("vnetpool-operator-lease", "leader-election")]
    {
        let labels = [format!(r#"flow_schema="{flow}""#), format!(r#"priority_level="{level}""#)];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        let asked = served.sum("apiserver_flowcontrol_dispatched_requests_total", &labels);
        ensure!(asked > 0.0, "nothing was asked in the flow {flow} of {level}");
    }
    Ok(())
}

async fn a_leaders_work_beside_its_reconciles_ends_when_its_lease_is_taken(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), crate::attachments::pool()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    // Writes are used up, for long enough that a busy machine has the making wait for them.
    const SECONDS: u8 = 20;
    let fault = stage.fault("PUT", "/n2-nic", Some(1), used_up(SECONDS, "writes"));
    stage.node("n2", None).await?;
    stage.until_struck(fault, 1).await?;
    let come_back = Instant::now() + Duration::from_secs(SECONDS.into());
    stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    let waiting = |metrics: &Metrics| {
        metrics.sum("vnetpool_operator_arm_waiting", &[r#"priority="warm_refill""#]) >= 1.0
    };
    Metrics::until(&stage, "the making of the public address waits", waiting).await?;
    // They come back when the loss of the Lease is noticed at the latest, and the leader that has lost it
    // would be sure for a while still.
    sleep_until(come_back - Duration::from_secs(6)).await;
    stage.unseat().await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    let made = async || {
        let is_made = |path: &str| path.to_lowercase().contains("/publicipaddresses/");
        let puts = stage.asked().into_iter().filter(|one| one.method == "PUT" && is_made(&one.path));
        let count = puts.count();
        ensure!(count == 1, "the public address was made {count} times");
        Ok(())
    };
    let rest = come_back.saturating_duration_since(Instant::now()) + Duration::from_secs(2);
    throughout("only who leads has made it", rest, made).await
}
