//! Public addresses on pods' own addresses: made and attached when pods ask, detached and deleted when they
//! go, whoever dies or refuses meanwhile.

use crate::Test;
use crate::attachments::{NETWORK, attached, backend_pool, balancer, kept, pool};
use crate::stage::{Stage, quick};
use crate::wiped::wipe;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Duration;
use vnetpool_azure_sim::{Effect, LogEntry, NewVm};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{ATTACHED, READY};
use vnetpool_crds::names::GONE;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    a_public_address_with_a_dns_label_comes_and_goes_with_its_pod,
    a_public_address_is_not_forgotten_by_an_operator_that_dies_before_it_is_attached,
    a_public_address_goes_with_its_node,
    a_passing_404_at_the_deletion_of_a_public_address_leaves_its_record,
    a_passing_404_at_the_deletion_of_a_gone_nodes_public_address_leaves_its_record,
    public_addresses_that_were_deleted_before_are_asked_for_a_second_time_together,
    a_public_address_that_something_else_has_is_left_to_it_when_a_person_ends_the_record_of_a_gone_node,
    a_lock_on_a_group_is_met_by_one_deletion_of_public_addresses_on_behalf_of_all,
    a_right_to_make_public_addresses_that_is_granted_serves_all_pools_once_one_has_made_one,
    a_public_address_that_lost_its_ip_configuration_is_deleted_though_another_operator_leads_by_then,
    a_public_address_that_lost_its_ip_configuration_goes_with_its_node,
    a_public_address_that_azure_refuses_to_delete_is_deleted_by_the_next_leader,
    a_public_address_whose_read_gets_no_answer_holds_up_no_other_attachment_and_no_address,
    a_public_address_that_is_made_after_its_deletion_has_found_none_is_deleted_once_more,
    public_addresses_are_made_many_at_once_and_hold_up_no_address_of_the_node,
    public_addresses_that_azure_is_slow_to_delete_hold_up_no_address_of_the_node,
];

/// A node whose three addresses may have public ones.
async fn with_three(plane: &ControlPlane) -> Result<Stage<'_>> {
    let mut spec = pool();
    spec["sizing"] = json!({ "minimum": 3, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), spec).await?;
    stage.node("n1", None).await?;
    Ok(stage)
}

/// The names of three pods that ask for a public address each.
async fn three_ask(stage: &Stage<'_>) -> Result<Vec<String>> {
    let mut pods = vec![];
    for _ in 0..3 {
        pods.push(stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?);
    }
    Ok(pods)
}

async fn a_public_address_with_a_dns_label_comes_and_goes_with_its_pod(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let annotations = json!({ "vnetpool.io/public-address": "true", "vnetpool.io/dns-label": "shop" });
    let pod = stage.pod("n1", annotations).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    let public = entry.public_address.clone().context("no public address")?;
    ensure!(public.address.is_some(), "{public:?}");
    ensure!(public.dns_name.as_deref() == Some("shop.westeurope.cloudapp.azure.com"), "{public:?}");
    ensure!(attached(&stage, "n1", &entry.name)? == json!([null, public.id]), "{entry:?}");
    ensure!(stage.exists(&public.id).await?, "{public:?} isn't there");

    stage.remove("n1", &pod).await?;
    stage.until("nothing is kept", "n1", |seen| kept(seen).is_none().then_some(())).await?;
    ensure!(attached(&stage, "n1", &entry.name)? == json!([null, null]), "still attached");
    ensure!(!stage.exists(&public.id).await?, "{public:?} costs money still");
    stage.nothing_was_listed()
}

async fn a_public_address_is_not_forgotten_by_an_operator_that_dies_before_it_is_attached(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let fault = stage.fault("PUT", "/networkInterfaces/", None, Effect::HoldBefore);
    let pod = stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    stage.until_struck(fault, 1).await?;
    let public = stage.until("an address is kept", "n1", |seen| kept(seen)?.public_address).await?;
    ensure!(stage.exists(&public.id).await?, "{public:?} isn't there");
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    stage.remove("n1", &pod).await?;
    stage.start().await?;
    stage.until("nothing is kept", "n1", |seen| kept(seen).is_none().then_some(())).await?;
    ensure!(!stage.exists(&public.id).await?, "{public:?} is forgotten");
    Ok(())
}

