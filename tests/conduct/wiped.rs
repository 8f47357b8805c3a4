//! Addresses that another client takes off a NIC under their pods: asked for again, lost, reported.

use crate::Test;
use crate::machines::{is_backed, sizing, until_served};
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_azure_sim::{Config, Effect, LogEntry, NewVm};
use vnetpool_crds::{NodeIPAllocation, condition};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::wait::throughout;

pub const TESTS: &[Test] = crate::tests![
    addresses_wiped_off_a_nic_under_their_pods_are_restored_by_the_first_write,
    an_address_that_a_stranger_has_by_now_is_asked_for_once_and_its_pod_is_named,
    an_address_that_is_not_in_its_subnet_is_asked_for_once_and_its_pod_is_named,
    an_address_that_azure_keeps_for_itself_is_asked_for_once_and_its_pod_is_named,
    lost_addresses_that_azure_refuses_keep_no_other_from_pods,
    a_release_goes_on_while_a_restore_is_refused,
    lost_addresses_that_a_full_network_has_no_room_for_are_not_asked_for_again_and_again,
    a_third_wipe_of_a_nic_in_a_day_is_reported_as_a_pattern_with_its_remedy,
];

/// Everything but the primary ipConfiguration goes, as by another client's write.
pub async fn wipe(stage: &Stage<'_>, node: &str) -> Result<()> {
    let primary = stage.nic(node)["properties"]["ipConfigurations"][0].clone();
    stage
        .sim
        .patch_nic(&format!("{node}-nic"), &json!({ "properties": { "ipConfigurations": [primary] } }))
        .await?;
    stage.sim.clear_log();
    Ok(())
}

/// The addresses that a write asks for by themselves, the node's own left out.
pub fn asked_for(write: &LogEntry) -> BTreeSet<String> {
    let all = write.request.as_ref().and_then(|body| body["properties"]["ipConfigurations"].as_array());
    let statics = all.into_iter().flatten().map(|one| &one["properties"]);
    statics
        .filter(|one| one["privateIPAllocationMethod"] == "Static")
        .filter_map(|one| one["privateIPAddress"].as_str().map(str::to_owned))
        .collect()
}

/// A node with three pods and a warm address, and the pods' addresses.
async fn with_three_pods(plane: &ControlPlane) -> Result<(Stage<'_>, BTreeSet<String>)> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    let pods = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    Ok((stage, pods))
}

async fn addresses_wiped_off_a_nic_under_their_pods_are_restored_by_the_first_write(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, before) = with_three_pods(plane).await?;
    wipe(&stage, "n1").await?;
    // Growth meets the other's write, and with it its effect.
    stage.bind("n1", 2).await?;
    let after = until_served(&stage, "n1", 5).await?;
    ensure!(after.is_superset(&before), "{before:?} became {after:?}");
    let writes: Vec<LogEntry> = stage.writes("n1").into_iter().filter(|one| one.status < 300).collect();
    let first = writes.first().context("nothing was written")?;
    // One of the pods that came after it may have got the address that was warm before.
    ensure!(asked_for(first).is_superset(&before), "the first write asks for {:?}", asked_for(first));
    stage.until_events("n1", "AddressesRestored", 1).await.map(drop)
}

async fn an_address_that_a_stranger_has_by_now_is_asked_for_once_and_its_pod_is_named(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, before) = with_three_pods(plane).await?;
    wipe(&stage, "n1").await?;
    let stranger = stage.sim.add_vm(NewVm { name: "stranger".into(), ..NewVm::default() }).await?;
    let lost = stranger.address.to_string();
    ensure!(before.contains(&lost), "{lost} is none of {before:?}");
    stage.bind("n1", 1).await?;
    until_given_up(&stage, "n1", &before, &lost).await
}

/// A person has given the subnet another range.
async fn an_address_that_is_not_in_its_subnet_is_asked_for_once_and_its_pod_is_named(
    plane: &ControlPlane,
) -> Result<()> {
    let why = "does not belong to the range of subnet prefix 10.240.0.0/20.";
    given_up_for_good(plane, "PrivateIPAddressNotInSubnet", why).await
}

async fn an_address_that_azure_keeps_for_itself_is_asked_for_once_and_its_pod_is_named(
    plane: &ControlPlane,
) -> Result<()> {
    let why = "falls within reserved IP range of subnet prefix 10.240.0.0/20.";
    given_up_for_good(plane, "PrivateIPAddressInReservedRange", why).await
}

/// Azure refuses one of three lost addresses in these words: it is given up, and the node goes on.
async fn given_up_for_good(plane: &ControlPlane, code: &str, why: &str) -> Result<()> {
    let (stage, before) = with_three_pods(plane).await?;
    let lost = before.first().context("no pod has an address")?;
    // An operator that starts reads the NIC before it writes, so that its first write asks for the lost
    // addresses.
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    // Azure doesn't choose such an address either.
    stage.take(lost).await?;
    let message = format!("Private static IP address {lost} {why}");
    let body = json!({ "error": { "code": code, "message": message } });
    let refusal = Effect::Status { status: 400, body, headers: Default::default() };
    stage.fault("PUT", "/n1-nic", Some(1), refusal);
    stage.bind("n1", 1).await?;
    stage.start().await?;
    until_given_up(&stage, "n1", &before, lost).await?;
    let first = stage.writes("n1").into_iter().next().context("nothing was written")?;
    ensure!(first.status == 400 && asked_for(&first).is_superset(&before), "{:?}", asked_for(&first));
    // The pod of the lost address is none of them.
    for pods in [5, 7] {
        stage.bind("n1", 2).await?;
        stage.until_assigned("n1", pods).await?;
    }
    until_given_up(&stage, "n1", &before, lost).await
}

