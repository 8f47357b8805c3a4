//! The client's reaction to answers that the simulated Azure doesn't give, or not on demand.

use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};
use vnetpool_operator::azure::{
    ApiVersions, Azure, Change, Config, Error, Freshness, Kind, LATE, NewPublicAddress, Priority,
    ProvisioningState, Remedy, ResourceId, Urgency, VmId,
};

use crate::script::{Answer, Script, answer, client, config, pass};

pub const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/g/providers";
pub const OPERATION: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/providers/Microsoft.Network/locations/westeurope/operations/1?api-version=2025-05-01&t=63&c=MII%2Fx%3D%3D&s=a-b_c&h=d";

pub fn id() -> ResourceId {
    format!("{GROUP}/Microsoft.Network/networkInterfaces/nic").parse().unwrap()
}

pub fn nic(etag: &str, state: &str, ours: &[&str]) -> Value {
    let one = |name: &str, primary: bool| {
        json!({ "name": name, "properties": {
            "provisioningState": state,
            "privateIPAddress": if primary { "10.240.0.4" } else { "10.240.0.5" },
            "primary": primary,
            "subnet": { "id": format!("{GROUP}/Microsoft.Network/virtualNetworks/vnet/subnets/nodes") },
        }})
    };
    let mut all = vec![one("ipconfig1", true)];
    all.extend(ours.iter().map(|name| one(name, false)));
    json!({
        "etag": etag,
        "location": "westeurope",
        "properties": { "provisioningState": state, "ipConfigurations": all },
    })
}

/// To the write that adds vnp-1: Azure takes its time over it, and reports it at this URL.
pub fn accepted(operation: String) -> Answer {
    answer(200, nic("W/\"2\"", "Updating", &["vnp-1"]))
        .with("azure-asyncoperation", operation)
        .with("retry-after", 1)
}

pub fn reserve(name: &str) -> Change {
    Change { reserve: vec![name.to_owned()], ..Change::default() }
}

pub fn arm_error(code: &str) -> Value {
    json!({ "error": { "code": code, "message": "words" } })
}

#[tokio::test]
async fn every_call_is_signed_names_its_client_and_can_be_traced() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    let azure = script.azure();
    azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap();
    let heard = script.heard();
    assert_eq!(heard.len(), 2);
    for request in &heard {
        assert_eq!(request.headers["authorization"], "Bearer the-token");
        assert_eq!(request.headers["user-agent"], concat!("vnetpool-operator/", env!("CARGO_PKG_VERSION")));
        assert_eq!(request.uri.query(), Some("api-version=2025-05-01"));
    }
    assert_eq!(heard[1].headers["if-match"], "W/\"1\"");
    let traced = |name: &str| heard.iter().map(|one| one.headers[name].clone()).collect::<Vec<_>>();
    let (requests, undertakings) = (traced("x-ms-client-request-id"), traced("x-ms-correlation-request-id"));
    assert!(requests[0] != requests[1] && undertakings[0] == undertakings[1]);
}

#[tokio::test]
async fn every_request_is_made_in_the_version_that_was_chosen_for_its_provider() {
    let script = Script::start().await;
    let versions = ApiVersions { network: "2031-01-01".into(), compute: "2032-02-02".into() };
    let azure = Azure::new(&Config { versions, ..config(&script.url, &script.url) }).unwrap();
    let network = format!("{GROUP}/Microsoft.Network");
    let vm = format!("azure://{GROUP}/Microsoft.Compute/virtualMachines/vm");
    let vm = VmId::from_provider_id(&vm).unwrap();
    let subnet = format!("{network}/virtualNetworks/vnet/subnets/nodes").parse().unwrap();
    let (table, public): (ResourceId, ResourceId) = (
        format!("{network}/routeTables/t").parse().unwrap(),
        format!("{network}/publicIPAddresses/vnp-1").parse().unwrap(),
    );
    let nics = json!([{ "id": id().to_string() }]);
    script
        .next(answer(200, json!({ "properties": { "networkProfile": { "networkInterfaces": nics } } })))
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])))
        .next(answer(200, json!({ "properties": { "subnets": [{ "name": "nodes" }] } })))
        .next(answer(200, json!({ "value": [] })));
    azure.nics(&vm, Priority::NewNode).await.unwrap();
    azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap();
    azure.network(&subnet, Priority::NewNode).await.unwrap();
    azure.usages(&subnet.parent().unwrap(), Priority::GiveBack).await.unwrap();
    // These are refused, but asked all the same.
    for _ in 0..3 {
        script.next(answer(400, arm_error("InvalidParameter")));
    }
    azure.route_table(&table, Priority::NewNode).await.unwrap_err();
    azure.public_address(&public, Priority::WarmRefill).await.unwrap_err();
    azure.delete_public_address(&public, Priority::GiveBack).await.unwrap_err();
    let heard = script.heard();
    assert_eq!(heard.len(), 8);
    for request in &heard {
        let is_of_compute = request.uri.path().contains("/Microsoft.Compute/");
        let chosen = if is_of_compute { "api-version=2032-02-02" } else { "api-version=2031-01-01" };
        assert_eq!(request.uri.query(), Some(chosen), "{}", request.uri);
    }
}

