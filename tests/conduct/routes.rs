//! Pools of mode Route: the operator keeps a route table, and others write to it, too.

use crate::Test;
use crate::metrics::Metrics;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use vnetpool_azure_sim::Effect;
use vnetpool_crds::condition::{self, INTERFACE_FOUND, READY, RESERVED, VALID};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;
use vnetpool_tests::wait::Limit;

pub const TESTS: &[Test] = crate::tests![
    each_node_gets_a_range_of_its_own_and_many_share_a_write,
    only_the_route_of_a_node_that_is_gone_is_removed,
    a_passing_404_of_the_table_leaves_the_record_of_a_gone_nodes_route,
    a_success_that_leaves_the_route_of_a_gone_node_leaves_its_record_too,
    a_removed_route_is_put_back_with_the_same_range,
    a_pod_cidr_that_overlaps_the_vnet_or_another_pool_is_refused_by_name,
    a_pool_is_served_as_soon_as_the_older_one_with_its_range_is_deleted,
    a_full_route_table_is_reported_and_used_again_when_there_is_room,
    a_subnet_without_the_pools_route_table_is_named,
    a_node_that_moves_between_modes_first_gives_back_its_addresses,
    an_operator_that_dies_between_table_and_spec_leaves_no_second_range,
];

/// Nothing here takes longer.
const SOON: Duration = Duration::from_secs(30);
const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// A route of another client's.
pub fn theirs() -> Value {
    json!({ "name": "to-firewall", "properties": { "addressPrefix": "172.31.0.0/16", "nextHopType": "None" } })
}

/// The table `pods` with these routes, and the subnet `nodes` that goes by it. Gives the table's id.
pub async fn table(stage: &Stage<'_>, routes: Value) -> Result<String> {
    let id = stage
        .put("Microsoft.Network/routeTables/pods", json!({ "properties": { "routes": routes } }))
        .await?;
    settled(stage, &id).await?;
    let subnet = json!({ "properties": { "addressPrefix": "10.240.0.0/20", "routeTable": { "id": id } } });
    let subnet = stage.put("Microsoft.Network/virtualNetworks/vnet/subnets/nodes", subnet).await?;
    settled(stage, &subnet).await?;
    Ok(id)
}

/// A resource, once no write to it is under way.
pub(crate) async fn settled(stage: &Stage<'_>, id: &str) -> Result<Value> {
    eventually(&format!("{id} settled"), SOON, || async {
        let seen = stage.get(id).await?;
        Ok((seen["properties"]["provisioningState"] == "Succeeded").then_some(seen))
    })
    .await
}

pub fn pool(table: &str, cidr: &str) -> Value {
    json!({ "mode": "Route", "route": { "podCIDR": cidr, "routeTableID": table } })
}

/// A stage with the table and a pool of 10.244.0.0/16 that uses it.
pub async fn stage(plane: &ControlPlane) -> Result<(Stage<'_>, String)> {
    let stage = Stage::empty(plane, quick()).await?;
    let id = table(&stage, json!([theirs()])).await?;
    stage.pool("default", pool(&id, "10.244.0.0/16")).await?;
    stage.start().await?;
    Ok((stage, id))
}

/// Name, range and next hop of each route.
pub async fn routes(stage: &Stage<'_>, table: &str) -> Result<Vec<(String, String, String)>> {
    let seen = settled(stage, table).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = seen["properties"]["routes"].as_array().cloned().unwrap_or_default();
    Ok(all
        .iter()
        .map(|one| {
            let own = &one["properties"];
            (text(&one["name"]), text(&own["addressPrefix"]), text(&own["nextHopIpAddress"]))
        })
        .collect())
}

/// The node's range as published.
fn range(seen: &NodeIPAllocation) -> Option<String> {
    seen.spec.ip_configurations().next().map(|one| one.address.clone())
}

async fn until_routed(stage: &Stage<'_>, node: &str) -> Result<NodeIPAllocation> {
    stage.until_offers(node, 256).await?;
    stage.until_condition(node, READY, "Ready").await?;
    stage.allocation(node).await
}

