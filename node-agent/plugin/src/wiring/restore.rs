//! Repairs changes by other programs on the node to the host's end of a wired sandbox.

use std::fmt;

use super::{
    Error, HOST_MAC, Identity, bridge,
    messages::{Body, Neighbour},
    neighbours,
    netlink::{Change, Netlink},
    routes,
};

/// The parts that were not as ADD left them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Damage {
    /// The host's end was down.
    Down,
    /// The host's end had another MAC than the one the pod sends to.
    Mac,
    /// The node's route to the pod was missing.
    Route,
    /// The node's neighbour entry for the pod was missing.
    Neighbour,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Damage::Down => "set up again the link that somebody had set down",
            Damage::Mac => "restored the MAC",
            Damage::Route => "restored the route",
            Damage::Neighbour => "restored the neighbour entry",
        })
    }
}

/// Restores the work of [`connect`](super::connect) on the host end with this index for this sandbox, and
/// returns the restored parts. Must run under the sandbox's lock. A link whose alias has changed belongs to
/// no sandbox, or to a later ADD, and is left alone.
///
/// It asks the kernel for single objects only, so its cost doesn't grow with the node's pods.
pub fn restore(index: u32, identity: &Identity) -> Result<Vec<Damage>, Error> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(&Body::link_indexed(index))? else { return Ok(Vec::new()) };
    if link.identity().as_ref() != Some(identity) {
        return Ok(Vec::new());
    }
    let mut damage = Vec::new();
    if !link.has_our_mac() {
        let mac = Body::link_up(index).mac(HOST_MAC);
        netlink.apply([Change::set_link("restore the MAC of the host's end", mac)])?;
        damage.push(Damage::Mac);
    }
    if !link.is_up {
        netlink.apply([Change::set_link("set up the host's end again", Body::link_up(index))])?;
        damage.push(Damage::Down);
    }
    let leads_to = bridge::of(&link).unwrap_or(index);
    if routes::ensure(&mut netlink, identity.address, leads_to)? {
        damage.push(Damage::Route);
    }
    if neighbours::ensure(&mut netlink, Neighbour::pod(leads_to, identity.address))? {
        damage.push(Damage::Neighbour);
    }
    Ok(damage)
}
