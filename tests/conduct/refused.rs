//! Refusals that only a person can end: reported once, by condition and Event, and retried slowly.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use vnetpool_azure_sim::Effect;
use vnetpool_crds::condition::{self, INTERFACE_FOUND, READY, RESERVED, SURPLUS};
use vnetpool_crds::names::RELEASE;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::throughout;

pub const TESTS: &[Test] = crate::tests![
    a_missing_permission_is_reported_once_and_ends_when_the_pool_is_edited,
    a_refusal_that_only_a_person_can_end_makes_one_event_however_often_it_repeats,
    a_lock_on_the_group_is_met_by_one_node_that_is_gone_on_behalf_of_all,
    a_lock_on_the_group_is_met_by_one_node_and_holds_all_of_it_up_until_it_goes,
    a_right_to_read_nics_that_all_lack_is_asked_for_by_few_and_the_others_report_it,
    a_lock_that_takes_the_place_of_another_is_reported_by_all,
    a_pool_for_another_subnet_gives_back_no_sooner_than_any_surplus,
    a_pool_follows_its_nodes_conditions_though_nothing_else_changes,
];

async fn a_missing_permission_is_reported_once_and_ends_when_the_pool_is_edited(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let write = "Microsoft.Network/networkInterfaces/write";
    stage.sim.deny(vec![write.into()]);
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    let condition = stage.until_condition("n1", RESERVED, "PermissionDenied").await?;
    ensure!(
        condition.message.contains(write) && condition.message.contains("Grant"),
        "{}",
        condition.message
    );
    // More reasons to grow change nothing.
    stage.bind("n1", 5).await?;
    stage.until("the pods wait", "n1", |seen| (seen.status.as_ref()?.waiting == 5).then_some(())).await?;
    ensure!(stage.writes("n1").len() == 1, "tried again: {:?}", stage.writes("n1"));
    stage.until_reported("n1", "PermissionDenied", &["Node", "NodeIPAllocation"]).await?;
    stage.sim.deny(vec![]);
    stage.pool("default", json!({ "sizing": { "minimum": 6, "warm": 0, "batch": 1 } })).await?;
    stage.until_holds("n1", 6).await
}

async fn a_pool_follows_its_nodes_conditions_though_nothing_else_changes(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let locked = Effect::Status {
        status: 409,
        body: json!({ "error": { "code": "ScopeLocked", "message": "locked" } }),
        headers: Default::default(),
    };
    stage.fault("PUT", "/networkInterfaces/", Some(1), locked);
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_condition("n1", RESERVED, "ResourceLocked").await?;
    // The next attempt is on its way for longer than pools wait between two reconciles, and meets another
    // error.
    stage.sim.deny(vec!["Microsoft.Network/networkInterfaces/write".into()]);
    let hold = stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::HoldBefore);
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0, "releaseAfter": "1h" } })).await?;
    let until_reported = async |reason: &str| {
        let is_reported = |pool: &NodeIPPool| {
            let status = pool.status.as_ref()?;
            let ready = condition::find(&status.conditions, condition::NODES_READY)?;
            let is_reported = ready.message.contains(&format!("({reason})"));
            (is_reported && status.observed_generation == pool.metadata.generation).then_some(())
        };
        stage.until_pool(&format!("the pool reports {reason}"), "default", is_reported).await
    };
    stage.until_struck(hold, 1).await?;
    until_reported("ResourceLocked").await?;
    stage.sim.lift_fault(hold)?;
    until_reported("PermissionDenied").await
}

