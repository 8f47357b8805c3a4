//! The plugin is killed before each of its system calls, one after the other. The next verb, or the agent,
//! makes good what it left. So is the agent in each of its transactions ([`agent`]).

mod agent;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use vnetpool_node_agent::sweep::{self, GRACE, Sweep};
use vnetpool_plugin::{
    cni::{IPAM, PLUGIN},
    ledger::{
        Claim, Ledger, Millis,
        file::{self, Store},
    },
    wiring::{bridge, host_links},
};

use crate::{
    calls,
    node::{Answer, Node, Pod, eventually, finish},
};

/// How many addresses the node holds.
const HELD: u8 = 12;
const AS_HELD: &[(usize, u32)] = &[(HELD as usize, HELD as u32)];
/// In the place of a wiring: pods that another plugin wires, to a bridge of its own with this name. Their
/// addresses are from `vnetpool-ipam`.
const LEASED: &str = "leased";
const OTHERS_BRIDGE: &str = "others";
/// No verb makes so many system calls: one that never ends is a fault.
const MOST_CALLS: usize = 1000;

/// A verb in a situation.
#[derive(Clone, Copy)]
struct Victim {
    verb: &'static str,
    what: &'static str,
    /// The state before it.
    before: fn(&Stage, &Pod),
    /// The verbs and programs that may come after it.
    next: &'static [Next],
}

const ADDS: [Victim; 3] = [
    Victim { verb: "ADD", what: "a pod's first", before: |_, _| {}, next: ALL },
    Victim {
        verb: "ADD",
        what: "one that has its address",
        before: |stage, pod| _ = stage.add(pod),
        next: ALL,
    },
    Victim {
        verb: "ADD",
        what: "one that finds half a link",
        before: |stage, pod| stage.half_wire(pod),
        next: ALL,
    },
];
const DELS: [Victim; 3] = [
    Victim { verb: "DEL", what: "a wired pod's", before: |stage, pod| _ = stage.add(pod), next: ALL },
    Victim {
        verb: "DEL",
        what: "one that finds half a link",
        before: |stage, pod| stage.half_wire(pod),
        next: ALL,
    },
    Victim {
        verb: "DEL",
        what: "a pod's whose namespace has ended",
        before: |stage, pod| {
            stage.add(pod);
            stage.end_namespace(pod);
        },
        next: &[NewSandbox, Collection, Sweeping],
    },
];
const OTHERS: [Victim; 2] = [
    Victim { verb: "GC", what: "of one pod", before: |stage, pod| _ = stage.add(pod), next: ALL },
    Victim { verb: "CHECK", what: "a wired pod's", before: |stage, pod| _ = stage.add(pod), next: ALL },
];

/// What another plugin asks for a pod.
const LEASES: [Victim; 5] = [
    Victim { verb: "ADD", what: "a pod's first", before: |_, _| {}, next: ALL },
    Victim { verb: "DEL", what: "a pod's", before: |stage, pod| _ = stage.add(pod), next: ALL },
    DELS[2],
    OTHERS[0],
    OTHERS[1],
];

/// The next verb or program, which finds what a killed plugin has left.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// The runtime tries again.
    SameAdd,
    /// The runtime gives the sandbox up and starts another of the pod.
    NewSandbox,
    /// The runtime no longer knows the sandbox.
    Collection,
    /// The pod's namespace ends, and the plugin isn't invoked again.
    Sweeping,
}
use Next::{Collection, NewSandbox, SameAdd, Sweeping};

const ALL: &[Next] = &[SameAdd, NewSandbox, Collection, Sweeping];

/// A node whose plugins are killed, or its agent.
struct Stage {
    node: Node,
    config: Value,
    /// How many records its ledger may have, and addresses held.
    may_hold: &'static [(usize, u32)],
}

impl Stage {
    fn new(wiring: &str) -> Stage {
        let node = Node::holding(HELD);
        node.netns.inside(|| bridge::ensure(1500, Path::new("/proc/sys/net")).unwrap());
        let mut config = node.config();
        config["cniVersion"] = "1.1.0".into();
        if wiring == LEASED {
            node.netns.ip(&format!("link add {OTHERS_BRIDGE} up type bridge"));
            config["type"] = "bridge".into();
            config["bridge"] = OTHERS_BRIDGE.into();
            config["ipam"] = json!({ "type": IPAM, "subnet": "10.240.0.0/20", "stateDir": node.dir.path() });
        } else {
            config["wiring"] = wiring.into();
        }
        config["cni.dev/valid-attachments"] = json!([]); // what a GC finds is garbage; other verbs don't read it
        Stage { node, config, may_hold: AS_HELD }
    }

