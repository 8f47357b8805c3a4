//! What pods reach of Azure's services on the host, and of the node's own loopback.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use vnetpool_crds::{pool::MetadataAccess, refusal::Service};
use vnetpool_node_agent::firewall::{Family, apply::Firewall, events::Events, netlink::generation};
use vnetpool_plugin::wiring::Wiring;

use crate::world::{
    INTERNET, METADATA, NEIGHBOUR, NODE, Namespace, OTHER_POD, POD, PORT, WIRE_SERVER, World, ask, block_on,
    ensure, read, rules, rules_with,
};

const DNS: u16 = 53;

/// Whether a connection from here gets neither an answer nor a refusal.
fn is_dropped(from: &Namespace, to: Ipv4Addr, port: u16) -> bool {
    from.connect_at(to, port).is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

type Dropped = BTreeMap<String, u64>;
type Asked = BTreeMap<(Ipv4Addr, Service), u64>;

/// What the table has dropped since this was asked last.
fn counted(world: &World, firewall: &mut Firewall) -> (Dropped, Asked) {
    world.node.inside(|| block_on(firewall.count()).unwrap());
    (firewall.take_dropped(), firewall.take_asked())
}

fn pods_reach_only_the_resolver(wiring: Wiring) {
    let (world, mut firewall) = (World::wired(wiring), Firewall::default());
    world.vnet.answer_at(WIRE_SERVER, DNS);
    ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16"]));
    assert!(is_dropped(&world.pod, METADATA, PORT), "the metadata service");
    assert!(is_dropped(&world.pod, WIRE_SERVER, PORT), "the wire server");
    let (counts, _) = counted(&world, &mut firewall);
    assert!(counts["metadata"] > 0 && counts["wire_server"] > 0, "{counts:?}");
    assert_eq!(counts["loopback"], 0, "{counts:?}");
    assert!(counted(&world, &mut firewall).0.values().all(|&count| count == 0), "counted twice");
    assert!(!ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16"])), "counting changes the table");

    let mut resolver = world.pod.connect_at(WIRE_SERVER, DNS).unwrap();
    assert_eq!(ask(&mut resolver), NODE);
    let resolver = world.vnet.inside(|| UdpSocket::bind((WIRE_SERVER, DNS)).unwrap());
    resolver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let client = world.pod.inside(|| UdpSocket::bind((POD, 0)).unwrap());
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.send_to(&[1], (WIRE_SERVER, DNS)).unwrap();
    let (_, seen) = resolver.recv_from(&mut [0]).unwrap();
    resolver.send_to(&[2], seen).unwrap();
    assert_eq!(client.recv_from(&mut [0]).unwrap().1, SocketAddr::from((WIRE_SERVER, DNS)));

    for platform in [METADATA, WIRE_SERVER] {
        assert_eq!(world.node.source_seen_by(platform), NODE, "the node itself is free to ask");
    }
}

/// So that a metric and an Event can name the pod, with what it is to do instead.
#[test]
fn packets_that_want_azures_services_are_counted_by_pod_and_service() {
    let (world, mut firewall) = (World::new(), Firewall::default());
    let wanted = rules(&["10.240.0.0/16"]);
    ensure(&world.node, &mut firewall, &wanted);
    let (mut events, seen) = world.node.inside(|| (Events::open().unwrap(), generation().unwrap()));
    let mut asked = || counted(&world, &mut firewall).1;
    assert!(asked().is_empty());
    let ask = |pod: &Namespace, from: Ipv4Addr, to: Ipv4Addr| {
        let socket = pod.inside(|| UdpSocket::bind((from, 0)).unwrap());
        socket.send_to(&[1], (to, PORT)).unwrap();
    };
    for _ in 0..3 {
        ask(&world.pod, POD, METADATA);
    }
    ask(&world.other_pod, OTHER_POD, METADATA);
    ask(&world.other_pod, OTHER_POD, WIRE_SERVER);
    ask(&world.other_pod, OTHER_POD, WIRE_SERVER);
    let [pods, others, wire_server] =
        [(POD, Service::Metadata), (OTHER_POD, Service::Metadata), (OTHER_POD, Service::WireServer)];
    assert_eq!(asked(), BTreeMap::from([(pods, 3), (others, 1), (wire_server, 2)]));
    ask(&world.pod, POD, METADATA);
    assert_eq!(asked(), BTreeMap::from([(pods, 1), (others, 0), (wire_server, 0)]), "since the last time");
    // An event of another program's table would come after those of the packets.
    world.node.run("nft add table inet other");
    assert!(!read(&world.node, &mut events).is_touched_since(Family::Inet, seen), "packets are a change");
    // As each does after a while.
    let elements = world.node.run("nft list set inet vnetpool asked");
    assert_eq!(elements.matches("expires").count(), 3, "{elements}");
    let delete = |pod: Ipv4Addr, service: Ipv4Addr| {
        world.node.run(&format!("nft delete element inet vnetpool asked {{ {pod} . {service} }}"));
    };
    delete(OTHER_POD, METADATA);
    assert_eq!(asked(), BTreeMap::from([(pods, 0), (wire_server, 0)]));
    ask(&world.other_pod, OTHER_POD, METADATA);
    assert_eq!(asked(), BTreeMap::from([(pods, 0), (others, 1), (wire_server, 0)]), "it is forgotten");
    assert!(!ensure(&world.node, &mut firewall, &wanted), "packets change the table");
}

/// A pool that is edited changes the table, and so does another program: no inspection may have come since
/// the packets did.
#[test]
fn packets_that_want_azures_services_are_counted_though_the_table_is_replaced_right_after_them() {
    let (world, mut firewall) = (World::new(), Firewall::default());
    let (first, second) = (rules(&["10.240.0.0/16"]), rules(&["10.240.0.0/16", "10.250.0.0/16"]));
    ensure(&world.node, &mut firewall, &first);
    let socket = world.pod.inside(|| UdpSocket::bind((POD, 0)).unwrap());
    let ask = || assert_eq!(socket.send_to(&[1], (METADATA, PORT)).unwrap(), 1);
    let packets = |firewall: &mut Firewall| {
        let (dropped, asked) = counted(&world, firewall);
        let asked: u64 = asked.values().sum();
        assert_eq!(dropped["metadata"], asked);
        asked
    };
    (0..3).for_each(|_| ask());
    assert!(ensure(&world.node, &mut firewall, &second));
    ask();
    assert_eq!(packets(&mut firewall), 4);
    // Counted before, it isn't counted again when the table goes.
    (0..2).for_each(|_| ask());
    world.node.run("nft flush chain inet vnetpool egress");
    assert!(ensure(&world.node, &mut firewall, &second));
    assert_eq!(packets(&mut firewall), 2);
    // Nor if nothing came of the new table.
    ask();
    let refused = world.node.inside(|| block_on(firewall.ensure("nonsense")));
    assert!(refused.is_err(), "{refused:?}");
    ask();
    ensure(&world.node, &mut firewall, &first);
    assert_eq!(packets(&mut firewall), 2);
    world.node.run("nft delete table inet vnetpool");
    ensure(&world.node, &mut firewall, &first);
    assert_eq!(packets(&mut firewall), 0);
}

/// With blocks on each slot of its NIC.
#[test]
fn pods_that_want_azures_services_are_counted_however_many_addresses_the_node_has() {
    let (world, mut firewall) = (World::new(), Firewall::default());
    ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16"]));
    let addresses = (0..255).flat_map(|block| (0..16).map(move |n| Ipv4Addr::new(10, 241, block, n)));
    let of = |address: Ipv4Addr| [METADATA, WIRE_SERVER].map(|service| format!("{address} . {service}"));
    let all = addresses.flat_map(of).collect::<Vec<_>>().join(", ");
    world.node.nft(&format!("add element inet vnetpool asked {{ {all} }}"));
    let socket = world.pod.inside(|| UdpSocket::bind((POD, 0)).unwrap());
    socket.send_to(&[1], (METADATA, PORT)).unwrap();
    let (_, asked) = counted(&world, &mut firewall);
    assert_eq!(asked, BTreeMap::from([((POD, Service::Metadata), 1)]));
}

#[test]
fn pods_reach_neither_the_metadata_service_nor_the_wire_server_but_its_resolver() {
    pods_reach_only_the_resolver(Wiring::Routed);
}

#[test]
fn pods_behind_the_bridge_reach_neither_the_metadata_service_nor_the_wire_server_but_its_resolver() {
    pods_reach_only_the_resolver(Wiring::Bridge);
}

#[test]
fn pods_reach_the_metadata_service_where_the_pool_allows_it() {
    let (world, mut firewall) = (World::new(), Firewall::default());
    ensure(&world.node, &mut firewall, &rules_with(MetadataAccess::All, &["10.240.0.0/16"]));
    let mut open = world.pod.connect(METADATA).unwrap();
    assert_eq!(ask(&mut open), NODE);
    assert!(is_dropped(&world.pod, WIRE_SERVER, PORT), "the wire server");
    // Taken back, it holds for connections that are open, too.
    ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16"]));
    open.write_all(&[0]).unwrap();
    assert!(open.read_exact(&mut [0; 4]).is_err());
}

#[test]
fn a_load_balancers_probe_is_answered() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    world.pod.answer(POD);
    world.vnet.connect_from(WIRE_SERVER, (POD, PORT)).unwrap();
    world.vnet.connect_from(NEIGHBOUR, (POD, PORT)).unwrap();
}

#[test]
fn a_metadata_proxy_on_the_node_serves_pods() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    world.node.answer(NODE);
    world.node.run("nft add table ip proxy");
    world.node.run("nft add chain ip proxy prerouting { type nat hook prerouting priority dstnat ; }");
    world.node.run(&format!("nft add rule ip proxy prerouting ip daddr {METADATA} dnat to {NODE}"));
    assert_eq!(world.pod.source_seen_by(METADATA), POD);
}

