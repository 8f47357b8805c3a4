//! Which parts of each watched object the operator keeps, and on which of them a decision may depend. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use vnetpool_crds::allocation::{Holder, NodeIPAllocationStatus};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, condition, names};

use crate::left_alone::is_never_served;
use crate::node_object::Node;

/// A person's words to the operator about a node's addresses.
const WORDS: [&str; 4] = [names::GONE, names::LEFT, names::RELEASE, names::READ];

/// Leaves out the longest parts, which only people and the agent read, and the agent's words about what is
/// well, and keeps of each holder only its address and UID.
pub fn strip_allocation(allocation: &mut NodeIPAllocation) {
    if let Some(annotations) = &mut allocation.metadata.annotations {
        annotations.retain(|name, _| WORDS.contains(&name.as_str()));
    }
    if let Some(status) = &mut allocation.status {
        status.leases.clear();
        let is_read = |one: &Condition| one.status != "True" || one.type_ == condition::METADATA_REFUSED;
        for one in status.conditions.iter_mut().filter(|one| condition::is_agents(one) && !is_read(one)) {
            one.message = String::new();
        }
        for one in status.lost.iter_mut().chain(&mut status.confirmed).chain(&mut status.holders) {
            *one = Holder {
                address: std::mem::take(&mut one.address),
                pod_uid: std::mem::take(&mut one.pod_uid),
                ..Holder::default()
            };
        }
    }
}

pub fn strip_pool(pool: &mut NodeIPPool) {
    if let Some(annotations) = &mut pool.metadata.annotations {
        annotations.retain(|name, _| name == names::PAUSED);
    }
}

pub fn node_digest(node: &Node) -> u64 {
    digest((
        &node.metadata.uid,
        node.labels(),
        node.provider_id(),
        node.boot_id(),
        node.pods_allowed(),
        node.has_taint(names::FULL_TAINT),
        node.networkless(),
        is_never_served(node),
        node.annotations().get(names::PAUSED),
    ))
}

/// Other clients' finalizers on an object that is to go: it stays until they have taken them off.
pub fn held_by(allocation: &NodeIPAllocation) -> Vec<&str> {
    let is_to_go = allocation.metadata.deletion_timestamp.is_some();
    let all = allocation.finalizers().iter().filter(|one| is_to_go && *one != names::FINALIZER);
    all.map(String::as_str).collect()
}

/// Everything that the agent reports, and nothing that the operator itself writes into `status`.
pub fn allocation_digest(allocation: &NodeIPAllocation) -> u64 {
    let NodeIPAllocationStatus {
        observed_generation,
        boot_id,
        held,
        assigned,
        cooling,
        free,
        waiting,
        counted_at: _,
        pods,
        relinquished,
        unlisted,
        metadata_silent,
        lost,
        confirmed,
        leases: _,
        holders,
        conditions,
    } = allocation.status.clone().unwrap_or_default();
    let theirs: Vec<_> = conditions
        .into_iter()
        .filter(condition::is_agents)
        .map(|one| (one.type_, one.status, one.reason, one.message))
        .collect();
    let who = |list: Vec<Holder>| -> Vec<_> {
        list.into_iter().map(|one| (one.address, one.pod_uid)).collect::<Vec<_>>()
    };
    digest((
        (who(lost), who(confirmed), who(holders)),
        (
            &allocation.metadata.uid,
            allocation.metadata.generation,
            (allocation.metadata.deletion_timestamp.is_some(), held_by(allocation)),
            WORDS.map(|name| allocation.annotations().get(name)),
        ),
        (observed_generation, boot_id, held, assigned, cooling, free, waiting, pods, relinquished),
        (unlisted, metadata_silent),
        theirs,
    ))
}

/// The part of the operator's conditions that the pool's status repeats.
pub fn readiness_digest(allocation: &NodeIPAllocation) -> u64 {
    use condition::{APPLICATION_SECURITY_GROUPS, READY, SELECTED, UPDATING};
    let repeated = [READY, SELECTED, UPDATING, APPLICATION_SECURITY_GROUPS];
    let conditions =
        allocation.conditions().iter().filter(|one| repeated.iter().any(|type_| one.type_ == *type_));
    digest(conditions.map(|one| (&one.type_, &one.status, &one.reason)).collect::<Vec<_>>())
}

pub fn pool_digest(pool: &NodeIPPool) -> u64 {
    digest((
        &pool.metadata.uid,
        pool.metadata.generation,
        pool.metadata.deletion_timestamp.is_some(),
        pool.annotations().get(names::PAUSED),
    ))
}

