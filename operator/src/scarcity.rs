//! How scarce writes are in each subscription, and how coarse that makes what its nodes take and give back.
//! Pure: `now` is an argument.
//!
//! Azure lets so many writes through in a while, and many nodes whose pods come and go want more. Fewer and
//! larger ones do the same work, so their steps grow with the part of our share that is used. Half of it is
//! where give-backs begin to wait for their turn, and three quarters is where warm refills do.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use vnetpool_crds::pool::ScarceWrites;

use crate::azure::Account;

/// How many batches make a step where writes are as scarce as they get.
const COARSEST: u32 = 4;

/// By subscription, in lower case. One that isn't here has writes enough.
#[derive(Debug, Default)]
pub struct Scarcity(HashMap<String, Stand>);

#[derive(Clone, Copy, Debug)]
struct Stand {
    coarseness: u32,
    /// Since when all observations have called for a coarser step (`true`), or for a finer one.
    turns: Option<(bool, Instant)>,
}

impl Scarcity {
    /// As the leader before has left it in the pools' statuses: its successor has counted no writes yet.
    pub fn recalled<'a>(scarce: impl Iterator<Item = &'a ScarceWrites>) -> Scarcity {
        let stand = |one: &ScarceWrites| Stand { coarseness: one.coarseness.clamp(1, COARSEST), turns: None };
        Scarcity(scarce.map(|one| (one.subscription.to_ascii_lowercase(), stand(one))).collect())
    }

    /// How many batches make a step in this subscription: 1, 2 or 4.
    pub fn coarseness(&self, subscription: &str) -> u32 {
        self.0.get(&subscription.to_ascii_lowercase()).map_or(1, |stand| stand.coarseness)
    }

    /// Takes in how the limits stand. What they call for must have lasted so long before it counts: nodes
    /// that join use a bucket up in a moment, and it fills again by itself. Gives whether a step has changed.
    pub fn take_in(&mut self, accounts: &[Account], lasts: Duration, now: Instant) -> bool {
        let mut used: HashMap<&str, f64> = self.0.keys().map(|known| (known.as_str(), 0.0)).collect();
        for account in accounts.iter().filter(|account| account.writes) {
            let most = used.entry(&account.subscription).or_default();
            *most = most.max(used_of(account));
        }
        let stands: HashMap<String, (Stand, bool)> = used
            .into_iter()
            .map(|(subscription, used)| {
                let before = self.0.get(subscription).copied().unwrap_or_default();
                (subscription.to_owned(), before.observe(used, lasts, now))
            })
            .collect();
        let has_changed = stands.values().any(|(_, has_changed)| *has_changed);
        let kept = stands.into_iter().map(|(subscription, (stand, _))| (subscription, stand));
        self.0 = kept.filter(|(_, stand)| stand.coarseness > 1 || stand.turns.is_some()).collect();
        has_changed
    }
}

impl Default for Stand {
    fn default() -> Stand {
        Stand { coarseness: 1, turns: None }
    }
}

impl Stand {
    /// After another observation, and whether its step has changed.
    fn observe(self, used: f64, lasts: Duration, now: Instant) -> (Stand, bool) {
        let due = due(self.coarseness, used);
        if due == self.coarseness {
            return (Stand { turns: None, ..self }, false);
        }
        let is_coarser = due > self.coarseness;
        let since = self.turns.filter(|(was, _)| *was == is_coarser).map_or(now, |(_, since)| since);
        if now.saturating_duration_since(since) < lasts {
            return (Stand { turns: Some((is_coarser, since)), ..self }, false);
        }
        (Stand { coarseness: due, turns: None }, true)
    }
}

/// The part of our share that is used. All of it, while Azure wants to be left in peace.
fn used_of(account: &Account) -> f64 {
    if !account.closed_for.is_zero() {
        return 1.0;
    }
    1.0 - (account.left / account.capacity).clamp(0.0, 1.0)
}

