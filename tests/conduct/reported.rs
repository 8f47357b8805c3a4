//! What people have reported of Azure in public: NICs that stay as they are, addresses that can't be had
//! back, operations that others overtake.

use crate::Test;
use crate::machines::{sizing, until_served};
use crate::stage::{Stage, quick};
use crate::wiped::{asked_for, wipe};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use vnetpool_azure_sim::{Effect, Ending, LogEntry};
use vnetpool_crds::condition::RESERVED;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::wait::{Limit, throughout};

pub const TESTS: &[Test] = crate::tests![
    a_nic_that_stays_updating_is_read_ever_less_often_and_written_when_it_has_settled,
    a_nic_that_stays_failed_is_written_again_ever_less_often_and_serves_all_the_same,
    growth_that_a_success_does_not_bring_is_asked_for_ever_less_often_and_not_reported,
    a_release_that_a_success_does_not_bring_is_asked_for_ever_less_often_and_stays_in_the_record,
    an_address_that_azure_is_cleaning_up_is_back_within_seconds_and_holds_no_other_up,
    an_operation_that_another_has_overtaken_is_made_again_within_seconds_without_an_event,
];

/// Of what ARM was asked, that about the NIC of a node's VM.
fn asked(stage: &Stage<'_>, node: &str, method: &str) -> usize {
    let nic = format!("/{node}-nic");
    stage.asked().iter().filter(|one| one.method == method && one.path.ends_with(&nic)).count()
}

async fn a_nic_that_stays_updating_is_read_ever_less_often_and_written_when_it_has_settled(
    plane: &ControlPlane,
) -> Result<()> {
    let pool = json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), pool).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    stage.sim.stick_nic("n1-nic", Some("Updating"))?;
    stage.sim.clear_log();
    // The write for these meets another version, and so reads.
    let begun = Instant::now();
    stage.bind("n1", 3).await?;
    let mut limit = Limit::new(Duration::from_secs(40));
    let mut pods = 3;
    // At once, after 5 s and after 10 s more, though something happens to its node all the while.
    while asked(&stage, "n1", "GET") < 3 {
        ensure!(!limit.is_over(), "it is read too rarely: {:?}", stage.asked());
        stage.bind("n1", 1).await?;
        pods += 1;
        sleep(Duration::from_millis(500)).await;
    }
    ensure!(begun.elapsed() >= Duration::from_secs(8), "it is read too often: {:?}", stage.asked());
    let written = stage.writes("n1");
    ensure!(written.iter().all(|write| write.status == 412), "{written:?}");
    stage.sim.stick_nic("n1-nic", None)?;
    stage.until_holds("n1", pods).await
}

async fn a_nic_that_stays_failed_is_written_again_ever_less_often_and_serves_all_the_same(
    plane: &ControlPlane,
) -> Result<()> {
    let pool = json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), pool).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    stage.sim.stick_nic("n1-nic", Some("Failed"))?;
    stage.sim.clear_log();
    stage.bind("n1", 3).await?;
    stage.until_condition("n1", RESERVED, "Repairing").await?;
    stage.until_offers("n1", 3).await?;
    // With what it grew by, after 5 s, and after 10 s more.
    let good = || stage.writes("n1").iter().filter(|write| write.status < 300).count();
    let written = good();
    ensure!(written <= 2, "{:?}", stage.writes("n1"));
    stage.bind("n1", 1).await?;
    stage.until_offers("n1", 4).await?;
    ensure!(good() <= written + 2, "{:?}", stage.writes("n1"));
    // There is no Event: it is mended or it passes.
    ensure!(stage.events("n1", "Repairing").await?.is_empty(), "an Event");
    stage.sim.stick_nic("n1-nic", None)?;
    stage.until_condition("n1", RESERVED, "Reserved").await?;
    stage.until_holds("n1", 4).await
}

/// From now on Azure answers each write of the node's NIC with the NIC as it is now, and does nothing.
fn without_effect(stage: &Stage<'_>) -> u64 {
    let unchanged = Effect::Status { status: 200, body: stage.nic("n1"), headers: BTreeMap::new() };
    stage.sim.clear_log();
    stage.fault("PUT", "/n1-nic", None, unchanged)
}

/// At once, after 5 s, and after 10 s more.
async fn is_written_ever_less_often(stage: &Stage<'_>) -> Result<()> {
    throughout("it isn't written again and again", Duration::from_secs(14), async || {
        ensure!(stage.writes("n1").len() <= 3, "{:?}", stage.writes("n1"));
        Ok(())
    })
    .await?;
    ensure!(stage.writes("n1").len() >= 2, "it isn't written again: {:?}", stage.writes("n1"));
    Ok(())
}

