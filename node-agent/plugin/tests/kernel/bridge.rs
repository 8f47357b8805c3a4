//! The wiring `Bridge`: its paths, its CHECK and DEL, and pods of both wirings side by side.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use serde_json::{Value, json};
use vnetpool_plugin::{
    ledger::{Ledger, file},
    wiring::{HostLink, bridge, host_links},
};

use crate::{
    node::{Answer, NODE, Namespace, Node, Pod, supply},
    wiring::connect,
};

const VM: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 5);

/// A node with its bridge, as the agent makes it, and a VM on the other end of its wire.
fn stage(addresses: u8) -> (Node, Namespace) {
    let (node, vm) = (Node::holding(addresses), Namespace::new());
    node.netns.ip(&format!("link set wire netns {}", vm.path().file_name().unwrap().to_str().unwrap()));
    vm.ip(&format!("address add {VM}/20 dev wire"));
    vm.ip("link set wire up");
    for pod in 1..=addresses {
        vm.ip(&format!("route add 10.240.1.{pod}/32 via {NODE}")); // as Azure delivers a NIC's addresses
    }
    assert!(node.netns.inside(|| bridge::ensure(1500, Path::new("/proc/sys/net")).unwrap()));
    assert!(!node.netns.inside(|| bridge::ensure(1500, Path::new("/proc/sys/net")).unwrap()), "it is there");
    (node, vm)
}

fn bridged(node: &Node) -> Value {
    let mut config = node.config();
    config["wiring"] = "Bridge".into();
    config
}

fn run(node: &Node, verb: &str, pod: &Pod, config: &Value) -> Answer {
    node.run(verb, &pod.id, &pod.netns.path(), config)
}

fn reach_each_other(a: (&Namespace, Ipv4Addr), b: (&Namespace, Ipv4Addr)) {
    assert_eq!(connect(a.0, b.0, b.1), IpAddr::from(a.1));
    assert_eq!(connect(b.0, a.0, a.1), IpAddr::from(b.1));
}

/// All that the node knows of bridged pods.
fn traces(node: &Node) -> String {
    let routes = node.netns.ip("route show dev vnpbridge");
    let neighbours = node.netns.ip("neighbour show dev vnpbridge");
    let entries = node.netns.ip("-d link show type veth");
    let entries = entries.lines().filter(|line| line.contains("0a:58") && line.contains("master"));
    format!("{routes}{neighbours}{}", entries.collect::<String>())
}

#[test]
fn bridged_pods_reach_each_other_the_node_and_the_vnet_under_their_own_addresses() {
    let (node, vm) = stage(2);
    let (a, b, config) = (Pod::new("a"), Pod::new("b"), bridged(&node));
    let address_a = run(&node, "ADD", &a, &config).address();
    let address_b = run(&node, "ADD", &b, &config).address();
    reach_each_other((&a.netns, address_a), (&b.netns, address_b));
    reach_each_other((&a.netns, address_a), (&node.netns, NODE));
    reach_each_other((&a.netns, address_a), (&vm, VM));

    let ports = node.netns.ip("-d link show type veth");
    for setting in [
        "master vnpbridge",
        "isolated on",
        "locked on",
        "learning off",
        " flood off",
        "mcast_flood off",
        "bcast_flood off",
    ] {
        assert_eq!(ports.matches(setting).count(), 2, "{setting}: {ports}");
    }
    assert!(!node.netns.ip("link show eth0").contains("master"), "the node's own link is no port");
    assert!(node.netns.ip("address show dev vnpbridge").lines().all(|line| !line.contains("inet")));
    node.check(&a, address_a).succeeds();
}

#[test]
fn del_leaves_nothing_of_a_bridged_pod_and_its_address_works_again_at_once() {
    let (node, vm) = stage(1);
    let (config, routed) = (bridged(&node), node.config());
    // With its namespace kept, with it gone, and then a pod of the other wiring.
    let (a, b, c, d) = (Pod::new("a"), Pod::new("b"), Pod::new("c"), Pod::new("d"));
    let address = run(&node, "ADD", &a, &config).address();
    run(&node, "DEL", &a, &config).succeeds();
    run(&node, "DEL", &a, &config).succeeds();
    assert_eq!(traces(&node), "");
    assert_eq!(run(&node, "ADD", &b, &config).address(), address);
    reach_each_other((&b.netns, address), (&vm, VM));
    let Pod { id, netns, .. } = b;
    netns.delete();
    node.run("DEL", &id, Path::new(""), &config).succeeds();
    assert_eq!(traces(&node), "");
    assert_eq!(run(&node, "ADD", &c, &routed).address(), address);
    reach_each_other((&c.netns, address), (&vm, VM));
    run(&node, "DEL", &c, &routed).succeeds();
    assert_eq!(run(&node, "ADD", &d, &config).address(), address);
    reach_each_other((&d.netns, address), (&vm, VM));
}

