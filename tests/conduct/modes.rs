//! Pools of mode Prefix: blocks from the first pod to the last.

use crate::Test;
use crate::machines::{NODE, instance, is_backed};
use crate::reported::refuse;
use crate::stage::{Stage, find, quick};
use crate::wiped::{asked_for, wipe};
use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;
use vnetpool_azure_sim::{LogEntry, NewScaleSet};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::Holder;
use vnetpool_crds::condition::{
    ADDRESSES_KEPT, AGENT_REPORTING, ASSIGNMENTS_BACKED, INTERFACE_FOUND, READY, RESERVED,
};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_node_gets_blocks_as_its_pods_need_them_and_gives_back_those_that_are_wholly_free,
    a_block_that_a_stranger_has_half_of_is_given_up_and_no_other,
    blocks_that_others_wipe_are_missed_without_an_event_and_the_third_time_names_the_pattern,
    a_subnet_too_scattered_for_a_block_is_reported_and_single_addresses_still_work,
    a_node_that_moves_to_a_pool_with_blocks_trades_its_single_addresses_for_them,
    a_pool_of_the_wrong_mode_can_be_deleted_and_made_anew_before_pods_have_addresses,
];

async fn a_node_gets_blocks_as_its_pods_need_them_and_gives_back_those_that_are_wholly_free(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "maximum": 256, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "mode": "Prefix", "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 40).await?;
    stage.until_holds("n1", 3).await?;
    stage.until_offers("n1", 48).await?;
    ensure!(stage.writes("n1").len() == 1, "48 addresses took {} writes", stage.writes("n1").len());
    let served = stage.until("40 pods have addresses", "n1", |seen| {
        seen.status.as_ref().filter(|status| status.assigned == 40 && status.free == 8).cloned()
    });
    served.await?;
    // The pods that go had the last two blocks and part of the first.
    stage.unbind("n1", 32).await?;
    stage.until_holds("n1", 1).await?;
    stage.until_offers("n1", 16).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    stage.until_assigned("n1", 8).await
}

/// Whether Azure names the block that was asked for, or the address in it, isn't known.
async fn a_block_that_a_stranger_has_half_of_is_given_up_and_no_other(plane: &ControlPlane) -> Result<()> {
    for code in [None, Some("PrivateIPAddressInUse")] {
        let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "maximum": 256 });
        let stage = Stage::set(plane, quick(), json!({ "mode": "Prefix", "sizing": sizing })).await?;
        stage.node("n1", None).await?;
        stage.bind("n1", 20).await?;
        stage.until_holds("n1", 2).await?;
        stage.until_assigned("n1", 20).await?;
        let blocks = blocks(&stage.allocation("n1").await?);
        let [one, other] = &blocks.iter().collect::<Vec<_>>()[..] else { bail!("{blocks:?}") };
        stage.kill().await?;
        wipe(&stage, "n1").await?;
        let theirs = one.hosts().nth(7).context("an empty block")?.to_string();
        stage.take(&theirs).await?;
        if let Some(code) = code {
            refuse(&stage, code, &theirs);
        }
        // The next operator reads the NIC before it writes.
        stage.bind("n1", 13).await?;
        stage.start().await?;
        let rest = |seen: &NodeIPAllocation| {
            let is_named = find(seen, AGENT_REPORTING)?.reason == "AddressVanished";
            let is_settled = find(seen, RESERVED)?.status == "True";
            let shown = self::blocks(seen);
            (is_named && is_settled && shown.contains(*other) && !shown.contains(*one)).then_some(())
        };
        stage.until("the other is back, and pods of the one are reported as lost", "n1", rest).await?;
        let asks = |write: &&LogEntry| asked_for(write).contains(&one.to_string());
        let tries = stage.writes("n1").iter().filter(asks).count();
        ensure!(tries == 1, "{one} was asked for {tries} times");
    }
    Ok(())
}

