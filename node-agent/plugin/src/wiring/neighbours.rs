//! Permanent neighbour entries: no ARP request is sent for them, and they don't count towards the number at
//! which the kernel takes no more (`gc_thresh3`), which one pod can reach with made-up destinations. They go
//! when their link is set down or gets another MAC.

use std::collections::HashSet;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::{
    Error,
    messages::Neighbour,
    netlink::{Change, Netlink},
};

/// Whether there is this entry. It asks the kernel for a single object.
pub(super) fn has(netlink: &mut Netlink, neighbour: Neighbour) -> Result<bool, Error> {
    let found = netlink.neighbour(neighbour.link, neighbour.address)?;
    Ok(found.as_ref().and_then(permanent) == Some(neighbour))
}

/// Sees to the node's entry for a pod. Returns whether it had to be added.
pub(super) fn ensure(netlink: &mut Netlink, pod: Neighbour) -> Result<bool, Error> {
    if has(netlink, pod)? {
        return Ok(false);
    }
    netlink.apply([Change::new_neighbour("add the node's neighbour entry for the pod", pod)]).map(|()| true)
}

/// All there are, on all links.
pub(super) fn all(netlink: &mut Netlink) -> Result<HashSet<Neighbour>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    let found = netlink.dump("list the neighbours", &RouteNetlinkMessage::GetNeighbour(message))?;
    let found = found.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(found) => permanent(found),
        _ => None,
    });
    Ok(found.collect())
}

/// The neighbour of a permanent entry.
fn permanent(message: &NeighbourMessage) -> Option<Neighbour> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    });
    let neighbour = Neighbour { link: message.header.ifindex, address: address?, mac: mac? };
    (message.header.state == NeighbourState::Permanent).then_some(neighbour)
}
