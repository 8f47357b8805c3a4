//! Other software on a node, imitated by the very changes that it makes to the kernel, and the repairs that
//! follow.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use netlink_packet_core::{Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use crate::node::{Namespace, Node, Pod};
use crate::wiring::connect;
use vnetpool_plugin::wiring::{
    Damage, Error, Events, Heard, HostLink, Uplinks, addresses, bridge, host_links, is_wired, remove_address,
    restore,
};

/// The last message of a dump (netlink(7)).
const NLMSG_DONE: u16 = 3;
const SYSCTL: &str = "/proc/sys/net";

fn link_of(node: &Node, pod: &Pod) -> HostLink {
    let links: Vec<HostLink> = node.netns.inside(|| host_links().unwrap());
    links.into_iter().find(|link| link.name == pod.host_link()).unwrap()
}

fn mend(node: &Node, wired: &HostLink) -> Result<Vec<Damage>, Error> {
    node.netns.inside(|| restore(wired.index, wired.identity.as_ref().unwrap()))
}

#[test]
fn damage_to_a_host_link_is_found_and_repaired() {
    let (node, pod, other) = (Node::holding(2), Pod::new("a"), Pod::new("b"));
    let address = node.add(&pod).address();
    let other_address = node.add(&other).address();
    let (link, wired) = (pod.host_link(), link_of(&node, &pod));
    for (offence, expected) in [
        (format!("route delete {address}/32"), vec![Damage::Route]),
        (format!("neighbour delete {address} dev {link}"), vec![Damage::Neighbour]),
        // The kernel forgets a link's neighbours with its MAC, and with its state.
        (format!("link set {link} address 02:00:00:00:00:01"), vec![Damage::Mac, Damage::Neighbour]),
        (format!("link set {link} down"), vec![Damage::Down, Damage::Route, Damage::Neighbour]),
    ] {
        assert_eq!(mend(&node, &wired).unwrap(), [], "nothing is wrong yet");
        node.netns.ip(&offence);
        let damaged: Vec<_> =
            node.netns.inside(|| host_links().unwrap()).into_iter().filter(HostLink::is_damaged).collect();
        assert_eq!(damaged.len(), 1, "{offence}");
        assert_eq!(damaged[0].identity, wired.identity, "{offence}");
        assert_eq!(mend(&node, &wired).unwrap(), expected, "{offence}");
        node.check(&pod, address).succeeds();
        assert_eq!(connect(&other.netns, &pod.netns, address), other_address, "{offence}");
    }
}

fn ensure_bridge(node: &Node, mtu: u32) {
    node.netns.inside(|| bridge::ensure(mtu, Path::new(SYSCTL)).unwrap());
}

/// A pod behind the bridge, and its address.
fn bridged(node: &Node, id: &str) -> (Pod, Ipv4Addr) {
    let (pod, mut config) = (Pod::new(id), node.config());
    config["wiring"] = "Bridge".into();
    let address = node.run_by(&config, "ADD", &pod).address();
    (pod, address)
}

/// Without its entry the node asks all pods of the bridge for a pod: what the bridge itself sends, it floods
/// to each port.
#[test]
fn damage_to_the_bridge_is_found_and_repaired_for_its_pods() {
    let node = Node::holding(2);
    ensure_bridge(&node, 1500);
    let ((pod, address), (other, other_address)) = (bridged(&node, "a"), bridged(&node, "b"));
    let wired = [link_of(&node, &pod), link_of(&node, &other)];
    for (offence, expected) in [
        ("link set vnpbridge down", vec![Damage::Route, Damage::Neighbour]),
        ("link set vnpbridge address 02:00:00:00:00:01", vec![Damage::Neighbour]),
    ] {
        node.netns.ip(offence);
        ensure_bridge(&node, 1500);
        for link in &wired {
            assert_eq!(mend(&node, link).unwrap(), expected, "{offence}");
        }
        assert!(node.netns.inside(|| host_links().unwrap()).iter().all(|link| !link.is_damaged()));
        assert_eq!(connect(&other.netns, &pod.netns, address), other_address, "{offence}");
    }
}

/// The kernel forgets a link's neighbours when its MAC is set, even to the same.
#[test]
fn a_bridge_that_is_inspected_keeps_what_the_node_knows_of_its_pods() {
    let node = Node::holding(1);
    ensure_bridge(&node, 1500);
    let (pod, _) = bridged(&node, "a");
    let wired = link_of(&node, &pod);
    for mtu in [1500, 1400] {
        ensure_bridge(&node, mtu);
        assert_eq!(mend(&node, &wired).unwrap(), [], "{mtu}");
    }
    assert!(node.netns.ip("link show vnpbridge").contains("mtu 1400"));
}

#[test]
fn a_sandbox_that_was_deleted_or_is_another_now_is_not_restored() {
    let (node, pod) = (Node::holding(2), Pod::new("a"));
    let address = node.add(&pod).address();
    let first = link_of(&node, &pod);
    node.del(&pod).succeeds();
    assert_eq!(mend(&node, &first).unwrap(), []);
    assert!(!node.netns.ip("route show").contains(&address.to_string()));
    let again = node.add(&pod).address();
    assert_ne!(again, address);
    node.netns.ip(&format!("route delete {again}/32"));
    assert_eq!(mend(&node, &first).unwrap(), [], "the link is another address's now");
}

