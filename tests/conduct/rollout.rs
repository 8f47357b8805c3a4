//! An edit of a pool reaches its nodes in waves: they can be watched, paused, taken back, and they stop where
//! it goes wrong.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vnetpool_azure_sim::{Config, Effect, LogEntry};
use vnetpool_crds::condition::{self, RECONCILING, STALLED, UPDATING};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, names};
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;
use vnetpool_tests::project::tool;
use vnetpool_tests::wait::throughout;

pub const TESTS: &[Test] = crate::tests![
    an_edit_reaches_no_more_nodes_at_a_time_than_its_pool_allows_under_any_leader,
    an_edit_goes_no_further_while_its_pool_is_paused_and_one_that_is_taken_back_leaves_the_others_alone,
    an_edit_stops_when_as_many_nodes_as_may_take_it_up_can_not_settle_and_not_before,
    an_edit_whose_security_groups_azure_refuses_reaches_no_more_nodes_than_may_take_it_up,
    pods_that_need_an_edits_addresses_wait_for_no_wave,
];

fn sizing(size: u8, places: u8) -> Value {
    let sizing = json!({ "minimum": size, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    json!({ "sizing": sizing, "cooldown": "0s", "rollout": { "maxUpdating": places } })
}

/// Nodes of a pool that each hold two addresses.
async fn stage(plane: &ControlPlane, nodes: usize, places: u8) -> Result<(Stage<'_>, Vec<String>)> {
    let azure = Config { write_seconds: 1.0, ..quick() };
    let stage = Stage::set(plane, azure, sizing(2, places)).await?;
    let names: Vec<String> = (0..nodes).map(|index| format!("n{index:02}")).collect();
    try_join_all(names.iter().map(|name| stage.node(name, None))).await?;
    for name in &names {
        stage.until_holds(name, 2).await?;
    }
    stage.sim.clear_log();
    Ok((stage, names))
}

/// The nodes whose NIC holds so many.
fn holding<'a>(stage: &Stage<'_>, names: &'a [String], count: usize) -> Vec<&'a str> {
    names.iter().map(String::as_str).filter(|name| stage.held(name).len() == count).collect()
}

async fn until_hold(stage: &Stage<'_>, names: &[String], count: usize, at_least: usize) -> Result<()> {
    eventually(&format!("{at_least} nodes hold {count}"), Duration::from_secs(30), || async {
        let holding = holding(stage, names, count);
        ensure!(holding.len() >= at_least, "{holding:?}");
        Ok(Some(()))
    })
    .await
}

/// How many nodes Azure has seen busy at a time at most: from a node's first write to its last read-back.
fn busy_at_once(log: &[LogEntry], names: &[String]) -> usize {
    let mut spans: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (index, entry) in log.iter().enumerate() {
        let path = entry.path.to_lowercase();
        let Some(name) = names.iter().find(|name| path.ends_with(&format!("/{name}-nic"))) else { continue };
        match spans.get_mut(name.as_str()) {
            Some((_, last)) => *last = index,
            None if entry.method == "PUT" => drop(spans.insert(name, (index, index))),
            None => {}
        }
    }
    let busy = |at: usize| spans.values().filter(|(first, last)| (*first..*last).contains(&at)).count();
    (0..log.len()).map(busy).max().unwrap_or_default()
}

fn reports(pool: &NodeIPPool, type_: condition::Type, part: &str) -> Option<()> {
    let found = condition::find(&pool.status.as_ref()?.conditions, type_)?;
    (found.status == "True" && found.message.contains(part)).then_some(())
}

/// The status that kstatus computes of a pool. By that Flux and others judge what they have applied.
fn judged(pool: &NodeIPPool) -> Result<String> {
    let mut kstatus = Command::new(tool("kstatus"));
    kstatus.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut kstatus = kstatus.spawn().context("no kstatus: `make cluster-build` makes it")?;
    kstatus.stdin.take().context("no input")?.write_all(&serde_json::to_vec(pool)?)?;
    let output = kstatus.wait_with_output()?;
    ensure!(output.status.success(), "kstatus: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// All nodes follow the pool, and it reports so.
async fn until_rolled_out(stage: &Stage<'_>, nodes: usize) -> Result<()> {
    let is_done = |pool: &NodeIPPool| {
        let status = pool.status.as_ref()?;
        let is_silent =
            [RECONCILING, STALLED].iter().all(|one| condition::find(&status.conditions, *one).is_none());
        let is_new = status.observed_generation == pool.metadata.generation;
        (is_silent && is_new && status.updated_nodes as usize == nodes).then(|| pool.clone())
    };
    let pool = stage.until_pool("all nodes follow", "default", is_done).await?;
    ensure!(judged(&pool)? == "Current", "{pool:?}");
    Ok(())
}

async fn until_settled(stage: &Stage<'_>, names: &[String]) -> Result<()> {
    for name in names {
        stage.until("it has settled", name, |seen| find(seen, UPDATING).is_none().then_some(())).await?;
    }
    Ok(())
}

async fn an_edit_reaches_no_more_nodes_at_a_time_than_its_pool_allows_under_any_leader(
    plane: &ControlPlane,
) -> Result<()> {
    const NODES: usize = 12;
    const PLACES: u8 = 3;
    let (stage, names) = stage(plane, NODES, PLACES).await?;
    let most = Arc::new(Mutex::new((BTreeSet::new(), 0)));
    let seen = most.clone();
    stage.follow(move |node: NodeIPAllocation| {
        let mut seen = lock(&seen);
        let name = node.metadata.name.clone().unwrap_or_default();
        match find(&node, UPDATING) {
            Some(_) => drop(seen.0.insert(name)),
            None => drop(seen.0.remove(&name)),
        }
        seen.1 = seen.0.len().max(seen.1);
    });
    stage.pool("default", sizing(4, PLACES)).await?;
    let begun = |pool: &NodeIPPool| {
        reports(pool, RECONCILING, "nodes take up the pool as it is").map(|()| pool.clone())
    };
    let pool = stage.until_pool("it reports how far it is", "default", begun).await?;
    ensure!(judged(&pool)? == "InProgress", "{pool:?}");
    until_hold(&stage, &names, 4, 4).await?;
    stage.kill().await?;
    ensure!(holding(&stage, &names, 4).len() < NODES, "there is nothing left to do");
    stage.start().await?;
    for name in &names {
        stage.until_holds(name, 4).await?;
    }
    until_rolled_out(&stage, NODES).await?;
    until_settled(&stage, &names).await?;
    let busy = busy_at_once(&stage.asked(), &names);
    ensure!((2..=usize::from(PLACES)).contains(&busy), "{busy} nodes were busy at a time");
    let unsettled = lock(&most).1;
    ensure!((2..=usize::from(PLACES)).contains(&unsettled), "{unsettled} nodes were unsettled at a time");
    Ok(())
}

async fn an_edit_goes_no_further_while_its_pool_is_paused_and_one_that_is_taken_back_leaves_the_others_alone(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, names) = stage(plane, 8, 2).await?;
    stage.pool("default", sizing(4, 2)).await?;
    until_hold(&stage, &names, 4, 1).await?;
    stage.annotate::<NodeIPPool>("default", names::PAUSED, Some("it is too much")).await?;
    for name in &names {
        stage.until_condition(name, condition::PAUSED, "PoolPaused").await?;
        let ended = |seen: &NodeIPAllocation| {
            find(seen, condition::WRITING).filter(|one| one.status == "False").map(|_| ())
        };
        stage.until("its write has ended", name, ended).await?;
    }
    let updated = holding(&stage, &names, 4);
    ensure!(!updated.is_empty() && updated.len() <= 6, "{updated:?}");
    let written = stage.asked().iter().filter(|one| one.method != "GET").count();
    throughout("nothing is written", Duration::from_secs(3), async || {
        let writes: Vec<_> = stage.asked().into_iter().filter(|one| one.method != "GET").collect();
        ensure!(writes.len() == written, "{writes:?}");
        Ok(())
    })
    .await?;
    let others: Vec<&String> = names.iter().filter(|name| !updated.contains(&name.as_str())).collect();

    stage.pool("default", sizing(2, 2)).await?;
    stage.annotate::<NodeIPPool>("default", names::PAUSED, None).await?;
    for name in &names {
        stage.until_holds(name, 2).await?;
    }
    until_rolled_out(&stage, names.len()).await?;
    until_settled(&stage, &names).await?;
    for name in others {
        ensure!(stage.writes(name).is_empty(), "{:?}", stage.writes(name));
    }
    let busy = busy_at_once(&stage.asked(), &names);
    ensure!(busy <= 4, "{busy} nodes were busy at a time, in one wave up and one back");
    Ok(())
}

async fn an_edit_stops_when_as_many_nodes_as_may_take_it_up_can_not_settle_and_not_before(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, names) = stage(plane, 5, 2).await?;
    let refused = || Effect::Status {
        status: 400,
        body: json!({ "error": { "code": "OutOfTheOrdinary", "message": "not today" } }),
        headers: BTreeMap::new(),
    };
    let refuse = |node: &str| stage.fault("PUT", &format!("/{node}-nic"), None, refused());
    let first = refuse(&names[0]);
    stage.pool("default", sizing(4, 2)).await?;
    stage.until_condition(&names[0], condition::READY, "AzureRefused").await?;
    // With one place the others go on.
    for name in &names[1..] {
        stage.until_holds(name, 4).await?;
    }
    until_settled(&stage, &names[1..]).await?;

    let second = refuse(&names[1]);
    stage.pool("default", sizing(6, 2)).await?;
    let stopped = |pool: &NodeIPPool| {
        reports(pool, STALLED, "can't settle (AzureRefused): n00, n01.").map(|()| pool.clone())
    };
    let pool = stage.until_pool("it reports that it has stopped", "default", stopped).await?;
    ensure!(judged(&pool)? == "Failed", "{pool:?}");
    stage.until_reported("default", "RolloutStopped", &["NodeIPPool"]).await?;
    throughout("the others stay as they are", Duration::from_secs(2), async || {
        for name in &names[2..] {
            ensure!(stage.held(name).len() == 4, "{name} holds {:?}", stage.held(name));
        }
        Ok(())
    })
    .await?;
    for fault in [first, second] {
        stage.sim.lift_fault(fault)?;
    }
    // A person who has put it right edits the pool; otherwise it takes until Azure is asked again.
    let mut again = sizing(6, 2);
    again["subnetExhaustingPercent"] = json!(11);
    stage.pool("default", again).await?;
    for name in &names {
        stage.until_holds(name, 6).await?;
    }
    until_rolled_out(&stage, names.len()).await
}

async fn an_edit_whose_security_groups_azure_refuses_reaches_no_more_nodes_than_may_take_it_up(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, names) = stage(plane, 3, 1).await?;
    let group =
        stage.put("Microsoft.Network/applicationSecurityGroups/web", json!({ "properties": {} })).await?;
    let grouped = |group: &str| {
        let mut pool = sizing(2, 1);
        pool["applicationSecurityGroups"] = json!({ "ids": [group], "onSharedNIC": true });
        pool
    };
    stage.pool("default", grouped(&group)).await?;
    for name in &names {
        stage.until_condition(name, condition::APPLICATION_SECURITY_GROUPS, "Joined").await?;
    }
    until_settled(&stage, &names).await?;
    stage.sim.clear_log();
    // A slip of the pen. Nodes are to leave a group for it, which they do in waves.
    stage.pool("default", grouped(&group.replace("/web", "/wbe"))).await?;
    let stopped = |pool: &NodeIPPool| reports(pool, STALLED, "can't settle (NotAttachable)");
    stage.until_pool("it reports that it has stopped", "default", stopped).await?;
    let asked = || names.iter().filter(|name| !stage.writes(name).is_empty()).count();
    ensure!(asked() == 1, "{} nodes have taken it up", asked());
    // The slip is corrected.
    stage.pool("default", grouped(&group)).await?;
    until_rolled_out(&stage, names.len()).await
}

async fn pods_that_need_an_edits_addresses_wait_for_no_wave(plane: &ControlPlane) -> Result<()> {
    let (stage, names) = stage(plane, 3, 1).await?;
    let limited = |maximum: u8| {
        let mut pool = sizing(2, 1);
        pool["sizing"]["maximum"] = json!(maximum);
        pool
    };
    stage.pool("default", limited(3)).await?;
    until_rolled_out(&stage, names.len()).await?;
    until_settled(&stage, &names).await?;
    stage.bind(&names[2], 5).await?;
    stage.until_condition(&names[2], condition::READY, "MaximumReached").await?;
    // The only place is taken by a node that can't settle.
    let stuck = Effect::Status { status: 400, body: json!({}), headers: BTreeMap::new() };
    stage.fault("PUT", &format!("/{}-nic", names[0]), None, stuck);
    let mut more = limited(8);
    more["sizing"]["minimum"] = json!(4);
    stage.pool("default", more).await?;
    stage.until_holds(&names[2], 5).await?;
    stage.until_assigned(&names[2], 5).await?;
    ensure!(stage.held(&names[1]).len() == 2, "{:?}", stage.held(&names[1]));
    Ok(())
}
