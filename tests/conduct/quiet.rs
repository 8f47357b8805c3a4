//! Addresses that leave the NIC of a node without other events: how its own metadata service shows it, and
//! how the operator reacts. The re-check of hours plays no part in a reaction within seconds.

use crate::Test;
use crate::machines::{NODE, held, is_backed, sizing, uniform, until_served};
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use crate::wiped::wipe;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_azure_sim::{Config, Effect, Settings};
use vnetpool_crds::{NodeIPAllocation, condition};
use vnetpool_node_agent::imds::listing::SILENT;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_quiet_node_whose_nic_is_wiped_gets_its_addresses_back_without_the_recheck,
    a_quiet_instance_that_a_model_upgrade_wipes_is_made_good_without_the_recheck,
    a_metadata_service_that_lags_behind_raises_no_hint,
    a_hint_that_azure_contradicts_costs_one_read,
    a_read_that_is_refused_is_not_made_again_for_each_reconcile,
    a_read_that_fails_stops_no_other_clock_of_its_node,
];

pub const LONG: &[Test] =
    crate::tests![a_wiped_nic_is_found_though_the_metadata_service_is_closed_to_the_agent];

/// A node with three pods whose addresses the metadata service has listed.
async fn listed(plane: &ControlPlane) -> Result<(Stage<'_>, BTreeSet<String>)> {
    let stage = listed_by(plane, sizing()).await?;
    let addresses = until_served(&stage, "n1", 3).await?;
    Ok((stage, addresses))
}

/// The same with this pool.
async fn listed_by(plane: &ControlPlane, pool: Value) -> Result<Stage<'_>> {
    let stage = Stage::set(plane, quick(), pool).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    stage.compare("n1", 1).await?;
    Ok(stage)
}

fn lag(stage: &Stage<'_>, lags: bool) -> Result<()> {
    Ok(stage.sim.set(&Settings { metadata_lags: Some(lags), ..Settings::default() })?)
}

/// Leaves the service with the NIC of `n1` as it was for a moment, so that its agent hints at all of it.
async fn mislead(stage: &Stage<'_>) -> Result<()> {
    let document = stage.nic("n1");
    wipe(stage, "n1").await?;
    lag(stage, true)?;
    stage.sim.patch_nic("n1-nic", &document).await?;
    stage.sim.clear_log();
    stage.compare("n1", 2).await
}

/// From now on Azure refuses reads of the NIC of `n1`; gives the fault.
fn refuse_reads(stage: &Stage<'_>) -> u64 {
    let body = json!({ "error": { "code": "AuthorizationFailed", "message": "No." } });
    let refusal = Effect::Status { status: 403, body, headers: Default::default() };
    stage.fault("GET", "/n1-nic", None, refusal)
}

/// How many reads were refused.
fn refused(stage: &Stage<'_>) -> u64 {
    stage.sim.faults().iter().map(|fault| fault.hits).sum()
}

/// The requests to Azure about the NIC of `n1`.
fn asked(stage: &Stage<'_>) -> Vec<String> {
    let about = stage.asked().into_iter().filter(|one| one.path.to_lowercase().ends_with("/n1-nic"));
    about.map(|one| one.method).collect()
}

fn names(seen: &NodeIPAllocation) -> BTreeSet<String> {
    seen.spec.ip_configurations().map(|one| one.name.clone()).collect()
}

async fn a_quiet_node_whose_nic_is_wiped_gets_its_addresses_back_without_the_recheck(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, before) = listed(plane).await?;
    let wiped = names(&stage.allocation("n1").await?);
    wipe(&stage, "n1").await?;
    stage.compare("n1", 1).await?;
    ensure!(stage.agents.unlisted("n1").is_empty(), "one inspection isn't enough");
    stage.compare("n1", 1).await?;
    let is_anew = |seen: &NodeIPAllocation| {
        let names = names(seen);
        (names.len() == 4 && names.is_disjoint(&wiped)).then_some(())
    };
    stage.until("all are reserved anew", "n1", is_anew).await?;
    ensure!(until_served(&stage, "n1", 3).await? == before);
    stage.until_holds("n1", 4).await?;
    ensure!(asked(&stage) == ["GET", "PUT", "GET"], "{:?}", asked(&stage));
    stage.until_events("n1", "AddressesRestored", 1).await?;
    // The hint is about names, and these are gone.
    stage.compare("n1", 1).await?;
    let is_quiet = |seen: &NodeIPAllocation| seen.status.as_ref()?.unlisted.is_empty().then_some(());
    stage.until("nothing is hinted at", "n1", is_quiet).await
}

async fn a_quiet_instance_that_a_model_upgrade_wipes_is_made_good_without_the_recheck(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = uniform(plane).await?;
    stage.bind(NODE, 3).await?;
    until_served(&stage, NODE, 3).await?;
    stage.until_offers(NODE, 4).await?;
    stage.compare(NODE, 1).await?;
    let wiped = names(&stage.allocation(NODE).await?);
    stage.sim.upgrade_instance("pool_0").await?;
    stage.compare(NODE, 2).await?;
    let made_good = |seen: &NodeIPAllocation| {
        let (names, on_nic) = (names(seen), held(&stage, &vm.nic_id).into_keys().collect::<BTreeSet<_>>());
        (names.len() >= 4 && names == on_nic && names.is_disjoint(&wiped) && is_backed(seen)).then_some(())
    };
    stage.until("the instance holds enough again, and each pod's address", NODE, made_good).await
}

