//! The faults, how long each took to heal, and the violations; and whether all that is enough to believe that
//! nothing is wrong.

use super::excuses::Excuses;
use super::{Addresses, Found, Observation};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

/// In a run of this length each kind of fault strikes.
const EACH_KIND: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct Sums {
    /// UIDs of the pods that have become ready.
    ready: BTreeSet<String>,
    faults: BTreeMap<&'static str, Kind>,
    /// Faults that haven't healed yet.
    open: Vec<Open>,
    /// Observations of the auditor, and all that it saw in them.
    observations: usize,
    seen: BTreeMap<&'static str, usize>,
    pub excuses: Excuses,
    /// For how long addresses in use were off their NIC by another's hand, all together.
    excused: Duration,
    /// For how long the rules about pods didn't count.
    suspended: Duration,
    violations: BTreeSet<String>,
}

#[derive(Default)]
struct Kind {
    count: usize,
    longest: Duration,
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
    write: Write,
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
        self.nodes.is_empty() && matches!(self.write, Write::NotNeeded)
    }
}

impl Sums {
    pub fn new(excuses: Excuses) -> Self {
        Self { excuses, ..Self::default() }
    }

    /// A fault that began then has struck; pods of these nodes can feel it. With `writes`, it is Azure's, the
    /// API server's or the operator's.
    pub fn struck(&mut self, kind: &'static str, began: Instant, nodes: BTreeSet<String>, writes: bool) {
        self.faults.entry(kind).or_default().count += 1;
        let write = if writes { Write::Unseen } else { Write::NotNeeded };
        self.open.push(Open { kind, began, nodes, write });
    }

    /// A fault couldn't be done.
    pub fn failed(&mut self, kind: &'static str, why: String) {
        let kind = self.faults.entry(kind).or_default();
        kind.failed += 1;
        kind.failure = why;
    }

    /// A pod of this UID is ready on a node; it was made at `made`.
    pub fn ready(&mut self, uid: &str, node: &str, made: Instant) {
        if !self.ready.insert(uid.to_owned()) {
            return;
        }
        for one in self.open.iter_mut().filter(|one| made > one.began) {
            one.nodes.remove(node);
        }
        self.close();
    }

    /// The auditor has made an observation and found this in it, so long after the one before.
    pub fn observed(&mut self, observation: &Observation, found: &Found, elapsed: Duration) {
        self.observations += 1;
        self.excused += elapsed * found.excused;
        if found.is_suspended {
            self.suspended += elapsed;
        }
        for (what, count) in observation.seen() {
            *self.seen.entry(what).or_default() += count;
        }
        let nics = &observation.nics;
        for one in &mut self.open {
            match &one.write {
                Write::Unseen => one.write = Write::Since(nics.clone()),
                Write::Since(before) if has_gained(before, nics) => one.write = Write::NotNeeded,
                _ => {}
            }
        }
        self.close();
    }

    /// Returns whether the violation is new.
    pub fn violated(&mut self, violation: &str) -> bool {
        self.violations.insert(violation.to_owned())
    }

    /// Counts the faults that have healed by now.
    fn close(&mut self) {
        for healed in self.open.extract_if(.., |one| one.is_healed()) {
            let kind = self.faults.entry(healed.kind).or_default();
            kind.longest = kind.longest.max(healed.began.elapsed());
        }
    }

