//! The bodies of messages that are sent. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::NLA_HEADER_SIZE;
use nix::libc;

use super::super::pod_mac;
use super::objects::{Neighbour, Route, Rule};
use super::{
    ALIGN, BRIDGE, INET, LONGEST_SUPPRESSED, OURS, RULE_DESTINATION, RULE_MARK, RULE_MASK, RULE_PRIORITY,
    RULE_PROTOCOL, RULE_SOURCE, RULE_SUPPRESS_PREFIX_LEN, UP, VETH,
};

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
/// FR_ACT_TO_TBL of `linux/fib_rules.h`.
const RULE_TO_TABLE: u8 = 1;

/// What follows the netlink header in a message: the header of the object's kind, and attributes.
#[derive(Clone, Debug)]
pub struct Body(Vec<u8>);

impl Body {
    pub fn bytes(&self) -> &[u8] {
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
    pub fn link_named(name: &str) -> Body {
        Body::of_link(0, 0, 0).name(name)
    }

    /// A link by its index, whatever its name is.
    pub fn link_indexed(index: u32) -> Body {
        Body::of_link(index, 0, 0)
    }

    pub fn link_up(index: u32) -> Body {
        Body::of_link(index, UP, UP)
    }

    pub fn link_down(index: u32) -> Body {
        Body::of_link(index, 0, UP)
    }

    /// All links, to list them.
    pub fn any_link() -> Body {
        Body::of_link(0, 0, 0)
    }

    pub fn name(self, name: &str) -> Body {
        self.text(libc::IFLA_IFNAME, name)
    }

    /// Without the NUL that ends C's strings, for which the kernel leaves no room.
    pub fn alias(self, alias: &str) -> Body {
        self.with(libc::IFLA_IFALIAS, alias.as_bytes())
    }

    pub fn mac(self, mac: [u8; 6]) -> Body {
        self.with(libc::IFLA_ADDRESS, &mac)
    }

    pub fn mtu(self, mtu: Option<u32>) -> Body {
        self.number_if(libc::IFLA_MTU, mtu)
    }

    pub fn gso_max(self, size: Option<u32>) -> Body {
        self.number_if(libc::IFLA_GSO_MAX_SIZE, size)
    }

    /// The link is given one queue each way; a veth otherwise has one for each CPU.
    pub fn one_queue(self) -> Body {
        self.number(libc::IFLA_NUM_TX_QUEUES, 1).number(libc::IFLA_NUM_RX_QUEUES, 1)
    }

    /// The link is made in the network namespace of this open file.
    pub fn in_namespace(self, file: i32) -> Body {
        self.with(libc::IFLA_NET_NS_FD, &file.to_ne_bytes())
    }

    /// The link becomes a port of this one.
    pub fn master(self, index: u32) -> Body {
        self.number(libc::IFLA_MASTER, index)
    }

    /// A new link is a pair of this one and its peer.
    pub fn veth(self, peer: &Body) -> Body {
        self.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, VETH)
                .nest(libc::IFLA_INFO_DATA, |data| data.with(VETH_PEER, peer.bytes()))
        })
    }

    /// A new link is a bridge.
    pub fn bridge(self) -> Body {
        self.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, BRIDGE))
    }

    /// The settings of a bridge's port to which nothing is flooded but the bridge's own broadcasts, which
    /// learns nothing, and which takes no packet from another isolated port, nor from a MAC that the bridge
    /// doesn't know behind it.
    pub fn closed_port(self) -> Body {
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
    pub fn address(link: u32, address: Ipv4Addr, prefix_len: u8) -> Body {
        let mut bytes = vec![INET, prefix_len, 0, 0];
        bytes.extend(link.to_ne_bytes());
        Body(bytes).with(libc::IFA_LOCAL, &address.octets())
    }

    /// The address is also the one of its prefix, not the far end's.
    pub fn of_prefix(self, address: Ipv4Addr) -> Body {
        self.with(libc::IFA_ADDRESS, &address.octets())
    }

    /// All IPv4 addresses, to list them.
    pub fn any_address() -> Body {
        Body(vec![INET, 0, 0, 0, 0, 0, 0, 0])
    }

    /// `struct rtmsg` of `linux/rtnetlink.h`.
    pub fn route(route: &Route, flags: u32) -> Body {
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
    pub fn any_route() -> Body {
        Body::route(&Route::default(), 0)
    }

    /// The route that packets to this address take: the route itself, not the resolved path.
    pub fn route_to(address: Ipv4Addr) -> Body {
        let wanted = Route { prefix_len: 32, destination: Some(address), ..Route::default() };
        Body::route(&wanted, libc::RTM_F_FIB_MATCH)
    }

    /// A default route through a gateway that needn't be in a subnet of the link.
    pub fn default_route(table: u8, link: u32, gateway: Ipv4Addr) -> Body {
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
    pub fn neighbour(link: u32, address: Ipv4Addr) -> Body {
        Body::neighbour_of(libc::AF_INET, link, 0, 0).with(libc::NDA_DST, &address.octets())
    }

    /// A permanent neighbour entry, for which no ARP request is sent.
    pub fn permanent_neighbour(Neighbour { link, address, mac }: Neighbour) -> Body {
        Body::neighbour_of(libc::AF_INET, link, libc::NUD_PERMANENT, 0)
            .with(libc::NDA_DST, &address.octets())
            .with(libc::NDA_LLADDR, &mac)
    }

    /// A bridge's entry that maps the MAC of the pod with this address to its port.
    pub fn port_entry(port: u32, address: Ipv4Addr) -> Body {
        Body::neighbour_of(libc::AF_BRIDGE, port, libc::NUD_NOARP, libc::NTF_MASTER)
            .with(libc::NDA_LLADDR, &pod_mac(address))
    }

    /// All IPv4 neighbours, to list them.
    pub fn any_neighbour() -> Body {
        Body::neighbour_of(libc::AF_INET, 0, 0, 0)
    }

    /// All entries of bridges, to list them.
    pub fn any_bridge_entry() -> Body {
        Body::neighbour_of(libc::AF_BRIDGE, 0, 0, 0)
    }

    /// `struct fib_rule_hdr` of `linux/fib_rules.h`. With its protocol no other program's rule is meant, not
    /// even an identical one.
    pub fn rule(rule: &Rule) -> Body {
        let Rule { protocol, priority, source, destination, mark, mask, table, only_hosts } = rule;
        let [to, from] = [destination, source].map(Ipv4Net::prefix_len);
        Body(vec![INET, to, from, 0, *table, 0, 0, RULE_TO_TABLE, 0, 0, 0, 0])
            .address_if(RULE_DESTINATION, (to > 0).then(|| destination.network()))
            .with(RULE_SOURCE, &source.network().octets())
            .number(RULE_PRIORITY, *priority)
            .number_if(RULE_MARK, (*mark > 0).then_some(*mark))
            .number_if(RULE_MASK, (*mask > 0).then_some(*mask))
            .number_if(RULE_SUPPRESS_PREFIX_LEN, only_hosts.then_some(LONGEST_SUPPRESSED))
            .with(RULE_PROTOCOL, &[*protocol])
    }

    /// All IPv4 rules, to list them.
    pub fn any_rule() -> Body {
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
