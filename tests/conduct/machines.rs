//! Scale sets and other machines: reimaged, upgraded, scaled in, coming back under old ids.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use vnetpool_azure_sim::{Effect, NewInstance, NewScaleSet, NewVm, VmInfo};
use vnetpool_crds::{NodeIPAllocation, condition};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    an_instance_of_a_uniform_scale_set_serves_its_pods,
    a_model_upgrade_that_wipes_an_instance_is_seen_and_made_good,
    a_reimaged_instance_gets_new_addresses_when_it_boots,
    an_instance_that_is_scaled_in_leaves_nothing_behind,
    an_instance_id_that_comes_back_is_another_machine,
    an_instance_id_that_comes_back_while_no_operator_runs_is_another_machine,
    a_machine_under_an_old_id_that_never_joins_keeps_no_object_alive,
    a_node_reports_azures_refusals_of_its_instance_and_is_served_after_them,
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
    let met = [
        (409, "OperationNotAllowed", "The VM 'pool_0' is marked for deletion.", "ResourceBusy"),
        (429, "TooManyRequests", "words", "Throttled"),
        (409, "AnotherOperationInProgress", "words", "ResourceBusy"),
    ];
    let refuse = |status, code: &str, message: &str| {
        let body = json!({ "error": { "code": code, "message": message } });
        let headers = [("retry-after".to_owned(), "1".to_owned())].into();
        stage.fault("PUT", "/virtualMachineScaleSets/", None, Effect::Status { status, body, headers })
    };
    // The one that was ordered first acts until it is lifted.
    let faults = met.map(|(status, code, message, _)| refuse(status, code, message));
    stage.join(NODE, &vm.provider_id).await?;
    for (fault, (_, _, _, reason)) in faults.into_iter().zip(met) {
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
