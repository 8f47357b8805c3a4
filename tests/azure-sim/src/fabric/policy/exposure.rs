//! Public addresses, load balancers and services as parts of the table: chains, and rules for the hooks.

use super::list;
use crate::fabric::rules::{Port as Link, mark};
use crate::fabric::{DEFAULT_OUTBOUND, INTERNET};
use crate::topology::{Balanced, Distribution, Exposure, Network, Service};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;

/// Parts of the script.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) chains: String,
    /// Before routing, in the order of their hooks.
    pub(super) steer: String,
    pub(super) arriving: String,
    /// After routing.
    pub(super) leaving: String,
    /// The sources that may reach the internet besides primary addresses.
    pub(super) outward: String,
}

pub(super) fn render(network: &Network, links: &BTreeMap<String, Link>) -> Parts {
    let mut parts = Parts::default();
    let Exposure { public, closed: _, balanced, services } = &network.exposure;
    for (index, rule) in balanced.iter().enumerate() {
        balance(&mut parts, index, rule, network, links);
    }
    for Service { host, endpoints } in services.iter().filter(|service| !service.endpoints.is_empty()) {
        let own = format!("oifname \"net*\" ip daddr {host} ip saddr {{ {} }}", list(endpoints));
        let _ = writeln!(parts.outward, "    {own} accept");
        let _ = writeln!(parts.leaving, "    {own} return");
    }
    if !public.is_empty() {
        let inward = list(public.iter().map(|(private, public)| format!("{public} : {private}")));
        let outward = list(public.iter().map(|(private, public)| format!("{private} : {public}")));
        let _ = writeln!(parts.arriving, "    dnat ip to ip daddr map {{ {inward} }}");
        let _ = writeln!(parts.leaving, "    oifname \"net*\" snat ip to ip saddr map {{ {outward} }}");
        // A machine that connects to a public address comes from a public address, too.
        let _ = writeln!(
            parts.leaving,
            "    oifname \"vm*\" ct original ip daddr {INTERNET} snat ip to ip saddr map {{ {outward} }}"
        );
        let _ = writeln!(parts.outward, "    oifname \"net*\" ip saddr {{ {} }} accept", list(public.keys()));
    }
    let _ = writeln!(
        parts.leaving,
        "    iifname \"vm*\" oifname \"vm*\" ct original ip daddr {INTERNET} snat ip to {DEFAULT_OUTBOUND}"
    );
    for Service { host, .. } in services {
        let _ = writeln!(parts.leaving, "    iifname \"vm*\" ip daddr {host} snat ip to {DEFAULT_OUTBOUND}");
    }
    parts
}

/// One load-balancing rule: a chain that chooses, and a chain for each member.
fn balance(
    parts: &mut Parts,
    index: usize,
    rule: &Balanced,
    network: &Network,
    links: &BTreeMap<String, Link>,
) {
    let Balanced { frontend, protocol, port, backend_port, floating, distribution, members } = rule;
    let protocols = protocol.as_deref().unwrap_or("{ tcp, udp }");
    let ports = if *port == 0 { String::new() } else { format!("th dport {port} ") };
    let packets = format!("ip daddr {frontend} meta l4proto {protocols} {ports}");
    if members.is_empty() {
        let _ = writeln!(parts.steer, "    ct state new {packets}drop");
        return;
    }
    let mut verdicts = Vec::new();
    for (place, member) in members.iter().enumerate() {
        let chain = format!("lb_{index}_{place}");
        let action = if *floating {
            let Some(link) = link_of(*member, network, links) else { continue };
            let mark = mark(&link.device);
            format!("ct mark set {mark} meta mark set {mark}")
        } else if *port == 0 {
            format!("dnat ip to {member}")
        } else {
            format!("meta l4proto {protocols} dnat ip to {member}:{backend_port}")
        };
        let _ = writeln!(parts.chains, "  chain {chain} {{\n    {action}\n  }}");
        verdicts.push(chain);
    }
    let choice = match distribution {
        Distribution::PerFlow => "numgen inc",
        Distribution::PerClient => "jhash ip saddr",
    };
    let all = verdicts.iter().enumerate().map(|(place, chain)| format!("{place} : goto {chain}"));
    let choose = format!("{choice} mod {} vmap {{ {} }}", verdicts.len(), list(all));
    if *floating {
        let _ = writeln!(parts.steer, "    ct state new {packets}{choose}");
    } else {
        let _ = writeln!(parts.arriving, "    {packets}{choose}");
    }
}

/// The link of the NIC that holds an address.
pub(super) fn link_of<'a>(
    address: Ipv4Addr,
    network: &Network,
    links: &'a BTreeMap<String, Link>,
) -> Option<&'a Link> {
    let (nic, _) = network.plugs.iter().find(|(_, plug)| plug.live.contains(&address))?;
    links.get(nic)
}
