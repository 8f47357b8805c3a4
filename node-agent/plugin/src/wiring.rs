//! The wiring of a pod (`Routed`): a veth pair, /32 routes and a fixed neighbour at each end. Nothing else on
//! the node is touched.
//!
//! ```text
//!   pod's namespace                          node's namespace
//!   eth0  10.1.2.3/32  ◀───── veth pair ─────▶  vnp0123456789a   MAC 02:76:6e:70:00:01
//!     169.254.1.1 dev eth0 (scope link)           10.1.2.3 dev vnp… (scope link)
//!     default via 169.254.1.1
//!     169.254.1.1 is at 02:76:6e:70:00:01,        10.1.2.3 is at 0a:58:0a:01:02:03, permanently
//!       permanently
//! ```
//!
//! The host's end has no address, and no host has 169.254.1.1: every packet goes by the fixed neighbour
//! entries, so neither side asks by ARP. The alias of the host's end names the sandbox that is wired and its
//! address, so that the agent can build a ledger from the kernel alone.

mod addresses;
pub mod bridge;
mod events;
mod host_end;
mod identity;
mod inspect;
pub mod kernel;
mod messages;
mod neighbours;
mod netlink;
pub mod netns;
mod others_bridge;
pub mod range;
mod restore;
mod routes;
pub mod socket;
pub mod steer;
mod uplink;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, net::if_::if_nametoindex};

use crate::sandbox::{Pod, Sandbox};

use messages::{Body, Link, Neighbour};
use netlink::{Change, Destination, Netlink};

pub use addresses::{LinkAddress, addresses, remove_address};
pub use events::{Events, Heard, Uplinks};
pub use host_end::{is_wired, move_aside};
pub use identity::Identity;
pub use inspect::{HostLink, faults, host_links, occupants};
pub use netns::Netns;
pub use others_bridge::{route_to_bridge, unroute_from_any_bridge, unroute_from_bridge};
pub use restore::{Damage, restore};
pub use routes::is_routed_to;
pub use uplink::{Uplink, uplinks};

/// The kernel's network settings, as a process outside containers sees them.
const NET: &str = "/proc/sys/net";

/// The next hop of every pod.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// MAC of every host end: locally administered, then "vnp" and 0001. It is fixed because udev would rewrite a
/// random MAC that the kernel picks, after the pod has learnt it. It is the same for all, since no two host
/// ends share a wire.
pub const HOST_MAC: [u8; 6] = [0x02, b'v', b'n', b'p', 0x00, 0x01];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't {what}: {errno}")]
    Kernel { what: &'static str, errno: Errno },
    #[error("CNI_NETNS {path}: {source}")]
    Netns { path: PathBuf, source: io::Error },
    #[error("the pod's network namespace already has an interface {0} that does not belong to this sandbox")]
    InterfaceExists(String),
    #[error("the link {0} still belongs to another sandbox of this pod")]
    NameTaken(String),
    #[error(
        "the link {link} belongs to an older sandbox of this pod, and this kernel renames no link that is up"
    )]
    NameInUse { link: String, older: Sandbox },
    #[error("the pod already has a default route, by an interface that was made before {0}")]
    NotTheFirst(String),
    #[error("the node already routes {0} elsewhere (`ip route get {0}` shows where)")]
    AddressRouted(Ipv4Addr),
    #[error(
        "routing table {0} is Vnetpool's, and has a route of another program (`ip route show table {0}`)"
    )]
    TableTaken(u8),
    #[error("the node has no bridge vnpbridge for its pods yet")]
    NoBridge,
    #[error("Linux {release} can't {what}: Linux {}.{} is the first that can", .since.0, .since.1)]
    KernelTooOld { release: String, since: (u32, u32), what: &'static str },
    #[error("can't set {key} of {link}: {source}")]
    Sysctl { key: &'static str, link: String, source: io::Error },
}

impl Error {
    /// The remedy.
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::Kernel { errno: Errno::EPERM | Errno::EACCES, .. } => {
                "the plugin must run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN, as container runtimes do"
            }
            Error::Kernel { .. } => {
                "what was done is undone and the runtime tries again; the kernel's log may say more"
            }
            Error::Netns { .. } => {
                "the runtime has to name the pod's own network namespace, and it must still exist"
            }
            Error::InterfaceExists(_) => {
                "something else made it: put vnetpool before the plugins that change the pod's interface, \
                 or delete the pod"
            }
            Error::NameTaken(_) => {
                "the runtime tries again until that sandbox has ended; Linux 6.2 or newer doesn't make it \
                 wait"
            }
            Error::NameInUse { .. } => "the runtime tries again, until no verb runs on that sandbox",
            Error::NotTheFirst(_) => {
                "Vnetpool wires one interface of a pod, by which its default route goes: take this network out of the pod's \
                 annotation, or give the further interface a plugin that leaves the default route alone"
            }
            Error::AddressRouted(_) => {
                "remove that route if it is nobody's; the agent rebuilds its ledger from the routes to pods"
            }
            Error::TableTaken(_) => {
                "move that route to a table of another number, and with it the rules that look it up"
            }
            Error::NoBridge => "the agent of the node makes it: the runtime tries again",
            Error::KernelTooOld { .. } => {
                "upgrade the node; the wiring Routed takes Linux 5.5, and Bridge 5.18"
            }
            Error::Sysctl { .. } => "the plugin must run as root with a writable /proc/sys",
        }
    }

    fn kernel(what: &'static str, error: io::Error) -> Error {
        Error::Kernel { what, errno: Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)) }
    }

    fn is(&self, expected: Errno) -> bool {
        matches!(self, Error::Kernel { errno, .. } if *errno == expected)
    }
}

