//! In a cluster: a node's agent learns of its NIC from the real wire to the metadata service, in the node's
//! own network.

use crate::stage::{Stage, inside, run};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_node_agent::beat::Beat;
use vnetpool_node_agent::imds::listing::{self, Comparison};
use vnetpool_node_agent::object::Seen;
use vnetpool_tests::wait::patience;

/// A request that misses a listed reservation comes within half a minute, the next within half a minute more.
const MISSED: Duration = Duration::from_secs(75);
const SOON: Duration = Duration::from_secs(5);

/// The object of a node whose `spec` matches the NIC.
fn object(stage: &Stage, vm: &str) -> Result<NodeIPAllocation> {
    let nic = stage.nic(vm)?;
    let properties = &nic["properties"];
    let all = properties["ipConfigurations"].as_array().context("a NIC without any")?;
    let address = |one: &serde_json::Value| one["properties"]["privateIPAddress"].as_str().map(str::to_owned);
    let own = all.first().and_then(address).context("no primary address")?;
    let held: Vec<_> = all[1..]
        .iter()
        .map(|one| json!({ "name": one["name"], "address": address(one).map(|address| address + "/32") }))
        .collect();
    let mac = properties["macAddress"].as_str().context("no MAC")?.replace('-', ":").to_lowercase();
    let interface = json!({ "id": nic["id"], "mac": mac, "primaryAddress": own, "subnet": { "id": "s" },
        "ipConfigurations": held });
    Ok(serde_json::from_value(json!({ "metadata": { "name": vm },
        "spec": { "nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface] } }))?)
}

/// Runs the agent's comparison in the network of a machine for as long as `meanwhile` takes.
fn comparing<T: Send>(
    stage: &Stage,
    machine: &str,
    object: NodeIPAllocation,
    meanwhile: impl AsyncFnOnce(watch::Receiver<Comparison>) -> Result<T> + Send,
) -> Result<T> {
    inside(&stage.machine(machine), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (_objects, object) = watch::channel(Seen::There(Arc::new(object)));
        let (sender, reported) = watch::channel(Comparison::default());
        runtime.block_on(async {
            tokio::select! {
                ended = listing::watch(object, sender, Beat::begin()) => Err(anyhow::anyhow!("it has ended: {ended:?}")),
                outcome = meanwhile(reported) => outcome,
            }
        })
    })
}

pub fn an_address_taken_off_a_nic_is_missed_within_a_minute(stage: &mut Stage) -> Result<()> {
    stage.give("vm1", 2)?;
    let object = object(stage, "vm1")?;
    let held: BTreeSet<String> = object.spec.ip_configurations().map(|one| one.name.clone()).collect();
    ensure!(held.len() == 2);
    let requests = |stage: &Stage| {
        let log = stage.admin("GET", "/log", &json!({})).unwrap_or_default();
        log.matches("/metadata/instance/network").count()
    };
    let stage = &*stage;
    // An answer is logged when it is out, so the agent may be ahead of it.
    let asked = async |times: usize| {
        let asked = async {
            while requests(stage) < times {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(patience(SOON), asked).await.with_context(|| format!("it asks {} times", requests(stage)))
    };
    let (missed, requests) = comparing(stage, "vm1", object, async |mut reported| {
        asked(1).await?;
        stage.give("vm1", 1)?;
        let missed =
            timeout(patience(MISSED), reported.wait_for(|comparison| !comparison.unlisted.is_empty())).await;
        let missed = missed.context("nothing is missed")??.unlisted.clone();
        asked(3).await?;
        Ok((missed, requests(stage)))
    })?;
    ensure!(missed.len() == 1 && missed.is_subset(&held), "{missed:?}");
    ensure!(requests == 3, "{requests} requests");
    Ok(())
}

pub fn a_node_whose_metadata_service_is_closed_goes_on_without_a_report(stage: &mut Stage) -> Result<()> {
    stage.give("vm1", 1)?;
    let object = object(stage, "vm1")?;
    // As a firewall of the node's does it.
    let netns = stage.netns("vm1");
    run(Command::new("ip").args(["-n", &netns, "route", "replace", "unreachable", "169.254.169.254"]))?;
    comparing(stage, "vm1", object, async |mut reported| {
        let silent = timeout(SOON, reported.changed()).await;
        ensure!(silent.is_err(), "it has reported {:?}", reported.borrow());
        Ok(())
    })
}
