//! Permanent neighbour entries: no ARP request is sent for them, and they don't count towards the number at
//! which the kernel takes no more (`gc_thresh3`), which one pod can reach with made-up destinations. They go
//! when their link is set down, or its MAC is set, even to the same.

use std::collections::HashSet;

use super::{
    Error,
    messages::{Body, Entry, Neighbour},
    netlink::{Change, Netlink},
};

/// Whether there is this entry. It asks the kernel for a single object.
pub(super) fn has(netlink: &mut Netlink, neighbour: Neighbour) -> Result<bool, Error> {
    let found = netlink.neighbour(neighbour.link, neighbour.address)?;
    Ok(found.as_ref().and_then(Entry::permanent) == Some(neighbour))
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
    let found: Vec<Entry> = netlink.dump("list the neighbours", &Body::any_neighbour())?;
    Ok(found.iter().filter_map(Entry::permanent).collect())
}
