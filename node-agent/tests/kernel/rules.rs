//! What the table translates and drops, and how it is kept.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use vnetpool_crds::pool::MetadataAccess;
use vnetpool_node_agent::firewall::apply::{self, Firewall};
use vnetpool_plugin::wiring::{self, Wiring};

use crate::world::{
    INTERNET, METADATA, NEIGHBOUR, NODE, Namespace, OTHER_POD, POD, PORT, World, ask, block_on, ensure,
    rules, rules_with,
};

#[test]
fn the_vnet_sees_a_pod_and_the_rest_of_the_world_sees_the_node() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    assert_eq!(world.pod.source_seen_by(NEIGHBOUR), POD);
    assert_eq!(world.pod.source_seen_by(INTERNET), NODE);
    assert_eq!(world.node.source_seen_by(INTERNET), NODE);
}

#[test]
fn what_comes_from_the_vnet_reaches_a_pod_untranslated() {
    let world = World::new();
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    world.pod.answer(POD);
    assert_eq!(world.vnet.source_seen_by(POD), NEIGHBOUR);
}

#[test]
fn the_platform_sees_the_node_even_where_its_range_is_excluded() {
    let world = World::new();
    let rules = rules_with(MetadataAccess::All, &["10.240.0.0/16", "169.254.0.0/16"]);
    ensure(&world.node, &mut Firewall::default(), &rules);
    assert_eq!(world.pod.source_seen_by(METADATA), NODE);
}

#[test]
fn a_pod_gets_nowhere_under_an_address_that_is_not_its_own() {
    nowhere_under_an_alien_address(&World::new());
}

#[test]
fn a_pod_behind_the_bridge_gets_nowhere_under_an_address_or_mac_that_is_not_its_own() {
    let world = World::wired(Wiring::Bridge);
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    assert_eq!(world.pod.source_seen_by(NEIGHBOUR), POD);
    assert_eq!(world.pod.source_seen_by(INTERNET), NODE);
    nowhere_under_an_alien_address(&world);
    // With the other pod's MAC as well, its packets would look right; its port doesn't let them in.
    let mac = |address: Ipv4Addr| wiring::pod_mac(address).map(|byte| format!("{byte:02x}")).join(":");
    let receiver = world.vnet.inside(|| UdpSocket::bind((NEIGHBOUR, PORT + 1)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    for (mac, source) in [(mac(OTHER_POD), OTHER_POD), (mac(POD), POD)] {
        world.pod.run(&format!("ip link set eth0 address {mac}"));
        // The kernel forgets a link's neighbours with its MAC.
        let host = wiring::HOST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        world.pod.run(&format!("ip neighbour replace 169.254.1.1 lladdr {host} dev eth0 nud permanent"));
        let sender = world.pod.inside(|| UdpSocket::bind((source, 0)).unwrap());
        sender.send_to(&[0], (NEIGHBOUR, PORT + 1)).unwrap();
    }
    let (_, seen) = receiver.recv_from(&mut [0]).unwrap();
    assert_eq!(seen.ip(), IpAddr::from(POD));
}

#[test]
fn pods_behind_the_bridge_reach_each_other_only_by_way_of_the_node() {
    let world = World::wired(Wiring::Bridge);
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    world.other_pod.answer(OTHER_POD);
    for _ in 0..3 {
        // More than once: the node tells the pod by ICMP that its neighbour is on the same link, and the pod must not mind.
        assert_eq!(world.pod.source_seen_by(OTHER_POD), POD);
    }
    let redirected = world.pod.run("ip route get 10.240.0.11");
    assert!(redirected.contains("via 169.254.1.1"), "{redirected}");
    let mac = wiring::pod_mac(OTHER_POD).map(|byte| format!("{byte:02x}")).join(":");
    world.pod.run("ip route add 10.240.0.11/32 dev eth0");
    world.pod.run(&format!("ip neighbour replace 10.240.0.11 lladdr {mac} dev eth0 nud permanent"));
    assert!(world.pod.connect(OTHER_POD).is_err(), "from port to port, past the node's rules");
}

fn nowhere_under_an_alien_address(world: &World) {
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    let receiver = world.vnet.inside(|| UdpSocket::bind((NEIGHBOUR, PORT)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let nobodys = Ipv4Addr::new(10, 240, 9, 9);
    for alien in [OTHER_POD, NODE, nobodys] {
        world.pod.run(&format!("ip address add {alien}/32 dev eth0"));
        // One after the other on the same way: what came second would have been overtaken by nothing.
        for source in [alien, POD] {
            let sender = world.pod.inside(|| UdpSocket::bind((source, 0)).unwrap());
            sender.send_to(&[0], (NEIGHBOUR, PORT)).unwrap();
        }
        let (_, seen) = receiver.recv_from(&mut [0]).unwrap();
        assert_eq!(seen.ip(), IpAddr::from(POD));
    }
}

#[test]
fn a_connection_survives_the_exclusion_of_its_destination() {
    let world = World::new();
    let mut firewall = Firewall::default();
    ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16"]));
    let mut old = world.pod.connect(INTERNET).unwrap();
    assert_eq!(ask(&mut old), NODE);
    assert!(ensure(&world.node, &mut firewall, &rules(&["10.240.0.0/16", "203.0.113.0/24"])));
    assert_eq!(ask(&mut old), NODE);
    assert_eq!(world.pod.source_seen_by(INTERNET), POD, "a new connection goes by the new rules");
}

#[test]
fn the_table_is_put_in_place_only_when_it_is_not_as_it_was_put() {
    let (node, mut firewall) = (Namespace::new(), Firewall::default());
    let wanted = rules(&["10.240.0.0/16"]);
    assert!(ensure(&node, &mut firewall, &wanted));
    assert!(!ensure(&node, &mut firewall, &wanted));
    node.run("nft delete table inet vnetpool");
    assert!(ensure(&node, &mut firewall, &wanted), "somebody removed it");
    node.run("nft add element inet vnetpool direct { 203.0.113.0/24 }");
    assert!(ensure(&node, &mut firewall, &wanted), "somebody changed it");
    assert!(!ensure(&node, &mut firewall, &wanted));
    assert!(ensure(&node, &mut firewall, &rules(&[])), "something else is wanted");
}

#[test]
fn nobody_elses_table_is_touched() {
    let node = Namespace::new();
    node.run("nft add table ip vnetpool");
    node.run("nft add table inet other");
    node.run(
        "nft add chain inet other forward { type filter hook forward priority filter ; policy accept ; }",
    );
    let before = node.run("nft list ruleset");
    ensure(&node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    node.inside(|| block_on(apply::remove()).unwrap());
    assert_eq!(node.run("nft list ruleset"), before);
}

#[test]
fn removing_a_table_that_is_not_there_is_fine() {
    Namespace::new().inside(|| block_on(apply::remove()).unwrap());
}

#[test]
fn a_table_that_nft_refuses_leaves_the_one_in_place() {
    let (node, mut firewall) = (Namespace::new(), Firewall::default());
    ensure(&node, &mut firewall, &rules(&["10.240.0.0/16"]));
    let before = node.run("nft list ruleset");
    let error = node
        .inside(|| block_on(firewall.ensure("table inet vnetpool\ndelete table inet vnetpool\nnonsense\n")));
    assert!(matches!(error, Err(apply::Error::Refused(_))), "{error:?}");
    assert_eq!(node.run("nft list ruleset"), before);
}
