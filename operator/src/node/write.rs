//! Carries a plan out at Azure and remembers what came of it.

use std::time::Instant;

use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};
use vnetpool_crds::pool::Mode;

use super::backend::Task;
use super::growth;
use super::memory::Memory;
use super::observe::groups;
use super::progress::Progress;
use super::setback::{Setback, Stage};
use crate::azure;
use crate::context::Context;

/// Carries the plan's change out. The condition `Writing` has announced it.
///
/// # Errors
/// Azure's. What is reserved is then to be read again.
pub async fn write(
    ctx: &Context,
    progress: &Progress,
    node: &Node,
    memory: &mut Memory,
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
        urgency: need.of_write(&seen.observed, plan.priority),
        about: [node.object_ref(&()), allocation.object_ref(&())],
    };
    let result = seen.backend.apply(ctx, &task).await;
    if let Err(error @ azure::Error::Outgrown { .. }) = result {
        return Err(error);
    }
    let now = Instant::now();
    growth::record_write(ctx, &node.name_any(), seen, plan, result.as_ref().map(|_| ()));
    match result {
        Ok(outcome) => {
            if outcome.is_known {
                memory.nic.at = Some(now);
            }
            memory.setback = None;
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
            memory.taken.extend(error.taken(&plan.change.restore));
            if matches!(error, azure::Error::AddressBeingFreed { .. }) {
                // The next write goes on without these.
                memory.mending.freeing(error.being_freed(&plan.change.restore), now);
                return Err(error);
            }
            // Groups that are refused are left out of the next write, so that the node gets its addresses all
            // the same.
            let (setback, stage) = if !plan.change.join.is_empty() && groups::may_be_refused(&error) {
                (&mut memory.grouping, Stage::Write)
            } else {
                (&mut memory.setback, if plan.change.repair { Stage::Repair } else { Stage::Write })
            };
            *setback = Some(Setback::after(setback.as_ref(), stage, &error, now));
            Err(error)
        }
    }
}
