//! The network's duties, read from the world's documents: the plugged-in NICs, and each subnet's effective
//! routes. Pure.
//!
//! Routes follow Azure's rules ("Virtual network traffic routing"): the longest prefix wins. For the same
//! prefix a user-defined route wins, then one learned from a gateway, then a system route. System routes are
//! the virtual network's own prefixes, those of peered networks, the internet for everything else, and no
//! next hop for unused private ranges.

mod application_gateway;
mod exposure;
mod security;

use crate::document::{has_id, list};
use crate::nic;
use crate::resource::Kind;
use crate::vm;
use crate::vnet;
use crate::world::{Gateway, Nic, World};
pub(crate) use application_gateway::Gateway as ApplicationGateway;
pub(crate) use exposure::{Balanced, Distribution, Exposure, Service, probes};
use ipnet::Ipv4Net;
pub(crate) use security::{Addresses, Port, Rule, Security};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Where the wire server listens.
pub(crate) const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// A NIC of a machine that has a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plug {
    /// By name, or by path. Empty for an application gateway, which gets one from the fabric.
    pub(crate) netns: String,
    /// The link's name inside: `eth0` for a machine's first NIC, `eth1` for the next.
    pub(crate) interface: String,
    pub(crate) mac: String,
    /// The primary address, with the subnet's prefix length.
    pub(crate) address: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
    /// The subnet's id in lower case.
    pub(crate) subnet: String,
    /// Whether the NIC may send from and receive for any address.
    pub(crate) forwards: bool,
    /// The addresses the network delivers to it.
    pub(crate) live: BTreeSet<Ipv4Addr>,
}

/// Where a subnet's packets for a prefix go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hop {
    /// To the holder of the address, in this network, a peered one or beyond the gateway.
    Direct,
    /// To the NIC that holds this address, whatever the packet's destination.
    Appliance(Ipv4Addr),
    Internet,
    Nowhere,
}

/// Everything the fabric has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// By NIC.
    pub(crate) plugs: BTreeMap<String, Plug>,
    /// The prefixes of all virtual networks.
    pub(crate) space: BTreeSet<Ipv4Net>,
    /// Effective routes by place: a subnet's id, or a virtual network's id for what comes in through its
    /// gateway.
    pub(crate) routes: BTreeMap<String, BTreeMap<Ipv4Net, Hop>>,
    pub(crate) security: Security,
    pub(crate) exposure: Exposure,
    pub(crate) gateways: BTreeMap<String, ApplicationGateway>,
}

impl Network {
    pub(crate) fn of(world: &World) -> Self {
        let mut plugs: BTreeMap<String, Plug> =
            world.nics.iter().filter_map(|(key, nic)| Some((key.clone(), plug(world, nic)?))).collect();
        let mut gateways = BTreeMap::new();
        for (key, document) in application_gateway::at_work(world) {
            if let Some(gateway) = application_gateway::gateway(world, &key, document)
                && let Some(plug) = gateway_plug(world, document, &gateway)
            {
                plugs.insert(key.clone(), plug);
                gateways.insert(key, gateway);
            }
        }
        let mut routes = BTreeMap::new();
        for (key, vnet) in &world.vnets {
            for subnet in vnet::subnets(vnet) {
                let id = subnet["id"].as_str().unwrap_or_default().to_lowercase();
                routes.insert(id, subnet_routes(world, key, vnet, subnet));
            }
            if world.gateways.contains_key(key) {
                routes.insert(key.clone(), gateway_routes(world, key, vnet));
            }
        }
        let space = world.vnets.values().flat_map(vnet::address_space).collect();
        let security = Security::of(world, &plugs);
        Self { plugs, space, routes, security, exposure: Exposure::of(world), gateways }
    }
}

