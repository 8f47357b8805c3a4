//! Security groups as the rules that each NIC's packets meet, with tags and application security groups
//! resolved to addresses.

use super::{Plug, WIRE_SERVER, gateways, peers};
use crate::document::list;
use crate::resource::Kind;
use crate::vnet;
use crate::world::World;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A rule's condition on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    Any,
    In(Vec<Ipv4Net>),
    /// The tag `Internet`: everything outside of the virtual network.
    Outside(Vec<Ipv4Net>),
}

/// A port, a range, or any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Any,
    /// As nftables writes it: `80` or `80-90`.
    In(Vec<String>),
}

/// One security rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) from: Addresses,
    pub(crate) to: Addresses,
    /// In lower case; empty for any.
    pub(crate) protocol: Option<String>,
    pub(crate) source_port: Port,
    pub(crate) destination_port: Port,
    pub(crate) allows: bool,
}

/// The groups of a NIC, its subnet's and its own. A packet has to pass each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guards {
    pub(crate) inbound: Vec<Vec<Rule>>,
    pub(crate) outbound: Vec<Vec<Rule>>,
}

/// By NIC. A NIC without a group isn't in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Security(pub(crate) BTreeMap<String, Guards>);

impl Security {
    pub(super) fn of(world: &World, plugs: &BTreeMap<String, Plug>) -> Self {
        let guards = |(nic, plug): (&String, &Plug)| {
            let group = |document: &Value| {
                let id = document["properties"]["networkSecurityGroup"]["id"].as_str()?;
                world.resource(Kind::SecurityGroup, id)
            };
            let subnet = world.subnet_document(&plug.subnet).and_then(group);
            let own = world.nics.get(nic).and_then(|nic| group(&nic.document));
            let tags = Tags::of(world, &plug.subnet);
            let rules = |direction: &str| -> Vec<Vec<Rule>> {
                let groups = subnet.into_iter().chain(own);
                groups.map(|group| rules(world, &tags, group, direction)).collect()
            };
            let guards = Guards { inbound: rules("Inbound"), outbound: rules("Outbound") };
            (!guards.inbound.is_empty()).then(|| (nic.clone(), guards))
        };
        Self(plugs.iter().filter_map(guards).collect())
    }
}

/// What the service tags mean for NICs of one virtual network.
struct Tags {
    virtual_network: Vec<Ipv4Net>,
}

impl Tags {
    /// `VirtualNetwork` is the network's own space, the spaces its peerings reach, the networks it reaches
    /// through a gateway, and the host's virtual address (documentation of service tags).
    fn of(world: &World, subnet: &str) -> Self {
        let (key, subnet) = subnet.split_once("/subnets/").unwrap_or((subnet, ""));
        let own = world.vnets.get(key);
        let spaces = own.into_iter().flat_map(|vnet| {
            let peered = peers(world, key, vnet).flat_map(|(peering, _)| vnet::reached(peering, subnet));
            let beyond = gateways(world, key, vnet).flat_map(|gateway| gateway.prefixes.iter().copied());
            vnet::address_space(vnet).into_iter().chain(peered).chain(beyond).collect::<Vec<_>>()
        });
        let all = spaces.chain(std::iter::once(WIRE_SERVER.into())).collect::<Vec<_>>();
        Self { virtual_network: Ipv4Net::aggregate(&all) }
    }

    fn addresses(&self, names: &[&str]) -> Addresses {
        let mut prefixes = Vec::new();
        for name in names {
            match *name {
                "*" | "0.0.0.0/0" | "Any" => return Addresses::Any,
                "Internet" => return Addresses::Outside(self.virtual_network.clone()),
                "VirtualNetwork" => prefixes.extend(self.virtual_network.iter().copied()),
                "AzureLoadBalancer" => prefixes.push(WIRE_SERVER.into()),
                text => prefixes.extend(
                    text.parse::<Ipv4Net>().ok().or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from)),
                ),
            }
        }
        Addresses::In(Ipv4Net::aggregate(&prefixes))
    }
}

/// A group's rules for one direction, in the order in which they are evaluated.
fn rules(world: &World, tags: &Tags, group: &Value, direction: &str) -> Vec<Rule> {
    let all = ["securityRules", "defaultSecurityRules"].into_iter().flat_map(|rules| list(group, rules));
    let mut rules: Vec<&Value> =
        all.filter(|rule| rule["properties"]["direction"] == json!(direction)).collect();
    rules.sort_by_key(|rule| rule["properties"]["priority"].as_u64());
    rules.into_iter().map(|rule| self::rule(world, tags, rule)).collect()
}

fn rule(world: &World, tags: &Tags, rule: &Value) -> Rule {
    let properties = &rule["properties"];
    // Both the singular and the plural field may be used.
    let texts = |singular: &str, plural: &str| -> Vec<&str> {
        let many = properties[plural].as_array().into_iter().flatten();
        std::iter::once(&properties[singular]).chain(many).filter_map(Value::as_str).collect()
    };
    let addresses = |side: &str| {
        let groups = properties[format!("{side}ApplicationSecurityGroups")].as_array();
        match groups.filter(|groups| !groups.is_empty()) {
            Some(groups) => Addresses::In(members(world, groups)),
            None => {
                tags.addresses(&texts(&format!("{side}AddressPrefix"), &format!("{side}AddressPrefixes")))
            }
        }
    };
    let port = |side: &str| {
        let ports = texts(&format!("{side}PortRange"), &format!("{side}PortRanges"));
        if ports.contains(&"*") {
            Port::Any
        } else {
            Port::In(ports.into_iter().map(str::to_owned).collect())
        }
    };
    let protocol = properties["protocol"].as_str().unwrap_or("*").to_lowercase();
    Rule {
        name: rule["name"].as_str().unwrap_or_default().to_owned(),
        from: addresses("source"),
        to: addresses("destination"),
        protocol: (protocol != "*").then_some(protocol),
        source_port: port("source"),
        destination_port: port("destination"),
        allows: properties["access"].as_str().is_some_and(|access| access.eq_ignore_ascii_case("Allow")),
    }
}

/// The addresses of an application security group: those of the ipConfigurations that are in it.
fn members(world: &World, groups: &[Value]) -> Vec<Ipv4Net> {
    let wanted: Vec<String> =
        groups.iter().filter_map(|group| group["id"].as_str().map(str::to_lowercase)).collect();
    let attached = world.nics.values().flat_map(|nic| &nic.attached);
    attached.filter(|(_, id)| wanted.contains(id)).map(|(address, _)| Ipv4Net::from(*address)).collect()
}
