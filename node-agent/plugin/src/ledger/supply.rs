//! The sources of a ledger's supply: the spec, and the sandboxes that are found on the node.

use std::{net::Ipv4Addr, time::Duration};

use super::{Entry, Proof};
use crate::sandbox::{Pod, Sandbox};

/// One version of a NodeIPAllocation's spec, as far as it concerns this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supply {
    /// `metadata.uid` of the object.
    pub object: String,
    /// `metadata.generation`: grows with every change of the spec.
    pub generation: i64,
    pub node_uid: String,
    /// `spec.bootID`: the boot for which the operator has read the NIC.
    pub boot_id: String,
    pub cooldown: Duration,
    pub entries: Vec<Entry>,
}

/// The outcome of a [`Supply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplied {
    Applied,
    /// The generation is older than one that the ledger has seen: nothing changed. Otherwise a late event
    /// could bring an entry back that was relinquished, removed from the NIC and forgotten.
    Stale,
    /// The spec is not of this boot: nothing changed.
    OtherBoot,
}

/// A sandbox that was found to use an address, whatever the ledger has: by a host link of ours and the route
/// behind it, or by the reported status if another plugin wired the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    pub sandbox: Sandbox,
    pub pod: Pod,
    pub address: Ipv4Addr,
    pub proof: Proof,
}
