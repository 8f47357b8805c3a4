//! Who is to be looked at again: the calls from the watches, and from wherever else something has changed, to the controllers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::watch;
use tracing::warn;
use vnetpool_apiserver::reading::Unreadable;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use super::lock;

/// Who is to be looked at again, for each controller.
pub struct Calls {
    pub nodes: UnboundedReceiver<ObjectRef<Node>>,
    pub allocations: UnboundedReceiver<ObjectRef<NodeIPAllocation>>,
    pub pools: UnboundedReceiver<ObjectRef<NodeIPPool>>,
    /// Objects that have just turned out to be unreadable.
    pub unreadable: UnboundedReceiver<Arc<Unreadable>>,
}

/// The other end of [`Calls`].
#[derive(Clone)]
pub struct Caller {
    nodes: UnboundedSender<ObjectRef<Node>>,
    allocations: UnboundedSender<ObjectRef<NodeIPAllocation>>,
    pools: UnboundedSender<ObjectRef<NodeIPPool>>,
    unreadable: UnboundedSender<Arc<Unreadable>>,
    /// By node, whoever wants to know at once that it is called.
    heard: Arc<Mutex<HashMap<String, watch::Sender<()>>>>,
}

pub fn channels() -> (Caller, Calls) {
    let ((nodes, node_calls), (allocations, allocation_calls), (pools, pool_calls), (unreadable, told)) =
        (unbounded(), unbounded(), unbounded(), unbounded());
    let caller = Caller { nodes, allocations, pools, unreadable, heard: Arc::default() };
    let calls =
        Calls { nodes: node_calls, allocations: allocation_calls, pools: pool_calls, unreadable: told };
    (caller, calls)
}

// Nobody listens any more only while the process ends, so an error of `unbounded_send` is none.
impl Caller {
    pub(super) fn node(&self, name: &str) {
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

    pub(super) fn unreadable(&self, object: Option<Arc<Unreadable>>) {
        if let Some(object) = object {
            warn!(kind = object.kind, name = object.name(), error = object.error, "object can't be read");
            let _ = self.unreadable.unbounded_send(object);
        }
    }
}
