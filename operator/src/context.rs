//! What all controllers share.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::future::{Map, Shared};
use k8s_openapi::jiff::Timestamp;
use kube::Client;

use crate::azure::{self, Azure};
use crate::beside::Beside;
use crate::cluster::{Cluster, Waker};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::network::Networks;
use crate::refusals::Known;
use crate::rollout::Rollouts;
use crate::scarcity::Scarcity;
use crate::shortage::Shortages;
use crate::writes::Writes;

/// Ends when the controllers are to take no more work.
pub type Stop = Shared<Map<oneshot::Receiver<()>, fn(Result<(), oneshot::Canceled>)>>;

/// Shared by all controllers of a leader.
pub struct Context {
    pub client: Client,
    /// Each write to the API server waits for this.
    pub writes: Arc<Writes>,
    pub azure: Arc<Azure>,
    pub cluster: Cluster,
    pub networks: Arc<Networks>,
    pub events: Events,
    pub metrics: Arc<Metrics>,
    /// What is done beside the reconciles.
    pub beside: Arc<Beside>,
    /// Requeues nodes and pools.
    pub waker: Waker,
    /// Subnets and virtual networks that have run out of addresses.
    pub shortages: Arc<Mutex<Shortages>>,
    /// Where writes to Azure are scarce, so that steps are coarse.
    pub scarcity: Arc<Mutex<Scarcity>>,
    /// What Azure refuses to all resources of a scope.
    pub refusals: Known,
    /// Which nodes take up an edit of their pool.
    pub rollouts: Arc<Mutex<Rollouts>>,
    /// When this process began to lead.
    pub started: Instant,
    /// Until when another operator led before this one; `None` if nothing shows that there was one.
    pub unled_since: Option<Timestamp>,
    /// This process has seen the API server's store go back to an earlier state, or no operator led for so
    /// long before it that nobody would have seen that. So no `spec` is believed before its NIC was read.
    pub may_be_set_back: bool,
    pub waits: Waits,
}

/// How long the operator waits before it gives an address back, or reads again. The product's are
/// [`Waits::FULL`]; tests have shorter ones, and `tests/README.md` lists which tests have the full ones.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// After a 404 a NIC is asked for a second time before it counts as gone. Azure's incidents, and its
    /// caches, give a passing 404.
    pub second_read: Duration,
    /// So long a node's reconcile may take, waits for Azure's limits and operations not counted: several
    /// times as long as when each request to Azure and to the API server takes its longest.
    pub deadline: Duration,
    /// For so long after the read of its NIC, a write whose answer is lost may still be carried out.
    pub late: Duration,
    /// So long the policy of a pool that doesn't serve a node any more holds for it: for people to notice,
    /// and for a tool that syncs every few minutes.
    pub grace: Duration,
    /// So often a NIC is read where the node's metadata service doesn't show which addresses leave it. Azure
    /// gives blocks that have left a NIC to others, so pods could share an address for as long; and without
    /// IP forwarding the pods of a node with a route are cut off.
    pub unlisted: Duration,
    /// So long writes must have been scarce, or plenty again, before nodes take other steps.
    pub scarce: Duration,
}

impl Waits {
    pub const FULL: Waits = Waits {
        second_read: Duration::from_secs(60),
        deadline: Duration::from_secs(300),
        late: azure::LATE,
        grace: Duration::from_secs(15 * 60),
        unlisted: Duration::from_secs(15 * 60),
        scarce: Duration::from_secs(60),
    };
}

impl Context {
    /// As of the moment this process begins to lead.
    pub fn new(
        client: Client,
        events: Events,
        azure: Arc<Azure>,
        metrics: Arc<Metrics>,
        (cluster, waker): (Cluster, Waker),
        (unled_since, may_be_set_back): (Option<Timestamp>, bool),
        waits: Waits,
    ) -> Context {
        Context {
            networks: Arc::new(Networks::new(azure.clone())),
            writes: Arc::default(),
            beside: Arc::default(),
            shortages: Arc::default(),
            scarcity: Arc::default(),
            refusals: Known::default(),
            rollouts: Arc::default(),
            started: Instant::now(),
            unled_since,
            may_be_set_back,
            waits,
            client,
            events,
            azure,
            cluster,
            metrics,
            waker,
        }
    }

    /// In a cluster without an API server, beside an Azure that is never asked.
    #[cfg(test)]
    pub fn sample() -> Context {
        Context::sample_at(None)
    }

    /// The same; Azure and its metadata service are at `endpoint`.
    #[cfg(test)]
    pub fn sample_at(endpoint: Option<reqwest::Url>) -> Context {
        use crate::cluster::Watched;
        let Watched { cluster, waker, .. } =
            Cluster::watch(&Context::sample_client(), &Arc::default(), &Default::default());
        Context::sample_of((cluster, waker), endpoint)
    }

    #[cfg(test)]
    fn sample_client() -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap()
    }

    /// The same with this view of the cluster.
    #[cfg(test)]
    pub fn sample_of(view: (Cluster, Waker), endpoint: Option<reqwest::Url>) -> Context {
        use crate::azure;
        let client = Context::sample_client();
        let azure = Azure::new(&azure::Config {
            cloud: azure::Cloud::Public,
            endpoint: endpoint.clone(),
            versions: azure::ApiVersions::of(azure::Cloud::Public),
            imds: endpoint,
            credential: azure::Credential::ManagedIdentity { client_id: None },
            budget_percent: 80,
            dry_run: false,
        });
        let (events, _) = Events::new(client.clone(), "us", |_| None);
        let azure = Arc::new(azure.unwrap());
        Context::new(client, events, azure, Arc::default(), view, (None, false), Waits::FULL)
    }

    /// This one before an API server that takes every connection and never answers, as long as the listener
    /// is there, and with this deadline.
    #[cfg(test)]
    pub fn before_silence(self, deadline: std::time::Duration) -> (Context, std::net::TcpListener) {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
        let client = Client::try_from(kube::Config::new(url)).unwrap();
        (Context { client, waits: Waits { deadline, ..Waits::FULL }, ..self }, silent)
    }

    /// Requeues these nodes.
    pub fn wake(&self, nodes: &[String]) {
        nodes.iter().for_each(|node| self.waker.allocation(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_are_those_that_are_documented() {
        let Waits { second_read, deadline, late, grace, unlisted, scarce } = Waits::FULL;
        let seconds = [second_read, deadline, late, grace, unlisted, scarce].map(|wait| wait.as_secs());
        assert_eq!(seconds, [60, 300, 60, 900, 900, 60]);
    }
}
