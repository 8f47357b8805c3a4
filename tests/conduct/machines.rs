//! Scale sets and other machines: reimaged, upgraded, scaled in, coming back under old ids, losing their
//! Nodes.

use crate::Test;
use crate::attachments::{attached, kept, pool};
use crate::reported::take;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use vnetpool_azure_sim::{Config, Effect, LogEntry, NewInstance, NewScaleSet, NewVm, VmInfo};
use vnetpool_crds::{NodeIPAllocation, condition, names};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;
use vnetpool_tests::wait::throughout;

pub const TESTS: &[Test] = crate::tests![
    addresses_wiped_off_a_nic_under_their_pods_are_restored_by_the_first_write,
    an_address_that_a_stranger_has_by_now_is_asked_for_once_and_its_pod_is_named,
    lost_addresses_that_azure_refuses_keep_no_other_from_pods,
    a_release_goes_on_while_a_restore_is_refused,
    lost_addresses_that_a_full_network_has_no_room_for_are_not_asked_for_again_and_again,
    an_instance_of_a_uniform_scale_set_serves_its_pods,
    a_model_upgrade_that_wipes_an_instance_is_seen_and_made_good,
    a_reimaged_instance_gets_new_addresses_when_it_boots,
    an_instance_that_is_scaled_in_leaves_nothing_behind,
    an_instance_id_that_comes_back_is_another_machine,
    an_instance_id_that_comes_back_while_no_operator_runs_is_another_machine,
    a_machine_under_an_old_id_that_never_joins_keeps_no_object_alive,
    a_node_deleted_while_its_vm_runs_keeps_its_addresses_and_a_new_one_takes_them_over,
    a_node_deleted_while_its_instance_runs_keeps_its_addresses_and_a_new_one_takes_them_over,
    a_node_registered_anew_keeps_its_record_while_it_has_no_provider_id,
    a_nic_left_without_its_vm_gives_everything_back,
    a_nic_that_a_stranger_has_taken_keeps_its_object_until_a_person_gives_it_up,
    a_machine_whose_node_comes_back_under_another_name_keeps_no_object_under_the_old_one,
    a_transient_404_leaves_the_record_of_a_nics_addresses,
    a_subscription_that_azure_does_not_know_ends_no_record_before_a_person_confirms,
    a_subscription_that_is_not_found_for_a_while_costs_living_nodes_nothing,
    a_third_wipe_of_a_nic_in_a_day_is_reported_as_a_pattern_with_its_remedy,
    a_node_reports_azures_refusals_of_its_instance_and_is_served_after_them,
    the_next_leader_goes_on_counting_for_how_long_a_resource_group_has_been_gone,
];

pub fn sizing() -> Value {
    json!({ "sizing": { "minimum": 0, "warm": 1, "batch": 1 } })
}

/// The node of the instance `pool_0`, whose name is made of the set's prefix and the instance's id.
pub const NODE: &str = "pool000000";

pub async fn instance(stage: &Stage<'_>) -> Result<VmInfo> {
    Ok(stage.sim.add_instance("pool", NewInstance { instance_id: Some(0), ..NewInstance::default() }).await?)
}

/// A scale set with one instance and its Node.
pub async fn uniform<'a>(plane: &'a ControlPlane) -> Result<(Stage<'a>, VmInfo)> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() })?;
    let vm = instance(&stage).await?;
    stage.join(NODE, &vm.provider_id).await?;
    Ok((stage, vm))
}

/// Our reservations on any NIC in ARM, by id in lower case: address by name.
pub fn held(stage: &Stage<'_>, nic: &str) -> BTreeMap<String, String> {
    let state = stage.sim.state();
    let nics = state["nics"].as_array().into_iter().flatten();
    let found = nics.filter(|one| one["id"].as_str().is_some_and(|id| id.eq_ignore_ascii_case(nic)));
    let all = found.flat_map(|one| one["ip_configurations"].as_array().into_iter().flatten());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ours = all.filter(|one| one["name"].as_str().is_some_and(|name| name.starts_with("vnp-")));
    ours.map(|one| (text(&one["name"]), text(&one["address"]))).collect()
}

