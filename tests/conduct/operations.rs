//! Long-running operations: writes that Azure takes its time for, and an operator that ends meanwhile.

use crate::Test;
use crate::absent::not_found;
use crate::gateway::{Gateway, Trouble};
use crate::stage::{Stage, find, quick};
use anyhow::{Result, ensure};
use axum::http::StatusCode;
use serde_json::json;
use std::time::{Duration, Instant};
use vnetpool_azure_sim::{Config, Effect, Ending};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{OPERATIONS_TRACKED, READY, RESERVED, WRITING};
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    an_operator_killed_in_the_middle_of_a_write_is_followed_by_one_that_finds_it,
    an_operator_asked_to_stop_finishes_its_write_first,
    an_operator_asked_to_stop_before_its_caches_are_synced_ends_at_once,
    forbidden_polls_are_reported_in_a_condition_and_the_nic_is_read_instead,
    a_write_that_azure_gives_up_is_made_again_until_its_addresses_work,
    writes_that_are_complete_when_answered_are_published_at_once,
    an_object_deleted_during_a_release_is_made_again_once_the_nic_lacks_released_addresses,
    a_transient_404_holds_up_a_deleted_object_until_the_second_read,
];

async fn an_operator_killed_in_the_middle_of_a_write_is_followed_by_one_that_finds_it(
    plane: &ControlPlane,
) -> Result<()> {
    let slow = Config { write_seconds: 4.0, ..Config::default() };
    let stage = Stage::set(plane, slow, json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    // Applied, but the answer never comes: the operator can't know.
    let fault = stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::Hold);
    stage.node("n1", None).await?;
    let writes = |_: &_| (stage.held("n1").len() == 4).then_some(());
    stage.until("Azure has the write", "n1", writes).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    let left = stage.allocation("n1").await?;
    ensure!(find(&left, WRITING).is_some_and(|one| one.status == "True"), "Writing isn't set: {left:?}");
    ensure!(left.spec.ip_configurations().count() == 0, "published before it was read: {left:?}");
    // Only `Writing` gives the next one a reason to read: by `spec` there is nothing to do.
    stage.pool("default", json!({ "sizing": { "minimum": 0, "warm": 0 } })).await?;
    stage.start().await?;
    stage.until_holds("n1", 4).await?;
    ensure!(stage.writes("n1").len() == 1, "written twice: {:?}", stage.writes("n1"));
    Ok(())
}

