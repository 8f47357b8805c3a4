//! What netlink messages are about: neighbours, and readers of links and routes. Pure.

use std::net::Ipv4Addr;

use netlink_packet_route::{
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

use super::{Identity, pod_mac};
use crate::sandbox::is_link_name;

/// A link, and the address and MAC of a neighbour there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Neighbour {
    pub link: u32,
    pub address: Ipv4Addr,
    pub mac: [u8; 6],
}

impl Neighbour {
    /// The pod with this address, as the node has it behind this link.
    pub(super) fn pod(link: u32, address: Ipv4Addr) -> Neighbour {
        Neighbour { link, address, mac: pod_mac(address) }
    }
}

/// The index of the link that the route leads to.
pub(super) fn link_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })
}

pub(super) fn gateway_of(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    })
}

/// The single address that the route is for.
pub(super) fn host_address(route: &RouteMessage) -> Option<Ipv4Addr> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    address.filter(|_| route.header.destination_prefix_length == 32)
}

pub(super) fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

/// The link that this one is a port of.
pub(super) fn master_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

/// Whether the link is a veth with a name that [`Sandbox::host_link`](crate::sandbox::Sandbox::host_link) can
/// give.
pub(super) fn is_ours(link: &LinkMessage) -> bool {
    is_of_kind(link, InfoKind::Veth) && name_of(link).is_some_and(is_link_name)
}

pub(super) fn is_bridge(link: &LinkMessage) -> bool {
    is_of_kind(link, InfoKind::Bridge)
}

fn is_of_kind(link: &LinkMessage, kind: InfoKind) -> bool {
    let kind = LinkInfo::Kind(kind);
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => info.contains(&kind),
        _ => false,
    })
}

pub(super) fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

pub(super) fn alias_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}

/// The sandbox that is wired by the link, according to its alias.
pub(super) fn identity_of(link: &LinkMessage) -> Option<Identity> {
    alias_of(link)?.parse().ok()
}

pub(super) fn mac_of(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Some(mac.as_slice()),
        _ => None,
    })
}

/// The index of a veth's other end, in any namespace.
pub(super) fn peer_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}
