//! Pods whose public address is there already, and pods that have lost it: a quota that is used up keeps no
//! pod from what it has.

use crate::Test;
use crate::attachments::{kept, pool};
use crate::public_addresses::detached;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use vnetpool_azure_sim::Effect;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::ATTACHED;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    the_public_address_of_a_pod_gets_its_name_in_dns_while_the_quota_is_used_up,
    a_pod_gets_its_public_address_back_though_the_quota_is_used_up_and_another_operator_leads_by_then,
    a_public_address_that_was_deleted_while_no_nic_had_it_is_made_anew_for_its_pod,
];

fn asks() -> Value {
    json!({ "vnetpool.io/public-address": "true" })
}

/// The quota is used up, which a pod on this node has met.
async fn use_up(stage: &Stage<'_>, node: &str) -> Result<()> {
    let message = "Cannot create more than 20 public IP addresses for this subscription in this region.";
    let body = json!({ "error": { "code": "PublicIPCountLimitReached", "message": message } });
    let refusal = Effect::Status { status: 400, body, headers: [].into() };
    stage.fault("PUT", "/publicIPAddresses/", Some(1), refusal);
    let pod = stage.pod(node, asks()).await?;
    stage.until_reported(&pod, "NotAttachable", &["Pod"]).await
}

async fn the_public_address_of_a_pod_gets_its_name_in_dns_while_the_quota_is_used_up(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), pool()).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let pod = stage.pod("n1", asks()).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    use_up(&stage, "n1").await?;
    let api = Api::<Pod>::namespaced(stage.client.clone(), "default");
    let label = json!({ "metadata": { "annotations": { "vnetpool.io/dns-label": "shop" } } });
    api.patch(&pod, &PatchParams::default(), &Patch::Merge(label)).await?;
    let is_named = |seen: &NodeIPAllocation| {
        let mut names =
            seen.spec.ip_configurations().filter_map(|one| one.public_address.as_ref()?.dns_name.as_ref());
        names.any(|name| name == "shop.westeurope.cloudapp.azure.com").then_some(())
    };
    stage.until("it has its name", "n1", is_named).await
}

fn has(seen: &NodeIPAllocation, public: &str) -> Option<()> {
    kept(seen)?.public_address.filter(|one| one.id == public && one.address.is_some()).map(drop)
}

async fn a_pod_gets_its_public_address_back_though_the_quota_is_used_up_and_another_operator_leads_by_then(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, public, fault) = detached(plane).await?;
    stage.kill().await?;
    stage.start().await?;
    use_up(&stage, "n2").await?;
    stage.sim.lift_fault(fault)?;
    stage.until("the pod has it", "n1", |seen| has(seen, &public)).await
}

async fn a_public_address_that_was_deleted_while_no_nic_had_it_is_made_anew_for_its_pod(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, public, fault) = detached(plane).await?;
    stage.delete(&public).await?;
    stage.sim.lift_fault(fault)?;
    stage.until("the pod has one", "n1", |seen| has(seen, &public)).await?;
    ensure!(stage.exists(&public).await?, "{public} isn't there");
    Ok(())
}
