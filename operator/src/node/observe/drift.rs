//! Addresses that have left a NIC without our doing while pods use them. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::Interface;

use crate::azure::Nic;
use crate::node::backend::Backend;
use crate::node::lag::{Lag, lag};
use crate::node::memory::Memory;

/// The agent may take so long to report which of the addresses that have left the NIC pods use. After that
/// the node grows without its report.
const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses that another client has taken off the node's NIC.
pub struct Drift {
    /// Those that pods use and that may be asked for again now.
    pub lost: BTreeSet<Ipv4Net>,
    /// Some have left it, where a lost address can be asked for.
    pub has_vanished: bool,
    /// The same, also where a lost address can't be asked for: an instance's.
    pub is_taken_off: bool,
    /// Until when to wait for the agent to report the addresses that pods use. A write that grows could be
    /// given the very address, and a second one would be needed for the pod that uses it.
    pub reported_by: Option<Instant>,
}

impl Drift {
    /// Of the NIC, if it has been read, where a pool's addresses come by the `grain`.
    pub fn of(
        (nic, backend): (Option<&Nic>, &Backend),
        allocation: &NodeIPAllocation,
        boot_id: &str,
        grain: u32,
        memory: &Memory,
        now: Instant,
    ) -> Drift {
        let has_vanished = |nic| has_vanished(allocation, nic);
        let is_taken_off = nic.filter(|_| backend.draws_on_subnet()).is_some_and(has_vanished);
        let nic = nic.filter(|_| backend.takes_asked_address());
        let has_vanished = nic.is_some_and(has_vanished);
        let lost = nic.map(|nic| lost(allocation, boot_id, nic, grain, &memory.taken));
        let lost = lost.map(|lost| memory.mending.askable(lost, now)).unwrap_or_default();
        let is_reported = !has_vanished && lag(allocation, boot_id) == Lag::None;
        let since = memory.vanished_since.or(has_vanished.then_some(now));
        let until = since.filter(|_| !is_reported).map(|since| since + PATIENCE);
        let reported_by = until.filter(|until| *until > now);
        Drift { lost, has_vanished, is_taken_off, reported_by }
    }
}

/// What pods of this boot use though it has left the NIC by another client's write: addresses, or the blocks
/// of `grain` addresses they are in. For an instance of a Uniform scale set this is empty, because a client
/// can't request a certain address there.
///
/// Only on the NIC they were on: elsewhere the old NIC may still have them. And none of `taken`, which have
/// turned out to be another NIC's.
///
/// The agent must have taken up the current `spec`, which mirrors the NIC without them: its report is then
/// newer than the read of the NIC. A pod may have ended since: then one address too many is requested again
/// and stays with the node as one more to hand out.
pub fn lost(
    allocation: &NodeIPAllocation,
    boot_id: &str,
    nic: &Nic,
    grain: u32,
    taken: &BTreeSet<Ipv4Net>,
) -> BTreeSet<Ipv4Net> {
    let known = allocation.spec.serving();
    let was_here = known.is_some_and(|one| one.id.eq_ignore_ascii_case(nic.id.as_str()));
    let may_ask = was_here && nic.id.instance().is_none();
    let may_ask = may_ask && lag(allocation, boot_id) == Lag::None;
    let status = allocation.status.as_ref().filter(|_| may_ask);
    let lost = status.into_iter().flat_map(|status| &status.lost);
    let in_use = lost.filter_map(|one| one.address.parse().ok());
    unheld(in_use, nic, grain).difference(taken).copied().collect()
}

/// Whether addresses that `spec` shows have left the NIC without our doing. The agent reports which of them
/// pods use once it has taken up a `spec` without them.
fn has_vanished(allocation: &NodeIPAllocation, nic: &Nic) -> bool {
    let is_here = |known: &&Interface| known.id.eq_ignore_ascii_case(nic.id.as_str());
    let Some(known) = allocation.spec.serving().filter(is_here) else { return false };
    let given_up =
        |name: &String| allocation.status.as_ref().is_some_and(|status| status.relinquished.contains(name));
    let held = |name: &String| nic.ip_configurations.iter().any(|one| one.name == *name);
    known.ip_configurations.iter().any(|one| !held(&one.name) && !given_up(&one.name))
}