/// A NIC whose machine stands in a namespace and runs.
fn plug(world: &World, nic: &Nic) -> Option<Plug> {
    let vm = world.running(&nic.document)?;
    let id = nic.document["id"].as_str().unwrap_or_default();
    let place = vm::nic_ids(&vm.document).iter().position(|known| known.eq_ignore_ascii_case(id));
    let primary = nic::primary(&nic.document)?;
    let address = nic::address(primary)?.addr();
    let subnet = world.subnet_document(primary["properties"]["subnet"]["id"].as_str()?)?;
    let prefix = vnet::prefixes(subnet).into_iter().find(|prefix| prefix.contains(&address))?;
    Some(Plug {
        netns: vm.netns.clone()?,
        interface: format!("eth{}", place.unwrap_or_default()),
        mac: mac(&nic.document)?,
        address: Ipv4Net::new(address, prefix.prefix_len()).ok()?,
        gateway: gateway(prefix),
        subnet: subnet["id"].as_str()?.to_lowercase(),
        forwards: nic.document["properties"]["enableIPForwarding"] == json!(true),
        live: nic.live.iter().copied().collect::<BTreeSet<_>>(),
    })
}

/// The link of an application gateway.
fn gateway_plug(world: &World, document: &Value, gateway: &ApplicationGateway) -> Option<Plug> {
    let ApplicationGateway { instance, frontends, .. } = gateway;
    let subnet = world.subnet_document(crate::world::application_gateway::subnet(document)?)?;
    let prefix = vnet::prefixes(subnet).into_iter().find(|prefix| prefix.contains(instance))?;
    let [_, b, c, d] = instance.octets();
    Some(Plug {
        // The fabric makes it.
        netns: String::new(),
        interface: "eth0".into(),
        // 00-22-48 is another prefix of Microsoft's: no NIC's here.
        mac: format!("00:22:48:{b:02x}:{c:02x}:{d:02x}"),
        address: Ipv4Net::new(*instance, prefix.prefix_len()).ok()?,
        gateway: self::gateway(prefix),
        subnet: subnet["id"].as_str()?.to_lowercase(),
        forwards: false,
        live: frontends.iter().copied().chain([*instance]).collect(),
    })
}

/// Azure's default gateway: the first address after the network's own.
pub(crate) fn gateway(prefix: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(prefix.network()) + 1)
}

/// `aa:bb:cc:dd:ee:ff`; ARM writes `AA-BB-CC-DD-EE-FF`.
pub(crate) fn mac(nic: &Value) -> Option<String> {
    Some(nic["properties"]["macAddress"].as_str()?.replace('-', ":").to_lowercase())
}

const fn net(a: u8, b: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), length)
}

/// Azure drops packets for unused private ranges.
const PRIVATE: [Ipv4Net; 4] = [net(10, 0, 8), net(172, 16, 12), net(192, 168, 16), net(100, 64, 10)];

fn system_routes(world: &World, key: &str, vnet: &Value, subnet: &str) -> BTreeMap<Ipv4Net, Hop> {
    let mut routes = BTreeMap::from([(net(0, 0, 0), Hop::Internet)]);
    routes.extend(PRIVATE.map(|prefix| (prefix, Hop::Nowhere)));
    let peered = peers(world, key, vnet).flat_map(|(peering, _)| vnet::reached(peering, subnet));
    routes.extend(vnet::address_space(vnet).into_iter().chain(peered).map(|prefix| (prefix, Hop::Direct)));
    routes
}

fn subnet_routes(world: &World, key: &str, vnet: &Value, subnet: &Value) -> BTreeMap<Ipv4Net, Hop> {
    let mut routes = system_routes(world, key, vnet, subnet["name"].as_str().unwrap_or_default());
    let table = subnet["properties"]["routeTable"]["id"].as_str();
    let table = table.and_then(|id| world.resource(Kind::RouteTable, id));
    if table.is_none_or(|table| table["properties"]["disableBgpRoutePropagation"] != json!(true)) {
        let learned = gateways(world, key, vnet).flat_map(|gateway| gateway.prefixes.iter().copied());
        routes.extend(learned.map(|prefix| (prefix, Hop::Direct)));
    }
    for route in table.into_iter().flat_map(|table| list(table, "routes")) {
        let properties = &route["properties"];
        let prefix = properties["addressPrefix"].as_str().and_then(|prefix| prefix.parse::<Ipv4Net>().ok());
        let Some(prefix) = prefix else { continue };
        routes.insert(prefix.trunc(), hop(properties));
    }
    // A service endpoint is a route to the service, longer than any other.
    let services = world.services.iter().filter(|(_, service)| exposure::has_endpoint(subnet, service));
    routes.extend(services.map(|(host, _)| ((*host).into(), Hop::Internet)));
    // This keeps the gateway's ARP entry independent of any route. Nothing is ever sent to it.
    routes.extend(vnet::prefixes(subnet).into_iter().map(|prefix| (gateway(prefix).into(), Hop::Direct)));
    routes
}

