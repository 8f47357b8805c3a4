//! Writes that a person has stopped, for a node or for all of a pool: none is sent until that person lets
//! them go on, whatever pods need, pools ask for, or Nodes come to.

use crate::Test;
use crate::budget::used_up;
use crate::machines::held;
use crate::metrics::Metrics;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_azure_sim::NewVm;
use vnetpool_crds::allocation::PublicAddress;
use vnetpool_crds::condition::{self, FULL, PAUSED, READY, Type};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, names};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;
use vnetpool_tests::wait::throughout;

pub const TESTS: &[Test] = crate::tests![
    of_a_paused_pool_nothing_is_written_though_pods_wait_and_it_is_edited_and_it_goes_on_at_once,
    a_paused_node_writes_nothing_and_keeps_all_that_it_has_even_when_it_is_deleted_and_others_go_on,
    a_pause_stops_waiting_writes_too,
    a_nic_that_its_node_has_left_during_a_pause_is_emptied_after_it_though_the_pool_was_deleted_meanwhile,
];

/// So long nothing must happen: a node that isn't paused is done in half of it.
const QUIET: Duration = Duration::from_secs(3);

fn sizing(minimum: u8, warm: u8) -> Value {
    let sizing = json!({ "minimum": minimum, "warm": warm, "batch": 1, "releaseAfter": "0s" });
    json!({ "sizing": sizing, "cooldown": "0s" })
}

async fn pause_pool(stage: &Stage<'_>, word: Option<&str>) -> Result<()> {
    stage.annotate::<NodeIPPool>("default", names::PAUSED, word).await
}

async fn pause_node(stage: &Stage<'_>, node: &str, word: Option<&str>) -> Result<()> {
    stage.annotate::<Node>(node, names::PAUSED, word).await
}

/// Waits until the pool reports that it is paused, or doesn't report it any more.
async fn until_pool_reports(stage: &Stage<'_>, is_paused: bool) -> Result<()> {
    let reports = |pool: &NodeIPPool| {
        let conditions = &pool.status.as_ref()?.conditions;
        let ready = condition::find(conditions, READY)?;
        let is_reported = condition::is_true(conditions, PAUSED);
        let is_so = is_reported == is_paused && (ready.reason == "Paused") == is_paused;
        is_so.then_some(())
    };
    stage.until_pool(&format!("paused: {is_paused}"), "default", reports).await
}

async fn until_unpaused(stage: &Stage<'_>, node: &str) -> Result<()> {
    stage.until("it reports no pause", node, |seen| find(seen, PAUSED).is_none().then_some(())).await
}

/// The reason and the status of a condition.
fn reported(seen: &NodeIPAllocation, type_: Type) -> Option<(String, String)> {
    find(seen, type_).map(|one| (one.status, one.reason))
}

/// Nodes that hold two addresses each.
async fn two_nodes(plane: &ControlPlane) -> Result<Stage<'_>> {
    let stage = Stage::set(plane, quick(), sizing(2, 1)).await?;
    for node in ["n1", "n2"] {
        stage.node(node, None).await?;
        stage.until_holds(node, 2).await?;
    }
    Ok(stage)
}

async fn of_a_paused_pool_nothing_is_written_though_pods_wait_and_it_is_edited_and_it_goes_on_at_once(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = two_nodes(plane).await?;
    pause_pool(&stage, Some("incident 7")).await?;
    for node in ["n1", "n2"] {
        let paused = stage.until_condition(node, PAUSED, "PoolPaused").await?;
        ensure!(paused.message.contains("NodeIPPool default is paused (incident 7)"), "{}", paused.message);
    }
    until_pool_reports(&stage, true).await?;
    stage.sim.clear_log();

    // Pods get the free addresses. One lacks an address, an edit asks for more, and a machine is new.
    stage.bind("n1", 3).await?;
    stage.until_assigned("n1", 2).await?;
    stage.pool("default", sizing(6, 1)).await?;
    stage.node("n3", None).await?;
    // The other keeps its policy until the edit is rolled out, and lacks nothing.
    for node in ["n1", "n3"] {
        stage.until_condition(node, READY, "PoolPaused").await?;
    }
    stage.until_condition("n1", FULL, "PoolPaused").await?;
    throughout("nothing is written", QUIET, async || stage.nothing_was_written()).await?;
    // Nor does an edit that asks for less have anything given up, and a leader that comes changes nothing.
    stage.kill().await?;
    stage.pool("default", sizing(0, 0)).await?;
    stage.start().await?;
    let keeps = async || {
        let seen = stage.allocation("n2").await?;
        ensure!(seen.spec.target >= 2 && seen.spec.addresses() == 2, "{:?}", seen.spec);
        stage.nothing_was_written()
    };
    throughout("nothing is given up", QUIET, keeps).await?;

    pause_pool(&stage, None).await?;
    stage.until_holds("n1", 3).await?;
    stage.until_holds("n2", 0).await?;
    stage.until_assigned("n1", 3).await?;
    until_unpaused(&stage, "n3").await?;
    until_pool_reports(&stage, false).await
}