async fn a_public_address_goes_with_its_node(plane: &ControlPlane) -> Result<()> {
    let (stage, _, public) = with_public_address(plane).await?;
    stage.sim.delete_vm("n1", false).await?;
    stage.delete_node("n1").await?;
    stage.until_gone("n1").await?;
    ensure!(!stage.exists(&public).await?, "{public} is forgotten");
    Ok(())
}

/// The next deletion of a public address finds none, as during an incident of Azure's.
fn missed_once(stage: &Stage<'_>) -> u64 {
    let body = json!({ "error": { "code": "ResourceNotFound", "message": "It could not be found." } });
    let effect = Effect::Status { status: 404, body, headers: Default::default() };
    stage.fault("DELETE", "/publicIPAddresses/", Some(1), effect)
}

/// A node with a pod that has a public address. Gives the pod, and the public address's id.
async fn with_public_address(plane: &ControlPlane) -> Result<(Stage<'_>, String, String)> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    stage.node("n1", None).await?;
    let pod = stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    let public = entry.public_address.context("no public address")?.id;
    Ok((stage, pod, public))
}

async fn a_passing_404_at_the_deletion_of_a_public_address_leaves_its_record(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, pod, public) = with_public_address(plane).await?;
    let fault = missed_once(&stage);
    stage.remove("n1", &pod).await?;
    stage.until_condition("n1", ATTACHED, "ResourceNotFound").await?;
    stage.until_struck(fault, 1).await?;
    let is_named = stage.allocation("n1").await?.spec.public_addresses().any(|one| one == public);
    ensure!(is_named && stage.exists(&public).await?, "{public} is forgotten");
    stage.until("nothing is kept", "n1", |seen| kept(seen).is_none().then_some(())).await?;
    ensure!(!stage.exists(&public).await?, "{public} costs money still");
    Ok(())
}

async fn a_passing_404_at_the_deletion_of_a_gone_nodes_public_address_leaves_its_record(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, public) = with_public_address(plane).await?;
    let fault = missed_once(&stage);
    stage.sim.delete_vm("n1", false).await?;
    stage.delete_node("n1").await?;
    stage.until_gone("n1").await?;
    stage.until_struck(fault, 1).await?;
    ensure!(!stage.exists(&public).await?, "{public} is forgotten");
    Ok(())
}

async fn public_addresses_that_were_deleted_before_are_asked_for_a_second_time_together(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_three(plane).await?;
    stage.until_holds("n1", 3).await?;
    three_ask(&stage).await?;
    let made = stage.until("each pod has one", "n1", |seen| all_made(seen, 3)).await?;
    // The first operator dies over the deletion of the last.
    let fault = stage.fault("DELETE", &made[2], None, Effect::HoldBefore);
    stage.sim.delete_vm("n1", false).await?;
    stage.delete_node("n1").await?;
    stage.until_struck(fault, 1).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    // Azure has that request, though its sender is dead.
    eventually("the last is deleted, too", Duration::from_secs(20), || async {
        Ok((!stage.exists(&made[2]).await?).then_some(()))
    })
    .await?;
    stage.sim.clear_log();
    stage.start_with(|config| config.waits.late = Duration::ZERO).await?;
    stage.until_gone("n1").await?;
    for public in &made {
        ensure!(!stage.exists(public).await?, "{public} is forgotten");
        // The one that was held may be logged late, and has found it.
        let in_vain = |one: &LogEntry| one.method == "DELETE" && one.path == *public && one.status == 204;
        let asked: Vec<String> = stage.asked().into_iter().filter(in_vain).map(|one| one.time).collect();
        // Twice, and once more where the end of the object meets another write. One after the other, the
        // first would be asked for four times.
        ensure!(asked.len() <= 3, "the deletion of {public} was asked for in vain at {asked:?}");
    }
    Ok(())
}

async fn a_public_address_that_something_else_has_is_left_to_it_when_a_person_ends_the_record_of_a_gone_node(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_three(plane).await?;
    stage.until_holds("n1", 3).await?;
    stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    let made = stage.until("it is made", "n1", |seen| all_made(seen, 1)).await?;
    let error =
        json!({ "code": "PublicIPAddressCannotBeDeleted", "message": "It is still allocated to a gateway." });
    let effect = Effect::Status { status: 400, body: json!({ "error": error }), headers: Default::default() };
    let fault = stage.fault("DELETE", &made[0], None, effect);
    stage.sim.delete_vm("n1", false).await?;
    stage.delete_node("n1").await?;
    stage.until_struck(fault, 1).await?;
    stage.until_condition("n1", READY, "AzureRefused").await?;
    stage.sim.clear_log();
    stage.annotate::<NodeIPAllocation>("n1", GONE, Some("true")).await?;
    stage.until_gone("n1").await?;
    ensure!(stage.exists(&made[0]).await?, "it is deleted, though something else has it");
    let asked = deletions(&stage).len();
    ensure!(asked <= 2, "its deletion was asked for {asked} times");
    Ok(())
}

