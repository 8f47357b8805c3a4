//! The invariants of a cluster whatever happens to it, by an auditor's observations of Azure, the kernels,
//! the objects, the ledgers and the answers of pods. It uses no line of the product, so that a fault there
//! can't hide itself.
//!
//! ```text
//!   readings  what the programs print that show all this
//!   excuses   what others have done to a NIC or to the API server's store, and until when that counts
//!   rest      what must hold once nothing is under way any more
//!   sums      what was done and seen, and whether that is enough to believe it
//! ```

pub mod excuses;
pub mod readings;
pub mod rest;
pub mod sums;

use crate::workload::ProbePod;
use excuses::Excuses;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The pods that are ready, by UID.
pub type Ready = BTreeMap<String, ProbePod>;
/// Addresses of each node.
pub type Addresses = BTreeMap<String, BTreeSet<Ipv4Addr>>;

/// One observation, in the order in which an address comes into use, backwards: what has ended in between is
/// no fault.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The plain VM that asks the pods.
    pub vm: Ipv4Addr,
    pub before: Ready,
    /// The answer to the VM at an address.
    pub answers: BTreeMap<Ipv4Addr, Answer>,
    /// Connections of pods to the VM and to pods of each node.
    pub dials: Vec<Dial>,
    /// The addresses that each node's kernel sends to pods.
    pub wired: Addresses,
    /// The addresses for pods that each node's NIC holds.
    pub nics: Addresses,
    pub after: Ready,
}

/// A pod's answer to a client: its own name, and the client's address as the pod sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub name: String,
    pub source: Ipv4Addr,
}

/// A connection that a pod of this name has made, and the source address that its target saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    pub from: String,
    pub target: Ipv4Addr,
    pub source: Ipv4Addr,
}

/// The findings of an observation.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    pub violations: BTreeSet<String>,
    /// Addresses in use that others have taken off their NIC.
    pub excused: u32,
    /// The rules about pods didn't count, for the API server's store was set back.
    pub is_suspended: bool,
}

