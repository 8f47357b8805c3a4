//! The attachments that pods ask for: planned here, carried out step by step in [`step`].
//!
//! They have errors and waits of their own: a pod with a wish that Azure refuses must not keep the node from
//! its addresses.

pub mod step;

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::allocation::{Interface, IpConfiguration, NodeIPAllocation};
use vnetpool_crds::names;
use vnetpool_crds::pool::Mode;

use super::absences::is_confirmed_gone;
use super::lag::{Lag, lag};
use super::memory::Memory;
use super::memory::left::public_addresses;
use super::observe::Seen;
use super::setback::Setback;
use crate::azure::{self, ResourceId};
use crate::context::Context;
use crate::node_object::Node;
use crate::planner::attachments::{self, Facts, Mark, Plan};

/// The wanted attachments of the node's addresses.
pub fn plan(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    seen: &Seen,
    memory: &mut Memory,
    now: Instant,
) -> Plan {
    let in_doubt = memory.nic.is_in_doubt();
    let attaching = &mut memory.attaching;
    let wishes = ctx.cluster.wishes(&node.name_any());
    let is_confirmed_gone = is_confirmed_gone(allocation);
    step::take_outcomes(ctx, attaching, is_confirmed_gone);
    if is_confirmed_gone {
        attaching.confirmed_gone(now);
    }
    attaching.saw(&wishes);
    let left = on_left(allocation, seen);
    let (marks, recorded) = (marks(allocation), recorded(allocation, &left));
    // Of one that has gone, and that `spec` has forgotten, nothing is kept.
    let is_kept = |id: &ResourceId, is_there| !left.contains(id) && (is_there || recorded.contains(id));
    attaching.public.retain(|id, public| is_kept(id, public.is_some()));
    for public in marks.values().filter_map(|mark| mark.public_address.as_ref()) {
        if let (Ok(id), Some(_)) = (public.id.parse(), &public.address)
            && !attaching.orders.has(&id)
            && !left.contains(&id)
        {
            attaching.public.entry(id).or_insert_with(|| Some(public.clone()));
        }
    }
    let status = allocation.status.as_ref().filter(|status| status.boot_id == node.boot_id());
    let confirmed = status.into_iter().flat_map(|status| &status.confirmed);
    let confirmed = confirmed.filter(|one| !one.pod_uid.is_empty());
    let confirmed = confirmed.filter_map(|one| Some((one.address.parse().ok()?, one.pod_uid.clone())));
    let has = attachments::holders(&seen.observed.held, &marks, confirmed, &wishes);
    // What many are refused is decided anew each time.
    let holds = |one: &Setback| one.holds(now) && !one.is_shared;
    let mut refused: HashSet<String> =
        attaching.refused.iter().filter(|(_, (_, one))| holds(one)).map(|(uid, _)| uid.clone()).collect();
    // They get one again when it has gone with the NIC that has it.
    refused.extend(left.iter().filter_map(attachments::pod_of).map(str::to_owned));
    attaching.unread.retain(|id, _| recorded.contains(id));
    let is_unread = |(id, one): &(&ResourceId, &Setback)| {
        holds(one) || ctx.azure.refusal_of_public_address(azure::Kind::Read, id).is_some()
    };
    let unread = attaching.unread.iter().filter(is_unread).map(|(id, _)| id.clone()).collect();
    let held = &seen.observed.held;
    let is_attached = |name: &String| held.iter().any(|one| one.name == *name && !one.attached.is_empty());
    attaching.undetached.retain(|name, _| is_attached(name));
    let undetached = attaching.undetached.iter().filter(|(_, one)| holds(one));
    let undetached = undetached.map(|(name, _)| name.clone()).collect();
    let nic: Option<ResourceId> = seen.nic.as_ref().and_then(|nic| nic.id.parse().ok());
    let offered = seen.pool.as_ref().map(|pool| pool.spec.attachments.clone()).unwrap_or_default();
    let mut plan = loop {
        let facts = Facts {
            held,
            marks: &marks,
            recorded: &recorded,
            wishes: &wishes,
            has: &has,
            confirmed: lag(allocation, node.boot_id()) == Lag::None,
            in_doubt,
            offered: &offered,
            impossible: impossible(seen, nic.as_ref()),
            public: &attaching.public,
            unread: &unread,
            refused: &refused,
            undetached: &undetached,
            batch: attaching.batch,
        };
        let plan = attachments::plan(&facts, |uid| public_id(nic.as_ref()?, uid));
        // The step is for the others.
        let held_back = step::held_back(ctx, nic.as_ref(), &plan, attaching);
        if held_back.is_empty() {
            break plan;
        }
        refused.extend(held_back);
    };
    attaching.undeleted.retain(|id, _| plan.delete.contains(id));
    plan.delete.retain(|id| !step::keeps(ctx, id, attaching, now));
    plan
}

/// The plan without any effect: the marks and public addresses are those that `spec` shows.
pub fn rehearsed(plan: Plan, allocation: &NodeIPAllocation, seen: &Seen) -> Plan {
    let (marks, recorded) = (marks(allocation), recorded(allocation, &on_left(allocation, seen)));
    Plan { marks, recorded, step: None, make: vec![], read: vec![], delete: vec![], ..plan }
}

/// Azure attaches to single addresses of ordinary NICs only.
fn impossible(seen: &Seen, nic: Option<&ResourceId>) -> Option<&'static str> {
    let mode = seen.pool.as_ref().map(|pool| pool.spec.mode);
    if mode.is_some_and(|mode| mode != Mode::Address) {
        return Some(
            "its NodeIPPool's mode doesn't reserve single addresses, and Azure attaches things to single addresses only. Run the pod \
             on a node of a pool with mode Address.",
        );
    }
    nic.filter(|_| !seen.backend.takes_attachments()).map(|_| {
        "the node belongs to a scale set with uniform orchestration, whose addresses nothing can be attached to one by one. Run \
         the pod on a node of a flexible scale set or on a virtual machine of its own."
    })
}

