//! The cost of a node and of a pod, counted: the small version of `make bench-scale`.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::json;
use vnetpool_azure_sim::LogEntry;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] =
    crate::tests![nodes_that_join_with_their_pods_cost_azure_three_reads_and_one_write_each];

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
