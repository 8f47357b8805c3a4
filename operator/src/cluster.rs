//! What the operator knows of the cluster, kept current by four watches, and which objects each change wakes.
//!
//! Each kind is watched once, stripped to what is used before it is stored. A change that no decision depends
//! on (a Node's heartbeat, a condition of our own) wakes no object.

mod changes;
mod intake;
pub mod kept;
pub mod proof;
mod renewal;
pub mod served;
#[cfg(test)]
mod size;
pub mod unreadable;
mod wakeups;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use ipnet::Ipv4Net;
use kube::core::{Selector, SelectorExt};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;
use vnetpool_apiserver::reading::{Reading, Unreadable};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use crate::demand::{BoundPods, Calm, Uid};
use crate::health::Health;
use crate::left_alone::{self, Architectures};
use crate::lock::lock;
use crate::node_object::Node;
use crate::planner::attachments::Wish;
use crate::pod_cidr;
use crate::resource_id::ResourceId;
use renewal::Renewal;
use served::Served;
use unreadable::Unknown;
#[cfg(test)]
pub use wakeups::channels;
pub use wakeups::{Waker, Wakeups, paced, woken};

/// So many objects come in one answer: some four megabytes of text, which are there twice while they are
/// read, and the objects as a whole. All kinds are listed at the same time.
const PAGE: u32 = 200;
/// Little of each pod is decoded.
const PAGE_OF_PODS: u32 = 500;

/// The operator's view of the cluster: no older than its watches and, of a NodeIPAllocation, than its own
/// writes.
#[derive(Clone)]
pub struct Cluster {
    nodes: Store<Node>,
    allocations: Store<NodeIPAllocation>,
    /// By name, the API server's answers to writes of ours that the watch hasn't shown yet.
    answers: Arc<Mutex<HashMap<String, Arc<NodeIPAllocation>>>>,
    pools: Store<NodeIPPool>,
    served: Arc<Mutex<Served>>,
    demand: Arc<Mutex<BoundPods>>,
    pods_listed: watch::Receiver<bool>,
    /// Objects that are there and can't be read.
    unknown_nodes: Unknown,
    unknown_allocations: Unknown,
    unknown_pools: Unknown,
    renewals: Renewals,
    architectures: Architectures,
}

/// A cluster, and what watching it takes and brings.
pub struct Watched {
    pub cluster: Cluster,
    pub waker: Waker,
    pub wakeups: Wakeups,
    /// The four watches, each a task of its own that never ends: a long list of one kind holds up no other.
    pub watches: [(&'static str, BoxFuture<'static, ()>); 4],
}

/// Each watch's.
#[derive(Clone, Debug, Default)]
struct Renewals {
    nodes: Renewal,
    allocations: Renewal,
    pools: Renewal,
    pods: Renewal,
}

impl Cluster {
    pub(crate) fn new(
        nodes: Store<Node>,
        allocations: Store<NodeIPAllocation>,
        pools: Store<NodeIPPool>,
        pods_listed: watch::Receiver<bool>,
    ) -> Cluster {
        Cluster {
            nodes,
            allocations,
            answers: Arc::default(),
            pools,
            served: Arc::default(),
            demand: Arc::default(),
            pods_listed,
            unknown_nodes: Unknown::default(),
            unknown_allocations: Unknown::default(),
            unknown_pools: Unknown::default(),
            renewals: Renewals::default(),
            architectures: Architectures::default(),
        }
    }

