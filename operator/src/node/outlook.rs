//! What the operator would make of a node's objects, without asking Azure and without doing it: for people
//! who want to know why a node holds its addresses, or what an edit would do. The decisions are the
//! reconcile's own; the outlook takes the NIC to be as `spec` mirrors it, like an operator that has just
//! started.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::pool::{Mode, NIC_SLOTS, ScarceWrites, Sizing};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use super::observe::obstacle::{self, Obstacle};
use super::observe::{mirrored, relinquished, surplus_for};
use super::policy::{self, Policy};
use super::{backend, need};
use crate::azure::ResourceId;
use crate::context::Waits;
pub use crate::demand::pod::needs_address;
pub use crate::left_alone::{Cause, cause_of_whole, is_never_served};
pub use crate::node_object::Node;
use crate::planner::{self, Demand, Observed, Plan};

/// The facts about a node that are known without Azure.
pub struct Facts<'a> {
    pub allocation: &'a NodeIPAllocation,
    pub node: &'a Node,
    /// Pods on the node that need an address.
    pub bound: u32,
    /// All pools, as they are or as they would be.
    pub pools: &'a [Arc<NodeIPPool>],
    pub now: Timestamp,
}

/// The decisions for the node.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// The pool whose policy holds.
    pub pool: Option<Arc<NodeIPPool>>,
    /// Why the last pool doesn't serve the node any more, until when its policy holds, and what follows then.
    pub leaves: Option<String>,
    /// Why the node is to hold no addresses.
    pub obstacle: Option<String>,
    pub demand: Demand,
    /// What the pool asks for; `None` if it asks for nothing.
    pub sizing: Option<Sizing>,
    /// How many addresses a reservation brings.
    pub grain: u32,
    /// How many reservations of ours the NIC takes, as far as `spec` shows what others have on it.
    pub slots: u32,
    pub plan: Plan,
}

pub fn outlook(facts: &Facts) -> Outlook {
    let Facts { allocation, node, bound, pools, now } = facts;
    let (spec, grace) = (&allocation.spec, Waits::FULL.grace);
    let named = |name: &str| pools.iter().find(|pool| pool.name_any() == name).cloned();
    let selected = NodeIPPool::serving(pools.iter().map(AsRef::as_ref), &node.labels().to_map());
    let Policy { pool, change } = policy::decide(policy::Facts {
        allocation,
        selected: selected.and_then(|pool| named(&pool.name_any())),
        last: named(&spec.pool),
        // The decision for the time after the pause.
        is_paused: false,
        grace,
        now: *now,
    });
    let leaves = change.map(|change| change.verdict(&node.name_any(), &spec.pool, grace).message);
    let obstacle = pool.as_deref().and_then(|pool| obstacle(allocation, node, pool));
    let served = pool.as_deref().filter(|_| obstacle.is_none());

    let held = spec.serving().map(mirrored).unwrap_or_default();
    let (sizing, grain) = (served.map(backend::sizing), served.map_or(1, |pool| pool.spec.grain()));
    let slots = match spec.mode {
        // The primary ipConfiguration at least is the node's own.
        Mode::Address | Mode::Prefix => NIC_SLOTS.saturating_sub(1).saturating_sub(spec.elsewhere),
        Mode::Route => 1,
    };
    let coarseness = served.map_or(1, |pool| coarseness(allocation, pool));
    let observed = Observed {
        sizing: sizing.clone(),
        demand: need::demand(allocation, node, *bound),
        held,
        lost: BTreeSet::new(),
        slots,
        grain,
        release_after: served.map(|pool| pool.spec.sizing.release_after.into()).unwrap_or_default(),
        coarseness,
        relinquished: relinquished(allocation),
        shown: allocation.spec.names(),
        adopt: vec![],
        join: vec![],
        leave: vec![],
        surplus_for: surplus_for(allocation, *now),
        // As it will be when the burst is over, if there is one.
        bound_still_for: Duration::MAX,
        growth_wanted_for: Duration::MAX,
        release_wanted_for: Duration::MAX,
        may_reserve: u32::MAX,
        may_write: true,
        nic_failed: false,
        may_mend: false,
        may_regroup: true,
        may_release: true,
        forwarding_lacks: false,
        route_is_wrong: false,
    };
    Outlook {
        leaves,
        obstacle: obstacle.map(|obstacle| match obstacle {
            Obstacle::NoPool => "no NodeIPPool serves the node".to_owned(),
            Obstacle::Interface { message, .. } => message,
        }),
        demand: observed.demand,
        sizing,
        grain,
        slots,
        plan: planner::plan(&observed),
        pool,
    }
}