    fn is_leased(&self) -> bool {
        self.config["ipam"].is_object()
    }

    /// A verb of a pod, and its input.
    fn invocation(&self, verb: &str, pod: &Pod) -> (Command, String) {
        let mut command = Node::invocation(verb, pod);
        command.arg0(if self.is_leased() { IPAM } else { PLUGIN });
        let mut config = self.config.clone();
        if verb == "CHECK" {
            let address = self.node.ledger().address_of(&pod.sandbox()).unwrap();
            config["prevResult"] =
                json!({ "cniVersion": "1.1.0", "ips": [{ "address": format!("{address}/32") }] });
        }
        (command, config.to_string())
    }

    fn run(&self, verb: &str, pod: &Pod) -> Answer {
        let (mut command, input) = self.invocation(verb, pod);
        let mut plugin = self.node.netns.inside(|| command.spawn().unwrap());
        plugin.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        finish(plugin)
    }

    fn add(&self, pod: &Pod) -> Ipv4Addr {
        self.run("ADD", pod).address()
    }

    /// As an ADD leaves it that ends right after it has made the pair.
    fn half_wire(&self, pod: &Pod) {
        let assign = |ledger: &mut Ledger, now| {
            ledger.assign(&Claim::wired(&pod.sandbox(), &pod.facts(), "vnetpool"), now)
        };
        self.node.store.with(assign).unwrap();
        let (link, netns) = (pod.host_link(), pod.netns.path());
        let netns = netns.file_name().unwrap().to_str().unwrap();
        self.node.netns.ip(&format!("link add {link} type veth peer name eth0 netns {netns}"));
    }

    /// Ends the pod's namespace. Its links go some time later.
    fn end_namespace(&self, pod: &Pod) {
        pod.netns.end();
        let link = pod.host_link();
        eventually("the link has gone with its namespace", || self.links(), |all| !all.contains(&link));
    }

    /// Kills a verb of this pod before this system call; the rest must be safe. Returns whether the verb came
    /// so far.
    fn kill_before(&self, call: usize, verb: &str, pod: &Pod) -> bool {
        let (plugin, input) = self.invocation(verb, pod);
        let mut plugin = calls::from_start(plugin);
        let ended = self.node.netns.inside(|| calls::kill_before(call, &mut plugin, input.as_bytes()));
        self.is_safe();
        ended.is_none()
    }

    /// No address is lost or twice in the ledger, and each that leads to a pod is that pod's in the ledger.
    fn is_safe(&self) {
        let ledger = self.node.ledger();
        let addresses: BTreeSet<Ipv4Addr> =
            ledger.records().iter().map(|record| record.entry().address).collect();
        assert_eq!(addresses.len(), ledger.records().len());
        let has = (ledger.records().len(), ledger.counts(file::now()).held);
        assert!(self.may_hold.contains(&has), "{has:?}: {ledger:?}");
        let assigned: BTreeSet<Ipv4Addr> = ledger.assignments().map(|(entry, _)| entry.address).collect();
        for (address, link) in self.routed() {
            assert!(assigned.contains(&address), "{address} leads to {link} and isn't assigned");
        }
        for occupant in
            self.node.netns.inside(|| host_links().unwrap()).iter().flat_map(|link| link.occupants())
        {
            assert_eq!(ledger.address_of(&occupant.sandbox), Some(occupant.address), "{occupant:?}");
        }
    }

