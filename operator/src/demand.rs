//! Which pods of each node need an address, kept from the watch on Pods. Pure: `now` is an argument.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;

/// Pods by node, as UIDs only: what a cluster of 5,000 nodes needs of its pods fits in some ten megabytes.
///
/// No question about one node is answered by a scan over all pods.
#[derive(Debug, Default)]
pub struct Demand {
    nodes: HashMap<String, Bound>,
    /// Where each counted pod is: a deleted pod's event may no longer tell.
    pods: HashMap<String, String>,
    /// What a list that is under way has shown so far: a pod that isn't in it went while we didn't watch.
    listed: Option<HashSet<String>>,
}

#[derive(Debug)]
struct Bound {
    pods: HashSet<String>,
    changed: Instant,
}

impl Demand {
    /// Takes in one event and gives the nodes whose demand it changed.
    pub fn apply(&mut self, event: &Event<Pod>, now: Instant) -> Vec<String> {
        match event {
            Event::Init => {
                self.listed = Some(HashSet::new());
                vec![]
            }
            Event::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed, &pod.metadata.uid) {
                    listed.insert(uid.clone());
                }
                self.see(pod, needs_address(pod), now)
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                gone.iter()
                    .filter_map(|uid| self.leave(uid, now))
                    .collect::<HashSet<_>>()
                    .into_iter()
                    .collect()
            }
            Event::Apply(pod) => self.see(pod, needs_address(pod), now),
            Event::Delete(pod) => self.see(pod, false, now),
        }
    }

    /// Pods bound to the node that need an address, and since when they are these.
    pub fn bound(&self, node: &str) -> (u32, Option<Instant>) {
        self.nodes.get(node).map_or((0, None), |bound| (bound.pods.len() as u32, Some(bound.changed)))
    }

    fn see(&mut self, pod: &Pod, needs: bool, now: Instant) -> Vec<String> {
        let (Some(uid), Some(node)) =
            (&pod.metadata.uid, pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()))
        else {
            return vec![];
        };
        match (needs, self.pods.contains_key(uid)) {
            (true, false) => {
                self.pods.insert(uid.clone(), node.clone());
                let bound = self
                    .nodes
                    .entry(node.clone())
                    .or_insert_with(|| Bound { pods: HashSet::new(), changed: now });
                bound.pods.insert(uid.clone());
                bound.changed = now;
                vec![node.clone()]
            }
            (false, true) => self.leave(uid, now).into_iter().collect(),
            // A pod never moves to another node.
            (true, true) | (false, false) => vec![],
        }
    }

    fn leave(&mut self, uid: &str, now: Instant) -> Option<String> {
        let node = self.pods.remove(uid)?;
        if let Some(bound) = self.nodes.get_mut(&node) {
            bound.pods.remove(uid);
            bound.changed = now;
        }
        Some(node)
    }

    /// Drops what is known of a node that is gone. One that lives is kept without pods, too: `changed` still matters.
    pub fn forget(&mut self, node: &str) {
        if self.nodes.get(node).is_some_and(|bound| bound.pods.is_empty()) {
            self.nodes.remove(node);
        }
    }
}

/// A pod on the host network has the node's address, and one that ran to its end has none any more.
fn needs_address(pod: &Pod) -> bool {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !host_network && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Leaves of a pod what [`Demand`] looks at, before it is stored or queued anywhere.
pub fn strip(pod: &mut Pod) {
    pod.metadata = kube::api::ObjectMeta {
        name: pod.metadata.name.take(),
        namespace: pod.metadata.namespace.take(),
        uid: pod.metadata.uid.take(),
        resource_version: pod.metadata.resource_version.take(),
        ..Default::default()
    };
    pod.spec = pod.spec.take().map(|spec| k8s_openapi::api::core::v1::PodSpec {
        node_name: spec.node_name,
        host_network: spec.host_network,
        ..Default::default()
    });
    pod.status = pod
        .status
        .take()
        .map(|status| k8s_openapi::api::core::v1::PodStatus { phase: status.phase, ..Default::default() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn pod(uid: &str, node: &str) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": uid}, "spec": {"nodeName": node, "containers": []}}),
        )
        .unwrap()
    }

    fn with(mut pod: Pod, host_network: bool, phase: &str) -> Pod {
        pod.spec.as_mut().unwrap().host_network = Some(host_network);
        pod.status.get_or_insert_default().phase = Some(phase.into());
        pod
    }

    #[test]
    fn a_bound_pod_is_counted_once_however_often_it_is_seen() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        assert_eq!(demand.apply(&Event::Apply(pod("a", "n")), start), ["n"]);
        let later = start + Duration::from_secs(1);
        assert!(demand.apply(&Event::Apply(with(pod("a", "n"), false, "Running")), later).is_empty());
        assert_eq!(demand.bound("n"), (1, Some(start)));
    }

    #[test]
    fn pods_on_the_host_network_and_finished_pods_need_no_address() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        assert!(demand.apply(&Event::Apply(with(pod("a", "n"), true, "Running")), now).is_empty());
        demand.apply(&Event::Apply(pod("b", "n")), now);
        assert_eq!(demand.apply(&Event::Apply(with(pod("b", "n"), false, "Succeeded")), now), ["n"]);
        assert_eq!(demand.bound("n").0, 0);
    }

    #[test]
    fn a_deleted_pod_needs_no_address_and_breaks_the_stillness() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        demand.apply(&Event::Apply(pod("a", "n")), start);
        let later = start + Duration::from_secs(1);
        assert_eq!(demand.apply(&Event::Delete(pod("a", "n")), later), ["n"]);
        assert_eq!(demand.bound("n"), (0, Some(later)));
    }

    #[test]
    fn a_pod_that_went_while_the_watch_was_down_is_noticed_by_the_next_list() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        demand.apply(&Event::Apply(pod("a", "n")), now);
        demand.apply(&Event::Apply(pod("b", "m")), now);
        demand.apply(&Event::Init, now);
        demand.apply(&Event::InitApply(pod("b", "m")), now);
        assert_eq!(demand.apply(&Event::InitDone, now), ["n"]);
        assert_eq!((demand.bound("n").0, demand.bound("m").0), (0, 1));
    }

    #[test]
    fn what_stripping_leaves_is_enough() {
        let mut stripped = with(pod("a", "n"), true, "Running");
        strip(&mut stripped);
        assert!(!needs_address(&stripped));
        let mut stripped = pod("a", "n");
        strip(&mut stripped);
        assert_eq!(Demand::default().apply(&Event::Apply(stripped), Instant::now()), ["n"]);
    }
}
