//! Public addresses, load balancers and service endpoints: packets to addresses that no NIC holds.

use super::application_gateway;
use crate::document::{has_id, list};
use crate::health::Probe;
use crate::resource::Kind;
use crate::vnet;
use crate::world::World;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// How a load balancer chooses among its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distribution {
    /// For each flow anew.
    PerFlow,
    /// The same member for the same client.
    PerClient,
}

/// A load-balancing rule with the members that take new flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Balanced {
    pub(crate) frontend: Ipv4Addr,
    /// `tcp` or `udp`. `None` for all ports of both.
    pub(crate) protocol: Option<String>,
    pub(crate) port: u16,
    pub(crate) backend_port: u16,
    /// The packet reaches the member with the frontend as its destination, and the reply comes from the
    /// frontend's address.
    pub(crate) floating: bool,
    pub(crate) distribution: Distribution,
    pub(crate) members: Vec<Ipv4Addr>,
}

/// A host of an Azure service, and the subnets whose packets reach it with their own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) host: Ipv4Addr,
    pub(crate) endpoints: Vec<Ipv4Net>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exposure {
    /// The public address of a private one.
    pub(crate) public: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Public addresses that are closed unless a security group opens them: those of the Standard SKU.
    pub(crate) closed: BTreeSet<Ipv4Addr>,
    pub(crate) balanced: Vec<Balanced>,
    pub(crate) services: Vec<Service>,
}

impl Exposure {
    pub(super) fn of(world: &World) -> Self {
        let addresses = || world.of_kind(Kind::PublicAddress);
        let standard = addresses().filter(|address| address["sku"]["name"] == json!("Standard"));
        let known = |id: &str| public(world.resource(Kind::PublicAddress, id)?);
        let of_nics = world.nics.values().flat_map(|nic| &nic.attached);
        let of_nics = of_nics.filter_map(|(private, id)| Some((*private, known(id)?)));
        let of_gateways: BTreeMap<_, _> = application_gateway::public_frontends(world)
            .filter_map(|(instance, id)| Some((instance, known(id)?)))
            .collect();
        // A gateway's public address is open without a group.
        let open: BTreeSet<Ipv4Addr> = of_gateways.values().copied().collect();
        Self {
            public: of_nics.chain(of_gateways).collect(),
            closed: standard.filter_map(public).filter(|address| !open.contains(address)).collect(),
            balanced: rules(world).filter_map(|(balancer, rule)| balanced(world, balancer, rule)).collect(),
            services: world.services.iter().map(|(host, name)| service(world, *host, name)).collect(),
        }
    }
}

fn public(address: &Value) -> Option<Ipv4Addr> {
    address["properties"]["ipAddress"].as_str()?.parse().ok()
}

/// Every load-balancing rule with its load balancer.
fn rules(world: &World) -> impl Iterator<Item = (&Value, &Value)> {
    let balancers = world.of_kind(Kind::LoadBalancer);
    balancers
        .flat_map(|balancer| list(balancer, "loadBalancingRules").iter().map(move |rule| (balancer, rule)))
}

/// The child of a load balancer that a rule refers to.
fn part<'a>(balancer: &'a Value, children: &str, reference: &Value) -> Option<&'a Value> {
    let id = reference["id"].as_str()?;
    list(balancer, children).iter().find(|child| has_id(child, id))
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

fn balanced(world: &World, balancer: &Value, rule: &Value) -> Option<Balanced> {
    let properties = &rule["properties"];
    let frontend = part(balancer, "frontendIPConfigurations", &properties["frontendIPConfiguration"])?;
    let frontend = match frontend["properties"]["publicIPAddress"]["id"].as_str() {
        Some(id) => public(world.resource(Kind::PublicAddress, id)?)?,
        None => frontend["properties"]["privateIPAddress"].as_str()?.parse().ok()?,
    };
    let probe = part(balancer, "probes", &properties["probe"]);
    // Without a probe every member counts as healthy.
    let is_healthy = |member: &Ipv4Addr| probe.is_none_or(|probe| world.health.is_up(&asked(probe, *member)));
    let protocol = properties["protocol"].as_str().unwrap_or_default().to_lowercase();
    let port = number(&properties["frontendPort"])?;
    Some(Balanced {
        frontend,
        protocol: (protocol != "all").then_some(protocol),
        port,
        backend_port: number(&properties["backendPort"]).unwrap_or(port),
        floating: properties["enableFloatingIP"] == json!(true),
        distribution: match properties["loadDistribution"].as_str() {
            Some("SourceIP" | "SourceIPProtocol") => Distribution::PerClient,
            _ => Distribution::PerFlow,
        },
        members: members(world, balancer, rule).into_iter().filter(is_healthy).collect(),
    })
}

/// The addresses in a rule's backend pool: of ipConfigurations that are in it, and those listed in the pool
/// itself.
fn members(world: &World, balancer: &Value, rule: &Value) -> BTreeSet<Ipv4Addr> {
    let Some(pool) = part(balancer, "backendAddressPools", &rule["properties"]["backendAddressPool"]) else {
        return BTreeSet::new();
    };
    let id = pool["id"].as_str().unwrap_or_default().to_lowercase();
    let attached = world.nics.values().flat_map(|nic| &nic.attached);
    let attached = attached.filter(|(_, other)| *other == id).map(|(address, _)| *address);
    let listed = list(pool, "loadBalancerBackendAddresses").iter();
    let listed = listed.filter_map(|member| member["properties"]["ipAddress"].as_str()?.parse().ok());
    attached.chain(listed).collect()
}

fn asked(probe: &Value, address: Ipv4Addr) -> Probe {
    let properties = &probe["properties"];
    let is_page =
        properties["protocol"].as_str().is_some_and(|protocol| !protocol.eq_ignore_ascii_case("Tcp"));
    let page = properties["requestPath"].as_str().unwrap_or("/").to_owned();
    Probe {
        address,
        port: number(&properties["port"]).unwrap_or_default(),
        page: is_page.then_some(page),
        gateway: None,
    }
}

/// Every probe of every member, with the number of equal answers that changes its state.
pub(crate) fn probes(world: &World) -> BTreeMap<Probe, u32> {
    let of_rule = |(balancer, rule): (&Value, &Value)| {
        let probe = part(balancer, "probes", &rule["properties"]["probe"]).cloned();
        let members = members(world, balancer, rule);
        probe.into_iter().flat_map(move |probe| {
            let properties = &probe["properties"];
            let threshold = number(&properties["probeThreshold"]).or(number(&properties["numberOfProbes"]));
            let threshold = u32::from(threshold.unwrap_or(1).max(1));
            members.iter().map(|member| (asked(&probe, *member), threshold)).collect::<Vec<_>>()
        })
    };
    rules(world).flat_map(of_rule).chain(application_gateway::probes(world)).collect()
}

fn service(world: &World, host: Ipv4Addr, name: &str) -> Service {
    let subnets = world.vnets.values().flat_map(vnet::subnets);
    let with_endpoint = subnets.filter(|subnet| has_endpoint(subnet, name));
    Service { host, endpoints: with_endpoint.flat_map(vnet::prefixes).collect() }
}

/// Whether a subnet has the endpoint of a service such as `Microsoft.Storage`.
pub(super) fn has_endpoint(subnet: &Value, service: &str) -> bool {
    let is_it = |endpoint: &Value| {
        endpoint["service"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(service))
    };
    list(subnet, "serviceEndpoints").iter().any(is_it)
}
