//! All reads of a reconcile: the stores and, where it must be, Azure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tracing::warn;
use vnetpool_crds::allocation::{self, NodeIPAllocation, Subnet};
use vnetpool_crds::{NodeIPPool, condition, names};

use super::growth;
use super::memory::Memory;
use super::{Context, recheck};
use crate::azure::{
    self, Attached, Freshness, IpConfiguration, Network, Nic, Priority, ProvisioningState, ResourceId, VmId,
};
use crate::cluster::kept;
use crate::planner::{Demand, Observed};

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
    /// Why the node is to hold no addresses, though there was no error.
    pub obstacle: Option<Obstacle>,
    pub snat_exclusions: Vec<String>,
    pub observed: Observed,
    /// This process has read the NIC; otherwise all is as `spec` mirrors it.
    pub is_read: bool,
    /// A write to the NIC is under way that isn't ours.
    pub is_unsettled: bool,
    /// When to look again because the subnet holds growth back; `None` if it doesn't, or the node will be called.
    pub turn: Option<Instant>,
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
    let is_due = recheck::is_due(&node.name_any(), known, now) && observed.may_write;

    let priority = read_priority(&observed.demand, spec.addresses(), is_new);
    let nic = if is_new || memory.must_read || is_due {
        let id = if is_new {
            ctx.azure.primary_nic(&vm, priority).await?
        } else {
            spec.interfaces[0].id.parse()?
        };
        let nic = ctx.azure.nic(&id, Freshness::Fresh, priority).await?;
        memory.nic_known = Some(Instant::now());
        memory.must_read = false;
        Some(nic)
    } else if memory.nic_known.is_some() {
        Some(ctx.azure.nic(&spec.interfaces[0].id.parse()?, Freshness::Cached, priority).await?)
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
            observed.slots = NIC_SLOTS.saturating_sub(nic.foreign);
            interface(nic)
        }
        None => {
            observed.held = mirrored(&spec.interfaces[0]);
            observed.slots = NIC_SLOTS - 1;
            allocation::Interface { ip_configurations: vec![], ..spec.interfaces[0].clone() }
        }
    };

    let obstacle = obstacle(pool.as_deref(), &interface, node)?;
    // Without a pool nobody says how long to wait, and nobody wants the addresses.
    observed.release_after =
        pool.as_ref().map_or(Duration::ZERO, |pool| pool.spec.sizing.release_after.into());
    observed.sizing = pool.as_ref().filter(|_| obstacle.is_none()).map(|pool| pool.spec.sizing.clone());
    observed.grain = pool.as_ref().map_or(spec.mode, |pool| pool.spec.mode).grain();
    let (subnet, snat_exclusions) = around(ctx, spec, &interface, pool.as_deref()).await?;
    Ok(Some(Seen {
        left: left(spec, &interface.id.parse()?),
        pool,
        nic: Some(allocation::Interface { subnet, ..interface }),
        obstacle,
        snat_exclusions,
        observed,
        is_read: nic.is_some(),
        is_unsettled,
        turn: None,
    }))
}

