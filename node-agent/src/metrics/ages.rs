//! How long ago the last reconcile ended and each watch last brought an event, made at each scrape.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Instant,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Unit,
};
use vnetpool_process::lock::lock;

/// Something that the agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// The node's NodeIPAllocation.
    Object,
    /// What the metadata service says of the VM, on one of no cluster.
    Metadata,
    Ledger,
    /// The kernel's links, addresses and routes.
    Network,
    /// The tables of nftables.
    Tables,
}

impl Watch {
    fn word(self) -> &'static str {
        match self {
            Watch::Object => "NodeIPAllocation",
            Watch::Metadata => "metadata",
            Watch::Ledger => "ledger",
            Watch::Network => "network",
            Watch::Tables => "tables",
        }
    }
}

/// A clone is another handle on the same.
#[derive(Clone, Debug)]
pub struct Ages {
    /// When a reconcile, good or bad, ended last.
    reconciled: Arc<Mutex<Instant>>,
    /// When each watch brought something last, or began.
    heard: Arc<Mutex<BTreeMap<Watch, Instant>>>,
}

impl Ages {
    pub fn new() -> Ages {
        Ages { reconciled: Arc::new(Mutex::new(Instant::now())), heard: Arc::default() }
    }

    pub fn reconcile_ended(&self, now: Instant) {
        *lock(&self.reconciled) = now;
    }

    /// When the last reconcile ended.
    pub fn reconciled(&self) -> Instant {
        *lock(&self.reconciled)
    }

    pub fn heard(&self, watch: Watch, now: Instant) {
        lock(&self.heard).insert(watch, now);
    }
}

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let now = Instant::now();
        let age = |at: Instant| ConstGauge::new(now.saturating_duration_since(at).as_secs_f64());
        let kind = ConstGauge::<f64>::new(0.0).metric_type();
        let help = "How long ago the last reconcile ended, well or badly";
        let metric = encoder.encode_descriptor("last_reconcile_age", help, Some(&Unit::Seconds), kind)?;
        age(self.reconciled()).encode(metric)?;
        let kind = ConstGauge::<f64>::new(0.0).metric_type();
        let help = "How long ago a watch brought something; where nothing changes, it is silent";
        let mut metric = encoder.encode_descriptor("watch_silence", help, Some(&Unit::Seconds), kind)?;
        for (watch, at) in lock(&self.heard).iter() {
            age(*at).encode(metric.encode_family(&[("kind", watch.word())])?)?;
        }
        Ok(())
    }
}
