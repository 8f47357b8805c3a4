//! The wiring `Bridge`: the host ends of a node's pods are ports of one bridge, which is the pods' gateway.
//! None of the node's own links is a port.
//!
//! ```text
//!   pod's namespace                       node's namespace
//!   eth0 10.1.2.3/32  ◀── veth pair ──▶ vnp0123456789a ─┐ port: isolated, locked to the pod's MAC
//!   (inside as in the wiring `Routed`)                  vnpbridge  MAC 02:76:6e:70:00:01, no address
//!                                                         10.1.2.3 dev vnpbridge, is at 0a:58:0a:01:02:03, permanently
//! ```
//!
//! Pods reach each other through the gateway, too, never from port to port: the replies of a Service must
//! come back through the node that translated the request, and all packets must pass the node's rules.
//! Nothing is learnt, and nothing that a pod sends is flooded: the entry that maps a pod to its port is
//! written when the pod is wired. The node's own broadcasts do reach every port, so the node mustn't have to
//! ask for a pod by ARP: it has a permanent entry for each. A port is locked to its pod's MAC, and the MAC
//! contains the address, so one rule for all pods can drop the packets that any of them sends under another's
//! address.

use std::{net::Ipv4Addr, path::Path};

use nix::{errno::Errno, net::if_::if_nametoindex};

use super::{
    Error, HOST_MAC, Identity, kernel,
    messages::{Body, Entry, Link, Neighbour, OURS, Route},
    netlink::{Change, Netlink},
    pod_mac, routes,
};

/// The bridge's name. It begins like those of all links that lead to pods
/// ([`LINK_PREFIX`](crate::sandbox::LINK_PREFIX)).
pub const BRIDGE: &str = "vnpbridge";

/// Makes the bridge, or sets right what differs. The agent does so before there is a configuration that asks
/// for the bridge, and with each inspection. Returns whether the bridge is new.
///
/// Its settings are below `net`: `/proc/sys/net` or where it is mounted.
pub fn ensure(mtu: u32, net: &Path) -> Result<bool, Error> {
    kernel::require(kernel::LOCKED_PORTS)?;
    let mut netlink = Netlink::open()?;
    let bridge = Body::link_named(BRIDGE).mac(HOST_MAC).mtu(Some(mtu)).bridge();
    let is_new = match netlink.apply([Change::new_link("create the pods' bridge", bridge)]) {
        Err(error) if error.is(Errno::EEXIST) => false,
        result => result.map(|()| true)?,
    };
    super::disable_ipv6(net, BRIDGE)?;
    let found = netlink.link(&Body::link_named(BRIDGE))?.ok_or(Error::NoBridge)?;
    if let Some(differing) = differing(&found, mtu) {
        netlink.apply([Change::set_link("set up the pods' bridge", differing)])?;
    }
    Ok(is_new)
}

/// What is to be set of the bridge that was found, if anything: it is to be up, with our MAC and this MTU.
///
/// The MAC is set only where it is another. The kernel takes each MAC that is set for a new one, and forgets
/// all the link's neighbours, permanent ones, too.
fn differing(found: &Link, mtu: u32) -> Option<Body> {
    let up = Body::link_up(found.index).mtu(Some(mtu));
    match (found.has_our_mac(), found.is_up && found.mtu == Some(mtu)) {
        (true, true) => None,
        (true, false) => Some(up),
        (false, _) => Some(up.mac(HOST_MAC)),
    }
}

/// Whether the node has the bridge. It asks for one name only.
pub fn is_there() -> bool {
    index().is_some()
}

pub(super) fn index() -> Option<u32> {
    if_nametoindex(BRIDGE).ok()
}

/// The index of the bridge if this link is a port of it: then the route to its pod leads there.
pub(super) fn of(link: &Link) -> Option<u32> {
    link.master.filter(|&master| index() == Some(master))
}

