//! Routes packets of a secondary NIC's pods to that NIC: Azure drops packets that come by another NIC.
//!
//! ```text
//!   7600: from the NIC's subnet lookup main suppress_prefixlength 31    the node's own pods, Azure's host services
//!   7601: from the NIC's subnet lookup 176                              all else: default via the NIC's gateway
//! ```
//! The rules are by source and not by pod, so they change with the NIC and not with pods.

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
const NEAR: u32 = 7600;
const FAR: u32 = 7601;

/// Sets the link up and routes by it, through `gateway`, all packets with one of these sources that aren't
/// for an address of the node or of its pods. Idempotent: earlier rules that aren't wanted now are removed.
/// Fails where another program has a route in our table.
pub fn steer(sources: &[Ipv4Net], link: &str, gateway: Ipv4Addr) -> Result<(), Error> {
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
    let near = |source| Rule { protocol: OURS, priority: NEAR, source, table: MAIN, only_hosts: true };
    let far = |source| Rule { protocol: OURS, priority: FAR, source, table: TABLE, only_hosts: false };
    let wanted: Vec<Rule> = sources.iter().flat_map(|&source| [near(source), far(source)]).collect();
    let found = ours(&mut netlink)?;
    for rule in wanted.iter().filter(|rule| !found.contains(rule)) {
        netlink.apply([Change::new_rule("add a rule for the secondary NIC's pods", rule)])?;
    }
    for rule in found.iter().filter(|rule| !wanted.contains(rule)) {
        remove(&mut netlink, rule)?;
    }
    Ok(())
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
    rules.retain(|rule| rule.protocol == OURS && matches!(rule.priority, NEAR | FAR));
    Ok(rules)
}
