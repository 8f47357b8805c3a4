//! Steers what pods of a secondary NIC send to that NIC: Azure drops there what comes by another.
//!
//! ```text
//!   7600: from the NIC's subnet lookup main suppress_prefixlength 31     the node's own pods, and Azure's services on the host
//!   7601: from the NIC's subnet lookup 176                               all else: default via the NIC's gateway
//! ```
//! By source and not by pod, so it changes with the NIC and not with pods.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAttribute, RuleMessage},
};
use nix::errno::Errno;

use super::{
    Error, index_of, link_up,
    netlink::{Change, MAIN, Netlink, OURS, Rule},
};

/// Of all routing tables, ours.
const TABLE: u8 = 176;
/// Before the main table's own rule (32766). Others may use the same: ours are those with our protocol.
const NEAR: u32 = 7600;
const FAR: u32 = 7601;

/// Sets the link up and sends by it, through `gateway`, all that has one of these sources and isn't for an address of the node's
/// or of its pods. Any number of times; what an earlier call steered and this one doesn't isn't steered any more.
pub fn steer(sources: &[Ipv4Net], link: &str, gateway: Ipv4Addr) -> Result<(), Error> {
    let index = index_of(link)?;
    let mut netlink = Netlink::open()?;
    netlink.apply([Change::set_link("set the secondary NIC's link up", link_up(index))])?;
    netlink.apply([Change::set_default_route(
        "add the secondary NIC's default route",
        TABLE,
        index,
        gateway,
    )])?;
    let near = |source: &Ipv4Net| Rule { priority: NEAR, source: *source, table: MAIN, only_hosts: true };
    let far = |source: &Ipv4Net| Rule { priority: FAR, source: *source, table: TABLE, only_hosts: false };
    let wanted: Vec<Rule> = sources.iter().flat_map(|source| [near(source), far(source)]).collect();
    let found = ours(&mut netlink)?;
    for rule in wanted.iter().filter(|rule| !found.contains(rule)) {
        netlink.apply([Change::new_rule("add a rule for the secondary NIC's pods", rule)])?;
    }
    for rule in found.iter().filter(|rule| !wanted.contains(rule)) {
        remove(&mut netlink, rule)?;
    }
    Ok(())
}

/// Takes back all that [`steer`] did, but for the link, which stays up. Ok if there was nothing.
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
    let mut all = RuleMessage::default();
    all.header.family = AddressFamily::Inet;
    let found = netlink.dump("list the routing rules", &RouteNetlinkMessage::GetRule(all))?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) => read(&rule),
            _ => None,
        })
        .collect())
}

fn read(message: &RuleMessage) -> Option<Rule> {
    let (mut priority, mut source, mut only_hosts) = (0, Ipv4Addr::UNSPECIFIED, false);
    let mut is_ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(found) => priority = *found,
            RuleAttribute::Source(std::net::IpAddr::V4(found)) => source = *found,
            RuleAttribute::Protocol(found) => is_ours = *found == OURS,
            RuleAttribute::SuppressPrefixLen(length) => only_hosts = *length == 31,
            _ => {}
        }
    }
    let source = Ipv4Net::new(source, message.header.src_len).ok()?;
    let rule = Rule { priority, source, table: message.header.table, only_hosts };
    (is_ours && matches!(priority, NEAR | FAR)).then_some(rule)
}
