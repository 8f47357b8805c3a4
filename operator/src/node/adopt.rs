//! What other network plugins have left on a NIC, and when it may go: the pool must say so, and every pod of the node must have an
//! address of ours. The decision is pure.

use std::collections::HashSet;

use kube::{Api, ResourceExt};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::pool::Adopt;

use super::Context;
use crate::azure::Nic;

/// What becomes of others' ipConfigurations on a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// To be removed now, by name.
    pub ready: Vec<String>,
    /// How many pods of the node have no address of ours, and may use one of those: nothing is removed until none does.
    pub pods: usize,
    /// How many there are to remove.
    pub left: usize,
    /// What stays for good, by name: something is attached to it.
    pub attached: Vec<String>,
}

/// `bound` are the UIDs of the node's pods that need an address, `assigned` of those that have one of ours.
fn decide(nic: &Nic, bound: &HashSet<String>, assigned: &HashSet<String>) -> Adoption {
    let pods = bound.difference(assigned).count();
    Adoption {
        ready: if pods == 0 { nic.others.idle.clone() } else { vec![] },
        pods,
        left: nic.others.idle.len(),
        attached: nic.others.attached.clone(),
    }
}

/// `None` unless the pool asks for it. Reads the node's assignments from the API server, only if there is something to remove:
/// what is kept of them in memory are counts.
pub async fn adoption(
    ctx: &Context,
    adopt: Adopt,
    allocation: &NodeIPAllocation,
    boot_id: &str,
    nic: &Nic,
) -> Option<Adoption> {
    if adopt == Adopt::Nothing {
        return None;
    }
    let bound = ctx.cluster.bound_pods(&allocation.name_any());
    let mut assigned = HashSet::new();
    if !nic.others.idle.is_empty() && !bound.is_empty() {
        let api = Api::<NodeIPAllocation>::all(ctx.client.clone());
        let now = api.get(&allocation.name_any()).await.ok();
        let status = now.and_then(|now| now.status).filter(|status| status.boot_id == boot_id);
        assigned.extend(status.into_iter().flat_map(|status| status.assignments).map(|one| one.pod_uid));
    }
    Some(decide(nic, &bound, &assigned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::{Others, ProvisioningState};

    fn uids(all: &[&str]) -> HashSet<String> {
        all.iter().map(|&uid| uid.to_owned()).collect()
    }

    #[test]
    fn nothing_is_adopted_while_a_pod_has_no_address_of_ours_however_many_are_assigned() {
        let nic = Nic {
            id: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n"
                .parse()
                .unwrap(),
            location: String::new(),
            mac: None,
            vm: None,
            primary: [10, 0, 0, 4].into(),
            subnet:
                "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a"
                    .parse()
                    .unwrap(),
            state: ProvisioningState::Succeeded,
            ip_configurations: vec![],
            foreign: 3,
            forwards: false,
            others: Others { idle: vec!["ipconfig2".into()], attached: vec!["ipconfig3".into()] },
        };
        // The ledger may still have an entry of a pod that is gone.
        let waits = decide(&nic, &uids(&["a", "b"]), &uids(&["a", "gone"]));
        assert_eq!((waits.ready.len(), waits.pods, waits.left), (0, 1, 1));
        let ready = decide(&nic, &uids(&["a", "b"]), &uids(&["a", "b", "gone"]));
        assert_eq!(ready.ready, ["ipconfig2"]);
        assert_eq!(ready.attached, ["ipconfig3"]);
        assert_eq!(decide(&nic, &uids(&[]), &uids(&[])).ready, ["ipconfig2"]);
    }
}
