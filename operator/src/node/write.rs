//! Carries a plan out at Azure and remembers the outcome.

use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};
use vnetpool_crds::pool::Mode;

use super::backend::{Outcome, Task};
use super::growth;
use super::memory::Memory;
use super::mending;
use super::observe::groups;
use super::pause;
use super::progress::Progress;
use super::scope;
use super::setback::{Setback, Stage};
use crate::azure::{self, Urgency};
use crate::context::Context;
use crate::planner::Change;

/// Carries the plan's change out. The condition `Writing` has announced it, or does so when `announced` is
/// asked.
///
/// # Errors
/// Azure's. The reservations are then to be read again.
pub async fn write(
    ctx: &Context,
    progress: &Progress,
    node: &Node,
    memory: &mut Memory,
    announced: impl FnOnce(Urgency) -> Urgency,
) -> Result<(), azure::Error> {
    let Progress { allocation, need, seen: Some(seen), plan: Some(plan), .. } = progress else {
        return Ok(());
    };
    let Some(nic) = &seen.nic else { return Ok(()) };
    let (name, change) = (node.name_any(), &plan.change);
    let urgency = need.of_write(&seen.observed, plan.priority);
    let urgency = scope::while_allowed(ctx, &name, seen, change, urgency);
    let urgency = growth::while_room(ctx, &name, seen, change, urgency);
    let task = Task {
        nic: &nic.id,
        observed: &seen.observed,
        change,
        blocks: seen.pool.as_ref().is_some_and(|pool| pool.spec.mode == Mode::Prefix),
        urgency: announced(pause::while_not(&ctx.cluster, &ctx.waker, allocation, urgency)),
        about: [node.object_ref(&()), allocation.object_ref(&())],
    };
    let result = seen.backend.apply(ctx, &task).await;
    if result.as_ref().is_err_and(azure::Error::is_given_up) {
        return result.map(drop);
    }
    let now = Instant::now();
    memory.nic.wrote(&result);
    // A write that wasn't sent teaches nothing.
    if result.as_ref().map_or(true, |outcome| outcome.was_sent) {
        growth::record_write(ctx, &name, seen, plan, result.as_ref().map(|_| ()));
    }
    match result {
        Ok(outcome) => {
            if outcome.was_sent {
                scope::succeeded(ctx, seen, &plan.change, now);
            }
            learn(memory, &plan.change, &nic.id, &outcome, now);
            Ok(())
        }
        Err(error) => {
            if let Some(own) = learn_from(memory, &plan.change, &error, now) {
                let (refused, node) = ((seen, &plan.change), node.name_any());
                memory.setback = Some(scope::refused(ctx, &node, refused, (&error, own), now));
            }
            Err(error)
        }
    }
}

/// Remembers the outcome of a write that has succeeded.
fn learn(memory: &mut Memory, change: &Change, nic: &str, outcome: &Outcome, now: Instant) {
    if outcome.is_known {
        memory.nic.at = Some(now);
    }
    memory.setback = None;
    memory.mending.restored(&change.restore, &outcome.lacks, now);
    if change.repair || change.forward || change.mend {
        memory.mending.written(now);
    }
    if outcome.lacks_groups {
        // Written once more at once it would show them no sooner.
        let error = azure::Error::Unexpected {
            resource: nic.to_owned(),
            message: "it doesn't show application security groups that it has joined".to_owned(),
        };
        memory.grouping = Some(Setback::after(memory.grouping.as_ref(), Stage::Write, &error, now));
    }
}

