//! The names of pods' links, by which engines of NetworkPolicy find them, where two sandboxes of one pod want
//! the same.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use crate::{
    node::{NODE, Namespace, Node, Pod},
    wiring::connect,
};
use vnetpool_plugin::{
    ledger::{Claim, file},
    wiring::{self, HostLink, Identity, Netns, Wiring, bridge, host_links},
};

/// Of the pod web-0 in the namespace default: `printf default.web-0 | sha1sum`.
const WEB_0: &str = "vnp0d7763386da";

fn link_named(node: &Node, name: &str) -> Option<HostLink> {
    node.netns.inside(|| host_links().unwrap()).into_iter().find(|link| link.name == name)
}

fn sandbox_on(node: &Node, name: &str) -> Option<String> {
    link_named(node, name)?.identity.map(|identity| identity.sandbox.container_id)
}

#[test]
fn the_link_has_the_name_by_which_engines_of_network_policy_know_the_pod() {
    let (node, pod) = (Node::holding(1), Pod::named("a", "web-0"));
    let added = node.add(&pod);
    added.succeeds();
    assert_eq!(added.document["interfaces"][0]["name"], WEB_0);
    assert_eq!(sandbox_on(&node, WEB_0).as_deref(), Some("a"));
}

#[test]
fn a_pod_whose_name_just_fits_into_its_links_alias_is_wired_and_known() {
    const ROOM: usize = 255; // IFALIASZ of `linux/if.h` without the NUL
    let (node, short) = (Node::holding(1), Pod::named("a", "p"));
    let (address, sandbox, pod) = (Ipv4Addr::new(10, 240, 1, 1), short.sandbox(), short.facts());
    let alias = Identity { address, sandbox, pod }.to_string();
    let pod = Pod::named("a", &"p".repeat(1 + ROOM - alias.len()));
    node.add(&pod).succeeds();
    let link = link_named(&node, &pod.host_link()).unwrap();
    assert_eq!(link.identity.unwrap().pod, pod.facts());
}