    /// Whether all has gone well in a run of this length with these kinds of faults. An auditor that saw
    /// nothing has found nothing, either, and nothing can go wrong where no fault strikes.
    ///
    /// # Errors
    /// What hasn't.
    pub fn verdict(&self, length: Duration, kinds: &[&'static str]) -> Result<()> {
        ensure!(!self.ready.is_empty(), "no pod has started");
        ensure!(self.faults.values().any(|kind| kind.count > 0), "no fault has struck");
        let struck = |kind: &&str| self.faults.get(*kind).is_some_and(|kind| kind.count > 0);
        let never: Vec<_> = kinds.iter().filter(|kind| !struck(kind)).collect();
        ensure!(length < EACH_KIND || never.is_empty(), "these faults have never struck: {never:?}");
        let is_blind = self.seen.is_empty() || self.seen.values().any(|&count| count == 0);
        ensure!(!is_blind, "the auditor is blind: it saw {:?}", self.seen);
        ensure!(self.violations.is_empty(), "{} violations", self.violations.len());
        Ok(())
    }
}

/// Whether a NIC holds an address that it didn't hold before.
fn has_gained(before: &Addresses, now: &Addresses) -> bool {
    let none = BTreeSet::new();
    now.iter().any(|(node, addresses)| !addresses.is_subset(before.get(node).unwrap_or(&none)))
}

impl Display for Sums {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let struck: usize = self.faults.values().map(|kind| kind.count).sum();
        writeln!(f, "{} pods started, {struck} faults", self.ready.len())?;
        let seen: Vec<_> = self.seen.iter().map(|(what, count)| format!("{count} {what}")).collect();
        writeln!(f, "{} observations of the auditor: {}", self.observations, seen.join(", "))?;
        for (name, Kind { count, longest, failed, failure }) in &self.faults {
            let open = self.open.iter().filter(|one| one.kind == *name).count();
            let longest = longest.as_secs_f64();
            writeln!(
                f,
                "{count:4} x {name}: healed after {longest:.1} s at most; {open} not before the end"
            )?;
            if *failed > 0 {
                writeln!(f, "     {failed} times it couldn't be done, the last time: {failure}")?;
            }
        }
        let excused = self.excused.as_secs_f64();
        writeln!(f, "{excused:.0} s in all for which an address in use was off its NIC by another's hand")?;
        let suspended = self.suspended.as_secs_f64();
        writeln!(f, "{suspended:.0} s in all for which Pods didn't count, for the store had been set back")?;
        writeln!(f, "{} violations", self.violations.len())?;
        self.violations.iter().try_for_each(|one| writeln!(f, "violation: {one}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::tests::{address, sound};

    const SHORT: Duration = Duration::from_secs(120);
    const SECOND: Duration = Duration::from_secs(1);

    fn nodes() -> BTreeSet<String> {
        ["node-1", "node-2"].map(str::to_owned).into()
    }

    fn observe(sums: &mut Sums, observation: &Observation) {
        sums.observed(observation, &observation.found(&sums.excuses), SECOND);
    }

    /// A run in which all that a verdict demands has happened.
    fn sound_run() -> Sums {
        let mut sums = Sums::default();
        let began = Instant::now();
        sums.struck("one", began, nodes(), false);
        sums.ready("uid-a", "node-1", began + SECOND);
        observe(&mut sums, &sound());
        sums
    }

    #[test]
    fn a_run_without_pods_faults_or_sight_or_with_a_violation_is_no_good_one() {
        sound_run().verdict(SHORT, &["one", "another"]).unwrap();
        let without_pods = Sums { ready: BTreeSet::new(), ..sound_run() };
        let mut without_faults = Sums { faults: BTreeMap::new(), ..sound_run() };
        without_faults.failed("one", "no such process".to_owned());
        let unseeing = Sums { seen: BTreeMap::new(), ..sound_run() };
        let mut half_blind = Sums { seen: BTreeMap::new(), ..sound_run() };
        observe(&mut half_blind, &Observation { dials: vec![], ..sound() });
        let mut violated = sound_run();
        assert!(violated.violated("a violation"));
        assert!(!violated.violated("a violation"), "it is known");
        for (sums, expected) in [
            (without_pods, "no pod has started"),
            (without_faults, "no fault has struck"),
            (unseeing, "the auditor is blind"),
            (half_blind, "the auditor is blind"),
            (violated, "1 violations"),
        ] {
            let error = sums.verdict(SHORT, &["one"]).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn in_a_long_run_each_kind_of_fault_has_to_strike() {
        sound_run().verdict(EACH_KIND, &["one"]).unwrap();
        let mut sums = sound_run();
        sums.failed("another", "no such process".to_owned());
        let error = sums.verdict(EACH_KIND, &["one", "another"]).unwrap_err().to_string();
        assert_eq!(error, "these faults have never struck: [\"another\"]");
        let printed = sums.to_string();
        assert!(printed.contains("1 times it couldn't be done, the last time: no such process"), "{printed}");
    }

    #[test]
    fn a_fault_has_healed_once_each_of_its_nodes_has_started_a_pod_that_was_made_since() {
        let mut sums = Sums::default();
        let began = Instant::now();
        let before = began.checked_sub(SECOND).unwrap();
        sums.struck("one", began, nodes(), false);
        for (uid, node, made, open) in [
            ("old", "node-2", before, 1),
            ("a", "node-1", began + SECOND, 1),
            ("b", "node-1", began + SECOND, 1),
            ("c", "node-2", began + SECOND, 0),
        ] {
            sums.ready(uid, node, made);
            assert_eq!(sums.open.len(), open, "{uid}");
        }
    }

    #[test]
    fn a_fault_that_keeps_nics_from_being_written_has_healed_once_one_has_gained_an_address_since() {
        let mut sums = Sums::default();
        let began = Instant::now();
        sums.struck("one", began, BTreeSet::new(), true);
        let mut observation = sound();
        for (node, number, open) in [("node-1", 3, 1), ("node-1", 3, 1), ("node-2", 9, 0)] {
            observation.nics.get_mut(node).unwrap().insert(address(number));
            observe(&mut sums, &observation);
            assert_eq!(sums.open.len(), open, "{number}");
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
    fn excused_and_suspended_findings_are_counted_by_time() {
        let mut sums = Sums::default();
        let found = Found { excused: 2, is_suspended: true, ..Found::default() };
        sums.observed(&sound(), &found, SECOND * 3);
        assert_eq!((sums.excused, sums.suspended), (SECOND * 6, SECOND * 3));
    }
}