#[tokio::test]
async fn a_write_that_is_complete_at_once_is_not_read_back() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    let azure = script.azure();
    let written = azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap();
    assert_eq!(written.ip_configurations.len(), 1);
    // The next write builds upon this answer.
    script.next(answer(200, nic("W/\"3\"", "Succeeded", &["vnp-1", "vnp-2"])));
    azure.update(&id(), &reserve("vnp-2"), Priority::WaitingPods).await.unwrap();
    let heard = script.heard();
    assert_eq!(heard.iter().map(|one| one.method.as_str()).collect::<Vec<_>>(), ["GET", "PUT", "PUT"]);
    assert_eq!(heard[2].headers["if-match"], "W/\"2\"");
}

#[tokio::test]
async fn an_address_that_azure_objects_to_though_none_was_asked_for_is_a_conflict_like_any_other() {
    for (code, asked_for) in [
        ("PrivateIPAddressNotInSubnet", "AddressTaken"),
        ("PrivateIPAddressIsAllocated", "AddressTaken"),
        ("PrivateIPAddressIsBeingCleanedUp", "AddressBeingFreed"),
    ] {
        let script = Script::start().await;
        script.next(answer(200, nic("W/\"1\"", "Succeeded", &[]))).next(answer(400, arm_error(code)));
        let azure = script.azure();
        let error = azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap_err();
        assert_eq!(error.reason(), "ResourceConflict", "{error}");
        assert_eq!(error.remedy(), Remedy::RetryAfter(Duration::from_secs(15)));
        let restore = [("vnp-2".to_owned(), "10.240.0.9/32".parse().unwrap())].into();
        let restore = Change { restore, ..Change::default() };
        script.next(answer(400, arm_error(code)));
        let error = azure.update(&id(), &restore, Priority::WaitingPods).await.unwrap_err();
        assert_eq!(error.reason(), asked_for, "{error}");
    }
}

#[tokio::test]
async fn the_document_of_another_resource_is_believed_of_none() {
    let network = format!("{GROUP}/Microsoft.Network");
    let vm =
        VmId::from_provider_id(&format!("azure://{GROUP}/Microsoft.Compute/virtualMachines/vm")).unwrap();
    let (table, public): (ResourceId, ResourceId) = (
        format!("{network}/routeTables/t").parse().unwrap(),
        format!("{network}/publicIPAddresses/vnp-1").parse().unwrap(),
    );
    let script = Script::start().await;
    let azure = script.azure();
    let named = |mut document: Value, name: &str| {
        document["id"] = json!(name);
        answer(200, document)
    };
    let nics = json!([{ "id": id().to_string() }]);
    let vm_document = json!({ "properties": { "networkProfile": { "networkInterfaces": nics } } });
    let table_document = json!({ "etag": "1", "location": "r", "properties": { "routes": [] } });
    for (is_its_own, change) in [(true, ""), (false, "-2")] {
        let of = |id: &str| format!("{}{change}", id.to_uppercase());
        script
            .next(named(vm_document.clone(), &of(vm.resource().as_str())))
            .next(named(nic("W/\"1\"", "Succeeded", &[]), &of(id().as_str())))
            .next(named(table_document.clone(), &of(table.as_str())))
            .next(named(json!({}), &of(public.as_str())));
        let answers = [
            azure.nics(&vm, Priority::NewNode).await.err(),
            azure.nic(&id(), Freshness::Fresh, Priority::NewNode).await.err(),
            azure.route_table(&table, Priority::NewNode).await.err(),
            azure.public_address(&public, Priority::WarmRefill).await.err(),
        ];
        for error in answers {
            let reason = error.as_ref().map(|error| error.reason().name());
            assert_eq!(reason, (!is_its_own).then_some("UnexpectedAnswer"), "{error:?}");
        }
        // The table is kept for a minute.
        pass(Duration::from_secs(61)).await;
    }
}

