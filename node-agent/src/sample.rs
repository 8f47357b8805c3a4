//! The objects that tests begin with.

use std::time::Duration;

use serde_json::json;
use vnetpool_crds::NodeIPAllocationSpec;
use vnetpool_plugin::ledger::{Entry, Supply};

/// The spec of a node without a NIC.
pub fn spec() -> NodeIPAllocationSpec {
    let spec = json!({"nodeUID": "uid-of-node-1", "bootID": "boot", "pool": "default", "cooldown": "30s", "target": 8});
    serde_json::from_value(spec).unwrap()
}

/// These addresses for the boot `b` of a node.
pub fn supply(entries: Vec<Entry>) -> Supply {
    Supply {
        object: "o".into(),
        generation: 1,
        node_uid: "n".into(),
        boot_id: "b".into(),
        cooldown: Duration::from_secs(30),
        entries,
    }
}
