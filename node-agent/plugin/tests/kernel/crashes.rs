//! The plugin killed at any point.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use crate::node::{Node, Pod, finish};
use vnetpool_plugin::ledger::file;

/// How often the plugin is killed; the moments are spread over twice the time that a whole ADD takes.
const KILLS: u32 = 40;

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
    let whole = start.elapsed();
    node.del(&pods[0]).succeeds();

    for kill in 0..KILLS {
        let (victim, other) = (&pods[kill as usize % 3], &pods[3 + kill as usize % 3]);
        let start = Instant::now();
        let mut add = node.start_add(victim);
        let moment = whole * 2 * kill / KILLS;
        thread::sleep(moment.saturating_sub(start.elapsed()));
        add.kill().unwrap();
        add.wait().unwrap();

        // Whatever it left: another pod gets an address of its own, and the killed one gets one when tried again.
        let address = node.add(other).address();
        live_addresses(&node, &pods);
        let again = node.add(victim).address();
        assert_ne!(address, again);
        assert_eq!(live_addresses(&node, &pods).get(&again.to_string()), Some(&victim.id.as_str()));
        node.check(victim, again).succeeds();
        node.del(victim).succeeds();
        node.del(other).succeeds();
        assert_eq!(node.ledger().counts(file::now()).free, 8, "after kill {kill}");
    }
}

#[test]
fn a_del_killed_at_any_moment_can_be_done_again() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    for kill in 0..KILLS {
        node.add(&pod).succeeds();
        let mut del = node.start("DEL", &pod.id, &pod.netns.path(), &node.config());
        thread::sleep(Duration::from_micros(100) * kill);
        del.kill().unwrap();
        del.wait().unwrap();
        if node.ledger().counts(file::now()).free == 1 {
            assert_eq!(node.netns.ip("route show scope link proto static"), "", "free, but not silent");
        }
        node.del(&pod).succeeds();
        assert_eq!(node.ledger().counts(file::now()).free, 1);
    }
}

#[test]
fn an_add_whose_lock_file_was_removed_under_it_gives_its_address_back() {
    let (node, pod) = (Node::holding(0), Pod::new("a"));
    let add = node.start_add(&pod);
    crate::node::eventually("the ADD waits", || node.ledger().is_waiting(&pod.sandbox()));
    std::fs::remove_file(node.dir.path().join("lock")).unwrap();
    // Now somebody else holds what is its lock for all others, so it counts as alive and is served; but it must notice.
    let other = node.store.lock_sandbox(&pod.sandbox(), Duration::ZERO).unwrap();
    node.store.with(|ledger, _| ledger.supply(&crate::node::supply(2, 1))).unwrap();
    let failed = finish(add);
    assert_eq!(failed.code(), 11);
    assert!(failed.message().contains("lock file was removed"), "{}", failed.message());
    drop(other);
    assert_eq!(node.ledger().counts(file::now()).assigned, 0);
    node.add(&pod).succeeds();
}
