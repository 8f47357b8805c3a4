//! Delegated IPAM, under the name `vnetpool-ipam`: another plugin asks for an address and wires the sandbox itself.
//!
//! The proof of life is the sandbox's namespace, since there is no link of ours. To the plugins that make pods neighbours of
//! their gateway, `bridge` and `ptp`, the address is given with its subnet and with a gateway out of it. For a bridge we see
//! to what nobody else does: the pods' addresses are of the node's own subnet, so the node has to be told that they are
//! behind the bridge, and the pods' questions for all others in it have to be answered.

use std::{net::Ipv4Addr, os::unix::fs::MetadataExt, path::Path};

use ipnet::Ipv4Net;

use super::{ADDRESS_WAIT, Error, Line, lock_and_cancel, recorded, wait};
use crate::{
    ledger::{
        Claim, Proof, Sandbox,
        file::{LOCK_WAIT, Store},
    },
    wiring::{self, Netns},
};

/// The pods' gateway: Azure reserves the first four addresses of each subnet, so that no VM ever has this one, and unlike
/// the first of them the node doesn't route by it itself.
fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 3)
}

/// By what a sandbox lives that another plugin wires.
pub(super) fn proof(netns: &Path) -> Proof {
    let inode = netns.metadata().ok().map(|metadata| metadata.ino());
    Proof::Namespace { path: netns.to_string_lossy().into_owned(), inode }
}

/// An address for the sandbox, with the prefix length and the gateway of `subnet`, or alone if there is none given. A second ADD
/// gives the same again.
pub(super) fn add(
    store: &Store,
    claim: Claim<'_>,
    netns: &Path,
    subnet: Option<Ipv4Net>,
    bridge: Option<&str>,
    line: &mut Line,
) -> Result<(Ipv4Net, Option<Ipv4Addr>), Error> {
    Netns::open(netns)?;
    let _lock = store.lock_sandbox(claim.sandbox, LOCK_WAIT)?;
    line.phase("lock");
    let address = wait::address(store, claim, ADDRESS_WAIT)?;
    line.address(address);
    line.phase("ledger");
    let routed = match (subnet, bridge) {
        (Some(subnet), _) if !subnet.contains(&address) => Err(Error::OtherSubnet { address, subnet }),
        (_, Some(bridge)) => wiring::route_to_bridge(address, bridge).map_err(Error::from),
        _ => Ok(()),
    };
    line.phase("route");
    if let Err(error) = routed {
        return Err(error.and(free(store, claim.sandbox, bridge).err()));
    }
    Ok(match subnet {
        Some(subnet) => {
            let address = Ipv4Net::new(address, subnet.prefix_len()).unwrap_or_else(|_| address.into());
            (address, Some(gateway(subnet)))
        }
        None => (address.into(), None),
    })
}

/// Takes the sandbox's address back, any number of times.
pub(super) fn del(
    store: &Store,
    sandbox: &Sandbox,
    bridge: Option<&str>,
    line: &mut Line,
) -> Result<(), Error> {
    let _lock = lock_and_cancel(store, sandbox)?;
    line.phase("lock");
    free(store, sandbox, bridge)?.into_iter().for_each(|address| line.address(address));
    line.phase("free");
    Ok(())
}

/// First the node's route to the address goes, if we made one, then the address is free. Without a ledger there is nothing to
/// free. Under the sandbox's lock.
pub(super) fn free(
    store: &Store,
    sandbox: &Sandbox,
    bridge: Option<&str>,
) -> Result<Option<Ipv4Addr>, Error> {
    let ledger = match store.read() {
        Err(error) if error.needs_rebuild() => return Ok(None),
        result => result?,
    };
    if let (Some(bridge), Some(address)) = (bridge, ledger.address_of(sandbox)) {
        wiring::unroute_from_bridge(address, bridge)?;
    }
    match store.with(|ledger, now| ledger.free(sandbox, now)) {
        Err(error) if error.needs_rebuild() => Ok(None),
        result => Ok(result?),
    }
}

/// Compares the ledger and the node's route with what ADD left; the wiring is the other plugin's to check.
pub(super) fn check(
    store: &Store,
    sandbox: &Sandbox,
    bridge: Option<&str>,
    expected: &[Ipv4Addr],
) -> Result<(), Error> {
    let _lock = store.lock_sandbox(sandbox, LOCK_WAIT)?;
    let address = recorded(store, sandbox, expected)?;
    let is_routed = match bridge {
        Some(bridge) => wiring::is_routed_to(address, bridge)?,
        None => true,
    };
    let missing =
        || Error::Damaged(vec![format!("the node doesn't route {address} to {}", bridge.unwrap_or("-"))]);
    if is_routed { Ok(()) } else { Err(missing()) }
}
