//! The ARP of pods, and what the node makes of it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};
use vnetpool_node_agent::firewall::{Family, apply::Firewall, arp};
use vnetpool_plugin::wiring::{Wiring, bridge::BRIDGE, pod_mac};

use crate::world::{NEIGHBOUR, NODE, Namespace, OTHER_POD, POD, PORT, World, ensure, rules, sandbox};

/// Operations of ARP (RFC 826).
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// A packet that announces a sender, for Ethernet and IPv4. A gratuitous reply has the sender's MAC as its
/// target's, too.
fn packet(operation: u16, (mac, sender): ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let [sender, target] = [sender, target].map(|address| address.octets());
    [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes(), &mac, &sender, &mac, &target].concat()
}

/// A raw socket at a pod's interface: a container may open one, unless its capability NET_RAW is dropped.
struct Wire {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Wire {
    fn of(pod: &Namespace) -> Wire {
        pod.inside(|| {
            let mut links = getifaddrs().unwrap().filter(|one| one.interface_name == "eth0");
            let link = links.find_map(|one| one.address?.as_link_addr().copied()).unwrap();
            let (all, at_once) = (SockProtocol::EthAll, SockFlag::SOCK_NONBLOCK);
            Wire { socket: socket(AddressFamily::Packet, SockType::Raw, at_once, all).unwrap(), link }
        })
    }

    /// Sends an ARP packet to everybody, in a frame from the pod's own MAC: its port takes no other.
    fn send(&self, packet: &[u8]) {
        let frame = [&[0xff; 6][..], &self.link.addr().unwrap(), &[8, 6], packet].concat();
        sendto(self.socket.as_raw_fd(), &frame, &self.link, MsgFlags::empty()).unwrap();
    }

    /// Whether ARP has come in.
    fn has_heard(&self) -> bool {
        let (mut frame, own) = ([0; 2048], self.link.addr().unwrap());
        let mut has_heard = false;
        while recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()).is_ok() {
            has_heard |= frame[6..12] != own && frame[12..14] == [8, 6];
        }
        has_heard
    }
}

/// The MACs under which an address is claimed: the right one first, the claiming pod's, and those that are
/// wrong in one byte.
fn claimed_macs(address: Ipv4Addr) -> Vec<[u8; 6]> {
    let right = pod_mac(address);
    let wrong = |byte: usize| {
        let mut mac = right;
        mac[byte] ^= 0x10;
        mac
    };
    [right, pod_mac(POD)].into_iter().chain((0..6).map(wrong)).collect()
}

/// What the node knows of the neighbours behind pods' links: each one's address, link and MAC.
fn known(node: &Namespace) -> BTreeSet<String> {
    let shown = node.run("ip neighbour show");
    let of_pods = shown.lines().filter(|line| line.contains(" dev vnp"));
    // Behind these stands a state, which changes with time.
    of_pods.map(|line| line.split_whitespace().take(5).collect::<Vec<_>>().join(" ")).collect()
}

fn what_the_node_knows_of_pods_is_not_what_others_claim(wiring: Wiring) {
    let (world, mut table) = (World::wired(wiring), Firewall::of(Family::Arp));
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    ensure(&world.node, &mut table, &arp::table(false));
    // Some site's setting, by which the kernel believes also what it hasn't asked for.
    world.node.run("sysctl -q -w net.ipv4.conf.all.arp_accept=1");
    world.other_pod.answer(OTHER_POD);
    let link = |pod| match wiring {
        Wiring::Bridge => BRIDGE.to_owned(),
        Wiring::Routed => sandbox(pod).spare_link(),
    };
    let mac = |pod| pod_mac(pod).map(|byte| format!("{byte:02x}")).join(":");
    let right =
        BTreeSet::from([POD, OTHER_POD].map(|pod| format!("{pod} dev {} lladdr {}", link(pod), mac(pod))));
    let (wire, nobodys) = (Wire::of(&world.pod), Ipv4Addr::new(10, 240, 9, 9));
    for is_asked_for in [false, true] {
        if is_asked_for {
            // As if another program had removed the entry.
            world.node.run(&format!("ip neighbour delete {OTHER_POD} dev {}", link(OTHER_POD)));
            assert_eq!(world.node.source_seen_by(OTHER_POD), NODE, "a pod that is asked for answers");
        }
        for operation in [REQUEST, REPLY] {
            for claimed in [OTHER_POD, NODE, nobodys] {
                for mac in claimed_macs(claimed) {
                    wire.send(&packet(operation, (mac, claimed), claimed));
                }
            }
        }
        // One after the other on the same way: nothing would have overtaken this.
        assert_eq!(world.pod.source_seen_by(NEIGHBOUR), POD);
        assert_eq!(known(&world.node), right, "asked for: {is_asked_for}");
        assert_eq!(world.node.source_seen_by(OTHER_POD), NODE);
    }
    assert!(!ensure(&world.node, &mut table, &arp::table(false)), "no packet changes the table");
}

