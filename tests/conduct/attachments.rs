//! What pods ask for on their own addresses: backend pools of load balancers, joined when they ask and left
//! when they go, and wishes that can't be granted. Public addresses are in `public_addresses`.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use vnetpool_azure_sim::Effect;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::IpConfiguration;
use vnetpool_crds::condition::ATTACHED;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_pod_joins_its_backend_pool_and_its_address_goes_to_no_other_until_azure_has_detached_it,
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
