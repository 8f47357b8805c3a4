//! Which objects are to be reconciled: requests to the controllers, from the watches and wherever else
//! something changed.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Arc, Mutex};

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::{Stream, StreamExt, stream};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::watch;
use tokio::task::yield_now;
use tracing::warn;
use vnetpool_apiserver::reading::Unreadable;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use super::lock;
use crate::node_object::Node;

/// The objects that each controller is to reconcile.
pub struct Wakeups {
    pub nodes: UnboundedReceiver<ObjectRef<Node>>,
    pub allocations: UnboundedReceiver<ObjectRef<NodeIPAllocation>>,
    pub pools: UnboundedReceiver<ObjectRef<NodeIPPool>>,
    /// Objects that have just turned out to be unreadable.
    pub unreadable: UnboundedReceiver<Arc<Unreadable>>,
}

impl Wakeups {
    /// Drops every wakeup. Never ends: the senders live as long as the watches. Dropped ones are made up for
    /// by [`super::Cluster::wake_all`].
    pub async fn ignore(&mut self) {
        let Wakeups { nodes, allocations, pools, unreadable } = self;
        futures::join!(
            nodes.for_each(|_| ready(())),
            allocations.for_each(|_| ready(())),
            pools.for_each(|_| ready(())),
            unreadable.for_each(|_| ready(())),
        );
    }
}

/// So many requests are handed on at once.
const AT_ONCE: usize = 64;

/// The requests in their order, of which the next come when work on those before has begun. A new leader
/// wakes all nodes at once, and a reconcile takes memory from the request on until it ends: together those of
/// 5,000 nodes took 130 MB.
pub fn paced<K>(requests: UnboundedReceiver<ObjectRef<K>>) -> impl Stream<Item = ObjectRef<K>>
where
    K: kube::runtime::reflector::Lookup<DynamicType = ()>,
{
    let some = requests.ready_chunks(AT_ONCE).then(async |some| {
        yield_now().await;
        stream::iter(some)
    });
    some.flatten()
}

/// The other end of [`Wakeups`].
#[derive(Clone)]
pub struct Waker {
    nodes: UnboundedSender<ObjectRef<Node>>,
    allocations: UnboundedSender<ObjectRef<NodeIPAllocation>>,
    pools: UnboundedSender<ObjectRef<NodeIPPool>>,
    unreadable: UnboundedSender<Arc<Unreadable>>,
    /// By node, the tasks to notify at once when it is woken.
    heard: Arc<Mutex<HashMap<String, watch::Sender<()>>>>,
}

/// Waits until this node is woken again.
pub async fn woken(heard: &mut watch::Receiver<()>) {
    // The sender is dropped only at shutdown.
    if heard.changed().await.is_err() {
        std::future::pending().await
    }
}

pub fn channels() -> (Waker, Wakeups) {
    let (nodes, of_nodes) = unbounded();
    let (allocations, of_allocations) = unbounded();
    let (pools, of_pools) = unbounded();
    let (unreadable, found) = unbounded();
    let waker = Waker { nodes, allocations, pools, unreadable, heard: Arc::default() };
    let wakeups =
        Wakeups { nodes: of_nodes, allocations: of_allocations, pools: of_pools, unreadable: found };
    (waker, wakeups)
}

// The receivers are dropped only at shutdown, so a failed `unbounded_send` can be ignored.
impl Waker {
    pub(super) fn node(&self, name: &str) {
        let _ = self.nodes.unbounded_send(ObjectRef::new(name));
        self.allocation(name);
    }

    pub fn allocation(&self, name: &str) {
        let _ = self.allocations.unbounded_send(ObjectRef::new(name));
        let mut heard = lock(&self.heard);
        if heard.get(name).is_some_and(|wakeups| wakeups.send(()).is_err()) {
            heard.remove(name);
        }
    }

    /// Resolves when a node is woken during its reconcile: the controller starts no other reconcile of it
    /// before that has ended.
    pub fn hear(&self, name: &str) -> watch::Receiver<()> {
        lock(&self.heard).entry(name.to_owned()).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    pub fn pool(&self, name: &str) {
        let _ = self.pools.unbounded_send(ObjectRef::new(name));
    }

    pub(super) fn unreadable(&self, object: Option<Arc<Unreadable>>) {
        if let Some(object) = object {
            warn!(kind = object.kind, object = object.name(), error = object.error, "object can't be read");
            let _ = self.unreadable.unbounded_send(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn of_the_objects_that_are_woken_at_once_few_wait_for_the_work_on_them_to_begin() {
        const ALL: usize = 1000;
        let (sender, requests) = unbounded();
        for number in 0..ALL {
            sender.unbounded_send(ObjectRef::<NodeIPPool>::new(&number.to_string())).unwrap();
        }
        drop(sender);
        let (mut requests, begun) = (pin!(paced(requests)), Arc::new(AtomicUsize::new(0)));
        let (mut handed_on, mut waiting) = (vec![], 0);
        while let Some(request) = requests.next().await {
            handed_on.push(request.name);
            let (counted, begun) = (begun.clone(), begun.clone());
            tokio::spawn(async move { begun.fetch_add(1, Ordering::Relaxed) });
            waiting = waiting.max(handed_on.len() - counted.load(Ordering::Relaxed));
        }
        assert!(handed_on.iter().enumerate().all(|(at, name)| *name == at.to_string()), "{handed_on:?}");
        assert_eq!(handed_on.len(), ALL);
        assert!(waiting <= 2 * AT_ONCE, "{waiting}");
    }
}
