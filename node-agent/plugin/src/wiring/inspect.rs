//! Looking at the wiring that is there: whether one sandbox's is whole, and all host links of the node.

use std::{collections::HashMap, fmt, net::Ipv4Addr, str::FromStr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
};

use nix::net::if_::if_nametoindex;

use super::{
    Error, GATEWAY, HOST_MAC, Netns,
    bridge::{self, BRIDGE},
    host_end,
    netlink::{Destination, Netlink, link_named},
};
use crate::ledger::{Occupant, Pod, Proof, Sandbox};

/// Bytes of a link's alias, without the NUL behind it (IFALIASZ of linux/if.h).
const ALIAS_SIZE: usize = 255;
/// First word of our aliases.
const ALIAS_MARK: &str = "vnetpool/1";

/// Who is wired to which address; written on the host link as its alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub address: Ipv4Addr,
    pub sandbox: Sandbox,
    /// Its name, then its namespace, are left out on the link if the alias would get too long.
    pub pod: Pod,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            address,
            sandbox: Sandbox { container_id, ifname },
            pod: Pod { namespace, name, uid },
        } = self;
        let text = |namespace: &str, name: &str| {
            let word = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            let (uid, namespace, name) = (word(uid), word(namespace), word(name));
            format!("{ALIAS_MARK} {address} {container_id} {ifname} {uid} {namespace} {name}")
        };
        let candidates = [text(namespace, name), text(namespace, ""), text("", "")];
        let fitting = candidates.iter().find(|text| text.len() <= ALIAS_SIZE);
        f.write_str(fitting.unwrap_or(&candidates[2]))
    }
}

impl FromStr for Identity {
    type Err = ();

    fn from_str(alias: &str) -> Result<Identity, ()> {
        let words: Vec<&str> = alias.split(' ').collect();
        let &[ALIAS_MARK, address, container_id, ifname, uid, namespace, name] = &words[..] else {
            return Err(());
        };
        let word = |word: &str| if word == "-" { String::new() } else { word.to_owned() };
        Ok(Identity {
            address: address.parse().map_err(|_| ())?,
            sandbox: Sandbox { container_id: container_id.to_owned(), ifname: ifname.to_owned() },
            pod: Pod { namespace: word(namespace), name: word(name), uid: word(uid) },
        })
    }
}

/// A host's end of a veth pair of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    pub name: String,
    pub index: u32,
    pub up: bool,
    /// Whether it has the MAC that its pod sends to.
    pub has_our_mac: bool,
    /// None once [`disconnect`](super::disconnect) has been here.
    pub identity: Option<Identity>,
    /// The addresses that the node routes to this link.
    pub routes: Vec<Ipv4Addr>,
}

impl HostLink {
    /// Whether the link was taken down for good: it holds no address and only waits for its namespace to end.
    pub fn is_silenced(&self) -> bool {
        !self.up && self.identity.is_none() && self.routes.is_empty()
    }

    /// Whether a pod is wired here and not all is as ADD left it. A look without the sandbox's lock may fall into the middle
    /// of a verb.
    pub fn is_damaged(&self) -> bool {
        self.identity.as_ref().is_some_and(|Identity { address, .. }| {
            !self.up || !self.has_our_mac || !self.routes.contains(address)
        })
    }

    /// The addresses in use behind this link and by whom. Unknown means in use: a route is believed without an identity,
    /// and an identity without its route.
    pub fn occupants(&self) -> Vec<Occupant> {
        let known = self.identity.iter().map(|Identity { address, sandbox, pod }| Occupant {
            sandbox: sandbox.clone(),
            pod: pod.clone(),
            address: *address,
            proof: Proof::Link(self.name.clone()),
        });
        let is_known = |address| self.identity.as_ref().is_some_and(|identity| identity.address == address);
        let unknown = self.routes.iter().filter(|&&address| !is_known(address)).map(|&address| Occupant {
            sandbox: Sandbox { container_id: String::new(), ifname: address.to_string() },
            pod: Pod::default(),
            address,
            proof: Proof::Link(self.name.clone()),
        });
        known.chain(unknown).collect()
    }
}

/// All addresses in use on the node, by what is wired: behind each host link, and those routed to the bridge that no port
/// accounts for.
pub fn occupants() -> Result<Vec<Occupant>, Error> {
    let mut occupants: Vec<Occupant> = host_links()?.iter().flat_map(HostLink::occupants).collect();
    for address in bridge::addresses()? {
        if !occupants.iter().any(|occupant| occupant.address == address) {
            let sandbox = Sandbox { container_id: String::new(), ifname: address.to_string() };
            let proof = Proof::Link(BRIDGE.to_owned());
            occupants.push(Occupant { sandbox, pod: Pod::default(), address, proof });
        }
    }
    Ok(occupants)
}