impl Seen {
    fn without_nic(pool: Option<Arc<NodeIPPool>>, obstacle: Obstacle, observed: Observed) -> Seen {
        Seen {
            pool,
            nic: None,
            obstacle: Some(obstacle),
            snat_exclusions: vec![],
            observed,
            is_read: false,
            is_unsettled: false,
            turn: None,
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
        demand: demand(allocation, node, bound),
        held: vec![],
        slots: 0,
        grain: 1,
        release_after: Duration::ZERO,
        relinquished: allocation
            .status
            .iter()
            .flat_map(|status| status.relinquished.iter().cloned())
            .collect(),
        surplus_for: surplus_for(allocation, Timestamp::now()),
        bound_still_for: since(bound_changed).unwrap_or(Duration::MAX),
        growth_wanted_for: since(memory.growth_since).unwrap_or_default(),
        release_wanted_for: since(memory.release_since).unwrap_or_default(),
        may_reserve: u32::MAX,
        may_write: true,
    }
}

/// The node's counts are of the boot they were reported from; after another there is nothing assigned yet.
fn demand(allocation: &NodeIPAllocation, node: &Node, bound: u32) -> Demand {
    let status = allocation.status.as_ref().filter(|status| status.boot_id == kept::boot_id(node));
    let (assigned, waiting, cooling) =
        status.map_or((0, 0, 0), |status| (status.assigned, status.waiting, status.cooling));
    Demand { bound, assigned, waiting, cooling, pods_allowed: kept::pods_allowed(node) }
}

fn surplus_for(allocation: &NodeIPAllocation, now: Timestamp) -> Option<Duration> {
    let conditions = &allocation.status.as_ref()?.conditions;
    let surplus =
        condition::find(conditions, condition::SURPLUS).filter(|surplus| surplus.status == "True")?;
    Some(now.duration_since(surplus.last_transition_time.0).try_into().unwrap_or_default())
}

fn read_priority(demand: &Demand, published: u32, is_new: bool) -> Priority {
    if demand.pods() > published {
        Priority::WaitingPods
    } else if is_new {
        Priority::NewNode
    } else {
        Priority::GiveBack
    }
}

fn is_unsettled(nic: &Nic) -> bool {
    nic.state == ProvisioningState::Updating
        || nic.ip_configurations.iter().any(|one| one.state == ProvisioningState::Updating)
}

fn interface(nic: &Nic) -> allocation::Interface {
    allocation::Interface {
        id: nic.id.to_string(),
        mac: nic.mac.clone().unwrap_or_default(),
        primary_address: nic.primary.to_string(),
        subnet: Subnet { id: nic.subnet.to_string(), prefixes: vec![] },
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

fn left(spec: &allocation::NodeIPAllocationSpec, current: &ResourceId) -> Vec<ResourceId> {
    spec.interfaces.iter().filter_map(|one| one.id.parse().ok()).filter(|id| id != current).collect()
}

fn obstacle(
    pool: Option<&NodeIPPool>,
    interface: &allocation::Interface,
    node: &Node,
) -> Result<Option<Obstacle>, azure::Error> {
    let Some(pool) = pool else { return Ok(Some(Obstacle::NoPool)) };
    let Some(wanted) = &pool.spec.subnet_id else { return Ok(None) };
    if wanted.parse::<ResourceId>()? == interface.subnet.id.parse()? {
        return Ok(None);
    }
    let message = format!(
        "the primary NIC of node {} is in subnet {}, but NodeIPPool {} takes its addresses from {wanted}. Let the pool's \
         nodeSelector leave this node out, or change its subnetID.",
        node.name_any(),
        interface.subnet.id,
        pool.name_any(),
    );
    Ok(Some(Obstacle::Interface { reason: "SubnetMismatch", message }))
}

/// The NIC's subnet with its prefixes, and what sees a pod under its own address.
///
/// # Errors
/// When the network can't be read and nothing is known of it from before: without it, a pod's packets to the VNet would
/// be translated, so its node must wait.
async fn around(
    ctx: &Context,
    spec: &allocation::NodeIPAllocationSpec,
    interface: &allocation::Interface,
    pool: Option<&NodeIPPool>,
) -> Result<(Subnet, Vec<String>), azure::Error> {
    let id: ResourceId = interface.subnet.id.parse()?;
    match ctx.networks.around(&id).await {
        Ok(network) => {
            let prefixes = network.subnet.iter().map(ToString::to_string).collect();
            Ok((Subnet { id: id.to_string(), prefixes }, exclusions(&network, pool)))
        }
        Err(error) => {
            match spec.interfaces.iter().find(|one| one.subnet.id.eq_ignore_ascii_case(id.as_str())) {
                Some(known) => {
                    warn!(subnet = %id, reason = error.reason(), %error, "virtual network not read, its known prefixes stay");
                    Ok((known.subnet.clone(), spec.snat_exclusions.clone()))
                }
                None => Err(error),
            }
        }
    }
}

fn exclusions(network: &Network, pool: Option<&NodeIPPool>) -> Vec<String> {
    let named = pool.into_iter().flat_map(|pool| &pool.spec.snat.non_masquerade_cidrs);
    let mut ranges: Vec<ipnet::Ipv4Net> = named.filter_map(|range| range.parse().ok()).collect();
    ranges.extend(network.address_space.iter().chain(&network.peered));
    ranges.sort();
    ranges.dedup();
    ranges.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SUBNET: &str =
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a";

    fn node(boot: &str) -> Node {
        let info = k8s_openapi::api::core::v1::NodeSystemInfo { boot_id: boot.into(), ..Default::default() };
        let mut node = Node::default();
        node.status.get_or_insert_default().node_info = Some(info);
        node
    }

    fn allocation(status: serde_json::Value) -> NodeIPAllocation {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}, "status": status
        }))
        .unwrap()
    }

    fn pool(spec: serde_json::Value) -> NodeIPPool {
        NodeIPPool::new("p", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn counts_from_before_the_boot_are_not_demand() {
        let reported = allocation(json!({"bootID": "b1", "assigned": 5, "waiting": 2, "cooling": 1}));
        assert_eq!(demand(&reported, &node("b1"), 3).pods(), 7);
        assert_eq!(demand(&reported, &node("b2"), 3).pods(), 3);
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

    #[test]
    fn a_pool_for_another_subnet_gives_the_node_nothing_and_says_which() {
        let interface = allocation::Interface {
            subnet: Subnet { id: SUBNET.to_uppercase(), prefixes: vec![] },
            ..Default::default()
        };
        let same = pool(json!({"subnetID": SUBNET}));
        assert_eq!(obstacle(Some(&same), &interface, &node("b")).unwrap(), None);
        let other = pool(json!({"subnetID": SUBNET.replace("subnets/a", "subnets/b")}));
        let Some(Obstacle::Interface { reason, message }) =
            obstacle(Some(&other), &interface, &node("b")).unwrap()
        else {
            panic!("no obstacle");
        };
        assert_eq!(reason, "SubnetMismatch");
        assert!(message.contains("subnets/b") && message.contains("SUBNETS/A"));
    }

    #[test]
    fn exclusions_are_the_vnet_its_peerings_and_what_the_pool_names_sorted_and_once() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let network = Network {
            id: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
                .parse()
                .unwrap(),
            address_space: nets(&["10.240.0.0/16"]),
            peered: nets(&["10.3.0.0/16"]),
            subnet: nets(&["10.240.0.0/20"]),
        };
        let pool = pool(json!({"snat": {"nonMasqueradeCIDRs": ["192.168.0.0/16", "10.3.0.0/16"]}}));
        assert_eq!(exclusions(&network, Some(&pool)), ["10.3.0.0/16", "10.240.0.0/16", "192.168.0.0/16"]);
    }
}
