//! Which pods of each node need an address, and what they ask to have attached to it, kept from the watch on
//! Pods. Pure: `now` is an argument.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use vnetpool_apiserver::reading::{Reading, Unreadable};
use vnetpool_crds::names;

use crate::planner::attachments::Wish;

/// Pods by node, as UIDs only, but for the few that ask for attachments: what a cluster of 5,000 nodes needs
/// of its pods fits in some ten megabytes.
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
    /// What pods ask for, by UID; those that ask for nothing are left out.
    wishes: HashMap<String, Wish>,
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
                if let (Some(listed), Some(uid)) = (&mut self.listed, uid(pod)) {
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

    /// The UIDs of the pods bound to the node that need an address.
    pub fn pods(&self, node: &str) -> HashSet<String> {
        self.nodes.get(node).map(|bound| bound.pods.clone()).unwrap_or_default()
    }

    /// Pods bound to the node that need an address, and since when they are these.
    pub fn bound(&self, node: &str) -> (u32, Option<Instant>) {
        self.nodes.get(node).map_or((0, None), |bound| (bound.pods.len() as u32, Some(bound.changed)))
    }

    /// What the node's pods ask to have attached to their addresses, by UID.
    pub fn wishes(&self, node: &str) -> HashMap<String, Wish> {
        self.nodes.get(node).map(|bound| bound.wishes.clone()).unwrap_or_default()
    }

    fn see(&mut self, pod: &Pod, needs: bool, now: Instant) -> Vec<String> {
        let (Some(uid), Some(node)) = (uid(pod), pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()))
        else {
            return vec![];
        };
        match (needs, self.pods.contains_key(uid)) {
            (true, false) => {
                self.pods.insert(uid.clone(), node.clone());
                let bound = self.nodes.entry(node.clone()).or_insert_with(|| Bound {
                    pods: HashSet::new(),
                    changed: now,
                    wishes: HashMap::new(),
                });
                bound.pods.insert(uid.clone());
                bound.wishes.extend(wish(pod).map(|wish| (uid.clone(), wish)));
                bound.changed = now;
                vec![node.clone()]
            }
            (false, true) => self.leave(uid, now).into_iter().collect(),
            // A pod never moves to another node, but it may ask for something else.
            (true, true) => self.ask(uid, node, wish(pod)),
            (false, false) => vec![],
        }
    }

    fn ask(&mut self, uid: &str, node: &str, wish: Option<Wish>) -> Vec<String> {
        let Some(bound) = self.nodes.get_mut(node).filter(|bound| bound.wishes.get(uid) != wish.as_ref())
        else {
            return vec![];
        };
        match wish {
            Some(wish) => bound.wishes.insert(uid.to_owned(), wish),
            None => bound.wishes.remove(uid),
        };
        vec![node.to_owned()]
    }

    fn leave(&mut self, uid: &str, now: Instant) -> Option<String> {
        let node = self.pods.remove(uid)?;
        if let Some(bound) = self.nodes.get_mut(&node) {
            bound.pods.remove(uid);
            bound.wishes.remove(uid);
            bound.changed = now;
        }
        Some(node)
    }

    /// Drops what is known of a node that is gone. One that lives is kept without pods, too: `changed` still
    /// matters.
    pub fn forget(&mut self, node: &str) {
        if self.nodes.get(node).is_some_and(|bound| bound.pods.is_empty()) {
            self.nodes.remove(node);
        }
    }
}

/// The kubelet's mark of a pod that stands for a static one. Its value is that one's UID.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The UID under which the node knows the pod. A static pod has one that the kubelet made of its manifest;
/// the API server has a mirror of it, with a UID of its own that nobody on the node has heard of.
fn uid(pod: &Pod) -> Option<&String> {
    pod.annotations().get(MIRROR).or(pod.metadata.uid.as_ref())
}

