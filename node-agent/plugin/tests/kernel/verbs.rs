//! Each verb by the rules of the CNI specification and ours.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::json;
use vnetpool_plugin::ledger::{Claim, Ledger, Supply, file};

use crate::node::{Node, Pod, eventually, finish, supply};

#[test]
fn add_twice_gives_the_same_address_and_leaves_the_wiring_alone() {
    let (node, pod) = (Node::holding(2), Pod::new("a"));
    let address = node.add(&pod).address();
    let before = pod.netns.ip("link show eth0");
    assert_eq!(node.add(&pod).address(), address);
    assert_eq!(pod.netns.ip("link show eth0"), before);
    node.check(&pod, address).succeeds();
}

#[test]
fn add_repairs_the_broken_wiring_of_an_earlier_add() {
    let (node, pod) = (Node::holding(2), Pod::new("a"));
    let address = node.add(&pod).address();
    pod.netns.ip("route delete default");
    assert_eq!(node.add(&pod).address(), address);
    node.check(&pod, address).succeeds();
}

#[test]
fn del_is_idempotent_and_a_later_add_with_the_same_id_works() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    for _ in 0..2 {
        let address = node.add(&pod).address();
        node.check(&pod, address).succeeds();
        node.del(&pod).succeeds();
        node.del(&pod).succeeds();
        assert_eq!(node.ledger().counts(file::now()).free, 1);
    }
}

#[test]
fn del_works_without_the_namespace() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    let Pod { id, netns, .. } = pod;
    netns.delete();
    node.run("DEL", &id, Path::new(""), &node.config()).succeeds();
    assert_eq!(node.ledger().counts(file::now()).assigned, 0);
}

#[test]
fn del_works_without_a_ledger_and_without_its_folder() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    fs::remove_dir_all(node.dir.path()).unwrap();
    node.del(&pod).succeeds();
    assert_eq!(node.netns.ip("route show scope link proto 176"), "");
    assert!(!node.dir.path().join("ledger").exists(), "only the agent creates a ledger");
}

#[test]
fn del_works_with_a_ledger_that_is_garbage() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    fs::write(node.dir.path().join("ledger"), "garbage").unwrap();
    node.del(&pod).succeeds();
    assert_eq!(node.netns.ip("route show scope link proto 176"), "");
}

/// As after a boot: the configuration is still there, so the runtime sends pods before there is an agent.
#[test]
fn an_add_waits_for_a_ledger_of_this_boot_and_holds_up_no_agent() {
    let (node, pod) = (Node::new(), Pod::new("a"));
    let ledger = node.dir.path().join("ledger");
    let mut add = node.start_add(&pod);
    let good = Ledger::rebuild("another-boot", &[], &[], &supply(1, 1), None, 0, true);
    node.store.quiesce().unwrap().create(&good).unwrap();
    let text = fs::read_to_string(&ledger).unwrap().replace("another-boot", file::boot_id().unwrap());
    for garbage in [
        String::new(),
        "garbage".to_owned(),
        "ledger 1\n\u{0}".to_owned(),
        text.trim_end().strip_suffix("end").unwrap().to_owned(),
    ] {
        fs::write(node.dir.path().join("new"), garbage).unwrap();
        fs::rename(node.dir.path().join("new"), &ledger).unwrap();
        drop(node.store.quiesce().unwrap());
        assert!(add.try_wait().unwrap().is_none());
    }
    assert!(pod.netns.ip("link show").lines().all(|line| !line.contains("eth0")), "nothing was wired");
    let good = Ledger::rebuild(file::boot_id().unwrap(), &[], &[], &supply(1, 1), None, 0, true);
    node.store.quiesce().unwrap().create(&good).unwrap();
    assert_eq!(finish(add).address().to_string(), "10.240.1.1");
}

#[test]
fn an_add_is_to_be_tried_again_when_the_ledger_is_a_newer_releases() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let ledger = node.dir.path().join("ledger");
    let text = fs::read_to_string(&ledger).unwrap().replacen("ledger 1", "ledger 4", 1);
    fs::write(&ledger, text).unwrap();
    assert_eq!(node.add(&pod).code(), 11);
    assert!(pod.netns.ip("link show").lines().all(|line| !line.contains("eth0")), "nothing was wired");
}

