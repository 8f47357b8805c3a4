//! NodeIPAllocation: one per node and named after it. Azure's reservations for the node, and the node's use
//! of them.
//!
//! `spec` is the operator's alone, `status` the agent's of that node alone, except that in
//! `status.conditions` each side applies its own types under its own field manager (see
//! [`crate::condition`]). So no writer ever has to read, modify and write.

mod past;

use crate::pool::{MetadataAccess, Mode, Sizing, Wiring};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The addresses reserved for a node. The operator mirrors the NIC into it; nothing in here is a wish.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vnetpool.io",
    version = "v1alpha1",
    kind = "NodeIPAllocation",
    plural = "nodeipallocations",
    singular = "nodeipallocation",
    shortname = "nipa",
    category = "vnetpool",
    status = "NodeIPAllocationStatus",
    derive = "PartialEq",
    selectable = ".spec.pool",
    doc = "The addresses that Azure has reserved for one node, and what the node does with them.",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Held", type_ = "integer", json_path = ".status.held"),
    printcolumn(name = "Assigned", type_ = "integer", json_path = ".status.assigned"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free"),
    printcolumn(name = "Cooling", type_ = "integer", json_path = ".status.cooling"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(name = "Counted", type_ = "date", json_path = ".status.countedAt"),
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
    printcolumn(name = "NIC", type_ = "string", json_path = ".spec.interfaces[*].id", priority = 1),
    printcolumn(
        name = "Subnet",
        type_ = "string",
        json_path = ".spec.interfaces[*].subnet.id",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeIPAllocationSpec {
    /// UID of the Node this was made for. An agent of another Node under the same name doesn't use it.
    #[serde(rename = "nodeUID")]
    pub node_uid: String,
    /// The boot of the node (`status.nodeInfo.bootID` of the Node) for which the operator has read the NIC.
    /// The agent builds a new ledger only from a `spec` of its own boot. Empty until the NIC has been read.
    #[serde(default, rename = "bootID")]
    pub boot_id: String,
    /// The NodeIPPool that serves the node.
    pub pool: String,
    /// How the addresses are reserved.
    #[serde(default)]
    pub mode: Mode,
    /// In mode `Route`, the route table that leads to the node's range. The reservation is then a route of it
    /// rather than an ipConfiguration of the NIC.
    #[serde(default, rename = "routeTableID", skip_serializing_if = "Option::is_none")]
    pub route_table_id: Option<String>,
    /// How new pods are connected to the node.
    #[serde(default)]
    pub wiring: Wiring,
    /// How many addresses the node should hold. If it is lower than the number held, the agent relinquishes
    /// the difference.
    #[serde(default)]
    pub target: u32,
    /// How many addresses that pool wants for a node. With the other fields here it is the pool's last
    /// policy: it holds on for a while after the pool is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "recorded_sizing")]
    pub sizing: Option<Sizing>,
    /// How long a freed address rests before another pod gets it.
    pub cooldown: Duration,
    /// How many free addresses the pool keeps ready. The agent reports sooner when more than half of them are
    /// taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub warm: u32,
    /// Whether the agent is to name every pod that has an address (`status.holders`): while others'
    /// ipConfigurations are about to be removed, and while more pods have addresses than are bound.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub report_holders: bool,
    /// How much of the instance metadata service pods reach.
    #[serde(default)]
    pub pod_metadata_access: MetadataAccess,
    /// Destinations that see a pod under its own address: the VNet's and its peerings' ranges, and those the
    /// pool names.
    #[serde(default, rename = "snatExclusions", skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub snat_exclusions: Vec<String>,
    /// How many ipConfigurations the VM has on other NICs than the one its pool uses: Azure counts all of a
    /// VM's together.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub elsewhere: u32,
    /// When another client than Vnetpool has taken addresses off the NIC: the last three times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_off_at: Vec<Time>,
    /// The NIC the addresses are on and, if that is a secondary one, the VM's primary NIC, through which pods
    /// reach Azure's own services on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub interfaces: Vec<Interface>,
    /// Azure resource ids of the public addresses that were made for pods of this node and that none of its
    /// ipConfigurations has: another client took those off the NIC. Each stands here until its pod has it
    /// again, or until it is deleted, so that none is forgotten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub detached_public_addresses: Vec<String>,
    /// Azure resource ids of NICs that don't serve the node and may hold reservations of Vnetpool's all the
    /// same: one that served until a minute ago, or another of the VM's to which an operator has written
    /// late. Each stands here until it is known to hold none, so that none is forgotten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub stray_interfaces: Vec<String>,
    /// NICs that the node has left and that may still hold reservations of Vnetpool's: they served it when it
    /// had another VM, or its VM other NICs. Each stands here as it stood in `interfaces`, until what it
    /// holds has gone back, or another object records it, or a person says that it is another's. The agent
    /// uses none of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub left_interfaces: Vec<Interface>,
}

/// A NIC of the node's VM.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Azure resource id of the NIC.
    pub id: String,
    /// Its hardware address as Linux shows it, like `00:0d:3a:e5:1c:c0`: how the agent finds the link.
    pub mac: String,
    /// Whether it is another NIC than the VM's primary one: then its pods' packets are steered to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secondary: bool,
    /// The NIC's primary address, which destinations outside the VNet see.
    pub primary_address: String,
    /// The subnet all addresses of the NIC are in.
    pub subnet: Subnet,
    /// Azure resource ids of the application security groups that Vnetpool has put the NIC into, for its
    /// pool. They stand here before that is done and until it is undone: only these are ever taken off again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub application_security_groups: Vec<String>,
    /// The reservations for pods: only those that Azure reports as `Succeeded`. In mode `Route`, the one
    /// route to the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub ip_configurations: Vec<IpConfiguration>,
}

/// An Azure subnet.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// Azure resource id of the subnet.
    pub id: String,
    /// Its address ranges.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub prefixes: Vec<String>,
}

/// One reservation. Its identity is the name, which is never used a second time; the address is an attribute.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpConfiguration {
    /// Name of the ipConfiguration on the NIC, or of the route in mode `Route`.
    pub name: String,
    /// The address as a range: `10.240.0.17/32`, or a block of them: `10.240.0.32/28`, or all of a node's:
    /// `10.244.3.0/24`.
    pub address: String,
    /// UID of the only pod that may have the address: a resource of Azure's is attached to it, is about to
    /// be, or is not known to be gone yet. `others`: another client than Vnetpool has attached one, and no
    /// pod gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_to: Option<String>,
    /// Azure resource ids of the load balancers' backend pools the address is in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub backend_pools: Vec<String>,
    /// The public address that was made for that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_address: Option<PublicAddress>,
}

