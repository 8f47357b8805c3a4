//! Pods that come and go on nodes that have addresses for them: the writes into the API server, and the
//! reconciles, that follow.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    pods_that_come_and_go_cost_few_writes_and_few_reconciles,
    an_object_of_a_full_node_has_counts_instead_of_a_list_of_its_pods,
];

/// Counts the versions of all objects of ours, which is how often they were written.
fn count_versions(stage: &Stage<'_>) -> Arc<Mutex<HashSet<(String, String)>>> {
    let versions = Arc::new(Mutex::new(HashSet::new()));
    let counted = versions.clone();
    stage.follow(move |object: NodeIPAllocation| count(&counted, &object));
    let counted = versions.clone();
    stage.follow(move |object: NodeIPPool| count(&counted, &object));
    versions
}

fn count(versions: &Mutex<HashSet<(String, String)>>, object: &impl ResourceExt) {
    lock(versions).insert((object.name_any(), object.resource_version().unwrap_or_default()));
}

/// How often nodes have been reconciled.
async fn reconciles(stage: &Stage<'_>) -> Result<f64> {
    let metrics = Metrics::scrape(stage).await?;
    Ok(metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#]))
}

async fn pods_that_come_and_go_cost_few_writes_and_few_reconciles(plane: &ControlPlane) -> Result<()> {
    const NODES: [&str; 3] = ["n1", "n2", "n3"];
    const STARTS: usize = 120;
    // The pods come within seconds, so addresses that cooled for half a minute would be used up.
    let spec = json!({ "sizing": { "minimum": 8, "warm": 8 }, "cooldown": "0s" });
    let stage = Stage::set(plane, quick(), spec).await?;
    for node in NODES {
        stage.node(node, None).await?;
        stage.bind(node, 12).await?;
    }
    for node in NODES {
        let settled = |seen: &NodeIPAllocation| {
            let status = seen.status.as_ref()?;
            (status.assigned == 12
                && seen.spec.addresses() >= 20
                && seen.spec.target <= seen.spec.addresses())
            .then_some(())
        };
        stage.until("twelve pods have addresses", node, settled).await?;
    }
    let versions = count_versions(&stage);
    let of_pool =
        |_: &NodeIPAllocation| lock(&versions).iter().any(|(name, _)| name == "default").then_some(());
    stage.until("the watches are there", "n1", of_pool).await?;
    stage.agents.pace();
    let reports = || stage.agents.reports.load(Ordering::Relaxed);
    let reconciled = reconciles(&stage).await?;
    let (before, reported) = (lock(&versions).len(), reports());
    for n in 0..STARTS {
        let node = NODES[n % NODES.len()];
        stage.unbind(node, 1).await?;
        stage.bind(node, 1).await?;
    }
    let have = |_: &NodeIPAllocation| {
        let all: HashSet<_> =
            NODES.iter().flat_map(|node| stage.agents.addresses(node).into_values()).collect();
        (all.len() == NODES.len() * 12).then_some(())
    };
    stage.until("all have addresses of their own", "n1", have).await?;
    let (after, reported) = (lock(&versions).len() - before, reports() - reported);
    let reconciled = reconciles(&stage).await? - reconciled;
    println!(
        "{STARTS} pod starts: {after} writes of NodeIPAllocations and NodeIPPools, {reported} of them by agents, and \
         {reconciled} reconciles"
    );
    ensure!(after * 10 <= STARTS, "{after} writes for {STARTS} pod starts");
    // Each of them takes a pod from a node, and brings it one. Both wake a node that is being reconciled, or
    // waits for anything, for however long that is. The units of `node/calm.rs` show which pods wake none.
    ensure!(reconciled <= STARTS as f64, "{reconciled} reconciles for {STARTS} pod starts");
    Ok(())
}

async fn an_object_of_a_full_node_has_counts_instead_of_a_list_of_its_pods(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 120, "warm": 0, "maximum": 120, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 110).await?;
    stage.until_assigned("n1", 110).await?;
    stage.until_holds("n1", 120).await?;
    let whole: Value = serde_json::to_value(stage.allocation("n1").await?)?;
    let length = |value: &Value| value.to_string().len();
    let (all, status) = (length(&whole), length(&whole["status"]));
    let managed = length(&whole["metadata"]["managedFields"]);
    println!("120 addresses, 110 pods: {all} bytes, {status} of status, {managed} of managedFields");
    let status = whole["status"].as_object().context("no status")?;
    let lists: Vec<_> =
        status.iter().filter(|(name, value)| value.is_array() && *name != "conditions").collect();
    ensure!(lists.is_empty(), "{lists:?}");
    ensure!(length(&json!(status)) < 4096, "{status:?}");
    Ok(())
}