async fn a_refusal_that_only_a_person_can_end_makes_one_event_however_often_it_repeats(
    plane: &ControlPlane,
) -> Result<()> {
    let refusals = [
        (
            "locked",
            409,
            "ScopeLocked",
            "ResourceLocked",
            "Remove the lock on /subscriptions/S/resourceGroups/vnetpool",
            "The scope '/subscriptions/S/nic' cannot perform write operation because following scope(s) are locked: \
             '/subscriptions/S/resourceGroups/vnetpool'. Please remove the lock and try again.",
        ),
        (
            "policed",
            403,
            "RequestDisallowedByPolicy",
            "PolicyForbidden",
            "no-secondaries",
            "Resource 'nic' was disallowed by policy. Policy identifiers: 'no-secondaries'.",
        ),
        (
            "limited",
            400,
            "SomethingQuotaExceeded",
            "QuotaExceeded",
            "Have it raised",
            "Something of this subscription is used up.",
        ),
        (
            "wrong",
            400,
            "PrivateIPAddressMissing",
            "AzureRefused",
            "PrivateIPAddressMissing",
            "Private IP address is required when privateIPAllocationMethod is Static in IP configuration /vnp-1.",
        ),
    ];
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    for (node, status, code, _, _, message) in refusals {
        let body = json!({ "error": { "code": code, "message": message } });
        let effect = Effect::Status { status, body, headers: Default::default() };
        stage.fault("PUT", &format!("/{node}-nic"), None, effect);
        stage.node(node, None).await?;
    }
    let mut since = vec![];
    for (node, _, _, reason, names, _) in refusals {
        let condition = stage.until_condition(node, RESERVED, reason).await?;
        ensure!(
            condition.message.contains(names) && condition.message.contains(&format!("{node}-nic")),
            "{}",
            condition.message
        );
        since.push((condition.last_transition_time.clone(), stage.writes(node).len()));
    }
    // Each edit of the pool is a reason to try again at once; nothing else is for two minutes.
    for minimum in [5, 6, 7] {
        stage.pool("default", json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } })).await?;
        for (node, ..) in refusals {
            let tried = |_: &_| (stage.writes(node).len() == minimum - 3).then_some(());
            stage.until(&format!("{node} is tried for {minimum}"), node, tried).await?;
        }
    }
    for ((node, _, _, reason, ..), (since, writes)) in refusals.into_iter().zip(since) {
        ensure!(writes == 1, "{node}: {writes} writes at first");
        let condition = stage.until_condition(node, RESERVED, reason).await?;
        ensure!(condition.last_transition_time == since, "{node}: the condition has turned: {condition:?}");
        stage.until_reported(node, reason, &["Node", "NodeIPAllocation"]).await?;
        ensure!(stage.writes(node).len() == 4, "{node}: {} writes", stage.writes(node).len());
    }
    Ok(())
}

async fn a_lock_on_the_group_is_met_by_one_node_and_holds_all_of_it_up_until_it_goes(
    plane: &ControlPlane,
) -> Result<()> {
    let pool = |minimum: u32| json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), pool(4)).await?;
    let body = json!({ "error": { "code": "ScopeLocked", "message":
        "The scope '/nic' cannot perform write operation because following scope(s) are locked: \
         '/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool'. Please remove the lock." } });
    let effect = Effect::Status { status: 409, body, headers: Default::default() };
    let lock = stage.fault("PUT", "/networkInterfaces/", None, effect);
    stage.node("n0", None).await?;
    stage.until_condition("n0", RESERVED, "ResourceLocked").await?;
    let others: Vec<String> = (1..6).map(|index| format!("n{index}")).collect();
    for node in &others {
        stage.node(node, None).await?;
    }
    for node in &others {
        let condition = stage.until_condition(node, RESERVED, "ResourceLocked").await?;
        ensure!(condition.message.contains(&format!("{node}-nic")), "{}", condition.message);
        stage.until_reported(node, "ResourceLocked", &["Node", "NodeIPAllocation"]).await?;
    }
    let asked = || -> usize { (0..6).map(|index| stage.writes(&format!("n{index}")).len()).sum() };
    ensure!(asked() == 1, "{} asked for all", asked());
    // An edit has it tried once, not by each.
    stage.pool("default", pool(5)).await?;
    stage.until("one has tried", "n0", |_| (asked() == 2).then_some(())).await?;
    stage.sim.lift_fault(lock)?;
    stage.pool("default", pool(6)).await?;
    for index in 0..6 {
        stage.until_holds(&format!("n{index}"), 6).await?;
    }
    ensure!(asked() <= 2 + 6, "{} asked in all", asked());
    Ok(())
}

async fn a_lock_on_the_group_is_met_by_one_node_that_is_gone_on_behalf_of_all(
    plane: &ControlPlane,
) -> Result<()> {
    let pool = |minimum: u32| json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), pool(2)).await?;
    let gone = ["g0", "g1", "g2", "g3"];
    for node in gone.iter().chain(&["n1"]) {
        stage.node(node, None).await?;
        stage.until_holds(node, 2).await?;
    }
    let body = json!({ "error": { "code": "ScopeLocked", "message":
        "The scope '/nic' cannot perform write operation because following scope(s) are locked: \
         '/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool'. Please remove the lock." } });
    let effect = Effect::Status { status: 409, body, headers: Default::default() };
    let lock = stage.fault("PUT", "/networkInterfaces/", None, effect);
    stage.sim.clear_log();
    for node in gone {
        // Its NIC stays.
        stage.sim.delete_vm(node, true).await?;
        stage.delete_node(node).await?;
        stage.until_condition(node, READY, "ResourceLocked").await?;
    }
    let asked = || gone.iter().map(|node| stage.writes(node).len()).sum::<usize>();
    ensure!(asked() == 1, "{} asked for all", asked());
    let reads = || {
        let is_gone = |path: &str| gone.iter().any(|node| path.ends_with(&format!("/{node}-nic")));
        stage.asked().iter().filter(|one| one.method == "GET" && is_gone(&one.path)).count()
    };
    let before = reads();
    for node in gone {
        stage.annotate::<NodeIPAllocation>(node, RELEASE, Some("true")).await?;
    }
    // A turn may come meanwhile.
    throughout("woken they read nothing before it is told", Duration::from_secs(3), async || {
        ensure!(reads() <= before + 1, "{} reads", reads() - before);
        Ok(())
    })
    .await?;
    stage.sim.lift_fault(lock)?;
    stage.pool("default", pool(3)).await?;
    for node in gone {
        stage.until_gone(node).await?;
        ensure!(stage.held(node).is_empty(), "{node} holds {:?}", stage.held(node));
    }
    stage.until_holds("n1", 3).await
}

