//! Reads the wiring that is there: whether one sandbox's is whole, and all host links of the node.

use std::{collections::HashMap, net::Ipv4Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::LinkMessage,
    route::RouteMessage,
};

use super::{
    Error, GATEWAY, HOST_MAC, Identity, Netns,
    bridge::{self, BRIDGE},
    host_end,
    messages::{
        Neighbour, gateway_of, host_address, identity_of, is_ours, is_up, link_of, mac_of, master_of,
        name_of, peer_of,
    },
    neighbours,
    netlink::{Destination, Netlink, link_named},
    routes,
};
use crate::ledger::{Occupant, Pod, Proof, Sandbox};

/// A host's end of a veth pair of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    pub name: String,
    pub index: u32,
    pub up: bool,
    /// Whether it has the MAC that its pod sends to.
    pub has_our_mac: bool,
    /// None once [`disconnect`](super::disconnect) has silenced the link.
    pub identity: Option<Identity>,
    /// The addresses that the node routes to this link.
    pub routes: Vec<Ipv4Addr>,
    /// Whether the node has its fixed neighbour entry for the pod.
    pub knows_pod: bool,
}

impl HostLink {
    /// Whether the link is silenced: it holds no address and only waits for its namespace to end.
    pub fn is_silenced(&self) -> bool {
        !self.up && self.identity.is_none() && self.routes.is_empty()
    }

    /// Whether a pod is wired here and a part isn't as ADD left it. Without the sandbox's lock this may be
    /// read in the middle of a verb.
    pub fn is_damaged(&self) -> bool {
        self.identity.as_ref().is_some_and(|Identity { address, .. }| {
            !self.up || !self.has_our_mac || !self.routes.contains(address) || !self.knows_pod
        })
    }

    /// The addresses in use behind this link, and their sandboxes. In doubt an address is in use: a route
    /// counts without an identity, and an identity without its route.
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

/// All addresses in use on the node according to its wiring: those behind each host link, and those routed to
/// the bridge that no port accounts for.
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

/// All our host links in the current network namespace, from one dump each of the links, the routes and the
/// neighbours. Only for the agent, since the cost grows with the pods.
pub fn host_links() -> Result<Vec<HostLink>, Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.dump("list the links", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut routes: HashMap<u32, Vec<Ipv4Addr>> = HashMap::new();
    for route in routes::main(&mut netlink)? {
        if let (Some(link), Some(address)) = (link_of(&route), host_address(&route)) {
            routes.entry(link).or_default().push(address);
        }
    }
    let neighbours = neighbours::all(&mut netlink)?;
    let links = links.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if is_ours(&link) => Some(link),
        _ => None,
    });
    let bridge = bridge::index();
    let bridged = bridge.and_then(|bridge| routes.remove(&bridge)).unwrap_or_default();
    let host_link = |link: LinkMessage| {
        let identity = identity_of(&link);
        let is_port = bridge.is_some() && master_of(&link) == bridge;
        let address = identity.as_ref().map(|identity| identity.address);
        let leads_to = bridge.filter(|_| is_port).unwrap_or(link.header.index);
        let knows_pod =
            address.is_some_and(|address| neighbours.contains(&Neighbour::pod(leads_to, address)));
        let behind = address.filter(|_| is_port);
        HostLink {
            name: name_of(&link).unwrap_or_default().to_owned(),
            index: link.header.index,
            up: is_up(&link),
            has_our_mac: mac_of(&link) == Some(&HOST_MAC),
            identity,
            // All ports' routes lead to the bridge, so a port's route is found by its address.
            routes: match behind {
                Some(address) => bridged.iter().copied().filter(|&routed| routed == address).collect(),
                None => routes.remove(&link.header.index).unwrap_or_default(),
            },
            knows_pod,
        }
    };
    Ok(links.map(host_link).collect())
}

/// The faults of the sandbox's wiring, in sentences; empty if there is none. Repairs nothing.
pub fn faults(netns: &Netns, identity: &Identity) -> Result<Vec<String>, Error> {
    let Identity { address: _, sandbox, pod } = identity;
    let mut host = Netlink::open()?;
    let host_end = host_end::find(&mut host, sandbox, pod)?;
    let name = host_end.as_ref().and_then(name_of).map_or_else(|| sandbox.host_link(pod), str::to_owned);
    let mut faults = host_faults(&mut host, host_end.as_ref(), &name, identity.address)?;
    faults.extend(netns.inside(|| pod_faults(host_end.as_ref(), &name, identity))?);
    Ok(faults)
}

