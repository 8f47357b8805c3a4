//! A synchronous rtnetlink socket: a batch of changes in one system call, one object, or a whole dump.

use std::{io, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::{Error, neighbours::Neighbour};

/// The main routing table.
pub(super) const MAIN: u8 = RouteHeader::RT_TABLE_MAIN;
/// The protocol of all our routes and rules: `ip route flush table all proto 176` removes them, and we remove
/// none of another. `rt_protos` of iproute2 doesn't assign this number.
pub(super) const OURS: RouteProtocol = RouteProtocol::Other(176);
/// Messages are aligned to four bytes within a datagram.
const ALIGN: usize = 4;
/// The most that the kernel puts into one datagram of a dump.
const BUFFER: usize = 32 * 1024;
/// How often a dump is repeated at most because of a change during it.
const DUMPS: usize = 20;

/// A change to ask of the kernel.
#[derive(Debug)]
pub(super) struct Change {
    /// Its purpose, in words for the error.
    what: &'static str,
    flags: u16,
    message: RouteNetlinkMessage,
}

impl Change {
    pub(super) fn new_link(what: &'static str, message: LinkMessage) -> Change {
        Change { what, flags: NLM_F_CREATE | NLM_F_EXCL, message: RouteNetlinkMessage::NewLink(message) }
    }

    /// A change of an existing link by the message that otherwise creates links, which also takes the
    /// settings of a port.
    pub(super) fn change_link(what: &'static str, message: LinkMessage) -> Change {
        Change { what, flags: 0, message: RouteNetlinkMessage::NewLink(message) }
    }

    pub(super) fn set_link(what: &'static str, message: LinkMessage) -> Change {
        Change { what, flags: 0, message: RouteNetlinkMessage::SetLink(message) }
    }

    pub(super) fn delete_link(what: &'static str, link: LinkMessage) -> Change {
        Change { what, flags: 0, message: RouteNetlinkMessage::DelLink(link) }
    }

    /// `address`/32 on a link.
    pub(super) fn new_address(what: &'static str, link: u32, address: Ipv4Addr) -> Change {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 32;
        message.header.index = link;
        message.attributes =
            vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
        Change { what, flags: NLM_F_CREATE | NLM_F_EXCL, message: RouteNetlinkMessage::NewAddress(message) }
    }

    /// The opposite of a `new_address` with this prefix length.
    pub(super) fn delete_address(what: &'static str, link: u32, address: Ipv4Addr, prefix_len: u8) -> Change {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.index = link;
        message.attributes = vec![AddressAttribute::Local(address.into())];
        Change { what, flags: 0, message: RouteNetlinkMessage::DelAddress(message) }
    }

    /// A route that must not exist yet: to a destination on the link itself, or through a gateway on it.
    pub(super) fn new_route(
        what: &'static str,
        link: u32,
        to: Destination,
        gateway: Option<Ipv4Addr>,
    ) -> Change {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet,
            destination_prefix_length: to.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: OURS,
            scope: if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Oif(link));
        if let Destination::Host(address) = to {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        }
        if let Some(gateway) = gateway {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        }
        Change { what, flags: NLM_F_CREATE | NLM_F_EXCL, message: RouteNetlinkMessage::NewRoute(message) }
    }

    /// Removes our route to this destination on the link.
    pub(super) fn delete_route(what: &'static str, link: u32, to: Destination) -> Change {
        let Change { message, .. } = Change::new_route(what, link, to, None);
        let message = match message {
            RouteNetlinkMessage::NewRoute(route) => RouteNetlinkMessage::DelRoute(route),
            other => other,
        };
        Change { what, flags: 0, message }
    }

    /// An entry of any family of neighbours; `is_exclusive` if there must be none yet.
    pub(super) fn new_neighbour_message(
        what: &'static str,
        message: NeighbourMessage,
        is_exclusive: bool,
    ) -> Change {
        Change {
            what,
            flags: new_or_other(is_exclusive),
            message: RouteNetlinkMessage::NewNeighbour(message),
        }
    }

    pub(super) fn delete_neighbour(what: &'static str, message: NeighbourMessage) -> Change {
        Change { what, flags: 0, message: RouteNetlinkMessage::DelNeighbour(message) }
    }

    pub(super) fn new_rule(what: &'static str, rule: &Rule) -> Change {
        let message = RouteNetlinkMessage::NewRule(rule.message());
        Change { what, flags: NLM_F_CREATE | NLM_F_EXCL, message }
    }

    pub(super) fn delete_rule(what: &'static str, rule: &Rule) -> Change {
        Change { what, flags: 0, message: RouteNetlinkMessage::DelRule(rule.message()) }
    }

    /// The default route of a table of ours, through a gateway that needn't be in a subnet of the link;
    /// `is_exclusive` if there must be none yet.
    pub(super) fn set_default_route(
        what: &'static str,
        table: u8,
        (link, gateway): (u32, Ipv4Addr),
        is_exclusive: bool,
    ) -> Change {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet,
            table,
            protocol: OURS,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            flags: RouteFlags::Onlink,
            ..RouteHeader::default()
        };
        message.attributes =
            vec![RouteAttribute::Oif(link), RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
        Change { what, flags: new_or_other(is_exclusive), message: RouteNetlinkMessage::NewRoute(message) }
    }

    pub(super) fn delete_default_route(what: &'static str, table: u8) -> Change {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = table;
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        message.header.protocol = OURS;
        Change { what, flags: 0, message: RouteNetlinkMessage::DelRoute(message) }
    }

    /// A route that ends packets to the range on the node and informs their sender.
    pub(super) fn new_unreachable(what: &'static str, range: Ipv4Net) -> Change {
        let message = RouteNetlinkMessage::NewRoute(unreachable(range));
        Change { what, flags: NLM_F_CREATE | NLM_F_EXCL, message }
    }

    pub(super) fn delete_unreachable(what: &'static str, range: Ipv4Net) -> Change {
        Change { what, flags: 0, message: RouteNetlinkMessage::DelRoute(unreachable(range)) }
    }

    /// A permanent neighbour entry, for which no ARP request is sent.
    pub(super) fn new_neighbour(what: &'static str, Neighbour { link, address, mac }: Neighbour) -> Change {
        let mut message = neighbour(link, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        Change::new_neighbour_message(what, message, false)
    }
}

/// The flags of an object that must be new, or that may take the place of another.
fn new_or_other(is_exclusive: bool) -> u16 {
    NLM_F_CREATE | if is_exclusive { NLM_F_EXCL } else { NLM_F_REPLACE }
}

/// A message that means a neighbour by its address.
pub(super) fn neighbour(link: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address))];
    message
}

