//! Disturbances of the pods' network by others on the node: finding, repairing and reporting them. Pure, but
//! for [`restore`] and [`take_off`], which act.
//!
//! Network daemons and provisioning tools hold every link, address and route of a machine for theirs. Nothing
//! that isn't ours is changed, with five exceptions, which are reported in the condition `Undisturbed`: an
//! address that Azure reserves for pods is taken off the node's own links, IP forwarding is turned on again,
//! where there are bridged pods `bridge-nf-call-iptables` is set to 0 again, where pods have a second NIC a
//! strict `rp_filter` of the first is made loose again, and, only if the configuration asks for it, pods are
//! let through another program's firewall.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    time::Duration,
};

use vnetpool_plugin::{
    ledger::{Ledger, Millis, file::Store},
    sandbox::LINK_PREFIX,
    wiring::{self, Damage, HostLink, Identity, LinkAddress},
};

use crate::error::Error;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;

/// How long a disturbance that is over is reported.
pub const REPORTED_FOR: Duration = Duration::from_secs(3600);

/// A kind of disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An address for pods on a link of the node.
    Address,
    /// The node's rules made to see packets of bridged pods before the node routes them.
    Bridge,
    /// Another program's firewall that drops packets from or to pods.
    Firewall,
    /// Forwarding turned off.
    Forwarding,
    /// A pod's host link set down.
    Link,
    /// A pod's host link with another MAC.
    Mac,
    /// The node's neighbour entry for a pod removed.
    Neighbour,
    /// The first NIC made to drop packets that come by it to pods of the second.
    ReversePath,
    /// The node's route to a pod removed.
    Route,
    /// Our nftables table changed or removed.
    Table,
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::Address,
        Kind::Bridge,
        Kind::Firewall,
        Kind::Forwarding,
        Kind::Link,
        Kind::Mac,
        Kind::Neighbour,
        Kind::ReversePath,
        Kind::Route,
        Kind::Table,
    ];

    /// In a word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Address => "address",
            Kind::Bridge => "bridge",
            Kind::Firewall => "firewall",
            Kind::Forwarding => "forwarding",
            Kind::Link => "link",
            Kind::Mac => "mac",
            Kind::Neighbour => "neighbour",
            Kind::ReversePath => "reverse_path",
            Kind::Route => "route",
            Kind::Table => "table",
        }
    }

    /// The repair, and how to keep it from happening again.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::Address => (
                "took a pods' address off a link of the node",
                "keep cloud-init (datasource: {Azure: {apply_network_config_for_secondary_ips: false}}), cloud-netconfig \
                 (CLOUD_NETCONFIG_MANAGE=no) and nm-cloud-setup from configuring secondary addresses",
            ),
            Kind::Bridge => (
                "set net.bridge.bridge-nf-call-iptables to 0",
                "find who sets it to 1, in /etc/sysctl.d for instance: no bridged pod would reach a Service's pod on its \
                 own node",
            ),
            Kind::Firewall => (
                "put rules before somebody's firewall that accept what pods send and receive",
                "as asked for (--open-forward)",
            ),
            Kind::Forwarding => {
                ("turned IP forwarding on", "find who turns it off, in /etc/sysctl.d for instance")
            }
            Kind::Link => ("set a pod's link up", "have network daemons leave links vnp* unmanaged"),
            Kind::Mac => ("restored the MAC of a pod's link", "have udev leave links vnp* alone"),
            Kind::Neighbour => (
                "restored the node's neighbour entry for a pod",
                "have network daemons leave links vnp* unmanaged, and udev alone",
            ),
            Kind::ReversePath => (
                "made a strict rp_filter of the first NIC loose",
                "find who sets it to 1, in /etc/sysctl.d for instance: no NodePort or load balancer would lead to a pod of \
                 the second NIC",
            ),
            Kind::Route => (
                "restored the route to a pod",
                "have network daemons leave links vnp* unmanaged, and foreign routes alone (ManageForeignRoutes=no)",
            ),
            Kind::Table => (
                "put Vnetpool's nftables table back",
                "have firewalls reload their own tables only (/etc/nftables.conf without `flush ruleset`, firewalld with \
                 FlushAllOnReload=no)",
            ),
        }
    }
}

