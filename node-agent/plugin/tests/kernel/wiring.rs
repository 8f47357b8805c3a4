//! A wired pod's abilities, and what the kernel shows of it.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::node::{NODE, Namespace, Node, Pod, supply};
use vnetpool_plugin::{
    ledger::{Ledger, file},
    wiring::{HOST_MAC, HostLink, delete_host_link, disconnect, host_links, uplinks},
};

/// Opens a TCP connection from one namespace to an address in another; returns the source seen there.
pub fn connect(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> IpAddr {
    let listener = to.inside(|| TcpListener::bind((address, 0)).unwrap());
    let target = SocketAddr::new(address.into(), listener.local_addr().unwrap().port());
    // Both sockets stay in the namespace in which they were opened.
    let mut client = from.inside(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap());
    let (mut server, peer) = listener.accept().unwrap();
    client.write_all(b"ping").unwrap();
    let mut received = [0; 4];
    server.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"ping");
    peer.ip()
}

fn links_of(node: &Node) -> Vec<HostLink> {
    node.netns.inside(|| host_links().unwrap())
}

/// All others are left alone, whatever they lead to.
#[test]
fn a_pods_route_is_known_by_our_protocol() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    let route = node.netns.ip(&format!("route show {address} proto 176"));
    assert!(route.contains(&pod.host_link()), "{route}{}", node.netns.ip("route show"));
}

#[test]
fn pod_and_node_reach_each_other() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    assert_eq!(connect(&pod.netns, &node.netns, NODE), IpAddr::from(address));
    assert_eq!(connect(&node.netns, &pod.netns, address), IpAddr::from(NODE));
}

#[test]
fn two_pods_of_a_node_reach_each_other_under_their_own_addresses() {
    let (node, a, b) = (Node::holding(2), Pod::new("a"), Pod::new("b"));
    let (address_a, address_b) = (node.add(&a).address(), node.add(&b).address());
    assert_eq!(connect(&a.netns, &b.netns, address_b), IpAddr::from(address_a));
    assert_eq!(connect(&b.netns, &a.netns, address_a), IpAddr::from(address_b));
}

#[test]
fn the_mtu_of_the_configuration_is_on_both_ends() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let mut config = node.config();
    config["mtu"] = 1400.into();
    node.run("ADD", &pod.id, &pod.netns.path(), &config).succeeds();
    for (netns, link) in [(&pod.netns, "eth0"), (&node.netns, &pod.host_link())] {
        let end = netns.ip(&format!("link show {link}"));
        assert!(end.contains("mtu 1400"), "{end}");
    }
}

/// A packet that the kernel cuts comes as one and goes as more than forty.
#[test]
fn the_kernel_cuts_nothing_that_a_pod_sends_or_receives_in_bulk() {
    const BYTES: usize = 64 << 20;
    /// Of ARP.
    const OTHERS: u64 = 20;
    let (node, pod, far) = (Node::holding(1), Pod::new("a"), Namespace::new());
    far.take(&node.netns, "wire");
    far.ip("address add 10.240.0.5/20 dev wire");
    far.ip("link set wire up");
    far.ip(&format!("route add 10.240.1.0/24 via {NODE}"));
    // As the agent finds it, which writes the configuration.
    node.netns.ip("link set eth0 gso_max_size 62780");
    let links = node.netns.inside(|| uplinks().unwrap());
    let (_, eth0) = links.into_iter().find(|(_, link)| link.name == "eth0").unwrap();
    let mut config = node.config();
    config["gsoMaxSize"] = eth0.gso_max.into();
    let address = node.run("ADD", &pod.id, &pod.netns.path(), &config).address();
    let (link, other) = (pod.host_link(), Ipv4Addr::new(10, 240, 0, 5));
    // The far end sends larger packets than the uplink could cut, as a NIC puts together what it receives.
    let ways = [
        ("out", (&pod.netns, &far, other), (link.as_str(), "eth0")),
        ("in", (&far, &pod.netns, address), ("eth0", link.as_str())),
    ];
    for (way, (from, to, target), (by, out_by)) in ways {
        let count = || [packets(&node, by, "rx"), packets(&node, out_by, "tx")];
        let before = count();
        transfer(from, to, target, BYTES);
        let after = count();
        let [came, went] = [0, 1].map(|index| after[index] - before[index]);
        assert!(came < BYTES as u64 / 10_000, "{way}: {came} packets came, so none was large");
        assert!(went <= came + OTHERS, "{way}: {came} packets came and {went} went");
    }
}

fn packets(node: &Node, link: &str, way: &str) -> u64 {
    let shown: Value = serde_json::from_str(&node.netns.ip(&format!("-j -s link show {link}"))).unwrap();
    shown[0]["stats64"][way]["packets"].as_u64().unwrap()
}

/// Sends so many bytes over a TCP connection from one namespace to an address in another.
fn transfer(from: &Namespace, to: &Namespace, target: Ipv4Addr, bytes: usize) {
    let listener = to.inside(|| TcpListener::bind((target, 0)).unwrap());
    let mut client = from.inside(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let received = thread::scope(|scope| {
        scope.spawn(move || {
            let piece = vec![0; 1 << 20];
            (0..bytes / piece.len()).for_each(|_| client.write_all(&piece).unwrap());
        });
        std::io::copy(&mut server, &mut std::io::sink()).unwrap()
    });
    assert_eq!(received, bytes as u64);
}

#[test]
fn the_pair_has_one_queue_each_way_and_a_fixed_mac() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    let link = node.netns.ip(&format!("-d link show {}", pod.host_link()));
    assert!(link.contains("numtxqueues 1 numrxqueues 1"), "{link}");
    let mac = HOST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    assert!(link.contains(&mac), "{link}");
}