/// How the host ends of pods are connected to the node. A pod sees no difference and keeps the wiring it was
/// made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wiring {
    /// Each is a link of its own, to which the node routes the pod's address.
    #[default]
    Routed,
    /// They are ports of a bridge to which the node routes all pods' addresses: see [`bridge`].
    Bridge,
}

/// The largest packet of a pod's link, as far as it isn't the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub mtu: Option<u32>,
    /// The largest packet that a pod's TCP hands down to be cut by the NIC. Where the NIC takes less than the
    /// kernel's default, the kernel itself would cut nearly all that pods send in bulk. The host's end keeps
    /// the default: the kernel puts received packets together up to that, and would cut them again there.
    pub gso_max: Option<u32>,
}

/// MAC of a pod's end: locally administered `0a:58`, then its address, as several container networks have it.
pub fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Wires the sandbox to its address and returns the name of the host's end. The remains of an earlier ADD of
/// this sandbox are used if they are whole, and replaced otherwise. An older sandbox of the pod keeps its
/// wiring. After a failure some of the wiring may be there: [`disconnect`] silences it.
pub fn connect(netns: &Netns, identity: &Identity, sizes: Sizes, wiring: Wiring) -> Result<String, Error> {
    let host_link = identity.sandbox.host_link(&identity.pod);
    let mut host = Netlink::open()?;
    match create_pair(&mut host, netns, identity, &host_link, sizes) {
        Err(error) if error.is(Errno::EEXIST) => {
            let earlier = host_end::find(&mut host, &identity.sandbox, &identity.pod)?;
            if let Some(link) = &earlier
                && faults(netns, identity)?.is_empty()
            {
                return Ok(link.name.clone());
            }
            make_way(&mut host, netns, identity, &host_link, earlier)?;
            create_pair(&mut host, netns, identity, &host_link, sizes).map_err(|error| {
                let is_taken = error.is(Errno::EEXIST);
                if is_taken { Error::InterfaceExists(identity.sandbox.ifname.clone()) } else { error }
            })?;
        }
        result => result?,
    }
    // The node's side comes first: while it lacks the route, no pod answers to the address. A route that is
    // there already stops us before a second pod has the address.
    connect_host_end(&mut host, &host_link, identity, wiring)?;
    connect_pod_end(netns, identity)?;
    Ok(host_link)
}

/// Deletes the remains of earlier ADDs of this sandbox, and moves the link of an older sandbox of the pod
/// aside.
fn make_way(
    host: &mut Netlink,
    netns: &Netns,
    Identity { address: _, sandbox, pod }: &Identity,
    host_link: &str,
    earlier: Option<Link>,
) -> Result<(), Error> {
    // A container that is started anew may have another namespace than when it was silenced.
    let unfinished = host_end::behind(host, netns, sandbox)?;
    for index in earlier.map(|link| link.index).into_iter().chain(unfinished) {
        delete_link(host, Body::link_indexed(index))?;
    }
    host_end::make_room(host, host_link, pod)
}

fn connect_host_end(
    host: &mut Netlink,
    host_link: &str,
    identity: &Identity,
    wiring: Wiring,
) -> Result<(), Error> {
    disable_ipv6(Path::new(NET), host_link)?;
    let link = index_of(host_link)?;
    if wiring == Wiring::Bridge {
        return bridge::connect(host, link, identity);
    }
    let up = Body::link_up(link).alias(&identity.to_string());
    let address = Destination::Host(identity.address);
    let wired = host.apply([
        Change::set_link("set up the host's end of the veth pair", up),
        Change::new_route("add the node's route to the pod", link, address, None),
        Change::new_neighbour("give the node the pod's MAC", Neighbour::pod(link, identity.address)),
    ]);
    let is_taken = |error: &Error| error.is(Errno::EEXIST);
    wired.map_err(|error| if is_taken(&error) { Error::AddressRouted(identity.address) } else { error })
}

