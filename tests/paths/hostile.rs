//! A pod against its node, with no more than a container gets by default.

use crate::World;
use crate::beyond::SOON;
use crate::inside::one_probe;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;
use vnetpool_tests::eventually;
use vnetpool_tests::node::host_link;
use vnetpool_tests::place::{Call, Place};
use vnetpool_tests::workload::PORT;

/// Where forged packets would arrive.
const LISTENED: u16 = 9053;
/// More made-up neighbours than the kernel has room for.
const REQUESTS: &str = "1200";
/// How the addresses of those begin.
const MADE_UP: &str = "10.77.";

/// A socket that takes what arrives at this address of a machine.
fn listen(place: &Place, address: &str) -> Result<UdpSocket> {
    let socket = place.inside(|| UdpSocket::bind((address, LISTENED)))??;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The sender of the next packet that has arrived, if there is one.
fn sender(socket: &UdpSocket) -> Result<Option<IpAddr>> {
    match socket.recv_from(&mut [0]) {
        Ok((_, sender)) => Ok(Some(sender.ip())),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The name of a link's setting.
fn setting(link: &str, name: &str) -> String {
    format!("net.ipv4.conf.{link}.{name}")
}

/// The packets that a counter of the node's rules has by now.
async fn dropped(node: &Place, counter: &str) -> Result<u64> {
    let printed = node.run("nft", &["list", "counter", "inet", "vnetpool", counter]).await?;
    let packets = printed.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    Ok(packets.context("no counter")?.parse()?)
}

/// Each packet that should get nowhere is sent before one that arrives by the same way.
pub async fn a_pod_with_a_containers_default_capabilities_gets_nowhere_by_forged_packets(
    world: &World,
) -> Result<()> {
    const HOST_PORT: u16 = 8190;
    let (vm, node) = (&world.vm, world.node(0)?);
    // portmap has the node route packets to 127.0.0.1 that come from a pod with a port of the host's.
    let ports = json!({ "ports": [{ "containerPort": PORT, "hostPort": HOST_PORT }] });
    let manifest = one_probe("hostile", &world.pods[0].node, PORT, json!({}), ports);
    world.cluster.apply(&manifest.to_string()).await?;
    let pods = world.cluster.running("hostile", 1, Duration::from_secs(60)).await?;
    let pod = pods.first().context("no pod")?;
    let link = host_link(pod);
    let routes = node.run("sysctl", &["-n", &setting(&link, "route_localnet")]).await?;
    ensure!(routes.trim() == "1", "route_localnet of the pod's link is {routes:?}");
    // The kernel's own look at sources would hide what the node's rules do.
    let before = node.run("sysctl", &["-n", &setting("all", "rp_filter")]).await?;
    for link in ["all", &link] {
        node.run("sysctl", &["-q", "-w", &format!("{}=0", setting(link, "rp_filter"))]).await?;
    }
    // A table that an earlier chapter's pool changes would begin to count anew.
    eventually("the agent has taken up its spec", SOON, || async {
        let seen = world.cluster.allocation(&pod.node).await?;
        let observed = seen.status.and_then(|status| status.observed_generation);
        Ok((observed == seen.metadata.generation).then_some(()))
    })
    .await?;
    let attack = async |arguments: &[&str]| {
        world.cluster.kubectl(&[&["exec", pod.name.as_str(), "--", "/probe"][..], arguments].concat()).await
    };
    let forge = async |source: &str, to: &UdpSocket| -> Result<String> {
        attack(&["forge", "--source", source, "--to", &to.local_addr()?.to_string()]).await
    };
    let own = pod.address.to_string();
    let [at_vm, at_node, at_loopback] =
        [listen(vm, &vm.address)?, listen(&node, &node.address)?, listen(&node, "127.0.0.1")?];

    // Azure lets the other pod's address out by this NIC.
    forge(&world.pods[0].address.to_string(), &at_vm).await?;
    forge(&own, &at_vm).await?;
    let first = eventually("the VM gets a packet", SOON, || async { sender(&at_vm) }).await?;
    ensure!(first == IpAddr::from(pod.address), "the VM has a packet of {first}");

    let first = format!("{MADE_UP}0.1");
    attack(&["flood", "--ask", &node.address, "--senders", &first, "--count", REQUESTS]).await?;
    let counted = dropped(&node, "loopback").await?;
    forge(&own, &at_loopback).await?;
    forge(&own, &at_node).await?;
    eventually("the node gets a packet", SOON, || async { sender(&at_node) }).await?;
    let sender = sender(&at_loopback)?;
    ensure!(sender.is_none(), "the node's 127.0.0.1 has a packet of {sender:?}");
    // A kubelet would drop it, too, but only behind our table.
    let counts = [counted, dropped(&node, "loopback").await?];
    ensure!(counts[1] > counts[0], "packets to 127.0.0.1, before and after: {counts:?}");
    let neighbours = node.run("ip", &["neighbour", "show"]).await?;
    let made_up = neighbours.lines().filter(|line| line.starts_with(MADE_UP)).count();
    ensure!(made_up == 0, "the node has {made_up} made-up neighbours");
    let restored = format!("{}={}", setting("all", "rp_filter"), before.trim());
    node.run("sysctl", &["-q", "-w", &restored]).await?;
    world.cluster.undeploy("hostile").await
}

/// Unless the chart's monitoring is on.
pub async fn neither_a_pod_nor_a_vm_reaches_the_ports_of_agents_and_operator(world: &World) -> Result<()> {
    const OPERATOR: u16 = 9470;
    const AGENT: u16 = 9471;
    let is_alive = async |node: &Place, port: u16| {
        node.run("curl", &["-sS", "--fail", &format!("http://127.0.0.1:{port}/healthz")]).await.is_ok()
    };
    let nodes = [world.node(0)?, world.node(1)?];
    ensure!(is_alive(&nodes[0], AGENT).await && is_alive(&nodes[1], AGENT).await, "an agent doesn't serve");
    let operators = [is_alive(&nodes[0], OPERATOR).await, is_alive(&nodes[1], OPERATOR).await];
    ensure!(operators.contains(&true), "no operator serves");
    for node in &nodes {
        for from in [&world.pod(0)?, &world.pod(1)?, &world.vm] {
            for port in [OPERATOR, AGENT] {
                let call = from.call(&node.address, port).await?;
                ensure!(call == Call::Refused, "{} calls {}:{port}: {call:?}", from.address, node.address);
            }
        }
    }
    Ok(())
}
