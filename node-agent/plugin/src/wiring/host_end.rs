//! The host's end of a sandbox's veth pair: finding it, and making room where a newer sandbox of the same pod needs its name.
//!
//! A link has its pod's name, so only its alias tells which sandbox it is of. It is looked up by name, told by its alias, and
//! then dealt with by its index: another sandbox's ADD may take its name for a link of its own at any time.

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::errno::Errno;

use super::{
    Error, Identity, Netns,
    messages::{alias_of, is_ours, peer_of},
    netlink::{Change, Netlink, link_indexed, link_named},
};
use crate::sandbox::{Pod, Sandbox};

/// First words of the alias of a link that was silenced. Earlier builds left it without an alias, and take this one for none.
const SILENCED: &str = "vnetpool/1 silenced ";

/// What a silenced link says: whose it was, and no address.
pub(super) fn silenced(Sandbox { container_id, ifname }: &Sandbox) -> String {
    format!("{SILENCED}{container_id} {ifname}")
}

/// The sandbox that a link says it is of, wired or silenced; None while it is being made.
fn owner(link: &LinkMessage) -> Option<Sandbox> {
    let alias = alias_of(link)?;
    if let Ok(identity) = alias.parse::<Identity>() {
        return Some(identity.sandbox);
    }
    let (container_id, ifname) = alias.strip_prefix(SILENCED)?.split_once(' ')?;
    Some(Sandbox { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

/// The sandbox's link. None if it is gone, or was never finished.
pub(super) fn find(host: &mut Netlink, sandbox: &Sandbox, pod: &Pod) -> Result<Option<LinkMessage>, Error> {
    // In this order: a link that makes room has its other name before its first is anybody else's.
    for name in [sandbox.host_link(pod), sandbox.spare_link()] {
        let link = host.link(link_named(&name))?;
        if let Some(link) = link.filter(|link| owner(link).as_ref() == Some(sandbox)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// The index of the sandbox's link, finished or not, by the interface in its namespace that is the other end.
pub(super) fn behind(host: &mut Netlink, netns: &Netns, ifname: &str) -> Result<Option<u32>, Error> {
    let Some(pod_end) = netns.inside(|| Netlink::open()?.link(link_named(ifname)))? else { return Ok(None) };
    let Some(index) = peer_of(&pod_end) else { return Ok(None) };
    let host_end = host.link(link_indexed(index))?;
    // Of another kind of pair the other end may be in a third namespace, and another link have its index here.
    let is_its = |link: &LinkMessage| is_ours(link) && peer_of(link) == Some(pod_end.header.index);
    Ok(host_end.filter(is_its).map(|link| link.header.index))
}

/// Moves the link of an older sandbox of the pod out of the way, which goes on as it was, under its spare name.
///
/// One that doesn't say whose it is stays, since whoever is making it knows it by its name; and so does one of a pod of another
/// name, since names can be found that hash alike.
pub(super) fn make_room(host: &mut Netlink, name: &str, pod: &Pod) -> Result<(), Error> {
    let Some(link) = host.link(link_named(name))? else { return Ok(()) };
    let identity = alias_of(&link).and_then(|alias| alias.parse::<Identity>().ok());
    let is_others = identity.is_some_and(|Identity { pod: other, .. }| {
        let is_told = !other.name.is_empty() && !other.namespace.is_empty();
        is_told && (&other.namespace, &other.name) != (&pod.namespace, &pod.name)
    });
    let taken = || Error::NameTaken(name.to_owned());
    let older = owner(&link).filter(|_| !is_others).ok_or_else(taken)?;
    let mut aside = link_indexed(link.header.index);
    aside.attributes.push(LinkAttribute::IfName(older.spare_link()));
    match host.apply([Change::set_link("move the link of an older sandbox aside", aside)]) {
        // Before Linux 6.2 no link is renamed that is up.
        Err(error) if error.is(Errno::EBUSY) || error.is(Errno::EEXIST) => Err(taken()),
        Err(error) if error.is(Errno::ENODEV) => Ok(()),
        result => result,
    }
}