/// All host links of ours in the current network namespace, from one dump of the links and one of the routes. For the
/// agent: its cost grows with the pods.
pub fn host_links() -> Result<Vec<HostLink>, Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.dump("list the links", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut routes: HashMap<u32, Vec<Ipv4Addr>> = HashMap::new();
    for route in main_routes(&mut netlink)? {
        if let (Some(link), Some(address)) = (link_of(&route), host_address(&route)) {
            routes.entry(link).or_default().push(address);
        }
    }
    let links = links.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if is_ours(&link) => Some(link),
        _ => None,
    });
    let bridge = bridge_index();
    let bridged = bridge.and_then(|bridge| routes.remove(&bridge)).unwrap_or_default();
    let host_link = |link: LinkMessage| {
        let identity: Option<Identity> = alias_of(&link).and_then(|alias| alias.parse().ok());
        let is_port = bridge.is_some() && master_of(&link) == bridge;
        let behind = identity.as_ref().map(|identity| identity.address).filter(|_| is_port);
        HostLink {
            name: name_of(&link).unwrap_or_default().to_owned(),
            index: link.header.index,
            up: is_up(&link),
            has_our_mac: mac_of(&link) == Some(&HOST_MAC),
            identity,
            // All ports' routes lead to the bridge: which is whose is known by the address.
            routes: match behind {
                Some(address) => bridged.iter().copied().filter(|&routed| routed == address).collect(),
                None => routes.remove(&link.header.index).unwrap_or_default(),
            },
        }
    };
    Ok(links.map(host_link).collect())
}

/// Whether the node routes just this address to the link of this name.
pub fn is_routed_to(address: Ipv4Addr, link: &str) -> Result<bool, Error> {
    let mut host = Netlink::open()?;
    let index = host.link(link_named(link))?.map(|link| link.header.index);
    let route = host.route_to(address)?;
    let is_to = |route: RouteMessage| Destination::Host(address).is_of(&route) && link_of(&route) == index;
    Ok(index.is_some() && route.is_some_and(is_to))
}

/// What is wrong with the sandbox's wiring, in sentences; empty if it is whole. Repairs nothing.
pub fn damage(netns: &Netns, identity: &Identity) -> Result<Vec<String>, Error> {
    let &Identity { address, ref sandbox, ref pod } = identity;
    let mut damage = Vec::new();

    let mut host = Netlink::open()?;
    let host_end = host_end::find(&mut host, sandbox, pod)?;
    let named = host_end.as_ref().and_then(name_of).map(str::to_owned);
    let host_link = named.unwrap_or_else(|| sandbox.host_link(pod));
    match &host_end {
        None => damage.push(format!("the host's end {host_link} is missing")),
        Some(link) if !is_up(link) => damage.push(format!("the host's end {host_link} is down")),
        Some(link) if mac_of(link) != Some(&HOST_MAC) => {
            damage.push(format!("the MAC of {host_link} was changed"))
        }
        Some(_) => {}
    }
    let host_index = host_end.as_ref().map(|link| link.header.index);
    let master = host_end.as_ref().and_then(master_of);
    let is_port = master.is_some() && master == bridge_index();
    let route = host.route_to(address)?;
    let leads_to = if is_port { master } else { host_index };
    let is_routed =
        route.is_some_and(|route| Destination::Host(address).is_of(&route) && link_of(&route) == leads_to);
    if !is_routed {
        let to = if is_port { BRIDGE } else { &host_link };
        damage.push(format!("the node doesn't route {address} to {to}"));
    }
    if let (true, Some(port)) = (is_port, host_index) {
        damage.extend(bridge::damage(&mut host, port, address)?);
    }

    let ifname = &sandbox.ifname;
    netns.inside(|| {
        let mut pod = Netlink::open()?;
        let Some(pod_end) = pod.link(link_named(ifname))? else {
            damage.push(format!("the pod has no interface {ifname}"));
            return Ok(());
        };
        let pod_index = pod_end.header.index;
        if !is_up(&pod_end) {
            damage.push(format!("the pod's {ifname} is down"));
        }
        if peer_of(&pod_end) != host_index || host_end.as_ref().and_then(peer_of) != Some(pod_index) {
            damage.push(format!("the pod's {ifname} is not the other end of {host_link}"));
        }
        if !has_address(&mut pod, pod_index, address)? {
            damage.push(format!("the pod's {ifname} lacks the address {address}/32"));
        }
        let routes = main_routes(&mut pod)?;
        let has_route = |to: Destination, gateway: Option<Ipv4Addr>| {
            routes.iter().any(|route| {
                to.is_of(route) && link_of(route) == Some(pod_index) && gateway_of(route) == gateway
            })
        };
        if !has_route(Destination::Host(GATEWAY), None) {
            damage.push(format!("the pod lacks the route to {GATEWAY}"));
        }
        if !has_route(Destination::Default, Some(GATEWAY)) {
            damage.push(format!("the pod lacks the default route via {GATEWAY}"));
        }
        if !has_neighbour(&mut pod, pod_index)? {
            damage.push(format!("the pod lacks the permanent neighbour entry for {GATEWAY}"));
        }
        Ok(())
    })?;
    Ok(damage)
}

