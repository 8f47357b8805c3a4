//! Routes to single addresses in the main table: listing them, adding one, and seeing where one leads.

use std::net::Ipv4Addr;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, route::RouteMessage};
use nix::errno::Errno;

use super::{
    Error,
    messages::link_of,
    netlink::{Change, Destination, MAIN, Netlink, link_named},
};

/// The IPv4 routes of the main table.
pub(super) fn main(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, Error> {
    of_table(netlink, MAIN)
}

/// The IPv4 routes of a table.
pub(super) fn of_table(netlink: &mut Netlink, table: u8) -> Result<Vec<RouteMessage>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump("list the routes", &RouteNetlinkMessage::GetRoute(message))?;
    let routes = routes.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) if route.header.table == table => Some(route),
        _ => None,
    });
    Ok(routes.collect())
}

/// Routes the address to the link. Returns whether the route had to be added: another program's serves as
/// well. A route of this address that leads elsewhere is an error.
pub(super) fn ensure(netlink: &mut Netlink, address: Ipv4Addr, link: u32) -> Result<bool, Error> {
    let route = Change::new_route("add the node's route to the pod", link, Destination::Host(address), None);
    match netlink.apply([route]) {
        Err(error) if error.is(Errno::EEXIST) => match leads_to(netlink, address, link)? {
            true => Ok(false),
            false => Err(Error::AddressRouted(address)),
        },
        result => result.map(|()| true),
    }
}

/// Removes our route of the address to the link. Ok if there is none; another program's stays.
pub(super) fn remove(netlink: &mut Netlink, address: Ipv4Addr, link: u32) -> Result<(), Error> {
    let change = Change::delete_route("remove the node's route to the pod", link, Destination::Host(address));
    match netlink.apply([change]) {
        Err(error) if error.is(Errno::ESRCH) || error.is(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// Whether just this address is routed to the link of this index.
pub(super) fn leads_to(netlink: &mut Netlink, address: Ipv4Addr, link: u32) -> Result<bool, Error> {
    let route = netlink.route_to(address)?;
    Ok(route.is_some_and(|route| Destination::Host(address).is_of(&route) && link_of(&route) == Some(link)))
}

/// Whether the node routes just this address to the link of this name.
pub fn is_routed_to(address: Ipv4Addr, link: &str) -> Result<bool, Error> {
    let mut host = Netlink::open()?;
    match host.link(link_named(link))? {
        Some(link) => leads_to(&mut host, address, link.header.index),
        None => Ok(false),
    }
}