#[tokio::test]
async fn an_operation_is_polled_at_the_url_and_the_pace_that_azure_gives() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(accepted(format!("{}{OPERATION}", script.url)))
        .next(answer(200, json!({ "status": "InProgress" })).with("retry-after", 2))
        .next(answer(200, json!({ "status": "Succeeded" })))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    let written = script.azure().update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap();
    assert_eq!(written.ip_configurations[0].state, ProvisioningState::Succeeded);
    let heard = script.heard();
    assert_eq!(heard[2].uri, OPERATION);
    assert_eq!(heard[3].uri, OPERATION);
    assert!(heard[2].at - heard[1].at >= Duration::from_secs(1));
    assert!(heard[3].at - heard[2].at >= Duration::from_secs(2));
}

#[tokio::test]
async fn an_operation_without_a_pace_of_azures_is_polled_first_after_two_seconds() {
    let script = Script::start().await;
    let accepted = answer(200, nic("W/\"2\"", "Updating", &["vnp-1"]))
        .with("azure-asyncoperation", format!("{}{OPERATION}", script.url));
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(accepted)
        .next(answer(200, json!({ "status": "Succeeded" })))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    script.azure().update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap();
    let heard = script.heard();
    let waited = (heard[2].at - heard[1].at).as_secs_f64();
    assert!((2.0..8.0).contains(&waited), "{waited}");
}

