//! Nodes, machines, NICs and subscriptions that are gone, or seem to be: what stays, and for how long.

use crate::Test;
use crate::attachments::{attached, kept, pool};
use crate::machines::{NODE, held, sizing, uniform, until_served};
use crate::nics;
use crate::stage::{Stage, find, quick, subnet};
use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vnetpool_azure_sim::{Effect, VmInfo};
use vnetpool_crds::{NodeIPAllocation, condition, names};
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::wait::throughout;
use vnetpool_tests::{eventually, snippets};

pub const TESTS: &[Test] = crate::tests![
    a_node_deleted_while_its_vm_runs_keeps_its_addresses_and_a_new_one_takes_them_over,
    a_node_deleted_while_its_instance_runs_keeps_its_addresses_and_a_new_one_takes_them_over,
    a_node_registered_anew_keeps_its_record_while_it_has_no_provider_id,
    a_nic_left_without_its_vm_gives_everything_back,
    a_success_that_takes_nothing_off_the_nic_of_a_gone_node_leaves_its_record,
    a_gone_node_of_which_one_nic_is_in_use_and_another_has_gone_goes_on_reporting_the_first,
    a_nic_that_a_stranger_has_taken_keeps_its_object_until_a_person_gives_it_up,
    a_machine_whose_node_comes_back_under_another_name_keeps_no_object_under_the_old_one,
    a_nic_of_a_living_node_keeps_its_addresses_though_azure_leaves_out_its_vm,
    a_transient_404_leaves_the_record_of_a_nics_addresses,
    an_old_answer_about_a_nic_leaves_the_record_of_its_addresses,
    an_answer_that_leaves_out_the_vm_of_a_nic_releases_none_of_its_addresses,
    a_subscription_that_azure_does_not_know_ends_no_record_before_a_person_confirms,
    a_subscription_that_is_not_found_for_a_while_costs_living_nodes_nothing,
    the_next_leader_goes_on_counting_for_how_long_a_resource_group_has_been_gone,
];

/// Orders 404s of this code for reads of NICs: so many, or all. Gives the fault's id.
pub fn not_found(stage: &Stage<'_>, code: &str, count: Option<u64>) -> u64 {
    let body = json!({ "error": { "code": code, "message": "It could not be found." } });
    let effect = Effect::Status { status: 404, body, headers: Default::default() };
    stage.fault("GET", "/networkInterfaces/", count, effect)
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

/// `n1`, whose VM is gone without its NIC.
async fn without_its_vm(plane: &ControlPlane) -> Result<(Stage<'_>, VmInfo)> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let vm = stage.node("n1", None).await?;
    stage.bind("n1", 1).await?;
    stage.until_offers("n1", 2).await?;
    stage.sim.delete_vm("n1", true).await?;
    Ok((stage, vm))
}

async fn gives_everything_back(stage: &Stage<'_>, vm: &VmInfo) -> Result<()> {
    stage.until_gone("n1").await?;
    ensure!(held(stage, &vm.nic_id).is_empty(), "{:?}", held(stage, &vm.nic_id));
    Ok(())
}

async fn a_nic_left_without_its_vm_gives_everything_back(plane: &ControlPlane) -> Result<()> {
    let (stage, vm) = without_its_vm(plane).await?;
    stage.delete_node("n1").await?;
    gives_everything_back(&stage, &vm).await
}

async fn a_success_that_takes_nothing_off_the_nic_of_a_gone_node_leaves_its_record(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, vm) = without_its_vm(plane).await?;
    let unchanged = Effect::Status { status: 200, body: stage.nic("n1"), headers: Default::default() };
    let fault = stage.fault("PUT", "/n1-nic", None, unchanged);
    stage.delete_node("n1").await?;
    stage.until_condition("n1", condition::READY, "WithoutEffect").await?;
    ensure!(!held(&stage, &vm.nic_id).is_empty(), "the NIC was written all the same");
    stage.sim.lift_fault(fault)?;
    gives_everything_back(&stage, &vm).await
}

