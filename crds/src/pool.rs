//! NodeIPPool: policy. Which nodes it is for, how many addresses each should hold, and which packets are
//! translated on the way out.

mod schema;
mod status;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Duration, Selector, SelectorExt};
use kube::{CustomResource, KubeSchema, ResourceExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use schema::{duration_rule, node_selector, number_or_percentage};
pub use status::{NetworkUse, NodeIPPoolStatus, ScarceWrites, SubnetUse};

/// Policy for the pod addresses of a set of nodes.
///
/// When several pools match a node, the one with the highest `weight` serves it; among equals, the first by
/// name.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vnetpool.io",
    version = "v1alpha1",
    kind = "NodeIPPool",
    plural = "nodeippools",
    singular = "nodeippool",
    shortname = "nipp",
    category = "vnetpool",
    status = "NodeIPPoolStatus",
    derive = "PartialEq",
    doc = "Policy for the Azure virtual network addresses that a set of nodes holds for its pods.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Nodes-Ready", type_ = "integer", json_path = ".status.nodesReady"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.updatedNodes"),
    printcolumn(name = "Held", type_ = "integer", json_path = ".status.held"),
    printcolumn(name = "Assigned", type_ = "integer", json_path = ".status.assigned"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Counted", type_ = "date", json_path = ".status.countedAt", priority = 1),
    printcolumn(
        name = "Subnet-Exhausting",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"SubnetExhausting\")].status",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Address' || self.sizing.maximum <= 255")
        .message("sizing.maximum is above 255, and in mode Address a NIC takes no more pod addresses: lower it, or use mode Prefix"),
    validation = Rule::new("self.mode != 'Prefix' || self.sizing.maximum >= 16")
        .message("sizing.maximum is below 16, which in mode Prefix is one block: raise it, or use mode Address"),
    validation = Rule::new("(self.mode == 'Route') == has(self.route)")
        .message("mode Route needs route (podCIDR, routeTableID), and no other mode takes it: add or remove the one or the other"),
    validation = Rule::new("self.mode != 'Route' || !has(self.applicationSecurityGroups)")
        .message("mode Route takes no applicationSecurityGroups, since Azure puts ipConfigurations into them and pods of a route have none: remove them, or use mode Address or Prefix"),
)]
pub struct NodeIPPoolSpec {
    /// The nodes this pool is for, by label. Empty or absent: every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "node_selector")]
    pub node_selector: Option<LabelSelector>,

    /// Which pool serves a node that several match: the highest weight wins, then the first name in
    /// alphabetical order.
    #[serde(default)]
    pub weight: i32,

    /// How addresses are reserved. `Address`, the default: one ipConfiguration of the NIC per pod address.
    /// `Prefix`: blocks of 16 (a /28 each), of which one takes one of the NIC's 256 ipConfigurations; the
    /// subnet needs whole aligned blocks free. `Route`: none of the NIC's; each node gets a part of a pod
    /// CIDR outside the VNet, and a route to it (see `route`). It can't be changed: make another pool with a
    /// higher weight instead.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("mode can't be changed; make another pool with a higher weight and let the nodes move to it"))]
    pub mode: Mode,

    /// How pods are connected to their node. `Routed`, the default: each by a link of its own. `Bridge`: all
    /// as ports of one bridge of the node, which is their gateway; it takes Linux 5.18 or newer. A change is
    /// for new pods; those that run keep what they have, and all reach each other.
    #[serde(default)]
    pub wiring: Wiring,

    /// The Azure resource id of the subnet the addresses come from, and so of the NIC that gets them.
    /// Default: the subnet of the node's primary NIC. A node without a NIC in it gets no addresses, and a
    /// condition reports that. Its pods' packets leave by the NIC that has their addresses.
    #[serde(default, rename = "subnetID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new(
        "self.matches('(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+/subnets/[^/]+$')")
        .message("subnetID must be the whole resource id of a subnet: /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Network/virtualNetworks/VNET/subnets/SUBNET"))]
    pub subnet_id: Option<String>,

    /// For mode `Route`, and only for it: where pods' addresses come from and which route table leads to
    /// them. It can't be changed: make another pool with a higher weight instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("route can't be changed, since pods use its addresses; make another pool with a higher weight and let the nodes move to it"))]
    pub route: Option<PodRoute>,

    /// How many addresses each node holds. Not used in mode `Route`, where a node always has all of its
    /// range.
    #[serde(default)]
    pub sizing: Sizing,

    /// How long a freed address rests before another pod gets it, so that late packets for the old pod and
    /// stale entries in load balancers and connection tables don't meet the new one. Like `30s` or `1m30s`.
    #[serde(default = "thirty_seconds")]
    #[x_kube(validation = duration_rule("cooldown", "0s", "1h"))]
    pub cooldown: Duration,

    /// Which packets are translated to the node's own address on the way out.
    #[serde(default)]
    pub snat: Snat,

    /// How much pods reach of the instance metadata service at 169.254.169.254, which gives every client
    /// tokens of the node's identities. `None`, the default: nothing. `All`: everything. Of Azure's other
    /// service, 168.63.129.16, pods reach the DNS resolver only. Pods on the host network reach both in any
    /// case.
    #[serde(default)]
    pub pod_metadata_access: MetadataAccess,

    /// How to treat ipConfigurations that other network plugins, such as azure-vnet or Cilium, have left on
    /// the nodes' NICs. `Nothing`, the default: they stay, and take room among the NIC's 256. `Secondaries`:
    /// they are removed from a node's NIC once every pod of the node has an address of Vnetpool's, and so
    /// room is made for its own. Never the primary one, nor one with anything attached. It can't be undone:
    /// software that still uses such an address loses it.
    #[serde(default)]
    pub adopt: Adopt,

    /// What may be attached to a pod's own address in Azure, for pods that ask by annotation. Nothing, by
    /// default.
    #[serde(default, skip_serializing_if = "Attachments::is_empty")]
    pub attachments: Attachments,

    /// The application security groups that pods are to be in, besides those that others have put their NIC
    /// into. Default: no more than those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_security_groups: Option<ApplicationSecurityGroups>,

    /// How an edit of this pool reaches its nodes.
    #[serde(default, skip_serializing_if = "Rollout::is_empty")]
    pub rollout: Rollout,

    /// The condition `SubnetExhausting` turns True when fewer addresses are free in one of the pool's subnets
    /// than this percentage of its size, and False again when a quarter more than that are free. 0: never.
    /// The same holds for `NetworkExhausting` and what Azure takes in a virtual network.
    #[schemars(range(min = 0, max = 100))]
    #[serde(default = "ten")]
    pub subnet_exhausting_percent: u32,
}

