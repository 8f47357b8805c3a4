//! A Node, decoded as far as decisions read it: the API server sends twenty times as much.

mod labels;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;
use vnetpool_crds::names;

pub use labels::{Labels, Shared};

/// A Node, with equal labels shared between Nodes once [`Node::share`] was called.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Resource)]
#[resource(inherit = v1::Node)]
#[serde(from = "Sent")]
pub struct Node {
    /// The name, the UID, the version, the deletion and the annotation that pauses the node, but no labels.
    pub metadata: ObjectMeta,
    labels: Labels,
    /// Their keys.
    taints: Box<[Box<str>]>,
    provider_id: Box<str>,
    boot_id: Box<str>,
    pods_allowed: Option<u32>,
    networkless: Option<Box<str>>,
}

impl Node {
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Whether there is a taint of this key.
    pub fn has_taint(&self, key: &str) -> bool {
        self.taints.iter().any(|taint| **taint == *key)
    }

    /// Empty if the Node has none.
    pub fn provider_id(&self) -> &str {
        &self.provider_id
    }

    /// The boot the kubelet reports from; empty before its first report.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The kubelet's pod limit; `None` before its first report.
    pub fn pods_allowed(&self) -> Option<u32> {
        self.pods_allowed
    }

    /// The kubelet's report of a runtime that finds no network plugin to start pods with; `None` if it finds
    /// one.
    pub fn networkless(&self) -> Option<&str> {
        self.networkless.as_deref()
    }

    /// Whether both are of one machine, and of one boot of it.
    pub fn is_same_machine(&self, other: &Node) -> bool {
        self.metadata.uid == other.metadata.uid
            && self.provider_id == other.provider_id
            && self.boot_id == other.boot_id
    }

    /// Shares its labels with the Nodes before it.
    pub fn share(&mut self, shared: &mut Shared) {
        shared.share(&mut self.labels);
    }
}

/// What is read of the API server's object. A field of another type makes the Node one that can't be read.
#[derive(Deserialize)]
struct Sent {
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<Labels>,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(rename = "providerID")]
    provider_id: Option<Box<str>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize)]
struct Taint {
    key: Box<str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    allocatable: Option<Allocatable>,
    conditions: Option<Vec<Condition>>,
    node_info: Option<NodeInfo>,
}

#[derive(Deserialize)]
struct Allocatable {
    pods: Option<Quantity>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    message: Option<Box<str>>,
}

#[derive(Deserialize)]
struct NodeInfo {
    #[serde(rename = "bootID")]
    boot_id: Option<Box<str>>,
}

impl From<Sent> for Node {
    fn from(Sent { metadata, spec, status }: Sent) -> Node {
        let Metadata { name, uid, resource_version, deletion_timestamp, mut annotations, labels } =
            metadata.unwrap_or_default();
        if let Some(annotations) = &mut annotations {
            annotations.retain(|name, _| name == names::PAUSED);
        }
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        Node {
            metadata: ObjectMeta {
                name,
                uid,
                resource_version,
                deletion_timestamp,
                annotations: annotations.filter(|all| !all.is_empty()),
                ..ObjectMeta::default()
            },
            labels: labels.unwrap_or_default(),
            taints: spec.taints.into_iter().flatten().map(|taint| taint.key).collect(),
            provider_id: spec.provider_id.unwrap_or_default(),
            boot_id: status.node_info.and_then(|info| info.boot_id).unwrap_or_default(),
            pods_allowed: status.allocatable.and_then(|all| count(&all.pods?.0)),
            networkless: complaint(status.conditions.unwrap_or_default()),
        }
    }
}

/// A whole number as Kubernetes writes quantities: 1000 pods are `1k`.
fn count(quantity: &str) -> Option<u32> {
    let (digits, unit) = match quantity.strip_suffix('k') {
        Some(digits) => (digits, 1000),
        None => (quantity, 1),
    };
    digits.parse::<u32>().ok()?.checked_mul(unit)
}

/// What the kubelet says of a runtime without a network.
fn complaint(conditions: Vec<Condition>) -> Option<Box<str>> {
    let ready = conditions.into_iter().find(|one| one.type_ == "Ready" && one.status == "False")?;
    ready.message.filter(|message| message.contains("NetworkPluginNotReady"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::ResourceExt;
    use serde_json::{Value, json};

    fn read(sent: Value) -> Node {
        serde_json::from_value(sent).unwrap()
    }

    #[test]
    fn each_field_of_a_node_that_a_decision_reads_is_decoded_and_no_other() {
        let node = read(json!({
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "3", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"a": "b", "c": "d"}, "annotations": {"vnetpool.io/paused": "incident 7", "other": "x"},
                "finalizers": ["f"], "managedFields": [5]},
            "spec": {"providerID": "azure:///x", "podCIDR": 5, "taints": [{"key": "t", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"pods": "110", "cpu": 4}, "images": [5], "nodeInfo": {"bootID": "b1", "kernelVersion": 6}}
        }));
        let expected = ObjectMeta {
            name: Some("n".into()),
            uid: Some("u".into()),
            resource_version: Some("3".into()),
            deletion_timestamp: Some(Time("2026-01-01T00:00:00Z".parse().unwrap())),
            annotations: Some(BTreeMap::from([("vnetpool.io/paused".into(), "incident 7".into())])),
            ..ObjectMeta::default()
        };
        assert_eq!(node.metadata, expected);
        let labels = [("a", "b"), ("c", "d")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(node.labels().to_map(), BTreeMap::from(labels));
        assert_eq!((node.has_taint("t"), node.has_taint("NoSchedule")), (true, false));
        assert_eq!(
            (node.provider_id(), node.boot_id(), node.pods_allowed()),
            ("azure:///x", "b1", Some(110))
        );
        assert_eq!(node.networkless(), None);
    }

    #[test]
    fn a_node_that_its_kubelet_has_not_reported_of_yet_can_be_read() {
        let empty =
            json!({"metadata": {"name": "n", "labels": null}, "spec": null, "status": {"nodeInfo": null}});
        let named = read(json!({"metadata": {"name": "n"}}));
        assert_eq!((read(empty), named.name_any().as_str()), (named.clone(), "n"));
        assert_eq!((named.provider_id(), named.boot_id(), named.pods_allowed()), ("", "", None));
    }

    #[test]
    fn a_thousand_pods_are_written_with_a_unit() {
        let counts = ["110", "1k", "1500", "2k", "", "k", "5000000k"].map(count);
        assert_eq!(counts, [Some(110), Some(1000), Some(1500), Some(2000), None, None, None]);
    }
}
