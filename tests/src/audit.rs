//! The invariants of a cluster whatever happens to it, by an auditor's observations of Azure, the kernels,
//! the objects, the ledgers and the answers of pods. It uses no line of the product, so that a fault there
//! can't hide itself: `tests/docs/modules.rs` follows all that it imports.
//!
//! ```text
//!   observer  reads all this
//!   readings  what the programs print that show it
//!   forgery   packets of pods under addresses that aren't theirs
//!   excuses   what others have done to a NIC or to the API server's store, and until when that counts
//!   rest      what must hold once nothing is under way any more
//!   lasting   what must not last on a node
//!   sums      what was done and seen, and whether that is enough to believe it
//! ```

pub mod excuses;
pub mod forgery;
mod lasting;
pub mod observer;
pub mod readings;
pub mod rest;
pub mod sums;

use crate::workload::ProbePod;
use excuses::Excuses;
use forgery::Sent;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The pods that are ready, by UID.
pub type Ready = BTreeMap<String, ProbePod>;
/// Addresses of each node.
pub type Addresses = BTreeMap<String, BTreeSet<Ipv4Addr>>;
/// The addresses in each network namespace of a pod, by node and by the namespace's name.
pub type Namespaces = BTreeMap<String, BTreeMap<String, BTreeSet<Ipv4Addr>>>;

/// One observation, in the order in which an address comes into use, backwards: what has ended in between is
/// no fault. What couldn't be read is missing, and no rule counts that needs it.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The plain VM that asks the pods.
    pub vm: Ipv4Addr,
    /// A host on the internet.
    pub internet: Ipv4Addr,
    /// The primary address of each node.
    pub hosts: BTreeMap<String, Ipv4Addr>,
    /// Whether all that is about Pods was read: `before`, `answers`, `dials` and `after`.
    pub are_pods_read: bool,
    pub before: Ready,
    /// The answer to the VM at an address.
    pub answers: BTreeMap<Ipv4Addr, Answer>,
    /// Connections of pods to the VM, to the internet and to pods of each node.
    pub dials: Vec<Dial>,
    /// What the VM has got of two packets of a pod, by the pod's node.
    pub sent: BTreeMap<String, Sent>,
    /// The addresses that each node's kernel sends to pods.
    pub wired: Addresses,
    /// The addresses inside of pods. Two of one address on a node have one route, so only these show both.
    pub inside: Namespaces,
    /// The addresses for pods that each node's NIC holds.
    pub nics: Addresses,
    pub after: Ready,
}

/// An answer to a client: the name of who answers, and the client's address as that one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub name: String,
    pub source: Ipv4Addr,
}

/// A connection that a pod of this name has tried, and the answer that it got, if it came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    pub from: String,
    pub target: Ipv4Addr,
    pub answer: Option<Answer>,
}

/// The findings of an observation.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    pub violations: BTreeSet<String>,
    /// Addresses in use that others have taken off their NIC.
    pub excused: u32,
    /// Pods that were ready and gave the VM no answer.
    pub silent: u32,
    /// The rules about pods didn't count, for the API server's store was set back.
    pub is_suspended: bool,
    /// Nodes of which a pod has reached the internet.
    pub outward: BTreeSet<String>,
    /// Nodes whose pods have reached the VM, and none of them the internet.
    pub cut_off: BTreeSet<String>,
}

impl Observation {
    pub fn found(&self, excuses: &Excuses) -> Found {
        let mut found = Found { is_suspended: excuses.suspend_pods(), ..Found::default() };
        self.check_nics(&mut found);
        self.check_kernels(excuses, &mut found);
        self.check_namespaces(&mut found);
        if !found.is_suspended {
            self.check_pods(excuses, &mut found);
            self.check_internet(excuses, &mut found);
        }
        found
    }

    /// All that couldn't be read.
    pub fn unread(&self) -> Vec<String> {
        let mut unread = vec![];
        if !self.are_pods_read {
            unread.push("the pods".to_owned());
        }
        for node in self.hosts.keys() {
            if !self.wired.contains_key(node) || !self.inside.contains_key(node) {
                unread.push(format!("the kernel of {node}"));
            }
        }
        if !self.hosts.keys().all(|node| self.nics.contains_key(node)) {
            unread.push("the NICs".to_owned());
        }
        unread
    }

    /// The addresses of a node that lead to its pods or are inside of one.
    fn used(&self, node: &str) -> BTreeSet<Ipv4Addr> {
        let mut used = self.inside_of(node);
        used.extend(self.wired.get(node).into_iter().flatten());
        used
    }

