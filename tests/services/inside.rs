//! Services as pods, nodes and VMs reach them by the Service's own address, or by those of its pods.

use crate::{SERVED, SOON, World};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, until_seen};

/// Where the probe of a pod on the node's network listens: the node's other ports are others'.
const ON_HOST: u16 = 18080;

pub fn cluster_ip(service: &Value) -> Result<String> {
    service["spec"]["clusterIP"].as_str().map(str::to_owned).context("a Service without an address")
}

/// The chapters of a mode depend on this: otherwise both modes could be shown by the same one.
pub async fn kube_proxy_runs_in_the_mode_that_is_meant(world: &World) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let mode = world.cluster.run_on(node, &["curl", "-sS", "http://127.0.0.1:10249/proxyMode"]).await?;
        ensure!(mode == world.mode, "kube-proxy on {node} runs in mode {mode}");
    }
    Ok(())
}

pub async fn a_cluster_ip_leads_to_a_pod_that_sees_its_callers_own_address(world: &World) -> Result<()> {
    let address = cluster_ip(&world.serve("web", "web", json!({})).await?)?;
    // A pod on the same node and on another; each node itself.
    let callers = [Place::pod(&world.near)?, Place::pod(&world.away)?];
    for caller in callers.iter().chain(&world.nodes) {
        until_seen(caller, &address, SERVED, &Seen::new(&caller.address, world.web.address)).await?;
    }
    world.unserve("web").await
}

pub async fn a_pod_on_the_nodes_network_reaches_a_cluster_ip_under_the_nodes_address(
    world: &World,
) -> Result<()> {
    let address = cluster_ip(&world.serve("web", "web", json!({})).await?)?;
    let on_host = json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" });
    for (node, name) in world.nodes.iter().zip(["node-1", "node-2"]) {
        let pod = world.pod_with("on-host", name, ON_HOST, json!({}), on_host.clone()).await?;
        ensure!(pod.address.to_string() == node.address, "the pod has {} of its own", pod.address);
        // By the Service's name, too: such a pod may ask the cluster's DNS.
        for target in [format!("{address}:{SERVED}"), format!("web:{SERVED}")] {
            let via = format!("{}:{ON_HOST}", node.address);
            eventually(&format!("a call of {target} by a pod on the network of {name}"), SOON, || async {
                let dials = world.cluster.dial_via(&via, std::slice::from_ref(&target)).await?;
                let seen: Vec<_> = dials.iter().map(|dial| &dial.source_seen_by_target).collect();
                ensure!(seen == [&node.address], "{dials:?}");
                Ok(Some(()))
            })
            .await?;
        }
        world.cluster.kubectl(&["delete", "pod", "on-host", "--wait"]).await?;
    }
    world.unserve("web").await
}

pub async fn a_pod_reaches_itself_through_its_own_service(world: &World) -> Result<()> {
    let address = cluster_ip(&world.serve("web", "web", json!({})).await?)?;
    let pod = Place::pod(&world.web)?;
    // kube-proxy has such a connection come from the node, or the pod would answer itself and not the
    // Service.
    until_seen(&pod, &address, SERVED, &Seen::new(&world.nodes[0].address, &pod.address)).await?;
    world.unserve("web").await
}

/// Which pods a client comes to when it connects again and again.
async fn reached(from: &Place, address: &str) -> Result<BTreeSet<String>> {
    let mut reached = BTreeSet::new();
    for _ in 0..16 {
        let seen = from.seen_at(address, SERVED).await?;
        ensure!(seen.source == from.address, "the pod sees {seen:?}");
        reached.insert(seen.local);
    }
    Ok(reached)
}

pub async fn an_affinity_keeps_a_client_with_one_pod(world: &World) -> Result<()> {
    world.cluster.deploy("many", 3, None).await?;
    let many = world.cluster.running("many", 3, Duration::from_secs(60)).await?;
    let address = cluster_ip(&world.serve("many", "many", json!({})).await?)?;
    let client = Place::pod(&world.near)?;
    // Without an affinity it comes to each of them.
    let all: BTreeSet<_> = many.iter().map(|pod| pod.address.to_string()).collect();
    eventually("every pod reached", SOON, || async {
        Ok((reached(&client, &address).await? == all).then_some(()))
    })
    .await?;
    world.serve("many", "many", json!({ "sessionAffinity": "ClientIP" })).await?;
    eventually("one pod reached", SOON, || async {
        let reached = reached(&client, &address).await?;
        ensure!(reached.len() == 1, "{reached:?}");
        Ok(Some(()))
    })
    .await?;
    world.unserve("many").await?;
    world.cluster.undeploy("many").await
}

pub async fn a_headless_service_names_the_pods_addresses_and_a_vm_reaches_them(world: &World) -> Result<()> {
    world.serve("bare", "away", json!({ "clusterIP": "None" })).await?;
    let selector = "kubernetes.io/service-name=bare";
    let named = eventually("the Service's endpoints", SOON, || async {
        let slices = world.cluster.kubectl(&["get", "endpointslices", "-l", selector, "-o", "json"]).await?;
        let slices: Value = serde_json::from_str(&slices)?;
        Ok(slices["items"][0]["endpoints"][0]["addresses"].as_array().cloned())
    })
    .await?;
    ensure!(named == [json!(world.away.address)], "it names {named:?}");
    let seen = world.vm.seen_by(world.away.address).await?;
    ensure!(seen == Seen::new(&world.vm.address, world.away.address), "the pod sees {seen:?}");
    world.unserve("bare").await
}
