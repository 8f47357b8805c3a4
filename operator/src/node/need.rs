//! What a node needs, also while its reconcile waits for its turn at Azure: pods that come meanwhile must not
//! wait behind the less urgent need that their node had before.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use vnetpool_crds::NodeIPAllocation;

use crate::azure::{Priority, Urgency};
use crate::cluster::{Cluster, Waker, woken};
use crate::node_object::Node;
use crate::planner::{self, Demand, Observed};

/// A node as the cluster has it, now and later.
#[derive(Clone)]
pub struct Need {
    cluster: Cluster,
    node: String,
    /// Events about the node; the controller handles them only when its reconcile has ended.
    wakeups: watch::Receiver<()>,
}

impl Need {
    pub fn of(cluster: &Cluster, waker: &Waker, node: &str) -> Need {
        Need { cluster: cluster.clone(), node: node.to_owned(), wakeups: waker.hear(node) }
    }

    /// Later needs of the node are compared with its need at this time.
    pub fn note(&mut self) {
        self.wakeups.mark_unchanged();
    }

    /// How urgent it is to read the NIC. More so as soon as there are more pods than addresses in `spec`.
    pub fn of_read(&self, allocation: &NodeIPAllocation, demand: &Demand, is_new: bool) -> Urgency {
        let published = allocation.spec.addresses();
        if demand.pods() > published {
            return Priority::WaitingPods.into();
        }
        let priority = if is_new { Priority::NewNode } else { Priority::GiveBack };
        let mut need = self.clone();
        Urgency::until(priority, async move {
            loop {
                need.woken().await;
                if need.demand().is_some_and(|(demand, _)| demand.pods() > published) {
                    return;
                }
            }
        })
    }

    /// How urgent a write of this priority is, planned from `observed`. It becomes more urgent as soon as a
    /// new plan would go before it and include all pods that have come since; such a plan, like any, waits
    /// for the end of a burst.
    pub fn of_write(&self, observed: &Observed, priority: Priority) -> Urgency {
        if priority <= Priority::WaitingPods {
            return priority.into();
        }
        let (mut need, observed) = (self.clone(), observed.clone());
        Urgency::until(priority, async move {
            let mut since = None;
            // The end of a burst causes no wakeup.
            if observed.bound_still_for >= planner::STILL {
                need.woken().await;
            }
            loop {
                let now = Instant::now();
                let Some((demand, still_for)) = need.demand() else {
                    need.woken().await;
                    continue;
                };
                let after_the_burst = Observed { demand, bound_still_for: Duration::MAX, ..observed.clone() };
                if planner::plan(&after_the_burst).priority >= priority {
                    since = None;
                    need.woken().await;
                    continue;
                }
                let since = *since.get_or_insert(now);
                let rest = planner::burst_to_last(still_for, now.duration_since(since));
                if rest.is_zero() {
                    return;
                }
                let _ = timeout(rest, need.woken()).await;
            }
        })
    }

    /// The present need of the node's pods, and how long they have been bound to it; `None` if the node is
    /// gone.
    fn demand(&self) -> Option<(Demand, Duration)> {
        let (allocation, node) = (self.cluster.allocation(&self.node)?, self.cluster.node(&self.node)?);
        let (bound, changed) = self.cluster.bound(&self.node);
        let still_for = changed.map_or(Duration::MAX, |changed| changed.elapsed());
        Some((demand(&allocation, &node, bound), still_for))
    }

    /// Waits until the node is woken again.
    async fn woken(&mut self) {
        woken(&mut self.wakeups).await;
    }
}

/// The node's counts are of the boot they were reported from; after another there is nothing assigned yet.
pub fn demand(allocation: &NodeIPAllocation, node: &Node, bound: u32) -> Demand {
    let status = allocation.status.as_ref().filter(|status| status.boot_id == node.boot_id());
    let (assigned, waiting, cooling) =
        status.map_or((0, 0, 0), |status| (status.assigned, status.waiting, status.cooling));
    Demand { bound, assigned, waiting, cooling, pods_allowed: node.pods_allowed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Watched;
    use kube::Client;
    use serde_json::json;
    use std::sync::Arc;

    /// The re-check of blocks, four times an hour, is one: nothing else makes it more urgent.
    #[tokio::test]
    async fn a_read_for_which_no_pod_waits_goes_after_everything_else() {
        let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
            "ipConfigurations": [{"name": "vnp-1", "address": "10.0.0.16/28"}]});
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]});
        let allocation = serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let url = "http://127.0.0.1:1".parse().unwrap();
        let client = Client::try_from(kube::Config::new(url)).unwrap();
        let Watched { cluster, waker, .. } = Cluster::watch(&client, &Arc::default(), &Default::default());
        let need = Need::of(&cluster, &waker, "n");
        let priority = |bound, is_new| {
            let demand = Demand { bound, ..Demand::default() };
            need.of_read(&allocation, &demand, is_new).priority
        };
        assert_eq!(Some(&priority(16, false)), Priority::ALL.last());
        assert_eq!((priority(16, true), priority(17, false)), (Priority::NewNode, Priority::WaitingPods));
    }

    #[test]
    fn counts_from_before_the_boot_are_not_demand() {
        let status = json!({"bootID": "b1", "assigned": 5, "waiting": 2, "cooling": 1});
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let reported =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": status}))
                .unwrap();
        let node = |boot: &str| -> Node {
            serde_json::from_value(json!({"status": {"nodeInfo": {"bootID": boot}}})).unwrap()
        };
        assert_eq!(demand(&reported, &node("b1"), 3).pods(), 7);
        assert_eq!(demand(&reported, &node("b2"), 3).pods(), 3);
    }
}
