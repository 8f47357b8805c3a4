//! The address allocator of a subnet: the addresses that Azure reserves, those in use, and the next free one.

use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A subnet's address space as one NIC write sees it.
#[derive(Clone, Debug)]
pub(crate) struct Subnet {
    pub(crate) id: String,
    pub(crate) prefixes: Vec<Ipv4Net>,
    pub(crate) state: String,
    /// Each taken address or block with the id of the ipConfiguration that holds it.
    pub(crate) taken: BTreeMap<Ipv4Net, String>,
}

impl Subnet {
    pub(crate) fn name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }

    /// The prefix for error messages.
    pub(crate) fn prefix(&self) -> String {
        self.prefixes.first().map(ToString::to_string).unwrap_or_default()
    }

    pub(crate) fn contains(&self, block: Ipv4Net) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(&block))
    }

    /// Azure keeps the first four addresses and the last one of every prefix.
    pub(crate) fn reserves(&self, block: Ipv4Net) -> bool {
        self.prefixes.iter().filter(|prefix| prefix.contains(&block)).any(|prefix| {
            u32::from(block.network()) < u32::from(prefix.network()) + 4
                || block.broadcast() == prefix.broadcast()
        })
    }

    /// The ipConfiguration that holds `block` or a part of it.
    pub(crate) fn holder(&self, block: Ipv4Net) -> Option<&str> {
        // Blocks are aligned, so two of them overlap only when one contains the other.
        let inside = self.taken.range(block..).find(|(taken, _)| block.contains(*taken));
        let around = || self.taken.iter().find(|(taken, _)| taken.contains(&block));
        inside.or_else(around).map(|(_, holder)| holder.as_str())
    }

    /// The lowest free address (`prefix_len` 32) or aligned block.
    pub(crate) fn lowest_free(&self, prefix_len: u8) -> Option<Ipv4Net> {
        let size = 1u64 << 32u8.checked_sub(prefix_len)?;
        let bounds = |block: &Ipv4Net| {
            (u64::from(u32::from(block.network())), u64::from(u32::from(block.broadcast())))
        };
        self.prefixes.iter().find_map(|prefix| {
            let (first, last) = bounds(prefix);
            let mut start = (first + 4).next_multiple_of(size);
            // In ascending order, so one walk finds the first gap.
            for taken in self.taken.keys().filter(|taken| prefix.contains(*taken)) {
                let (from, to) = bounds(taken);
                if start + size <= from {
                    break;
                }
                if start <= to {
                    start = (to + 1).next_multiple_of(size);
                }
            }
            let block = Ipv4Net::new(Ipv4Addr::from(u32::try_from(start).ok()?), prefix_len).ok()?;
            (start + size <= last).then_some(block)
        })
    }

    /// The number of addresses that can be used at all.
    pub(crate) fn capacity(&self) -> u64 {
        self.prefixes.iter().map(|prefix| (1u64 << (32 - prefix.prefix_len())).saturating_sub(5)).sum()
    }

    /// The number of addresses in use. A /28 counts as sixteen.
    pub(crate) fn used(&self) -> u64 {
        self.taken.keys().map(|block| 1u64 << (32 - block.prefix_len())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(prefix: &str, taken: &[&str]) -> Subnet {
        Subnet {
            id: "/subscriptions/s/x/subnets/nodes".into(),
            prefixes: vec![prefix.parse().unwrap()],
            state: "Succeeded".into(),
            taken: taken.iter().map(|block| (block.parse().unwrap(), "holder".into())).collect(),
        }
    }

    #[test]
    fn the_lowest_free_address_comes_next() {
        let free = |taken: &[&str]| subnet("10.0.0.0/24", taken).lowest_free(32).unwrap().to_string();
        assert_eq!(free(&[]), "10.0.0.4/32");
        assert_eq!(free(&["10.0.0.4/32", "10.0.0.6/32"]), "10.0.0.5/32");
        assert_eq!(free(&["10.0.0.4/32", "10.0.0.5/32"]), "10.0.0.6/32");
    }

    #[test]
    fn azure_keeps_the_first_four_and_the_last() {
        let small = subnet("10.0.0.0/29", &[]);
        for (address, kept) in [(0, true), (3, true), (4, false), (6, false), (7, true)] {
            let block = Ipv4Net::from(Ipv4Addr::new(10, 0, 0, address));
            assert_eq!(small.reserves(block), kept, "{block}");
        }
        assert_eq!(small.capacity(), 3);
    }

    #[test]
    fn a_full_subnet_has_no_free_address() {
        let full = subnet("10.0.0.0/29", &["10.0.0.4/32", "10.0.0.5/32", "10.0.0.6/32"]);
        assert_eq!(full.lowest_free(32), None);
    }

    #[test]
    fn a_block_is_aligned_and_avoids_single_addresses() {
        let free = subnet("10.0.0.0/24", &["10.0.0.20/32"]).lowest_free(28).unwrap();
        assert_eq!(free.to_string(), "10.0.0.32/28");
        let single = subnet("10.0.0.0/24", &["10.0.0.4/30"]).lowest_free(32).unwrap();
        assert_eq!(single.to_string(), "10.0.0.8/32");
    }

    #[test]
    fn an_address_in_a_block_has_the_blocks_holder() {
        let subnet = subnet("10.0.0.0/24", &["10.0.0.16/28"]);
        assert_eq!(subnet.holder("10.0.0.17/32".parse().unwrap()), Some("holder"));
        assert_eq!(subnet.holder("10.0.0.32/32".parse().unwrap()), None);
        assert_eq!(subnet.holder("10.0.0.0/24".parse().unwrap()), Some("holder"));
    }
}
