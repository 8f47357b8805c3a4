//! Behaviour of Azure that isn't known, or differs: the operator works with it either way.

use crate::Test;
use crate::attachments::kept;
use crate::machines::held;
use crate::stage::{Stage, quick, subnet};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_azure_sim::{Config, Habits, LogEntry, NewInstance, NewScaleSet, Settings};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{ATTACHED, RESERVED};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    a_write_that_is_complete_and_names_an_operation_is_followed_and_serves,
    a_nic_that_lists_its_primary_last_is_written_in_that_order_and_serves,
    a_nic_whose_primary_another_client_moves_keeps_all_it_has_and_serves,
    a_write_that_is_answered_with_a_location_only_is_followed_on_the_nic,
    a_write_to_an_instance_that_is_answered_with_a_location_only_is_followed_on_its_model,
    a_write_that_is_refused_because_another_is_under_way_is_made_when_that_has_ended,
    a_stopped_machine_keeps_its_addresses_and_delays_no_node_whether_or_not_its_nic_is_writable,
    a_public_address_that_is_refused_for_its_zone_keeps_nothing_from_its_node_and_goes_with_its_pod,
];

pub const LONG: &[Test] = crate::tests![
    a_machine_that_is_being_deleted_delays_no_node_whether_or_not_its_nic_is_writable,
    addresses_that_a_deleted_nic_holds_for_a_while_are_asked_for_no_more_often_by_many_nodes_than_by_one,
];

fn sizing(minimum: u32) -> Value {
    json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1, "releaseAfter": "0s" } })
}

fn azure(habits: Habits) -> Config {
    Config { habits, ..quick() }
}

/// From now on a write takes so long, or a deletion; those under way take as long as they would have.
fn writes_take(stage: &Stage<'_>, seconds: f64) -> Result<()> {
    stage.sim.set(&Settings { write_seconds: Some(seconds), ..Settings::default() })?;
    Ok(())
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
    let stage = Stage::set(plane, Config { synchronous: true, ..azure(habits) }, sizing(2)).await?;
    serves(&stage).await?;
    ensure!(stage.writes("n1").len() == 3, "{:?}", stage.writes("n1"));
    let polls =
        stage.asked().into_iter().filter(|one| one.method == "GET" && one.path.contains("/operations/"));
    ensure!(polls.count() == 3, "each write has an end: {:?}", stage.asked());
    Ok(())
}

async fn a_nic_that_lists_its_primary_last_is_written_in_that_order_and_serves(
    plane: &ControlPlane,
) -> Result<()> {
    let stage =
        Stage::set(plane, azure(Habits { lists_primary_last: true, ..Habits::default() }), sizing(2)).await?;
    serves(&stage).await?;
    let writes = stage.writes("n1");
    ensure!(writes.len() == 3 && writes.iter().all(|write| write.status == 200), "{writes:?}");
    let names = |list: &Value| -> Vec<String> {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
    };
    // The second write begins with the list of the first, in its order.
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
    let stage = Stage::set(plane, azure(habits), sizing(2)).await?;
    serves(&stage).await?;
    ensure!(stage.writes("n1").len() == 3, "{:?}", stage.writes("n1"));
    Ok(())
}

async fn a_write_to_an_instance_that_is_answered_with_a_location_only_is_followed_on_its_model(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { answers_location_only: true, ..Habits::default() };
    let stage = Stage::set(plane, azure(habits), sizing(2)).await?;
    stage.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() })?;
    let vm = stage.sim.add_instance("pool", NewInstance::default()).await?;
    stage.join("n1", &vm.provider_id).await?;
    stage.until_offers("n1", 2).await?;
    stage.bind("n1", 5).await?;
    stage.until_offers("n1", 5).await?;
    stage.unbind("n1", 5).await?;
    stage.until_offers("n1", 2).await?;
    ensure!(held(&stage, &vm.nic_id).len() == 2, "{:?}", held(&stage, &vm.nic_id));
    let is_write = |one: &LogEntry| one.method == "PUT" && one.path.eq_ignore_ascii_case(&vm.vm_id);
    let writes: Vec<u16> = stage.asked().iter().filter(|one| is_write(one)).map(|one| one.status).collect();
    ensure!(writes == [202, 202, 202], "{writes:?}");
    Ok(())
}

/// Another client makes this ipConfiguration the primary one; there is one of this name from then on.
async fn move_primary(stage: &Stage<'_>, name: &str) -> Result<()> {
    let document = stage.nic("n1");
    let mut all = document["properties"]["ipConfigurations"].as_array().context("no list")?.clone();
    if !all.iter().any(|one| one["name"] == name) {
        let subnet = all[0]["properties"]["subnet"].clone();
        all.push(json!({ "name": name, "properties": { "subnet": subnet } }));
    }
    for one in &mut all {
        one["properties"]["primary"] = json!(one["name"] == name);
    }
    stage.sim.patch_nic("n1-nic", &json!({ "properties": { "ipConfigurations": all } })).await?;
    Ok(())
}

