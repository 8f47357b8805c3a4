//! Application gateways: what their documents mean for packets. Pure. The fabric has the proxy itself.
//!
//! They are simpler than Azure's: HTTP only, basic rules only, one instance, and a probe's threshold applies
//! to good answers, too.

use crate::document::{has_id, id, list};
use crate::health::Probe;
use crate::resource::Kind;
use crate::world::World;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

/// A working gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// The source address of its own connections.
    pub(crate) instance: Ipv4Addr,
    /// The private addresses at which clients reach it.
    pub(crate) frontends: BTreeSet<Ipv4Addr>,
    /// Where it listens, and the backends of each listener.
    pub(crate) listeners: BTreeMap<SocketAddrV4, Vec<SocketAddrV4>>,
}

/// All finished gateways by their ids in lower case, each with its document.
pub(crate) fn at_work(world: &World) -> impl Iterator<Item = (String, &Value)> {
    let ready = world.of_kind(Kind::ApplicationGateway);
    let ready = ready.filter(|gateway| gateway["properties"]["provisioningState"] == "Succeeded");
    ready.map(|gateway| (id(gateway).to_lowercase(), gateway))
}

/// The gateway's work. `None` as long as its instance has no address.
pub(crate) fn gateway(world: &World, key: &str, document: &Value) -> Option<Gateway> {
    let instance = *world.instances.get(key)?;
    let frontends = list(document, "frontendIPConfigurations").iter().filter_map(private_address).collect();
    let listeners = rules(document, key).filter_map(|rule| {
        let frontend = part(
            document,
            "frontendIPConfigurations",
            &rule.listener["properties"]["frontendIPConfiguration"],
        )?;
        let port = part(document, "frontendPorts", &rule.listener["properties"]["frontendPort"])?;
        // Packets to its public address reach its instance.
        let address = private_address(frontend).unwrap_or(instance);
        let healthy = rule.backends.iter().filter(|(_, probe)| world.health.is_up(probe));
        Some((
            SocketAddrV4::new(address, number(&port["properties"]["port"])?),
            healthy.map(|(backend, _)| *backend).collect(),
        ))
    });
    Some(Gateway { instance, frontends, listeners: listeners.collect() })
}

/// The public addresses that lead to gateways, each with the instance's address and the resource's id.
pub(crate) fn public_frontends(world: &World) -> impl Iterator<Item = (Ipv4Addr, &str)> {
    at_work(world).flat_map(|(key, gateway)| {
        let instance = world.instances.get(&key).copied();
        let frontends = list(gateway, "frontendIPConfigurations").iter();
        frontends
            .filter_map(move |one| Some((instance?, one["properties"]["publicIPAddress"]["id"].as_str()?)))
    })
}

/// The probes of gateways, each with the number of equal answers that changes its state.
pub(crate) fn probes(world: &World) -> Vec<(Probe, u32)> {
    let all = at_work(world).flat_map(|(key, gateway)| {
        rules(gateway, &key)
            .flat_map(|rule| {
                let threshold = rule.threshold;
                rule.backends.into_iter().map(move |(_, probe)| (probe, threshold))
            })
            .collect::<Vec<_>>()
    });
    all.collect()
}

/// A routing rule with its backends.
struct Rule<'a> {
    listener: &'a Value,
    backends: Vec<(SocketAddrV4, Probe)>,
    threshold: u32,
}

fn rules<'a>(gateway: &'a Value, key: &'a str) -> impl Iterator<Item = Rule<'a>> {
    list(gateway, "requestRoutingRules").iter().filter_map(move |rule| {
        let properties = &rule["properties"];
        let listener = part(gateway, "httpListeners", &properties["httpListener"])?;
        let pool = part(gateway, "backendAddressPools", &properties["backendAddressPool"])?;
        let settings = part(gateway, "backendHttpSettingsCollection", &properties["backendHttpSettings"])?;
        let port = number(&settings["properties"]["port"])?;
        // Without a probe of its own it asks for `/`, and three answers change the state ("Application
        // Gateway health probes overview").
        let probe =
            part(gateway, "probes", &settings["properties"]["probe"]).map(|probe| &probe["properties"]);
        let page = probe.and_then(|probe| probe["path"].as_str()).unwrap_or("/");
        let threshold = probe.and_then(|probe| number(&probe["unhealthyThreshold"])).unwrap_or(3);
        let backend = |address: &Value| {
            let address = address["ipAddress"].as_str()?.parse().ok()?;
            let probe = Probe { address, port, page: Some(page.to_owned()), gateway: Some(key.to_owned()) };
            Some((SocketAddrV4::new(address, port), probe))
        };
        let backends = list(pool, "backendAddresses").iter().filter_map(backend).collect();
        Some(Rule { listener, backends, threshold: u32::from(threshold.max(1)) })
    })
}

fn part<'a>(gateway: &'a Value, children: &str, reference: &Value) -> Option<&'a Value> {
    let wanted = reference["id"].as_str()?;
    list(gateway, children).iter().find(|child| has_id(child, wanted))
}

fn private_address(frontend: &Value) -> Option<Ipv4Addr> {
    frontend["properties"]["privateIPAddress"].as_str()?.parse().ok()
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}
