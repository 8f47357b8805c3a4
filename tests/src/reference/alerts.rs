//! The chart's alerts, from the file that Prometheus takes.

use super::{head, wrapped};
use crate::monitoring::alerts;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;

pub(super) fn page() -> Result<String> {
    let mut page = head("Alerts", "the chart's `monitoring/alerts.yaml`");
    let text = "With `monitoring.alerts.enabled` the chart makes a PrometheusRule of them. [Monitoring](../monitoring.md) \
                shows how to get them without the Prometheus operator. Each name leads to its runbook: meaning, impact, \
                diagnosis, mitigation. An alert fires once its condition has held for the time in the third column. Words \
                in capitals stand for labels of the alert, and N for its value.";
    page += &format!("\n{}", wrapped("", "", text));
    page += "\n| alert | severity | after | what it reports |\n|---|---|---|---|\n";
    let (alerts, mut conditions) = (alerts()?, String::new());
    for alert in &alerts {
        let text = |value: &'static str| alert.pointer(value).and_then(Value::as_str);
        let of = |value| text(value).with_context(|| format!("an alert without {value}: {alert}"));
        let name = of("/alert")?;
        let (severity, summary) = (of("/labels/severity")?, in_words(of("/annotations/summary")?));
        let after = match text("/for").unwrap_or("0m") {
            "0m" => "at once",
            after => after,
        };
        let runbook = format!("../runbooks.md#{}", name.to_lowercase());
        let _ = writeln!(page, "| [{name}]({runbook}) | {severity} | {after} | {summary} |");
        let _ = write!(conditions, "\n`{name}`\n\n```text\n{}\n```\n", of("/expr")?.trim_end());
    }
    Ok(page + "\n## Their conditions\n" + &conditions)
}

/// A summary without the marks of Prometheus' templates.
fn in_words(summary: &str) -> String {
    let mut parts = summary.split("{{");
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (mark, rest) = part.split_once("}}").unwrap_or((part, ""));
        let name = mark.trim().trim_start_matches("$labels.");
        words += &if name == "$value" { "N".to_owned() } else { name.to_uppercase() };
        words += rest;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_words_for_its_labels_and_its_value() {
        let summary = "Pods of the pool {{ $labels.pool }} that wait: {{ $value }}.";
        assert_eq!(in_words(summary), "Pods of the pool POOL that wait: N.");
        assert_eq!(in_words("Nobody leads."), "Nobody leads.");
        assert!(!alerts().unwrap().is_empty() && !page().unwrap().contains("{{"));
    }
}