#[test]
fn the_answer_is_in_the_version_asked_for() {
    for (version, family) in
        [("0.3.1", json!("4")), ("0.4.0", json!("4")), ("1.0.0", json!(null)), ("1.1.0", json!(null))]
    {
        let (node, pod) = (Node::holding(1), Pod::new("a"));
        let mut config = node.config();
        config["cniVersion"] = version.into();
        let added = node.run("ADD", &pod.id, &pod.netns.path(), &config);
        let address = added.address();
        let document = &added.document;
        assert_eq!(document["cniVersion"], version);
        assert_eq!(document["ips"][0]["version"], family, "{version}");
        assert_eq!(document["ips"][0]["gateway"], "169.254.1.1");
        assert_eq!(document["ips"][0]["interface"], 1);
        assert_eq!(document["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }]));
        assert_eq!(document["interfaces"][0]["name"], pod.host_link());
        assert_eq!(document["interfaces"][1]["name"], "eth0");
        assert_eq!(document["interfaces"][1]["sandbox"], json!(pod.netns.path()));
        let [_, b, c, d] = address.octets();
        assert_eq!(document["interfaces"][1]["mac"], format!("0a:58:0a:{b:02x}:{c:02x}:{d:02x}"));
        let link = pod.netns.ip("link show eth0");
        assert!(link.contains(document["interfaces"][1]["mac"].as_str().unwrap()), "{link}");
    }
}

#[test]
fn check_catches_each_kind_of_damage() {
    let node = Node::holding(1);
    let host_link = Pod::new("a").host_link();
    let damages: [(&str, bool, String); 12] = [
        ("host's end vnp", true, format!("link set {host_link} down")),
        ("is missing", true, format!("link delete {host_link}")),
        ("MAC", true, format!("link set {host_link} address 02:00:00:00:00:01")),
        ("doesn't route", true, "route delete 10.240.1.1/32".to_owned()),
        ("permanent neighbour", true, format!("neighbour delete 10.240.1.1 dev {host_link}")),
        ("eth0 is down", false, "link set eth0 down".to_owned()),
        (
            "lacks the address",
            false,
            "address delete 10.240.1.1/32 dev eth0; address replace 10.240.1.1/24 dev eth0".to_owned(),
        ),
        ("has no interface eth0", false, "link set eth0 down; link set eth0 name other".to_owned()),
        (
            "is not the other end",
            false,
            "link set eth0 down; link set eth0 name other; link add eth0 type veth peer name stranger"
                .to_owned(),
        ),
        ("route to 169.254.1.1", false, "route delete 169.254.1.1/32".to_owned()),
        ("default route", false, "route delete default".to_owned()),
        (
            "neighbour",
            false,
            "neighbour replace 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent".to_owned(),
        ),
    ];
    for (finding, is_on_node, damage) in damages {
        let pod = Pod::new("a");
        let address = node.add(&pod).address();
        node.check(&pod, address).succeeds();
        let namespace = if is_on_node { &node.netns } else { &pod.netns };
        damage.split("; ").for_each(|one| drop(namespace.ip(one)));
        let checked = node.check(&pod, address);
        assert_eq!(checked.code(), 101, "{damage}");
        assert!(checked.message().contains(finding), "{damage}: {}", checked.message());
        node.del(&pod).succeeds();
    }
}

#[test]
fn check_compares_the_ledger_with_the_runtimes_result() {
    let (node, pod) = (Node::holding(2), Pod::new("a"));
    let address = node.add(&pod).address();
    assert_eq!(node.check(&pod, "10.240.1.2".parse().unwrap()).code(), 101);
    node.del(&pod).succeeds();
    assert_eq!(node.check(&pod, address).code(), 101);
}

#[test]
fn status_fails_only_until_the_node_has_had_its_first_address() {
    let node = Node::new();
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    let status = || node.run("STATUS", "", Path::new(""), &config);
    assert_eq!(status().code(), 50, "no ledger");
    let empty = Ledger::rebuild(file::boot_id().unwrap(), &[], &[], &supply(1, 0), None, file::now(), true);
    node.store.quiesce().unwrap().create(&empty).unwrap();
    assert_eq!(status().code(), 50, "no address yet");
    node.store.with(|ledger, _| ledger.supply(&supply(2, 1))).unwrap();
    status().succeeds();
    let pod = Pod::new("a");
    node.add(&pod).succeeds();
    status().succeeds(); // a full node is a ready one
    fs::remove_file(node.dir.path().join("ledger")).unwrap();
    status().succeeds(); // pods run here, so it has had one
}

#[test]
fn gc_frees_addresses_unknown_to_the_runtime() {
    let (node, a, b) = (Node::holding(2), Pod::new("a"), Pod::new("b"));
    let (kept, freed) = (node.add(&a).address(), node.add(&b).address());
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    let gc = |config: &serde_json::Value| node.run("GC", "", Path::new(""), config);
    gc(&config).succeeds(); // without a list no sandbox is known to be garbage
    assert_eq!(node.ledger().counts(file::now()).assigned, 2);

    config["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
    gc(&config).succeeds();
    node.check(&a, kept).succeeds();
    assert_eq!(node.ledger().address_of(&b.sandbox()), None);
    assert!(!node.netns.ip("route show").contains(&freed.to_string()), "{freed} was freed, but not silenced");
}

#[test]
fn gc_frees_addresses_of_its_own_network_and_keeps_those_of_another_or_unknown_one() {
    let (node, ours, others) = (Node::holding(3), Pod::new("a"), Pod::new("b"));
    let of = |network: &str| {
        let mut config = node.config();
        config["cniVersion"] = "1.1.0".into();
        config["name"] = network.into();
        config
    };
    node.add(&ours).succeeds();
    let kept = node.run("ADD", &others.id, &others.netns.path(), &of("other")).address();
    // As the release before wrote it, or the agent after it had lost the ledger.
    let unknown = Pod::new("c");
    node.store
        .with(|ledger, now| ledger.assign(&Claim::wired(&unknown.sandbox(), &Default::default(), ""), now))
        .unwrap();

    let collect = |network: &str| {
        let mut config = of(network);
        config["cni.dev/valid-attachments"] = json!([]);
        node.run("GC", "", Path::new(""), &config).succeeds();
    };
    collect("vnetpool");
    assert_eq!(node.ledger().address_of(&ours.sandbox()), None);
    node.check(&others, kept).succeeds();
    collect("other");
    assert_eq!(node.ledger().address_of(&others.sandbox()), None);
    assert!(node.ledger().address_of(&unknown.sandbox()).is_some(), "nobody knows whose it is");
    node.del(&unknown).succeeds();
    assert_eq!(node.ledger().counts(file::now()).free, 3);
}

/// The runtime has named its sandboxes before that.
#[test]
fn gc_leaves_a_sandbox_alone_that_has_its_address_only_since_the_gc_began() {
    let (node, before, since) = (Node::holding(2), Pod::new("a"), Pod::new("b"));
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    let network = config["name"].as_str().unwrap().to_owned();
    let assign = |pod: &Pod, after| {
        let assign = |ledger: &mut Ledger, now| {
            ledger.assign(&Claim::wired(&pod.sandbox(), &Default::default(), &network), now + after)
        };
        node.store.with(assign).unwrap();
    };
    assign(&before, 0);
    assign(&since, 60_000);
    node.run("GC", "", Path::new(""), &config).succeeds();
    assert_eq!(node.ledger().address_of(&before.sandbox()), None);
    assert!(node.ledger().address_of(&since.sandbox()).is_some());
}

#[test]
fn gc_leaves_a_sandbox_alone_that_a_verb_is_working_on() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    node.add(&pod).succeeds();
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    let lock = node.store.lock_sandbox(&pod.sandbox(), std::time::Duration::ZERO).unwrap();
    node.run("GC", "", Path::new(""), &config).succeeds();
    assert_eq!(node.ledger().counts(file::now()).assigned, 1);
    drop(lock);
    // Another test that is just starting a process lends it our open files, the lock among them, until it is
    // that program.
    let observe = || {
        node.run("GC", "", Path::new(""), &config).succeeds();
        node.ledger().counts(file::now()).assigned
    };
    eventually("it is collected", observe, |assigned| *assigned == 0);
}

#[test]
fn add_refuses_the_nodes_own_namespace_and_a_path_of_none() {
    let node = Node::holding(1);
    for netns in [node.netns.path(), "/proc/self/status".into(), "/does/not/exist".into()] {
        let refused = node.run("ADD", "a", &netns, &node.config());
        assert_eq!(refused.code(), 4, "{}", netns.display());
        assert!(refused.message().starts_with("CNI_NETNS"), "{}", refused.message());
    }
    assert_eq!(node.ledger().counts(file::now()).assigned, 0);
}

#[test]
fn an_add_that_can_not_wire_gives_its_address_back() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    pod.netns.ip("link add eth0 type veth peer name other");
    let refused = node.add(&pod);
    assert_eq!(refused.code(), 100);
    assert!(refused.message().contains("already has an interface eth0"), "{}", refused.message());
    assert_eq!(node.ledger().counts(file::now()).free, 1);
    pod.netns.ip("link delete eth0");
    node.add(&pod).succeeds();
}

#[test]
fn twenty_adds_at_once_get_twenty_addresses() {
    let node = Node::holding(20);
    let pods: Vec<Pod> = (0..20).map(|number| Pod::new(&format!("pod{number}"))).collect();
    let adds: Vec<_> = pods.iter().map(|pod| node.start_add(pod)).collect();
    let addresses: BTreeSet<_> = adds.into_iter().map(|add| finish(add).address()).collect();
    assert_eq!(addresses.len(), 20);
    assert_eq!(node.ledger().counts(file::now()).assigned, 20);
}

#[test]
fn each_call_is_a_line_in_the_log() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    let address = node.add(&pod).address();
    node.add(&Pod { id: "-".to_owned(), ..pod }).code();
    let log = fs::read_to_string(node.dir.path().join("plugin.log")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["verb"], "ADD");
    assert_eq!(lines[0]["address"], address.to_string());
    assert_eq!(lines[0]["sandbox"], "a/eth0");
    assert_eq!(lines[0]["pod"], "default/a");
    assert_eq!(lines[0]["phases"].as_array().unwrap().len(), 3);
    assert_eq!(lines.len(), 1, "a request that isn't one has no folder to be logged in");
}

