//! Nodes that are left alone. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1;
use kube::ResourceExt;
use kube::core::SelectorExt;
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::reason::Reason;

use crate::node_object::Node;

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
    /// Whether no image is for a Node with this label. The kubelet labels each Node; one without the label
    /// may be served.
    fn lack(&self, architecture: Option<&str>) -> bool {
        !self.0.is_empty() && architecture.is_some_and(|one| self.0.iter().all(|known| known != one))
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
    pub const ALL: [Cause; 3] = [Cause::Windows, Cause::Architecture, Cause::Virtual];

    pub fn reason(self) -> Reason {
        match self {
            Cause::Windows => Reason::WindowsNodes,
            Cause::Architecture => Reason::ForeignArchitecture,
            Cause::Virtual => Reason::VirtualNodes,
        }
    }

    /// What is the matter with these nodes.
    pub fn sentence(self, architectures: &Architectures, nodes: &str) -> String {
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
pub fn cause(node: &Node, architectures: &Architectures) -> Option<Cause> {
    by_marks(|label| node.labels().get(label), |taint| node.has_taint(taint), architectures)
}

/// The same of a Node that was read as a whole.
pub fn cause_of_whole(node: &v1::Node, architectures: &Architectures) -> Option<Cause> {
    let taints = || node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let label = |name: &str| node.labels().get(name).map(String::as_str);
    by_marks(label, |key| taints().any(|taint| taint.key == key), architectures)
}

/// By the value of each label and by the keys of taints. Virtual nodes are known as Azure's and others'
/// virtual kubelets mark them: by a label, a taint, or both. A cause that no image would end comes first.
fn by_marks<'a>(
    label: impl Fn(&str) -> Option<&'a str>,
    has_taint: impl Fn(&str) -> bool,
    architectures: &Architectures,
) -> Option<Cause> {
    if label("type") == Some("virtual-kubelet") || has_taint("virtual-kubelet.io/provider") {
        return Some(Cause::Virtual);
    }
    if label("kubernetes.io/os") == Some("windows") {
        return Some(Cause::Windows);
    }
    architectures.lack(label("kubernetes.io/arch")).then_some(Cause::Architecture)
}

/// Whether a Node is left alone, whatever architectures there are images for.
pub fn is_never_served(node: &Node) -> bool {
    cause(node, &Architectures::default()).is_some()
}

/// Whether a pool's selector takes in a Node.
pub fn selects(pool: &NodeIPPool, node: &Node) -> bool {
    pool.spec.selector().is_ok_and(|selector| selector.matches(&node.labels().to_map()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn labelled(name: &str, labels: Value) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
    }

    fn images_for(names: &[&str]) -> Architectures {
        names.iter().map(|name| (*name).to_owned()).collect()
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
}