/// As the agent reports on the present `spec`: a report on an earlier one proves nothing.
pub fn is_backed(seen: &NodeIPAllocation) -> bool {
    let taken_up = seen.status.as_ref().and_then(|status| status.observed_generation);
    taken_up == seen.metadata.generation
        && find(seen, condition::ASSIGNMENTS_BACKED).is_some_and(|one| one.status == "True")
}

/// Waits until so many pods have addresses that the NIC holds, and gives their addresses.
pub async fn until_served(stage: &Stage<'_>, node: &str, pods: usize) -> Result<BTreeSet<String>> {
    let served = |seen: &NodeIPAllocation| {
        let spec: BTreeSet<String> =
            seen.spec.ip_configurations().map(|one| one.address.replace("/32", "")).collect();
        let assigned: BTreeSet<String> =
            stage.agents.addresses(node).values().map(ToString::to_string).collect();
        (assigned.len() == pods && assigned.is_subset(&spec) && is_backed(seen)).then_some(assigned)
    };
    stage.until(&format!("{pods} pods have addresses"), node, served).await
}

/// Everything but the primary ipConfiguration goes, as by another client's write.
pub async fn wipe(stage: &Stage<'_>, node: &str) -> Result<()> {
    let primary = stage.nic(node)["properties"]["ipConfigurations"][0].clone();
    stage
        .sim
        .patch_nic(&format!("{node}-nic"), &json!({ "properties": { "ipConfigurations": [primary] } }))
        .await?;
    stage.sim.clear_log();
    Ok(())
}

async fn a_third_wipe_of_a_nic_in_a_day_is_reported_as_a_pattern_with_its_remedy(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 2).await?;
    stage.until_holds("n1", 2).await?;
    for round in 1..=3 {
        ensure!(
            find(&stage.allocation("n1").await?, condition::ADDRESSES_KEPT).is_none(),
            "reported before round {round}"
        );
        wipe(&stage, "n1").await?;
        // The write for one more pod meets a NIC that has changed.
        stage.bind("n1", 1).await?;
        stage.until_holds("n1", 2 + round).await?;
        // The next operator goes on counting.
        stage.kill().await?;
        stage.start().await?;
    }
    let reported = stage.until_condition("n1", condition::ADDRESSES_KEPT, "TakenOffByOthers").await?;
    ensure!(
        reported.message.contains("n1-nic") && reported.message.contains("ignore_changes"),
        "{}",
        reported.message
    );
    stage.until_reported("n1", "TakenOffByOthers", &["Node", "NodeIPAllocation"]).await
}

/// The addresses that a write asks for by themselves, the node's own left out.
pub fn asked_for(write: &LogEntry) -> BTreeSet<String> {
    let all = write.request.as_ref().and_then(|body| body["properties"]["ipConfigurations"].as_array());
    let statics = all.into_iter().flatten().map(|one| &one["properties"]);
    statics
        .filter(|one| one["privateIPAllocationMethod"] == "Static")
        .filter_map(|one| one["privateIPAddress"].as_str().map(str::to_owned))
        .collect()
}

async fn addresses_wiped_off_a_nic_under_their_pods_are_restored_by_the_first_write(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    let before = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    wipe(&stage, "n1").await?;
    // Growth meets the other's write, and with it its effect.
    stage.bind("n1", 2).await?;
    let after = until_served(&stage, "n1", 5).await?;
    ensure!(after.is_superset(&before), "{before:?} became {after:?}");
    let writes: Vec<LogEntry> = stage.writes("n1").into_iter().filter(|one| one.status < 300).collect();
    let first = writes.first().context("nothing was written")?;
    // One of the pods that came after it may have got the address that was warm before.
    ensure!(asked_for(first).is_superset(&before), "the first write asks for {:?}", asked_for(first));
    stage.until_events("n1", "AddressesRestored", 1).await.map(drop)
}

