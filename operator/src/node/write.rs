//! Carries a plan out at Azure and remembers the outcome.

use std::time::Instant;

use kube::{Resource, ResourceExt};
use vnetpool_crds::pool::Mode;

use super::backend::{Outcome, Task};
use super::blame::{self, Blamed, Part};
use super::growth;
use super::memory::Memory;
use super::pause;
use super::progress::Progress;
use super::scope;
use super::setback::{Setback, Stage};
use crate::azure::{self, Urgency};
use crate::context::Context;
use crate::node_object::Node;
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
    let has_remains = nic.id.parse().is_ok_and(|id| ctx.azure.take_remains(&id));
    memory.nic.model_failed = has_remains || (result.is_err() && memory.nic.model_failed);
    // A write that wasn't sent teaches nothing.
    if result.as_ref().map_or(true, |outcome| outcome.was_sent) {
        growth::record_write(ctx, &name, seen, plan, result.as_ref().map(|outcome| &outcome.lacks));
    }
    match result {
        Ok(outcome) => {
            if outcome.was_sent {
                scope::succeeded(ctx, seen, &plan.change, now);
            }
            let written = seen.backend.route_table_id();
            learn(memory, &plan.change, written.as_ref().unwrap_or(&nic.id), &outcome, now);
            Ok(())
        }
        Err(error) => {
            if let Some(own) = learn_from(memory, &plan.change, &error, now) {
                let (refused, node) = ((&**seen, &plan.change), node.name_any());
                memory.setback = Some(scope::refused(ctx, &node, refused, (&error, own), now));
            }
            Err(error)
        }
    }
}

/// Remembers the outcome of a write to a resource that has succeeded by Azure's report. Made once more at
/// once, what has had no effect would have no more: it waits ever longer, and nothing else does.
fn learn(memory: &mut Memory, change: &Change, resource: &str, outcome: &Outcome, now: Instant) {
    if outcome.is_known {
        memory.nic.at = Some(now);
    }
    let lacks = &outcome.lacks;
    let error = azure::Error::WithoutEffect { resource: resource.to_owned() };
    for part in Part::of(change) {
        let last = memory.left_out.remove(&part);
        if Part::of(lacks).contains(&part) {
            memory.left_out.insert(part, Setback::after(last.as_ref(), Stage::Write, &error, now));
        }
    }
    let last = memory.setback.take();
    memory.setback = if lacks.reserve > 0 {
        Some(Setback::after(last.as_ref(), Stage::Growth, &error, now))
    } else {
        // What has reserved nothing shows nothing of growth.
        last.filter(|one| one.stage == Stage::Growth && change.reserve == 0)
    };
    memory.mending.restored(&change.restore, &lacks.restore, now);
    if change.repair || change.forward || change.mend {
        memory.mending.written(now);
    }
    if !lacks.is_empty() {
        // The answer may be older than the write, or the write may come late.
        memory.nic.lost_answer();
    }
}