    /// The addresses that lead to pods, and by which link.
    fn routed(&self) -> BTreeMap<Ipv4Addr, String> {
        // A line a route: its link, its destination and so on, addresses in hex as they lie in memory.
        let routes =
            self.node.netns.inside(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap());
        let mut routed = BTreeMap::new();
        for words in routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
            if words[0].starts_with("vnp") || words[0] == OTHERS_BRIDGE {
                let address = Ipv4Addr::from(u32::from_str_radix(words[1], 16).unwrap().swap_bytes());
                assert_eq!(routed.insert(address, words[0].to_owned()), None, "{routes}");
            }
        }
        routed
    }

    /// The links of pods by their names, and the bridge.
    fn links(&self) -> Vec<String> {
        let links = self.node.netns.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let names = links.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        names.filter(|name| name.starts_with("vnp")).collect()
    }

    /// One record, one link of ours if it is to have one, and whole: the pod's address leads to it.
    fn is_served(&self, pod: &Pod, address: Ipv4Addr) {
        let (ledger, links) = (self.node.ledger(), self.node.netns.inside(|| host_links().unwrap()));
        let records = ledger.assignments().filter(|(_, found)| found.sandbox == pod.sandbox()).count();
        let wired = |link: &&vnetpool_plugin::wiring::HostLink| {
            link.occupants().iter().any(|occupant| occupant.sandbox == pod.sandbox())
        };
        let links: Vec<&str> = links.iter().filter(wired).map(|link| link.name.as_str()).collect();
        assert_eq!((ledger.address_of(&pod.sandbox()), records), (Some(address), 1));
        let link = pod.host_link();
        let leads_to = match self.config["wiring"].as_str() {
            Some("Bridge") => bridge::BRIDGE,
            Some(_) => &link,
            None => OTHERS_BRIDGE,
        };
        assert_eq!(self.routed().get(&address).map(String::as_str), Some(leads_to));
        if self.is_leased() {
            assert!(links.is_empty(), "{links:?}");
        } else {
            assert_eq!(links, [&link]);
            assert!(pod.netns.ip("-4 -o address show dev eth0").contains(&format!("{address}/32")));
        }
        self.run("CHECK", pod).succeeds();
        self.is_safe();
    }

    fn is_freed(&self, pod: &Pod) {
        assert_eq!(self.node.ledger().address_of(&pod.sandbox()), None);
        self.is_safe();
    }

    /// All traces of pods on the node, and the number of free addresses.
    fn traces(&self) -> (String, u32) {
        let ip = |what: &str| self.node.netns.ip(what);
        let neighbours = ip("neighbour show dev vnpbridge");
        let all = ip("-4 route show table all");
        let is_of_pod = |line: &&str| line.contains(" vnp") || line.contains("10.240.1.");
        let routes: Vec<&str> = all.lines().filter(is_of_pod).collect();
        let files = std::fs::read_dir(self.node.dir.path()).unwrap();
        let mut files: BTreeSet<String> =
            files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect();
        files.remove("ledger.new"); // the next transaction begins it anew
        let left = format!("{:?} {neighbours}{routes:?} {files:?}", self.links());
        (left, self.node.ledger().counts(file::now()).free)
    }

    /// Has the next verb or program find what was left of a pod.
    fn come(&self, next: Next, pod: &Pod) {
        match next {
            SameAdd => {
                let address = self.add(pod);
                self.is_served(pod, address);
                self.run("DEL", pod).succeeds();
            }
            NewSandbox => {
                self.run("DEL", pod).succeeds();
                self.is_freed(pod);
                let newer = Pod::named(&format!("{}-newer", pod.id), &pod.name);
                let address = self.add(&newer);
                self.is_served(&newer, address);
                self.run("DEL", &newer).succeeds();
                self.is_freed(&newer);
            }
            Collection => self.run("GC", pod).succeeds(),
            Sweeping => {
                self.end_namespace(pod);
                sweep_up(&self.node);
            }
        }
        self.is_freed(pod);
    }
}

/// The agent's sweep of this node, once a leak has stood for long enough.
pub fn sweep_up(Node { netns, store, .. }: &Node) {
    netns.inside(|| sweep_here(store));
}

/// The same of the node in whose namespace this thread is.
fn sweep_here(store: &Store) {
    let (ledger, links) = (store.read().unwrap(), host_links().unwrap());
    let mut sweep = Sweep::default();
    sweep.suspects(&ledger, &links, 0);
    for suspect in sweep.suspects(&ledger, &links, GRACE.as_millis() as Millis) {
        sweep::clear(store, &suspect).unwrap();
    }
}

/// Kills this verb before each of its system calls, and once not at all; after each kill every successor has
/// its turn.
fn survives(wiring: &str, victim: &Victim) {
    let Victim { verb, what, before, next } = victim;
    let stage = Stage::new(wiring);
    // Makes lock and log.
    let first = Pod::new("first");
    stage.add(&first);
    stage.run("DEL", &first).succeeds();
    sweep_up(&stage.node);
    let nothing = stage.traces();
    let mut calls = 0;
    for call in 1..=MOST_CALLS {
        let mut is_killed = false;
        for &next in *next {
            let pod = Pod::new(&format!("pod-{call}-{next:?}"));
            before(&stage, &pod);
            is_killed |= stage.kill_before(call, verb, &pod);
            stage.come(next, &pod);
        }
        sweep_up(&stage.node);
        assert_eq!(stage.traces(), nothing, "{verb}, {what}, killed before call {call}");
        if !is_killed {
            break;
        }
        calls = call;
    }
    assert!(calls < MOST_CALLS, "{verb}, {what}");
    report(calls, &format!("{verb}, {what}, {wiring}"));
}

