//! The condition `WritesScarce`: where nodes take coarser steps, because Azure lets fewer writes through than
//! they want. Pure.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::condition::{self, WRITES_SCARCE};
use vnetpool_crds::pool::{Mode, ScarceWrites};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, NodeIPPoolStatus};

use super::NAMED;
use crate::azure::ResourceId;

/// Shows in the status in which subscriptions of these nodes, the pool's, writes are scarce. Says nothing as
/// long as there was nothing to say, nor of ranges, which come and go whole.
pub fn report<'a>(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    nodes: impl Iterator<Item = &'a NodeIPAllocation>,
    coarseness: impl Fn(&str) -> u32,
    now: Timestamp,
) {
    let subscriptions: BTreeSet<String> = match pool.spec.mode {
        Mode::Route => BTreeSet::new(),
        Mode::Address | Mode::Prefix => nodes.filter_map(subscription).collect(),
    };
    status.scarce_writes = subscriptions
        .into_iter()
        .map(|subscription| ScarceWrites { coarseness: coarseness(&subscription), subscription })
        .filter(|one| one.coarseness > 1)
        .collect();
    if status.scarce_writes.is_empty() && condition::find(&status.conditions, WRITES_SCARCE).is_none() {
        return;
    }
    let next = verdict(pool, &status.scarce_writes).condition(WRITES_SCARCE, pool.metadata.generation, now);
    condition::set(&mut status.conditions, next);
}

/// The subscription of the NIC that serves a node, in lower case.
fn subscription(node: &NodeIPAllocation) -> Option<String> {
    let nic: ResourceId = node.spec.serving()?.id.parse().ok()?;
    Some(nic.subscription().to_ascii_lowercase())
}

fn verdict(pool: &NodeIPPool, scarce: &[ScarceWrites]) -> Verdict {
    if scarce.is_empty() {
        let message = "Azure lets through the writes that the pool's nodes want";
        return Verdict::no(Reason::EnoughWrites, message);
    }
    let places = scarce.iter().map(|one| {
        format!("subscription {} {} times sizing.batch and releaseAfter", one.subscription, one.coarseness)
    });
    Verdict::yes(
        Reason::FewWrites,
        format!(
            "much of the writes that Azure allows us is used, so nodes of NodeIPPool {} take and give back addresses less often \
             and more at once (in {}). Pods that wait still go first. Raise sizing.batch, warm and releaseAfter, use a pool of \
             mode Prefix, give new nodes a further subscription, or raise the chart's azure.budgetPercent.",
            pool.name_any(),
            name_some(places, NAMED)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::pool;
    use super::*;
    use serde_json::json;

    fn node(subscription: &str) -> NodeIPAllocation {
        let nic = format!(
            "/subscriptions/{subscription}/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n"
        );
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [
                {"id": nic, "mac": "", "primaryAddress": "10.0.0.4", "subnet": {"id": "/s"}}
            ]},
        }))
        .unwrap()
    }

    /// What is reported of nodes in the subscriptions `A` and `b` where steps in `a` are so coarse.
    fn reported(
        pool: &NodeIPPool,
        status: &mut NodeIPPoolStatus,
        coarseness: u32,
    ) -> Option<(String, String)> {
        let nodes = [node("A"), node("b")];
        let coarseness = |subscription: &str| if subscription == "a" { coarseness } else { 1 };
        report(pool, status, nodes.iter(), coarseness, Timestamp::UNIX_EPOCH);
        let condition = condition::find(&status.conditions, WRITES_SCARCE)?;
        Some((condition.status.clone(), condition.message.clone()))
    }

    #[test]
    fn a_pool_names_the_subscription_with_scarce_writes_and_the_remedies() {
        let (pool, mut status) = (pool(json!({})), NodeIPPoolStatus::default());
        assert_eq!(reported(&pool, &mut status, 1), None, "nothing was scarce yet");
        let (turned, message) = reported(&pool, &mut status, 4).unwrap();
        assert_eq!(turned, "True");
        for part in ["subscription a 4 times sizing.batch", "Prefix", "azure.budgetPercent", "NodeIPPool p"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(status.scarce_writes, [ScarceWrites { subscription: "a".into(), coarseness: 4 }]);
        assert_eq!(reported(&pool, &mut status, 1).unwrap().0, "False");
        assert_eq!(status.scarce_writes, []);
    }

    #[test]
    fn a_pool_of_ranges_reports_no_scarce_writes() {
        let route = json!({"podCIDR": "10.128.0.0/16", "routeTableID": "/t"});
        let pool = pool(json!({"mode": "Route", "route": route}));
        assert_eq!(reported(&pool, &mut NodeIPPoolStatus::default(), 4), None);
    }
}
