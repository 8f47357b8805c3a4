//! What the auditor has seen and for how long, and the violations; and whether that and the faults are enough
//! to believe that nothing is wrong.

use super::excuses::Excuses;
use super::forgery::Sent;
use super::healing::{Faults, Sign};
use super::lasting::Lasting;
use super::{Found, Observation};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

/// In a run of this length each kind of fault strikes.
pub const EACH_KIND: Duration = Duration::from_secs(600);
/// Of the whole time the auditor doesn't see a thing for one part in so many at most. A fault may take a node
/// or the API server for half a minute.
const BLIND: u32 = 2;

#[derive(Default)]
pub struct Sums {
    /// UIDs of the pods that have become ready.
    ready: BTreeSet<String>,
    faults: Faults,
    /// Observations of the auditor, and all that it saw in them.
    observations: usize,
    seen: BTreeMap<&'static str, usize>,
    /// For how long it has observed, the longest time between two observations, and for how long each thing
    /// couldn't be read.
    watched: Duration,
    longest: Duration,
    blind: BTreeMap<String, Duration>,
    /// The violations of the observation before: two places that one observation reads may have changed in
    /// between.
    suspected: BTreeSet<String>,
    pub excuses: Excuses,
    /// For how long addresses in use were off their NIC by another's hand, all together.
    excused: Duration,
    /// For how long pods that were ready gave no answer, all together.
    silent: Duration,
    /// For how long the rules about pods didn't count.
    suspended: Duration,
    /// The nodes whose pods haven't reached the internet.
    cut_off: Lasting,
    /// The nodes of which a forged packet has reached the VM.
    forged: Lasting,
    violations: BTreeSet<String>,
}

impl Sums {
    pub fn new(excuses: Excuses) -> Self {
        Self { excuses, ..Self::default() }
    }

    /// A fault that began then has struck; pods of these nodes can feel it.
    pub fn struck(&mut self, kind: &'static str, began: Instant, nodes: BTreeSet<String>, sign: Sign) {
        self.faults.struck(kind, began, nodes, sign);
    }

    /// A fault couldn't be done.
    pub fn failed(&mut self, kind: &'static str, why: String) {
        self.faults.failed(kind, why);
    }

    /// A pod of this UID is ready on a node; it was made at `made`.
    pub fn ready(&mut self, uid: &str, node: &str, made: Instant) {
        if self.ready.insert(uid.to_owned()) {
            self.faults.started(node, made);
        }
    }

    /// The auditor has begun an observation then and found this in it, so long after the one before. Returns
    /// the violations that are new.
    pub fn observed(
        &mut self,
        began: Instant,
        observation: &Observation,
        found: &Found,
        elapsed: Duration,
    ) -> Vec<String> {
        self.observations += 1;
        self.watched += elapsed;
        self.longest = self.longest.max(elapsed);
        let unread = observation.unread();
        for what in &unread {
            *self.blind.entry(what.clone()).or_default() += elapsed;
        }
        self.excused += elapsed * found.excused;
        self.silent += elapsed * found.silent;
        if found.is_suspended {
            self.suspended += elapsed;
        }
        for (what, count) in observation.seen() {
            *self.seen.entry(what).or_default() += count;
        }
        self.faults.observed(began, &observation.nics, &found.outward);
        let mut all: Vec<String> = self.certain(found, unread.is_empty()).into_iter().collect();
        self.cut_off.observed(&found.cut_off, &found.outward, elapsed);
        all.extend(self.cut_off.violations("its pods have reached the VM and not the internet"));
        let sent = |is: fn(&Sent) -> bool| -> BTreeSet<String> {
            observation.sent.iter().filter(|(_, sent)| is(sent)).map(|(node, _)| node.clone()).collect()
        };
        let dropped = sent(|sent| sent.own && !sent.foreign);
        self.forged.observed(&sent(|sent| sent.foreign), &dropped, elapsed);
        all.extend(self.forged.violations("the VM has got packets of its pods under foreign addresses"));
        all.extend(self.faults.unhealed(began, self.excuses.noticed()));
        all.retain(|one| self.violations.insert(one.clone()));
        all
    }

    /// What was found twice, and was not missing in between where all was read.
    fn certain(&mut self, found: &Found, is_whole: bool) -> BTreeSet<String> {
        let certain = found.violations.intersection(&self.suspected).cloned().collect();
        if is_whole {
            self.suspected.clear();
        }
        self.suspected.extend(found.violations.iter().cloned());
        certain
    }

    /// All that counts so far, in a line.
    pub fn progress(&self) -> String {
        format!(
            "{} pods started, {} faults, {} of them not healed yet, {} violations; {}",
            self.ready.len(),
            self.faults.count(),
            self.faults.open(),
            self.violations.len(),
            self.faults.by_kind()
        )
    }

