//! What must hold of each observation: who has an address, who answers there, and as whom it is seen.

use super::excuses::Excuses;
use super::{Addresses, Answer, Dial, Found, Observation};
use crate::workload::ProbePod;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

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

    /// The addresses of a node that lead to its pods or are inside of one.
    pub(super) fn used(&self, node: &str) -> BTreeSet<Ipv4Addr> {
        let mut used = self.inside_of(node);
        used.extend(self.wired.get(node).into_iter().flatten());
        used
    }

    /// The addresses inside of a node's pods.
    pub(super) fn inside_of(&self, node: &str) -> BTreeSet<Ipv4Addr> {
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
    pub(super) fn pods_agree(&self, excuses: &Excuses) -> bool {
        let confirmed = |ProbePod { name, node, address }: &ProbePod| {
            self.wired.get(node).is_some_and(|wired| wired.contains(address))
                && self.answers.get(address).is_some_and(|answer| answer.name == *name)
        };
        self.are_pods_read && self.lasting(excuses).all(confirmed)
    }

    /// The pods that don't answer under their own name, or don't reach all that they have to: the VM, the
    /// internet and pods of each node.
    pub(super) fn unreachable(&self, excuses: &Excuses) -> Vec<String> {
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
}

fn each(addresses: &Addresses) -> impl Iterator<Item = (&String, Ipv4Addr)> {
    addresses.iter().flat_map(|(node, all)| all.iter().map(move |&address| (node, address)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tests::{PODS, address, answer, answered, ready, sound, taken, violations};

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
