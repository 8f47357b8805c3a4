//! The packets that the table translates and drops, and how the table is kept.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use vnetpool_crds::pool::MetadataAccess;
use vnetpool_node_agent::firewall::{
    self, Family,
    apply::{self, Ensured, Firewall},
    events::Events,
    netlink::generation,
};
use vnetpool_node_agent::sysctl;
use vnetpool_plugin::wiring::{self, Wiring};

use crate::world::{
    INTERNET, METADATA, NEIGHBOUR, NODE, Namespace, OTHER_POD, POD, PORT, World, ask, block_on, ensure, read,
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
fn packets_from_the_vnet_reach_a_pod_untranslated() {
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
        // More than once: the node sends the pod an ICMP redirect to its neighbour on the same link, and the
        // pod must ignore it.
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
        // One after the other on the same way: nothing would have overtaken the second packet.
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
fn a_table_changed_by_others_is_restored_and_an_outdated_one_is_put() {
    let (node, mut firewall) = (Namespace::new(), Firewall::default());
    let mut ensure = |rules: &str| node.inside(|| block_on(firewall.ensure(rules)).unwrap());
    let (wanted, other) = (rules(&["10.240.0.0/16"]), rules(&[]));
    assert_eq!(ensure(&wanted), Ensured::Put);
    assert_eq!(ensure(&wanted), Ensured::Standing);
    assert_eq!(ensure(&other), Ensured::Put);
    node.run("nft flush ruleset");
    assert_eq!(ensure(&other), Ensured::Restored);
}

#[test]
fn a_table_that_is_flushed_after_nft_has_refused_a_newer_one_is_put_back() {
    let (node, mut firewall) = (Namespace::new(), Firewall::default());
    let (wanted, newer) = (rules(&["10.240.0.0/16"]), rules(&["10.240.0.0/16", "203.0.113.0/24"]));
    ensure(&node, &mut firewall, &wanted);
    let table = || node.run("nft list table inet vnetpool");
    let before = table();
    let refused = node.inside(|| block_on(firewall.ensure("nonsense")));
    assert!(matches!(refused, Err(apply::Error::Refused(..))), "{refused:?}");
    let mut restore = || node.inside(|| block_on(firewall.restore()).unwrap());
    assert_eq!(restore(), Ensured::Standing);
    node.run("nft flush ruleset");
    assert_eq!(restore(), Ensured::Restored);
    assert_eq!(table(), before);
    assert_eq!(restore(), Ensured::Standing);
    assert!(ensure(&node, &mut firewall, &newer), "the next is put all the same");
}

#[test]
fn changes_of_our_tables_are_heard_and_those_of_others_are_not() {
    let node = Namespace::new();
    let now = || node.inside(|| generation().unwrap());
    let mut events = node.inside(|| Events::open().unwrap());
    let opened = now();
    others_write(&node);
    let heard = read(&node, &mut events);
    for family in Family::ALL {
        assert!(!heard.is_touched_since(family, opened), "others' changes are taken for ours");
    }
    ensure(&node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    let put = now();
    let heard = read(&node, &mut events);
    assert!(heard.is_touched_since(Family::Inet, opened) && !heard.is_touched_since(Family::Inet, put));
    assert!(!heard.is_touched_since(Family::Arp, opened), "another family's");
    for change in [
        "delete table inet other",
        "add element inet vnetpool direct { 203.0.113.0/24 }",
        "flush chain inet vnetpool guard",
        "add set inet vnetpool more { type ipv4_addr; }",
        "reset counters table inet vnetpool",
        "flush ruleset",
    ] {
        let before = now();
        node.run(&format!("nft {change}"));
        let is_ours = !change.contains("other") && !change.contains("reset");
        assert_eq!(read(&node, &mut events).is_touched_since(Family::Inet, before), is_ours, "{change}");
    }
}

/// The end of each transaction has the number that its other events end in.
#[test]
fn each_transaction_is_a_generation_and_the_events_of_each_are_kept_apart() {
    let node = Namespace::new();
    let mut events = node.inside(|| Events::open().unwrap());
    let (mut firewall, mut before) = (Firewall::default(), node.inside(|| generation().unwrap()));
    for range in ["10.240.0.0/16", "10.241.0.0/16"] {
        ensure(&node, &mut firewall, &rules(&[range]));
        let now = node.inside(|| generation().unwrap());
        while !events.heard().has_read(now) {
            let heard = events.read().unwrap();
            assert!(
                heard.is_touched_since(Family::Inet, before) && !heard.is_touched_since(Family::Inet, now)
            );
        }
        before = now;
    }
}

/// As kube-proxy does, many chains at once.
fn others_write(node: &Namespace) {
    let many: String = (0..1000).map(|n| format!("add chain inet other service-{n}\n")).collect();
    node.nft(&format!("add table inet other\nadd table ip vnetpool-2\n{many}"));
}

#[test]
fn a_change_of_our_tables_that_is_lost_among_those_of_others_is_not_overlooked() {
    let node = Namespace::new();
    let now = || node.inside(|| generation().unwrap());
    ensure(&node, &mut Firewall::default(), &rules(&[]));
    let mut events = node.inside(|| Events::with_room(4096).unwrap());
    let seen = now();
    others_write(&node);
    node.run("nft delete table inet vnetpool");
    assert!(!events.heard().is_touched_since(Family::Inet, seen));
    let lost = events.read().unwrap();
    assert!(lost.is_incomplete(), "the kernel reports that it has lost some");
    assert!(Family::ALL.into_iter().all(|family| lost.is_touched_since(family, now())), "more may be lost");
    // By the generation number it is known up to where.
    let heard = events.read().unwrap();
    for family in Family::ALL {
        assert!(heard.is_touched_since(family, seen) && !heard.is_touched_since(family, now()));
    }
    assert!(heard.has_read(now()));
    // Then it hears as before.
    let seen = now();
    node.run("nft add table inet other-2");
    assert!(!read(&node, &mut events).is_touched_since(Family::Inet, seen));
    node.run("nft add table inet vnetpool");
    assert!(read(&node, &mut events).is_touched_since(Family::Inet, seen));
}

#[test]
fn no_table_of_others_is_touched() {
    let node = Namespace::new();
    node.run("nft add table ip vnetpool");
    node.run("nft add table inet other");
    node.run(
        "nft add chain inet other forward { type filter hook forward priority filter ; policy accept ; }",
    );
    let before = node.run("nft list ruleset");
    ensure(&node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    ensure(&node, &mut Firewall::of(Family::Arp), &firewall::arp::table(false));
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
    assert!(matches!(error, Err(apply::Error::Refused(..))), "{error:?}");
    assert_eq!(node.run("nft list ruleset"), before);
}

#[test]
fn a_service_leads_to_a_pod_behind_the_same_bridge() {
    const SERVICE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 10);
    let world = World::wired(Wiring::Bridge);
    world.node.run("nft add table ip service");
    world.node.run("nft add chain ip service nat { type nat hook prerouting priority -100; }");
    world.node.run(&format!("nft add rule ip service nat ip daddr {SERVICE} dnat to {OTHER_POD}"));
    world.other_pod.answer(OTHER_POD);
    // As nodes are set up on which bridges' pods have no gateway, and some by their distributions.
    let settings = Path::new("/proc/sys/net");
    world.node.inside(|| std::fs::write(settings.join("bridge/bridge-nf-call-iptables"), "1").unwrap());
    assert!(world.pod.connect(SERVICE).is_err(), "nobody has set that right yet: what does this test show?");
    assert!(world.node.inside(|| sysctl::route_bridged(settings).unwrap()));
    assert_eq!(world.pod.source_seen_by(SERVICE), POD);
    assert!(!world.node.inside(|| sysctl::route_bridged(settings).unwrap()), "it is right");
}

/// Whoever has CAP_NET_ADMIN on the node may send to the group in which the agent listens.
#[test]
fn what_another_process_reports_of_our_table_is_not_heard() {
    let (node, mut firewall) = (Namespace::new(), Firewall::default());
    ensure(&node, &mut firewall, &rules(&["10.240.0.0/16"]));
    let (mut events, seen) = node.inside(|| (Events::open().unwrap(), generation().unwrap()));
    // NFT_MSG_DELTABLE of NFNL_SUBSYS_NFTABLES: a netlink header, the family inet, the last bits of a
    // generation to come, and NFTA_TABLE_NAME.
    let name = [&13u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"vnetpool\0\0\0\0"].concat();
    let body = [&[1, 0][..], &1000u16.to_be_bytes(), &name].concat();
    let length = 16 + body.len() as u32;
    let header = [&length.to_ne_bytes()[..], &0x0a02u16.to_ne_bytes(), &[0; 10]].concat();
    let liar = node.inside(|| Socket::new(NETLINK_NETFILTER).unwrap());
    liar.send_to(&[header, body].concat(), &SocketAddr::new(0, 1 << 6), 0).unwrap();
    // It comes before what the kernel reports of this.
    node.run("nft add table inet other");
    assert!(!read(&node, &mut events).is_touched_since(Family::Inet, seen));
    node.run("nft flush chain inet vnetpool guard");
    assert!(read(&node, &mut events).is_touched_since(Family::Inet, seen), "the kernel's own word counts");
}
