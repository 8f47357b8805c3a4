//! The agent's metrics.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use vnetpool_plugin::ledger::Counts;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Target {
    target: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Pod {
    /// As `namespace/name`.
    pod: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// All families, and whether the node is ready. A clone is another handle on the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    addresses: Family<State, Gauge>,
    waiting: Gauge,
    reports: Family<Outcome, Counter>,
    relinquished: Counter,
    sweeps: Family<Kind, Counter>,
    repairs: Family<Kind, Counter>,
    dropped: Family<Target, Counter>,
    /// As many as the node has pods, at most.
    refused: Family<Pod, Counter>,
    /// Ledgers built because there was none to read.
    pub rebuilds: Counter,
    /// Times the nftables table had to be put in place.
    pub rules: Counter,
    /// Whether the node has a ledger and the CNI configuration: what /readyz says.
    pub ready: Arc<AtomicBool>,
    /// When a pass, good or bad, ended last.
    passed: Arc<Mutex<Instant>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vnetpool_agent");
        let addresses = Family::default();
        registry.register("addresses", "Addresses of this node by state", addresses.clone());
        let waiting = Gauge::default();
        registry.register("waiting_pods", "Pods that wait for an address", waiting.clone());
        let reports = Family::default();
        registry.register("status_writes", "Writes of NodeIPAllocation.status by outcome", reports.clone());
        let relinquished = Counter::default();
        registry.register("relinquished_addresses", "Addresses given up for release", relinquished.clone());
        let sweeps = Family::default();
        let help = "Leaked records freed, leaked links deleted, sandboxes without a record taken in";
        registry.register("sweeps", help, sweeps.clone());
        let repairs = Family::default();
        let help = "What pods need and somebody else on the node had changed, put right";
        registry.register("repairs", help, repairs.clone());
        let dropped = Family::default();
        let help = "Packets of pods that the nftables table has dropped, by what they wanted: metadata, wire_server, \
                    loopback (of the node), spoofed (a source address that isn't the pod's)";
        registry.register("dropped_packets", help, dropped.clone());
        let refused = Family::default();
        let help = "Packets to the instance metadata service that were dropped, by the pod that sent them";
        registry.register("metadata_refused_packets", help, refused.clone());
        let rebuilds = Counter::default();
        registry.register(
            "ledger_rebuilds",
            "Ledgers built because there was none to read",
            rebuilds.clone(),
        );
        let rules = Counter::default();
        registry.register("rules_applied", "Times an nftables table had to be put in place", rules.clone());
        let (registry, ready) = (Arc::new(registry), Arc::default());
        let passed = Arc::new(Mutex::new(Instant::now()));
        Self {
            registry,
            addresses,
            waiting,
            reports,
            relinquished,
            sweeps,
            repairs,
            dropped,
            refused,
            rebuilds,
            rules,
            ready,
            passed,
        }
    }
}

impl Metrics {
    pub fn set_counts(&self, counts: Counts) {
        let Counts { held, assigned, cooling, free, waiting, relinquished, vanished, withdrawn } = counts;
        let states = [
            ("held", held),
            ("assigned", assigned),
            ("cooling", cooling),
            ("free", free),
            ("relinquished", relinquished),
            ("vanished", vanished),
            ("withdrawn", withdrawn),
        ];
        for (state, count) in states {
            self.addresses.get_or_create(&State { state }).set(count.into());
        }
        self.waiting.set(waiting.into());
    }

    pub fn count_report(&self, is_written: bool) {
        self.reports.get_or_create(&Outcome { outcome: if is_written { "written" } else { "failed" } }).inc();
    }

    pub fn count_relinquished(&self, names: usize) {
        self.relinquished.inc_by(names as u64);
    }

    /// A pass has ended, good or bad.
    pub fn pass_ended(&self) {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long ago the last pass ended.
    pub fn since_pass(&self) -> Duration {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// `kind` is that of [`Suspect::kind`](crate::sweep::Suspect::kind).
    pub fn count_sweep(&self, kind: &'static str) {
        self.sweeps.get_or_create(&Kind { kind }).inc();
    }

    /// `kind` is that of [`Kind::word`](crate::disturbance::Kind::word).
    pub fn count_repair(&self, kind: &'static str) {
        self.repairs.get_or_create(&Kind { kind }).inc();
    }

    /// `target` is the name of a counter in the nftables table.
    pub fn count_dropped(&self, target: String, packets: u64) {
        self.dropped.get_or_create(&Target { target }).inc_by(packets);
    }

    /// `pod` as `namespace/name`.
    pub fn count_refused(&self, pod: &str, packets: u64) {
        self.refused.get_or_create(&Pod { pod: pod.to_owned() }).inc_by(packets);
    }

    /// The pod has left the node.
    pub fn forget_refused(&self, pod: String) {
        self.refused.remove(&Pod { pod });
    }

    /// In the text format of OpenMetrics.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
