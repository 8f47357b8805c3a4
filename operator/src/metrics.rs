//! The operator's metrics, `vnetpool_operator_*`: its work, its requests to Azure, and the addresses it
//! holds.

mod ages;
mod budget;
mod conditions;
pub mod example;
mod pools;

use std::fmt::Debug;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use vnetpool_crds::NodeIPPoolStatus;

use crate::azure::{Azure, RequestRecord};
use crate::cluster::Cluster;
use crate::health::Health;
use crate::lock::lock;

const PREFIX: &str = "vnetpool_operator";

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

/// From a millisecond, for reconciles that find nothing to do, to the minutes a NIC write may wait for the
/// budget.
#[derive(Clone)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 60.0, 300.0])
    }
}

/// All families. Shared by every task that counts something.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Family<Reconcile, Counter>,
    reconcile_seconds: Family<Reconcile, Histogram, Seconds>,
    requests: Family<Request, Counter>,
    request_seconds: Family<Request, Histogram, Seconds>,
    budget_wait_seconds: Counter<f64, AtomicU64>,
    nic_write_seconds: Family<Outcome, Histogram, Seconds>,
    pools: Arc<pools::Pools>,
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
            nic_write_seconds: Family::new_with_constructor(Seconds),
            pools: Arc::default(),
            leader: Gauge::default(),
            health: Arc::default(),
        };
        let mut all = vnetpool_process::registry(PREFIX, env!("CARGO_PKG_VERSION"));
        let registry = vnetpool_process::own(&mut all, PREFIX);
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
        registry.register_with_unit(
            "nic_write_duration",
            "How long writes of NICs took, their wait for a turn within Azure's limits included",
            Unit::Seconds,
            metrics.nic_write_seconds.clone(),
        );
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register_collector(Box::new(metrics.pools.clone()));
        registry.register_collector(Box::new(ages::Ages(metrics.health.clone())));
        Metrics { registry: Mutex::new(all), ..metrics }
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

    pub fn nic_written(&self, outcome: &'static str, took: Duration) {
        self.nic_write_seconds.get_or_create(&Outcome { outcome }).observe(took.as_secs_f64());
    }

    pub fn requested(&self, request: &RequestRecord) {
        let status = request.status.map_or("none".to_owned(), |status| status.to_string());
        let labels = Request { kind: request.kind.as_str(), status };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.get_or_create(&labels).observe(request.took.as_secs_f64());
        self.budget_wait_seconds.inc_by(request.waited.as_secs_f64());
    }

    /// The pool's status, as metrics show it from now on.
    pub fn pool(&self, pool: &str, status: &NodeIPPoolStatus) {
        self.pools.set(pool, status);
    }

    pub fn pool_gone(&self, pool: &str) {
        self.pools.forget(pool);
    }

    pub fn leading(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}

/// Where Azure's requests are counted, and how its limits stand.
pub fn observe(metrics: &Arc<Metrics>, azure: &Arc<Azure>) {
    // Weak, because Azure's client reports to the metrics in turn.
    let azure_of = Arc::downgrade(azure);
    collect(
        metrics,
        budget::Accounts::new(move || {
            let azure = azure_of.upgrade()?;
            Some((azure.accounts(), azure.waiting()))
        }),
    );
    let metrics = metrics.clone();
    azure.on_request(move |request| metrics.requested(request));
}

/// How the conditions of the objects stand that this leader watches.
pub fn watch(metrics: &Metrics, cluster: &Cluster) {
    let cluster = cluster.clone();
    let counted = move || {
        let (pools, allocations) = (cluster.pools().state(), cluster.allocations().state());
        conditions::count(pools.iter().map(Arc::as_ref), allocations.iter().map(Arc::as_ref))
    };
    collect(metrics, conditions::Conditions::new(counted));
}

fn collect(metrics: &Metrics, collector: impl Collector) {
    vnetpool_process::own(&mut lock(&metrics.registry), PREFIX).register_collector(Box::new(collector));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_named_for_the_operator_with_its_unit() {
        let text = Metrics::example().render().unwrap();
        for line in [
            r#"vnetpool_operator_reconciles_total{controller="node",outcome="ok"} 1"#,
            r#"vnetpool_operator_reconcile_duration_seconds_count{controller="node",outcome="ok"} 1"#,
            r#"vnetpool_operator_nic_write_duration_seconds_count{outcome="ok"} 1"#,
            r#"vnetpool_operator_nodes{pool="default"} 3"#,
            "vnetpool_operator_leader 1",
            r#"vnetpool_operator_watch_errors_total{kind="Pod"} 1"#,
            concat!("vnetpool_operator_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
        for start in [
            r#"vnetpool_operator_watch_silence_seconds{kind="Pod"} 0."#,
            "vnetpool_operator_reconcile_age_seconds 0.",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.lines().any(|one| one.starts_with(start)), "{start} is not in\n{text}");
        }
    }
}
