//! Pods that are gone while their sandboxes stay on the node.

use crate::Test;
use crate::stage::{Stage, find, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use vnetpool_crds::condition::SANDBOXES_ENDED;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] =
    crate::tests![a_pod_that_is_gone_while_its_sandbox_stays_is_told_and_keeps_its_address];

async fn a_pod_that_is_gone_while_its_sandbox_stays_is_told_and_keeps_its_address(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "sizing": { "minimum": 0, "warm": 1, "releaseAfter": "5s" } });
    let stage = Stage::set(plane, quick(), sizing).await?;
    stage.node("n1", None).await?;
    let stuck = stage.pod("n1", json!({})).await?;
    let alive = stage.pod("n1", json!({})).await?;
    let has = |uid: &str| {
        let uid = uid.to_owned();
        move |seen: &vnetpool_crds::NodeIPAllocation| {
            let status = seen.status.as_ref()?;
            (status.assigned == 2).then(|| {
                status.assignments.iter().find(|one| uid.is_empty() || one.pod_uid == uid).cloned()
            })?
        }
    };
    stage.until("both pods have addresses", "n1", has("")).await?;
    let uid = stage.orphan(&stuck).await?;
    let address = stage.until("the node goes on with the pod", "n1", has(&uid)).await?.address;

    // The grace time is a minute.
    let said = eventually("the sandbox is told", Duration::from_secs(90), || async {
        Ok(find(&stage.allocation("n1").await?, SANDBOXES_ENDED))
    })
    .await?;
    ensure!((said.status.as_str(), said.reason.as_str()) == ("False", "SandboxLeft"), "{said:?}");
    for part in ["node n1", &address, &format!("default/{stuck}"), &uid, "crictl stopp"] {
        ensure!(said.message.contains(part), "{part} isn't in {}", said.message);
    }
    ensure!(!said.message.contains(&alive), "{}", said.message);
    stage.until_told("n1", "SandboxLeft", &["Node", "NodeIPAllocation"]).await?;
    let seen = stage.allocation("n1").await?;
    ensure!(has(&uid)(&seen).is_some_and(|one| one.address == address), "its address was taken back");
    let cidr = format!("{address}/32");
    ensure!(seen.spec.ip_configurations().any(|one| one.address == cidr), "{cidr} left spec");

    stage.tidy("n1").await?;
    let said = stage.until_says("n1", SANDBOXES_ENDED, "Ended").await?;
    ensure!(said.status == "True", "{said:?}");
    Ok(())
}
