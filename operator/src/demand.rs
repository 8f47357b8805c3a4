//! Which pods of each node need an address, and what they ask to have attached to it, kept from the watch on
//! Pods. Pure: `now` is an argument.

mod calm;
pub mod pod;
mod uid;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::runtime::watcher::Event;

use crate::planner::attachments::Wish;
pub use calm::Calm;
use calm::News;
use pod::Pod;
pub use uid::Uid;

/// Pods by node, as UIDs only, but for the few that ask for attachments: some 80 bytes a pod.
///
/// No question about one node is answered by a scan over all pods.
#[derive(Debug, Default)]
pub struct BoundPods {
    nodes: HashMap<Arc<str>, Bound>,
    /// The node of each counted pod: a deleted pod's event may no longer name it.
    pods: HashMap<Uid, Arc<str>>,
    /// What a list that is under way has shown so far: a pod that isn't in it went while the watch was down.
    listed: Option<HashSet<Uid>>,
    /// When nodes without pods were forgotten last.
    swept: Option<Instant>,
    /// Nodes whose pods have changed in a way that is news to them once it has lasted, and until when that
    /// is: the same wait for all, so in their order.
    lasting: VecDeque<(Instant, Arc<str>)>,
}

/// So long a node without pods is remembered: longer than any wait for the end of a burst.
const KEPT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Bound {
    /// A node has too few for anything quicker.
    pods: Vec<Uid>,
    changed: Instant,
    /// What pods ask for, and the UIDs by which other sources name them; pods that ask for nothing are left
    /// out.
    wishes: HashMap<Uid, (String, Wish)>,
    /// As the node's last reconcile left it; `None` while one is under way.
    calm: Option<Calm>,
    /// The node is among those whose news has to last.
    is_lasting: bool,
}

impl Bound {
    /// What its present pods are to the node. A wish is news whoever has it.
    fn news(&self) -> News {
        match &self.calm {
            Some(calm) if self.wishes.is_empty() => calm.news(self.pods.len() as u32),
            _ => News::Now,
        }
    }
}