/// The effect of a Service whose endpoint is the metadata service.
#[test]
fn no_translation_of_others_leads_a_pod_to_the_metadata_service() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    world.node.run("nft add table ip proxy");
    world.node.run("nft add chain ip proxy prerouting { type nat hook prerouting priority dstnat ; }");
    world.node.run(&format!("nft add rule ip proxy prerouting ip daddr 10.96.0.9 dnat to {METADATA}"));
    assert!(is_dropped(&world.pod, Ipv4Addr::new(10, 96, 0, 9), PORT));
}

/// The effect of a NodePort whose endpoint is one of them, to which a pod of another node turns, or a VM. The
/// network here stands for both.
#[test]
fn no_translation_of_others_leads_the_network_to_the_platform() {
    const PORTS: [(u16, Ipv4Addr); 3] = [(30001, METADATA), (30002, WIRE_SERVER), (30003, INTERNET)];
    let (world, mut firewall) = (World::new(), Firewall::default());
    world.node.run("nft add table ip proxy");
    world.node.run("nft add chain ip proxy prerouting { type nat hook prerouting priority dstnat ; }");
    world.node.run("nft add chain ip proxy postrouting { type nat hook postrouting priority srcnat ; }");
    for (port, to) in PORTS {
        let translated = format!("ip daddr {NODE} tcp dport {port} dnat to {to}:{PORT}");
        world.node.run(&format!("nft add rule ip proxy prerouting {translated}"));
        world.node.run(&format!("nft add rule ip proxy postrouting ip daddr {to} masquerade"));
    }
    for (port, _) in PORTS {
        world.vnet.connect_at(NODE, port).expect("nothing is closed yet: what does this test show?");
    }
    for metadata in [MetadataAccess::None, MetadataAccess::All] {
        ensure(&world.node, &mut firewall, &rules_with(metadata, &["10.240.0.0/16"]));
        for (port, to) in &PORTS[..2] {
            assert!(is_dropped(&world.vnet, NODE, *port), "{to}, {metadata:?}");
        }
        let (counts, asked) = counted(&world, &mut firewall);
        assert!(counts["metadata"] > 0 && counts["wire_server"] > 0, "{counts:?}");
        assert!(asked.is_empty(), "no pod of this node asked: {asked:?}");
    }
    // A load balancer's probe of a node's port whose pod is elsewhere.
    let [.., (port, _)] = PORTS;
    world.vnet.connect_from(WIRE_SERVER, (NODE, port)).unwrap();
}