#[test]
fn a_route_that_another_program_redirected_is_named_and_left_alone() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    let wired = link_of(&node, &pod);
    node.netns.ip(&format!("route delete {address}/32"));
    node.netns.ip(&format!("route add {address}/32 dev lo proto static"));
    let error = mend(&node, &wired).unwrap_err();
    assert!(error.to_string().contains(&format!("already routes {address} elsewhere")), "{error}");
}

#[test]
fn the_links_mac_is_one_that_udev_leaves_alone() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    // udev's MACAddressPolicy=persistent changes a MAC that the kernel chose (1) and leaves one that was set
    // (3), see systemd.link(5) and net_setup_link. `ip -details` shows neither: sysfs does, of the namespace
    // that mounted it.
    let link = pod.host_link();
    let script = format!("mount -t sysfs none /sys && cat /sys/class/net/{link}/addr_assign_type");
    let output = node.netns.inside(|| {
        std::process::Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap()
    });
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "3", "{output:?}");
}

#[test]
fn a_pods_address_is_taken_off_the_node_without_the_nodes_own() {
    // cloud-init, cloud-netconfig and nm-cloud-setup add it beside the node's own; whichever came first in a
    // subnet is the one on which the kernel hangs the others.
    for order in [["10.240.0.4/24", "10.240.0.9/24"], ["10.240.0.9/24", "10.240.0.4/24"]] {
        let node = Namespace::new();
        node.ip("link add eth0 type veth peer name port");
        node.ip("link set eth0 up");
        node.ip("link set port up");
        for address in order {
            node.ip(&format!("address add {address} dev eth0"));
        }
        node.ip("route add default via 10.240.0.1 dev eth0");
        let ours = |address: Ipv4Addr| address == Ipv4Addr::new(10, 240, 0, 9);
        node.inside(|| {
            let found = addresses().unwrap().into_iter().find(|found| ours(found.address)).unwrap();
            assert_eq!((found.link.as_str(), found.prefix_len), ("eth0", 24));
            remove_address(&found, Path::new(SYSCTL)).unwrap();
            remove_address(&found, Path::new(SYSCTL)).unwrap(); // gone is fine
            let left: Vec<_> = addresses().unwrap().iter().map(|found| found.address.to_string()).collect();
            assert_eq!(left, ["10.240.0.4"], "{order:?}");
        });
        let routes = node.ip("route show");
        assert!(routes.contains("default via 10.240.0.1"), "{routes}");
        assert!(routes.contains("10.240.0.0/24 dev eth0"), "{routes}");
    }
}

/// The messages at the agent's socket in a node's namespace, and whether the agent heeds them.
pub struct Ear<'a> {
    node: &'a Namespace,
    heard: Receiver<(Heard, bool)>,
}

impl Ear<'_> {
    pub fn of(node: &Node) -> Ear<'_> {
        let (sender, heard) = channel();
        let store = node.store.clone();
        let listen = move || {
            let events = Events::open().unwrap();
            let uplinks = Uplinks::from([("eth0".to_owned(), 1500)]);
            let is_wired = move |address| is_wired(&store.peek().unwrap(), address).unwrap();
            let hear = move || {
                let heard = events.wait().unwrap();
                let is_heeded = heard.concerns(&uplinks, &is_wired);
                (heard, is_heeded)
            };
            // In the node's namespace, too. Ends with the first event after the receiver has gone.
            thread::spawn(move || while sender.send(hear()).is_ok() {});
        };
        node.netns.inside(listen);
        Ear { node: &node.netns, heard }
    }

    /// How often there was a message to heed since the last time: up to a link that is made now, and is no
    /// concern.
    pub fn concerns(&self) -> usize {
        self.node.ip("link add marker type bridge");
        self.node.ip("link delete marker");
        let is_last = |heard: &Heard| match heard {
            // RTM_DELLINK in the second half of the header's second word, and the name somewhere.
            Heard::Messages(bytes) => bytes[4] == 17 && bytes.windows(6).any(|part| part == b"marker"),
            Heard::TooMuch => false,
        };
        let mut count = 0;
        loop {
            let (heard, is_heeded) = self.heard.recv_timeout(Duration::from_secs(10)).unwrap();
            count += usize::from(is_heeded);
            if is_last(&heard) {
                return count;
            }
        }
    }
}