/// The public addresses of `count` pods, once all are made.
fn all_made(seen: &NodeIPAllocation, count: usize) -> Option<Vec<String>> {
    let all = seen.spec.ip_configurations().filter_map(|one| one.public_address.clone());
    let all: Vec<_> = all.filter(|public| public.address.is_some()).map(|public| public.id).collect();
    Some(all).filter(|all| all.len() == count)
}

/// The public addresses whose deletion Azure was asked for.
pub fn deletions(stage: &Stage<'_>) -> Vec<String> {
    stage.asked().into_iter().filter(|one| one.method == "DELETE").map(|one| one.path).collect()
}

async fn a_lock_on_a_group_is_met_by_one_deletion_of_public_addresses_on_behalf_of_all(
    plane: &ControlPlane,
) -> Result<()> {
    let mut spec = pool();
    spec["sizing"] = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), spec.clone()).await?;
    let (nodes, mut pods, mut made) = (["n1", "n2", "gone"], vec![], vec![]);
    for node in nodes {
        stage.node(node, None).await?;
        stage.until_holds(node, 2).await?;
        pods.push(stage.pod(node, json!({ "vnetpool.io/public-address": "true" })).await?);
        made.extend(stage.until("its pod has one", node, |seen| all_made(seen, 1)).await?);
    }
    let group = NETWORK.split("/providers").next().context("no group")?;
    let message = format!(
        "The scope '/p' cannot perform delete operation because following scope(s) are locked: '{group}'. Please remove \
         the lock and try again."
    );
    let body = json!({ "error": { "code": "ScopeLocked", "message": message } });
    let effect = Effect::Status { status: 409, body, headers: Default::default() };
    let lock = stage.fault("DELETE", "/publicIPAddresses/", None, effect);
    for (node, pod) in nodes.iter().zip(&pods).take(2) {
        stage.remove(node, pod).await?;
        stage.until_condition(node, ATTACHED, "ResourceLocked").await?;
    }
    stage.sim.delete_vm("gone", false).await?;
    stage.delete_node("gone").await?;
    stage.until_condition("gone", READY, "ResourceLocked").await?;
    ensure!(deletions(&stage).len() == 1, "asked for by each: {:?}", deletions(&stage));
    // What waits for a person costs no read of the NIC with each event.
    stage.sim.clear_log();
    stage.bind("n1", 1).await?;
    stage.until_assigned("n1", 1).await?;
    stage.unbind("n1", 1).await?;
    stage.until_assigned("n1", 0).await?;
    let reads: Vec<_> = stage.asked().into_iter().filter(|one| one.path.ends_with("/n1-nic")).collect();
    ensure!(reads.is_empty(), "read for nothing: {reads:?}");
    stage.sim.lift_fault(lock)?;
    spec["cooldown"] = json!("1s");
    stage.pool("default", spec).await?;
    stage.until_gone("gone").await?;
    let is_forgotten = |seen: &NodeIPAllocation| seen.spec.public_addresses().next().is_none().then_some(());
    for node in ["n1", "n2"] {
        stage.until("none is named any more", node, is_forgotten).await?;
    }
    for public in &made {
        ensure!(!stage.exists(public).await?, "{public} costs money still");
    }
    Ok(())
}

