//! Wirings beside each other, and the effect of the plugins behind ours.

use crate::{PATIENCE, World, blocks};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;
use vnetpool_crds::{condition, pool::Wiring};
use vnetpool_process::lock::lock;
use vnetpool_tests::eventually;
use vnetpool_tests::node::host_link;
use vnetpool_tests::place::{Call, Place, Seen};
use vnetpool_tests::workload::{PORT, ProbePod, container};

/// The megabytes that Kubernetes lets through before a limit holds: containerd asks for a burst of 2^32 - 1
/// bits.
const BURST: u32 = 537;

/// Has the agents of the pool of blocks wire new pods so. An agent that reports it has taken this up has it
/// in the configuration.
pub async fn wire(world: &World, wiring: Wiring) -> Result<()> {
    blocks::serve(world).await?;
    let patch = json!({ "spec": { "wiring": wiring } }).to_string();
    world.cluster.kubectl(&["patch", "nodeippool", "blocks", "--type=merge", "-p", &patch]).await?;
    for node in blocks::NODES {
        eventually(&format!("the agent of {node} has taken it up"), PATIENCE, || async {
            let seen = world.cluster.allocation(node).await?;
            let observed = seen.status.and_then(|status| status.observed_generation);
            Ok((seen.spec.wiring == wiring && observed == seen.metadata.generation).then_some(()))
        })
        .await?;
        let configuration = world.cluster.host(node)?.path("/etc/cni/net.d/10-vnetpool.conflist");
        let configuration = std::fs::read_to_string(&configuration)?;
        ensure!(configuration.contains(&json!(wiring).to_string()), "{node} has {configuration}");
    }
    Ok(())
}

/// The pods of `two` are routed, those made later are behind the bridges of both nodes.
pub async fn new_pods_are_behind_the_bridge_and_old_ones_reach_them(world: &World) -> Result<()> {
    wire(world, Wiring::Routed).await?;
    let mut all = world.start("two", "node-2", 2).await?;
    wire(world, Wiring::Bridge).await?;
    for (name, node) in [("bridged-2", "node-2"), ("bridged-3", "node-3")] {
        all.extend(world.start(name, node, 2).await?);
        let ports = world.node(node)?.run("ip", &["-o", "link", "show", "master", "vnpbridge"]).await?;
        ensure!(ports.lines().count() == 2, "two pods are behind the bridge of {node}, and it has {ports:?}");
        let eth0 = world.node(node)?.run("ip", &["-o", "link", "show", "eth0"]).await?;
        ensure!(!eth0.contains("master"), "eth0 is a port: {eth0}");
    }
    let pairs = world.cluster.all_pairs(&all).await?;
    ensure!(pairs.total == 30 && pairs.failures.is_empty(), "{}", pairs.failures.join("\n"));
    let service = format!("--port={PORT}");
    world.cluster.kubectl(&["expose", "deployment", "bridged-2", &service]).await?;
    let service = ["get", "service", "bridged-2", "--output", "jsonpath={.spec.clusterIP}"];
    let service = world.cluster.kubectl(&service).await?;
    for pod in all.iter().filter(|pod| pod.name.starts_with("bridged")) {
        let (place, node) = (Place::pod(pod)?, world.node(&pod.node)?);
        let answered = Mutex::new(BTreeSet::new());
        eventually(&format!("both pods of a Service answer {}", pod.name), PATIENCE, || async {
            let seen = place.seen_by(&service).await?;
            let mut answered = lock(&answered);
            answered.insert(seen.local);
            Ok((answered.len() == 2).then_some(()))
        })
        .await?;
        let seen = place.seen_by(&world.internet.address).await?;
        ensure!(seen == Seen::new(&node.address, &world.internet.address), "the internet sees {seen:?}");
        let seen = node.seen_by(&place.address).await?;
        ensure!(seen == Seen::new(&node.address, &place.address), "the pod sees its node as {seen:?}");
    }
    world.cluster.kubectl(&["delete", "service", "bridged-2"]).await?;
    world.end(&["two", "bridged-2", "bridged-3"]).await
}

