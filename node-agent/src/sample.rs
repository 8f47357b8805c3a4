//! The objects that tests begin with.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use vnetpool_crds::condition::READY;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, NodeIPAllocationSpec, NodeIPAllocationStatus};
use vnetpool_plugin::ledger::{Entry, Supply};

/// The spec of a node without a NIC.
pub fn spec() -> NodeIPAllocationSpec {
    let spec = json!({"nodeUID": "uid-of-node-1", "bootID": "boot", "pool": "default", "cooldown": "30s", "target": 8});
    serde_json::from_value(spec).unwrap()
}

/// Its object in this version, with a condition of the operator's or none.
pub fn object(version: u64, has_condition: bool) -> NodeIPAllocation {
    let mut object = NodeIPAllocation::new("node-1", spec());
    object.metadata.uid = Some("u".into());
    object.metadata.resource_version = Some(version.to_string());
    let pending = Verdict::no(Reason::Pending, "").condition(READY, None, Timestamp::UNIX_EPOCH);
    object.status = has_condition
        .then(|| NodeIPAllocationStatus { conditions: vec![pending], ..NodeIPAllocationStatus::default() });
    object
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
