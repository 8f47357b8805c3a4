//! Any bytes as the kernel's answer.

use std::collections::HashMap;

use super::*;
use crate::wiring::{Heard, Identity};

/// Bytes of a message's header (netlink(7)), so that no datagram has more messages than this.
const HEADER: usize = 16;

/// An object that is read is written so that it is read as the same, as far as we write such. Returns whether
/// the datagram has an object.
fn is_sound(datagram: &[u8]) -> bool {
    let whole: Vec<_> = messages(datagram).map_while(Result::ok).collect();
    assert!(whole.len() <= datagram.len() / HEADER, "{} messages", whole.len());
    let uplinks = HashMap::from([("eth0".to_owned(), 1500)]);
    Heard::Messages(datagram.to_vec()).concerns(&uplinks, |_| true);
    let bodies = whole.iter().map(|message| message.payload());
    let read = bodies.map(|body| [link(body), route(body), entry(body), address(body), rule(body)]);
    read.flatten().filter(|is_read| *is_read).count() > 0
}

fn link(body: &[u8]) -> bool {
    let Some(read) = Link::read(body) else { return false };
    if let Some(identity) = read.identity() {
        let again: Result<Identity, ()> = identity.to_string().parse();
        assert_eq!(
            again.map(|again| (again.address, again.sandbox)),
            Ok((identity.address, identity.sandbox))
        );
    }
    let mut written = if read.is_up { Body::link_up(read.index) } else { Body::link_down(read.index) };
    written = written.name(&read.name).alias(&read.alias).mtu(read.mtu).gso_max(read.gso_max);
    if let Some(mac) = read.mac {
        written = written.mac(mac);
    }
    if let Some(master) = read.master {
        written = written.master(master);
    }
    // Of the kinds only the two of ours are written, and of a veth more than is read.
    assert_eq!(Link::read(written.bytes()), Some(Link { kind: String::new(), peer: None, ..read }));
    true
}

fn route(body: &[u8]) -> bool {
    let Some(read) = Route::read(body) else { return false };
    if let Some(address) = read.host_address() {
        assert_eq!((read.prefix_len, read.destination), (32, Some(address)));
    }
    if read.is_ipv4() {
        let read = Route { is_cached: false, ..read };
        assert_eq!(Route::read(Body::route(&read, 0).bytes()), Some(read));
    }
    true
}

fn entry(body: &[u8]) -> bool {
    let Some(read) = Entry::read(body) else { return false };
    if let Some(neighbour) = read.permanent() {
        assert!(read.is_static());
        assert_eq!(Entry::read(Body::permanent_neighbour(neighbour).bytes()), Some(read));
    }
    true
}

fn address(body: &[u8]) -> bool {
    let Some(read) = Address::read(body) else { return false };
    if let Some(address) = read.address {
        assert_eq!(Address::read(Body::address(read.link, address, read.prefix_len).bytes()), Some(read));
    }
    true
}

fn rule(body: &[u8]) -> bool {
    let Some(read) = Rule::read(body) else { return false };
    let read = Rule { source: read.source.trunc(), destination: read.destination.trunc(), ..read };
    assert_eq!(Rule::read(Body::rule(&read).bytes()), Some(read));
    true
}

#[test]
fn any_object_that_is_read_of_the_kernels_answer_is_written_as_the_same() {
    vnetpool_fuzz::search("netlink", is_sound);
}