/// How an edit of a pool reaches its nodes: fields that change the nodes' addresses, or how their pods are
/// wired, in waves.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// How many nodes may take up an edit at a time, as a number or as a percentage of the pool's nodes
    /// (rounded down, at least one). A node counts until it has settled: it holds what the edit asks for, and
    /// its agent has taken that up. Default: 10%, and at least 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_percentage")]
    pub max_updating: Option<IntOrString>,
}

impl Rollout {
    fn is_empty(&self) -> bool {
        *self == Rollout::default()
    }
}

/// How much pods reach of the instance metadata service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum MetadataAccess {
    /// Nothing: the node drops what they send there.
    #[default]
    None,
    /// Everything the service has, tokens of the node's identities included.
    All,
}

/// Which ipConfigurations of others are taken off the nodes' NICs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Adopt {
    /// Nothing: it isn't Vnetpool's.
    #[default]
    Nothing,
    /// The secondary ipConfigurations with nothing attached, where no pod can be using them.
    Secondaries,
}

/// How addresses are reserved in Azure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Mode {
    /// One ipConfiguration of the NIC per pod address.
    #[default]
    Address,
    /// One ipConfiguration of the NIC per block of 16 pod addresses.
    Prefix,
    /// One route per node, for its part of a pod CIDR.
    Route,
}

/// How many addresses a block has. The only size Azure knows for IPv4 on a NIC: /28.
pub const BLOCK: u32 = 16;
/// How many ipConfigurations Azure takes on a NIC (its networking limits), the node's own included.
pub const NIC_SLOTS: u32 = 256;
/// How many addresses of NICs Azure takes in a virtual network (its networking limits); a block counts once.
pub const NETWORK_ADDRESSES: u32 = 65_536;

/// Pod addresses from a range of their own, outside the VNet, which user-defined routes lead to the nodes.
///
/// Vnetpool keeps these routes itself: it puts removed ones back, removes those of nodes that are gone, and
/// touches no other. It turns on IP forwarding on the nodes' NICs. Networks beyond the VNet have no route to
/// these addresses, so peered and on-premises networks see the node's.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!isCIDR(self.podCIDR) || cidr(self.podCIDR).prefixLength() <= self.nodePrefixLength")
    .message("route.nodePrefixLength is smaller than the prefix length of route.podCIDR: not even one node's range fits in it"))]
