//! The condition `Selected` of a pool: which of the nodes that it serves it doesn't select any more. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::condition::{self, SELECTED};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, NodeIPPoolStatus};

use super::NAMED;

/// Names them in the status. Reports nothing as long as there was none.
pub fn report<'a>(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    nodes: impl Iterator<Item = &'a NodeIPAllocation>,
    now: Timestamp,
) {
    let departure = |node: &'a NodeIPAllocation| {
        let condition =
            condition::find(node.conditions(), SELECTED).filter(|condition| condition.status == "False")?;
        Some((node.name_any(), condition))
    };
    let mut leaving: Vec<(String, &Condition)> = nodes.filter_map(departure).collect();
    leaving.sort_by(|a, b| a.0.cmp(&b.0));
    let verdict = match leaving.as_slice() {
        [] if condition::find(&status.conditions, SELECTED).is_none() => return,
        [] => Verdict::yes(Reason::Selected, "the pool selects every node that it serves"),
        [(_, first), ..] => {
            let named = name_some(leaving.iter().map(|(name, _)| name.clone()), NAMED);
            Verdict::no(
                Reason::NodesLeave,
                format!(
                    "nodes leave NodeIPPool {}: {named}. Of the first: {}",
                    pool.name_any(),
                    first.message
                ),
            )
        }
    };
    condition::set(&mut status.conditions, verdict.condition(SELECTED, pool.metadata.generation, now));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, message: Option<&str>) -> NodeIPAllocation {
        let object =
            json!({"metadata": {"name": name}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        let mut node: NodeIPAllocation = serde_json::from_value(object).unwrap();
        let condition = message
            .map(|text| Verdict::no(Reason::NoPool, text).condition(SELECTED, None, Timestamp::UNIX_EPOCH));
        node.status.get_or_insert_default().conditions.extend(condition);
        node
    }

    #[test]
    fn a_pool_names_the_nodes_that_leave_it_until_none_does() {
        let pool = NodeIPPool::new("p", serde_json::from_value(json!({})).unwrap());
        let mut status = NodeIPPoolStatus::default();
        let mut report = |nodes: &[NodeIPAllocation]| {
            super::report(&pool, &mut status, nodes.iter(), Timestamp::UNIX_EPOCH);
            condition::find(&status.conditions, SELECTED).cloned()
        };
        assert_eq!(report(&[node("a", None)]), None);
        let condition =
            report(&[node("b", Some("Until noon.")), node("a", None), node("c", Some("x"))]).unwrap();
        assert_eq!(condition.message, "nodes leave NodeIPPool p: b, c. Of the first: Until noon.");
        assert_eq!(report(&[node("a", None)]).unwrap().status, "True");
    }
}
