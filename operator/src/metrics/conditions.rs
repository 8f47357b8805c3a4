//! How many objects have which condition, counted at each scrape. Only the names in the tables of types and
//! reasons become labels, so neither nodes nor a wild writer can make the series many. A type that no object
//! has yet counts as 0: an alert about it is known to find its series before the day it is to fire.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use vnetpool_crds::condition::{On, Polarity, TYPES};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

/// A reason that this release doesn't know.
const OTHER: &str = "Other";

/// Kind, type, status and reason.
type Key = [&'static str; 4];

pub type Counts = BTreeMap<Key, u32>;

/// Counts at each scrape.
pub struct Conditions(Box<dyn Fn() -> Counts + Send + Sync>);

impl Conditions {
    pub fn new(counts: impl Fn() -> Counts + Send + Sync + 'static) -> Conditions {
        Conditions(Box::new(counts))
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conditions")
    }
}

impl Collector for Conditions {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let kind = ConstGauge::new(0_u32).metric_type();
        let help = "Objects by a condition they have";
        let mut metric = encoder.encode_descriptor("conditions", help, None, kind)?;
        for ([kind, type_, status, reason], count) in (self.0)() {
            let labels = [("kind", kind), ("type", type_), ("status", status), ("reason", reason)];
            ConstGauge::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// How many objects have which condition; 0, without a reason, where none has one of that type.
pub fn count<'a>(
    pools: impl Iterator<Item = &'a NodeIPPool>,
    allocations: impl Iterator<Item = &'a NodeIPAllocation>,
) -> Counts {
    let of_pools = pools.filter_map(|pool| pool.status.as_ref()).flat_map(|status| &status.conditions);
    let of_nodes = allocations.filter_map(|one| one.status.as_ref()).flat_map(|status| &status.conditions);
    let pools = of_pools.map(|condition| (POOL, condition));
    let nodes = of_nodes.map(|condition| (ALLOCATION, condition));
    // Thousands of nodes have a few dozen: their names are looked up once each.
    let mut seen: BTreeMap<(&str, &str, &str, &str), u32> = BTreeMap::new();
    for (kind, Condition { type_, status, reason, .. }) in pools.chain(nodes) {
        *seen.entry((kind, type_, status, reason)).or_default() += 1;
    }
    let mut counts = Counts::new();
    for ((kind, type_, status, reason), count) in seen {
        let Some(row) = TYPES.iter().find(|row| row.name == type_) else { continue };
        let kind = if kind == POOL { POOL } else { ALLOCATION };
        let status = ["True", "False"].into_iter().find(|one| *one == status).unwrap_or("Unknown");
        let reason = Reason::of(reason).map_or(OTHER, Reason::name);
        *counts.entry([kind, row.name, status, reason]).or_default() += count;
    }
    let had: BTreeSet<_> = counts.keys().map(|[kind, type_, ..]| (*kind, *type_)).collect();
    for row in TYPES {
        let unusual = if row.polarity == Polarity::True { "False" } else { "True" };
        for kind in row.on.kinds().iter().filter(|kind| !had.contains(&(**kind, row.name))) {
            counts.insert([kind, row.name, unusual, ""], 0);
        }
    }
    counts
}

const POOL: &str = On::NodeIPPool.kinds()[0];
const ALLOCATION: &str = On::NodeIPAllocation.kinds()[0];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, conditions: &[(&str, &str, &str)]) -> NodeIPAllocation {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(type_, status, reason)| {
                json!({"type": type_, "status": status, "reason": reason, "message": name,
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
            "status": {"conditions": conditions}
        }))
        .unwrap()
    }

    #[test]
    fn objects_are_counted_by_condition_and_unknown_values_make_no_series_of_their_own() {
        let nodes = [
            node("a", &[("Ready", "False", "SubnetFull"), ("Full", "False", "NotFull")]),
            node("b", &[("Ready", "False", "SubnetFull")]),
            node("c", &[("Ready", "Perhaps", "Whatever1"), ("Invented", "True", "Ready")]),
            node("d", &[("Ready", "Perhaps", "Whatever2")]),
        ];
        let counts = count(std::iter::empty(), nodes.iter());
        let had: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            had,
            [
                (["NodeIPAllocation", "Full", "False", "NotFull"], 1),
                (["NodeIPAllocation", "Ready", "False", "SubnetFull"], 2),
                (["NodeIPAllocation", "Ready", "Unknown", OTHER], 2),
            ]
        );
    }

    #[test]
    fn a_type_that_no_object_has_counts_as_zero() {
        let counts = count(std::iter::empty(), [node("a", &[("Full", "True", "SubnetFull")])].iter());
        let of = |kind: &str, type_: &str| -> Vec<_> {
            let found = counts.iter().filter(|([k, t, ..], _)| (*k, *t) == (kind, type_));
            found.map(|([.., status, reason], count)| (*status, *reason, *count)).collect()
        };
        assert_eq!(of(ALLOCATION, "Full"), [("True", "SubnetFull", 1)]);
        assert_eq!(of(ALLOCATION, "Selected"), [("False", "", 0)]);
        assert_eq!(of(POOL, "Selected"), [("False", "", 0)]);
        assert_eq!(of(POOL, "Stalled"), [("True", "", 0)]);
        assert_eq!(of(ALLOCATION, "Stalled"), []);
    }
}
