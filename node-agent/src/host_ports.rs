//! Pods whose host ports lead nowhere, because another program has flushed the tables in which portmap keeps
//! their rules. portmap runs when a pod starts and never again, so only a new pod gets them back. Pure, but
//! for [`read`] and [`write()`].
//!
//! Nothing else on the node records which pods had such rules. So a file beside the ledger does: what flushes
//! the tables, as provisioning does, may well restart the agent, too. It changes only with pods that have a
//! host port.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use ring::digest;
use vnetpool_plugin::ledger::{Tenant, file::replace};

use crate::install::if_there;

/// The file's name in the state folder. It has a line for each pod's mark.
const FILE: &str = "host-ports";

/// Inspections in a row that must miss a pod's rules: while a pod ends, they go a moment before its address
/// does.
const MISSES: u32 = 2;

/// The marks of portmap's rules for sandboxes of the node, and for how many inspections each has been gone.
/// With iptables portmap makes a chain for each sandbox; where there is none, rules with its id as a comment.
#[derive(Debug, Default)]
pub struct HostPorts {
    missed: BTreeMap<String, u32>,
}

impl HostPorts {
    /// As [`text`](Self::text) has it.
    pub fn of(text: &str) -> HostPorts {
        HostPorts { missed: text.lines().map(|mark| (mark.to_owned(), 0)).collect() }
    }

    /// The marks, for an agent that starts later.
    pub fn text(&self) -> String {
        self.missed.keys().flat_map(|mark| [mark.as_str(), "\n"]).collect()
    }

    /// Compares the node's sandboxes with the marks that nftables has now. Returns the pods that have lost
    /// their rules.
    pub fn lost<'a>(
        &mut self,
        tenants: impl Iterator<Item = &'a Tenant>,
        marks: &BTreeSet<String>,
    ) -> Vec<String> {
        let known = std::mem::take(&mut self.missed);
        if known.is_empty() && marks.is_empty() {
            return Vec::new();
        }
        let mut lost = Vec::new();
        for tenant @ Tenant { sandbox, network, .. } in tenants {
            let missed = |mark: String| {
                let missed = if marks.contains(&mark) { 0 } else { known.get(&mark)? + 1 };
                Some((mark, missed))
            };
            let id = &sandbox.container_id;
            let missed: Vec<_> = [chain(network, id), id.clone()].into_iter().filter_map(missed).collect();
            if missed.iter().any(|(_, missed)| *missed >= MISSES) {
                lost.push(tenant.whose());
            }
            self.missed.extend(missed);
        }
        lost
    }
}

/// What an agent that ran before knew; nothing if it knew of no host port.
pub fn read(state_dir: &Path) -> io::Result<HostPorts> {
    let text = if_there(fs::read_to_string(state_dir.join(FILE)))?;
    Ok(HostPorts::of(&text.unwrap_or_default()))
}

/// Has the next agent know this, unless it does.
pub fn write(ports: &HostPorts, state_dir: &Path) -> io::Result<()> {
    if read(state_dir)?.text() == ports.text() {
        return Ok(());
    }
    replace(&state_dir.join(FILE), [ports.text().as_bytes()])
}

/// How the names of portmap's chains begin.
pub const CHAIN: &str = "CNI-DN-";
/// The table that portmap makes where there is no iptables, and the chains in it whose rules have marks.
pub const TABLE: &str = "cni_hostport";
pub const CHAINS: [&str; 2] = ["hostports", "hostip_hostports"];

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
    use vnetpool_plugin::ledger::{Claim, Pod, Sandbox};

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
        let chains = BTreeSet::from([chain("n14net", "abc")]);
        let mut lost = |chains: &BTreeSet<String>, pods: &[&Tenant]| ports.lost(pods.iter().copied(), chains);
        let (both, none) = ([&with, &without], BTreeSet::new());
        assert!(lost(&none, &both).is_empty(), "nothing is known of pods without host ports");
        assert!(lost(&chains, &both).is_empty());
        assert!(lost(&none, &both).is_empty(), "it may be ending");
        assert_eq!(lost(&none, &both), ["default/abc"]);
        assert_eq!(lost(&none, &both), ["default/abc"]);
        assert!(lost(&none, &[&without]).is_empty());
        assert!(lost(&none, &both).is_empty());
    }

    #[test]
    fn rules_of_portmaps_own_table_are_missed_like_its_chains() {
        let tenants = [tenant("by-table"), tenant("by-chain")];
        let mut ports = HostPorts::default();
        let mut lost =
            |marks: &[&str]| ports.lost(tenants.iter(), &marks.iter().copied().map(str::to_owned).collect());
        let chain = chain("n14net", "by-chain");
        assert!(lost(&["by-table", &chain]).is_empty());
        assert!(lost(&[&chain]).is_empty());
        assert_eq!(lost(&[&chain]), ["default/by-table"]);
        assert_eq!(lost(&["by-table"]), Vec::<String>::new(), "they are back");
        assert_eq!(lost(&["by-table"]), ["default/by-chain"]);
    }

    #[test]
    fn an_agent_that_starts_after_a_flush_names_the_pods_that_the_one_before_knew() {
        let dir = tempfile::tempdir().unwrap();
        let (with, chain) = (tenant("abc"), chain("n14net", "abc"));
        let lost = |chains: &[&str]| {
            let mut ports = read(dir.path()).unwrap();
            let chains = chains.iter().copied().map(str::to_owned).collect();
            let found = [(); 2].map(|()| ports.lost([&with].into_iter(), &chains));
            write(&ports, dir.path()).unwrap();
            found.concat()
        };
        assert!(lost(&[]).is_empty(), "nothing is known of its host port");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "a node without host ports needs no file");
        assert!(lost(&[&chain]).is_empty());
        assert_eq!(lost(&[]), ["default/abc"]);
        assert_eq!(lost(&[]), ["default/abc"]);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }
}
