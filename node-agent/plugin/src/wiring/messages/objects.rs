//! The objects of the kernel that messages bring. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::libc;

use super::super::{HOST_MAC, Identity, pod_mac};
use super::{
    BRIDGE, INET, LONGEST_SUPPRESSED, RULE_DESTINATION, RULE_MARK, RULE_MASK, RULE_PRIORITY, RULE_PROTOCOL,
    RULE_SOURCE, RULE_SUPPRESS_PREFIX_LEN, UP, VETH, attributes,
};
use crate::sandbox::is_link_name;

/// A link, and the address and MAC of a neighbour there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    pub link: u32,
    pub address: Ipv4Addr,
    pub mac: [u8; 6],
}

impl Neighbour {
    /// The pod with this address, as the node has it behind this link.
    pub fn pod(link: u32, address: Ipv4Addr) -> Neighbour {
        Neighbour { link, address, mac: pod_mac(address) }
    }
}

/// An object of the kernel, as a message brings it.
pub trait Object: Sized {
    /// The kind of the message that brings a new one. The next kind means one that has gone, and the one
    /// after that asks for some.
    const NEW: u16;
    const GONE: u16 = Self::NEW + 1;
    const GET: u16 = Self::NEW + 2;

    /// `None` if the body is none of such an object.
    fn read(body: &[u8]) -> Option<Self>;
}

/// A link. What the kernel doesn't report of it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub is_up: bool,
    pub name: String,
    pub alias: String,
    /// As the kernel names it.
    pub kind: String,
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
    pub gso_max: Option<u32>,
    /// The link that this one is a port of.
    pub master: Option<u32>,
    /// The index of a veth's other end, in any namespace.
    pub peer: Option<u32>,
}

impl Object for Link {
    const NEW: u16 = libc::RTM_NEWLINK;

    fn read(body: &[u8]) -> Option<Link> {
        let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
        let mut link = Link { index, is_up: flags & UP != 0, ..Link::default() };
        for (kind, value) in attributes(body.get(16..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_IFALIAS => link.alias = text(value),
                libc::IFLA_LINKINFO => {
                    link.kind = find(value, libc::IFLA_INFO_KIND).map(text).unwrap_or_default()
                }
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0),
                libc::IFLA_GSO_MAX_SIZE => link.gso_max = u32_at(value, 0),
                libc::IFLA_MASTER => link.master = u32_at(value, 0),
                libc::IFLA_LINK => link.peer = u32_at(value, 0),
                _ => {}
            }
        }
        Some(link)
    }
}

impl Link {
    /// Whether the link is a veth with a name that [`Sandbox::host_link`](crate::sandbox::Sandbox::host_link)
    /// can give.
    pub fn is_ours(&self) -> bool {
        self.kind == VETH && is_link_name(&self.name)
    }

    pub fn is_bridge(&self) -> bool {
        self.kind == BRIDGE
    }

    /// Whether it has the MAC of every host end.
    pub fn has_our_mac(&self) -> bool {
        self.mac == Some(HOST_MAC)
    }

    /// The sandbox that is wired by the link, according to its alias.
    pub fn identity(&self) -> Option<Identity> {
        self.alias.parse().ok()
    }
}

/// A route. Its `destination` is the first address of those it is for; a default route has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub family: u8,
    pub prefix_len: u8,
    pub table: u8,
    pub protocol: u8,
    pub scope: u8,
    pub kind: u8,
    pub destination: Option<Ipv4Addr>,
    /// The kernel made it for itself, to remember what a single destination takes (RTM_F_CLONED).
    pub is_cached: bool,
    /// The link that it leads to.
    pub link: Option<u32>,
    pub gateway: Option<Ipv4Addr>,
}

impl Default for Route {
    /// A default route of IPv4, and the rest unspecified.
    fn default() -> Route {
        Route {
            family: INET,
            prefix_len: 0,
            table: libc::RT_TABLE_UNSPEC,
            protocol: libc::RTPROT_UNSPEC,
            scope: libc::RT_SCOPE_UNIVERSE,
            kind: libc::RTN_UNSPEC,
            destination: None,
            is_cached: false,
            link: None,
            gateway: None,
        }
    }
}

impl Object for Route {
    const NEW: u16 = libc::RTM_NEWROUTE;

    fn read(body: &[u8]) -> Option<Route> {
        let &[family, prefix_len, _, _, table, protocol, scope, kind] = body.first_chunk()?;
        let is_cached = u32_at(body, 8)? & libc::RTM_F_CLONED != 0;
        let mut route =
            Route { family, prefix_len, table, protocol, scope, kind, is_cached, ..Route::default() };
        for (kind, value) in attributes(body.get(12..)?) {
            match kind {
                libc::RTA_DST => route.destination = address(value),
                libc::RTA_OIF => route.link = u32_at(value, 0),
                libc::RTA_GATEWAY => route.gateway = address(value),
                _ => {}
            }
        }
        Some(route)
    }
}