async fn a_right_to_make_public_addresses_that_is_granted_serves_all_pools_once_one_has_made_one(
    plane: &ControlPlane,
) -> Result<()> {
    let of = |name: &str, cooldown: &str| {
        let mut spec = pool();
        spec["nodeSelector"] = json!({ "matchLabels": { "of": name } });
        (spec["weight"], spec["cooldown"]) = (json!(1), json!(cooldown));
        spec
    };
    let stage = Stage::set(plane, quick(), pool()).await?;
    let make = "Microsoft.Network/publicIPAddresses/write";
    stage.sim.deny(vec![make.into()]);
    for node in ["one", "other"] {
        stage.pool(node, of(node, "0s")).await?;
        let vm = stage.sim.add_vm(NewVm { name: node.into(), ..NewVm::default() }).await?;
        stage.join_labelled(node, &vm.provider_id, &[("of", node)]).await?;
        stage.until_holds(node, 4).await?;
        stage.pod(node, json!({ "vnetpool.io/public-address": "true" })).await?;
        let attached = stage.until_condition(node, ATTACHED, "PermissionDenied").await?;
        ensure!(attached.message.contains(make), "{}", attached.message);
    }
    let asked = || stage.asked().iter().filter(|one| one.path.contains("/publicIPAddresses/")).count();
    ensure!(asked() == 1, "asked {} times", asked());
    stage.sim.deny(vec![]);
    // By itself the other's pod would wait for two minutes.
    stage.pool("one", of("one", "1s")).await?;
    for node in ["one", "other"] {
        stage.until_condition(node, ATTACHED, "Attached").await?;
    }
    Ok(())
}

/// A pod with a public address on n1. Another node, n2, has four addresses. Gives the pod and the public
/// address's id.
pub async fn on_a_public_address(plane: &ControlPlane) -> Result<(Stage<'_>, String, String)> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    for node in ["n1", "n2"] {
        stage.node(node, None).await?;
        stage.until_holds(node, 4).await?;
    }
    let pod = stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    let public = entry.public_address.context("no public address")?.id;
    stage.compare("n1", 1).await?;
    Ok((stage, pod, public))
}

/// The same, but another client has taken its ipConfiguration off the NIC. Azure holds the write that is to
/// bring the pod's address back. Gives that fault, too.
pub async fn detached(plane: &ControlPlane) -> Result<(Stage<'_>, String, String, u64)> {
    let (stage, pod, public) = on_a_public_address(plane).await?;
    let fault = stage.fault("PUT", "/networkInterfaces/n1-nic", None, Effect::HoldBefore);
    wipe(&stage, "n1").await?;
    stage.compare("n1", 2).await?;
    let is_named = |seen: &NodeIPAllocation| {
        (kept(seen).is_none() && seen.spec.detached_public_addresses == [public.as_str()]).then_some(())
    };
    stage.until("spec names it without its ipConfiguration", "n1", is_named).await?;
    ensure!(stage.exists(&public).await?, "{public} was deleted, and its pod lives");
    Ok((stage, pod, public, fault))
}

async fn a_public_address_that_lost_its_ip_configuration_is_deleted_though_another_operator_leads_by_then(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, pod, public, fault) = detached(plane).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    stage.remove("n1", &pod).await?;
    stage.start().await?;
    let is_forgotten = |seen: &NodeIPAllocation| seen.spec.public_addresses().next().is_none().then_some(());
    stage.until("spec names it no more", "n1", is_forgotten).await?;
    ensure!(!stage.exists(&public).await?, "{public} costs money still");
    stage.nothing_was_listed()
}

async fn a_public_address_that_lost_its_ip_configuration_goes_with_its_node(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, public, fault) = detached(plane).await?;
    stage.sim.delete_vm("n1", false).await?;
    stage.delete_node("n1").await?;
    stage.sim.lift_fault(fault)?;
    stage.until_gone("n1").await?;
    ensure!(!stage.exists(&public).await?, "{public} is forgotten");
    stage.nothing_was_listed()
}

pub async fn until_deleted(stage: &Stage<'_>, public: &str) -> Result<()> {
    eventually("the public address is deleted", Duration::from_secs(30), || async {
        Ok((!stage.exists(public).await?).then_some(()))
    })
    .await
}

/// Azure refuses to delete a public address, and may be asked again in a second.
pub fn refused_for_a_second(stage: &Stage<'_>, public: &str) -> u64 {
    let error =
        json!({ "code": "AnotherOperationInProgress", "message": "Another operation is in progress." });
    let (body, headers) = (json!({ "error": error }), [("retry-after".to_owned(), "1".to_owned())].into());
    stage.fault("DELETE", public, None, Effect::Status { status: 409, body, headers })
}

async fn a_public_address_that_azure_refuses_to_delete_is_deleted_by_the_next_leader(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, pod, public) = with_public_address(plane).await?;
    let fault = refused_for_a_second(&stage, &public);
    stage.remove("n1", &pod).await?;
    stage.until_struck(fault, 1).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    stage.start().await?;
    until_deleted(&stage, &public).await
}

