//! Messages of netlink that another process sends to our sockets, as anybody with CAP_NET_ADMIN in a network
//! namespace can: nobody but the kernel is believed.

use std::{net::Ipv4Addr, ops::ControlFlow};

use netlink_packet_core::{Emitable, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;
use serde_json::json;
use vnetpool_plugin::wiring::GATEWAY;

use crate::{
    calls::{from_start, stop_before_each},
    hazards::Ear,
    node::{Answer, Namespace, Node, Pod},
};

/// No verb makes so many system calls.
const MOST_CALLS: usize = 1000;
const INET: u8 = libc::AF_INET as u8;
/// The last message of a dump (netlink(7)).
const NLMSG_DONE: u16 = 3;

/// One message: its header, and this body, which is aligned.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    let length = header.buffer_len();
    (header.message_type, header.flags) = (kind, flags);
    header.length = (length + body.len()) as u32;
    let mut bytes = vec![0; length];
    header.emit(&mut bytes);
    [bytes, body.to_vec()].concat()
}

/// The kinds of a datagram's messages.
fn kinds(mut rest: &[u8]) -> Vec<u16> {
    let mut kinds = Vec::new();
    while let Some(&[a, b, c, d, kind @ ..]) = rest.first_chunk::<6>() {
        kinds.push(u16::from_ne_bytes(kind));
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    kinds
}

/// An attribute with an IPv4 address.
fn attribute(kind: u16, address: Ipv4Addr) -> Vec<u8> {
    [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &address.octets()].concat()
}

/// A process with CAP_NET_ADMIN in a network namespace.
struct Liar<'a> {
    netns: &'a Namespace,
    socket: Socket,
    number: u32,
}

impl Liar<'_> {
    fn inside(netns: &Namespace) -> Liar<'_> {
        let mut socket = netns.inside(|| Socket::new(NETLINK_ROUTE).unwrap());
        let number = socket.bind_auto().unwrap().port_number();
        Liar { netns, socket, number }
    }

    /// What the kernel answers here, in one piece.
    fn kernels_answer(&self, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(&message(kind, NLM_F_REQUEST | flags, body), &kernel, 0).unwrap();
        let mut whole = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().unwrap();
            let is_last = flags & NLM_F_DUMP == 0 || kinds(&datagram).contains(&NLMSG_DONE);
            whole.extend(datagram);
            if is_last {
                return whole;
            }
        }
    }

    /// The numbers of the other processes' sockets here.
    fn others(&self) -> Vec<u32> {
        let all = self.netns.inside(|| std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
        // A line a socket: where it is in memory, the protocol, the number.
        let number = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[1] == NETLINK_ROUTE.to_string()).then(|| words[2].parse().unwrap())
        };
        let numbers = all.lines().skip(1).filter_map(number);
        numbers.filter(|number| ![0, self.number].contains(number)).collect()
    }
}

/// Each of the plugin's answers could be another process's: what the kernel would say of a pod whose wiring
/// is whole is sent to the plugin before each of its system calls, one after the other.
#[test]
fn no_process_in_a_pods_namespace_answers_the_plugin_in_the_kernels_place() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    let shown = pod.netns.ip("-o link show eth0");
    let index: u32 = shown.split(':').next().unwrap().parse().unwrap();
    let liar = Liar::inside(&pod.netns);
    let neighbour = [&[INET, 0, 0, 0][..], &index.to_ne_bytes(), &[0; 4], &attribute(libc::NDA_DST, GATEWAY)];
    // In the order in which a CHECK asks.
    let lies = [
        liar.kernels_answer(libc::RTM_GETROUTE, NLM_F_DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        liar.kernels_answer(libc::RTM_GETADDR, NLM_F_DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0]),
        liar.kernels_answer(libc::RTM_GETNEIGH, 0, &neighbour.concat()),
    ];
    pod.netns.ip("route delete default");
    let mut config = node.config();
    config["prevResult"] = json!({ "cniVersion": "1.0.0", "ips": [{ "address": format!("{address}/32") }] });
    let (input, mut attempts, mut taken, mut believed) = (config.to_string(), 0, 0, vec![]);
    for call in 1..=MOST_CALLS {
        let mut was_made = false;
        let lie = |next: usize| {
            if next != call {
                return ControlFlow::Continue(());
            }
            was_made = true;
            for (number, lie) in
                liar.others().into_iter().flat_map(|to| lies.iter().map(move |lie| (to, lie)))
            {
                attempts += 1;
                taken += usize::from(liar.socket.send_to(lie, &SocketAddr::new(number, 0), 0).is_ok());
            }
            ControlFlow::Continue(())
        };
        let mut check = from_start(Node::invocation("CHECK", &pod));
        let ended = node.netns.inside(|| stop_before_each(&mut check, input.as_bytes(), lie));
        let answer = Answer::of(ended.unwrap());
        if answer.is_success || !answer.message().contains("lacks the default route") {
            believed.push((call, answer.document));
        }
        if !was_made {
            assert!(attempts >= 3 * lies.len(), "{attempts} messages were sent to the plugin");
            assert!(believed.is_empty(), "its answers where it was lied to before these calls: {believed:?}");
            assert_eq!(
                taken, 0,
                "a socket that takes them can be filled, and what the kernel answers is lost"
            );
            return;
        }
    }
    panic!("it makes more than {MOST_CALLS} system calls");
}

/// Whoever may send to a group reaches all who listen there.
#[test]
fn what_another_process_reports_of_the_nodes_network_is_no_event_for_the_agent() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    let ear = Ear::of(&node);
    // RTM_DELROUTE of our route to the pod, to the group of IPv4 routes, which is the seventh.
    let (main, ours) = (libc::RT_TABLE_MAIN, 176);
    let route = [INET, 32, 0, 0, main, ours, libc::RT_SCOPE_LINK, libc::RTN_UNICAST, 0, 0, 0, 0];
    let removed = message(libc::RTM_DELROUTE, 0, &[&route[..], &attribute(libc::RTA_DST, address)].concat());
    let liar = Liar::inside(&node.netns);
    liar.socket.send_to(&removed, &SocketAddr::new(0, 1 << 6), 0).unwrap();
    assert_eq!(ear.concerns(), 0);
    // The kernel's own word counts.
    node.netns.ip(&format!("route delete {address}/32"));
    assert_eq!(ear.concerns(), 1);
}