/// Deletes the bridge when no pod is left, for uninstalling. Ok if it is gone.
pub fn remove() -> Result<(), Error> {
    match Netlink::open()?.apply([Change::delete_link("delete the pods' bridge", Body::link_named(BRIDGE))]) {
        Err(error) if error.is(Errno::ENODEV) => Ok(()),
        result => result,
    }
}

/// Makes the new host end a port and routes the address there.
pub(super) fn connect(host: &mut Netlink, link: u32, identity: &Identity) -> Result<(), Error> {
    let bridge = index().ok_or(Error::NoBridge)?;
    let address = identity.address;
    let enslaved = Body::link_indexed(link).master(bridge);
    let port = Body::link_indexed(link).closed_port();
    // Its name comes as it is set up: to the agent a link that is down and has an alias is damaged.
    let up = Body::link_up(link).alias(&identity.to_string());
    // The entry must be new, so that an address that is in use behind another port is found before a second
    // pod has it. The entry goes with its port. The route to the bridge may be a dead pod's and is as good as
    // a new one.
    let wired = host.apply([
        Change::set_link("put the host's end into the pods' bridge", enslaved),
        Change::change_link("set the host's end up as a port", port),
        Change::new_port_entry("give the bridge the pod's MAC", link, address),
        Change::new_neighbour("give the node the pod's MAC", Neighbour::pod(bridge, address)),
        Change::set_link("set up the host's end of the veth pair", up),
    ]);
    wired.map_err(|error| if error.is(Errno::EEXIST) { Error::AddressRouted(address) } else { error })?;
    routes::ensure(host, address, bridge).map(drop)
}

/// Removes the address's route and neighbour entries. `port` is the index of its pod's link, if the link
/// still exists. Ok if there is nothing to remove, as for a pod of the other wiring.
pub fn disconnect(address: Ipv4Addr, port: Option<u32>) -> Result<(), Error> {
    let Some(bridge) = index() else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    routes::remove(&mut netlink, address, bridge)?;
    let mut gone = |change| match netlink.apply([change]) {
        Err(error) if error.is(Errno::ESRCH) || error.is(Errno::ENOENT) => Ok(()),
        result => result,
    };
    gone(Change::delete_entry("forget the pod's MAC", Body::neighbour(bridge, address)))?;
    let Some(port) = port else { return Ok(()) };
    match gone(Change::delete_entry("have the bridge forget the pod", Body::port_entry(port, address))) {
        // There is no port: the pod is of the other wiring, or its link is gone.
        Err(error) if [Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENODEV].iter().any(|&no| error.is(no)) => {
            Ok(())
        }
        result => result,
    }
}

/// The addresses that the node routes to the bridge, whether or not a port is still there for each. Without
/// any port, another program's route leads to no pod: nothing of ours removes it, so that it would keep its
/// address in use for ever.
pub fn addresses() -> Result<Vec<Ipv4Addr>, Error> {
    let Some(bridge) = index() else { return Ok(Vec::new()) };
    let mut netlink = Netlink::open()?;
    let routes = routes::main(&mut netlink)?;
    // After the routes: the port of a route that is listed may be gone, but none is overlooked.
    let links: Vec<Link> = netlink.dump("list the links", &Body::any_link())?;
    let has_ports = links.iter().any(|link| link.master == Some(bridge));
    let counts = |route: &&Route| route.link == Some(bridge) && (has_ports || route.protocol == OURS);
    Ok(routes.iter().filter(counts).filter_map(Route::host_address).collect())
}

/// Whether the bridge knows the MAC of the pod with this address behind its port.
pub(super) fn knows(host: &mut Netlink, port: u32, address: Ipv4Addr) -> Result<bool, Error> {
    let mac = Some(pod_mac(address));
    let entries: Vec<Entry> = host.dump("list the bridge's entries", &Body::any_bridge_entry())?;
    Ok(entries.iter().any(|entry| entry.link == port && entry.is_static() && entry.mac == mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::LINK_PREFIX;

    #[test]
    fn rules_for_the_links_of_pods_apply_to_the_bridge() {
        assert!(BRIDGE.starts_with(LINK_PREFIX));
    }
}
