//! The facts that each of Vnetpool's programs publishes about itself: its build, and the resources of its
//! process. Prometheus' own libraries name the latter `process_*`, and so do the common dashboards. And how
//! the programs write log lines and lock plain data.

pub mod lock;
pub mod log;

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// A registry for the metrics that begin with `prefix`, which describes this process already. Metrics of the
/// program's own are registered in [`own`] of it.
pub fn registry(prefix: &str, version: &'static str) -> Registry {
    let mut registry = Registry::default();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    registry.register_collector(Box::new(Process { started }));
    let build = Info::new([("version", version)]);
    own(&mut registry, prefix).register("build", "The release that runs", build);
    registry
}

/// The part of the registry whose metrics begin with `prefix`.
pub fn own<'a>(registry: &'a mut Registry, prefix: &str) -> &'a mut Registry {
    registry.sub_registry_with_prefix(prefix)
}

/// Read at each scrape. Values that can't be read are left out.
#[derive(Debug)]
struct Process {
    /// Seconds since 1970.
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        if let Some(seconds) = cpu_seconds() {
            let value = ConstCounter::new(seconds);
            let help = "Processor time used, of user and system";
            value.encode(encoder.encode_descriptor(
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                value_type(&value),
            )?)?;
        }
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: Option<f64>| {
            let Some(value) = value.map(ConstGauge::new) else { return Ok(()) };
            value.encode(encoder.encode_descriptor(name, help, unit, value_type(&value))?)
        };
        gauge("process_resident_memory", "Memory in use", Some(&Unit::Bytes), resident_bytes())?;
        gauge("process_open_fds", "Open file descriptors", None, open_files())?;
        gauge("process_max_fds", "How many file descriptors may be open", None, most_files())?;
        let help = "When the process began, since 1970";
        gauge("process_start_time", help, Some(&Unit::Seconds), Some(self.started))
    }
}

fn value_type(metric: &impl EncodeMetric) -> prometheus_client::metrics::MetricType {
    metric.metric_type()
}

fn cpu_seconds() -> Option<f64> {
    let used = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(used.user_time()) + seconds(used.system_time()))
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn open_files() -> Option<f64> {
    // One of them is opened by this count itself.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn most_files() -> Option<f64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn a_process_reports_its_build_memory_cpu_and_files() {
        let mut text = String::new();
        encode(&mut text, &registry("vnetpool_test", "1.2.3")).unwrap();
        assert!(text.contains("vnetpool_test_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_start_time_seconds") > 1.6e9);
        assert!((3.0..value("process_max_fds")).contains(&value("process_open_fds")));
        assert!(value("process_cpu_seconds_total") < 3600.0);
    }
}