impl From<Damage> for Kind {
    fn from(damage: Damage) -> Kind {
        match damage {
            Damage::Down => Kind::Link,
            Damage::Mac => Kind::Mac,
            Damage::Route => Kind::Route,
            Damage::Neighbour => Kind::Neighbour,
        }
    }
}

/// The repaired disturbances, by kind, and those that couldn't be.
#[derive(Clone, Debug, Default)]
pub struct Disturbances {
    repairs: BTreeMap<Kind, Repairs>,
    /// As of the last inspection.
    standing: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Repairs {
    last: Millis,
    /// The object of one of them, and when that was.
    named: (String, Millis),
}

impl Disturbances {
    /// An inspection has ended, and found these obstacles. Earlier ones remain if it hasn't seen all.
    pub fn inspected(&mut self, standing: BTreeSet<String>, has_seen_all: bool) {
        if has_seen_all {
            self.standing.clear();
        }
        self.standing.extend(standing);
    }

    /// A repair, with its object, as `10.240.0.17 on eth0`. Of each kind one object is named for
    /// [`REPORTED_FOR`]: a program that fights with the agent would otherwise have it report every second.
    pub fn repaired(&mut self, kind: Kind, what: impl Into<String>, now: Millis) {
        let before = self.repairs.remove(&kind).map(|repairs| repairs.named);
        let named = before.filter(|&(_, at)| is_reported(at, now)).unwrap_or_else(|| (what.into(), now));
        self.repairs.insert(kind, Repairs { last: now, named });
    }

    /// Whether there is no obstacle now, a reason, and a message that names each disturbance, its end and the
    /// remedy. How often each was is in the metrics.
    pub fn verdict(&self, now: Millis) -> Verdict {
        let recent = self.repairs.iter().filter(|(_, repairs)| is_reported(repairs.last, now));
        let repaired = recent.map(|(kind, Repairs { named: (what, _), .. })| {
            let (done, remedy) = kind.words();
            format!("{done}, for instance {what}: {remedy}")
        });
        let repaired: Vec<String> = repaired.collect();
        let all =
            self.standing.iter().cloned().chain(repaired.iter().cloned()).collect::<Vec<_>>().join("; ");
        match (self.standing.is_empty(), repaired.is_empty()) {
            (false, _) => Verdict::no(Reason::InTheWay, all),
            (true, false) => Verdict::yes(Reason::Repaired, all),
            (true, true) => {
                Verdict::yes(Reason::Undisturbed, "nothing else on the node is in the way of its pods")
            }
        }
    }
}

/// Whether what happened then is still reported.
pub fn is_reported(at: Millis, now: Millis) -> bool {
    now.saturating_sub(at) < REPORTED_FOR.as_millis() as Millis
}

/// The addresses that must not be where they are: `reserved` are for this node's pods. A NIC's own address,
/// of `primaries`, is never among them, whatever the spec has.
pub fn misplaced(
    reserved: &[Ipv4Addr],
    primaries: &[Ipv4Addr],
    addresses: Vec<LinkAddress>,
) -> Vec<LinkAddress> {
    let is_misplaced = |found: &LinkAddress| {
        reserved.contains(&found.address)
            && !primaries.contains(&found.address)
            && !found.link.starts_with(LINK_PREFIX)
            && !found.address.is_loopback()
    };
    addresses.into_iter().filter(is_misplaced).collect()
}

/// Takes them off their links; returns those that went, and the errors of the others.
pub fn take_off(
    addresses: &[LinkAddress],
    sysctl_net_dir: &Path,
) -> Vec<(String, Result<(), wiring::Error>)> {
    let take = |found: &LinkAddress| {
        let what = format!("{}/{} on {}", found.address, found.prefix_len, found.link);
        (what, wiring::remove_address(found, sysctl_net_dir))
    };
    addresses.iter().map(take).collect()
}

/// The host ends that aren't as ADD left them though the ledger has their sandboxes: a stranger's is not ours
/// to restore.
pub fn damaged<'a>(
    ledger: &Ledger,
    links: &'a [HostLink],
) -> impl Iterator<Item = (&'a HostLink, &'a Identity)> {
    let damaged = links.iter().filter(|link| link.is_damaged());
    let identified = damaged.filter_map(|link| Some((link, link.identity.as_ref()?)));
    identified.filter(|(_, identity)| ledger.address_of(&identity.sandbox) == Some(identity.address))
}

