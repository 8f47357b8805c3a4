//! Properties of a pod. Pure.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// The node a pod is bound to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Its addresses, as its kubelet reports them.
pub fn addresses_of(pod: &Pod) -> Vec<&str> {
    let all = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    all.map(|one| one.ip.as_str()).collect()
}

/// As people name it.
pub fn full_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}