/// A public address of Azure's, made for one pod and deleted with it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicAddress {
    /// Azure resource id. It stands here before the resource is made and until it is deleted, so that none is
    /// forgotten.
    pub id: String,
    /// The address, once Azure has attached it: from then on the pod's packets leave under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The name that Azure's DNS has for it.
    #[serde(default, rename = "dnsName", skip_serializing_if = "Option::is_none")]
    pub dns_name: Option<String>,
}

impl IpConfiguration {
    /// How many addresses it is: 1, or 16 for a block. 0 if the text is no range of IPv4 addresses.
    pub fn count(&self) -> u32 {
        let range = self.address.rsplit_once('/').filter(|(address, _)| !address.contains(':'));
        let length = range.and_then(|(_, length)| length.parse::<u32>().ok());
        length.and_then(|length| 1_u32.checked_shl(32_u32.checked_sub(length)?)).unwrap_or_default()
    }
}

/// Counts that differ from what is published are published within this time, see the agent's
/// `report/pace.rs`.
pub const COUNTED_WITHIN: std::time::Duration = std::time::Duration::from_secs(16 * 60);

/// The state of the addresses on the node. Written by the node's agent, except for the operator's condition
/// types.
///
/// Each field has bounds: a node in an attacker's hands writes here, and every client reads it. No NIC comes
/// near them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeIPAllocationStatus {
    /// The generation of `spec` that the node's ledger has been supplied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The boot of the node this report is from. `relinquished` is valid whatever the boot; the counts are of
    /// this one.
    #[serde(default, rename = "bootID")]
    #[schemars(length(max = 128))]
    pub boot_id: String,
    /// Addresses the ledger has, relinquished ones left out: `assigned + cooling + free`.
    #[serde(default)]
    #[schemars(range(max = 65536))]
    pub held: u32,
    /// Held addresses that a pod has. `kubectl get pods -o wide` shows each pod's address.
    #[serde(default)]
    #[schemars(range(max = 65536))]
    pub assigned: u32,
    /// Held addresses that no new pod can get yet: freed less than `cooldown` ago, or still with an
    /// attachment in Azure.
    #[serde(default)]
    #[schemars(range(max = 65536))]
    pub cooling: u32,
    /// Held addresses that a new pod could get at once.
    #[serde(default)]
    #[schemars(range(max = 65536))]
    pub free: u32,
    /// Pods that wait for an address.
    #[serde(default)]
    #[schemars(range(max = 65536))]
    pub waiting: u32,
    /// Names of the ipConfigurations that the node has given up for good: it never hands them out again, and
    /// the operator may remove them from the NIC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 4096), inner(length(max = 80)))]
    pub relinquished: Vec<String>,
    /// Names of the ipConfigurations in `spec` whose addresses the VM's instance metadata service has listed
    /// and lists no longer: a hint that another program than the operator has taken them off the NIC, which
    /// the operator then reads. Only single addresses are compared, since the service lists no blocks and no
    /// routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 4096), inner(length(max = 80)))]
    pub unlisted: Vec<String>,
    /// Whether the VM's instance metadata service has reported nothing of the NIC for some minutes, for
    /// instance because it is closed to the agent. Then only the operator finds which addresses have left the
    /// NIC: it reads it every 15 minutes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub metadata_silent: bool,
    /// When these counts were taken. They are not written for each pod: see the agent's `report/pace.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_at: Option<Time>,
    /// How many pods have an address, by their UIDs. A pod may have several addresses.
    #[serde(default)]
    #[schemars(range(max = 65536))]
    pub pods: u32,
    /// Addresses that a pod has and `spec` of the observed generation lacks: another client has taken them
    /// off the NIC. The operator asks Azure for these again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["address".into()]))]
    #[schemars(length(max = 4096))]
    pub lost: Vec<Holder>,
    /// Of the addresses that `spec` of the observed generation keeps for one pod (`attachedTo`), those that a
    /// pod has. Only an address that stands here with its pod's UID gets an attachment in Azure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["address".into()]))]
    #[schemars(length(max = 256))]
    pub confirmed: Vec<Holder>,
    /// Addresses of pods that another plugin has wired (`vnetpool-ipam`). From these an agent that has lost
    /// the node's ledger learns of them, since no link of Vnetpool's shows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["address".into()]))]
    #[schemars(length(max = 4096))]
    pub leases: Vec<Holder>,
    /// Every address that a pod has, only while `spec.reportHolders` asks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["address".into()]))]
    #[schemars(length(max = 4096))]
    pub holders: Vec<Holder>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 64))]
    pub conditions: Vec<Condition>,
}

