//! What has left a NIC without our doing while pods use it. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use vnetpool_crds::NodeIPAllocation;

use crate::azure::Nic;

/// What pods of this boot use though it has left the NIC without our doing, as somebody else's write makes
/// it: addresses, or the blocks of `grain` addresses they are in. An instance of a Uniform scale set has
/// none, because nobody can ask for an address there.
///
/// Only on the NIC they were on: elsewhere the old NIC may still have them. And none of `taken`, which have
/// turned out to be somebody else's.
///
/// What the agent has given up is no address in use, in whatever version of its report. What we know of it
/// may be some seconds old: an address too many is then asked for again and stays with the node as one more
/// to hand out; one too few comes with the next report.
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
    let status = allocation.status.as_ref().filter(|status| may_ask && status.boot_id == boot_id);
    let assignments = status.into_iter().flat_map(|status| &status.assignments);
    let in_use = assignments.filter_map(|one| one.address.parse().ok());
    unheld(in_use, nic, grain).difference(taken).copied().collect()
}

/// Those of the addresses that no ipConfiguration of ours holds; or the blocks they are in, where these come
/// in blocks.
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

    /// What is lost of two addresses in use, given what the NIC holds.
    fn lost_of(held: &[(&str, &str)], boot_id: &str, taken: &[&str]) -> Vec<String> {
        let nic = sample_nic(held);
        let used = ["10.0.0.5", "10.0.0.6"].map(|address| json!({"address": address, "sandbox": "s"}));
        let interface = json!({"id": nic.id.as_str().to_uppercase(), "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
        let allocation: NodeIPAllocation = serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
            // As it is once the names have left `spec`, too.
            "status": {"bootID": "b1", "assignments": used},
        }))
        .unwrap();
        let taken = taken.iter().map(|one| one.parse().unwrap()).collect();
        lost(&allocation, boot_id, &nic, 1, &taken).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_pods_of_this_boot_use_and_the_nic_does_not_hold_is_lost() {
        assert_eq!(lost_of(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.6/32")], "b1", &[]), [""; 0]);
        assert_eq!(lost_of(&[("vnp-1", "10.0.0.5/32")], "b1", &[]), ["10.0.0.6/32"]);
        assert_eq!(lost_of(&[], "b1", &[]), ["10.0.0.5/32", "10.0.0.6/32"]);
        assert_eq!(lost_of(&[], "b2", &[]), [""; 0], "pods of before the boot use nothing");
        assert_eq!(lost_of(&[], "b1", &["10.0.0.5/32"]), ["10.0.0.6/32"]);
    }

    #[test]
    fn nothing_is_lost_on_a_nic_that_pods_addresses_were_never_on() {
        let allocation = |id: &str| -> NodeIPAllocation {
            let interface =
                json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
            serde_json::from_value(json!({
                "metadata": {"name": "n"},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
                "status": {"bootID": "b", "assignments": [{"address": "10.0.0.5", "sandbox": "s"}]},
            }))
            .unwrap()
        };
        let nic = sample_nic(&[]);
        let lost = |id: &str| lost(&allocation(id), "b", &nic, 1, &BTreeSet::new()).len();
        assert_eq!((lost(nic.id.as_str()), lost("/another")), (1, 0));
    }

    #[test]
    fn of_two_nics_the_one_that_serves_loses_addresses_in_whatever_order_spec_has_them() {
        let nic = sample_nic(&[]);
        let interface = |id: &str, secondary: bool| json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "secondary": secondary});
        let (primary, serving) = (interface("/primary", false), interface(nic.id.as_str(), true));
        let lost = |interfaces: [&serde_json::Value; 2]| {
            let allocation: NodeIPAllocation = serde_json::from_value(json!({
                "metadata": {"name": "n"},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": interfaces},
                "status": {"bootID": "b", "assignments": [{"address": "10.0.0.5", "sandbox": "s"}]},
            }))
            .unwrap();
            lost(&allocation, "b", &nic, 1, &BTreeSet::new()).len()
        };
        assert_eq!((lost([&serving, &primary]), lost([&primary, &serving])), (1, 1));
    }

    #[test]
    fn only_what_the_nic_holds_under_no_name_at_all_is_lost() {
        let held = sample_nic(&[("vnp-9", "10.0.0.5/32"), ("vnp-8", "10.0.1.0/28")]);
        let lost = |grain| {
            let addresses = ["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.1.3"].map(|one| one.parse().unwrap());
            unheld(addresses.into_iter(), &held, grain).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(lost(1), ["10.0.0.6/32", "10.0.0.7/32"]);
        assert_eq!(lost(16), ["10.0.0.0/28"]);
    }
}
