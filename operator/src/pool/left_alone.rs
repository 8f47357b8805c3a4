//! Nodes that are left alone, and the condition `NodesSupported` that names them. Pure.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::SelectorExt;
use vnetpool_crds::condition::{self, NODES_SUPPORTED};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};

use super::NAMED;

/// Why a Node is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is no agent for Windows.
    Windows,
    /// A virtual kubelet runs its pods elsewhere: there is no machine with a NIC, and no place for an agent.
    Virtual,
}

/// Why nothing is reserved for a Node and nothing of it is changed; `None`: it is served like any other.
/// Virtual nodes are known as Azure's and others' virtual kubelets mark them: by a label, a taint, or both.
pub fn cause(node: &Node) -> Option<Cause> {
    let has = |label: &str, value: &str| node.labels().get(label).is_some_and(|one| one == value);
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    if has("type", "virtual-kubelet")
        || taints.into_iter().any(|taint| taint.key == "virtual-kubelet.io/provider")
    {
        return Some(Cause::Virtual);
    }
    has("kubernetes.io/os", "windows").then_some(Cause::Windows)
}

/// Whether a Node is left alone.
pub fn is_left_alone(node: &Node) -> bool {
    cause(node).is_some()
}

/// Whether a pool's selector takes in a Node.
pub fn selects(pool: &NodeIPPool, node: &Node) -> bool {
    pool.spec.selector().is_ok_and(|selector| selector.matches(node.labels()))
}

/// Names in the status the nodes among these that the pool selects and that are left alone.
pub fn tell<'a>(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    nodes: impl Iterator<Item = &'a Node>,
    now: Timestamp,
) {
    let (mut windows, mut virtuals) = (vec![], vec![]);
    for node in nodes.filter(|node| selects(pool, node)) {
        match cause(node) {
            Some(Cause::Windows) => windows.push(node.name_any()),
            Some(Cause::Virtual) => virtuals.push(node.name_any()),
            None => {}
        }
    }
    let said = |names: &mut Vec<String>, what: &str| {
        names.sort();
        let named = name_some(std::mem::take(names).into_iter(), NAMED);
        (!named.is_empty()).then(|| format!("{what}: {named}."))
    };
    let reason = if windows.is_empty() { Reason::VirtualNodes } else { Reason::WindowsNodes };
    let windows = said(&mut windows, "Vnetpool has no agent for Windows and leaves these nodes alone");
    let virtuals = said(&mut virtuals, "Virtual nodes have no NIC and are left alone");
    let all: Vec<String> = [windows, virtuals].into_iter().flatten().collect();
    let verdict = match all.is_empty() {
        true => Verdict::yes(Reason::Supported, "every node that the pool selects can be served"),
        false => {
            let remedy = "A nodeSelector that leaves them out keeps them from this list.";
            Verdict::no(reason, format!("{} {remedy}", all.join(" ")))
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
        assert!(message.contains("Windows") && message.contains(": w1, w2."), "{message}");
        assert!(!message.contains("l1"), "{message}");
    }

    #[test]
    fn virtual_nodes_are_known_by_their_label_or_taint_and_named() {
        let labelled = json!({ "metadata": { "name": "aci", "labels": { "type": "virtual-kubelet" } } });
        let tainted = json!({ "metadata": { "name": "other" }, "spec": { "taints": [
            { "key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule" }] } });
        let nodes = [labelled, tainted].map(|node| serde_json::from_value(node).unwrap());
        assert_eq!(nodes.each_ref().map(cause), [Some(Cause::Virtual); 2]);
        let (reason, message) = told(json!({}), &nodes);
        assert_eq!(reason, "VirtualNodes");
        assert!(message.contains(": aci, other."), "{message}");
    }

    #[test]
    fn windows_and_virtual_nodes_are_named_each_for_its_cause() {
        let label = json!({ "metadata": { "name": "aci", "labels": { "type": "virtual-kubelet" } } });
        let nodes = [serde_json::from_value(label).unwrap(), node("w1", "windows"), node("l1", "linux")];
        let (reason, message) = told(json!({}), &nodes);
        assert_eq!(reason, "WindowsNodes");
        assert!(message.contains("Windows and leaves these nodes alone: w1."), "{message}");
        assert!(message.contains("are left alone: aci."), "{message}");
    }

    #[test]
    fn a_pool_that_selects_none_says_so() {
        let nodes = [node("w1", "windows"), node("l1", "linux")];
        let linux = json!({ "nodeSelector": { "matchLabels": { "kubernetes.io/os": "linux" } } });
        assert_eq!(told(linux, &nodes).0, "Supported");
    }
}