/// The metadata service lists no blocks, so nothing happens at the node when they go.
async fn blocks_that_others_wipe_are_missed_without_an_event_and_the_third_time_names_the_pattern(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "maximum": 256 });
    stage.pool("default", json!({ "mode": "Prefix", "sizing": sizing })).await?;
    // 15 minutes, but for a test.
    stage.start_with(|config| config.waits.unlisted = Duration::from_secs(5)).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 20).await?;
    stage.until_holds("n1", 2).await?;
    stage.until_assigned("n1", 20).await?;
    let wiped = async || {
        let seen = stage.allocation("n1").await?;
        ensure!(find(&seen, ADDRESSES_KEPT).is_none(), "the pattern is named too early");
        wipe(&stage, "n1").await?;
        anyhow::Ok(blocks(&seen))
    };
    let is_back = |seen: &NodeIPAllocation| {
        (stage.held("n1").len() == 2 && find(seen, RESERVED)?.status == "True" && is_backed(seen))
            .then_some(())
    };

    // While nobody else has them, they come back.
    let before = wiped().await?;
    let same = |seen: &NodeIPAllocation| is_back(seen).filter(|()| blocks(seen) == before);
    stage.until("the same blocks are back", "n1", same).await?;
    stage.until_events("n1", "AddressesRestored", 1).await?;

    // One that others have by now is replaced for pods to come, and its pods are named.
    let before = wiped().await?;
    let [kept, lost] = before.iter().collect::<Vec<_>>()[..] else { bail!("{before:?}") };
    stage.take(&lost.hosts().nth(3).context("an empty block")?.to_string()).await?;
    let is_lost = |one: &Holder| {
        one.pod.starts_with("default/pod-")
            && one.address.parse().is_ok_and(|one: Ipv4Addr| lost.contains(&one))
    };
    let replaced = |seen: &NodeIPAllocation| {
        find(seen, ASSIGNMENTS_BACKED).filter(|one| one.reason == "AddressVanished")?;
        let shown = blocks(seen);
        let is_settled = find(seen, RESERVED)?.status == "True";
        // Until the agent has taken the kept block up again, it names the pods of both.
        let named = &seen.status.as_ref()?.lost;
        let are_named = !named.is_empty() && named.iter().all(is_lost);
        let is_replaced = shown.contains(kept) && !shown.contains(lost) && shown.len() == 2;
        (is_settled && is_replaced && are_named).then_some(())
    };
    stage.until("another block is there, and the pods of the lost one are named", "n1", replaced).await?;

    let before = wiped().await?;
    let condition = stage.until_condition("n1", ADDRESSES_KEPT, "TakenOffByOthers").await?;
    ensure!(condition.message.contains("n1-nic"), "{}", condition.message);
    let same = |seen: &NodeIPAllocation| (blocks(seen) == before).then_some(());
    stage.until("all blocks are back", "n1", same).await?;
    stage.until_reported("n1", "TakenOffByOthers", &["Node", "NodeIPAllocation"]).await
}

/// The blocks that `spec` shows.
fn blocks(seen: &NodeIPAllocation) -> BTreeSet<Ipv4Net> {
    seen.spec.ip_configurations().filter_map(|one| one.address.parse().ok()).collect()
}

async fn a_subnet_too_scattered_for_a_block_is_reported_and_single_addresses_still_work(
    plane: &ControlPlane,
) -> Result<()> {
    // 10.240.16.0/28 has eleven addresses, and Azure's own five keep it from being a block.
    let stage = Stage::set(plane, quick(), json!({ "mode": "Prefix" })).await?;
    stage.node("n1", Some("small")).await?;
    let reserved = stage.until_condition("n1", RESERVED, "SubnetFull").await?;
    ensure!(reserved.message.contains("16 free addresses in a row are needed"), "{}", reserved.message);
    stage.pool("single", json!({ "weight": 1, "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.until_holds("n1", 4).await
}

async fn a_node_that_moves_to_a_pool_with_blocks_trades_its_single_addresses_for_them(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 8, "warm": 0, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 8).await?;
    stage.pool("dense", json!({ "weight": 1, "mode": "Prefix", "sizing": sizing })).await?;
    let seen = stage.until_offers("n1", 16).await?;
    ensure!(seen.spec.ip_configurations().count() == 1, "{:?}", seen.spec);
    stage.until_holds("n1", 1).await?;
    ensure!(find(&seen, RESERVED).is_some(), "no condition");
    Ok(())
}

/// As `docs/sizing.md` has it. Who follows the advice for large clusters on scale sets of AKS' meets this.
async fn a_pool_of_the_wrong_mode_can_be_deleted_and_made_anew_before_pods_have_addresses(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "mode": "Prefix" })).await?;
    stage.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() })?;
    stage.join(NODE, &instance(&stage).await?.provider_id).await?;
    let found = stage.until_condition(NODE, INTERFACE_FOUND, "ModeUnavailable").await?;
    ensure!(found.message.contains("pool of mode Address"), "{}", found.message);
    ensure!(stage.allocation(NODE).await?.spec.addresses() == 0, "it has blocks");
    stage.delete_pool("default").await?;
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    // At once: a node that holds nothing has no grace to wait for.
    stage.until_offers(NODE, 4).await?;
    Ok(())
}
