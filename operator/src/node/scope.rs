//! A node's part in a refusal that concerns all of a scope: it writes nothing while others are known to be
//! refused the same, unless it is its turn to try on behalf of all.

use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::allocation::{NodeIPAllocation, NodeIPAllocationSpec};

use super::observe::Seen;
use super::setback::{Setback, Stage};
use crate::azure::{Error, Urgency};
use crate::context::Context;
use crate::lock::lock;
use crate::planner::{self, Plan};

/// The plan as refusals allow it now. Held back, the node says why; it is woken when it may write.
pub fn limit(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    seen: &mut Seen,
    plan: Plan,
    setback: &mut Option<Setback>,
    now: Instant,
) -> Plan {
    let node = allocation.name_any();
    if plan.change.is_empty() {
        stand_back(ctx, &node, now);
        return plan;
    }
    let Some(error) = lock(&ctx.refusals).holds(&sites(seen), &node) else { return plan };
    if setback.as_ref().is_none_or(|known| known.reason != error.reason() || known.stage == Stage::Find) {
        let resource = seen.nic.as_ref().map(|nic| nic.id.as_str()).unwrap_or_default();
        let own = Setback::after(None, Stage::Write, &error.about(resource), now);
        *setback = Some(own.without_wait(now));
    }
    seen.observed.may_write = false;
    planner::plan(&seen.observed)
}

/// The node writes nothing now, or can't.
pub fn stand_back(ctx: &Context, node: &str, now: Instant) {
    ctx.wake(&lock(&ctx.refusals).left(node, now));
}

/// Records what a write that has ended means for others. Returns whether its refusal holds up all of a scope:
/// when it is tried again is then decided for all of them.
pub fn record_write(
    ctx: &Context,
    node: &str,
    seen: &Seen,
    result: Result<(), &Error>,
    now: Instant,
) -> bool {
    let error = match result {
        Ok(()) => {
            ctx.wake(&lock(&ctx.refusals).passed(&sites(seen)));
            return false;
        }
        Err(error) => error,
    };
    // What names a scope that the node isn't in, an application security group say, is its own matter.
    let sites = sites(seen);
    let Some(matter) = error.matter().filter(|matter| matter.is_around(&sites)) else { return false };
    let holds_all = lock(&ctx.refusals).refused(matter, node, error, now);
    if holds_all {
        ctx.refused.send_modify(|count| *count += 1);
    }
    holds_all
}

/// The same urgency until others are refused what is about to be asked: a thousand calls may wait for their
/// turn at Azure when the first of them is.
pub fn while_allowed(ctx: &Context, node: &str, seen: &Seen, urgency: Urgency) -> Urgency {
    let (sites, node, refusals) = (sites(seen), node.to_owned(), ctx.refusals.clone());
    let mut refused = ctx.refused.subscribe();
    urgency.at_most_until(async move {
        while lock(&refusals).holds(&sites, &node).is_none() {
            if refused.changed().await.is_err() {
                std::future::pending().await
            }
        }
    })
}

/// The node's pool was edited: whatever was refused around its NICs is tried. All nodes of the pool say so, it
/// counts once.
pub fn pool_edited(ctx: &Context, spec: &NodeIPAllocationSpec, cause: u64, now: Instant) {
    for nic in &spec.interfaces {
        let sites = [&nic.id, &nic.subnet.id].map(|id| id.to_ascii_lowercase());
        ctx.wake(&lock(&ctx.refusals).try_now(&sites, cause, now));
    }
}

/// What a node's write concerns, as refusals have it.
fn sites(seen: &Seen) -> Vec<String> {
    let nic = seen.nic.iter().flat_map(|nic| [&nic.id, &nic.subnet.id]);
    nic.map(|id| id.to_ascii_lowercase()).collect()
}
