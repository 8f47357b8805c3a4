//! What only the later release reads: a ledger of its format, and a `spec` with its value. Where ours comes
//! back all the same, nothing is built or written over that, and pods go on.

use crate::marks::{self, condition};
use crate::traffic::during;
use crate::world::{Later, NODES, SETTLED, STARTED, World};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;
use vnetpool_tests::audit::readings::recorded;
use vnetpool_tests::later::{ACCESS, NEWEST};
use vnetpool_tests::workload::target;
use vnetpool_tests::{eventually, throughout};

/// The node with such a ledger.
const NODE: &str = "node-3";
/// Longer than from one inspection to the next.
const INSPECTED: Duration = Duration::from_secs(40);

/// An agent of ours leaves such a ledger as it is, and puts no plugin in place that couldn't read it. So pods
/// come and go there by the later plugin, as far as there are free addresses. The agent isn't ready, so that
/// no further one is replaced.
pub async fn a_node_whose_ledger_only_the_later_release_reads_keeps_its_pods_and_the_later_plugin(
    world: &World,
) -> Result<()> {
    let cluster = &world.cluster;
    let vm = cluster.state.vms.first().context("no plain VM")?;
    during(world, async {
        world.run(Later::ALL).await?;
        marks::installed(world, NODE, true).await?;
        cluster.deploy(NEWEST, 1, Some(NODE)).await?;
        let newest = cluster.running(NEWEST, 1, STARTED).await?;
        let newest = newest.first().context("no pod")?;
        is_kept(world, newest.address)?;
        world.agent_image("dev").await?;
        eventually(&format!("an agent of ours on {NODE} that refuses the ledger"), SETTLED, || async {
            let pod = world.agent_of(NODE, "dev").await?.context("it isn't there")?;
            let log = cluster.kubectl(&["logs", &pod, "--namespace=vnetpool-system"]).await?;
            Ok(log.contains("is of format version 4, and this release reads").then_some(()))
        })
        .await?;
        throughout("the ledger and the pod that needs it", INSPECTED, || async {
            is_kept(world, newest.address)?;
            let dials = cluster.dial_from(&vm.name, &[target(newest.address)]).await?;
            ensure!(dials.iter().all(|dial| dial.ok), "{dials:?}");
            Ok(())
        })
        .await?;
        // Its agent has had the time to put a plugin of its own in place.
        cluster.deploy("meanwhile", 1, Some(NODE)).await?;
        let meanwhile = cluster.running("meanwhile", 1, STARTED).await?;
        marks::started(world, &meanwhile, Later { agent: false, ..Later::ALL }).await?;
        ensure!(marks::is_configuration_later(world, NODE)?, "the CNI configuration is ours");
        cluster.undeploy("meanwhile").await?;

        world.agent_image("later").await?;
        world.rolled_out().await?;
        is_kept(world, newest.address)?;
        cluster.undeploy(NEWEST).await?;
        eventually("a ledger that ours reads", SETTLED, || async {
            Ok((!ledger(world)?.starts_with("ledger 4\n")).then_some(()))
        })
        .await?;
        world.run(Later::NONE).await?;
        marks::installed(world, NODE, false).await
    })
    .await?;
    world.agree().await
}

fn ledger(world: &World) -> Result<String> {
    let file = world.cluster.host(NODE)?.path("/run/vnetpool/ledger");
    fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// The ledger is of the next format, and a pod has this address in it.
fn is_kept(world: &World, address: Ipv4Addr) -> Result<()> {
    let ledger = ledger(world)?;
    let is_there = ledger.starts_with("ledger 4\n") && recorded(&ledger).assigned.contains(&address);
    ensure!(is_there, "{address} isn't assigned in a ledger of format 4: {ledger}");
    Ok(())
}

/// Agents keep to the last `spec` that they could read, and an operator of ours leaves such objects alone.
/// The pool is edited first, by the document, and the later operator takes the value out of `spec`.
pub async fn nodes_whose_spec_only_the_later_release_reads_go_on_with_their_addresses(
    world: &World,
) -> Result<()> {
    let cluster = &world.cluster;
    let later_operator = Later { operator: true, ..Later::NONE };
    during(world, async {
        world.run(later_operator).await?;
        edit_pool(world, ACCESS).await?;
        for node in NODES {
            eventually(&format!("{node} is reported to be behind"), SETTLED, || async {
                let object = world.allocation(node).await?;
                ensure!(object["spec"]["podMetadataAccess"] == ACCESS, "{}", object["spec"]);
                is_reported(&object, "AgentReporting", "False", "Behind")
            })
            .await?;
        }
        edit_pool(world, "None").await?;
        until_reporting(world).await?;

        // And now the other way round: ours comes back while the value is still in `spec`.
        edit_pool(world, ACCESS).await?;
        eventually("the value in spec", SETTLED, || async {
            let object = world.allocation(NODE).await?;
            Ok((object["spec"]["podMetadataAccess"] == ACCESS).then_some(()))
        })
        .await?;
        world.run(Later::NONE).await?;
        edit_pool(world, "None").await?;
        eventually("the pool names what can't be read", SETTLED, || async {
            let pool = cluster.kubectl(&["get", "nodeippool", "default", "--output=json"]).await?;
            is_reported(&serde_json::from_str(&pool)?, "ObjectsReadable", "False", "Unreadable")
        })
        .await?;
        let (now, nic) = (cluster.azure.now().await?, cluster.host(NODE)?.nic_id);
        throughout("a NIC that nobody can judge", Duration::from_secs(10), || async {
            let writes = cluster.azure.nic_writes(&nic, now).await?;
            ensure!(writes.is_empty(), "{writes:?}");
            Ok(())
        })
        .await?;
        world.run(later_operator).await?;
        until_reporting(world).await?;
        world.run(Later::NONE).await
    })
    .await?;
    world.agree().await
}

/// By kubectl, which needs to know no value.
async fn edit_pool(world: &World, access: &str) -> Result<()> {
    let patch = json!({ "spec": { "podMetadataAccess": access } }).to_string();
    let edit = ["patch", "nodeippool", "default", "--type=merge", "--patch", &patch];
    world.cluster.kubectl(&edit).await.map(drop)
}

async fn until_reporting(world: &World) -> Result<()> {
    for node in NODES {
        eventually(&format!("the agent of {node} reports again"), SETTLED, || async {
            let object = world.allocation(node).await?;
            ensure!(object["spec"]["podMetadataAccess"] == "None", "{}", object["spec"]);
            is_reported(&object, "AgentReporting", "True", "Reporting")
        })
        .await?;
    }
    Ok(())
}

fn is_reported(object: &Value, type_: &str, status: &str, reason: &str) -> Result<Option<()>> {
    let found = condition(object, type_).with_context(|| format!("no {type_}"))?;
    ensure!(found["status"] == status && found["reason"] == reason, "{found}");
    Ok(Some(()))
}