async fn a_paused_node_writes_nothing_and_keeps_all_that_it_has_even_when_it_is_deleted_and_others_go_on(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = two_nodes(plane).await?;
    pause_node(&stage, "n1", Some("disk swap")).await?;
    stage.until_condition("n1", PAUSED, "Paused").await?;
    let written = stage.writes("n1").len();
    let untouched = || {
        let writes = stage.writes("n1");
        ensure!(writes.len() == written && stage.held("n1").len() == 2, "{writes:?}");
        Ok(())
    };
    for node in ["n1", "n2"] {
        stage.bind(node, 4).await?;
    }
    stage.until_holds("n2", 5).await?;
    stage.until_condition("n1", READY, "Paused").await?;
    ensure!(find(&stage.allocation("n2").await?, PAUSED).is_none(), "only one is paused");
    throughout("nothing is written for it", QUIET, async || untouched()).await?;

    pause_node(&stage, "n1", None).await?;
    stage.until_holds("n1", 5).await?;
    until_unpaused(&stage, "n1").await?;

    // Deleted while it is paused, with its VM, its record stays and nothing of it is given back.
    pause_node(&stage, "n1", Some("")).await?;
    stage.until_condition("n1", PAUSED, "Paused").await?;
    stage.delete_node("n1").await?;
    stage.sim.delete_vm("n1", true).await?;
    let explains = |seen: &NodeIPAllocation| {
        let (is_paused, ready) = (reported(seen, PAUSED)?, find(seen, READY)?);
        let is_so = is_paused == ("True".into(), "Paused".into()) && ready.reason == "Paused";
        (is_so && ready.message.contains("vnetpool.io/release=true")).then_some(())
    };
    stage.until("its record explains why it stays", "n1", explains).await?;
    throughout("its record and its addresses stay", QUIET, async || {
        stage.allocation("n1").await.context("its record is gone")?;
        ensure!(stage.held("n1").len() == 5, "{:?}", stage.held("n1"));
        Ok(())
    })
    .await?;
    stage.annotate::<NodeIPAllocation>("n1", names::RELEASE, Some("true")).await?;
    stage.until_gone("n1").await?;
    ensure!(stage.held("n1").is_empty(), "{:?}", stage.held("n1"));
    Ok(())
}

async fn a_pause_stops_waiting_writes_too(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", sizing(2, 0)).await?;
    stage.start_with(|config| config.azure.budget_percent = 10).await?;
    let names = ["n0", "n1", "n2", "n3"];
    for name in names {
        stage.node(name, None).await?;
    }
    for name in names {
        stage.until_holds(name, 2).await?;
    }
    // From here on there is one write a second for pods, and none for refills for six.
    stage.fault("PUT", "/networkInterfaces/", Some(1), used_up(1, "writes"));
    stage.bind("n0", 3).await?;
    stage.until_holds("n0", 3).await?;
    // The first refill is refused, too, so that a busy machine has time to see the others wait.
    stage.fault("PUT", "/networkInterfaces/", Some(1), used_up(8, "writes"));
    stage.pool("default", sizing(4, 0)).await?;
    let waiting =
        |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_waiting", &[r#"priority="warm_refill""#]);
    Metrics::until(&stage, "the refills wait", |metrics| waiting(metrics) >= 3.0).await?;
    stage.sim.clear_log();
    pause_pool(&stage, Some("stop")).await?;
    Metrics::until(&stage, "nothing waits", |metrics| waiting(metrics) == 0.0).await?;
    // Longer than they would have waited.
    throughout("nothing is written", Duration::from_secs(16), async || stage.nothing_was_written()).await?;
    pause_pool(&stage, None).await?;
    for name in names {
        stage.until_holds(name, 4).await?;
    }
    Ok(())
}