/// The step that such a use calls for. A step half as coarse may cost twice the writes, so it is taken up
/// again only where these would not call for the coarser one at once.
fn due(coarseness: u32, used: f64) -> u32 {
    let needed = |used: f64| match used {
        used if used >= 0.75 => COARSEST,
        used if used >= 0.5 => 2,
        _ => 1,
    };
    let finer = needed(2.0 * used).max(coarseness / 2);
    needed(used).max(finer.min(coarseness))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Waits;

    const LASTS: Duration = Waits::FULL.scarce;

    fn account(subscription: &str, writes: bool, used: f64) -> Account {
        Account {
            subscription: subscription.into(),
            region: String::new(),
            limit: "network".into(),
            writes,
            capacity: 800.0,
            left: 800.0 * (1.0 - used),
            spent: 0,
            closed_for: Duration::ZERO,
        }
    }

    /// The coarseness of `s` after each of these observations, a minute apart.
    fn observed(used: &[f64]) -> Vec<u32> {
        let (mut scarcity, start) = (Scarcity::default(), Instant::now());
        let observe = |(minute, used): (usize, &f64)| {
            scarcity.take_in(&[account("s", true, *used)], LASTS, start + LASTS * minute as u32);
            scarcity.coarseness("S")
        };
        used.iter().enumerate().map(observe).collect()
    }

    #[test]
    fn steps_grow_with_the_part_of_the_writes_that_is_used() {
        assert_eq!(observed(&[0.49, 0.49]), [1, 1]);
        assert_eq!(observed(&[0.5, 0.5]), [1, 2]);
        assert_eq!(observed(&[0.75, 0.75]), [1, 4]);
        assert_eq!(observed(&[0.6, 0.6, 0.8, 0.8]), [1, 2, 2, 4]);
    }

    #[test]
    fn a_finer_step_is_taken_up_only_where_twice_the_writes_would_not_ask_for_the_coarser_one() {
        assert_eq!(observed(&[0.9, 0.9, 0.38, 0.38]), [1, 4, 4, 4]);
        assert_eq!(observed(&[0.9, 0.9, 0.37, 0.37, 0.3, 0.3]), [1, 4, 4, 2, 2, 2]);
        assert_eq!(observed(&[0.9, 0.9, 0.0, 0.0, 0.0, 0.0]), [1, 4, 4, 2, 2, 1]);
        assert_eq!(observed(&[0.5, 0.5, 0.25, 0.25, 0.24, 0.24]), [1, 2, 2, 2, 2, 1]);
    }

    #[test]
    fn a_moments_rush_changes_nothing_and_a_change_is_reported_once() {
        let (mut scarcity, start) = (Scarcity::default(), Instant::now());
        let mut at = |second: u64, used: f64| {
            let now = start + Duration::from_secs(second);
            scarcity.take_in(&[account("s", true, used)], LASTS, now)
        };
        let samples = [(0, 1.0), (59, 1.0), (60, 0.2), (61, 1.0), (120, 1.0), (121, 1.0), (200, 1.0)];
        assert_eq!(
            samples.map(|(second, used)| at(second, used)),
            [false, false, false, false, false, true, false]
        );
    }

    #[test]
    fn the_next_leader_goes_on_with_the_steps_of_the_last_until_writes_have_been_plenty_for_a_while() {
        let scarce = ScarceWrites { subscription: "S".into(), coarseness: 2 };
        let (mut scarcity, start) = (Scarcity::recalled([scarce].iter()), Instant::now());
        let observed = [0, 59, 60].map(|second| {
            scarcity.take_in(&[], LASTS, start + Duration::from_secs(second));
            scarcity.coarseness("s")
        });
        assert_eq!(observed, [2, 2, 1]);
    }

    #[test]
    fn reads_and_other_subscriptions_do_not_count_and_a_closed_limit_is_all_used() {
        let (mut scarcity, start) = (Scarcity::default(), Instant::now());
        let closed = Account { closed_for: Duration::from_secs(9), ..account("closed", true, 0.0) };
        let all =
            [account("reads", false, 1.0), account("busy", true, 0.8), account("busy", true, 0.1), closed];
        for now in [start, start + LASTS] {
            scarcity.take_in(&all, LASTS, now);
        }
        let coarseness = ["reads", "busy", "closed", "other"].map(|one| scarcity.coarseness(one));
        assert_eq!(coarseness, [1, 4, 4, 1]);
        // One of which nothing is heard any more has used nothing.
        for minute in 2..=5 {
            scarcity.take_in(&[], LASTS, start + LASTS * minute);
        }
        assert_eq!((scarcity.coarseness("busy"), scarcity.0.len()), (1, 0));
    }
}
