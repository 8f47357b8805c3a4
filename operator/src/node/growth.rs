//! A node's part in a shortage of its subnet: it asks for its turn before it grows, and records what came of
//! its write.

use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::allocation::{NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_crds::pool::BLOCK;

use super::observe::Seen;
use super::setback::{Setback, Stage};
use crate::azure::Error;
use crate::context::Context;
use crate::lock::lock;
use crate::planner::{self, Plan, addresses};
use crate::shortage::{Said, Source, Turn, Want};

/// The plan as the subnet allows it now. Held back, the node says so, and `seen` tells when to look again by
/// itself.
pub fn limit(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    seen: &mut Seen,
    plan: Plan,
    (setback, recalled): (&mut Option<Setback>, &mut Option<Said>),
    now: Instant,
) -> Plan {
    let node = allocation.name_any();
    let source = source(seen).filter(|_| plan.change.reserve > 0);
    let Some(source) = source else {
        // One that waits for the end of a burst keeps its place.
        if !plan.grows || !seen.observed.may_write {
            ctx.wake(&lock(&ctx.shortages).content(&node));
        }
        return plan;
    };
    let (turn, woken, said) = {
        let mut shortages = lock(&ctx.shortages);
        if let Some(said) = recalled.take() {
            shortages.recall(&source, said, now);
        }
        let (turn, woken) = shortages.ask(&source, &node, want(seen, &plan), now);
        (turn, woken, shortages.said(&source).cloned())
    };
    ctx.wake(&woken);
    seen.observed.may_reserve = match turn {
        Turn::Free => return plan,
        Turn::Now(units) => units,
        Turn::Later { at } => {
            let Said { subnet, message } = said.unwrap_or_default();
            let resource = seen.nic.as_ref().map(|nic| nic.id.clone()).unwrap_or_default();
            let error = Error::SubnetFull { subnet, resource, message };
            *setback = Some(Setback::after(setback.as_ref(), Stage::Write, &error, now));
            seen.turn = at;
            0
        }
    };
    planner::plan(&seen.observed)
}

/// Records what a write that has ended means for the other nodes of the subnet.
pub fn record_write(ctx: &Context, node: &str, seen: &Seen, plan: &Plan, result: Result<(), &Error>) {
    let (Some(source), now) = (source(seen), Instant::now()) else { return };
    let asked = plan.change.reserve;
    match result {
        Ok(()) => {
            if asked > 0 {
                ctx.wake(&lock(&ctx.shortages).granted(&source, node, asked, now));
            }
            let released = seen.observed.held.iter().filter(|one| plan.change.release.contains(&one.name));
            freed(ctx, &source.subnet, released.map(|one| addresses(one, source.grain)));
        }
        Err(Error::SubnetFull { subnet, message, .. }) => {
            let said = Said { subnet: subnet.clone(), message: message.clone() };
            ctx.wake(&lock(&ctx.shortages).refused(&source, (node, want(seen, plan)), asked, said, now));
        }
        Err(_) if asked > 0 => ctx.wake(&lock(&ctx.shortages).missed(&source, node)),
        Err(_) => {}
    }
}

/// All that an object stands for has gone back, with its NIC or before it; its node asks for no more.
pub fn gone(ctx: &Context, allocation: &NodeIPAllocation) {
    ctx.wake(&lock(&ctx.shortages).content(&allocation.name_any()));
    if allocation.spec.route_table_id.is_some() {
        return;
    }
    for nic in &allocation.spec.interfaces {
        let sizes = nic.ip_configurations.iter().filter_map(|one| one.address.parse().ok());
        freed(ctx, &key(&nic.subnet.id), sizes.map(|range: ipnet::Ipv4Net| 1 << (32 - range.prefix_len())));
    }
}

/// The node's pool was edited: whatever its subnet had, it is asked again. All nodes of the pool say so, it
/// counts once.
pub fn pool_edited(ctx: &Context, spec: &NodeIPAllocationSpec, cause: u64, now: Instant) {
    for nic in &spec.interfaces {
        ctx.wake(&lock(&ctx.shortages).try_now(&key(&nic.subnet.id), Some(cause), now));
    }
}

/// Ranges of so many addresses each have gone back to a subnet.
fn freed(ctx: &Context, subnet: &str, sizes: impl Iterator<Item = u32>) {
    let (mut single, mut blocks) = (0, 0);
    for size in sizes {
        (single, blocks) = (single + size, blocks + u32::from(size >= BLOCK));
    }
    for (grain, count) in [(1, single), (BLOCK, blocks)] {
        if count > 0 {
            let source = Source { subnet: subnet.to_owned(), grain };
            ctx.wake(&lock(&ctx.shortages).released(&source, count));
        }
    }
}

fn source(seen: &Seen) -> Option<Source> {
    if !seen.backend.draws_on_subnet() {
        return None;
    }
    let subnet = key(&seen.nic.as_ref()?.subnet.id);
    Some(Source { subnet, grain: seen.observed.grain })
}

/// As [`Source`] has it.
pub fn key(subnet: &str) -> String {
    subnet.to_ascii_lowercase()
}

fn want(seen: &Seen, plan: &Plan) -> Want {
    Want {
        pods: seen.observed.demand.pods(),
        held: plan.kept,
        wanted: plan.wanted,
        units: plan.change.reserve,
    }
}
