//! Our plugin under the reference runtime and beside the reference plugins: each version, each verb, as IPAM
//! and in chains.

use std::{
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use vnetpool_plugin::ledger::{Proof, file};

use crate::{
    node::{NODE, Node, Pod, finish},
    runtime::Runtime,
    wiring::connect,
};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The subnet of the test's node.
const SUBNET: &str = "10.240.0.0/20";

fn ours(node: &Node) -> Value {
    json!({ "type": "vnetpool", "stateDir": node.dir.path() })
}

fn ipam(node: &Node) -> Value {
    json!({ "type": "vnetpool-ipam", "subnet": SUBNET, "stateDir": node.dir.path() })
}

#[test]
fn the_reference_runtime_adds_checks_and_deletes_in_every_version() {
    for version in VERSIONS {
        let node = Node::holding(1);
        let plugin = ours(&node);
        let (runtime, pod) = (Runtime::new(node, version, json!([plugin])), Pod::new("a"));
        let added = runtime.run("add", &pod.netns);
        let address = added.address();
        assert_eq!(added.document["cniVersion"], version);
        assert_eq!(connect(&pod.netns, &runtime.node.netns, NODE), IpAddr::from(address));
        if version != "0.3.1" {
            runtime.run("check", &pod.netns).succeeds();
            pod.netns.ip("route delete default");
            let checked = runtime.run("check", &pod.netns);
            assert!(checked.message().contains("lacks the default route"), "{}", checked.message());
        } else {
            let refused = runtime.run("check", &pod.netns);
            assert!(refused.message().contains("does not support the CHECK"), "{}", refused.message());
        }
        runtime.run("del", &pod.netns).succeeds();
        runtime.run("del", &pod.netns).succeeds();
        assert_eq!(runtime.node.ledger().counts(file::now()).free, 1, "{version}");
    }
}

#[test]
fn the_reference_runtime_gets_the_status_and_collects_garbage() {
    let node = Node::holding(0);
    let plugin = ours(&node);
    let (runtime, pod) = (Runtime::new(node, "1.1.0", json!([plugin])), Pod::new("a"));
    let not_ready = runtime.run("status", &pod.netns);
    assert!(!not_ready.is_success);
    let text = not_ready.message();
    assert!(text.contains("has not had an address") && text.contains("kubectl describe"), "{text}");
    runtime.node.store.with(|ledger, _| ledger.supply(&crate::node::supply(2, 1))).unwrap();
    runtime.run("status", &pod.netns).succeeds();
    runtime.run("add", &pod.netns).succeeds();
    runtime.run("status", &pod.netns).succeeds();
    runtime.run("gc", &pod.netns).succeeds();
    assert_eq!(
        runtime.node.ledger().counts(file::now()).free,
        1,
        "cnitool's gc takes every attachment for garbage"
    );
}

#[test]
fn the_garbage_of_one_network_is_collected_and_a_pod_of_its_neighbour_lives_on() {
    let node = Node::holding(2);
    let plugin = ours(&node);
    // cnitool has no list of its own to send, so the configuration has it: none of this network's sandboxes
    // is valid.
    let mut collecting = plugin.clone();
    collecting["cni.dev/valid-attachments"] = json!([]);
    let (runtime, a, b) = (Runtime::new(node, "1.1.0", json!([collecting])), Pod::new("a"), Pod::new("b"));
    runtime.configure_other("1.1.0", json!([plugin]));
    runtime.run("add", &a.netns).succeeds();
    // The pods that it remembers it deletes one by one, and leaves nothing to the plugin's GC.
    runtime.forget();
    runtime.run_other("add", &b.netns).succeeds();
    runtime.run("gc", &a.netns).succeeds();
    assert_eq!(runtime.node.ledger().counts(file::now()).free, 1);
    runtime.run_other("check", &b.netns).succeeds();
    runtime.run_other("del", &b.netns).succeeds();
    assert_eq!(runtime.node.ledger().counts(file::now()).free, 2);
}

#[test]
fn plugins_before_and_after_ours_in_a_chain_keep_their_results() {
    let node = Node::holding(1);
    let plugin = ours(&node);
    let tuning = json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" } });
    let loopback = json!({ "type": "loopback" });
    let (runtime, pod) = (Runtime::new(node, "1.0.0", json!([loopback, plugin, tuning])), Pod::new("a"));
    let result = runtime.run("add", &pod.netns).document;
    let own = result["ips"].as_array().unwrap().last().unwrap();
    let of_loopback = &result["ips"][0];
    assert_eq!(of_loopback["address"], "127.0.0.1/8", "{result}");
    let interface = |ip: &Value| &result["interfaces"][ip["interface"].as_u64().unwrap() as usize]["name"];
    assert_eq!((interface(of_loopback), interface(own)), (&"lo".into(), &"eth0".into()), "{result}");
    let address = own["address"].as_str().and_then(|own| own.strip_suffix("/32")).unwrap().parse().unwrap();
    let tuned = pod.netns.inside(|| fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_filter").unwrap());
    assert_eq!(tuned.trim(), "1");
    runtime.run("check", &pod.netns).succeeds();
    assert_eq!(connect(&runtime.node.netns, &pod.netns, address), IpAddr::from(NODE));
    runtime.run("del", &pod.netns).succeeds();
    assert_eq!(runtime.node.ledger().counts(file::now()).free, 1);
}

#[test]
fn an_add_after_a_plugin_that_made_the_interface_names_the_right_order() {
    let node = Node::holding(1);
    let (plugin, data) = (ours(&node), node.dir.path().join("host-local"));
    let range = json!({ "type": "host-local", "dataDir": data, "ranges": [[{ "subnet": "192.0.2.0/24" }]] });
    let ptp = json!({ "type": "ptp", "ipam": range });
    let (runtime, pod) = (Runtime::new(node, "1.0.0", json!([ptp, plugin])), Pod::new("a"));
    let refused = runtime.run("add", &pod.netns);
    let text = refused.message();
    assert!(
        text.contains("prevResult") && text.contains("has made eth0") && text.contains("vnetpool-ipam"),
        "{text}"
    );
    assert_eq!(runtime.node.ledger().counts(file::now()).assigned, 0);
    runtime.run("del", &pod.netns).succeeds();
}

/// Two pods of a node, wired by another plugin with addresses of ours: they reach each other and the node,
/// and back.
fn two_leased_pods(version: &str, plugin: impl Fn(&Node) -> Value) {
    let node = Node::holding(2);
    let plugin = plugin(&node);
    let (runtime, a, b) = (Runtime::new(node, version, json!([plugin])), Pod::new("a"), Pod::new("b"));
    let (added_a, address_b) = (runtime.run("add", &a.netns), runtime.run("add", &b.netns).address());
    let address_a = added_a.address();
    let node = &runtime.node;
    let ip = added_a.document["ips"][0]["address"].as_str().unwrap();
    assert_eq!(ip, format!("{address_a}/20"), "with the subnet's prefix length");
    assert_eq!(added_a.document["ips"][0]["gateway"], "10.240.0.3", "the node routes by the first itself");
    let proofs: Vec<Proof> =
        node.ledger().assignments().map(|(_, assignment)| assignment.proof.clone()).collect();
    let of = |pod: &Pod| {
        use std::os::unix::fs::MetadataExt;
        let path = pod.netns.path();
        let inode = Some(fs::metadata(&path).unwrap().ino());
        Proof::Namespace { path: path.to_string_lossy().into_owned(), inode }
    };
    assert_eq!(proofs, [of(&a), of(&b)]);

    assert_eq!(connect(&a.netns, &b.netns, address_b), IpAddr::from(address_a));
    assert_eq!(connect(&b.netns, &a.netns, address_a), IpAddr::from(address_b));
    assert_eq!(connect(&a.netns, &node.netns, NODE), IpAddr::from(address_a));
    // The node's own address on the way: ptp's host end has the gateway's, and the pod answers that.
    connect(&node.netns, &a.netns, address_a);
    runtime.run("check", &a.netns).succeeds();

    runtime.run("del", &a.netns).succeeds();
    runtime.run("del", &a.netns).succeeds();
    assert_eq!(node.ledger().counts(file::now()).assigned, 1);
    assert!(!node.netns.ip("route show").contains(&format!("{address_a} ")), "the route is still there");
    connect(&b.netns, &node.netns, NODE);
    runtime.run("del", &b.netns).succeeds();
    assert_eq!(node.ledger().counts(file::now()).free, 2);
}

#[test]
fn the_reference_bridge_plugin_gets_its_addresses_from_us() {
    for version in ["0.4.0", "1.0.0"] {
        two_leased_pods(version, |node| json!({ "type": "bridge", "bridge": "vnpcni0", "ipam": ipam(node) }));
    }
}

/// The kernel forgets a bridge's neighbours when its MAC is set, even to the same. Only sysfs shows that it
/// was set, of the namespace that mounted it: `ip netns exec` does.
#[test]
fn a_further_pod_behind_another_plugins_bridge_changes_nothing_of_what_the_node_knows_there() {
    let node = Node::holding(2);
    node.netns.ip("link add vnpcni0 up type bridge");
    let program = node.dir.path().join("vnetpool-ipam");
    symlink(env!("CARGO_BIN_EXE_vnetpool"), &program).unwrap();
    let inside = || {
        let mut command = Command::new("ip");
        command.args(["netns", "exec"]).arg(node.netns.path().file_name().unwrap());
        command
    };
    let config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "vnpcni0", "ipam": ipam(&node),
    });
    let add = |pod: &Pod| {
        let (invocation, mut command) = (Node::invocation("ADD", pod), inside());
        let variables = invocation.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.arg(&program).envs(variables).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut plugin = command.spawn().unwrap();
        plugin.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        finish(plugin).address()
    };
    let shown = |file: &str| {
        let output = inside().arg("cat").arg(format!("/sys/class/net/vnpcni0/{file}")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (a, b, mac) = (Pod::new("a"), Pod::new("b"), shown("address"));
    let address = add(&a);
    assert_eq!(shown("addr_assign_type"), "3", "it would change with the bridge's ports");
    node.netns.ip(&format!("neighbour add {address} lladdr 02:00:00:00:00:0a dev vnpcni0 nud permanent"));
    add(&b);
    let known = node.netns.ip("neighbour show dev vnpcni0");
    assert!(known.contains(&format!("{address} lladdr 02:00:00:00:00:0a PERMANENT")), "{known:?}");
    assert_eq!(shown("address"), mac);
}

/// The address is given back and may soon be another node's.
#[test]
fn a_pods_route_to_a_bridge_goes_with_it_though_the_ledger_was_lost() {
    let node = Node::holding(1);
    let plugin = json!({ "type": "bridge", "bridge": "vnpcni0", "ipam": ipam(&node) });
    let (runtime, pod) = (Runtime::new(node, "1.0.0", json!([plugin])), Pod::new("a"));
    let address = runtime.run("add", &pod.netns).address();
    let has_route = || runtime.node.netns.ip("route show").contains(&format!("{address} dev vnpcni0"));
    assert!(has_route());
    fs::remove_file(runtime.node.dir.path().join("ledger")).unwrap();
    runtime.run("del", &pod.netns).succeeds();
    assert!(!has_route());
}

/// A site may route addresses to its bridge by itself, and then the plugin has none to add.
#[test]
fn a_sites_own_route_to_a_bridge_serves_a_pod_and_stays_when_the_pod_goes() {
    let node = Node::holding(1);
    let plugin = json!({ "type": "bridge", "bridge": "vnpcni0", "ipam": ipam(&node) });
    let (runtime, pod) = (Runtime::new(node, "1.0.0", json!([plugin])), Pod::new("a"));
    let node = &runtime.node;
    let address = runtime.run("add", &pod.netns).address();
    node.netns.ip(&format!("route replace {address}/32 dev vnpcni0 proto static"));
    runtime.run("check", &pod.netns).succeeds();
    assert_eq!(connect(&node.netns, &pod.netns, address), IpAddr::from(NODE));
    runtime.run("del", &pod.netns).succeeds();
    assert_eq!(node.ledger().counts(file::now()).free, 1);
    let left = node.netns.ip(&format!("route show {address}"));
    assert!(left.contains("dev vnpcni0 proto static"), "the site's own route has gone: {left:?}");
}

#[test]
fn the_reference_ptp_plugin_gets_its_addresses_from_us() {
    for version in ["0.4.0", "1.0.0"] {
        two_leased_pods(version, |node| json!({ "type": "ptp", "ipam": ipam(node) }));
    }
}

#[test]
fn an_address_of_another_subnet_than_the_configurations_is_refused_and_given_back() {
    let node = Node::holding(1);
    let mut ipam = ipam(&node);
    ipam["subnet"] = "10.241.0.0/20".into();
    let plugin = json!({ "type": "ptp", "ipam": ipam });
    let (runtime, pod) = (Runtime::new(node, "1.0.0", json!([plugin])), Pod::new("a"));
    let refused = runtime.run("add", &pod.netns);
    let text = refused.message();
    assert!(text.contains("10.240.1.1 is not of ipam.subnet 10.241.0.0/20"), "{text}");
    assert_eq!(runtime.node.ledger().counts(file::now()).free, 1);
}