async fn an_address_that_a_stranger_has_by_now_is_asked_for_once_and_its_pod_is_named(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    let before = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    wipe(&stage, "n1").await?;
    let stranger = stage.sim.add_vm(NewVm { name: "stranger".into(), ..NewVm::default() }).await?;
    let lost = stranger.address.to_string();
    ensure!(before.contains(&lost), "{lost} is none of {before:?}");
    stage.bind("n1", 1).await?;
    let (missing, before) = (lost.clone(), before);
    let rest = move |seen: &NodeIPAllocation| {
        let spec: BTreeSet<String> =
            seen.spec.ip_configurations().map(|one| one.address.replace("/32", "")).collect();
        let restored = before.iter().filter(|one| **one != missing).all(|one| spec.contains(one));
        let is_named = find(seen, condition::AGENT_REPORTING)?.reason == "AddressVanished";
        let settled = find(seen, condition::RESERVED)?.status == "True";
        (restored && !spec.contains(&missing) && spec.len() >= 4 && settled && is_named).then_some(())
    };
    stage.until("the others are back, and one is reported as lost", "n1", rest).await?;
    let tries = stage.writes("n1").into_iter().filter(|one| asked_for(one).contains(&lost)).count();
    ensure!(tries == 1, "{lost} was asked for {tries} times");
    Ok(())
}

async fn lost_addresses_that_azure_refuses_keep_no_other_from_pods(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    let before = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    // An operator that starts reads the NIC before it writes, so that its first write asks for the lost
    // addresses.
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    let body = json!({ "error": { "code": "Novel", "message": "Not with these addresses." } });
    let refusal = Effect::Status { status: 400, body, headers: Default::default() };
    stage.fault("PUT", "/n1-nic", Some(1), refusal);
    stage.bind("n1", 2).await?;
    stage.start().await?;
    let grown = |_: &_| stage.writes("n1").into_iter().find(|one| one.status < 300);
    let grown = stage.until("the node grows", "n1", grown).await?;
    let first = stage.writes("n1").into_iter().next().context("nothing was written")?;
    ensure!(first.status == 400 && asked_for(&first).is_superset(&before), "{:?}", asked_for(&first));
    ensure!(asked_for(&grown).is_disjoint(&before), "it asks for {:?} again", asked_for(&grown));
    Ok(())
}

async fn a_release_goes_on_while_a_restore_is_refused(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing, "cooldown": "0s" })).await?;
    stage.node("n1", None).await?;
    let mut pods = vec![];
    for _ in 0..3 {
        pods.push(stage.pod("n1", json!({})).await?);
    }
    let before = until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 3).await?;
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    for address in &before {
        take(&stage, address).await?;
    }
    let body = json!({ "error": { "code": "Novel", "message": "Not with these addresses." } });
    let refusal = Effect::Status { status: 400, body, headers: Default::default() };
    stage.fault("PUT", "/n1-nic", Some(1), refusal);
    for _ in 0..2 {
        pods.push(stage.pod("n1", json!({})).await?);
    }
    stage.start().await?;
    stage.until_holds("n1", 5).await?;
    // One that has lost its address stays.
    for pod in &pods[1..] {
        stage.remove("n1", pod).await?;
    }
    stage.until_holds("n1", 1).await?;
    let writes = stage.writes("n1");
    let (first, rest) = writes.split_first().context("nothing was written")?;
    ensure!(first.status == 400 && asked_for(first) == before, "{:?}", asked_for(first));
    ensure!(rest.iter().all(|one| asked_for(one).is_disjoint(&before)), "they are asked for again: {rest:?}");
    ensure!(!is_backed(&stage.allocation("n1").await?), "the lost address is back");
    Ok(())
}

