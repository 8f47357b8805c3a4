//! What an error of Azure's means for the node it happened to: how long to leave Azure alone, and what to
//! report meanwhile. Pure.
//!
//! It concerns this node only. The condition keeps its message until the call that failed succeeds or isn't
//! needed any more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::azure::{Error, Matter, Remedy};
use vnetpool_apiserver::{doubled, jittered};
use vnetpool_crds::reason::Reason;

/// The attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Finding the node's VM and NIC and reading them.
    Find,
    /// Writing the NIC to reserve addresses of Azure's choice. Nothing else is held up. In a full subnet or
    /// network it is decided for all nodes there when one may grow, see [`crate::shortage`].
    Growth,
    /// Writing it for anything else.
    Write,
}

/// An error that still counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Setback {
    pub stage: Stage,
    pub reason: Reason,
    pub message: String,
    /// Not before this.
    pub until: Instant,
    /// Nothing helps until a person changes something, so it must be reported.
    pub needs_change: bool,
    /// The NIC or its VM is gone.
    pub is_gone: bool,
    /// Something else has the public address that was to be deleted.
    pub is_in_use: bool,
    /// What is refused, and in which scope, if that may concern others.
    pub matter: Option<Matter>,
    /// It is refused to many: how long it waits is decided for all whom it concerns.
    pub is_shared: bool,
    /// The reason of the error itself.
    cause: Reason,
    /// The errors that were met since all went well, by their reasons, and how often each was met again: two
    /// that come in turn are each tried ever less often, too.
    met: BTreeMap<Reason, u32>,
}

/// The longest wait between two attempts that need a person to change something first: a thousand such nodes
/// must not use up the request limits of the others.
const LONGEST: Duration = Duration::from_secs(600);
/// The longest wait for a resource that is busy.
const LONGEST_BUSY: Duration = Duration::from_secs(60);
/// How often a conflict of an unknown kind may be met again before it is reported: for about two minutes.
const LASTING: u32 = 3;
/// Even "at once" leaves the others their turn.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How soon to read once more what isn't found.
const READ_SOON: Duration = Duration::from_secs(15);

impl Setback {
    /// The only place where a [`Remedy`] turns into conduct. `last` is the setback that still counted before.
    pub fn after(last: Option<&Setback>, stage: Stage, error: &Error, now: Instant) -> Setback {
        let cause = error.reason();
        let mut met = last.map(|last| last.met.clone()).unwrap_or_default();
        let strikes = *met.entry(cause).and_modify(|times| *times = times.saturating_add(1)).or_default();
        let doubled = |wait: Duration, longest| doubled(wait, strikes.min(6), longest).max(wait);
        let in_shortage = matches!(error, Error::SubnetFull { .. } | Error::NetworkFull { .. });
        let may_appear = matches!(error, Error::NotFound { .. }) && stage == Stage::Find;
        let (wait, needs_change) = match error.remedy() {
            // The operation that holds the resource mostly ends within seconds, but one on a VM may take an
            // hour.
            Remedy::RetryAfter(wait) if matches!(error, Error::Busy { .. }) => {
                (doubled(wait, LONGEST_BUSY), false)
            }
            // It may pass like any other conflict. A conflict that stays is for a person to end.
            Remedy::RetryAfter(wait)
                if matches!(error, Error::Conflict { .. } | Error::WithoutEffect { .. }) =>
            {
                (doubled(wait, LONGEST), strikes >= LASTING)
            }
            // Azure names no time for an operation that it gave up; one that keeps failing is tried ever less
            // often.
            Remedy::RetryAfter(wait) if matches!(error, Error::Failed { .. }) => {
                (doubled(wait, LONGEST), false)
            }
            Remedy::RetryAfter(wait) => (wait, false),
            // All wait for one sign-in, or for one attempt at a quota, which takes one request for all of
            // them: they can afford to be quick.
            Remedy::WaitForChange { retry, .. } if error.is_tried_for_all() => (retry, true),
            // It may just have been made, and pods wait for it.
            Remedy::WaitForChange { .. } if may_appear => (doubled(READ_SOON, LONGEST), true),
            Remedy::WaitForChange { .. } if in_shortage && stage == Stage::Growth => (Duration::ZERO, true),
            Remedy::WaitForChange { retry, .. } => (doubled(retry, LONGEST), true),
            Remedy::ReadAgain => (doubled(AT_ONCE, Duration::from_secs(30)), false),
        };
        // What may pass without help is reported like any other of its kind; that it lasts is news.
        let reason = match error {
            Error::Conflict { .. } if !needs_change => Reason::ResourceBusy,
            Error::WithoutEffect { .. } if !needs_change => Reason::OutcomeUnknown,
            _ => cause,
        };
        Setback {
            stage,
            reason,
            cause,
            message: error.to_string(),
            until: now + wait,
            needs_change,
            is_gone: matches!(error, Error::NotFound { .. }),
            is_in_use: matches!(error, Error::InUse { .. }),
            matter: None,
            is_shared: false,
            met,
        }
    }