async fn a_right_to_read_nics_that_all_lack_is_asked_for_by_few_and_the_others_report_it(
    plane: &ControlPlane,
) -> Result<()> {
    let pool = |minimum: u32| json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), pool(4)).await?;
    let read = "Microsoft.Network/networkInterfaces/read";
    stage.sim.deny(vec![read.into()]);
    let names: Vec<String> = (0..8).map(|index| format!("n{index}")).collect();
    for node in &names {
        stage.node(node, None).await?;
        let condition = stage.until_condition(node, INTERFACE_FOUND, "PermissionDenied").await?;
        ensure!(condition.message.contains(read), "{}", condition.message);
    }
    let reads = || {
        let is_of_nic = |path: &str| path.to_lowercase().contains("/networkinterfaces/");
        stage.asked().iter().filter(|one| one.method == "GET" && is_of_nic(&one.path)).count()
    };
    // Three that are refused alike speak for their group.
    ensure!(reads() == 3, "{} reads", reads());
    // An edit has it tried once, and the first read that succeeds ends it for all.
    stage.pool("default", pool(5)).await?;
    stage.until("one has tried", "n0", |_| (reads() == 4).then_some(())).await?;
    stage.sim.deny(vec![]);
    stage.pool("default", pool(6)).await?;
    for node in &names {
        stage.until_holds(node, 6).await?;
    }
    Ok(())
}

async fn a_lock_that_takes_the_place_of_another_is_reported_by_all(plane: &ControlPlane) -> Result<()> {
    let pool = |minimum: u32| json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } });
    let stage = Stage::set(plane, quick(), pool(4)).await?;
    let subscription = "/subscriptions/00000000-0000-0000-0000-000000000001";
    let group = format!("{subscription}/resourceGroups/vnetpool");
    let lock = |scope: &str| {
        let message = format!(
            "The scope '/nic' cannot perform write operation because following scope(s) are locked: '{scope}'. Please \
             remove the lock."
        );
        let body = json!({ "error": { "code": "ScopeLocked", "message": message } });
        stage.fault(
            "PUT",
            "/networkInterfaces/",
            None,
            Effect::Status { status: 409, body, headers: Default::default() },
        )
    };
    let names = ["n0", "n1", "n2"];
    let all_report = async |scope: &str| {
        let remedy = format!("Remove the lock on {scope}.");
        for node in names {
            let is_reported = |seen: &NodeIPAllocation| {
                find(seen, RESERVED).filter(|one| one.message.contains(&remedy)).map(drop)
            };
            stage.until(&format!("the lock on {scope} is reported"), node, is_reported).await?;
        }
        anyhow::Ok(())
    };
    let first = lock(&group);
    for node in names {
        stage.node(node, None).await?;
    }
    all_report(&group).await?;
    stage.sim.lift_fault(first)?;
    let second = lock(subscription);
    stage.pool("default", pool(5)).await?;
    all_report(subscription).await?;
    stage.sim.lift_fault(second)?;
    stage.pool("default", pool(6)).await?;
    for node in names {
        stage.until_holds(node, 6).await?;
    }
    Ok(())
}

async fn a_pool_for_another_subnet_gives_back_no_sooner_than_any_surplus(plane: &ControlPlane) -> Result<()> {
    // A surplus is reported once it has lasted a tenth of `releaseAfter`.
    let sizing = json!({ "minimum": 4, "warm": 0, "batch": 1, "releaseAfter": "3m" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let other = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network/\
                 virtualNetworks/vnet/subnets/small";
    stage.pool("default", json!({ "sizing": sizing, "subnetID": other })).await?;
    stage.until_condition("n1", INTERFACE_FOUND, "SubnetMismatch").await?;
    stage.until_condition("n1", SURPLUS, "MoreThanWanted").await?;
    let seen = stage.allocation("n1").await?;
    ensure!(seen.spec.target == 4, "the node is asked for all of it: {:?}", seen.spec);
    // Corrected in time, nothing has been lost.
    stage.pool("default", json!({ "sizing": sizing })).await?;
    stage.until_condition("n1", SURPLUS, "AsWanted").await?;
    ensure!(stage.writes("n1").len() == 1, "{:?}", stage.writes("n1"));
    stage.until_holds("n1", 4).await
}
