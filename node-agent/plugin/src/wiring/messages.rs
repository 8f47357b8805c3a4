//! The bodies of rtnetlink's messages: writing those that are sent, and reading the objects in those that
//! come. Pure.
//!
//! Only what is needed here is written and read. A library that knows every attribute of every object would
//! be a third of the plugin, and each of its pages that a verb touches is a page fault. It would also refuse
//! a whole list of links for an attribute that it can't read, and that nothing here asks for.

use std::{iter, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{DecodeError, NLA_HEADER_SIZE, NLA_TYPE_MASK, NetlinkBuffer};
use nix::libc;

use super::{HOST_MAC, Identity, pod_mac};
use crate::sandbox::is_link_name;

/// The main routing table.
pub(super) const MAIN: u8 = libc::RT_TABLE_MAIN;
/// The protocol of all our routes and rules: `ip route flush table all proto 176` removes them, and nothing
/// of ours changes those of another. `rt_protos` of iproute2 doesn't assign this number.
pub(super) const OURS: u8 = 176;

const INET: u8 = libc::AF_INET as u8;
const UP: u32 = libc::IFF_UP as u32;
/// VETH_INFO_PEER of `linux/veth.h`: the other end, as a link's header and its attributes.
const VETH_PEER: u16 = 1;
/// IFLA_BRPORT_… of `linux/if_link.h`: the settings of a bridge's port.
const PORT_LEARNING: u16 = 8;
const PORT_UNICAST_FLOOD: u16 = 9;
const PORT_MULTICAST_FLOOD: u16 = 27;
const PORT_BROADCAST_FLOOD: u16 = 30;
const PORT_ISOLATED: u16 = 33;
const PORT_LOCKED: u16 = 39;
/// RTNH_F_ONLINK of `linux/rtnetlink.h`: the gateway needn't be in a subnet of the link.
const ONLINK: u32 = 4;
/// FRA_… and FR_ACT_TO_TBL of `linux/fib_rules.h`.
const RULE_SOURCE: u16 = 2;
const RULE_PRIORITY: u16 = 6;
const RULE_SUPPRESS_PREFIX_LEN: u16 = 14;
const RULE_PROTOCOL: u16 = 21;
const RULE_TO_TABLE: u8 = 1;
/// Of a rule that takes only routes to single addresses from its table.
const LONGEST_SUPPRESSED: u32 = 31;
/// Messages in a datagram, and attributes in a message, are aligned to four bytes.
const ALIGN: usize = 4;

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

/// What follows the netlink header in a message: the header of the object's kind, and attributes.
#[derive(Clone, Debug)]
pub(super) struct Body(Vec<u8>);

impl Body {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// `struct ifinfomsg` of `linux/rtnetlink.h`. Of the flags only those in `change` are heeded.
    fn of_link(index: u32, flags: u32, change: u32) -> Body {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend([0; 4]); // family, padding, and the type of the link's hardware
        bytes.extend([index, flags, change].into_iter().flat_map(u32::to_ne_bytes));
        Body(bytes)
    }

    /// A link by its name, existing or new.
    pub(super) fn link_named(name: &str) -> Body {
        Body::of_link(0, 0, 0).name(name)
    }

    /// A link by its index, whatever its name is.
    pub(super) fn link_indexed(index: u32) -> Body {
        Body::of_link(index, 0, 0)
    }

    pub(super) fn link_up(index: u32) -> Body {
        Body::of_link(index, UP, UP)
    }

    pub(super) fn link_down(index: u32) -> Body {
        Body::of_link(index, 0, UP)
    }

    /// All links, to list them.
    pub(super) fn any_link() -> Body {
        Body::of_link(0, 0, 0)
    }

    pub(super) fn name(self, name: &str) -> Body {
        self.text(libc::IFLA_IFNAME, name)
    }

    /// Without the NUL that ends C's strings, for which the kernel leaves no room.
    pub(super) fn alias(self, alias: &str) -> Body {
        self.with(libc::IFLA_IFALIAS, alias.as_bytes())
    }

    pub(super) fn mac(self, mac: [u8; 6]) -> Body {
        self.with(libc::IFLA_ADDRESS, &mac)
    }

    pub(super) fn mtu(self, mtu: Option<u32>) -> Body {
        self.number_if(libc::IFLA_MTU, mtu)
    }

    pub(super) fn gso_max(self, size: Option<u32>) -> Body {
        self.number_if(libc::IFLA_GSO_MAX_SIZE, size)
    }

    /// The link is given one queue each way; a veth otherwise has one for each CPU.
    pub(super) fn one_queue(self) -> Body {
        self.number(libc::IFLA_NUM_TX_QUEUES, 1).number(libc::IFLA_NUM_RX_QUEUES, 1)
    }

    /// The link is made in the network namespace of this open file.
    pub(super) fn in_namespace(self, file: i32) -> Body {
        self.with(libc::IFLA_NET_NS_FD, &file.to_ne_bytes())
    }

    /// The link becomes a port of this one.
    pub(super) fn master(self, index: u32) -> Body {
        self.number(libc::IFLA_MASTER, index)
    }

    /// A new link is a pair of this one and its peer.
    pub(super) fn veth(self, peer: &Body) -> Body {
        self.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, VETH)
                .nest(libc::IFLA_INFO_DATA, |data| data.with(VETH_PEER, peer.bytes()))
        })
    }

    /// A new link is a bridge.
    pub(super) fn bridge(self) -> Body {
        self.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, BRIDGE))
    }

    /// The settings of a bridge's port to which nothing is flooded, which learns nothing, and which takes no
    /// packet from another isolated port, nor from a MAC that the bridge doesn't know behind it.
    pub(super) fn closed_port(self) -> Body {
        let settings = [
            (PORT_LEARNING, 0),
            (PORT_UNICAST_FLOOD, 0),
            (PORT_MULTICAST_FLOOD, 0),
            (PORT_BROADCAST_FLOOD, 0),
            (PORT_ISOLATED, 1),
            (PORT_LOCKED, 1),
        ];
        self.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_SLAVE_KIND, BRIDGE).nest(libc::IFLA_INFO_SLAVE_DATA, |data| {
                settings.into_iter().fold(data, |data, (setting, value)| data.with(setting, &[value]))
            })
        })
    }

    /// `struct ifaddrmsg` of `linux/if_addr.h`: an IPv4 address on a link.
    pub(super) fn address(link: u32, address: Ipv4Addr, prefix_len: u8) -> Body {
        let mut bytes = vec![INET, prefix_len, 0, 0];
        bytes.extend(link.to_ne_bytes());
        Body(bytes).with(libc::IFA_LOCAL, &address.octets())
    }

    /// The address is also the one of its prefix, not the far end's.
    pub(super) fn of_prefix(self, address: Ipv4Addr) -> Body {
        self.with(libc::IFA_ADDRESS, &address.octets())
    }

    /// All IPv4 addresses, to list them.
    pub(super) fn any_address() -> Body {
        Body(vec![INET, 0, 0, 0, 0, 0, 0, 0])
    }

    /// `struct rtmsg` of `linux/rtnetlink.h`.
    pub(super) fn route(route: &Route, flags: u32) -> Body {
        let Route {
            family,
            prefix_len,
            table,
            protocol,
            scope,
            kind,
            destination,
            is_cached: _,
            link,
            gateway,
        } = route;
        let mut bytes = Vec::with_capacity(64);
        bytes.extend([*family, *prefix_len, 0, 0, *table, *protocol, *scope, *kind]);
        bytes.extend(flags.to_ne_bytes());
        Body(bytes)
            .number_if(libc::RTA_OIF, *link)
            .address_if(libc::RTA_DST, *destination)
            .address_if(libc::RTA_GATEWAY, *gateway)
    }

    /// All IPv4 routes, to list them.
    pub(super) fn any_route() -> Body {
        Body::route(&Route::default(), 0)
    }

    /// The route that packets to this address take: the route itself, not the resolved path.
    pub(super) fn route_to(address: Ipv4Addr) -> Body {
        let wanted = Route { prefix_len: 32, destination: Some(address), ..Route::default() };
        Body::route(&wanted, libc::RTM_F_FIB_MATCH)
    }

    /// A default route through a gateway that needn't be in a subnet of the link.
    pub(super) fn default_route(table: u8, link: u32, gateway: Ipv4Addr) -> Body {
        let (link, gateway) = (Some(link), Some(gateway));
        let kind = libc::RTN_UNICAST;
        let route = Route { table, protocol: OURS, kind, link, gateway, ..Route::default() };
        Body::route(&route, ONLINK)
    }

    /// `struct ndmsg` of `linux/neighbour.h`.
    fn neighbour_of(family: i32, link: u32, state: u16, flags: u8) -> Body {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend([family as u8, 0, 0, 0]);
        bytes.extend(link.to_ne_bytes());
        bytes.extend(state.to_ne_bytes());
        bytes.extend([flags, 0]);
        Body(bytes)
    }

    /// A neighbour by its address.
    pub(super) fn neighbour(link: u32, address: Ipv4Addr) -> Body {
        Body::neighbour_of(libc::AF_INET, link, 0, 0).with(libc::NDA_DST, &address.octets())
    }

    /// A permanent neighbour entry, for which no ARP request is sent.
    pub(super) fn permanent_neighbour(Neighbour { link, address, mac }: Neighbour) -> Body {
        Body::neighbour_of(libc::AF_INET, link, libc::NUD_PERMANENT, 0)
            .with(libc::NDA_DST, &address.octets())
            .with(libc::NDA_LLADDR, &mac)
    }

    /// A bridge's entry that maps the MAC of the pod with this address to its port.
    pub(super) fn port_entry(port: u32, address: Ipv4Addr) -> Body {
        Body::neighbour_of(libc::AF_BRIDGE, port, libc::NUD_NOARP, libc::NTF_MASTER)
            .with(libc::NDA_LLADDR, &pod_mac(address))
    }

    /// All IPv4 neighbours, to list them.
    pub(super) fn any_neighbour() -> Body {
        Body::neighbour_of(libc::AF_INET, 0, 0, 0)
    }

    /// All entries of bridges, to list them.
    pub(super) fn any_bridge_entry() -> Body {
        Body::neighbour_of(libc::AF_BRIDGE, 0, 0, 0)
    }

    /// `struct fib_rule_hdr` of `linux/fib_rules.h`. With its protocol no other program's rule is meant, not
    /// even an identical one.
    pub(super) fn rule(rule: &Rule) -> Body {
        let Rule { protocol, priority, source, table, only_hosts } = rule;
        Body(vec![INET, 0, source.prefix_len(), 0, *table, 0, 0, RULE_TO_TABLE, 0, 0, 0, 0])
            .with(RULE_SOURCE, &source.network().octets())
            .number(RULE_PRIORITY, *priority)
            .number_if(RULE_SUPPRESS_PREFIX_LEN, only_hosts.then_some(LONGEST_SUPPRESSED))
            .with(RULE_PROTOCOL, &[*protocol])
    }

    /// All IPv4 rules, to list them.
    pub(super) fn any_rule() -> Body {
        Body(vec![INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Body {
        let length = (NLA_HEADER_SIZE + value.len()) as u16; // nothing here is near its bound
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    /// With the NUL that ends C's strings.
    fn text(self, kind: u16, text: &str) -> Body {
        self.with(kind, &[text.as_bytes(), b"\0"].concat())
    }

    fn number(self, kind: u16, number: u32) -> Body {
        self.with(kind, &number.to_ne_bytes())
    }

    fn number_if(self, kind: u16, number: Option<u32>) -> Body {
        match number {
            Some(number) => self.number(kind, number),
            None => self,
        }
    }

    fn address_if(self, kind: u16, address: Option<Ipv4Addr>) -> Body {
        match address {
            Some(address) => self.with(kind, &address.octets()),
            None => self,
        }
    }

    /// An attribute that consists of attributes.
    fn nest(self, kind: u16, fill: impl FnOnce(Body) -> Body) -> Body {
        let inner = fill(Body(Vec::with_capacity(128)));
        self.with(kind, inner.bytes())
    }
}

/// An object of the kernel, as a message brings it.
pub(super) trait Object: Sized {
    /// The kind of the message that brings a new one. The next kind means one that has gone, and the one
    /// after that asks for some.
    const NEW: u16;
    const GONE: u16 = Self::NEW + 1;
    const GET: u16 = Self::NEW + 2;

    /// `None` if the body is none of such an object.
    fn read(body: &[u8]) -> Option<Self>;
}

/// The kinds of links as the kernel names them.
const VETH: &str = "veth";
const BRIDGE: &str = "bridge";

/// A link. What the kernel doesn't tell of it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
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
    pub(super) fn is_ours(&self) -> bool {
        self.kind == VETH && is_link_name(&self.name)
    }

    pub(super) fn is_bridge(&self) -> bool {
        self.kind == BRIDGE
    }

    /// Whether it has the MAC of every host end.
    pub(super) fn has_our_mac(&self) -> bool {
        self.mac == Some(HOST_MAC)
    }

    /// The sandbox that is wired by the link, according to its alias.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.alias.parse().ok()
    }
}

/// A route. Its `destination` is the first address of those it is for; a default route has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
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
    pub(super) fn is_ipv4(&self) -> bool {
        self.family == INET
    }

    /// The single address that the route is for.
    pub(super) fn host_address(&self) -> Option<Ipv4Addr> {
        self.destination.filter(|_| self.prefix_len == 32)
    }
}

