//! The budget: every request is paid from it once, no rush goes beyond it, and it can be watched.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use vnetpool_azure_sim::{Config, Effect, LogEntry, VnetConfig};
use vnetpool_crds::condition;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;
use vnetpool_tests::wait::patience;

pub const TESTS: &[Test] = crate::tests![
    each_request_that_azure_sees_is_on_the_operators_account,
    pods_that_come_to_a_node_whose_refill_waits_for_its_turn_go_first_and_in_one_write_with_it,
    pods_that_come_to_a_node_that_is_yet_to_be_found_have_it_found_first,
    the_budget_its_spend_and_its_waiting_calls_are_metrics,
    computes_limit_of_a_subscription_holds_new_nodes_up_and_nothing_else,
];

pub const LONG: &[Test] = crate::tests![an_outage_and_a_restart_of_many_nodes_stay_within_the_budget];

/// Enough subnets that how full they are comes on several pages.
fn paged() -> Config {
    let subnet = |third: u8| (format!("s{third}"), format!("10.240.{third}.0/24").parse());
    let subnets = (0..5).map(subnet).filter_map(|(name, prefix)| Some((name, prefix.ok()?)));
    let vnet = VnetConfig {
        name: "vnet".into(),
        address_prefixes: "10.240.0.0/16".parse().into_iter().collect(),
        subnets: subnets.collect(),
    };
    Config { vnets: vec![vnet], page_size: Some(2), ..quick() }
}

