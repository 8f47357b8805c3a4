//! The chart's values, from its schema, which is made from `values.yaml`. The same text is the chart's
//! README.

use super::{schema, wrapped};
use anyhow::{Context, Result};
use serde_json::Value;

pub(super) fn page() -> Result<String> {
    let mut page = super::head("Values of the chart", "the comments in the chart's `values.yaml`");
    page += "\n[values.yaml](../../charts/vnetpool/values.yaml) has them in the order of their use.\n";
    Ok(page + &lists()?)
}

/// The README of the chart, which goes with its package.
pub(super) fn readme() -> Result<String> {
    let mut page = super::head("The chart of Vnetpool", "the comments in `values.yaml`");
    let text = "Pods with addresses of the Azure virtual network they run in. One installation a cluster: its objects \
                have fixed names. `image.registry` must be given. The namespace needs the label \
                `pod-security.kubernetes.io/enforce=privileged` where Pod Security is enforced, since both programs use \
                the host network. Uninstalling keeps the kinds and the pools.";
    page += &format!("\n{}", wrapped("", "", text));
    Ok(page + &lists()?)
}

fn lists() -> Result<String> {
    let schema = schema::schema()?;
    let mut page = String::new();
    let parts = schema["properties"].as_object().context("no values")?;
    let of_a_parent = ["enabled", "global"];
    for (name, part) in parts.iter().filter(|(name, _)| !of_a_parent.contains(&name.as_str())) {
        page += &format!("\n## {name}\n\n");
        list(&mut page, part, name);
    }
    Ok(page)
}

/// A value, or those of a part, each by its path.
fn list(page: &mut String, schema: &Value, path: &str) {
    let description = schema["description"].as_str().unwrap_or_default();
    if schema["additionalProperties"] == false {
        if !path.contains('.') {
            *page += &format!("{}\n", wrapped("", "", description));
        }
        for (name, value) in schema["properties"].as_object().into_iter().flatten() {
            list(page, value, &format!("{path}.{name}"));
        }
        return;
    }
    let default = match &schema["default"] {
        Value::String(text) if text.is_empty() => "empty".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    };
    let (text, items) = description.split_once('\n').unwrap_or((description, ""));
    // The items of a list name them already.
    let choices = schema["enum"].as_array().filter(|_| items.is_empty()).map(|all| {
        let all: Vec<_> = all.iter().filter_map(Value::as_str).map(|one| format!("`{one}`")).collect();
        format!(" One of {}.", all.join(", "))
    });
    let text = format!("`{path}` (default {default}): {text}{}", choices.unwrap_or_default());
    *page += &wrapped("- ", "  ", &text);
    for item in items.lines() {
        *page += &wrapped("  - ", "    ", item.trim_start_matches("- "));
    }
}
