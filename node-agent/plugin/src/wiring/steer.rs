//! Routes packets of a secondary NIC's pods to that NIC: Azure drops packets that come by another NIC.
//!
//! ```text
//!   7598: from the NIC's subnet fwmark 0x1000/0x1000 lookup main        leaves under another NIC's address
//!   7599: from the NIC's subnet to 168.63.129.16 lookup 176             answers to load balancers' probes
//!   7600: from the NIC's subnet lookup main suppress_prefixlength 31    to the node's own pods
//!   7601: from the NIC's subnet lookup 176                              all else, via the NIC's gateway
//! ```
//! The rules are by source and not by pod, so they change with the NIC and not with pods. Routing sees a
//! packet's source before the node translates it, so the source alone would lead a Service's reply out by the
//! wrong NIC: the agent's table of nftables marks such packets. And the node has a host route to
//! 168.63.129.16 by its first NIC, which an answer under a pod's own address must not take.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::errno::Errno;

use super::{
    Error, index_of,
    messages::{Body, MAIN, OURS, Route, Rule},
    netlink::{Change, Destination, Netlink},
    routes,
};

/// Our routing table.
const TABLE: u8 = 176;
/// The priorities of our rules: before the main table's own rule (32766). Others may use the same, so ours
/// are known by their protocol.
const MARKED: u32 = 7598;
const PROBED: u32 = 7599;
const NEAR: u32 = 7600;
const FAR: u32 = 7601;
/// The bit of a packet's mark by which it is routed like what the node itself sends: one that kube-proxy,
/// `portmap` and Calico leave to others.
pub const MARK: u32 = 0x1000;

/// Sets the link up and routes by it, through `gateway`, all packets with one of these sources that aren't
/// for an address of the node or of its pods, and that don't have our [`MARK`]. `prober` is the address from
/// which load balancers probe pods. Idempotent: earlier rules that aren't wanted now are removed. Fails where
/// another program has a route in our table.
pub fn steer(sources: &[Ipv4Net], link: &str, gateway: Ipv4Addr, prober: Ipv4Addr) -> Result<(), Error> {
    let index = index_of(link)?;
    let mut netlink = Netlink::open()?;
    netlink.apply([Change::set_link("set the secondary NIC's link up", Body::link_up(index))])?;
    let way = (index, gateway);
    let set = |what, is_exclusive| Change::set_default_route(what, TABLE, way, is_exclusive);
    match step(&routes::of_table(&mut netlink, TABLE)?, way)? {
        Step::Keep => {}
        Step::Add => netlink.apply([set("add the secondary NIC's default route", true)])?,
        Step::Replace => netlink.apply([set("change the secondary NIC's default route", false)])?,
    }
    let wanted: Vec<Rule> = sources.iter().flat_map(|&source| rules(source, prober)).collect();
    let found = ours(&mut netlink)?;
    for rule in wanted.iter().filter(|rule| !found.contains(rule)) {
        netlink.apply([Change::new_rule("add a rule for the secondary NIC's pods", rule)])?;
    }
    for rule in found.iter().filter(|rule| !wanted.contains(rule)) {
        remove(&mut netlink, rule)?;
    }
    Ok(())
}

/// The rules for packets from this source.
fn rules(source: Ipv4Net, prober: Ipv4Addr) -> [Rule; 4] {
    let rule = |priority, table| Rule::of(OURS, priority, source, table);
    [
        Rule { mark: MARK, mask: MARK, ..rule(MARKED, MAIN) },
        Rule { destination: prober.into(), ..rule(PROBED, TABLE) },
        Rule { only_hosts: true, ..rule(NEAR, MAIN) },
        rule(FAR, TABLE),
    ]
}

/// What is to be done about our table's default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Keep,
    Add,
    Replace,
}

/// The step after which our table, with these routes, leads to the gateway on the link. Not if a route there
/// is another's: ours would take in what the rules of a site send there, and its routes our pods' packets.
fn step(found: &[Route], (link, gateway): (u32, Ipv4Addr)) -> Result<Step, Error> {
    if found.iter().any(|route| route.protocol != OURS) {
        return Err(Error::TableTaken(TABLE));
    }
    let leads_there = |route: &Route| {
        Destination::Default.is_of(route) && route.link == Some(link) && route.gateway == Some(gateway)
    };
    Ok(match found {
        [] => Step::Add,
        [only] if leads_there(only) => Step::Keep,
        _ => Step::Replace,
    })
}

/// Undoes [`steer`], except that the link stays up. Ok if there was nothing to undo.
pub fn unsteer() -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    for rule in ours(&mut netlink)? {
        remove(&mut netlink, &rule)?;
    }
    match netlink.apply([Change::delete_default_route("remove the secondary NIC's default route", TABLE)]) {
        Err(error) if error.is(Errno::ESRCH) => Ok(()),
        result => result,
    }
}

fn remove(netlink: &mut Netlink, rule: &Rule) -> Result<(), Error> {
    match netlink.apply([Change::delete_rule("remove a rule for the secondary NIC's pods", rule)]) {
        Err(error) if error.is(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// The rules that carry our protocol and priorities.
fn ours(netlink: &mut Netlink) -> Result<Vec<Rule>, Error> {
    let mut rules: Vec<Rule> = netlink.dump("list the routing rules", &Body::any_rule())?;
    rules.retain(|rule| rule.protocol == OURS && (MARKED..=FAR).contains(&rule.priority));
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `ip rule` would have them, in the order in which the kernel asks them.
    #[test]
    fn of_a_pods_packets_marked_ones_go_like_the_nodes_own_and_answers_to_probes_never_by_its_host_route() {
        let source = "10.240.32.0/24".parse().unwrap();
        let asked = rules(source, Ipv4Addr::new(168, 63, 129, 16)).map(|rule| {
            let Rule { priority, destination, mark, mask, table, only_hosts, .. } = rule;
            assert_eq!((rule.protocol, rule.source), (OURS, source));
            format!("{priority}: to {destination} mark {mark:#x}/{mask:#x} table {table} hosts {only_hosts}")
        });
        let wanted = [
            "7598: to 0.0.0.0/0 mark 0x1000/0x1000 table 254 hosts false",
            "7599: to 168.63.129.16/32 mark 0x0/0x0 table 176 hosts false",
            "7600: to 0.0.0.0/0 mark 0x0/0x0 table 254 hosts true",
            "7601: to 0.0.0.0/0 mark 0x0/0x0 table 176 hosts false",
        ];
        assert_eq!(asked, wanted);
    }
}
