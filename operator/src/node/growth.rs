//! A node's part in a shortage of its subnet or virtual network: it asks for its turn before it grows, and
//! records the outcome of its write.

use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::allocation::{Interface, NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_crds::pool::BLOCK;

use super::observe::Seen;
use super::recalled::Recalled;
use super::setback::{Setback, Stage};
use crate::azure::{Error, ResourceId, Urgency};
use crate::context::Context;
use crate::lock::lock;
use crate::planner::{self, Change, Plan, addresses};
use crate::shortage::{self, Answer, Source, Turn, Want};

/// The plan as the subnet and its virtual network allow it now. A node that is held back reports so; it is
/// woken when it may ask.
pub fn limit(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    seen: &mut Seen,
    plan: Plan,
    (setback, recalled): (&mut Option<Setback>, &mut Option<Recalled>),
    now: Instant,
) -> Plan {
    let node = allocation.name_any();
    let sources = sources(seen).filter(|_| plan.change.reserve > 0);
    let Some(sources) = sources else {
        // A node that waits for the end of a burst keeps its place.
        let is_refused = setback.as_ref().is_some_and(|setback| setback.holds_growth(now));
        if !plan.grows || !seen.observed.may_write || is_refused {
            stand_back(ctx, &node, now);
        }
        return plan;
    };
    let (turn, woken) = {
        let mut shortages = lock(&ctx.shortages);
        if let Some(Recalled { is_network, answer }) = recalled.take() {
            let source = sources.iter().find(|one| is_of_network(one) == is_network);
            source.into_iter().for_each(|source| shortages.recall(source, answer.clone(), now));
        }
        shortages.ask(&sources, &node, want(seen, &plan), now)
    };
    ctx.wake(&woken);
    seen.observed.may_reserve = match turn {
        Turn::Free => return plan,
        Turn::Now(units) => units,
        Turn::Later(source, Answer { subnet, message }) => {
            let resource = seen.nic.as_ref().map(|nic| nic.id.clone()).unwrap_or_default();
            let error = match source {
                Source::Subnet { .. } => Error::SubnetFull { subnet, resource, message },
                Source::Network { .. } => Error::NetworkFull { resource, message },
            };
            *setback = Some(Setback::after(setback.as_ref(), Stage::Growth, &error, now));
            0
        }
    };
    planner::plan(&seen.observed)
}

/// How many batches make a step of the node. One while its subnet or network has run out, where coarse steps
/// would take what others lack, and for a range, which comes and goes whole.
pub fn coarseness(ctx: &Context, seen: &Seen) -> u32 {
    let has_enough = sources(seen).is_some_and(|sources| !lock(&ctx.shortages).has_any(&sources));
    let nic = seen.nic.as_ref().filter(|_| has_enough).and_then(|nic| nic.id.parse::<ResourceId>().ok());
    nic.map_or(1, |nic| lock(&ctx.scarcity).coarseness(nic.subscription()))
}

/// The same urgency for a write that was planned while there was room, until the subnet or its network has
/// run out: a thousand calls may wait for their turn at Azure when the first of them is refused. A node whose
/// turn it is in the subnet asks for no more than what is believed to be there.
pub fn while_room(ctx: &Context, node: &str, seen: &Seen, change: &Change, urgency: Urgency) -> Urgency {
    let Some(sources) = sources(seen).filter(|_| change.reserve > 0) else { return urgency };
    let shortages = lock(&ctx.shortages);
    let free = sources.into_iter().filter(|source| !shortages.is_turn_of(source, node)).collect();
    drop(shortages);
    urgency.at_most_until(shortage::until_short(ctx.shortages.clone(), free))
}

/// The node asks for nothing now, or can't.
pub fn stand_back(ctx: &Context, node: &str, now: Instant) {
    ctx.wake(&lock(&ctx.shortages).withdraw(node, now));
}

/// Records the meaning of a write that has ended for the other nodes of the subnet and of its network. A
/// success comes with the part of the change that has had no effect.
pub fn record_write(ctx: &Context, node: &str, seen: &Seen, plan: &Plan, result: Result<&Change, &Error>) {
    let (Some(sources), now) = (sources(seen), Instant::now()) else { return };
    let asked = plan.change.reserve;
    let full = match result {
        Err(Error::SubnetFull { subnet, message, .. }) => {
            Some((false, Answer { subnet: subnet.clone(), message: message.clone() }))
        }
        Err(Error::NetworkFull { message, .. }) => {
            Some((true, Answer { subnet: String::new(), message: message.clone() }))
        }
        Ok(_) | Err(_) => None,
    };
    let brought = result.map_or(0, |lacks| asked.saturating_sub(lacks.reserve));
    for source in &sources {
        let mut shortages = lock(&ctx.shortages);
        let woken = match (result, &full) {
            (Ok(_), _) if brought > 0 => shortages.granted(source, node, brought, now),
            // One that asked for certain addresses shows nothing of the others.
            (Err(_), Some((is_network, answer))) if asked > 0 && *is_network == is_of_network(source) => {
                shortages.refused(source, (node, want(seen, plan)), asked, answer.clone(), now)
            }
            (_, _) if asked > 0 => shortages.missed(source, node, now),
            _ => continue,
        };
        drop(shortages);
        ctx.wake(&woken);
    }
    if let (Ok(lacks), Some(nic)) = (result, &seen.nic) {
        let is_gone = |name: &String| plan.change.release.contains(name) && !lacks.release.contains(name);
        let released = seen.observed.held.iter().filter(|one| is_gone(&one.name));
        freed(ctx, &key(&nic.subnet.id), released.map(|one| addresses(one, seen.observed.grain)), now);
    }
}

/// All that an object stands for has gone back, with its NIC or before it; its node asks for no more.
pub fn gone(ctx: &Context, allocation: &NodeIPAllocation) {
    let now = Instant::now();
    stand_back(ctx, &allocation.name_any(), now);
    if allocation.spec.route_table_id.is_some() {
        return;
    }
    allocation.spec.recorded_interfaces().for_each(|nic| emptied(ctx, nic, now));
}

/// All that is recorded of a NIC that a node has left has gone back.
pub fn left_emptied(ctx: &Context, allocation: &NodeIPAllocation, id: &str) {
    let spec = &allocation.spec;
    if let (Some(nic), None) = (spec.left(id), &spec.route_table_id) {
        emptied(ctx, nic, Instant::now());
    }
}

/// All that this NIC holds by its record has gone back.
fn emptied(ctx: &Context, nic: &Interface, now: Instant) {
    let sizes = nic.ip_configurations.iter().filter_map(|one| one.address.parse().ok());
    let sizes = sizes.map(|range: ipnet::Ipv4Net| 1 << (32 - range.prefix_len()));
    freed(ctx, &key(&nic.subnet.id), sizes, now);
}

/// The node's pool was edited: its subnet is asked again, whatever it had. All nodes of the pool report the
/// edit, and it counts once.
pub fn pool_edited(ctx: &Context, spec: &NodeIPAllocationSpec, cause: u64, now: Instant) {
    for nic in &spec.interfaces {
        ctx.wake(&lock(&ctx.shortages).try_now(&key(&nic.subnet.id), Some(cause), now));
    }
}

/// ipConfigurations of so many addresses each have gone back to a subnet.
fn freed(ctx: &Context, subnet: &str, sizes: impl Iterator<Item = u32>, now: Instant) {
    let (mut single, mut blocks, mut all) = (0, 0, 0);
    for size in sizes {
        (single, blocks, all) = (single + size, blocks + u32::from(size >= BLOCK), all + 1);
    }
    let of_subnet = |grain| Source::Subnet { id: subnet.to_owned(), grain };
    for (source, count) in [(of_subnet(1), single), (of_subnet(BLOCK), blocks), (network(subnet), all)] {
        if count > 0 {
            ctx.wake(&lock(&ctx.shortages).released(&source, count, now));
        }
    }
}

/// The sources that a node's growth draws on, the widest first.
fn sources(seen: &Seen) -> Option<[Source; 2]> {
    if !seen.backend.draws_on_subnet() {
        return None;
    }
    let id = key(&seen.nic.as_ref()?.subnet.id);
    Some([network(&id), Source::Subnet { id, grain: seen.observed.grain }])
}

/// The virtual network of a subnet.
fn network(subnet: &str) -> Source {
    let id = subnet.split_once("/subnets/").map_or(subnet, |(network, _)| network);
    Source::Network { id: id.to_owned() }
}

fn is_of_network(source: &Source) -> bool {
    matches!(source, Source::Network { .. })
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
        grain: seen.observed.grain,
    }
}
