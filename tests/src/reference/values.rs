//! The chart's values, from its schema and the defaults in `values.yaml`. The same text is the chart's
//! README.

use super::wrapped;
use crate::project::root;
use anyhow::{Context, Result};
use serde_json::Value;

pub(super) fn page() -> Result<String> {
    let mut page = super::head("Values of the chart", "the chart's `values.yaml` and its schema");
    page += "\n[values.yaml](../../charts/vnetpool/values.yaml) has a longer comment for each.\n";
    Ok(page + &lists()?)
}

/// The README of the chart, which goes with its package.
pub(super) fn readme() -> Result<String> {
    let mut page = super::head("The chart of Vnetpool", "`values.yaml` and its schema");
    let text = "Pods with addresses of the Azure virtual network they run in. One installation a cluster: its objects \
                have fixed names. `image.registry` must be given. The namespace needs the label \
                `pod-security.kubernetes.io/enforce=privileged` where Pod Security is enforced, since both programs use \
                the host network. Uninstalling keeps the kinds and the pools.";
    page += &format!("\n{}", wrapped("", "", text));
    Ok(page + &lists()?)
}

fn lists() -> Result<String> {
    let read = |file: &str| std::fs::read_to_string(root().join("charts/vnetpool").join(file));
    let defaults: Value = serde_yaml_ng::from_str(&read("values.yaml")?)?;
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let mut page = String::new();
    let parts = schema["properties"].as_object().context("no values")?;
    for (name, part) in parts.iter().filter(|(name, _)| *name != "global") {
        let title = part["description"].as_str().context("no description")?;
        page += &format!("\n## {name}\n\n{title}\n\n");
        values(&mut page, part, name, &defaults[name]);
    }
    Ok(page)
}

fn values(page: &mut String, schema: &Value, path: &str, defaults: &Value) {
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        let (path, default) = (format!("{path}.{name}"), &defaults[name]);
        if value["additionalProperties"] == false && value["properties"].is_object() {
            values(page, value, &path, default);
            continue;
        }
        let description = value["description"].as_str().unwrap_or_default();
        let default = match default {
            Value::String(text) if text.is_empty() => "empty".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let choices = value["enum"].as_array().map(|all| {
            let all: Vec<_> = all.iter().filter_map(Value::as_str).map(|one| format!("`{one}`")).collect();
            format!(" One of {}.", all.join(", "))
        });
        let text = format!("`{path}` (default {default}): {description}{}", choices.unwrap_or_default());
        *page += &wrapped("- ", "  ", &text);
    }
}
