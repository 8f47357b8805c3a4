//! How far an edit of a pool has come, in its status, and whether it has stopped. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::condition::{
    self, AGENT_REPORTING, APPLICATION_SECURITY_GROUPS, PAUSED, READY, RECONCILING, STALLED, UPDATING,
};
use vnetpool_crds::reason::{Actor, Reason};
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, NodeIPPoolStatus};

use super::NAMED;
use crate::node::{self, AGENT_GRACE};
use crate::rollout::places;

/// Whether a node goes by the pool as it is now, and has settled.
pub fn has_taken_up(pool: &NodeIPPool, node: &NodeIPAllocation) -> bool {
    !condition::is_true(node.conditions(), UPDATING) && node::follows(&node.spec, pool)
}

/// Reports that nodes are yet to follow the pool, until all do; or that no further one will, and why. Returns
/// how long until that may be so though nothing changes. How many follow is in `updatedNodes`.
pub fn report<'a>(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    nodes: impl Iterator<Item = &'a NodeIPAllocation>,
    now: Timestamp,
) -> Option<Duration> {
    let (updated, all, generation) = (status.updated_nodes, status.nodes, pool.metadata.generation);
    // A pool that is stalled for another reason stays so, without a second report.
    if updated == all || condition::is_true(&status.conditions, STALLED) {
        status.conditions.retain(|one| one.type_ != RECONCILING);
        return None;
    }
    let updating: Vec<&NodeIPAllocation> =
        nodes.filter(|node| condition::is_true(node.conditions(), UPDATING)).collect();
    let mut stuck: Vec<(String, &str)> = updating.iter().filter_map(|node| stuck(node, now)).collect();
    stuck.sort();
    let is_paused = condition::is_true(&status.conditions, PAUSED);
    let is_stopped = !is_paused && stuck.len() >= places(pool, all);
    let (type_, verdict) = if is_stopped {
        let reasons: BTreeSet<&str> = stuck.iter().map(|(_, reason)| *reason).collect();
        let reasons = reasons.into_iter().collect::<Vec<_>>().join(", ");
        let message = format!(
            "no further node takes the edit up: as many as may at a time can't settle ({reasons}): {}. Put right what they report, \
             or take the edit of NodeIPPool {} back.",
            name_some(stuck.iter().map(|(name, _)| name.clone()), NAMED),
            pool.name_any()
        );
        (STALLED, Verdict::yes(Reason::RolloutStopped, message))
    } else {
        let message = match is_paused {
            true => "paused: not all nodes follow the pool as it is, and none begins to",
            false => "nodes take up the pool as it is; UPDATED counts those that follow it",
        };
        (RECONCILING, Verdict::yes(Reason::RollingOut, message))
    };
    // One of the two stands, as long as it did before: the sums have taken `Stalled` off.
    let before = pool.status.as_ref().and_then(|before| condition::find(&before.conditions, type_));
    status.conditions.retain(|one| one.type_ != STALLED && one.type_ != RECONCILING);
    status.conditions.extend(before.cloned());
    condition::set(&mut status.conditions, verdict.condition(type_, generation, now));
    updating.iter().filter_map(|node| grace_left(node, now)).min()
}

/// How long the agent of a node still has for its first report. It starts when its node does, and an edit may
/// come in that moment.
fn grace_left(node: &NodeIPAllocation, now: Timestamp) -> Option<Duration> {
    let silent = condition::find(node.conditions(), AGENT_REPORTING)
        .filter(|one| one.status == "False" && Reason::NotReported == one.reason.as_str())?;
    let lasted = now.duration_since(silent.last_transition_time.0).try_into().unwrap_or_default();
    Some(AGENT_GRACE.saturating_sub(lasted)).filter(|left| !left.is_zero())
}

/// The name of a node that takes the edit up and can't settle before a person acts, and the reason.
fn stuck(node: &NodeIPAllocation, now: Timestamp) -> Option<(String, &str)> {
    let needs_somebody = |reason: &str| match Reason::of(reason) {
        // No group is asked for, so it settles without them.
        Some(Reason::SharedNIC) => false,
        Some(Reason::NotReported) => grace_left(node, now).is_none(),
        Some(reason) => reason.row().actor != Actor::Nobody,
        None => true,
    };
    let found = [READY, APPLICATION_SECURITY_GROUPS].map(|type_| condition::find(node.conditions(), type_));
    let mut lacking = found.into_iter().flatten().filter(|one| one.status == "False");
    let lacks = lacking.find(|one| needs_somebody(&one.reason))?;
    Some((node.name_any(), lacks.reason.as_str()))
}

/// The condition by which a rollout has stopped.
pub fn stopped(conditions: &[Condition]) -> Option<&Condition> {
    condition::find(conditions, STALLED)
        .filter(|one| one.status == "True" && Reason::RolloutStopped == one.reason.as_str())
}

/// The condition by which a rollout has just stopped.
pub fn turned_stopped<'a>(before: &[Condition], next: &'a [Condition]) -> Option<&'a Condition> {
    stopped(next).filter(|_| stopped(before).is_none())
}

