//! The API of Vnetpool, group `vnetpool.io`, version `v1alpha1`: two cluster-scoped kinds.
//!
//! ```text
//!   NodeIPPool                    NodeIPAllocation (one per node, named after it)
//!   policy, written by people     ┌ spec   ─ what Azure has reserved for the node: only the operator writes it
//!   status: the sums of its ────► └ status ─ what the node does with it: only that node's agent writes it
//!   allocations (operator)          status.conditions: each side applies its own types under its own field manager
//! ```
//!
//! Nothing here talks to anything: types, defaults, validation rules, and the few pure functions that belong to them.
//! `cargo run -p vnetpool-crds` prints the CustomResourceDefinitions; `manifests/` holds them as generated.

// kube's printcolumn(...) repeats its inner keys for each column.
#![allow(clippy::duplicated_attributes)]

pub mod allocation;
pub mod condition;
pub mod names;
pub mod pool;

pub use allocation::{NodeIPAllocation, NodeIPAllocationSpec, NodeIPAllocationStatus};
pub use pool::{NodeIPPool, NodeIPPoolSpec, NodeIPPoolStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

/// Both CustomResourceDefinitions as a cluster is to have them.
///
/// # Errors
/// Never, unless the types they are derived from can't be told in JSON.
pub fn definitions() -> serde_json::Result<[CustomResourceDefinition; 2]> {
    Ok([shipped(NodeIPPool::crd())?, shipped(NodeIPAllocation::crd())?])
}

/// Without Rust's integer formats, since the API server knows only int32 and int64 and warns of others: the bounds say it
/// all. And kept by Argo CD, which would delete the definitions with its Application, and with them every pool and every
/// record of what nodes hold.
fn shipped(definition: CustomResourceDefinition) -> serde_json::Result<CustomResourceDefinition> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if fields.get("format").is_some_and(|format| format == "uint32") {
                    fields.remove("format");
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(definition)?;
    strip(&mut value);
    value["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
    serde_json::from_value(value)
}
