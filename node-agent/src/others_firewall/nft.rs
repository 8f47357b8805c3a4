//! Reads the chains at the kernel's forward hook, and opens them to pods where the configuration asks for it.
//!
//! One chain at a time, as the packets are led: a table of kube-proxy's can have megabytes of maps.

use std::{collections::BTreeSet, ffi::OsStr, io, path::Path};

use serde_json::Value;
use tokio::process::Command;
use vnetpool_plugin::sandbox::LINK_PREFIX;

use super::{Chain, Chains, Packet, is_dropped, legacy};
use crate::{
    child,
    firewall::{apply::nft, netlink},
    host_ports,
};

/// The number of chains that are read in a table, at most: chains beyond are not understood.
const CHAINS: usize = 64;
/// The comment on our rules in other programs' chains.
const COMMENT: &str = "vnetpool";
/// The chain of the older iptables through which all goes that the node forwards.
const FORWARD: &str = "FORWARD";
/// The tables that the older iptables has in this network namespace.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't run {0}: {1}")]
    Run(&'static str, #[source] io::Error),
    #[error("{0} fails: {1}")]
    Failed(&'static str, String),
    #[error("what nft prints can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the kernel doesn't list its chains: {0}")]
    Unlisted(#[source] io::Error),
}

/// A chain that the kernel runs for each packet the node forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    family: &'static str,
    table: String,
    pub chain: String,
    /// Of the older iptables, whose tables nft doesn't see.
    is_legacy: bool,
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Base { family, table, chain, is_legacy } = self;
        match is_legacy {
            true => write!(f, "chain {chain} of iptables-legacy's table {table}"),
            false => write!(f, "chain {chain} of table {family} {table}"),
        }
    }
}

/// The chains that matter here of all that there are, without their rules.
#[derive(Debug)]
pub struct Listed(Vec<Named>);

/// A chain of a table for IPv4. One at the forward hook has a policy: whether that is to drop.
#[derive(Debug)]
struct Named {
    family: &'static str,
    table: String,
    name: String,
    policy: Option<bool>,
}

impl Named {
    /// The chain, if it matters here: of kube-proxy's there are thousands.
    fn of(netlink::Chain { family, table, name, forward }: netlink::Chain<'_>) -> Option<Named> {
        let is_theirs = forward.is_some() && table != "vnetpool";
        let is_portmaps = name.starts_with(host_ports::CHAIN) || table == host_ports::TABLE;
        let named = || Named { family, table: table.to_owned(), name: name.to_owned(), policy: forward };
        (is_theirs || is_portmaps).then(named)
    }
}

impl Listed {
    pub async fn now() -> Result<Listed, Error> {
        let listed = tokio::task::spawn_blocking(|| netlink::chains(Named::of)).await;
        listed.map_err(io::Error::other).flatten().map(Listed).map_err(Error::Unlisted)
    }

    /// The chains at the forward hook, and whether their policy is to drop.
    fn bases(&self) -> Vec<(Base, bool)> {
        let base = |Named { family, table, name, policy }: &Named| {
            let (table, chain) = (table.clone(), name.clone());
            Some((Base { family, table, chain, is_legacy: false }, (*policy)?))
        };
        self.0.iter().filter_map(base).collect()
    }

    /// The marks of portmap's rules for single pods: names of chains, and comments in portmap's own table.
    pub async fn host_ports(&self) -> Result<BTreeSet<String>, Error> {
        let names = self.0.iter().map(|chain| &chain.name);
        let mut marks: BTreeSet<String> =
            names.filter(|name| name.starts_with(host_ports::CHAIN)).cloned().collect();
        let table = host_ports::TABLE;
        if self.0.iter().any(|chain| chain.family == "ip" && chain.table == table) {
            let listed = list(&["-j", "--stateless", "list", "table", "ip", table]).await?;
            let rules = listed.iter().map(|object| &object["rule"]);
            let meant = rules.filter(|rule| host_ports::CHAINS.iter().any(|chain| rule["chain"] == *chain));
            marks.extend(meant.filter_map(|rule| rule["comment"].as_str().map(str::to_owned)));
        }
        Ok(marks)
    }
}