/// One probe with more fields for its pod's metadata and its container's port.
async fn probe(world: &World, name: &str, node: &str, annotations: Value, ports: Value) -> Result<ProbePod> {
    let mut container = container(PORT);
    container["ports"] = ports;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name }, "annotations": annotations },
        "spec": {
            "terminationGracePeriodSeconds": 1, "nodeName": node, "automountServiceAccountToken": false,
            "containers": [container],
        },
    });
    world.cluster.apply(&pod.to_string()).await?;
    let pods = world.cluster.running(name, 1, PATIENCE).await?;
    pods.into_iter().next().context("no pod")
}

pub async fn a_host_port_leads_to_a_routed_pod(world: &World) -> Result<()> {
    wire(world, Wiring::Routed).await?;
    a_host_port_leads_to_its_pod(world, "routed-port").await
}

pub async fn a_host_port_leads_to_a_pod_behind_the_bridge(world: &World) -> Result<()> {
    wire(world, Wiring::Bridge).await?;
    a_host_port_leads_to_its_pod(world, "bridged-port").await
}

async fn a_host_port_leads_to_its_pod(world: &World, name: &str) -> Result<()> {
    const HOST_PORT: u16 = 8188;
    eventually("node-3 has the plugins to chain", PATIENCE, || async {
        let conditions = world.cluster.allocation("node-3").await?.status.context("no status")?.conditions;
        let chained = condition::find(&conditions, condition::CNI_INSTALLED).context("no condition")?;
        ensure!(chained.reason == "Installed", "{}", chained.message);
        Ok(Some(()))
    })
    .await?;
    let ports = json!([{ "containerPort": PORT, "hostPort": HOST_PORT }]);
    let pod = probe(world, name, "node-3", json!({}), ports).await?;
    let node = world.node("node-3")?;
    for from in [&world.vm, &world.node("node-2")?] {
        let seen = from.seen_at(&node.address, HOST_PORT).await?;
        ensure!(seen == Seen::new(&from.address, pod.address), "the pod sees {seen:?}");
    }
    world.cluster.kubectl(&["delete", "pod", name]).await?;
    // The node itself answers that nothing listens there.
    let call = world.vm.call(&node.address, HOST_PORT).await?;
    ensure!(call == Call::Refused, "after its pod the port gives {call:?}");
    Ok(())
}

pub async fn the_bandwidth_annotation_limits_its_pod_and_no_other(world: &World) -> Result<()> {
    const MORE: u32 = 60;
    /// Megabytes a second.
    const RATE: u32 = 20;
    wire(world, Wiring::Bridge).await?;
    let limit = json!({ "kubernetes.io/ingress-bandwidth": format!("{}M", RATE * 8) });
    let limited = probe(world, "limited", "node-2", limit, json!([])).await?;
    let free = probe(world, "free", "node-2", json!({}), json!([])).await?;
    let mut took = Vec::new();
    for pod in [&limited, &free] {
        let _drain = Place::pod(pod)?.probe(&["drain"])?.spawn()?;
        let (address, megabytes) = (pod.address.to_string(), (BURST + MORE).to_string());
        let seconds = eventually("the drain", PATIENCE, || async {
            let output = world.vm.probe(&["pour", &address, &megabytes])?.output().await?;
            let error = String::from_utf8_lossy(&output.stderr);
            Ok(Some(String::from_utf8(output.stdout)?.trim().parse::<f64>().context(error.into_owned())?))
        });
        took.push(seconds.await?);
    }
    println!("{} MB took {took:.1?} s, limited and not", BURST + MORE);
    // However busy the machine is, the limited pod can't be faster than its limit. The other pod's queue
    // shows that it has none.
    let least = f64::from(MORE / RATE) * 0.9;
    ensure!(took[0] > least, "no limit of {RATE} MB/s: {took:?}");
    for (pod, is_limited) in [(&limited, true), (&free, false)] {
        let link = host_link(pod);
        let queues = world.node("node-2")?.run("tc", &["qdisc", "show", "dev", &link]).await?;
        ensure!(queues.contains("tbf") == is_limited, "{} ({link}) has {queues}", pod.name);
    }
    world.cluster.kubectl(&["delete", "pod", "limited", "free"]).await.map(drop)
}
