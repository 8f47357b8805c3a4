//! All reads of a reconcile: the stores and, where it must be, Azure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tracing::warn;
use vnetpool_crds::allocation::{self, NodeIPAllocation, Subnet};
use vnetpool_crds::pool::Mode;
use vnetpool_crds::{NodeIPPool, condition, names};

use super::adopt::{self, Adoption};
use super::groups::{self, Grouping};
use super::growth;
use super::interfaces;
use super::memory::Memory;
use super::need::{self, Need};
use super::route::{self, Routed};
use super::{Context, drift, recheck};
use crate::azure::{
    self, Attached, Freshness, IpConfiguration, Network, Nic, Priority, ProvisioningState, ResourceId, VmId,
};
use crate::cluster::kept;
use crate::planner::Observed;

/// Azure's limit of ipConfigurations a NIC, the node's own included.
const NIC_SLOTS: u32 = 256;
/// When to look again at a NIC that somebody, perhaps an operator that has ended, is writing.
pub const UNSETTLED: Duration = Duration::from_secs(5);

/// What a reconcile knows of its node.
#[derive(Debug)]
pub struct Seen {
    pub pool: Option<Arc<NodeIPPool>>,
    /// The NIC, its ipConfigurations left out.
    pub nic: Option<allocation::Interface>,
    /// The VM's primary NIC, if that is another one.
    pub primary_nic: Option<allocation::Interface>,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    NoPool,
    /// There is no NIC that could hold them.
    Interface {
        reason: &'static str,
        message: String,
    },
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

    let is_new = spec.interfaces.is_empty()
        || Some(&spec.node_uid) != node.metadata.uid.as_ref()
        || spec.boot_id != kept::boot_id(node);
    observed.may_write = memory.setback.as_ref().is_none_or(|setback| !setback.holds(now));
    if (is_new || memory.must_read) && !observed.may_write {
        return Ok(None);
    }
    let known = memory.nic_known.unwrap_or(ctx.started);
    memory.hints.note(allocation);
    let is_hinted = memory.hints.due(allocation, now).is_some_and(|wait| wait.is_zero());
    let is_due = (is_hinted || recheck::is_due(&node.name_any(), known, now)) && observed.may_write;

    let urgency = match is_hinted {
        // Pods may have these addresses, and nobody reaches them.
        true => Priority::WaitingPods.into(),
        false => need.of_read(allocation, &observed.demand, is_new),
    };
    let choice = interfaces::Wanted { pool: pool.as_deref(), spec, is_new };
    let mut elsewhere = spec.elsewhere;
    let mut primary = spec.interfaces.iter().find(|nic| !nic.secondary).cloned();
    let mut own_nics = vec![];
    let nic = if choice.must_choose(memory) && observed.may_write {
        let chosen = interfaces::choose(ctx, &vm, &choice, memory, &urgency).await?;
        memory.nic_known = Some(Instant::now());
        memory.must_read = false;
        (elsewhere, primary, own_nics) = (chosen.elsewhere, Some(interface(&chosen.primary)), chosen.all);
        Some(chosen.serving)
    } else if memory.must_read || is_due {
        let nic = ctx.azure.nic(&serving(spec)?, Freshness::Fresh, &urgency).await?;
        memory.nic_known = Some(Instant::now());
        memory.must_read = false;
        memory.hints.answered(allocation, now);
        Some(nic)
    } else if memory.nic_known.is_some() {
        Some(ctx.azure.nic(&serving(spec)?, Freshness::Cached, &urgency).await?)
    } else {
        None
    };
    let is_unsettled = nic.as_deref().is_some_and(is_unsettled);
    if is_unsettled {
        memory.must_read = true;
        observed.may_write = false;
    } else if nic.is_some() {
        memory.writing = false;
    }
    let interface = match &nic {
        Some(nic) => {
            observed.held = nic.ip_configurations.clone();
            observed.slots = NIC_SLOTS.saturating_sub(nic.foreign).saturating_sub(elsewhere);
            interface(nic)
        }
        None => {
            let known = spec.serving().cloned().unwrap_or_default();
            observed.held = mirrored(&known);
            observed.slots = (NIC_SLOTS - 1).saturating_sub(elsewhere);
            allocation::Interface { ip_configurations: vec![], ..known }
        }
    };
    // Of two NICs, the one that isn't primary is used for its pool; a single one is primary.
    let primary_nic = primary.filter(|nic| !nic.id.eq_ignore_ascii_case(&interface.id));
    let interface = allocation::Interface { secondary: primary_nic.is_some(), ..interface };

