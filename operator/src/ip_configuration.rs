//! An address, or a block of them, on a NIC, and its attachments: the planner plans with it, and Azure's
//! documents are read into it.

use std::collections::HashSet;

use ipnet::Ipv4Net;

use crate::resource_id::ResourceId;

/// One of our address slots on a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfiguration {
    pub name: String,
    /// A /32, or a /28 for a block. `None` while Azure hasn't chosen yet.
    pub address: Option<Ipv4Net>,
    /// Only in [`ProvisioningState::Succeeded`] does the address reach the NIC.
    pub state: ProvisioningState,
    pub attached: Attached,
}

/// The Azure resources that are attached to an ipConfiguration, and with it to its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Backend pools of load balancers, each once.
    pub backend_pools: HashSet<ResourceId>,
    pub public_address: Option<ResourceId>,
    /// An attachment that Vnetpool never makes: NAT rules, an application gateway's pool, a tap.
    pub other: bool,
}

impl Attached {
    pub fn is_empty(&self) -> bool {
        *self == Attached::default()
    }
}

/// A resource's provisioning state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProvisioningState {
    Succeeded,
    Updating,
    Deleting,
    Failed,
    /// The published list of states is open.
    Other(String),
}
