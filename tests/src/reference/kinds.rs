//! The fields of both kinds, from the definitions that the API server gets.

use super::{head, wrapped};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;

pub(super) fn page() -> Result<String> {
    let mut page = head("Fields of both kinds", "the CustomResourceDefinitions");
    let text = "`kubectl explain nodeippool.spec` prints the same. Only the operator writes a NodeIPAllocation's \
                `spec`, and only the node's agent its `status`. People edit NodeIPPools.";
    page += &format!("\n{}", wrapped("", "", text));
    for definition in vnetpool_crds::definitions()? {
        let definition = serde_json::to_value(&definition)?;
        let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").context("no schema")?;
        let kind = definition["spec"]["names"]["kind"].as_str().context("no kind")?;
        let _ = write!(page, "\n## {kind}\n\n");
        page += &wrapped("", "", schema["description"].as_str().unwrap_or_default());
        for part in ["spec", "status"] {
            let _ = write!(page, "\n### {kind}.{part}\n\n");
            fields(&mut page, &schema["properties"][part], part);
        }
    }
    Ok(page)
}

fn fields(page: &mut String, schema: &Value, path: &str) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let mut facts = vec![];
        let either = field["x-kubernetes-int-or-string"].as_bool().is_some_and(|is| is);
        let kind = field["type"].as_str().or(either.then_some("integer or string"));
        facts.extend(kind.map(str::to_owned));
        if let Some(values) = field["enum"].as_array() {
            let values: Vec<_> =
                values.iter().filter_map(Value::as_str).map(|one| format!("`{one}`")).collect();
            facts.push(format!("one of {}", values.join(", ")));
        }
        let bound = |key: &str| field[key].as_f64();
        match (bound("minimum"), bound("maximum")) {
            (Some(least), Some(most)) => facts.push(format!("{least} to {most}")),
            (Some(least), None) => facts.push(format!("{least} or more")),
            _ => {}
        }
        match &field["default"] {
            Value::Null if required.contains(&name.as_str().into()) => facts.push("required".to_owned()),
            Value::Null | Value::Object(_) => {}
            default => facts
                .push(format!("default `{}`", default.as_str().map_or(default.to_string(), str::to_owned))),
        }
        let description = field["description"].as_str().unwrap_or_default();
        let text = format!("`{path}` ({}): {description}", facts.join("; "));
        *page += &wrapped("- ", "  ", &text);
        // Conditions are Kubernetes' own, and a selector is the same as a Deployment's.
        if !["conditions", "nodeSelector"].contains(&name.as_str()) {
            fields(page, field, &path);
            fields(page, &field["items"], &format!("{path}[]"));
        }
    }
}