/// As the pool's status has it for the subscription of the node's NIC.
fn coarseness(allocation: &NodeIPAllocation, pool: &NodeIPPool) -> u32 {
    let nic = allocation.spec.serving().and_then(|nic| nic.id.parse::<ResourceId>().ok());
    let scarce = pool.status.iter().flat_map(|status| &status.scarce_writes);
    let is_here = |one: &&ScarceWrites| {
        nic.as_ref().is_some_and(|nic| nic.subscription().eq_ignore_ascii_case(&one.subscription))
    };
    scarce.filter(is_here).map(|one| one.coarseness).max().unwrap_or(1)
}

/// As far as it is known without Azure.
fn obstacle(allocation: &NodeIPAllocation, node: &Node, pool: &NodeIPPool) -> Option<Obstacle> {
    let spec = &allocation.spec;
    let serving = spec.serving()?;
    let primary = spec.interfaces.iter().find(|nic| !nic.secondary).map(|nic| nic.subnet.id.as_str());
    if let Ok(Some(mismatch)) = obstacle::mismatch(pool, serving, primary, node) {
        return Some(mismatch);
    }
    let holds = spec.ip_configurations().next().is_some();
    let is_of_its_range = pool.spec.route.as_ref().is_none_or(|route| policy::leads(spec, route));
    (holds && (pool.spec.mode != spec.mode || !is_of_its_range)).then(|| obstacle::moving(pool, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(name: &str, spec: serde_json::Value) -> Arc<NodeIPPool> {
        Arc::new(NodeIPPool::new(name, serde_json::from_value(spec).unwrap()))
    }

    /// A node of pool `p` with 8 addresses of mode Address.
    fn allocation() -> NodeIPAllocation {
        let held = (0..8).map(|n| json!({"name": format!("vnp-{n}"), "address": format!("10.0.0.{n}/32")}));
        let subnet =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n";
        let nic = subnet.replace("virtualNetworks/v/subnets/n", "networkInterfaces/nic");
        let nic = json!({"id": nic, "mac": "m", "primaryAddress": "10.0.1.4", "subnet": {"id": subnet},
            "ipConfigurations": held.collect::<Vec<_>>()});
        serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "target": 8, "interfaces": [nic]},
        }))
        .unwrap()
    }

    fn seen(bound: u32, pools: &[Arc<NodeIPPool>]) -> Outlook {
        let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
        outlook(&Facts { allocation: &allocation(), node: &node, bound, pools, now: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn more_pods_are_answered_by_a_write_and_fewer_by_giving_back_later() {
        let p = [pool("p", json!({"sizing": {"minimum": 0, "warm": 2, "batch": 1}}))];
        let grows = seen(9, &p);
        assert_eq!((grows.plan.steps.unwrap().wanted, grows.plan.change.reserve), (11, 3));
        let shrinks = seen(1, &p);
        assert_eq!((shrinks.plan.wanted, shrinks.plan.target, shrinks.plan.surplus), (3, 8, true));
        assert_eq!(shrinks.plan.requeue, Some(Duration::from_secs(300)));
    }

    #[test]
    fn the_step_has_the_coarseness_of_the_nics_subscription_in_the_pools_status() {
        let reserves = |subscription: &str| {
            let mut pool = (*pool("p", json!({"sizing": {"minimum": 0, "warm": 2, "batch": 4}}))).clone();
            let scarce = ScarceWrites { subscription: subscription.into(), coarseness: 4 };
            pool.status.get_or_insert_default().scarce_writes = vec![scarce];
            seen(9, &[Arc::new(pool)]).plan.change.reserve
        };
        assert_eq!((reserves("S"), reserves("other")), (8, 4));
    }

    #[test]
    fn a_pool_of_another_mode_takes_over_after_the_grace() {
        let moves = seen(1, &[pool("blocks", json!({"mode": "Prefix", "weight": 9})), pool("p", json!({}))]);
        assert_eq!(moves.pool.unwrap().name_any(), "p");
        assert!(moves.leaves.unwrap().contains("NodeIPPool blocks selects node n1 now"));
    }

    #[test]
    fn a_pool_of_another_subnet_is_in_the_way() {
        let other =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/o";
        let stuck = seen(1, &[pool("p", json!({"subnetID": other}))]);
        assert!(stuck.obstacle.unwrap().contains(other));
        assert_eq!((stuck.plan.steps, stuck.plan.wanted), (None, 0));
    }
}
