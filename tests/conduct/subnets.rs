//! Subnets: what a pool's status shows of them, and the forecast of their end.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use vnetpool_azure_sim::NewVm;
use vnetpool_crds::NodeIPPoolStatus;
use vnetpool_crds::condition::{self, SUBNET_EXHAUSTING};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_pool_shows_each_subnets_size_what_it_holds_and_what_is_free,
    a_subnet_that_fills_up_is_forecast_on_the_pool_and_said_once,
    without_permission_to_count_nothing_but_the_forecast_is_missing,
];

async fn until(
    stage: &Stage<'_>,
    what: &str,
    shows: impl Fn(&NodeIPPoolStatus) -> bool,
) -> Result<NodeIPPoolStatus> {
    stage.until_pool(what, "default", |pool| pool.status.clone().filter(&shows)).await
}

fn says(status: &NodeIPPoolStatus, turned: &str, reason: &str) -> bool {
    condition::find(&status.conditions, SUBNET_EXHAUSTING)
        .is_some_and(|one| one.status == turned && one.reason == reason)
}

async fn a_pool_shows_each_subnets_size_what_it_holds_and_what_is_free(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.node("n1", Some("nodes")).await?;
    stage.node("n2", Some("small")).await?;
    for node in ["n1", "n2"] {
        stage.until_holds(node, 4).await?;
    }
    let told = |status: &NodeIPPoolStatus| {
        status.subnets.len() == 2 && status.subnets.iter().all(|one| one.held == 4 && one.free.is_some())
    };
    let status = until(&stage, "both subnets with figures", told).await?;
    let shown = |name: &str| {
        let subnet = status.subnets.iter().find(|one| one.id.ends_with(name));
        subnet.map(|one| (one.nodes, one.held, one.size)).context(name.to_owned())
    };
    ensure!(shown("/subnets/nodes")? == (1, 4, Some(4091)), "{:?}", status.subnets);
    ensure!(shown("/subnets/small")? == (1, 4, Some(11)), "{:?}", status.subnets);
    Ok(())
}

async fn a_subnet_that_fills_up_is_forecast_on_the_pool_and_said_once(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 4, "warm": 0 });
    // A /28 has 11 addresses; others take two, so that with the node's own and its four there are four left.
    let stage = Stage::empty(plane, quick()).await?;
    for name in ["other-1", "other-2"] {
        let vm = NewVm { name: name.into(), subnet: Some("small".into()), ..NewVm::default() };
        stage.sim.add_vm(vm).await?;
    }
    stage.pool("default", json!({ "sizing": sizing, "subnetExhaustingPercent": 40 })).await?;
    stage.start().await?;
    stage.node("n1", Some("small")).await?;
    stage.until_holds("n1", 4).await?;
    let status = until(&stage, "it is forecast", |status| says(status, "True", "FewFree")).await?;
    let condition = condition::find(&status.conditions, SUBNET_EXHAUSTING).context("no condition")?;
    ensure!(condition.message.contains("/subnets/small has 4 of 11 addresses free"), "{}", condition.message);
    // It stands while other figures of the pool change, and is no news.
    stage.bind("n1", 2).await?;
    let counted = |status: &NodeIPPoolStatus| status.assigned == 2 && says(status, "True", "FewFree");
    until(&stage, "its pods are counted", counted).await?;
    // A pool that wants to hear of it later says so itself.
    stage.pool("default", json!({ "sizing": sizing, "subnetExhaustingPercent": 20 })).await?;
    until(&stage, "it is withdrawn", |status| says(status, "False", "EnoughFree")).await?;
    let events = Api::<Event>::all(stage.client.clone()).list(&ListParams::default()).await?;
    let about: Vec<_> = events
        .iter()
        .filter(|event| event.reason.as_deref() == Some(SUBNET_EXHAUSTING.name()))
        .map(|event| {
            let times = event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
            (event.involved_object.kind.clone().unwrap_or_default(), times)
        })
        .collect();
    ensure!(about == [("NodeIPPool".to_owned(), 1)], "{about:?}");
    Ok(())
}

async fn without_permission_to_count_nothing_but_the_forecast_is_missing(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let action = "Microsoft.Network/virtualNetworks/usages/read";
    stage.sim.deny(vec![action.into()]);
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    stage.until_says("n1", condition::READY, "Ready").await?;
    let said = |status: &NodeIPPoolStatus| {
        says(status, "Unknown", "PermissionDenied")
            && condition::is_true(&status.conditions, condition::READY)
    };
    let status = until(&stage, "it is said, and all else is well", said).await?;
    let message = condition::find(&status.conditions, SUBNET_EXHAUSTING).map(|one| one.message.clone());
    ensure!(message.is_some_and(|message| message.contains(action)), "{:?}", status.conditions);
    let subnet = status.subnets.first().context("no subnet")?;
    ensure!((subnet.size, subnet.free) == (Some(4091), None), "{subnet:?}");
    Ok(())
}
