//! Mode Route: a node's reservation is one route of a table, and its addresses are that route's range.
//!
//! The range is first written into the table and then into `spec`. From then on `spec` is the record of the
//! node's range: its pods use the range whatever becomes of the route. So a removed route is put back, under
//! the same name and with the same range, and no other node gets that range meanwhile.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use kube::ResourceExt;
use tokio::time::sleep;
use tracing::{info, warn};
use vnetpool_crds::allocation::NodeIPAllocation;
use vnetpool_crds::pool::{PodRoute, Sizing};
use vnetpool_crds::{NodeIPAllocationSpec, NodeIPPool};

use super::terms::{Holding, NicView, Outcome, Task};
use crate::azure::{
    self, Azure, Claim, IpConfiguration, Priority, ProvisioningState, ResourceId, RouteChange, RouteTable,
    Urgency, route_name,
};
use crate::context::Context;
use crate::events;
use crate::planner::Change;
use crate::rounds::Rounds;

/// Where a node's addresses are, if they aren't on its NIC.
#[derive(Clone, Debug)]
pub struct Routed {
    pub table: ResourceId,
    /// Where the node's range is from; its range itself once its pool is another one.
    pub within: Option<Ipv4Net>,
    /// The request to the table; `None` while the node is to have no route, or no more.
    pub claim: Option<Claim>,
}

/// Observes the node's route: in Azure's table if the NIC was read, otherwise as `spec` mirrors it and
/// [`watch`] has seen it. `None`: the node's addresses are on its NIC, and still are if its pool is of mode
/// Route by now.
pub async fn observe(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    pool: Option<&NodeIPPool>,
    nic: &NicView<'_>,
    urgency: &Urgency,
) -> Result<Option<(Routed, Holding)>, azure::Error> {
    let primary = nic.interface.primary_address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let (spec, node) = (&allocation.spec, allocation.name_any());
    let wanted = pool.and_then(|pool| pool.spec.route.as_ref());
    let table: ResourceId = match (&spec.route_table_id, wanted) {
        (Some(table), _) => table.parse()?,
        (None, Some(route)) if nic.held.is_empty() => route.route_table_id.parse()?,
        (None, _) => return Ok(None),
    };
    let published = published(spec).filter(|(name, _)| !is_relinquished(allocation, name));
    let wanted = wanted.filter(|route| route.route_table_id.parse().is_ok_and(|id: ResourceId| id == table));
    let fits = |(_, range): &(String, Ipv4Net)| {
        wanted
            .and_then(cidr)
            .is_some_and(|(within, length)| within.contains(range) && range.prefix_len() == length)
    };
    let wanted = wanted.filter(|_| published.as_ref().is_none_or(fits));
    let within =
        wanted.and_then(cidr).map(|(within, _)| within).or(published.as_ref().map(|(_, range)| *range));

    let known = match nic.is_read {
        true => Some(ctx.azure.route_table(&table, urgency).await?),
        false => ctx.azure.known_route_table(&table),
    };
    let own = known.as_ref().and_then(|known| match &published {
        Some((name, _)) => known.routes.iter().find(|route| route.name == *name).cloned(),
        None => known.of(&node, within, primary).cloned(),
    });
    let (name, range, state) = match (&own, &published) {
        (Some(route), Some((name, range))) => (name.clone(), Some(*range), route.state.clone()),
        (Some(route), None) => (route.name.clone(), route.range, route.state.clone()),
        // Removed from the table, or not read: the node has it all the same.
        (None, Some((name, range))) => (name.clone(), Some(*range), ProvisioningState::Succeeded),
        (None, None) if wanted.is_none() => {
            // The node has no range of an earlier pool left.
            return Ok(None);
        }
        (None, None) => (String::new(), None, ProvisioningState::Succeeded),
    };
    let held = (!name.is_empty()).then(|| IpConfiguration {
        name: name.clone(),
        address: range,
        state,
        attached: Default::default(),
    });
    let is_right = own.is_some_and(|own| own.range == range && own.next_hop == Some(primary));
    let holding = Holding {
        route_is_wrong: known.is_some() && held.is_some() && wanted.is_some() && !is_right,
        held: held.into_iter().collect(),
        slots: 1,
    };
    let claim = wanted.and_then(cidr).map(|(within, length)| Claim {
        name: route_name(&node, uuid::Uuid::new_v4().as_fields().0),
        node,
        held: range.map(|range| (name, range)),
        within,
        length,
        next_hop: primary,
        avoid: BTreeSet::new(),
    });
    Ok(Some((Routed { table, within, claim }, holding)))
}

fn is_relinquished(allocation: &NodeIPAllocation, name: &String) -> bool {
    allocation.status.iter().any(|status| status.relinquished.contains(name))
}

/// A node always has the whole of its range.
pub fn sizing(pool: &NodeIPPool) -> Sizing {
    let grain = pool.spec.grain();
    Sizing {
        minimum: grain,
        warm: 0,
        maximum: grain,
        batch: 1,
        release_after: pool.spec.sizing.release_after,
    }
}