async fn lost_addresses_that_a_full_network_has_no_room_for_are_not_asked_for_again_and_again(
    plane: &ControlPlane,
) -> Result<()> {
    // The machine's own and four of ours.
    let stage = Stage::set(plane, Config { network_addresses: 5, ..quick() }, sizing()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    until_served(&stage, "n1", 3).await?;
    stage.until_holds("n1", 4).await?;
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    for name in ["other", "another"] {
        stage.sim.add_vm(NewVm { name: name.into(), ..NewVm::default() }).await?;
    }
    // An operator that starts reads the NIC before it writes.
    stage.bind("n1", 2).await?;
    stage.start().await?;
    stage.until_condition("n1", condition::RESERVED, "VirtualNetworkFull").await?;
    let refused = || stage.writes("n1").iter().filter(|one| one.status == 400).count();
    throughout("it isn't asked for again and again", Duration::from_secs(8), async || {
        // With growth, with less of it, and without.
        ensure!(refused() <= 6, "{} writes in vain", refused());
        Ok(())
    })
    .await
}

async fn an_instance_of_a_uniform_scale_set_serves_its_pods(plane: &ControlPlane) -> Result<()> {
    let (stage, vm) = uniform(plane).await?;
    stage.bind(NODE, 3).await?;
    until_served(&stage, NODE, 3).await?;
    stage.until_offers(NODE, 4).await?;
    ensure!(held(&stage, &vm.nic_id).len() == 4);
    let asked = stage.asked();
    let to_instance = asked.iter().filter(|one| one.method == "PUT");
    for write in to_instance {
        ensure!(write.path.eq_ignore_ascii_case(&vm.vm_id), "{} was written", write.path);
        ensure!(
            write.if_match.is_some()
                && write.request.as_ref().is_some_and(|body| body["properties"]["storageProfile"].is_null())
        );
    }
    stage.unbind(NODE, 3).await?;
    stage.pool("default", json!({ "sizing": { "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" }, "cooldown": "0s" })).await?;
    stage.until_offers(NODE, 0).await?;
    ensure!(held(&stage, &vm.nic_id).is_empty());
    Ok(())
}

async fn a_node_reports_azures_refusals_of_its_instance_and_is_served_after_them(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() })?;
    let vm = instance(&stage).await?;
    let met = [(429, "TooManyRequests", "Throttled"), (409, "AnotherOperationInProgress", "ResourceBusy")];
    let refuse = |status, code: &str| {
        let body = json!({ "error": { "code": code, "message": "words" } });
        let headers = [("retry-after".to_owned(), "1".to_owned())].into();
        stage.fault("PUT", "/virtualMachineScaleSets/", None, Effect::Status { status, body, headers })
    };
    // The one that was ordered first acts until it is lifted.
    let faults = met.map(|(status, code, _)| refuse(status, code));
    stage.join(NODE, &vm.provider_id).await?;
    for (fault, (_, _, reason)) in faults.into_iter().zip(met) {
        stage.until_condition(NODE, condition::RESERVED, reason).await?;
        stage.sim.lift_fault(fault)?;
    }
    stage.until_offers(NODE, 1).await?;
    Ok(())
}

