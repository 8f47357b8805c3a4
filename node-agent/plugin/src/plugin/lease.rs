//! Delegated IPAM, under the name `vnetpool-ipam`: another plugin asks for an address and wires the sandbox
//! itself.
//!
//! The proof of life is the sandbox's namespace, since there is no link of ours. The plugins `bridge` and
//! `ptp` make pods neighbours of their gateway, so they get the address with its subnet and a gateway out of
//! it. A bridge needs two things that no other plugin provides, since the pods' addresses are of the node's
//! own subnet: the node needs routes to the bridge for them, and the bridge has to answer the pods' ARP
//! requests for all other addresses of the subnet.

use std::{net::Ipv4Addr, os::unix::fs::MetadataExt, path::Path};

use ipnet::Ipv4Net;

use super::{Add, Answer, Duty, Error, Line, Undone, free_in_ledger};
use crate::{
    cni::{Lease, Leased},
    ledger::{Proof, file::Store},
    sandbox::{Pod, Sandbox},
    wiring::{self, Identity},
};

impl Duty for Lease {
    fn proof(&self, _sandbox: &Sandbox, _pod: &Pod, netns: &Path) -> Proof {
        let inode = netns.metadata().ok().map(|metadata| metadata.ino());
        Proof::Namespace { path: netns.to_string_lossy().into_owned(), inode }
    }

    fn admit(&self, _store: &Store, _sandbox: &Sandbox) -> Result<(), Error> {
        Ok(()) // the other plugin decides what it can wire
    }

    fn has_served(&self, proof: &Proof) -> bool {
        matches!(proof, Proof::Namespace { .. })
    }

    /// The result has the prefix length and the gateway of `subnet`, or the address alone if no subnet is
    /// given.
    fn connect(&self, add: Add<'_>, line: &mut Line) -> Result<Answer, Error> {
        let Add { version, identity: &Identity { address, .. }, .. } = add;
        let routed = match (self.subnet, &self.bridge) {
            (Some(subnet), _) if !subnet.contains(&address) => Err(Error::OtherSubnet { address, subnet }),
            (_, Some(bridge)) => wiring::route_to_bridge(address, bridge).map_err(Error::from),
            _ => Ok(()),
        };
        line.phase("route");
        routed?;
        let (address, gateway) = match self.subnet {
            Some(subnet) => {
                let address = Ipv4Net::new(address, subnet.prefix_len()).unwrap_or_else(|_| address.into());
                (address, Some(gateway(subnet)))
            }
            None => (address.into(), None),
        };
        Ok(Answer::success(&Leased::new(version, address, gateway)))
    }

    /// Only the node's route: the wiring is the other plugin's to check.
    fn faults(&self, identity: &Identity, _netns: &Path) -> Result<Vec<String>, Error> {
        let Some(bridge) = &self.bridge else { return Ok(Vec::new()) };
        let address = identity.address;
        Ok(match wiring::is_routed_to(address, bridge)? {
            true => Vec::new(),
            false => vec![format!("the node doesn't route {address} to {bridge}")],
        })
    }

    fn free(&self, store: &Store, sandbox: &Sandbox, _pod: &Pod) -> Result<Undone, Error> {
        if let Some(bridge) = &self.bridge {
            match store.peek() {
                Err(error) if error.is_lasting() => return Ok(Undone { address: None, is_found: false }),
                ledger => {
                    let had = ledger?.address_of(sandbox);
                    had.map_or(Ok(()), |address| wiring::unroute_from_bridge(address, bridge))?;
                }
            }
        }
        let address = free_in_ledger(store, sandbox)?;
        Ok(Undone { address, is_found: address.is_some() })
    }

    /// After the loss of a ledger the address is unknown, but the route to it must go: once the address is
    /// another node's, this node's pods couldn't reach it.
    fn tidy(&self, _sandbox: &Sandbox, _netns: Option<&Path>, had: &[Ipv4Addr]) -> Result<(), Error> {
        let Some(bridge) = &self.bridge else { return Ok(()) };
        Ok(had.iter().try_for_each(|&address| wiring::unroute_from_bridge(address, bridge))?)
    }
}

/// The pods' gateway. Azure reserves the first four addresses of each subnet, so no VM ever has this one; and
/// unlike the first of them it isn't the node's own gateway.
fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 3)
}