#[tokio::test]
async fn a_client_that_may_not_write_sends_no_write_of_any_kind() {
    let script = Script::start().await;
    script.next(answer(200, nic("W/\"1\"", "Succeeded", &[])));
    let azure = script.azure();
    azure.begin_to_lead(|| false, LATE);
    let public = |name| format!("{GROUP}/Microsoft.Network/publicIPAddresses/{name}").parse().unwrap();
    let (made, deleted): (ResourceId, ResourceId) = (public("vnp-1"), public("vnp-2"));
    let reserved = azure.reserve_public_address(&made).await;
    let new = NewPublicAddress { location: "westeurope".into(), dns_label: None, pod: "a/b".into() };
    let (nic, change) = (id(), reserve("vnp-1"));
    tokio::select! {
        written = azure.update(&nic, &change, Priority::WaitingPods) => panic!("{written:?}"),
        made = azure.make_public_address(&reserved, &new, Priority::WaitingPods) => panic!("{made:?}"),
        deleted = azure.delete_public_address(&deleted, Priority::WaitingPods) => panic!("{deleted:?}"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    assert_eq!(script.heard().iter().map(|one| one.method.as_str()).collect::<Vec<_>>(), ["GET"]);
}

#[tokio::test]
async fn public_addresses_that_are_used_up_in_a_region_are_asked_for_by_one_on_behalf_of_all() {
    let script = Script::start().await;
    let azure = script.azure();
    let make = async |name: &str, region: &str| {
        let id = format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-{name}");
        let id: ResourceId = id.parse().unwrap();
        let new = NewPublicAddress { location: region.into(), dns_label: None, pod: "a/b".into() };
        let reserved = azure.reserve_public_address(&id).await;
        azure.make_public_address(&reserved, &new, Priority::WaitingPods).await
    };
    let done = json!({ "properties": { "provisioningState": "Succeeded", "ipAddress": "20.0.0.1" } });
    let made = || answer(200, done.clone());
    let used_up = || answer(400, arm_error("PublicIPCountLimitReached"));
    script.next(used_up()).next(made());
    make("1", "westeurope").await.unwrap_err();
    let error = make("2", "westeurope").await.unwrap_err();
    assert!(error.to_string().contains("vnp-2"), "{error}");
    make("3", "northeurope").await.unwrap();
    assert_eq!(script.heard().len(), 2);
    script.next(used_up()).next(made()).next(made());
    pass(Duration::from_secs(80)).await;
    make("1", "westeurope").await.unwrap_err();
    make("2", "westeurope").await.unwrap_err();
    pass(Duration::from_secs(80)).await;
    make("2", "westeurope").await.unwrap();
    make("1", "westeurope").await.unwrap();
    assert_eq!(script.heard().len(), 5);
}

#[tokio::test]
async fn public_addresses_that_wait_for_their_turn_are_not_asked_for_once_the_quota_is_known_to_be_used_up() {
    let script = Script::start().await;
    let azure = script.azure();
    let make = async |name: String| {
        let id = format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-{name}");
        let id: ResourceId = id.parse().unwrap();
        let new = NewPublicAddress { location: "westeurope".into(), dns_label: None, pod: "a/b".into() };
        let reserved = azure.reserve_public_address(&id).await;
        azure.make_public_address(&reserved, &new, Priority::WarmRefill).await
    };
    // Nothing is left for a second, and then one write at a time.
    let throttled = answer(429, arm_error("SubscriptionRequestsThrottled"));
    let throttled = throttled.with("retry-after", 1).with("x-ms-ratelimit-remaining-subscription-writes", 0);
    script.next(throttled);
    make("first".into()).await.unwrap_err();
    // Where the machine has other work, a second may have its turn before the first has its answer.
    for _ in 0..3 {
        script.next(answer(400, arm_error("PublicIPCountLimitReached")));
    }
    let made = futures::future::join_all((0..20).map(|index| make(index.to_string()))).await;
    script.forget_rest();
    let asked = script.heard().len() - 1;
    let (given_up, answered): (Vec<_>, Vec<_>) =
        made.into_iter().map(Result::unwrap_err).partition(Error::is_given_up);
    assert!((1..=3).contains(&asked), "{asked} were asked for");
    assert_eq!((given_up.len(), answered.len()), (20 - asked, asked));
    let is_used_up = |error: &Error| matches!(error, Error::PublicAddressesUsedUp { .. });
    assert!(answered.iter().all(is_used_up), "{answered:?}");
}

#[tokio::test]
async fn a_public_address_that_is_there_is_changed_while_others_are_used_up_and_none_is_made_by_that() {
    let script = Script::start().await;
    let azure = script.azure();
    let id: ResourceId = format!("{GROUP}/Microsoft.Network/publicIPAddresses/vnp-1").parse().unwrap();
    let label = Some("shop".to_owned());
    let new = NewPublicAddress { location: "westeurope".into(), dns_label: label, pod: "a/b".into() };
    let reserved = azure.reserve_public_address(&id).await;
    let done = || {
        answer(200, json!({ "properties": { "provisioningState": "Succeeded", "ipAddress": "20.0.0.1" } }))
    };
    script.next(answer(400, arm_error("PublicIPCountLimitReached")));
    azure.make_public_address(&reserved, &new, Priority::WaitingPods).await.unwrap_err();
    script.next(answer(404, arm_error("ResourceNotFound")));
    let changed = azure.change_public_address(&reserved, &new, Priority::WaitingPods).await.unwrap();
    assert_eq!(changed, None);
    script.next(done()).next(done());
    azure.change_public_address(&reserved, &new, Priority::WaitingPods).await.unwrap().unwrap();
    // It shows nothing of the quota.
    azure.make_public_address(&reserved, &new, Priority::WaitingPods).await.unwrap_err();
    let methods: Vec<String> = script.heard().iter().map(|one| one.method.to_string()).collect();
    assert_eq!(methods, ["PUT", "GET", "GET", "PUT"]);
}

#[tokio::test]
async fn polls_go_on_through_throttling_and_server_errors() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(accepted(format!("{}{OPERATION}", script.url)))
        .next(answer(429, arm_error("SubscriptionRequestsThrottled")).with("retry-after", 1))
        .next(answer(503, arm_error("ServiceUnavailable")).with("retry-after", 1))
        .next(answer(200, json!({ "status": "Succeeded" })))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    script.azure().update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap();
    assert_eq!(script.heard().iter().filter(|one| one.method == Method::PUT).count(), 1);
}

#[tokio::test]
async fn an_operation_that_fails_keeps_its_code_and_the_nic_is_read_anew() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(accepted(format!("{}{OPERATION}", script.url)))
        .next(answer(200, json!({ "status": "Failed", "error": { "code": "NetworkingInternalOperationError", "message": "words" } })));
    let azure = script.azure();
    let error = azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap_err();
    assert!(
        matches!(&error, Error::Failed { code, .. } if code == "NetworkingInternalOperationError"),
        "{error}"
    );
    script.next(answer(200, nic("W/\"3\"", "Failed", &["vnp-1"])));
    let nic = azure.nic(&id(), Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!(nic.state, ProvisioningState::Failed);
}

#[tokio::test]
async fn an_operation_elsewhere_is_not_followed() {
    let (script, elsewhere) = (Script::start().await, Script::start().await);
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(accepted(format!("{}{OPERATION}", elsewhere.url)));
    let error = script.azure().update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap_err();
    assert!(error.to_string().contains("isn't Azure Resource Manager"), "{error}");
    assert!(elsewhere.heard().is_empty());
}

#[tokio::test]
async fn a_server_error_is_not_retried_below_the_budget_and_leaves_the_outcome_unknown() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(500, arm_error("InternalServerError")));
    let azure = script.azure();
    let error = azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::ReadAgain, "{error}");
    assert_eq!(script.heard().len(), 2);
    script.next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    let nic = azure.nic(&id(), Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!(nic.ip_configurations.len(), 1);
}