/// Waits until the table holds so many routes.
async fn until_routes(stage: &Stage<'_>, table: &str, count: usize) -> Result<Vec<(String, String, String)>> {
    eventually(&format!("{count} routes"), SOON, || async {
        let seen = routes(stage, table).await?;
        ensure!(seen.len() == count, "{seen:?}");
        Ok(Some(seen))
    })
    .await
}

/// Waits until a pool is valid, or isn't, and returns the condition.
async fn until_valid(stage: &Stage<'_>, pool: &str, status: &str) -> Result<Condition> {
    let with_status = |pool: &NodeIPPool| {
        let valid = condition::find(&pool.status.as_ref()?.conditions, VALID)?;
        (valid.status == status).then(|| valid.clone())
    };
    stage.until_pool(&format!("Valid of the pool {pool} is {status}"), pool, with_status).await
}

async fn each_node_gets_a_range_of_its_own_and_many_share_a_write(plane: &ControlPlane) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    stage.sim.clear_log();
    futures::future::try_join_all(NODES.map(|node| stage.node(node, Some("nodes")))).await?;
    let mut ranges = BTreeSet::new();
    for node in NODES {
        let seen = until_routed(&stage, node).await?;
        let own = range(&seen).context("no range")?;
        ensure!(own.starts_with("10.244.") && own.ends_with("/24"), "{own}");
        ensure!(seen.spec.snat_exclusions == ["10.240.0.0/16", "10.244.0.0/16"], "{:?}", seen.spec);
        let hop = &seen.spec.interfaces[0].primary_address;
        let known = routes(&stage, &table).await?;
        ensure!(known.iter().any(|(_, range, to)| *range == own && to == hop), "{own}: {known:?}");
        ensure!(stage.nic(node)["properties"]["enableIPForwarding"] == true, "{node} doesn't forward");
        ensure!(stage.held(node).is_empty(), "{node} has ipConfigurations as well");
        stage.until_events(node, "ForwardingEnabled", 1).await?;
        ranges.insert(own);
    }
    ensure!(ranges.len() == NODES.len(), "{ranges:?}");
    let writes =
        stage.asked().iter().filter(|one| one.method == "PUT" && one.path.contains("routeTables")).count();
    ensure!(writes < NODES.len(), "{writes} writes for {} nodes", NODES.len());
    stage.bind("n1", 30).await?;
    stage.until_assigned("n1", 30).await
}

async fn only_the_route_of_a_node_that_is_gone_is_removed(plane: &ControlPlane) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    for node in ["n1", "n2"] {
        stage.node(node, Some("nodes")).await?;
        until_routed(&stage, node).await?;
    }
    let kept = range(&stage.allocation("n2").await?).context("no range")?;
    stage.sim.delete_vm("n1", false).await?;
    stage.delete_node("n1").await?;
    let left: Vec<String> =
        until_routes(&stage, &table, 2).await?.into_iter().map(|(_, range, _)| range).collect();
    ensure!(left == ["172.31.0.0/16".to_owned(), kept], "{left:?}");
    stage.nothing_was_listed()
}

/// The record of `n1` goes, and its route went before.
async fn until_no_route_is_left(stage: &Stage<'_>, table: &str) -> Result<()> {
    stage.until_gone("n1").await?;
    let left = routes(stage, table).await?;
    ensure!(left.len() == 1, "a dead node's route stays, and is in no record: {left:?}");
    Ok(())
}

async fn a_passing_404_of_the_table_leaves_the_record_of_a_gone_nodes_route(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    stage.node("n1", Some("nodes")).await?;
    until_routed(&stage, "n1").await?;
    stage.kill().await?;
    stage.start_with(|config| config.waits.second_read = Duration::from_secs(10)).await?;
    let body = json!({ "error": { "code": "ResourceNotFound", "message": "It could not be found." } });
    let missing = Effect::Status { status: 404, body, headers: Default::default() };
    let faults = ["GET", "PUT"].map(|method| stage.fault(method, "/routeTables/", None, missing.clone()));
    stage.sim.delete_vm("n1", true).await?;
    stage.delete_node("n1").await?;
    stage.until_condition("n1", READY, "ResourceNotFound").await?;
    for fault in faults {
        stage.sim.lift_fault(fault)?;
    }
    until_no_route_is_left(&stage, &table).await
}

