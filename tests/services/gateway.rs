//! An Azure application gateway in a subnet of its own, with pods' addresses as its backends.

use crate::ingress::{Forwarded, called};
use crate::{SERVED, SOON, World};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, arm, id};
use vnetpool_tests::workload::{PORT, ProbePod};

pub const SUBNET: &str = "10.240.17.0/24";
/// The beginning of all of its addresses.
const WITHIN: &str = "10.240.17.";
const FRONTEND: &str = "10.240.17.10";

/// The objects that Azure's own ingress controller writes for an Ingress: the addresses of its pods as a
/// backend pool.
async fn write_gateway(world: &World, pods: &[ProbePod]) -> Result<Value> {
    let part = |part: &str| json!({ "id": id(&format!("applicationGateways/pods/{part}")) });
    let subnet = json!({ "id": id("virtualNetworks/vnet/subnets/gateways") });
    let private =
        json!({ "subnet": subnet, "privateIPAddress": FRONTEND, "privateIPAllocationMethod": "Static" });
    let public = json!({ "publicIPAddress": { "id": id("publicIPAddresses/gateway") } });
    let backends: Vec<_> = pods.iter().map(|pod| json!({ "ipAddress": pod.address })).collect();
    let probe = json!({ "protocol": "Http", "host": "pods", "path": "/whoami", "interval": 1, "timeout": 1,
        "unhealthyThreshold": 1 });
    let settings = json!({ "port": PORT, "protocol": "Http", "probe": part("probes/whoami") });
    let listener = |frontend: &str| {
        let place = part(&format!("frontendIPConfigurations/{frontend}"));
        json!({ "name": frontend, "properties": {
            "protocol": "Http", "frontendPort": part("frontendPorts/http"), "frontendIPConfiguration": place } })
    };
    let rule = |frontend: &str, priority: u32| {
        json!({ "name": frontend, "properties": { "ruleType": "Basic", "priority": priority,
            "httpListener": part(&format!("httpListeners/{frontend}")),
            "backendAddressPool": part("backendAddressPools/pods"),
            "backendHttpSettings": part("backendHttpSettingsCollection/http") } })
    };
    let body = json!({ "properties": {
        "sku": { "name": "Standard_v2", "tier": "Standard_v2", "capacity": 1 },
        "gatewayIPConfigurations": [{ "name": "own", "properties": { "subnet": subnet } }],
        "frontendIPConfigurations": [{ "name": "private", "properties": private }, { "name": "public", "properties": public }],
        "frontendPorts": [{ "name": "http", "properties": { "port": SERVED } }],
        "probes": [{ "name": "whoami", "properties": probe }],
        "backendAddressPools": [{ "name": "pods", "properties": { "backendAddresses": backends } }],
        "backendHttpSettingsCollection": [{ "name": "http", "properties": settings }],
        "httpListeners": [listener("private"), listener("public")],
        "requestRoutingRules": [rule("private", 1), rule("public", 2)],
    } });
    arm(&world.cluster, "PUT", "applicationGateways/pods", body).await
}

/// Waits until requests by the gateway come to each of these pods and to no other, each from the gateway's
/// subnet and in the client's name.
async fn until_reached(from: &Place, address: &str, pods: &[ProbePod]) -> Result<()> {
    let wanted: BTreeSet<_> = pods.iter().map(|pod| pod.address.to_string()).collect();
    eventually(&format!("{wanted:?} reached by {} through the gateway", from.address), SOON, || async {
        let mut reached = BTreeSet::new();
        for _ in 0..2 * wanted.len() {
            let url = format!("http://{address}:{SERVED}/whoami");
            let Forwarded { source, local, forwarded_for } = called(from, &url).await?;
            ensure!(source.starts_with(WITHIN) && source != FRONTEND, "the pod is called by {source}");
            // An application gateway names the port, too.
            let caller = forwarded_for.rsplit_once(':').map(|(caller, _)| caller);
            ensure!(caller == Some(&*from.address), "the pod is called in the name of {forwarded_for:?}");
            reached.insert(local);
        }
        ensure!(reached == wanted, "it reaches {reached:?}");
        Ok(Some(()))
    })
    .await
}

pub async fn an_application_gateway_in_another_subnet_calls_pods_at_their_own_addresses(
    world: &World,
) -> Result<()> {
    let cluster = &world.cluster;
    let subnet = json!({ "properties": { "addressPrefix": SUBNET } });
    arm(cluster, "PUT", "virtualNetworks/vnet/subnets/gateways", subnet).await?;
    let standard =
        json!({ "sku": { "name": "Standard" }, "properties": { "publicIPAllocationMethod": "Static" } });
    let public = arm(cluster, "PUT", "publicIPAddresses/gateway", standard).await?;
    let public = public["properties"]["ipAddress"].as_str().context("no public address")?;
    // One on each node.
    let pods = [world.near.clone(), world.away.clone()];
    write_gateway(world, &pods).await?;
    until_reached(&world.vm, FRONTEND, &pods).await?;
    until_reached(&world.internet, public, &pods).await?;
    write_gateway(world, &pods[1..]).await?;
    until_reached(&world.vm, FRONTEND, &pods[1..]).await?;
    arm(cluster, "DELETE", "applicationGateways/pods", json!({})).await.map(drop)
}
