//! Pods that are gone while their sandboxes stay on the node.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::SANDBOXES_ENDED;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const LONG: &[Test] = crate::tests![a_sandbox_that_outlives_its_pod_is_reported_and_keeps_its_address];

async fn a_sandbox_that_outlives_its_pod_is_reported_and_keeps_its_address(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = || json!({ "sizing": { "minimum": 0, "warm": 1, "releaseAfter": "5s" } });
    let stage = Stage::set(plane, quick(), sizing()).await?;
    stage.node("n1", None).await?;
    let stuck = stage.pod("n1", json!({})).await?;
    let alive = stage.pod("n1", json!({})).await?;
    let both = |seen: &NodeIPAllocation| (seen.status.as_ref()?.pods == 2).then_some(());
    stage.until("both pods have addresses", "n1", both).await?;
    let uid = stage.orphan(&stuck).await?;
    let has = || stage.agents.addresses("n1").get(&uid).map(ToString::to_string);
    let address = has().context("the node goes on with the pod")?;

    // The next report is of well after the pod's end: the agent is asked for names, and the grace time is a
    // minute.
    let cooldown = AtomicU32::new(30);
    let condition = eventually("the sandbox is reported", Duration::from_secs(120), || async {
        let seen = stage.allocation("n1").await?;
        let counted_at = seen.status.as_ref().and_then(|status| status.counted_at.clone());
        let is_old = counted_at.is_some_and(|at| at.0 + Duration::from_secs(2) < Timestamp::now());
        if is_old && !seen.spec.report_holders {
            let mut spec = sizing();
            spec["cooldown"] = json!(format!("{}s", cooldown.fetch_add(1, Ordering::Relaxed)));
            stage.pool("default", spec).await?;
        }
        Ok(find(&seen, SANDBOXES_ENDED))
    })
    .await?;
    ensure!(
        (condition.status.as_str(), condition.reason.as_str()) == ("False", "SandboxLeft"),
        "{condition:?}"
    );
    for part in ["node n1", &address, &format!("default/{stuck}"), &uid, "crictl stopp"] {
        ensure!(condition.message.contains(part), "{part} isn't in {}", condition.message);
    }
    ensure!(!condition.message.contains(&alive), "{}", condition.message);
    stage.until_reported("n1", "SandboxLeft", &["Node", "NodeIPAllocation"]).await?;
    let seen = stage.allocation("n1").await?;
    ensure!(has().as_ref() == Some(&address), "its address was taken back");
    ensure!(seen.status.as_ref().is_some_and(|status| status.holders.len() == 2), "{:?}", seen.status);
    let cidr = format!("{address}/32");
    ensure!(seen.spec.ip_configurations().any(|one| one.address == cidr), "{cidr} left spec");

    stage.tidy("n1").await?;
    let condition = stage.until_condition("n1", SANDBOXES_ENDED, "Ended").await?;
    ensure!(condition.status == "True", "{condition:?}");
    let named_no_more = |seen: &NodeIPAllocation| {
        (!seen.spec.report_holders && seen.status.as_ref()?.holders.is_empty()).then_some(())
    };
    stage.until("nobody is named any more", "n1", named_no_more).await
}