    /// Whether all has gone well in a run of this length with these kinds of faults. An auditor that saw
    /// nothing has found nothing, either, and nothing can go wrong where no fault strikes.
    ///
    /// # Errors
    /// What hasn't.
    pub fn verdict(&self, length: Duration, kinds: &[&'static str]) -> Result<()> {
        ensure!(!self.ready.is_empty(), "no pod has started");
        ensure!(self.faults.count() > 0, "no fault has struck");
        let never: Vec<_> = kinds.iter().filter(|kind| !self.faults.have_struck(kind)).collect();
        ensure!(length < EACH_KIND || never.is_empty(), "these faults have never struck: {never:?}");
        let is_blind = self.seen.is_empty() || self.seen.values().any(|&count| count == 0);
        ensure!(!is_blind, "the auditor is blind: it saw {:?}", self.seen);
        let too_long = self.blind.iter().filter(|(_, time)| **time * BLIND > self.watched);
        let too_long: Vec<_> = too_long.collect();
        ensure!(too_long.is_empty(), "of {:?} the auditor was blind for {too_long:?}", self.watched);
        ensure!(self.violations.is_empty(), "{} violations", self.violations.len());
        Ok(())
    }
}

impl Display for Sums {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        writeln!(f, "{} pods started, {} faults", self.ready.len(), self.faults.count())?;
        let seen: Vec<_> = self.seen.iter().map(|(what, count)| format!("{count} {what}")).collect();
        writeln!(f, "{} observations of the auditor: {}", self.observations, seen.join(", "))?;
        let [watched, longest] = [self.watched, self.longest].map(|time| time.as_secs_f64());
        writeln!(f, "{watched:.0} s watched, {longest:.1} s between two observations at most")?;
        for (what, time) in &self.blind {
            writeln!(f, "{:.0} s of them blind for {what}", time.as_secs_f64())?;
        }
        write!(f, "{}", self.faults)?;
        let excused = self.excused.as_secs_f64();
        writeln!(f, "{excused:.0} s in all for which an address in use was off its NIC by another's hand")?;
        let silent = self.silent.as_secs_f64();
        writeln!(f, "{silent:.0} s in all for which a pod that was ready gave the VM no answer")?;
        let suspended = self.suspended.as_secs_f64();
        writeln!(f, "{suspended:.0} s in all for which Pods didn't count, for the store had been set back")?;
        let [cut_off, forged] = [&self.cut_off, &self.forged].map(|lasting| lasting.total.as_secs_f64());
        writeln!(f, "{cut_off:.0} s in all for which no pod of a node reached the internet")?;
        writeln!(f, "{forged:.0} s in all for which forged packets of a node's pods reached the VM")?;
        writeln!(f, "{} violations", self.violations.len())?;
        self.violations.iter().try_for_each(|one| writeln!(f, "violation: {one}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::healing::HEALED;
    use crate::audit::lasting::LASTS;
    use crate::audit::tests::{INTERNET, sound, taken};

    const SHORT: Duration = Duration::from_secs(120);
    const SECOND: Duration = Duration::from_secs(1);

    fn nodes() -> BTreeSet<String> {
        ["node-1", "node-2"].map(str::to_owned).into()
    }

    fn observe(sums: &mut Sums, observation: &Observation) -> Vec<String> {
        sums.observed(Instant::now(), observation, &observation.found(&sums.excuses), SECOND)
    }

    /// A run in which all that a verdict demands has happened.
    fn sound_run() -> Sums {
        let mut sums = Sums::default();
        let began = Instant::now();
        sums.struck("one", began, nodes(), Sign::None);
        sums.ready("uid-a", "node-1", began + SECOND);
        observe(&mut sums, &sound());
        sums
    }

    #[test]
    fn a_run_without_pods_faults_or_sight_or_with_a_violation_is_no_good_one() {
        sound_run().verdict(SHORT, &["one", "another"]).unwrap();
        let without_pods = Sums { ready: BTreeSet::new(), ..sound_run() };
        let mut without_faults = Sums { faults: Faults::default(), ..sound_run() };
        without_faults.failed("one", "no such process".to_owned());
        let unseeing = Sums { seen: BTreeMap::new(), ..sound_run() };
        let mut half_blind = Sums { seen: BTreeMap::new(), ..sound_run() };
        observe(&mut half_blind, &Observation { dials: vec![], ..sound() });
        let mut violated = sound_run();
        assert_eq!(observe(&mut violated, &taken()), [""; 0], "once may be by chance");
        assert_eq!(observe(&mut violated, &taken()).len(), 3);
        assert_eq!(observe(&mut violated, &taken()), [""; 0], "they are known");
        let mut blinded = sound_run();
        for _ in 0..2 {
            observe(&mut blinded, &Observation { are_pods_read: false, ..sound() });
        }
        for (sums, expected) in [
            (without_pods, "no pod has started"),
            (without_faults, "no fault has struck"),
            (unseeing, "the auditor is blind"),
            (half_blind, "the auditor is blind"),
            (violated, "3 violations"),
            (blinded, "of 3s the auditor was blind for [(\"the pods\", 2s)]"),
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
    fn excused_silent_and_suspended_findings_are_counted_by_time() {
        let mut sums = Sums::default();
        let found = Found { excused: 2, silent: 3, is_suspended: true, ..Found::default() };
        sums.observed(Instant::now(), &sound(), &found, SECOND * 3);
        assert_eq!((sums.excused, sums.silent, sums.suspended), (SECOND * 6, SECOND * 9, SECOND * 3));
    }

    #[test]
    fn what_was_found_is_certain_once_it_is_found_again_and_was_not_missing_from_a_whole_observation() {
        let unread = Observation { are_pods_read: false, ..sound() };
        for (between, count) in [(sound(), 0), (unread, 3)] {
            let mut sums = Sums::default();
            for (observation, expected) in [(taken(), 0), (between, 0), (taken(), count)] {
                assert_eq!(observe(&mut sums, &observation).len(), expected);
            }
        }
    }

    #[test]
    fn the_time_for_which_something_could_not_be_read_is_counted() {
        let mut sums = Sums::default();
        let mut observation = Observation { are_pods_read: false, ..sound() };
        observe(&mut sums, &observation);
        observation.wired.remove("node-2");
        observe(&mut sums, &observation);
        observe(&mut sums, &sound());
        let expected = [("the kernel of node-2".to_owned(), SECOND), ("the pods".to_owned(), SECOND * 2)];
        assert_eq!(sums.blind, expected.into());
        assert_eq!((sums.watched, sums.longest), (SECOND * 3, SECOND));
        assert!(sums.to_string().contains("2 s of them blind for the pods"), "{sums}");
    }

    /// Each pod reaches the VM, and only pods of these nodes the internet.
    fn reaching(nodes: &[&str]) -> Observation {
        let mut observation = sound();
        for pod in observation.after.values().filter(|pod| !nodes.contains(&pod.node.as_str())) {
            let mut dials = observation.dials.iter_mut();
            let dial = dials.find(|dial| dial.from == pod.name && dial.target == INTERNET);
            dial.unwrap().answer = None;
        }
        observation
    }

    #[test]
    fn a_node_whose_pods_reach_no_internet_for_too_long_is_a_violation() {
        let violations_of = |between: Option<&Observation>| {
            let (mut sums, mut found) = (Sums::default(), vec![]);
            for number in 0..2 * LASTS.as_secs() - 1 {
                let seen = between.filter(|_| number == LASTS.as_secs()).cloned();
                found.extend(observe(&mut sums, &seen.unwrap_or_else(|| reaching(&["node-2"]))));
            }
            found
        };
        let expected = "node-1: its pods have reached the VM and not the internet for more than 120 s";
        assert_eq!(violations_of(None), [expected]);
        assert_eq!(violations_of(Some(&sound())), [""; 0]);
        // Nothing is seen of it.
        let silent = Observation { are_pods_read: false, after: [].into(), before: [].into(), ..sound() };
        assert_eq!(violations_of(Some(&silent)), [expected]);
    }

    #[test]
    fn a_node_whose_pods_forge_addresses_for_too_long_is_a_violation() {
        let violations_of = |between: Option<Sent>| {
            let (mut sums, mut found) = (Sums::default(), vec![]);
            for number in 0..2 * LASTS.as_secs() - 1 {
                let mut seen = sound();
                let sent = between.filter(|_| number == LASTS.as_secs());
                seen.sent.insert("node-1".to_owned(), sent.unwrap_or(Sent { foreign: true, own: true }));
                found.extend(observe(&mut sums, &seen));
            }
            found
        };
        let expected =
            "node-1: the VM has got packets of its pods under foreign addresses for more than 120 s";
        assert_eq!(violations_of(None), [expected]);
        assert_eq!(violations_of(Some(Sent { foreign: false, own: true })), [""; 0]);
        // Both may be lost.
        assert_eq!(violations_of(Some(Sent { foreign: false, own: false })), [expected]);
    }

    #[test]
    fn a_fault_that_does_not_heal_is_a_violation_once() {
        let (mut sums, began) = (Sums::default(), Instant::now());
        sums.struck("one", began, nodes(), Sign::None);
        let limit = HEALED + sums.excuses.noticed();
        let found = sound().found(&sums.excuses);
        let mut at = |after: Duration| sums.observed(began + after, &sound(), &found, SECOND);
        assert_eq!(at(limit), [""; 0]);
        let expected = "one: not healed within 600 s: it lacks pods that start on {\"node-1\", \"node-2\"}, \
            and reach the internet from {}";
        assert_eq!(at(limit + SECOND), [expected]);
        assert_eq!(at(limit + SECOND * 2), [""; 0]);
        let printed = sums.to_string();
        assert!(printed.contains("1 times it hadn't healed by then"), "{printed}");
    }

    #[test]
    fn what_counts_so_far_is_one_line() {
        let expected = "1 pods started, 1 faults, 1 of them not healed yet, 0 violations; 1 x one";
        let mut sums = sound_run();
        sums.failed("another", "no such process".to_owned());
        assert_eq!(sums.progress(), expected);
    }
}
