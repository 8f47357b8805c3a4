//! The faults that have struck, what shows that each has healed, and how long that took.

use super::Addresses;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

/// A fault has healed within this time and that in which a NIC is noticed that was wiped, whatever else
/// strikes meanwhile.
pub const HEALED: Duration = Duration::from_secs(420);

#[derive(Default)]
pub struct Faults {
    kinds: BTreeMap<&'static str, Kind>,
    /// Those that haven't healed yet.
    open: Vec<Open>,
}

#[derive(Default)]
struct Kind {
    count: usize,
    longest: Duration,
    /// How often it wasn't healed in time.
    unhealed: usize,
    /// How often it couldn't be done, and why the last time.
    failed: usize,
    failure: String,
}

/// A fault that has struck.
struct Open {
    kind: &'static str,
    /// Before it struck, so that the time for which something stood still counts.
    began: Instant,
    /// The nodes on which no pod that was made since has become ready yet.
    nodes: BTreeSet<String>,
    /// Those of which no pod has reached the internet since.
    inward: BTreeSet<String>,
    write: Write,
}

/// What shows that a fault has healed, beside pods that start.
#[derive(Clone, Copy, PartialEq)]
pub enum Sign {
    None,
    /// It is Azure's, the API server's or the operator's: a NIC has gained an address.
    Write,
    /// It takes the node's rules: a pod of it has reached the internet.
    Internet,
}

/// The first address that a NIC gains after a fault. A node starts pods from its warm addresses without
/// Azure and the operator, so pods alone don't show that these work.
enum Write {
    NotNeeded,
    /// It counts from the first observation after the fault.
    Unseen,
    Since(Addresses),
}

impl Open {
    fn is_healed(&self) -> bool {
        self.nodes.is_empty() && self.inward.is_empty() && matches!(self.write, Write::NotNeeded)
    }

    /// What would show that it has healed.
    fn lacks(&self) -> String {
        let Open { nodes, inward, .. } = self;
        let write = if matches!(self.write, Write::NotNeeded) { "" } else { ", and a NIC's new address" };
        format!("pods that start on {nodes:?}, and reach the internet from {inward:?}{write}")
    }
}

impl Faults {
    /// One that began then has struck; pods of these nodes can feel it.
    pub fn struck(&mut self, kind: &'static str, began: Instant, nodes: BTreeSet<String>, sign: Sign) {
        self.kinds.entry(kind).or_default().count += 1;
        let write = if sign == Sign::Write { Write::Unseen } else { Write::NotNeeded };
        let inward = if sign == Sign::Internet { nodes.clone() } else { BTreeSet::new() };
        self.open.push(Open { kind, began, nodes, inward, write });
    }

    /// One couldn't be done.
    pub fn failed(&mut self, kind: &'static str, why: String) {
        let kind = self.kinds.entry(kind).or_default();
        kind.failed += 1;
        kind.failure = why;
    }

    /// A pod that was made then has become ready on a node.
    pub fn started(&mut self, node: &str, made: Instant) {
        for one in self.open.iter_mut().filter(|one| made > one.began) {
            one.nodes.remove(node);
        }
        self.close();
    }

    /// An observation that began then has seen what each NIC holds, and nodes of which a pod has reached the
    /// internet.
    pub fn observed(&mut self, began: Instant, nics: &Addresses, outward: &BTreeSet<String>) {
        for one in &mut self.open {
            match &one.write {
                _ if nics.is_empty() => {}
                Write::Unseen => one.write = Write::Since(nics.clone()),
                Write::Since(before) if has_gained(before, nics) => one.write = Write::NotNeeded,
                _ => {}
            }
            if began > one.began {
                one.inward.retain(|node| !outward.contains(node));
            }
        }
        self.close();
    }

    /// Those that should have healed by then, where a wiped NIC is noticed so soon. They count once, and as
    /// long as they have taken so far.
    pub fn unhealed(&mut self, now: Instant, noticed: Duration) -> Vec<String> {
        let limit = HEALED + noticed;
        let mut found = vec![];
        for one in self.open.extract_if(.., |one| now.saturating_duration_since(one.began) > limit) {
            let kind = self.kinds.entry(one.kind).or_default();
            kind.longest = kind.longest.max(limit);
            kind.unhealed += 1;
            found.push(format!(
                "{}: not healed within {} s: it lacks {}",
                one.kind,
                limit.as_secs(),
                one.lacks()
            ));
        }
        found
    }

