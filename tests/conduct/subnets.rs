//! Subnets and their networks: what a pool's status shows of them, and the forecast of their end.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use vnetpool_azure_sim::{Config, Habits, NewVm, VnetConfig};
use vnetpool_crds::NodeIPPoolStatus;
use vnetpool_crds::condition::{self, NETWORK_EXHAUSTING, SUBNET_EXHAUSTING, Type};
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_pool_shows_each_subnets_size_held_and_free_addresses,
    without_permission_to_count_nothing_but_the_forecast_is_missing,
];

pub const LONG: &[Test] = crate::tests![
    a_subnet_that_fills_up_is_forecast_on_the_pool_and_reported_once,
    a_networks_taken_addresses_and_forecast_do_not_depend_on_how_azure_counts_blocks,
];

async fn until(
    stage: &Stage<'_>,
    what: &str,
    shows: impl Fn(&NodeIPPoolStatus) -> bool,
) -> Result<NodeIPPoolStatus> {
    stage.until_pool(what, "default", |pool| pool.status.clone().filter(&shows)).await
}

fn has_forecast(status: &NodeIPPoolStatus, turned: &str, reason: &str) -> bool {
    has_condition(status, SUBNET_EXHAUSTING, turned, reason)
}

fn has_condition(status: &NodeIPPoolStatus, type_: Type, turned: &str, reason: &str) -> bool {
    condition::find(&status.conditions, type_).is_some_and(|one| one.status == turned && one.reason == reason)
}

/// How many Events with this reason each kind of object has.
async fn events(stage: &Stage<'_>, reason: Type) -> Result<Vec<(String, i32)>> {
    let events = Api::<Event>::all(stage.client.clone()).list(&ListParams::default()).await?;
    let about = events.iter().filter(|event| event.reason.as_deref() == Some(reason.name()));
    let times = |event: &Event| event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
    Ok(about.map(|event| (event.involved_object.kind.clone().unwrap_or_default(), times(event))).collect())
}

async fn a_pool_shows_each_subnets_size_held_and_free_addresses(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.node("n1", Some("nodes")).await?;
    stage.node("n2", Some("small")).await?;
    for node in ["n1", "n2"] {
        stage.until_holds(node, 4).await?;
    }
    let have_figures = |status: &NodeIPPoolStatus| {
        status.subnets.len() == 2 && status.subnets.iter().all(|one| one.held == 4 && one.free.is_some())
    };
    let status = until(&stage, "both subnets with figures", have_figures).await?;
    let shown = |name: &str| {
        let subnet = status.subnets.iter().find(|one| one.id.ends_with(name));
        subnet.map(|one| (one.nodes, one.held, one.size)).context(name.to_owned())
    };
    ensure!(shown("/subnets/nodes")? == (1, 4, Some(4091)), "{:?}", status.subnets);
    ensure!(shown("/subnets/small")? == (1, 4, Some(11)), "{:?}", status.subnets);
    Ok(())
}

async fn a_subnet_that_fills_up_is_forecast_on_the_pool_and_reported_once(
    plane: &ControlPlane,
) -> Result<()> {
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
    let status = until(&stage, "it is forecast", |status| has_forecast(status, "True", "FewFree")).await?;
    let condition = condition::find(&status.conditions, SUBNET_EXHAUSTING).context("no condition")?;
    ensure!(
        condition.message.contains("/subnets/small fewer are free than the 40 %"),
        "{}",
        condition.message
    );
    // It stands while other figures of the pool change, and is no news.
    stage.bind("n1", 2).await?;
    let counted = |status: &NodeIPPoolStatus| status.assigned == 2 && has_forecast(status, "True", "FewFree");
    until(&stage, "its pods are counted", counted).await?;
    // A pool that wants the forecast later has a field for it.
    stage.pool("default", json!({ "sizing": sizing, "subnetExhaustingPercent": 20 })).await?;
    until(&stage, "it is withdrawn", |status| has_forecast(status, "False", "EnoughFree")).await?;
    let about = events(&stage, SUBNET_EXHAUSTING).await?;
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
    stage.until_condition("n1", condition::READY, "Ready").await?;
    let is_reported = |status: &NodeIPPoolStatus| {
        has_forecast(status, "Unknown", "PermissionDenied")
            && condition::is_true(&status.conditions, condition::READY)
    };
    let status = until(&stage, "it is reported, and all else is well", is_reported).await?;
    let message = condition::find(&status.conditions, SUBNET_EXHAUSTING).map(|one| one.message.clone());
    ensure!(message.is_some_and(|message| message.contains(action)), "{:?}", status.conditions);
    let subnet = status.subnets.first().context("no subnet")?;
    ensure!((subnet.size, subnet.free) == (Some(4091), None), "{subnet:?}");
    Ok(())
}

async fn a_networks_taken_addresses_and_forecast_do_not_depend_on_how_azure_counts_blocks(
    plane: &ControlPlane,
) -> Result<()> {
    const NODES: [&str; 3] = ["n1", "n2", "n3"];
    for usages_count_blocks_once in [true, false] {
        // A /22 has 1,019 addresses, of which 48 blocks take 768.
        let (range, nodes) = ("10.240.0.0/16".parse()?, "10.240.0.0/22".parse()?);
        let vnet = VnetConfig {
            name: "vnet".into(),
            address_prefixes: vec![range],
            subnets: vec![("nodes".into(), nodes)],
        };
        let habits = Habits { usages_count_blocks_once, ..Habits::default() };
        let stage = Stage::empty(plane, Config { vnets: vec![vnet], habits, ..quick() }).await?;
        let pool = |percent: u8| {
            json!({ "mode": "Prefix", "subnetExhaustingPercent": percent,
                "sizing": { "minimum": 255, "warm": 0, "maximum": 256 } })
        };
        stage.pool("default", pool(20)).await?;
        stage.start().await?;
        for node in NODES {
            stage.node(node, None).await?;
        }
        for node in NODES {
            stage.until_holds(node, 16).await?;
        }
        // The count of an operator that starts, so that the test needn't wait for the minute's.
        stage.kill().await?;
        stage.start().await?;
        // Each block counts once, and so does each of the nodes' own addresses.
        let counted = |status: &NodeIPPoolStatus| {
            status.networks.iter().map(|one| (one.used, one.limit)).eq([(Some(51), 65_536)])
                && status.subnets.iter().map(|one| one.free).eq([Some(248)])
                && has_condition(status, NETWORK_EXHAUSTING, "False", "EnoughFree")
        };
        until(&stage, &format!("counted, blocks once: {usages_count_blocks_once}"), counted).await?;
        // Of a pool that wants to hear of the first address taken.
        stage.pool("default", pool(100)).await?;
        let warns = |status: &NodeIPPoolStatus| has_condition(status, NETWORK_EXHAUSTING, "True", "FewFree");
        let status = until(&stage, "it is forecast", warns).await?;
        let condition = condition::find(&status.conditions, NETWORK_EXHAUSTING).context("no condition")?;
        for part in ["/virtualNetworks/vnet fewer are left than the 100 %", "mode Prefix"] {
            ensure!(condition.message.contains(part), "{part}: {}", condition.message);
        }
        stage.pool("default", pool(20)).await?;
        let over =
            |status: &NodeIPPoolStatus| has_condition(status, NETWORK_EXHAUSTING, "False", "EnoughFree");
        until(&stage, "it is withdrawn", over).await?;
        let about = events(&stage, NETWORK_EXHAUSTING).await?;
        ensure!(about == [("NodeIPPool".to_owned(), 1)], "{about:?}");
    }
    Ok(())
}
