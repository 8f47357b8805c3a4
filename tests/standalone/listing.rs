//! In a cluster: what a node's agent learns of its NIC from the real wire to the metadata service, in the
//! node's own network.

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
use vnetpool_node_agent::imds::listing::{self, Told};
use vnetpool_tests::wait::patience;

/// A look that misses what was listed comes within a minute, the next ten seconds later.
const MISSED: Duration = Duration::from_secs(75);
const SOON: Duration = Duration::from_secs(5);

/// The object of a node whose `spec` has what the NIC holds.
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

/// Runs the agent's look-out in the network of a machine for as long as `meanwhile` takes.
fn looking<T: Send>(
    stage: &Stage,
    machine: &str,
    object: NodeIPAllocation,
    meanwhile: impl AsyncFnOnce(watch::Receiver<Told>) -> Result<T> + Send,
) -> Result<T> {
    inside(&stage.machine(machine), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (_objects, object) = watch::channel(Some(Arc::new(object)));
        let (tell, told) = watch::channel(Told::default());
        runtime.block_on(async {
            tokio::select! {
                ended = listing::watch(object, tell) => Err(anyhow::anyhow!("it has ended: {ended:?}")),
                outcome = meanwhile(told) => outcome,
            }
        })
    })
}

pub fn what_somebody_takes_off_a_nic_is_missed_within_a_minute(stage: &mut Stage) -> Result<()> {
    stage.give("vm1", 2)?;
    let object = object(stage, "vm1")?;
    let held: BTreeSet<String> = object.spec.ip_configurations().map(|one| one.name.clone()).collect();
    ensure!(held.len() == 2);
    let looks = |stage: &Stage| {
        let log = stage.admin("GET", "/log", &json!({})).unwrap_or_default();
        log.matches("/metadata/instance/network").count()
    };
    let stage = &*stage;
    // An answer is logged when it is out, so its looker may be earlier.
    let looked = async |times: usize| {
        let looked = async {
            while looks(stage) < times {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(patience(SOON), looked).await.with_context(|| format!("it looks {} times", looks(stage)))
    };
    let (missed, looks) = looking(stage, "vm1", object, async |mut told| {
        looked(1).await?;
        stage.give("vm1", 1)?;
        let missed = timeout(patience(MISSED), told.wait_for(|told| !told.unlisted.is_empty())).await;
        let missed = missed.context("nothing is missed")??.unlisted.clone();
        looked(3).await?;
        Ok((missed, looks(stage)))
    })?;
    ensure!(missed.len() == 1 && missed.is_subset(&held), "{missed:?}");
    ensure!(looks == 3, "{looks} looks");
    Ok(())
}

pub fn a_node_whose_metadata_service_is_closed_goes_on_without_a_word(stage: &mut Stage) -> Result<()> {
    stage.give("vm1", 1)?;
    let object = object(stage, "vm1")?;
    // As a firewall of the node's does it.
    let netns = stage.netns("vm1");
    run(Command::new("ip").args(["-n", &netns, "route", "replace", "unreachable", "169.254.169.254"]))?;
    looking(stage, "vm1", object, async |mut told| {
        let silent = timeout(SOON, told.changed()).await;
        ensure!(silent.is_err(), "it has told {:?}", told.borrow());
        Ok(())
    })
}