#[test]
fn an_address_is_not_assigned_before_its_cooldown() {
    let (node, a, b) = (Node::holding(2), Pod::new("a"), Pod::new("b"));
    let cooldown = std::time::Duration::from_secs(3600);
    node.store.with(|ledger, _| ledger.supply(&Supply { cooldown, ..supply(2, 2) })).unwrap();
    let first = node.add(&a).address();
    node.del(&a).succeeds();
    assert_ne!(node.add(&b).address(), first);
    assert_eq!(node.ledger().counts(file::now()).cooling, 1);
}

/// As Multus asks for it where a NetworkAttachmentDefinition names the cluster's own network.
#[test]
fn a_second_interface_of_ours_is_refused_before_it_has_cost_an_address() {
    let (node, pod) = (Node::holding(2), Pod::new("a"));
    let address = node.add(&pod).address();
    let refused = node.run_for("net1", "ADD", &pod);
    assert_eq!(refused.code(), 7, "{}", refused.document);
    assert!(refused.message().contains("default route") && refused.message().contains("net1"), "{refused:?}");
    assert_eq!(node.ledger().counts(file::now()).free, 1, "none is assigned and none cools");
    node.run_for("net1", "DEL", &pod).succeeds();
    node.check(&pod, address).succeeds();
}

/// Another network's interface came first.
#[test]
fn a_default_route_that_the_pod_has_already_is_named_and_the_address_given_back() {
    let (node, pod) = (Node::holding(1), Pod::new("a"));
    pod.netns.ip("link add other type veth peer name far");
    pod.netns.ip("link set other up");
    pod.netns.ip("route add default dev other");
    let refused = node.run_for("net1", "ADD", &pod);
    assert_eq!(refused.code(), 7, "{}", refused.document);
    assert!(refused.message().contains("already has a default route"), "{refused:?}");
    assert_eq!(node.ledger().counts(file::now()).assigned, 0);
    assert!(pod.netns.ip("route show default").contains("dev other"));
}