#[test]
fn pods_keep_the_wiring_they_were_started_with_and_reach_those_of_the_other() {
    let (node, vm) = stage(2);
    let (old, new) = (Pod::new("old"), Pod::new("new"));
    let of_old = run(&node, "ADD", &old, &node.config()).address();
    let of_new = run(&node, "ADD", &new, &bridged(&node)).address();
    reach_each_other((&old.netns, of_old), (&new.netns, of_new));
    reach_each_other((&old.netns, of_old), (&vm, VM));
    // Both are checked, and deleted, by the configuration that there is now.
    for (pod, address) in [(&old, of_old), (&new, of_new)] {
        let mut config = bridged(&node);
        config["prevResult"] =
            json!({ "cniVersion": "1.0.0", "ips": [{ "address": format!("{address}/32") }] });
        run(&node, "CHECK", pod, &config).succeeds();
        run(&node, "DEL", pod, &config).succeeds();
    }
    assert_eq!(
        (node.netns.ip("route show scope link proto 176"), traces(&node)),
        (String::new(), String::new())
    );
}

#[test]
fn check_names_the_missing_entry_between_bridge_and_pod() {
    let (node, _vm) = stage(1);
    let link = Pod::new("a").host_link();
    for (finding, damage) in [
        ("doesn't know the pod's MAC", format!("fdb delete 0a:58:0a:f0:01:01 dev {link} master")),
        ("permanent neighbour", "neighbour delete 10.240.1.1 dev vnpbridge".to_owned()),
        ("doesn't route 10.240.1.1 to vnpbridge", "route delete 10.240.1.1/32".to_owned()),
    ] {
        let pod = Pod::new("a");
        let address = run(&node, "ADD", &pod, &bridged(&node)).address();
        node.check(&pod, address).succeeds();
        match damage.strip_prefix("fdb ") {
            Some(rest) => crate::node::bridge_fdb(&node.netns, rest),
            None => drop(node.netns.ip(&damage)),
        }
        let checked = node.check(&pod, address);
        assert_eq!(checked.code(), 101, "{damage}");
        assert!(checked.message().contains(finding), "{damage}: {}", checked.message());
        node.del(&pod).succeeds();
    }
}

#[test]
fn an_add_without_its_bridge_is_to_be_retried_and_ports_name_the_holders_of_a_lost_ledger() {
    let (node, _vm) = stage(2);
    let (a, b, config) = (Pod::new("a"), Pod::new("b"), bridged(&node));
    let address = run(&node, "ADD", &a, &config).address();
    let links = node.netns.inside(|| host_links().unwrap());
    assert_eq!(links.iter().map(|link| link.routes.clone()).collect::<Vec<_>>(), [[address]]);
    let occupants: Vec<_> = links.iter().flat_map(HostLink::occupants).collect();
    let ledger =
        Ledger::rebuild(file::boot_id().unwrap(), &occupants, &[], &supply(2, 2), None, file::now(), true);
    assert_eq!(ledger.address_of(&a.sandbox()), Some(address));
    // A ledger that has forgotten the pod: the bridge has not.
    let forgetful =
        Ledger::rebuild(file::boot_id().unwrap(), &[], &[], &supply(2, 1), None, file::now(), true);
    node.store.quiesce().unwrap().create(&forgetful).unwrap();
    let refused = run(&node, "ADD", &b, &config);
    assert!(refused.message().contains("already routes"), "{}", refused.message());

    node.netns.inside(|| bridge::remove().unwrap());
    let refused = run(&node, "ADD", &b, &config);
    assert_eq!(refused.code(), 11, "{}", refused.message());
    assert!(refused.message().contains("no bridge"), "{}", refused.message());
}
