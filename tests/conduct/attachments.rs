//! Backend pools of load balancers and public addresses on pods' own addresses: attached when pods ask,
//! detached when they go.

use crate::Test;
use crate::stage::{Stage, quick};
use crate::wiped::wipe;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_azure_sim::{Effect, LogEntry, NewVm};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::IpConfiguration;
use vnetpool_crds::condition::{ATTACHED, READY};
use vnetpool_crds::names::GONE;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    a_pod_joins_its_backend_pool_and_its_address_goes_to_no_other_until_azure_has_detached_it,
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
    a_pool_with_an_outbound_rule_is_refused_once_and_holds_up_nothing_else,
    a_backend_pool_that_may_not_be_joined_is_asked_for_by_one_on_behalf_of_all_pods,
    what_azure_has_refused_to_attach_is_tried_at_once_when_a_person_edits_the_pod_or_the_pool,
    what_azure_refuses_to_detach_from_one_address_delays_no_other_attachment,
    a_wish_that_cannot_be_granted_is_reported_and_asks_nothing_of_azure,
    an_address_with_an_attachment_of_others_goes_to_no_pod,
];

/// What is in the group of the first moment.
pub const NETWORK: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network";
const SUBNET: &str = "/virtualNetworks/vnet/subnets/nodes";

/// The id of a [`balancer`]'s backend pool.
pub fn backend_pool(name: &str) -> String {
    format!("{NETWORK}/loadBalancers/{name}/backendAddressPools/pods")
}

/// An internal load balancer with a backend pool `pods`.
pub async fn balancer(stage: &Stage<'_>, name: &str, outbound_rules: Value) -> Result<()> {
    let body = json!({ "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [{ "name": "front", "properties": { "subnet": { "id": format!("{NETWORK}{SUBNET}") } } }],
        "backendAddressPools": [{ "name": "pods" }],
        "outboundRules": outbound_rules,
    }});
    stage.put(&format!("Microsoft.Network/loadBalancers/{name}"), body).await.map(drop)
}

/// Nodes hold four addresses; pods may ask for the backend pools `web` and `out` and for public addresses.
pub fn pool() -> Value {
    json!({
        "sizing": { "minimum": 4, "warm": 0, "maximum": 4, "batch": 1 },
        "cooldown": "0s",
        "attachments": {
            "publicAddressNamespaces": ["default"],
            "backendPools": [{ "name": "web", "id": backend_pool("web") }, { "name": "out", "id": backend_pool("out") }],
        },
    })
}

/// The ipConfiguration kept for one pod.
pub fn kept(seen: &NodeIPAllocation) -> Option<IpConfiguration> {
    seen.spec.ip_configurations().find(|one| one.attached_to.is_some()).cloned()
}

/// Azure's attachments of one of our ipConfigurations.
pub fn attached(stage: &Stage<'_>, node: &str, name: &str) -> Result<Value> {
    let nic = stage.nic(node);
    let all = nic["properties"]["ipConfigurations"].as_array().context("no ipConfigurations")?;
    let one = all.iter().find(|one| one["name"] == name).context("the ipConfiguration is gone")?;
    let properties = &one["properties"];
    Ok(json!([properties["loadBalancerBackendAddressPools"][0]["id"], properties["publicIPAddress"]["id"]]))
}

/// A node with four addresses, whose pods may join the backend pool `web`.
pub async fn beside_balancer(plane: &ControlPlane) -> Result<Stage<'_>> {
    let stage = Stage::empty(plane, quick()).await?;
    balancer(&stage, "web", json!([])).await?;
    stage.pool("default", pool()).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    Ok(stage)
}

/// A node whose three addresses may have public ones.
async fn with_three(plane: &ControlPlane) -> Result<Stage<'_>> {
    let mut spec = pool();
    spec["sizing"] = json!({ "minimum": 3, "warm": 0, "batch": 1 });
    let stage = Stage::set(plane, quick(), spec).await?;
    stage.node("n1", None).await?;
    Ok(stage)
}

