//! A synchronous rtnetlink socket: a batch of changes in one system call, one object, or a whole dump.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkHeader,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{errno::Errno, libc};

use super::{
    Error,
    messages::{Address, Body, Entry, Link, MAIN, Neighbour, OURS, Object, Route, Rule, messages},
    socket::KernelSocket,
};

/// The most that the kernel puts into one datagram of a dump.
const BUFFER: usize = 32 * 1024;
/// The most that it answers to one change: a failure, with the change. Memory that isn't touched costs
/// nothing, but what comes behind it begins a new page.
const ANSWER: usize = 4 * 1024;
/// How often a dump is repeated at most because of a change during it.
const DUMPS: usize = 20;

/// A change to ask of the kernel.
#[derive(Debug)]
pub(super) struct Change {
    /// Its purpose, in words for the error.
    what: &'static str,
    kind: u16,
    flags: u16,
    body: Body,
}

/// The flags of an object that must be new.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Change {
    pub(super) fn new_link(what: &'static str, body: Body) -> Change {
        Change { what, kind: Link::NEW, flags: NEW, body }
    }

    /// A change of an existing link by the message that otherwise creates links, which also takes the
    /// settings of a port.
    pub(super) fn change_link(what: &'static str, body: Body) -> Change {
        Change { what, kind: Link::NEW, flags: 0, body }
    }

    pub(super) fn set_link(what: &'static str, body: Body) -> Change {
        Change { what, kind: libc::RTM_SETLINK, flags: 0, body }
    }

    pub(super) fn delete_link(what: &'static str, body: Body) -> Change {
        Change { what, kind: Link::GONE, flags: 0, body }
    }

    /// `address`/32 on a link.
    pub(super) fn new_address(what: &'static str, link: u32, address: Ipv4Addr) -> Change {
        let body = Body::address(link, address, 32).of_prefix(address);
        Change { what, kind: Address::NEW, flags: NEW, body }
    }

    /// The opposite of a `new_address` with this prefix length.
    pub(super) fn delete_address(what: &'static str, link: u32, address: Ipv4Addr, prefix_len: u8) -> Change {
        Change { what, kind: Address::GONE, flags: 0, body: Body::address(link, address, prefix_len) }
    }

    /// A route that must not exist yet: to a destination on the link itself, or through a gateway on it.
    pub(super) fn new_route(
        what: &'static str,
        link: u32,
        to: Destination,
        gateway: Option<Ipv4Addr>,
    ) -> Change {
        Change { what, kind: Route::NEW, flags: NEW, body: Body::route(&to.route(link, gateway), 0) }
    }

    /// Removes our route to this destination on the link.
    pub(super) fn delete_route(what: &'static str, link: u32, to: Destination) -> Change {
        Change { what, kind: Route::GONE, flags: 0, body: Body::route(&to.route(link, None), 0) }
    }

    /// A permanent neighbour entry, for which no ARP request is sent.
    pub(super) fn new_neighbour(what: &'static str, neighbour: Neighbour) -> Change {
        let body = Body::permanent_neighbour(neighbour);
        Change { what, kind: Entry::NEW, flags: NLM_F_CREATE | NLM_F_REPLACE, body }
    }

    /// A bridge's entry for a pod. There must be none yet.
    pub(super) fn new_port_entry(what: &'static str, port: u32, address: Ipv4Addr) -> Change {
        Change { what, kind: Entry::NEW, flags: NEW, body: Body::port_entry(port, address) }
    }

    /// An entry of the neighbours or of a bridge.
    pub(super) fn delete_entry(what: &'static str, body: Body) -> Change {
        Change { what, kind: Entry::GONE, flags: 0, body }
    }

    pub(super) fn new_rule(what: &'static str, rule: &Rule) -> Change {
        Change { what, kind: Rule::NEW, flags: NEW, body: Body::rule(rule) }
    }

    pub(super) fn delete_rule(what: &'static str, rule: &Rule) -> Change {
        Change { what, kind: Rule::GONE, flags: 0, body: Body::rule(rule) }
    }

    /// The default route of a table of ours, through a gateway that needn't be in a subnet of the link;
    /// `is_exclusive` if there must be none yet.
    pub(super) fn set_default_route(
        what: &'static str,
        table: u8,
        (link, gateway): (u32, Ipv4Addr),
        is_exclusive: bool,
    ) -> Change {
        let flags = NLM_F_CREATE | if is_exclusive { NLM_F_EXCL } else { NLM_F_REPLACE };
        Change { what, kind: Route::NEW, flags, body: Body::default_route(table, link, gateway) }
    }

    pub(super) fn delete_default_route(what: &'static str, table: u8) -> Change {
        let route = Route { table, protocol: OURS, scope: libc::RT_SCOPE_NOWHERE, ..Route::default() };
        Change { what, kind: Route::GONE, flags: 0, body: Body::route(&route, 0) }
    }

    /// A route that ends packets to the range on the node and informs their sender.
    pub(super) fn new_unreachable(what: &'static str, range: Ipv4Net) -> Change {
        Change { what, kind: Route::NEW, flags: NEW, body: Body::route(&unreachable(range), 0) }
    }

    pub(super) fn delete_unreachable(what: &'static str, range: Ipv4Net) -> Change {
        Change { what, kind: Route::GONE, flags: 0, body: Body::route(&unreachable(range), 0) }
    }
}

