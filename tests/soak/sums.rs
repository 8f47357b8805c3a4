//! The faults, how long each took to heal, and the violations.

use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use vnetpool_tests::audit::{Addresses, Excuses, Observation};

#[derive(Default)]
pub struct Sums {
    /// Pods that have become ready.
    pub started: usize,
    /// UIDs of those.
    ready: BTreeSet<String>,
    faults: BTreeMap<&'static str, Kind>,
    /// Faults after which no new pod has started yet where they struck.
    open: Vec<Open>,
    /// Observations of the auditor, and all that it saw in them: answers of pods, addresses that lead to
    /// pods, and those of NICs.
    observations: usize,
    seen: [usize; 3],
    /// Addresses that others have taken off their NIC.
    pub excuses: Excuses,
    /// For how long addresses in use were off their NIC in that way, all together.
    pub excused: Duration,
    pub violations: BTreeSet<String>,
}

#[derive(Default)]
struct Kind {
    count: usize,
    longest: Duration,
}

struct Open {
    kind: &'static str,
    /// `None`: it concerns all nodes.
    node: Option<String>,
    at: Instant,
}

impl Sums {
    pub fn struck(&mut self, kind: &'static str, node: Option<String>) {
        self.faults.entry(kind).or_default().count += 1;
        self.open.push(Open { kind, node, at: Instant::now() });
    }

    /// A pod of this UID is ready on a node; it was made at `made`.
    pub fn ready(&mut self, uid: &str, node: &str, made: Instant) {
        if !self.ready.insert(uid.to_owned()) {
            return;
        }
        self.started += 1;
        let is_healed = |one: &Open| made > one.at && one.node.as_deref().is_none_or(|its| its == node);
        for healed in self.open.extract_if(.., |one| is_healed(one)) {
            let kind = self.faults.entry(healed.kind).or_default();
            kind.longest = kind.longest.max(healed.at.elapsed());
        }
    }

    /// The auditor has made an observation, `excused` being for how long addresses were off their NIC.
    pub fn observed(&mut self, observation: &Observation, excused: Duration) {
        self.observations += 1;
        self.excused += excused;
        let count = |all: &Addresses| all.values().map(BTreeSet::len).sum::<usize>();
        let seen = [observation.answers.len(), count(&observation.wired), count(&observation.nics)];
        self.seen.iter_mut().zip(seen).for_each(|(sum, seen)| *sum += seen);
    }

    /// Whether all has gone well. An auditor that saw nothing has found nothing, either.
    pub fn verdict(&self) -> Result<()> {
        ensure!(self.started > 0, "no pod has started");
        let [answers, routes, held] = self.seen;
        let is_blind = self.seen.contains(&0);
        ensure!(!is_blind, "the auditor saw {answers} answers, {routes} routes and {held} addresses of NICs");
        ensure!(self.violations.is_empty(), "{} violations", self.violations.len());
        Ok(())
    }

    pub fn print(&self) {
        let [answers, routes, held] = self.seen;
        println!(
            "{} pods started, {} observations of the auditor: {answers} answers, {routes} routes, {held} addresses of NICs",
            self.started, self.observations
        );
        for (name, Kind { count, longest }) in &self.faults {
            let open = self.open.iter().filter(|one| one.kind == *name).count();
            println!(
                "{count:4} x {name}: a new pod ran after {:.1} s at most; {open} had no new pod before the end",
                longest.as_secs_f64()
            );
        }
        println!(
            "{:.0} s in all for which an address in use was off its NIC by another's hand",
            self.excused.as_secs_f64()
        );
        println!("{} violations", self.violations.len());
        for one in &self.violations {
            println!("violation: {one}");
        }
    }
}