async fn a_public_address_whose_read_gets_no_answer_holds_up_no_other_attachment_and_no_address(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    balancer(&stage, "web", json!([])).await?;
    let mut spec = pool();
    spec["sizing"] = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    stage.pool("default", spec).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let fault = stage.fault("PUT", "/networkInterfaces/", None, Effect::Hold);
    stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    stage.until_struck(fault, 1).await?;
    // The next leader finds it attached, and doesn't know what it is.
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    let fault = stage.fault("GET", "/publicIPAddresses/", None, Effect::HoldBefore);
    stage.start().await?;
    stage.until_struck(fault, 1).await?;
    stage.pod("n1", json!({ "vnetpool.io/backend-pools": "web" })).await?;
    let in_web = |seen: &NodeIPAllocation| {
        seen.spec.ip_configurations().any(|one| one.backend_pools == [backend_pool("web")]).then_some(())
    };
    stage.until("the other pod is attached", "n1", in_web).await?;
    stage.bind("n1", 2).await?;
    stage.until_assigned("n1", 4).await?;
    stage.sim.lift_fault(fault)?;
    stage.until("the first pod's is known", "n1", |seen| all_made(seen, 1)).await.map(drop)
}

async fn a_public_address_that_is_made_after_its_deletion_has_found_none_is_deleted_once_more(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.pool("default", pool()).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let fault = stage.fault("PUT", "/publicIPAddresses/", None, Effect::HoldBefore);
    let pod = stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    stage.until_struck(fault, 1).await?;
    let public = stage.until("an address is kept", "n1", |seen| kept(seen)?.public_address).await?.id;
    // Its request is on its way when the next operator begins.
    stage.kill().await?;
    stage.remove("n1", &pod).await?;
    stage.sim.clear_log();
    stage.start_with(|config| config.waits.late = Duration::from_secs(10)).await?;
    eventually("its deletion finds none", Duration::from_secs(30), || async {
        let asked = stage.asked();
        Ok(asked.iter().any(|one| one.method == "DELETE" && one.path == public).then_some(()))
    })
    .await?;
    stage.sim.lift_fault(fault)?;
    eventually("it is made all the same", Duration::from_secs(5), || async {
        Ok(stage.exists(&public).await?.then_some(()))
    })
    .await?;
    let is_forgotten = |seen: &NodeIPAllocation| seen.spec.public_addresses().next().is_none().then_some(());
    stage.until("spec names it no more", "n1", is_forgotten).await?;
    ensure!(!stage.exists(&public).await?, "{public} costs money still");
    Ok(())
}

async fn public_addresses_are_made_many_at_once_and_hold_up_no_address_of_the_node(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_three(plane).await?;
    stage.until_holds("n1", 3).await?;
    let fault = stage.fault("PUT", "/publicIPAddresses/", None, Effect::HoldBefore);
    three_ask(&stage).await?;
    stage.until_struck(fault, 3).await?;
    stage.bind("n1", 2).await?;
    stage.until_holds("n1", 5).await?;
    stage.sim.lift_fault(fault)?;
    let attached = |seen: &NodeIPAllocation| {
        let all =
            seen.spec.ip_configurations().filter_map(|one| one.public_address.as_ref()?.address.clone());
        (all.count() == 3).then_some(())
    };
    stage.until("each pod has one", "n1", attached).await
}

async fn public_addresses_that_azure_is_slow_to_delete_hold_up_no_address_of_the_node(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = with_three(plane).await?;
    let pods = three_ask(&stage).await?;
    let made = stage.until("each pod has one", "n1", |seen| all_made(seen, 3)).await?;
    let fault = stage.fault("DELETE", "/publicIPAddresses/", None, Effect::HoldBefore);
    for pod in &pods {
        stage.remove("n1", pod).await?;
    }
    stage.until_struck(fault, 3).await?;
    stage.until_assigned("n1", 0).await?;
    stage.bind("n1", 2).await?;
    // Each address is kept until Azure has deleted what was attached to it, so these are new.
    stage.until_assigned("n1", 2).await?;
    let seen = stage.allocation("n1").await?;
    for public in &made {
        let is_named = seen.spec.public_addresses().any(|one| one == public);
        ensure!(is_named && stage.exists(public).await?, "{public} is forgotten");
    }
    stage.sim.lift_fault(fault)?;
    let is_forgotten = |seen: &NodeIPAllocation| seen.spec.public_addresses().next().is_none().then_some(());
    stage.until("none is named any more", "n1", is_forgotten).await?;
    for public in &made {
        ensure!(!stage.exists(public).await?, "{public} costs money still");
    }
    Ok(())
}
