//! Pods whose host ports lead nowhere, because another program has flushed the tables in which portmap keeps
//! their rules. portmap runs when a pod starts and never again, so only a new pod gets them back. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest;
use vnetpool_plugin::ledger::{Sandbox, Tenant};

/// Inspections in a row that must miss a pod's rules: while a pod ends, they go a moment before its address
/// does.
const MISSES: u32 = 2;

/// The sandboxes that had rules of portmap's, and for how many inspections these have been gone.
#[derive(Debug, Default)]
pub struct HostPorts {
    missed: BTreeMap<Sandbox, u32>,
}

impl HostPorts {
    /// Compares the node's sandboxes with portmap's chains that nftables has now. Returns the pods that have
    /// lost their rules.
    pub fn lost<'a>(
        &mut self,
        tenants: impl Iterator<Item = &'a Tenant>,
        chains: &BTreeSet<&str>,
    ) -> Vec<String> {
        let known = std::mem::take(&mut self.missed);
        if known.is_empty() && chains.is_empty() {
            return Vec::new();
        }
        let mut lost = Vec::new();
        for tenant @ Tenant { sandbox, network, .. } in tenants {
            let missed = match chains.contains(chain(network, &sandbox.container_id).as_str()) {
                true => Some(0),
                false => known.get(sandbox).map(|missed| missed + 1),
            };
            if missed.is_some_and(|missed| missed >= MISSES) {
                lost.push(tenant.whose());
            }
            self.missed.extend(missed.map(|missed| (sandbox.clone(), missed)));
        }
        lost
    }
}

/// How the names of portmap's chains begin.
pub const CHAIN: &str = "CNI-DN-";

/// The chain that portmap makes for a container: [`CHAIN`] and so many digits of a digest that the name has
/// 28 bytes, the most that iptables takes.
fn chain(network: &str, container_id: &str) -> String {
    let digest = digest::digest(&digest::SHA512, [network, container_id].concat().as_bytes());
    let digits = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    let digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).take(21);
    CHAIN.chars().chain(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnetpool_plugin::ledger::{Claim, Pod};

    fn tenant(id: &str) -> Tenant {
        let sandbox = Sandbox { container_id: id.to_owned(), ifname: "eth0".to_owned() };
        let pod = Pod { namespace: "default".to_owned(), name: id.to_owned(), uid: String::new() };
        let proof = Claim::wired(&sandbox, &pod, "").proof;
        Tenant { sandbox, pod, network: "n14net".to_owned(), proof }
    }

    #[test]
    fn a_chain_has_the_name_that_portmap_gives_it() {
        // As Debian's portmap 1.1.1 made it.
        assert_eq!(chain("n14net", "abc"), "CNI-DN-05ae031512ea922cb4284");
    }

    #[test]
    fn a_pod_that_had_rules_of_portmaps_and_has_none_any_more_is_named_until_it_ends() {
        let (with, without) = (tenant("abc"), tenant("other"));
        let mut ports = HostPorts::default();
        let chains = chain("n14net", "abc");
        let chains = BTreeSet::from([chains.as_str()]);
        let mut lost = |chains: &BTreeSet<&str>, pods: &[&Tenant]| ports.lost(pods.iter().copied(), chains);
        let (both, none) = ([&with, &without], BTreeSet::new());
        assert!(lost(&none, &both).is_empty(), "nothing is known of pods without host ports");
        assert!(lost(&chains, &both).is_empty());
        assert!(lost(&none, &both).is_empty(), "it may be ending");
        assert_eq!(lost(&none, &both), ["default/abc"]);
        assert_eq!(lost(&none, &both), ["default/abc"]);
        assert!(lost(&none, &[&without]).is_empty());
        assert!(lost(&none, &both).is_empty());
    }
}