/// An entry of the neighbours, or of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
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
    pub(super) fn permanent(&self) -> Option<Neighbour> {
        let neighbour = Neighbour { link: self.link, address: self.address?, mac: self.mac? };
        (self.state == libc::NUD_PERMANENT).then_some(neighbour)
    }

    /// Whether it stays until it is deleted.
    pub(super) fn is_static(&self) -> bool {
        [libc::NUD_PERMANENT, libc::NUD_NOARP].contains(&self.state)
    }
}

/// An IPv4 address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
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
pub(super) struct Rule {
    pub protocol: u8,
    pub priority: u32,
    pub source: Ipv4Net,
    pub table: u8,
    /// Only routes to single addresses count.
    pub only_hosts: bool,
}

impl Object for Rule {
    const NEW: u16 = libc::RTM_NEWRULE;

    fn read(body: &[u8]) -> Option<Rule> {
        let (source_len, table) = (*body.get(2)?, *body.get(4)?);
        let mut rule =
            Rule { protocol: 0, priority: 0, source: Ipv4Net::default(), table, only_hosts: false };
        let mut source = Ipv4Addr::UNSPECIFIED;
        for (kind, value) in attributes(body.get(12..)?) {
            match kind {
                RULE_PROTOCOL => rule.protocol = *value.first()?,
                RULE_PRIORITY => rule.priority = u32_at(value, 0)?,
                RULE_SOURCE => source = address(value)?,
                RULE_SUPPRESS_PREFIX_LEN => rule.only_hosts = u32_at(value, 0)? == LONGEST_SUPPRESSED,
                _ => {}
            }
        }
        Some(Rule { source: Ipv4Net::new(source, source_len).ok()?, ..rule })
    }
}

