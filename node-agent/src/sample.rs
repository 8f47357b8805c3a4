//! The objects that tests begin with.

use serde_json::json;
use vnetpool_crds::NodeIPAllocationSpec;

/// The spec of a node without a NIC.
pub fn spec() -> NodeIPAllocationSpec {
    let spec = json!({"nodeUID": "uid-of-node-1", "bootID": "boot", "pool": "default", "cooldown": "30s", "target": 8});
    serde_json::from_value(spec).unwrap()
}