fn has_address(netlink: &mut Netlink, link: u32, address: Ipv4Addr) -> Result<bool, Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let addresses = netlink.dump("list the pod's addresses", &RouteNetlinkMessage::GetAddress(message))?;
    Ok(addresses.iter().any(|message| match message {
        RouteNetlinkMessage::NewAddress(found) => {
            found.header.index == link
                && found.header.prefix_len == 32
                && found.attributes.contains(&AddressAttribute::Local(address.into()))
        }
        _ => false,
    }))
}

fn has_neighbour(netlink: &mut Netlink, link: u32) -> Result<bool, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    let neighbours =
        netlink.dump("list the pod's neighbours", &RouteNetlinkMessage::GetNeighbour(message))?;
    Ok(neighbours.iter().any(|message| match message {
        RouteNetlinkMessage::NewNeighbour(found) => {
            found.header.ifindex == link
                && found.header.state == NeighbourState::Permanent
                && found
                    .attributes
                    .contains(&NeighbourAttribute::Destination(NeighbourAddress::Inet(GATEWAY)))
                && found.attributes.contains(&NeighbourAttribute::LinkLayerAddress(HOST_MAC.to_vec()))
        }
        _ => false,
    }))
}

/// The IPv4 routes of the main table.
pub(super) fn main_routes(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump("list the routes", &RouteNetlinkMessage::GetRoute(message))?;
    let routes = routes.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => {
            Some(route)
        }
        _ => None,
    });
    Ok(routes.collect())
}

pub(super) fn link_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })
}

fn gateway_of(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    })
}

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

pub(super) fn bridge_index() -> Option<u32> {
    if_nametoindex(BRIDGE).ok()
}

/// A veth named as [`Sandbox::host_link`] names them.
pub(super) fn is_ours(link: &LinkMessage) -> bool {
    let is_veth = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => info.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
    });
    let digits = name_of(link).and_then(|name| name.strip_prefix("vnp"));
    is_veth
        && digits.is_some_and(|digits| digits.len() == 11 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
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

pub(super) fn mac_of(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Some(mac.as_slice()),
        _ => None,
    })
}

/// The index of a veth's other end, in whatever namespace that is.
pub(super) fn peer_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(namespace: &str, name: &str) -> Identity {
        Identity {
            address: Ipv4Addr::new(10, 1, 2, 3),
            sandbox: Sandbox { container_id: "c".repeat(64), ifname: "eth0".to_owned() },
            pod: Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: "u".repeat(36) },
        }
    }

    #[test]
    fn an_identity_survives_the_link_it_is_written_on() {
        for identity in [identity("default", "web-0"), identity("", "")] {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
    }

    #[test]
    fn a_pod_name_too_long_for_a_link_is_left_out() {
        let text = identity(&"n".repeat(63), &"p".repeat(253)).to_string();
        assert!(text.len() <= ALIAS_SIZE, "{}", text.len());
        assert_eq!(text.parse(), Ok(identity(&"n".repeat(63), "")));
    }

    #[test]
    fn an_alias_of_somebody_else_is_no_identity() {
        for alias in ["", "uplink", "vnetpool/2 10.1.2.3 c eth0 u n p", "vnetpool/1 nowhere c eth0 u n p"] {
            assert_eq!(alias.parse::<Identity>(), Err(()), "{alias:?}");
        }
    }

    #[test]
    fn an_address_routed_to_a_link_counts_as_in_use_whoever_has_it() {
        let link = HostLink {
            name: "vnp00000000001".to_owned(),
            index: 7,
            up: true,
            has_our_mac: true,
            identity: Some(identity("default", "web-0")),
            routes: vec![Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 4)],
        };
        let addresses: Vec<_> =
            link.occupants().iter().map(|occupant| occupant.address.to_string()).collect();
        assert_eq!(addresses, ["10.1.2.3", "10.1.2.4"]);
        assert!(!link.is_silenced());
    }
}
