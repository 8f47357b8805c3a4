//! The host's end of a sandbox's veth pair: finding it, and renaming it when a newer sandbox of the same pod
//! needs its name.
//!
//! A link is named after its pod, so only its alias names its sandbox. It is found by name, identified by its
//! alias, and then addressed by its index: another sandbox's ADD may take its name for a link of its own at
//! any time.

use std::net::Ipv4Addr;

use nix::errno::Errno;

use super::{
    Error, Identity, Netns,
    messages::{Body, Link},
    netlink::{Change, Netlink},
    restore,
};
use crate::{
    ledger::{Ledger, Tenant},
    sandbox::{Pod, Sandbox},
};

/// How the alias of a silenced link begins. Earlier builds left such a link without an alias, and treat this
/// alias as none.
const SILENCED: &str = "vnetpool/1 silenced ";

/// The alias of a silenced link: it names the sandbox and no address.
pub(super) fn silenced(Sandbox { container_id, ifname }: &Sandbox) -> String {
    format!("{SILENCED}{container_id} {ifname}")
}

/// The sandbox that the link's alias names, wired or silenced. None while the link is being made.
fn owner(link: &Link) -> Option<Sandbox> {
    if let Some(identity) = link.identity() {
        return Some(identity.sandbox);
    }
    // Behind these a later release may have more words.
    let mut words = link.alias.strip_prefix(SILENCED)?.split(' ');
    let (container_id, ifname) = (words.next()?, words.next()?);
    Some(Sandbox { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

/// The sandbox's link. None if it is gone or was never finished.
pub(super) fn find(host: &mut Netlink, sandbox: &Sandbox, pod: &Pod) -> Result<Option<Link>, Error> {
    // In this order, because a link that is renamed has its spare name before another link gets its first
    // name.
    for name in [sandbox.host_link(pod), sandbox.spare_link()] {
        let link = host.link(&Body::link_named(&name))?;
        if let Some(link) = link.filter(|link| owner(link).as_ref() == Some(sandbox)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Whether the pod that has this address by the ledger is wired: DEL silences its link before it does
/// anything else.
pub fn is_wired(ledger: &Ledger, address: Ipv4Addr) -> Result<bool, Error> {
    let assigned = ledger.assignments().find(|(entry, _)| entry.address == address);
    let Some((_, Tenant { sandbox, pod, .. })) = assigned.map(|(entry, of)| (entry, &**of)) else {
        return Ok(false);
    };
    let link = find(&mut Netlink::open()?, sandbox, pod)?;
    Ok(link.and_then(|link| link.identity()).is_some_and(|identity| identity.address == address))
}

/// The index of the sandbox's link, finished or not. It is found by its other end, the interface in the
/// sandbox's namespace.
pub(super) fn behind(host: &mut Netlink, netns: &Netns, sandbox: &Sandbox) -> Result<Option<u32>, Error> {
    let ifname = &sandbox.ifname;
    let Some(pod_end) = netns.inside(|| Netlink::open()?.link(&Body::link_named(ifname)))? else {
        return Ok(None);
    };
    let Some(index) = pod_end.peer else { return Ok(None) };
    let host_end = host.link(&Body::link_indexed(index))?;
    // The other end of another kind of pair may be in a third namespace, while an unrelated link has its
    // index here. A pod that may make links can choose both indices so that they are those of another pod's
    // pair: a link that names another sandbox is that one's.
    let is_anothers = |link: &Link| owner(link).is_some_and(|owner| owner != *sandbox);
    let is_its = |link: &Link| link.is_ours() && link.peer == Some(pod_end.index) && !is_anothers(link);
    Ok(host_end.filter(is_its).map(|link| link.index))
}

/// Renames the link of an older sandbox of the pod to its spare name. That sandbox's network goes on working.
///
/// A link whose alias names no sandbox keeps its name, since the ADD that is making it knows it by that. So
/// does a link of a pod with another name, since names with the same hash can be found.
pub(super) fn make_room(host: &mut Netlink, name: &str, pod: &Pod) -> Result<(), Error> {
    let Some(link) = host.link(&Body::link_named(name))? else { return Ok(()) };
    let is_others = link.identity().is_some_and(|Identity { pod: other, .. }| {
        let is_named = !other.name.is_empty() && !other.namespace.is_empty();
        is_named && (&other.namespace, &other.name) != (&pod.namespace, &pod.name)
    });
    let taken = || Error::NameTaken(name.to_owned());
    let older = owner(&link).filter(|_| !is_others).ok_or_else(taken)?;
    let aside = Body::link_indexed(link.index).name(&older.spare_link());
    match host.apply([Change::set_link("move the link of an older sandbox aside", aside)]) {
        // Before Linux 6.2 a link that is up can't be renamed: see [`move_aside`].
        Err(error) if error.is(Errno::EBUSY) => Err(Error::NameInUse { link: name.to_owned(), older }),
        Err(error) if error.is(Errno::EEXIST) => Err(taken()),
        Err(error) if error.is(Errno::ENODEV) => Ok(()),
        result => result,
    }
}

/// Renames the link of an older sandbox of the pod where the kernel does so only while it is down. That
/// sandbox's traffic waits for a moment. Must run under that sandbox's lock: a DEL that takes the link down
/// for good must not have it set up again.
pub fn move_aside(older: &Sandbox, pod: &Pod) -> Result<(), Error> {
    let mut host = Netlink::open()?;
    let Some(link) = find(&mut host, older, pod)? else { return Ok(()) };
    let Some(wired) = link.identity() else { return Ok(()) };
    let index = link.index;
    let renamed = Body::link_indexed(index).name(&older.spare_link());
    let moved = host.apply([
        Change::set_link("take down the link of an older sandbox", Body::link_down(index)),
        Change::set_link("move the link of an older sandbox aside", renamed),
    ]);
    // Whether it was renamed or not: it is up again, and its route, which went when it was down, is back.
    restore(index, &wired)?;
    let is_taken = |error: &Error| error.is(Errno::EEXIST);
    moved.map_err(|error| if is_taken(&error) { Error::NameTaken(older.host_link(pod)) } else { error })
}
