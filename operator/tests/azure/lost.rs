//! Answers that don't come, or not whole: which error each becomes, that nothing is repeated below, and that
//! the NIC then shows the outcome.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vnetpool_azure_sim::Effect;
use vnetpool_operator::azure::{Error, Freshness, LATE, NewPublicAddress, Priority, Remedy, ResourceId};

use crate::script::{Script, answer, client, pass};
use crate::scripted::{GROUP, OPERATION, arm_error, id};
use crate::simulated::{World, names};

fn status(status: u16) -> Effect {
    let body = json!({ "error": { "code": "InternalServerError", "message": "An error occurred." } });
    Effect::Status { status, body, headers: BTreeMap::new() }
}

/// Each way in which the outcome of a write stays unknown, and whether Azure has carried it out.
fn lost_writes() -> [(Effect, bool); 7] {
    [
        (Effect::CutBeforeApply, false),
        (Effect::CutAfterApply, true),
        (Effect::CutBody, true),
        (status(500), false),
        (status(502), false),
        (status(503), false),
        (status(504), false),
    ]
}

#[tokio::test]
async fn a_write_without_an_answer_is_neither_repeated_nor_forgotten() {
    for (effect, applied) in lost_writes() {
        let world = World::start("nodes", 0.1).await;
        let fault = world.fault("PUT", effect.clone());
        let error = world.reserve(&["vnp-1"]).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{effect:?}: {error}");
        assert_eq!(error.remedy(), Remedy::ReadAgain);
        let struck = world.sim.faults().into_iter().find(|standing| standing.id == fault).unwrap();
        assert_eq!(struck.hits, 1, "{effect:?}");
        // Asked for what is known, it asks Azure.
        let settled = settled(&world).await;
        assert_eq!(settled, if applied { vec!["vnp-1"] } else { vec![] }, "{effect:?}");
        // The next attempt from there ends with the wanted state, once.
        world.reserve(&["vnp-1"]).await.unwrap();
        assert_eq!(world.held().len(), 1, "{effect:?}");
    }
}

#[tokio::test]
async fn a_write_that_azure_has_asked_to_put_off_is_not_sent_before_and_the_nic_is_read_at_once() {
    for code in [500, 502, 503, 504] {
        let world = World::start("nodes", 0.1).await;
        let body = json!({ "error": { "code": "ServerBusy", "message": "Later." } });
        let headers = BTreeMap::from([("Retry-After".to_owned(), "30".to_owned())]);
        world.fault("PUT", Effect::Status { status: code, body, headers });
        let error = world.reserve(&["vnp-1"]).await.unwrap_err();
        assert_eq!(error.remedy(), Remedy::ReadAgain, "{error}");
        assert_eq!(settled(&world).await, [""; 0]);
        let error = world.reserve(&["vnp-1"]).await.unwrap_err();
        let Error::Busy { retry_after, .. } = error else { panic!("{error}") };
        assert!(retry_after <= Duration::from_secs(30), "{retry_after:?}");
        let writes = || world.asked().iter().filter(|method| *method == "PUT").count();
        assert_eq!(writes(), 1);
        pass(Duration::from_secs(30)).await;
        world.reserve(&["vnp-1"]).await.unwrap();
        assert_eq!((writes(), world.held().len()), (2, 1));
    }
}

#[tokio::test]
async fn a_deletion_that_azure_has_asked_to_put_off_holds_up_no_other() {
    let public = |pod: &str| -> ResourceId {
        format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-{pod}").parse().unwrap()
    };
    let script = Script::start().await;
    let azure = script.azure();
    script.next(answer(503, arm_error("ServerBusy")).with("retry-after", 30));
    let error = azure.delete_public_address(&public("a"), Priority::GiveBack).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    let error = azure.delete_public_address(&public("a"), Priority::GiveBack).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    deletion_ends(&script);
    azure.delete_public_address(&public("b"), Priority::GiveBack).await.unwrap();
    pass(Duration::from_secs(30)).await;
    deletion_ends(&script);
    azure.delete_public_address(&public("a"), Priority::GiveBack).await.unwrap();
}

/// The NIC's content once Azure has finished with it.
async fn settled(world: &World) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let nic = world.azure.nic(&world.nic, Freshness::Cached, Priority::WaitingPods).await.unwrap();
        if nic.is_settled() {
            return names(&nic).into_iter().map(str::to_owned).collect();
        }
        assert!(Instant::now() < deadline, "never settled");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_read_without_an_answer_changes_nothing_and_is_tried_later() {
    for effect in [Effect::CutBeforeApply, Effect::CutAfterApply, Effect::CutBody, status(500), status(503)] {
        let world = World::start("nodes", 0.1).await;
        world.fault("GET", effect.clone());
        let error = world.reserve(&["vnp-1"]).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{effect:?}: {error}");
        assert!(matches!(error.remedy(), Remedy::RetryAfter(_)));
        assert_eq!(world.held(), [], "{effect:?}");
        world.reserve(&["vnp-1"]).await.unwrap();
    }
}

#[tokio::test]
async fn a_poll_without_an_answer_is_made_again() {
    for effect in [Effect::CutBeforeApply, Effect::CutBody] {
        let world = World::start("nodes", 0.1).await;
        world.fault_at("GET", "/operations/", effect);
        let nic = world.reserve(&["vnp-1"]).await.unwrap();
        assert_eq!(names(&nic), ["vnp-1"]);
        assert_eq!(world.asked().iter().filter(|method| *method == "PUT").count(), 1);
    }
}