async fn each_request_that_azure_sees_is_on_the_operators_account(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, paged(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    let throttled = Effect::Status {
        status: 429,
        body: json!({ "error": { "code": "TooManyRequests", "message": "Please try again after '1' seconds." } }),
        headers: BTreeMap::new(),
    };
    stage.fault("GET", "/networkInterfaces/", Some(1), throttled);
    for node in ["n1", "n2", "n3"] {
        stage.node(node, Some("s1")).await?;
    }
    for node in ["n1", "n2", "n3"] {
        stage.until_holds(node, 4).await?;
    }
    let pages = |log: &[LogEntry]| log.iter().filter(|one| one.path.ends_with("/usages")).count();
    let matches = |metrics: &Metrics| {
        let log = stage.asked();
        let writes = log.iter().filter(|one| one.method == "PUT").count() as f64;
        let spent =
            |kind: &str| metrics.sum("vnetpool_operator_arm_budget_spent_total", &[r#"limit="arm""#, kind]);
        let asked = metrics.sum("vnetpool_operator_arm_requests_total", &[]);
        pages(&log) == 3
            && asked == log.len() as f64
            && spent(r#"kind="write""#) == writes
            && spent(r#"kind="read""#) == log.len() as f64 - writes
    };
    Metrics::until(&stage, "the accounts agree with Azure's log", matches).await?;
    let log = stage.asked();
    ensure!(log.iter().any(|one| one.path.contains("/operations/")), "no poll in the log");
    ensure!(log.iter().any(|one| one.status == 429), "nothing was throttled");
    Ok(())
}

async fn computes_limit_of_a_subscription_holds_new_nodes_up_and_nothing_else(
    plane: &ControlPlane,
) -> Result<()> {
    // Others use it up: two reads are left, and one comes back each second.
    let azure = Config { compute_reads: (2.0, 60.0), ..quick() };
    let stage =
        Stage::set(plane, azure, json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })).await?;
    stage.node("n0", None).await?;
    stage.until_holds("n0", 2).await?;
    let others: Vec<String> = (1..8).map(|index| format!("n{index}")).collect();
    try_join_all(others.iter().map(|name| stage.node(name, None))).await?;
    let throttled = || stage.asked().iter().filter(|one| one.status == 429).count();
    eventually("Compute throttles", Duration::from_secs(10), || async {
        Ok((throttled() > 0).then_some(()))
    })
    .await?;
    stage.bind("n0", 4).await?;
    stage.until_holds("n0", 4).await?;
    for name in &others {
        stage.until_holds(name, 2).await?;
    }
    // Each time that Azure has asked for ends with a read for each waiting node, at worst.
    ensure!(throttled() <= others.len() * others.len(), "{} were throttled", throttled());
    let log = stage.asked();
    let wrong: Vec<_> =
        log.iter().filter(|one| one.status == 429 && !one.path.contains("/virtualMachines/")).collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

const NODES: usize = 80;
/// Per cent: so that so few nodes are a rush.
const SHARE: u8 = 40;

async fn an_outage_and_a_restart_of_many_nodes_stay_within_the_budget(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, Config { write_seconds: 1.0, ..Config::default() }).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 2 } })).await?;
    stage.start_with(|config| config.azure.budget_percent = SHARE).await?;
    let names: Vec<String> = (0..NODES).map(|index| format!("n{index}")).collect();
    try_join_all(names.iter().map(|name| stage.node(name, None))).await?;
    for name in &names {
        stage.until_holds(name, 2).await?;
    }
    within_the_budget(&stage.asked())?;

    // All nodes want more while Azure answers nothing but 503.
    let log = stage.asked().len();
    let gone = Effect::Status {
        status: 503,
        body: json!({ "error": { "code": "ServiceUnavailable", "message": "gone for a while" } }),
        headers: BTreeMap::from([("retry-after".into(), "2".into())]),
    };
    let faults = ["GET", "PUT"].map(|method| stage.fault(method, "/subscriptions/", None, gone.clone()));
    try_join_all(names.iter().map(|name| stage.bind(name, 3))).await?;
    let refused = |metrics: &Metrics| {
        metrics.sum("vnetpool_operator_arm_requests_total", &[r#"status="503""#]) >= NODES as f64
    };
    Metrics::until(&stage, "every node has tried", refused).await?;
    for fault in faults {
        stage.sim.lift_fault(fault)?;
    }
    for name in &names {
        stage.until_holds(name, 4).await?;
    }
    within_the_budget(&stage.asked()[log..])?;

    // The next operator believes the published state.
    stage.kill().await?;
    stage.sim.clear_log();
    stage.start_with(|config| config.azure.budget_percent = SHARE).await?;
    let reconciled = |metrics: &Metrics| {
        metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#, r#"outcome="ok""#])
            >= NODES as f64
    };
    Metrics::until(&stage, "every node was reconciled", reconciled).await?;
    let usages = |_: &Metrics| stage.asked().len() >= 2;
    Metrics::until(&stage, "the network was read", usages).await?;
    let asked: Vec<String> = stage.asked().into_iter().map(|one| one.path).collect();
    ensure!(asked.len() == 2 && asked[1].ends_with("/virtualNetworks/vnet/usages"), "{asked:?}");
    ensure!(asked[0].ends_with("/virtualNetworks/vnet"), "{asked:?}");
    Ok(())
}

/// No stretch of time saw more requests than our share of the bucket and its refill meanwhile.
fn within_the_budget(log: &[LogEntry]) -> Result<()> {
    let share = f64::from(SHARE) / 100.0;
    // Requests that were let through one after the other may arrive closer together, on a busy machine by
    // that much.
    let slack = patience(Duration::from_millis(1500)).as_secs_f64();
    for (is_write, burst, rate) in [(false, 250.0 * share, 25.0 * share), (true, 200.0 * share, 10.0 * share)]
    {
        let mut times: Vec<f64> = vec![];
        for entry in log.iter().filter(|one| (one.method == "PUT") == is_write) {
            times.push(entry.time.parse::<Timestamp>()?.as_millisecond() as f64 / 1000.0);
        }
        for (first, from) in times.iter().enumerate() {
            for (last, to) in times.iter().enumerate().skip(first) {
                let (count, allowed) = ((last - first + 1) as f64, burst + rate * (to - from + slack));
                ensure!(count <= allowed, "{count} requests in {} s, write: {is_write}", to - from);
            }
        }
    }
    Ok(())
}

/// ARM answers that it throttles for so long, and counts nothing left.
pub fn used_up(seconds: u8, sort: &str) -> Effect {
    let headers = [
        ("retry-after".to_owned(), seconds.to_string()),
        (format!("x-ms-ratelimit-remaining-subscription-{sort}"), "0".into()),
    ];
    Effect::Status {
        status: 429,
        body: json!({ "error": { "code": "SubscriptionRequestsThrottled", "message": "slow down" } }),
        headers: headers.into(),
    }
}

async fn pods_that_come_to_a_node_whose_refill_waits_for_its_turn_go_first_and_in_one_write_with_it(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let pool = |minimum: u8| json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } });
    stage.pool("default", pool(2)).await?;
    stage.start_with(|config| config.azure.budget_percent = 10).await?;
    let names = ["n0", "n1", "n2", "n3", "n4"];
    for name in names {
        stage.node(name, None).await?;
    }
    for name in names {
        stage.until_holds(name, 2).await?;
    }
    // From six seconds on there is one write a second for pods, and none for refills for six more.
    stage.fault("PUT", "/networkInterfaces/", Some(1), used_up(6, "writes"));
    stage.bind("n0", 3).await?;
    let waiting = |metrics: &Metrics, priority: &str| {
        metrics.sum("vnetpool_operator_arm_waiting", &[&format!(r#"priority="{priority}""#)])
    };
    let closed =
        |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_requests_total", &[r#"status="429""#]) == 1.0;
    Metrics::until(&stage, "the writes are used up", closed).await?;
    let (before, lost) = (stage.asked().len(), stage.writes("n4").len());
    stage.pool("default", pool(3)).await?;
    Metrics::until(&stage, "the refills wait", |metrics| waiting(metrics, "warm_refill") >= 4.0).await?;
    // The next leader would read the NIC of each whose write is announced, though nothing was sent.
    for name in &names[1..] {
        let announced = find(&stage.allocation(name).await?, condition::WRITING);
        ensure!(announced.is_some_and(|one| one.status == "False"), "a write of {name} is announced");
    }

    stage.bind("n4", 6).await?;
    stage.until_holds("n4", 6).await?;
    ensure!(stage.writes("n4").len() == lost + 1, "{:?}", stage.writes("n4"));
    // In the order of Azure's log: on a busy machine refills may go before the pods are seen to be served.
    let asked = stage.asked();
    let is_write_of =
        |one: &LogEntry, name: &str| one.method == "PUT" && one.path.ends_with(&format!("/{name}-nic"));
    let pods = asked.iter().rposition(|one| is_write_of(one, "n4")).context("no write for the pods")?;
    let is_others = |one: &&LogEntry| names[1..4].iter().any(|name| is_write_of(one, name));
    let others = asked[..pods].iter().filter(is_others).count();
    ensure!(others == 3, "no refill comes before the pods: {others} writes");
    let asked: Vec<_> = asked.into_iter().skip(before).filter(|one| one.path.contains("n4-nic")).collect();
    ensure!(asked[0].method == "PUT", "the NIC needn't be read for it: {asked:?}");

    for name in ["n0", "n1", "n2", "n3"] {
        stage.until_holds(name, 3).await?;
    }
    let paid = |metrics: &Metrics| {
        let writes = stage.asked().iter().filter(|one| one.method == "PUT").count() as f64;
        let labels = [r#"limit="arm""#, r#"kind="write""#];
        metrics.sum("vnetpool_operator_arm_budget_spent_total", &labels) == writes
    };
    Metrics::until(&stage, "a place given up costs nothing", paid).await?;
    Ok(())
}

async fn pods_that_come_to_a_node_that_is_yet_to_be_found_have_it_found_first(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })).await?;
    stage.fault("GET", "/virtualMachines/", Some(1), used_up(12, "reads"));
    stage.start_with(|config| config.azure.budget_percent = 10).await?;
    stage.node("n0", None).await?;
    let waiting = |metrics: &Metrics| {
        ["waiting_pods", "new_node"].map(|priority| {
            metrics.sum("vnetpool_operator_arm_waiting", &[&format!(r#"priority="{priority}""#)])
        })
    };
    let closed =
        |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_requests_total", &[r#"status="429""#]) == 1.0;
    Metrics::until(&stage, "the reads are used up", closed).await?;
    for name in ["n1", "n2", "n3"] {
        stage.node(name, None).await?;
    }
    Metrics::until(&stage, "the nodes wait", |metrics| waiting(metrics) == [0.0, 3.0]).await?;
    stage.bind("n3", 4).await?;
    Metrics::until(&stage, "the one with pods goes first", |metrics| waiting(metrics) == [1.0, 2.0]).await?;
    stage.until_holds("n3", 4).await?;
    ensure!(stage.writes("n3").len() == 1, "{:?}", stage.writes("n3"));
    Ok(())
}

async fn the_budget_its_spend_and_its_waiting_calls_are_metrics(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    let throttled = Effect::Status {
        status: 429,
        body: json!({ "error": { "code": "SubscriptionRequestsThrottled", "message": "slow down" } }),
        headers: BTreeMap::from([("retry-after".into(), "20".into())]),
    };
    stage.fault("PUT", "/networkInterfaces/", Some(1), throttled);
    stage.start_with(|config| config.azure.budget_percent = 50).await?;
    let (arm, write) = (r#"limit="arm""#, r#"kind="write""#);
    let closed =
        |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_budget_closed_seconds", &[arm, write]) > 0.0;
    let waits = |metrics: &Metrics| {
        closed(metrics) && metrics.sum("vnetpool_operator_arm_waiting", &[r#"priority="new_node""#]) >= 1.0
    };
    // One after the other: the write of a second node that came at the same time would be through before the
    // answer.
    stage.node("n1", None).await?;
    Metrics::until(&stage, "writes are closed", closed).await?;
    stage.node("n2", None).await?;
    let metrics = Metrics::until(&stage, "a node waits meanwhile", waits).await?;
    for family in [
        "vnetpool_operator_arm_requests",
        "vnetpool_operator_arm_budget_capacity",
        "vnetpool_operator_arm_budget_left",
        "vnetpool_operator_arm_budget_closed_seconds",
        "vnetpool_operator_arm_budget_spent",
        "vnetpool_operator_arm_budget_wait_seconds",
        "vnetpool_operator_arm_waiting",
    ] {
        ensure!(metrics.has(family), "{family} isn't there");
    }
    let capacity = |labels: &[&str]| metrics.sum("vnetpool_operator_arm_budget_capacity", labels);
    ensure!(capacity(&[arm, write]) == 100.0 && capacity(&[arm, r#"kind="read""#]) == 125.0);
    ensure!(capacity(&[r#"limit="network""#, write, r#"region="westeurope""#]) == 500.0);
    for node in ["n1", "n2"] {
        stage.until_holds(node, 4).await?;
    }
    let opened = |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_waiting", &[]) == 0.0;
    let metrics = Metrics::until(&stage, "nobody waits any more", opened).await?;
    ensure!(metrics.sum("vnetpool_operator_arm_budget_wait_seconds_total", &[]) >= 1.0);
    ensure!(metrics.sum("vnetpool_operator_arm_budget_spent_total", &[arm, write]) >= 2.0);
    Ok(())
}
