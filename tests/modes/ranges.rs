//! Mode `Route`: pods of a pod CIDR, which the VNet reaches by a route table only.

use crate::{MOVES, World};
use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, arm, id};
use vnetpool_tests::workload::ProbePod;

/// The table of the nodes' subnet.
pub const TABLE: &str = "routeTables/pods";
const NODES: [&str; 2] = ["node-1", "node-2"];

/// The table's routes: the range by its next hop.
async fn routes(world: &World) -> Result<BTreeMap<String, Ipv4Net>> {
    let table = arm(&world.cluster, "GET", TABLE, json!({})).await?;
    let routes = table["properties"]["routes"].as_array().context("no routes")?;
    let route = |one: &Value| {
        let own = &one["properties"];
        Some((own["nextHopIpAddress"].as_str()?.to_owned(), own["addressPrefix"].as_str()?.parse().ok()?))
    };
    Ok(routes.iter().filter_map(route).collect())
}

async fn pod(world: &World, node: &str) -> Result<ProbePod> {
    let pods = world.start(&format!("ranged-{node}"), node, 1).await?;
    pods.into_iter().next().context("no pod")
}

/// Has both nodes serve their pods with a range each. They come from pools of other modes, and give back
/// their addresses first.
async fn serve(world: &World) -> Result<()> {
    for name in ["stay", "come"] {
        world.cluster.no_pods(name).await?;
    }
    let route = json!({ "podCIDR": "10.244.0.0/16", "nodePrefixLength": 24, "routeTableID": id(TABLE) });
    let spec = json!({ "mode": "Route", "route": route, "cooldown": "1s" });
    world.pool("ranges", &NODES, spec).await?;
    for node in NODES {
        let address = world.node(node)?.address;
        eventually(&format!("a route to {node}, and nothing on its NIC"), MOVES, || async {
            let held = world.cluster.azure.nic(&world.cluster.host(node)?.nic_id).await?.pod_addresses();
            ensure!(held.is_empty(), "the NIC holds {held:?}");
            Ok(routes(world).await?.contains_key(&address).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn end(world: &World) -> Result<()> {
    for node in NODES {
        world.end(&[&format!("ranged-{node}")]).await?;
    }
    Ok(())
}

pub async fn pods_of_a_range_reach_each_other_by_the_route_table(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    serve(world).await?;
    for node in NODES {
        let range = routes(world).await?.get(&world.node(node)?.address).copied().context("no route")?;
        let pods = world.start(&format!("ranged-{node}"), node, 1).await?;
        ensure!(range.contains(&pods[0].address), "{} isn't of {range}", pods[0].address);
        let nic = cluster.azure.nic(&cluster.host(node)?.nic_id).await?;
        ensure!(nic.pod_addresses().is_empty(), "the NIC of {node} holds {:?}", nic.pod_addresses());
    }
    let (one, two) = (pod(world, NODES[0]).await?, pod(world, NODES[1]).await?);
    for (from, to) in [(&one, &two), (&two, &one)] {
        let seen = Place::pod(from)?.seen_by(to.address).await?;
        ensure!(seen == Seen::new(from.address, to.address), "{} sees {seen:?}", to.address);
    }
    end(world).await
}

pub async fn the_vnet_sees_a_pod_of_a_range_and_a_network_without_the_route_sees_its_node(
    world: &World,
) -> Result<()> {
    serve(world).await?;
    for name in NODES {
        let (pod, node) = (Place::pod(&pod(world, name).await?)?, world.node(name)?);
        // Its subnet has the table.
        let seen = pod.seen_by(&world.vm.address).await?;
        ensure!(seen == Seen::new(&pod.address, &world.vm.address), "the VM sees {seen:?}");
        let seen = world.vm.seen_by(&pod.address).await?;
        ensure!(seen == Seen::new(&world.vm.address, &pod.address), "the pod sees the VM as {seen:?}");
        for end in [&world.far.place, &world.premises.place, &world.internet] {
            let seen = pod.seen_by(&end.address).await?;
            ensure!(seen == Seen::new(&node.address, &end.address), "{} sees {seen:?}", end.address);
        }
    }
    end(world).await
}

pub async fn packets_to_a_free_address_of_a_range_end_on_its_node(world: &World) -> Result<()> {
    serve(world).await?;
    let (one, two) = (pod(world, NODES[0]).await?, Place::pod(&pod(world, NODES[1]).await?)?);
    let range = Ipv4Net::new(one.address, 24)?.trunc();
    let free = range.hosts().find(|address| *address != one.address).context("no free address")?;
    let own = Place::pod(&one)?;
    for from in [&world.vm, &two, &own] {
        let error = refusal(from, free).await?;
        ensure!(error.contains("No route to host"), "{} gets {error:?} for {free}", from.address);
    }
    end(world).await
}

/// The answer to a client of an address that no pod has.
async fn refusal(from: &Place, address: Ipv4Addr) -> Result<String> {
    let call = format!("exec 3<>/dev/tcp/{address}/8080");
    let output = from.command("timeout").args(["8", "bash", "-c", &call]).output().await?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

pub async fn a_node_that_goes_loses_its_route(world: &World) -> Result<()> {
    serve(world).await?;
    for node in NODES {
        pod(world, node).await?;
    }
    let [stays, goes] = NODES.map(|node| world.node(node));
    let (stays, goes) = (stays?.address, goes?.address);
    ensure!(routes(world).await?.len() == 2, "{:?}", routes(world).await?);
    world.cluster.node("delete", NODES[1]).await?;
    // The NIC is gone for Azure, too, and the operator believes that only a minute later.
    eventually("the route of a node that is gone", Duration::from_secs(120), || async {
        let left = routes(world).await?;
        ensure!(left.contains_key(&stays) && !left.contains_key(&goes), "{left:?}");
        Ok(Some(()))
    })
    .await?;
    for node in NODES {
        world.cluster.kubectl(&["delete", "deployment", &format!("ranged-{node}")]).await?;
    }
    // The pod of a node that is gone is ended only by a controller that comes by from time to time.
    let orphans = format!("app=ranged-{}", NODES[1]);
    world.cluster.kubectl(&["delete", "pods", "-l", &orphans, "--force", "--grace-period=0"]).await?;
    world.cluster.no_pods(&format!("ranged-{}", NODES[0])).await
}