/// The public address of a pod stands beside the NIC.
fn public_id(nic: &ResourceId, uid: &str) -> Option<ResourceId> {
    let (subscription, group) = (nic.subscription(), nic.resource_group());
    let prefix = names::IP_CONFIGURATION_PREFIX;
    format!(
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/publicIPAddresses/{prefix}{uid}"
    )
    .parse()
    .ok()
}

/// The public addresses that `spec` names, but for those on NICs that the node has `left`.
fn recorded(allocation: &NodeIPAllocation, left: &HashSet<ResourceId>) -> HashSet<ResourceId> {
    let named = allocation.spec.public_addresses().filter_map(|id| id.parse().ok());
    named.filter(|id| !left.contains(id)).collect()
}

/// The public addresses on NICs that the node has left: they are deleted when those have been emptied. Not
/// those that the present NIC has, or is to have by its marks, whatever an older record says.
fn on_left(allocation: &NodeIPAllocation, seen: &Seen) -> HashSet<ResourceId> {
    let spec = &allocation.spec;
    let is_left = |nic: &&Interface| seen.left.iter().any(|id| nic.id.eq_ignore_ascii_case(id.as_str()));
    let all = spec.left_interfaces.iter().chain(spec.interfaces.iter().filter(is_left));
    let all = all.flat_map(public_addresses).filter_map(|id| id.parse().ok());
    let held = &seen.observed.held;
    let is_held = |one: &&IpConfiguration| held.iter().any(|held| held.name == one.name);
    let marked = spec.ip_configurations().filter(is_held);
    let marked = marked.filter_map(|one| one.public_address.as_ref()?.id.parse().ok());
    let attached = held.iter().filter_map(|one| one.attached.public_address.clone());
    let present: HashSet<ResourceId> = marked.chain(attached).collect();
    all.filter(|id| !present.contains(id)).collect()
}

/// The marks that `spec` shows.
fn marks(allocation: &NodeIPAllocation) -> BTreeMap<String, Mark> {
    let marked = allocation.spec.ip_configurations().filter_map(|one| {
        let mark = Mark { attached_to: one.attached_to.clone()?, public_address: one.public_address.clone() };
        Some((one.name.clone(), mark))
    });
    marked.collect()
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memories;
    use super::super::observe::obstacle::Obstacle;
    use super::*;
    use crate::azure::Attached;
    use crate::resource_id::sample_public_address;
    use serde_json::json;

    #[tokio::test]
    async fn a_public_address_on_a_nic_that_its_node_has_left_goes_with_that() {
        let (ctx, now, public) = (Context::sample(), Instant::now(), sample_public_address("gone"));
        let former = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n";
        let nic: Interface = serde_json::from_value(json!({"id": former, "mac": "m",
            "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}, "ipConfigurations": [{"name": "vnp-1",
                "address": "10.0.0.5/32", "attachedTo": "gone",
                "publicAddress": {"id": public.as_str(), "address": "20.0.0.1"}}]}))
        .unwrap();
        let object =
            json!({"metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u"}})).unwrap();
        // What is planned of the public address of a pod that is gone: whether it is recorded, and deleted.
        let planned = |serving: bool, just_left: bool| {
            let mut allocation: NodeIPAllocation = serde_json::from_value(object.clone()).unwrap();
            let spec = &mut allocation.spec;
            let list = if serving { &mut spec.interfaces } else { &mut spec.left_interfaces };
            list.push(nic.clone());
            let mut memory = Memories::default().take(&allocation);
            memory.attaching.public.insert(public.clone(), Some(Default::default()));
            let mut seen = Seen::sample(&allocation, Obstacle::NoPool, &memory, now);
            seen.left.extend(just_left.then(|| former.parse::<ResourceId>().unwrap()));
            let plan = plan(&ctx, &allocation, &node, &seen, &mut memory, now);
            (plan.recorded.contains(&public), plan.delete.contains(&public))
        };
        // What the present NIC has isn't the former one's, whatever is recorded of that.
        let mut allocation: NodeIPAllocation = serde_json::from_value(object.clone()).unwrap();
        allocation.spec.left_interfaces.push(nic.clone());
        let memory = Memories::default().take(&allocation);
        let mut seen = Seen::sample(&allocation, Obstacle::NoPool, &memory, now);
        assert_eq!(on_left(&allocation, &seen), HashSet::from([public.clone()]));
        let named = Interface { id: "/present".into(), ..nic.clone() };
        let attached = Attached { public_address: Some(public.clone()), ..Attached::default() };
        let (name, state) = ("vnp-1".to_owned(), azure::ProvisioningState::Succeeded);
        let address = "10.0.0.5/32".parse().ok();
        seen.observed.held = vec![azure::IpConfiguration { name, address, state, attached }];
        assert!(on_left(&allocation, &seen).is_empty(), "attached");
        seen.observed.held[0].attached.public_address = None;
        assert_eq!(on_left(&allocation, &seen).len(), 1);
        allocation.spec.interfaces.push(named);
        assert!(on_left(&allocation, &seen).is_empty(), "marked");
        assert_eq!(planned(true, false), (true, true));
        assert_eq!(planned(true, true), (false, false), "Azure would refuse that");
        assert_eq!(planned(false, false), (false, false), "until the NIC is empty");
    }
}
