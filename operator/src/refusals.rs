//! Refusals that concern more nodes than the one that met them: one node tries on behalf of all. Pure: `now`
//! is an argument.
//!
//! A lock on a resource group, a subscription that is disabled or a right that is missing on a subnet refuses
//! the writes of every node there. Each trying for itself would use up the request limits of all others in
//! the subscription. So from the first such refusal on the nodes of that scope wait, and one after the other
//! tries, until one succeeds: then all go on. A right that is missing on a NIC says nothing of the others at
//! first; when the same is missing on three, it counts for their resource group.
//!
//! All of it can be lost: it saves requests, and the next refusal begins it anew.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::azure::{Error, Matter};

/// Every refusal that may concern many.
#[derive(Debug, Default)]
pub struct Refusals(HashMap<Matter, Refusal>);

#[derive(Debug)]
struct Refusal {
    error: Error,
    /// Who has met it.
    met: BTreeSet<String>,
    /// Who would write, but for this.
    waiting: BTreeSet<String>,
    turn: Option<Given>,
    /// Who has tried last.
    last: String,
    again_at: Instant,
    /// The pool's edit that was last taken for a reason to try at once.
    cause: Option<u64>,
}

#[derive(Debug)]
struct Given {
    node: String,
    until: Instant,
}

/// Nodes that are to be reconciled again.
pub type Woken = Vec<String>;

/// From one attempt to the next. With a turn that isn't used between them it is still within two minutes that
/// a change takes effect.
const AGAIN: Duration = Duration::from_secs(80);
/// Who hasn't tried by then has lost its turn.
const TURN: Duration = Duration::from_secs(30);
/// So many NICs that are refused alike speak for their group.
const ALIKE: usize = 3;

impl Refusals {
    /// Why a node may not write now, if others are known to be refused the same. `sites` are the ids of what
    /// it writes and refers to, in lower case.
    pub fn holds(&mut self, sites: &[String], node: &str) -> Option<Error> {
        let (_, refusal) =
            self.0.iter_mut().find(|(matter, one)| one.concerns(matter, sites) && !one.is_turn_of(node))?;
        refusal.waiting.insert(node.to_owned());
        Some(refusal.error.clone())
    }

    /// A node's write was refused. Returns whether that holds up all of a scope from now on.
    pub fn refused(&mut self, matter: Matter, node: &str, error: &Error, now: Instant) -> bool {
        let is_wide = matter.is_wide;
        let refusal = self.0.entry(matter).or_insert_with(|| Refusal::of(error, now));
        refusal.error = error.clone();
        refusal.met.insert(node.to_owned());
        refusal.waiting.insert(node.to_owned());
        refusal.turn = refusal.turn.take().filter(|given| given.node != node);
        node.clone_into(&mut refusal.last);
        refusal.again_at = now + AGAIN;
        is_wide || refusal.met.len() >= ALIKE
    }

    /// A write has succeeded: nothing refuses what concerns these.
    pub fn passed(&mut self, sites: &[String]) -> Woken {
        let over = self.0.extract_if(|matter, _| matter.is_around(sites));
        over.flat_map(|(_, refusal)| refusal.waiting).collect()
    }

    /// A node has nothing to write, or can't.
    pub fn left(&mut self, node: &str, now: Instant) -> Woken {
        let mut calls = vec![];
        for refusal in self.0.values_mut() {
            refusal.waiting.remove(node);
            if refusal.is_turn_of(node) {
                refusal.turn = None;
                calls.extend(refusal.call(now));
            }
        }
        calls
    }

    /// Somebody may have ended it: it is tried at once. The same `cause` counts once.
    pub fn try_now(&mut self, sites: &[String], cause: u64, now: Instant) -> Woken {
        let around = self.0.iter_mut().filter(|(matter, _)| matter.is_around(sites));
        let mut calls = vec![];
        for (_, refusal) in around.filter(|(_, refusal)| refusal.cause != Some(cause)) {
            refusal.cause = Some(cause);
            refusal.again_at = refusal.again_at.min(now);
            calls.extend(refusal.call(now));
        }
        calls
    }