/// The kernel's table of neighbours is one for all network namespaces, and takes no more than `gc_thresh3`
/// entries of those that aren't permanent. So no test fills it: it would be full for the whole machine.
#[test]
fn the_node_needs_no_room_in_its_table_of_neighbours_to_reach_a_pod() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    let entry = node.netns.ip(&format!("neighbour show to {address}"));
    assert!(entry.contains(&pod.host_link()) && entry.contains("PERMANENT"), "{entry}");
    // It would be learnt from an answer.
    pod.netns.inside(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_ignore", "8").unwrap());
    assert_eq!(connect(&node.netns, &pod.netns, address), IpAddr::from(NODE));
}

#[test]
fn a_pod_can_not_divert_the_node_by_router_advertisements() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    let link = pod.host_link();
    assert_eq!(
        node.netns.ip(&format!("-6 address show dev {link}")),
        "",
        "the host's end has an IPv6 address"
    );
    let disabled = node
        .netns
        .inside(|| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6")).unwrap());
    assert_eq!(disabled.trim(), "1");
}

#[test]
fn after_del_a_process_left_in_the_namespace_is_silent() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    node.del(&pod).succeeds();
    assert_eq!(node.netns.ip("route show scope link proto 176"), "", "the route is still there");
    let is_reached = pod.netns.inside(|| {
        let nobody = SocketAddr::new(NODE.into(), 9);
        TcpStream::connect_timeout(&nobody, Duration::from_millis(200)).is_err_and(|error| {
            error.kind() == std::io::ErrorKind::ConnectionRefused // by the node, so it was reached
        })
    });
    assert!(!is_reached);
    let links = links_of(&node);
    assert_eq!(links.len(), 1, "the link goes with the namespace, not before");
    assert!(links[0].is_silenced());
    assert_eq!(links[0].occupants(), [], "{address} still counts as in use");
}

#[test]
fn the_host_links_name_the_holder_of_each_address() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    let links = links_of(&node);
    let [link] = &links[..] else { panic!("{links:?}") };
    assert!(link.up);
    assert_eq!((link.name.clone(), link.routes.clone()), (pod.host_link(), vec![address]));
    let identity = link.identity.clone().unwrap();
    assert_eq!((identity.address, identity.sandbox), (address, pod.sandbox()));
    assert_eq!((identity.pod.namespace.as_str(), identity.pod.uid.as_str()), ("default", "uid-a"));
}

#[test]
fn a_ledger_built_from_the_kernel_has_the_assignments_of_the_lost_one() {
    let (node, a, b) = (Node::holding(3), Pod::new("a"), Pod::new("b"));
    let address = node.add(&a).address();
    node.add(&b).succeeds();
    node.del(&b).succeeds();
    for name in ["ledger", "lock"] {
        std::fs::remove_file(node.dir.path().join(name)).unwrap();
    }
    let quiet = node.store.quiesce().unwrap();
    let occupants: Vec<_> = links_of(&node).iter().flat_map(HostLink::occupants).collect();
    let ledger =
        Ledger::rebuild(file::boot_id().unwrap(), &occupants, &[], &supply(2, 3), None, file::now(), true);
    quiet.create(&ledger).unwrap();
    assert_eq!(node.ledger().address_of(&a.sandbox()), Some(address));
    assert_eq!(node.ledger().counts(file::now()).assigned, 1);
    assert_eq!(node.add(&a).address(), address);
}

#[test]
fn an_address_that_the_node_routes_elsewhere_is_not_wired() {
    let (node, a, b) = (Node::holding(1), Pod::new("a"), Pod::new("b"));
    let address = node.add(&a).address();
    // A ledger that lacks the wired sandboxes: the agent must never write one.
    let forgetful =
        Ledger::rebuild(file::boot_id().unwrap(), &[], &[], &supply(2, 1), None, file::now(), true);
    node.store.quiesce().unwrap().create(&forgetful).unwrap();
    let refused = node.add(&b);
    assert_eq!(refused.code(), 100);
    assert!(refused.message().contains("already routes"), "{}", refused.message());
    assert_eq!(connect(&node.netns, &a.netns, address), IpAddr::from(NODE), "the first pod keeps it");
    assert_eq!(node.ledger().counts(file::now()).assigned, 0, "undone");
}

#[test]
fn a_leaked_link_is_silenced_and_deleted() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    let (sandbox, facts) = (pod.sandbox(), pod.facts());
    node.netns.inside(|| {
        disconnect(&sandbox, &facts).unwrap();
        disconnect(&sandbox, &facts).unwrap();
        let index = host_links().unwrap()[0].index;
        delete_host_link(index).unwrap();
        delete_host_link(index).unwrap();
        assert_eq!(disconnect(&sandbox, &facts).unwrap(), None);
    });
    assert_eq!(links_of(&node), []);
}

#[test]
fn a_link_goes_with_its_namespace() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    pod.netns.delete();
    crate::node::eventually("the kernel has removed the link", || links_of(&node), |links| links.is_empty());
}
