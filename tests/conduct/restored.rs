//! A cluster that was restored from a backup: its objects record NICs as they once were.

use crate::Test;
use crate::machines::is_backed;
use crate::metrics::Metrics;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vnetpool_azure_sim::{Effect, LogEntry, VmInfo};
use vnetpool_crds::{NodeIPAllocation, names};
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::{eventually, throughout};

pub const TESTS: &[Test] = crate::tests![
    objects_made_again_from_copies_give_nothing_out_before_their_nics_are_read,
    an_object_that_was_set_back_is_made_again_after_its_nic_was_read,
    a_store_that_was_set_back_by_seconds_has_each_nic_read_before_it_is_believed,
    an_object_that_goes_while_its_nic_is_read_is_not_made_again_as_it_was,
];

fn sizing(minimum: u32) -> Value {
    json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1, "releaseAfter": "1s" } })
}

/// The addresses that an object records for its node.
fn addresses(object: &NodeIPAllocation) -> BTreeSet<String> {
    object.spec.ip_configurations().map(|one| one.address.trim_end_matches("/32").to_owned()).collect()
}

/// A node that held four addresses when `back_up` was called and has given two of them back since, which a
/// second has by now. Gives the first's object of then, and the second's VM.
async fn given_back<'a>(
    plane: &'a ControlPlane,
    back_up: impl FnOnce() -> Result<()>,
) -> Result<(Stage<'a>, NodeIPAllocation, VmInfo)> {
    let stage = Stage::set(plane, quick(), sizing(4)).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let before = stage.allocation("n1").await?;
    back_up()?;
    stage.pool("default", sizing(2)).await?;
    stage.until_holds("n1", 2).await?;
    let second = stage.node("n2", None).await?;
    stage.until_holds("n2", 2).await?;
    let others = addresses(&stage.allocation("n2").await?);
    ensure!(!others.is_disjoint(&addresses(&before)), "the test shows nothing: {others:?}");
    Ok((stage, before, second))
}

/// The operator's first request about a node's NIC since the log was cleared was a read of it.
fn was_read_first(stage: &Stage<'_>, node: &str) -> Result<()> {
    let of_nic = |one: &LogEntry| one.path.ends_with(&format!("/{node}-nic"));
    let first = stage.asked().into_iter().find(of_nic).context("not asked for")?;
    ensure!(first.method == "GET", "{first:?}");
    Ok(())
}

/// Takes the finalizer off the first's object, with the operator's rights; gives a client that has these.
async fn strip(plane: &ControlPlane) -> Result<Api<NodeIPAllocation>> {
    let operator = Api::<NodeIPAllocation>::all(Client::try_from(plane.config(User::Operator).await?)?);
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    operator.patch_metadata("n1", &PatchParams::default(), &free).await?;
    Ok(operator)
}

async fn objects_made_again_from_copies_give_nothing_out_before_their_nics_are_read(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, backup, _) = given_back(plane, || Ok(())).await?;
    stage.kill().await?;
    let operator = strip(plane).await?;
    operator.delete("n1", &DeleteParams::default()).await?;
    let mut copy = NodeIPAllocation::new("n1", backup.spec.clone());
    copy.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
    operator.create(&PostParams::default(), &copy).await?;
    stage.bind("n1", 4).await?;
    let takes_nothing = || async {
        let status = stage.allocation("n1").await?.status;
        ensure!(status.is_none(), "the agent has taken up {status:?}");
        Ok(())
    };
    throughout("the agent waits", Duration::from_secs(2), takes_nothing).await?;

    stage.sim.clear_log();
    stage.start().await?;
    stage.until_assigned("n1", 4).await?;
    stage.until_holds("n1", 4).await?;
    let (mine, others) =
        (addresses(&stage.allocation("n1").await?), addresses(&stage.allocation("n2").await?));
    ensure!(mine.is_disjoint(&others), "both have an address: {mine:?} and {others:?}");
    was_read_first(&stage, "n1")
}

async fn an_object_that_was_set_back_is_made_again_after_its_nic_was_read(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing(2)).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let before = stage.allocation("n1").await?;
    stage.sim.clear_log();
    // As an agent reports whose ledger is of a version that is still to come.
    let agent = Api::<NodeIPAllocation>::all(Client::try_from(plane.config(User::Agent("n1")).await?)?);
    let ahead =
        json!({ "status": { "observedGeneration": before.metadata.generation.unwrap_or_default() + 50 } });
    agent.patch_status("n1", &PatchParams::default(), &Patch::Merge(ahead)).await?;
    let is_another = |seen: &NodeIPAllocation| (seen.uid() != before.uid()).then(|| seen.uid());
    let made = stage.until("it is made again", "n1", is_another).await?;
    stage.until_holds("n1", 2).await?;
    stage.until("its agent has taken it up", "n1", |seen| is_backed(seen).then_some(())).await?;
    ensure!(addresses(&stage.allocation("n1").await?) == addresses(&before), "its addresses have changed");
    ensure!(stage.asked().iter().any(|one| one.path.ends_with("/n1-nic")), "its NIC wasn't read");
    ensure!(stage.writes("n1").is_empty(), "its NIC was written");
    // An agent that keeps reporting so gets no second one soon.
    let ahead = json!({ "status": { "observedGeneration": 1_000_000 } });
    agent.patch_status("n1", &PatchParams::default(), &Patch::Merge(ahead)).await?;
    throughout("it stays", Duration::from_secs(3), || async {
        let seen = stage.allocation("n1").await?;
        ensure!(seen.uid() == made && seen.metadata.deletion_timestamp.is_none(), "made again");
        Ok(())
    })
    .await
}

