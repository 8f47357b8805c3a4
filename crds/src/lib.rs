//! The API of Vnetpool, group `vnetpool.io`, version `v1alpha1`: two cluster-scoped kinds.
//!
//! ```text
//!   NodeIPPool                    NodeIPAllocation (one per node, named after it)
//!   policy, written by people     ┌ spec   ─ what Azure has reserved for the node: only the operator writes it
//!   status: the sums of its ────► └ status ─ what the node does with it: only that node's agent writes it
//!   allocations (operator)          status.conditions: each side applies its own types under its own field manager
//! ```
//!
//! Nothing here does I/O: types, defaults, validation rules, and the few pure functions that belong to them.
//! `cargo run -p vnetpool-crds` prints the CustomResourceDefinitions; `manifests/` holds them as generated.

// kube's printcolumn(...) repeats its inner keys for each column.
#![allow(clippy::duplicated_attributes)]

pub mod allocation;
pub mod condition;
pub mod inspection;
pub mod names;
pub mod pool;
pub mod reason;
pub mod reference;
pub mod refusal;
pub mod verdict;

pub use allocation::{NodeIPAllocation, NodeIPAllocationSpec, NodeIPAllocationStatus};
pub use pool::{NodeIPPool, NodeIPPoolSpec, NodeIPPoolStatus};

use condition::On;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON};
use kube::CustomResourceExt;
use serde_json::Value;

/// Both CustomResourceDefinitions as a cluster is to have them.
///
/// # Errors
/// Never, unless the types they are derived from can't be written as JSON.
pub fn definitions() -> serde_json::Result<[CustomResourceDefinition; 2]> {
    let pool = unseen(described(shipped(NodeIPPool::crd())?, On::NodeIPPool));
    let allocation = described(shipped(NodeIPAllocation::crd())?, On::NodeIPAllocation);
    Ok([pool, allocation])
}

/// A definition as a YAML document with its beginning marked: files of them can be put one after another.
///
/// # Errors
/// Never, unless the definition can't be written as YAML.
pub fn manifest(definition: &CustomResourceDefinition) -> serde_yaml_ng::Result<String> {
    Ok(format!("---\n{}", serde_yaml_ng::to_string(definition)?))
}

/// With a status, from its creation on, that shows that no operator has seen the pool. By kstatus' rules an
/// object without a generation in its status is done, so tools would not wait for a pool that is just made.
fn unseen(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let status = serde_json::json!({ "observedGeneration": 0 });
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let fields = schema.and_then(|schema| schema.properties.as_mut());
        if let Some(field) = fields.and_then(|fields| fields.get_mut("status")) {
            field.default = Some(JSON(status.clone()));
        }
    }
    definition
}

/// With a description of `status.conditions` that names each type: `kubectl explain` shows it.
fn described(mut definition: CustomResourceDefinition, on: On) -> CustomResourceDefinition {
    let schemas = definition.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        let status = schema.properties.as_mut().and_then(|fields| fields.get_mut("status"));
        let conditions = status.and_then(|status| status.properties.as_mut()?.get_mut("conditions"));
        if let Some(conditions) = conditions {
            conditions.description = Some(reference::types_on(on));
        }
    }
    definition
}

/// In the API server's terms: it knows no format `uint32` and warns of it. Every value that the schema
/// accepts must be readable, for one object that isn't disturbs every watch of its kind. So each integer that
/// has no narrower bounds gets those of its type, and a condition those that Kubernetes' documentation gives
/// it.
///
/// And kept by Argo CD, which would delete the definitions with its Application, and with them every pool and
/// every record of the nodes' addresses.
fn shipped(definition: CustomResourceDefinition) -> serde_json::Result<CustomResourceDefinition> {
    let mut value = serde_json::to_value(definition)?;
    bound(&mut value);
    value["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
    serde_json::from_value(value)
}

/// The largest integer that JSON readers agree on.
const LARGEST: u64 = (1 << 53) - 1;

fn bound(schema: &mut Value) {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Array(items) => return items.iter_mut().for_each(bound),
        _ => return,
    };
    let limits = match fields.get("format").and_then(Value::as_str) {
        Some("uint32") => Some((0, u64::from(u32::MAX))),
        Some("int32") => Some((i64::from(i32::MIN), u64::from(i32::MAX.unsigned_abs()))),
        Some("int64") => Some((0, LARGEST)),
        _ => None,
    };
    if let Some((least, most)) = limits {
        fields.entry("minimum").or_insert(least.into());
        fields.entry("maximum").or_insert(most.into());
    }
    if fields.get("format").is_some_and(|format| format == "uint32") {
        fields.remove("format");
    }
    if let Some(condition) =
        fields.get_mut("properties").filter(|fields| fields.get("lastTransitionTime").is_some())
    {
        for (field, most) in
            [("type", 316), ("status", 7), ("reason", 1024), ("message", condition::LONGEST_MESSAGE)]
        {
            condition[field]["maxLength"] = most.into();
        }
    }
    fields.values_mut().for_each(bound);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each schema within one, by its path.
    fn visit<'a>(path: &str, schema: &'a Value, seen: &mut Vec<(String, &'a Value)>) {
        seen.push((path.to_owned(), schema));
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            visit(&format!("{path}.{name}"), field, seen);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                visit(&format!("{path}[]"), &schema[inner], seen);
            }
        }
    }

    fn schema(definition: &CustomResourceDefinition) -> Value {
        let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref();
        serde_json::to_value(schema.unwrap()).unwrap()
    }

    #[test]
    fn every_integer_has_bounds_that_its_type_can_hold() {
        let mut integers = 0;
        for definition in definitions().unwrap() {
            let schema = schema(&definition);
            let mut seen = vec![];
            visit("", &schema, &mut seen);
            for (path, schema) in seen.iter().filter(|(_, schema)| schema["type"] == "integer") {
                let bounds = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
                let (Some(least), Some(most)) = bounds else { panic!("{path} has the bounds {bounds:?}") };
                assert!(least >= f64::from(i32::MIN) && most <= LARGEST as f64, "{path}: {bounds:?}");
                let is_wide = schema["format"] == "int64";
                assert!(is_wide || most <= f64::from(u32::MAX), "{path}: {bounds:?}");
                integers += 1;
            }
        }
        assert!(integers > 20, "{integers}");
    }

    #[test]
    fn every_field_that_an_agent_writes_has_a_limit() {
        let [_, allocations] = definitions().unwrap();
        let schema = schema(&allocations);
        let mut seen = vec![];
        visit("status", &schema["properties"]["status"], &mut seen);
        for (path, schema) in &seen {
            let end = match schema["type"].as_str() {
                Some("string") if schema["format"] == "date-time" => continue,
                Some("string") => "maxLength",
                Some("array") => "maxItems",
                _ => continue,
            };
            assert!(schema[end].is_u64(), "{path} has no {end}: {schema}");
        }
        assert!(seen.len() > 20, "{}", seen.len());
    }
}
