//! A NodeIPAllocation as the ledger takes it in: a plain function of the object.

use std::time::Duration;

use ipnet::{Ipv4AddrRange, Ipv4Net};
use vnetpool_crds::{NodeIPAllocation, allocation::IpConfiguration};
use vnetpool_plugin::ledger::{Entry, Supply};

/// Why an object can't be used as a supply.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error(
        "somebody has made this NodeIPAllocation from a copy, and its record of the NIC may be long past: waiting for the operator to read the NIC"
    )]
    Copy,
    #[error(
        "ipConfiguration {name} has the address {address}, and this agent can use single IPv4 addresses (a.b.c.d/32) and blocks from /23 to /28 only: upgrade it"
    )]
    Address { name: String, address: String },
}

/// The object's content about this node's addresses. Whether it is meant for this Node and this boot is not
/// judged here.
///
/// One address that can't be read spoils the whole supply: taking in the rest would withdraw it as if it had
/// vanished.
pub fn supply(object: &NodeIPAllocation) -> Result<Supply, Invalid> {
    if object.is_copy() {
        return Err(Invalid::Copy);
    }
    let spec = &object.spec;
    Ok(Supply {
        object: object.metadata.uid.clone().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        node_uid: spec.node_uid.clone(),
        boot_id: spec.boot_id.clone(),
        cooldown: Duration::from(spec.cooldown),
        entries: spec.ip_configurations().map(entries).collect::<Result<Vec<_>, _>>()?.concat(),
    })
}

/// An entry for each address, all of them usable: those of a block are not a network of their own, with an
/// address for the network and one for broadcasts. Nor is a node's whole range in mode Route: no link has it.
fn entries(configuration: &IpConfiguration) -> Result<Vec<Entry>, Invalid> {
    let IpConfiguration { name, address, attached_to, backend_pools: _, public_address: _ } = configuration;
    let range = address.parse::<Ipv4Net>().ok().filter(|range| is_whole(*range));
    let range = range.ok_or_else(|| Invalid::Address { name: name.clone(), address: address.clone() })?;
    // Of an `Ipv4Net`, `hosts` would leave the first and the last out.
    let all = Ipv4AddrRange::new(range.network(), range.broadcast());
    let entry = |address| Entry { name: name.clone(), address, attached_to: attached_to.clone() };
    Ok(all.map(entry).collect())
}

/// Whether it is a range of a size there is, with no bits set behind its prefix.
fn is_whole(range: Ipv4Net) -> bool {
    matches!(range.prefix_len(), 23..=28 | 32) && range == range.trunc()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use vnetpool_crds::allocation::{Interface, NodeIPAllocationSpec};

    fn object(addresses: &[(&str, &str)]) -> NodeIPAllocation {
        let ip_configurations = addresses
            .iter()
            .map(|(name, address)| IpConfiguration {
                name: (*name).into(),
                address: (*address).into(),
                ..Default::default()
            })
            .collect();
        let mut object = NodeIPAllocation::new(
            "node-1",
            NodeIPAllocationSpec {
                interfaces: vec![Interface { ip_configurations, ..Default::default() }],
                ..sample::spec()
            },
        );
        object.metadata.uid = Some("uid-of-object".into());
        object.metadata.generation = Some(7);
        object
    }

    #[test]
    fn every_reservation_becomes_an_entry_under_its_name() {
        let supply = supply(&object(&[("vnp-1", "10.240.0.5/32"), ("vnp-2", "10.240.0.6/32")])).unwrap();
        let entries: Vec<_> =
            supply.entries.iter().map(|e| (e.name.as_str(), e.address.to_string())).collect();
        assert_eq!(entries, [("vnp-1", "10.240.0.5".to_owned()), ("vnp-2", "10.240.0.6".to_owned())]);
        assert_eq!((supply.object.as_str(), supply.generation), ("uid-of-object", 7));
        assert_eq!(supply.cooldown, Duration::from_secs(30));
    }

    #[test]
    fn a_block_becomes_an_entry_of_its_name_for_each_of_its_sixteen_addresses() {
        let entries =
            supply(&object(&[("vnp-1", "10.240.0.16/28"), ("vnp-2", "10.240.0.5/32")])).unwrap().entries;
        assert_eq!(entries.iter().filter(|entry| entry.name == "vnp-1").count(), 16);
        let addresses: Vec<_> = entries.iter().map(|entry| entry.address.to_string()).collect();
        assert_eq!((addresses[0].as_str(), addresses[15].as_str()), ("10.240.0.16", "10.240.0.31"));
        assert_eq!(addresses[16], "10.240.0.5");
    }

    #[test]
    fn an_address_kept_for_one_pod_is_an_entry_for_that_pod() {
        let mut object = object(&[("vnp-1", "10.240.0.5/32")]);
        object.spec.interfaces[0].ip_configurations[0].attached_to = Some("uid".into());
        assert_eq!(supply(&object).unwrap().entries[0].attached_to.as_deref(), Some("uid"));
    }

    #[test]
    fn an_object_made_from_a_copy_supplies_nothing() {
        let mut object = object(&[("vnp-1", "10.240.0.5/32")]);
        object.metadata.generation = Some(1);
        assert_eq!(supply(&object).unwrap_err(), Invalid::Copy);
    }

    #[test]
    fn a_range_of_another_size_or_nonsense_is_refused_by_name() {
        for address in
            ["10.240.0.16/29", "10.240.0.17/28", "10.240.0.0/22", "10.240.0.5", "fd00::1/128", "here"]
        {
            let error = supply(&object(&[("vnp-1", "10.240.0.5/32"), ("vnp-2", address)])).unwrap_err();
            assert_eq!(error, Invalid::Address { name: "vnp-2".into(), address: address.into() });
        }
    }
}