async fn a_success_that_leaves_the_route_of_a_gone_node_leaves_its_record_too(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    stage.node("n1", Some("nodes")).await?;
    until_routed(&stage, "n1").await?;
    let body = stage.get(&table).await?;
    let unchanged = Effect::Status { status: 200, body, headers: Default::default() };
    let fault = stage.fault("PUT", "/routeTables/", None, unchanged);
    stage.sim.delete_vm("n1", true).await?;
    stage.delete_node("n1").await?;
    stage.until_condition("n1", READY, "WithoutEffect").await?;
    stage.sim.lift_fault(fault)?;
    until_no_route_is_left(&stage, &table).await
}

async fn a_removed_route_is_put_back_with_the_same_range(plane: &ControlPlane) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    stage.node("n1", Some("nodes")).await?;
    until_routed(&stage, "n1").await?;
    let before = routes(&stage, &table).await?;
    stage.stop().await?;
    stage
        .put("Microsoft.Network/routeTables/pods", json!({ "properties": { "routes": [theirs()] } }))
        .await?;
    until_routes(&stage, &table, 1).await?;
    // A new operator reads the tables in use first of all, and every minute from then on.
    stage.start().await?;
    let after = until_routes(&stage, &table, 2).await?;
    ensure!(before == after, "{before:?} then {after:?}");
    stage.until_events("n1", "RouteMended", 1).await.map(drop)
}

async fn a_pod_cidr_that_overlaps_the_vnet_or_another_pool_is_refused_by_name(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    stage.node("n1", Some("nodes")).await?;
    until_routed(&stage, "n1").await?;
    for (name, cidr, theirs, weight) in
        [("vnet", "10.240.128.0/17", "10.240.0.0/16", 1), ("twin", "10.244.64.0/18", "10.244.0.0/16", 2)]
    {
        let mut spec = pool(&table, cidr);
        spec["weight"] = json!(weight);
        spec["nodeSelector"] = json!({ "matchLabels": { "kubernetes.io/hostname": name } });
        stage.pool(name, spec).await?;
        let vm = stage
            .sim
            .add_vm(vnetpool_azure_sim::NewVm {
                name: name.into(),
                subnet: Some("nodes".into()),
                ..Default::default()
            })
            .await?;
        stage.join_labelled(name, &vm.provider_id, &[("kubernetes.io/hostname", name)]).await?;
        let found = stage.until_condition(name, INTERFACE_FOUND, "RangeOverlap").await?;
        ensure!(found.message.contains(cidr) && found.message.contains(theirs), "{}", found.message);
        let valid = until_valid(&stage, name, "False").await?;
        ensure!(valid.reason == "RangeOverlap" && valid.message.contains(theirs), "{valid:?}");
    }
    ensure!(routes(&stage, &table).await?.len() == 2, "a refused pool got a route");
    Ok(())
}

