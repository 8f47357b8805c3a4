//! The programs' reports to `kubectl vnetpool` about facts that no object has: the node's ledger and wiring,
//! and the NIC.

use serde::{Deserialize, Serialize};

/// A node, as its agent's `status --output json` prints it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// The boot that the ledger is of.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// The generation of the NodeIPAllocation that it was supplied from.
    pub generation: i64,
    /// Whether the node lacks its rules, so that no pod gets a free address.
    #[serde(default)]
    pub lacks_rules: bool,
    pub addresses: Vec<AddressView>,
    /// Names that the node has given up for good and that `spec` still had.
    pub relinquished: Vec<String>,
    /// Pods that wait for an address.
    pub waiting: Vec<Tenant>,
    /// The sandboxes that are wired on the node, whatever the ledger has.
    pub wired: Vec<Wired>,
}

/// An address in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressView {
    pub address: String,
    /// Of its reservation; empty for one that no `spec` has named yet.
    pub name: String,
    pub state: State,
    /// How long it has been in that state, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_seconds: Option<u64>,
    /// The holder of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Another plugin has wired its pod.
    #[serde(default)]
    pub is_leased: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// No pod has it. It cools if that is less than a cooldown ago.
    #[default]
    Free,
    Assigned,
    /// Assigned, and gone from `spec`.
    Vanished,
    /// Free, and gone from `spec`.
    Withdrawn,
}

/// A pod's sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// As `namespace/name`; empty where the runtime named none.
    pub pod: String,
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// As `container id/interface`.
    pub sandbox: String,
}

/// An address that a link of the node leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wired {
    pub address: String,
    #[serde(flatten)]
    pub tenant: Tenant,
}

/// A NIC, or a route table, as Azure has it: `vnetpool-operator reserved`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservedView {
    /// Azure resource id.
    pub id: String,
    /// Why it couldn't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// That is because Azure doesn't find it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_absent: bool,
    /// Those of Vnetpool's.
    pub reservations: Vec<Reservation>,
    /// How many ipConfigurations on it are others', the primary one included.
    pub others: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reservation {
    pub name: String,
    /// As a range; none while Azure hasn't chosen yet.
    pub address: Option<String>,
    /// Of a route, the address that it leads to, if it does.
    #[serde(default, rename = "nextHop", skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// Azure's provisioning state.
    pub state: String,
}