fn connect_pod_end(netns: &Netns, identity: &Identity) -> Result<(), Error> {
    let connected = netns.inside(|| {
        let link = index_of(&identity.sandbox.ifname)?;
        let gateway = Neighbour { link, address: GATEWAY, mac: HOST_MAC };
        Netlink::open()?.apply([
            Change::set_link("set up the pod's end of the veth pair", Body::link_up(link)),
            Change::new_address("add the pod's address", link, identity.address),
            Change::new_route("add the pod's route to its gateway", link, Destination::Host(GATEWAY), None),
            Change::new_route("add the pod's default route", link, Destination::Default, Some(GATEWAY)),
            Change::new_neighbour("add the pod's neighbour entry for its gateway", gateway),
        ])
    });
    // The pair is new, so a link that is there already is another interface's.
    let is_there = |error: &Error| error.is(Errno::EEXIST);
    connected.map_err(|error| {
        if is_there(&error) { Error::NotTheFirst(identity.sandbox.ifname.clone()) } else { error }
    })
}

/// Silences a sandbox: takes its link down and writes into the link's alias that it no longer holds an
/// address. The link's routes go with it, and no other sandbox's routes. The link itself stays: deleting it
/// costs about 20 ms, and it goes with the pod's namespace. Returns the link's index; None if it is gone.
pub fn disconnect(sandbox: &Sandbox, pod: &Pod) -> Result<Option<u32>, Error> {
    let mut host = Netlink::open()?;
    let Some(link) = host_end::find(&mut host, sandbox, pod)? else { return Ok(None) };
    let down = Body::link_down(link.index).alias(&host_end::silenced(sandbox));
    match host.apply([Change::set_link("take down the host's end of the veth pair", down)]) {
        Err(error) if error.is(Errno::ENODEV) => Ok(None),
        result => result.map(|()| Some(link.index)),
    }
}

/// Deletes the link that an ADD which was killed has left unfinished: it has no alias yet, so that only its
/// other end, in the sandbox's namespace, shows its sandbox. Ok if there is none, or no namespace.
pub fn delete_unfinished(netns: &Path, sandbox: &Sandbox) -> Result<(), Error> {
    // With its namespace a link is gone.
    let Ok(netns) = Netns::open(netns) else { return Ok(()) };
    let mut host = Netlink::open()?;
    match host_end::behind(&mut host, &netns, sandbox)? {
        Some(index) => delete_link(&mut host, Body::link_indexed(index)),
        None => Ok(()),
    }
}

/// Deletes a host link and with it the pod's end, which takes about 20 ms. Ok if the link is gone. The link
/// is named by its index, because an ADD may since have put another link in its place under the same name.
pub fn delete_host_link(index: u32) -> Result<(), Error> {
    delete_link(&mut Netlink::open()?, Body::link_indexed(index))
}

fn delete_link(netlink: &mut Netlink, link: Body) -> Result<(), Error> {
    match netlink.apply([Change::delete_link("delete the host's end of the veth pair", link)]) {
        Err(error) if error.is(Errno::ENODEV) => Ok(()),
        result => result,
    }
}

/// Creates the pair with its far end directly in the pod's namespace; moving a link there would cost 16 to 20
/// ms under the RTNL lock. Each end has one queue each way; otherwise it would have one for each CPU. Both
/// ends are down, since the kernel refuses to create a far end that is up.
fn create_pair(
    netlink: &mut Netlink,
    netns: &Netns,
    identity: &Identity,
    host_link: &str,
    sizes: Sizes,
) -> Result<(), Error> {
    let end = |name, mac| Body::link_named(name).mac(mac).one_queue().mtu(sizes.mtu);
    let peer = end(&identity.sandbox.ifname, pod_mac(identity.address));
    let peer = peer.gso_max(sizes.gso_max).in_namespace(netns.pod().as_raw_fd());
    netlink.apply([Change::new_link("create the veth pair", end(host_link, HOST_MAC).veth(&peer))])
}

/// Runs before the link is up. The node then has no IPv6 address towards the pod, and accepts no router
/// advertisement from it, with which a pod could divert the node's traffic (CVE-2020-10749). A kernel without
/// IPv6 is fine.
fn disable_ipv6(net: &Path, link: &str) -> Result<(), Error> {
    match set(net, "ipv6/conf", link, "disable_ipv6", "1") {
        Err(Error::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Sets a link's own value of a network setting of the kernel.
fn set(net: &Path, family: &str, link: &str, key: &'static str, value: &str) -> Result<(), Error> {
    std::fs::write(net.join(family).join(link).join(key), value).map_err(|source| Error::Sysctl {
        key,
        link: link.to_owned(),
        source,
    })
}

fn index_of(link: &str) -> Result<u32, Error> {
    if_nametoindex(link).map_err(|errno| Error::Kernel { what: "find the new link", errno })
}