async fn a_gone_node_of_which_one_nic_is_in_use_and_another_has_gone_goes_on_reporting_the_first(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    stage.pool("default", json!({ "subnetID": subnet("small"), "sizing": sizing })).await?;
    nics::node(&stage, "n1", "nodes", "small", 0).await?;
    stage.start_with(|config| config.waits.second_read = Duration::from_secs(3)).await?;
    stage.until_offers("n1", 2).await?;
    let body = json!({ "error": { "code": "ResourceNotFound", "message": "It could not be found." } });
    let missing = Effect::Status { status: 404, body, headers: Default::default() };
    let fault = stage.fault("GET", "/n1-second", None, missing);
    stage.delete_node("n1").await?;
    stage.until_condition("n1", condition::READY, "NodeGone").await?;
    let struck = || stage.sim.faults().into_iter().find(|one| one.id == fault).map_or(0, |one| one.hits);
    let (shown, before) = (Arc::new(Mutex::new(vec![])), struck());
    let seen = shown.clone();
    stage.follow(move |object: NodeIPAllocation| {
        lock(&seen).extend(find(&object, condition::READY).map(|one| one.reason));
    });
    // An event of its object has the VM and both NICs read again.
    stage.annotate::<NodeIPAllocation>("n1", names::RELEASE, Some("true")).await?;
    stage.until_struck(fault, before + 1).await?;
    throughout("it reports that the VM lives", Duration::from_secs(2), async || {
        let shown = lock(&shown);
        ensure!(shown.iter().all(|reason| reason == "NodeGone"), "{shown:?}");
        Ok(())
    })
    .await?;
    // Once asked is enough by now.
    ensure!(struck() == before + 1, "asked for {} times", struck() - before);
    Ok(())
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

async fn a_nic_of_a_living_node_keeps_its_addresses_though_azure_leaves_out_its_vm(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    let vm = stage.node("n1", None).await?;
    stage.until_offers("n1", 4).await?;
    let before = stage.held("n1");
    stage.kill().await?;
    let mut body = stage.nic("n1");
    body["properties"].as_object_mut().context("no properties")?.remove("virtualMachine");
    stage.fault("GET", "/n1-nic", None, Effect::Garble { body });
    stage.delete_node("n1").await?;
    stage.join("renamed", &vm.provider_id).await?;
    // The new object is to be there before the second answer.
    stage.start_with(|config| config.waits.second_read = Duration::from_secs(5)).await?;
    stage.until_offers("renamed", 4).await?;
    stage.until_gone("n1").await?;
    ensure!(stage.held("n1") == before, "{before:?} became {:?}", stage.held("n1"));
    Ok(())
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

/// As the NIC was before it had a VM.
async fn an_old_answer_about_a_nic_leaves_the_record_of_its_addresses(plane: &ControlPlane) -> Result<()> {
    shows_itself_once_as(plane, |properties| {
        properties.remove("virtualMachine").context("it has no VM")?;
        let all = properties.get_mut("ipConfigurations").and_then(Value::as_array_mut);
        all.context("no ipConfigurations")?.truncate(1);
        Ok(())
    })
    .await
}

/// Its ETag is the current one, so a write would go through.
async fn an_answer_that_leaves_out_the_vm_of_a_nic_releases_none_of_its_addresses(
    plane: &ControlPlane,
) -> Result<()> {
    shows_itself_once_as(plane, |properties| {
        properties.remove("virtualMachine").context("it has no VM").map(drop)
    })
    .await
}

/// The Node of a VM that lives is gone, and the next answer about its NIC is changed so.
async fn shows_itself_once_as(
    plane: &ControlPlane,
    change: impl FnOnce(&mut Map<String, Value>) -> Result<()>,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing()).await?;
    let vm = stage.node("n1", None).await?;
    stage.bind("n1", 2).await?;
    until_served(&stage, "n1", 2).await?;
    stage.until_offers("n1", 3).await?;
    let before = held(&stage, &vm.nic_id);
    let mut body = stage.nic("n1");
    change(body["properties"].as_object_mut().context("no properties")?)?;
    stage.fault("GET", "/n1-nic", Some(1), Effect::Garble { body });
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
    for snippet in snippets::of("gone")? {
        plane.type_in(&snippet, &[("NODE", "n1")])?;
    }
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
