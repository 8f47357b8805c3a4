//! The objects of a pool's nodes that can't be read. Pure.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use vnetpool_apiserver::reading::Unreadable;
use vnetpool_crds::condition::{self, OBJECTS_READABLE};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus};

use super::NAMED;
use crate::cluster::unreadable;

/// Names in the status the unreadable objects of the pool's nodes. Reports nothing as long as there was none.
pub fn report(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    unreadable: &[Arc<Unreadable>],
    now: Timestamp,
) {
    let verdict = match unreadable {
        [] if condition::find(&status.conditions, OBJECTS_READABLE).is_none() => return,
        [] => Verdict::yes(Reason::Readable, "all objects of the pool's nodes can be read"),
        [first, others @ ..] => {
            let mut message = unreadable::message(first);
            if !others.is_empty() {
                let names = others.iter().map(|one| format!("{} {}", one.kind, one.name()));
                message += &format!(" Likewise unreadable: {}.", name_some(names, NAMED));
            }
            Verdict::no(Reason::Unreadable, message)
        }
    };
    let condition = verdict.condition(OBJECTS_READABLE, pool.metadata.generation, now);
    condition::set(&mut status.conditions, condition);
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::pool;
    use super::*;
    use serde_json::json;
    use vnetpool_apiserver::reading::Reading;
    use vnetpool_crds::NodeIPAllocation;

    #[test]
    fn a_pool_names_unreadable_objects_of_its_nodes_until_they_are_readable() {
        let unreadable = |name: &str| -> Arc<Unreadable> {
            let object = json!({"metadata": {"name": name}, "spec": {"nodeUID": 1}});
            let reading: Reading<NodeIPAllocation> = serde_json::from_value(object).unwrap();
            Arc::new(*reading.0.unwrap_err())
        };
        let (pool, now) = (pool(json!({})), Timestamp::UNIX_EPOCH);
        let mut status = NodeIPPoolStatus::default();
        report(&pool, &mut status, &[], now);
        assert!(status.conditions.is_empty());
        let many: Vec<_> = (0..8).map(|n| unreadable(&format!("n{n}"))).collect();
        report(&pool, &mut status, &many, now);
        let condition = condition::find(&status.conditions, OBJECTS_READABLE).unwrap().clone();
        assert_eq!(condition.status, "False");
        for part in ["NodeIPAllocation n0", "spec.nodeUID", "NodeIPAllocation n5 and more", "kubectl edit"] {
            assert!(condition.message.contains(part), "{}", condition.message);
        }
        report(&pool, &mut status, &[], now);
        assert!(condition::is_true(&status.conditions, OBJECTS_READABLE));
    }
}
