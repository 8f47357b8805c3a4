//! The budget: every request is paid from it once, no rush goes beyond it, and it can be watched.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use vnetpool_azure_sim::{Config, Effect, LogEntry, VnetConfig};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    each_request_that_azure_sees_is_on_the_operators_account,
    an_outage_and_a_restart_of_many_nodes_stay_within_the_budget,
    the_budget_its_spend_and_who_waits_are_metrics,
];

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

    // The next operator believes what was published.
    stage.kill().await?;
    stage.sim.clear_log();
    stage.start_with(|config| config.azure.budget_percent = SHARE).await?;
    let looked = |metrics: &Metrics| {
        metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#, r#"outcome="ok""#])
            >= NODES as f64
    };
    Metrics::until(&stage, "every node was looked at", looked).await?;
    let usages = |_: &Metrics| stage.asked().len() >= 2;
    Metrics::until(&stage, "the network was looked at", usages).await?;
    let asked: Vec<String> = stage.asked().into_iter().map(|one| one.path).collect();
    ensure!(asked.len() == 2 && asked[1].ends_with("/virtualNetworks/vnet/usages"), "{asked:?}");
    ensure!(asked[0].ends_with("/virtualNetworks/vnet"), "{asked:?}");
    Ok(())
}

/// No stretch of time saw more requests than our share of the bucket and what it gained meanwhile.
fn within_the_budget(log: &[LogEntry]) -> Result<()> {
    let share = f64::from(SHARE) / 100.0;
    for (is_write, burst, rate) in [(false, 250.0 * share, 25.0 * share), (true, 200.0 * share, 10.0 * share)]
    {
        let mut times: Vec<f64> = vec![];
        for entry in log.iter().filter(|one| (one.method == "PUT") == is_write) {
            times.push(entry.time.parse::<Timestamp>()?.as_millisecond() as f64 / 1000.0);
        }
        for (first, from) in times.iter().enumerate() {
            for (last, to) in times.iter().enumerate().skip(first) {
                let (count, allowed) = ((last - first + 1) as f64, burst + rate * (to - from));
                // Requests that were let through one after the other may arrive closer together.
                ensure!(count <= allowed + 5.0, "{count} requests in {} s, write: {is_write}", to - from);
            }
        }
    }
    Ok(())
}

async fn the_budget_its_spend_and_who_waits_are_metrics(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    let throttled = Effect::Status {
        status: 429,
        body: json!({ "error": { "code": "SubscriptionRequestsThrottled", "message": "slow down" } }),
        headers: BTreeMap::from([("retry-after".into(), "15".into())]),
    };
    stage.fault("PUT", "/networkInterfaces/", Some(1), throttled);
    stage.start_with(|config| config.azure.budget_percent = 50).await?;
    let (arm, write) = (r#"limit="arm""#, r#"kind="write""#);
    let closed =
        |metrics: &Metrics| metrics.sum("vnetpool_operator_arm_budget_closed_seconds", &[arm, write]) > 0.0;
    let waits = |metrics: &Metrics| {
        closed(metrics) && metrics.sum("vnetpool_operator_arm_waiting", &[r#"priority="new_node""#]) >= 1.0
    };
    // One after the other: the write of a second node that came at the same time would be through before the answer.
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
