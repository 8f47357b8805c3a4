//! The pools' statuses as metrics. They are made from the statuses themselves at each scrape, so a pool that
//! is gone there is gone here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use vnetpool_crds::NodeIPPoolStatus;
use vnetpool_crds::pool::SubnetUse;

use crate::lock::lock;

/// The latest status of each pool, by name.
#[derive(Debug, Default)]
pub struct Pools(Mutex<BTreeMap<String, NodeIPPoolStatus>>);

impl Pools {
    pub fn set(&self, pool: &str, status: &NodeIPPoolStatus) {
        let shown = NodeIPPoolStatus { conditions: vec![], ..status.clone() };
        lock(&self.0).insert(pool.to_owned(), shown);
    }

    pub fn forget(&self, pool: &str) {
        lock(&self.0).remove(pool);
    }
}

/// The labels of a series, and its value.
type Series = (Vec<(&'static str, String)>, u32);

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let pools = lock(&self.0);
        let of_pools = |value: fn(&NodeIPPoolStatus) -> u32| -> Vec<Series> {
            pools.iter().map(|(pool, status)| (vec![("pool", pool.clone())], value(status))).collect()
        };
        // Pools that share a subnet know the same of it.
        let of_subnets = |value: fn(&SubnetUse) -> Option<u32>| -> Vec<Series> {
            let all = pools.values().flat_map(|status| &status.subnets);
            let known: BTreeMap<_, _> = all.filter_map(|one| Some((label(&one.id), value(one)?))).collect();
            known.into_iter().map(|(subnet, value)| (vec![("subnet", subnet)], value)).collect()
        };
        let addresses = pools.iter().flat_map(|(pool, status)| {
            let labels = |state: &str| vec![("pool", pool.clone()), ("state", state.to_owned())];
            states(status).map(|(state, count)| (labels(state), count))
        });
        let held = pools.iter().flat_map(|(pool, status)| {
            let labels = move |one: &SubnetUse| vec![("pool", pool.clone()), ("subnet", label(&one.id))];
            status.subnets.iter().map(move |one| (labels(one), one.held))
        });
        let families: [(&str, &str, Vec<Series>); 7] = [
            ("nodes", "Nodes by the pool that serves them", of_pools(|status| status.nodes)),
            ("addresses", "Addresses that nodes hold: the states add up", addresses.collect()),
            (
                "lost_addresses",
                "Addresses that pods have and that left the NIC by somebody else's hand",
                of_pools(lost),
            ),
            ("waiting_pods", "Pods that wait for an address", of_pools(|status| status.waiting)),
            (
                "subnet_held",
                "Addresses of a subnet that the nodes of a pool hold, also on NICs that they have left",
                held.collect(),
            ),
            ("subnet_size", "Addresses that Azure can give out in a subnet", of_subnets(|one| one.size)),
            (
                "subnet_free",
                "Addresses of a subnet that nobody has, as Azure counted",
                of_subnets(|one| one.free),
            ),
        ];
        for (name, help, series) in families {
            let kind = ConstGauge::new(0_u32).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in series {
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Azure's ids differ in case from one answer to the next.
fn label(subnet: &str) -> String {
    subnet.to_lowercase()
}

/// Held addresses, by their state.
fn states(status: &NodeIPPoolStatus) -> [(&'static str, u32); 3] {
    let assigned = status.assigned.saturating_sub(lost(status));
    [("assigned", assigned), ("cooling", status.cooling), ("free", status.free)]
}

/// A pod's address counts as assigned, also when the node no longer holds it.
fn lost(status: &NodeIPPoolStatus) -> u32 {
    let counted = u64::from(status.assigned) + u64::from(status.cooling) + u64::from(status.free);
    u32::try_from(counted.saturating_sub(status.held.into())).unwrap_or(u32::MAX).min(status.assigned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use std::sync::Arc;

    fn rendered(pools: &Arc<Pools>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(pools.clone()));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn the_states_of_addresses_add_up_to_the_held_ones_without_the_lost() {
        let status =
            NodeIPPoolStatus { held: 12, assigned: 5, cooling: 2, free: 7, waiting: 3, ..Default::default() };
        assert_eq!(states(&status).iter().map(|(_, count)| count).sum::<u32>(), 12);
        let pools = Arc::new(Pools::default());
        pools.set("p", &status);
        let text = rendered(&pools);
        for line in [
            r#"addresses{pool="p",state="assigned"} 3"#,
            r#"lost_addresses{pool="p"} 2"#,
            r#"waiting_pods{pool="p"} 3"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_subnet_of_two_pools_is_one_however_its_id_is_written_and_unknown_sizes_are_left_out() {
        let status = |id: &str, size| {
            let subnets =
                vec![SubnetUse { id: id.to_owned(), nodes: 1, held: 4, size, ..Default::default() }];
            NodeIPPoolStatus { subnets, ..Default::default() }
        };
        let pools = Arc::new(Pools::default());
        pools.set("a", &status("/VNet/One", Some(251)));
        pools.set("b", &status("/vnet/one", Some(251)));
        pools.set("c", &status("/vnet/two", None));
        let text = rendered(&pools);
        let lines = |family: &str| text.lines().filter(|line| line.starts_with(family)).collect::<Vec<_>>();
        assert_eq!(lines("subnet_size{"), [r#"subnet_size{subnet="/vnet/one"} 251"#]);
        assert_eq!(lines("subnet_held{").len(), 3);
        assert!(lines("subnet_free{").is_empty());
    }

    #[test]
    fn a_deleted_pool_leaves_no_metrics_behind() {
        let pools = Arc::new(Pools::default());
        let subnets = vec![SubnetUse { id: "/s".into(), free: Some(1), ..Default::default() }];
        pools.set("p", &NodeIPPoolStatus { subnets, ..Default::default() });
        assert!(rendered(&pools).contains("subnet_free{"));
        pools.forget("p");
        assert!(!rendered(&pools).contains('{'));
    }
}