async fn growth_that_a_success_does_not_bring_is_asked_for_ever_less_often_and_not_reported(
    plane: &ControlPlane,
) -> Result<()> {
    let pool = json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), pool).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    stage.until_events("n1", "AddressesReserved", 1).await?;
    let events = stage.events("n1", "AddressesReserved").await?;
    let fault = without_effect(&stage);
    stage.bind("n1", 4).await?;
    let reported = stage.until_condition("n1", RESERVED, "OutcomeUnknown").await?;
    ensure!(
        reported.message.contains("reports a write") && reported.message.contains("n1-nic"),
        "{}",
        reported.message
    );
    is_written_ever_less_often(&stage).await?;
    ensure!(stage.events("n1", "AddressesReserved").await? == events, "an Event reports what wasn't done");
    stage.sim.lift_fault(fault)?;
    stage.until_holds("n1", 4).await?;
    stage.until_condition("n1", RESERVED, "Reserved").await.map(drop)
}

async fn a_release_that_a_success_does_not_bring_is_asked_for_ever_less_often_and_stays_in_the_record(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing, "cooldown": "0s" })).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    stage.until_holds("n1", 3).await?;
    let fault = without_effect(&stage);
    stage.unbind("n1", 2).await?;
    stage.until_condition("n1", RESERVED, "OutcomeUnknown").await?;
    is_written_ever_less_often(&stage).await?;
    // What is on the NIC stays in the record, though the node has given it up.
    let seen = stage.allocation("n1").await?;
    let shown: BTreeSet<_> = seen.spec.ip_configurations().map(|one| one.name.clone()).collect();
    ensure!(shown.len() == 3 && shown == stage.held("n1"), "{shown:?}");
    ensure!(stage.events("n1", "AddressesReleased").await?.is_empty(), "an Event reports what wasn't done");
    stage.sim.lift_fault(fault)?;
    stage.bind("n1", 2).await?;
    stage.until_holds("n1", 3).await
}

/// Three pods on a node that has one address more, all of which are gone from its NIC. No operator runs: the
/// next one reads the NIC before it writes. Gives the pods' addresses.
async fn wiped(stage: &Stage<'_>) -> Result<BTreeSet<String>> {
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    let served = until_served(stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    stage.kill().await?;
    wipe(stage, "n1").await?;
    Ok(served)
}

/// Azure refuses the next write of the node's NIC, with this about an address.
pub fn refuse(stage: &Stage<'_>, code: &str, address: &str) {
    let message = format!("Private static IP address {address} can not be used now, answers {code}.");
    let body = json!({ "error": { "code": code, "message": message, "details": [] } });
    let refusal = Effect::Status { status: 400, body, headers: BTreeMap::new() };
    stage.fault("PUT", "/n1-nic", Some(1), refusal);
}

async fn an_address_that_azure_is_cleaning_up_is_back_within_seconds_and_holds_no_other_up(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let before = wiped(&stage).await?;
    let freed = before.first().context("no pod")?.clone();
    let theirs = stage.take(&freed).await?;
    refuse(&stage, "PrivateIPAddressIsBeingCleanedUp", &freed);
    stage.bind("n1", 2).await?;
    stage.start().await?;
    let grows = |_: &_| stage.writes("n1").iter().any(|write| write.status < 300).then_some(());
    stage.until("the node grows", "n1", grows).await?;
    stage.delete(&theirs).await?;
    let after = until_served(&stage, "n1", 5).await?;
    ensure!(after.is_superset(&before), "{before:?} became {after:?}");
    let writes: Vec<LogEntry> = stage.writes("n1");
    let [first, second, third, ..] = &writes[..] else { anyhow::bail!("{writes:?}") };
    ensure!(first.status == 400 && asked_for(first).contains(&freed), "{:?}", asked_for(first));
    let rest: BTreeSet<String> = before.iter().filter(|one| **one != freed).cloned().collect();
    ensure!(second.status < 300 && asked_for(second).is_superset(&rest), "{:?}", asked_for(second));
    ensure!(!asked_for(second).contains(&freed), "it is asked for again at once");
    ensure!(third.status < 300 && asked_for(third).contains(&freed), "{:?}", asked_for(third));
    Ok(())
}

async fn an_operation_that_another_has_overtaken_is_made_again_within_seconds_without_an_event(
    plane: &ControlPlane,
) -> Result<()> {
    let codes = [
        ("n1", "AnotherOperationInProgress"),
        ("n2", "RetryableErrorDueToAnotherOperation"),
        ("n3", "ReferencedResourceNotProvisioned"),
    ];
    let pool: Value = json!({ "sizing": { "minimum": 4, "warm": 0 } });
    let stage = Stage::set(plane, quick(), pool).await?;
    for (node, code) in codes {
        let error = json!({ "code": code, "message": "Another operation on this or a dependent resource is in progress." });
        let fails = Effect::OperationEnds { status: Ending::Failed, error };
        stage.fault("PUT", &format!("/{node}-nic"), Some(1), fails);
        stage.node(node, None).await?;
    }
    for (node, _) in codes {
        stage.until_condition(node, RESERVED, "ResourceBusy").await?;
    }
    for (node, _) in codes {
        stage.until_holds(node, 4).await?;
        ensure!(stage.writes(node).len() == 2, "{:?}", stage.writes(node));
        ensure!(stage.events(node, "ResourceBusy").await?.is_empty(), "{node} gets an Event");
    }
    Ok(())
}
