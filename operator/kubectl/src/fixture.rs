//! A small fleet for tests: a pool, a node that is well, one in a full subnet, and one that no pool selects.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, from_value, json};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_operator::outlook::Node;

use crate::cluster::Objects;

pub const SUBNET: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/vnet/subnets/nodes";
const NICS: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces";

pub fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

fn condition(type_: &str, status: &str, reason: &str, since: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
}

pub fn pool() -> NodeIPPool {
    let exhausting = condition(
        "SubnetExhausting",
        "True",
        "FewFree",
        "2026-01-01T00:05:00Z",
        "vnet/nodes has 3 of 251 addresses free",
    );
    from_value(json!({
        "metadata": {"name": "default"},
        "spec": {"nodeSelector": {"matchLabels": {"pods": "yes"}}},
        "status": {"nodes": 2, "nodesReady": 1, "held": 7, "assigned": 4, "free": 2, "cooling": 1, "waiting": 1,
            "networks": [{"id": SUBNET.split_once("/subnets").map(|(vnet, _)| vnet), "used": 253, "limit": 65536}],
            "subnets": [{"id": SUBNET, "nodes": 2, "held": 7, "size": 251, "free": 3}],
            "conditions": [condition("Ready", "True", "Ready", "2026-01-01T00:00:00Z", ""), exhausting]},
    }))
    .unwrap()
}

/// A node that holds these addresses, each by the name `vnp-` and its last number.
pub fn allocation(node: &str, held: &[u8], status: Value) -> NodeIPAllocation {
    let one = |n: &u8| json!({"name": format!("vnp-{n}"), "address": format!("10.240.0.{n}/32")});
    let target = if node == "node-1" { 8 } else { 12 };
    from_value(json!({
        "metadata": {"name": node, "uid": format!("object-{node}"), "generation": 3},
        "spec": {"nodeUID": format!("uid-{node}"), "bootID": "boot", "pool": "default", "cooldown": "30s", "target": target,
            "interfaces": [{"id": format!("{NICS}/{node}-nic"), "mac": "m", "primaryAddress": "10.240.0.4",
                "subnet": {"id": SUBNET}, "ipConfigurations": held.iter().map(one).collect::<Vec<_>>()}]},
        "status": status,
    }))
    .unwrap()
}

/// The node has left a NIC, `10.240.0.5` by its primary address, on which these addresses are reserved.
pub fn leave(allocation: &mut NodeIPAllocation, held: &[u8]) {
    let node = allocation.metadata.name.clone().unwrap();
    let mut left = self::allocation(&node, held, json!({})).spec.interfaces.remove(0);
    (left.id, left.primary_address) = (format!("{NICS}/{node}-former"), "10.240.0.5".to_owned());
    allocation.spec.left_interfaces.push(left);
}

fn node(name: &str, labels: Value) -> Node {
    from_value(json!({"metadata": {"name": name, "labels": labels},
        "status": {"allocatable": {"pods": "110"}, "nodeInfo": {"bootID": "boot"}}}))
    .unwrap()
}

pub fn pod(name: &str, node: &str, address: &str) -> Pod {
    from_value(json!({"metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}))
    .unwrap()
}

pub fn objects() -> Objects {
    let well = json!({"bootID": "boot", "observedGeneration": 3, "held": 4, "assigned": 2, "free": 1, "cooling": 1, "pods": 2,
        "countedAt": "2026-01-01T00:09:18Z",
        "conditions": [condition("Ready", "True", "Ready", "2026-01-01T00:00:00Z", "")]});
    let full = json!({"bootID": "boot", "observedGeneration": 3, "held": 3, "assigned": 2, "free": 1, "waiting": 1, "pods": 2,
        "countedAt": "2026-01-01T00:09:18Z",
        "conditions": [condition("Ready", "False", "SubnetFull", "2026-01-01T00:08:00Z", ""),
            condition("Reserved", "False", "SubnetFull", "2026-01-01T00:08:00Z", "subnet nodes has no address left. Free up some.")]});
    Objects {
        pools: vec![Arc::new(pool())],
        allocations: vec![
            allocation("node-1", &[10, 11, 12, 13], well),
            allocation("node-2", &[20, 21, 22], full),
        ],
        nodes: vec![
            node("node-1", json!({"pods": "yes"})),
            node("node-2", json!({"pods": "yes"})),
            node("node-3", json!({})),
        ],
        pods: vec![
            pod("a", "node-1", "10.240.0.10"),
            pod("b", "node-1", "10.240.0.11"),
            pod("c", "node-2", "10.240.0.20"),
            pod("d", "node-2", "10.240.0.21"),
        ],
        unreadable: vec![],
        now: now(),
    }
}