    /// Counts those that have healed by now.
    fn close(&mut self) {
        for healed in self.open.extract_if(.., |one| one.is_healed()) {
            let kind = self.kinds.entry(healed.kind).or_default();
            kind.longest = kind.longest.max(healed.began.elapsed());
        }
    }

    /// How many have struck.
    pub fn count(&self) -> usize {
        self.kinds.values().map(|kind| kind.count).sum()
    }

    /// How many haven't healed yet.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether any of this kind has.
    pub fn have_struck(&self, kind: &str) -> bool {
        self.kinds.get(kind).is_some_and(|kind| kind.count > 0)
    }

    /// How many of each kind, in a line.
    pub fn by_kind(&self) -> String {
        let kinds = self.kinds.iter().filter(|(_, kind)| kind.count > 0);
        let kinds: Vec<_> = kinds.map(|(name, kind)| format!("{} x {name}", kind.count)).collect();
        kinds.join(", ")
    }
}

/// Whether a NIC holds an address that it didn't hold before.
fn has_gained(before: &Addresses, now: &Addresses) -> bool {
    let none = BTreeSet::new();
    now.iter().any(|(node, addresses)| !addresses.is_subset(before.get(node).unwrap_or(&none)))
}

impl Display for Faults {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        for (name, Kind { count, longest, unhealed, failed, failure }) in &self.kinds {
            let open = self.open.iter().filter(|one| one.kind == *name).count();
            let longest = longest.as_secs_f64();
            writeln!(
                f,
                "{count:4} x {name}: healed after {longest:.1} s at most; {open} not before the end"
            )?;
            if *unhealed > 0 {
                writeln!(f, "     {unhealed} times it hadn't healed by then")?;
            }
            if *failed > 0 {
                writeln!(f, "     {failed} times it couldn't be done, the last time: {failure}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::tests::{address, sound};

    const SECOND: Duration = Duration::from_secs(1);

    fn nodes(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_fault_has_healed_once_each_of_its_nodes_has_started_a_pod_that_was_made_since() {
        let (mut faults, began) = (Faults::default(), Instant::now());
        let before = began.checked_sub(SECOND).unwrap();
        faults.struck("one", began, nodes(&["node-1", "node-2"]), Sign::None);
        for (node, made, open) in [
            ("node-2", before, 1),
            ("node-1", began + SECOND, 1),
            ("node-1", began + SECOND, 1),
            ("node-2", began + SECOND, 0),
        ] {
            faults.started(node, made);
            assert_eq!(faults.open(), open, "{node}");
        }
    }

    #[test]
    fn a_fault_that_keeps_nics_from_being_written_has_healed_once_one_has_gained_an_address_since() {
        let mut faults = Faults::default();
        faults.struck("one", Instant::now(), BTreeSet::new(), Sign::Write);
        let mut nics = sound().nics;
        for (node, number, open) in [("node-1", 3, 1), ("node-1", 3, 1), ("node-2", 9, 0)] {
            nics.get_mut(node).unwrap().insert(address(number));
            faults.observed(Instant::now(), &nics, &BTreeSet::new());
            assert_eq!(faults.open(), open, "{number}");
        }
    }

    #[test]
    fn a_nic_that_only_loses_addresses_shows_no_write_of_ours() {
        let before = sound().nics;
        let mut now = before.clone();
        now.get_mut("node-1").unwrap().remove(&address(3));
        assert!(!has_gained(&before, &now));
        assert!(has_gained(&now, &before));
    }

    #[test]
    fn a_nic_that_could_not_be_read_shows_no_write() {
        let mut faults = Faults::default();
        faults.struck("one", Instant::now(), BTreeSet::new(), Sign::Write);
        for nics in [Addresses::new(), sound().nics, sound().nics] {
            faults.observed(Instant::now(), &nics, &BTreeSet::new());
            assert_eq!(faults.open(), 1);
        }
    }

    #[test]
    fn flushed_rules_have_healed_once_a_pod_of_the_node_reaches_the_internet() {
        let (mut faults, began) = (Faults::default(), Instant::now());
        faults.struck("flushed", began, nodes(&["node-1"]), Sign::Internet);
        faults.started("node-1", began + SECOND);
        for (at, outward, open) in [
            (began, nodes(&["node-1", "node-2"]), 1),
            (began + SECOND, nodes(&["node-2"]), 1),
            (began + SECOND, nodes(&["node-1"]), 0),
        ] {
            faults.observed(at, &sound().nics, &outward);
            assert_eq!(faults.open(), open);
        }
    }
}
