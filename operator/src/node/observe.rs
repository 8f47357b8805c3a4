//! All reads of a reconcile: the stores and, where it must be, Azure.

pub mod adopt;
mod drift;
pub mod groups;
mod interfaces;
pub mod obstacle;
pub mod recheck;
mod surroundings;
pub mod taken_off;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::allocation::{Interface, NodeIPAllocation, NodeIPAllocationSpec};
use vnetpool_crds::pool::Sizing;
use vnetpool_crds::{NodeIPPool, condition};

use super::backend::{self, Backend, Holding, NicView};
use super::blame::Part;
use super::memory::Memory;
use super::need::{self, Need};
use super::policy::{self, Policy};
use super::reads::Reads;
use super::setback::Stage;
use super::takeup::{self, Place};
use crate::azure::{self, Network, Priority, ProvisioningState, ResourceId, Urgency, VmId};
use crate::context::Context;
use crate::node_object::Node;
use crate::planner::{Demand, Observed};
use adopt::Adoption;
use drift::Drift;
pub use drift::lost;
use groups::Grouping;
pub use interfaces::mirrored;
use interfaces::{Found, Occasion};
use obstacle::{Obstacle, obstacle};

/// A reconcile's view of its node.
#[derive(Debug)]
pub struct Seen {
    /// The pool whose policy holds.
    pub pool: Option<Arc<NodeIPPool>>,
    /// It doesn't select the node any more.
    pub pool_change: Option<policy::Change>,
    /// The NIC, its ipConfigurations left out.
    pub nic: Option<Interface>,
    /// The VM's primary NIC, if that is another one.
    pub primary_nic: Option<Interface>,
    /// How many ipConfigurations the VM has on other NICs.
    pub elsewhere: u32,
    /// Why the node is to hold no addresses, though there was no error.
    pub obstacle: Option<Obstacle>,
    pub snat_exclusions: Vec<String>,
    /// Where the addresses are.
    pub backend: Backend,
    pub observed: Observed,
    /// This process has read the NIC; otherwise all is as `spec` mirrors it.
    pub is_read: bool,
    /// An error holds back the read of the NIC that is due.
    pub is_held_back: bool,
    /// How to treat others' ipConfigurations, if the pool cares.
    pub adoption: Option<Adoption>,
    /// Which application security groups the NIC is to join and to leave.
    pub grouping: Grouping,
    /// NICs that serve by `spec` and that aren't the node's any more.
    pub left: Vec<ResourceId>,
    /// An address that `spec` shows has left the NIC by another hand.
    pub has_vanished: bool,
    /// The same, also where a lost address can't be asked for: an instance's.
    pub is_taken_off: bool,
    /// How long to wait for the agent's report of the addresses that pods use.
    pub reported_by: Option<Instant>,
}

/// The cluster's view of a node.
pub struct ClusterView {
    /// The pool whose policy holds.
    pub pool: Option<Arc<NodeIPPool>>,
    pool_change: Option<policy::Change>,
    demand: Demand,
    /// How long the node's pods have been these.
    bound_still_for: Duration,
}

/// What the pool asks for, unless an obstacle prevents it. The default is that of a node without a pool.
struct FromPool {
    sizing: Option<Sizing>,
    grain: u32,
    release_after: Duration,
}

/// What the pool and Azure make of a node. The default is that of a node without a NIC: nothing is held, and
/// nothing wanted.
#[derive(Default)]
struct AzureView {
    wanted: FromPool,
    holding: Holding,
    /// Addresses that pods use though they have left the NIC.
    lost: BTreeSet<Ipv4Net>,
    /// Names of others' ipConfigurations that are to leave the NIC.
    adopt: Vec<String>,
    join: Vec<ResourceId>,
    leave: Vec<ResourceId>,
    /// An error, or another client's write to the NIC, holds every write back.
    is_held_back: bool,
    /// The agent is about to report which of the addresses that have left the NIC pods use.
    awaits_agent: bool,
    nic_failed: bool,
    forwarding_lacks: bool,
}