impl BoundPods {
    /// Takes in one event and gives the nodes to wake: those whose demand it changed, unless their last
    /// reconcile rules out that this is news.
    pub fn apply(&mut self, event: Event<Pod>, now: Instant) -> Vec<Arc<str>> {
        match event {
            Event::Init => {
                self.listed = Some(HashSet::new());
                vec![]
            }
            Event::InitApply(pod) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(pod.uid);
                }
                self.see(pod, now).into_iter().collect()
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<Uid> = self.pods.keys().filter(|uid| !listed.contains(*uid)).copied().collect();
                let nodes: HashSet<_> = gone.iter().filter_map(|uid| self.leave(uid, now)).collect();
                nodes.into_iter().collect()
            }
            Event::Apply(pod) => self.see(pod, now).into_iter().collect(),
            Event::Delete(pod) => self.leave(&pod.uid, now).into_iter().collect(),
        }
    }

    /// The UIDs of the pods bound to the node that need an address.
    pub fn pods(&self, node: &str) -> HashSet<Uid> {
        self.nodes.get(node).map(|bound| bound.pods.iter().copied().collect()).unwrap_or_default()
    }

    /// Pods bound to the node that need an address, and since when they are these.
    pub fn bound(&self, node: &str) -> (u32, Option<Instant>) {
        self.nodes.get(node).map_or((0, None), |bound| (bound.pods.len() as u32, Some(bound.changed)))
    }

    /// What the node's pods ask to have attached to their addresses, by UID.
    pub fn wishes(&self, node: &str) -> HashMap<String, Wish> {
        self.nodes.get(node).map(|bound| bound.wishes.values().cloned().collect()).unwrap_or_default()
    }

    fn see(&mut self, pod: Pod, now: Instant) -> Option<Arc<str>> {
        match (pod.needs_address, self.pods.get(&pod.uid)) {
            (true, None) => self.come(pod, now),
            (false, Some(_)) => self.leave(&pod.uid, now),
            // A pod never moves to another node, but its wish may change.
            (true, Some(node)) => {
                let node = node.clone();
                self.ask(&node, pod.uid, pod.wish).then_some(node)
            }
            (false, None) => None,
        }
    }

    fn come(&mut self, pod: Pod, now: Instant) -> Option<Arc<str>> {
        let known = self.nodes.get_key_value(pod.node.as_str());
        let node = known.map_or_else(|| Arc::from(pod.node), |(node, _)| node.clone());
        // Nodes come and go under ever new names, and pods may go after their node. Thousands may come at
        // once.
        let is_swept = self.swept.is_some_and(|last| now.duration_since(last) < KEPT);
        if !is_swept && !self.nodes.contains_key(&node) {
            self.swept = Some(now);
            self.nodes.retain(|_, bound| {
                !bound.pods.is_empty() || bound.is_lasting || now.duration_since(bound.changed) < KEPT
            });
        }
        let bound = self.nodes.entry(node.clone()).or_insert_with(|| Bound {
            pods: vec![],
            changed: now,
            wishes: HashMap::new(),
            calm: None,
            is_lasting: false,
        });
        bound.pods.push(pod.uid);
        bound.wishes.extend(pod.wish.map(|wish| (pod.uid, wish)));
        bound.changed = now;
        self.pods.insert(pod.uid, node.clone());
        self.changed(node, now)
    }

    /// Whether its wish has changed.
    fn ask(&mut self, node: &str, uid: Uid, wish: Option<(String, Wish)>) -> bool {
        let Some(bound) = self.nodes.get_mut(node) else { return false };
        let before = match &wish {
            Some(wish) => bound.wishes.insert(uid, wish.clone()),
            None => bound.wishes.remove(&uid),
        };
        before != wish
    }

    fn leave(&mut self, uid: &Uid, now: Instant) -> Option<Arc<str>> {
        let node = self.pods.remove(uid)?;
        let bound = self.nodes.get_mut(&node)?;
        bound.pods.retain(|one| one != uid);
        bound.changed = now;
        if bound.wishes.remove(uid).is_some() { Some(node) } else { self.changed(node, now) }
    }

    /// A pod has come to the node, or left it: gives the node if it is to be woken for that.
    fn changed(&mut self, node: Arc<str>, now: Instant) -> Option<Arc<str>> {
        let bound = self.nodes.get_mut(&node)?;
        match bound.news() {
            News::Nothing => None,
            News::Now => Some(node),
            News::IfItLasts => {
                if !std::mem::replace(&mut bound.is_lasting, true) {
                    self.lasting.push_back((now + calm::LASTING, node));
                }
                None
            }
        }
    }

    /// What a reconcile of the node that has ended rules out; `None`, as soon as the next begins: nothing.
    pub fn settle(&mut self, node: &str, calm: Option<Calm>) {
        if let Some(bound) = self.nodes.get_mut(node) {
            bound.calm = calm;
        }
    }

    /// The nodes to wake for what has lasted by now.
    pub fn lasted(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut woken = vec![];
        while let Some((_, node)) = self.lasting.pop_front_if(|(until, _)| *until <= now) {
            let Some(bound) = self.nodes.get_mut(&node) else { continue };
            bound.is_lasting = false;
            if bound.news() != News::Nothing {
                woken.push(node);
            }
        }
        woken
    }

    /// Whether a pod that the API server has listed is known, with its wish.
    pub fn shows(&self, pod: &Pod) -> bool {
        let asks =
            || self.nodes.get(pod.node.as_str()).is_some_and(|node| node.wishes.contains_key(&pod.uid));
        !pod.needs_address || self.pods.contains_key(&pod.uid) && (pod.wish.is_none() || asks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::ops::RangeInclusive;
    use vnetpool_apiserver::reading::Reading;
    use vnetpool_crds::names;

    /// As the API server sends it, read.
    fn decoded(mut pod: Value) -> Pod {
        pod["spec"]["containers"] =
            json!([{ "name": "c", "image": "i", "resources": { "limits": { "cpu": 1 } } }]);
        pod["metadata"]["managedFields"] = json!([{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }]);
        match pod::read(Event::Apply(serde_json::from_value(pod).unwrap())) {
            Some(Event::Apply(pod)) => pod,
            other => panic!("{other:?}"),
        }
    }

    fn pod(uid: &str, node: &str) -> Pod {
        decoded(json!({ "metadata": { "uid": uid }, "spec": { "nodeName": node } }))
    }

    fn with(uid: &str, node: &str, host_network: bool, phase: &str) -> Pod {
        let spec = json!({ "nodeName": node, "hostNetwork": host_network });
        decoded(json!({ "metadata": { "uid": uid }, "spec": spec, "status": { "phase": phase } }))
    }

    fn applied(demand: &mut BoundPods, event: Event<Pod>, now: Instant) -> Vec<String> {
        demand.apply(event, now).iter().map(|node| node.to_string()).collect()
    }

    fn uids(all: &[&str]) -> HashSet<Uid> {
        all.iter().map(|uid| Uid::of(uid)).collect()
    }

    #[test]
    fn a_bound_pod_is_counted_once_however_often_it_is_seen() {
        let (mut demand, start) = (BoundPods::default(), Instant::now());
        assert_eq!(applied(&mut demand, Event::Apply(pod("a", "n")), start), ["n"]);
        let later = start + Duration::from_secs(1);
        assert!(demand.apply(Event::Apply(with("a", "n", false, "Running")), later).is_empty());
        assert_eq!(demand.bound("n"), (1, Some(start)));
    }

    #[test]
    fn pods_on_the_host_network_and_finished_pods_need_no_address() {
        let (mut demand, now) = (BoundPods::default(), Instant::now());
        assert!(demand.apply(Event::Apply(with("a", "n", true, "Running")), now).is_empty());
        demand.apply(Event::Apply(pod("b", "n")), now);
        assert_eq!(applied(&mut demand, Event::Apply(with("b", "n", false, "Succeeded")), now), ["n"]);
        assert_eq!(demand.bound("n").0, 0);
    }

    #[test]
    fn a_deleted_pod_needs_no_address_and_breaks_the_stillness() {
        let (mut demand, start) = (BoundPods::default(), Instant::now());
        demand.apply(Event::Apply(pod("a", "n")), start);
        let later = start + Duration::from_secs(1);
        assert_eq!(applied(&mut demand, Event::Delete(pod("a", "n")), later), ["n"]);
        assert_eq!(demand.bound("n"), (0, Some(later)));
    }

    #[test]
    fn a_pod_that_went_while_the_watch_was_down_is_noticed_by_the_next_list() {
        let (mut demand, now) = (BoundPods::default(), Instant::now());
        demand.apply(Event::Apply(pod("a", "n")), now);
        demand.apply(Event::Apply(pod("b", "m")), now);
        demand.apply(Event::Init, now);
        demand.apply(Event::InitApply(pod("b", "m")), now);
        assert_eq!(applied(&mut demand, Event::InitDone, now), ["n"]);
        assert_eq!((demand.bound("n").0, demand.bound("m").0), (0, 1));
    }

    #[test]
    fn a_pod_that_changes_its_wish_wakes_its_node() {
        let asks = |pools: Option<&str>| {
            let annotations = pools.map(|pools| json!({ names::BACKEND_POOLS: pools, "other/one": "long" }));
            let metadata = json!({ "uid": "a", "namespace": "d", "name": "p", "annotations": annotations });
            Event::Apply(decoded(json!({ "metadata": metadata, "spec": { "nodeName": "n" } })))
        };
        let (mut demand, now) = (BoundPods::default(), Instant::now());
        demand.apply(asks(None), now);
        assert!(demand.wishes("n").is_empty());
        assert_eq!(applied(&mut demand, asks(Some("web")), now), ["n"]);
        let wish = demand.wishes("n")["a"].clone();
        assert_eq!((wish.pod.as_str(), wish.backend_pools.as_deref()), ("d/p", Some("web")));
        assert!(demand.apply(asks(Some("web")), now).is_empty());
        assert_eq!(demand.bound("n"), (1, Some(now)), "nothing was bound, so no burst goes on");
        demand.apply(Event::Delete(pod("a", "n")), now);
        assert!(demand.wishes("n").is_empty());
    }

    #[test]
    fn a_static_pod_is_known_by_the_uid_that_its_node_gives_it() {
        let metadata =
            json!({ "uid": "of-the-mirror", "annotations": { "kubernetes.io/config.mirror": "0f7b1e" } });
        let mirror = decoded(json!({ "metadata": metadata, "spec": { "nodeName": "n" } }));
        let (mut demand, now) = (BoundPods::default(), Instant::now());
        demand.apply(Event::Init, now);
        demand.apply(Event::InitApply(mirror.clone()), now);
        demand.apply(Event::InitDone, now);
        assert_eq!(demand.pods("n"), uids(&["0f7b1e"]));
        assert!(demand.wishes("n").is_empty());
        demand.apply(Event::Delete(mirror), now);
        assert!(demand.pods("n").is_empty());
    }

    #[test]
    fn a_pod_can_not_claim_another_pods_uid_by_the_mirror_annotation() {
        const VICTIM: &str = "4f1c0000-0000-4000-8000-000000000001";
        let pod = |metadata: Value| decoded(json!({ "metadata": metadata, "spec": { "nodeName": "n" } }));
        let wish = json!({ "vnetpool.io/public-address": "true" });
        let victim = pod(json!({ "uid": VICTIM, "namespace": "a", "name": "victim", "annotations": wish }));
        let annotations = json!({ "kubernetes.io/config.mirror": VICTIM });
        let impostor =
            pod(json!({ "uid": "4f1c0000-0000-4000-8000-000000000002", "annotations": annotations }));
        let (mut demand, now) = (BoundPods::default(), Instant::now());
        demand.apply(Event::Init, now);
        demand.apply(Event::InitApply(victim), now);
        demand.apply(Event::InitDone, now);
        let before = demand.wishes("n");
        demand.apply(Event::Apply(impostor.clone()), now);
        demand.apply(Event::Delete(impostor), now);
        assert_eq!((demand.pods("n"), demand.wishes("n")), (uids(&[VICTIM]), before.clone()));
        assert_eq!(before[VICTIM].pod, "a/victim");
    }

    #[test]
    fn a_pod_that_is_not_bound_yet_concerns_no_node() {
        let unbound: Reading<pod::Decoded> =
            serde_json::from_value(json!({ "metadata": { "uid": "a" }, "spec": {} })).unwrap();
        assert!(pod::read(Event::Apply(unbound)).is_none());
    }

    #[test]
    fn a_partly_unreadable_pod_counts_by_its_readable_fields() {
        let pod = |spec: Value, status: Value| -> Event<Pod> {
            let metadata = json!({ "name": "a", "uid": "a", "annotations": { names::BACKEND_POOLS: "web" } });
            let reading: Reading<pod::Decoded> =
                serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status }))
                    .unwrap();
            assert!(reading.0.is_err());
            pod::read(Event::Apply(reading)).unwrap()
        };
        let mut demand = BoundPods::default();
        let now = Instant::now();
        let garbled = pod(json!({ "nodeName": "n", "hostNetwork": "no" }), json!({ "phase": 3 }));
        assert_eq!(applied(&mut demand, garbled, now), ["n"]);
        assert_eq!(demand.wishes("n")["a"].backend_pools.as_deref(), Some("web"));
        let ended = pod(json!({ "nodeName": "n", "hostNetwork": 7 }), json!({ "phase": "Succeeded" }));
        assert_eq!(applied(&mut demand, ended, now), ["n"]);
        assert_eq!(demand.bound("n").0, 0);
    }

    #[test]
    fn a_node_without_pods_is_forgotten_when_others_come() {
        let (mut demand, start) = (BoundPods::default(), Instant::now());
        demand.apply(Event::Apply(pod("a", "n")), start);
        demand.apply(Event::Delete(pod("a", "n")), start);
        demand.apply(Event::Apply(pod("b", "m")), start + KEPT / 2);
        assert_eq!(demand.bound("n"), (0, Some(start)), "its stillness may still count");
        demand.apply(Event::Apply(pod("c", "l")), start + KEPT);
        assert_eq!((demand.bound("n"), demand.bound("m").0), ((0, None), 1));
    }

    #[test]
    fn a_node_whose_last_pod_has_gone_is_not_forgotten_before_it_was_woken_for_that() {
        let (mut demand, start) = two_pods(0..=9, 2, false);
        for uid in ["a", "b"] {
            demand.apply(Event::Delete(pod(uid, "n")), start);
        }
        let later = start + KEPT.max(calm::LASTING);
        demand.apply(Event::Apply(pod("c", "m")), later);
        assert_eq!(demand.lasted(later), [Arc::from("n")]);
    }

    /// Two pods on the node "n", and what its last reconcile has found.
    fn two_pods(alike: RangeInclusive<u32>, counted: u32, exceeds: bool) -> (BoundPods, Instant) {
        let (mut demand, now) = (BoundPods::default(), Instant::now());
        demand.apply(Event::Apply(pod("a", "n")), now);
        demand.apply(Event::Apply(pod("b", "n")), now);
        demand.settle("n", Some(Calm { alike, counted, exceeds }));
        (demand, now)
    }

    #[test]
    fn a_pod_wakes_its_node_only_beyond_what_the_last_reconcile_has_found_alike() {
        let (mut demand, now) = two_pods(1..=3, 0, false);
        assert!(applied(&mut demand, Event::Apply(pod("c", "n")), now).is_empty());
        assert_eq!(demand.bound("n"), (3, Some(now)));
        assert_eq!(applied(&mut demand, Event::Apply(pod("d", "n")), now), ["n"]);
        assert!(applied(&mut demand, Event::Delete(pod("d", "n")), now).is_empty());
        assert_eq!(applied(&mut demand, Event::Apply(pod("a", "m")), now), [""; 0], "no pod moves");
        // A reconcile has begun, and may have counted them already.
        demand.settle("n", None);
        assert_eq!(applied(&mut demand, Event::Delete(pod("c", "n")), now), ["n"]);
        assert_eq!(applied(&mut demand, Event::Apply(pod("e", "m")), now), ["m"], "a node of its own");
    }

    #[test]
    fn a_pod_with_a_wish_wakes_its_node_and_so_does_each_pod_beside_it() {
        let (mut demand, now) = two_pods(0..=9, 0, false);
        let metadata = json!({ "uid": "w", "annotations": { names::BACKEND_POOLS: "web" } });
        let asks = decoded(json!({ "metadata": metadata, "spec": { "nodeName": "n" } }));
        assert_eq!(applied(&mut demand, Event::Apply(asks.clone()), now), ["n"]);
        assert_eq!(applied(&mut demand, Event::Delete(pod("a", "n")), now), ["n"]);
        assert_eq!(applied(&mut demand, Event::Delete(asks), now), ["n"]);
        assert!(applied(&mut demand, Event::Delete(pod("b", "n")), now).is_empty());
    }

    #[test]
    fn fewer_pods_than_have_addresses_wake_their_node_once_that_has_lasted_and_so_does_its_end() {
        let (mut demand, now) = two_pods(0..=9, 2, false);
        let later = now + calm::LASTING;
        let gone = || Event::Delete(pod("a", "n"));
        // Another pod comes in its place.
        assert!(applied(&mut demand, gone(), now).is_empty());
        assert!(applied(&mut demand, Event::Apply(pod("a", "n")), now).is_empty());
        assert!(demand.lasted(later).is_empty());
        assert!(applied(&mut demand, gone(), later).is_empty());
        assert!(demand.lasted(later + calm::LASTING / 2).is_empty());
        assert_eq!(demand.lasted(later + calm::LASTING), [Arc::from("n")]);
        assert!(demand.lasted(later + calm::LASTING).is_empty(), "once");
        demand.settle("n", Some(Calm { alike: 0..=9, counted: 2, exceeds: true }));
        assert!(applied(&mut demand, Event::Delete(pod("b", "n")), later).is_empty());
        assert!(demand.lasted(later + 9 * calm::LASTING).is_empty(), "there are still fewer");
        for uid in ["c", "d"] {
            assert!(applied(&mut demand, Event::Apply(pod(uid, "n")), later).is_empty());
        }
        assert_eq!(demand.lasted(later + calm::LASTING), [Arc::from("n")]);
    }

    #[test]
    fn a_listed_pod_is_shown_once_its_wish_is_known() {
        let asking = |pools: Option<&str>| {
            let annotations = pools.map(|pools| json!({ names::BACKEND_POOLS: pools }));
            let metadata = json!({ "uid": "a", "annotations": annotations });
            decoded(json!({ "metadata": metadata, "spec": { "nodeName": "n" } }))
        };
        let (mut demand, now) = (BoundPods::default(), Instant::now());
        assert!(!demand.shows(&pod("a", "n")));
        assert!(
            demand.shows(&with("a", "n", true, "Running")) && demand.shows(&with("a", "n", false, "Failed"))
        );
        demand.apply(Event::Apply(asking(None)), now);
        assert!(demand.shows(&pod("a", "n")) && !demand.shows(&asking(Some("web"))));
        demand.apply(Event::Apply(asking(Some("web"))), now);
        assert!(demand.shows(&asking(Some("web"))));
    }
}