#[tokio::test]
async fn typed_reads_are_not_retried_below_the_budget_either_and_keep_our_error() {
    let script = Script::start().await;
    script.next(answer(429, arm_error("TooManyRequests")).with("retry-after", 33));
    let subnet = format!("{GROUP}/Microsoft.Network/virtualNetworks/vnet/subnets/nodes").parse().unwrap();
    let error = script.azure().network(&subnet, Priority::NewNode).await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::RetryAfter(Duration::from_secs(33)), "{error}");
    let heard = script.heard();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].headers["authorization"], "Bearer the-token");
}

#[tokio::test]
async fn a_write_that_is_outgrown_before_its_turn_is_not_sent_and_keeps_the_cached_nic() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(429, arm_error("SubscriptionRequestsThrottled")).with("retry-after", 4));
    let azure = script.azure();
    azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap_err();
    // Writes are closed, and pods come once it waits.
    let (grow, grown) = tokio::sync::oneshot::channel();
    let outgrown = Urgency::until(Priority::WarmRefill, async move { drop(grown.await) });
    let (id, change) = (id(), reserve("vnp-1"));
    let mut waits = Box::pin(azure.update(&id, &change, outgrown));
    while azure.waiting().iter().all(|(_, waiting)| *waiting == 0) {
        assert!(futures::poll!(&mut waits).is_pending());
        tokio::task::yield_now().await;
    }
    grow.send(()).unwrap();
    let error = waits.await.unwrap_err();
    assert!(matches!(error, Error::Outgrown { .. }), "{error}");
    assert_eq!(script.heard().len(), 2);
    let spent: u64 =
        azure.accounts().iter().filter(|one| one.writes && one.limit == "arm").map(|one| one.spent).sum();
    assert_eq!(spent, 1, "the refused one");

    script.next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1", "vnp-2"])));
    let both = Change { reserve: vec!["vnp-1".into(), "vnp-2".into()], ..Change::default() };
    azure.update(&id, &both, Priority::WaitingPods).await.unwrap();
    let heard = script.heard();
    assert_eq!(heard.iter().map(|one| one.method.as_str()).collect::<Vec<_>>(), ["GET", "PUT", "PUT"]);
    assert_eq!(heard[2].headers["if-match"], "W/\"1\"");
}

