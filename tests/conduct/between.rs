//! An object that somebody has deleted is made again. In between there is none, and the operator may end:
//! then nothing would name a public address that no NIC has.

use crate::Test;
use crate::attachments::kept;
use crate::gateway::{Gateway, Trouble};
use crate::nics::{not_shown, on_another_machine, until_served_beside};
use crate::public_addresses::{
    deletions, detached, on_a_public_address, refused_for_a_second, until_deleted,
};
use crate::stage::Stage;
use crate::wiped::wipe;
use anyhow::{Result, ensure};
use axum::http::StatusCode;
use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_tests::control_plane::{ControlPlane, User};

pub const TESTS: &[Test] = crate::tests![
    a_public_address_on_no_nic_is_not_forgotten_by_an_operator_that_dies_between_two_objects,
    a_public_address_on_no_nic_is_not_forgotten_when_its_pod_ends_between_two_objects,
    a_public_address_that_azure_refuses_to_delete_keeps_its_object_until_it_is_deleted,
    a_living_pod_keeps_its_public_address_that_no_nic_has_while_its_object_is_made_again,
    a_nic_that_a_node_has_left_is_not_forgotten_by_an_operator_that_dies_between_two_objects,
    an_object_that_is_deleted_once_others_have_wiped_its_nic_serves_its_node_and_is_made_again,
];

/// From its next start on the operator can make no object.
async fn unable_to_make(stage: &mut Stage<'_>, plane: &ControlPlane) -> Result<Gateway> {
    let gateway = Gateway::start(plane, User::Operator).await?;
    stage.api_server_at(format!("http://{}", gateway.address).parse()?);
    gateway.trouble(Trouble::RefuseToMake(StatusCode::INTERNAL_SERVER_ERROR), usize::MAX);
    Ok(gateway)
}

/// Somebody deletes the object, and the operator ends when that has gone and the next one isn't made.
async fn die_between_two_objects(stage: &mut Stage<'_>, plane: &ControlPlane) -> Result<Gateway> {
    let gateway = unable_to_make(stage, plane).await?;
    stage.delete_allocation("n1").await?;
    stage.start().await?;
    stage.until_gone("n1").await?;
    stage.kill().await?;
    Ok(gateway)
}

/// It can again.
fn able_to_make(gateway: &Gateway) {
    gateway.trouble(Trouble::RefuseToMake(StatusCode::INTERNAL_SERVER_ERROR), 0);
}

async fn a_public_address_on_no_nic_is_not_forgotten_by_an_operator_that_dies_between_two_objects(
    plane: &ControlPlane,
) -> Result<()> {
    let (mut stage, pod, public, fault) = detached(plane).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    stage.remove("n1", &pod).await?;
    let gateway = die_between_two_objects(&mut stage, plane).await?;
    able_to_make(&gateway);
    stage.start().await?;
    stage.until_holds("n1", 4).await?;
    let named: Vec<String> =
        stage.allocation("n1").await?.spec.public_addresses().map(str::to_owned).collect();
    ensure!(
        named.is_empty() && !stage.exists(&public).await?,
        "{public} costs money still; spec names {named:?}"
    );
    stage.nothing_was_listed()
}

async fn a_public_address_on_no_nic_is_not_forgotten_when_its_pod_ends_between_two_objects(
    plane: &ControlPlane,
) -> Result<()> {
    let (mut stage, pod, public, fault) = detached(plane).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    let gateway = die_between_two_objects(&mut stage, plane).await?;
    // The next leader never sees it.
    stage.remove("n1", &pod).await?;
    able_to_make(&gateway);
    stage.start().await?;
    until_deleted(&stage, &public).await?;
    stage.until_holds("n1", 4).await?;
    stage.nothing_was_listed()
}

async fn a_public_address_that_azure_refuses_to_delete_keeps_its_object_until_it_is_deleted(
    plane: &ControlPlane,
) -> Result<()> {
    let (mut stage, pod, public, fault) = detached(plane).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    stage.remove("n1", &pod).await?;
    let gateway = unable_to_make(&mut stage, plane).await?;
    let fault = refused_for_a_second(&stage, &public);
    stage.delete_allocation("n1").await?;
    stage.start().await?;
    // With the object gone, nobody would ask a second time.
    stage.until_struck(fault, 2).await?;
    stage.kill().await?;
    able_to_make(&gateway);
    stage.sim.lift_fault(fault)?;
    let before = stage.allocation("n1").await?.uid();
    stage.start().await?;
    until_deleted(&stage, &public).await?;
    let again = |seen: &NodeIPAllocation| (seen.uid() != before).then_some(());
    stage.until("its object is made again", "n1", again).await?;
    stage.until_holds("n1", 4).await?;
    stage.nothing_was_listed()
}

async fn a_living_pod_keeps_its_public_address_that_no_nic_has_while_its_object_is_made_again(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, public, fault) = detached(plane).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    let before = stage.allocation("n1").await?.uid();
    stage.delete_allocation("n1").await?;
    stage.sim.clear_log();
    stage.start().await?;
    let again = |seen: &NodeIPAllocation| (seen.uid() != before).then_some(());
    stage.until("it is made again", "n1", again).await?;
    let has = |seen: &NodeIPAllocation| kept(seen)?.public_address.filter(|one| one.address.is_some());
    let has = stage.until("the pod has a public address again", "n1", has).await?;
    ensure!(has.id == public && deletions(&stage).is_empty(), "it has {has:?}");
    Ok(())
}

async fn a_nic_that_a_node_has_left_is_not_forgotten_by_an_operator_that_dies_between_two_objects(
    plane: &ControlPlane,
) -> Result<()> {
    let (mut stage, first, second) = on_another_machine(plane).await?;
    let fault = not_shown(&stage, "/n1-nic");
    stage.start().await?;
    until_served_beside(&stage, &first, &second).await?;
    stage.kill().await?;
    stage.sim.lift_fault(fault)?;
    let gateway = die_between_two_objects(&mut stage, plane).await?;
    ensure!(stage.held("n1").is_empty(), "nothing names what is left: {:?}", stage.held("n1"));
    able_to_make(&gateway);
    stage.start().await?;
    let is_served = |seen: &NodeIPAllocation| {
        let serving = seen.spec.serving().filter(|nic| nic.id.eq_ignore_ascii_case(&second.nic_id))?;
        (serving.ip_configurations.len() == 2).then_some(())
    };
    stage.until("it is served again", "n1", is_served).await
}

/// `spec` shows the public address on the NIC still.
async fn an_object_that_is_deleted_once_others_have_wiped_its_nic_serves_its_node_and_is_made_again(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _, public) = on_a_public_address(plane).await?;
    stage.kill().await?;
    wipe(&stage, "n1").await?;
    let before = stage.allocation("n1").await?.uid();
    stage.delete_allocation("n1").await?;
    stage.start().await?;
    let again = |seen: &NodeIPAllocation| (seen.uid() != before).then_some(());
    stage.until("it is made again", "n1", again).await?;
    let has = |seen: &NodeIPAllocation| kept(seen)?.public_address.filter(|one| one.address.is_some());
    let has = stage.until("the pod has a public address again", "n1", has).await?;
    ensure!(has.id == public && deletions(&stage).is_empty(), "it has {has:?}");
    stage.until_reported("n1", "DeletionWaits", &["NodeIPAllocation"]).await
}
