//! People's edits of pools: which of them take nothing by accident, and which take only on purpose.

use crate::Test;
use crate::attachments::{attached, balancer, kept, pool};
use crate::machines::until_served;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_crds::condition::{self, ATTACHED, SELECTED};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, names};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_pool_that_is_deleted_and_made_again_takes_nothing_though_the_operator_starts_anew_in_between,
    a_pool_that_is_gone_for_good_leaves_pods_their_addresses_until_they_end,
    a_weight_that_moves_a_node_takes_nothing_before_the_grace_is_over,
    an_edit_that_withdraws_an_offer_takes_nothing_from_a_pod_that_has_it,
];

const HOUR: Duration = Duration::from_secs(3600);

fn policy() -> Value {
    let mut spec = pool();
    spec["sizing"] = json!({ "minimum": 2, "warm": 1, "batch": 1, "releaseAfter": "0s" });
    spec
}

/// A node whose one pod is in a backend pool and has a public address; none of it ends without a reason.
async fn stage(plane: &ControlPlane, grace: Duration) -> Result<(Stage<'_>, String)> {
    let stage = Stage::empty(plane, quick()).await?;
    balancer(&stage, "web", json!([])).await?;
    stage.pool("default", policy()).await?;
    stage.start_with(|config| config.waits.grace = grace).await?;
    stage.node("n1", None).await?;
    let annotations = json!({ "vnetpool.io/backend-pools": "web", "vnetpool.io/public-address": "true" });
    let pod = stage.pod("n1", annotations).await?;
    stage.until_condition("n1", ATTACHED, "Attached").await?;
    stage.until_holds("n1", 2).await?;
    stage.sim.clear_log();
    Ok((stage, pod))
}

/// The pod's attachments in Azure: both attached to its address, and the public address itself.
async fn has_all(stage: &Stage<'_>) -> Result<()> {
    let entry = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
    let public = entry.public_address.context("no public address")?;
    let both = attached(stage, "n1", &entry.name)?;
    ensure!(both[0].is_string() && both[1].is_string(), "{both}");
    ensure!(stage.exists(&public.id).await?, "{} is gone", public.id);
    Ok(())
}

async fn until_selected(stage: &Stage<'_>) -> Result<()> {
    stage.until("the pool selects the node", "n1", |seen| find(seen, SELECTED).is_none().then_some(())).await
}

async fn a_pool_that_is_deleted_and_made_again_takes_nothing_though_the_operator_starts_anew_in_between(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _) = stage(plane, HOUR).await?;
    stage.delete_pool("default").await?;
    let condition = stage.until_condition("n1", SELECTED, "NoPool").await?;
    for part in ["NodeIPPool default is gone", "60 minutes", "vnetpool.io/release=true"] {
        ensure!(condition.message.contains(part), "{part} isn't in {}", condition.message);
    }
    stage.until_reported("n1", "NoPool", &["Node", "NodeIPAllocation"]).await?;
    stage.kill().await?;
    stage.start_with(|config| config.waits.grace = HOUR).await?;
    // Pods that come are served as the pool that is gone would serve them.
    stage.bind("n1", 2).await?;
    stage.until_holds("n1", 4).await?;
    let again = stage.until_condition("n1", SELECTED, "NoPool").await?;
    ensure!(again.last_transition_time == condition.last_transition_time, "the clock began anew: {again:?}");
    has_all(&stage).await?;
    let writes = stage.writes("n1").len();
    stage.pool("default", policy()).await?;
    until_selected(&stage).await?;
    has_all(&stage).await?;
    ensure!(stage.writes("n1").len() == writes, "{:?}", stage.writes("n1"));
    Ok(())
}

async fn a_pool_that_is_gone_for_good_leaves_pods_their_addresses_until_they_end(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, pod) = stage(plane, HOUR).await?;
    let address = until_served(&stage, "n1", 1).await?;
    stage.delete_pool("default").await?;
    stage.until_condition("n1", SELECTED, "NoPool").await?;
    stage.nothing_was_written()?;
    stage.annotate::<NodeIPAllocation>("n1", names::RELEASE, Some("true")).await?;
    stage.until_holds("n1", 1).await?;
    has_all(&stage).await?;
    ensure!(until_served(&stage, "n1", 1).await? == address);
    let public = kept(&stage.allocation("n1").await?).and_then(|one| one.public_address).context("none")?;
    stage.remove("n1", &pod).await?;
    stage.until_gone("n1").await?;
    ensure!(stage.held("n1").is_empty() && !stage.exists(&public.id).await?, "{:?}", stage.held("n1"));
    Ok(())
}

async fn a_weight_that_moves_a_node_takes_nothing_before_the_grace_is_over(
    plane: &ControlPlane,
) -> Result<()> {
    // Long enough for a busy machine to see the pool report it meanwhile.
    let grace = Duration::from_secs(15);
    let (stage, _) = stage(plane, grace).await?;
    let blocks =
        json!({ "weight": 1, "mode": "Prefix", "sizing": { "minimum": 0, "warm": 0, "releaseAfter": "0s" } });
    stage.pool("blocks", blocks).await?;
    let condition = stage.until_condition("n1", SELECTED, "OtherPool").await?;
    ensure!(condition.message.contains("NodeIPPool blocks selects node n1 now"), "{}", condition.message);
    stage.nothing_was_written()?;
    ensure!(stage.allocation("n1").await?.spec.pool == "default");
    let names_it = |pool: &NodeIPPool| {
        let condition = condition::find(&pool.status.as_ref()?.conditions, SELECTED)?;
        (condition.status == "False" && condition.message.contains(": n1.")).then_some(())
    };
    stage.until_pool("the pool names the node that leaves it", "default", names_it).await?;
    let over = |seen: &NodeIPAllocation| (seen.spec.pool == "blocks").then_some(());
    stage.until("the other pool has taken over", "n1", over).await?;
    // The pod goes on as it is.
    has_all(&stage).await
}

async fn an_edit_that_withdraws_an_offer_takes_nothing_from_a_pod_that_has_it(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, pod) = stage(plane, Duration::ZERO).await?;
    stage
        .pool("default", json!({ "sizing": { "minimum": 2, "warm": 1, "batch": 1 }, "cooldown": "0s" }))
        .await?;
    let condition = stage.until_condition("n1", ATTACHED, "Unavailable").await?;
    ensure!(condition.message.contains("Until it ends it keeps what it has."), "{}", condition.message);
    stage.nothing_was_written()?;
    has_all(&stage).await?;
    stage.remove("n1", &pod).await?;
    stage.until("nothing is kept", "n1", |seen| kept(seen).is_none().then_some(())).await
}
