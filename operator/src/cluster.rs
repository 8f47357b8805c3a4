//! What the operator knows of the cluster, kept current by four watches, and whom each change concerns.
//!
//! Each kind is watched once, stripped to what is used before it is stored, and a change that no decision looks at
//! (a Node's heartbeat, a condition of our own) calls nobody.

mod changes;
pub mod kept;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::SelectorExt;
use kube::runtime::reflector::store;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use crate::demand::{self, Demand};
use crate::lock::lock;
use crate::planner::attachments::Wish;
use crate::pod_cidr;
use crate::pool::windows;
use changes::Changes;

/// The operator's view of the cluster: no older than its watches and, of a NodeIPAllocation, than its own writes.
#[derive(Clone)]
pub struct Cluster {
    nodes: Store<Node>,
    allocations: Store<NodeIPAllocation>,
    /// By name, what the API server has answered to writes of ours and the watch hasn't shown yet.
    answers: Arc<Mutex<HashMap<String, Arc<NodeIPAllocation>>>>,
    pools: Store<NodeIPPool>,
    demand: Arc<Mutex<Demand>>,
    pods_listed: watch::Receiver<bool>,
}

/// Who is to be looked at again, for each controller.
pub struct Calls {
    pub nodes: UnboundedReceiver<ObjectRef<Node>>,
    pub allocations: UnboundedReceiver<ObjectRef<NodeIPAllocation>>,
    pub pools: UnboundedReceiver<ObjectRef<NodeIPPool>>,
}

/// The other end of [`Calls`].
#[derive(Clone)]
pub struct Caller {
    nodes: UnboundedSender<ObjectRef<Node>>,
    allocations: UnboundedSender<ObjectRef<NodeIPAllocation>>,
    pools: UnboundedSender<ObjectRef<NodeIPPool>>,
    /// By node, whoever wants to know at once that it is called.
    heard: Arc<Mutex<HashMap<String, watch::Sender<()>>>>,
}

// Nobody listens any more only while the process ends, so an error of `unbounded_send` is none.
impl Caller {
    fn node(&self, name: &str) {
        let _ = self.nodes.unbounded_send(ObjectRef::new(name));
        self.allocation(name);
    }

    pub fn allocation(&self, name: &str) {
        let _ = self.allocations.unbounded_send(ObjectRef::new(name));
        let mut heard = lock(&self.heard);
        if heard.get(name).is_some_and(|calls| calls.send(()).is_err()) {
            heard.remove(name);
        }
    }

    /// Tells when a node is called while its pass is under way: the controller lets one pass of it end before the next begins.
    pub fn hear(&self, name: &str) -> watch::Receiver<()> {
        lock(&self.heard).entry(name.to_owned()).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    pub fn pool(&self, name: &str) {
        let _ = self.pools.unbounded_send(ObjectRef::new(name));
    }
}

impl Cluster {
    /// Starts to watch: gives the view, the calls, and the work itself, which never ends.
    pub fn watch(client: &Client) -> (Cluster, Caller, Calls, BoxFuture<'static, ()>) {
        let (nodes, node_writer) = reflector::store();
        let (allocations, allocation_writer) = reflector::store();
        let (pools, pool_writer) = reflector::store();
        let (listed, pods_listed) = watch::channel(false);
        let cluster = Cluster {
            nodes,
            allocations,
            answers: Arc::default(),
            pools,
            demand: Arc::default(),
            pods_listed,
        };
        let ((node_tx, node_rx), (allocation_tx, allocation_rx), (pool_tx, pool_rx)) =
            (unbounded(), unbounded(), unbounded());
        let caller =
            Caller { nodes: node_tx, allocations: allocation_tx, pools: pool_tx, heard: Arc::default() };

        let everything = watcher::Config::default();
        let mut changes = Changes::new(kept::node_digest);
        let (call, view) = (caller.clone(), cluster.clone());
        let nodes = follow(
            Api::all(client.clone()),
            everything.clone(),
            kept::strip_node,
            Some(node_writer),
            move |event| {
                changes.apply(event).iter().for_each(|name| call.node(name));
                view.pools_about(event).iter().for_each(|pool| call.pool(pool));
            },
        );

        let mut changes = Changes::new(kept::allocation_digest);
        let mut readiness = Changes::new(kept::readiness_digest);
        let mut served_by = HashMap::new();
        let (call, view) = (caller.clone(), cluster.clone());
        let allocations = follow(
            Api::all(client.clone()),
            everything.clone(),
            kept::strip_allocation,
            Some(allocation_writer),
            move |event| {
                view.catch_up(event);
                // What we say of a node is news to its pool only.
                for name in readiness.apply(event) {
                    view.allocation(&name).iter().for_each(|allocation| call.pool(&allocation.spec.pool));
                }
                for name in changes.apply(event) {
                    // Also its Node: one whose object is gone gets another.
                    call.node(&name);
                    let now = view.allocation(&name).map(|allocation| allocation.spec.pool.clone());
                    let before = match &now {
                        Some(pool) => served_by.insert(name, pool.clone()),
                        None => served_by.remove(&name),
                    };
                    [now, before].iter().flatten().for_each(|pool| call.pool(pool));
                }
            },
        );

        let mut changes = Changes::new(kept::pool_digest);
        let mut pod_cidrs = HashMap::new();
        let (call, view) = (caller.clone(), cluster.clone());
        let pools =
            follow(Api::all(client.clone()), everything, kept::strip_pool, Some(pool_writer), move |event| {
                for name in changes.apply(event) {
                    let now = view.pools.get(&ObjectRef::new(&name)).and_then(|pool| pod_cidr::cidr(&pool));
                    let before = match now {
                        Some(range) => pod_cidrs.insert(name.clone(), range),
                        None => pod_cidrs.remove(&name),
                    };
                    // One that is gone, or made anew, may have been in the way of others.
                    let others = before.map(|range| view.pools_overlapping(range, &name)).unwrap_or_default();
                    for pool in others.iter().chain([&name]) {
                        call.pool(pool);
                        view.nodes_about(pool).iter().for_each(|node| call.node(node));
                    }
                }
            });

        let (call, demand) = (caller.clone(), cluster.demand.clone());
        let bound = watcher::Config::default().fields("spec.nodeName!=");
        let pods = follow(Api::all(client.clone()), bound, demand::strip, None, move |event: &Event<Pod>| {
            let concerned = lock(&demand).apply(event, Instant::now());
            concerned.iter().for_each(|node| call.allocation(node));
            if matches!(event, Event::InitDone) {
                listed.send_replace(true);
            }
        });

        let work = async move {
            futures::join!(nodes, allocations, pools, pods);
        };
        let calls = Calls { nodes: node_rx, allocations: allocation_rx, pools: pool_rx };
        (cluster, caller, calls, work.boxed())
    }