/// Whether a repair shows that somebody disturbs the node. An earlier release wired pods without the node's
/// neighbour entry, so an agent's `first` inspection only adds what was never there.
pub fn is_disturbance(damage: &[Damage], first: bool) -> bool {
    !(first && damage == [Damage::Neighbour])
}

/// Restores a sandbox's host end, if that is still due: not while a verb is at work on it, nor after its DEL.
pub fn restore(store: &Store, link: &HostLink) -> Result<Vec<Damage>, Error> {
    let Some(identity) = &link.identity else { return Ok(Vec::new()) };
    let Some(_lock) = store.try_lock_sandbox(&identity.sandbox)? else { return Ok(Vec::new()) };
    if store.peek()?.address_of(&identity.sandbox) != Some(identity.address) {
        return Ok(Vec::new());
    }
    Ok(wiring::restore(link.index, identity)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_is_reported_for_an_hour_with_its_remedy() {
        let mut disturbances = Disturbances::default();
        assert_eq!(disturbances.verdict(0).reason, "Undisturbed");
        disturbances.repaired(Kind::Address, "10.240.0.5/24 on eth0", 1_000);
        disturbances.repaired(Kind::Address, "10.240.0.6/24 on eth0", 2_000);
        let Verdict { holds, reason, message } = disturbances.verdict(3_000);
        assert_eq!((holds, reason), (Some(true), Reason::Repaired));
        assert!(message.contains("for instance 10.240.0.5/24 on eth0"), "{message}");
        assert!(message.contains("apply_network_config_for_secondary_ips: false"), "{message}");
        assert_eq!(disturbances.verdict(2_000 + REPORTED_FOR.as_millis() as Millis).reason, "Undisturbed");
    }

    /// Each change of the message is a status write.
    #[test]
    fn a_fight_of_a_day_changes_the_report_once_an_hour_and_names_what_it_is_about_now() {
        let mut disturbances = Disturbances::default();
        let mut messages = Vec::new();
        let every = 1_000;
        for repair in 0..24 * 3600 {
            disturbances.repaired(Kind::Route, format!("10.240.0.{}", repair % 250), repair * every);
            messages.push(disturbances.verdict(repair * every).message);
        }
        let last = messages.last().unwrap().clone();
        messages.dedup();
        assert!(messages.len() <= 24, "{} messages, such as {messages:?}", messages.len());
        assert!(last.contains(&format!("10.240.0.{}:", 23 * 3600 % 250)), "{last}");
    }

    #[test]
    fn an_obstacle_is_reported_until_an_inspection_no_longer_finds_it() {
        let mut disturbances = Disturbances::default();
        disturbances.repaired(Kind::Route, "10.240.0.6", 0);
        let chain = "chain FORWARD of table ip filter drops what pods send";
        disturbances.inspected(BTreeSet::from([chain.to_owned()]), true);
        let Verdict { holds, reason, message } = disturbances.verdict(0);
        assert_eq!((holds, reason), (Some(false), Reason::InTheWay));
        assert!(
            message.starts_with("chain FORWARD") && message.contains("ManageForeignRoutes=no"),
            "{message}"
        );
        disturbances.inspected(BTreeSet::new(), false);
        assert_eq!(disturbances.verdict(0).holds, Some(false), "no inspection has checked it again");
        disturbances.inspected(BTreeSet::new(), true);
        assert_eq!(disturbances.verdict(0).holds, Some(true));
    }
}