/// The addresses that no ipConfiguration of ours holds; or the blocks they are in, where these come in
/// blocks.
fn unheld(addresses: impl Iterator<Item = Ipv4Addr>, nic: &Nic, grain: u32) -> BTreeSet<Ipv4Net> {
    let held: Vec<Ipv4Net> = nic.ip_configurations.iter().filter_map(|one| one.address).collect();
    let unheld = addresses.filter(|address| !held.iter().any(|one| one.contains(address)));
    unheld
        .map(|address| {
            let single = Ipv4Net::from(address);
            // Azure's blocks are aligned.
            if grain > 1 { Ipv4Net::new(address, 28).map_or(single, |block| block.trunc()) } else { single }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::azure::sample_nic;

    /// The lost ones of two addresses in use, given the NIC's content.
    fn lost_of(held: &[(&str, &str)], boot_id: &str, taken: &[&str]) -> Vec<String> {
        lost_by(held, boot_id, taken, 3)
    }

    /// The same by a report of this generation, where the current one is 3.
    fn lost_by(held: &[(&str, &str)], boot_id: &str, taken: &[&str], taken_up: i64) -> Vec<String> {
        let nic = sample_nic(held);
        let used = ["10.0.0.5", "10.0.0.6"].map(|address| json!({"address": address, "sandbox": "s"}));
        let interface = json!({"id": nic.id.as_str().to_uppercase(), "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
        let allocation: NodeIPAllocation = serde_json::from_value(json!({
            "metadata": {"name": "n", "generation": 3},
            // As it is once the names have left `spec`, too.
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
            "status": {"bootID": "b1", "observedGeneration": taken_up, "lost": used},
        }))
        .unwrap();
        let taken = taken.iter().map(|one| one.parse().unwrap()).collect();
        lost(&allocation, boot_id, &nic, 1, &taken).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_that_pods_of_this_boot_use_and_the_nic_lacks_is_lost() {
        assert_eq!(lost_of(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.6/32")], "b1", &[]), [""; 0]);
        assert_eq!(lost_of(&[("vnp-1", "10.0.0.5/32")], "b1", &[]), ["10.0.0.6/32"]);
        assert_eq!(lost_of(&[], "b1", &[]), ["10.0.0.5/32", "10.0.0.6/32"]);
        assert_eq!(lost_of(&[], "b2", &[]), [""; 0], "pods of before the boot use nothing");
        assert_eq!(lost_of(&[], "b1", &["10.0.0.5/32"]), ["10.0.0.6/32"]);
    }

    #[test]
    fn an_address_is_lost_wherever_its_serving_nic_stands_in_spec() {
        let nic = sample_nic(&[]);
        let interface = |id: &str, is_secondary: bool| json!({"id": id, "mac": "m", "secondary": is_secondary, "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
        let (primary, serving) = (interface("/primary", false), interface(nic.id.as_str(), true));
        for interfaces in [[&primary, &serving], [&serving, &primary]] {
            let allocation: NodeIPAllocation = serde_json::from_value(json!({
                "metadata": {"name": "n", "generation": 3},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": interfaces},
                "status": {"bootID": "b1", "observedGeneration": 3, "lost": [{"address": "10.0.0.5", "sandbox": "s"}]},
            }))
            .unwrap();
            assert_eq!(lost(&allocation, "b1", &nic, 1, &BTreeSet::new()).len(), 1);
        }
    }

    #[test]
    fn a_report_of_a_spec_that_still_had_the_addresses_restores_nothing() {
        assert_eq!(lost_by(&[], "b1", &[], 3).len(), 2);
        assert_eq!(lost_by(&[], "b1", &[], 2), [""; 0]);
    }

    #[test]
    fn a_reservation_of_spec_that_the_nic_lacks_has_vanished_unless_relinquished() {
        let nic = sample_nic(&[("vnp-1", "10.0.0.5/32")]);
        let vanished = |id: &str, shown: &[&str], relinquished: &[&str]| {
            let shown: Vec<_> =
                shown.iter().map(|name| json!({"name": name, "address": "10.0.0.6/32"})).collect();
            let interface = json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
                "ipConfigurations": shown});
            let allocation: NodeIPAllocation = serde_json::from_value(json!({
                "metadata": {"name": "n"},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
                "status": {"bootID": "b", "relinquished": relinquished},
            }))
            .unwrap();
            has_vanished(&allocation, &nic)
        };
        let here = nic.id.as_str();
        assert!(!vanished(here, &["vnp-1"], &[]));
        assert!(vanished(here, &["vnp-1", "vnp-2"], &[]));
        assert!(!vanished(here, &["vnp-1", "vnp-2"], &["vnp-2"]));
        assert!(!vanished("/another", &["vnp-2"], &[]));
    }

    #[test]
    fn nothing_is_lost_on_a_nic_that_pods_addresses_were_never_on() {
        let allocation = |id: &str| -> NodeIPAllocation {
            let interface =
                json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
            serde_json::from_value(json!({
                "metadata": {"name": "n", "generation": 3},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
                "status": {"bootID": "b", "observedGeneration": 3, "lost": [{"address": "10.0.0.5", "sandbox": "s"}]},
            }))
            .unwrap()
        };
        let nic = sample_nic(&[]);
        let lost = |id: &str| lost(&allocation(id), "b", &nic, 1, &BTreeSet::new()).len();
        assert_eq!((lost(nic.id.as_str()), lost("/another")), (1, 0));
    }

    #[test]
    fn of_two_nics_in_any_order_the_serving_one_loses_addresses() {
        let nic = sample_nic(&[]);
        let interface = |id: &str, secondary: bool| json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "secondary": secondary});
        let (primary, serving) = (interface("/primary", false), interface(nic.id.as_str(), true));
        let lost = |interfaces: [&serde_json::Value; 2]| {
            let allocation: NodeIPAllocation = serde_json::from_value(json!({
                "metadata": {"name": "n", "generation": 3},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": interfaces},
                "status": {"bootID": "b", "observedGeneration": 3, "lost": [{"address": "10.0.0.5", "sandbox": "s"}]},
            }))
            .unwrap();
            lost(&allocation, "b", &nic, 1, &BTreeSet::new()).len()
        };
        assert_eq!((lost([&serving, &primary]), lost([&primary, &serving])), (1, 1));
    }

    #[test]
    fn only_an_address_that_the_nic_holds_under_no_name_is_lost() {
        let held = sample_nic(&[("vnp-9", "10.0.0.5/32"), ("vnp-8", "10.0.1.0/28")]);
        let lost = |grain| {
            let addresses = ["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.1.3"].map(|one| one.parse().unwrap());
            unheld(addresses.into_iter(), &held, grain).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(lost(1), ["10.0.0.6/32", "10.0.0.7/32"]);
        assert_eq!(lost(16), ["10.0.0.0/28"]);
    }
}
