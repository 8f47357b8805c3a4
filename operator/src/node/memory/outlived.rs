//! Which sandboxes of a node have outlived their pods: the API server has the pod no more, or it has run to
//! its end, and the node still reports an address as its own. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use vnetpool_crds::allocation::{COUNTED_WITHIN, Holder};

use crate::demand::Uid;

/// How long a pod's end may take, and the agent's report of it.
const GRACE: Duration = Duration::from_secs(60);
/// A count that was taken so long after a pod's end has it.
const SETTLED: Duration = Duration::from_secs(10);

/// An address and the UID of the pod that is gone.
pub type Suspect = (String, String);

/// What this process remembers of a node's sandboxes.
#[derive(Clone, Debug, Default)]
pub struct Outlived {
    /// The agent is to name the holder of each address.
    pub asks: bool,
    /// Since when more pods have addresses than are bound, by both clocks.
    exceeds_since: Option<(Instant, Timestamp)>,
    since: BTreeMap<Suspect, Instant>,
    /// The last report, and its sandboxes.
    pub reported: Option<(BTreeSet<Suspect>, String)>,
}

/// The kinds of report.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// These have been for longer than [`GRACE`].
    Due(BTreeSet<Suspect>),
    /// There is none, or none of those that were reported.
    Ended,
    /// None has lasted long enough to report.
    Early,
}

impl Outlived {
    /// Asks the agent for names once more pods have addresses than are bound, by a count that can be trusted:
    /// a count taken well after the pod's end, or one that would have been replaced by now. Returns the time
    /// until the next check.
    pub fn count(
        &mut self,
        exceeds: bool,
        counted_at: Option<Timestamp>,
        (now, time): (Instant, Timestamp),
    ) -> Option<Duration> {
        if !exceeds {
            self.exceeds_since = None;
            return None;
        }
        let (since, since_time) = *self.exceeds_since.get_or_insert((now, time));
        let left = (COUNTED_WITHIN + GRACE).saturating_sub(now.saturating_duration_since(since));
        let is_fresh = counted_at.is_some_and(|at| at >= since_time + SETTLED);
        let asked = self.asks;
        self.asks |= is_fresh || left.is_zero();
        match self.asks {
            true if asked => None,
            true => Some(Duration::ZERO),
            false => Some(left),
        }
    }