/// The chains of others that are certain to drop one of these packets, as far as nft sees them.
pub async fn dropping(listed: &Listed, packets: &[Packet<'_>]) -> Result<Vec<Base>, Error> {
    let mut dropping = Vec::new();
    for (base, drops) in listed.bases() {
        let chains = chains(&base, drops).await?;
        if packets.iter().any(|packet| is_dropped(&chains, &base.chain, packet)) {
            dropping.push(base);
        }
    }
    Ok(dropping)
}

/// Puts two rules of ours before all others of the chain: packets that come from a pod's link and those that
/// go to one are accepted.
pub async fn open(base: &Base) -> Result<(), Error> {
    let Base { family, table, chain, is_legacy } = base;
    if *is_legacy {
        for link in ["-i", "-o"] {
            iptables_legacy(&legacy_rule("-I", chain, link)).await?;
        }
        return Ok(());
    }
    let rule = |link: &str| {
        format!(
            "insert rule {family} {table} {chain} {link} \"{LINK_PREFIX}*\" counter accept comment \"{COMMENT}\"\n"
        )
    };
    let text = rule("iifname") + &rule("oifname");
    run(&["-f", "-"], &text).await.map(drop)
}

/// Removes the rules of [`open`], wherever they are.
pub async fn close() -> Result<(), Error> {
    for (Base { family, table, chain, .. }, _) in Listed::now().await?.bases() {
        for rule in rules(family, &table, &chain).await?.iter().filter(|rule| rule["comment"] == COMMENT) {
            let handle = &rule["handle"];
            run(&["-f", "-"], &format!("delete rule {family} {table} {chain} handle {handle}\n")).await?;
        }
    }
    if has_legacy() {
        for link in ["-i", "-o"] {
            let rule = legacy_rule("-D", FORWARD, link);
            // Fails when there is none, and that is fine.
            while iptables_legacy(&rule).await.is_ok() {}
        }
    }
    Ok(())
}

/// A base chain and all that it leads to.
async fn chains(base: &Base, drops: bool) -> Result<Chains, Error> {
    let mut chains = Chains::new();
    let mut wanted = vec![base.chain.clone()];
    while let Some(name) = wanted.pop() {
        if chains.contains_key(&name) || chains.len() == CHAINS {
            continue;
        }
        let mut chain = Chain { drops: drops && name == base.chain, rules: Vec::new() };
        for rule in rules(base.family, &base.table, &name).await? {
            let expressions = expressions(&rule);
            let targets = expressions.iter().filter_map(|one| {
                let leads = one.get("jump").or_else(|| one.get("goto"))?;
                leads["target"].as_str().map(str::to_owned)
            });
            wanted.extend(targets);
            chain.rules.push(expressions);
        }
        chains.insert(name, chain);
    }
    Ok(chains)
}

async fn rules(family: &str, table: &str, chain: &str) -> Result<Vec<Value>, Error> {
    let listed = list(&["-j", "--stateless", "list", "chain", family, table, chain]).await?;
    Ok(listed.into_iter().filter_map(|mut object| object.get_mut("rule").map(Value::take)).collect())
}

/// What a rule consists of.
pub(super) fn expressions(rule: &Value) -> Vec<Value> {
    rule["expr"].as_array().cloned().unwrap_or_default()
}

async fn list(args: &[&str]) -> Result<Vec<Value>, Error> {
    objects(&run(args, "").await?)
}

/// The objects in what nft prints.
pub(super) fn objects(printed: &str) -> Result<Vec<Value>, Error> {
    let mut document: Value = serde_json::from_str(printed)?;
    match document.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

async fn run(args: &[&str], stdin: &str) -> Result<String, Error> {
    let printed = nft(args, stdin).await.map_err(|error| Error::Run("nft", error))?;
    printed.map_err(|error| Error::Failed("nft", error))
}

fn has_legacy() -> bool {
    let tables = std::fs::read_to_string(Path::new(LEGACY_TABLES)).unwrap_or_default();
    tables.lines().any(|table| table == "filter")
}

/// The forward chain of the older iptables, if it is certain to drop one of these packets.
pub async fn legacy(packets: &[Packet<'_>]) -> Result<Option<Base>, Error> {
    if !has_legacy() {
        return Ok(None);
    }
    let chains = legacy::chains(&iptables_legacy(&["-S"]).await?);
    let drops = packets.iter().any(|packet| is_dropped(&chains, FORWARD, packet));
    Ok(drops.then(|| Base {
        family: "ip",
        table: "filter".to_owned(),
        chain: FORWARD.to_owned(),
        is_legacy: true,
    }))
}

/// Inserts or deletes the rule that accepts packets that come in (`-i`) or go out (`-o`) by pods' links.
fn legacy_rule(verb: &str, chain: &str, direction: &str) -> Vec<String> {
    let links = format!("{LINK_PREFIX}+");
    let rule = [verb, chain, direction, &links, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
    rule.map(str::to_owned).to_vec()
}

async fn iptables_legacy(args: &[impl AsRef<OsStr>]) -> Result<String, Error> {
    let name = "iptables-legacy";
    let output = child::run(Command::new(name).args(["--wait", "5"]).args(args), b"", child::WITHIN).await;
    let output = output.map_err(|error| Error::Run(name, error))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::Failed(name, String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_thousands_of_chains_only_others_at_the_forward_hook_and_portmaps_are_kept() {
        for (table, name, forward, expected) in [
            ("nat", "KUBE-SVC-ERIFXISQEP7F7OF4", None, false),
            ("filter", "FORWARD", Some(true), true),
            ("filter", "FORWARD", Some(false), true),
            ("vnetpool", "platform", Some(false), false),
            ("vnetpool", "guard", None, false),
            ("nat", "CNI-DN-05ae031512ea922cb4284", None, true),
            ("cni_hostport", "hostports", None, true),
        ] {
            let kept = Named::of(netlink::Chain { family: "ip", table, name, forward });
            assert_eq!(kept.is_some(), expected, "{table} {name}");
            let bases = Listed(kept.into_iter().collect()).bases();
            let drops: Vec<bool> = bases.into_iter().map(|(_, drops)| drops).collect();
            assert_eq!(drops, forward.filter(|_| expected).into_iter().collect::<Vec<_>>(), "{table} {name}");
        }
    }
}
