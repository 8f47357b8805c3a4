//! The cost of a node and of a pod, counted: the small version of `make bench-scale`.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::json;
use std::time::Duration;
use vnetpool_azure_sim::LogEntry;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{self, READY, UPDATING};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::wait::patience;

pub const TESTS: &[Test] = crate::tests![
    nodes_that_join_with_their_pods_cost_azure_three_reads_and_one_write_each,
    nodes_that_join_or_take_up_an_edit_cost_the_api_server_few_writes_and_hardly_a_refused_one,
];

const NODES: usize = 8;
/// How many addresses a node holds, and how many pods it has.
const EACH: usize = 12;

fn sizing() -> serde_json::Value {
    json!({ "sizing": { "minimum": EACH, "warm": 0 } })
}

async fn nodes_that_join_with_their_pods_cost_azure_three_reads_and_one_write_each(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let names: Vec<String> = (0..NODES).map(|index| format!("n{index}")).collect();
    let join = |name: &String| {
        let (stage, name) = (&stage, name.clone());
        async move {
            stage.node(&name, None).await?;
            stage.bind(&name, EACH).await
        }
    };
    let (first, others) = names.split_at(1);
    try_join_all(first.iter().map(join)).await?;
    stage.until_holds(&names[0], EACH).await?;
    let before = Metrics::scrape(&stage).await?.label_values();
    try_join_all(others.iter().map(join)).await?;
    for name in &names {
        stage.until_holds(name, EACH).await?;
    }
    // A new outcome is a value or two, whatever the number of nodes.
    let after = Metrics::scrape(&stage).await?.label_values();
    let new: Vec<_> = after.difference(&before).collect();
    ensure!(new.len() < others.len(), "{NODES} nodes have brought label values: {new:?}");
    let asked = stage.asked();
    let is_about = |name: &String, one: &LogEntry| {
        one.path.ends_with(&format!("/{name}")) || one.path.ends_with(&format!("/{name}-nic"))
    };
    for name in &names {
        let of =
            |method: &str| asked.iter().filter(|one| one.method == method && is_about(name, one)).count();
        let (reads, writes) = (of("GET"), of("PUT"));
        ensure!(reads <= 3 && writes == 1, "{name}: {reads} reads, {writes} writes: {asked:?}");
    }
    // Besides, each write is followed, and one network is read for all.
    let rest = asked.iter().filter(|one| !names.iter().any(|name| is_about(name, one)));
    let (follows, others): (Vec<_>, Vec<_>) = rest.partition(|one| one.path.contains("/operations/"));
    ensure!(follows.len() <= 2 * NODES && others.len() <= 3, "{} polls, others: {others:?}", follows.len());
    Ok(())
}

/// How often NodeIPAllocations were written so far, and how many of these writes the API server has refused
/// because of another that came between.
fn written(stage: &Stage<'_>) -> Result<[f64; 2]> {
    let served = Metrics::of(stage.served()?);
    let of = |label: &str| served.sum("apiserver_request_total", &[r#"resource="nodeipallocations""#, label]);
    Ok([of(r#"verb="POST""#) + of(r#"verb="APPLY""#), of(r#"code="409""#)])
}

async fn nodes_that_join_or_take_up_an_edit_cost_the_api_server_few_writes_and_hardly_a_refused_one(
    plane: &ControlPlane,
) -> Result<()> {
    let pool = |each: usize| {
        let sizing = json!({ "minimum": each, "warm": 0 });
        json!({ "sizing": sizing, "rollout": { "maxUpdating": NODES } })
    };
    let stage = Stage::set(plane, quick(), pool(EACH)).await?;
    stage.agents.pace();
    let names: Vec<String> = (0..NODES).map(|index| format!("n{index}")).collect();
    let until_settled = async |each: usize| -> Result<()> {
        let is_settled = |seen: &NodeIPAllocation| {
            let is_true = |type_| condition::is_true(seen.conditions(), type_);
            let holds = seen.spec.addresses() as usize >= each;
            (holds && is_true(READY) && !is_true(UPDATING)).then_some(())
        };
        for name in &names {
            stage.until("it has settled", name, is_settled).await?;
        }
        Ok(())
    };
    let before = written(&stage)?;
    try_join_all(names.iter().map(|name| stage.node(name, None))).await?;
    until_settled(EACH).await?;
    let joined = written(&stage)?;
    stage.pool("default", pool(EACH + 1)).await?;
    until_settled(EACH + 1).await?;
    let edited = written(&stage)?;
    // Eight are right: the object, `spec` with the NIC and with its addresses, a report on each of these two,
    // and conditions before the write, with its announcement and after it. And five are for an edit: `spec`,
    // the report on it, and conditions three times.
    // On a machine with much other work an answer comes late now and then, or one write meets the next.
    let strain = patience(Duration::from_secs(1)).as_secs_f64();
    for (what, from, to, right) in [("a join", before, joined, 8.0), ("an edit", joined, edited, 5.0)] {
        let [writes, refused] = [0, 1].map(|of| (to[of] - from[of]) / NODES as f64);
        let costs =
            format!("{what} costs a node {writes} writes to the API server, {refused} of them refused");
        println!("{costs}");
        ensure!(writes - refused <= right + 0.75 && refused <= 0.6 * strain, "{costs}: {right} are right");
    }
    Ok(())
}