    /// Compares the holders of addresses with the UIDs of the node's pods that need one. Returns the report,
    /// and in how long there may be more.
    pub fn observe(
        &mut self,
        holders: &[Holder],
        pods: &HashSet<Uid>,
        now: Instant,
    ) -> (Finding, Option<Duration>) {
        // A sandbox without a pod's UID was made by another runtime, or its pod's UID was lost.
        let is_suspect = |one: &&Holder| !one.pod_uid.is_empty() && !pods.contains(&Uid::of(&one.pod_uid));
        let suspects = holders.iter().filter(is_suspect);
        let known = std::mem::take(&mut self.since);
        self.since = suspects
            .map(|one| (one.address.clone(), one.pod_uid.clone()))
            .map(|suspect| {
                let since = known.get(&suspect).copied().unwrap_or(now);
                (suspect, since)
            })
            .collect();
        self.asks = !self.since.is_empty();
        self.exceeds_since = None;
        let left = |since: Instant| GRACE.saturating_sub(now.saturating_duration_since(since));
        let due = self.since.iter().filter(|&(_, &since)| left(since).is_zero());
        let due: BTreeSet<Suspect> = due.map(|(suspect, _)| suspect.clone()).collect();
        let next = self.since.values().map(|&since| left(since)).filter(|left| !left.is_zero()).min();
        let finding = match due.is_empty() {
            false => Finding::Due(due),
            true if self.since.is_empty() || self.reported.is_some() => Finding::Ended,
            true => Finding::Early,
        };
        (finding, next)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn assigned(address: &str, uid: &str) -> Holder {
        Holder {
            address: address.into(),
            pod: format!("default/{uid}"),
            pod_uid: uid.into(),
            sandbox: format!("sandbox-{uid}/eth0"),
            ..Holder::default()
        }
    }

    fn pods(uids: &[&str]) -> HashSet<Uid> {
        uids.iter().map(|uid| Uid::of(uid)).collect()
    }

    fn due(all: &[(&str, &str)]) -> Finding {
        Finding::Due(all.iter().map(|&(address, uid)| (address.to_owned(), uid.to_owned())).collect())
    }

    #[test]
    fn a_sandbox_is_reported_when_it_has_outlived_its_pod_by_the_grace_time() {
        let (mut outlived, start) = (Outlived::default(), Instant::now());
        let node = [assigned("10.0.0.5", "a"), assigned("10.0.0.6", "b")];
        assert_eq!(outlived.observe(&node, &pods(&["a", "b"]), start), (Finding::Ended, None));
        assert_eq!(outlived.observe(&node, &pods(&["a"]), start), (Finding::Early, Some(GRACE)));
        let early = start + GRACE - Duration::from_secs(1);
        let a_second = Some(Duration::from_secs(1));
        assert_eq!(outlived.observe(&node, &pods(&["a"]), early), (Finding::Early, a_second));
        assert_eq!(outlived.observe(&node, &pods(&["a"]), start + GRACE), (due(&[("10.0.0.6", "b")]), None));
        assert_eq!(outlived.observe(&node[..1], &pods(&["a"]), start + GRACE), (Finding::Ended, None));
    }

    #[test]
    fn names_are_asked_for_when_more_pods_have_addresses_than_are_bound_by_a_count_to_be_trusted() {
        let (mut outlived, start) = (Outlived::default(), Instant::now());
        let epoch = Timestamp::UNIX_EPOCH;
        let after =
            |seconds: u64| (start + Duration::from_secs(seconds), epoch + Duration::from_secs(seconds));
        let counted = |seconds| Some(epoch + Duration::from_secs(seconds));
        let longest = COUNTED_WITHIN + GRACE;
        assert_eq!(outlived.count(false, counted(0), after(0)), None);
        // The count may date from before the pod's end.
        assert_eq!(outlived.count(true, counted(0), after(0)), Some(longest));
        assert_eq!(outlived.count(true, counted(9), after(9)), Some(longest - Duration::from_secs(9)));
        assert!(!outlived.asks);
        // Another pod has come: the counts don't show which of the two it is.
        assert_eq!(outlived.count(false, counted(9), after(20)), None);
        assert_eq!(outlived.count(true, counted(29), after(30)), Some(longest));
        assert_eq!(outlived.count(true, counted(40), after(40)), Some(Duration::ZERO));
        assert!(outlived.asks);
        assert_eq!(outlived.count(true, counted(40), after(41)), None, "asked already");
        // The answer: no sandbox has outlived its pod.
        outlived.observe(&[assigned("10.0.0.5", "a")], &pods(&["a"]), start);
        assert!(!outlived.asks);
        // A count is true if it wasn't replaced in all the time in which it would have been.
        assert_eq!(outlived.count(true, counted(40), after(50)), Some(longest));
        assert_eq!(outlived.count(true, counted(40), after(50 + longest.as_secs())), Some(Duration::ZERO));
        assert!(outlived.asks);
    }

    #[test]
    fn a_pod_seen_in_between_starts_the_grace_time_anew() {
        let (mut outlived, start) = (Outlived::default(), Instant::now());
        let node = [assigned("10.0.0.5", "a")];
        outlived.observe(&node, &pods(&[]), start);
        outlived.observe(&node, &pods(&["a"]), start + GRACE / 2);
        assert_eq!(outlived.observe(&node, &pods(&[]), start + GRACE), (Finding::Early, Some(GRACE)));
    }

    #[test]
    fn a_sandbox_of_an_unknown_pod_is_not_reported() {
        let (mut outlived, start) = (Outlived::default(), Instant::now());
        let node = [assigned("10.0.0.5", "")];
        outlived.observe(&node, &pods(&[]), start);
        assert_eq!(outlived.observe(&node, &pods(&[]), start + GRACE), (Finding::Ended, None));
    }

    #[test]
    fn an_operator_that_has_just_started_keeps_a_report_until_the_grace_time_has_ended() {
        let (mut outlived, start) = (Outlived::default(), Instant::now());
        let node = [assigned("10.0.0.5", "a"), assigned("10.0.0.6", "b")];
        assert_eq!(outlived.observe(&node, &pods(&["b"]), start).0, Finding::Early);
        assert_eq!(outlived.observe(&node, &pods(&["b"]), start + GRACE).0, due(&[("10.0.0.5", "a")]));
        // After a report, the end is reported, though another sandbox may be next.
        outlived.reported = Some(Default::default());
        assert_eq!(outlived.observe(&node[1..], &pods(&[]), start + GRACE).0, Finding::Ended);
    }
}