async fn a_model_upgrade_that_wipes_an_instance_is_seen_and_made_good(plane: &ControlPlane) -> Result<()> {
    let (stage, vm) = uniform(plane).await?;
    stage.bind(NODE, 3).await?;
    let before = until_served(&stage, NODE, 3).await?;
    stage.until_offers(NODE, 4).await?;
    stage.sim.upgrade_instance("pool_0").await?;
    let stranger = stage.sim.add_vm(NewVm { name: "stranger".into(), ..NewVm::default() }).await?;
    let lost = stranger.address.to_string();
    ensure!(before.contains(&lost), "{lost} is none of {before:?}");
    stage.bind(NODE, 1).await?;
    let made_good = |seen: &NodeIPAllocation| {
        let spec: BTreeSet<String> =
            seen.spec.ip_configurations().map(|one| one.address.replace("/32", "")).collect();
        let agent = find(seen, condition::AGENT_REPORTING)?;
        let settled = find(seen, condition::RESERVED)?.status == "True";
        let on_nic: BTreeSet<String> = held(&stage, &vm.nic_id).into_values().collect();
        // The fourth pod and those whose addresses are back.
        let served = seen.status.as_ref()?.assigned == 3;
        (settled && served && spec.len() >= 4 && spec == on_nic && agent.reason == "AddressVanished")
            .then_some(spec)
    };
    let spec = stage.until("the instance holds enough again", NODE, made_good).await?;
    ensure!(!spec.contains(&lost));
    // No address can be asked for here, but Azure gives the lowest free ones: those in use are their pods'
    // again.
    let back: BTreeSet<&String> = before.iter().filter(|one| **one != lost).collect();
    ensure!(back.iter().all(|one| spec.contains(*one)), "{back:?} are not in {spec:?}");
    // The pod that lost its own ends, and all is well.
    stage.unbind(NODE, 4).await?;
    stage.until("nothing is unbacked", NODE, |seen| is_backed(seen).then_some(())).await
}

async fn a_reimaged_instance_gets_new_addresses_when_it_boots(plane: &ControlPlane) -> Result<()> {
    let (stage, vm) = uniform(plane).await?;
    stage.bind(NODE, 2).await?;
    until_served(&stage, NODE, 2).await?;
    stage.until_offers(NODE, 3).await?;
    let names: BTreeSet<String> = held(&stage, &vm.nic_id).into_keys().collect();
    stage.sim.upgrade_instance("pool_0").await?;
    stage.boot(NODE, "boot-2").await?;
    let booted = |seen: &NodeIPAllocation| {
        (seen.spec.boot_id == "boot-2"
            && seen.spec.addresses() >= 3
            && seen.status.as_ref()?.boot_id == "boot-2")
            .then_some(())
    };
    stage.until("the new boot has addresses", NODE, booted).await?;
    until_served(&stage, NODE, 2).await?;
    let after: BTreeSet<String> = held(&stage, &vm.nic_id).into_keys().collect();
    ensure!(after.len() >= 3 && after.is_disjoint(&names), "{after:?}");
    Ok(())
}

async fn an_instance_that_is_scaled_in_leaves_nothing_behind(plane: &ControlPlane) -> Result<()> {
    let (stage, _) = uniform(plane).await?;
    stage.bind(NODE, 1).await?;
    stage.until_offers(NODE, 2).await?;
    stage.sim.delete_vm("pool_0", false).await?;
    stage.delete_node(NODE).await?;
    stage.until_gone(NODE).await
}

async fn an_instance_id_that_comes_back_is_another_machine(plane: &ControlPlane) -> Result<()> {
    let (stage, vm) = uniform(plane).await?;
    another_machine_is_served(&stage, &vm, false).await
}

/// Then no operator has seen that the Node was gone in between.
async fn an_instance_id_that_comes_back_while_no_operator_runs_is_another_machine(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = uniform(plane).await?;
    another_machine_is_served(&stage, &vm, true).await
}

/// The machine and its Node go, and others take their ids and names, perhaps while there is no operator.
async fn another_machine_is_served(stage: &Stage<'_>, vm: &VmInfo, unseen: bool) -> Result<()> {
    stage.bind(NODE, 2).await?;
    let shown = stage.until_offers(NODE, 3).await?;
    if unseen {
        stage.kill().await?;
    }
    stage.sim.delete_vm("pool_0", false).await?;
    let again = instance(stage).await?;
    ensure!(again.provider_id == vm.provider_id && again.mac != vm.mac);
    stage.delete_node(NODE).await?;
    stage.join(NODE, &again.provider_id).await?;
    if unseen {
        stage.start().await?;
    }
    let is_new = |seen: &NodeIPAllocation| {
        let nic = seen.spec.interfaces.first().filter(|nic| nic.mac == again.mac)?;
        (!nic.ip_configurations.is_empty()).then(|| seen.clone())
    };
    let now = stage.until("the new machine is served", NODE, is_new).await?;
    ensure!(now.spec.node_uid != shown.spec.node_uid);
    let names = |seen: &NodeIPAllocation| {
        seen.spec.ip_configurations().map(|one| one.name.clone()).collect::<BTreeSet<_>>()
    };
    ensure!(names(&now).is_disjoint(&names(&shown)), "a name was used twice");
    Ok(())
}