/// Carries a change out on the NIC's forwarding and in the route table.
///
/// # Errors
/// Azure's. The table is then to be read again.
pub async fn apply(ctx: &Context, task: &Task<'_>, routed: &Routed) -> Result<Outcome, azure::Error> {
    let (mut was_sent, mut lacks) = (false, Change::default());
    let Task { nic, observed, change: planned, about, urgency, .. } = task;
    let Change { forward, leave, .. } = planned;
    if *forward || !leave.is_empty() {
        let id: ResourceId = nic.parse()?;
        let change = azure::Change { forward: *forward, leave: leave.clone(), ..Default::default() };
        let written = ctx.azure.update(&id, &change, urgency).await?;
        was_sent |= written.was_sent;
        lacks.forward = *forward && !written.forwards;
        let (stay, left) = leave.iter().cloned().partition(|group| written.groups.contains(group));
        lacks.leave = stay;
        if *forward && !lacks.forward {
            info!(nic = %id, "IP forwarding turned on");
            ctx.events.report(about, events::forwarding(id.name()));
        }
        let left: Vec<ResourceId> = left;
        if !left.is_empty() {
            ctx.events.report(about, events::regrouped(&[], &left, id.name()));
        }
    }
    let (table, grain) = (&routed.table, observed.grain);
    if !planned.release.is_empty() {
        let release = RouteChange::Release { names: planned.release.clone() };
        let written = ctx.azure.change_routes(table, release, urgency).await?;
        was_sent |= written.was_sent;
        let stays = |name: &&String| written.routes.iter().any(|route| route.name == **name);
        lacks.release = planned.release.iter().filter(stays).cloned().collect();
        if lacks.release.is_empty() {
            ctx.events.report(about, events::released(grain, 0, table.name()));
        }
    }
    if let Some(claim) = routed.claim.as_ref().filter(|_| planned.reserve > 0 || planned.mend) {
        let claim = Claim {
            avoid: used_by_others(ctx, &claim.node),
            held: claim.held.clone().filter(|(name, _)| !planned.release.contains(name)),
            ..claim.clone()
        };
        let written = ctx.azure.change_routes(table, RouteChange::Claim(claim.clone()), urgency).await?;
        was_sent |= written.was_sent;
        if !is_met(&claim, &written) {
            (lacks.reserve, lacks.mend) = (planned.reserve, planned.mend);
        } else if planned.mend {
            ctx.events.report(about, events::mended(table.name()));
        } else {
            ctx.events.report(about, events::reserved(grain, grain, table.name()));
        }
    }
    Ok(Outcome { was_sent, is_known: false, lacks })
}

/// Whether a table shows the route that was claimed.
fn is_met(claim: &Claim, table: &RouteTable) -> bool {
    let own = match &claim.held {
        Some((name, range)) => {
            table.routes.iter().find(|route| route.name == *name && route.range == Some(*range))
        }
        None => table.of(&claim.node, Some(claim.within), claim.next_hop),
    };
    own.is_some_and(|route| route.next_hop == Some(claim.next_hop))
}

/// Removes the routes of a node that is gone from the table. Returns whether that took a write.
///
/// # Errors
/// Azure's. That it doesn't find the table proves nothing by itself, nor does an answer that shows a route.
pub async fn leave(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    table: &str,
    urgency: Urgency,
) -> Result<bool, azure::Error> {
    let spec = &allocation.spec;
    let next_hop = spec.serving().and_then(|nic| nic.primary_address.parse().ok());
    let change = RouteChange::Leave {
        node: allocation.name_any(),
        names: spec.ip_configurations().map(|one| one.name.clone()).collect(),
        next_hop: next_hop.unwrap_or(Ipv4Addr::UNSPECIFIED),
    };
    let written = ctx.azure.change_routes(&table.parse()?, change.clone(), urgency).await?;
    if written.routes.iter().any(|route| change.removes(route)) {
        return Err(azure::Error::WithoutEffect { resource: table.to_owned() });
    }
    Ok(written.was_sent)
}

/// How often each table is read, a little less often than the known state of it expires.
const CHECK_EVERY: Duration = Duration::from_secs(61);

/// Reads the tables in use, at once and then every minute, one read for all nodes of each, and wakes those
/// nodes whose route isn't as `spec` has it, because it may have been removed. A table that has to wait, for
/// a write or for Azure's limits, holds up no other. Never ends.
pub async fn watch(azure: &Azure, allocations: impl Fn() -> Vec<Arc<NodeIPAllocation>>, wake: impl Fn(&str)) {
    let (allocations, wake) = (&allocations, &wake);
    let mut checks = Rounds::new();
    loop {
        let tables: HashSet<ResourceId> = allocations().iter().filter_map(|node| table_of(node)).collect();
        for table in tables {
            checks.begin(table, |table| async move {
                check(azure, &table, allocations, wake).await;
                table
            });
        }
        let mut next = pin!(sleep(CHECK_EVERY));
        loop {
            tokio::select! {
                () = checks.ended() => {}
                () = &mut next => break,
            }
        }
    }
}

