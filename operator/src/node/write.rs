//! Carries a plan out at Azure and remembers what came of it.

use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};
use vnetpool_crds::pool::Mode;

use super::backend::Task;
use super::growth;
use super::memory::Memory;
use super::mending;
use super::observe::groups;
use super::progress::Progress;
use super::scope;
use super::setback::{Setback, Stage};
use crate::azure::{self, Urgency};
use crate::context::Context;

/// Carries the plan's change out. The condition `Writing` has announced it, or does so when `announced` is
/// asked.
///
/// # Errors
/// Azure's. What is reserved is then to be read again.
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
    let task = Task {
        nic: &nic.id,
        observed: &seen.observed,
        change: &plan.change,
        blocks: seen.pool.as_ref().is_some_and(|pool| pool.spec.mode == Mode::Prefix),
        urgency: announced(scope::while_allowed(
            ctx,
            &node.name_any(),
            seen,
            need.of_write(&seen.observed, plan.priority),
        )),
        about: [node.object_ref(&()), allocation.object_ref(&())],
    };
    let result = seen.backend.apply(ctx, &task).await;
    if let Err(error @ azure::Error::Outgrown { .. }) = result {
        return Err(error);
    }
    let now = Instant::now();
    growth::record_write(ctx, &node.name_any(), seen, plan, result.as_ref().map(|_| ()));
    let holds_all = scope::record_write(ctx, &node.name_any(), seen, result.as_ref().map(|_| ()), now);
    match result {
        Ok(outcome) => {
            if outcome.is_known {
                memory.nic.at = Some(now);
            }
            memory.setback = None;
            memory.mending.restored(&plan.change.restore);
            if plan.change.repair || plan.change.forward {
                memory.mending.written(now);
            }
            if outcome.lacks_groups {
                // Written once more at once it would show them no sooner.
                let error = azure::Error::Unexpected {
                    resource: nic.id.clone(),
                    message: "it doesn't show application security groups that it has joined".to_owned(),
                };
                memory.grouping = Some(Setback::after(memory.grouping.as_ref(), Stage::Write, &error, now));
            }
            Ok(())
        }
        Err(error) => {
            if matches!(error, azure::Error::OutcomeUnknown { .. }) {
                memory.nic.lost_answer();
            }
            memory.taken.extend(error.taken(&plan.change.restore));
            // Addresses that pods lost are left out of the next write, so that the node gets others all the same.
            if let Some((addresses, first)) = withheld(&error, &plan.change.restore) {
                memory.mending.withhold(addresses, first, now);
                return Err(error);
            }
            // Groups that are refused are left out of the next write, so that the node gets its addresses all
            // the same.
            let (setback, stage) = if !plan.change.join.is_empty() && groups::may_be_refused(&error) {
                (&mut memory.grouping, Stage::Write)
            } else {
                (&mut memory.setback, if plan.change.repair { Stage::Repair } else { Stage::Write })
            };
            let own = Setback::after(setback.as_ref(), stage, &error, now);
            *setback = Some(if holds_all { own.without_wait(now) } else { own });
            Err(error)
        }
    }
}

/// Which of the addresses to restore can't be had for a while, and for how long at first. `None`: the error isn't about them.
fn withheld(error: &azure::Error, restore: &[Ipv4Net]) -> Option<(Vec<Ipv4Net>, Duration)> {
    let (addresses, first) = match error {
        azure::Error::AddressBeingFreed { .. } => (error.being_freed(restore), mending::FREEING),
        // Whatever Azure objects to, it may be one of these.
        azure::Error::Arm { .. } | azure::Error::QuotaExceeded { .. } => (restore.to_vec(), mending::REFUSED),
        _ => return None,
    };
    (!addresses.is_empty()).then_some((addresses, first))
}