fn unreachable(range: Ipv4Net) -> Route {
    Route {
        prefix_len: range.prefix_len(),
        table: MAIN,
        protocol: OURS,
        kind: libc::RTN_UNREACHABLE,
        destination: Some(range.network()),
        ..Route::default()
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Host(Ipv4Addr),
    Default,
}

impl Destination {
    fn prefix_len(self) -> u8 {
        match self {
            Destination::Host(_) => 32,
            Destination::Default => 0,
        }
    }

    fn address(self) -> Option<Ipv4Addr> {
        match self {
            Destination::Host(address) => Some(address),
            Destination::Default => None,
        }
    }

    /// The route to it in the main table: on the link itself, or through a gateway on it.
    fn route(self, link: u32, gateway: Option<Ipv4Addr>) -> Route {
        Route {
            prefix_len: self.prefix_len(),
            table: MAIN,
            protocol: OURS,
            scope: if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK },
            kind: libc::RTN_UNICAST,
            destination: self.address(),
            link: Some(link),
            gateway,
            ..Route::default()
        }
    }

    pub(super) fn is_of(self, route: &Route) -> bool {
        (route.prefix_len, route.destination) == (self.prefix_len(), self.address())
    }
}

/// A socket that acts in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: KernelSocket,
    sequence: u32,
}

/// A message of the kernel's.
enum Answer<'a> {
    /// The body of a message that brings an object.
    Object(&'a [u8]),
    /// The request of this number is done, or the dump: with a failure or with none.
    End { sequence: u32, errno: Option<Errno> },
}

