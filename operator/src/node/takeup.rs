//! A node's part in the rollout of its pool's edit: it asks for a place before it takes the edit up, and goes
//! by its object's record until it has one.

use std::sync::Arc;

use kube::ResourceExt;
use vnetpool_crds::condition::{self, READY, UPDATING};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use super::pause;
use super::policy::{self, Policy};
use crate::context::Context;
use crate::lock::lock;
use crate::planner::Demand;
use crate::rollout::{self, Asks};

/// A node's place in the rollout of its pool's edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has nothing to take up.
    Unneeded,
    /// It goes by the edit that it has taken up before, and is woken when it may go on.
    Awaited,
    Given,
}

/// The policy as the rollout allows it now, and the node's place in that.
pub fn limit(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    decided: Policy,
    demand: &Demand,
    is_paused: bool,
) -> (Policy, Place) {
    let (node, conditions) = (allocation.name_any(), allocation.conditions());
    // A dry run would never settle, and is there to show what an edit would do.
    if ctx.azure.is_dry_run() {
        return (decided, Place::Unneeded);
    }
    let is_updating = condition::is_true(conditions, UPDATING);
    let Some(pool) = &decided.pool else {
        leave(ctx, &node);
        return (decided, Place::Unneeded);
    };
    let (name, follows) = (pool.name_any(), policy::follows(&allocation.spec, pool));
    let mut rollouts = lock(&ctx.rollouts);
    if follows && !is_updating && !rollouts.has_place(&name, &node) {
        rollouts.left(&node);
        return (decided, Place::Unneeded);
    }
    let asks = Asks {
        is_updating,
        is_needy: policy::is_needy(&allocation.spec, pool, demand),
        has_waiting_pods: demand.pods() > allocation.spec.addresses(),
        is_ready: condition::is_true(conditions, READY),
    };
    let place = match is_paused {
        // It goes on with the edit that it has begun afterwards, and keeps its place for that.
        true if is_updating => Place::Given,
        // A node that hasn't begun asks again, lest a place is given that no node uses.
        true => {
            rollouts.left(&node);
            Place::Awaited
        }
        false if rollouts.ask(&name, &node, asks) => return (decided, Place::Given),
        false => Place::Awaited,
    };
    drop(rollouts);
    let last = ctx.cluster.pool(&allocation.spec.pool).filter(|last| last.spec.mode == allocation.spec.mode);
    let held = policy::held(&allocation.spec, last.as_deref());
    (Policy { pool: Some(Arc::new(held)), ..decided }, place)
}

/// The node has settled, needs no place, or is gone.
pub fn leave(ctx: &Context, node: &str) {
    lock(&ctx.rollouts).left(node);
}

/// The node can't act, and asks again when it can. What it has taken up by then keeps its place, as of any
/// node that can't settle.
pub fn stand_back(ctx: &Context, allocation: &NodeIPAllocation) {
    if !condition::is_true(allocation.conditions(), UPDATING) {
        leave(ctx, &allocation.name_any());
    }
}

/// Wakes the next nodes.
pub fn tick(ctx: &Context) {
    let places = |name: &str| {
        let pool = ctx.cluster.pool(name).filter(|pool| pause::word(&**pool).is_none());
        pool.map_or(0, |pool| rollout::places(&pool, nodes_of(&pool)))
    };
    let can_act =
        |node: &str| ctx.cluster.allocation(node).is_some() && ctx.cluster.unreadable(node).is_none();
    let woken = lock(&ctx.rollouts).tick(places, can_act);
    ctx.wake(&woken);
}

/// As the pool's own status has it: counting nodes for each event would cost too much.
fn nodes_of(pool: &NodeIPPool) -> u32 {
    pool.status.as_ref().map_or(0, |status| status.nodes)
}
