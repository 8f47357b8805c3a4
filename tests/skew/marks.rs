//! Which release a program is of, by what it has written: each step of the later one leaves a mark.

use crate::world::{Later, SETTLED, World};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use vnetpool_tests::eventually;
use vnetpool_tests::node::host_link;
use vnetpool_tests::workload::ProbePod;

/// A mark by its place, and whether it is there.
type Mark = (&'static str, bool);

/// Whether a node's CNI configuration is a later agent's.
pub fn is_configuration_later(world: &World, node: &str) -> Result<bool> {
    let file = world.cluster.host(node)?.path("/etc/cni/net.d/10-vnetpool.conflist");
    let configuration = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(configuration.contains("\"later\""))
}

/// Waits until a node's agent has put its files and rules in place.
pub async fn installed(world: &World, node: &str, is_later: bool) -> Result<()> {
    eventually(&format!("what the agent of {node} puts in place"), SETTLED, || async {
        let table = world.cluster.run_on(node, &["nft", "list", "table", "inet", "vnetpool"]).await?;
        let marks = [
            ("the CNI configuration", is_configuration_later(world, node)?),
            ("the table of nftables", table.contains("chain later")),
        ];
        are_of(&marks, is_later).map(Some)
    })
    .await
}

/// Waits until the object of a node whose addresses have just changed is written by both sides.
pub async fn written(world: &World, node: &str, later: Later) -> Result<()> {
    eventually(&format!("the NodeIPAllocation of {node}"), SETTLED, || async {
        let object = world.allocation(node).await?;
        let is_there = condition(&object, "Later").is_some();
        let of_agent = [("status", object["status"]["later"] == 1), ("the condition", is_there)];
        are_of(&of_agent, later.agent)?;
        are_of(&[("spec", object["spec"]["later"] == 1)], later.operator).map(Some)
    })
    .await?;
    // Once there, it stays.
    if later.operator {
        let annotations = "--output=jsonpath={.metadata.annotations}";
        let lease = ["get", "lease", "vnetpool-operator", "--namespace=vnetpool-system", annotations];
        let lease = world.cluster.kubectl(&lease).await?;
        are_of(&[("the Lease", lease.contains("vnetpool.io/later"))], true)?;
    }
    Ok(())
}

/// Which plugin has started these pods. The ledger's lines for pods that waited may be the agent's.
pub async fn started(world: &World, pods: &[ProbePod], later: Later) -> Result<()> {
    for pod in pods {
        let host = world.cluster.host(&pod.node)?;
        let ledger = fs::read_to_string(host.path("/run/vnetpool/ledger"))?;
        let address = pod.address.to_string();
        let is_of_pod =
            |line: &&str| line.starts_with("assigned ") && line.split(' ').nth(2) == Some(address.as_str());
        let record = ledger.lines().find(is_of_pod).with_context(|| format!("no {address} in {ledger}"))?;
        let link = host_link(pod);
        let shown = world.cluster.run_on(&pod.node, &["ip", "-json", "link", "show", "dev", &link]).await?;
        let link: Value = serde_json::from_str(&shown)?;
        let alias = link[0]["ifalias"].as_str().context("a link without an alias")?;
        let now = fs::read_to_string(host.path("/run/vnetpool/plugin.log"))?;
        // There is none until the log has been long once.
        let before = fs::read_to_string(host.path("/run/vnetpool/plugin.log.1")).unwrap_or_default();
        let log = before + &now;
        let is_its =
            |line: &Value| line["pod"].as_str().is_some_and(|one| one.ends_with(&format!("/{}", pod.name)));
        let is_add = |line: &Value| line["verb"] == "ADD" && is_its(line);
        let add = log.lines().filter_map(|line| serde_json::from_str(line).ok()).find(is_add);
        let add = add.with_context(|| format!("no ADD of {} in the log", pod.name))?;
        let marks =
            [("the link's alias", alias.ends_with(" later")), ("the plugin's log", add["later"] == true)];
        are_of(&marks, later.plugin).with_context(|| pod.name.clone())?;
        if later.agent == later.plugin {
            are_of(&[("the ledger", record.ends_with(" later"))], later.plugin)
                .with_context(|| pod.name.clone())?;
        }
    }
    Ok(())
}

/// A condition of an object.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == type_)
}

fn are_of(marks: &[Mark], is_later: bool) -> Result<()> {
    let others: Vec<_> =
        marks.iter().filter(|(_, is_there)| *is_there != is_later).map(|(place, _)| place).collect();
    let release = if is_later { "the later release" } else { "ours" };
    ensure!(others.is_empty(), "not of {release}: {others:?}");
    Ok(())
}