#[test]
fn no_pod_takes_the_place_of_another_by_arp() {
    what_the_node_knows_of_pods_is_not_what_others_claim(Wiring::Routed);
}

#[test]
fn no_pod_behind_the_bridge_takes_the_place_of_another_by_arp() {
    what_the_node_knows_of_pods_is_not_what_others_claim(Wiring::Bridge);
}

/// As tools in a container ask before they take an address (RFC 5227): a reply would mean that another host
/// has it.
#[test]
fn a_pod_that_asks_whether_another_has_its_address_gets_no_reply() {
    for wiring in [Wiring::Routed, Wiring::Bridge] {
        let world = World::wired(wiring);
        ensure(&world.node, &mut Firewall::of(Family::Arp), &arp::table(false));
        let wire = Wire::of(&world.pod);
        wire.send(&packet(REQUEST, (pod_mac(POD), Ipv4Addr::UNSPECIFIED), POD));
        assert_eq!(world.pod.source_seen_by(NEIGHBOUR), POD, "nothing would have overtaken this");
        assert!(!wire.has_heard());
    }
}

/// ARP makes one table of neighbours for all links, so entries that one pod fills no other can use.
fn a_flood_of_arp_requests_makes_no_neighbours(wiring: Wiring) {
    let world = World::wired(wiring);
    ensure(&world.node, &mut Firewall::default(), &rules(&["10.240.0.0/16"]));
    ensure(&world.node, &mut Firewall::of(Family::Arp), &arp::table(false));
    world.node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
    // On the link, so that the pod asks by ARP for it.
    world.pod.run(&format!("ip route add {NODE}/32 dev eth0"));
    const SENDERS: u8 = 20;
    for made_up in (1..=SENDERS).map(|last| Ipv4Addr::new(10, 240, 9, last)) {
        world.pod.run(&format!("ip address add {made_up}/32 dev eth0"));
        world.pod.run(&format!("ip neighbour flush to {NODE} dev eth0"));
        let sender = world.pod.inside(|| UdpSocket::bind((made_up, 0)).unwrap());
        sender.send_to(&[0], (NODE, PORT)).unwrap();
    }
    let seen = world.node.run("nft list table arp vnetpool");
    let dropped = seen.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(dropped.parse::<u8>().unwrap() >= SENDERS, "{seen}");
    let known = world.node.run("ip neighbour show");
    assert!(!known.contains("10.240.9."), "{known}");
}

#[test]
fn made_up_senders_of_a_pods_arp_requests_are_no_neighbours() {
    a_flood_of_arp_requests_makes_no_neighbours(Wiring::Routed);
}

#[test]
fn made_up_senders_of_arp_requests_behind_the_bridge_are_no_neighbours() {
    a_flood_of_arp_requests_makes_no_neighbours(Wiring::Bridge);
}

/// The gateway of another plugin's pods may have to answer them.
#[test]
fn where_another_plugin_wires_the_pods_arp_is_left_alone() {
    let (node, mut table) = (Namespace::new(), Firewall::of(Family::Arp));
    ensure(&node, &mut table, &arp::table(false));
    ensure(&node, &mut table, &arp::table(true));
    assert!(!node.run("nft list tables").contains("arp"));
    assert!(!ensure(&node, &mut table, &arp::table(true)));
}