async fn a_pod_joins_its_backend_pool_and_its_address_goes_to_no_other_until_azure_has_detached_it(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = beside_balancer(plane).await?;
    let pod = stage.pod("n1", json!({ "vnetpool.io/backend-pools": "web" })).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    ensure!(attached(&stage, "n1", &entry.name)? == json!([backend_pool("web"), null]), "{entry:?}");
    ensure!(entry.backend_pools == [backend_pool("web")], "{entry:?}");
    stage.until_reported(&pod, "Attached", &["Pod"]).await?;

    // Azure takes its time: the pod is gone, but packets for its load balancer still come to its address.
    let fault = stage.fault("PUT", "/networkInterfaces/", None, Effect::HoldBefore);
    stage.remove("n1", &pod).await?;
    stage.bind("n1", 4).await?;
    stage.until("one pod waits", "n1", |seen| (seen.status.as_ref()?.waiting == 1).then_some(())).await?;
    let waiting = stage.allocation("n1").await?;
    let address = entry.address.trim_end_matches("/32");
    let addresses = stage.agents.addresses("n1");
    ensure!(
        addresses.values().all(|one| one.to_string() != address),
        "{address} was handed out: {addresses:?}"
    );
    ensure!(kept(&waiting).is_some(), "the address is kept for nobody though it is in a backend pool");
    stage.sim.lift_fault(fault)?;
    stage.until_assigned("n1", 4).await?;
    ensure!(attached(&stage, "n1", &entry.name)? == json!([null, null]), "still attached");
    ensure!(kept(&stage.allocation("n1").await?).is_none(), "still kept");
    Ok(())
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
    for _ in 0..3 {
        stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    }
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
    for _ in 0..3 {
        stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    }
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
    let mut pods = vec![];
    for _ in 0..3 {
        pods.push(stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?);
    }
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

/// A node of a pool of this spec, whose backend pool `out` has an outbound rule, so that no pod can be in it.
async fn beside_outbound_rule(stage: &Stage<'_>, spec: Value) -> Result<()> {
    let front = format!("{NETWORK}/loadBalancers/out/frontendIPConfigurations/front");
    let rule = json!({ "name": "rule", "properties": { "protocol": "All", "backendAddressPool": { "id": backend_pool("out") },
        "frontendIPConfigurations": [{ "id": front }] } });
    balancer(stage, "out", json!([rule])).await?;
    let minimum = spec["sizing"]["minimum"].as_u64().context("no minimum")?;
    stage.pool("default", spec).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", usize::try_from(minimum)?).await
}

async fn a_pool_with_an_outbound_rule_is_refused_once_and_holds_up_nothing_else(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    balancer(&stage, "web", json!([])).await?;
    let mut spec = pool();
    spec["sizing"] = json!({ "minimum": 2, "warm": 0, "batch": 1 });
    beside_outbound_rule(&stage, spec).await?;
    let refused = stage.pod("n1", json!({ "vnetpool.io/backend-pools": "out" })).await?;
    let attached = stage.until_condition("n1", ATTACHED, "NotAttachable").await?;
    for part in [refused.as_str(), "outbound rule", "give the pods a backend pool without one"] {
        ensure!(attached.message.contains(part), "{part:?} isn't in {:?}", attached.message);
    }
    // Neither another pod's wish nor the node's need of addresses waits for a person.
    let served = stage.pod("n1", json!({ "vnetpool.io/backend-pools": "web" })).await?;
    stage.bind("n1", 4).await?;
    stage.until_holds("n1", 6).await?;
    let in_web = |seen: &NodeIPAllocation| {
        seen.spec.ip_configurations().any(|one| one.backend_pools == [backend_pool("web")]).then_some(())
    };
    stage.until("the other pod is attached", "n1", in_web).await?;
    stage.until_reported(&refused, "NotAttachable", &["Pod"]).await?;
    stage.until_reported(&served, "Attached", &["Pod"]).await?;
    let tried = stage.writes("n1").iter().filter(|one| one.status == 400).count();
    ensure!(tried == 1, "tried {tried} times");
    Ok(())
}

async fn a_backend_pool_that_may_not_be_joined_is_asked_for_by_one_on_behalf_of_all_pods(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    balancer(&stage, "web", json!([])).await?;
    stage.pool("default", pool()).await?;
    stage.start().await?;
    let names: Vec<String> = (0..6).map(|index| format!("n{index}")).collect();
    for name in &names {
        stage.node(name, None).await?;
    }
    for name in &names {
        stage.until_holds(name, 4).await?;
    }
    let join = "Microsoft.Network/loadBalancers/backendAddressPools/join/action";
    stage.sim.deny(vec![join.into()]);
    for name in &names {
        for _ in 0..3 {
            stage.pod(name, json!({ "vnetpool.io/backend-pools": "web" })).await?;
        }
        let all_answered = |seen: &NodeIPAllocation| {
            let attached =
                crate::stage::find(seen, ATTACHED).filter(|one| one.reason == "PermissionDenied")?;
            (attached.message.matches("Pod default/").count() == 3).then_some(attached)
        };
        let attached = stage.until("all three pods are answered", name, all_answered).await?;
        ensure!(attached.message.contains(join), "{}", attached.message);
    }
    let refused = || -> usize {
        names.iter().map(|name| stage.writes(name).iter().filter(|one| one.status == 403).count()).sum()
    };
    ensure!(refused() <= 2, "asked {} times for {} pods", refused(), 3 * names.len());
    // The right is granted; the person who has done that edits the pool.
    stage.sim.deny(vec![]);
    let mut edited = pool();
    edited["cooldown"] = json!("1s");
    stage.pool("default", edited).await?;
    for name in &names {
        stage.until_condition(name, ATTACHED, "Attached").await?;
    }
    Ok(())
}

async fn what_azure_has_refused_to_attach_is_tried_at_once_when_a_person_edits_the_pod_or_the_pool(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    balancer(&stage, "web", json!([])).await?;
    beside_outbound_rule(&stage, pool()).await?;
    let pods = [
        stage.pod("n1", json!({ "vnetpool.io/backend-pools": "out" })).await?,
        stage.pod("n1", json!({ "vnetpool.io/backend-pools": "out" })).await?,
    ];
    for pod in &pods {
        stage.until_reported(pod, "NotAttachable", &["Pod"]).await?;
    }
    // Left alone, each would be tried again after two minutes.
    let is_in = |seen: &NodeIPAllocation, name: &str| {
        seen.spec.ip_configurations().any(|one| one.backend_pools == [backend_pool(name)]).then_some(())
    };
    let edit = json!({ "metadata": { "annotations": { "vnetpool.io/backend-pools": "web" } } });
    let api = Api::<Pod>::namespaced(stage.client.clone(), "default");
    api.patch(&pods[0], &PatchParams::default(), &Patch::Merge(edit)).await?;
    stage.until("the edited pod is attached", "n1", |seen| is_in(seen, "web")).await?;
    balancer(&stage, "out", json!([])).await?;
    let mut edited = pool();
    edited["cooldown"] = json!("1s");
    stage.pool("default", edited).await?;
    stage.until("the other pod is attached", "n1", |seen| is_in(seen, "out")).await
}

async fn what_azure_refuses_to_detach_from_one_address_delays_no_other_attachment(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = beside_balancer(plane).await?;
    let web = json!({ "vnetpool.io/backend-pools": "web" });
    let first = stage.pod("n1", web.clone()).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    let body = json!({ "error": { "code": "Novel", "message": "It stays." } });
    let refused = Effect::Status { status: 400, body, headers: Default::default() };
    let fault = stage.fault("PUT", "/networkInterfaces/", Some(1), refused);
    stage.remove("n1", &first).await?;
    stage.until_struck(fault, 1).await?;
    // It would be tried again after two minutes.
    let second = stage.pod("n1", web).await?;
    stage.until_reported(&second, "Attached", &["Pod"]).await?;
    let seen = stage.allocation("n1").await?;
    let mark = seen.spec.ip_configurations().find(|one| one.name == entry.name).context("not held")?;
    ensure!(mark.attached_to == entry.attached_to, "another pod may have it: {mark:?}");
    ensure!(attached(&stage, "n1", &entry.name)? == json!([backend_pool("web"), null]), "{mark:?}");
    Ok(())
}

async fn a_wish_that_cannot_be_granted_is_reported_and_asks_nothing_of_azure(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    stage.sim.clear_log();
    stage.pod("n1", json!({ "vnetpool.io/backend-pools": "web" })).await?;
    let orders = stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    let attached = stage
        .until("both wishes are answered", "n1", |seen| {
            crate::stage::find(seen, ATTACHED).filter(|one| one.message.matches("Pod default/").count() == 2)
        })
        .await?;
    for part in ["Unavailable", "attachments.backendPools", "attachments.publicAddressNamespaces"] {
        ensure!(attached.message.contains(part) || attached.reason == part, "{part:?} isn't in {attached:?}");
    }
    stage.until_reported(&orders, "Unavailable", &["Pod"]).await?;
    ensure!(stage.writes("n1").is_empty(), "{:?}", stage.writes("n1"));
    Ok(())
}

async fn an_address_with_an_attachment_of_others_goes_to_no_pod(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    balancer(&stage, "theirs", json!([])).await?;
    stage.pool("default", pool()).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let mut all = stage.nic("n1")["properties"]["ipConfigurations"].clone();
    let name = all[1]["name"].as_str().context("no name")?.to_owned();
    all[1]["properties"]["loadBalancerBackendAddressPools"] = json!([{ "id": backend_pool("theirs") }]);
    stage.sim.patch_nic("n1-nic", &json!({ "properties": { "ipConfigurations": all } })).await?;
    // The next read of the NIC shows it; a new boot causes one.
    stage.boot("n1", "boot-2").await?;
    let found = stage.until_condition("n1", ATTACHED, "AttachedByOthers").await?;
    ensure!(found.message.contains("detached in Azure"), "{}", found.message);
    stage.bind("n1", 4).await?;
    stage.until("one pod waits", "n1", |seen| (seen.status.as_ref()?.waiting == 1).then_some(())).await?;
    ensure!(attached(&stage, "n1", &name)? == json!([backend_pool("theirs"), null]), "taken off");
    Ok(())
}
