//! The operator's counts and conditions of a pool.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The sums over the nodes this pool serves. Written by the operator.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeIPPoolStatus {
    /// The generation of `spec` these figures were made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes this pool serves.
    #[serde(default)]
    pub nodes: u32,
    /// Those of them whose NodeIPAllocation is `Ready`.
    #[serde(default)]
    pub nodes_ready: u32,
    /// Those of them that follow the pool's `spec` as it is: they have taken up the last edit, or it changes
    /// nothing of what they hold.
    #[serde(default)]
    pub updated_nodes: u32,
    /// When the sums were made. Those of addresses are made of the nodes' counts, each at its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_at: Option<Time>,
    /// Addresses these nodes hold, by the counts of their agents: none on a NIC that a node has left.
    #[serde(default)]
    pub held: u32,
    /// Held addresses that a pod has.
    #[serde(default)]
    pub assigned: u32,
    /// Held addresses that a new pod could get at once.
    #[serde(default)]
    pub free: u32,
    /// Held addresses that were freed less than `cooldown` ago.
    #[serde(default)]
    pub cooling: u32,
    /// Pods that wait for an address.
    #[serde(default)]
    pub waiting: u32,
    /// The subnets the addresses come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub subnets: Vec<SubnetUse>,
    /// The virtual networks around those of these subnets with nodes in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub networks: Vec<NetworkUse>,
    /// Subscriptions of the nodes' NICs in which writes to Azure are scarce; the condition `WritesScarce`
    /// says what follows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["subscription".into()]))]
    pub scarce_writes: Vec<ScarceWrites>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A pool's addresses in one subnet.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubnetUse {
    /// Azure resource id of the subnet.
    pub id: String,
    /// Nodes of the pool with their NIC in it.
    pub nodes: u32,
    /// Addresses these nodes hold in it, and those recorded of NICs that they have left: Azure gives these to
    /// nobody else until they have gone back. Of NICs in `spec.strayInterfaces` of a node no address is
    /// recorded, so none is counted.
    pub held: u32,
    /// How many of the held ones are on NICs that nodes have left (`spec.leftInterfaces`). No pod gets one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub on_left_interfaces: u32,
    /// How many addresses Azure can give out in it: its ranges, less five each that Azure keeps. Absent until
    /// it has been read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// How many of them are free, as Azure counted a minute ago at most. A hint: nothing is decided by it.
    /// Absent while Azure doesn't count them; the condition `SubnetExhausting` names the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u32>,
}

/// How much of a virtual network is taken, by whomever.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkUse {
    /// Azure resource id of the virtual network.
    pub id: String,
    /// How many private addresses Azure takes in it in all. A block of 16 counts once.
    pub limit: u32,
    /// How many are taken at most, by Azure's count of a minute ago: where the figures don't show whether
    /// Azure counts a block as one address or as 16, as if it were one. A hint: nothing is decided by it.
    /// Absent while Azure doesn't count them; the condition `NetworkExhausting` names the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u32>,
}

/// A subscription in which more writes are wanted than Azure lets through.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScarceWrites {
    /// Its id, in lower case.
    pub subscription: String,
    /// How many times as large as `sizing.batch` the steps are in which nodes take and give back addresses,
    /// and how many times as long as `sizing.releaseAfter` a surplus must last.
    pub coarseness: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}