#[test]
fn a_newer_sandbox_of_a_pod_gets_the_name_and_the_older_keeps_address_and_connections() {
    let node = Node::holding(2);
    let (older, newer) = (Pod::named("older", "web-0"), Pod::named("newer", "web-0"));
    let first = node.add(&older).address();
    let listener = older.netns.inside(|| TcpListener::bind((first, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let mut client = node.netns.inside(|| TcpStream::connect(target).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    let second = node.add(&newer).address();
    assert_ne!(first, second);
    assert_eq!(sandbox_on(&node, WEB_0).as_deref(), Some("newer"));
    assert_eq!(sandbox_on(&node, &older.sandbox().spare_link()).as_deref(), Some("older"));
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.write_all(b"still here").unwrap();
    server.read_exact(&mut [0; 10]).unwrap();
    for (pod, address) in [(&older, first), (&newer, second)] {
        node.check(pod, address).succeeds();
        assert_eq!(connect(&node.netns, &pod.netns, address), IpAddr::from(NODE));
        assert_eq!(node.add(pod).address(), address, "again");
    }
    // The runtime may repeat a DEL at any time: it is the older's own, whose name is the newer's now.
    for _ in 0..2 {
        node.del(&older).succeeds();
        assert_eq!(node.ledger().counts(file::now()).assigned, 1);
        assert!(link_named(&node, &older.sandbox().spare_link()).unwrap().is_silenced());
        node.check(&newer, second).succeeds();
    }
}

/// An ADD where the kernel refuses to rename a link that is up.
#[test]
fn on_an_older_kernel_a_link_is_renamed_while_it_is_down_for_a_moment() {
    for wiring in [Wiring::Routed, Wiring::Bridge] {
        let node = Node::holding(2);
        let (older, newer) = (Pod::named("older", "web-0"), Pod::named("newer", "web-0"));
        let identity =
            Identity { address: Ipv4Addr::new(10, 240, 1, 1), sandbox: older.sandbox(), pod: older.facts() };
        let path = older.netns.path();
        node.store
            .with(|ledger, now| {
                ledger.assign(&Claim::wired(&older.sandbox(), &older.facts(), "vnetpool"), now)
            })
            .unwrap();
        node.netns.inside(|| {
            if wiring == Wiring::Bridge {
                bridge::ensure(1500, Path::new("/proc/sys/net")).unwrap();
            }
            wiring::connect(&Netns::open(&path).unwrap(), &identity, wiring::Sizes::default(), wiring)
                .unwrap();
        });
        let listener = older.netns.inside(|| TcpListener::bind((identity.address, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let mut client = node.netns.inside(|| TcpStream::connect(target).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        node.netns.inside(|| wiring::move_aside(&older.sandbox(), &newer.facts()).unwrap());
        let moved = link_named(&node, &older.sandbox().spare_link()).unwrap();
        assert!(moved.up && !moved.is_damaged(), "{moved:?}");
        assert!(link_named(&node, WEB_0).is_none());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.write_all(b"still here").unwrap();
        server.read_exact(&mut [0; 10]).unwrap();
        node.check(&older, identity.address).succeeds();
        let address = node.add(&newer).address();
        node.check(&newer, address).succeeds();
    }
}

/// A DEL may just have taken the link down for good. Linux before 6.2 renames it only by way of down and up.
#[test]
fn the_link_of_a_sandbox_on_which_a_verb_is_at_work_is_not_set_down_and_up() {
    let node = Node::holding(2);
    let (older, newer) = (Pod::named("older", "web-0"), Pod::named("newer", "web-0"));
    let address = node.add(&older).address();
    let verb = node.store.lock_sandbox(&older.sandbox(), Duration::ZERO).unwrap();
    let added = node.add(&newer);
    assert_eq!(added.is_success, renames_links_that_are_up(), "{}", added.document);
    if !added.is_success {
        assert_eq!(added.code(), 11);
        assert!(added.message().contains("no link that is up"), "{}", added.message());
        assert_eq!(node.ledger().address_of(&newer.sandbox()), None, "what was assigned is given back");
        assert_eq!(sandbox_on(&node, WEB_0).as_deref(), Some("older"));
    }
    drop(verb);
    node.check(&older, address).succeeds();
    // Another test that is just starting a process lends it our open files, the lock among them, until it is
    // that program.
    crate::node::eventually("the newer one is wired", || node.add(&newer), |added| added.is_success);
    assert_eq!(sandbox_on(&node, WEB_0).as_deref(), Some("newer"));
    node.check(&older, address).succeeds();
}

fn renames_links_that_are_up() -> bool {
    let netns = Namespace::new();
    netns.ip("link add before type veth peer name other");
    netns.ip("link set before up");
    let mut rename = Command::new("ip");
    rename.args(["link", "set", "before", "name", "after"]);
    netns.inside(|| rename.output().unwrap().status.success())
}

#[test]
fn a_sandbox_that_was_silenced_makes_room_before_its_namespace_has_ended() {
    let node = Node::holding(2);
    let (older, newer) = (Pod::named("older", "web-0"), Pod::named("newer", "web-0"));
    node.add(&older).succeeds();
    node.del(&older).succeeds();
    let address = node.add(&newer).address();
    node.del(&older).succeeds();
    older.netns.delete();
    let links = || node.netns.inside(|| host_links().unwrap());
    crate::node::eventually("one link is left", links, |links| links.len() == 1);
    node.check(&newer, address).succeeds();
    assert_eq!(sandbox_on(&node, WEB_0).as_deref(), Some("newer"));
}

#[test]
fn a_sandbox_waits_for_the_name_of_its_pod_where_it_can_not_be_had() {
    let node = Node::holding(2);
    let (older, newer) = (Pod::named("older", "web-0"), Pod::named("newer", "web-0"));
    let is_refused = |why: &str| {
        let refused = node.add(&newer);
        assert_eq!(refused.code(), 11, "{why}");
        assert!(refused.message().contains(WEB_0), "{why}: {}", refused.message());
        let held = node.ledger().address_of(&newer.sandbox());
        assert_eq!(held, None, "{why}: what was assigned is given back");
    };
    // A link without an alias: another ADD is making it, and knows it by this name.
    node.netns.ip(&format!("link add {WEB_0} type veth peer name other"));
    is_refused("being made");
    assert!(link_named(&node, WEB_0).is_some());
    node.netns.ip(&format!("link delete {WEB_0}"));

    // A kernel that doesn't rename, whether the link is up or down: its spare name is another link's.
    let address = node.add(&older).address();
    let spare = older.sandbox().spare_link();
    node.netns.ip(&format!("link add {spare} type veth peer name other"));
    is_refused("not renamed");
    node.check(&older, address).succeeds();
    assert_eq!(connect(&node.netns, &older.netns, address), IpAddr::from(NODE));

    node.del(&older).succeeds();
    older.netns.delete();
    crate::node::eventually("the older is gone", || link_named(&node, WEB_0), Option::is_none);
    node.add(&newer).succeeds();
    assert_eq!(sandbox_on(&node, WEB_0).as_deref(), Some("newer"));
}

#[test]
fn a_pod_whose_name_hashes_like_anothers_does_not_take_that_ones_link() {
    let node = Node::holding(2);
    let (pod, other) = (Pod::named("a", "pod-796582"), Pod::named("b", "pod-952174"));
    assert_eq!(pod.host_link(), other.host_link());
    let address = node.add(&pod).address();
    assert_eq!(node.add(&other).code(), 11);
    node.check(&pod, address).succeeds();
    assert_eq!(sandbox_on(&node, &pod.host_link()).as_deref(), Some("a"));
}

#[test]
fn a_pod_wired_by_an_earlier_build_keeps_its_name_and_its_verbs() {
    let (node, pod) = (Node::holding(1), Pod::named("a", "web-0"));
    let address = node.add(&pod).address();
    let named_before = pod.sandbox().spare_link();
    node.netns.inside(|| wiring::move_aside(&pod.sandbox(), &pod.facts()).unwrap());
    let again = node.add(&pod);
    assert_eq!(again.address(), address);
    assert_eq!(again.document["interfaces"][0]["name"], named_before);
    node.check(&pod, address).succeeds();
    node.del(&pod).succeeds();
    assert!(link_named(&node, &named_before).unwrap().is_silenced());
    assert_eq!(node.ledger().counts(file::now()).assigned, 0);
}

#[test]
fn a_runtime_need_not_name_the_pod_again() {
    let (node, pod) = (Node::holding(1), Pod::named("a", "web-0"));
    let address = node.add(&pod).address();
    let unnamed = Pod { name: String::new(), ..pod };
    node.check(&unnamed, address).succeeds();
    node.del(&unnamed).succeeds();
    assert!(link_named(&node, WEB_0).unwrap().is_silenced());
}

/// A pod that may make links makes a pair whose two indices are those of another pod's pair.
#[test]
fn a_pod_that_chooses_the_indices_of_anothers_pair_takes_nothing_of_the_other_with_it() {
    let node = Node::holding(2);
    let (victim, attacker) = (Pod::new("victim"), Pod::new("attacker"));
    let address = node.add(&victim).address();
    node.add(&attacker).succeeds();
    let links = node.netns.inside(|| host_links().unwrap());
    let is_victims = |link: &&HostLink| {
        link.identity.as_ref().is_some_and(|identity| identity.sandbox == victim.sandbox())
    };
    let host_end = links.iter().find(is_victims).unwrap().index;
    let shown = victim.netns.ip("-o link show eth0");
    let pod_end = shown.split(':').next().unwrap();
    attacker.netns.ip("link delete eth0");
    attacker.netns.ip(&format!("link add eth0 index {pod_end} type veth peer name other index {host_end}"));
    node.del(&attacker).succeeds();
    node.check(&victim, address).succeeds();
}
