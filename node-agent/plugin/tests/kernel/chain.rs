//! The chain that the agent configures, with the reference plugins: ports of the node that lead to pods, and
//! bandwidth limits.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use vnetpool_plugin::ledger::file;

use crate::{
    node::{NODE, Namespace, Node, Pod},
    runtime::Runtime,
};

const VM: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 5);
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const HOST_PORT: u16 = 8081;
const POD_PORT: u16 = 80;
/// The far end of a test's connection answers or refuses at once, unless packets are lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// A node with two addresses, and a VM on the other end of its wire; ours, portmap and bandwidth in a chain.
fn stage() -> (Runtime, Namespace) {
    let (node, vm) = (Node::holding(2), Namespace::new());
    node.netns.ip(&format!("link set wire netns {}", vm.path().file_name().unwrap().to_str().unwrap()));
    vm.ip("link set lo up");
    vm.ip(&format!("address add {VM}/20 dev wire"));
    vm.ip("link set wire up");
    for pod in 1..=2 {
        vm.ip(&format!("route add 10.240.1.{pod}/32 via {NODE}")); // as Azure delivers a NIC's addresses
    }
    let ours = json!({ "type": "vnetpool", "stateDir": node.dir.path() });
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true });
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    (Runtime::new(node, "1.0.0", json!([ours, portmap, bandwidth])), vm)
}

fn port_mapping() -> Value {
    json!({ "portMappings": [{ "hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp" }] })
}

/// The source that the pod sees of a connection to the port of `to`; None if it's refused or lost.
fn seen(pod: &TcpListener, from: &Namespace, to: Ipv4Addr) -> Option<IpAddr> {
    let target = SocketAddr::from((to, HOST_PORT));
    let _client = from.inside(|| TcpStream::connect_timeout(&target, PATIENCE)).ok()?;
    Some(pod.accept().unwrap().1.ip())
}

fn host_port_by(backend: &str) {
    let (mut runtime, vm) = stage();
    // portmap runs whichever iptables it finds.
    let tools = tempfile::tempdir().unwrap();
    let program = format!("/usr/sbin/xtables-{backend}-multi");
    for name in ["iptables", "ip6tables"] {
        symlink(&program, tools.path().join(name)).unwrap();
    }
    runtime.path = format!("{}:{}", tools.path().display(), runtime.path);
    let (pod, other) = (Pod::new("a"), Pod::new("b"));
    let added = runtime.invoke("add", &pod.netns.path(), port_mapping());
    let address = added.address();
    let other_address = runtime.run("add", &other.netns).address();
    let listener = pod.netns.inside(|| TcpListener::bind((address, POD_PORT)).unwrap());

    assert_eq!(seen(&listener, &vm, NODE), Some(VM.into()), "a VM, or another node, under its own address");
    assert_eq!(seen(&listener, &runtime.node.netns, NODE), Some(NODE.into()), "the node itself");
    assert!(seen(&listener, &runtime.node.netns, LOCALHOST).is_some(), "the node by 127.0.0.1");
    assert_eq!(seen(&listener, &other.netns, NODE), Some(other_address.into()), "another pod of the node");
    assert!(seen(&listener, &pod.netns, NODE).is_some(), "the pod itself");

    runtime.invoke("del", &pod.netns.path(), port_mapping()).succeeds();
    assert_eq!(seen(&listener, &vm, NODE), None, "the port leads nowhere once the pod is gone");
    runtime.run("del", &other.netns).succeeds();
    assert_eq!(runtime.node.ledger().counts(file::now()).free, 2);
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_by_iptables_on_nftables() {
    host_port_by("nft");
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_by_legacy_iptables() {
    host_port_by("legacy");
}

/// How long this many bytes take from one namespace to a server in another.
fn time_to_send(bytes: usize, from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Duration {
    let listener = to.inside(|| TcpListener::bind((address, 0)).unwrap());
    let target = SocketAddr::from((address, listener.local_addr().unwrap().port()));
    let start = Instant::now();
    let sender = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut stream = from.inside(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
            stream.write_all(&vec![0; bytes]).unwrap();
        });
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), bytes);
        sender.join()
    });
    sender.unwrap();
    start.elapsed()
}

#[test]
fn a_pods_bandwidth_is_limited_each_way_and_its_neighbours_is_not() {
    const BYTES: usize = 1_000_000;
    let (runtime, vm) = stage();
    let (limited, other) = (Pod::new("a"), Pod::new("b"));
    // In bits: 1 MB in a second, of which the first 50 kB at once.
    let limits = json!({ "bandwidth": {
        "ingressRate": 8_000_000, "ingressBurst": 400_000, "egressRate": 8_000_000, "egressBurst": 400_000,
    } });
    let address = runtime.invoke("add", &limited.netns.path(), limits.clone()).address();
    let other_address = runtime.run("add", &other.netns).address();
    let at_least = Duration::from_millis(700);
    assert!(time_to_send(BYTES, &vm, &limited.netns, address) > at_least, "to the pod");
    assert!(time_to_send(BYTES, &limited.netns, &vm, VM) > at_least, "from the pod");
    // A busy machine may take its time, but not each time.
    let is_quick = || time_to_send(BYTES, &vm, &other.netns, other_address) < at_least;
    assert!((0..5).any(|_| is_quick()), "to a pod without limits");
    runtime.invoke("check", &limited.netns.path(), limits.clone()).succeeds();
    runtime.invoke("del", &limited.netns.path(), limits).succeeds();
    assert!(!runtime.node.netns.ip("link show type ifb").contains("bwp"), "its device is left");
    runtime.run("del", &other.netns).succeeds();
}
