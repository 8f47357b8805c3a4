//! Rules for references between NICs, subnets, public addresses, load balancers, route tables and security
//! groups, and the back references that a GET shows.

mod groups;

use super::{World, application_gateway};
use crate::document::{has_id, id, list, text};
use crate::nic;
use crate::reply::Reply;
use crate::resource::Kind;
use crate::vnet;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The limit of routes in a table (Azure's documentation, "Networking limits").
const MAX_ROUTES: usize = 400;

/// The range of simulated Azure's public addresses: a documentation range (RFC 5737), half of the simulated
/// internet.
pub(crate) const PUBLIC: (Ipv4Addr, u32) = (Ipv4Addr::new(203, 0, 113, 128), 120);

/// Whether a document may be stored as it is.
pub(crate) fn check(world: &World, kind: Kind, document: &Value) -> Result<(), Reply> {
    match kind {
        Kind::RouteTable => check_routes(document),
        Kind::PublicAddress => check_label(world, document),
        Kind::LoadBalancer => check_balancer(world, document),
        Kind::SecurityGroup => check_security_rules(document),
        Kind::NatGateway => {
            for address in document["properties"]["publicIpAddresses"].as_array().into_iter().flatten() {
                check_public_address(world, id(address), id(document))?;
            }
            Ok(())
        }
        Kind::ApplicationGateway => {
            check_frontends(world, document)?;
            application_gateway::check(world, document)
        }
        Kind::ApplicationSecurityGroup => Ok(()),
    }
}

fn check_routes(table: &Value) -> Result<(), Reply> {
    let routes = list(table, "routes");
    if routes.len() > MAX_ROUTES {
        // The true code is not known; the limit and the 400 are.
        let message =
            format!("Route table {} has {} routes, the limit is {MAX_ROUTES}.", id(table), routes.len());
        return Err(Reply::refusal("RouteTableRouteLimitReached", message));
    }
    let mut prefixes = std::collections::BTreeMap::new();
    for route in routes {
        let name = route["name"].as_str().unwrap_or_default();
        let properties = &route["properties"];
        let hop = properties["nextHopType"].as_str().unwrap_or_default();
        let is_appliance = hop.eq_ignore_ascii_case("VirtualAppliance");
        if is_appliance != properties["nextHopIpAddress"].is_string() {
            // Words of the OpenAPI document; the code is not known.
            let message = format!(
                "Route {name}: Next hop values are only allowed in routes where the next hop type is VirtualAppliance."
            );
            return Err(Reply::refusal("InvalidNextHopIpAddress", message));
        }
        let prefix = properties["addressPrefix"].as_str().unwrap_or_default();
        // Seen in cloud-provider-azure#657.
        if let Some(other) = prefixes.insert(prefix.to_lowercase(), name) {
            let message = format!(
                "Route: {name} conflicts with Route: {other}. Routes cannot have the same AddressPrefix."
            );
            return Err(Reply::refusal("RouteConflict", message));
        }
    }
    Ok(())
}

fn check_security_rules(group: &Value) -> Result<(), Reply> {
    let mut seen = std::collections::BTreeMap::new();
    for rule in list(group, "securityRules") {
        let name = rule["name"].as_str().unwrap_or_default();
        let properties = &rule["properties"];
        let priority = properties["priority"].as_u64().unwrap_or_default();
        if !(100..=4096).contains(&priority) {
            let message = format!(
                "Security rule has invalid Priority. Value provided: {priority} Allowed range 100-4096."
            );
            return Err(Reply::refusal("SecurityRuleInvalidPriority", message));
        }
        let direction = properties["direction"].as_str().unwrap_or_default().to_lowercase();
        if let Some(other) = seen.insert((direction, priority), name) {
            let message = format!(
                "Security rule {name} conflicts with rule {other}. Rules cannot have the same Priority and Direction."
            );
            return Err(Reply::refusal("SecurityRuleConflict", message));
        }
    }
    Ok(())
}

fn check_label(world: &World, address: &Value) -> Result<(), Reply> {
    let Some(name) = text(address, "/properties/dnsSettings/fqdn") else { return Ok(()) };
    let others = world.of_kind(Kind::PublicAddress).filter(|other| !has_id(other, id(address)));
    if others.filter_map(|other| text(other, "/properties/dnsSettings/fqdn")).any(|other| other == name) {
        let message = format!("DNS record {name} is already used by another public IP.");
        return Err(Reply::refusal("DnsRecordInUse", message));
    }
    Ok(())
}

/// A public address that exists and that no resource but `by` uses.
fn check_public_address(world: &World, address: &str, by: &str) -> Result<(), Reply> {
    if world.resource(Kind::PublicAddress, address).is_none() {
        return Err(Reply::missing(address, by));
    }
    match user(world, Kind::PublicAddress, address) {
        Some(other) if !other.eq_ignore_ascii_case(by) => {
            let message = format!(
                "Resource {by} is referencing public IP address {address} that is already allocated to resource {other}."
            );
            Err(Reply::refusal("PublicIPAddressInUse", message))
        }
        _ => Ok(()),
    }
}

/// That a public address is in the machine's zone, where that is asked for. The code of the refusal is
/// published nowhere.
fn check_zone(world: &World, address: &str, by: &str) -> Result<(), Reply> {
    let zones = world.resource(Kind::PublicAddress, address).map(|address| &address["zones"]);
    if !world.config.habits.wants_zones || zones.is_some_and(|zones| zones.is_array()) {
        return Ok(());
    }
    let message = format!("Resource {by} is in an availability zone, and public IP address {address} isn't.");
    Err(Reply::refusal("PublicIPAddressZoneMismatch", message))
}

/// Checks that each frontend has a free public address, or a subnet.
fn check_frontends(world: &World, resource: &Value) -> Result<(), Reply> {
    for frontend in list(resource, "frontendIPConfigurations") {
        match (text(frontend, "/properties/publicIPAddress/id"), text(frontend, "/properties/subnet/id")) {
            (Some(address), _) => check_public_address(world, address, id(frontend))?,
            (None, Some(subnet)) if world.subnet_document(subnet).is_none() => {
                return Err(Reply::missing(subnet, id(frontend)));
            }
            (None, Some(_)) => {}
            (None, None) => {
                let message = format!(
                    "Frontend IP configuration {} does not reference a subnet, a public IP address or a public IP prefix.",
                    id(frontend)
                );
                return Err(Reply::refusal("LoadBalancerFrontendIPConfigMustHaveSubnetOrPublicIP", message));
            }
        }
    }
    Ok(())
}

fn check_balancer(world: &World, balancer: &Value) -> Result<(), Reply> {
    check_frontends(world, balancer)?;
    for children in ["loadBalancingRules", "outboundRules", "inboundNatRules"] {
        for rule in list(balancer, children) {
            for reference in ["frontendIPConfiguration", "backendAddressPool", "probe"] {
                let Some(wanted) = text(rule, &format!("/properties/{reference}/id")) else { continue };
                let parts = ["frontendIPConfigurations", "backendAddressPools", "probes"];
                if !parts.iter().flat_map(|part| list(balancer, part)).any(|part| has_id(part, wanted)) {
                    return Err(Reply::missing(wanted, id(rule)));
                }
            }
        }
    }
    for rule in list(balancer, "outboundRules") {
        let pool = text(rule, "/properties/backendAddressPool/id").unwrap_or_default();
        let members =
            world.ip_configurations().filter(|c| pools(c).any(|own| own.eq_ignore_ascii_case(pool)));
        for member in members {
            refuse_secondary(member, pool, id(rule))?;
        }
    }
    Ok(())
}

/// An outbound rule reaches primary ipConfigurations only (terraform-provider-azurerm#9084).
fn refuse_secondary(configuration: &Value, pool: &str, rule: &str) -> Result<(), Reply> {
    if configuration["properties"]["primary"] == json!(true) {
        return Ok(());
    }
    let message = format!(
        "OutboundRule {rule} cannot be used with Backend Address Pool {pool} that contains Secondary IPConfig {}",
        id(configuration)
    );
    Err(Reply::refusal(
        "OutboundRuleCannotBeUsedWithBackendAddressPoolThatIsReferencedBySecondaryIpConfigs",
        message,
    ))
}

/// The backend pools an ipConfiguration is in.
pub(crate) fn pools(configuration: &Value) -> impl Iterator<Item = &str> {
    list(configuration, "loadBalancerBackendAddressPools").iter().map(id)
}

/// Whether all that a NIC's document refers to exists and is free.
pub(crate) fn check_nic(world: &World, nic: &Value) -> Result<(), Reply> {
    for configuration in nic::ip_configurations(nic) {
        let own = id(configuration);
        if let Some(address) = text(configuration, "/properties/publicIPAddress/id") {
            if nic::address(configuration).is_some_and(|block| block.prefix_len() != 32) {
                // A block can have no public address (`privateIPAddressPrefixLength`, API 2023-11-01). The
                // code of the refusal is not published.
                let message =
                    format!("IP configuration {own} with an address prefix cannot have a public IP address.");
                return Err(Reply::refusal(
                    "PublicIPAddressNotSupportedOnIpConfigurationWithPrefix",
                    message,
                ));
            }
            check_public_address(world, address, own)?;
            check_zone(world, address, own)?;
        }
        for pool in pools(configuration) {
            let Some(balancer) = world.balancer_of(pool) else { return Err(Reply::missing(pool, own)) };
            let uses = |rule: &&Value| has_id(&rule["properties"]["backendAddressPool"], pool);
            if let Some(rule) = list(balancer, "outboundRules").iter().find(uses) {
                refuse_secondary(configuration, pool, id(rule))?;
            }
        }
    }
    groups::check(world, nic)?;
    match text(nic, "/properties/networkSecurityGroup/id") {
        Some(group) if world.resource(Kind::SecurityGroup, group).is_none() => {
            Err(Reply::missing(group, id(nic)))
        }
        _ => Ok(()),
    }
}

/// Whether the route table, security group and NAT gateway that a subnet names exist.
pub(crate) fn check_subnet(world: &World, subnet: &Value) -> Result<(), Reply> {
    for (field, kind) in SUBNET_PARTS {
        if let Some(wanted) = text(subnet, &format!("/properties/{field}/id"))
            && world.resource(kind, wanted).is_none()
        {
            return Err(Reply::missing(wanted, id(subnet)));
        }
    }
    Ok(())
}

const SUBNET_PARTS: [(&str, Kind); 3] = [
    ("routeTable", Kind::RouteTable),
    ("networkSecurityGroup", Kind::SecurityGroup),
    ("natGateway", Kind::NatGateway),
];

/// Gives each frontend of a load balancer or an application gateway in a subnet its address: the one asked
/// for, the one it has, the lowest free.
pub(crate) fn allocate(world: &World, kind: Kind, document: &mut Value) -> Result<(), Reply> {
    match kind {
        Kind::LoadBalancer | Kind::ApplicationGateway => {
            let owner = id(document).to_owned();
            let frontends = document["properties"]["frontendIPConfigurations"].as_array_mut();
            for frontend in frontends.into_iter().flatten() {
                let Some(subnet) = text(frontend, "/properties/subnet/id").map(str::to_owned) else {
                    continue;
                };
                let Some(mut subnet) = world.subnet(&subnet, &owner.to_lowercase()) else { continue };
                let asked = text(frontend, "/properties/privateIPAddress")
                    .and_then(|text| text.parse::<Ipv4Addr>().ok());
                let is_static = frontend["properties"]["privateIPAllocationMethod"] == json!("Static");
                let known = world.frontend_address(id(frontend));
                let chosen = match (asked.filter(|_| is_static), known) {
                    (Some(address), _) | (None, Some(address)) => Some(address.into()),
                    (None, None) => subnet.lowest_free(32),
                };
                let Some(block) = chosen else {
                    let message = format!(
                        "Subnet {} with address prefix {} does not have enough capacity for 1 IP addresses.",
                        subnet.name(),
                        subnet.prefix()
                    );
                    return Err(Reply::refusal("SubnetIsFull", message));
                };
                if let Some(holder) = subnet.holder(block) {
                    let message = format!(
                        "IP configuration {} is using the private IP address {} which is already allocated to resource \
                         {holder}.",
                        id(frontend),
                        block.addr()
                    );
                    return Err(Reply::refusal("PrivateIPAddressIsAllocated", message));
                }
                subnet.taken.insert(block, id(frontend).to_owned());
                frontend["properties"]["privateIPAddress"] = json!(block.addr());
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Gives a public address its address, the lowest that no other has.
pub(crate) fn give_public_address(world: &World, document: &mut Value) {
    if document["properties"]["ipAddress"].is_string() {
        return;
    }
    let known =
        world.of_kind(Kind::PublicAddress).filter_map(|address| text(address, "/properties/ipAddress"));
    let taken: BTreeSet<Ipv4Addr> = known.filter_map(|address| address.parse().ok()).collect();
    let (first, count) = PUBLIC;
    let all = (0..count).map(|offset| Ipv4Addr::from(u32::from(first) + offset));
    document["properties"]["ipAddress"] = json!(all.into_iter().find(|address| !taken.contains(address)));
}

/// The id of the user of a resource, if there is one.
pub(crate) fn user(world: &World, kind: Kind, wanted: &str) -> Option<String> {
    let refers = |document: &Value, field: &str| has_id(&document["properties"][field], wanted);
    let owned = |document: &Value| Some(id(document).to_owned());
    let subnets = || world.vnets.values().flat_map(vnet::subnets);
    match kind {
        Kind::RouteTable => subnets().find(|subnet| refers(subnet, "routeTable")).and_then(owned),
        Kind::NatGateway => subnets().find(|subnet| refers(subnet, "natGateway")).and_then(owned),
        Kind::SecurityGroup => {
            let mut nics = world.nics.values().map(|nic| &nic.document);
            let subnet = subnets().find(|subnet| refers(subnet, "networkSecurityGroup"));
            subnet.or_else(|| nics.find(|nic| refers(nic, "networkSecurityGroup"))).and_then(owned)
        }
        Kind::ApplicationSecurityGroup => {
            let has =
                |c: &&Value| list(c, "applicationSecurityGroups").iter().any(|group| has_id(group, wanted));
            world.ip_configurations().find(has).and_then(owned)
        }
        Kind::PublicAddress => {
            let mut users = world.ip_configurations().chain(world.frontends());
            let gateways = || {
                let mut gateways = world.of_kind(Kind::NatGateway);
                gateways.find(|gateway| {
                    list(gateway, "publicIpAddresses").iter().any(|address| has_id(address, wanted))
                })
            };
            users.find(|user| refers(user, "publicIPAddress")).or_else(gateways).and_then(owned)
        }
        Kind::LoadBalancer => {
            let inside = format!("{wanted}/").to_lowercase();
            let has = |c: &&Value| pools(c).any(|pool| pool.to_lowercase().starts_with(&inside));
            world.ip_configurations().find(has).and_then(owned)
        }
        Kind::ApplicationGateway => None,
    }
}

/// Azure's refusal to delete a resource that is in use.
pub(crate) fn in_use(kind: Kind, resource: &str, user: &str) -> Reply {
    let name = resource.rsplit('/').next().unwrap_or_default();
    let (code, message) = match kind {
        Kind::RouteTable => (
            "InUseRouteTableCannotBeDeleted",
            format!("Route table {name} is in use and cannot be deleted. It is used by {user}."),
        ),
        Kind::SecurityGroup => (
            "InUseNetworkSecurityGroupCannotBeDeleted",
            format!(
                "Network security group {resource} cannot be deleted because it is in use by the following resources: \
                 {user}. In order to delete the Network security group, remove the association with the resource(s)."
            ),
        ),
        Kind::PublicAddress => (
            "PublicIPAddressCannotBeDeleted",
            format!(
                "Public IP address {resource} can not be deleted since it is still allocated to resource {user}."
            ),
        ),
        Kind::NatGateway => (
            "InUseNatGatewayCannotBeDeleted",
            format!("NAT gateway {resource} is in use by {user} and cannot be deleted."),
        ),
        Kind::ApplicationSecurityGroup => (
            "InUseApplicationSecurityGroupCannotBeDeleted",
            format!("Application security group {resource} is in use by {user} and cannot be deleted."),
        ),
        // No resource of the simulator refers to one.
        Kind::ApplicationGateway => (
            "ApplicationGatewayInUse",
            format!("Application gateway {resource} is in use by {user} and cannot be deleted."),
        ),
        Kind::LoadBalancer => (
            "LoadBalancerInUseByNetworkInterfaces",
            format!("Load balancer {resource} is in use by {user} and cannot be deleted."),
        ),
    };
    Reply::refusal(code, message)
}

/// The users of a child, such as a backend pool.
pub(crate) fn user_of_child(world: &World, parent: &Value, child: &str) -> Option<String> {
    let rules =
        ["loadBalancingRules", "outboundRules"].into_iter().flat_map(|children| list(parent, children));
    let mut rules = rules.filter(|rule| has_id(&rule["properties"]["backendAddressPool"], child));
    let members =
        || world.ip_configurations().find(|c| pools(c).any(|pool| pool.eq_ignore_ascii_case(child)));
    rules.next().or_else(members).map(|user| id(user).to_owned())
}

pub(crate) fn child_in_use(child: &str, user: &str) -> Reply {
    let message = format!("Resource {child} is in use by {user} and cannot be deleted.");
    Reply::refusal("InUseBackendAddressPoolCannotBeDeleted", message)
}

/// A document with its back references, as a GET shows it.
pub(crate) fn shown(world: &World, kind: Kind, document: &Value) -> Value {
    let mut shown = document.clone();
    let own = id(document).to_owned();
    match kind {
        Kind::RouteTable | Kind::SecurityGroup => {
            let field = if kind == Kind::RouteTable { "routeTable" } else { "networkSecurityGroup" };
            let subnets = world.vnets.values().flat_map(vnet::subnets);
            let subnets = subnets.filter(|subnet| has_id(&subnet["properties"][field], &own));
            refer(&mut shown, "subnets", subnets);
            let nics = world.nics.values().map(|nic| &nic.document);
            refer(
                &mut shown,
                "networkInterfaces",
                nics.filter(|nic| has_id(&nic["properties"][field], &own)),
            );
        }
        Kind::PublicAddress => {
            if let Some(user) = user(world, kind, &own).filter(|user| !user.contains("/natGateways/")) {
                shown["properties"]["ipConfiguration"] = json!({ "id": user });
            }
        }
        Kind::LoadBalancer => {
            for pool in shown["properties"]["backendAddressPools"].as_array_mut().into_iter().flatten() {
                let wanted = id(pool).to_owned();
                let members = world
                    .ip_configurations()
                    .filter(|c| pools(c).any(|own| own.eq_ignore_ascii_case(&wanted)));
                refer(pool, "backendIPConfigurations", members);
                let rules = list(document, "loadBalancingRules").iter();
                let rules = rules.filter(|rule| has_id(&rule["properties"]["backendAddressPool"], &wanted));
                refer(pool, "loadBalancingRules", rules);
            }
        }
        Kind::ApplicationSecurityGroup | Kind::NatGateway | Kind::ApplicationGateway => {}
    }
    shown
}

/// Sets a list of references; Azure shows none where there is nothing.
fn refer<'a>(document: &mut Value, field: &str, referrers: impl Iterator<Item = &'a Value>) {
    let references: Vec<Value> = referrers.map(|referrer| json!({ "id": referrer["id"] })).collect();
    if !references.is_empty() {
        document["properties"][field] = json!(references);
    }
}
