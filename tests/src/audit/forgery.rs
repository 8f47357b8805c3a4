//! Packets that pods send under addresses that aren't theirs: nobody may get one.

use super::Observation;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Two packets that a pod is to send to the VM, from its network namespace. Azure lets both pass, for the NIC
/// holds both addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgery {
    pub namespace: String,
    pub foreign: Ipv4Addr,
    pub own: Ipv4Addr,
}

/// Whether the VM has got each of these packets. That of the pod's own address comes last: where it arrives,
/// the other one didn't just get lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub foreign: bool,
    pub own: bool,
}

impl Observation {
    /// What a pod of each node is to send next: under an address of its node's NIC that isn't its own, and
    /// under its own.
    pub fn forgeries(&self) -> BTreeMap<String, Forgery> {
        let of = |(node, namespaces): (&String, &BTreeMap<String, BTreeSet<Ipv4Addr>>)| {
            let held = self.nics.get(node)?;
            let (namespace, own) = namespaces.iter().find_map(|(name, inside)| {
                let own = inside.first().filter(|own| inside.len() == 1 && held.contains(*own))?;
                Some((name.clone(), *own))
            })?;
            let foreign = held.iter().copied().find(|one| *one != own)?;
            Some((node.clone(), Forgery { namespace, foreign, own }))
        };
        self.inside.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::tests::{address, sound};

    #[test]
    fn a_pod_forges_an_address_that_its_nodes_nic_holds_and_that_is_not_its_own() {
        let forgery = |namespace: &str, foreign: u8, own: u8| Forgery {
            namespace: namespace.to_owned(),
            foreign: address(foreign),
            own: address(own),
        };
        let mut observation = sound();
        let of_a = ("node-1".to_owned(), forgery("cni-a", 3, 1));
        let of_b = ("node-2".to_owned(), forgery("cni-b", 4, 2));
        assert_eq!(observation.forgeries(), [of_a.clone(), of_b].into());
        // Azure wouldn't let a packet of this pod pass, and this NIC has no second address.
        observation.inside.get_mut("node-1").unwrap().insert("cni".to_owned(), [address(9)].into());
        observation.nics.get_mut("node-2").unwrap().remove(&address(4));
        assert_eq!(observation.forgeries(), [of_a].into());
        observation.nics.clear();
        assert_eq!(observation.forgeries(), BTreeMap::new());
    }
}
