//! Turns in a full subnet or network, and turns to try what is refused to many: given away, and ended in
//! time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{self, APPLICATION_SECURITY_GROUPS, ATTACHED};

use super::{growth, reads, scope, takeup};
use crate::context::Context;
use crate::lock::lock;

/// The node gives away every turn that others may be waiting for.
pub fn stand_back(ctx: &Context, node: &str) {
    write_nothing(ctx, node);
    reads::stand_back(ctx, node, Instant::now());
}

/// The node gives away its turns to write.
pub fn write_nothing(ctx: &Context, node: &str) {
    let now = Instant::now();
    growth::stand_back(ctx, node, now);
    scope::stand_back(ctx, node, now);
}

/// Ends turns and wakes the next nodes, for as long as the operator leads. Never ends.
pub async fn keep_time(ctx: Arc<Context>) {
    // A turn lasts half a minute, so a second more or less doesn't matter.
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let now = Instant::now();
        let woken = lock(&ctx.shortages).tick(now);
        ctx.wake(&woken);
        for refusals in ctx.refusals.all() {
            let woken = lock(refusals).tick(now);
            ctx.wake(&woken);
        }
        takeup::tick(&ctx);
        ctx.cluster.wake_for_lasting(&ctx.waker, now);
        wake_refused(&ctx);
        observe_scarcity(&ctx, now);
    }
}

/// What many were refused was carried out for one: the others try, too.
fn wake_refused(ctx: &Context) {
    if !ctx.azure.has_refusal_ended() {
        return;
    }
    let lacks = |node: &NodeIPAllocation| {
        let found =
            [ATTACHED, APPLICATION_SECURITY_GROUPS].map(|type_| condition::find(node.conditions(), type_));
        found.into_iter().flatten().any(|one| one.status == "False")
    };
    let is_gone = |node: &NodeIPAllocation| ctx.cluster.node(&node.name_any()).is_none();
    let all = ctx.cluster.allocations().state();
    let may_wait = all.iter().filter(|node| lacks(node) || is_gone(node));
    may_wait.for_each(|node| ctx.waker.allocation(&node.name_any()));
}

/// Nodes find their step at their next reconcile: woken all at once they would give back all at once, and
/// writes would be scarce again.
fn observe_scarcity(ctx: &Context, now: Instant) {
    if lock(&ctx.scarcity).take_in(&ctx.azure.accounts(), ctx.waits.scarce, now) {
        ctx.cluster.pools().state().iter().for_each(|pool| ctx.waker.pool(&pool.name_any()));
    }
}
