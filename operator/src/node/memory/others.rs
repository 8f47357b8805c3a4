//! Others' ipConfigurations on a NIC, and since when the agent is asked about them. Pure.

use std::collections::BTreeSet;

use vnetpool_crds::NodeIPAllocation;

use crate::azure::Nic;

/// Since when the agent's answer is newer than the reads that found others' ipConfigurations on the NIC. A
/// process that has just started knows of none, so it asks once more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Found {
    names: BTreeSet<String>,
    /// The generation of the object when a read found one of a new name.
    at: Option<i64>,
}

impl Found {
    /// Takes in the NIC as it was read, before anything is decided by it.
    pub fn note(&mut self, nic: &Nic, allocation: &NodeIPAllocation) {
        if nic.others.idle.iter().any(|name| !self.names.contains(name)) {
            self.at = allocation.spec_generation();
        }
        self.names = nic.others.idle.iter().cloned().collect();
    }

    /// Whether the present `spec` is newer than these reads.
    pub fn is_past(&self, allocation: &NodeIPAllocation) -> bool {
        allocation.spec_generation() > self.at
    }

    /// Whether `spec` asks the agent already, from before these reads: then it has to stop once, or an answer
    /// to it would be as old as the question.
    pub fn must_ask_anew(&self, allocation: &NodeIPAllocation) -> bool {
        !self.names.is_empty() && allocation.spec.report_holders && !self.is_past(allocation)
    }
}
