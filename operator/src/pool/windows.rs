//! The condition `NodesSupported`: which of a pool's nodes are left alone because they run Windows. Pure.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::SelectorExt;
use vnetpool_crds::condition::{self, NODES_SUPPORTED};
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};

use super::NAMED;
use crate::verdict::{Verdict, name_some};

/// Whether a Node runs Windows. There is no agent for it, so nothing is reserved for it and nothing of it is changed.
pub fn runs_windows(node: &Node) -> bool {
    node.labels().get("kubernetes.io/os").is_some_and(|os| os == "windows")
}

/// Whether a pool's selector takes in a Node.
pub fn selects(pool: &NodeIPPool, node: &Node) -> bool {
    pool.spec.selector().is_ok_and(|selector| selector.matches(node.labels()))
}

/// Names in the status the nodes among these that the pool selects and that run Windows.
pub fn tell<'a>(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    nodes: impl Iterator<Item = &'a Node>,
    now: Timestamp,
) {
    let left_alone = nodes.filter(|node| runs_windows(node) && selects(pool, node));
    let mut names: Vec<String> = left_alone.map(|node| node.name_any()).collect();
    names.sort();
    let verdict = match names.len() {
        0 => Verdict::yes("Supported", "no node that the pool selects runs Windows"),
        count => {
            let named = name_some(names.into_iter(), NAMED);
            let message = format!(
                "{count} nodes run Windows and are left alone, since Vnetpool has no agent for it: {named}. Their pods need \
                 another network plugin; nodeSelector {{matchLabels: {{kubernetes.io/os: linux}}}} keeps them out of this pool."
            );
            Verdict::no("WindowsNodes", message)
        }
    };
    let next = verdict.condition(NODES_SUPPORTED, pool.metadata.generation, now);
    condition::set(&mut status.conditions, next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, os: &str) -> Node {
        let labels = json!({ "kubernetes.io/os": os });
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
    }

    fn told(spec: Value, nodes: &[Node]) -> (String, String) {
        let pool = NodeIPPool::new("p", serde_json::from_value(spec).unwrap());
        let mut status = NodeIPPoolStatus::default();
        tell(&pool, &mut status, nodes.iter(), Timestamp::UNIX_EPOCH);
        let said = condition::find(&status.conditions, NODES_SUPPORTED).unwrap();
        (said.reason.clone(), said.message.clone())
    }

    #[test]
    fn windows_nodes_that_a_pool_selects_are_named() {
        let nodes = [node("l1", "linux"), node("w2", "windows"), node("w1", "windows")];
        let (reason, message) = told(json!({}), &nodes);
        assert_eq!(reason, "WindowsNodes");
        assert!(message.starts_with("2 nodes run Windows") && message.contains("w1, w2"), "{message}");
        assert!(!message.contains("l1"), "{message}");
    }

    #[test]
    fn a_pool_that_selects_none_says_so() {
        let nodes = [node("w1", "windows"), node("l1", "linux")];
        let linux = json!({ "nodeSelector": { "matchLabels": { "kubernetes.io/os": "linux" } } });
        assert_eq!(told(linux, &nodes).0, "Supported");
    }
}
