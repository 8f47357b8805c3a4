//! Nodes that are left alone, and the condition `NodesSupported` that names them. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::SelectorExt;
use vnetpool_crds::condition::{self, NODES_SUPPORTED};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};

use super::NAMED;

/// The architectures of nodes that there are images for, as the label `kubernetes.io/arch` names them. With
/// none of them known, any will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Architectures(Arc<[String]>);

impl FromIterator<String> for Architectures {
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> Self {
        // A variable that is set to nothing names none.
        Architectures(names.into_iter().filter(|name| !name.is_empty()).collect())
    }
}

impl Architectures {
    /// Whether no image is for the Node. The kubelet labels each Node; one without the label may be served.
    fn lack(&self, node: &Node) -> bool {
        let architecture = node.labels().get("kubernetes.io/arch");
        !self.0.is_empty() && architecture.is_some_and(|one| !self.0.contains(one))
    }
}

/// Why a Node is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is no agent for Windows.
    Windows,
    /// The agent's image is for other architectures, so no agent will take up what is reserved.
    Architecture,
    /// A virtual kubelet runs its pods elsewhere: there is no machine with a NIC, and no place for an agent.
    Virtual,
}

impl Cause {
    /// In the order in which a message names their nodes; the condition has the reason of the first.
    const ALL: [Cause; 3] = [Cause::Windows, Cause::Architecture, Cause::Virtual];

    fn reason(self) -> Reason {
        match self {
            Cause::Windows => Reason::WindowsNodes,
            Cause::Architecture => Reason::ForeignArchitecture,
            Cause::Virtual => Reason::VirtualNodes,
        }
    }

    /// What is the matter with these nodes.
    fn sentence(self, architectures: &Architectures, nodes: &str) -> String {
        match self {
            Cause::Windows => {
                format!("Vnetpool has no agent for Windows and leaves these nodes alone: {nodes}.")
            }
            Cause::Architecture => format!(
                "There are images for {} (value image.architectures of the chart), and nodes of other \
                 architectures are left alone: {nodes}.",
                architectures.0.join(" and ")
            ),
            Cause::Virtual => format!("Virtual nodes have no NIC and are left alone: {nodes}."),
        }
    }
}

/// Why nothing is reserved for a Node and nothing of it is changed; `None`: it is served like any other.
/// Virtual nodes are known as Azure's and others' virtual kubelets mark them: by a label, a taint, or both.
pub fn cause(node: &Node, architectures: &Architectures) -> Option<Cause> {
    let has = |label: &str, value: &str| node.labels().get(label).is_some_and(|one| one == value);
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    if has("type", "virtual-kubelet")
        || taints.into_iter().any(|taint| taint.key == "virtual-kubelet.io/provider")
    {
        return Some(Cause::Virtual);
    }
    if has("kubernetes.io/os", "windows") {
        return Some(Cause::Windows);
    }
    architectures.lack(node).then_some(Cause::Architecture)
}

/// Whether a Node is left alone, whatever architectures there are images for.
pub fn is_never_served(node: &Node) -> bool {
    cause(node, &Architectures::default()).is_some()
}

/// Whether a pool's selector takes in a Node.
pub fn selects(pool: &NodeIPPool, node: &Node) -> bool {
    pool.spec.selector().is_ok_and(|selector| selector.matches(node.labels()))
}

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
    fn a_node_is_served_if_an_image_is_for_its_architecture_or_none_is_known_to_be_missing() {
        let arm = labelled("a", json!({ "kubernetes.io/arch": "arm64" }));
        let of = |node: &Node, names: &[&str]| cause(node, &images_for(names));
        assert_eq!(of(&arm, &["amd64"]), Some(Cause::Architecture));
        assert_eq!(of(&arm, &["amd64", "arm64"]), None);
        // An operator that isn't told of its images, and a Node without the label.
        assert_eq!([of(&arm, &[]), of(&arm, &[""])], [None, None]);
        assert_eq!(of(&labelled("bare", json!({})), &["amd64"]), None);
        assert!(!is_never_served(&arm));
        // Another image would not help these.
        let windows = labelled("w", json!({ "kubernetes.io/os": "windows", "kubernetes.io/arch": "arm64" }));
        assert_eq!(of(&windows, &["amd64"]), Some(Cause::Windows));
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
