//! Traffic that comes straight to pods from Azure: a load balancer with pods in its backend pool, a public
//! address of a pod's own.

use crate::{SERVED, SOON, World};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, arm, id, put_subnet, until_dropped, until_seen};
use vnetpool_tests::workload::PORT;

/// The frontend of the load balancer before the pods.
const FRONTEND: &str = "10.240.15.201";

/// A load balancer that leads from this frontend to the pods in its backend pool, which the nodes' pool then
/// offers to pods by the balancer's name.
async fn balance(world: &World, name: &str, frontend: Value) -> Result<()> {
    let part = |part: &str| json!({ "id": id(&format!("loadBalancers/{name}/{part}")) });
    let rule = json!({
        "frontendIPConfiguration": part("frontendIPConfigurations/front"), "backendAddressPool": part("backendAddressPools/pods"),
        "probe": part("probes/whoami"), "protocol": "Tcp", "frontendPort": SERVED, "backendPort": PORT,
    });
    let probe = json!({ "protocol": "Http", "port": PORT, "requestPath": "/whoami" });
    let body = json!({ "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [{ "name": "front", "properties": frontend }],
        "backendAddressPools": [{ "name": "pods" }],
        "probes": [{ "name": "whoami", "properties": probe }],
        "loadBalancingRules": [{ "name": "web", "properties": rule }],
    } });
    arm(&world.cluster, "PUT", &format!("loadBalancers/{name}"), body).await?;
    let pool = json!([{ "name": name, "id": id(&format!("loadBalancers/{name}/backendAddressPools/pods")) }]);
    world.cluster.patch_pool(json!({ "attachments": { "backendPools": pool } })).await
}

/// The Standard SKU lets in only what a security group of the subnet allows: here, all of the internet.
async fn let_the_internet_in(world: &World) -> Result<()> {
    let allow = json!({ "name": "all", "properties": { "priority": 100, "direction": "Inbound", "access": "Allow",
        "protocol": "*", "sourceAddressPrefix": "Internet", "sourcePortRange": "*", "destinationAddressPrefix": "*",
        "destinationPortRange": "*" } });
    let group = json!({ "properties": { "securityRules": [allow] } });
    arm(&world.cluster, "PUT", "networkSecurityGroups/open", group).await?;
    let guarded = json!({ "networkSecurityGroup": { "id": id("networkSecurityGroups/open") } });
    put_subnet(&world.cluster, "vnet/subnets/nodes", guarded).await
}

pub async fn a_pod_straight_behind_a_load_balancer_sees_its_client(world: &World) -> Result<()> {
    let subnet = id("virtualNetworks/vnet/subnets/nodes");
    let frontend = json!({ "subnet": { "id": subnet }, "privateIPAddress": FRONTEND, "privateIPAllocationMethod": "Static" });
    balance(world, "inner", frontend).await?;
    let pod = world.pod("balanced", "node-1", json!({ "vnetpool.io/backend-pools": "inner" })).await?;
    // The probe comes to the pod's own address, too: without its answer no connection is led there.
    let wanted = Seen::new(&world.vm.address, pod.address);
    until_seen(&world.vm, FRONTEND, SERVED, &wanted).await?;
    world.cluster.kubectl(&["delete", "pod", "balanced", "--wait"]).await?;
    until_dropped(&world.vm, FRONTEND, SERVED).await
}

pub async fn a_pod_straight_behind_a_public_load_balancer_sees_its_client_of_the_internet(
    world: &World,
) -> Result<()> {
    let_the_internet_in(world).await?;
    let public =
        json!({ "sku": { "name": "Standard" }, "properties": { "publicIPAllocationMethod": "Static" } });
    let public = arm(&world.cluster, "PUT", "publicIPAddresses/outer", public).await?;
    let address = public["properties"]["ipAddress"].as_str().context("a public address without one")?;
    balance(world, "outer", json!({ "publicIPAddress": { "id": id("publicIPAddresses/outer") } })).await?;
    let pod = world.pod("balanced", "node-1", json!({ "vnetpool.io/backend-pools": "outer" })).await?;
    let internet = &world.internet;
    until_seen(internet, address, SERVED, &Seen::new(&internet.address, pod.address)).await?;
    // Its own connections leave as usual.
    Place::pod(&pod)?.is_seen_as(&world.nodes[0].address, &internet.address, SOON).await?;
    world.cluster.kubectl(&["delete", "pod", "balanced", "--wait"]).await?;
    until_dropped(internet, address, SERVED).await?;
    put_subnet(&world.cluster, "vnet/subnets/nodes", json!({})).await
}

pub async fn a_pod_with_a_public_address_leaves_by_it_and_is_reached_under_it(world: &World) -> Result<()> {
    let_the_internet_in(world).await?;
    world.cluster.patch_pool(json!({ "attachments": { "publicAddressNamespaces": ["default"] } })).await?;
    let pod = world.pod("public", "node-2", json!({ "vnetpool.io/public-address": "true" })).await?;
    let range = format!("{}/32", pod.address);
    // Azure makes the public address, then writes the NIC: ten seconds each.
    let public = eventually("the pod's public address", 3 * SOON, || async {
        let allocation = world.cluster.allocation("node-2").await?;
        let entry = allocation.spec.ip_configurations().find(|one| one.address == range).cloned();
        Ok(entry.context("the pod's address isn't the node's")?.public_address.and_then(|one| one.address))
    })
    .await?;
    let internet = &world.internet;
    // The world sees it, and comes to the pod by it; the VNet sees the pod's own address, as of every pod.
    Place::pod(&pod)?.is_seen_as(&public, &internet.address, SOON).await?;
    until_seen(internet, &public, PORT, &Seen::new(&internet.address, pod.address)).await?;
    Place::pod(&pod)?.is_seen_as(&pod.address.to_string(), &world.vm.address, SOON).await?;
    // A pod without one leaves under its node's.
    let plain = Place::pod(&world.away)?;
    plain.is_seen_as(&world.nodes[1].address, &internet.address, SOON).await?;
    world.cluster.kubectl(&["delete", "pod", "public", "--wait"]).await?;
    until_dropped(internet, &public, PORT).await?;
    put_subnet(&world.cluster, "vnet/subnets/nodes", json!({})).await
}