/// The faults on the node's side. `host_end` is the host's end of the pair, which has or should have this
/// `name`.
fn host_faults(
    host: &mut Netlink,
    host_end: Option<&LinkMessage>,
    name: &str,
    address: Ipv4Addr,
) -> Result<Vec<String>, Error> {
    let mut faults = Vec::new();
    match host_end {
        None => faults.push(format!("the host's end {name} is missing")),
        Some(link) if !is_up(link) => faults.push(format!("the host's end {name} is down")),
        Some(link) if mac_of(link) != Some(&HOST_MAC) => {
            faults.push(format!("the MAC of {name} was changed"))
        }
        Some(_) => {}
    }
    let index = host_end.map(|link| link.header.index);
    let bridge = host_end.and_then(bridge::of);
    let (leads_to, link) = if bridge.is_some() { (bridge, BRIDGE) } else { (index, name) };
    if !leads_to.map_or(Ok(false), |to| routes::leads_to(host, address, to))? {
        faults.push(format!("the node doesn't route {address} to {link}"));
    }
    if !leads_to.map_or(Ok(false), |to| neighbours::has(host, Neighbour::pod(to, address)))? {
        faults.push(format!("the node lacks the permanent neighbour entry for {address} on {link}"));
    }
    if let (Some(_), Some(port)) = (bridge, index)
        && !bridge::knows(host, port, address)?
    {
        faults.push(format!("{BRIDGE} doesn't know the pod's MAC behind its port"));
    }
    Ok(faults)
}

/// The faults on the pod's side. Must run inside the pod's namespace.
fn pod_faults(
    host_end: Option<&LinkMessage>,
    host_link: &str,
    Identity { address, sandbox: Sandbox { ifname, .. }, .. }: &Identity,
) -> Result<Vec<String>, Error> {
    let mut pod = Netlink::open()?;
    let Some(pod_end) = pod.link(link_named(ifname))? else {
        return Ok(vec![format!("the pod has no interface {ifname}")]);
    };
    let index = pod_end.header.index;
    let is_pair = peer_of(&pod_end) == host_end.map(|link| link.header.index)
        && host_end.and_then(peer_of) == Some(index);
    let gateway = Neighbour { link: index, address: GATEWAY, mac: HOST_MAC };
    let routes = routes::main(&mut pod)?;
    let has_route = |to: Destination, gateway: Option<Ipv4Addr>| {
        let is_it = |route: &RouteMessage| {
            to.is_of(route) && link_of(route) == Some(index) && gateway_of(route) == gateway
        };
        routes.iter().any(is_it)
    };
    let conditions = [
        (is_up(&pod_end), format!("the pod's {ifname} is down")),
        (is_pair, format!("the pod's {ifname} is not the other end of {host_link}")),
        (
            has_address(&mut pod, index, *address)?,
            format!("the pod's {ifname} lacks the address {address}/32"),
        ),
        (has_route(Destination::Host(GATEWAY), None), format!("the pod lacks the route to {GATEWAY}")),
        (
            has_route(Destination::Default, Some(GATEWAY)),
            format!("the pod lacks the default route via {GATEWAY}"),
        ),
        (
            neighbours::has(&mut pod, gateway)?,
            format!("the pod lacks the permanent neighbour entry for {GATEWAY}"),
        ),
    ];
    Ok(conditions.into_iter().filter(|(holds, _)| !holds).map(|(_, fault)| fault).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_routed_to_a_link_counts_as_in_use() {
        let link = HostLink {
            name: "vnp00000000001".to_owned(),
            index: 7,
            up: true,
            has_our_mac: true,
            identity: Some(Identity {
                address: Ipv4Addr::new(10, 1, 2, 3),
                sandbox: Sandbox { container_id: "4f1c".to_owned(), ifname: "eth0".to_owned() },
                pod: Pod::default(),
            }),
            routes: vec![Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 4)],
            knows_pod: true,
        };
        let addresses: Vec<_> =
            link.occupants().iter().map(|occupant| occupant.address.to_string()).collect();
        assert_eq!(addresses, ["10.1.2.3", "10.1.2.4"]);
        assert!(!link.is_silenced());
    }
}