async fn an_operator_asked_to_stop_finishes_its_write_first(plane: &ControlPlane) -> Result<()> {
    let slow = Config { write_seconds: 2.0, ..Config::default() };
    let stage = Stage::set(plane, slow, json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.node("n1", None).await?;
    let accepted = |_: &_| (stage.held("n1").len() == 4).then_some(());
    stage.until("Azure has the write", "n1", accepted).await?;
    stage.stop().await?;
    stage.until_holds("n1", 4).await?;
    // The published state needs no read of Azure.
    stage.sim.clear_log();
    stage.start().await?;
    stage.bind("n1", 1).await?;
    stage.until_assigned("n1", 1).await?;
    let nics = stage.asked().iter().filter(|one| one.path.contains("networkInterfaces")).count();
    ensure!(nics == 0, "asked again: {:?}", stage.asked());
    Ok(())
}

async fn an_operator_asked_to_stop_before_its_caches_are_synced_ends_at_once(
    plane: &ControlPlane,
) -> Result<()> {
    let mut stage = Stage::empty(plane, quick()).await?;
    let gateway = Gateway::start(plane, User::Operator).await?;
    stage.api_server_at(format!("http://{}", gateway.address).parse()?);
    gateway.trouble(Trouble::RefuseToShow(StatusCode::SERVICE_UNAVAILABLE), usize::MAX);
    stage.start().await?;
    eventually("it has the Lease", Duration::from_secs(20), || async {
        Ok(stage.leader().await?.0.filter(|holder| !holder.is_empty()))
    })
    .await?;
    let begun = Instant::now();
    stage.stop().await?;
    // For so long it would wait for reconciles.
    ensure!(begun.elapsed() < Duration::from_secs(20), "it has ended after {:?}", begun.elapsed());
    Ok(())
}

async fn forbidden_polls_are_reported_in_a_condition_and_the_nic_is_read_instead(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let action = "Microsoft.Network/locations/operations/read";
    stage.sim.deny(vec![action.into()]);
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let condition = stage.until_condition("n1", OPERATIONS_TRACKED, "PermissionDenied").await?;
    ensure!(
        condition.status == "False"
            && condition.message.contains(action)
            && condition.message.contains("Grant"),
        "{condition:?}"
    );
    // Nothing else suffers.
    stage.until_condition("n1", READY, "Ready").await?;
    stage.bind("n1", 6).await?;
    stage.until_holds("n1", 6).await?;
    let polls = stage.asked().iter().filter(|one| one.path.contains("/operations/")).count();
    ensure!(polls == 1, "asked {polls} times for what is forbidden");
    stage.until_reported("n1", "PermissionDenied", &["Node", "NodeIPAllocation"]).await
}

async fn a_write_that_azure_gives_up_is_made_again_until_its_addresses_work(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    let error =
        json!({ "code": "NetworkingInternalOperationError", "message": "An unexpected error occurred." });
    let fails = Effect::OperationEnds { status: Ending::Failed, error };
    stage.fault("PUT", "/networkInterfaces/", Some(1), fails);
    stage.node("n1", None).await?;
    stage.until_condition("n1", RESERVED, "OperationFailed").await?;
    let left = stage.allocation("n1").await?;
    ensure!(left.spec.ip_configurations().count() == 0, "published what doesn't work: {:?}", left.spec);
    let names = stage.held("n1");
    stage.until_holds("n1", 4).await?;
    ensure!(stage.held("n1") == names, "what failed was left behind: {names:?}, {:?}", stage.held("n1"));
    stage.until_condition("n1", RESERVED, "Reserved").await?;
    ensure!(stage.writes("n1").len() == 2, "{:?}", stage.writes("n1"));
    Ok(())
}

async fn writes_that_are_complete_when_answered_are_published_at_once(plane: &ControlPlane) -> Result<()> {
    let azure = Config { synchronous: true, ..Config::default() };
    let stage = Stage::set(plane, azure, json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    // An agent that reports at the very moment of the publication has the NIC read once more.
    stage.fault("PUT", "/networkInterfaces/", None, Effect::Delay { ms: 1000 });
    stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let asked: Vec<_> =
        stage.asked().into_iter().filter(|one| one.path.contains("/networkInterfaces/")).collect();
    let methods: Vec<_> = asked.iter().map(|one| one.method.as_str()).collect();
    ensure!(methods == ["GET", "PUT"], "{methods:?}");
    Ok(())
}

async fn an_object_deleted_during_a_release_is_made_again_once_the_nic_lacks_released_addresses(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 4).await?;
    stage.until_holds("n1", 4).await?;
    // A release on its way that outlives its operator, and a person who deletes the object meanwhile.
    let fault = stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::HoldBefore);
    stage.unbind("n1", 3).await?;
    stage.until_struck(fault, 1).await?;
    stage.kill().await?;
    let before = stage.allocation("n1").await?;
    stage.delete_allocation("n1").await?;
    stage.sim.clear_log();
    stage.start().await?;
    stage
        .until("the object is made again", "n1", |seen| {
            (seen.metadata.uid != before.metadata.uid).then_some(())
        })
        .await?;
    ensure!(stage.held("n1").len() == 1, "the list went before what was on it: {:?}", stage.held("n1"));
    stage.sim.lift_fault(fault)?;
    stage.until_holds("n1", 1).await?;
    let late = |_: &_| (stage.writes("n1").len() == 2).then_some(());
    stage.until("the old release arrives", "n1", late).await?;
    let answers: Vec<u16> = stage.writes("n1").iter().map(|write| write.status).collect();
    ensure!(answers == [200, 412], "{answers:?}");
    stage.until_holds("n1", 1).await
}

async fn a_transient_404_holds_up_a_deleted_object_until_the_second_read(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.bind("n1", 3).await?;
    stage.until_holds("n1", 3).await?;
    // A release on its way that doesn't arrive as long as the test watches.
    let fault = stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::HoldBefore);
    stage.unbind("n1", 2).await?;
    stage.until_struck(fault, 1).await?;
    stage.kill().await?;
    let before = stage.allocation("n1").await?;
    stage.delete_allocation("n1").await?;
    let missing = not_found(&stage, "ResourceNotFound", Some(1));
    stage.start().await?;
    let again = |seen: &NodeIPAllocation| (seen.metadata.uid != before.metadata.uid).then_some(());
    stage.until("the object is made again", "n1", again).await?;
    ensure!(stage.held("n1").len() == 1, "given up, and still there: {:?}", stage.held("n1"));
    stage.until_struck(missing, 1).await?;
    Ok(stage.sim.lift_fault(fault)?)
}
