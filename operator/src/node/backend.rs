//! Where a node's addresses are reserved: one interface over the differences between a NIC, an instance of a
//! scale set and a route table. A back-end observes a node's reservations and carries a planned change out.

mod nic;
mod route_table;
mod terms;

use ipnet::Ipv4Net;
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::allocation::{Interface, NodeIPAllocation};
use vnetpool_crds::pool::{Mode, Sizing};

use crate::azure::{self, Network, ResourceId, Urgency};
use crate::context::Context;
use crate::planner::Change;
pub use route_table::{Routed, leave, watch};
pub use terms::{Holding, NicView, Outcome, Task};

#[derive(Clone, Debug, Default)]
pub enum Backend {
    /// The ipConfigurations of a NIC.
    #[default]
    Nic,
    /// The ipConfigurations in the model of an instance of a scale set with uniform orchestration.
    Instance,
    /// One route of a table.
    RouteTable(Routed),
}

/// Finds out where the node's addresses are, and observes its reservations there.
pub async fn observe(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    pool: Option<&NodeIPPool>,
    nic: &NicView<'_>,
    urgency: &Urgency,
) -> Result<(Backend, Holding), azure::Error> {
    if let Some((routed, holding)) = route_table::observe(ctx, allocation, pool, nic, urgency).await? {
        return Ok((Backend::RouteTable(routed), holding));
    }
    let holding = Holding { held: nic.held.to_vec(), slots: nic.slots, route_is_wrong: false };
    Ok((Backend::of(nic.interface)?, holding))
}

/// How much a node of the pool is to hold, where the pool's mode has its addresses.
pub fn sizing(pool: &NodeIPPool) -> Sizing {
    match pool.spec.mode {
        Mode::Address | Mode::Prefix => pool.spec.sizing.clone(),
        Mode::Route => route_table::sizing(pool),
    }
}

impl Backend {
    /// The one that the NIC itself is.
    fn of(interface: &Interface) -> Result<Backend, azure::Error> {
        let is_instance = interface.id.parse::<ResourceId>()?.instance().is_some();
        Ok(if is_instance { Backend::Instance } else { Backend::Nic })
    }

    /// The ids of the resources that a change writes, and of the subnet that a NIC refers to, in lower case.
    pub fn sites(&self, nic: &Interface, change: &Change) -> Vec<String> {
        let (table, writes_nic) = match self {
            Backend::Nic | Backend::Instance => (None, true),
            Backend::RouteTable(routed) => {
                let writes_table = change.reserve > 0 || change.mend || !change.release.is_empty();
                (writes_table.then_some(routed.table.as_str()), change.forward || !change.leave.is_empty())
            }
        };
        let of_nic = [nic.id.as_str(), &nic.subnet.id];
        let of_nic = of_nic.into_iter().filter(|_| writes_nic);
        of_nic.chain(table).map(str::to_ascii_lowercase).collect()
    }

    /// Carries a planned change out. The condition `Writing` has announced it.
    ///
    /// # Errors
    /// Azure's. The reservations are then to be read again.
    pub async fn apply(&self, ctx: &Context, task: &Task<'_>) -> Result<Outcome, azure::Error> {
        match self {
            Backend::Nic | Backend::Instance => nic::apply(ctx, task).await,
            Backend::RouteTable(routed) => route_table::apply(ctx, task, routed).await,
        }
    }

    /// For `spec`.
    pub fn route_table_id(&self) -> Option<String> {
        match self {
            Backend::Nic | Backend::Instance => None,
            Backend::RouteTable(routed) => Some(routed.table.to_string()),
        }
    }

    /// Whether this is where the pool's mode has its addresses, and the node's addresses are of the pool's
    /// range.
    pub fn serves(&self, pool: &NodeIPPool) -> bool {
        match self {
            Backend::Nic | Backend::Instance => pool.spec.mode != Mode::Route,
            Backend::RouteTable(routed) => routed.claim.is_some(),
        }
    }

    /// Whether the NIC must let packets of other addresses through.
    pub fn needs_forwarding(&self) -> bool {
        matches!(self, Backend::RouteTable(_))
    }

    /// Whether a reservation takes addresses out of the NIC's subnet.
    pub fn draws_on_subnet(&self) -> bool {
        !matches!(self, Backend::RouteTable(_))
    }

    /// Whether a certain address can be asked for.
    pub fn takes_asked_address(&self) -> bool {
        matches!(self, Backend::Nic)
    }

    /// Whether a resource can be attached to a single address.
    pub fn takes_attachments(&self) -> bool {
        !matches!(self, Backend::Instance)
    }

    /// The ranges that have a way back to a pod's own address, beside the VNet itself: peered networks to
    /// addresses of the NIC's subnet, other nodes' pods to those of a route table.
    pub fn reached_from(&self, network: &Network) -> Vec<Ipv4Net> {
        match self {
            Backend::Nic | Backend::Instance => network.peered.clone(),
            Backend::RouteTable(routed) => routed.within.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refusal_concerns_only_the_written_resources() {
        let in_group =
            |group: &str, rest: &str| format!("/subscriptions/s/resourceGroups/{group}/providers/{rest}");
        let id = in_group("g", "Microsoft.Network/networkInterfaces/n");
        let subnet = in_group("net", "Microsoft.Network/virtualNetworks/v/subnets/a");
        let nic: Interface = serde_json::from_value(
            json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": subnet}}),
        )
        .unwrap();
        let table = in_group("routes", "Microsoft.Network/routeTables/t");
        let routed = Routed { table: table.parse().unwrap(), within: None, claim: None };
        let routed = Backend::RouteTable(routed);
        let lower = |ids: &[&String]| ids.iter().map(|id| id.to_ascii_lowercase()).collect::<Vec<_>>();
        let reserves = Change { reserve: 1, ..Change::default() };
        let forwards = Change { forward: true, ..Change::default() };
        assert_eq!(Backend::Nic.sites(&nic, &reserves), lower(&[&id, &subnet]));
        assert_eq!(routed.sites(&nic, &reserves), lower(&[&table]));
        assert_eq!(routed.sites(&nic, &forwards), lower(&[&id, &subnet]));
        let both = Change { forward: true, ..reserves };
        assert_eq!(routed.sites(&nic, &both), lower(&[&id, &subnet, &table]));
    }
}