/// Reports how many system calls were covered, past the harness, which keeps what a test that passes prints.
fn report(calls: usize, what: &str) {
    assert!(calls > 10, "{what}: {calls} system calls");
    let _ = writeln!(std::io::stderr(), "{what}: killed before each of {calls} system calls");
}

fn is_nightly() -> bool {
    std::env::var_os("NIGHTLY").is_some()
}

/// Usually the first of these; all of them nightly.
fn all_survive(wiring: &str, victims: &[Victim]) {
    let count = if is_nightly() { victims.len() } else { 1 };
    victims.iter().take(count).for_each(|victim| survives(wiring, victim));
}

#[test]
fn an_add_killed_before_any_of_its_system_calls_leaves_no_address_doubled_or_lost() {
    all_survive("Routed", &ADDS);
}

#[test]
fn a_del_killed_before_any_of_its_system_calls_can_be_done_again() {
    all_survive("Routed", &DELS);
}

#[test]
fn a_gc_or_check_killed_before_any_of_its_system_calls_is_no_matter() {
    ["Routed", "Bridge"].iter().for_each(|wiring| all_survive(wiring, &OTHERS));
}

#[test]
fn an_add_killed_before_any_of_its_system_calls_leaves_the_bridge_as_it_was() {
    all_survive("Bridge", &ADDS);
}

#[test]
fn a_del_killed_before_any_of_its_system_calls_leaves_the_bridge_as_it_was() {
    all_survive("Bridge", &DELS);
}

#[test]
fn a_verb_of_vnetpool_ipam_killed_before_any_of_its_system_calls_leaves_no_address_doubled_or_lost() {
    all_survive(LEASED, &LEASES);
}

/// The newer one gets the name of the older one's link, which goes on under another.
#[test]
fn an_add_killed_beside_an_older_sandbox_of_its_pod_leaves_that_one_whole() {
    let stage = Stage::new("Routed");
    for call in 1..=MOST_CALLS {
        let (older, newer) = (Pod::named("older", "web-0"), Pod::named("newer", "web-0"));
        let of_older = stage.add(&older);
        let is_killed = stage.kill_before(call, "ADD", &newer);
        stage.node.check(&older, of_older).succeeds();
        let of_newer = stage.add(&newer);
        stage.is_served(&newer, of_newer);
        stage.node.check(&older, of_older).succeeds();
        stage.run("DEL", &older).succeeds();
        stage.is_served(&newer, of_newer);
        stage.run("DEL", &newer).succeeds();
        sweep_up(&stage.node);
        assert_eq!(
            (stage.links(), stage.routed()),
            (vec!["vnpbridge".to_owned()], BTreeMap::new()),
            "{call}"
        );
        if !is_killed {
            report(call - 1, "ADD, a pod's first, Routed, beside an older sandbox");
            return;
        }
    }
    panic!("it makes more than {MOST_CALLS} system calls");
}

#[test]
fn an_add_whose_lock_file_was_removed_under_it_gives_its_address_back() {
    let (node, pod) = (Node::holding(0), Pod::new("a"));
    let add = node.start_add(&pod);
    let waits = |ledger: &Ledger| ledger.is_waiting(&pod.sandbox());
    crate::node::eventually("the ADD waits", || node.ledger(), waits);
    std::fs::remove_file(node.dir.path().join("lock")).unwrap();
    // Another process now holds the lock that all others see, so this ADD counts as alive and is served; but
    // it must notice.
    let other = node.store.lock_sandbox(&pod.sandbox(), Duration::ZERO).unwrap();
    node.store.with(|ledger, _| ledger.supply(&crate::node::supply(2, 1))).unwrap();
    let failed = finish(add);
    assert_eq!(failed.code(), 11);
    assert!(failed.message().contains("lock file was removed"), "{}", failed.message());
    drop(other);
    assert_eq!(node.ledger().counts(file::now()).assigned, 0);
    node.add(&pod).succeeds();
}

/// Until its alias is written, only the far end of a link shows its sandbox.
#[test]
fn the_pair_left_by_a_killed_add_goes_with_the_del() {
    let (stage, pod, next) = (Stage::new("Routed"), Pod::named("a", "web-0"), Pod::named("b", "web-0"));
    stage.half_wire(&pod);
    stage.run("DEL", &pod).succeeds();
    assert_eq!(stage.node.ledger().counts(file::now()).free, u32::from(HELD));
    let links = stage.node.netns.inside(|| host_links().unwrap());
    assert!(links.is_empty(), "it keeps its name from the pod's next: {links:?}");
    let address = stage.add(&next);
    stage.run("DEL", &pod).succeeds();
    stage.is_served(&next, address);
}