/// Remembers the failure of a write. Returns the setback for all of the node's writes, unless only a part of
/// this one is left out of the next, so that the node gets its addresses all the same.
fn learn_from(memory: &mut Memory, change: &Change, error: &azure::Error, now: Instant) -> Option<Setback> {
    let taken = error.taken(&change.restore);
    memory.taken.extend(&taken);
    // Addresses that pods lost.
    if let Some((addresses, first)) = withheld(error, &taken, change) {
        memory.mending.withhold(addresses, first, now);
        return None;
    }
    // Groups that are refused. Only what is refused without them is asked for others, too.
    if !change.join.is_empty() && groups::may_be_refused(error) {
        let own = Setback::after(memory.grouping.as_ref(), Stage::Write, error, now);
        memory.grouping = Some(own);
        return None;
    }
    let stage = if change.reserve > 0 { Stage::Growth } else { Stage::Write };
    Some(Setback::after(memory.setback.as_ref(), stage, error, now))
}

/// Which of the addresses to restore can't be had for a while, and for how long at first; `taken` are certain
/// never to be had. `None`: the error isn't about them, or growth has met it, which waits for its turn.
fn withheld(error: &azure::Error, taken: &[Ipv4Net], change: &Change) -> Option<(Vec<Ipv4Net>, Duration)> {
    let restore = &change.restore[..];
    let (addresses, first) = match error {
        // One of these is; later requests for one at a time show which.
        azure::Error::AddressTaken { .. } if taken.is_empty() => (restore.to_vec(), mending::REFUSED),
        azure::Error::AddressBeingFreed { .. } => (error.being_freed(restore), mending::FREEING),
        // Azure may object to one of these.
        azure::Error::Arm { .. } | azure::Error::QuotaExceeded { .. } => (restore.to_vec(), mending::REFUSED),
        azure::Error::SubnetFull { .. } | azure::Error::NetworkFull { .. } if change.reserve == 0 => {
            (restore.to_vec(), mending::REFUSED)
        }
        _ => return None,
    };
    (!addresses.is_empty()).then_some((addresses, first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::memory::Memories;
    use serde_json::json;

    fn memory() -> Memory {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let object = json!({"metadata": {"name": "n"}, "spec": spec});
        Memories::default().take(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_route_that_is_written_without_effect_is_written_ever_less_often() {
        let (mut memory, mut now) = (memory(), Instant::now());
        let mend = Change { mend: true, ..Change::default() };
        let mut waits = vec![];
        for _ in 0..4 {
            assert!(memory.mending.may_write(now));
            learn(&mut memory, &mend, "nic", &Outcome { was_sent: true, ..Outcome::default() }, now);
            let wait = memory.mending.wait(now).unwrap_or_default();
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [5, 10, 20, 40]);
    }

    #[test]
    fn where_azure_names_no_address_that_is_taken_each_is_asked_for_by_itself_before_it_is_given_up() {
        let [one, other] = ["10.0.0.5/32", "10.0.0.16/28"].map(|one| one.parse::<Ipv4Net>().unwrap());
        let error = azure::Error::AddressTaken { resource: "nic".into(), message: "somebody has it".into() };
        let outcome = |restore: &[Ipv4Net]| {
            let taken = error.taken(restore);
            let change = Change { restore: restore.to_vec(), ..Change::default() };
            let later = withheld(&error, &taken, &change);
            (taken, later)
        };
        assert_eq!(outcome(&[one, other]), (vec![], Some((vec![one, other], mending::REFUSED))));
        assert_eq!(outcome(&[other]), (vec![other], None));
    }

    #[test]
    fn lost_addresses_that_find_no_room_are_left_out_for_a_while_and_growth_waits_for_its_turn() {
        let one: Ipv4Net = "10.0.0.5/32".parse().unwrap();
        let subnet =
            || azure::Error::SubnetFull { subnet: "s".into(), resource: "n".into(), message: String::new() };
        let network = || azure::Error::NetworkFull { resource: "n".into(), message: String::new() };
        for error in [subnet(), network()] {
            let of = |reserve| Change { restore: vec![one], reserve, ..Change::default() };
            assert_eq!(withheld(&error, &[], &of(0)), Some((vec![one], mending::REFUSED)));
            assert_eq!(withheld(&error, &[], &of(1)), None);
        }
    }
}