/// An address and its holder.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The address, like `10.240.0.17`.
    #[schemars(length(max = 39))] // of either family
    pub address: String,
    /// The pod as `namespace/name`; empty where the runtime named none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 320))]
    pub pod: String,
    /// The pod's UID; empty where the runtime gave none.
    #[serde(default, rename = "podUID", skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub pod_uid: String,
    /// The sandbox as `container id/interface`.
    #[schemars(length(max = 512))]
    pub sandbox: String,
    /// The file of the sandbox's network namespace, where another plugin has wired the pod: such a lease ends
    /// with that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub netns: Option<String>,
}

impl NodeIPAllocation {
    /// Of both sides; none before the first report.
    pub fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }

    /// The generation without the object's deletion, which counts as a generation of its own and writes no
    /// `spec`.
    pub fn spec_generation(&self) -> Option<i64> {
        let is_to_go = self.metadata.deletion_timestamp.is_some();
        self.metadata.generation.map(|generation| generation - i64::from(is_to_go))
    }
}

impl NodeIPAllocationSpec {
    /// The NIC that the pool uses.
    pub fn serving(&self) -> Option<&Interface> {
        self.interfaces.iter().find(|nic| nic.secondary).or(self.interfaces.first())
    }

    /// The NICs that the node has, and those that it has left.
    pub fn recorded_interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().chain(&self.left_interfaces)
    }

    /// What is recorded of a NIC that the node has left, by its id: Azure's differ in case.
    pub fn left(&self, id: &str) -> Option<&Interface> {
        self.left_interfaces.iter().find(|nic| nic.id.eq_ignore_ascii_case(id))
    }

    /// The reservations on NICs that the node has left, each with its NIC, as they are recorded. Without
    /// those that stand in `interfaces`, too: a node that gets another NIC keeps its route.
    pub fn left_reservations(&self) -> impl Iterator<Item = (&Interface, &IpConfiguration)> {
        let stays = move |one: &IpConfiguration| self.ip_configurations().any(|held| held.name == one.name);
        let all = self.left_interfaces.iter();
        let all = all.flat_map(|nic| nic.ip_configurations.iter().map(move |one| (nic, one)));
        all.filter(move |(_, one)| !stays(one))
    }

    /// How many addresses are reserved in all, but for those on NICs that the node has left.
    pub fn addresses(&self) -> u32 {
        self.ip_configurations().map(IpConfiguration::count).fold(0, u32::saturating_add)
    }

    /// All reservations of all interfaces, but for those that the node has left.
    pub fn ip_configurations(&self) -> impl Iterator<Item = &IpConfiguration> {
        self.interfaces.iter().flat_map(|interface| &interface.ip_configurations)
    }

    /// The ids of all public addresses that were made for pods of the node, or are about to be. Those on NICs
    /// that it has left go with what these hold.
    pub fn public_addresses(&self) -> impl Iterator<Item = &str> {
        let named = self.ip_configurations().filter_map(|one| one.public_address.as_ref());
        named.map(|one| one.id.as_str()).chain(self.detached_public_addresses.iter().map(String::as_str))
    }

    /// The names of the reservations.
    pub fn names(&self) -> BTreeSet<String> {
        self.ip_configurations().map(|one| one.name.clone()).collect()
    }
}