    /// Time has passed: turns end, and attempts come due.
    pub fn tick(&mut self, now: Instant) -> Woken {
        let calls = self.0.values_mut().flat_map(|refusal| {
            if let Some(late) = refusal.turn.take_if(|given| given.until <= now) {
                refusal.waiting.remove(&late.node);
            }
            refusal.call(now)
        });
        let calls = calls.collect();
        // Nobody is concerned any more.
        self.0.retain(|_, refusal| !refusal.waiting.is_empty());
        calls
    }
}

impl Refusal {
    fn of(error: &Error, now: Instant) -> Refusal {
        Refusal {
            error: error.clone(),
            met: BTreeSet::new(),
            waiting: BTreeSet::new(),
            turn: None,
            last: String::new(),
            again_at: now,
            cause: None,
        }
    }

    fn concerns(&self, matter: &Matter, sites: &[String]) -> bool {
        (matter.is_wide || self.met.len() >= ALIKE) && matter.is_around(sites)
    }

    fn is_turn_of(&self, node: &str) -> bool {
        self.turn.as_ref().is_some_and(|given| given.node == node)
    }

    /// Gives the turn to the one after the last that has tried.
    fn call(&mut self, now: Instant) -> Option<String> {
        if self.turn.is_some() || now < self.again_at {
            return None;
        }
        let next =
            self.waiting.iter().find(|node| **node > self.last).or_else(|| self.waiting.first())?.clone();
        next.clone_into(&mut self.last);
        self.turn = Some(Given { node: next.clone(), until: now + TURN });
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GROUP: &str = "/subscriptions/s/resourcegroups/g";

    fn sites(node: usize) -> Vec<String> {
        let network =
            "/subscriptions/s/resourcegroups/net/providers/microsoft.network/virtualnetworks/v/subnets/a";
        vec![
            format!("{GROUP}/providers/microsoft.network/networkinterfaces/{}-nic", name(node)),
            network.to_owned(),
        ]
    }

    fn name(node: usize) -> String {
        format!("n{node:04}")
    }

    fn locked(scope: &str) -> Error {
        Error::Locked { resource: sites(0)[0].clone(), scope: scope.into(), message: "locked".into() }
    }

    fn denied(node: usize) -> Error {
        Error::Denied {
            action: "nic/write".into(),
            scope: sites(node)[0].to_uppercase(),
            message: "no".into(),
        }
    }

    fn refuse(all: &mut Refusals, node: usize, error: &Error, now: Instant) -> bool {
        let matter = error.matter().expect("it may concern others");
        all.refused(matter, &name(node), error, now)
    }

    #[test]
    fn a_lock_on_a_group_is_met_once_and_tried_by_one_after_the_other() {
        let (mut all, mut now) = (Refusals::default(), Instant::now());
        assert!(refuse(&mut all, 0, &locked(GROUP), now));
        for node in 1..4 {
            assert!(matches!(all.holds(&sites(node), &name(node)), Some(Error::Locked { .. })));
        }
        let elsewhere = ["/subscriptions/s/resourcegroups/gg/x".to_owned()];
        assert!(all.holds(&elsewhere, "other").is_none());
        for next in [1, 2, 3, 0] {
            assert_eq!(all.tick(now + AGAIN - Duration::from_secs(1)), [""; 0]);
            now += AGAIN;
            assert_eq!(all.tick(now), [name(next)]);
            assert!(all.holds(&sites(next), &name(next)).is_none());
            refuse(&mut all, next, &locked(GROUP), now);
        }
        now += AGAIN;
        assert_eq!(all.tick(now), [name(1)]);
        assert_eq!(all.passed(&sites(1)), [0, 1, 2, 3].map(name));
        assert!(all.holds(&sites(2), &name(2)).is_none());
    }

    #[test]
    fn a_right_that_is_missing_on_one_nic_holds_no_other_up_and_on_three_all_of_their_group() {
        let (mut all, now) = (Refusals::default(), Instant::now());
        for node in 0..2 {
            assert!(!refuse(&mut all, node, &denied(node), now));
            assert!(all.holds(&sites(9), &name(9)).is_none());
        }
        assert!(refuse(&mut all, 2, &denied(2), now));
        assert!(all.holds(&sites(9), &name(9)).is_some());
        // One that may shows that they aren't refused because of the group.
        all.passed(&sites(8));
        assert!(all.holds(&sites(9), &name(9)).is_none());
    }

    #[test]
    fn a_right_that_is_missing_on_the_subnet_concerns_its_nodes_in_whatever_group() {
        let (mut all, now) = (Refusals::default(), Instant::now());
        let subnet = sites(0)[1].clone();
        let error =
            Error::Denied { action: "subnets/join/action".into(), scope: subnet, message: "no".into() };
        assert!(refuse(&mut all, 0, &error, now));
        assert!(all.holds(&sites(1), &name(1)).is_some());
        assert!(all.holds(&sites(1)[..1], &name(1)).is_none());
    }

    #[test]
    fn what_names_no_scope_concerns_its_node_alone() {
        let (resource, message) = (sites(0)[0].clone(), "m".to_owned());
        let quota = Error::QuotaExceeded { resource: resource.clone(), message: message.clone() };
        let policy = Error::PolicyForbidden { resource, message };
        assert!(quota.matter().is_none() && policy.matter().is_none());
        // Whatever a text quotes where a scope is looked for, the whole world isn't meant.
        for scope in ["", "/", "somebody", "/providers/Microsoft.Management/managementGroups/m"] {
            assert!(locked(scope).matter().is_none(), "{scope}");
        }
    }

    #[test]
    fn an_edit_has_it_tried_at_once_and_once() {
        let (mut all, now) = (Refusals::default(), Instant::now());
        refuse(&mut all, 0, &locked(GROUP), now);
        all.holds(&sites(1), &name(1));
        assert_eq!(all.try_now(&sites(0), 7, now), [name(1)]);
        assert_eq!(all.try_now(&sites(1), 7, now), [""; 0]);
        refuse(&mut all, 1, &locked(GROUP), now);
        assert_eq!(all.try_now(&sites(1), 7, now), [""; 0]);
    }

    proptest! {
        /// However many nodes there are and however many of them can't act, about one request in a minute and a
        /// half is made for all, and a change takes effect for all who can act two minutes later at the latest.
        #[test]
        fn thousands_of_nodes_without_a_right_cost_what_one_costs(
            count in 3..2000_usize, deaf_every in 3..9_usize, missing in prop::bool::ANY, minutes in 1..120_u64,
        ) {
            let (mut all, mut now) = (Refusals::default(), Instant::now());
            let error = |node| if missing { denied(node) } else { locked(GROUP) };
            let is_deaf = |node: usize| node % deaf_every == 2;
            let (mut requests, mut held) = (0, 0);
            for node in 0..count {
                if all.holds(&sites(node), &name(node)).is_none() {
                    requests += 1;
                    refuse(&mut all, node, &error(node), now);
                } else {
                    held += 1;
                }
            }
            prop_assert!(requests <= ALIKE && held + requests == count);
            for _ in 0..minutes * 60 {
                now += Duration::from_secs(1);
                for called in all.tick(now) {
                    let node: usize = called[1..].parse().unwrap();
                    if !is_deaf(node) {
                        requests += 1;
                        refuse(&mut all, node, &error(node), now);
                    }
                }
            }
            prop_assert!(requests as u64 <= ALIKE as u64 + minutes * 60 / AGAIN.as_secs() + 1, "{requests} in {minutes} minutes");
            // Somebody grants it. Nobody tells us.
            let mut free = vec![];
            for _ in 0..120 {
                now += Duration::from_secs(1);
                for called in all.tick(now) {
                    let node: usize = called[1..].parse().unwrap();
                    if !is_deaf(node) {
                        free = all.passed(&sites(node));
                    }
                }
            }
            // Whoever hasn't used its turn comes by itself when it can.
            let deaf = (0..count).filter(|node| is_deaf(*node)).count();
            prop_assert!(free.len() + deaf >= count, "{} of {count}", free.len());
            prop_assert!((0..count).all(|node| all.holds(&sites(node), &name(node)).is_none()));
        }
    }
}