    /// Starts to watch. There are images for nodes of these architectures.
    pub fn watch(client: &Client, health: &Arc<Health>, architectures: &Architectures) -> Watched {
        let ((nodes, node_writer), (allocations, allocation_writer), (pools, pool_writer)) =
            (reflector::store(), reflector::store(), reflector::store());
        let (listed, pods_listed) = watch::channel(false);
        let architectures = architectures.clone();
        let cluster = Cluster { architectures, ..Cluster::new(nodes, allocations, pools, pods_listed) };
        let (waker, wakeups) = wakeups::channels();
        let from = || (client.clone(), health.clone());
        let renewals = cluster.renewals.clone();

        // No streaming lists: kube 5 asks for the first list of any version ("0"), and a list that is made
        // anew could go back in time.
        let everything = watcher::Config::default().page_size(PAGE);
        let bound = watcher::Config::default().fields("spec.nodeName!=").page_size(PAGE_OF_PODS);
        let take = intake::nodes(cluster.clone(), waker.clone(), node_writer);
        let nodes = follow("Node", from(), everything.clone(), renewals.nodes, take);
        let take = intake::allocations(cluster.clone(), waker.clone(), allocation_writer);
        let allocations = follow("NodeIPAllocation", from(), everything.clone(), renewals.allocations, take);
        let take = intake::pools(cluster.clone(), waker.clone(), pool_writer);
        let pools = follow("NodeIPPool", from(), everything, renewals.pools, take);
        let take = intake::pods(cluster.clone(), waker.clone(), listed);
        let pods = follow("Pod", from(), bound, renewals.pods, take);
        let watches = [
            ("watch of Nodes", nodes.boxed()),
            ("watch of NodeIPAllocations", allocations.boxed()),
            ("watch of NodeIPPools", pools.boxed()),
            ("watch of Pods", pods.boxed()),
        ];
        Watched { cluster, waker, wakeups, watches }
    }

    /// One whose watches have listed these objects, and show nothing more.
    #[cfg(test)]
    pub fn sample(
        nodes: Vec<Node>,
        allocations: Vec<NodeIPAllocation>,
        pools: Vec<NodeIPPool>,
    ) -> (Cluster, Waker) {
        fn list<K>(objects: Vec<K>, take: impl FnMut(Event<Reading<K>>)) {
            let shown = objects.into_iter().map(|object| Event::InitApply(Reading(Ok(object))));
            std::iter::once(Event::Init).chain(shown).chain([Event::InitDone]).for_each(take);
        }
        let ((of_nodes, node_writer), (of_allocations, writer), (of_pools, pool_writer)) =
            (reflector::store(), reflector::store(), reflector::store());
        let view = Cluster::new(of_nodes, of_allocations, of_pools, watch::channel(true).1);
        let (waker, _) = wakeups::channels();
        list(nodes, intake::nodes(view.clone(), waker.clone(), node_writer));
        list(allocations, intake::allocations(view.clone(), waker.clone(), writer));
        list(pools, intake::pools(view.clone(), waker.clone(), pool_writer));
        (view, waker)
    }

    /// Wakes every object there is, and reports each that can't be read.
    pub fn wake_all(&self, waker: &Waker) {
        self.nodes.state().iter().for_each(|node| waker.node(&node.name_any()));
        let all = self.allocations.state();
        let without_node = all.iter().map(|one| one.name_any()).filter(|name| self.node(name).is_none());
        without_node.for_each(|name| waker.allocation(&name));
        self.pools.state().iter().for_each(|pool| waker.pool(&pool.name_any()));
        let unknown = [&self.unknown_nodes, &self.unknown_allocations, &self.unknown_pools];
        unknown.into_iter().flat_map(Unknown::all).for_each(|one| waker.unreadable(Some(one)));
    }

    /// Waits until everything has been listed once: before that, a Node that isn't known needn't be gone.
    /// False if the watches have ended.
    pub async fn ready(&self) -> bool {
        let mut pods_listed = self.pods_listed.clone();
        let (nodes, allocations, pools, pods) = futures::join!(
            self.nodes.wait_until_ready(),
            self.allocations.wait_until_ready(),
            self.pools.wait_until_ready(),
            async { pods_listed.wait_for(|listed| *listed).await.is_ok() },
        );
        nodes.is_ok() && allocations.is_ok() && pools.is_ok() && pods
    }

    pub fn nodes(&self) -> Store<Node> {
        self.nodes.clone()
    }

    pub fn allocations(&self) -> Store<NodeIPAllocation> {
        self.allocations.clone()
    }