/// With `route_localnet`, as portmap and Felix set it on pods' links.
#[test]
fn a_pod_reaches_nothing_on_the_nodes_loopback() {
    let (world, mut firewall) = (World::new(), Firewall::default());
    ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16"]));
    let links = world.node.run("ip -brief link show type veth");
    let link = links.split(['@', '\n']).find(|word| word.starts_with("vnp")).unwrap().to_owned();
    for link in ["all", &link] {
        let setting = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
        world.node.inside(|| std::fs::write(setting, "1").unwrap());
    }
    let listener = world.node.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap());
    listener.set_nonblocking(true).unwrap();
    for setting in ["route_localnet", "accept_local"] {
        let setting = format!("/proc/sys/net/ipv4/conf/all/{setting}");
        world.pod.inside(|| std::fs::write(setting, "1").unwrap());
    }
    // The pod gives its loopback away, and sends packets for it to the node.
    world.pod.run("ip link set lo down");
    world.pod.run("ip address flush dev lo");
    world.pod.run("ip route add 127.0.0.1/32 via 169.254.1.1 dev eth0 onlink");
    assert!(is_dropped(&world.pod, Ipv4Addr::LOCALHOST, PORT));
    let (counts, _) = counted(&world, &mut firewall);
    assert!(counts["loopback"] > 0, "{counts:?}");
}