async fn check(
    azure: &Azure,
    table: &ResourceId,
    allocations: impl Fn() -> Vec<Arc<NodeIPAllocation>>,
    wake: impl Fn(&str),
) {
    // As urgent as mending a route is: pods that run are cut off without it.
    match azure.route_table(table, Priority::WaitingPods).await {
        Ok(known) => {
            let nodes = allocations();
            let nodes = nodes.iter().filter(|node| table_of(node).as_ref() == Some(table));
            let wrong = nodes.filter(|node| !is_as_published(&known, &node.spec));
            wrong.for_each(|node| wake(&node.name_any()));
        }
        // A node that needs the table fails on it, and reports that.
        Err(error) => {
            warn!(route_table = %table, reason = %error.reason(), %error, "route table not read");
            sleep(error.pause()).await;
        }
    }
}

fn table_of(node: &NodeIPAllocation) -> Option<ResourceId> {
    node.spec.route_table_id.as_ref()?.parse().ok()
}

fn is_as_published(table: &RouteTable, spec: &NodeIPAllocationSpec) -> bool {
    let Some((name, range)) = published(spec) else { return true };
    let next_hop = spec.serving().and_then(|nic| nic.primary_address.parse().ok());
    let own = table.routes.iter().find(|route| route.name == name);
    own.is_some_and(|route| route.range == Some(range) && route.next_hop == next_hop)
}

/// Ranges that pods of other nodes use, though their routes may be gone.
fn used_by_others(ctx: &Context, node: &str) -> BTreeSet<Ipv4Net> {
    let others = ctx.cluster.allocations().state();
    let others = others.iter().filter(|other| other.name_any() != node);
    let ranges = others.filter_map(|other| published(&other.spec)).map(|(_, range)| range);
    ranges.chain(ctx.cluster.unreadable_ranges(node)).collect()
}

/// The route as `spec` has it: its name and range.
fn published(spec: &NodeIPAllocationSpec) -> Option<(String, Ipv4Net)> {
    spec.route_table_id.as_ref()?;
    let route = spec.ip_configurations().next()?;
    Some((route.name.clone(), route.address.parse().ok()?))
}

/// The pod CIDR and the length of a node's part of it. The API server has checked them.
fn cidr(route: &PodRoute) -> Option<(Ipv4Net, u8)> {
    Some((route.pod_cidr.parse().ok()?, u8::try_from(route.node_prefix_length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use vnetpool_azure_sim::{Config, Sim};

    const TABLES: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/\
        Microsoft.Network/routeTables";

    /// A round that hasn't ended is begun no second time.
    #[tokio::test]
    async fn a_table_is_not_read_before_the_pause_that_azure_asks_for() {
        let sim = Sim::start(Config::default()).await.unwrap();
        let body = json!({"error": {"code": "ServerBusy", "message": "later"}});
        let busy = json!({"kind": "status", "status": 503, "headers": {"retry-after": "3"}, "body": body});
        let fault = json!({"path_contains": "routeTables/busy", "effect": busy});
        sim.order_fault(serde_json::from_value(fault).unwrap());
        let azure = Context::sample_at(Some(sim.arm_url().parse().unwrap())).azure;
        let begun = std::time::Instant::now();
        check(&azure, &table_of(&in_table("busy")).unwrap(), Vec::new, |_| {}).await;
        assert_eq!(sim.faults()[0].hits, 1);
        assert!(begun.elapsed().as_secs() >= 3, "{:?}", begun.elapsed());
    }

    fn in_table(name: &str) -> Arc<NodeIPAllocation> {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "routeTableID": format!("{TABLES}/{name}")});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    #[tokio::test]
    async fn a_table_that_gets_no_answer_keeps_no_other_from_being_read_each_minute() {
        let sim = Sim::start(Config::default()).await.unwrap();
        let hold = json!({ "path_contains": "routeTables/held", "effect": { "kind": "hold_before" } });
        sim.order_fault(serde_json::from_value(hold).unwrap());
        let azure = Context::sample_at(Some(sim.arm_url().parse().unwrap())).azure;
        // A minute that passes while an answer is on its way would be that request's time-out.
        let answered = Arc::new(AtomicUsize::new(0));
        let answers = answered.clone();
        azure.on_request(move |one| {
            answers.fetch_add(usize::from(one.status.is_some()), Ordering::Relaxed);
        });
        tokio::spawn(async move { watch(&azure, || vec![in_table("held"), in_table("read")], |_| {}).await });
        let begun = std::time::Instant::now();
        for count in 1..=2 {
            let asked = || sim.log().iter().filter(|one| one.path.ends_with("/read")).count();
            while sim.faults()[0].hits < 1 || asked() < count || answered.load(Ordering::Relaxed) < count {
                assert!(begun.elapsed().as_secs() < 20, "asked {} times, not {count}", asked());
                sleep(Duration::from_millis(5)).await;
            }
            // The round's own pause, of no length, ends by an earlier timer than this.
            sleep(Duration::from_millis(5)).await;
            tokio::time::pause();
            tokio::time::advance(CHECK_EVERY).await;
            tokio::time::resume();
        }
    }
}
