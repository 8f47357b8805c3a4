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
use crate::planner::{self, Change, Plan};
use crate::refusals;

/// The plan as refusals allow it now. A node that is held back reports why; it is woken when it may write.
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
    let Some(error) = lock(&ctx.refusals).holds(&sites(seen, &plan.change), &node, now) else { return plan };
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

/// Records that a write was carried out: the resources that it wrote are refused to no node.
pub fn succeeded(ctx: &Context, seen: &Seen, change: &Change, now: Instant) {
    ctx.wake(&lock(&ctx.refusals).passed(&sites(seen, change), now));
}

/// Records the meaning of a write's refusal for others. Returns whether it holds up all of a scope: the time
/// of the next attempt is then decided for all of them.
pub fn refused(ctx: &Context, node: &str, seen: &Seen, change: &Change, error: &Error, now: Instant) -> bool {
    let sites = sites(seen, change);
    let matter = error.matter(&sites);
    matter.is_some_and(|matter| lock(&ctx.refusals).refused(matter, (node, &sites), error, now))
}

/// The same urgency, but it ends when others are refused the same: a thousand calls may wait for their turn
/// at Azure when the first of them is refused.
pub fn while_allowed(ctx: &Context, node: &str, seen: &Seen, change: &Change, urgency: Urgency) -> Urgency {
    let held = refusals::until_held(ctx.refusals.clone(), sites(seen, change), node.to_owned());
    urgency.at_most_until(held)
}

/// The node's pool was edited: every refusal around its NICs is tried again. All nodes of the pool report the
/// edit, and it counts once.
pub fn pool_edited(ctx: &Context, spec: &NodeIPAllocationSpec, cause: u64, now: Instant) {
    let of_nics = spec.interfaces.iter().flat_map(|nic| [&nic.id, &nic.subnet.id]);
    for site in of_nics.chain(&spec.route_table_id) {
        ctx.wake(&lock(&ctx.refusals).try_now(&[site.to_ascii_lowercase()], cause, now));
    }
}

/// The resources that a write concerns, as refusals have them.
fn sites(seen: &Seen, change: &Change) -> Vec<String> {
    seen.nic.as_ref().map(|nic| seen.backend.sites(nic, change)).unwrap_or_default()
}