    /// The same of an error that may concern many. If it does (`is_shared`), one tries on behalf of all:
    /// nobody waits ever longer, nor anew each time that the refusal is met. Those who meet it in the same
    /// moment come back one after the other.
    pub fn of_many(
        last: Option<&Setback>,
        stage: Stage,
        error: &Error,
        is_shared: bool,
        now: Instant,
    ) -> Setback {
        if !is_shared {
            return Setback::after(last, stage, error, now);
        }
        let own = Setback::after(None, stage, error, now).shared();
        let before = last.filter(|last| last.is_shared && last.holds(now));
        let until = before.map_or_else(|| now + jittered(own.until - now), |last| last.until);
        let met = last.map_or_else(|| own.met.clone(), |last| last.met.clone());
        Setback { until, met, ..own }
    }

    /// The same of an error that others have met: nothing was tried for this node, so it waits no longer than
    /// before, and no less.
    pub fn of_others(last: Option<&Setback>, stage: Stage, error: &Error, now: Instant) -> Setback {
        let own = Setback::after(None, stage, error, now);
        let mut met = last.map(|last| last.met.clone()).unwrap_or_default();
        met.entry(own.cause).or_default();
        Setback { met, ..own }
    }

    pub fn of(self, matter: Matter) -> Setback {
        Setback { matter: Some(matter), ..self }
    }

    pub fn shared(self) -> Setback {
        Setback { is_shared: true, ..self }
    }

    /// The time of the next attempt is decided for all nodes that it concerns, see [`crate::refusals`].
    pub fn without_wait(self, now: Instant) -> Setback {
        Setback { until: now, ..self }
    }

    /// How often it was met before since all went well.
    pub fn strikes(&self) -> u32 {
        self.met.get(&self.cause).copied().unwrap_or_default()
    }

    /// Whether this error was met before since all went well.
    pub fn has_met(&self, error: &Error) -> bool {
        self.met.contains_key(&error.reason())
    }

    pub fn holds(&self, now: Instant) -> bool {
        now < self.until
    }

    /// Whether growth waits, and nothing else.
    pub fn holds_growth(&self, now: Instant) -> bool {
        self.stage == Stage::Growth && self.holds(now)
    }