async fn a_nic_that_its_node_has_left_during_a_pause_is_emptied_after_it_though_the_pool_was_deleted_meanwhile(
    plane: &ControlPlane,
) -> Result<()> {
    let mut pool = sizing(2, 0);
    pool["attachments"] = json!({ "publicAddressNamespaces": ["default"] });
    let stage = Stage::set(plane, quick(), pool.clone()).await?;
    let first = stage.node("n1", None).await?;
    let asks = json!({ "vnetpool.io/public-address": "true" });
    let (stays, ends) = (stage.pod("n1", asks.clone()).await?, stage.pod("n1", asks).await?);
    let uid = stage.uid(&ends).await?;
    let public_addresses = |seen: &NodeIPAllocation| -> Vec<PublicAddress> {
        let all = seen.spec.ip_configurations().filter_map(|one| one.public_address.clone());
        all.filter(|one| one.address.is_some()).collect()
    };
    let two = stage.until("both pods have public addresses", "n1", |seen| {
        Some(public_addresses(seen)).filter(|all| all.len() == 2)
    });
    let of_ended = two.await?.into_iter().find(|one| one.id.ends_with(&uid)).context("not named for it")?;
    pause_pool(&stage, Some("incident 7")).await?;
    stage.until_condition("n1", PAUSED, "PoolPaused").await?;

    // Its machine comes back with another NIC, and the first outlives the VM that it belonged to.
    stage.delete_node("n1").await?;
    stage.sim.delete_vm("n1", true).await?;
    let second = stage.sim.add_vm(NewVm { name: "n1-again".into(), ..NewVm::default() }).await?;
    stage.join("n1", &second.provider_id).await?;
    stage.boot("n1", "boot-2").await?;
    stage.remove("n1", &ends).await?;
    let reads = || stage.asked().iter().filter(|one| one.path.eq_ignore_ascii_case(&second.nic_id)).count();
    eventually("the second NIC is read", QUIET * 10, || async { Ok((reads() > 0).then_some(())) }).await?;
    let serves = |seen: &NodeIPAllocation, nic: &str| {
        seen.spec.serving().is_some_and(|serving| serving.id.eq_ignore_ascii_case(nic))
    };
    let is_kept = async || {
        let seen = stage.allocation("n1").await?;
        ensure!(serves(&seen, &first.nic_id), "its record has forgotten the first NIC: {:?}", seen.spec);
        ensure!(held(&stage, &first.nic_id).len() == 2, "{:?}", held(&stage, &first.nic_id));
        Ok(())
    };
    throughout("its record names the first NIC", QUIET, async || is_kept().await).await?;
    // As by `kubectl replace --force` that is cut off half-way.
    stage.delete_pool("default").await?;
    let stays_paused = |seen: &NodeIPAllocation| {
        let paused = find(seen, PAUSED)?;
        paused.message.contains("was paused when it was deleted").then_some(())
    };
    stage.until("it stays paused", "n1", stays_paused).await?;
    throughout("it is paused without its pool", QUIET, async || is_kept().await).await?;

    stage.pool("default", pool).await?;
    let is_served = |seen: &NodeIPAllocation| {
        let count = seen.spec.ip_configurations().count();
        (serves(seen, &second.nic_id) && count == 2).then_some(())
    };
    stage.until("the second NIC serves", "n1", is_served).await?;
    let is_forgotten = |seen: &NodeIPAllocation| seen.spec.left_interfaces.is_empty().then_some(());
    stage.until("the first NIC is forgotten", "n1", is_forgotten).await?;
    ensure!(held(&stage, &first.nic_id).is_empty(), "{:?}", held(&stage, &first.nic_id));
    ensure!(!stage.exists(&of_ended.id).await?, "{of_ended:?} costs money still");
    until_unpaused(&stage, "n1").await?;
    // The pod that goes on gets another under the same id.
    stage.report_address("n1", &stays).await?;
    let is_attached = |seen: &NodeIPAllocation| (public_addresses(seen).len() == 1).then_some(());
    stage.until("it has a public address again", "n1", is_attached).await
}
