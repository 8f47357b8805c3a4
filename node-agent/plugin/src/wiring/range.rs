//! Ends packets to free addresses of the node's own range (mode `Route`) on the node.
//!
//! Azure routes the whole range to the node, and a pod's address has a host route. A packet to any other
//! address would follow the node's default route, Azure would send it here again, and so on until its TTL
//! ends.
//!
//! ```text
//!   unreachable 10.244.3.0/24 proto 176              answered by ICMP at once
//! ```
//! One route in the main table is enough: a rule that ignores all but host routes, as `steer`'s does, heeds
//! it all the same.

use ipnet::Ipv4Net;
use nix::{errno::Errno, libc};

use super::{
    Error,
    messages::{OURS, Route},
    netlink::{Change, Netlink},
    routes,
};

/// Ends packets to these ranges here unless a pod has the address, and packets to no other range. Idempotent.
/// The list is empty for a node that has no range. It lists all routes, so its cost grows with the pods.
pub fn close(ranges: &[Ipv4Net]) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let found: Vec<Ipv4Net> = routes::main(&mut netlink)?.iter().filter_map(closed).collect();
    for range in ranges.iter().filter(|range| !found.contains(range)) {
        let change = Change::new_unreachable("close the node's range to what no pod has", *range);
        match netlink.apply([change]) {
            // The range was routed elsewhere on purpose.
            Err(error) if error.is(Errno::EEXIST) => {}
            result => result?,
        }
    }
    for range in found.iter().filter(|range| !ranges.contains(range)) {
        let change = Change::delete_unreachable("open a range that was the node's", *range);
        match netlink.apply([change]) {
            Err(error) if error.is(Errno::ESRCH) => {}
            result => result?,
        }
    }
    Ok(())
}

/// The range that this route closes, if it is one of ours.
fn closed(route: &Route) -> Option<Ipv4Net> {
    let is_ours = route.kind == libc::RTN_UNREACHABLE && route.protocol == OURS;
    let range = Ipv4Net::new(route.destination?, route.prefix_len).ok()?;
    is_ours.then_some(range)
}