    /// The addresses inside of a node's pods.
    fn inside_of(&self, node: &str) -> BTreeSet<Ipv4Addr> {
        self.inside.get(node).into_iter().flat_map(BTreeMap::values).flatten().copied().collect()
    }

    /// No address is on two NICs.
    fn check_nics(&self, found: &mut Found) {
        let mut holders: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
        for (node, address) in each(&self.nics) {
            if let Some(other) = holders.insert(address, node) {
                found.violations.insert(format!("{address} is on the NICs of {other} and {node}"));
            }
        }
    }

    /// No address is that of pods on two nodes, and none that isn't reserved is that of any.
    fn check_kernels(&self, excuses: &Excuses, found: &mut Found) {
        let used: Addresses = self.hosts.keys().map(|node| (node.clone(), self.used(node))).collect();
        let mut users: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
        for (node, address) in each(&used) {
            if let Some(other) = users.insert(address, node)
                && !excuses.cover(node, address)
                && !excuses.cover(other, address)
            {
                found
                    .violations
                    .insert(format!("{address} is that of a pod on {other} and of one on {node}"));
            }
            if self.nics.get(node).is_some_and(|held| !held.contains(&address)) {
                match excuses.cover(node, address) {
                    true => found.excused += 1,
                    false => {
                        let what = format!("{address} is that of a pod on {node}, whose NIC doesn't hold it");
                        found.violations.insert(what);
                    }
                }
            }
        }
    }

    /// No two pods of a node have the same address. Nothing excuses that: whoever took the address off the
    /// NIC has not assigned it twice.
    fn check_namespaces(&self, found: &mut Found) {
        for (node, namespaces) in &self.inside {
            let mut owners: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
            for (namespace, address) in each(namespaces) {
                if let Some(other) = owners.insert(address, namespace) {
                    let what = format!("{address} is in two pods of {node}: {other} and {namespace}");
                    found.violations.insert(what);
                }
            }
        }
    }

    /// No address is that of two pods, each pod answers at its own, to other pods, too, and nobody sees it
    /// under another.
    fn check_pods(&self, excuses: &Excuses, found: &mut Found) {
        let Observation { vm, answers, dials, .. } = self;
        let names: BTreeMap<Ipv4Addr, &String> =
            self.lasting(excuses).map(|pod| (pod.address, &pod.name)).collect();
        let mut owners: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
        for ProbePod { name, node, address } in self.lasting(excuses) {
            if let Some(other) = owners.insert(*address, name) {
                found.violations.insert(format!("{address} is the address of {other} and of {name}"));
            }
            match answers.get(address) {
                Some(answer) if answer.name != *name => {
                    let what =
                        format!("{} answers at {address}, the address of {name} on {node}", answer.name);
                    found.violations.insert(what);
                }
                Some(Answer { source, .. }) if source != vm => {
                    let what =
                        format!("{address}, the address of {name} on {node}, sees the VM {vm} as {source}");
                    found.violations.insert(what);
                }
                Some(_) => {}
                None => found.silent += 1,
            }
            for Dial { target, answer, .. } in dials.iter().filter(|dial| dial.from == *name) {
                let Some(answer) = answer else { continue };
                let source = answer.source;
                if self.own_source(node, *address, *target).is_some_and(|own| own != source) {
                    let what = format!(
                        "{address}, the address of {name} on {node}, is seen as {source} by {target}"
                    );
                    found.violations.insert(what);
                }
                if let Some(owner) = names.get(target).filter(|owner| **owner != &answer.name) {
                    let what = format!("{} answers {name} at {target}, the address of {owner}", answer.name);
                    found.violations.insert(what);
                }
            }
        }
    }

    /// The address under which a target has to see a pod: the internet sees the node's.
    fn own_source(&self, node: &str, address: Ipv4Addr, target: Ipv4Addr) -> Option<Ipv4Addr> {
        if target == self.internet { self.hosts.get(node).copied() } else { Some(address) }
    }

    /// Azure drops what leaves for the internet under a pod's address: a node without the rules that
    /// masquerade shows by what doesn't come through.
    fn check_internet(&self, excuses: &Excuses, found: &mut Found) {
        let node_of: BTreeMap<&String, &String> =
            self.lasting(excuses).map(|pod| (&pod.name, &pod.node)).collect();
        let reached = |wanted: Ipv4Addr| -> BTreeSet<String> {
            let dials = self.dials.iter().filter(|dial| dial.target == wanted && dial.answer.is_some());
            dials.filter_map(|dial| node_of.get(&dial.from)).map(|node| (*node).clone()).collect()
        };
        found.outward = reached(self.internet);
        found.cut_off = reached(self.vm).difference(&found.outward).cloned().collect();
    }