/// Whether a message's body is about IPv4: all headers of those that have a family begin with it.
pub(super) fn is_ipv4(body: &[u8]) -> bool {
    body.first() == Some(&INET)
}

/// The messages of a datagram. One that is broken is the last.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, DecodeError>> {
    let mut rest = datagram;
    iter::from_fn(move || {
        let message = (!rest.is_empty()).then(|| NetlinkBuffer::new_checked(rest))?;
        let length = message.as_ref().map_or(rest.len(), |message| message.length() as usize);
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes, each with its kind and its value, up to the first that is cut off.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let &[length, more, kind @ ..] = rest.first_chunk::<NLA_HEADER_SIZE>()?;
        let length = usize::from(u16::from_ne_bytes([length, more]));
        let value = rest.get(NLA_HEADER_SIZE..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((u16::from_ne_bytes(kind) & NLA_TYPE_MASK, value))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_as_they_were_written() {
        let (address, gateway) = (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(169, 254, 1, 1));
        let link = Link {
            index: 7,
            is_up: true,
            name: "vnp0d7763386da".to_owned(),
            alias: "somebody's".to_owned(),
            kind: BRIDGE.to_owned(),
            mac: Some(HOST_MAC),
            mtu: Some(1400),
            gso_max: Some(62_780),
            master: Some(3),
            peer: None,
        };
        let written = Body::link_up(7).name(&link.name).alias(&link.alias).mac(HOST_MAC).bridge();
        let written = written.mtu(link.mtu).gso_max(link.gso_max).master(3);
        assert_eq!(Link::read(written.bytes()), Some(link));

        let route = Route {
            prefix_len: 32,
            table: MAIN,
            protocol: OURS,
            scope: libc::RT_SCOPE_LINK,
            kind: libc::RTN_UNICAST,
            destination: Some(address),
            link: Some(7),
            gateway: Some(gateway),
            ..Route::default()
        };
        assert_eq!(Route::read(Body::route(&route, 0).bytes()), Some(route));

        let neighbour = Neighbour::pod(7, address);
        let entry = Entry::read(Body::permanent_neighbour(neighbour).bytes());
        assert_eq!(entry.and_then(|entry| entry.permanent()), Some(neighbour));

        let written = Body::address(7, address, 20);
        let read = Address { link: 7, prefix_len: 20, address: Some(address) };
        assert_eq!(Address::read(written.bytes()), Some(read));

        for only_hosts in [true, false] {
            let source = Ipv4Net::new(address, 24).unwrap().trunc();
            let rule = Rule { protocol: OURS, priority: 7600, source, table: 176, only_hosts };
            assert_eq!(Rule::read(Body::rule(&rule).bytes()), Some(rule));
        }
    }

    #[test]
    fn an_object_that_is_cut_off_is_read_as_far_as_it_goes() {
        let whole = Body::link_up(7).name("eth0").mtu(Some(1400));
        for end in 0..whole.bytes().len() {
            let read = Link::read(&whole.bytes()[..end]);
            assert_eq!(read.is_some(), end >= 16, "{end}");
            assert!(read.is_none_or(|link| link.mtu.is_none()), "{end}");
        }
    }

    #[test]
    fn attributes_of_any_length_and_kind_are_read_to_an_end() {
        let with = |attribute: &[u8]| [&[0_u8; 16][..], attribute].concat();
        let name = u8::try_from(libc::IFLA_IFNAME).unwrap();
        for length in [0_u16, 1, 3, 4, 5, 9, 65_535] {
            for nested in [0, 0x80] {
                let [low, high] = length.to_ne_bytes();
                let attribute = [low, high, name, nested, b'e', b't', b'h', 0];
                let read = Link::read(&with(&[attribute, attribute].concat()));
                assert!(read.is_some_and(|link| link.name.len() <= 4), "{length}");
            }
        }
    }
}
