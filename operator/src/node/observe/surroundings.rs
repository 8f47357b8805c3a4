//! The networks around a node's NICs: their subnets' prefixes, and the ranges that see pods under their own
//! addresses.

use std::sync::Arc;

use tracing::warn;
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::allocation::{NodeIPAllocationSpec, Subnet};

use super::interfaces::Occasion;
use crate::azure::{self, Network, ResourceId};
use crate::context::Context;
use crate::node::backend::Backend;

/// The network around a NIC's subnet. `None`: it can't be read now, or needn't be, and the values in `spec`
/// stay good.
///
/// # Errors
/// When no earlier value is known: without one, a pod's packets to the VNet would be translated, so its node
/// must wait.
pub async fn around(
    ctx: &Context,
    spec: &NodeIPAllocationSpec,
    subnet: &Subnet,
    occasion: Occasion,
) -> Result<Option<Arc<Network>>, azure::Error> {
    if occasion.is_held_back {
        return Ok(None);
    }
    let id: ResourceId = subnet.id.parse()?;
    match ctx.networks.around(&id).await {
        Ok(network) => Ok(Some(network)),
        Err(error) if spec.interfaces.iter().any(|one| is_same(&one.subnet, subnet)) => {
            warn!(subnet = %id, reason = %error.reason(), %error, "virtual network not read, its known prefixes stay");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A NIC's subnet with its prefixes; while its network can't be read, as `spec` has it.
pub fn subnet(network: Option<&Network>, spec: &NodeIPAllocationSpec, subnet: &Subnet) -> Subnet {
    if let Some(network) = network {
        let prefixes = network.subnet.iter().map(ToString::to_string).collect();
        return Subnet { prefixes, ..subnet.clone() };
    }
    let known = spec.interfaces.iter().find(|one| is_same(&one.subnet, subnet));
    known.map_or_else(|| subnet.clone(), |known| known.subnet.clone())
}

fn is_same(one: &Subnet, other: &Subnet) -> bool {
    one.id.eq_ignore_ascii_case(&other.id)
}

/// The ranges that see a pod under its own address: the VNet, the ranges with a way back to it, and those
/// that the pool names.
pub fn exclusions(network: &Network, pool: Option<&NodeIPPool>, backend: &Backend) -> Vec<String> {
    let named = pool.into_iter().flat_map(|pool| &pool.spec.snat.non_masquerade_cidrs);
    let mut ranges: Vec<ipnet::Ipv4Net> = named.filter_map(|range| range.parse().ok()).collect();
    ranges.extend(&network.address_space);
    ranges.extend(backend.reached_from(network));
    ranges.sort();
    ranges.dedup();
    ranges.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::backend::Routed;
    use serde_json::json;

    const SUBNET: &str =
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a";

    fn pool(spec: serde_json::Value) -> NodeIPPool {
        NodeIPPool::new("p", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn exclusions_are_the_ranges_of_vnet_peerings_and_pool_sorted_and_once() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let network = Network {
            id: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
                .parse()
                .unwrap(),
            address_space: nets(&["10.240.0.0/16"]),
            peered: nets(&["10.3.0.0/16"]),
            subnet: nets(&["10.240.0.0/20"]),
            route_table: None,
        };
        let pool = pool(json!({"snat": {"nonMasqueradeCIDRs": ["192.168.0.0/16", "10.3.0.0/16"]}}));
        assert_eq!(
            exclusions(&network, Some(&pool), &Backend::Nic),
            ["10.3.0.0/16", "10.240.0.0/16", "192.168.0.0/16"]
        );
    }

    #[test]
    fn a_network_without_a_route_to_a_pod_cidr_sees_the_nodes_address() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let vnet: ResourceId = SUBNET.parse::<ResourceId>().unwrap().parent().unwrap();
        let network = Network {
            address_space: nets(&["10.240.0.0/16"]),
            peered: nets(&["10.3.0.0/16"]),
            subnet: vec![],
            route_table: None,
            id: vnet.clone(),
        };
        let routed = Routed { table: vnet, within: "10.244.0.0/16".parse().ok(), claim: None };
        assert_eq!(
            exclusions(&network, None, &Backend::RouteTable(routed)),
            ["10.240.0.0/16", "10.244.0.0/16"]
        );
    }
}
