//! How long the longest reconcile under way has taken, how long each watch has been silent and how often it
//! has failed, made at each scrape.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use crate::health::Health;

#[derive(Debug)]
pub struct Ages(pub Arc<Health>);

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let now = Instant::now();
        let kind = ConstGauge::<f64>::new(0.0).metric_type();
        let help = "How long the longest reconcile of a node under way has taken, waiting for Azure included";
        let metric = encoder.encode_descriptor("reconcile_age", help, Some(&Unit::Seconds), kind)?;
        ConstGauge::new(self.0.longest(now).as_secs_f64()).encode(metric)?;
        let kind = ConstGauge::<f64>::new(0.0).metric_type();
        let help = "How long ago a watch brought something";
        let mut metric = encoder.encode_descriptor("watch_silence", help, Some(&Unit::Seconds), kind)?;
        for (kind, silence) in self.0.silences(now) {
            ConstGauge::new(silence.as_secs_f64()).encode(metric.encode_family(&[("kind", kind)])?)?;
        }
        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "How often a watch has failed and was begun anew";
        let mut metric = encoder.encode_descriptor("watch_errors", help, None, kind)?;
        for (kind, count) in self.0.interruptions() {
            ConstCounter::new(count).encode(metric.encode_family(&[("kind", kind)])?)?;
        }
        Ok(())
    }
}