/// A pod on the host network has the node's address, and one that ran to its end has none any more.
fn needs_address(pod: &Pod) -> bool {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !host_network && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// What the pod's annotations ask for; none if there are none of ours.
fn wish(pod: &Pod) -> Option<Wish> {
    let annotation = |name: &str| pod.annotations().get(name).cloned();
    let wish = Wish {
        pod: format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        backend_pools: annotation(names::BACKEND_POOLS),
        public_address: annotation(names::PUBLIC_ADDRESS),
        dns_label: annotation(names::DNS_LABEL),
        address: pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
    };
    let Wish { pod: _, backend_pools, public_address, dns_label, address: _ } = &wish;
    [backend_pools, public_address, dns_label].iter().any(|one| one.is_some()).then_some(wish)
}

/// Pods as [`Demand`] takes them, whatever comes. Of one that can't be read as a whole, the few fields that
/// matter are looked at one by one, and one that isn't what it should be counts as absent: then the pod needs
/// an address.
pub fn read(event: Event<Reading<Pod>>) -> Event<Pod> {
    let stripped = |Reading(pod): Reading<Pod>| {
        let mut pod = pod.unwrap_or_else(|unreadable| in_parts(&unreadable));
        strip(&mut pod);
        pod
    };
    match event {
        Event::Init => Event::Init,
        Event::InitApply(pod) => Event::InitApply(stripped(pod)),
        Event::InitDone => Event::InitDone,
        Event::Apply(pod) => Event::Apply(stripped(pod)),
        Event::Delete(pod) => Event::Delete(stripped(pod)),
    }
}

fn in_parts(pod: &Unreadable) -> Pod {
    let (spec, status) = (&pod.content["spec"], &pod.content["status"]);
    Pod {
        metadata: pod.metadata.clone(),
        spec: Some(PodSpec {
            node_name: spec["nodeName"].as_str().map(str::to_owned),
            host_network: spec["hostNetwork"].as_bool(),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: status["phase"].as_str().map(str::to_owned),
            pod_ip: status["podIP"].as_str().map(str::to_owned),
            ..PodStatus::default()
        }),
    }
}

/// Leaves of a pod what [`Demand`] looks at, before it is stored or queued anywhere.
fn strip(pod: &mut Pod) {
    pod.metadata = kube::api::ObjectMeta {
        name: pod.metadata.name.take(),
        namespace: pod.metadata.namespace.take(),
        uid: pod.metadata.uid.take(),
        resource_version: pod.metadata.resource_version.take(),
        annotations: pod.metadata.annotations.take().map(|mut all| {
            all.retain(|name, _| {
                [names::BACKEND_POOLS, names::PUBLIC_ADDRESS, names::DNS_LABEL, MIRROR]
                    .contains(&name.as_str())
            });
            all
        }),
        ..Default::default()
    };
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        host_network: spec.host_network,
        ..Default::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        ..Default::default()
    });
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
    fn a_pod_that_comes_to_ask_for_something_else_calls_its_node() {
        let asks = |pools: Option<&str>| {
            let mut pod = pod("a", "n");
            pod.metadata.annotations =
                pools.map(|pools| [(names::BACKEND_POOLS.to_owned(), pools.to_owned())].into());
            strip(&mut pod);
            Event::Apply(pod)
        };
        let (mut demand, now) = (Demand::default(), Instant::now());
        demand.apply(&asks(None), now);
        assert!(demand.wishes("n").is_empty());
        assert_eq!(demand.apply(&asks(Some("web")), now), ["n"]);
        assert_eq!(demand.wishes("n")["a"].backend_pools.as_deref(), Some("web"));
        assert!(demand.apply(&asks(Some("web")), now).is_empty());
        assert_eq!(demand.bound("n"), (1, Some(now)), "nothing was bound, so no burst goes on");
        demand.apply(&Event::Delete(pod("a", "n")), now);
        assert!(demand.wishes("n").is_empty());
    }

    #[test]
    fn a_static_pod_is_known_by_the_uid_that_its_node_gives_it() {
        let mut mirror = pod("of-the-mirror", "n");
        mirror.metadata.annotations = Some([(MIRROR.to_owned(), "of-the-manifest".to_owned())].into());
        strip(&mut mirror);
        let (mut demand, now) = (Demand::default(), Instant::now());
        demand.apply(&Event::Init, now);
        demand.apply(&Event::InitApply(mirror.clone()), now);
        demand.apply(&Event::InitDone, now);
        assert_eq!(demand.pods("n"), HashSet::from(["of-the-manifest".to_owned()]));
        demand.apply(&Event::Delete(mirror), now);
        assert!(demand.pods("n").is_empty());
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

    #[test]
    fn a_pod_that_can_not_be_read_as_a_whole_counts_by_what_can_be() {
        let pod = |spec: serde_json::Value, status: serde_json::Value| -> Event<Reading<Pod>> {
            let metadata = json!({"name": "a", "uid": "a", "annotations": {names::BACKEND_POOLS: "web"}});
            Event::Apply(
                serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status}))
                    .unwrap(),
            )
        };
        let mut demand = Demand::default();
        let now = Instant::now();
        let garbled =
            pod(json!({"nodeName": "n", "containers": 7, "hostNetwork": "no"}), json!({"phase": 3}));
        assert_eq!(demand.apply(&read(garbled), now), ["n"]);
        assert_eq!(demand.wishes("n")["a"].backend_pools.as_deref(), Some("web"));
        let ended = pod(json!({"nodeName": "n", "containers": 7}), json!({"phase": "Succeeded"}));
        assert_eq!(demand.apply(&read(ended), now), ["n"]);
        assert_eq!(demand.bound("n").0, 0);
    }
}
