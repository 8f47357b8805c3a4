//! Changes that others make in the node's network between two inspections: a multicast socket, and the choice
//! of the messages that matter.
//!
//! Each pod that comes or goes makes dozens of messages, too. [`concerns`] passes none of them, so a quiet
//! node stays quiet however many pods it starts.

use std::{collections::HashMap, io, net::Ipv4Addr};

use netlink_packet_core::{NetlinkBuffer, NlaBuffer, ParseableParametrized};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteHeader, RouteMessage, RouteScope},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    Error, HOST_MAC,
    bridge::BRIDGE,
    messages::{host_address, identity_of, is_up, mac_of, name_of},
    netlink::OURS,
};

/// Groups of rtnetlink (`linux/rtnetlink.h`): links, IPv4 addresses, routes and rules, settings of links.
const GROUPS: [u32; 5] = [1, 5, 7, 8, 24];
/// RTM_NEWNETCONF: a link's setting has changed. netlink-packet-route doesn't know it.
const NEW_NETCONF: u16 = 80;
/// `struct netconfmsg`, a byte, with its padding.
const NETCONF_HEADER: usize = 4;
/// NETCONFA_FORWARDING of `linux/netconf.h`.
const NETCONF_FORWARDING: u16 = 2;
/// Messages are aligned to four bytes within a datagram.
const ALIGN: usize = 4;
const BUFFER: usize = 64 * 1024;
/// Room for the messages of hundreds of pods that come or go at once.
const BACKLOG: usize = 4 * 1024 * 1024;

/// The links by which pods get out, each with the MTU it is known to have.
pub type Uplinks = HashMap<String, u32>;

/// A socket that receives every change in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Events(Socket);

impl Events {
    pub fn open() -> Result<Events, Error> {
        let failed = |error| Error::kernel("listen to the kernel's network events", error);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        // Refused outside the machine's own user namespace. Then more is lost, and the next inspection finds
        // it.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG);
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        for group in GROUPS {
            socket.add_membership(group).map_err(failed)?;
        }
        Ok(Events(socket))
    }

    /// Waits for the next datagram.
    pub fn wait(&self) -> io::Result<Heard> {
        let mut buffer = Vec::with_capacity(BUFFER);
        match self.0.recv(&mut buffer, 0) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(Heard::TooMuch),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Heard::Messages(Vec::new())),
            Err(error) => Err(error),
            Ok(_) => Ok(Heard::Messages(buffer)),
        }
    }
}

/// The messages that a socket has received at once.
#[derive(Debug)]
pub enum Heard {
    Messages(Vec<u8>),
    /// Events were lost because they came faster than they were read.
    TooMuch,
}

impl Heard {
    /// Whether it may contain another program's change that disturbs pods. `is_wired` returns whether the pod
    /// of an address is wired still, and runs only for an address whose route has gone.
    pub fn concerns(&self, uplinks: &Uplinks, is_wired: impl Fn(Ipv4Addr) -> bool) -> bool {
        let Heard::Messages(bytes) = self else { return true };
        let mut rest = &bytes[..];
        while let Ok(message) = NetlinkBuffer::new_checked(&rest) {
            let is_concerned = match message.message_type() {
                NEW_NETCONF => is_forwarding_off(message.payload()),
                kind => RouteNetlinkMessage::parse_with_param(message.payload(), kind)
                    .is_ok_and(|message| concerns(&message, uplinks, &is_wired)),
            };
            if is_concerned {
                return true;
            }
            rest = rest.get((message.length() as usize).next_multiple_of(ALIGN)..).unwrap_or(&[]);
        }
        false
    }
}

/// Whether this may be another program's change that disturbs pods.
fn concerns(message: &RouteNetlinkMessage, uplinks: &Uplinks, is_wired: &impl Fn(Ipv4Addr) -> bool) -> bool {
    match message {
        // DEL silences a pod's link first, and the kernel then announces no removed routes. The route to the
        // bridge DEL has to remove itself.
        RouteNetlinkMessage::DelRoute(route) => is_to_pod(route) && host_address(route).is_some_and(is_wired),
        RouteNetlinkMessage::DelRule(rule) => rule.header.family == AddressFamily::Inet,
        RouteNetlinkMessage::NewAddress(address) => address.header.family == AddressFamily::Inet,
        RouteNetlinkMessage::NewLink(link) => is_damaged(link) || is_changed(link, uplinks),
        RouteNetlinkMessage::DelLink(link) => {
            name_of(link).is_some_and(|name| name == BRIDGE || uplinks.contains_key(name))
        }
        _ => false,
    }
}

/// A route of ours that leads to a pod.
fn is_to_pod(route: &RouteMessage) -> bool {
    let header = &route.header;
    header.address_family == AddressFamily::Inet
        && header.destination_prefix_length == 32
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.protocol == OURS
        && header.scope == RouteScope::Link
}

/// A wired sandbox's host end that is down or has another MAC. DEL clears the identity before it sets a link
/// down.
fn is_damaged(link: &LinkMessage) -> bool {
    (!is_up(link) || mac_of(link) != Some(&HOST_MAC)) && identity_of(link).is_some()
}

/// A link by which pods get out, with another MTU than before.
fn is_changed(link: &LinkMessage, uplinks: &Uplinks) -> bool {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    name_of(link).and_then(|name| uplinks.get(name)).is_some_and(|known| mtu != Some(*known))
}

/// Whether a link, or all of them, stopped forwarding. Every new link announces its settings like this, too.
fn is_forwarding_off(payload: &[u8]) -> bool {
    let mut rest = payload.get(NETCONF_HEADER..).unwrap_or_default();
    while let Ok(attribute) = NlaBuffer::new_checked(rest) {
        if attribute.kind() == NETCONF_FORWARDING {
            return attribute.value().iter().all(|&byte| byte == 0);
        }
        rest = rest.get((attribute.length() as usize).next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    false
}