async fn a_machine_under_an_old_id_that_never_joins_keeps_no_object_alive(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _) = uniform(plane).await?;
    stage.bind(NODE, 1).await?;
    stage.until_offers(NODE, 2).await?;
    stage.sim.delete_vm("pool_0", false).await?;
    instance(&stage).await?;
    stage.delete_node(NODE).await?;
    stage.until_gone(NODE).await
}

async fn a_node_deleted_while_its_vm_runs_keeps_its_addresses_and_a_new_one_takes_them_over(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let vm = stage.node("n1", None).await?;
    replace_the_node(&stage, "n1", &vm).await
}

async fn a_node_deleted_while_its_instance_runs_keeps_its_addresses_and_a_new_one_takes_them_over(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = uniform(plane).await?;
    replace_the_node(&stage, NODE, &vm).await
}

/// The Node object goes while its machine runs, and another takes its place.
async fn replace_the_node(stage: &Stage<'_>, node: &str, vm: &VmInfo) -> Result<()> {
    stage.bind(node, 2).await?;
    until_served(stage, node, 2).await?;
    stage.until_offers(node, 3).await?;
    let before = held(stage, &vm.nic_id);
    let uid = stage.allocation(node).await?.spec.node_uid;
    stage.delete_node(node).await?;
    stage.until_condition(node, condition::READY, "NodeGone").await?;
    ensure!(held(stage, &vm.nic_id) == before);
    stage.join(node, &vm.provider_id).await?;
    let adopted = |seen: &NodeIPAllocation| (seen.spec.node_uid != uid).then_some(());
    stage.until("the new Node has it", node, adopted).await?;
    until_served(stage, node, 2).await?;
    let after = held(stage, &vm.nic_id);
    let kept = before.iter().all(|(name, address)| after.get(name) == Some(address));
    ensure!(kept, "{before:?} became {after:?}");
    Ok(())
}

/// As a kubelet does it before the cloud's controller has reconciled.
async fn a_node_registered_anew_keeps_its_record_while_it_has_no_provider_id(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let vm = stage.node("n1", None).await?;
    stage.bind("n1", 2).await?;
    until_served(&stage, "n1", 2).await?;
    stage.until_holds("n1", 3).await?;
    let (before, spec) = (held(&stage, &vm.nic_id), stage.allocation("n1").await?.spec);
    stage.delete_node("n1").await?;
    stage.until_condition("n1", condition::READY, "NodeGone").await?;
    stage.join("n1", "").await?;
    stage.until_condition("n1", condition::INTERFACE_FOUND, "ProviderIDUnusable").await?;
    let now = stage.allocation("n1").await?.spec;
    ensure!(now == spec, "the record is lost: {now:?}");
    // It isn't, either, if that Node goes again.
    stage.delete_node("n1").await?;
    stage.until_condition("n1", condition::READY, "NodeGone").await?;
    ensure!(held(&stage, &vm.nic_id) == before);
    stage.join("n1", "").await?;
    stage.provide("n1", &vm.provider_id).await?;
    stage
        .until("the new Node has it", "n1", |seen| (seen.spec.node_uid != spec.node_uid).then_some(()))
        .await?;
    until_served(&stage, "n1", 2).await?;
    ensure!(held(&stage, &vm.nic_id) == before, "{before:?} became {:?}", held(&stage, &vm.nic_id));
    Ok(())
}