    let primary = interface.primary_address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let is_read = nic.is_some();
    let routed =
        route::observe(ctx, allocation, pool.as_deref(), primary, is_read, &mut observed, &urgency).await?;
    let network = network(ctx, spec, &interface).await?;
    let obstacle = obstacle(ctx, pool.as_deref(), &interface, node, routed.as_ref(), network.as_deref())?;
    if let Some(pool) = pool.as_ref() {
        let is_routed = pool.spec.mode == Mode::Route;
        observed.grain = pool.spec.grain();
        observed.forwarding_lacks =
            is_routed && obstacle.is_none() && nic.as_ref().is_some_and(|nic| !nic.forwards);
        observed.sizing = obstacle
            .is_none()
            .then(|| if is_routed { route::sizing(pool) } else { pool.spec.sizing.clone() });
    }
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
    observed.route_is_wrong &= obstacle.is_none();
    // Without a pool nobody says how long to wait, and nobody wants the addresses. Nor does a pool they aren't from.
    let is_moving = matches!(obstacle, Some(Obstacle::Interface { reason: MOVING, .. }));
    observed.release_after = pool
        .as_ref()
        .filter(|_| !is_moving)
        .map_or(Duration::ZERO, |pool| pool.spec.sizing.release_after.into());
    let (subnet, snat_exclusions) = match &network {
        Some(network) => {
            let prefixes = network.subnet.iter().map(ToString::to_string).collect();
            (
                Subnet { prefixes, ..interface.subnet.clone() },
                exclusions(network, pool.as_deref(), routed.as_ref()),
            )
        }
        None => (known_subnet(spec, &interface.subnet), spec.snat_exclusions.clone()),
    };
    Ok(Some(Seen {
        routed,
        left: left(spec, &interface.id.parse()?, &own_nics),
        primary_nic: match primary_nic {
            Some(nic) => Some(around_primary(ctx, spec, nic).await?),
            None => None,
        },
        elsewhere,
        pool,
        nic: Some(allocation::Interface {
            subnet,
            application_security_groups: grouping.ours.iter().map(ToString::to_string).collect(),
            ..interface
        }),
        obstacle,
        snat_exclusions,
        observed,
        is_read,
        is_unsettled,
        turn: None,
        adoption,
        grouping,
    }))
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
    let conditions = &allocation.status.as_ref()?.conditions;
    let surplus =
        condition::find(conditions, condition::SURPLUS).filter(|surplus| surplus.status == "True")?;
    Some(now.duration_since(surplus.last_transition_time.0).try_into().unwrap_or_default())
}

fn is_unsettled(nic: &Nic) -> bool {
    nic.state == ProvisioningState::Updating
        || nic.ip_configurations.iter().any(|one| one.state == ProvisioningState::Updating)
}

fn interface(nic: &Nic) -> allocation::Interface {
    allocation::Interface {
        id: nic.id.to_string(),
        mac: nic.mac.clone().unwrap_or_default(),
        secondary: false,
        primary_address: nic.primary.to_string(),
        subnet: Subnet { id: nic.subnet.to_string(), prefixes: vec![] },
        application_security_groups: vec![],
        ip_configurations: vec![],
    }
}

/// What a NIC holds as `spec` shows it: good enough to find that there is nothing to do, which is what an operator that
/// starts finds for nearly every node.
fn mirrored(interface: &allocation::Interface) -> Vec<IpConfiguration> {
    let held = interface.ip_configurations.iter().map(|one| IpConfiguration {
        name: one.name.clone(),
        address: one.address.parse().ok(),
        state: ProvisioningState::Succeeded,
        attached: Attached {
            backend_pools: one.backend_pools.iter().filter_map(|id| id.parse().ok()).collect(),
            public_address: one
                .public_address
                .as_ref()
                .filter(|public| public.address.is_some())
                .and_then(|public| public.id.parse().ok()),
            other: one.attached_to.as_deref() == Some(names::OTHERS),
        },
    });
    held.collect()
}

/// NICs of `spec` that aren't the VM's any more; `own_nics` are those it is known to have.
fn left(
    spec: &allocation::NodeIPAllocationSpec,
    current: &ResourceId,
    own_nics: &[ResourceId],
) -> Vec<ResourceId> {
    let Some(known) = spec.serving().and_then(|one| one.id.parse().ok()) else { return vec![] };
    if known == *current || own_nics.contains(&known) { vec![] } else { vec![known] }
}

/// The id of the NIC that the pool uses.
fn serving(spec: &allocation::NodeIPAllocationSpec) -> Result<ResourceId, azure::Error> {
    spec.serving().map(|nic| nic.id.as_str()).unwrap_or_default().parse()
}

/// The primary NIC with its subnet's prefixes.
async fn around_primary(
    ctx: &Context,
    spec: &allocation::NodeIPAllocationSpec,
    nic: allocation::Interface,
) -> Result<allocation::Interface, azure::Error> {
    let subnet = match network(ctx, spec, &nic).await? {
        Some(network) => {
            let prefixes = network.subnet.iter().map(ToString::to_string).collect();
            Subnet { prefixes, ..nic.subnet.clone() }
        }
        None => known_subnet(spec, &nic.subnet),
    };
    Ok(allocation::Interface { subnet, secondary: false, ip_configurations: vec![], ..nic })
}

