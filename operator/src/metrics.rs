//! The operator's metrics, `vnetpool_operator_*`: what it did, what it cost in requests to Azure, and what it
//! holds.

mod ages;
mod budget;

use std::fmt::Debug;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use vnetpool_crds::NodeIPPoolStatus;

use crate::azure::{Azure, RequestRecord};
use crate::health::Health;
use crate::lock::lock;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    controller: &'static str,
    /// `ok`, or the reason of the error.
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    kind: &'static str,
    /// The HTTP status; `none` if no answer came.
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolState {
    pool: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
    pool: String,
}

/// From a millisecond, for reconciles that find nothing to do, to the minutes a NIC write may wait for the
/// budget.
#[derive(Clone)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 60.0, 300.0])
    }
}

/// All families. Shared by whoever has something to count.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Family<Reconcile, Counter>,
    reconcile_seconds: Family<Reconcile, Histogram, Seconds>,
    requests: Family<Request, Counter>,
    request_seconds: Family<Request, Histogram, Seconds>,
    budget_wait_seconds: Counter<f64, AtomicU64>,
    nic_writes: Family<Outcome, Counter>,
    addresses: Family<PoolState, Gauge>,
    nodes: Family<Pool, Gauge>,
    leader: Gauge,
    pub health: Arc<Health>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Metrics {
            registry: Mutex::default(),
            reconciles: Family::default(),
            reconcile_seconds: Family::new_with_constructor(Seconds),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(Seconds),
            budget_wait_seconds: Counter::default(),
            nic_writes: Family::default(),
            addresses: Family::default(),
            nodes: Family::default(),
            leader: Gauge::default(),
            health: Arc::default(),
        };
        let mut registry = Registry::with_prefix("vnetpool_operator");
        registry.register("reconciles", "Reconciles, by controller and outcome", metrics.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "How long reconciles took, waiting for Azure included",
            Unit::Seconds,
            metrics.reconcile_seconds.clone(),
        );
        registry.register("arm_requests", "Requests to Azure Resource Manager", metrics.requests.clone());
        registry.register_with_unit(
            "arm_request_duration",
            "How long requests to Azure Resource Manager took",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register_with_unit(
            "arm_budget_wait",
            "How long requests waited for their turn within Azure's limits, in all",
            Unit::Seconds,
            metrics.budget_wait_seconds.clone(),
        );
        registry.register("nic_writes", "Writes of NICs, by outcome", metrics.nic_writes.clone());
        registry.register("addresses", "Addresses by pool and state", metrics.addresses.clone());
        registry.register("nodes", "Nodes by the pool that serves them", metrics.nodes.clone());
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register_collector(Box::new(ages::Ages(metrics.health.clone())));
        Metrics { registry: Mutex::new(registry), ..metrics }
    }
}

impl Metrics {
    /// In the OpenMetrics text format.
    ///
    /// # Errors
    /// Never for the text format's own sake; a `String` takes every write.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &lock(&self.registry))?;
        Ok(out)
    }

    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, took: Duration) {
        let labels = Reconcile { controller, outcome };
        self.reconciles.get_or_create(&labels).inc();
        self.reconcile_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub fn nic_written(&self, outcome: &'static str) {
        self.nic_writes.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn requested(&self, request: &RequestRecord) {
        let status = request.status.map_or("none".to_owned(), |status| status.to_string());
        let labels = Request { kind: request.kind.as_str(), status };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.get_or_create(&labels).observe(request.took.as_secs_f64());
        self.budget_wait_seconds.inc_by(request.waited.as_secs_f64());
    }

    /// The sums of a pool, as its status shows them.
    pub fn pool(&self, pool: &str, status: &NodeIPPoolStatus) {
        for (state, count) in states(status) {
            self.addresses.get_or_create(&PoolState { pool: pool.to_owned(), state }).set(count.into());
        }
        self.nodes.get_or_create(&Pool { pool: pool.to_owned() }).set(status.nodes.into());
    }

    pub fn pool_gone(&self, pool: &str) {
        for (state, _) in states(&NodeIPPoolStatus::default()) {
            self.addresses.remove(&PoolState { pool: pool.to_owned(), state });
        }
        self.nodes.remove(&Pool { pool: pool.to_owned() });
    }

    pub fn leading(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}

/// The counts that add up to what is held, then the one that doesn't.
fn states(status: &NodeIPPoolStatus) -> [(&'static str, u32); 4] {
    [
        ("assigned", status.assigned),
        ("cooling", status.cooling),
        ("free", status.free),
        ("waiting", status.waiting),
    ]
}

/// Where Azure's requests are counted, and how its limits stand.
pub fn observe(metrics: &Arc<Metrics>, azure: &Arc<Azure>) {
    let accounts = Box::new(budget::Accounts(Arc::downgrade(azure)));
    lock(&metrics.registry).register_collector(accounts);
    let metrics = metrics.clone();
    azure.on_request(move |request| metrics.requested(request));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_named_for_the_operator_with_its_unit() {
        let metrics = Metrics::default();
        metrics.reconciled("node", "ok", Duration::from_millis(5));
        metrics.nic_written("ok");
        metrics.pool("p", &NodeIPPoolStatus { nodes: 3, free: 7, ..Default::default() });
        metrics.leading(true);
        metrics.health.heard("Pod");
        let _pass = metrics.health.begin("n");
        let text = metrics.render().unwrap();
        for line in [
            r#"vnetpool_operator_reconciles_total{controller="node",outcome="ok"} 1"#,
            r#"vnetpool_operator_reconcile_duration_seconds_count{controller="node",outcome="ok"} 1"#,
            r#"vnetpool_operator_nic_writes_total{outcome="ok"} 1"#,
            r#"vnetpool_operator_addresses{pool="p",state="free"} 7"#,
            r#"vnetpool_operator_nodes{pool="p"} 3"#,
            "vnetpool_operator_leader 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
        for start in [
            r#"vnetpool_operator_watch_silence_seconds{kind="Pod"} 0."#,
            "vnetpool_operator_reconcile_age_seconds 0.",
        ] {
            assert!(text.lines().any(|one| one.starts_with(start)), "{start} is not in\n{text}");
        }
    }

    #[test]
    fn a_deleted_pool_leaves_no_metrics_behind() {
        let metrics = Metrics::default();
        metrics.pool("p", &NodeIPPoolStatus::default());
        metrics.pool_gone("p");
        assert!(!metrics.render().unwrap().contains("pool="));
    }
}