pub struct PodRoute {
    /// The range all nodes' ranges are parts of, such as `10.244.0.0/16`. It must not overlap the VNet, its
    /// peerings or another pool's; the pool's condition `Valid` reports an overlap.
    #[serde(rename = "podCIDR")]
    #[schemars(length(max = 18))]
    #[x_kube(validation = Rule::new("isCIDR(self) && cidr(self).ip().family() == 4 && cidr(self).masked() == cidr(self) && cidr(self).prefixLength() >= 8")
        .message("route.podCIDR takes an IPv4 range such as 10.244.0.0/16, with no bits set after the prefix, /8 at the largest"))]
    pub pod_cidr: String,
    /// The prefix length of one node's range: 24 brings 256 addresses, and a podCIDR of /16 then does for 256
    /// nodes.
    #[serde(default = "twenty_four")]
    #[schemars(range(min = 23, max = 28))]
    pub node_prefix_length: u32,
    /// The Azure resource id of the route table. It must be the one of the nodes' subnet; other subnets whose
    /// machines are to reach pods need it, too. Azure takes 400 routes in one.
    #[serde(rename = "routeTableID")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new(
        "self.matches('(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/routeTables/[^/]+$')")
        .message("route.routeTableID must be the whole resource id of a route table: /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Network/routeTables/NAME"))]
    pub route_table_id: String,
}

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Wiring {
    /// Each pod's host end is a link of its own, to which the node routes the pod's address.
    #[default]
    Routed,
    /// The host ends of a node's pods are ports of one bridge, `vnpbridge`, which is their gateway.
    Bridge,
}

/// How many addresses a node holds. With *demand* the pods bound to the node (or, if more, those that have an
/// address or wait for one), a node holds `demand + warm`, but no more than the kubelet's pod limit can use,
/// plus those cooling, at least `minimum`, rounded up to `batch`, at most `maximum` and what Azure allows on
/// the NIC. In mode `Prefix` that is rounded up to whole blocks of 16.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.minimum <= self.maximum")
    .message("sizing.minimum is above sizing.maximum: a node can't hold at least more than it may hold at most"))]
pub struct Sizing {
    /// Addresses a node holds even without any pod.
    #[schemars(range(min = 0, max = 255))]
    #[serde(default = "eight")]
    pub minimum: u32,
    /// Addresses kept free beyond the demand, so that the next pods needn't wait for Azure.
    #[schemars(range(min = 0, max = 255))]
    #[serde(default = "eight")]
    pub warm: u32,
    /// Addresses a node holds at most. A NIC takes 256 ipConfigurations in all, one of them the node's own;
    /// so 255 is the most in mode `Address`. In mode `Prefix` it is rounded down to whole blocks of 16: 255
    /// allows 240.
    #[schemars(range(min = 1, max = 512))]
    #[serde(default = "a_nic_full")]
    pub maximum: u32,
    /// The number held is rounded up to a multiple of this: higher means fewer and larger writes to Azure.
    #[schemars(range(min = 1, max = 255))]
    #[serde(default = "four")]
    pub batch: u32,
    /// How long a surplus must last before addresses are given back. Like `5m`.
    #[serde(default = "five_minutes")]
    #[x_kube(validation = duration_rule("sizing.releaseAfter", "0s", "24h"))]
    pub release_after: Duration,
}

impl Default for Sizing {
    fn default() -> Self {
        Self {
            minimum: eight(),
            warm: eight(),
            maximum: a_nic_full(),
            batch: four(),
            release_after: five_minutes(),
        }
    }
}

/// Translation of pod addresses on the way out of the node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snat {
    /// Ranges, besides the VNet and its peerings, that see a pod under its own address: on-premises networks
    /// behind a gateway, for instance. Everything else outside the VNet sees the node's address.
    #[serde(default, rename = "nonMasqueradeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 18)))]
    #[x_kube(merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(range, isCIDR(range) && cidr(range).ip().family() == 4 && cidr(range).masked() == cidr(range))")
        .message("snat.nonMasqueradeCIDRs takes IPv4 ranges such as 192.168.0.0/16, with no bits set after the prefix"))]
    pub non_masquerade_cidrs: Vec<String>,
}

/// What pods on the pool's nodes may have attached to their addresses. A user who may annotate a pod may ask
/// for it, so the pool names what may be asked for.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachments {
    /// Backend pools of Azure load balancers. A pod joins those whose names its annotation
    /// `vnetpool.io/backend-pools` lists, separated by commas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub backend_pools: Vec<BackendPool>,
    /// Namespaces whose pods may order a public address, which costs money, by the annotation
    /// `vnetpool.io/public-address: "true"`; with `vnetpool.io/dns-label: NAME` also a name in Azure's DNS.
    /// None, by default: the user who annotates a pod need not be the one who pays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub public_address_namespaces: Vec<String>,
}

impl Attachments {
    fn is_empty(&self) -> bool {
        *self == Attachments::default()
    }
}

/// A backend pool of an Azure load balancer, public or internal.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendPool {
    /// The name by which pods ask for it.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("attachments.backendPools.name takes lower-case letters, digits and dashes, since pods list names separated by commas"))]
    pub name: String,
    /// Its Azure resource id.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new(
        "self.matches('(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/loadBalancers/[^/]+/backendAddressPools/[^/]+$')")
        .message("attachments.backendPools.id must be the whole resource id of a backend pool: /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Network/loadBalancers/LOADBALANCER/backendAddressPools/POOL"))]
    pub id: String,
}