/// From its turn on it may have taken effect.
#[tokio::test]
async fn a_write_that_is_outgrown_after_its_turn_is_followed_to_its_end() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(accepted(format!("{}{OPERATION}", script.url)))
        .next(answer(200, json!({ "status": "Succeeded" })))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])));
    let turn = std::sync::Arc::new(tokio::sync::Notify::new());
    let has_come = turn.clone();
    let outgrown = Urgency::until(Priority::WarmRefill, async move { has_come.notified().await });
    let outgrown = outgrown.confirmed(move || {
        turn.notify_one();
        std::future::ready(true)
    });
    let written = script.azure().update(&id(), &reserve("vnp-1"), outgrown).await.unwrap();
    assert_eq!(written.ip_configurations[0].state, ProvisioningState::Succeeded);
}

#[tokio::test]
async fn a_write_that_is_outgrown_before_it_comes_to_queue_is_not_sent_though_no_call_waits() {
    let script = Script::start().await;
    script.next(answer(200, nic("W/\"1\"", "Succeeded", &[])));
    let outgrown = Urgency::until(Priority::WarmRefill, std::future::ready(()));
    let error = script.azure().update(&id(), &reserve("vnp-1"), outgrown).await.unwrap_err();
    assert!(matches!(error, Error::Outgrown { .. }), "{error}");
    assert_eq!(script.heard().len(), 1);
}

#[tokio::test]
async fn a_refused_write_leaves_the_cached_nic() {
    let script = Script::start().await;
    script.next(answer(200, nic("W/\"1\"", "Succeeded", &[]))).next(answer(400, arm_error("SubnetIsFull")));
    let azure = script.azure();
    azure.update(&id(), &reserve("vnp-1"), Priority::WaitingPods).await.unwrap_err();
    azure.nic(&id(), Freshness::Cached, Priority::WaitingPods).await.unwrap();
    assert_eq!(script.heard().len(), 2);
}

#[tokio::test]
async fn an_azure_that_is_not_there_changes_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let script = Script::start().await;
    let azure = client(&nobody, &script.url);
    let error = azure.nic(&id(), Freshness::Cached, Priority::WaitingPods).await.unwrap_err();
    assert!(matches!(error.remedy(), Remedy::RetryAfter(_)), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_vms_nic_is_the_one_marked_primary_or_else_the_first() {
    let vm =
        VmId::from_provider_id(&format!("azure://{GROUP}/Microsoft.Compute/virtualMachines/vm")).unwrap();
    let nic = |name: &str, primary: Value| json!({ "id": format!("{GROUP}/Microsoft.Network/networkInterfaces/{name}"), "properties": { "primary": primary } });
    let table = [
        (json!([nic("a", json!(false)), nic("b", json!(true))]), Some("b")),
        (json!([nic("a", Value::Null), nic("b", Value::Null)]), Some("a")),
        (json!([]), None),
    ];
    for (nics, expected) in table {
        let script = Script::start().await;
        script
            .next(answer(200, json!({ "properties": { "networkProfile": { "networkInterfaces": nics } } })));
        let found = script.azure().primary_nic(&vm, Priority::NewNode).await;
        assert_eq!(found.as_ref().ok().map(ResourceId::name), expected);
        assert_eq!(script.heard()[0].uri.query(), Some("api-version=2025-04-01"));
    }
}

#[tokio::test]
async fn each_request_is_reported_to_the_observer() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(412, arm_error("PreconditionFailed")));
    let azure = script.azure();
    let (observer, observed) = std::sync::mpsc::channel();
    azure.on_request(move |record| observer.send((record.kind, record.status)).unwrap());
    let error = azure.update(&id(), &reserve("vnp-1"), Priority::GiveBack).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    drop(azure);
    assert_eq!(observed.iter().collect::<Vec<_>>(), [(Kind::Read, Some(200)), (Kind::Write, Some(412))]);
}

