//! Changes that others make in the node's network between two inspections: a multicast socket, and the choice
//! of the messages that matter.
//!
//! Each pod that comes or goes makes dozens of messages, too. [`concerns`] passes none of them, so a quiet
//! node stays quiet however many pods it starts.

use std::{collections::HashMap, io, net::Ipv4Addr};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

use super::{
    Error,
    bridge::BRIDGE,
    messages::{Address, Link, MAIN, OURS, Object, Route, Rule, attributes, is_ipv4, messages},
    socket::KernelSocket,
};

/// Groups of rtnetlink (`linux/rtnetlink.h`): links, IPv4 addresses, routes and rules, settings of links.
const GROUPS: [u32; 5] = [1, 5, 7, 8, 24];
/// `struct netconfmsg`, a byte, with its padding.
const NETCONF_HEADER: usize = 4;
/// NETCONFA_FORWARDING of `linux/netconf.h`.
const NETCONF_FORWARDING: u16 = 2;
const BUFFER: usize = 64 * 1024;
/// Room for the messages of hundreds of pods that come or go at once.
const BACKLOG: usize = 4 * 1024 * 1024;

/// The links by which pods get out, each with the MTU it is known to have.
pub type Uplinks = HashMap<String, u32>;

/// A socket that receives every change in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Events(KernelSocket);

impl Events {
    pub fn open() -> Result<Events, Error> {
        let failed = |error| Error::kernel("listen to the kernel's network events", error);
        let socket = KernelSocket::open(NETLINK_ROUTE).map_err(failed)?;
        // Refused outside the machine's own user namespace. Then more is lost, and the next inspection finds
        // it.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG);
        for group in GROUPS {
            socket.join(group).map_err(failed)?;
        }
        Ok(Events(socket))
    }

    /// Waits for the next datagram.
    pub fn wait(&self) -> io::Result<Heard> {
        match self.0.receive(BUFFER, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Heard::TooMuch),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Heard::Messages(Vec::new())),
            Err(error) => Err(error),
            Ok(datagram) => Ok(Heard::Messages(datagram)),
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
        let mut whole = messages(bytes).map_while(Result::ok);
        whole.any(|message| concerns(message.message_type(), message.payload(), uplinks, &is_wired))
    }
}

/// Whether this may be another program's change that disturbs pods.
fn concerns(kind: u16, body: &[u8], uplinks: &Uplinks, is_wired: &impl Fn(Ipv4Addr) -> bool) -> bool {
    let link = || Link::read(body);
    match kind {
        // DEL silences a pod's link first, and the kernel then announces no removed routes. The route to the
        // bridge DEL has to remove itself.
        Route::GONE => {
            Route::read(body).filter(is_to_pod).and_then(|one| one.destination).is_some_and(is_wired)
        }
        Rule::GONE | Address::NEW => is_ipv4(body),
        Link::NEW => link().is_some_and(|link| is_damaged(&link) || is_changed(&link, uplinks)),
        Link::GONE => link().is_some_and(|link| link.name == BRIDGE || uplinks.contains_key(&link.name)),
        // A link's setting has changed.
        libc::RTM_NEWNETCONF => is_forwarding_off(body),
        _ => false,
    }
}

/// A route of ours that leads to a pod.
fn is_to_pod(route: &Route) -> bool {
    route.is_ipv4()
        && route.prefix_len == 32
        && route.table == MAIN
        && route.protocol == OURS
        && route.scope == libc::RT_SCOPE_LINK
}

/// A wired sandbox's host end that is down or has another MAC. DEL clears the identity before it sets a link
/// down.
fn is_damaged(link: &Link) -> bool {
    (!link.is_up || !link.has_our_mac()) && link.identity().is_some()
}

/// A link by which pods get out, with another MTU than before.
fn is_changed(link: &Link, uplinks: &Uplinks) -> bool {
    uplinks.get(&link.name).is_some_and(|known| link.mtu != Some(*known))
}

/// Whether a link, or all of them, stopped forwarding. Every new link announces its settings like this, too.
fn is_forwarding_off(body: &[u8]) -> bool {
    let mut settings = attributes(body.get(NETCONF_HEADER..).unwrap_or_default());
    let forwarding = settings.find(|(kind, _)| *kind == NETCONF_FORWARDING);
    forwarding.is_some_and(|(_, value)| value.iter().all(|&byte| byte == 0))
}