impl Netlink {
    pub(super) fn open() -> Result<Netlink, Error> {
        let socket = KernelSocket::open(NETLINK_ROUTE);
        let socket = socket.map_err(|error| Error::kernel("open a netlink socket", error))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Makes the changes in their order, all in one system call. The kernel goes on after a change that
    /// fails, so a later change of a batch must do no harm without the earlier ones. Returns the first
    /// failure.
    pub(super) fn apply<const N: usize>(&mut self, changes: [Change; N]) -> Result<(), Error> {
        self.apply_all(&changes)
    }

    fn apply_all(&mut self, changes: &[Change]) -> Result<(), Error> {
        let first = self.sequence + 1;
        let what = |index: usize| changes.get(index).map_or("", |change| change.what);
        let mut bytes = Vec::with_capacity(1024);
        for (index, Change { kind, flags, body, .. }) in changes.iter().enumerate() {
            // The kernel always reports a failure, but the success only of the last change. So there is one
            // answer to read for a whole batch.
            let ack = if index + 1 == changes.len() { NLM_F_ACK } else { 0 };
            self.push(&mut bytes, *kind, NLM_F_REQUEST | flags | ack, body);
        }
        self.send(&bytes, what(0))?;
        let last = self.sequence;
        let mut failure = Ok(());
        let mut is_done = false;
        while !is_done {
            self.receive(what(0), ANSWER, &mut |_, answer| {
                if let Answer::End { sequence, errno } = answer {
                    if let (Some(errno), true) = (errno, failure.is_ok()) {
                        let what = what(sequence.wrapping_sub(first) as usize);
                        failure = Err(Error::Kernel { what, errno });
                    }
                    is_done |= sequence == last;
                }
            })?;
        }
        failure
    }

    /// The link that is meant, if there is one.
    pub(super) fn link(&mut self, meant: &Body) -> Result<Option<Link>, Error> {
        match self.get("read a link", meant) {
            Err(Error::Kernel { errno: Errno::ENODEV, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The route that packets to this address take, if any.
    pub(super) fn route_to(&mut self, address: Ipv4Addr) -> Result<Option<Route>, Error> {
        match self.get("read a route", &Body::route_to(address)) {
            Err(Error::Kernel { errno: Errno::ENETUNREACH | Errno::EHOSTUNREACH, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The entry for the neighbour with this address, if there is one.
    pub(super) fn neighbour(&mut self, link: u32, address: Ipv4Addr) -> Result<Option<Entry>, Error> {
        match self.get("read a neighbour", &Body::neighbour(link, address)) {
            Err(Error::Kernel { errno: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    fn get<T: Object>(&mut self, what: &'static str, meant: &Body) -> Result<T, Error> {
        self.ask(what, T::GET, NLM_F_REQUEST, meant)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(what, BUFFER, &mut |_, found| {
                answer = Some(match found {
                    Answer::Object(body) => T::read(body).ok_or(Errno::EBADMSG),
                    Answer::End { errno, .. } => Err(errno.unwrap_or(Errno::ENODATA)),
                });
            })?;
        }
        answer.unwrap_or(Err(Errno::ENODATA)).map_err(|errno| Error::Kernel { what, errno })
    }

    /// All objects of this kind that are meant.
    pub(super) fn dump<T: Object>(&mut self, what: &'static str, meant: &Body) -> Result<Vec<T>, Error> {
        for _ in 0..DUMPS {
            if let Some(found) = self.dump_once(what, meant)? {
                return Ok(found);
            }
        }
        Err(Error::Kernel { what, errno: Errno::EINTR })
    }

    /// `None` if there was a change during the dump, so that it may be incomplete.
    fn dump_once<T: Object>(&mut self, what: &'static str, meant: &Body) -> Result<Option<Vec<T>>, Error> {
        self.ask(what, T::GET, NLM_F_REQUEST | NLM_F_DUMP, meant)?;
        let (mut found, mut is_whole, mut end) = (Vec::new(), true, None);
        while end.is_none() {
            self.receive(what, BUFFER, &mut |flags, answer| {
                is_whole &= flags & NLM_F_DUMP_INTR == 0;
                match answer {
                    Answer::Object(body) => found.push(T::read(body)),
                    Answer::End { errno, .. } => end = Some(errno),
                }
            })?;
        }
        if let Some(errno) = end.flatten() {
            return Err(Error::Kernel { what, errno });
        }
        // What can't be read may be what is looked for.
        let found: Option<Vec<T>> = found.into_iter().collect();
        let found = found.ok_or(Error::Kernel { what, errno: Errno::EBADMSG })?;
        Ok(is_whole.then_some(found))
    }

    fn ask(&mut self, what: &'static str, kind: u16, flags: u16, meant: &Body) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(256);
        self.push(&mut bytes, kind, flags, meant);
        self.send(&bytes, what)
    }

    fn push(&mut self, bytes: &mut Vec<u8>, kind: u16, flags: u16, body: &Body) {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        let start = bytes.len();
        let end = start + header.buffer_len();
        (header.message_type, header.flags, header.sequence_number) = (kind, flags, self.sequence);
        header.length = (header.buffer_len() + body.bytes().len()) as u32; // a few hundred at most
        bytes.resize(end, 0);
        header.emit(&mut bytes[start..]);
        bytes.extend_from_slice(body.bytes()); // attributes leave it aligned
    }

    fn send(&self, bytes: &[u8], what: &'static str) -> Result<(), Error> {
        self.socket.send(bytes).map_err(|error| Error::kernel(what, error))
    }

    /// Reads one datagram, of so many bytes at most, and hands each message in it to `take`, with its flags.
    fn receive(
        &self,
        what: &'static str,
        most: usize,
        take: &mut dyn FnMut(u16, Answer<'_>),
    ) -> Result<(), Error> {
        let datagram = self.socket.receive(most, 0).map_err(|error| Error::kernel(what, error))?;
        for message in messages(&datagram) {
            let message = message.map_err(|_| Error::Kernel { what, errno: Errno::EBADMSG })?;
            let (sequence, body) = (message.sequence_number(), message.payload());
            let answer = match message.message_type() {
                NLMSG_ERROR | NLMSG_DONE => Answer::End { sequence, errno: errno(body) },
                _ => Answer::Object(body),
            };
            take(message.flags(), answer);
        }
        Ok(())
    }
}

/// The failure that a message at an end begins with; `None` if it was none. An end without it is no success.
fn errno(body: &[u8]) -> Option<Errno> {
    let Some(code) = body.first_chunk().copied().map(i32::from_ne_bytes) else { return Some(Errno::EBADMSG) };
    (code < 0).then(|| Errno::from_raw(code.wrapping_neg()))
}