    pub fn pools(&self) -> Store<NodeIPPool> {
        self.pools.clone()
    }

    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectRef::new(name))
    }

    pub fn allocation(&self, name: &str) -> Option<Arc<NodeIPAllocation>> {
        let watched = self.allocations.get(&ObjectRef::new(name))?;
        let answer = lock(&self.answers).get(name).filter(|answer| is_newer(answer, &watched)).cloned();
        Some(answer.unwrap_or(watched))
    }

    /// Takes in the API server's answer to a write of ours.
    pub fn answered(&self, answer: &Arc<NodeIPAllocation>) {
        let name = answer.name_any();
        let mut answers = lock(&self.answers);
        // Checked under the lock: an event that comes later finds the answer and drops it.
        if self.allocations.get(&ObjectRef::new(&name)).is_some_and(|watched| is_newer(answer, &watched)) {
            answers.insert(name, answer.clone());
        }
    }

    /// Drops the answers that the watch has caught up with: an object that is kept twice would take the
    /// watch's memory once more.
    fn catch_up(&self, event: &Event<NodeIPAllocation>) {
        let mut answers = lock(&self.answers);
        let is_ahead = |name: &str, answer: &Arc<NodeIPAllocation>| {
            self.allocations.get(&ObjectRef::new(name)).is_some_and(|watched| is_newer(answer, &watched))
        };
        match event {
            Event::Apply(object) | Event::Delete(object) => {
                let name = object.name_any();
                if answers.get(&name).is_some_and(|answer| !is_ahead(&name, answer)) {
                    answers.remove(&name);
                }
            }
            // A list is as new as the store. A newer answer still follows at once; an answer that only seems
            // newer, because the store was set back, must not hide the list's object.
            Event::InitDone => answers.clear(),
            Event::Init | Event::InitApply(_) => {}
        }
    }

    /// The architectures that there are images for.
    pub fn architectures(&self) -> &Architectures {
        &self.architectures
    }

    /// The nodes that a pool serves.
    pub fn served_by(&self, pool: &str) -> Vec<Arc<NodeIPAllocation>> {
        let names = lock(&self.served).by(pool);
        let objects = names.iter().filter_map(|name| self.allocations.get(&ObjectRef::new(name)));
        // Of one that is about to change its pool the store may show the former.
        objects.filter(|object| object.spec.pool == pool).collect()
    }

    /// The Nodes that are left alone.
    pub fn left_alone(&self) -> Vec<Arc<Node>> {
        let names = lock(&self.served).alone();
        names.iter().filter_map(|name| self.node(name)).collect()
    }

    /// How many blocks the nodes hold, by subnet.
    pub fn blocks(&self) -> HashMap<ResourceId, u32> {
        lock(&self.served).blocks()
    }

    /// Whether a Node is left alone.
    pub fn leaves_alone(&self, node: &Node) -> bool {
        left_alone::cause(node, &self.architectures).is_some()
    }

    /// The pool that selects a Node. A Node that is left alone has none.
    pub fn pool_of(&self, node: &Node) -> Option<Arc<NodeIPPool>> {
        if self.leaves_alone(node) {
            return None;
        }
        let pools = self.pools.state();
        let name = NodeIPPool::serving(pools.iter().map(Arc::as_ref), &node.labels().to_map())?.name_any();
        pools.into_iter().find(|pool| pool.name_any() == name)
    }

    pub fn pool(&self, name: &str) -> Option<Arc<NodeIPPool>> {
        self.pools.get(&ObjectRef::new(name))
    }

    /// The unreadable objects that decide about this node: its allocation, its Node, the pool that its
    /// allocation names, or the one that would serve it. As long as there is one, nothing is done for the
    /// node.
    pub fn unreadable(&self, node: &str) -> Option<Arc<Unreadable>> {
        let own = self.unknown_allocations.get(node).or_else(|| self.unknown_nodes.get(node));
        own.or_else(|| self.unknown_pools.get(&self.allocation(node)?.spec.pool))
            .or_else(|| self.unreadable_pool(&*self.node(node)?))
    }

    /// The pool that would serve a Node, if it can't be read.
    fn unreadable_pool(&self, node: &Node) -> Option<Arc<Unreadable>> {
        let unknown = self.unknown_pools.all();
        if unknown.is_empty() || self.leaves_alone(node) {
            return None;
        }
        let read = self.pools.state();
        let claims: Vec<NodeIPPool> = unknown.iter().filter_map(|pool| unreadable::claim(pool)).collect();
        let name = NodeIPPool::serving(read.iter().map(Arc::as_ref).chain(&claims), &node.labels().to_map())?
            .name_any();
        unknown.into_iter().find(|pool| pool.name() == name)
    }

    /// The unreadable objects of the nodes that a pool serves, the pool itself left out.
    pub fn unreadable_of(&self, pool: &str) -> Vec<Arc<Unreadable>> {
        let all = self.unknown_allocations.all().into_iter().chain(self.unknown_nodes.all());
        all.filter(|one| self.pool_named(&one.name()).as_deref() == Some(pool)).collect()
    }

    /// Whether a pool itself can't be read.
    pub fn is_unreadable_pool(&self, name: &str) -> bool {
        self.unknown_pools.get(name).is_some()
    }

    /// Ranges that allocations name which can't be read, without that of one node.
    pub fn unreadable_ranges(&self, but: &str) -> Vec<Ipv4Net> {
        let others = self.unknown_allocations.all().into_iter().filter(|one| one.name() != but);
        others.flat_map(|one| unreadable::range_of(&one)).collect()
    }

    /// The pool that a node's allocation names or, if that isn't known, the one that serves its Node.
    fn pool_named(&self, node: &str) -> Option<String> {
        let unknown = self.unknown_allocations.get(node).and_then(|one| unreadable::pool_of(&one));
        unknown
            .or_else(|| Some(self.allocation(node)?.spec.pool.clone()))
            .or_else(|| Some(self.pool_of(&*self.node(node)?)?.name_any()))
    }

    /// Pods bound to a node that need an address, and since when they are these.
    pub fn bound(&self, node: &str) -> (u32, Option<Instant>) {
        lock(&self.demand).bound(node)
    }

    /// What a reconcile of the node that has ended rules out: see [`BoundPods::settle`].
    pub fn settle(&self, node: &str, calm: Option<Calm>) {
        lock(&self.demand).settle(node, calm);
    }

    /// Wakes the nodes to which a change of their pods is news by now.
    pub fn wake_for_lasting(&self, waker: &Waker, now: Instant) {
        let woken = lock(&self.demand).lasted(now);
        woken.iter().for_each(|node| waker.allocation(node));
    }

    /// The attachments that the node's pods ask for, by UID.
    pub fn wishes(&self, node: &str) -> HashMap<String, Wish> {
        lock(&self.demand).wishes(node)
    }

    /// The UIDs of these pods.
    pub fn bound_pods(&self, node: &str) -> HashSet<Uid> {
        lock(&self.demand).pods(node)
    }

    /// The pools that name this Node though it has no object: it is left alone. After a list, or of a Node
    /// that `was_alone` and isn't any more, these may be any.
    fn pools_about(&self, event: &Event<Node>, was_alone: bool) -> Vec<String> {
        let is_about = |pool: &NodeIPPool| match event {
            Event::Apply(node) | Event::Delete(node) => {
                was_alone || self.leaves_alone(node) && left_alone::selects(pool, node)
            }
            Event::InitDone => true,
            Event::Init | Event::InitApply(_) => false,
        };
        self.pools.state().iter().filter(|pool| is_about(pool)).map(|pool| pool.name_any()).collect()
    }

    /// The other pools of mode Route whose range overlaps this one.
    fn pools_overlapping(&self, range: Ipv4Net, name: &str) -> Vec<String> {
        pod_cidr::overlapping(range, name, self.pools.state().iter().map(Arc::as_ref))
    }

    /// The nodes that a pool's change may concern: those it serves, those it may serve from now on, and those
    /// that this `former` selector of its chose.
    fn nodes_about(&self, pool: &str, former: Option<&Selector>) -> BTreeSet<String> {
        let now = self.pool(pool).and_then(|pool| pool.spec.selector().ok());
        let selectors = [now.as_ref(), former];
        let chosen = self.nodes.state_filter(|node| {
            let labels = node.labels().to_map();
            selectors.iter().flatten().any(|selector| selector.matches(&labels))
        });
        let served = self.allocations.state_filter(|allocation| allocation.spec.pool == pool);
        chosen
            .iter()
            .map(|node| node.name_any())
            .chain(served.iter().map(|allocation| allocation.name_any()))
            .collect()
    }
}

