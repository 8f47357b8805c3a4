//! Rules and routes beside those of others, and free addresses of a range.

use std::net::Ipv4Addr;

use vnetpool_plugin::wiring::{self, range, steer};

use crate::world::{NEIGHBOUR, NODE, Namespace, WIRE_SERVER, World, wire};

/// A site may have policy routing of its own at the priorities and in the table that we use.
#[test]
fn rules_and_routes_of_others_where_ours_would_be_stay() {
    let world = World::new();
    let node = &world.node;
    node.run("ip rule add from 10.9.0.0/16 lookup 99 priority 7600");
    node.run("ip rule add from 10.240.32.0/24 lookup 99 priority 7601");
    node.run(&format!("ip route add default via {NEIGHBOUR} dev eth0 table 176"));
    let state = || node.run("ip rule list") + &node.run("ip route list table 176");
    let subnet = ["10.240.32.0/24".parse().unwrap()];
    let steer = |gateway| node.inside(|| steer::steer(&subnet, "eth0", gateway, WIRE_SERVER));
    let before = state();
    node.inside(|| steer::unsteer().unwrap());
    assert_eq!(state(), before);
    for theirs in ["default", "default metric 100", "10.9.0.0/16"] {
        node.run("ip route flush table 176");
        node.run(&format!("ip route add {theirs} via {NEIGHBOUR} dev eth0 table 176"));
        let before = state();
        let error = steer(NEIGHBOUR).unwrap_err();
        assert!(matches!(error, wiring::Error::TableTaken(176)), "{theirs}: {error}");
        assert_eq!(state(), before);
        node.inside(|| steer::unsteer().unwrap());
        assert_eq!(state(), before);
    }
    // And beside their rules ours come and go.
    node.run("ip route flush table 176");
    let before = state();
    steer(NEIGHBOUR).unwrap();
    assert!(state().contains("suppress_prefixlength 31"), "{}", state());
    // Our own route is ours to change.
    steer(Ipv4Addr::new(10, 240, 0, 2)).unwrap();
    let routes = node.run("ip route list table 176");
    assert!(routes.contains("via 10.240.0.2") && routes.lines().count() == 1, "{routes}");
    node.inside(|| steer::unsteer().unwrap());
    assert_eq!(state(), before);
}

/// How often a first packet to an address that no pod has comes to the node, and the answer to its sender.
fn visits(node: &Namespace, from: &Namespace, free: Ipv4Addr) -> (u32, std::io::ErrorKind) {
    node.run("nft add table ip count");
    node.run("nft add chain ip count seen { type filter hook prerouting priority raw ; }");
    node.run(&format!("nft add rule ip count seen ip daddr {free} tcp flags syn counter"));
    let answer = from.connect(free).unwrap_err().kind();
    let seen = node.run("nft list chain ip count seen");
    node.run("nft delete table ip count");
    let packets = seen.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    (packets.and_then(|packets| packets.parse().ok()).unwrap(), answer)
}

/// As in mode Route: the VNet sends a whole range to the node, whatever its destination is, and the node's
/// default route leads back.
#[test]
fn a_packet_to_an_address_of_the_nodes_range_that_no_pod_has_ends_on_the_node() {
    const RANGED: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 7);
    const FREE: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 99);
    let (world, ranged) = (World::new(), Namespace::new());
    let World { node, vnet, .. } = &world;
    vnet.run("sysctl -q -w net.ipv4.ip_forward=1");
    vnet.run(&format!("ip route add 10.244.3.0/24 via {NODE}"));
    wire(node, &ranged, RANGED);
    ranged.answer(RANGED);
    // Not from the VNet itself, for a router drops a packet with a source of its own; nor from the sender
    // that asks again below: the kernel limits ICMP answers to one sender.
    let (packets, _) = visits(node, &world.other_pod, FREE);
    assert!(packets > 20, "it should go to and fro until its TTL ends, and came {packets} times");

    let range = ["10.244.3.0/24".parse().unwrap()];
    let close = |ranges: &[ipnet::Ipv4Net]| node.inside(|| range::close(ranges).unwrap());
    close(&range);
    // Once more changes nothing.
    close(&range);
    for (who, from) in [("a VM", vnet), ("another pod", &world.pod), ("one of the range", &ranged)] {
        assert_eq!(visits(node, from, FREE), (1, std::io::ErrorKind::HostUnreachable), "{who}");
    }
    assert_eq!(vnet.source_seen_by(RANGED), NEIGHBOUR);
    assert_eq!(ranged.source_seen_by(NEIGHBOUR), RANGED);
    // Where all that the range's pods send goes by the table of a secondary NIC, too.
    node.inside(|| steer::steer(&range, "eth0", NEIGHBOUR, WIRE_SERVER).unwrap());
    assert_eq!(visits(node, &ranged, FREE), (1, std::io::ErrorKind::HostUnreachable), "steered");
    node.inside(|| steer::unsteer().unwrap());

    // Another program's route stays when the range is the node's no longer.
    node.run("ip route add unreachable 10.250.0.0/24");
    close(&[]);
    let routes = node.run("ip route list table all");
    assert!(!routes.contains("10.244.3.0/24") && routes.contains("unreachable 10.250.0.0/24"), "{routes}");
}
