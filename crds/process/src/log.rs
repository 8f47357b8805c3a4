//! The log lines of both programs: as JSON for machines or text for people, with the same names for the same
//! things. `docs/reference/logs.md` is made from the table. The CNI plugin writes its own log, by the same
//! table. It is too short-lived for this one's crates.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full, Json, JsonFields};

/// The runtime's spans, which repeat ours, are left out.
const USUAL: &str = "info,kube_runtime=warn";

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

/// Sends log lines to stderr, at `info` unless `RUST_LOG` has another filter.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(USUAL));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Json => json(lines).init(),
        LogFormat::Text => lines.init(),
    }
}

/// The innermost span would be there twice: it is the last of the list.
fn json<F, W>(
    lines: SubscriberBuilder<DefaultFields, Format<Full>, F, W>,
) -> SubscriberBuilder<JsonFields, Format<Json>, F, W> {
    lines.json().flatten_event(true).with_current_span(false)
}

/// A key of a line.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    /// What its number counts, or how its text is written. Empty: a text for people.
    pub unit: &'static str,
    pub meaning: &'static str,
}

const fn key(name: &'static str, unit: &'static str, meaning: &'static str) -> Key {
    Key { name, unit, meaning }
}

/// The keys of lines as such. A detail of such a name would stand in a line of JSON twice.
pub const OF_EACH_LINE: [Key; 5] = [
    key("timestamp", "RFC 3339, UTC, microseconds", "when the line was written"),
    key("level", "`ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`", "how much it matters"),
    key("target", "a path", "the module that wrote it; `vnetpool_plugin` in the plugin's log"),
    key("message", "", "what has happened; the same words each time"),
    key("spans", "a list", "what the line is part of, outermost first: each with a `name` and details"),
];

/// The name of a span stands beside its details.
pub const OF_SPANS: [&str; 1] = ["name"];

/// The details, of lines and of spans.
pub const DETAILS: &[Key] = &[
    key("address", "IPv4 address", "a pod's"),
    key("bar_seconds", "s", "how long no new token is asked for"),
    key("call", "`read`, `write`, `delete` or `poll`", "the kind of request to Azure"),
    key("code", "number", "of a CNI error, as CNI's specification has it"),
    key("configuration", "`true` or `false`", "whether the CNI configuration was changed"),
    key("controller", "`node`, `pool` or `admit`", "which of the operator's loops reconciles the object"),
    key("correlation_id", "UUID", "by which Azure's activity log shows the request"),
    key("error", "", "what went wrong, with its cause, and the remedy where there is one"),
    key("full", "`true` or `false`", "whether the node can get no more addresses"),
    key("gap_seconds", "s", "how long nobody had renewed the Lease"),
    key("has_token", "`true` or `false`", "whether an earlier token is still good"),
    key("held", "addresses", "what the node's NIC, or its range, holds"),
    key("identity", "name and UUID", "the replica of the operator"),
    key("in_use", "addresses", "those that pods have"),
    key("ip_configurations", "number", "how many a NIC has, those of other clients included"),
    key("kind", "", "of a Kubernetes object"),
    key("lease", "name", "of the Lease by which replicas agree on who leads"),
    key("limit", "", "the limit of Azure's that was met"),
    key("names", "a list", "of reservations"),
    key("nft_table", "family and name", "a table of nftables"),
    key("nic", "Azure's id", "a network interface"),
    key("node", "name", "of the Node, and so of its NodeIPAllocation"),
    key("nodes", "number", "how many Nodes"),
    key("object", "name", "of a Kubernetes object; its kind is in `kind`, where it isn't plain"),
    key("phases", "a list of names and seconds", "the stages of an invocation of the plugin"),
    key("pid", "number", "of the plugin's process"),
    key("plugin", "`true` or `false`", "whether the file of the CNI plugin was changed"),
    key("pod", "`namespace/name`", "a pod"),
    key("pod_uid", "UUID", "the same pod's"),
    key("pool", "name", "of a NodeIPPool"),
    key("public_address", "Azure's id", "a public address"),
    key("reason", "", "a reason of a condition or an Event, as on the page of conditions"),
    key("release", "reservations", "what a write takes off"),
    key("released", "addresses", "what a write has taken off"),
    key("relinquished", "reservations", "those that the node has given up for good"),
    key("repair", "", "the kind of repair, as in the metric `vnetpool_agent_repairs_total`"),
    key("request_id", "UUID", "of one request to Azure, for its support"),
    key("reserve", "reservations", "what a write adds"),
    key("reserved", "addresses", "what a write has added"),
    key("resource", "Azure's id", "what a request to Azure is about"),
    key("retry_after_seconds", "s", "how long Azure wants no such request"),
    key("route_table", "Azure's id", "a route table"),
    key("routes", "number", "how many the route table has, those of other clients included"),
    key("sandbox", "`container/interface`", "one interface of a container, as the runtime names it"),
    key("status", "HTTP status", "of Azure's answer; left out if none came"),
    key("subnet", "Azure's id", "a subnet"),
    key("suspect", "", "a record or link that seems to have outlived its pod"),
    key("target_addresses", "addresses", "how many the node is to keep: `spec.target`"),
    key("took_seconds", "s", "how long it took"),
    key("verb", "`ADD`, `DEL`, `CHECK`, `GC`, …", "of CNI"),
    key("vm", "Azure's id", "a virtual machine, or an instance of a scale set"),
    key("vnet", "Azure's id", "a virtual network"),
    key("waited_seconds", "s", "how long a request waited for its turn within Azure's limits"),
    key("what", "", "what was repaired, or what wasn't written"),
    key("words", "", "the whole text of an answer of Azure's"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::lock;
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_json_has_each_key_once_and_the_details_of_its_spans() {
        let written = Written::default();
        let writer = written.clone();
        let lines = json(tracing_subscriber::fmt().with_writer(move || writer.clone())).finish();
        tracing::subscriber::with_default(lines, || {
            let _reconcile = tracing::info_span!("reconcile", node = "node-1").entered();
            tracing::info!(took_seconds = 1.5, "NIC written");
        });
        let line = String::from_utf8(lock(&written.0).clone()).unwrap();
        let keys = OF_EACH_LINE.map(|key| key.name);
        for name in keys.iter().chain(&OF_SPANS).chain(&["node", "took_seconds"]) {
            assert_eq!(line.matches(&format!("\"{name}\":")).count(), 1, "{name} in {line}");
        }
        let time = line.split('"').nth(3).unwrap();
        assert_eq!((time.len(), time.ends_with('Z')), ("2026-01-01T00:00:00.000000Z".len(), true), "{line}");
        for part in ["\"level\":\"INFO\"", "\"took_seconds\":1.5", "\"node\":\"node-1\"", "\"reconcile\""] {
            assert!(line.contains(part), "no {part} in {line}");
        }
    }

    #[test]
    fn each_name_has_one_meaning_and_the_unit_of_a_duration_is_in_its_name() {
        let names: Vec<_> = DETAILS.iter().map(|key| key.name).collect();
        let distinct: BTreeSet<_> = names.iter().copied().collect();
        assert!(names.is_sorted() && distinct.len() == names.len(), "{names:?}");
        let mut of_lines = OF_EACH_LINE.iter().map(|key| key.name).chain(OF_SPANS);
        assert!(of_lines.all(|name| !distinct.contains(name)));
        for Key { name, unit, .. } in DETAILS {
            assert_eq!(*unit == "s", name.ends_with("_seconds"), "{name}");
        }
    }
}