/// Without the pool's rules, which are for people: the operator's own record must never be refused. It writes
/// durations in units that the rules don't have, such as `0ns`.
fn recorded_sizing(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let count = schemars::json_schema!({ "type": "integer", "format": "uint32" });
    schemars::json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "minimum": count, "warm": count, "maximum": count, "batch": count, "releaseAfter": { "type": "string" },
        },
    })
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_block_counts_as_sixteen_addresses() {
        let count = |address: &str| IpConfiguration { address: address.into(), ..Default::default() }.count();
        assert_eq!(
            [
                count("10.0.0.5/32"),
                count("10.0.0.16/28"),
                count("10.0.0.5"),
                count("x/99"),
                count("fd00::/28")
            ],
            [1, 16, 0, 0, 0]
        );
    }

    #[test]
    fn what_a_left_nic_is_recorded_with_is_left_unless_it_goes_on_with_the_present_one() {
        let nic = |id: &str, names: &[&str]| {
            let held = names.iter().map(|name| json!({"name": name, "address": "10.0.0.5/32"}));
            json!({"id": id, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
                "ipConfigurations": held.collect::<Vec<_>>()})
        };
        let spec: NodeIPAllocationSpec = serde_json::from_value(json!({"nodeUID": "u", "pool": "p",
            "cooldown": "30s", "interfaces": [nic("/present", &["route"])],
            "leftInterfaces": [nic("/left", &["route", "vnp-1"]), nic("/known-by-its-id", &[])]}))
        .unwrap();
        let left = spec.left_reservations().map(|(nic, one)| (nic.id.as_str(), one.name.as_str()));
        assert_eq!(left.collect::<Vec<_>>(), [("/left", "vnp-1")]);
    }

    /// See the architecture, "A second address family": a block for each family stands beside the present
    /// fields, and the family's reservations in the same list.
    #[test]
    fn an_object_with_a_second_address_family_is_read_and_all_that_a_reader_knows_is_written_again() {
        let known = json!({
            "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation", "metadata": {"name": "n"},
            "spec": {"nodeUID": "u", "bootID": "b", "pool": "p", "mode": "Prefix", "wiring": "Bridge", "target": 16,
                "sizing": Sizing::default(), "cooldown": "30s", "warm": 4, "reportHolders": true, "podMetadataAccess": "All",
                "snatExclusions": ["10.0.0.0/8"], "elsewhere": 1, "takenOffAt": ["2026-01-01T00:00:00Z"],
                "detachedPublicAddresses": ["/d"], "strayInterfaces": ["/s"],
                "leftInterfaces": [{"id": "/left", "mac": "m", "primaryAddress": "10.0.0.5",
                    "subnet": {"id": "/subnet", "prefixes": []}, "applicationSecurityGroups": ["/g"],
                    "ipConfigurations": [{"name": "vnp-9", "address": "10.0.0.9/32"}]}],
                "interfaces": [{"id": "/nic", "mac": "m", "secondary": true, "primaryAddress": "10.0.0.4",
                    "subnet": {"id": "/subnet", "prefixes": ["10.0.0.0/16"]}, "applicationSecurityGroups": ["/g"],
                    "ipConfigurations": [{"name": "vnp-1", "address": "10.0.0.16/28", "attachedTo": "w", "backendPools": ["/b"],
                        "publicAddress": {"id": "/i", "address": "1.2.3.4", "dnsName": "d"}}]}]},
            "status": {"observedGeneration": 2, "bootID": "b", "held": 16, "assigned": 2, "cooling": 1, "free": 13, "waiting": 1,
                "countedAt": "2026-01-01T00:00:00Z", "pods": 2, "relinquished": ["vnp-2"], "unlisted": ["vnp-1"],
                "holders": [{"address": "10.0.0.17", "pod": "a/b", "podUID": "w", "sandbox": "s/eth0"}]},
        });
        let rewritten = |object: &Value| {
            let read: NodeIPAllocation = serde_json::from_value(object.clone()).unwrap();
            (json!(read), read)
        };
        assert_eq!(rewritten(&known).0, known, "nothing is left out, nor added");
        // What stands in lists that are there already.
        let mut newer = known.clone();
        let add = |list: &mut Value, one| list.as_array_mut().unwrap().push(one);
        add(
            &mut newer["spec"]["interfaces"][0]["ipConfigurations"],
            json!({"name": "vnp-6", "address": "fd00:10::10/124"}),
        );
        add(
            &mut newer["status"]["holders"],
            json!({"address": "fd00:10::11", "pod": "a/b", "podUID": "w", "sandbox": "s/eth0"}),
        );
        let (written, read) = rewritten(&newer);
        assert_eq!(written, newer);
        assert_eq!(read.spec.addresses(), 16, "the counts are those of IPv4");
        for definition in crate::definitions().unwrap() {
            let definition = json!(definition);
            let status =
                &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
            let address = &status["properties"]["holders"]["items"]["properties"]["address"];
            assert!(address["maxLength"].as_u64().is_none_or(|most| most >= 39), "{address}");
        }
        // And blocks of its own.
        let counts = json!({"held": 16, "assigned": 1, "cooling": 0, "free": 15, "waiting": 0});
        newer["status"]["ipv6"] = counts;
        newer["spec"]["interfaces"][0]["ipv6"] =
            json!({"primaryAddress": "fd00:10::4", "prefixes": ["fd00:10::/64"]});
        assert_eq!(rewritten(&newer), (written, read));
    }
}
