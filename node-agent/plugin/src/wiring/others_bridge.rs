//! Routes to pods that another plugin has put behind its own bridge.

use std::{fs, net::Ipv4Addr, path::Path};

use nix::net::if_::if_nametoindex;

use super::{
    Error, NET, index_of,
    messages::{Body, Link},
    netlink::{Change, Destination, Netlink},
    routes, set,
};

/// The links of the network namespace for which sysfs is mounted.
const LINKS: &str = "/sys/class/net";
/// NET_ADDR_SET of `linux/netdevice.h`, in a link's `addr_assign_type`.
const SET: &str = "3";

/// Routes the address to a bridge of another plugin, since the node would expect its own subnet on the NIC's
/// link. Lets the bridge answer its pods' ARP requests for all addresses that aren't behind it, without
/// delay. Idempotent.
pub fn route_to_bridge(address: Ipv4Addr, bridge: &str) -> Result<(), Error> {
    let link = index_of(bridge)?;
    set(Path::new(NET), "ipv4/conf", bridge, "proxy_arp", "1")?;
    set(Path::new(NET), "ipv4/neigh", bridge, "proxy_delay", "0")?;
    let mut netlink = Netlink::open()?;
    // A bridge has the lowest MAC of its ports until one is set, so the MAC that its pods have learnt would
    // change with every port. Once is enough: each time the kernel forgets all the bridge's neighbours.
    if !keeps_its_mac(bridge, link)
        && let Some(mac) = netlink.link(&Body::link_named(bridge))?.and_then(|found| found.mac)
    {
        let kept = Body::link_indexed(link).mac(mac);
        netlink.apply([Change::set_link("have the bridge keep its MAC", kept)])?;
    }
    routes::ensure(&mut netlink, address, link).map(drop)
}

/// Whether the MAC of the link with this name and index was set. No message of the kernel shows that, and
/// sysfs only where it is mounted for this network namespace: otherwise it counts as not set.
fn keeps_its_mac(name: &str, index: u32) -> bool {
    let shows = |file: &str, value: &str| {
        let shown = fs::read_to_string(Path::new(LINKS).join(name).join(file));
        shown.is_ok_and(|shown| shown.trim() == value)
    };
    shows("ifindex", &index.to_string()) && shows("addr_assign_type", SET)
}

/// Removes the address's route of [`route_to_bridge`]. Ok if the route is gone, or the bridge.
pub fn unroute_from_bridge(address: Ipv4Addr, bridge: &str) -> Result<(), Error> {
    let Ok(link) = if_nametoindex(bridge) else { return Ok(()) };
    routes::remove(&mut Netlink::open()?, address, link)
}

/// Removes the address's route to the bridge of another plugin that it leads to, whatever its name: only that
/// plugin's configuration has the name, and the agent doesn't have that configuration. Ok if there is none.
pub fn unroute_from_any_bridge(address: Ipv4Addr) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let route = netlink.route_to(address)?.filter(|route| Destination::Host(address).is_of(route));
    let Some(index) = route.and_then(|route| route.link) else { return Ok(()) };
    match netlink.link(&Body::link_indexed(index))?.as_ref().is_some_and(Link::is_bridge) {
        true => routes::remove(&mut netlink, address, index),
        false => Ok(()),
    }
}