/// Else the poll of a give-back would wait for a rush on other nodes to end, and with it pods that have come
/// to its own.
#[tokio::test]
async fn requests_that_follow_a_write_of_any_priority_wait_for_no_other_call() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &["vnp-1"])))
        .next(
            answer(200, nic("W/\"2\"", "Updating", &[]))
                .with("azure-asyncoperation", format!("{}{OPERATION}", script.url))
                .with("retry-after", "1"),
        )
        .next(answer(200, json!({ "status": "Succeeded" })))
        .next(answer(200, nic("W/\"3\"", "Succeeded", &[])));
    let azure = script.azure();
    let (observer, observed) = std::sync::mpsc::channel();
    azure.on_request(move |record| observer.send((record.kind, record.priority)).unwrap());
    let release = Change { release: vec!["vnp-1".into()], ..Change::default() };
    azure.update(&id(), &release, Priority::GiveBack).await.unwrap();
    drop(azure);
    let expected = [
        (Kind::Read, Priority::GiveBack),
        (Kind::Write, Priority::GiveBack),
        (Kind::Poll, Priority::UnderWay),
        (Kind::Read, Priority::UnderWay),
    ];
    assert_eq!(observed.iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_nic_that_azure_has_not_finished_with_is_not_written() {
    let script = Script::start().await;
    script.next(answer(200, nic("W/\"1\"", "Updating", &["vnp-1"])));
    let azure = script.azure();
    let error = azure.update(&id(), &reserve("vnp-2"), Priority::WaitingPods).await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::RetryAfter(Duration::from_secs(5)), "{error}");
    script
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])))
        .next(answer(200, nic("W/\"3\"", "Succeeded", &["vnp-1", "vnp-2"])));
    azure.update(&id(), &reserve("vnp-2"), Priority::WaitingPods).await.unwrap();
    assert_eq!(script.heard()[2].headers["if-match"], "W/\"2\"");
}

#[tokio::test]
async fn a_nic_that_is_gone_is_forgotten() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(404, arm_error("ResourceNotFound")));
    let azure = script.azure();
    azure.nic(&id(), Freshness::Fresh, Priority::NewNode).await.unwrap();
    let error = azure.nic(&id(), Freshness::Fresh, Priority::NewNode).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    script.next(answer(404, arm_error("ResourceNotFound")));
    azure.nic(&id(), Freshness::Cached, Priority::NewNode).await.unwrap_err();
    assert_eq!(script.heard().len(), 3);
}

#[tokio::test]
async fn a_nic_that_azure_has_not_finished_with_is_read_again() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Updating", &["vnp-1"])))
        .next(answer(200, nic("W/\"1\"", "Succeeded", &["vnp-1"])));
    let azure = script.azure();
    for expected in [ProvisioningState::Updating, ProvisioningState::Succeeded, ProvisioningState::Succeeded]
    {
        let nic = azure.nic(&id(), Freshness::Cached, Priority::WaitingPods).await.unwrap();
        assert_eq!(nic.state, expected);
    }
    assert_eq!(script.heard().len(), 2);
}

#[tokio::test]
async fn without_a_token_arm_is_not_asked_and_the_error_names_the_setting() {
    let script = Script::start().await;
    script.refuse_tokens();
    let error = script.azure().nic(&id(), Freshness::Fresh, Priority::NewNode).await.unwrap_err();
    assert!(
        matches!(
            error.remedy(),
            Remedy::WaitForChange { reason: vnetpool_crds::reason::Reason::CredentialRefused, .. }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("AZURE_CLIENT_ID"), "{error}");
    assert!(script.heard().is_empty());
}

#[tokio::test]
async fn writes_to_one_nic_wait_for_each_other() {
    let script = Script::start().await;
    script
        .next(answer(200, nic("W/\"1\"", "Succeeded", &[])))
        .next(answer(200, nic("W/\"2\"", "Succeeded", &["vnp-1"])))
        .next(answer(200, nic("W/\"3\"", "Succeeded", &["vnp-1", "vnp-2"])));
    let azure = script.azure();
    let (one, two) = (reserve("vnp-1"), reserve("vnp-2"));
    let lower = id();
    let upper: ResourceId = lower.to_string().to_uppercase().parse().unwrap();
    let (first, second) = tokio::join!(
        azure.update(&lower, &one, Priority::WaitingPods),
        azure.update(&upper, &two, Priority::WaitingPods),
    );
    first.unwrap();
    second.unwrap();
    let heard = script.heard();
    assert_eq!(heard.len(), 3);
    assert_eq!(heard[2].headers["if-match"], "W/\"2\"");
}
