//! Whether a pool's pod CIDR is free: pods whose addresses other machines have, too, can't be reached. Pure.

use ipnet::Ipv4Net;
use kube::ResourceExt;
use vnetpool_crds::NodeIPPool;

use crate::azure::Network;

/// A sentence about the overlap of the pool's pod CIDR that names both ranges. Between two pools the older
/// one is in the right.
pub fn conflict<'a>(
    pool: &NodeIPPool,
    pools: impl IntoIterator<Item = &'a NodeIPPool>,
    networks: impl IntoIterator<Item = &'a Network>,
) -> Option<String> {
    let own = cidr(pool)?;
    let overlaps = |other: &Ipv4Net| own.contains(other) || other.contains(&own);
    let age = |pool: &NodeIPPool| (pool.metadata.creation_timestamp.clone(), pool.name_any());
    let other_pool = pools
        .into_iter()
        .filter(|other| age(other) < age(pool))
        .filter_map(|other| Some((cidr(other)?, format!("podCIDR of NodeIPPool {}", other.name_any()))));
    let in_network = networks.into_iter().flat_map(|network| {
        let space =
            network.address_space.iter().map(|range| (*range, format!("address space of {}", network.id)));
        let peered =
            network.peered.iter().map(|range| (*range, format!("a network peered with {}", network.id)));
        space.chain(peered)
    });
    let (range, whose) = other_pool.chain(in_network).find(|(range, _)| overlaps(range))?;
    Some(format!(
        "route.podCIDR {own} of NodeIPPool {} overlaps {range}, {whose}. No pod gets an address of it: make a pool with a range \
         that nobody uses.",
        pool.name_any()
    ))
}

/// The other pools whose pod CIDR overlaps this range: the state of its pool decides about them.
pub fn overlapping<'a>(
    range: Ipv4Net,
    name: &str,
    pools: impl IntoIterator<Item = &'a NodeIPPool>,
) -> Vec<String> {
    let others = pools.into_iter().filter(|other| other.name_any() != name);
    let overlap =
        others.filter(|other| cidr(other).is_some_and(|own| own.contains(&range) || range.contains(&own)));
    overlap.map(ResourceExt::name_any).collect()
}

/// Where the pool's pods' addresses are from, if not from the VNet.
pub fn cidr(pool: &NodeIPPool) -> Option<Ipv4Net> {
    pool.spec.route.as_ref()?.pod_cidr.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    fn pool(name: &str, age: i64, cidr: &str) -> NodeIPPool {
        let route = json!({ "podCIDR": cidr, "routeTableID": "t" });
        let spec = serde_json::from_value(json!({ "mode": "Route", "route": route })).unwrap();
        let mut pool = NodeIPPool::new(name, spec);
        pool.metadata.creation_timestamp = Some(Time(Timestamp::from_second(age).unwrap()));
        pool
    }

    fn network() -> Network {
        Network {
            id: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
                .parse()
                .unwrap(),
            address_space: vec!["10.240.0.0/16".parse().unwrap()],
            peered: vec!["10.50.0.0/16".parse().unwrap()],
            subnet: vec![],
            route_table: None,
        }
    }

    #[test]
    fn a_range_that_the_vnet_or_a_peering_has_is_refused_and_both_are_named() {
        let conflict = |cidr: &str| conflict(&pool("p", 0, cidr), [], &[network()]);
        assert_eq!(conflict("10.244.0.0/16"), None);
        for (own, theirs) in [("10.240.128.0/20", "10.240.0.0/16"), ("10.48.0.0/13", "10.50.0.0/16")] {
            let message = conflict(own).unwrap();
            assert!(message.contains(own) && message.contains(theirs), "{message}");
        }
    }

    #[test]
    fn of_two_pools_with_one_range_the_older_keeps_it() {
        let (old, new) = (pool("old", 1, "10.244.0.0/16"), pool("new", 2, "10.244.8.0/22"));
        let all = [old.clone(), new.clone()];
        assert_eq!(conflict(&old, &all, []), None);
        assert!(conflict(&new, &all, []).unwrap().contains("podCIDR of NodeIPPool old"));
        assert_eq!(conflict(&new, &[pool("far", 0, "10.245.0.0/16")], []), None);
        let waiting = |pool: &NodeIPPool| overlapping(cidr(pool).unwrap(), &pool.name_any(), &all);
        assert_eq!((waiting(&old), waiting(&new)), (vec!["new".to_owned()], vec!["old".to_owned()]));
    }
}