/// Gives each event of a kind to `take`. Never ends: errors of the watch are logged and retried with the
/// default backoff, and a watch that is found dead is begun anew with a list.
async fn follow<K>(
    kind: &'static str,
    (client, health): (Client, Arc<Health>),
    config: watcher::Config,
    renewal: Renewal,
    mut take: impl FnMut(Event<Reading<K>>) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let begin = || watcher(Api::<Reading<K>>::all(client.clone()), config.clone()).default_backoff().boxed();
    let mut events = begin();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = renewal.due() => {
                health.interrupted(kind);
                warn!(kind, "the watch lacks what a list shows; beginning anew");
                events = begin();
                continue;
            }
        };
        match event {
            Some(Ok(event)) => {
                health.heard(kind);
                take(event);
            }
            Some(Err(error)) => {
                health.interrupted(kind);
                warn!(kind, %error, "watch interrupted");
            }
            None => return,
        }
    }
}

/// Whether it is a later version of the same object. Kubernetes lets clients compare an object's
/// resourceVersions as numbers.
fn is_newer(one: &NodeIPAllocation, other: &NodeIPAllocation) -> bool {
    let version = |object: &NodeIPAllocation| -> u64 {
        object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
    };
    one.uid() == other.uid() && version(one) > version(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allocation(uid: &str, version: u64) -> NodeIPAllocation {
        let metadata = json!({"name": "n", "uid": uid, "resourceVersion": version.to_string()});
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn a_new_leader_wakes_all_objects_whose_wakeups_a_standby_dropped() {
        let (allocations, mut writer) = reflector::store();
        let (nodes, pools) = (reflector::store().0, reflector::store().0);
        let cluster = Cluster::new(nodes, allocations, pools, watch::channel(true).1);
        let (waker, mut wakeups) = wakeups::channels();
        writer.apply_watcher_event(&Event::Apply(allocation("a", 9)));
        waker.allocation("n");
        assert!(wakeups.ignore().now_or_never().is_none(), "it ends only with the watches");
        assert!(wakeups.allocations.try_recv().is_err());
        cluster.wake_all(&waker);
        assert_eq!(wakeups.allocations.try_recv().unwrap().name, "n");
    }

    #[test]
    fn an_answer_to_our_own_write_counts_until_the_watch_has_caught_up_and_is_kept_no_longer() {
        let (allocations, mut writer) = reflector::store();
        let (nodes, pools) = (reflector::store().0, reflector::store().0);
        let cluster = Cluster::new(nodes, allocations, pools, watch::channel(true).1);
        let mut watch = |event: Event<NodeIPAllocation>| {
            writer.apply_watcher_event(&event);
            cluster.catch_up(&event);
        };
        let seen = || cluster.allocation("n").and_then(|one| Some((one.uid()?, one.resource_version()?)));
        let is = |uid: &str, version: &str| Some((uid.to_owned(), version.to_owned()));
        let answer = |uid, version| cluster.answered(&Arc::new(allocation(uid, version)));

        watch(Event::Apply(allocation("a", 9)));
        answer("a", 11);
        assert_eq!(seen(), is("a", "11"));
        watch(Event::Apply(allocation("a", 10)));
        assert_eq!(seen(), is("a", "11"));
        watch(Event::Apply(allocation("a", 11)));
        assert!(lock(&cluster.answers).is_empty());
        // The watch may be quicker than the answer.
        answer("a", 11);
        assert!(lock(&cluster.answers).is_empty());
        // An object made anew is another one.
        answer("a", 12);
        watch(Event::Apply(allocation("b", 13)));
        assert_eq!((seen(), lock(&cluster.answers).len()), (is("b", "13"), 0));
        answer("b", 14);
        // Nothing outlives a list: the store may have been set back.
        watch(Event::Init);
        watch(Event::InitApply(allocation("b", 9)));
        watch(Event::InitDone);
        assert_eq!((seen(), lock(&cluster.answers).len()), (is("b", "9"), 0));
        answer("b", 14);
        watch(Event::Delete(allocation("b", 15)));
        assert_eq!((seen(), lock(&cluster.answers).len()), (None, 0));
    }
}
