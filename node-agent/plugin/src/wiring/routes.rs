//! Routes to single addresses in the main table: listing them, adding one, and seeing where one leads.

use std::net::Ipv4Addr;

use nix::errno::Errno;

use super::{
    Error,
    messages::{Body, MAIN, Route},
    netlink::{Change, Destination, Netlink},
};

/// The IPv4 routes of the main table.
pub(super) fn main(netlink: &mut Netlink) -> Result<Vec<Route>, Error> {
    of_table(netlink, MAIN)
}

/// The IPv4 routes of a table. The kernel lists what it has cached among them.
pub(super) fn of_table(netlink: &mut Netlink, table: u8) -> Result<Vec<Route>, Error> {
    let mut routes: Vec<Route> = netlink.dump("list the routes", &Body::any_route())?;
    routes.retain(|route| route.table == table && !route.is_cached);
    Ok(routes)
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
    Ok(route.is_some_and(|route| Destination::Host(address).is_of(&route) && route.link == Some(link)))
}

/// Whether the node routes just this address to the link of this name.
pub fn is_routed_to(address: Ipv4Addr, link: &str) -> Result<bool, Error> {
    let mut host = Netlink::open()?;
    match host.link(&Body::link_named(link))? {
        Some(link) => leads_to(&mut host, address, link.index),
        None => Ok(false),
    }
}
