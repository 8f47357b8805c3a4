//! The bodies of rtnetlink's messages: those that are sent ([`body`]), and the objects in those that come
//! ([`objects`]). Pure.
//!
//! Only what is needed here is written and read. A library that knows every attribute of every object would
//! be a third of the plugin, and each of its pages that a verb touches is a page fault. It would also refuse
//! a whole list of links for an attribute that it can't read, and that nothing here asks for.

mod body;
mod objects;

use std::iter;

use netlink_packet_core::{DecodeError, NLA_HEADER_SIZE, NLA_TYPE_MASK, NetlinkBuffer};
use nix::libc;

pub(super) use body::Body;
pub(super) use objects::{Address, Entry, Link, Neighbour, Object, Route, Rule};

/// The main routing table.
pub(super) const MAIN: u8 = libc::RT_TABLE_MAIN;
/// The protocol of all our routes and rules: `ip route flush table all proto 176` removes them, and nothing
/// of ours changes those of another. `rt_protos` of iproute2 doesn't assign this number.
pub(super) const OURS: u8 = 176;

const INET: u8 = libc::AF_INET as u8;
const UP: u32 = libc::IFF_UP as u32;
/// FRA_… of `linux/fib_rules.h`.
const RULE_DESTINATION: u16 = 1;
const RULE_SOURCE: u16 = 2;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_SUPPRESS_PREFIX_LEN: u16 = 14;
const RULE_MASK: u16 = 16;
const RULE_PROTOCOL: u16 = 21;
/// Of a rule that takes only routes to single addresses from its table.
const LONGEST_SUPPRESSED: u32 = 31;
/// The kinds of links as the kernel names them.
const VETH: &str = "veth";
const BRIDGE: &str = "bridge";

/// Messages in a datagram, and attributes in a message, are aligned to four bytes.
const ALIGN: usize = 4;

/// Whether a message's body is about IPv4: all headers of those that have a family begin with it.
pub(super) fn is_ipv4(body: &[u8]) -> bool {
    body.first() == Some(&INET)
}

/// The messages of a datagram. One that is broken is the last.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, DecodeError>> {
    let mut rest = datagram;
    iter::from_fn(move || {
        let message = (!rest.is_empty()).then(|| NetlinkBuffer::new_checked(rest))?;
        let length = message.as_ref().map_or(rest.len(), |message| message.length() as usize);
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes, each with its kind and its value, up to the first that is cut off.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let &[length, more, kind @ ..] = rest.first_chunk::<NLA_HEADER_SIZE>()?;
        let length = usize::from(u16::from_ne_bytes([length, more]));
        let value = rest.get(NLA_HEADER_SIZE..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((u16::from_ne_bytes(kind) & NLA_TYPE_MASK, value))
    })
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnet::Ipv4Net;

    use super::super::HOST_MAC;
    use super::*;

    #[test]
    fn objects_are_read_as_they_were_written() {
        let (address, gateway) = (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(169, 254, 1, 1));
        let link = Link {
            index: 7,
            is_up: true,
            name: "vnp0d7763386da".to_owned(),
            alias: "somebody's".to_owned(),
            kind: BRIDGE.to_owned(),
            mac: Some(HOST_MAC),
            mtu: Some(1400),
            gso_max: Some(62_780),
            master: Some(3),
            peer: None,
        };
        let written = Body::link_up(7).name(&link.name).alias(&link.alias).mac(HOST_MAC).bridge();
        let written = written.mtu(link.mtu).gso_max(link.gso_max).master(3);
        assert_eq!(Link::read(written.bytes()), Some(link));

        let route = Route {
            prefix_len: 32,
            table: MAIN,
            protocol: OURS,
            scope: libc::RT_SCOPE_LINK,
            kind: libc::RTN_UNICAST,
            destination: Some(address),
            link: Some(7),
            gateway: Some(gateway),
            ..Route::default()
        };
        assert_eq!(Route::read(Body::route(&route, 0).bytes()), Some(route));

        let neighbour = Neighbour::pod(7, address);
        let entry = Entry::read(Body::permanent_neighbour(neighbour).bytes());
        assert_eq!(entry.and_then(|entry| entry.permanent()), Some(neighbour));

        let written = Body::address(7, address, 20);
        let read = Address { link: 7, prefix_len: 20, address: Some(address) };
        assert_eq!(Address::read(written.bytes()), Some(read));

        let plain = Rule::of(OURS, 7600, Ipv4Net::new(address, 24).unwrap().trunc(), 176);
        let rules = [
            plain,
            Rule { only_hosts: true, ..plain },
            Rule { destination: address.into(), ..plain },
            Rule { mark: 0x1000, mask: 0x3000, ..plain },
            Rule { mask: 0x1000, ..plain },
        ];
        for rule in rules {
            assert_eq!(Rule::read(Body::rule(&rule).bytes()), Some(rule));
        }
    }

    #[test]
    fn an_object_that_is_cut_off_is_read_as_far_as_it_goes() {
        let whole = Body::link_up(7).name("eth0").mtu(Some(1400));
        for end in 0..whole.bytes().len() {
            let read = Link::read(&whole.bytes()[..end]);
            assert_eq!(read.is_some(), end >= 16, "{end}");
            assert!(read.is_none_or(|link| link.mtu.is_none()), "{end}");
        }
    }

    #[test]
    fn attributes_of_any_length_and_kind_are_read_to_an_end() {
        let with = |attribute: &[u8]| [&[0_u8; 16][..], attribute].concat();
        let name = u8::try_from(libc::IFLA_IFNAME).unwrap();
        for length in [0_u16, 1, 3, 4, 5, 9, 65_535] {
            for nested in [0, 0x80] {
                let [low, high] = length.to_ne_bytes();
                let attribute = [low, high, name, nested, b'e', b't', b'h', 0];
                let read = Link::read(&with(&[attribute, attribute].concat()));
                assert!(read.is_some_and(|link| link.name.len() <= 4), "{length}");
            }
        }
    }
}