#[tokio::test]
async fn a_write_that_is_never_answered_times_out_with_its_outcome_unknown() {
    let world = World::start("nodes", 0.1).await;
    world.azure.nic(&world.nic, Freshness::Cached, Priority::WaitingPods).await.unwrap();
    let fault = world.fault("PUT", Effect::Hold);
    let (names, ended) = (["vnp-1"], Cell::new(false));
    let write = world.reserve(&names);
    let hours = async {
        let deadline = Instant::now() + Duration::from_secs(10);
        while world.held().is_empty() {
            assert!(Instant::now() < deadline, "the write was never accepted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Azure has it and doesn't answer for nearly a minute, and for a little more.
        pass(Duration::from_secs(45)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!ended.get(), "given up within 45 s");
        pass(Duration::from_secs(15)).await;
    };
    let write = async {
        let outcome = write.await;
        ended.set(true);
        outcome
    };
    let both = async { tokio::join!(write, hours) };
    // With some seconds to spare after that minute.
    let (outcome, ()) = tokio::time::timeout(Duration::from_secs(75), both).await.unwrap();
    let error = outcome.unwrap_err();
    assert!(
        matches!(&error, Error::OutcomeUnknown { message, .. } if message.contains("timed out")),
        "{error}"
    );
    world.sim.lift_fault(fault).unwrap();
    assert_eq!(settled(&world).await, ["vnp-1"]);
}

#[tokio::test]
async fn an_azure_whose_name_can_not_be_resolved_is_unavailable_and_nothing_was_sent() {
    let world = World::start("nodes", 0.1).await;
    // Reserved never to exist (RFC 6761).
    let azure = client("http://arm.invalid", world.sim.arm_url());
    let error = azure.nic(&id(), Freshness::Fresh, Priority::NewNode).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("dns error"), "{error}");
    // Nor is the outcome of a write unknown that has reached no server.
    let public = format!("{}/providers/Microsoft.Network/publicIPAddresses/vnp-pod", id().group());
    let error = azure.delete_public_address(&public.parse().unwrap(), Priority::GiveBack).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_public_address_that_is_there_after_its_deletion_is_not_taken_for_gone() {
    let public: ResourceId = format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-pod").parse().unwrap();
    let there = json!({ "id": public.as_str(), "properties": { "provisioningState": "Succeeded" } });
    let script = Script::start().await;
    let azure = script.azure();
    // As a proxy answers in Azure's place, and as Azure does when it gives the deletion up.
    for first in [json!({}), json!({ "properties": { "provisioningState": "Deleting" } }), there.clone()] {
        let is_followed = first != there;
        script.next(answer(200, first).with("retry-after", 1));
        if is_followed {
            script.next(answer(200, there.clone()));
        }
        let error = azure.delete_public_address(&public, Priority::GiveBack).await.unwrap_err();
        assert!(matches!(error, Error::WithoutEffect { .. }), "{error}");
    }
}

/// Azure takes the deletion of a public address, and has ended it.
fn deletion_ends(script: &Script) {
    let operation = format!("{}{OPERATION}", script.url);
    script
        .next(answer(202, Value::Null).with("azure-asyncoperation", operation).with("retry-after", 1))
        .next(answer(200, json!({ "status": "Succeeded" })));
}

#[tokio::test]
async fn a_deletion_that_was_taken_is_no_proof_before_its_operation_has_ended() {
    let public: ResourceId = format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-pod").parse().unwrap();
    let script = Script::start().await;
    let azure = script.azure();
    let missing = || answer(404, arm_error("ResourceNotFound"));
    // There is no operation to follow, or Azure has forgotten it: the address is read instead.
    let operation = format!("{}{OPERATION}", script.url);
    script.next(answer(202, Value::Null).with("retry-after", 1)).next(missing());
    script
        .next(answer(202, Value::Null).with("azure-asyncoperation", operation).with("retry-after", 1))
        .next(missing())
        .next(missing());
    for _ in 0..2 {
        let error = azure.delete_public_address(&public, Priority::GiveBack).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    deletion_ends(&script);
    azure.delete_public_address(&public, Priority::GiveBack).await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_finds_nothing_is_no_proof_whichever_way_azure_answers() {
    let public: ResourceId = format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-pod").parse().unwrap();
    let script = Script::start().await;
    let azure = script.azure();
    for answered in [answer(204, Value::Null), answer(404, arm_error("ResourceNotFound"))] {
        script.next(answered);
        let error = azure.delete_public_address(&public, Priority::GiveBack).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    let error = azure.public_address(&public, Priority::GiveBack);
    script.next(answer(404, arm_error("ResourceNotFound")));
    assert!(matches!(error.await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_public_address_whose_making_got_no_answer_is_gone_for_good_a_minute_later_and_not_before() {
    let public: ResourceId = format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-pod").parse().unwrap();
    let script = Script::start().await;
    let azure = script.azure();
    let new = NewPublicAddress { location: "westeurope".into(), dns_label: None, pod: "default/pod".into() };
    script.next(answer(500, arm_error("InternalServerError")));
    let reserved = azure.reserve_public_address(&public).await;
    let error = azure.make_public_address(&reserved, &new, Priority::WaitingPods).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    drop(reserved);
    // It isn't there yet, and then it is.
    script.next(answer(404, arm_error("ResourceNotFound")));
    deletion_ends(&script);
    for _ in 0..2 {
        let error = azure.delete_public_address(&public, Priority::GiveBack).await.unwrap_err();
        let Remedy::RetryAfter(wait) = error.remedy() else { panic!("{error}") };
        assert!(wait <= LATE && wait > LATE / 2, "{wait:?}");
    }
    pass(LATE).await;
    script.next(answer(404, arm_error("ResourceNotFound")));
    let error = azure.delete_public_address(&public, Priority::GiveBack).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    deletion_ends(&script);
    azure.delete_public_address(&public, Priority::GiveBack).await.unwrap();
}
