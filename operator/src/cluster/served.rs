//! Which nodes each pool serves, how many blocks they hold, and which Nodes are left alone, kept up to date
//! by each event: a pool is reconciled without a visit to the nodes of others. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

#[cfg(test)]
use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::pool::{BLOCK, Mode};

use crate::resource_id::ResourceId;

/// Of all nodes.
#[derive(Debug, Default, PartialEq)]
pub struct Served {
    /// The nodes that each pool serves.
    pools: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    nodes: HashMap<Arc<str>, Record>,
    /// How many blocks they hold together, by subnet.
    blocks: HashMap<ResourceId, u32>,
    /// Nodes that are left alone.
    alone: BTreeSet<Arc<str>>,
}

/// What is counted of a node.
#[derive(Debug, PartialEq)]
struct Record {
    pool: Arc<str>,
    blocks: Vec<(ResourceId, u32)>,
}

impl Served {
    /// The object of a node is this one now; `None`: it is gone. Gives the pools that it concerns.
    pub fn take(&mut self, name: &str, object: Option<&NodeIPAllocation>) -> BTreeSet<Arc<str>> {
        let former = self.nodes.remove_entry(name);
        let mut pools = BTreeSet::new();
        let node = former.map(|(node, Record { pool, blocks })| {
            for (subnet, count) in blocks {
                if let Some(all) = self.blocks.get_mut(&subnet) {
                    *all -= count;
                }
            }
            if let Some(served) = self.pools.get_mut(&pool) {
                served.remove(&node);
            }
            pools.insert(pool);
            node
        });
        if let Some(object) = object {
            let node = node.unwrap_or_else(|| Arc::from(name));
            let known = self.pools.get_key_value(object.spec.pool.as_str());
            let pool = known.map_or_else(|| Arc::from(object.spec.pool.as_str()), |(pool, _)| pool.clone());
            let blocks: Vec<_> = blocks(object).collect();
            for (subnet, count) in &blocks {
                *self.blocks.entry(subnet.clone()).or_default() += count;
            }
            self.pools.entry(pool.clone()).or_default().insert(node.clone());
            pools.insert(pool.clone());
            self.nodes.insert(node, Record { pool, blocks });
        }
        self.pools.retain(|_, served| !served.is_empty());
        self.blocks.retain(|_, count| *count > 0);
        pools
    }

    /// Whether this Node, which is or was there, is left alone from now on. Gives whether it was before.
    pub fn leave_alone(&mut self, name: &str, is_alone: bool) -> bool {
        if is_alone { !self.alone.insert(name.into()) } else { self.alone.remove(name) }
    }

    /// The nodes that the pool serves, by name.
    pub fn by(&self, pool: &str) -> Vec<Arc<str>> {
        self.pools.get(pool).into_iter().flatten().cloned().collect()
    }

    pub fn alone(&self) -> Vec<Arc<str>> {
        self.alone.iter().cloned().collect()
    }

    /// How many blocks the cluster's nodes hold, by subnet.
    pub fn blocks(&self) -> HashMap<ResourceId, u32> {
        self.blocks.clone()
    }
}

/// How many blocks a node holds, by subnet. A NIC that it has left may be of a time when its pool had another
/// mode.
fn blocks(node: &NodeIPAllocation) -> impl Iterator<Item = (ResourceId, u32)> {
    let present = node.spec.interfaces.iter().filter(|_| node.spec.mode == Mode::Prefix);
    present.chain(&node.spec.left_interfaces).filter_map(|interface| {
        let held = interface.ip_configurations.iter().filter(|one| one.count() == BLOCK).count();
        let subnet = interface.subnet.id.parse().ok().filter(|_| held > 0)?;
        Some((subnet, u32::try_from(held).unwrap_or(u32::MAX)))
    })
}

/// As a scan over all nodes finds it.
#[cfg(test)]
impl<'a> FromIterator<&'a NodeIPAllocation> for Served {
    fn from_iter<T: IntoIterator<Item = &'a NodeIPAllocation>>(nodes: T) -> Served {
        let mut served = Served::default();
        for node in nodes {
            served.take(&node.name_any(), Some(node));
        }
        served
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn blocks_on_a_nic_that_a_node_has_left_count_whatever_its_pools_mode_is_by_now() {
        let mut left = node("n", "p", "s", 2);
        assert_eq!(blocks(&left).map(|(_, count)| count).collect::<Vec<_>>(), [2]);
        left.spec.mode = Mode::Address;
        assert_eq!(blocks(&left).count(), 0);
        left.spec.left_interfaces = std::mem::take(&mut left.spec.interfaces);
        assert_eq!(blocks(&left).map(|(_, count)| count).collect::<Vec<_>>(), [2]);
    }

    pub const VNET: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v";

    /// A node of a pool with so many blocks in a subnet.
    pub fn node(name: &str, pool: &str, subnet: &str, blocks: u32) -> NodeIPAllocation {
        let block = |n: u32| json!({"name": format!("vnp-{n}"), "address": format!("10.1.{}.{}/28", n / 16, n % 16 * 16)});
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"nodeUID": "u", "pool": pool, "cooldown": "30s", "mode": "Prefix", "interfaces": [
                {"id": "nic", "mac": "", "primaryAddress": "10.0.0.4", "subnet": {"id": format!("{VNET}/subnets/{subnet}")},
                 "ipConfigurations": (0..blocks).map(block).collect::<Vec<_>>()}
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_that_goes_over_to_another_pool_concerns_both_and_one_that_is_gone_its_last() {
        let mut served = Served::default();
        let mut take = |object: Option<&NodeIPAllocation>| {
            let pools = served.take("n", object).iter().map(ToString::to_string).collect::<Vec<_>>();
            (pools, served.by("a").len(), served.by("b").len())
        };
        let pools = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(take(Some(&node("n", "a", "s", 1))), (pools(&["a"]), 1, 0));
        assert_eq!(take(Some(&node("n", "b", "s", 1))), (pools(&["a", "b"]), 0, 1));
        assert_eq!(take(None), (pools(&["b"]), 0, 0));
        assert_eq!((take(None), served), ((vec![], 0, 0), Served::default()));
    }

    #[test]
    fn a_node_that_is_left_alone_is_known_until_it_is_not() {
        let mut served = Served::default();
        let before = [true, true, false, false].map(|is_alone| served.leave_alone("w", is_alone));
        assert_eq!(before, [false, true, true, false]);
        served.leave_alone("w", true);
        assert_eq!(served.alone(), [Arc::from("w")]);
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_a_scan_over_all_nodes_finds_the_same(
            events in proptest::collection::vec((0..4_usize, 0..3_usize, 0..3_usize, 0..4_u32, any::<bool>()), 0..40),
        ) {
            let (mut served, mut all) = (Served::default(), HashMap::new());
            for (name, pool, subnet, blocks, is_gone) in events {
                let name = format!("n{name}");
                let object = node(&name, &format!("p{pool}"), &format!("s{subnet}"), blocks);
                served.take(&name, (!is_gone).then_some(&object));
                if is_gone { all.remove(&name) } else { all.insert(name, object) };
                prop_assert_eq!(&served, &all.values().collect::<Served>());
                for pool in ["p0", "p1", "p2"] {
                    let mut names: Vec<&str> =
                        all.iter().filter(|(_, one)| one.spec.pool == pool).map(|(name, _)| &**name).collect();
                    names.sort_unstable();
                    prop_assert!(served.by(pool).iter().map(|name| &**name).eq(names));
                }
            }
        }
    }
}
