//! What has left a NIC without our doing while pods use it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use tracing::warn;
use vnetpool_crds::{NodeIPAllocation, condition};

use super::Context;
use super::memory::Memory;
use crate::azure::Nic;
use crate::cluster::kept;

/// What pods of this boot use though it has left the NIC without our doing, as an upgrade of a scale set's model or somebody
/// else's write makes it: addresses, or the blocks they are in. An instance of a Uniform scale set has none, because
/// nobody can ask for an address there.
///
/// Only on the NIC they were on: elsewhere the old NIC may still have them. And none that has turned out to be somebody
/// else's.
pub async fn lost(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    nic: &Nic,
    grain: u32,
    memory: &Memory,
) -> BTreeSet<Ipv4Net> {
    let status = allocation.status.clone().unwrap_or_default();
    let was_here =
        allocation.spec.interfaces.first().is_some_and(|one| one.id.eq_ignore_ascii_case(nic.id.as_str()));
    // What was lost when last looked may be gone from `spec` by now, and the agent not have said so yet.
    let may_lack = memory.has_lost || has_drifted(allocation, nic);
    if !was_here || status.boot_id != kept::boot_id(node) || !may_lack {
        return BTreeSet::new();
    }
    // Who uses what isn't kept of every node: it is asked for when it matters.
    let found = Api::<NodeIPAllocation>::all(ctx.client.clone()).get_opt(&allocation.name_any()).await;
    let found = match found {
        Ok(found) => found.filter(|found| found.uid() == allocation.uid()),
        Err(error) => {
            warn!(%error, "who uses the addresses that have left the NIC is not known yet");
            return BTreeSet::new();
        }
    };
    let assignments =
        found.and_then(|found| found.status).map(|status| status.assignments).unwrap_or_default();
    let in_use = assignments.iter().filter_map(|one| one.address.parse().ok());
    unheld(in_use, nic, grain).difference(&memory.taken).copied().collect()
}

/// Whether something is missing on the NIC that neither we nor the agent have given up.
fn has_drifted(allocation: &NodeIPAllocation, nic: &Nic) -> bool {
    let status = allocation.status.as_ref();
    let is_held = |name: &str| nic.ip_configurations.iter().any(|one| one.name == name);
    let is_given_up = |name: &String| status.is_some_and(|status| status.relinquished.contains(name));
    let is_unbacked = status.is_some_and(|status| {
        condition::find(&status.conditions, condition::ASSIGNMENTS_BACKED)
            .is_some_and(|one| one.status == "False")
    });
    let mut published = allocation.spec.ip_configurations();
    is_unbacked || published.any(|one| !is_held(&one.name) && !is_given_up(&one.name))
}

/// Those of the addresses that no ipConfiguration of ours holds; or the blocks they are in, where these come in blocks.
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
    use crate::azure::{IpConfiguration, ProvisioningState};

    fn nic(held: &[(&str, &str)]) -> Nic {
        let group = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
        let one = |(name, address): &(&str, &str)| IpConfiguration {
            name: (*name).into(),
            address: Some(address.parse().unwrap()),
            state: ProvisioningState::Succeeded,
            attached: Default::default(),
        };
        Nic {
            id: format!("{group}/networkInterfaces/n").parse().unwrap(),
            location: String::new(),
            mac: None,
            vm: None,
            primary: Ipv4Addr::new(10, 0, 0, 4),
            subnet: format!("{group}/virtualNetworks/v/subnets/a").parse().unwrap(),
            state: ProvisioningState::Succeeded,
            ip_configurations: held.iter().map(one).collect(),
            foreign: 1,
            others: Default::default(),
            forwards: false,
        }
    }

    fn allocation(relinquished: &[&str], backed: &str) -> NodeIPAllocation {
        let held = [("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.6/32")];
        let held = held.map(|(name, address)| json!({"name": name, "address": address}));
        let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "ipConfigurations": held});
        let condition = json!({"type": "AssignmentsBacked", "status": backed, "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
            "status": {"relinquished": relinquished, "conditions": [condition]},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_missing_on_the_nic_is_drift_unless_the_node_has_given_it_up() {
        let both = nic(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.6/32")]);
        let one = nic(&[("vnp-1", "10.0.0.5/32")]);
        assert!(!has_drifted(&allocation(&[], "True"), &both));
        assert!(has_drifted(&allocation(&[], "True"), &one));
        assert!(!has_drifted(&allocation(&["vnp-2"], "True"), &one));
        // What was published without it long ago is drift as long as a pod uses it.
        assert!(has_drifted(&allocation(&[], "False"), &both));
    }

    #[test]
    fn only_what_the_nic_holds_under_no_name_at_all_is_lost() {
        let held = nic(&[("vnp-9", "10.0.0.5/32"), ("vnp-8", "10.0.1.0/28")]);
        let lost = |grain| {
            let addresses = ["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.1.3"].map(|one| one.parse().unwrap());
            unheld(addresses.into_iter(), &held, grain).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(lost(1), ["10.0.0.6/32", "10.0.0.7/32"]);
        assert_eq!(lost(16), ["10.0.0.0/28"]);
    }
}
