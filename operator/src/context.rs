//! What every controller works with.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::channel::oneshot;
use futures::future::{Map, Shared};
use kube::Client;

use crate::azure::Azure;
use crate::cluster::{Cluster, Waker};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::network::Networks;
use crate::operate::Waits;
use crate::shortage::Shortages;

/// Ends when the controllers are to take no more work.
pub type Stop = Shared<Map<oneshot::Receiver<()>, fn(Result<(), oneshot::Canceled>)>>;

/// Shared by all controllers of a leader.
pub struct Context {
    pub client: Client,
    pub azure: Arc<Azure>,
    pub cluster: Cluster,
    pub networks: Arc<Networks>,
    pub events: Events,
    pub metrics: Arc<Metrics>,
    /// Requeues nodes and pools.
    pub waker: Waker,
    /// Subnets that have run out of addresses.
    pub shortages: Arc<Mutex<Shortages>>,
    /// When this process began to lead.
    pub started: Instant,
    pub waits: Waits,
}

impl Context {
    /// As of the moment this process begins to lead.
    pub fn new(
        client: Client,
        events: Events,
        azure: Arc<Azure>,
        metrics: Arc<Metrics>,
        (cluster, waker): (Cluster, Waker),
        waits: Waits,
    ) -> Context {
        Context {
            networks: Arc::new(Networks::new(azure.clone())),
            shortages: Arc::default(),
            started: Instant::now(),
            waits,
            client,
            events,
            azure,
            cluster,
            metrics,
            waker,
        }
    }

    /// Requeues these nodes.
    pub fn wake(&self, nodes: &[String]) {
        nodes.iter().for_each(|node| self.waker.allocation(node));
    }
}