async fn a_nic_left_without_its_vm_gives_everything_back(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let vm = stage.node("n1", None).await?;
    stage.bind("n1", 1).await?;
    stage.until_offers("n1", 2).await?;
    stage.sim.delete_vm("n1", true).await?;
    stage.delete_node("n1").await?;
    stage.until_gone("n1").await?;
    ensure!(held(&stage, &vm.nic_id).is_empty(), "{:?}", held(&stage, &vm.nic_id));
    Ok(())
}

/// Orders 404s of this code for reads of NICs: so many, or all. Gives the fault's id.
pub fn not_found(stage: &Stage<'_>, code: &str, count: Option<u64>) -> u64 {
    let body = json!({ "error": { "code": code, "message": "It could not be found." } });
    let effect = Effect::Status { status: 404, body, headers: Default::default() };
    stage.fault("GET", "/networkInterfaces/", count, effect)
}

async fn a_nic_that_a_stranger_has_taken_keeps_its_object_until_a_person_gives_it_up(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    let vm = stage.node("n1", None).await?;
    stage.pod("n1", json!({ names::PUBLIC_ADDRESS: "true" })).await?;
    stage.until_condition("n1", condition::ATTACHED, "Attached").await?;
    stage.until_holds("n1", 4).await?;
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    let public = entry.public_address.context("no public address")?.id;
    stage.kill().await?;
    let mut document = stage.get_vm(&vm.vm_id).await?;
    stage.sim.delete_vm("n1", true).await?;
    let stranger = vm.vm_id.replace("/n1", "/stranger");
    document["name"] = json!("stranger");
    document["id"] = json!(stranger);
    stage.put_vm(&stranger, document).await?;
    stage.delete_node("n1").await?;
    stage.start().await?;
    let reported = stage.until_condition("n1", condition::READY, "NodeGone").await?;
    ensure!(
        reported.message.contains("stranger") && reported.message.contains("vnetpool.io/gone=true"),
        "{reported:?}"
    );
    let before = stage.held("n1");
    stage.annotate::<NodeIPAllocation>("n1", names::GONE, Some("true")).await?;
    stage.until_gone("n1").await?;
    // What the stranger has stays as it is.
    ensure!(before.len() == 4 && stage.held("n1") == before, "{before:?} became {:?}", stage.held("n1"));
    ensure!(attached(&stage, "n1", &entry.name)? == json!([null, public]), "taken off");
    ensure!(stage.exists(&public).await?, "{public} was deleted");
    Ok(())
}

async fn a_machine_whose_node_comes_back_under_another_name_keeps_no_object_under_the_old_one(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    let vm = stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let pod = stage.pod("n1", json!({ names::PUBLIC_ADDRESS: "true" })).await?;
    stage.until_condition("n1", condition::ATTACHED, "Attached").await?;
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    let public = entry.public_address.context("no public address")?.id;
    let before = stage.held("n1");
    stage.delete_node("n1").await?;
    stage.remove("n1", &pod).await?;
    stage.join("renamed", &vm.provider_id).await?;
    stage.until_offers("renamed", 4).await?;
    stage.until_gone("n1").await?;
    ensure!(stage.held("n1") == before, "{before:?} became {:?}", stage.held("n1"));
    eventually("the public address is deleted", Duration::from_secs(30), || async {
        Ok((!stage.exists(&public).await?).then_some(()))
    })
    .await
}

async fn a_transient_404_leaves_the_record_of_a_nics_addresses(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let vm = stage.node("n1", None).await?;
    stage.bind("n1", 2).await?;
    until_served(&stage, "n1", 2).await?;
    stage.until_offers("n1", 3).await?;
    let before = held(&stage, &vm.nic_id);
    not_found(&stage, "ResourceNotFound", Some(1));
    stage.delete_node("n1").await?;
    stage.until_condition("n1", condition::READY, "NodeGone").await?;
    ensure!(held(&stage, &vm.nic_id) == before, "{before:?} became {:?}", held(&stage, &vm.nic_id));
    ensure!(stage.sim.faults().iter().all(|fault| fault.hits == 1), "{:?}", stage.sim.faults());
    Ok(())
}