/// Remembers the failure of a write. Returns the setback for all of the node's writes, or its growth, unless
/// only a part of this one is left out of the next.
fn learn_from(memory: &mut Memory, change: &Change, error: &azure::Error, now: Instant) -> Option<Setback> {
    let taken = error.taken(&change.restore);
    memory.taken.extend(&taken);
    let is_again = memory.has_refused_part_of(change)
        || memory.setback.as_ref().is_some_and(|setback| setback.has_met(error));
    let stage = match blame::blame(error, &taken, change, is_again) {
        Blamed::All => Stage::Write,
        Blamed::Growth => Stage::Growth,
        Blamed::Restored(addresses, first) => {
            memory.mending.withhold(addresses, first, now);
            return None;
        }
        Blamed::Parts(parts) => {
            // Of those that were refused before one goes by itself: two that waited equally long would be
            // refused together for ever.
            let strikes = |part: &Part| Some((memory.left_out.get(part)?.strikes(), *part));
            let again = parts.iter().filter_map(strikes).max().map(|(_, part)| vec![part]);
            for part in again.unwrap_or(parts) {
                let own = Setback::after(memory.left_out.get(&part), Stage::Write, error, now);
                memory.left_out.insert(part, own);
            }
            return None;
        }
    };
    Some(Setback::after(memory.setback.as_ref(), stage, error, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::memory::Memories;
    use ipnet::Ipv4Net;
    use serde_json::json;
    use std::time::Duration;

    fn memory() -> Memory {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let object = json!({"metadata": {"name": "n"}, "spec": spec});
        Memories::default().take(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_part_of_a_write_that_has_no_effect_is_tried_ever_less_often_and_the_rest_is_not_held_up() {
        let (mut memory, mut now) = (memory(), Instant::now());
        let change = Change { reserve: 2, release: vec!["vnp-1".into()], ..Change::default() };
        let lacks = |reserve, release: &[&str]| {
            let release = release.iter().map(|&name| name.to_owned()).collect();
            let lacks = Change { reserve, release, ..Change::default() };
            Outcome { was_sent: true, is_known: true, lacks }
        };
        let mut waits = vec![];
        for _ in 0..5 {
            learn(&mut memory, &change, "nic", &lacks(1, &["vnp-1"]), now);
            let until =
                [&memory.setback.clone().unwrap(), &memory.left_out[&Part::Release]].map(|one| one.until);
            assert!(until[0] == until[1] && memory.setback.as_ref().unwrap().holds_growth(now));
            waits.push((until[0] - now).as_secs());
            now = until[0];
        }
        assert_eq!(waits, [5, 10, 20, 40, 80]);
        let last = memory.setback.clone().unwrap();
        assert!(last.needs_change && last.reason == "WithoutEffect", "{last:?}");
        assert!(memory.nic.is_in_doubt(), "the NIC is read again");
        // Growth succeeds, and the release still doesn't.
        learn(&mut memory, &change, "nic", &lacks(0, &["vnp-1"]), now);
        assert!(memory.setback.is_none() && memory.is_left_out(Part::Release, now));
        learn(&mut memory, &change, "nic", &lacks(0, &[]), now);
        assert!(memory.left_out.is_empty());
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

    /// What a node that wants all this writes now, as the planner would have it.
    fn planned(wanted: &Change, memory: &Memory, now: Instant) -> Change {
        let lost = wanted.restore.iter().copied().collect();
        let mut change = wanted.clone();
        change.restore = memory.mending.askable(lost, now).into_iter().collect();
        if memory.is_left_out(Part::Groups, now) {
            (change.join, change.leave) = (vec![], vec![]);
        }
        if memory.is_left_out(Part::Adoption, now) {
            change.adopt = vec![];
        }
        if memory.is_left_out(Part::Release, now) {
            change.release = vec![];
        }
        let setback = memory.setback.as_ref().filter(|setback| setback.holds(now));
        match setback.map(|setback| setback.stage) {
            None => change,
            Some(Stage::Growth) => Change { reserve: 0, ..change },
            Some(_) => Change::default(),
        }
    }

    /// Whatever the code, and whichever part Azure objects to: all others are carried out soon, and that one
    /// is asked for ever less often.
    #[test]
    fn a_part_of_a_write_that_azure_objects_to_does_not_keep_the_node_from_the_rest() {
        let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
        let group = format!("{network}/applicationSecurityGroups/web");
        let lost = ["10.0.0.5/32", "10.0.0.16/28"].map(|one| one.parse::<Ipv4Net>().unwrap());
        let all = Change {
            reserve: 1,
            restore: lost.to_vec(),
            release: vec!["vnp-1".into()],
            adopt: vec!["ipconfig2".into()],
            join: vec![group.parse().unwrap()],
            ..Change::default()
        };
        type IsWrong = fn(&Change) -> bool;
        let parts: [IsWrong; 5] = [
            |change| change.restore.iter().any(|one| one.prefix_len() == 28),
            |change| !change.release.is_empty(),
            |change| !change.adopt.is_empty(),
            |change| !change.join.is_empty(),
            |change| change.reserve > 0,
        ];
        let (resource, code, message) = (|| "nic".to_owned(), || "Novel".to_owned(), || "m".to_owned());
        for error in [
            azure::Error::Conflict { resource: resource(), code: code(), message: message() },
            azure::Error::Failed { resource: resource(), code: code(), message: message() },
            azure::Error::Arm { resource: resource(), status: 400, code: code(), message: message() },
            azure::Error::PolicyForbidden { resource: resource(), assignment: None, message: message() },
            azure::Error::Unattachable { resource: resource(), remedy: "r", message: message() },
        ] {
            for (index, is_wrong) in parts.into_iter().enumerate() {
                let (mut memory, start) = (memory(), Instant::now());
                let (mut wanted, mut refused, mut last) = (all.clone(), 0, start);
                for second in 0..7200 {
                    let now = start + Duration::from_secs(second);
                    let change = planned(&wanted, &memory, now);
                    if change.is_empty() {
                        continue;
                    }
                    if is_wrong(&change) {
                        refused += 1;
                        if let Some(own) = learn_from(&mut memory, &change, &error, now) {
                            memory.setback = Some(own);
                        }
                        continue;
                    }
                    learn(
                        &mut memory,
                        &change,
                        "nic",
                        &Outcome { was_sent: true, ..Outcome::default() },
                        now,
                    );
                    wanted.reserve -= change.reserve;
                    wanted.restore.retain(|one| !change.restore.contains(one));
                    wanted.release.retain(|one| !change.release.contains(one));
                    wanted.adopt.retain(|one| !change.adopt.contains(one));
                    wanted.join.retain(|one| !change.join.contains(one));
                    last = now;
                }
                let left = parts.iter().filter(|is_of| is_of(&wanted)).count();
                assert!(left == 1 && is_wrong(&wanted), "{error}, part {index}: {wanted:?}");
                let last = (last - start).as_secs();
                let refused_so = format!("{error}, part {index}: until {last} s, {refused} times");
                assert!(last <= 600 && (4..40).contains(&refused), "{refused_so}");
            }
        }
    }
}