async fn a_nic_whose_primary_another_client_moves_keeps_all_it_has_and_serves(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { moves_primary: true, ..Habits::default() };
    let stage = Stage::set(plane, azure(habits), sizing(2)).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let before = stage.held("n1");
    let names = || -> Vec<String> {
        let nic = stage.nic("n1");
        let all = nic["properties"]["ipConfigurations"].as_array().into_iter().flatten();
        all.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
    };
    // First to one of theirs. The next write meets it.
    move_primary(&stage, "theirs").await?;
    stage.bind("n1", 4).await?;
    stage.until_holds("n1", 4).await?;
    ensure!(before.is_subset(&stage.held("n1")), "{before:?} became {:?}", stage.held("n1"));
    ensure!(names()[0] == "theirs" && names().contains(&"ipconfig1".to_owned()), "{:?}", names());
    let address =
        stage.nic("n1")["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"].clone();
    stage
        .until("the node's own address is the new one", "n1", |seen| {
            (json!(seen.spec.serving()?.primary_address) == address).then_some(())
        })
        .await?;
    // Then to one of ours, which no pod has: it is the node's, and another takes its place.
    stage.unbind("n1", 4).await?;
    stage.until_holds("n1", 2).await?;
    let ours = stage.held("n1").first().context("nothing is held")?.clone();
    move_primary(&stage, &ours).await?;
    let shows_others = |count: usize| {
        let ours = &ours;
        move |seen: &NodeIPAllocation| {
            let shown: Vec<_> = seen.spec.ip_configurations().map(|one| one.name.as_str()).collect();
            (shown.len() == count && !shown.contains(&ours.as_str())).then_some(())
        }
    };
    // A new boot causes a read.
    stage.boot("n1", "boot-2").await?;
    stage.until("another takes its place", "n1", shows_others(2)).await?;
    stage.bind("n1", 3).await?;
    stage.until_assigned("n1", 3).await?;
    stage.until("three others serve the pods", "n1", shows_others(3)).await?;
    ensure!(names()[0] == ours, "{:?}", names());
    // Back again it is one like the others, and may go.
    move_primary(&stage, "ipconfig1").await?;
    stage.bind("n1", 1).await?;
    stage.until_assigned("n1", 4).await?;
    stage.unbind("n1", 4).await?;
    stage.until_holds("n1", 2).await
}

async fn a_write_that_is_refused_because_another_is_under_way_is_made_when_that_has_ended(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { refuses_second_write: true, ..Habits::default() };
    let stage = Stage::set(plane, azure(habits), sizing(2)).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let mut document = stage.nic("n1");
    document["tags"] = json!({ "owner": "somebody" });
    // Only theirs takes long, so that ours meets it on a busy machine, too.
    writes_take(&stage, 10.0)?;
    stage.put("Microsoft.Network/networkInterfaces/n1-nic", document).await?;
    writes_take(&stage, 0.2)?;
    stage.bind("n1", 4).await?;
    stage.until_holds("n1", 4).await?;
    let refused = stage.writes("n1").iter().filter(|write| write.status == 429).count();
    ensure!(refused > 0, "the two never met: {:?}", stage.writes("n1"));
    ensure!(stage.nic("n1")["tags"]["owner"] == "somebody", "theirs is undone");
    Ok(())
}

async fn a_stopped_machine_keeps_its_addresses_and_delays_no_node_whether_or_not_its_nic_is_writable(
    plane: &ControlPlane,
) -> Result<()> {
    for refuses_writes_to_stopped in [false, true] {
        let habits = Habits { refuses_writes_to_stopped, ..Habits::default() };
        let stage = Stage::set(plane, azure(habits), sizing(2)).await?;
        for node in ["n1", "n2"] {
            stage.node(node, None).await?;
            stage.until_holds(node, 2).await?;
        }
        let before = stage.held("n1");
        stage.sim.set_running("n1", false).await?;
        // Bound before the scheduler knows.
        stage.bind("n1", 4).await?;
        if refuses_writes_to_stopped {
            stage.until_condition("n1", RESERVED, "ResourceBusy").await?;
        } else {
            stage.until_holds("n1", 4).await?;
        }
        stage.bind("n2", 4).await?;
        stage.until_holds("n2", 4).await?;
        ensure!(before.is_subset(&stage.held("n1")), "{before:?} became {:?}", stage.held("n1"));
        stage.sim.set_running("n1", true).await?;
        stage.boot("n1", "boot-2").await?;
        stage.until_holds("n1", 4).await?;
        stage.until_assigned("n1", 4).await?;
        let refused = stage.writes("n1").iter().filter(|write| write.status == 409).count();
        ensure!((1..=3).contains(&refused) == refuses_writes_to_stopped, "{refused} refused");
    }
    Ok(())
}