    /// A person has edited what was refused: if only that could help, it is tried at once.
    pub fn edited(&mut self, now: Instant) {
        if self.needs_change {
            self.until = self.until.min(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn denied() -> Error {
        Error::Denied { action: "a".into(), scope: "s".into(), message: "m".into() }
    }

    fn full() -> Error {
        Error::SubnetFull { subnet: "s".into(), resource: "r".into(), message: "m".into() }
    }

    /// The same error so many times more in a row.
    fn met_again(first: Setback, error: &Error, times: usize, now: Instant) -> Setback {
        (0..times).fold(first, |last, _| Setback::after(Some(&last), Stage::Write, error, now))
    }

    #[test]
    fn a_conflict_that_lasts_is_reported_and_tried_ever_less_often() {
        let now = Instant::now();
        let conflict = Error::Conflict { resource: "r".into(), code: "Novel".into(), message: "m".into() };
        let mut setback = Setback::after(None, Stage::Write, &conflict, now);
        let mut met = vec![(setback.until - now, setback.needs_change)];
        for _ in 0..8 {
            setback = Setback::after(Some(&setback), Stage::Write, &conflict, now);
            met.push((setback.until - now, setback.needs_change));
        }
        let waits: Vec<u64> = met.iter().map(|(wait, _)| wait.as_secs()).collect();
        assert_eq!(waits, [15, 30, 60, 120, 240, 480, 600, 600, 600]);
        assert_eq!(met.iter().position(|(_, is_reported)| *is_reported), Some(3));
        assert_eq!(setback.reason, "ResourceConflict");
    }

    #[test]
    fn a_busy_resource_is_tried_once_a_minute_at_last_without_a_warning() {
        let now = Instant::now();
        let busy =
            Error::Busy { resource: "r".into(), message: "m".into(), retry_after: Duration::from_secs(15) };
        let setback = met_again(Setback::after(None, Stage::Write, &busy, now), &busy, 8, now);
        assert_eq!((setback.until - now, setback.needs_change), (Duration::from_secs(60), false));
    }

    #[test]
    fn a_denied_node_waits_longer_each_time_but_not_forever() {
        let now = Instant::now();
        let setback = Setback::after(None, Stage::Write, &denied(), now);
        let first = setback.until - now;
        assert!(setback.needs_change);
        let setback = met_again(setback, &denied(), 20, now);
        assert!(setback.until - now > first);
        assert_eq!(setback.until - now, LONGEST);
    }

    #[test]
    fn what_one_tries_for_all_is_asked_for_every_two_minutes_however_often_it_was_in_vain() {
        let now = Instant::now();
        let used_up = Error::PublicAddressesUsedUp { resource: "r".into(), message: "m".into() };
        let setback = met_again(Setback::after(None, Stage::Write, &used_up, now), &used_up, 20, now);
        assert_eq!((setback.until - now, setback.needs_change), (Duration::from_secs(120), true));
    }

    #[test]
    fn those_who_are_refused_the_same_in_one_moment_come_back_one_after_the_other() {
        let now = Instant::now();
        let waits =
            |last: Option<&Setback>| Setback::of_many(last, Stage::Write, &denied(), true, now).until - now;
        let own = Setback::after(None, Stage::Write, &denied(), now).until - now;
        let all: HashSet<Duration> = (0..100).map(|_| waits(None)).collect();
        assert!(all.len() > 50 && all.iter().all(|wait| (own / 2..=own).contains(wait)), "{all:?}");
        // Met again in between, it waits no longer.
        let first = Setback::of_many(None, Stage::Write, &denied(), true, now);
        assert_eq!(waits(Some(&first)), first.until - now);
    }

    #[test]
    fn what_others_are_refused_meanwhile_leaves_a_node_its_own_waits() {
        let (now, resource, message) = (Instant::now(), || "r".to_owned(), || "m".to_owned());
        let failed = Error::Failed { resource: resource(), code: "c".into(), message: message() };
        let policy = Error::PolicyForbidden { resource: resource(), assignment: None, message: message() };
        let first = Setback::after(None, Stage::Write, &failed, now);
        let third = met_again(first, &failed, 2, now);
        let of_others = Setback::of_others(Some(&third), Stage::Write, &policy, now);
        assert_eq!((of_others.reason, of_others.strikes()), (Reason::PolicyForbidden, 0));
        let again = Setback::of_others(Some(&of_others), Stage::Write, &policy, now);
        assert_eq!(again.strikes(), 0, "nothing was tried");
        let fourth = Setback::after(Some(&again), Stage::Write, &failed, now);
        assert_eq!(fourth.until - now, 2 * (third.until - now));
    }

    #[test]
    fn throttling_is_obeyed_to_the_second_without_a_warning() {
        let now = Instant::now();
        let wait = Duration::from_secs(17);
        let error = Error::Throttled {
            resource: "r".into(),
            message: "m".into(),
            retry_after: wait,
            limit: crate::azure::Limit::Arm,
        };
        let setback = Setback::after(None, Stage::Find, &error, now);
        assert_eq!((setback.until, setback.needs_change), (now + wait, false));
        assert!(setback.holds(now) && !setback.holds(now + wait));
    }

    #[test]
    fn two_errors_that_come_in_turn_are_tried_ever_less_often_like_one_that_lasts() {
        let (now, resource, message) = (Instant::now(), || "r".to_owned(), || "m".to_owned());
        let busy =
            Error::Busy { resource: resource(), message: message(), retry_after: Duration::from_secs(15) };
        let failed = Error::Failed { resource: resource(), code: "c".into(), message: message() };
        let policy = Error::PolicyForbidden { resource: resource(), assignment: None, message: message() };
        for [one, other] in [[&busy, &failed], [&denied(), &policy]] {
            let mut last: Option<Setback> = None;
            let mut waits = [one, other, one, other, one, other, one, other, one, other].map(|error| {
                let own = Setback::after(last.as_ref(), Stage::Write, error, now);
                let wait = (own.until - now).as_secs();
                last = Some(own);
                wait
            });
            assert!(
                waits.iter().step_by(2).is_sorted() && waits.iter().skip(1).step_by(2).is_sorted(),
                "{waits:?}"
            );
            waits.sort_unstable();
            assert!(waits[9] >= 4 * waits[0] && waits[8] >= 60, "{waits:?}");
        }
    }

    #[test]
    fn what_is_not_found_is_soon_read_again_and_then_ever_less_often() {
        let (now, mut last) = (Instant::now(), None);
        let error = Error::NotFound { resource: "r".into(), message: "m".into() };
        let waits = [(); 5].map(|()| {
            let own = Setback::after(last.as_ref(), Stage::Find, &error, now);
            assert!(own.needs_change && own.is_gone);
            let wait = (own.until - now).as_secs();
            last = Some(own);
            wait
        });
        assert_eq!(waits, [15, 30, 60, 120, 240]);
    }

    #[test]
    fn a_full_subnet_is_reported_and_delays_nothing_here() {
        let now = Instant::now();
        let setback = Setback::after(None, Stage::Growth, &full(), now);
        assert!(setback.reason == Reason::SubnetFull && setback.needs_change && !setback.holds(now));
    }

    #[test]
    fn a_write_that_reserves_nothing_takes_no_turns_in_a_full_subnet_and_waits_here() {
        let now = Instant::now();
        assert!(Setback::after(None, Stage::Write, &full(), now).holds(now));
    }

    #[test]
    fn a_write_that_azure_keeps_giving_up_is_tried_ever_less_often() {
        let now = Instant::now();
        let failed = Error::Failed { resource: "r".into(), code: "c".into(), message: "m".into() };
        let first = Setback::after(None, Stage::Write, &failed, now);
        let second = Setback::after(Some(&first), Stage::Write, &failed, now);
        assert!(!first.needs_change && first.holds(now));
        assert_eq!(second.until - now, 2 * (first.until - now));
    }
}
