//! Condition types and reasons, and the two operations on them: set, and compare without regard to time.
//!
//! Each type has one writer. `kubectl describe` shows type, status, reason and message; a message names the object, the
//! cause and the remedy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Operator, on both kinds: the AND of its named parts. On a `NodeIPAllocation` these are [`INTERFACE_FOUND`],
/// [`RESERVED`] and [`AGENT_REPORTING`]; the reason is the first failing part's.
pub const READY: &str = "Ready";
/// Operator, on a `NodeIPAllocation`: the node's VM and the NIC that serves its pool were found in Azure.
pub const INTERFACE_FOUND: &str = "InterfaceFound";
/// Operator, on a `NodeIPAllocation`: the NIC holds as many addresses as the pool's sizing asks for.
pub const RESERVED: &str = "Reserved";
/// Operator, on a `NodeIPAllocation`: its reading of the agent. False while the agent hasn't taken up the current `spec`, or
/// says of itself in one of [`BY_AGENT`] that something is wrong.
pub const AGENT_REPORTING: &str = "AgentReporting";
/// Operator, on a `NodeIPAllocation`: a NIC write is under way or its outcome isn't known. An operator that starts reads
/// the NIC of each object that carries it.
pub const WRITING: &str = "Writing";
/// Operator, on a `NodeIPAllocation`: Azure lets the operator follow the writes it has begun. False when it may not ask: then
/// it reads the NIC until that shows the end, and the message names the missing permission. Absent until a write was followed.
pub const OPERATIONS_TRACKED: &str = "OperationsTracked";
/// Operator, on a `NodeIPAllocation`: more addresses are held than wanted. Its transition time starts `releaseAfter`.
pub const SURPLUS: &str = "Surplus";
/// Operator, on a `NodeIPAllocation`, where the pool's `adopt` asks for it: others' ipConfigurations are gone from the NIC. False
/// while pods may use them.
pub const ADOPTED: &str = "Adopted";
/// Operator, on a `NodeIPAllocation`: all addresses are taken and no more can be had; the node carries the taint
/// [`crate::names::FULL_TAINT`] as long.
pub const FULL: &str = "Full";
/// Operator, on a `NodeIPAllocation`: the pods that ask for load balancers' backend pools or a public address have them. No part
/// of [`READY`]: it concerns those pods, not the node.
pub const ATTACHED: &str = "Attached";
/// Operator, on a `NodeIPAllocation`: no address is held by the sandbox of a pod that is gone. False names those that have been for
/// more than a minute; they stay theirs, since whatever is in the sandbox may still use them. No part of [`READY`]. Absent
/// until there was one.
pub const SANDBOXES_ENDED: &str = "SandboxesEnded";
/// Operator, on a `NodeIPAllocation`, where the pool has `applicationSecurityGroups`: the NIC is in them. No part of [`READY`]: pods
/// have addresses, but other security rules than they should.
pub const APPLICATION_SECURITY_GROUPS: &str = "ApplicationSecurityGroups";
/// Operator, on a `NodeIPAllocation`, and only while it runs with `--dry-run`: what it would do to the node's NIC.
pub const DRY_RUN: &str = "DryRun";
/// Agent: the node's ledger has been supplied from `spec` in this boot.
pub const SUPPLIED: &str = "Supplied";
/// Agent: forwarding is on and the nftables table `inet vnetpool` is in place.
pub const RULES_APPLIED: &str = "RulesApplied";
/// Agent: the CNI plugin and its configuration are installed, and ours is the configuration the runtime uses.
pub const CNI_INSTALLED: &str = "CNIInstalled";
/// Agent: True while every assigned address is still in `spec`. False names the pods whose address has been taken away.
pub const ASSIGNMENTS_BACKED: &str = "AssignmentsBacked";
/// Agent: nothing else on the node is in the way of its pods. True with the reason `Repaired` tells what the agent has put right
/// in the last hour; False names what it can't or mustn't change.
pub const UNDISTURBED: &str = "Undisturbed";
/// The types on a `NodeIPAllocation` that its agent applies; all others there are the operator's.
pub const BY_AGENT: [&str; 5] = [SUPPLIED, RULES_APPLIED, CNI_INSTALLED, ASSIGNMENTS_BACKED, UNDISTURBED];
/// Operator, on a `NodeIPPool`: every node it selects can be served. False names nodes that run Windows, for which there is no
/// agent: they are left alone, whatever serves the pods on them.
pub const NODES_SUPPORTED: &str = "NodesSupported";
/// Operator, on a `NodeIPPool`: it can read all that decides about the pool's nodes. False names the objects that it can't read:
/// their nodes keep what they have. Absent until there was one.
pub const OBJECTS_READABLE: &str = "ObjectsReadable";
/// Operator, on a `NodeIPPool`: the pool's own fields make sense together and with Azure.
pub const VALID: &str = "Valid";
/// Operator, on a `NodeIPPool`: a forecast. True while in one of the pool's subnets fewer addresses are free than
/// `subnetExhaustingPercent` of its size; Unknown while Azure doesn't tell how many are.
pub const SUBNET_EXHAUSTING: &str = "SubnetExhausting";

/// Sets `condition` in `conditions`, in place of the one of its type. `lastTransitionTime` is kept when the status is.
pub fn set(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|known| known.type_ == condition.type_) {
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time = known.last_transition_time.clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

/// A condition that turned to what it says at `now`.
pub fn new(
    type_: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    Condition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: Time(now),
    }
}

pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Whether two lists say the same, whatever their transition times and order: if so, there is nothing to write.
pub fn same(a: &[Condition], b: &[Condition]) -> bool {
    let says = |c: &Condition| (c.status.clone(), c.reason.clone(), c.message.clone(), c.observed_generation);
    a.len() == b.len()
        && a.iter().all(|one| find(b, &one.type_).is_some_and(|other| says(one) == says(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_condition_keeps_its_transition_time_until_its_status_turns() {
        let mut conditions = vec![];
        set(&mut conditions, new(READY, false, "SubnetFull", "a", None, at(1)));
        set(&mut conditions, new(READY, false, "Throttled", "b", None, at(2)));
        assert_eq!(find(&conditions, READY).unwrap().last_transition_time.0, at(1));
        assert_eq!(find(&conditions, READY).unwrap().reason, "Throttled");
        set(&mut conditions, new(READY, true, "Ready", "c", None, at(3)));
        assert_eq!(find(&conditions, READY).unwrap().last_transition_time.0, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn conditions_that_differ_only_in_time_say_the_same() {
        let one = [new(READY, true, "Ready", "", None, at(1))];
        assert!(same(&one, &[new(READY, true, "Ready", "", None, at(9))]));
        assert!(!same(&one, &[new(READY, true, "Ready", "other", None, at(1))]));
        assert!(!same(&one, &[]));
    }
}