async fn a_machine_that_is_being_deleted_delays_no_node_whether_or_not_its_nic_is_writable(
    plane: &ControlPlane,
) -> Result<()> {
    for refuses_writes_to_leaving in [false, true] {
        let habits = Habits { refuses_writes_to_leaving, ..Habits::default() };
        let stage = Stage::set(plane, azure(habits), sizing(2)).await?;
        let vm = stage.node("n1", None).await?;
        stage.node("n2", None).await?;
        for node in ["n1", "n2"] {
            stage.until_holds(node, 2).await?;
        }
        writes_take(&stage, 12.0)?;
        stage.delete(&vm.vm_id).await?;
        writes_take(&stage, 0.2)?;
        // Bound before the scheduler knows.
        stage.bind("n1", 4).await?;
        if refuses_writes_to_leaving {
            stage.until_condition("n1", RESERVED, "ResourceBusy").await?;
        } else {
            stage.until_holds("n1", 4).await?;
        }
        stage.bind("n2", 4).await?;
        stage.until_holds("n2", 4).await?;
        let refused = stage.writes("n1").iter().filter(|write| write.status == 409).count();
        ensure!((1..=3).contains(&refused) == refuses_writes_to_leaving, "{refused} refused");
        // The NIC outlives its machine.
        eventually("the machine is gone", Duration::from_secs(30), || async {
            Ok(stage.sim.machine("n1").is_err().then_some(()))
        })
        .await?;
        stage.delete_node("n1").await?;
        stage.until_gone("n1").await?;
        ensure!(stage.held("n1").is_empty(), "leaked: {:?}", stage.held("n1"));
    }
    Ok(())
}

async fn a_public_address_that_is_refused_for_its_zone_keeps_nothing_from_its_node_and_goes_with_its_pod(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { wants_zones: true, ..Habits::default() };
    let mut pool = sizing(4);
    pool["attachments"] = json!({ "publicAddressNamespaces": ["default"] });
    let stage = Stage::set(plane, azure(habits), pool).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let pod = stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    let condition = stage.until_condition("n1", ATTACHED, "AzureRefused").await?;
    ensure!(condition.message.contains("availability zone"), "{}", condition.message);
    let named = |seen: &NodeIPAllocation| kept(seen)?.public_address;
    let public = stage.until("spec names it", "n1", named).await?;
    ensure!(stage.exists(&public.id).await?, "{public:?} isn't there");
    // The node's own work goes on, and nothing is left of it.
    stage.bind("n1", 5).await?;
    stage.until_holds("n1", 6).await?;
    stage.remove("n1", &pod).await?;
    stage.until("it is forgotten", "n1", |seen| named(seen).is_none().then_some(())).await?;
    ensure!(!stage.exists(&public.id).await?, "{public:?} costs money still");
    Ok(())
}

async fn addresses_that_a_deleted_nic_holds_for_a_while_are_asked_for_no_more_often_by_many_nodes_than_by_one(
    plane: &ControlPlane,
) -> Result<()> {
    let habits = Habits { frees_after_seconds: 10.0, ..Habits::default() };
    let stage = Stage::set(plane, azure(habits), sizing(0)).await?;
    // A /28 gives eleven addresses, and four machines have one each.
    for (node, pods) in [("a", 4), ("b", 1), ("c", 1), ("d", 1)] {
        stage.node(node, Some("small")).await?;
        stage.bind(node, pods).await?;
        stage.until_holds(node, pods).await?;
    }
    // Together they want more than will come free.
    let needy = ["b", "c", "d"];
    for node in needy {
        stage.bind(node, 2).await?;
        stage.until_condition(node, RESERVED, "SubnetFull").await?;
    }
    let small = subnet("small");
    let usages = format!("{}/usages", small.split("/subnets/").next().unwrap_or_default());
    let taken = async || -> Result<f64> {
        let usages = stage.get(&usages).await?;
        let mut all = usages["value"].as_array().into_iter().flatten();
        let small = all.find(|one| one["id"].to_string().contains("small"));
        small.and_then(|one| one["currentValue"].as_f64()).context("no usage")
    };
    let before = taken().await?;
    let asked = || -> Vec<u16> {
        needy.iter().flat_map(|node| stage.writes(node)).map(|write| write.status).collect()
    };
    let refused = asked().len();
    stage.sim.delete_vm("a", false).await?;
    stage.delete_node("a").await?;
    // The node's own addresses count as free, and aren't yet.
    stage.until_gone("a").await?;
    let frees = eventually("Azure has freed them", Duration::from_secs(30), || async {
        Ok((taken().await? <= before - 5.0).then_some(()))
    });
    frees.await?;
    // All that has come free, shared by need, and half of that.
    let meanwhile = asked().len() - refused;
    ensure!((1..=2).contains(&meanwhile), "{meanwhile} asked for what wasn't there yet: {:?}", asked());
    // Then a probe finds it, or an edit of the pool first.
    stage.pool("default", sizing(1)).await?;
    eventually("they have all of it", Duration::from_secs(60), || async {
        let held = needy.map(|node| stage.held(node).len());
        ensure!(held.iter().sum::<usize>() == 8, "{held:?}");
        Ok(Some(()))
    })
    .await
}