/// And the node's place in the rollout of its pool's edit.
pub fn cluster(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    is_paused: bool,
    now: Instant,
) -> (ClusterView, Place) {
    let (bound, changed) = ctx.cluster.bound(&node.name_any());
    let demand = need::demand(allocation, node, bound);
    let decided = policy::decide(policy::Facts {
        allocation,
        selected: ctx.cluster.pool_of(node),
        last: ctx.cluster.pool(&allocation.spec.pool),
        is_paused,
        grace: ctx.waits.grace,
        now: Timestamp::now(),
    });
    let (Policy { pool, change }, place) = takeup::limit(ctx, allocation, decided, &demand, is_paused);
    let bound_still_for = changed.map_or(Duration::MAX, |changed| now.saturating_duration_since(changed));
    (ClusterView { pool, pool_change: change, demand, bound_still_for }, place)
}

/// The node's VM, or why the node is to hold nothing though Azure wasn't asked.
pub fn vm(cluster: &ClusterView, allocation: &NodeIPAllocation, node: &Node) -> Result<VmId, Obstacle> {
    // Nor is a Node whose providerID can't be used the pool's any more.
    if cluster.pool.is_none() && allocation.spec.interfaces.is_empty() {
        return Err(Obstacle::NoPool);
    }
    let obstacle =
        |error: azure::Error| Obstacle::Interface { reason: error.reason(), message: error.to_string() };
    VmId::from_provider_id(node.provider_id()).map_err(obstacle)
}

/// Which reads of Azure are possible now, and which are necessary. `None`: an error holds back the necessary
/// ones, and `spec` isn't reliable meanwhile.
pub fn occasion(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    memory: &Memory,
    now: Instant,
) -> Option<Occasion> {
    let spec = &allocation.spec;
    let is_new = spec.interfaces.is_empty()
        || Some(&spec.node_uid) != node.metadata.uid.as_ref()
        || spec.boot_id != node.boot_id();
    let setback = memory.setback.as_ref();
    let held_back = setback.filter(|setback| setback.holds(now) && !setback.holds_growth(now));
    let has_failed = held_back.is_some_and(|setback| setback.stage == Stage::Find);
    let may_ask = held_back.is_none();
    let is_held_back = has_failed || (is_new || memory.nic.needs_read(now)) && !may_ask;
    if is_held_back && (is_new || !memory.nic.is_mirrored()) {
        return None;
    }
    let is_hinted = memory.nic.hints.due(allocation, now).is_some_and(|wait| wait.is_zero());
    let recheck = recheck::Recheck::of(allocation, &memory.nic, ctx.started, ctx.waits.unlisted);
    let is_due = (is_hinted || recheck.is_due(now)) && may_ask;
    let all_are_due = recheck.are_all_due(now) && may_ask;
    let is_begun = is_begun(memory);
    Some(Occasion { is_new, is_begun, is_hinted, is_due, all_are_due, may_ask, is_held_back })
}

/// A write of this process has failed, and its outcome isn't known yet.
fn is_begun(memory: &Memory) -> bool {
    memory.nic.must_read && memory.setback.as_ref().is_some_and(|setback| setback.stage != Stage::Find)
}

/// Reads that are more urgent than their node's need. Pods may have the addresses that are hinted at, and
/// can't be reached. And a write that has begun is followed to its end before a new one begins: a node whose
/// first write was lost isn't new any more.
fn priority(occasion: Occasion) -> Option<Priority> {
    (occasion.is_hinted || occasion.is_begun).then_some(Priority::WaitingPods)
}

/// How urgent the reads of this occasion are.
pub fn urgency(
    cluster: &ClusterView,
    allocation: &NodeIPAllocation,
    need: &Need,
    occasion: Occasion,
) -> Urgency {
    match priority(occasion) {
        Some(priority) => priority.into(),
        None => need.of_read(allocation, &cluster.demand, occasion.is_new),
    }
}

