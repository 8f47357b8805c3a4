//! A node's part in a refusal that concerns all of a scope: it writes nothing while others are known to be
//! refused the same, unless it is its turn to try on behalf of all.

use std::collections::BTreeMap;
use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::allocation::{NodeIPAllocation, NodeIPAllocationSpec};

use super::blame::Part;
use super::observe::Seen;
use super::setback::{Setback, Stage};
use crate::azure::{Error, Urgency, VmId};
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
    let sites = sites(seen, &plan.change);
    let mut refusals = lock(&ctx.refusals.writes);
    let Some((matter, error)) = refusals.holds(&sites, &node, now) else { return plan };
    // What the node reports stays as long as it stands, though more may refuse its writes.
    let reported = setback.as_ref().filter(|known| known.stage != Stage::Find);
    let reported = reported.and_then(|known| known.matter.as_ref());
    if !reported.is_some_and(|reported| refusals.stands(reported, &sites)) {
        let resource = seen.nic.as_ref().map(|nic| nic.id.as_str()).unwrap_or_default();
        let own = Setback::of_others(setback.as_ref(), Stage::Write, &error.about(resource), now);
        *setback = Some(own.of(matter).without_wait(now));
    }
    drop(refusals);
    seen.observed.may_write = false;
    planner::plan(&seen.observed)
}

/// Leaves out security groups that all are refused now. One node tries on behalf of all; when it succeeds,
/// the others are woken.
pub fn limit_groups(ctx: &Context, seen: &mut Seen, left_out: &mut BTreeMap<Part, Setback>, now: Instant) {
    if let Some(error) = ctx.azure.refusal_of(&seen.grouping.lacks) {
        let resource = seen.nic.as_ref().map(|nic| nic.id.as_str()).unwrap_or_default();
        let last = left_out.get(&Part::Groups);
        let own = Setback::of_others(last, Stage::Write, &error.about(resource), now);
        left_out.insert(Part::Groups, own.shared());
        seen.observed.may_regroup = false;
    } else if left_out.get(&Part::Groups).is_some_and(|own| own.is_shared) {
        left_out.remove(&Part::Groups);
        seen.observed.may_regroup = true;
    }
}

/// The node writes nothing now, or can't.
pub fn stand_back(ctx: &Context, node: &str, now: Instant) {
    ctx.wake(&lock(&ctx.refusals.writes).left(node, now));
}

/// Records that a write was carried out: the resources that it wrote are refused to no node.
pub fn succeeded(ctx: &Context, seen: &Seen, change: &Change, now: Instant) {
    ctx.wake(&lock(&ctx.refusals.writes).passed(&sites(seen, change), now));
}

/// Records the meaning of a write's refusal for others. Returns its meaning for the node: if it holds up all
/// of a scope, the time of the next attempt is decided for all of them.
pub fn refused(
    ctx: &Context,
    node: &str,
    (seen, change): (&Seen, &Change),
    (error, own): (&Error, Setback),
    now: Instant,
) -> Setback {
    let failed = lock(&ctx.refusals.writes).failed(error, (node, &sites(seen, change)), now);
    match failed {
        None => own,
        Some((matter, true)) => own.of(matter).without_wait(now),
        Some((matter, false)) => own.of(matter),
    }
}

/// The same urgency, but it ends when others are refused the same: a thousand calls may wait for their turn
/// at Azure when the first of them is refused.
pub fn while_allowed(ctx: &Context, node: &str, seen: &Seen, change: &Change, urgency: Urgency) -> Urgency {
    let held = refusals::until_held(ctx.refusals.writes.clone(), sites(seen, change), node.to_owned());
    urgency.at_most_until(held)
}

/// The node's pool was edited: every refusal around its NICs, and around its VM if that is known, is tried
/// again. All nodes of the pool report the edit, and it counts once.
pub fn pool_edited(ctx: &Context, spec: &NodeIPAllocationSpec, vm: Option<&VmId>, cause: u64, now: Instant) {
    ctx.azure.try_refused(cause);
    let of_nics = spec.interfaces.iter().flat_map(|nic| [nic.id.as_str(), &nic.subnet.id]);
    let of_vm = vm.map(|vm| vm.resource().as_str());
    for site in of_nics.chain(spec.route_table_id.as_deref()).chain(of_vm) {
        let site = [site.to_ascii_lowercase()];
        for refusals in ctx.refusals.all() {
            ctx.wake(&lock(refusals).try_now(&site, cause, now));
        }
    }
}

/// The resources that a write concerns, as refusals have them.
fn sites(seen: &Seen, change: &Change) -> Vec<String> {
    seen.nic.as_ref().map(|nic| seen.backend.sites(nic, change)).unwrap_or_default()
}
