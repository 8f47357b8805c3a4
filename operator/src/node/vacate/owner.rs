//! Whose a NIC is that a node has had. Pure but for the watched objects.

use kube::ResourceExt;
use vnetpool_crds::allocation::NodeIPAllocationSpec;
use vnetpool_crds::{NodeIPAllocation, names};

use crate::azure::ResourceId;
use crate::context::Context;

/// Whether a NIC that a VM has is left to that with all that it holds: another node's object records it by
/// now, or a person says so. Otherwise the VM may be the node's former one, which is about to go, and nobody
/// else would know of the NIC.
pub fn is_left_to_its_vm(ctx: &Context, allocation: &NodeIPAllocation, nic: &ResourceId) -> bool {
    is_given_away(allocation, nic) || is_recorded_elsewhere(ctx, allocation, nic)
}

/// The annotation by which a person says that a NIC which the node has left belongs to another machine now.
pub fn word_that_gives_away(nic: &str) -> String {
    format!("{}={}", names::LEFT, nic.rsplit('/').next().unwrap_or_default())
}

/// Whether a person says that this NIC, which the node has left, belongs to another machine now.
pub fn is_given_away(allocation: &NodeIPAllocation, nic: &ResourceId) -> bool {
    let given = allocation.annotations().get(names::LEFT).map(String::as_str).unwrap_or_default();
    let is_it = |one: &str| one.eq_ignore_ascii_case(nic.as_str()) || one.eq_ignore_ascii_case(nic.name());
    is_left(&allocation.spec, nic.as_str()) && given.split(',').any(|one| is_it(one.trim()))
}

/// Whether another node's object records this NIC as its own.
pub(super) fn is_recorded_elsewhere(ctx: &Context, allocation: &NodeIPAllocation, nic: &ResourceId) -> bool {
    let is_anothers = |other: &NodeIPAllocation| is_anothers(nic, allocation, other);
    ctx.cluster.allocations().find(is_anothers).is_some()
}

/// Whether the object of another node that lives does. Then that one's pods may use what the NIC holds.
pub(super) fn is_living_nodes(ctx: &Context, allocation: &NodeIPAllocation, nic: &ResourceId) -> bool {
    let is_its = |other: &NodeIPAllocation| {
        is_anothers(nic, allocation, other) && ctx.cluster.node(&other.name_any()).is_some()
    };
    ctx.cluster.allocations().find(is_its).is_some()
}

/// Whether an object is another node's and records this NIC: then what it holds is that one's to use and to
/// release.
fn is_anothers(nic: &ResourceId, allocation: &NodeIPAllocation, other: &NodeIPAllocation) -> bool {
    let mut named = other.spec.interfaces.iter();
    other.metadata.name != allocation.metadata.name
        && named.any(|one| one.id.eq_ignore_ascii_case(nic.as_str()))
}

/// Whether the node has left this NIC, and hasn't it beside another either.
pub(super) fn is_left(spec: &NodeIPAllocationSpec, id: &str) -> bool {
    spec.left(id).is_some() && !spec.interfaces.iter().any(|one| one.id.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use super::super::having_left;
    use super::*;
    use crate::azure::sample_nic;
    use serde_json::json;

    #[test]
    fn a_nic_that_another_nodes_object_records_is_that_ones() {
        let object = |name: &str, nic: &str| -> NodeIPAllocation {
            let interface =
                json!({"id": nic, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
            serde_json::from_value(json!({"metadata": {"name": name},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]}}))
            .unwrap()
        };
        let nic = sample_nic(&[]).id;
        let (old, renamed) = (object("old", nic.as_str()), object("new", &nic.as_str().to_uppercase()));
        assert!(!is_anothers(&nic, &old, &old) && !is_anothers(&nic, &old, &object("other", "another")));
        assert!(is_anothers(&nic, &old, &renamed));
    }

    #[tokio::test]
    async fn a_nic_that_a_vm_has_is_left_to_it_only_if_another_object_or_a_persons_word_gives_it_to_that() {
        let (ctx, nic) = (Context::sample(), sample_nic(&[]).id);
        let mut object = having_left(&nic, json!({}));
        assert!(!is_left_to_its_vm(&ctx, &object, &nic), "the former machine may be about to go");
        let mut is_left_by = |annotation: &str, value: &str| {
            object.metadata.annotations = Some([(annotation.to_owned(), value.to_owned())].into());
            is_left_to_its_vm(&ctx, &object, &nic)
        };
        assert!(is_left_by(names::LEFT, &format!("another, {}", nic.name())));
        assert!(is_left_by(names::LEFT, nic.as_str()));
        assert!(!is_left_by(names::LEFT, "another") && !is_left_by(names::LEFT, ""));
        assert!(!is_left_by(names::GONE, "true"), "it may be an old word, about a machine before");
    }
}