#[cfg(test)]
pub mod tests {
    use super::super::status::tests::{node, pool, rolled};
    use super::*;
    use serde_json::json;

    /// A node in the rollout, or one that waits.
    pub fn behind(name: &str, ready: &str, is_updating: bool) -> NodeIPAllocation {
        let mut node = node(name, "s", 8, ready);
        node.spec.sizing = Some(serde_json::from_value(json!({"minimum": 1})).unwrap());
        let updating = Verdict::yes(Reason::Updating, "").condition(UPDATING, None, Timestamp::UNIX_EPOCH);
        node.status.get_or_insert_default().conditions.extend(is_updating.then_some(updating));
        node
    }

    fn reported(pool: &NodeIPPool, nodes: &[NodeIPAllocation]) -> NodeIPPoolStatus {
        let mut status = rolled(pool, nodes);
        report(pool, &mut status, nodes.iter(), Timestamp::UNIX_EPOCH);
        status
    }

    #[test]
    fn a_pool_reports_that_nodes_are_yet_to_follow_it_until_all_do() {
        let mut pool = pool(json!({}));
        let mut nodes =
            vec![node("a", "s", 8, "Ready"), behind("b", "Ready", true), behind("c", "Ready", false)];
        let status = reported(&pool, &nodes);
        let turned = condition::find(&status.conditions, RECONCILING).unwrap();
        assert_eq!((status.updated_nodes, status.nodes), (1, 3), "a place alone is no update");
        assert_eq!((turned.status.as_str(), turned.reason.as_str()), ("True", "RollingOut"));
        assert!(condition::is_true(&status.conditions, READY));
        nodes.truncate(1);
        pool.status = Some(status);
        assert!(condition::find(&reported(&pool, &nodes).conditions, RECONCILING).is_none());
    }

    #[test]
    fn as_many_that_can_not_settle_as_may_update_stop_the_rollout_and_fewer_do_not() {
        let pool = pool(json!({"rollout": {"maxUpdating": 2}}));
        let waits = || behind("z", "Ready", false);
        let full = |name| behind(name, "SubnetFull", true);
        for nodes in [
            vec![full("a"), behind("b", "Ready", true), waits()],
            vec![full("a"), behind("b", "Throttled", true), waits()],
            vec![full("a"), behind("b", "SubnetFull", false), waits()],
        ] {
            let status = reported(&pool, &nodes);
            assert!(condition::is_true(&status.conditions, RECONCILING));
            assert!(condition::find(&status.conditions, STALLED).is_none());
        }
        let mut status = reported(&pool, &[full("b"), full("a"), waits()]);
        let turned = turned_stopped(&[], &status.conditions).unwrap();
        for part in ["no further node", "(SubnetFull): a, b.", "take the edit of NodeIPPool p back"] {
            assert!(turned.message.contains(part), "{}", turned.message);
        }
        assert!(turned_stopped(&status.conditions, &status.conditions).is_none());
        assert!(condition::find(&status.conditions, RECONCILING).is_none());
        // Nodes whose NIC may not join the pool's groups are `Ready`, and can't settle.
        let ungrouped = |name, reason| {
            let mut node = behind(name, "Ready", true);
            let joined = Verdict::no(reason, "m");
            let joined = joined.condition(APPLICATION_SECURITY_GROUPS, None, Timestamp::UNIX_EPOCH);
            node.status.get_or_insert_default().conditions.push(joined);
            node
        };
        let stopped_by = |reason| {
            let nodes = [ungrouped("a", reason), ungrouped("b", reason), waits()];
            turned_stopped(&[], &reported(&pool, &nodes).conditions).map(|turned| turned.message.clone())
        };
        assert!(stopped_by(Reason::NotAttachable).unwrap().contains("(NotAttachable): a, b."));
        assert_eq!((stopped_by(Reason::Joining), stopped_by(Reason::SharedNIC)), (None, None));
        // An agent that hasn't reported yet has a moment for that.
        let starting = |seconds| {
            let since = Timestamp::UNIX_EPOCH - Duration::from_secs(seconds);
            let mut node = behind("b", "NotReported", true);
            let silent = Verdict::no(Reason::NotReported, "m").condition(AGENT_REPORTING, None, since);
            node.status.get_or_insert_default().conditions.push(silent);
            let nodes = [full("a"), node, waits()];
            let mut status = rolled(&pool, &nodes);
            let due = report(&pool, &mut status, nodes.iter(), Timestamp::UNIX_EPOCH);
            (due, turned_stopped(&[], &status.conditions).is_some())
        };
        assert_eq!(starting(10), (Some(Duration::from_secs(20)), false));
        assert_eq!(starting(30), (None, true));
        // It goes on where it may again.
        let mut before = pool.clone();
        before.status = Some(std::mem::take(&mut status));
        let status = reported(&before, &[full("a"), behind("b", "Ready", true), waits()]);
        assert!(condition::find(&status.conditions, STALLED).is_none());
        assert!(condition::is_true(&status.conditions, RECONCILING));
    }
}
