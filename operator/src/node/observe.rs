//! All reads of a reconcile: the stores and, where it must be, Azure.

pub mod adopt;
mod drift;
pub mod groups;
pub mod hint;
mod interfaces;
pub mod obstacle;
pub mod recheck;
mod surroundings;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::allocation::{Interface, NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_crds::pool::Mode;
use vnetpool_crds::{NodeIPPool, condition};

use super::backend::route_table::{self, Routed};
use super::growth;
use super::memory::Memory;
use super::need::{self, Need};
use crate::azure::{self, Nic, Priority, ResourceId, VmId};
use crate::cluster::kept;
use crate::context::Context;
use crate::planner::Observed;
use adopt::Adoption;
use groups::Grouping;
use interfaces::Occasion;
use obstacle::{Obstacle, obstacle};

/// When to look again at a NIC that somebody, perhaps an operator that has ended, is writing.
pub const UNSETTLED: Duration = Duration::from_secs(5);

/// What a reconcile knows of its node.
#[derive(Debug)]
pub struct Seen {
    pub pool: Option<Arc<NodeIPPool>>,
    /// The NIC, its ipConfigurations left out.
    pub nic: Option<Interface>,
    /// The VM's primary NIC, if that is another one.
    pub primary_nic: Option<Interface>,
    /// How many ipConfigurations the VM has on other NICs.
    pub elsewhere: u32,
    /// Why the node is to hold no addresses, though there was no error.
    pub obstacle: Option<Obstacle>,
    pub snat_exclusions: Vec<String>,
    /// Where the addresses are, if not on the NIC.
    pub routed: Option<Routed>,
    pub observed: Observed,
    /// This process has read the NIC; otherwise all is as `spec` mirrors it.
    pub is_read: bool,
    /// A write to the NIC is under way that isn't ours.
    pub is_unsettled: bool,
    /// When to look again because the subnet holds growth back; `None` if it doesn't, or the node will be called.
    pub turn: Option<Instant>,
    /// What is to become of others' ipConfigurations, if the pool cares.
    pub adoption: Option<Adoption>,
    /// What is to become of the NIC's application security groups.
    pub grouping: Grouping,
    /// NICs in `spec` that aren't the node's any more.
    pub left: Vec<ResourceId>,
}

/// Looks at everything there is to know. `None`: Azure must be asked, but an error holds that back for now.
pub async fn observe(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    need: &Need,
    memory: &mut Memory,
    now: Instant,
) -> Result<Option<Seen>, azure::Error> {
    let pool = ctx.cluster.pool_of(node);
    let spec = &allocation.spec;
    if let Some(edit) = memory.served_by(pool.as_deref(), now) {
        growth::edited(ctx, spec, edit, now);
    }
    let mut observed = from_cluster(ctx, allocation, node, memory, now);
    let vm = match VmId::from_provider_id(kept::provider_id(node)) {
        Ok(vm) => vm,
        Err(error) => {
            let obstacle = Obstacle::Interface { reason: error.reason(), message: error.to_string() };
            return Ok(Some(Seen::without_nic(pool, obstacle, observed)));
        }
    };
    if pool.is_none() && spec.interfaces.is_empty() {
        return Ok(Some(Seen::without_nic(None, Obstacle::NoPool, observed)));
    }

    let Some(occasion) = occasion(ctx, allocation, node, memory, now) else { return Ok(None) };
    let urgency = match occasion.is_hinted {
        // Pods may have these addresses, and nobody reaches them.
        true => Priority::WaitingPods.into(),
        false => need.of_read(allocation, &observed.demand, occasion.is_new),
    };
    let wanted = interfaces::Wanted { pool: pool.as_deref(), allocation, occasion };
    let found = interfaces::find(ctx, &vm, &wanted, memory, &urgency).await?;
    let (nic, interface) = (found.nic, found.serving);
    observed.held = found.held;
    observed.slots = found.slots;
    observed.may_write = wanted.occasion.may_ask && !found.is_unsettled;

    let primary = interface.primary_address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let is_read = nic.is_some();
    let routed =
        route_table::observe(ctx, allocation, pool.as_deref(), primary, is_read, &mut observed, &urgency)
            .await?;
    let network = surroundings::around(ctx, spec, &interface.subnet).await?;
    let network = network.as_deref();
    let obstacle = obstacle(ctx, pool.as_deref(), &interface, node, routed.as_ref(), network)?;
    size(&mut observed, pool.as_deref(), nic.as_deref(), obstacle.as_ref());

    let mut adoption = None;
    if let (Some(pool), Some(nic), None) = (&pool, &nic, &obstacle) {
        let bound = ctx.cluster.bound_pods(&node.name_any());
        adoption = adopt::adoption(pool.spec.adopt, &bound, allocation, kept::boot_id(node), nic);
        observed.adopt = adoption.iter().flat_map(|adoption| adoption.ready.clone()).collect();
    }
    if let Some(nic) = nic.as_deref().filter(|_| routed.is_none()) {
        observed.lost = drift::lost(allocation, kept::boot_id(node), nic, observed.grain, &memory.taken);
    }
    let grouping = groups::decide(&groups::Facts {
        pool: pool.as_deref().filter(|_| obstacle.is_none()),
        allocation,
        nic: nic.as_deref(),
        is_shared: !interface.secondary,
        is_dry_run: ctx.azure.is_dry_run(),
    });
    memory.grouping = memory.grouping.take().filter(|_| !grouping.lacks.is_empty());
    if memory.grouping.as_ref().is_none_or(|refused| !refused.holds(now)) {
        observed.join.clone_from(&grouping.lacks);
    }
    observed.leave.clone_from(&grouping.leave);

    let snat_exclusions = network.map_or_else(
        || spec.snat_exclusions.clone(),
        |network| surroundings::exclusions(network, pool.as_deref(), routed.as_ref()),
    );
    let subnet = surroundings::subnet(network, spec, &interface.subnet);
    let groups = grouping.ours.iter().map(ToString::to_string).collect();
    Ok(Some(Seen {
        nic: Some(Interface { subnet, application_security_groups: groups, ..interface }),
        primary_nic: match found.primary {
            Some(nic) => Some(beside(ctx, spec, nic).await?),
            None => None,
        },
        elsewhere: found.elsewhere,
        left: found.left,
        is_unsettled: found.is_unsettled,
        is_read,
        pool,
        routed,
        obstacle,
        snat_exclusions,
        observed,
        adoption,
        grouping,
        turn: None,
    }))
}

/// What may be asked of Azure now, and what must be. `None`: the NIC must be read, and an error holds that back.
fn occasion(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    memory: &mut Memory,
    now: Instant,
) -> Option<Occasion> {
    let spec = &allocation.spec;
    let is_new = spec.interfaces.is_empty()
        || Some(&spec.node_uid) != node.metadata.uid.as_ref()
        || spec.boot_id != kept::boot_id(node);
    let may_ask = memory.setback.as_ref().is_none_or(|setback| !setback.holds(now));
    if (is_new || memory.must_read) && !may_ask {
        return None;
    }
    memory.hints.note(allocation);
    let is_hinted = memory.hints.due(allocation, now).is_some_and(|wait| wait.is_zero());
    let known = memory.nic_known.unwrap_or(ctx.started);
    let is_due = (is_hinted || recheck::is_due(&node.name_any(), known, now)) && may_ask;
    Some(Occasion { is_new, is_hinted, is_due, may_ask })
}

/// What the pool asks for, unless something is in the way.
fn size(observed: &mut Observed, pool: Option<&NodeIPPool>, nic: Option<&Nic>, obstacle: Option<&Obstacle>) {
    observed.route_is_wrong &= obstacle.is_none();
    // Without a pool nobody says how long to wait, and nobody wants the addresses. Nor does a pool they aren't from.
    let Some(pool) = pool else { return };
    if !obstacle.is_some_and(Obstacle::is_moving) {
        observed.release_after = pool.spec.sizing.release_after.into();
    }
    observed.grain = pool.spec.grain();
    if obstacle.is_none() {
        let is_routed = pool.spec.mode == Mode::Route;
        observed.forwarding_lacks = is_routed && nic.is_some_and(|nic| !nic.forwards);
        observed.sizing = Some(if is_routed { route_table::sizing(pool) } else { pool.spec.sizing.clone() });
    }
}

/// The primary NIC beside the one that serves, for `spec`.
async fn beside(
    ctx: &Context,
    spec: &NodeIPAllocationSpec,
    nic: Interface,
) -> Result<Interface, azure::Error> {
    let network = surroundings::around(ctx, spec, &nic.subnet).await?;
    let subnet = surroundings::subnet(network.as_deref(), spec, &nic.subnet);
    Ok(Interface { subnet, secondary: false, ip_configurations: vec![], ..nic })
}

impl Seen {
    fn without_nic(pool: Option<Arc<NodeIPPool>>, obstacle: Obstacle, observed: Observed) -> Seen {
        Seen {
            pool,
            nic: None,
            obstacle: Some(obstacle),
            snat_exclusions: vec![],
            routed: None,
            observed,
            is_read: false,
            is_unsettled: false,
            turn: None,
            primary_nic: None,
            elsewhere: 0,
            adoption: None,
            grouping: Grouping::default(),
            left: vec![],
        }
    }
}

/// What the cluster and our memory tell without Azure: as yet nothing is held, and nothing wanted.
fn from_cluster(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    memory: &Memory,
    now: Instant,
) -> Observed {
    let (bound, bound_changed) = ctx.cluster.bound(&node.name_any());
    let since = |start: Option<Instant>| start.map(|start| now.saturating_duration_since(start));
    Observed {
        sizing: None,
        demand: need::demand(allocation, node, bound),
        held: vec![],
        lost: BTreeSet::new(),
        slots: 0,
        grain: 1,
        release_after: Duration::ZERO,
        shown: allocation.spec.ip_configurations().map(|one| one.name.clone()).collect(),
        relinquished: allocation
            .status
            .iter()
            .flat_map(|status| status.relinquished.iter().cloned())
            .collect(),
        adopt: vec![],
        surplus_for: surplus_for(allocation, Timestamp::now()),
        bound_still_for: since(bound_changed).unwrap_or(Duration::MAX),
        growth_wanted_for: since(memory.growth_since).unwrap_or_default(),
        release_wanted_for: since(memory.release_since).unwrap_or_default(),
        may_reserve: u32::MAX,
        may_write: true,
        join: vec![],
        leave: vec![],
        forwarding_lacks: false,
        route_is_wrong: false,
    }
}

fn surplus_for(allocation: &NodeIPAllocation, now: Timestamp) -> Option<Duration> {
    let surplus = condition::find(allocation.conditions(), condition::SURPLUS)
        .filter(|surplus| surplus.status == "True")?;
    Some(now.duration_since(surplus.last_transition_time.0).try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allocation(status: serde_json::Value) -> NodeIPAllocation {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}, "status": status
        }))
        .unwrap()
    }

    #[test]
    fn a_surplus_lasts_since_its_condition_turned_true() {
        let surplus = |status: &str| {
            allocation(
                json!({"conditions": [{"type": "Surplus", "status": status, "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
            )
        };
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(surplus_for(&surplus("True"), now), Some(Duration::from_secs(300)));
        assert_eq!(surplus_for(&surplus("False"), now), None);
    }
}
