//! The few fields of a pod that the operator reads, out of some ten kilobytes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1;
use kube::Resource;
use kube::api::ObjectMeta;
use kube::runtime::watcher::Event;
use serde::{Deserialize, Deserializer};
use vnetpool_apiserver::reading::{Reading, Unreadable};
use vnetpool_crds::names;

use super::uid::Uid;
use crate::planner::attachments::Wish;

/// A Pod, decoded as far as it is read here.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = v1::Pod)]
pub struct Decoded {
    #[serde(deserialize_with = "identity")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

/// Of the metadata, the pod's name and the annotations that are ours.
fn identity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let Metadata { name, namespace, uid, resource_version, mut annotations } =
        Metadata::deserialize(deserializer)?;
    if let Some(annotations) = &mut annotations {
        annotations.retain(|name, _| READ.contains(&name.as_str()));
    }
    Ok(ObjectMeta { name, namespace, uid, resource_version, annotations, ..ObjectMeta::default() })
}

/// The kubelet's mark of a pod that stands for a static one. Its value is the static pod's UID, a digest of
/// 32 hex digits. Any client may annotate a pod so; but a pod that the API server has made has a UUID with
/// hyphens, so the annotation can't name another client's pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The annotations that are read.
const READ: [&str; 4] = [names::BACKEND_POOLS, names::PUBLIC_ADDRESS, names::DNS_LABEL, MIRROR];

/// A pod bound to a node, as demand counts it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub uid: Uid,
    pub node: String,
    pub needs_address: bool,
    /// What it asks to have attached to its address, and the UID by which other sources name the pod.
    pub wish: Option<(String, Wish)>,
}

impl Pod {
    /// `None` of a pod that isn't bound to a node.
    fn of(mut pod: Decoded) -> Option<Pod> {
        // The UID under which the node knows the pod. The kubelet makes a static pod's UID from its manifest;
        // the API server has a mirror of the pod, whose own UID is unknown on the node.
        let mirrored = pod.metadata.annotations.as_mut().and_then(|all| all.remove(MIRROR));
        let uid = mirrored.filter(|uid| !uid.contains('-')).or_else(|| pod.metadata.uid.take())?;
        let Spec { node_name, host_network } = pod.spec;
        let needs_address = needs(host_network, pod.status.phase.as_deref());
        let address = pod.status.pod_ip.as_ref().and_then(|address| address.parse().ok());
        Some(Pod {
            uid: Uid::of(&uid),
            node: node_name?,
            needs_address,
            wish: wish(pod.metadata, address).map(|wish| (uid, wish)),
        })
    }
}

/// Whether a pod, read as a whole, needs an address.
pub fn needs_address(pod: &v1::Pod) -> bool {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network);
    needs(host_network, pod.status.as_ref().and_then(|status| status.phase.as_deref()))
}

/// A pod on the host network has the node's address, and one that ran to its end has none any more.
fn needs(host_network: Option<bool>, phase: Option<&str>) -> bool {
    !host_network.unwrap_or(false) && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// What the pod's annotations ask for; `None` if it has none of ours.
fn wish(metadata: ObjectMeta, address: Option<Ipv4Addr>) -> Option<Wish> {
    let ObjectMeta { name, namespace, annotations, .. } = metadata;
    let mut annotations = annotations.filter(|all| !all.is_empty())?;
    Some(Wish {
        pod: format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()),
        backend_pools: annotations.remove(names::BACKEND_POOLS),
        public_address: annotations.remove(names::PUBLIC_ADDRESS),
        dns_label: annotations.remove(names::DNS_LABEL),
        address,
    })
}

/// An event in the form that demand takes; `None` for a pod that isn't bound. If a pod can't be read as a
/// whole, its few fields that matter are read one by one, and a field with a wrong value counts as absent:
/// then the pod needs an address.
pub fn read(event: Event<Reading<Decoded>>) -> Option<Event<Pod>> {
    Some(match event {
        Event::Init => Event::Init,
        Event::InitApply(one) => Event::InitApply(read_one(one)?),
        Event::InitDone => Event::InitDone,
        Event::Apply(one) => Event::Apply(read_one(one)?),
        Event::Delete(one) => Event::Delete(read_one(one)?),
    })
}

pub fn read_one(Reading(pod): Reading<Decoded>) -> Option<Pod> {
    Pod::of(pod.unwrap_or_else(|unreadable| in_parts(*unreadable)))
}

fn in_parts(pod: Unreadable) -> Decoded {
    let Unreadable { mut metadata, content, .. } = pod;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| READ.contains(&name.as_str()));
    }
    let (spec, status) = (&content["spec"], &content["status"]);
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    Decoded {
        metadata,
        spec: Spec { node_name: text(&spec["nodeName"]), host_network: spec["hostNetwork"].as_bool() },
        status: Status { phase: text(&status["phase"]), pod_ip: text(&status["podIP"]) },
    }
}
