//! What an error of Azure's means for the node it happened to: how long to leave Azure alone, and what to say meanwhile. Pure.
//!
//! It concerns this node only. The condition keeps what it says until the call that failed succeeds or isn't needed any more.

use std::time::{Duration, Instant};

use crate::azure::{Error, Remedy};

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Finding the node's VM and NIC and reading them.
    Find,
    /// Writing the NIC, with so many addresses to reserve.
    Write { reserve: u32 },
}

/// An error that still counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Setback {
    pub stage: Stage,
    pub reason: &'static str,
    pub message: String,
    /// Not before this.
    pub until: Instant,
    /// Nothing helps until somebody changes something, so somebody must be told.
    pub needs_change: bool,
    /// The NIC or its VM is gone.
    pub is_gone: bool,
    /// What it takes to get on is in the subnet, so it holds back growth but no release: that may even help.
    pub growth_only: bool,
    /// How many to reserve at most next time: a write that asks for more than the subnet has gets nothing at all.
    pub may_reserve: u32,
    /// How often in a row.
    strikes: u32,
}

/// The longest wait between two attempts that need somebody to change something first: a thousand such nodes must not use
/// up the request limits of the others.
const LONGEST: Duration = Duration::from_secs(600);
/// Even "at once" leaves the others their turn.
const AT_ONCE: Duration = Duration::from_millis(500);

impl Setback {
    /// The only place where a [`Remedy`] turns into conduct. `last` is the setback that still counted before.
    pub fn after(last: Option<&Setback>, stage: Stage, error: &Error, now: Instant) -> Setback {
        let reason = error.reason();
        let strikes = last.filter(|last| last.reason == reason).map_or(0, |last| last.strikes + 1);
        let doubled = |wait: Duration, longest| (wait * 2_u32.pow(strikes.min(6))).min(longest).max(wait);
        let full = matches!(error, Error::SubnetFull { .. });
        let may_reserve = match stage {
            Stage::Write { reserve } if full => (reserve / 2).max(1),
            Stage::Write { .. } | Stage::Find => last.map_or(u32::MAX, |last| last.may_reserve),
        };
        let tries_less = matches!(stage, Stage::Write { reserve } if full && reserve > 1);
        let (wait, needs_change) = match error.remedy() {
            // Azure names no time for an operation that it gave up; what keeps failing is tried ever less often.
            Remedy::RetryAfter(wait) if matches!(error, Error::Failed { .. }) => {
                (doubled(wait, LONGEST), false)
            }
            Remedy::RetryAfter(wait) => (wait, false),
            Remedy::WaitForChange { .. } if tries_less => (AT_ONCE, true),
            // All nodes wait for one sign-in, and it takes one request for all of them: they can afford to be quick.
            Remedy::WaitForChange { retry, .. } if matches!(error, Error::Credential { .. }) => (retry, true),
            Remedy::WaitForChange { retry, .. } => (doubled(retry, LONGEST), true),
            Remedy::ReadAgain => (doubled(AT_ONCE, Duration::from_secs(30)), false),
        };
        Setback {
            stage,
            reason,
            message: error.to_string(),
            until: now + wait,
            needs_change,
            is_gone: matches!(error, Error::NotFound { .. }),
            growth_only: full,
            may_reserve,
            strikes,
        }
    }

    /// What is left of it after a write that succeeded: nothing, unless that was a smaller one than is wanted. Then the
    /// next may be twice as large.
    pub fn after_success(self, now: Instant) -> Option<Setback> {
        (self.may_reserve != u32::MAX).then(|| Setback {
            until: now,
            may_reserve: self.may_reserve.saturating_mul(2),
            strikes: 0,
            ..self
        })
    }

    pub fn holds(&self, now: Instant) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Error {
        Error::Denied { action: "a".into(), scope: "s".into(), message: "m".into() }
    }

    fn full() -> Error {
        Error::SubnetFull { subnet: "s".into(), resource: "r".into(), message: "m".into() }
    }

    #[test]
    fn a_denied_node_waits_longer_each_time_but_not_forever() {
        let now = Instant::now();
        let mut setback = Setback::after(None, Stage::Write { reserve: 8 }, &denied(), now);
        let first = setback.until - now;
        assert!(setback.needs_change && !setback.growth_only);
        for _ in 0..20 {
            setback = Setback::after(Some(&setback), Stage::Write { reserve: 8 }, &denied(), now);
        }
        assert!(setback.until - now > first);
        assert_eq!(setback.until - now, LONGEST);
    }

    #[test]
    fn throttling_is_obeyed_to_the_second_and_nobody_is_bothered() {
        let now = Instant::now();
        let wait = Duration::from_secs(17);
        let error = Error::Throttled {
            resource: "r".into(),
            message: "m".into(),
            retry_after: wait,
            by_provider: false,
        };
        let setback = Setback::after(None, Stage::Find, &error, now);
        assert_eq!((setback.until, setback.needs_change), (now + wait, false));
        assert!(setback.holds(now) && !setback.holds(now + wait));
    }

    #[test]
    fn a_full_subnet_is_asked_for_half_until_it_has_none_at_all() {
        let now = Instant::now();
        let mut asked = vec![];
        let mut setback: Option<Setback> = None;
        loop {
            let reserve = 10.min(setback.as_ref().map_or(u32::MAX, |last| last.may_reserve));
            asked.push(reserve);
            let next = Setback::after(setback.as_ref(), Stage::Write { reserve }, &full(), now);
            assert!(next.growth_only && next.needs_change);
            if next.until - now > AT_ONCE {
                break;
            }
            setback = Some(next);
        }
        assert_eq!(asked, [10, 5, 2, 1]);
    }

    #[test]
    fn a_smaller_write_that_succeeds_is_followed_by_a_larger_one() {
        let now = Instant::now();
        let setback = Setback::after(None, Stage::Write { reserve: 10 }, &full(), now);
        assert_eq!(setback.may_reserve, 5);
        let next = setback.after_success(now).unwrap();
        assert_eq!((next.may_reserve, next.holds(now)), (10, false));
        assert_eq!(Setback::after(None, Stage::Find, &denied(), now).after_success(now), None);
    }
}
