//! Reads the wiring that is there: whether one sandbox's is whole, and all host links of the node.

use std::{collections::HashMap, net::Ipv4Addr};

use super::{
    Error, GATEWAY, HOST_MAC, Identity, Netns,
    bridge::{self, BRIDGE},
    host_end,
    messages::{Address, Body, Link, Neighbour, Route},
    neighbours,
    netlink::{Destination, Netlink},
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
    let links: Vec<Link> = netlink.dump("list the links", &Body::any_link())?;
    let mut routes: HashMap<u32, Vec<Ipv4Addr>> = HashMap::new();
    for route in routes::main(&mut netlink)? {
        if let (Some(link), Some(address)) = (route.link, route.host_address()) {
            routes.entry(link).or_default().push(address);
        }
    }
    let neighbours = neighbours::all(&mut netlink)?;
    let bridge = bridge::index();
    let bridged = bridge.and_then(|bridge| routes.remove(&bridge)).unwrap_or_default();
    let host_link = |link: Link| {
        let identity = link.identity();
        let is_port = bridge.is_some() && link.master == bridge;
        let address = identity.as_ref().map(|identity| identity.address);
        let leads_to = bridge.filter(|_| is_port).unwrap_or(link.index);
        let knows_pod =
            address.is_some_and(|address| neighbours.contains(&Neighbour::pod(leads_to, address)));
        let behind = address.filter(|_| is_port);
        HostLink {
            index: link.index,
            up: link.is_up,
            has_our_mac: link.has_our_mac(),
            identity,
            // All ports' routes lead to the bridge, so a port's route is found by its address.
            routes: match behind {
                Some(address) => bridged.iter().copied().filter(|&routed| routed == address).collect(),
                None => routes.remove(&link.index).unwrap_or_default(),
            },
            knows_pod,
            name: link.name,
        }
    };
    Ok(links.into_iter().filter(Link::is_ours).map(host_link).collect())
}

/// The faults of the sandbox's wiring, in sentences; empty if there is none. Repairs nothing.
pub fn faults(netns: &Netns, identity: &Identity) -> Result<Vec<String>, Error> {
    let Identity { address: _, sandbox, pod } = identity;
    let mut host = Netlink::open()?;
    let host_end = host_end::find(&mut host, sandbox, pod)?;
    let name = host_end.as_ref().map_or_else(|| sandbox.host_link(pod), |link| link.name.clone());
    let mut faults = host_faults(&mut host, host_end.as_ref(), &name, identity.address)?;
    faults.extend(netns.inside(|| pod_faults(host_end.as_ref(), &name, identity))?);
    Ok(faults)
}

/// The faults on the node's side. `host_end` is the host's end of the pair, which has or should have this
/// `name`.
fn host_faults(
    host: &mut Netlink,
    host_end: Option<&Link>,
    name: &str,
    address: Ipv4Addr,
) -> Result<Vec<String>, Error> {
    let mut faults = Vec::new();
    match host_end {
        None => faults.push(format!("the host's end {name} is missing")),
        Some(link) if !link.is_up => faults.push(format!("the host's end {name} is down")),
        Some(link) if !link.has_our_mac() => faults.push(format!("the MAC of {name} was changed")),
        Some(_) => {}
    }
    let index = host_end.map(|link| link.index);
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
    host_end: Option<&Link>,
    host_link: &str,
    Identity { address, sandbox: Sandbox { ifname, .. }, .. }: &Identity,
) -> Result<Vec<String>, Error> {
    let mut pod = Netlink::open()?;
    let Some(pod_end) = pod.link(&Body::link_named(ifname))? else {
        return Ok(vec![format!("the pod has no interface {ifname}")]);
    };
    let index = pod_end.index;
    let is_pair =
        pod_end.peer == host_end.map(|link| link.index) && host_end.and_then(|link| link.peer) == Some(index);
    let gateway = Neighbour { link: index, address: GATEWAY, mac: HOST_MAC };
    let routes = routes::main(&mut pod)?;
    let has_route = |to: Destination, gateway: Option<Ipv4Addr>| {
        let is_it = |route: &Route| to.is_of(route) && route.link == Some(index) && route.gateway == gateway;
        routes.iter().any(is_it)
    };
    let conditions = [
        (pod_end.is_up, format!("the pod's {ifname} is down")),
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
    let wanted = Address { link, prefix_len: 32, address: Some(address) };
    Ok(netlink.dump("list the pod's addresses", &Body::any_address())?.contains(&wanted))
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