#[test]
fn pods_coming_and_going_are_no_event_for_the_agent() {
    for wiring in ["Routed", "Bridge"] {
        let node = Node::holding(8);
        node.netns.inside(|| {
            std::fs::write(format!("{SYSCTL}/ipv4/ip_forward"), "1").unwrap();
            bridge::ensure(1500, Path::new(SYSCTL)).unwrap();
        });
        let mut config = node.config();
        config["wiring"] = wiring.into();
        let run = |verb: &str, pod: &Pod| node.run(verb, &pod.id, &pod.netns.path(), &config).succeeds();
        let ear = Ear::of(&node);
        for round in 0..4 {
            let pods: Vec<Pod> = (0..2).map(|number| Pod::new(&format!("p{round}{number}"))).collect();
            pods.iter().for_each(|pod| run("ADD", pod));
            pods.iter().for_each(|pod| run("DEL", pod));
            pods.into_iter().for_each(|pod| pod.netns.delete());
        }
        assert_eq!(ear.concerns(), 0, "{wiring}");
    }
}

#[test]
fn each_offence_is_an_event_for_the_agent() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let forward = |value: &str| {
        let setting = format!("{SYSCTL}/ipv4/ip_forward");
        node.netns.inside(|| std::fs::write(&setting, value).unwrap());
    };
    forward("1");
    node.netns.inside(|| bridge::ensure(1500, Path::new(SYSCTL)).unwrap());
    node.netns.ip("rule add priority 100 to 10.9.9.9 lookup 100");
    let address = node.add(&pod).address();
    let link = pod.host_link();
    let ear = Ear::of(&node);
    let ip = |words: String| drop(node.netns.ip(&words));
    type Deed<'a> = &'a dyn Fn();
    // Each separately: the damage of one is repaired where its repair would be received, too.
    let offences: [(&str, Deed, Deed); 9] = [
        ("a route", &|| ip(format!("route delete {address}/32")), &|| {}),
        ("a rule", &|| ip("rule delete priority 100".into()), &|| {}),
        ("an address", &|| ip("address add 10.240.1.1/24 dev eth0".into()), &|| {}),
        ("a link", &|| ip(format!("link set {link} down")), &|| ip(format!("link set {link} up"))),
        ("a MAC", &|| ip(format!("link set {link} address 02:00:00:00:00:01")), &|| {}),
        ("forwarding", &|| forward("0"), &|| forward("1")),
        ("the MTU", &|| ip("link set eth0 mtu 1400".into()), &|| ip("link set eth0 mtu 1500".into())),
        ("the NIC's link", &|| ip("link delete eth0".into()), &|| {}),
        ("the pods' bridge", &|| ip("link delete vnpbridge".into()), &|| {}),
    ];
    for (what, commit, undo) in offences {
        assert_eq!(ear.concerns(), 0, "before {what}");
        commit();
        assert_ne!(ear.concerns(), 0, "{what}");
        undo();
    }
}

/// Whether the kernel marks a dump of all links here as changed meanwhile (`NLM_F_DUMP_INTR`).
fn a_dump_is_interrupted() -> bool {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    // With a link's header that means none.
    let mut ask = [0; 32];
    let mut header = NetlinkHeader::default();
    header.length = ask.len() as u32;
    (header.message_type, header.flags) = (nix::libc::RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP);
    header.emit(&mut ask);
    socket.send(&ask, 0).unwrap();
    let mut is_interrupted = false;
    loop {
        // Of each message only the header is of interest: its length, kind and flags (netlink(7)).
        let (answer, _) = socket.recv_from_full().unwrap();
        let mut rest = &answer[..];
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
            is_interrupted |= u16::from_ne_bytes(rest[6..8].try_into().unwrap()) & NLM_F_DUMP_INTR != 0;
            if kind == NLMSG_DONE {
                return is_interrupted;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// So many dumps of the test's own must have been interrupted while ours were whole: on a quiet kernel it
/// would show nothing.
const INTERRUPTED: usize = 5;

#[test]
fn a_dump_is_whole_while_links_come_and_go() {
    let node = Node::holding(40);
    let pods: Vec<Pod> = (0..40).map(|number| Pod::new(&format!("p{number}"))).collect();
    pods.iter().for_each(|pod| node.add(pod).succeeds());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // One process: starting one for each change would leave the kernel quiet most of the time.
            let batch: String = (0..200)
                .map(|number| {
                    format!("link add c{number} type veth peer name d{number}\nlink delete c{number}\n")
                })
                .collect();
            let file = node.dir.path().join("batch");
            std::fs::write(&file, batch).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                node.netns.ip(&format!("-batch {}", file.display()));
            }
        });
        let begun = Instant::now();
        let (counts, interrupted) = node.netns.inside(|| {
            let (mut counts, mut interrupted) = (Vec::new(), 0);
            while counts.len() < 200 || interrupted < INTERRUPTED && begun.elapsed() < Duration::from_secs(60)
            {
                let whole = |links: Vec<HostLink>| links.iter().filter(|link| !link.is_damaged()).count();
                counts.push(host_links().map(whole));
                interrupted += usize::from(a_dump_is_interrupted());
            }
            (counts, interrupted)
        });
        is_over.store(true, Ordering::Relaxed);
        println!("{interrupted} of {} dumps were interrupted", counts.len());
        assert!(interrupted >= INTERRUPTED, "only {interrupted} of {} dumps", counts.len());
        for count in counts {
            assert_eq!(count.unwrap(), 40);
        }
    });
}
