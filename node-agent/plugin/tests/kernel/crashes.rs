//! The plugin killed at any point.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use crate::node::{Node, Pod, finish};
use vnetpool_plugin::{
    ledger::{Claim, file},
    wiring::host_links,
};

/// How often the plugin is killed, at least; the moments are spread over the time that a whole verb takes,
/// and a little more.
const KILLS: u32 = 40;
/// So many kills must have met the plugin between its first trace in the ledger and its end.
const MIDWAY: u32 = 5;
/// It ends, even if the kills don't meet it.
const MOST: u32 = 10 * KILLS;

/// Whether a process was still running when it was killed.
fn kill(process: &mut Child) -> bool {
    process.kill().unwrap();
    process.wait().unwrap().signal() == Some(9)
}

/// The addresses inside the pods' namespaces that the node routes there, with the pod of each.
fn live_addresses<'a>(node: &Node, pods: &'a [Pod]) -> BTreeMap<String, &'a str> {
    let routes = node.netns.ip("route show scope link proto static");
    let mut live = BTreeMap::new();
    for pod in pods {
        let addresses = pod.netns.ip("-4 -o address show scope global");
        for address in addresses.split_whitespace().filter_map(|word| word.strip_suffix("/32")) {
            if routes.contains(&format!("{address} dev {}", pod.host_link())) {
                let other = live.insert(address.to_owned(), pod.id.as_str());
                assert_eq!(other, None, "{address} is on two pods, {} is one of them", pod.id);
            }
        }
    }
    live
}

#[test]
fn an_add_killed_at_any_moment_never_leaves_an_address_doubled_or_lost() {
    let node = Node::holding(8);
    let pods: Vec<Pod> = (0..6).map(|number| Pod::new(&format!("pod{number}"))).collect();
    let start = Instant::now();
    node.add(&pods[0]).succeeds();
    let mut whole = start.elapsed();
    node.del(&pods[0]).succeeds();

    let (mut kills, mut midway) = (0, 0);
    while kills < KILLS || midway < MIDWAY && kills < MOST {
        let (victim, other) = (&pods[kills as usize % 3], &pods[3 + kills as usize % 3]);
        let start = Instant::now();
        let mut add = node.start_add(victim);
        let moment = whole * 5 * (kills % KILLS) / (KILLS * 4);
        thread::sleep(moment.saturating_sub(start.elapsed()));
        let is_killed = kill(&mut add);
        midway += u32::from(is_killed && node.ledger().counts(file::now()).free < 8);

        // Whatever it left: another pod gets an address of its own, and the killed one gets one when tried
        // again.
        let address = node.add(other).address();
        live_addresses(&node, &pods);
        // How long one takes is measured each time: a busy machine is slower by the minute.
        let start = Instant::now();
        let again = node.add(victim).address();
        whole = start.elapsed();
        assert_ne!(address, again);
        assert_eq!(live_addresses(&node, &pods).get(&again.to_string()), Some(&victim.id.as_str()));
        node.check(victim, again).succeeds();
        node.del(victim).succeeds();
        node.del(other).succeeds();
        assert_eq!(node.ledger().counts(file::now()).free, 8, "after kill {kills}");
        kills += 1;
    }
    assert!(midway >= MIDWAY, "{midway} of {kills} kills met an ADD midway");
}

#[test]
fn a_del_killed_at_any_moment_can_be_done_again() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let (mut kills, mut midway, mut whole) = (0, 0, Duration::from_millis(4));
    while kills < KILLS || midway < MIDWAY && kills < MOST {
        node.add(&pod).succeeds();
        let start = Instant::now();
        let mut del = node.start("DEL", &pod.id, &pod.netns.path(), &node.config());
        let moment = whole * 5 * (kills % KILLS) / (KILLS * 4);
        thread::sleep(moment.saturating_sub(start.elapsed()));
        let is_killed = kill(&mut del);
        let is_routed = !node.netns.ip("route show scope link proto static").is_empty();
        // Its first deed is to take the pod's route away.
        midway += u32::from(is_killed && !is_routed);
        if node.ledger().counts(file::now()).free == 1 {
            assert_eq!(node.netns.ip("route show scope link proto static"), "", "free, but not silent");
        }
        let start = Instant::now();
        node.del(&pod).succeeds();
        whole = start.elapsed().max(whole / 2);
        assert_eq!(node.ledger().counts(file::now()).free, 1);
        kills += 1;
    }
    assert!(midway >= MIDWAY, "{midway} of {kills} kills met a DEL midway");
}

#[test]
fn an_add_whose_lock_file_was_removed_under_it_gives_its_address_back() {
    let (node, pod) = (Node::holding(0), Pod::new("a"));
    let add = node.start_add(&pod);
    crate::node::eventually("the ADD waits", || node.ledger().is_waiting(&pod.sandbox()));
    std::fs::remove_file(node.dir.path().join("lock")).unwrap();
    // Now somebody else holds what is its lock for all others, so it counts as alive and is served; but it
    // must notice.
    let other = node.store.lock_sandbox(&pod.sandbox(), Duration::ZERO).unwrap();
    node.store.with(|ledger, _| ledger.supply(&crate::node::supply(2, 1))).unwrap();
    let failed = finish(add);
    assert_eq!(failed.code(), 11);
    assert!(failed.message().contains("lock file was removed"), "{}", failed.message());
    drop(other);
    assert_eq!(node.ledger().counts(file::now()).assigned, 0);
    node.add(&pod).succeeds();
}

/// Until its alias is written, only the far end of a link tells whose it is.
#[test]
fn what_an_add_left_that_was_killed_right_after_making_the_pair_goes_with_the_del() {
    let (node, pod, next) = (Node::holding(2), Pod::named("a", "web-0"), Pod::named("b", "web-0"));
    node.store
        .with(|ledger, now| ledger.assign(&Claim::wired(&pod.sandbox(), &pod.told(), "vnetpool"), now))
        .unwrap();
    let (link, netns) = (pod.host_link(), pod.netns.path());
    let netns = netns.file_name().unwrap().to_string_lossy();
    node.netns.ip(&format!("link add {link} type veth peer name eth0 netns {netns}"));
    node.del(&pod).succeeds();
    assert_eq!(node.ledger().counts(file::now()).free, 2);
    assert!(node.netns.inside(|| host_links().unwrap()).is_empty(), "it keeps its name from the pod's next");
    let address = node.add(&next).address();
    node.del(&pod).succeeds();
    node.check(&next, address).succeeds();
}
