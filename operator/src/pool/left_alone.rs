//! The condition `NodesSupported` of a pool, which names the nodes that are left alone. Pure.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::condition::{self, NODES_SUPPORTED};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};

use super::NAMED;
use crate::left_alone::{Architectures, Cause, cause, selects};
use crate::node_object::Node;

/// Names in the status the nodes among these that the pool selects and that are left alone.
pub fn report<'a>(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    nodes: impl Iterator<Item = &'a Node>,
    architectures: &Architectures,
    now: Timestamp,
) {
    let selected = nodes.filter(|node| selects(pool, node));
    let mut alone: Vec<(String, Cause)> =
        selected.filter_map(|node| Some((node.name_any(), cause(node, architectures)?))).collect();
    alone.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (mut reason, mut sentences) = (None, vec![]);
    for kind in Cause::ALL {
        let names = alone.iter().filter(|(_, cause)| *cause == kind).map(|(name, _)| name.clone());
        let names: Vec<String> = names.collect();
        if !names.is_empty() {
            reason.get_or_insert(kind.reason());
            sentences.push(kind.sentence(architectures, &name_some(names.into_iter(), NAMED)));
        }
    }
    let verdict = match reason {
        None => Verdict::yes(Reason::Supported, "every node that the pool selects can be served"),
        Some(reason) => {
            let remedy = "A nodeSelector that leaves them out keeps them from this list.";
            Verdict::no(reason, format!("{} {remedy}", sentences.join(" ")))
        }
    };
    let next = verdict.condition(NODES_SUPPORTED, pool.metadata.generation, now);
    condition::set(&mut status.conditions, next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::left_alone::is_never_served;
    use serde_json::{Value, json};

    fn node(name: &str, os: &str) -> Node {
        labelled(name, json!({ "kubernetes.io/os": os, "kubernetes.io/arch": "amd64" }))
    }

    fn labelled(name: &str, labels: Value) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
    }

    fn images_for(names: &[&str]) -> Architectures {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn reported(spec: Value, nodes: &[Node]) -> (String, String) {
        let pool = NodeIPPool::new("p", serde_json::from_value(spec).unwrap());
        let mut status = NodeIPPoolStatus::default();
        report(&pool, &mut status, nodes.iter(), &images_for(&["amd64"]), Timestamp::UNIX_EPOCH);
        let condition = condition::find(&status.conditions, NODES_SUPPORTED).unwrap();
        (condition.reason.clone(), condition.message.clone())
    }

    #[test]
    fn windows_nodes_that_a_pool_selects_are_named() {
        let nodes = [node("l1", "linux"), node("w2", "windows"), node("w1", "windows")];
        let (reason, message) = reported(json!({}), &nodes);
        assert_eq!(reason, "WindowsNodes");
        assert!(message.contains("Windows") && message.contains(": w1, w2."), "{message}");
        assert!(!message.contains("l1"), "{message}");
    }

    #[test]
    fn virtual_nodes_are_known_by_their_label_or_taint_and_named() {
        let tainted = json!({ "metadata": { "name": "other" }, "spec": { "taints": [
            { "key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule" }] } });
        let nodes =
            [labelled("aci", json!({ "type": "virtual-kubelet" })), serde_json::from_value(tainted).unwrap()];
        assert!(nodes.iter().all(is_never_served));
        let (reason, message) = reported(json!({}), &nodes);
        assert_eq!(reason, "VirtualNodes");
        assert!(message.contains(": aci, other."), "{message}");
    }

    #[test]
    fn nodes_of_an_architecture_without_an_image_are_named_with_those_that_have_one() {
        let arm =
            |name| labelled(name, json!({ "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64" }));
        let (reason, message) = reported(json!({}), &[arm("a2"), node("l1", "linux"), arm("a1")]);
        assert_eq!(reason, "ForeignArchitecture");
        assert!(message.contains("images for amd64 (") && message.contains(": a1, a2."), "{message}");
    }

    #[test]
    fn nodes_of_several_causes_are_named_each_for_its_own() {
        let nodes = [
            labelled("aci", json!({ "type": "virtual-kubelet" })),
            node("w1", "windows"),
            node("l1", "linux"),
            labelled("arm", json!({ "kubernetes.io/arch": "arm64" })),
        ];
        let (reason, message) = reported(json!({}), &nodes);
        assert_eq!(reason, "WindowsNodes");
        assert!(message.contains("Windows and leaves these nodes alone: w1."), "{message}");
        assert!(message.contains("of other architectures are left alone: arm."), "{message}");
        assert!(message.contains("have no NIC and are left alone: aci."), "{message}");
        assert_eq!(reported(json!({}), &nodes[2..]).0, "ForeignArchitecture");
    }

    #[test]
    fn a_pool_without_unsupported_nodes_reports_supported() {
        let nodes = [node("w1", "windows"), node("l1", "linux")];
        let linux = json!({ "nodeSelector": { "matchLabels": { "kubernetes.io/os": "linux" } } });
        assert_eq!(reported(linux, &nodes).0, "Supported");
    }
}
