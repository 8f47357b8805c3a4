//! The invariants of a cluster whatever happens to it, by an auditor's observations of Azure, the kernels,
//! the objects, the ledgers and the answers of pods. It uses no line of the product, so that a fault there
//! can't hide itself: `tests/docs/modules.rs` follows all that it imports.
//!
//! ```text
//!   observer  reads all this
//!   readings  what the programs print that show it
//!   rules     what must hold of each observation
//!   forgery   packets of pods under addresses that aren't theirs
//!   excuses   what others have done to a NIC or to the API server's store, and until when that counts
//!   rest      what must hold once nothing is under way any more
//!   lasting   what must not last on a node
//!   healing   the faults, and how long each took to heal
//!   sums      what was done and seen, and whether that is enough to believe it
//! ```

pub mod excuses;
pub mod forgery;
pub mod healing;
mod lasting;
pub mod observer;
pub mod readings;
pub mod rest;
mod rules;
pub mod sums;

use crate::workload::ProbePod;
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

#[cfg(test)]
mod tests {
    use super::excuses::Excuses;
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

    pub fn answered(dial: &mut Dial) -> &mut Answer {
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
    fn all_that_is_seen_is_counted_and_a_pod_of_the_same_node_is_not_across() {
        let seen = sound().seen().map(|(_, count)| count);
        assert_eq!(seen, [2, 2, 2, 4, 2, 2, 2, 2]);
        let mut silent = sound();
        silent.dials.iter_mut().for_each(|dial| dial.answer = None);
        silent.sent.values_mut().for_each(|sent| sent.own = false);
        assert_eq!(silent.seen().map(|(_, count)| count), [2, 2, 2, 4, 0, 0, 0, 0]);
    }
}