/// Application security groups for pods. Azure has one set of them for all addresses of a NIC, so these hold
/// for the whole NIC: for each pod of the node, and on the VM's primary NIC for the node's own traffic.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationSecurityGroups {
    /// Their Azure resource ids: 1 to 20, each once. Azure wants them in the region of the nodes, and all
    /// that is in one group in one virtual network.
    #[schemars(length(min = 1, max = 20), inner(length(max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set,
        validation = Rule::new(
        "self.all(id, id.matches('(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/applicationSecurityGroups/[^/]+$'))")
        .message("applicationSecurityGroups.ids takes whole resource ids of application security groups: /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Network/applicationSecurityGroups/NAME"),
        validation = Rule::new("self.all(id, self.exists_one(other, other.lowerAscii() == id.lowerAscii()))")
        .message("applicationSecurityGroups.ids names a group twice, for Azure's ids are the same in any letter case: remove one"))]
    pub ids: Vec<String>,
    /// Whether they are set on a node's primary NIC, too. Otherwise, the default, only on a NIC of the pods'
    /// own: a secondary one, which `subnetID` chooses.
    #[serde(default, rename = "onSharedNIC")]
    pub on_shared_nic: bool,
}

impl NodeIPPool {
    /// The pool that serves a node with these labels, or none: the heaviest that matches, then the first by
    /// name.
    ///
    /// A selector that isn't valid matches nothing; the pool controller reports it.
    pub fn serving<'a>(
        pools: impl IntoIterator<Item = &'a NodeIPPool>,
        labels: &BTreeMap<String, String>,
    ) -> Option<&'a NodeIPPool> {
        pools
            .into_iter()
            .filter(|pool| pool.metadata.deletion_timestamp.is_none())
            .filter(|pool| pool.spec.selector().is_ok_and(|selector| selector.matches(labels)))
            .min_by_key(|pool| (std::cmp::Reverse(pool.spec.weight), pool.name_any()))
    }
}

impl NodeIPPoolSpec {
    /// How many pod addresses one reservation brings.
    pub fn grain(&self) -> u32 {
        match (self.mode, &self.route) {
            (Mode::Address, _) => 1,
            (Mode::Prefix, _) => BLOCK,
            (Mode::Route, Some(route)) => {
                1_u32.checked_shl(32_u32.saturating_sub(route.node_prefix_length)).unwrap_or(1)
            }
            (Mode::Route, None) => 1,
        }
    }

    /// The selector in a form that can be matched.
    ///
    /// # Errors
    /// An operator that doesn't exist, in a pool from before the schema had a list of them.
    pub fn selector(&self) -> Result<Selector, kube::core::ParseExpressionError> {
        self.node_selector.clone().unwrap_or_default().try_into()
    }
}

fn seconds(n: u64) -> Duration {
    std::time::Duration::from_secs(n).into()
}

// The defaults, one function each because serde and the schema want them so.
fn eight() -> u32 {
    8
}

fn twenty_four() -> u32 {
    24
}

fn four() -> u32 {
    4
}

fn ten() -> u32 {
    10
}

fn a_nic_full() -> u32 {
    NIC_SLOTS - 1
}

fn thirty_seconds() -> Duration {
    seconds(30)
}

fn five_minutes() -> Duration {
    seconds(300)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(name: &str, weight: i32, labels: &[(&str, &str)]) -> NodeIPPool {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let spec = serde_json::from_value(json!({"weight": weight, "nodeSelector": {"matchLabels": labels}}));
        NodeIPPool::new(name, spec.unwrap())
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_heaviest_matching_pool_serves_a_node_then_the_first_name() {
        let pools = [pool("b", 0, &[]), pool("a", 0, &[]), pool("gpu", 10, &[("gpu", "yes")])];
        let name = |l: &[(&str, &str)]| NodeIPPool::serving(&pools, &labels(l)).map(|p| p.name_any());
        assert_eq!(name(&[]).as_deref(), Some("a"));
        assert_eq!(name(&[("gpu", "yes")]).as_deref(), Some("gpu"));
    }

    #[test]
    fn a_node_no_pool_matches_has_none() {
        let pools = [pool("gpu", 0, &[("gpu", "yes")])];
        assert_eq!(NodeIPPool::serving(&pools, &labels(&[("gpu", "no")])), None);
    }

    #[test]
    fn an_empty_spec_gets_the_documented_defaults() {
        let spec: NodeIPPoolSpec = serde_json::from_value(json!({})).unwrap();
        assert_eq!(spec.sizing, Sizing::default());
        assert_eq!(spec.cooldown, seconds(30));
    }
}
