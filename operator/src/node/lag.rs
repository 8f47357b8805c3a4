//! How far a node's agent has got. Pure.

use std::time::Duration;

use vnetpool_crds::NodeIPAllocation;

/// An agent takes a moment to take up a new `spec`; only one that takes longer is worth a report.
pub const AGENT_GRACE: Duration = Duration::from_secs(30);

/// How far the agent has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lag {
    None,
    /// The agent hasn't reported in this boot.
    Silent,
    /// It hasn't taken up the current `spec`.
    Behind,
}

pub fn lag(allocation: &NodeIPAllocation, boot_id: &str) -> Lag {
    match &allocation.status {
        Some(status) if status.observed_generation.is_some() && status.boot_id == boot_id => {
            if status.observed_generation >= spec_generation(allocation) { Lag::None } else { Lag::Behind }
        }
        _ => Lag::Silent,
    }
}

/// A deletion counts as a generation of its own, which no agent can take up.
pub fn spec_generation(allocation: &NodeIPAllocation) -> Option<i64> {
    allocation
        .metadata
        .generation
        .map(|generation| generation - i64::from(allocation.metadata.deletion_timestamp.is_some()))
}