    /// The pods that were the same all the while, but for those whose address others have taken off its NIC.
    fn lasting(&self, excuses: &Excuses) -> impl Iterator<Item = &ProbePod> {
        let lasting = self.after.iter().filter(|(uid, pod)| self.before.get(*uid) == Some(pod));
        lasting.map(|(_, pod)| pod).filter(|pod| !excuses.cover(&pod.node, pod.address))
    }

    /// Whether the kernels and the pods themselves confirm the address of each Pod.
    fn pods_agree(&self, excuses: &Excuses) -> bool {
        let confirmed = |ProbePod { name, node, address }: &ProbePod| {
            self.wired.get(node).is_some_and(|wired| wired.contains(address))
                && self.answers.get(address).is_some_and(|answer| answer.name == *name)
        };
        self.are_pods_read && self.lasting(excuses).all(confirmed)
    }

    /// The pods that don't answer under their own name, or don't reach all that they have to: the VM, the
    /// internet and pods of each node.
    fn unreachable(&self, excuses: &Excuses) -> Vec<String> {
        let mut lacking = vec![];
        for ProbePod { name, node, address } in self.lasting(excuses) {
            let pod = format!("{name} on {node}");
            if self.answers.get(address).is_none_or(|answer| answer.name != *name) {
                lacking.push(format!("{pod} doesn't answer at {address}"));
            }
            let tried = |target: &Ipv4Addr| {
                self.dials.iter().find(|dial| dial.from == *name && dial.target == *target)
            };
            let others = self.dials.iter().map(|dial| &dial.target);
            let targets: BTreeSet<_> = others.chain([&self.vm, &self.internet]).collect();
            for target in targets {
                let is_taken = self.hosts.keys().any(|node| excuses.cover(node, *target));
                if !is_taken && tried(target).is_none_or(|dial| dial.answer.is_none()) {
                    lacking.push(format!("{pod} with {address} doesn't reach {target}"));
                }
            }
        }
        lacking
    }