fn digest(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(heartbeat: &str, boot: &str) -> Node {
        serde_json::from_value(sent(heartbeat, boot)).unwrap()
    }

    fn sent(heartbeat: &str, boot: &str) -> Value {
        json!({
            "metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}, "resourceVersion": heartbeat},
            "spec": {"providerID": "azure:///x", "podCIDR": "10.0.0.0/24"},
            "status": {
                "allocatable": {"pods": "110", "cpu": "4"},
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}],
                "nodeInfo": {"bootID": boot, "kernelVersion": "6.1"}
            }
        })
    }

    #[test]
    fn a_heartbeat_changes_nothing_that_matters_but_a_boot_does() {
        let first = node_digest(&node("2026-01-01T00:00:00Z", "b1"));
        assert_eq!(first, node_digest(&node("2026-01-01T00:00:10Z", "b1")));
        assert_ne!(first, node_digest(&node("2026-01-01T00:00:10Z", "b2")));
    }

    #[test]
    fn a_pause_is_kept_and_is_news_and_other_annotations_are_neither() {
        let noise = json!({"node.alpha.kubernetes.io/ttl": "0"});
        let pauses = json!({"vnetpool.io/paused": "incident 7", "node.alpha.kubernetes.io/ttl": "0"});
        let node = |annotations: &Value| -> (u64, Vec<String>) {
            let mut sent = sent("2026-01-01T00:00:00Z", "b1");
            sent["metadata"]["annotations"] = annotations.clone();
            let node: Node = serde_json::from_value(sent).unwrap();
            (node_digest(&node), node.annotations().values().cloned().collect())
        };
        let pool = |annotations: &Value| -> (u64, Vec<String>) {
            let object = json!({"metadata": {"name": "p", "annotations": annotations}, "spec": {}});
            let mut pool: NodeIPPool = serde_json::from_value(object).unwrap();
            strip_pool(&mut pool);
            (pool_digest(&pool), pool.annotations().values().cloned().collect())
        };
        let seen = [
            [node(&json!({})), node(&noise), node(&pauses)],
            [pool(&json!({})), pool(&noise), pool(&pauses)],
        ];
        for [none, noise, paused] in seen {
            assert_eq!(none, noise);
            assert_ne!(none.0, paused.0);
            assert_eq!(paused.1, ["incident 7"]);
        }
    }

    #[test]
    fn a_runtime_without_a_network_is_kept_and_is_news_and_nothing_else_of_ready_is() {
        let seen = |message: &str| {
            let mut sent = sent("2026-01-01T00:00:00Z", "b1");
            sent["status"]["conditions"][0] =
                json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": message});
            let node: Node = serde_json::from_value(sent).unwrap();
            (node.networkless().map(str::to_owned), node_digest(&node))
        };
        let complaint =
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:x";
        let ((without, news), (other, none)) = (seen(complaint), seen("PLEG is not healthy"));
        assert_eq!((without.as_deref(), other), (Some(complaint), None));
        assert_ne!(news, none);
        assert_eq!(none, node_digest(&node("2026-01-01T00:00:10Z", "b1")));
    }

    #[test]
    fn an_address_that_is_no_longer_listed_is_news() {
        let with = |unlisted: &[&str]| -> NodeIPAllocation {
            serde_json::from_value(json!({
                "metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}, "status": {"unlisted": unlisted}
            }))
            .unwrap()
        };
        assert_ne!(allocation_digest(&with(&[])), allocation_digest(&with(&["vnp-1"])));
    }

    #[test]
    fn what_keeps_an_object_that_is_to_go_is_news_and_a_finalizer_on_another_is_none() {
        let with = |ends: Option<&str>, finalizers: &[&str]| -> NodeIPAllocation {
            serde_json::from_value(json!({
                "metadata": {"name": "n", "deletionTimestamp": ends, "finalizers": finalizers},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}
            }))
            .unwrap()
        };
        let ends = Some("2026-01-01T00:00:00Z");
        let held = with(ends, &[names::FINALIZER, "orphan"]);
        assert_eq!(held_by(&held), ["orphan"]);
        assert_ne!(allocation_digest(&held), allocation_digest(&with(ends, &[names::FINALIZER])));
        let [stays, marked] = [&[][..], &["other/one"]].map(|finalizers| with(None, finalizers));
        assert_eq!(allocation_digest(&stays), allocation_digest(&marked));
    }

    #[test]
    fn our_own_conditions_are_no_news_but_the_agents_are() {
        let with = |type_: condition::Type, counts: u32| -> NodeIPAllocation {
            serde_json::from_value(json!({
                "metadata": {"name": "n", "generation": 1},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
                "status": {"held": counts, "conditions": [{"type": type_.name(), "status": "True", "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
            }))
            .unwrap()
        };
        let quiet = allocation_digest(&with(condition::READY, 1));
        assert_eq!(quiet, allocation_digest(&with(condition::WRITING, 1)));
        assert_ne!(quiet, allocation_digest(&with(condition::SUPPLIED, 1)));
        assert_ne!(quiet, allocation_digest(&with(condition::READY, 2)));
    }

    #[test]
    fn the_agents_messages_are_kept_where_a_part_is_not_well_and_the_operators_own_always() {
        let kept = |type_: condition::Type, status: &str| {
            let mut object: NodeIPAllocation = serde_json::from_value(json!({
                "metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
                "status": {"conditions": [{"type": type_.name(), "status": status, "reason": "R", "message": "words",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
            }))
            .unwrap();
            strip_allocation(&mut object);
            !object.conditions()[0].message.is_empty()
        };
        use condition::{METADATA_REFUSED, READY, SUPPLIED};
        assert_eq!(
            [kept(SUPPLIED, "True"), kept(SUPPLIED, "False"), kept(SUPPLIED, "Unknown")],
            [false, true, true]
        );
        assert!(kept(METADATA_REFUSED, "True") && kept(READY, "True"));
    }

    #[test]
    fn a_persons_words_are_kept_and_are_news() {
        let object = |annotations: serde_json::Value| -> NodeIPAllocation {
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "n", "annotations": annotations },
                "spec": { "nodeUID": "u", "pool": "p", "cooldown": "30s" }
            }))
            .unwrap()
        };
        for word in WORDS {
            let mut annotated = object(serde_json::json!({ word: "true", "other/one": "long" }));
            strip_allocation(&mut annotated);
            let kept: Vec<_> = annotated.annotations().iter().collect();
            assert_eq!(kept, [(&word.to_owned(), &"true".to_owned())]);
            assert_ne!(allocation_digest(&annotated), allocation_digest(&object(serde_json::json!({}))));
        }
    }
}