impl Route {
    pub fn is_ipv4(&self) -> bool {
        self.family == INET
    }

    /// The single address that the route is for.
    pub fn host_address(&self) -> Option<Ipv4Addr> {
        self.destination.filter(|_| self.prefix_len == 32)
    }
}

/// An entry of the neighbours, or of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub link: u32,
    state: u16,
    pub mac: Option<[u8; 6]>,
    address: Option<Ipv4Addr>,
}

impl Object for Entry {
    const NEW: u16 = libc::RTM_NEWNEIGH;

    fn read(body: &[u8]) -> Option<Entry> {
        let (link, state) = (u32_at(body, 4)?, u16::from_ne_bytes(*body.get(8..)?.first_chunk()?));
        let mut entry = Entry { link, state, mac: None, address: None };
        for (kind, value) in attributes(body.get(12..)?) {
            match kind {
                libc::NDA_DST => entry.address = address(value),
                libc::NDA_LLADDR => entry.mac = value.try_into().ok(),
                _ => {}
            }
        }
        Some(entry)
    }
}

impl Entry {
    /// The neighbour of a permanent entry.
    pub fn permanent(&self) -> Option<Neighbour> {
        let neighbour = Neighbour { link: self.link, address: self.address?, mac: self.mac? };
        (self.state == libc::NUD_PERMANENT).then_some(neighbour)
    }

    /// Whether it stays until it is deleted.
    pub fn is_static(&self) -> bool {
        [libc::NUD_PERMANENT, libc::NUD_NOARP].contains(&self.state)
    }
}

/// An IPv4 address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    pub prefix_len: u8,
    pub address: Option<Ipv4Addr>,
}

impl Object for Address {
    const NEW: u16 = libc::RTM_NEWADDR;

    fn read(body: &[u8]) -> Option<Address> {
        let (prefix_len, link) = (*body.get(1)?, u32_at(body, 4)?);
        let local = find(body.get(8..)?, libc::IFA_LOCAL);
        Some(Address { link, prefix_len, address: local.and_then(address) })
    }
}

/// A routing rule by source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub protocol: u8,
    pub priority: u32,
    pub source: Ipv4Net,
    /// 0.0.0.0/0 if it is for packets to anywhere.
    pub destination: Ipv4Net,
    /// It is for packets whose mark has this value in the bits of the mask, which is 0 if any will do.
    pub mark: u32,
    pub mask: u32,
    pub table: u8,
    /// Only routes to single addresses count.
    pub only_hosts: bool,
}

impl Object for Rule {
    const NEW: u16 = libc::RTM_NEWRULE;

    fn read(body: &[u8]) -> Option<Rule> {
        let &[_, destination_len, source_len, _, table] = body.first_chunk()?;
        let mut rule = Rule::of(0, 0, Ipv4Net::default(), table);
        let [mut source, mut destination] = [Ipv4Addr::UNSPECIFIED; 2];
        for (kind, value) in attributes(body.get(12..)?) {
            match kind {
                RULE_PROTOCOL => rule.protocol = *value.first()?,
                RULE_PRIORITY => rule.priority = u32_at(value, 0)?,
                RULE_SOURCE => source = address(value)?,
                RULE_DESTINATION => destination = address(value)?,
                RULE_MARK => rule.mark = u32_at(value, 0)?,
                RULE_MASK => rule.mask = u32_at(value, 0)?,
                RULE_SUPPRESS_PREFIX_LEN => rule.only_hosts = u32_at(value, 0)? == LONGEST_SUPPRESSED,
                _ => {}
            }
        }
        let net = |address, length| Ipv4Net::new(address, length).ok();
        Some(Rule {
            source: net(source, source_len)?,
            destination: net(destination, destination_len)?,
            ..rule
        })
    }
}

impl Rule {
    /// Sends all packets from the source to the table.
    pub fn of(protocol: u8, priority: u32, source: Ipv4Net, table: u8) -> Rule {
        let destination = Ipv4Net::default();
        Rule { protocol, priority, source, destination, mark: 0, mask: 0, table, only_hosts: false }
    }
}

/// The value of the first attribute of this kind.
fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn u32_at(bytes: &[u8], start: usize) -> Option<u32> {
    bytes.get(start..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// A string of C's, with or without the NUL that ends it.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// An IPv4 address; `None` if it is one of IPv6.
fn address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}