/// Waits until all of these addresses but one are back; that one was asked for once, and its pod is named.
async fn until_given_up(stage: &Stage<'_>, node: &str, before: &BTreeSet<String>, lost: &str) -> Result<()> {
    let rest = |seen: &NodeIPAllocation| {
        let spec: BTreeSet<String> =
            seen.spec.ip_configurations().map(|one| one.address.replace("/32", "")).collect();
        let restored = before.iter().filter(|one| *one != lost).all(|one| spec.contains(one));
        let reported = find(seen, condition::AGENT_REPORTING)?;
        let is_named = reported.reason == "AddressVanished"
            && reported.message.contains(&format!("for this node: {lost} of default/pod-"));
        let settled = find(seen, condition::RESERVED)?.status == "True";
        (restored && !spec.contains(lost) && spec.len() >= 4 && settled && is_named).then_some(())
    };
    stage.until("the others are back, and one is reported as lost", node, rest).await?;
    let tries = stage.writes(node).into_iter().filter(|one| asked_for(one).contains(lost)).count();
    ensure!(tries == 1, "{lost} was asked for {tries} times");
    Ok(())
}

/// A person has given the subnet another range, in which the address is none that a NIC can have.
async fn lost_addresses_that_azure_refuses_keep_no_other_from_pods(plane: &ControlPlane) -> Result<()> {
    let (stage, before) = with_three_pods(plane).await?;
    // An operator that starts reads the NIC before it writes, so that its first write asks for the lost
    // addresses.
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    let body = json!({ "error": { "code": "Novel", "message": "Not with these addresses." } });
    let refusal = Effect::Status { status: 400, body, headers: Default::default() };
    stage.fault("PUT", "/n1-nic", Some(1), refusal);
    stage.bind("n1", 2).await?;
    stage.start().await?;
    let grown = |_: &_| stage.writes("n1").into_iter().find(|one| one.status < 300);
    let grown = stage.until("the node grows", "n1", grown).await?;
    let first = stage.writes("n1").into_iter().next().context("nothing was written")?;
    ensure!(first.status == 400 && asked_for(&first).is_superset(&before), "{:?}", asked_for(&first));
    ensure!(asked_for(&grown).is_disjoint(&before), "it asks for {:?} again", asked_for(&grown));
    Ok(())
}

async fn a_release_goes_on_while_a_restore_is_refused(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing, "cooldown": "0s" })).await?;
    stage.node("n1", None).await?;
    let mut pods = vec![];
    for _ in 0..3 {
        pods.push(stage.pod("n1", json!({})).await?);
    }
    let before = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 3).await?;
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    for address in &before {
        stage.take(address).await?;
    }
    let body = json!({ "error": { "code": "Novel", "message": "Not with these addresses." } });
    let refusal = Effect::Status { status: 400, body, headers: Default::default() };
    stage.fault("PUT", "/n1-nic", Some(1), refusal);
    for _ in 0..2 {
        pods.push(stage.pod("n1", json!({})).await?);
    }
    stage.start().await?;
    stage.until_holds("n1", 5).await?;
    // One that has lost its address stays.
    for pod in &pods[1..] {
        stage.remove("n1", pod).await?;
    }
    stage.until_holds("n1", 1).await?;
    let writes = stage.writes("n1");
    let (first, rest) = writes.split_first().context("nothing was written")?;
    ensure!(first.status == 400 && asked_for(first) == before, "{:?}", asked_for(first));
    ensure!(rest.iter().all(|one| asked_for(one).is_disjoint(&before)), "they are asked for again: {rest:?}");
    ensure!(!is_backed(&stage.allocation("n1").await?), "the lost address is back");
    Ok(())
}

async fn lost_addresses_that_a_full_network_has_no_room_for_are_not_asked_for_again_and_again(
    plane: &ControlPlane,
) -> Result<()> {
    // The machine's own and four of ours.
    let stage = Stage::set(plane, Config { network_addresses: 5, ..quick() }, sizing()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    for name in ["other", "another"] {
        stage.sim.add_vm(NewVm { name: name.into(), ..NewVm::default() }).await?;
    }
    // An operator that starts reads the NIC before it writes.
    stage.bind("n1", 2).await?;
    stage.start().await?;
    stage.until_condition("n1", condition::RESERVED, "VirtualNetworkFull").await?;
    let refused = || stage.writes("n1").iter().filter(|one| one.status == 400).count();
    throughout("it isn't asked for again and again", Duration::from_secs(8), async || {
        // With growth, with less of it, and without.
        ensure!(refused() <= 6, "{} writes in vain", refused());
        Ok(())
    })
    .await
}

async fn a_third_wipe_of_a_nic_in_a_day_is_reported_as_a_pattern_with_its_remedy(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 2).await?;
    stage.until_holds("n1", 2).await?;
    for round in 1..=3 {
        ensure!(
            find(&stage.allocation("n1").await?, condition::ADDRESSES_KEPT).is_none(),
            "reported before round {round}"
        );
        wipe(&stage, "n1").await?;
        // The write for one more pod meets a NIC that has changed.
        stage.bind("n1", 1).await?;
        stage.until_holds("n1", 2 + round).await?;
        // The next operator goes on counting.
        stage.kill().await?;
        stage.start().await?;
    }
    let reported = stage.until_condition("n1", condition::ADDRESSES_KEPT, "TakenOffByOthers").await?;
    ensure!(
        reported.message.contains("n1-nic") && reported.message.contains("ignore_changes"),
        "{}",
        reported.message
    );
    stage.until_reported("n1", "TakenOffByOthers", &["Node", "NodeIPAllocation"]).await
}