/// The NIC that serves the node.
pub async fn nic(
    (ctx, reads): (&Context, &mut Reads<'_>),
    allocation: &NodeIPAllocation,
    cluster: &ClusterView,
    vm: &VmId,
    (occasion, urgency): (Occasion, &Urgency),
    memory: &Memory,
) -> Result<Found, azure::Error> {
    let wanted = interfaces::Facts { pool: cluster.pool.as_deref(), allocation, occasion };
    interfaces::find((ctx, reads), vm, &wanted, &memory.nic, urgency).await
}

/// Azure's resources around the NIC that serves the node.
struct Around {
    backend: Backend,
    holding: Holding,
    /// `None`: see [`surroundings::around`].
    network: Option<Arc<Network>>,
    obstacle: Option<Obstacle>,
    /// The VM's primary NIC, if that is another one.
    primary_nic: Option<Interface>,
}

/// The networks around the NIC, and the node's reservations: all facts there are.
pub async fn around(
    ctx: &Context,
    (allocation, node): (&NodeIPAllocation, &Node),
    cluster: ClusterView,
    found: Found,
    (occasion, urgency): (Occasion, &Urgency),
    memory: &Memory,
    now: Instant,
) -> Result<Seen, azure::Error> {
    let (spec, pool) = (&allocation.spec, cluster.pool.as_deref());
    let (nic, interface) = (found.nic.as_deref(), &found.serving);
    let view = NicView { interface, held: &found.held, slots: found.slots, is_read: nic.is_some() };
    let (backend, holding) = backend::observe(ctx, allocation, pool, &view, urgency).await?;
    let network = surroundings::around(ctx, spec, &interface.subnet, occasion).await?;
    let primary = found.primary.as_ref().map(|nic| nic.subnet.id.as_str());
    let obstacle = obstacle(ctx, pool, (interface, primary), node, &backend, network.as_deref())?;
    let primary_nic = match &found.primary {
        Some(nic) => Some(beside(ctx, spec, nic, occasion).await?),
        None => None,
    };
    let around = Around { backend, holding, network, obstacle, primary_nic };
    Ok(seen(ctx, (allocation, node), cluster, (found, around), occasion, memory, now))
}

/// The view of a node whose NIC and surroundings are known. Asks Azure nothing.
fn seen(
    ctx: &Context,
    (allocation, node): (&NodeIPAllocation, &Node),
    cluster: ClusterView,
    (found, around): (Found, Around),
    occasion: Occasion,
    memory: &Memory,
    now: Instant,
) -> Seen {
    let (spec, pool, nic) = (&allocation.spec, cluster.pool.as_deref(), found.nic.as_deref());
    let Around { backend, holding, network, obstacle, primary_nic } = around;
    let network = network.as_deref();
    let served = pool.filter(|_| obstacle.is_none());
    let adoption = served.zip(nic).and_then(|(pool, nic)| {
        let bound = ctx.cluster.bound_pods(&node.name_any());
        let read = (nic, &memory.others);
        adopt::adoption(pool.spec.adopt, &bound, allocation, node.boot_id(), read)
    });
    let grouping = groups::decide(&groups::Facts {
        pool: served,
        allocation,
        nic,
        is_shared: !found.serving.secondary,
        is_dry_run: ctx.azure.is_dry_run(),
    });
    let wanted = FromPool::of(pool, obstacle.as_ref());
    let drift = Drift::of((nic, &backend), allocation, node.boot_id(), wanted.grain, memory, now);
    // What Azure has refused is left out for a while.
    let adopted = adoption.as_ref().filter(|_| !memory.is_left_out(Part::Adoption, now));
    let azure = AzureView {
        wanted,
        lost: drift.lost,
        adopt: adopted.map(|adoption| adoption.ready.clone()).unwrap_or_default(),
        join: grouping.lacks.clone(),
        leave: grouping.leave.clone(),
        is_held_back: !occasion.may_ask || found.is_updating,
        // A route doesn't hang on the NIC's state.
        nic_failed: !backend.needs_forwarding()
            && (memory.nic.model_failed || nic.is_some_and(|nic| nic.state == ProvisioningState::Failed)),
        forwarding_lacks: served.is_some()
            && backend.needs_forwarding()
            && nic.is_some_and(|nic| !nic.forwards),
        awaits_agent: drift.reported_by.is_some(),
        holding: Holding { route_is_wrong: holding.route_is_wrong && obstacle.is_none(), ..holding },
    };
    let observed = observed(&cluster, allocation, azure, memory, now);

    let snat_exclusions = network.map_or_else(
        || spec.snat_exclusions.clone(),
        |network| surroundings::exclusions(network, pool, &backend),
    );
    let subnet = surroundings::subnet(network, spec, &found.serving.subnet);
    let groups = grouping.ours.iter().map(ToString::to_string).collect();
    let is_read = nic.is_some();
    Seen {
        nic: Some(Interface { subnet, application_security_groups: groups, ..found.serving }),
        primary_nic,
        elsewhere: found.elsewhere,
        left: found.left,
        is_read,
        is_held_back: occasion.is_held_back,
        pool: cluster.pool,
        pool_change: cluster.pool_change,
        backend,
        obstacle,
        snat_exclusions,
        observed,
        adoption,
        grouping,
        reported_by: drift.reported_by,
        has_vanished: drift.has_vanished,
        is_taken_off: drift.is_taken_off,
    }
}

/// The primary NIC beside the one that serves, for `spec`.
async fn beside(
    ctx: &Context,
    spec: &NodeIPAllocationSpec,
    nic: &Interface,
    occasion: Occasion,
) -> Result<Interface, azure::Error> {
    let network = surroundings::around(ctx, spec, &nic.subnet, occasion).await?;
    let subnet = surroundings::subnet(network.as_deref(), spec, &nic.subnet);
    Ok(Interface { subnet, secondary: false, ip_configurations: vec![], ..nic.clone() })
}

impl Seen {
    /// A node without a NIC that could hold addresses: nothing is held, and nothing wanted.
    pub fn without_nic(
        cluster: ClusterView,
        allocation: &NodeIPAllocation,
        obstacle: Obstacle,
        memory: &Memory,
        now: Instant,
    ) -> Seen {
        let observed = observed(&cluster, allocation, AzureView::default(), memory, now);
        Seen {
            pool: cluster.pool,
            pool_change: cluster.pool_change,
            nic: None,
            obstacle: Some(obstacle),
            snat_exclusions: vec![],
            backend: Backend::default(),
            observed,
            is_read: false,
            is_held_back: false,
            primary_nic: None,
            elsewhere: 0,
            adoption: None,
            grouping: Grouping::default(),
            left: vec![],
            has_vanished: false,
            is_taken_off: false,
            reported_by: None,
        }
    }
}

#[cfg(test)]
impl Seen {
    /// Of a node without a pool, a NIC and pods.
    pub fn sample(allocation: &NodeIPAllocation, obstacle: Obstacle, memory: &Memory, now: Instant) -> Seen {
        let cluster = ClusterView {
            pool: None,
            pool_change: None,
            demand: Demand::default(),
            bound_still_for: Duration::MAX,
        };
        Seen::without_nic(cluster, allocation, obstacle, memory, now)
    }
}

impl Default for FromPool {
    fn default() -> FromPool {
        FromPool { sizing: None, grain: 1, release_after: Duration::ZERO }
    }
}

impl FromPool {
    /// Without a pool there is no time to wait, and no need for the addresses. The same is true of a pool
    /// that they don't come from.
    fn of(pool: Option<&NodeIPPool>, obstacle: Option<&Obstacle>) -> FromPool {
        let Some(pool) = pool else { return FromPool::default() };
        let is_moving = obstacle.is_some_and(Obstacle::is_moving);
        FromPool {
            sizing: obstacle.is_none().then(|| backend::sizing(pool)),
            grain: pool.spec.grain(),
            release_after: if is_moving { Duration::ZERO } else { pool.spec.sizing.release_after.into() },
        }
    }
}

/// The facts from which the planner decides.
fn observed(
    cluster: &ClusterView,
    allocation: &NodeIPAllocation,
    azure: AzureView,
    memory: &Memory,
    now: Instant,
) -> Observed {
    let since = |start: Option<Instant>| start.map(|start| now.saturating_duration_since(start));
    let growth_waits = memory.setback.as_ref().is_some_and(|setback| setback.holds_growth(now));
    Observed {
        sizing: azure.wanted.sizing,
        demand: cluster.demand,
        held: azure.holding.held,
        lost: azure.lost,
        slots: azure.holding.slots,
        grain: azure.wanted.grain,
        release_after: azure.wanted.release_after,
        coarseness: 1,
        relinquished: relinquished(allocation),
        shown: allocation.spec.names(),
        adopt: azure.adopt,
        join: azure.join,
        leave: azure.leave,
        surplus_for: surplus_for(allocation, Timestamp::now()),
        bound_still_for: cluster.bound_still_for,
        growth_wanted_for: since(memory.growth_since).unwrap_or_default(),
        release_wanted_for: since(memory.release_since).unwrap_or_default(),
        may_reserve: if azure.awaits_agent || growth_waits { 0 } else { u32::MAX },
        may_write: !azure.is_held_back,
        nic_failed: azure.nic_failed,
        may_mend: memory.mending.may_write(now),
        may_regroup: !memory.is_left_out(Part::Groups, now),
        may_release: !memory.is_left_out(Part::Release, now),
        forwarding_lacks: azure.forwarding_lacks,
        route_is_wrong: azure.holding.route_is_wrong,
    }
}

/// The names that the agent has given up for good.
pub fn relinquished(allocation: &NodeIPAllocation) -> BTreeSet<String> {
    allocation.status.iter().flat_map(|status| status.relinquished.iter().cloned()).collect()
}

pub fn surplus_for(allocation: &NodeIPAllocation, now: Timestamp) -> Option<Duration> {
    let surplus = condition::find(allocation.conditions(), condition::SURPLUS)
        .filter(|surplus| surplus.status == "True")?;
    Some(now.duration_since(surplus.last_transition_time.0).try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memories;
    use super::super::setback::Setback;
    use super::*;
    use serde_json::json;

    fn allocation(status: serde_json::Value) -> NodeIPAllocation {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}, "status": status
        }))
        .unwrap()
    }

    #[test]
    fn a_nic_with_a_write_begun_is_read_before_new_nodes() {
        let failed = |stage| {
            let mut memory = Memories::default().take(&allocation(json!({})));
            let lost = azure::Error::OutcomeUnknown { resource: "nic".into(), message: "cut off".into() };
            memory.setback = Some(Setback::after(None, stage, &lost, Instant::now()));
            memory.nic.must_read = true;
            is_begun(&memory)
        };
        assert!(failed(Stage::Growth) && failed(Stage::Write) && !failed(Stage::Find));
        let quiet = Occasion {
            is_new: false,
            is_begun: false,
            is_hinted: false,
            is_due: false,
            all_are_due: false,
            may_ask: true,
            is_held_back: false,
        };
        assert_eq!(priority(quiet), None);
        assert!(priority(Occasion { is_begun: true, ..quiet }).unwrap() < Priority::NewNode);
    }

    #[test]
    fn a_node_that_no_pool_wants_any_more_is_done_with_though_its_provider_id_can_not_be_used() {
        let cluster = |pool: Option<NodeIPPool>| ClusterView {
            pool: pool.map(Arc::new),
            pool_change: None,
            demand: Demand::default(),
            bound_still_for: Duration::ZERO,
        };
        let pool: NodeIPPool =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {}})).unwrap();
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"providerID": "k3s://n"}}))
                .unwrap();
        let empty = allocation(json!({}));
        assert!(matches!(vm(&cluster(Some(pool)), &empty, &node), Err(Obstacle::Interface { .. })));
        assert_eq!(vm(&cluster(None), &empty, &node), Err(Obstacle::NoPool));
        // What a Node registered anew has isn't known to be nobody's.
        let mut serving = empty;
        serving.spec.interfaces.push(Interface { id: "nic".into(), ..Interface::default() });
        assert!(matches!(vm(&cluster(None), &serving, &node), Err(Obstacle::Interface { .. })));
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

    /// By this clock alone nothing is given out: what is released the agent has struck from its ledger
    /// before.
    #[test]
    fn a_clock_an_hour_off_ends_or_prolongs_a_surplus_and_takes_nothing_from_a_pod() {
        let surplus = json!({"type": "Surplus", "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T02:00:00Z"});
        let object = allocation(json!({"conditions": [surplus]}));
        for (shown, target) in [("2026-01-01T01:00:01Z", 40), ("2026-01-01T03:00:01Z", 12)] {
            let observed = Observed {
                surplus_for: surplus_for(&object, shown.parse().unwrap()),
                ..crate::planner::tests::observed(40, 3)
            };
            let plan = crate::planner::plan(&observed);
            assert_eq!(plan.target, target, "by {shown}");
            assert!(plan.change.is_empty() && plan.publish.len() == 40, "by {shown}: {plan:?}");
        }
    }
}
