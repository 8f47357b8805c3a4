//! Services as machines outside of the cluster reach them: by a node's port, and by an Azure load balancer in
//! front of the nodes.

use crate::{SERVED, SOON, World};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Seen, arm, id, until_dropped, until_seen};
use vnetpool_tests::wait::Limit;

/// The frontend of the load balancer before the nodes.
pub const FRONTEND: &str = "10.240.15.200";
/// kube-proxy's health page.
const HEALTH: u16 = 10256;

/// The port that every node has for a Service.
pub fn node_port(service: &Value) -> Result<u16> {
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?;
    Ok(port.try_into()?)
}

pub async fn a_node_port_leads_from_any_node_or_keeps_the_clients_address(world: &World) -> Result<()> {
    let policy = |policy: &str| json!({ "type": "NodePort", "externalTrafficPolicy": policy });
    let port = node_port(&world.serve("port", "web", policy("Cluster")).await?)?;
    // Any node leads there; the connection comes from the node that was addressed, so that the answer goes
    // back over it.
    for node in &world.nodes {
        let wanted = Seen::new(&node.address, world.web.address);
        until_seen(&world.vm, &node.address, port, &wanted).await?;
    }
    world.serve("port", "web", policy("Local")).await?;
    let [with, without] = &world.nodes;
    until_seen(&world.vm, &with.address, port, &Seen::new(&world.vm.address, world.web.address)).await?;
    until_dropped(&world.vm, &without.address, port).await?;
    world.unserve("port").await
}

/// The objects that Azure's cloud provider writes for a Service: a rule that leaves the frontend's address in
/// the packet, and a probe.
async fn write_load_balancer(world: &World, probed: u16) -> Result<()> {
    let part = |part: &str| json!({ "id": id(&format!("loadBalancers/nodes/{part}")) });
    let subnet = id("virtualNetworks/vnet/subnets/nodes");
    let frontend = json!({ "subnet": { "id": subnet }, "privateIPAddress": FRONTEND, "privateIPAllocationMethod": "Static" });
    let rule = json!({
        "frontendIPConfiguration": part("frontendIPConfigurations/front"), "backendAddressPool": part("backendAddressPools/nodes"),
        "probe": part("probes/health"), "protocol": "Tcp", "frontendPort": SERVED, "backendPort": SERVED,
        "enableFloatingIP": true,
    });
    let probe = json!({ "protocol": "Http", "port": probed, "requestPath": "/healthz" });
    let body = json!({ "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [{ "name": "front", "properties": frontend }],
        "backendAddressPools": [{ "name": "nodes" }],
        "probes": [{ "name": "health", "properties": probe }],
        "loadBalancingRules": [{ "name": "web", "properties": rule }],
    } });
    arm(&world.cluster, "PUT", "loadBalancers/nodes", body).await.map(drop)
}

/// Puts the node's own ipConfiguration into the backend pool, or takes it out.
async fn join(world: &World, node: &str, pools: &Value) -> Result<()> {
    let resource = format!("networkInterfaces/{node}-nic");
    // The operator may write at the same time.
    eventually(&format!("{node} in {pools}"), SOON, || async {
        let mut nic = arm(&world.cluster, "GET", &resource, json!({})).await?;
        let all = nic["properties"]["ipConfigurations"].as_array_mut().context("no NIC")?;
        let own = all.iter_mut().find(|one| one["properties"]["primary"] == true);
        own.context("no primary")?["properties"]["loadBalancerBackendAddressPools"] = pools.clone();
        arm(&world.cluster, "PUT", &resource, nic).await.map(Some)
    })
    .await
    .map(drop)
}

/// The kind of a Service behind a load balancer.
fn behind(policy: &str) -> Value {
    json!({ "type": "LoadBalancer", "externalTrafficPolicy": policy })
}

/// Makes a Service that keeps its clients' addresses, with a load balancer before it, and waits until the VM
/// comes to its pod.
pub async fn bring_front(world: &World) -> Result<()> {
    let service = world.serve("front", "web", behind("Local")).await?;
    let health = service["spec"]["healthCheckNodePort"].as_u64().context("no port for health")?;
    write_load_balancer(world, u16::try_from(health)?).await?;
    for node in ["node-1", "node-2"] {
        join(world, node, &json!([{ "id": id("loadBalancers/nodes/backendAddressPools/nodes") }])).await?;
    }
    let ingress = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": FRONTEND }] } } }).to_string();
    let patch = ["patch", "service", "front", "--subresource=status", "--type=merge", "-p", &ingress];
    world.cluster.kubectl(&patch).await?;

    let wanted = Seen::new(&world.vm.address, world.web.address);
    until_seen(&world.vm, FRONTEND, SERVED, &wanted).await
}

pub async fn take_front_away(world: &World) -> Result<()> {
    for node in ["node-1", "node-2"] {
        join(world, node, &json!([])).await?;
    }
    world.unserve("front").await
}

pub async fn a_load_balancer_leads_from_any_node_or_keeps_the_clients_address(world: &World) -> Result<()> {
    bring_front(world).await?;
    let wanted = Seen::new(&world.vm.address, world.web.address);
    // Never by way of the node without an endpoint, which doesn't answer the probe.
    for _ in 0..8 {
        let seen = world.vm.seen_at(FRONTEND, SERVED).await?;
        ensure!(seen == wanted, "the pod sees {seen:?}");
    }

    world.serve("front", "web", behind("Cluster")).await?;
    write_load_balancer(world, HEALTH).await?;
    let mut sources = BTreeSet::new();
    let all: BTreeSet<_> = world.nodes.iter().map(|node| node.address.clone()).collect();
    let mut limit = Limit::new(Duration::from_secs(30));
    while sources != all {
        ensure!(!limit.is_over(), "it came from {sources:?} only");
        let seen = world.vm.seen_at(FRONTEND, SERVED).await;
        // Until kube-proxy and the probes have followed, answers may come as before, or not at all.
        let Ok(seen) = seen else { continue };
        ensure!(seen.local == world.web.address.to_string(), "it came to {seen:?}");
        if seen.source != world.vm.address {
            sources.insert(seen.source);
        }
    }
    ensure!(sources == all, "it came from {sources:?}");
    take_front_away(world).await
}