fn hop(route: &Value) -> Hop {
    match route["nextHopType"].as_str().unwrap_or_default() {
        "VirtualAppliance" => {
            let address = route["nextHopIpAddress"].as_str().and_then(|address| address.parse().ok());
            address.map_or(Hop::Nowhere, Hop::Appliance)
        }
        "Internet" => Hop::Internet,
        "VnetLocal" | "VirtualNetworkGateway" => Hop::Direct,
        _ => Hop::Nowhere,
    }
}

/// A packet that comes in through a gateway reaches its network, and the peered ones that use it.
fn gateway_routes(world: &World, key: &str, vnet: &Value) -> BTreeMap<Ipv4Net, Hop> {
    let uses = |(peering, remote): &(&Value, &Value)| {
        let back = peering_to(remote, vnet["id"].as_str().unwrap_or_default());
        peering["properties"]["allowGatewayTransit"] == json!(true)
            && back.is_some_and(|back| back["properties"]["useRemoteGateways"] == json!(true))
    };
    let transit = peers(world, key, vnet).filter(uses);
    let transit = transit.flat_map(|(peering, _)| vnet::reached(peering, "GatewaySubnet"));
    let reached = vnet::address_space(vnet).into_iter().chain(transit).map(|prefix| (prefix, Hop::Direct));
    std::iter::once((net(0, 0, 0), Hop::Nowhere)).chain(reached).collect()
}

/// The gateways from which a network's subnets learn routes: its own, or a peer's that it may use.
fn gateways<'a>(world: &'a World, key: &'a str, vnet: &'a Value) -> impl Iterator<Item = &'a Gateway> {
    let remote = peers(world, key, vnet).filter_map(move |(peering, remote)| {
        let back = peering_to(remote, vnet["id"].as_str()?)?;
        let used = peering["properties"]["useRemoteGateways"] == json!(true)
            && back["properties"]["allowGatewayTransit"] == json!(true);
        world.gateways.get(&remote["id"].as_str()?.to_lowercase()).filter(|_| used)
    });
    world.gateways.get(key).into_iter().chain(remote)
}

/// The networks this one is peered with: both have a peering to the other, and both are connected.
pub(crate) fn peers<'a>(
    world: &'a World,
    key: &'a str,
    vnet: &'a Value,
) -> impl Iterator<Item = (&'a Value, &'a Value)> {
    list(vnet, "virtualNetworkPeerings").iter().filter(|peering| is_up(peering)).filter_map(move |peering| {
        let remote = peering["properties"]["remoteVirtualNetwork"]["id"].as_str()?.to_lowercase();
        let remote = world.vnets.get(&remote)?;
        peering_to(remote, key).filter(|back| is_up(back)).map(|_| (peering, remote))
    })
}

fn peering_to<'a>(vnet: &'a Value, remote: &str) -> Option<&'a Value> {
    let mut peerings = list(vnet, "virtualNetworkPeerings").iter();
    peerings.find(|peering| has_id(&peering["properties"]["remoteVirtualNetwork"], remote))
}

fn is_up(peering: &Value) -> bool {
    peering["properties"]["peeringState"] == json!("Connected")
        && peering["properties"]["allowVirtualNetworkAccess"] != json!(false)
}