async fn a_metadata_service_that_lags_behind_raises_no_hint(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, Config { limits: false, ..quick() }, sizing()).await?;
    stage.node("n1", None).await?;
    lag(&stage, true)?;
    stage.bind("n1", 3).await?;
    let before = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    stage.compare("n1", 10).await?;
    ensure!(stage.agents.unlisted("n1").is_empty(), "what was never listed proves nothing");
    lag(&stage, false)?;
    stage.compare("n1", 1).await?;
    // It doesn't know of a loss at once, either; when it does, all is well soon.
    lag(&stage, true)?;
    let wiped = names(&stage.allocation("n1").await?);
    wipe(&stage, "n1").await?;
    stage.compare("n1", 10).await?;
    ensure!(stage.agents.unlisted("n1").is_empty() && asked(&stage).is_empty(), "{:?}", asked(&stage));
    lag(&stage, false)?;
    stage.compare("n1", 2).await?;
    let is_anew = |seen: &NodeIPAllocation| names(seen).is_disjoint(&wiped).then_some(());
    stage.until("all are reserved anew", "n1", is_anew).await?;
    ensure!(until_served(&stage, "n1", 3).await? == before);
    Ok(())
}

async fn a_hint_that_azure_contradicts_costs_one_read(plane: &ControlPlane) -> Result<()> {
    let (stage, _) = listed(plane).await?;
    mislead(&stage).await?;
    let is_hinted =
        |seen: &NodeIPAllocation| (seen.status.as_ref()?.unlisted.len() == 4).then(|| names(seen));
    let names = stage.until("the agent hints at what isn't listed", "n1", is_hinted).await?;
    ensure!(names == stage.held("n1"), "nothing is lost");
    for round in 0..3 {
        stage.compare("n1", 1).await?;
        reconciled(&stage, round).await?;
    }
    ensure!(asked(&stage) == ["GET"], "{:?}", asked(&stage));
    Ok(())
}

/// Has `n1` reconciled once more, by a label of its Node.
async fn reconciled(stage: &Stage<'_>, round: usize) -> Result<()> {
    let count = |metrics: &Metrics| {
        metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#, r#"outcome="ok""#])
    };
    let before = count(&Metrics::scrape(stage).await?);
    let label = Patch::Merge(json!({ "metadata": { "labels": { "round": round.to_string() } } }));
    let api = Api::<Node>::all(stage.client.clone());
    api.patch("n1", &PatchParams::default(), &label).await.context("no label")?;
    let one_more = |metrics: &Metrics| count(metrics) > before;
    Metrics::until(stage, "the node was reconciled", one_more).await.map(drop)
}

async fn a_read_that_is_refused_is_not_made_again_for_each_reconcile(plane: &ControlPlane) -> Result<()> {
    let (stage, _) = listed(plane).await?;
    let fault = refuse_reads(&stage);
    // The hint has the NIC read.
    wipe(&stage, "n1").await?;
    stage.compare("n1", 2).await?;
    stage.until_struck(fault, 1).await?;
    for round in 0..5 {
        reconciled(&stage, round).await?;
    }
    ensure!(refused(&stage) == 1, "{} reads", refused(&stage));
    Ok(())
}

async fn a_read_that_fails_stops_no_other_clock_of_its_node(plane: &ControlPlane) -> Result<()> {
    let sizing = |release_after: &str| json!({ "sizing": { "minimum": 0, "warm": 1, "batch": 1, "releaseAfter": release_after } });
    let stage = listed_by(plane, sizing("10s")).await?;
    let fault = refuse_reads(&stage);
    mislead(&stage).await?;
    stage.until_struck(fault, 1).await?;
    stage.until_condition("n1", condition::RESERVED, "PermissionDenied").await?;
    stage.unbind("n1", 3).await?;
    // Two clocks, one after the other: a second until it is reported, ten until it is given back.
    stage.until_condition("n1", condition::SURPLUS, "MoreThanWanted").await?;
    let gives_up = |seen: &NodeIPAllocation| {
        (seen.spec.target == 1 && seen.status.as_ref()?.relinquished.len() == 3).then_some(())
    };
    stage.until("the agent has given up what isn't wanted", "n1", gives_up).await?;
    ensure!(refused(&stage) == 1, "{} reads", refused(&stage));
    stage.nothing_was_written()?;
    stage.sim.lift_fault(fault)?;
    stage.pool("default", sizing("11s")).await?;
    stage.until_holds("n1", 1).await
}

async fn a_wiped_nic_is_found_though_the_metadata_service_is_closed_to_the_agent(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", sizing()).await?;
    stage.start_with(|config| config.waits.unlisted = Duration::from_secs(5)).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    let before = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    let seen = stage.allocation("n1").await?;
    let nothing = serde_json::from_value(json!({ "interface": [] }))?;
    for _ in 0..SILENT {
        stage.agents.compare("n1", seen.spec.serving().context("no NIC")?, &nothing);
    }
    let is_reported = |seen: &NodeIPAllocation| seen.status.as_ref()?.metadata_silent.then_some(());
    stage.until("its agent reports it", "n1", is_reported).await?;
    let wiped = names(&seen);
    wipe(&stage, "n1").await?;
    let is_anew = |seen: &NodeIPAllocation| names(seen).is_disjoint(&wiped).then_some(());
    stage.until("all are reserved anew", "n1", is_anew).await?;
    ensure!(until_served(&stage, "n1", 3).await? == before);
    Ok(())
}
