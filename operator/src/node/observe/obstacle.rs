//! Why a node is to hold no addresses though nothing has failed. Pure but for the pools that it reads.

use kube::ResourceExt;
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::allocation::Interface;
use vnetpool_crds::pool::{Mode, PodRoute};
use vnetpool_crds::reason::Reason;

use crate::azure::{self, Network, ResourceId};
use crate::context::Context;
use crate::node::backend::Backend;
use crate::node_object::Node;
use crate::pod_cidr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    NoPool,
    /// There is no NIC that could hold them.
    Interface {
        reason: Reason,
        message: String,
    },
}

impl Obstacle {
    /// The node gives back its addresses at once: they are no surplus, its pool can't serve the node before.
    pub fn is_moving(&self) -> bool {
        matches!(self, Obstacle::Interface { reason: Reason::Moving, .. })
    }
}

/// The obstacle for a node with this NIC and this back-end. `primary` is the subnet of the VM's primary NIC,
/// if that is another one.
pub fn obstacle(
    ctx: &Context,
    pool: Option<&NodeIPPool>,
    (interface, primary): (&Interface, Option<&str>),
    node: &Node,
    backend: &Backend,
    network: Option<&Network>,
) -> Result<Option<Obstacle>, azure::Error> {
    let Some(pool) = pool else { return Ok(Some(Obstacle::NoPool)) };
    if let Some(mismatch) = mismatch(pool, interface, primary, node)? {
        return Ok(Some(mismatch));
    }
    let unfit = match &pool.spec.route {
        Some(pod_route) => unroutable(ctx, pool, pod_route, node, network)?,
        None => None,
    };
    // The node's reservations are of another kind than the pool's: they go first.
    Ok(unfit.or_else(|| (!backend.serves(pool)).then(|| moving(pool, node))))
}

/// Why the node can't have a route of the pool. `network` is the one around its NIC, if that could be read.
fn unroutable(
    ctx: &Context,
    pool: &NodeIPPool,
    route: &PodRoute,
    node: &Node,
    network: Option<&Network>,
) -> Result<Option<Obstacle>, azure::Error> {
    let pools = ctx.cluster.pools().state();
    let conflict = pod_cidr::conflict(pool, pools.iter().map(AsRef::as_ref), network);
    if let Some(message) = conflict {
        return Ok(Some(Obstacle::Interface { reason: Reason::RangeOverlap, message }));
    }
    let table: ResourceId = route.route_table_id.parse()?;
    let Some(network) = network.filter(|network| network.route_table.as_ref() != Some(&table)) else {
        return Ok(None);
    };
    let has = network.route_table.as_ref().map_or("none".to_owned(), ToString::to_string);
    let message = format!(
        "NodeIPPool {} has its routes in {table}, but the route table of node {}'s subnet is {has}. Associate {table} with \
         the subnet, or let the pool's nodeSelector leave this node out.",
        pool.name_any(),
        node.name_any(),
    );
    Ok(Some(Obstacle::Interface { reason: Reason::RouteTableNotAssociated, message }))
}

pub fn moving(pool: &NodeIPPool, node: &Node) -> Obstacle {
    let message = format!(
        "node {} still has pods with addresses of its former pool's mode or range. It gets none of NodeIPPool {} before the \
         last of these is given back: drain it.",
        node.name_any(),
        pool.name_any(),
    );
    Obstacle::Interface { reason: Reason::Moving, message }
}

/// The pool is for another subnet than the NIC's. A pool that names none is for the primary NIC's.
pub fn mismatch(
    pool: &NodeIPPool,
    interface: &Interface,
    primary: Option<&str>,
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
        return Ok(Some(Obstacle::Interface { reason: Reason::ModeUnavailable, message }));
    }
    let Some(wanted) = pool.spec.subnet_id.as_deref().or(primary) else { return Ok(None) };
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
    Ok(Some(Obstacle::Interface { reason: Reason::SubnetMismatch, message }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use vnetpool_crds::allocation::Subnet;

    const SUBNET: &str =
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a";

    fn node() -> Node {
        Node::default()
    }

    fn pool(spec: serde_json::Value) -> NodeIPPool {
        NodeIPPool::new("p", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_pool_for_another_subnet_serves_no_node_and_names_both_subnets() {
        let interface = Interface {
            subnet: Subnet { id: SUBNET.to_uppercase(), prefixes: vec![] },
            ..Default::default()
        };
        let same = pool(json!({"subnetID": SUBNET}));
        assert_eq!(mismatch(&same, &interface, None, &node()).unwrap(), None);
        let other = pool(json!({"subnetID": SUBNET.replace("subnets/a", "subnets/b")}));
        let Some(Obstacle::Interface { reason, message }) =
            mismatch(&other, &interface, None, &node()).unwrap()
        else {
            panic!("no obstacle");
        };
        assert_eq!(reason, "SubnetMismatch");
        assert!(message.contains("subnets/b") && message.contains("SUBNETS/A"));
        // Without a subnet of its own it is for the primary NIC, wherever that is.
        let unnamed = |primary| mismatch(&pool(json!({})), &interface, primary, &node()).unwrap();
        assert_eq!((unnamed(None), unnamed(Some(SUBNET))), (None, None));
        let elsewhere = SUBNET.replace("subnets/a", "subnets/primary");
        let Some(Obstacle::Interface { message, .. }) = unnamed(Some(&elsewhere)) else {
            panic!("no obstacle")
        };
        assert!(message.contains("subnets/primary"), "{message}");
    }

    #[test]
    fn a_pool_of_blocks_does_not_serve_an_instance_of_a_uniform_scale_set() {
        let instance = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/p/virtualMachines/0";
        let interface = |id: &str| Interface {
            id: id.into(),
            subnet: Subnet { id: SUBNET.into(), prefixes: vec![] },
            ..Default::default()
        };
        let on_instance = interface(&format!("{instance}/networkInterfaces/primary"));
        let ordinary = interface(&SUBNET.replace("virtualNetworks/v/subnets/a", "networkInterfaces/n"));
        let blocks = pool(json!({"mode": "Prefix"}));
        let addresses = pool(json!({}));
        assert_eq!(mismatch(&blocks, &ordinary, None, &node()).unwrap(), None);
        assert_eq!(mismatch(&addresses, &on_instance, None, &node()).unwrap(), None);
        let found = mismatch(&blocks, &on_instance, None, &node()).unwrap();
        assert!(
            matches!(found, Some(Obstacle::Interface { reason: Reason::ModeUnavailable, .. })),
            "{found:?}"
        );
    }
}
