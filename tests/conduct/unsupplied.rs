//! The real agent and the real plugin while the node's object or its pool can't be read: pods start from the
//! ledger.

use crate::Test;
use crate::machine::Machine;
use crate::proxy::Proxy;
use crate::secluded::{machine, served_within, sizing};
use crate::stage::{Stage, quick};
use crate::unreadable::Raw;
use anyhow::{Context, Result, ensure};
use kube::Client;
use serde_json::json;
use std::time::Duration;
use vnetpool_crds::condition::{self, OBJECTS_READABLE};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    an_agent_whose_object_can_not_be_read_starts_pods_from_its_ledger,
    an_agent_whose_pool_can_not_be_read_starts_pods_from_its_ledger,
];

const PATIENCE: Duration = Duration::from_secs(30);
/// No other program is asked for what the ledger has.
const SOON: Duration = Duration::from_secs(2);
/// As for any pod that waits for an address.
const GROWTH: Duration = Duration::from_secs(12);
/// Free addresses enough for the pods that start meanwhile.
const HELD: usize = 8;

/// A node with the real agent.
struct Set<'a> {
    stage: Stage<'a>,
    machine: Machine,
    /// How the agent asks, by way of a proxy in its network namespace.
    kube: kube::Config,
    _proxy: Proxy,
}

async fn set(plane: &ControlPlane) -> Result<Set<'_>> {
    let stage = Stage::set(plane, quick(), sizing(HELD as u32)).await?;
    let mut machine = machine(&stage, "n1").await?;
    let mut kube = plane.config(User::Agent("n1")).await?;
    let server = kube.cluster_url.authority().context("no address")?.as_str().parse()?;
    let proxy = Proxy::at(machine.listen()?, server)?;
    kube.cluster_url = format!("https://{}", proxy.address).parse()?;
    machine.start_agent("n1", kube.clone()).await?;
    served_within(&stage, &machine, GROWTH).await?;
    stage.until_holds("n1", HELD).await?;
    Ok(Set { stage, machine, kube, _proxy: proxy })
}

/// Pods start at once: by the agent that runs, and by one that has only the ledger.
async fn start_pods(set: &mut Set<'_>) -> Result<()> {
    served_within(&set.stage, &set.machine, SOON).await?;
    set.machine.stop_agent()?;
    set.machine.start_agent("n1", set.kube.clone()).await?;
    served_within(&set.stage, &set.machine, SOON).await
}

async fn an_agent_whose_object_can_not_be_read_starts_pods_from_its_ledger(
    plane: &ControlPlane,
) -> Result<()> {
    let mut set = set(plane).await?;
    // No one else may write `spec`.
    let operator = Client::try_from(plane.config(User::Operator).await?)?;
    let of_a_newer_release = ("/spec/properties/wiring/enum", "wiring", json!("Teleport"), json!("Routed"));
    let out_of_range = ("/spec/properties/warm/maximum", "warm", json!(5_000_000_000_u64), json!(null));
    for (bound, field, value, cure) in [of_a_newer_release, out_of_range] {
        let stage = &set.stage;
        let object = Raw::<NodeIPAllocation>::edited_by(operator.clone(), stage, "n1");
        object.store(bound, json!({ "spec": { field: value } })).await?;
        eventually("the pool names the object", PATIENCE, || async {
            let status = stage.node_pool("default").await?.status.context("no status")?;
            let condition = condition::find(&status.conditions, OBJECTS_READABLE).context("no condition")?;
            ensure!(condition.status == "False" && condition.message.contains(field), "{condition:?}");
            Ok(Some(()))
        })
        .await?;
        stage.until_events("n1", "Unreadable", 1).await?;
        stage.sim.clear_log();
        // More pods than addresses would have the NIC written.
        stage.bind("n1", HELD).await?;
        start_pods(&mut set).await?;
        set.stage.nothing_was_written()?;
        let object = Raw::<NodeIPAllocation>::edited_by(operator.clone(), &set.stage, "n1");
        object.patch(json!({ "spec": { field: cure } })).await?;
        goes_on(&set.stage, &set.machine).await?;
    }
    Ok(())
}

async fn an_agent_whose_pool_can_not_be_read_starts_pods_from_its_ledger(plane: &ControlPlane) -> Result<()> {
    let mut set = set(plane).await?;
    let stage = &set.stage;
    let pool = Raw::<NodeIPPool>::of(stage, "default");
    pool.store("/spec/properties/wiring/enum", json!({ "spec": { "wiring": "Teleport" } })).await?;
    stage.until_events("default", "Unreadable", 1).await?;
    stage.sim.clear_log();
    stage.bind("n1", HELD).await?;
    start_pods(&mut set).await?;
    set.stage.nothing_was_written()?;
    let pool = Raw::<NodeIPPool>::of(&set.stage, "default");
    pool.patch(json!({ "spec": { "wiring": "Routed" } })).await?;
    goes_on(&set.stage, &set.machine).await
}

/// The node gets what its pods need, and its agent takes it up.
async fn goes_on(stage: &Stage<'_>, machine: &Machine) -> Result<()> {
    stage.until_holds("n1", stage.pods_bound("n1").await?).await?;
    let is_taken_up = |seen: &NodeIPAllocation| {
        (seen.status.as_ref()?.observed_generation == seen.metadata.generation).then_some(())
    };
    stage.until("its agent has taken it up", "n1", is_taken_up).await?;
    served_within(stage, machine, GROWTH).await
}
