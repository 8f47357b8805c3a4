//! The agent's metrics, `vnetpool_agent_*`.

mod ages;

use std::{
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use vnetpool_crds::refusal::{Refusal, Service};
use vnetpool_plugin::{
    cni::code,
    ledger::Counts,
    plugin::log::{Invocation, Reader},
};
use vnetpool_process::lock::lock;

use crate::{disturbance, sweep::Suspect};
use ages::Ages;
pub use ages::Watch;

const PREFIX: &str = "vnetpool_agent";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DropTarget {
    target: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refused {
    /// As `namespace/name`.
    pod: String,
    target: &'static str,
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Refused {
        Refused { pod: refusal.pod.clone(), target: refusal.service.word() }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
    outcome: &'static str,
}

/// All families, and whether the agent is ready. A clone is another handle on the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    addresses: Family<State, Gauge>,
    unheld: Family<State, Gauge>,
    waiting: Gauge,
    verbs: Family<Verb, Histogram, fn() -> Histogram>,
    waits: Histogram,
    reports: Family<Outcome, Counter>,
    relinquished: Counter,
    sweeps: Family<Kind, Counter>,
    repairs: Family<Kind, Counter>,
    dropped: Family<DropTarget, Counter>,
    /// For the pods that [`crate::refusals::Refusals`] remembers.
    refused: Family<Refused, Counter>,
    /// Failures of the watch of the node's object.
    pub watch_errors: Counter,
    /// Ledgers built because there was none to read.
    pub rebuilds: Counter,
    /// Times the nftables table had to be put in place.
    pub rules: Counter,
    /// Whether the agent has done its part for the node, as /readyz reports it.
    pub ready: Arc<AtomicBool>,
    ages: Ages,
    /// When the first of those inspections began that were all broken off; `None` if the last one has ended
    /// in time.
    inspecting: Arc<Mutex<Option<Instant>>>,
    /// The plugin's log is counted at each scrape.
    log: Arc<Mutex<Reader>>,
}

/// An invocation of the plugin takes some milliseconds, and 20 s when it waits for an address in vain.
fn verb_seconds() -> Histogram {
    Histogram::new([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 21.0])
}

impl Metrics {
    /// Counts the invocations of the plugin that are logged in `state_dir` from now on.
    pub fn new(state_dir: &Path) -> Self {
        let mut all = vnetpool_process::registry(PREFIX, env!("CARGO_PKG_VERSION"));
        let registry = vnetpool_process::own(&mut all, PREFIX);
        let addresses = Family::default();
        let help = "Addresses that this node holds: the states add up";
        registry.register("addresses", help, addresses.clone());
        let unheld = Family::default();
        let help = "Addresses beside the held ones: lost (a pod has it, the NIC doesn't), withdrawn (taken off the NIC \
                    while free), withheld (the node lacks its rules), relinquished (given up, still on the NIC)";
        registry.register("unheld_addresses", help, unheld.clone());
        let waiting = Gauge::default();
        registry.register("waiting_pods", "Pods that wait for an address", waiting.clone());
        let verbs = Family::new_with_constructor(verb_seconds as fn() -> Histogram);
        let help = "How long invocations of the CNI plugin took, by verb and outcome: ok, later (the runtime tries again) or failed";
        registry.register_with_unit("cni_duration", help, Unit::Seconds, verbs.clone());
        let waits = Histogram::new([0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 21.0]);
        let help = "How long ADD took to get an address from the ledger, also in vain";
        registry.register_with_unit("address_wait", help, Unit::Seconds, waits.clone());
        let reports = Family::default();
        registry.register("status_writes", "Writes of NodeIPAllocation.status by outcome", reports.clone());
        let relinquished = Counter::default();
        registry.register("relinquished_addresses", "Addresses given up for release", relinquished.clone());
        let sweeps = Family::default();
        let help = "Leaked records freed, leaked links deleted, sandboxes without a record taken in";
        registry.register("sweeps", help, sweeps.clone());
        let repairs = Family::default();
        let help = "Changes of other programs on the node that disturbed pods and were repaired";
        registry.register("repairs", help, repairs.clone());
        let dropped = Family::default();
        let help = "Packets that the nftables table has dropped: to metadata and wire_server (by pods and through the node), \
                    to the node's loopback, or spoofed (the source isn't the pod's address)";
        registry.register("dropped_packets", help, dropped.clone());
        let refused = Family::default();
        let help = "Packets to Azure's services on the host that were dropped, by the pod that sent them and their target: \
                    metadata, wire_server";
        registry.register("refused_packets", help, refused.clone());
        let watch_errors = Counter::default();
        let help = "How often the watch of the node's object has failed and was begun anew";
        registry.register("watch_errors", help, watch_errors.clone());
        let rebuilds = Counter::default();
        registry.register(
            "ledger_rebuilds",
            "Ledgers built because there was none to read",
            rebuilds.clone(),
        );
        let rules = Counter::default();
        registry.register("rules_applied", "Times an nftables table had to be put in place", rules.clone());
        // Prometheus sees no increase in a series that begins with its first event.
        for kind in Suspect::KINDS {
            drop(sweeps.get_or_create(&Kind { kind }));
        }
        for kind in disturbance::Kind::ALL {
            drop(repairs.get_or_create(&Kind { kind: kind.word() }));
        }
        for outcome in ["ok", "later", "failed"] {
            drop(verbs.get_or_create(&Verb { verb: "ADD", outcome }));
        }
        let ages = Ages::new();
        registry.register_collector(Box::new(ages.clone()));
        Self {
            registry: Arc::new(all),
            addresses,
            unheld,
            waiting,
            verbs,
            waits,
            reports,
            relinquished,
            sweeps,
            repairs,
            dropped,
            refused,
            watch_errors,
            rebuilds,
            rules,
            ready: Arc::default(),
            ages,
            inspecting: Arc::default(),
            log: Arc::new(Mutex::new(Reader::from_now(state_dir))),
        }
    }

    /// With one of every series, for the reference page and for tests.
    pub fn example() -> Self {
        let metrics = Self::new(Path::new("/nonexistent"));
        metrics.set_counts(Counts::default());
        let (verb, phases) = ("ADD".to_owned(), vec![("ledger".to_owned(), 0.0001)]);
        metrics.count_invocation(&Invocation { verb, took_seconds: 0.003, phases, code: None });
        metrics.count_report(true);
        metrics.count_relinquished(1);
        metrics.count_dropped("metadata".to_owned(), 1);
        metrics.count_refused(&Refusal { service: Service::Metadata, pod: "default/web".to_owned() }, 1);
        metrics.heard(Watch::Object);
        metrics
    }

    pub fn set_counts(&self, counts: Counts) {
        let Counts { held: _, assigned, cooling, free, waiting, relinquished, vanished, withdrawn, withheld } =
            counts;
        for (state, count) in [("assigned", assigned - vanished), ("cooling", cooling), ("free", free)] {
            self.addresses.get_or_create(&State { state }).set(count.into());
        }
        let unheld = [
            ("lost", vanished),
            ("withdrawn", withdrawn),
            ("withheld", withheld),
            ("relinquished", relinquished),
        ];
        for (state, count) in unheld {
            self.unheld.get_or_create(&State { state }).set(count.into());
        }
        self.waiting.set(waiting.into());
    }

    /// An invocation of the plugin has ended.
    fn count_invocation(&self, invocation: &Invocation) {
        let verbs = ["ADD", "DEL", "CHECK", "GC", "STATUS"];
        let Some(verb) = verbs.into_iter().find(|verb| *verb == invocation.verb) else { return };
        let outcome = match invocation.code {
            None => "ok",
            Some(code::TRY_AGAIN_LATER) => "later",
            Some(_) => "failed",
        };
        self.verbs.get_or_create(&Verb { verb, outcome }).observe(invocation.took_seconds);
        if verb == "ADD" {
            let waited =
                invocation.phases.iter().find(|(name, _)| name == "ledger").map(|(_, seconds)| *seconds);
            let in_vain = (outcome == "later").then_some(invocation.took_seconds);
            waited.or(in_vain).into_iter().for_each(|seconds| self.waits.observe(seconds));
        }
    }

    pub fn count_report(&self, is_written: bool) {
        self.reports.get_or_create(&Outcome { outcome: if is_written { "written" } else { "failed" } }).inc();
    }

    pub fn count_relinquished(&self, names: usize) {
        self.relinquished.inc_by(names as u64);
    }

    /// A reconcile has ended, good or bad.
    pub fn reconcile_ended(&self) {
        self.ages.reconcile_ended(Instant::now());
    }

    /// A watch has begun, or brought something.
    pub fn heard(&self, watch: Watch) {
        self.ages.heard(watch, Instant::now());
    }

    /// How long ago the last reconcile ended.
    pub fn since_reconcile(&self) -> Duration {
        self.ages.reconciled().elapsed()
    }

    /// An inspection of the node begins.
    pub fn inspection_began(&self) {
        lock(&self.inspecting).get_or_insert_with(Instant::now);
    }

    /// An inspection has ended in time.
    pub fn inspection_ended(&self) {
        *lock(&self.inspecting) = None;
    }

    /// For how long no inspection has ended in time; zero if none is under way.
    pub fn inspecting_for(&self) -> Duration {
        lock(&self.inspecting).map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// `kind` is that of [`Suspect::kind`](crate::sweep::Suspect::kind).
    pub fn count_sweep(&self, kind: &'static str) {
        self.sweeps.get_or_create(&Kind { kind }).inc();
    }

    /// `kind` is that of `disturbance::Kind::word`.
    pub fn count_repair(&self, kind: &'static str) {
        self.repairs.get_or_create(&Kind { kind }).inc();
    }

    /// `target` is the name of a counter in the nftables table.
    pub fn count_dropped(&self, target: String, packets: u64) {
        self.dropped.get_or_create(&DropTarget { target }).inc_by(packets);
    }

    pub fn count_refused(&self, refusal: &Refusal, packets: u64) {
        self.refused.get_or_create(&refusal.into()).inc_by(packets);
    }

    /// The pod is no longer remembered.
    pub fn forget_refused(&self, refusal: &Refusal) {
        self.refused.remove(&refusal.into());
    }

    /// In the text format of OpenMetrics.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        lock(&self.log).read(|invocation| self.count_invocation(&invocation));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serves(metrics: &Metrics, line: &str) {
        let text = metrics.text().unwrap();
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }

    #[test]
    fn the_states_of_addresses_add_up_to_the_held_ones() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new(dir.path());
        let (assigned, cooling, free, vanished) = (5, 2, 7, 1);
        let held = assigned - vanished + cooling + free;
        let others = Counts { relinquished: 3, withdrawn: 4, waiting: 6, ..Counts::default() };
        metrics.set_counts(Counts { held, assigned, cooling, free, vanished, ..others });
        let text = metrics.text().unwrap();
        let states = text.lines().filter(|line| line.starts_with("vnetpool_agent_addresses{"));
        let values = states.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok());
        assert_eq!(values.sum::<u32>(), held);
        serves(&metrics, r#"vnetpool_agent_unheld_addresses{state="lost"} 1"#);
        serves(&metrics, "vnetpool_agent_waiting_pods 6");
    }

    #[test]
    fn metrics_show_the_age_of_the_last_reconcile_and_of_each_watch() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new(dir.path());
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        metrics.ages.reconcile_ended(ago(7));
        metrics.ages.heard(Watch::Object, ago(50));
        metrics.heard(Watch::Ledger);
        let text = metrics.text().unwrap();
        let value = |series: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().unwrap()
        };
        let silence = |kind| value(&format!(r#"vnetpool_agent_watch_silence_seconds{{kind="{kind}"}}"#));
        assert!((7.0..40.0).contains(&value("vnetpool_agent_last_reconcile_age_seconds")), "{text}");
        assert!((50.0..90.0).contains(&silence("NodeIPAllocation")), "{text}");
        assert!((0.0..30.0).contains(&silence("ledger")), "{text}");
        metrics.reconcile_ended();
        assert!(metrics.since_reconcile() < Duration::from_secs(5));
    }

    #[test]
    fn an_event_that_never_happened_has_the_count_zero() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new(dir.path());
        serves(&metrics, r#"vnetpool_agent_repairs_total{kind="route"} 0"#);
        serves(&metrics, r#"vnetpool_agent_sweeps_total{kind="record"} 0"#);
        serves(&metrics, r#"vnetpool_agent_cni_duration_seconds_count{verb="ADD",outcome="failed"} 0"#);
    }

    #[test]
    fn logged_invocations_are_counted_by_verb_and_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new(dir.path());
        let lines = [
            r#"{"verb":"ADD","took_seconds":0.003,"phases":[["lock",1e-5],["ledger",0.0007],["wired",0.002]]}"#,
            r#"{"verb":"ADD","took_seconds":20.003,"phases":[["lock",0.00001]],"code":11,"error":"none"}"#,
            r#"{"verb":"ADD","took_seconds":0.00004,"phases":[],"code":4,"error":"no namespace"}"#,
            r#"{"verb":"DEL","took_seconds":0.0009,"phases":[["lock",0.00001]]}"#,
            r#"{"verb":"anything","took_seconds":0.0009,"phases":[]}"#,
        ];
        std::fs::write(dir.path().join("plugin.log"), lines.join("\n") + "\n").unwrap();
        let count = |verb, outcome| {
            format!(r#"vnetpool_agent_cni_duration_seconds_count{{verb="{verb}",outcome="{outcome}"}} 1"#)
        };
        for (verb, outcome) in [("ADD", "ok"), ("ADD", "later"), ("ADD", "failed"), ("DEL", "ok")] {
            serves(&metrics, &count(verb, outcome));
        }
        serves(&metrics, "vnetpool_agent_address_wait_seconds_count 2");
        serves(&metrics, r#"vnetpool_agent_address_wait_seconds_bucket{le="0.001"} 1"#);
        serves(&metrics, r#"vnetpool_agent_address_wait_seconds_bucket{le="21.0"} 2"#);
        assert!(!metrics.text().unwrap().contains("anything"));
    }
}
