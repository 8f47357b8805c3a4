//! Which objects are to be reconciled: requests to the controllers, from the watches and wherever else
//! something changed.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::watch;
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
            warn!(kind = object.kind, name = object.name(), error = object.error, "object can't be read");
            let _ = self.unreadable.unbounded_send(object);
        }
    }
}