fn obstacle(
    ctx: &Context,
    pool: Option<&NodeIPPool>,
    interface: &allocation::Interface,
    node: &Node,
    routed: Option<&Routed>,
    network: Option<&Network>,
) -> Result<Option<Obstacle>, azure::Error> {
    let Some(pool) = pool else { return Ok(Some(Obstacle::NoPool)) };
    if let Some(mismatch) = mismatch(pool, interface, node)? {
        return Ok(Some(mismatch));
    }
    let unfit = match &pool.spec.route {
        Some(pod_route) => route::obstacle(ctx, pool, pod_route, node, network)?,
        None => None,
    };
    // What the node holds is of another kind than the pool's: it goes first.
    let is_moving = routed.map_or(pool.spec.mode == Mode::Route, |routed| routed.claim.is_none());
    Ok(unfit.or_else(|| is_moving.then(|| moving(pool, node))))
}

/// The reason of a node that has to give back what it has before its pool can serve it.
const MOVING: &str = "Moving";

fn moving(pool: &NodeIPPool, node: &Node) -> Obstacle {
    let message = format!(
        "node {} still has pods with addresses of its former pool's mode or range. It gets none of NodeIPPool {} before the \
         last of these is given back: drain it.",
        node.name_any(),
        pool.name_any(),
    );
    Obstacle::Interface { reason: MOVING, message }
}

/// The pool is for another subnet than the NIC's.
fn mismatch(
    pool: &NodeIPPool,
    interface: &allocation::Interface,
    node: &Node,
) -> Result<Option<Obstacle>, azure::Error> {
    if pool.spec.mode == Mode::Prefix && interface.id.parse::<ResourceId>()?.instance().is_some() {
        let message = format!(
            "node {} is an instance of a Uniform scale set, for which Azure has no blocks of addresses, but NodeIPPool {} is \
             of mode {:?}. Let the pool's nodeSelector leave this node out, or give it a pool of mode Address.",
            node.name_any(),
            pool.name_any(),
            pool.spec.mode,
        );
        return Ok(Some(Obstacle::Interface { reason: "ModeUnavailable", message }));
    }
    let Some(wanted) = &pool.spec.subnet_id else { return Ok(None) };
    if wanted.parse::<ResourceId>()? == interface.subnet.id.parse()? {
        return Ok(None);
    }
    let message = format!(
        "the NIC that node {} uses is in subnet {}, but NodeIPPool {} takes its addresses from {wanted}. Give the VM a NIC \
         there, drain the node if it has one, let the pool's nodeSelector leave this node out, or change its subnetID.",
        node.name_any(),
        interface.subnet.id,
        pool.name_any(),
    );
    Ok(Some(Obstacle::Interface { reason: "SubnetMismatch", message }))
}

/// The network around the NIC. `None`: it can't be read now, but what `spec` says of it stays good.
///
/// # Errors
/// When nothing is known of it from before: without it, a pod's packets to the VNet would be translated, so its node must wait.
async fn network(
    ctx: &Context,
    spec: &allocation::NodeIPAllocationSpec,
    interface: &allocation::Interface,
) -> Result<Option<Arc<Network>>, azure::Error> {
    let id: ResourceId = interface.subnet.id.parse()?;
    match ctx.networks.around(&id).await {
        Ok(network) => Ok(Some(network)),
        Err(error) if spec.interfaces.iter().any(|one| is_same(&one.subnet, &interface.subnet)) => {
            warn!(subnet = %id, reason = error.reason(), %error, "virtual network not read, its known prefixes stay");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The subnet as `spec` has it.
fn known_subnet(spec: &allocation::NodeIPAllocationSpec, subnet: &Subnet) -> Subnet {
    let known = spec.interfaces.iter().find(|one| is_same(&one.subnet, subnet));
    known.map_or_else(|| subnet.clone(), |known| known.subnet.clone())
}

fn is_same(one: &Subnet, other: &Subnet) -> bool {
    one.id.eq_ignore_ascii_case(&other.id)
}

/// What sees a pod under its own address: the VNet, what it peers with, and what the pool names. To addresses of a route table
/// peered networks have no way back; other nodes' pods have.
fn exclusions(network: &Network, pool: Option<&NodeIPPool>, routed: Option<&Routed>) -> Vec<String> {
    let named = pool.into_iter().flat_map(|pool| &pool.spec.snat.non_masquerade_cidrs);
    let mut ranges: Vec<ipnet::Ipv4Net> = named.filter_map(|range| range.parse().ok()).collect();
    ranges.extend(&network.address_space);
    match routed {
        Some(routed) => ranges.extend(routed.within),
        None => ranges.extend(&network.peered),
    }
    ranges.sort();
    ranges.dedup();
    ranges.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
