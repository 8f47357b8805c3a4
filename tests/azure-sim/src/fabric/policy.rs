//! The table that decides which packets pass between machines, as one nftables script. Pure.
//!
//! Flows are tracked as in Azure: replies to an accepted packet are accepted. The table is replaced as a
//! whole. The flows in the kernel's memory outlive it.

mod exposure;

use super::rules::Port as Link;
use super::{ARM, FIRST, PLATFORM_ADDRESSES};
use crate::topology::{Addresses, Network, Port, Rule, WIRE_SERVER};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};
use std::net::Ipv4Addr;

/// The script for a network whose NICs are linked like this.
pub(super) fn render(network: &Network, links: &BTreeMap<String, Link>) -> String {
    let primaries: BTreeSet<Ipv4Addr> = links.values().map(|link| link.primary).collect();
    // "Metadata calls must be made from the primary IP address assigned to the primary network card of the
    // VM."
    let firsts = links.values().filter(|link| link.interface == FIRST).map(|link| link.primary).collect();
    let mut chains = String::new();
    let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
    for (nic, guards) in &network.security.0 {
        let Some(link) = links.get(nic) else { continue };
        for (direction, groups, jumps) in
            [("in", &guards.inbound, &mut inbound), ("out", &guards.outbound, &mut outbound)]
        {
            let chain = format!("{direction}_{}", link.device);
            let mut calls = String::new();
            for (index, rules) in groups.iter().enumerate() {
                let _ =
                    writeln!(chains, "  chain {chain}_{index} {{\n{}    drop\n  }}", security_rules(rules));
                let _ = writeln!(calls, "    jump {chain}_{index}");
            }
            let _ = writeln!(chains, "  chain {chain} {{\n{calls}  }}");
            jumps.push(format!("\"{}\" : jump {chain}", link.device));
        }
    }
    let exposed = exposure::render(network, links);
    let guarded =
        list(network.security.0.keys().filter_map(|nic| links.get(nic)).map(|l| format!("\"{}\"", l.device)));
    let unguarded = if guarded.is_empty() { String::new() } else { format!("oifname != {{ {guarded} }} ") };
    let by_device = |field: &str, jumps: &[String]| match jumps {
        [] => String::new(),
        jumps => format!("    {field} vmap {{ {} }}\n", jumps.join(", ")),
    };
    format!(
        "table inet azure\n\
         delete table inet azure\n\
         table inet azure {{\n\
         {primary}{first}{space}{closed}{chains}{exposed_chains}  \
           chain steer {{\n    type filter hook prerouting priority mangle; policy accept;\n    \
             ct direction original ct mark != 0 meta mark set ct mark\n{steer}  }}\n  \
           chain arriving {{\n    type nat hook prerouting priority dstnat; policy accept;\n{arriving}  }}\n  \
           chain leaving {{\n    type nat hook postrouting priority srcnat; policy accept;\n{leaving}  }}\n  \
           chain inbound {{\n    \
             iifname \"net*\" {unguarded}ct original ip daddr @closed drop\n{inbound}  }}\n  \
           chain outbound {{\n    ip daddr {{ {platform} }} return\n{outbound}  }}\n  \
           chain input {{\n    type filter hook input priority filter; policy accept;\n    \
             iifname \"lo\" accept\n    \
             ct state established,related accept\n    \
             iifname \"vm*\" ip saddr != @primary drop\n    \
             iifname \"vm*\" ip daddr {{ {platform} }} ip saddr != @first drop\n    \
             iifname \"vm*\" ip daddr {ARM} jump outbound\n    \
             iifname \"net*\" ip daddr != {ARM} drop\n    \
             iifname \"gw*\" drop\n  }}\n  \
           chain output {{\n    type filter hook output priority filter; policy accept;\n    \
             ct state new ip saddr {WIRE_SERVER} jump inbound\n  }}\n  \
           chain forward {{\n    type filter hook forward priority filter; policy drop;\n    \
             oifname \"lo\" drop\n    \
             ct state established,related accept\n    \
             iifname \"vm*\" jump outbound\n    \
             oifname \"vm*\" jump inbound\n    \
             iifname \"vm*\" oifname \"vm*\" accept\n    \
             iifname \"vm*\" oifname \"net*\" ip saddr @primary accept\n    \
             iifname \"vm*\" oifname \"gw*\" ip saddr @space accept\n{outward}    \
             oifname \"vm*\" ct status dnat accept\n    \
             oifname \"vm*\" ct mark != 0 accept\n    \
             iifname \"gw*\" oifname \"vm*\" accept\n    \
             iifname \"net*\" oifname \"vm*\" ip daddr @primary accept\n    \
             iifname \"net*\" oifname \"net*\" accept\n  }}\n}}\n",
        primary = set("primary", "", &primaries),
        first = set("first", "", &firsts),
        closed = set("closed", "", &network.exposure.closed),
        exposed_chains = exposed.chains,
        steer = exposed.steer,
        arriving = exposed.arriving,
        leaving = exposed.leaving,
        outward = exposed.outward,
        space = set("space", "flags interval; auto-merge; ", &network.space),
        inbound = by_device("oifname", &inbound),
        outbound = by_device("iifname", &outbound),
        platform = PLATFORM_ADDRESSES.map(|address| address.to_string()).join(", "),
    )
}

fn set<T: Display>(name: &str, flags: &str, elements: &BTreeSet<T>) -> String {
    let elements = match elements.len() {
        0 => String::new(),
        _ => format!("elements = {{ {} }}; ", list(elements)),
    };
    format!("  set {name} {{ type ipv4_addr; {flags}{elements}}}\n")
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// The rules of one group in one direction. An allowed packet returns from the chain, to meet the next group.
fn security_rules(rules: &[Rule]) -> String {
    let mut script = String::new();
    for rule in rules {
        let Rule { name, from, to, protocol, source_port, destination_port, allows } = rule;
        let (Some(from), Some(to)) = (addresses("saddr", from), addresses("daddr", to)) else { continue };
        let ports = [port("sport", source_port), port("dport", destination_port)].concat();
        // Ports mean TCP or UDP where the rule names no protocol.
        let protocol = match protocol.as_deref() {
            Some("tcp" | "udp" | "icmp" | "esp" | "ah") => {
                format!("meta l4proto {} ", protocol.as_deref().unwrap_or_default())
            }
            _ if !ports.is_empty() => "meta l4proto { tcp, udp } ".to_owned(),
            _ => String::new(),
        };
        let verdict = if *allows { "return" } else { "drop" };
        let _ = writeln!(script, "    {from}{to}{protocol}{ports}{verdict} comment \"{name}\"");
    }
    script
}

/// `None` when no address can match, such as that of a member of an empty group.
fn addresses(field: &str, addresses: &Addresses) -> Option<String> {
    match addresses {
        Addresses::Any => Some(String::new()),
        Addresses::In(prefixes) if prefixes.is_empty() => None,
        Addresses::In(prefixes) => Some(format!("ip {field} {{ {} }} ", list(prefixes))),
        Addresses::Outside(prefixes) => Some(format!("ip {field} != {{ {} }} ", list(prefixes))),
    }
}

fn port(field: &str, port: &Port) -> String {
    match port {
        Port::Any => String::new(),
        Port::In(ports) => format!("th {field} {{ {} }} ", list(ports)),
    }
}