impl Observation {
    pub fn found(&self, excuses: &Excuses) -> Found {
        let mut found = Found { is_suspended: excuses.suspend_pods(), ..Found::default() };
        self.check_nics(&mut found);
        self.check_kernels(excuses, &mut found);
        if !found.is_suspended {
            self.check_pods(excuses, &mut found);
        }
        found
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

    /// No address leads to pods of two nodes, and none that isn't reserved leads to any.
    fn check_kernels(&self, excuses: &Excuses, found: &mut Found) {
        let mut users: BTreeMap<Ipv4Addr, &String> = BTreeMap::new();
        for (node, address) in each(&self.wired) {
            if let Some(other) = users.insert(address, node)
                && !excuses.cover(node, address)
                && !excuses.cover(other, address)
            {
                found.violations.insert(format!("{address} leads to a pod of {other} and to one of {node}"));
            }
            if !self.nics.get(node).is_some_and(|held| held.contains(&address)) {
                match excuses.cover(node, address) {
                    true => found.excused += 1,
                    false => {
                        let what = format!("{address} leads to a pod of {node}, whose NIC doesn't hold it");
                        found.violations.insert(what);
                    }
                }
            }
        }
    }

    /// No address is that of two pods, each pod answers at its own, and nobody sees it under another.
    fn check_pods(&self, excuses: &Excuses, found: &mut Found) {
        let Observation { vm, answers, dials, .. } = self;
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
                _ => {}
            }
            let foreign = dials.iter().filter(|dial| dial.from == *name && dial.source != *address);
            for Dial { target, source, .. } in foreign {
                let what =
                    format!("{address}, the address of {name} on {node}, is seen as {source} by {target}");
                found.violations.insert(what);
            }
        }
    }

    /// The pods that were the same all the while, but for those whose address others have taken off its NIC.
    fn lasting(&self, excuses: &Excuses) -> impl Iterator<Item = &ProbePod> {
        let lasting = self.after.iter().filter(|(uid, pod)| self.before.get(*uid) == Some(pod));
        lasting.map(|(_, pod)| pod).filter(|pod| !excuses.cover(&pod.node, pod.address))
    }

    /// Whether the kernels and the pods themselves confirm the address of each Pod.
    fn pods_agree(&self, excuses: &Excuses) -> bool {
        self.lasting(excuses).all(|ProbePod { name, node, address }| {
            self.wired.get(node).is_some_and(|wired| wired.contains(address))
                && self.answers.get(address).is_some_and(|answer| answer.name == *name)
        })
    }

    /// How much the auditor has seen of each kind.
    pub fn seen(&self) -> [(&'static str, usize); 5] {
        let count = |all: &Addresses| all.values().map(BTreeSet::len).sum();
        let node =
            |has: &dyn Fn(&ProbePod) -> bool| self.before.values().find(|pod| has(pod)).map(|pod| &pod.node);
        let crosses = |dial: &&Dial| {
            let from = node(&|pod| pod.name == dial.from);
            let to = node(&|pod| pod.address == dial.target);
            from.is_some() && to.is_some() && from != to
        };
        [
            ("answers", self.answers.len()),
            ("routes to pods", count(&self.wired)),
            ("addresses of NICs", count(&self.nics)),
            ("sources seen by the VM", self.dials.iter().filter(|dial| dial.target == self.vm).count()),
            ("sources seen across nodes", self.dials.iter().filter(crosses).count()),
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

    pub fn answer(name: &str) -> Answer {
        Answer { name: name.to_owned(), source: VM }
    }

    fn dial(from: &str, target: Ipv4Addr, source: u8) -> Dial {
        Dial { from: from.to_owned(), target, source: address(source) }
    }

    /// Two pods on two nodes; each NIC has an address to spare.
    pub fn sound() -> Observation {
        Observation {
            vm: VM,
            before: ready(&PODS),
            answers: [(address(1), answer("a")), (address(2), answer("b"))].into(),
            dials: vec![
                dial("a", VM, 1),
                dial("a", address(2), 1),
                dial("a", address(1), 1),
                dial("b", VM, 2),
            ],
            wired: of(&[("node-1", &[1]), ("node-2", &[2])]),
            nics: of(&[("node-1", &[1, 3]), ("node-2", &[2, 4])]),
            after: ready(&PODS),
        }
    }

    /// `node-1` has lost address 1, and `node-2` has been given it.
    pub fn taken() -> Observation {
        let mut observation = sound();
        observation.nics = of(&[("node-1", &[]), ("node-2", &[1, 2, 4])]);
        observation.wired = of(&[("node-1", &[1]), ("node-2", &[1, 2])]);
        observation.answers.insert(address(1), answer("c"));
        observation
    }

    pub fn violations(observation: &Observation, excuses: &Excuses) -> Vec<String> {
        observation.found(excuses).violations.into_iter().collect()
    }

    #[test]
    fn where_all_is_well_nothing_is_found() {
        assert_eq!(sound().found(&Excuses::default()), Found::default());
    }

    #[test]
    fn each_violation_is_found_by_its_rule() {
        type Break = fn(&mut Observation);
        let breaks: [(Break, &str); 8] = [
            (
                |observation| _ = observation.nics.get_mut("node-2").unwrap().insert(address(1)),
                "10.0.0.1 is on the NICs of node-1 and node-2",
            ),
            (
                |observation| _ = observation.wired.get_mut("node-2").unwrap().insert(address(1)),
                "10.0.0.1 leads to a pod of node-1 and to one of node-2",
            ),
            (
                |observation| _ = observation.nics.get_mut("node-1").unwrap().remove(&address(1)),
                "10.0.0.1 leads to a pod of node-1, whose NIC doesn't hold it",
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
                |observation| observation.dials[0].source = address(100),
                "10.0.0.1, the address of a on node-1, is seen as 10.0.0.100 by 10.0.0.200",
            ),
            (
                |observation| observation.dials[1].source = address(3),
                "10.0.0.1, the address of a on node-1, is seen as 10.0.0.3 by 10.0.0.2",
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
        observation.dials[0].source = address(3);
        for pods in [&PODS[1..], &[("a", "node-1", 3), PODS[1]]] {
            observation.after = ready(pods);
            assert_eq!(violations(&observation, &Excuses::default()), [""; 0]);
        }
    }

    #[test]
    fn all_that_is_seen_is_counted_and_a_pod_of_the_same_node_is_not_across() {
        let seen = sound().seen().map(|(_, count)| count);
        assert_eq!(seen, [2, 2, 4, 2, 1]);
    }

    #[test]
    fn the_auditor_imports_no_crate_of_the_product() {
        let sources = [
            include_str!("audit.rs"),
            include_str!("audit/excuses.rs"),
            include_str!("audit/readings.rs"),
            include_str!("audit/rest.rs"),
            include_str!("audit/sums.rs"),
            include_str!("timeline.rs"),
            include_str!("../soak/auditor.rs"),
        ];
        let imports = sources.iter().flat_map(|source| source.lines());
        let ours = { imports }.filter(|line| line.starts_with("use vnetpool_"));
        let foreign: Vec<_> = { ours }.filter(|line| !line.starts_with("use vnetpool_tests::")).collect();
        assert_eq!(foreign, [""; 0]);
    }
}