fn unreachable(range: Ipv4Net) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: range.prefix_len(),
        table: MAIN,
        protocol: OURS,
        scope: RouteScope::Universe,
        kind: RouteType::Unreachable,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(range.network()))];
    message
}

/// A routing rule by source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub priority: u32,
    pub source: Ipv4Net,
    pub table: u8,
    /// Only routes to single addresses count.
    pub only_hosts: bool,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.src_len = self.source.prefix_len();
        message.header.table = self.table;
        message.header.action = RuleAction::ToTable;
        message.attributes =
            vec![RuleAttribute::Source(self.source.network().into()), RuleAttribute::Priority(self.priority)];
        if self.only_hosts {
            message.attributes.push(RuleAttribute::SuppressPrefixLen(31));
        }
        // No other program's rule is meant, not even an identical one.
        message.attributes.push(RuleAttribute::Protocol(OURS));
        message
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

    pub(super) fn is_of(self, route: &RouteMessage) -> bool {
        let found = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(Destination::Host(*address)),
            _ => None,
        });
        route.header.destination_prefix_length == self.prefix_len()
            && found.unwrap_or(Destination::Default) == self
    }
}

/// A message that names a link.
pub(super) fn link_named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// A message that means a link by its index, whatever its name is.
pub(super) fn link_indexed(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// A socket that acts in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Netlink, Error> {
        let socket =
            Socket::new(NETLINK_ROUTE).map_err(|error| Error::kernel("open a netlink socket", error))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Makes the changes in their order, all in one system call. The kernel goes on after a change that
    /// fails, so a later change of a batch must do no harm without the earlier ones. Returns the first
    /// failure.
    pub(super) fn apply<const N: usize>(&mut self, changes: [Change; N]) -> Result<(), Error> {
        let first = self.sequence + 1;
        let mut what = [""; N];
        let mut bytes = Vec::with_capacity(1024);
        for (index, Change { what: name, flags, message }) in changes.into_iter().enumerate() {
            what[index] = name;
            // The kernel always reports a failure, but the success only of the last change. So there is one
            // answer to read for a whole batch.
            let ack = if index + 1 == N { NLM_F_ACK } else { 0 };
            self.push(&mut bytes, NLM_F_REQUEST | flags | ack, message);
        }
        self.send(&bytes, what[0])?;
        let last = self.sequence;
        let mut failure = Ok(());
        let mut is_done = false;
        while !is_done {
            self.receive(what[0], |message| {
                let sequence = message.header.sequence_number;
                if let NetlinkPayload::Error(error) = message.payload {
                    if let (Some(code), true) = (error.code, failure.is_ok()) {
                        let index = sequence.wrapping_sub(first) as usize;
                        let errno = Errno::from_raw(-code.get());
                        failure = Err(Error::Kernel { what: what.get(index).copied().unwrap_or(""), errno });
                    }
                    is_done |= sequence == last;
                }
            })?;
        }
        failure
    }

    /// The link that is meant, if there is one.
    pub(super) fn link(&mut self, meant: LinkMessage) -> Result<Option<LinkMessage>, Error> {
        match self.get("look up a link", RouteNetlinkMessage::GetLink(meant)) {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(_) => Ok(None),
            Err(Error::Kernel { errno: Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The route that packets to this address take, if any.
    pub(super) fn route_to(&mut self, address: Ipv4Addr) -> Result<Option<RouteMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.header.flags = RouteFlags::FibMatch; // the route itself, not the resolved path
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        match self.get("look up a route", RouteNetlinkMessage::GetRoute(message)) {
            Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(Some(route)),
            Ok(_) => Ok(None),
            Err(Error::Kernel { errno: Errno::ENETUNREACH | Errno::EHOSTUNREACH, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The entry for the neighbour with this address, if there is one.
    pub(super) fn neighbour(
        &mut self,
        link: u32,
        address: Ipv4Addr,
    ) -> Result<Option<NeighbourMessage>, Error> {
        let message = RouteNetlinkMessage::GetNeighbour(neighbour(link, address));
        match self.get("look up a neighbour", message) {
            Ok(RouteNetlinkMessage::NewNeighbour(found)) => Ok(Some(found)),
            Ok(_) => Ok(None),
            Err(Error::Kernel { errno: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn get(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Error> {
        let mut bytes = Vec::new();
        self.push(&mut bytes, NLM_F_REQUEST, message);
        self.send(&bytes, what)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(what, |message| match message.payload {
                NetlinkPayload::InnerMessage(inner) => answer = Some(Ok(inner)),
                NetlinkPayload::Error(error) => {
                    let errno = Errno::from_raw(error.code.map_or(0, |code| -code.get()));
                    answer = Some(Err(Error::Kernel { what, errno }));
                }
                _ => {}
            })?;
        }
        answer.unwrap_or(Err(Error::Kernel { what, errno: Errno::ENODATA }))
    }

    /// All objects of the kind that `message` asks for.
    pub(super) fn dump(
        &mut self,
        what: &'static str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMPS {
            if let Some(found) = self.dump_once(what, message.clone())? {
                return Ok(found);
            }
        }
        Err(Error::Kernel { what, errno: Errno::EINTR })
    }

    /// `None` if there was a change during the dump, so that it may be incomplete.
    fn dump_once(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let mut bytes = Vec::new();
        self.push(&mut bytes, NLM_F_REQUEST | NLM_F_DUMP, message);
        self.send(&bytes, what)?;
        let (mut found, mut is_whole, mut end) = (Vec::new(), true, None);
        while end.is_none() {
            self.receive(what, |message| {
                is_whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Done(done) => end = Some(done.code),
                    NetlinkPayload::Error(error) => end = Some(error.code.map_or(0, |code| code.get())),
                    _ => {}
                }
            })?;
        }
        match end {
            Some(code) if code < 0 => Err(Error::Kernel { what, errno: Errno::from_raw(-code) }),
            _ => Ok(is_whole.then_some(found)),
        }
    }

    fn push(&mut self, bytes: &mut Vec<u8>, flags: u16, message: RouteNetlinkMessage) {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(ALIGN), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8], what: &'static str) -> Result<(), Error> {
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(bytes, &kernel, 0).map(drop).map_err(|error| Error::kernel(what, error))
    }

    /// Reads one datagram and hands each message in it to `take`.
    fn receive(
        &self,
        what: &'static str,
        mut take: impl FnMut(NetlinkMessage<RouteNetlinkMessage>),
    ) -> Result<(), Error> {
        let mut buffer = Vec::with_capacity(BUFFER);
        self.socket.recv(&mut buffer, 0).map_err(|error| Error::kernel(what, error))?;
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|error| {
                Error::kernel(what, io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
            })?;
            let length = (message.header.length as usize).next_multiple_of(ALIGN);
            rest = rest.get(length..).unwrap_or(&[]);
            take(message);
        }
        Ok(())
    }
}