    /// Waits until everything has been listed once: before that, a Node that isn't known needn't be gone. False if the
    /// watches have ended.
    pub async fn ready(&self) -> bool {
        let mut pods_listed = self.pods_listed.clone();
        let (nodes, allocations, pools, pods) = futures::join!(
            self.nodes.wait_until_ready(),
            self.allocations.wait_until_ready(),
            self.pools.wait_until_ready(),
            pods_listed.wait_for(|listed| *listed),
        );
        nodes.is_ok() && allocations.is_ok() && pools.is_ok() && pods.is_ok()
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

    /// Takes in what the API server has answered to a write of ours.
    pub fn answered(&self, answer: &Arc<NodeIPAllocation>) {
        let name = answer.name_any();
        let mut answers = lock(&self.answers);
        // Looked at under the lock: an event that comes later finds the answer and drops it.
        if self.allocations.get(&ObjectRef::new(&name)).is_some_and(|watched| is_newer(answer, &watched)) {
            answers.insert(name, answer.clone());
        }
    }

    /// Drops the answers that the watch has caught up with: what is kept twice would be as much again as the watch keeps.
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
            Event::InitDone => answers.retain(|name, answer| is_ahead(name, answer)),
            Event::Init | Event::InitApply(_) => {}
        }
    }

    /// The pool that serves a Node. Windows nodes have none: there is no agent for them.
    pub fn pool_of(&self, node: &Node) -> Option<Arc<NodeIPPool>> {
        if windows::runs_windows(node) {
            return None;
        }
        let pools = self.pools.state();
        let name = NodeIPPool::serving(pools.iter().map(Arc::as_ref), node.labels())?.name_any();
        pools.into_iter().find(|pool| pool.name_any() == name)
    }

    /// Pods bound to a node that need an address, and since when they are these.
    pub fn bound(&self, node: &str) -> (u32, Option<Instant>) {
        lock(&self.demand).bound(node)
    }

    /// What the node's pods ask to have attached to their addresses, by UID.
    pub fn wishes(&self, node: &str) -> HashMap<String, Wish> {
        lock(&self.demand).wishes(node)
    }

    /// The UIDs of these pods.
    pub fn bound_pods(&self, node: &str) -> HashSet<String> {
        lock(&self.demand).pods(node)
    }

    /// Drops what is kept of a Node that is gone.
    pub fn forget(&self, node: &str) {
        lock(&self.demand).forget(node);
    }

    /// The pools that name this Node though it has no object: it runs Windows. After a list these may be any.
    fn pools_about(&self, event: &Event<Node>) -> Vec<String> {
        let is_about = |pool: &NodeIPPool| match event {
            Event::Apply(node) | Event::Delete(node) => {
                windows::runs_windows(node) && windows::selects(pool, node)
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

    /// The nodes that a pool's change may concern: those it serves, and those it may serve from now on.
    fn nodes_about(&self, pool: &str) -> BTreeSet<String> {
        let selector = self.pools.get(&ObjectRef::new(pool)).and_then(|pool| pool.spec.selector().ok());
        let chosen = self
            .nodes
            .state_filter(|node| selector.as_ref().is_some_and(|selector| selector.matches(node.labels())));
        let served = self.allocations.state_filter(|allocation| allocation.spec.pool == pool);
        chosen
            .iter()
            .map(|node| node.name_any())
            .chain(served.iter().map(|allocation| allocation.name_any()))
            .collect()
    }
}

/// Keeps `store` at what the API server has, stripped, and shows each event to `on`. Never ends: errors of the watch are
/// logged and retried with the default backoff.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    strip: fn(&mut K),
    store: Option<store::Writer<K>>,
    mut on: impl FnMut(&Event<K>) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let events = watcher(api, config).default_backoff().modify(strip);
    let mut events = match store {
        Some(store) => events.reflect(store).boxed(),
        None => events.boxed(),
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => on(&event),
            Err(error) => warn!(kind = %K::kind(&()), %error, "watch interrupted"),
        }
    }
}

/// Whether it is a later version of the same object. Kubernetes lets clients compare an object's resourceVersions as numbers.
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
    fn an_answer_to_our_own_write_counts_until_the_watch_has_caught_up_and_is_kept_no_longer() {
        let (allocations, mut writer) = reflector::store();
        let cluster = Cluster {
            nodes: reflector::store().0,
            allocations,
            answers: Arc::default(),
            pools: reflector::store().0,
            demand: Arc::default(),
            pods_listed: watch::channel(true).1,
        };
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
        watch(Event::Delete(allocation("b", 15)));
        assert_eq!((seen(), lock(&cluster.answers).len()), (None, 0));
    }
}
