//! What nobody knows of Azure, or what differs: the operator lives with it either way.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_azure_sim::{Config, Habits};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;
use vnetpool_tests::wait::patience;

pub const TESTS: &[Test] = crate::tests![
    a_write_that_is_complete_and_names_an_operation_is_followed_and_serves,
    a_nic_that_lists_its_primary_last_is_written_in_that_order_and_serves,
    a_write_that_is_answered_with_a_location_only_is_followed_on_the_nic,
    a_write_that_is_refused_because_another_is_under_way_is_made_when_that_has_ended,
    addresses_that_a_deleted_nic_holds_for_a_while_are_asked_for_by_one_node_until_they_are_free,
];

fn sizing() -> Value {
    json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" } })
}

fn azure(habits: Habits) -> Config {
    Config { habits, ..quick() }
}

/// A node grows and gives back.
async fn serves(stage: &Stage<'_>) -> Result<()> {
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    stage.bind("n1", 5).await?;
    stage.until_holds("n1", 5).await?;
    stage.unbind("n1", 5).await?;
    stage.until_holds("n1", 2).await
}

async fn a_write_that_is_complete_and_names_an_operation_is_followed_and_serves(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { names_ended_operations: true, ..Habits::default() };
    let stage = Stage::set(plane, Config { synchronous: true, ..azure(habits) }, sizing()).await?;
    serves(&stage).await?;
    ensure!(stage.writes("n1").len() == 3, "{:?}", stage.writes("n1"));
    Ok(())
}

async fn a_nic_that_lists_its_primary_last_is_written_in_that_order_and_serves(
    plane: &ControlPlane,
) -> Result<()> {
    let stage =
        Stage::set(plane, azure(Habits { lists_primary_last: true, ..Habits::default() }), sizing()).await?;
    serves(&stage).await?;
    let writes = stage.writes("n1");
    ensure!(writes.len() == 3 && writes.iter().all(|write| write.status == 200), "{writes:?}");
    let names = |list: &Value| -> Vec<String> {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
    };
    // The second write begins with what the first has left, in its order.
    let listed = |index: usize| -> Result<Vec<String>> {
        Ok(names(&writes[index].request.as_ref().context("no body")?["properties"]["ipConfigurations"]))
    };
    ensure!(listed(1)?[2] == listed(0)?[0], "{:?} and {:?}", listed(0)?, listed(1)?);
    Ok(())
}

async fn a_write_that_is_answered_with_a_location_only_is_followed_on_the_nic(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { answers_location_only: true, ..Habits::default() };
    let stage = Stage::set(plane, azure(habits), sizing()).await?;
    serves(&stage).await?;
    ensure!(stage.writes("n1").len() == 3, "{:?}", stage.writes("n1"));
    Ok(())
}

async fn a_write_that_is_refused_because_another_is_under_way_is_made_when_that_has_ended(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { refuses_second_write: true, ..Habits::default() };
    let stage = Stage::set(plane, Config { write_seconds: 6.0, ..azure(habits) }, sizing()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let mut document = stage.nic("n1");
    document["tags"] = json!({ "owner": "somebody" });
    stage.put("Microsoft.Network/networkInterfaces/n1-nic", document).await?;
    stage.bind("n1", 4).await?;
    stage.until_holds("n1", 4).await?;
    let refused = stage.writes("n1").iter().filter(|write| write.status == 429).count();
    ensure!(refused > 0, "the two never met: {:?}", stage.writes("n1"));
    ensure!(stage.nic("n1")["tags"]["owner"] == "somebody", "theirs is undone");
    Ok(())
}

async fn addresses_that_a_deleted_nic_holds_for_a_while_are_asked_for_by_one_node_until_they_are_free(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { frees_after_seconds: 5.0, ..Habits::default() };
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, azure(habits), json!({ "sizing": sizing })).await?;
    // A /28 gives eleven addresses, and two machines have one each.
    for (node, pods) in [("a", 6), ("b", 3)] {
        stage.node(node, Some("small")).await?;
        stage.bind(node, pods).await?;
        stage.until_holds(node, pods).await?;
    }
    stage.bind("b", 3).await?;
    stage.until_says("b", vnetpool_crds::condition::RESERVED, "SubnetFull").await?;
    let vnet = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network/\
                virtualNetworks/vnet";
    let taken = async || -> Result<f64> {
        let usages = stage.get(&format!("{vnet}/usages")).await?;
        let mut all = usages["value"].as_array().into_iter().flatten();
        let small = all.find(|one| one["id"].to_string().contains("small"));
        small.and_then(|one| one["currentValue"].as_f64()).context("no usage")
    };
    let before = taken().await?;
    stage.sim.delete_vm("a", false).await?;
    stage.delete_node("a").await?;
    // What the node had counts as free, and isn't yet. Then a probe finds it, or whoever edits the pool first.
    stage.until_gone("a").await?;
    eventually("Azure has freed them", patience(Duration::from_secs(30)), || async {
        Ok((taken().await? <= before - 7.0).then_some(()))
    })
    .await?;
    stage
        .pool("default", json!({ "sizing": { "minimum": 1, "warm": 0, "batch": 1, "releaseAfter": "0s" } }))
        .await?;
    stage.until_holds("b", 6).await?;
    let refused = stage.writes("b").iter().filter(|write| write.status == 400).count();
    ensure!(refused <= 6, "{refused} asked for what wasn't there");
    Ok(())
}