    /// How much the auditor has seen of each kind.
    pub fn seen(&self) -> [(&'static str, usize); 8] {
        let count = |all: &Addresses| all.values().map(BTreeSet::len).sum();
        let node =
            |has: &dyn Fn(&ProbePod) -> bool| self.before.values().find(|pod| has(pod)).map(|pod| &pod.node);
        let crosses = |dial: &&Dial| {
            let from = node(&|pod| pod.name == dial.from);
            let to = node(&|pod| pod.address == dial.target);
            from.is_some() && to.is_some() && from != to
        };
        let through = || self.dials.iter().filter(|dial| dial.answer.is_some());
        [
            ("answers", self.answers.len()),
            ("routes to pods", count(&self.wired)),
            ("addresses inside of pods", self.inside.values().map(count).sum()),
            ("addresses of NICs", count(&self.nics)),
            ("sources seen by the VM", through().filter(|dial| dial.target == self.vm).count()),
            ("sources seen on the internet", through().filter(|dial| dial.target == self.internet).count()),
            ("sources seen across nodes", through().filter(crosses).count()),
            ("packets sent beside forged ones", self.sent.values().filter(|sent| sent.own).count()),
        ]
    }
}

fn each(addresses: &Addresses) -> impl Iterator<Item = (&String, Ipv4Addr)> {
    addresses.iter().flat_map(|(node, all)| all.iter().map(move |&address| (node, address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, number)
    }

    pub fn of(nodes: &[(&str, &[u8])]) -> Addresses {
        let of_node = |numbers: &[u8]| numbers.iter().copied().map(address).collect();
        nodes.iter().map(|(node, numbers)| ((*node).to_owned(), of_node(numbers))).collect()
    }

    pub fn ready(pods: &[(&str, &str, u8)]) -> Ready {
        let pod = |&(name, node, number): &(&str, &str, u8)| ProbePod {
            name: name.to_owned(),
            node: node.to_owned(),
            address: address(number),
        };
        pods.iter().map(|one| (format!("uid-{}", one.0), pod(one))).collect()
    }

    pub const PODS: [(&str, &str, u8); 2] = [("a", "node-1", 1), ("b", "node-2", 2)];
    const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
    pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    pub fn answer(name: &str) -> Answer {
        Answer { name: name.to_owned(), source: VM }
    }

    fn dial(from: &str, target: Ipv4Addr, source: u8) -> Dial {
        let owner = PODS.iter().find(|(_, _, number)| address(*number) == target);
        let name = owner.map_or("machine", |pod| pod.0).to_owned();
        let answer = Answer { name, source: address(source) };
        Dial { from: from.to_owned(), target, answer: Some(answer) }
    }

    fn answered(dial: &mut Dial) -> &mut Answer {
        dial.answer.as_mut().unwrap()
    }

    /// The namespace of one pod each.
    pub fn inside(nodes: &[(&str, &[(&str, u8)])]) -> Namespaces {
        let one = |&(name, number): &(&str, u8)| (name.to_owned(), [address(number)].into());
        nodes.iter().map(|(node, all)| ((*node).to_owned(), all.iter().map(one).collect())).collect()
    }

    /// Two pods on two nodes; each NIC has an address to spare.
    pub fn sound() -> Observation {
        Observation {
            vm: VM,
            internet: INTERNET,
            hosts: [("node-1".to_owned(), address(101)), ("node-2".to_owned(), address(102))].into(),
            are_pods_read: true,
            before: ready(&PODS),
            answers: [(address(1), answer("a")), (address(2), answer("b"))].into(),
            dials: vec![
                dial("a", VM, 1),
                dial("a", address(2), 1),
                dial("a", address(1), 1),
                dial("a", INTERNET, 101),
                dial("b", VM, 2),
                dial("b", address(2), 2),
                dial("b", address(1), 2),
                dial("b", INTERNET, 102),
            ],
            sent: ["node-1", "node-2"]
                .map(|node| (node.to_owned(), Sent { foreign: false, own: true }))
                .into(),
            wired: of(&[("node-1", &[1]), ("node-2", &[2])]),
            inside: inside(&[("node-1", &[("cni-a", 1)]), ("node-2", &[("cni-b", 2)])]),
            nics: of(&[("node-1", &[1, 3]), ("node-2", &[2, 4])]),
            after: ready(&PODS),
        }
    }

    /// `node-1` has lost address 1, and `node-2` has been given it.
    pub fn taken() -> Observation {
        let mut observation = sound();
        observation.nics = of(&[("node-1", &[]), ("node-2", &[1, 2, 4])]);
        observation.wired = of(&[("node-1", &[1]), ("node-2", &[1, 2])]);
        observation.inside.get_mut("node-2").unwrap().insert("cni-c".to_owned(), [address(1)].into());
        observation.answers.insert(address(1), answer("c"));
        observation
    }

    pub fn violations(observation: &Observation, excuses: &Excuses) -> Vec<String> {
        observation.found(excuses).violations.into_iter().collect()
    }

    #[test]
    fn where_all_is_well_nothing_is_found() {
        let outward = ["node-1", "node-2"].map(str::to_owned).into();
        assert_eq!(sound().found(&Excuses::default()), Found { outward, ..Found::default() });
        assert_eq!(sound().unread(), [""; 0]);
    }

    #[test]
    fn each_violation_is_found_by_its_rule() {
        type Break = fn(&mut Observation);
        let breaks: [(Break, &str); 14] = [
            (
                |observation| _ = observation.nics.get_mut("node-2").unwrap().insert(address(1)),
                "10.0.0.1 is on the NICs of node-1 and node-2",
            ),
            (
                |observation| _ = observation.wired.get_mut("node-2").unwrap().insert(address(1)),
                "10.0.0.1 is that of a pod on node-1 and of one on node-2",
            ),
            (
                |observation| {
                    let inside = observation.inside.get_mut("node-2").unwrap();
                    inside.insert("cni-c".to_owned(), [address(1)].into());
                },
                "10.0.0.1 is that of a pod on node-1 and of one on node-2",
            ),
            (
                |observation| {
                    let inside = observation.inside.get_mut("node-1").unwrap();
                    inside.insert("cni-c".to_owned(), [address(1)].into());
                },
                "10.0.0.1 is in two pods of node-1: cni-a and cni-c",
            ),
            (
                |observation| {
                    let inside = observation.inside.get_mut("node-1").unwrap();
                    inside.insert("cni-c".to_owned(), [address(9)].into());
                },
                "10.0.0.9 is that of a pod on node-1, whose NIC doesn't hold it",
            ),
            (
                |observation| _ = observation.nics.get_mut("node-1").unwrap().remove(&address(1)),
                "10.0.0.1 is that of a pod on node-1, whose NIC doesn't hold it",
            ),
            (
                |observation| {
                    let doubled = ready(&[("a", "node-1", 1), ("b", "node-2", 2), ("c", "node-1", 1)]);
                    (observation.before, observation.after) = (doubled.clone(), doubled);
                    observation.answers.clear();
                },
                "10.0.0.1 is the address of a and of c",
            ),
            (
                |observation| _ = observation.answers.insert(address(1), answer("b")),
                "b answers at 10.0.0.1, the address of a on node-1",
            ),
            (
                |observation| observation.answers.get_mut(&address(1)).unwrap().source = address(9),
                "10.0.0.1, the address of a on node-1, sees the VM 10.0.0.200 as 10.0.0.9",
            ),
            (
                |observation| answered(&mut observation.dials[0]).source = address(100),
                "10.0.0.1, the address of a on node-1, is seen as 10.0.0.100 by 10.0.0.200",
            ),
            (
                |observation| answered(&mut observation.dials[1]).source = address(3),
                "10.0.0.1, the address of a on node-1, is seen as 10.0.0.3 by 10.0.0.2",
            ),
            (
                |observation| answered(&mut observation.dials[3]).source = address(1),
                "10.0.0.1, the address of a on node-1, is seen as 10.0.0.1 by 203.0.113.10",
            ),
            (
                |observation| answered(&mut observation.dials[3]).source = address(102),
                "10.0.0.1, the address of a on node-1, is seen as 10.0.0.102 by 203.0.113.10",
            ),
            (
                |observation| answered(&mut observation.dials[1]).name = "c".to_owned(),
                "c answers a at 10.0.0.2, the address of b",
            ),
        ];
        for (break_it, expected) in breaks {
            let mut observation = sound();
            break_it(&mut observation);
            let found = violations(&observation, &Excuses::default());
            assert!(found.contains(&expected.to_owned()), "{expected}: {found:?}");
        }
    }

    #[test]
    fn a_pod_that_comes_or_goes_during_an_observation_is_no_violation() {
        let mut observation = sound();
        observation.answers.insert(address(1), answer("b"));
        answered(&mut observation.dials[0]).source = address(3);
        answered(&mut observation.dials[2]).name = "c".to_owned();
        for pods in [&PODS[1..], &[("a", "node-1", 3), PODS[1]]] {
            observation.after = ready(pods);
            assert_eq!(violations(&observation, &Excuses::default()), [""; 0]);
        }
    }

    #[test]
    fn ready_pods_without_an_answer_are_counted_unless_others_took_their_address() {
        let mut observation = sound();
        observation.answers.clear();
        let mut excuses = Excuses::default();
        assert_eq!(observation.found(&excuses).silent, 2);
        excuses.taken("node-1", &[address(1)], std::time::Instant::now());
        assert_eq!(observation.found(&excuses).silent, 1);
    }

    #[test]
    fn all_that_is_seen_is_counted_and_a_pod_of_the_same_node_is_not_across() {
        let seen = sound().seen().map(|(_, count)| count);
        assert_eq!(seen, [2, 2, 2, 4, 2, 2, 2, 2]);
        let mut silent = sound();
        silent.dials.iter_mut().for_each(|dial| dial.answer = None);
        silent.sent.values_mut().for_each(|sent| sent.own = false);
        assert_eq!(silent.seen().map(|(_, count)| count), [2, 2, 2, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn a_node_is_cut_off_when_its_pods_reach_the_vm_and_none_of_them_the_internet() {
        let cut_off = |observation: &Observation, excuses: &Excuses| observation.found(excuses).cut_off;
        let mut observation = sound();
        observation.dials[3].answer = None;
        assert_eq!(cut_off(&observation, &Excuses::default()), ["node-1".to_owned()].into());
        observation.dials[0].answer = None;
        assert_eq!(cut_off(&observation, &Excuses::default()), BTreeSet::new());
        observation = sound();
        observation.dials[3].answer = None;
        let mut excuses = Excuses::default();
        excuses.taken("node-1", &[address(1)], std::time::Instant::now());
        assert_eq!(cut_off(&observation, &excuses), BTreeSet::new());
    }

    #[test]
    fn what_could_not_be_read_is_named_and_the_rest_still_counts() {
        let mut observation = taken();
        observation.are_pods_read = false;
        (observation.before, observation.after) = Default::default();
        (observation.answers, observation.dials) = Default::default();
        assert_eq!(observation.unread(), ["the pods"]);
        assert_eq!(
            violations(&observation, &Excuses::default()),
            [
                "10.0.0.1 is that of a pod on node-1 and of one on node-2",
                "10.0.0.1 is that of a pod on node-1, whose NIC doesn't hold it",
            ]
        );
        observation.wired.remove("node-1");
        assert_eq!(observation.unread(), ["the pods", "the kernel of node-1"]);
        observation.nics.clear();
        assert_eq!(observation.unread(), ["the pods", "the kernel of node-1", "the NICs"]);
        observation.inside.remove("node-1");
        assert_eq!(violations(&observation, &Excuses::default()), [""; 0]);
    }
}
