//! Pods that the node's rules keep from Azure's services on the host.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{self, METADATA_REFUSED};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::refusal::{self, Refusal, Service};
use vnetpool_crds::verdict::Verdict;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![a_pod_that_asks_the_metadata_service_in_vain_is_named_in_one_event];

async fn a_pod_that_asks_the_metadata_service_in_vain_is_named_in_one_event(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({})).await?;
    stage.node("n1", None).await?;
    // The findings of its first report are no news. A write is announced before that.
    let reported = |seen: &_| find(seen, condition::WRITING).filter(|one| one.status == "False");
    stage.until("the operator has reported", "n1", reported).await?;
    let refusal = |service, pod: &str| Refusal { service, pod: pod.to_owned() };
    let report = async |refusals: &[Refusal]| -> Result<()> {
        let message = refusal::message(&refusals.iter().cloned().collect(), Some("default"));
        let at = Timestamp::UNIX_EPOCH;
        let condition = Verdict::yes(Reason::PodsAsk, message).condition(METADATA_REFUSED, None, at);
        let patch = json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation",
            "status": { "conditions": [condition] } });
        let api = Api::<NodeIPAllocation>::all(stage.client.clone());
        api.patch_status("n1", &PatchParams::apply("rules").force(), &Patch::Apply(patch)).await?;
        Ok(())
    };
    let a = refusal(Service::Metadata, "default/a");
    report(std::slice::from_ref(&a)).await?;
    stage.until_reported("n1", "PodsAsk", &["Node", "NodeIPAllocation"]).await?;
    // About the node and its object again.
    let b = refusal(Service::Metadata, "default/b");
    report(&[a.clone(), b.clone()]).await?;
    stage.until_events("n1", "PodsAsk", 4).await?;
    // And once more of the other service, though the pod is the same.
    report(&[a, b, refusal(Service::WireServer, "default/a")]).await?;
    let events = stage.until_events("n1", "PodsAsk", 6).await?;
    anyhow::ensure!(events.len() == 6 && events.iter().all(|(_, times)| *times == 1), "{events:?}");
    Ok(())
}
