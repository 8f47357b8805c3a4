//! Pods that the node's rules keep from Azure's services on the host.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use std::time::Duration;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{METADATA_REFUSED, READY};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::refusal::{self, Refusal, Service};
use vnetpool_crds::verdict::Verdict;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    a_pod_that_asks_the_metadata_service_in_vain_is_named_in_one_event,
    a_pod_that_asks_while_no_operator_leads_is_named_in_an_event,
];

fn refusal(service: Service, pod: &str) -> Refusal {
    Refusal { service, pod: pod.to_owned() }
}

/// As the node's agent reports it.
async fn report(stage: &Stage<'_>, refusals: &[Refusal]) -> Result<()> {
    let message = refusal::message(refusals, Some("default"));
    let at = Timestamp::UNIX_EPOCH;
    let condition = Verdict::yes(Reason::PodsAsk, message).condition(METADATA_REFUSED, None, at);
    let patch = json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation",
        "status": { "conditions": [condition] } });
    let api = Api::<NodeIPAllocation>::all(stage.client.clone());
    api.patch_status("n1", &PatchParams::apply("rules").force(), &Patch::Apply(patch)).await?;
    Ok(())
}

async fn a_pod_that_asks_the_metadata_service_in_vain_is_named_in_one_event(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({})).await?;
    stage.node("n1", None).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    let a = refusal(Service::Metadata, "default/a");
    report(&stage, std::slice::from_ref(&a)).await?;
    stage.until_reported("n1", "PodsAsk", &["Node", "NodeIPAllocation"]).await?;
    // About the node and its object again.
    let b = refusal(Service::Metadata, "default/b");
    report(&stage, &[a.clone(), b.clone()]).await?;
    stage.until_events("n1", "PodsAsk", 4).await?;
    // And once more of the other service, though the pod is the same.
    report(&stage, &[a, b, refusal(Service::WireServer, "default/a")]).await?;
    let events = stage.until_events("n1", "PodsAsk", 6).await?;
    ensure!(events.len() == 6 && events.iter().all(|(_, times)| *times == 1), "{events:?}");
    Ok(())
}

async fn a_pod_that_asks_while_no_operator_leads_is_named_in_an_event(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({})).await?;
    stage.node("n1", None).await?;
    stage.until_condition("n1", READY, "Ready").await?;
    let (before, meanwhile) =
        (refusal(Service::Metadata, "default/before"), refusal(Service::Metadata, "default/meanwhile"));
    report(&stage, std::slice::from_ref(&before)).await?;
    stage.until_events("n1", "PodsAsk", 2).await?;
    stage.kill().await?;
    report(&stage, &[before, meanwhile]).await?;
    stage.start().await?;
    let events = Api::<Event>::all(stage.client.clone());
    eventually("both objects have an Event about it", Duration::from_secs(30), || async {
        let all = events.list(&ListParams::default()).await?.items;
        let pods = all.iter().filter_map(|event| event.related.as_ref()?.name.as_deref());
        let pods: Vec<&str> = pods.collect();
        ensure!(pods.iter().filter(|pod| **pod == "meanwhile").count() == 2, "{pods:?}");
        Ok(Some(()))
    })
    .await
}