async fn a_subscription_that_azure_does_not_know_ends_no_record_before_a_person_confirms(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let vm = stage.node("n1", None).await?;
    stage.bind("n1", 1).await?;
    stage.until_offers("n1", 2).await?;
    let before = held(&stage, &vm.nic_id);
    not_found(&stage, "SubscriptionNotFound", None);
    stage.delete_node("n1").await?;
    let reported = stage.until_condition("n1", condition::READY, "ScopeMissing").await?;
    ensure!(reported.message.contains("vnetpool.io/gone=true"), "{}", reported.message);
    ensure!(held(&stage, &vm.nic_id) == before && !before.is_empty());
    stage.annotate::<NodeIPAllocation>("n1", names::GONE, Some("true")).await?;
    stage.until_gone("n1").await
}

async fn a_subscription_that_is_not_found_for_a_while_costs_living_nodes_nothing(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let nodes = ["n1", "n2"];
    let mut nics = vec![];
    for node in nodes {
        nics.push(stage.node(node, None).await?.nic_id);
        stage.bind(node, 2).await?;
        stage.until_holds(node, 3).await?;
    }
    let state = async || -> Result<_> {
        let mut state = vec![];
        for (node, nic) in nodes.into_iter().zip(&nics) {
            let spec = stage.allocation(node).await?.spec.interfaces;
            state.push((held(&stage, nic), stage.agents.addresses(node), spec));
        }
        Ok(state)
    };
    let before = state().await?;
    // The next operator finds it so, beside a node that has booted.
    stage.kill().await?;
    let fault = not_found(&stage, "SubscriptionNotFound", None);
    stage.sim.clear_log();
    stage.boot("n1", "boot-2").await?;
    stage.start().await?;
    for node in nodes {
        stage.bind(node, 2).await?;
        stage.until_condition(node, condition::READY, "ScopeMissing").await?;
    }
    let nothing_goes = async || {
        let after = state().await?;
        for (before, after) in before.iter().zip(&after) {
            ensure!(before.0 == after.0 && before.2 == after.2, "{before:?} became {after:?}");
        }
        // The boot has ended the sandboxes of n1.
        let (before, after) = (&before[1].1, &after[1].1);
        ensure!(before.iter().all(|pod| after.iter().any(|one| one == pod)), "{before:?} became {after:?}");
        stage.nothing_was_written()
    };
    throughout("nothing is given up", Duration::from_secs(5), nothing_goes).await?;
    stage.sim.lift_fault(fault)?;
    // An edit has all nodes try at once, which do so every two minutes otherwise.
    stage.pool("default", json!({ "sizing": { "minimum": 0, "warm": 2, "batch": 1 } })).await?;
    for node in nodes {
        stage.until_holds(node, 6).await?;
    }
    Ok(())
}

async fn the_next_leader_goes_on_counting_for_how_long_a_resource_group_has_been_gone(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 1).await?;
    stage.until_offers("n1", 2).await?;
    not_found(&stage, "ResourceGroupNotFound", None);
    stage.delete_node("n1").await?;
    let reported = stage.until_condition("n1", condition::GROUP_FOUND, "ScopeMissing").await?;
    ensure!(reported.message.contains("for 24 h"), "{}", reported.message);
    stage.kill().await?;
    // It has been so for a day.
    let mut conditions = stage.allocation("n1").await?.status.context("no status")?.conditions;
    for one in conditions.iter_mut().filter(|one| one.type_ == condition::GROUP_FOUND) {
        one.last_transition_time.0 -= Duration::from_secs(24 * 3600);
    }
    let patch = json!({ "status": { "conditions": conditions } });
    let api = Api::<NodeIPAllocation>::all(stage.client.clone());
    api.patch_status("n1", &PatchParams::default(), &Patch::Merge(patch)).await?;
    stage.start().await?;
    stage.until_gone("n1").await
}
