//! Which parts of each watched object the operator keeps, and on which of them a decision may depend. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, NodeSystemInfo};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use vnetpool_crds::allocation::{Holder, NodeIPAllocationStatus};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, condition, names};

use crate::left_alone::is_never_served;

/// Of the annotations, keeps only that one.
fn keep_pause(metadata: &mut ObjectMeta) {
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| name == names::PAUSED);
    }
}

/// Keeps of a Node its identity, labels, pause, taints, providerID, bootID and the kubelet's pod limit; and
/// its condition Ready, while the kubelet reports there that the runtime has no network.
pub fn strip_node(node: &mut Node) {
    node.metadata = ObjectMeta {
        name: node.metadata.name.take(),
        uid: node.metadata.uid.take(),
        resource_version: node.metadata.resource_version.take(),
        deletion_timestamp: node.metadata.deletion_timestamp.take(),
        labels: node.metadata.labels.take(),
        annotations: node.metadata.annotations.take(),
        ..Default::default()
    };
    keep_pause(&mut node.metadata);
    node.spec = node.spec.take().map(|spec| NodeSpec {
        provider_id: spec.provider_id,
        taints: spec.taints,
        ..Default::default()
    });
    let complaint = networkless(node).is_some();
    node.status = node.status.take().map(|status| NodeStatus {
        conditions: status
            .conditions
            .map(|all| all.into_iter().filter(|one| one.type_ == "Ready").collect())
            .filter(|_| complaint),
        allocatable: status.allocatable.map(|mut all| {
            all.retain(|resource, _| resource == "pods");
            all
        }),
        node_info: status
            .node_info
            .map(|info| NodeSystemInfo { boot_id: info.boot_id, ..Default::default() }),
        ..Default::default()
    });
}

/// Leaves out the longest parts, which only people and the agent read, and keeps of each holder only its
/// address and UID.
pub fn strip_allocation(allocation: &mut NodeIPAllocation) {
    allocation.metadata.managed_fields = None;
    if let Some(annotations) = &mut allocation.metadata.annotations {
        annotations.retain(|name, _| name == names::GONE || name == names::RELEASE);
    }
    if let Some(status) = &mut allocation.status {
        status.leases.clear();
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
    pool.metadata.managed_fields = None;
    keep_pause(&mut pool.metadata);
}

pub fn node_digest(node: &Node) -> u64 {
    digest((
        &node.metadata.uid,
        &node.metadata.labels,
        provider_id(node),
        boot_id(node),
        pods_allowed(node),
        is_tainted_full(node),
        networkless(node),
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
            [names::GONE, names::RELEASE].map(|name| allocation.annotations().get(name)),
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

/// Empty if the Node has none.
pub fn provider_id(node: &Node) -> &str {
    node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).unwrap_or_default()
}

/// The boot the kubelet reports from; empty before its first report.
pub fn boot_id(node: &Node) -> &str {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.map(|info| info.boot_id.as_str()).unwrap_or_default()
}

/// Whether both are of one machine, and of one boot of it.
pub fn is_same_machine(one: &Node, other: &Node) -> bool {
    let of = |node| (provider_id(node).to_owned(), boot_id(node).to_owned());
    one.metadata.uid == other.metadata.uid && of(one) == of(other)
}

/// The kubelet's pod limit; `None` before its first report.
pub fn pods_allowed(node: &Node) -> Option<u32> {
    count(&node.status.as_ref()?.allocatable.as_ref()?.get("pods")?.0)
}

/// A whole number as Kubernetes writes quantities: 1000 pods are `1k`.
fn count(quantity: &str) -> Option<u32> {
    let (digits, unit) = match quantity.strip_suffix('k') {
        Some(digits) => (digits, 1000),
        None => (quantity, 1),
    };
    digits.parse::<u32>().ok()?.checked_mul(unit)
}

/// The kubelet's report of a runtime that finds no network plugin to start pods with; `None` if it finds one.
pub fn networkless(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|one| one.type_ == "Ready" && one.status == "False")?;
    ready.message.as_deref().filter(|message| message.contains("NetworkPluginNotReady"))
}

pub fn is_tainted_full(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == names::FULL_TAINT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(heartbeat: &str, boot: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}, "resourceVersion": heartbeat},
            "spec": {"providerID": "azure:///x", "podCIDR": "10.0.0.0/24"},
            "status": {
                "allocatable": {"pods": "110", "cpu": "4"},
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}],
                "nodeInfo": {"bootID": boot, "kernelVersion": "6.1", "architecture": "", "containerRuntimeVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}
            }
        }))
        .unwrap()
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
        let node = |annotations: &serde_json::Value| -> (u64, Vec<String>) {
            let mut node = node("2026-01-01T00:00:00Z", "b1");
            node.metadata.annotations = serde_json::from_value(annotations.clone()).unwrap();
            strip_node(&mut node);
            (node_digest(&node), node.annotations().values().cloned().collect())
        };
        let pool = |annotations: &serde_json::Value| -> (u64, Vec<String>) {
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
    fn a_thousand_pods_are_written_with_a_unit() {
        let counts = ["110", "1k", "1500", "2k", "", "k", "5000000k"].map(count);
        assert_eq!(counts, [Some(110), Some(1000), Some(1500), Some(2000), None, None, None]);
    }

    #[test]
    fn a_runtime_without_a_network_is_kept_and_is_news_and_nothing_else_of_ready_is() {
        let seen = |message: &str| {
            let mut node = node("2026-01-01T00:00:00Z", "b1");
            let ready =
                json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": message});
            node.status.as_mut().unwrap().conditions = Some(vec![serde_json::from_value(ready).unwrap()]);
            let digest = node_digest(&node);
            strip_node(&mut node);
            assert_eq!(digest, node_digest(&node));
            (networkless(&node).map(str::to_owned), digest)
        };
        let complaint =
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:x";
        let ((without, news), (other, none)) = (seen(complaint), seen("PLEG is not healthy"));
        assert_eq!((without.as_deref(), other), (Some(complaint), None));
        assert_ne!(news, none);
        assert_eq!(none, node_digest(&node("2026-01-01T00:00:10Z", "b1")));
    }

    #[test]
    fn stripping_a_node_leaves_the_fields_of_decisions() {
        let (full, mut stripped) = (node("2026-01-01T00:00:00Z", "b1"), node("2026-01-01T00:00:00Z", "b1"));
        strip_node(&mut stripped);
        assert_eq!(node_digest(&full), node_digest(&stripped));
        assert_eq!(
            (provider_id(&stripped), boot_id(&stripped), pods_allowed(&stripped)),
            ("azure:///x", "b1", Some(110))
        );
        assert_eq!(stripped.status.unwrap().conditions, None);
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
    fn the_annotation_that_confirms_that_nothing_is_left_is_kept_and_is_news() {
        let object = |annotations: serde_json::Value| -> NodeIPAllocation {
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "n", "annotations": annotations },
                "spec": { "nodeUID": "u", "pool": "p", "cooldown": "30s" }
            }))
            .unwrap()
        };
        let mut annotated = object(serde_json::json!({ names::GONE: "true", "other/one": "long" }));
        strip_allocation(&mut annotated);
        let kept: Vec<_> = annotated.annotations().iter().collect();
        assert_eq!(kept, [(&names::GONE.to_owned(), &"true".to_owned())]);
        assert_ne!(allocation_digest(&annotated), allocation_digest(&object(serde_json::json!({}))));
    }
}
