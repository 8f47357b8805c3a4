//! Long-running operations: followed at Azure's URL and pace, and to whatever end; and what replaces that
//! where it may not be followed.

use std::time::Duration;

use serde_json::json;
use vnetpool_azure_sim::{Effect, Ending, Settings};
use vnetpool_operator::azure::{Change, Error, Freshness, Priority, ProvisioningState, Remedy};

use crate::script::{Script, answer, pass};
use crate::scripted::{OPERATION, accepted, id, nic, reserve};
use crate::simulated::{World, change, names};

#[tokio::test]
async fn a_signed_address_of_kilobytes_is_used_byte_for_byte() {
    let script = Script::start().await;
    // Every character that a URL's query may hold unescaped, those that must be escaped, and escapes that
    // weren't needed.
    let odd = "c=AZaz09-._~!$()*+,;:@/?[]|^`{}\\&&=&t=%2f%2F%41%7E%20+%C3%A4%00";
    let address = format!("{OPERATION}&{odd}&p={}", "MII%2BxY/z+0=".repeat(400));
    assert!(address.len() > 4096);
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(accepted(format!("{}{address}", script.url)))
        .next(answer(200, json!({ "status": "Succeeded" })))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    script.azure().update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap();
    assert_eq!(script.heard()[2].uri.to_string(), address);
}

#[tokio::test]
async fn a_write_that_is_complete_when_answered_costs_one_request() {
    let world = World::start("nodes", 10.0).await;
    world.sim.set(&Settings { synchronous: Some(true), ..Settings::default() }).unwrap();
    world.reserve(&["vnp-1"]).await.unwrap();
    world.sim.clear_log();
    let nic = world.reserve(&["vnp-2"]).await.unwrap();
    assert_eq!((names(&nic), world.arm_log().len()), (vec!["vnp-1", "vnp-2"], 1));
}

#[tokio::test]
async fn an_operation_that_may_not_be_polled_is_followed_on_the_nic_and_the_permission_is_remembered() {
    let world = World::start("nodes", 1.5).await;
    let action = "Microsoft.Network/locations/operations/read";
    world.sim.deny(vec![action.into()]);
    assert!(world.azure.tracked(&world.nic).is_none());
    let nic = world.reserve(&["vnp-1"]).await.unwrap();
    assert_eq!(nic.ip_configurations[0].state, ProvisioningState::Succeeded);
    let Some(Err(missing)) = world.azure.tracked(&world.nic) else { panic!("nothing is missing") };
    assert!(matches!(&*missing, Error::Denied { action: named, .. } if named == action), "{missing}");
    let polls = || world.arm_log().iter().filter(|one| one.path.contains("/operations/")).count();
    assert_eq!(polls(), 1);
    // For ten minutes no write asks for the same permission again, and then the next one does.
    pass(Duration::from_secs(590)).await;
    world.reserve(&["vnp-2"]).await.unwrap();
    assert_eq!(polls(), 1);
    pass(Duration::from_secs(10)).await;
    world.reserve(&["vnp-3"]).await.unwrap();
    assert_eq!(polls(), 2);
    // Granted, it is used from the next time on that it is asked for.
    world.sim.deny(vec![]);
    pass(Duration::from_secs(600)).await;
    world.reserve(&["vnp-4"]).await.unwrap();
    assert!(polls() > 2, "{}", polls());
    assert!(matches!(world.azure.tracked(&world.nic), Some(Ok(()))));
}

#[tokio::test]
async fn an_operation_that_azure_has_forgotten_is_followed_on_the_nic() {
    let world = World::start("nodes", 1.5).await;
    let gone =
        json!({ "error": { "code": "NotFound", "message": "The operation was not found.", "details": [] } });
    let effect = Effect::Status { status: 404, body: gone, headers: Default::default() };
    world.fault_at("GET", "/operations/", effect);
    let nic = world.reserve(&["vnp-1"]).await.unwrap();
    assert_eq!(nic.ip_configurations[0].state, ProvisioningState::Succeeded);
    // That shows nothing of permissions.
    assert!(!matches!(world.azure.tracked(&world.nic), Some(Err(_))));
}

#[tokio::test]
async fn the_remains_of_a_failed_operation_are_written_again() {
    let world = World::start("nodes", 0.5).await;
    let error =
        json!({ "code": "NetworkingInternalOperationError", "message": "An unexpected error occurred." });
    world.fault("PUT", Effect::OperationEnds { status: Ending::Failed, error });
    let failed = world.reserve(&["vnp-1"]).await.unwrap_err();
    assert!(
        matches!(&failed, Error::Failed { code, .. } if code == "NetworkingInternalOperationError"),
        "{failed}"
    );
    assert_eq!(failed.remedy(), Remedy::RetryAfter(Duration::from_secs(5)));
    let nic = world.azure.nic(&world.nic, Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!(nic.ip_configurations[0].state, ProvisioningState::Failed);
    // A change that is there already isn't written; a repair of the same is.
    world.reserve(&["vnp-1"]).await.unwrap();
    let repair = Change { repair: true, ..Change::default() };
    let nic = world.azure.update(&world.nic, &repair, Priority::WaitingPods).await.unwrap();
    assert_eq!(
        (names(&nic), &nic.ip_configurations[0].state),
        (vec!["vnp-1"], &ProvisioningState::Succeeded)
    );
    assert_eq!(world.asked().iter().filter(|method| *method == "PUT").count(), 2);
}

#[tokio::test]
async fn an_operation_that_was_canceled_means_reading_again() {
    let world = World::start("nodes", 0.5).await;
    let error = json!({ "code": "Canceled", "message": "Operation was canceled.", "details": [] });
    world.fault("PUT", Effect::OperationEnds { status: Ending::Canceled, error });
    let canceled = world.reserve(&["vnp-1"]).await.unwrap_err();
    assert!(matches!(&canceled, Error::Superseded { .. }), "{canceled}");
    assert_eq!(canceled.remedy(), Remedy::ReadAgain);
    world.sim.clear_log();
    let repair = Change { repair: true, ..change(&["vnp-1"], &[]) };
    world.azure.update(&world.nic, &repair, Priority::WaitingPods).await.unwrap();
    assert_eq!(world.asked(), ["GET", "PUT", "GET"]);
}