async fn a_store_that_was_set_back_by_seconds_has_each_nic_read_before_it_is_believed(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, second) = given_back(plane, || plane.back_up()).await?;
    let ahead = stage.allocation("n1").await?;

    stage.agents.go_down();
    plane.restore()?;
    let restored = stage.allocation("n1").await?;
    ensure!(restored.metadata.generation < ahead.metadata.generation, "the store didn't go back");
    // The operator notices by its Lease, and stands by as if it had lost it.
    Metrics::until_standby(&stage).await?;

    // Edits bring the object to a version that the agent would take for newer than its own.
    stage.sim.clear_log();
    stage.join("n2", &second.provider_id).await?;
    for seconds in 1.. {
        let cooldown = format!("{seconds}s");
        let pool = json!({ "cooldown": cooldown, "sizing": sizing(4)["sizing"] });
        stage.pool("default", pool).await?;
        let seen = |seen: &NodeIPAllocation| {
            (Duration::from(seen.spec.cooldown).as_secs() == seconds).then_some(seen.metadata.generation)
        };
        if stage.until("the edit is there", "n1", seen).await? > ahead.metadata.generation {
            break;
        }
    }
    stage.bind("n1", 4).await?;
    stage.agents.come_back();
    stage.until_holds("n1", 4).await?;
    let served = async || Ok(Some(stage.agents.addresses("n1")).filter(|pods| pods.len() == 4));
    let pods = eventually("the pods of n1 are served", Duration::from_secs(30), served).await?;
    let others = addresses(&stage.allocation("n2").await?);
    let doubled: Vec<_> = pods.values().map(ToString::to_string).filter(|one| others.contains(one)).collect();
    ensure!(doubled.is_empty(), "{doubled:?} are on the NIC of n2, and pods of n1 have them");
    was_read_first(&stage, "n1")
}

async fn an_object_that_goes_while_its_nic_is_read_is_not_made_again_as_it_was(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), sizing(4)).await?;
    let vm = stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    stage.stop().await?;
    stage.agents.go_down();
    // Its agent has given an address up, which has left the NIC since.
    let nic = stage.nic("n1");
    let mut configurations = nic["properties"]["ipConfigurations"].as_array().context("no list")?.clone();
    let given_up = configurations.pop().context("no address")?;
    let name = given_up["name"].as_str().context("no name")?;
    stage.sim.patch_nic("n1-nic", &json!({ "properties": { "ipConfigurations": configurations } })).await?;
    let agent = Api::<NodeIPAllocation>::all(Client::try_from(plane.config(User::Agent("n1")).await?)?);
    let status = Patch::Merge(json!({ "status": { "relinquished": [name] } }));
    agent.patch_status("n1", &PatchParams::default(), &status).await?;
    stage.delete_allocation("n1").await?;

    let read = stage.fault("GET", "/networkInterfaces/n1-nic", Some(1), Effect::HoldBefore);
    stage.start().await?;
    stage.until_struck(read, 1).await?;
    let before = stage.allocation("n1").await?.uid();
    // Each version of the new object, however soon it is mended.
    let shown = Arc::new(Mutex::new(vec![]));
    let (seen, old, given_up) = (shown.clone(), before.clone(), name.to_owned());
    stage.follow(move |object: NodeIPAllocation| {
        if object.uid() != old && object.spec.ip_configurations().any(|one| one.name == given_up) {
            lock(&seen).push(object.metadata.generation);
        }
    });
    // No other operator makes a new one meanwhile, for there is no Node: the API server would let none take
    // its place.
    stage.delete_node("n1").await?;
    strip(plane).await?;
    stage.until_gone("n1").await?;
    stage.sim.lift_fault(read)?;
    let never_shows = || async {
        ensure!(lock(&shown).is_empty(), "generations {:?} show again what was given up", lock(&shown));
        Ok(())
    };
    throughout("what was given up stays away", Duration::from_secs(3), never_shows).await?;
    stage.agents.come_back();
    stage.join("n1", &vm.provider_id).await?;
    stage.until_holds("n1", 4).await?;
    never_shows().await
}
