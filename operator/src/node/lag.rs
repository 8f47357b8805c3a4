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

/// A deletion counts as a generation of its own, which the agent takes up like any other: an object that was
/// deleted may serve its node for a while, with a `spec` that is written meanwhile.
pub fn lag(allocation: &NodeIPAllocation, boot_id: &str) -> Lag {
    match &allocation.status {
        Some(status) if status.observed_generation.is_some() && status.boot_id == boot_id => {
            if status.observed_generation >= allocation.metadata.generation { Lag::None } else { Lag::Behind }
        }
        _ => Lag::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_spec_that_is_written_after_its_objects_deletion_counts_when_the_agent_has_taken_up_that() {
        let lag = |observed: i64| {
            let object = json!({
                "metadata": {"name": "n", "generation": 7, "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
                "status": {"bootID": "b", "observedGeneration": observed},
            });
            lag(&serde_json::from_value(object).unwrap(), "b")
        };
        assert_eq!((lag(6), lag(7)), (Lag::Behind, Lag::None));
    }
}
