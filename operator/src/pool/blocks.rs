//! What of Azure's usages is blocks. A block of 16 addresses counts once against the limit of its virtual
//! network, which Microsoft says of AKS' static blocks; whether it counts as one address or as 16 in the
//! usages isn't documented. Our own blocks are known, so mostly the figures themselves show it. Pure.

use std::collections::HashMap;

use vnetpool_crds::pool::BLOCK;

use crate::azure::{ResourceId, Usage, Usages};

/// How many blocks the cluster's nodes hold, by subnet.
#[derive(Debug, Default)]
pub struct Blocks(pub HashMap<ResourceId, u32>);

/// How the usages of a virtual network count a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As one address.
    Once,
    /// As 16.
    Each,
    /// The figures go with both.
    Either,
}

impl Blocks {
    /// How the usages of this network count them.
    pub fn reading(&self, vnet: &ResourceId, usages: &Usages) -> Reading {
        let readings: Vec<Reading> = self
            .around(vnet)
            .filter_map(|(name, blocks)| Some(reading(*usages.get(&name)?, blocks)))
            .collect();
        match [Reading::Once, Reading::Each].map(|one| readings.contains(&one)) {
            [true, false] => Reading::Once,
            [false, true] => Reading::Each,
            _ => Reading::Either,
        }
    }

    /// How many of the network's private addresses are taken, at least and at most.
    pub fn taken(&self, vnet: &ResourceId, usages: &Usages) -> (u32, u32) {
        let counted: u32 = usages.values().map(|usage| usage.used).fold(0, u32::saturating_add);
        let blocks = self.around(vnet).map(|(_, blocks)| blocks).fold(0, u32::saturating_add);
        let fewer = counted.saturating_sub(blocks.saturating_mul(BLOCK - 1));
        match self.reading(vnet, usages) {
            Reading::Once => (counted, counted),
            Reading::Each => (fewer, fewer),
            Reading::Either => (fewer, counted),
        }
    }

    /// So many of what the usages count as free in a subnet are in blocks.
    pub fn hidden(&self, subnet: &ResourceId, reading: Reading) -> u32 {
        let blocks = self.0.get(subnet).copied().unwrap_or_default();
        if reading == Reading::Once { blocks.saturating_mul(BLOCK - 1) } else { 0 }
    }

    /// The network's subnets with blocks of ours, by name in lower case.
    fn around(&self, vnet: &ResourceId) -> impl Iterator<Item = (String, u32)> {
        let inside = move |subnet: &ResourceId| subnet.parent().is_some_and(|parent| parent == *vnet);
        let all = self.0.iter().filter(move |(subnet, _)| inside(subnet));
        all.map(|(subnet, blocks)| (subnet.name().to_ascii_lowercase(), *blocks))
    }
}

/// What a subnet's figures show. They are a minute old at most, so up to half of our blocks may be newer:
/// with fewer taken than half of what our blocks hold, each counts once; where the subnet couldn't hold half
/// of what they would then hide, each counts as 16.
fn reading(Usage { used, size }: Usage, blocks: u32) -> Reading {
    let half = blocks.saturating_mul(BLOCK / 2);
    if used < half {
        Reading::Once
    } else if blocks > 0 && used.saturating_add(half - blocks) > size {
        Reading::Each
    } else {
        Reading::Either
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::served::Served;
    use crate::cluster::served::tests::{VNET, node};

    fn vnet() -> ResourceId {
        VNET.parse().unwrap()
    }

    /// Of nodes with so many blocks in each subnet.
    fn blocks(held: &[(&str, u32)]) -> Blocks {
        let nodes = held.iter().enumerate();
        let nodes: Vec<_> =
            nodes.map(|(n, (subnet, held))| node(&format!("n{n}"), "p", subnet, *held)).collect();
        Blocks(nodes.iter().collect::<Served>().blocks())
    }

    fn usages(all: &[(&str, u32, u32)]) -> Usages {
        all.iter()
            .map(|(name, used, size)| ((*name).to_owned(), Usage { used: *used, size: *size }))
            .collect()
    }

    #[test]
    fn azures_figures_show_how_a_block_counts() {
        // 40 blocks hold 640 addresses.
        for (used, size, expected) in [
            (42, 4091, Reading::Once),
            (319, 4091, Reading::Once),
            (642, 4091, Reading::Either),
            (642, 900, Reading::Each),
            (642, 922, Reading::Either),
        ] {
            assert_eq!(reading(Usage { used, size }, 40), expected, "{used} of {size}");
        }
        assert_eq!(reading(Usage { used: 251, size: 251 }, 0), Reading::Either);
    }

    #[test]
    fn one_subnet_that_shows_how_a_block_counts_settles_the_sum_of_its_network() {
        let blocks = blocks(&[("Pods", 30), ("pods", 10), ("wide", 4)]);
        let once = usages(&[("pods", 42, 900), ("wide", 105, 4091), ("others", 50, 251)]);
        assert_eq!(blocks.taken(&vnet(), &once), (197, 197));
        let each = usages(&[("pods", 642, 900), ("wide", 165, 4091), ("others", 50, 251)]);
        assert_eq!(blocks.taken(&vnet(), &each), (197, 197));
        // Where none has, it is between the two.
        let either = usages(&[("pods", 642, 4091), ("wide", 165, 4091), ("others", 50, 251)]);
        assert_eq!(blocks.taken(&vnet(), &either), (197, 857));
        // And no subnet of another network has a say.
        let other = format!("{VNET}2").parse().unwrap();
        assert_eq!(blocks.taken(&other, &once), (197, 197));
        assert_eq!(blocks.reading(&other, &once), Reading::Either);
    }

    #[test]
    fn blocks_that_count_once_hide_fifteen_addresses_each() {
        let (blocks, subnet) = (blocks(&[("pods", 40)]), format!("{VNET}/subnets/PODS").parse().unwrap());
        let hidden = [Reading::Once, Reading::Each, Reading::Either].map(|one| blocks.hidden(&subnet, one));
        assert_eq!(hidden, [600, 0, 0]);
    }
}