/// Waits until no node has been reconciled for longer than news about counts are held back, which is 10 s:
/// later events are then no late effect of earlier ones.
async fn until_quiet(stage: &Stage<'_>) -> Result<()> {
    let reconciles = async || {
        let metrics = Metrics::scrape(stage).await?;
        anyhow::Ok(metrics.sum("vnetpool_operator_reconciles_total", &[r#"controller="node""#]))
    };
    let (mut limit, mut since, mut last) =
        (Limit::new(Duration::from_secs(60)), Instant::now(), reconciles().await?);
    while since.elapsed() < Duration::from_secs(11) {
        ensure!(!limit.is_over(), "nodes are reconciled all the time");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = reconciles().await?;
        if now != last {
            (since, last) = (Instant::now(), now);
        }
    }
    Ok(())
}

async fn a_pool_is_served_as_soon_as_the_older_one_with_its_range_is_deleted(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    let mut twin = pool(&table, "10.244.64.0/18");
    (twin["weight"], twin["nodeSelector"]) = (json!(1), json!({ "matchLabels": { "range": "twin" } }));
    stage.pool("twin", twin).await?;
    let new =
        vnetpool_azure_sim::NewVm { name: "n1".into(), subnet: Some("nodes".into()), ..Default::default() };
    let vm = stage.sim.add_vm(new).await?;
    stage.join_labelled("n1", &vm.provider_id, &[("range", "twin")]).await?;
    stage.until_condition("n1", INTERFACE_FOUND, "RangeOverlap").await?;
    until_valid(&stage, "twin", "False").await?;
    until_quiet(&stage).await?;
    stage.delete_pool("default").await?;
    let routed = until_routed(&stage, "n1").await?;
    ensure!(range(&routed).is_some_and(|range| range.starts_with("10.244.")), "{:?}", routed.spec);
    until_valid(&stage, "twin", "True").await.map(drop)
}

async fn a_full_route_table_is_reported_and_used_again_when_there_is_room(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let filler = |n: usize| {
        json!({ "name": format!("r{n}"),
        "properties": { "addressPrefix": format!("172.16.{}.{}/32", n / 256, n % 256), "nextHopType": "None" } })
    };
    let all: Vec<Value> = (0..400).map(filler).collect();
    let id = table(&stage, json!(all)).await?;
    stage.pool("default", pool(&id, "10.244.0.0/16")).await?;
    stage.start().await?;
    stage.node("n1", Some("nodes")).await?;
    let reserved = stage.until_condition("n1", RESERVED, "RouteTableFull").await?;
    ensure!(reserved.message.contains("it has 400 routes"), "{}", reserved.message);
    let some = json!({ "properties": { "routes": all[..399] } });
    stage.put("Microsoft.Network/routeTables/pods", some).await?;
    // A person that edits the pool needn't wait for the next try.
    let mut again = pool(&id, "10.244.0.0/16");
    again["cooldown"] = json!("29s");
    stage.pool("default", again).await?;
    until_routed(&stage, "n1").await.map(drop)
}

async fn a_subnet_without_the_pools_route_table_is_named(plane: &ControlPlane) -> Result<()> {
    let (stage, _) = stage(plane).await?;
    stage.node("n1", Some("small")).await?;
    let found = stage.until_condition("n1", INTERFACE_FOUND, "RouteTableNotAssociated").await?;
    ensure!(found.message.contains("is none. Associate"), "{}", found.message);
    ensure!(stage.allocation("n1").await?.spec.addresses() == 0, "offered all the same");
    Ok(())
}

async fn a_node_that_moves_between_modes_first_gives_back_its_addresses(plane: &ControlPlane) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    stage.node("n1", Some("nodes")).await?;
    stage.bind("n1", 2).await?;
    until_routed(&stage, "n1").await?;
    let sizing = json!({ "minimum": 4, "warm": 0, "releaseAfter": "0s" });
    stage.pool("single", json!({ "weight": 1, "sizing": sizing })).await?;
    let found = stage.until_condition("n1", INTERFACE_FOUND, "Moving").await?;
    ensure!(found.message.contains("drain it"), "{}", found.message);
    ensure!(routes(&stage, &table).await?.len() == 2, "its pods lost their route");
    stage.unbind("n1", 2).await?;
    stage.until_holds("n1", 4).await?;
    until_routes(&stage, &table, 1).await?;
    ensure!(stage.allocation("n1").await?.spec.route_table_id.is_none(), "the table is still named");
    // And back.
    stage.delete_pool("single").await?;
    until_routed(&stage, "n1").await?;
    ensure!(stage.held("n1").is_empty(), "still {:?}", stage.held("n1"));
    Ok(())
}

async fn an_operator_that_dies_between_table_and_spec_leaves_no_second_range(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, table) = stage(plane).await?;
    let fault = stage.fault("PUT", "/routeTables/", Some(1), Effect::Hold);
    stage.node("n1", Some("nodes")).await?;
    let written = until_routes(&stage, &table, 2).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    let left = stage.allocation("n1").await?;
    ensure!(left.spec.addresses() == 0, "published before it was known: {:?}", left.spec);
    ensure!(find(&left, condition::WRITING).is_some_and(|one| one.status == "True"), "{left:?}");
    stage.start().await?;
    until_routed(&stage, "n1").await?;
    ensure!(routes(&stage, &table).await? == written, "written again");
    Ok(())
}
