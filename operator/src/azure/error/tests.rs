//! Azure's refusals, worded as in recorded traffic, its documentation and public issues.

use serde_json::{Value, json};
use uuid::Uuid;

use super::classify::{LONGEST_WAIT, THROTTLED, UNAVAILABLE};
use super::*;
use vnetpool_crds::reason::Reason;

const NIC: &str =
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/networkInterfaces/node-1-nic";

fn body(code: &str, message: &str, details: Value) -> Vec<u8> {
    json!({ "error": { "code": code, "message": message, "details": details } }).to_string().into_bytes()
}

/// The error that a write with this answer ends with.
fn write(status: u16, code: &str, message: &str, details: Value) -> Error {
    classify(Some(status), &ArmError::of_body(&body(code, message, details)), None, NIC, Effect::Write)
}

fn detail(code: &str, message: &str) -> Value {
    json!([{ "code": code, "message": message, "details": [] }])
}

#[test]
fn an_etag_that_does_not_match_is_a_lost_race() {
    let details =
        detail("PreconditionFailedEtagMismatch", "Etag provided in if-match header does not match.");
    let error = write(412, "PreconditionFailed", "Precondition failed.", details);
    assert!(matches!(error, Error::Stale { .. }), "{error:?}");
    assert_eq!(error.remedy(), Remedy::ReadAgain);
    assert!(!error.left_all_as_it_was());
}

#[test]
fn a_resource_held_by_another_operation_is_busy_for_the_time_azure_names() {
    let words =
        "Operation PutSubnetOperation (2c1a) is updating resource /s. The call can be retried in 14 seconds.";
    let error = write(
        429,
        "RetryableError",
        "A retryable error occurred.",
        detail("RetryableErrorDueToAnotherOperation", words),
    );
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert_eq!(error.remedy(), Remedy::RetryAfter(Duration::from_secs(14)));
}

#[test]
fn a_referenced_resource_under_way_is_busy() {
    let words =
        "Cannot proceed with operation because resource X used by resource Y is not in Succeeded state.";
    let error = write(
        429,
        "RetryableError",
        "A retryable error occurred.",
        detail("ReferencedResourceNotProvisioned", words),
    );
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert!(error.to_string().contains("resource X used by resource Y"), "{error}");
}

#[test]
fn a_providers_throttling_is_distinct_from_arms() {
    let words = "The operation exceeded throttling limit of 100 calls within last 5 minutes.";
    let provider = write(
        429,
        "RetryableError",
        "A retryable error.",
        detail("RetryableErrorDueToTooManyCallsToThisOperation", words),
    );
    let arm =
        write(429, "SubscriptionRequestsThrottled", "Number of requests exceeded the limit.", json!([]));
    let compute = write(
        429,
        "OperationNotAllowed",
        "{\"...\"}",
        json!([{"code": "TooManyRequests", "target": "HighCostGet", "message": "m"}]),
    );
    for (error, of) in [(arm, Limit::Arm), (provider, Limit::Action), (compute, Limit::Provider)] {
        assert!(matches!(&error, Error::Throttled { limit, .. } if *limit == of), "{error:?}");
    }
}

#[test]
fn retry_after_wins_over_words_and_words_over_the_default() {
    let wait = |header: Option<u64>, words: &str| {
        let error = ArmError::of_body(&body("TooManyRequests", words, json!([])));
        classify(Some(429), &error, header.map(Duration::from_secs), NIC, Effect::Write).remedy()
    };
    assert_eq!(wait(Some(17), "retried in 14 seconds."), Remedy::RetryAfter(Duration::from_secs(17)));
    assert_eq!(wait(None, "retried in 14 seconds."), Remedy::RetryAfter(Duration::from_secs(14)));
    assert_eq!(wait(None, "Please try again after '5' seconds."), Remedy::RetryAfter(Duration::from_secs(5)));
    assert_eq!(wait(None, "slow down"), Remedy::RetryAfter(THROTTLED));
    assert_eq!(wait(Some(1_000_000), ""), Remedy::RetryAfter(LONGEST_WAIT));
}

/// A node that is refused again would otherwise have its conditions written again.
#[test]
fn an_error_reads_the_same_whichever_request_it_answers_and_however_long_azure_has_us_wait() {
    let of = |id: u128, seconds: u64| -> Vec<String> {
        let (id, retry_after) = (Uuid::from_u128(id), Duration::from_secs(seconds));
        let words = format!(
            "Operation PutSubnetOperation ({id}) is updating it. The call can be retried in {seconds} seconds. Tracking id: '{id}'."
        );
        let known = codes().map(|(status, code)| write(status.unwrap_or(400), &code, &words, json!([])));
        let others = [400, 404, 408, 409, 429, 503].map(|status| write(status, "Novel", &words, json!([])));
        let ended = ArmError::of(&json!({ "code": "Novel", "message": words }));
        let ended = classify(None, &ended, None, NIC, Effect::Write);
        let unavailable =
            Error::Unavailable { resource: NIC.to_owned(), message: "HTTP 503".into(), retry_after };
        let may_come_back = Error::MayComeBack { resource: NIC.to_owned(), retry_after };
        let all = known.chain(others).chain([ended, unavailable, may_come_back]);
        all.map(|error| error.to_string()).collect()
    };
    assert_eq!(of(1, 5), of(2, 17));
}

#[test]
fn a_conflict_with_another_operation_is_busy_and_one_of_an_unknown_kind_may_last() {
    let words = "The request failed due to conflict with a concurrent request.";
    let busy = write(409, "Conflict", words, detail("AnotherOperationInProgress", words));
    assert!(matches!(busy, Error::Busy { .. }), "{busy:?}");
    let concurrent = write(409, "Conflict", words, json!(null));
    let lasting = write(409, "Conflict", words, detail("Novel", "It can't be done."));
    for (error, named) in [(concurrent, "Conflict"), (lasting, "Novel")] {
        assert!(matches!(&error, Error::Conflict { code, .. } if code == named), "{error:?}");
        assert_eq!(error.remedy(), Remedy::RetryAfter(BUSY));
    }
}

#[test]
fn a_vm_marked_for_deletion_is_busy_until_it_is_gone() {
    let words = "Operation 'startTenantUpdate' is not allowed on VM 'x' since the VM is marked for deletion.";
    let error = ArmError::of(&json!({ "code": "OperationNotAllowed", "message": words }));
    let error = classify(None, &error, None, NIC, Effect::Write);
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
}

#[test]
fn a_full_subnet_is_named() {
    let words =
        "Subnet nodes with address prefix 10.240.0.0/28 does not have enough capacity for 5 IP addresses.";
    let error = write(400, "SubnetIsFull", words, json!([]));
    assert!(
        matches!(&error, Error::SubnetFull { subnet, .. } if subnet == "nodes (10.240.0.0/28)"),
        "{error:?}"
    );
    assert!(matches!(error.remedy(), Remedy::WaitForChange { reason: Reason::SubnetFull, .. }));
    assert!(error.left_all_as_it_was());
}

#[test]
fn an_address_taken_meanwhile_means_reading_again() {
    let error = write(400, "PrivateIPAddressIsAllocated", "IP configuration x is using …", json!([]));
    assert!(matches!(error, Error::AddressTaken { .. }), "{error:?}");
    assert_eq!(error.remedy(), Remedy::ReadAgain);
}

#[test]
fn a_superseded_operation_means_reading_again() {
    let superseded = json!({ "code": "Canceled", "message": "Operation was canceled.", "details": [{
        "code": "CanceledAndSupersededDueToAnotherOperation",
        "message": "Operation PutNicOperation (a) was canceled and superseded by operation PutNicOperation (b)." }]});
    let preempted =
        json!({ "code": "OperationPreempted", "message": "preempted by a more recent operation." });
    for error in [superseded, preempted] {
        let error = classify(None, &ArmError::of(&error), None, NIC, Effect::Write);
        assert!(matches!(error, Error::Superseded { .. }), "{error:?}");
        assert_eq!(error.remedy(), Remedy::ReadAgain);
        assert!(!error.left_all_as_it_was());
    }
}

#[test]
fn a_missing_right_names_action_and_scope() {
    let words = "The client 'c' with object id 'o' does not have authorization to perform action \
        'Microsoft.Network/networkInterfaces/write' over scope '/subscriptions/S/nic' or the scope is invalid.";
    let error = write(403, "AuthorizationFailed", words, json!(null));
    let Error::Denied { action, scope, .. } = &error else { panic!("{error:?}") };
    assert_eq!(
        (action.as_str(), scope.as_str()),
        ("Microsoft.Network/networkInterfaces/write", "/subscriptions/S/nic")
    );
    assert!(matches!(error.remedy(), Remedy::WaitForChange { reason: Reason::PermissionDenied, .. }));
}

#[test]
fn an_error_about_a_linked_resource_names_its_missing_right() {
    let words = "The client 'c' with object id 'o' has permission to perform action \
        'Microsoft.Network/networkInterfaces/write' on scope '/subscriptions/S/nic'; however, it does not have permission \
        to perform action(s) 'Microsoft.Network/virtualNetworks/subnets/join/action' on the linked scope(s) \
        '/subscriptions/S/subnet' or the linked scope(s) are invalid.";
    let error = write(403, "LinkedAuthorizationFailed", words, json!(null));
    let Error::Denied { action, scope, .. } = &error else { panic!("{error:?}") };
    assert_eq!(action, "Microsoft.Network/virtualNetworks/subnets/join/action");
    assert_eq!(scope, "/subscriptions/S/subnet");
}

#[test]
fn locks_quotas_and_policies_wait_for_a_person() {
    let lock = "The scope '/nic' cannot perform write operation because following scope(s) are locked: '/rg'. Please \
        remove the lock and try again.";
    let locked = write(409, "ScopeLocked", lock, json!(null));
    assert!(matches!(&locked, Error::Locked { scope, .. } if scope == "/rg"), "{locked:?}");
    let policy =
        write(403, "RequestDisallowedByPolicy", "Resource was disallowed by policy 'p'.", json!(null));
    assert!(matches!(policy, Error::PolicyForbidden { .. }), "{policy:?}");
    let quota = write(400, "SomethingQuotaExceeded", "Cannot create more.", json!(null));
    assert!(matches!(quota, Error::QuotaExceeded { .. }), "{quota:?}");
    for error in [locked, policy, quota] {
        assert!(matches!(error.remedy(), Remedy::WaitForChange { .. }), "{error:?}");
    }
}

#[test]
fn a_missing_resource_is_not_found_in_either_of_azures_shapes() {
    for (code, details) in [("ResourceNotFound", json!(null)), ("NotFound", json!([]))] {
        let error = write(404, code, "The Resource was not found.", details);
        assert!(matches!(&error, Error::NotFound { resource, .. } if resource == NIC), "{error:?}");
    }
}

#[test]
fn every_other_refusal_keeps_its_code_and_leaves_the_nic_as_it_was() {
    for code in ["IpConfigDeleteNotSupported", "PrivateIPAddressMissing", "InvalidParameter"] {
        let error = write(400, code, "words", json!(null));
        assert!(matches!(&error, Error::Arm { code: kept, status: 400, .. } if kept == code), "{error:?}");
        assert!(error.left_all_as_it_was());
    }
}

#[test]
fn a_server_error_leaves_the_outcome_of_a_write_unknown_but_not_of_a_read() {
    let answer = ArmError::of_body(&body("InternalServerError", "Try later.", json!(null)));
    let write = classify(Some(500), &answer, None, NIC, Effect::Write);
    assert_eq!((write.remedy(), write.left_all_as_it_was()), (Remedy::ReadAgain, false));
    let read = classify(Some(503), &answer, None, NIC, Effect::None);
    assert_eq!(read.remedy(), Remedy::RetryAfter(UNAVAILABLE));
}

#[test]
fn a_token_that_arm_refuses_is_a_matter_of_the_credential() {
    let error = write(401, "InvalidAuthenticationToken", "The access token is invalid.", json!(null));
    assert_eq!(error.reason(), "CredentialRefused");
}

#[test]
fn an_answer_that_is_no_json_is_still_quoted() {
    let error = classify(Some(502), &ArmError::of_body(b"<html>Bad Gateway</html>"), None, NIC, Effect::None);
    assert!(error.to_string().contains("Bad Gateway"), "{error}");
}

#[test]
fn every_error_names_the_resource_it_is_about() {
    for status in [400, 404, 408, 409, 412, 418, 429, 500] {
        let error = write(status, "SomeCode", "words", json!(null));
        assert!(error.to_string().contains(NIC), "{error}");
    }
}

/// The words are those of public reports; which code comes with them differs.
#[test]
fn a_deny_assignment_is_not_a_missing_permission_and_names_the_lockdown_of_aks() {
    for code in ["DenyAssignmentAuthorizationFailed", "AuthorizationFailed"] {
        let message = "The client 'c' with object id 'o' has permission to perform action \
                       'Microsoft.Network/networkInterfaces/write' on scope '/subscriptions/s/resourceGroups/MC_g'; however, \
                       the access is denied because of the deny assignment with name 'AKS 'system' lockdown' and Id '4e1d' at \
                       scope '/subscriptions/s/resourceGroups/MC_g'.";
        let body = serde_json::json!({ "error": { "code": code, "message": message } });
        let error = ArmError::of_body(body.to_string().as_bytes());
        let error = classify(Some(403), &error, None, "nic", Effect::Write);
        let Error::DenyAssignment { action, name, .. } = &error else { panic!("{error:?}") };
        assert_eq!(action, "Microsoft.Network/networkInterfaces/write");
        assert_eq!(name, "AKS 'system' lockdown");
        assert!(error.to_string().contains("--nrg-lockdown-restriction-level Unrestricted"), "{error}");
        assert!(matches!(error.remedy(), Remedy::WaitForChange { reason: Reason::DenyAssignment, .. }));
        assert!(error.left_all_as_it_was());
    }
}

#[test]
fn the_taken_one_of_the_requested_addresses_is_read_from_the_message() {
    let asked: Vec<Ipv4Net> =
        ["10.0.0.5/32", "10.0.0.50/32", "10.0.0.16/28"].map(|one| one.parse().unwrap()).into();
    let taken =
        |message: &str| Error::AddressTaken { resource: "nic".into(), message: message.into() }.taken(&asked);
    let words = "IP configuration /a/ipConfigurations/vnp-1 is using the private IP address 10.0.0.5 which is already \
                 allocated to resource /b/ipConfigurations/ipconfig1.";
    assert_eq!(taken(words), asked[..1]);
    assert_eq!(taken(&words.replace("10.0.0.5", "10.0.0.16/28")), asked[2..]);
    // An address in a block gives up that block, and no other.
    assert_eq!(taken(&words.replace("10.0.0.5", "10.0.0.20")), asked[2..]);
    // One refused node doesn't hold back all.
    assert_eq!(taken("somebody has one of them"), []);
    let unnamed = Error::AddressTaken { resource: "nic".into(), message: "somebody has it".into() };
    assert_eq!(unnamed.taken(&asked[1..2]), asked[1..2]);
    assert_eq!(Error::Stale { resource: "nic".into() }.taken(&asked), []);
}

#[test]
fn a_refusal_that_names_a_virtual_network_concerns_all_of_its_subnets_and_no_other_networks() {
    let network = "/subscriptions/s/resourceGroups/net/providers/Microsoft.Network/virtualNetworks/vnet";
    let nic = |group: &str| NIC.replace("/G/", group).to_ascii_lowercase();
    let subnet = |name: &str| format!("{network}{name}").to_ascii_lowercase();
    let (message, resource) = (|| "m".to_owned(), nic("/g/"));
    let denied = Error::Denied { action: "join".into(), scope: network.to_uppercase(), message: message() };
    let locked = Error::Locked { resource, scope: network.to_owned(), message: message() };
    for error in [denied, locked] {
        let matter = error.matter(&[nic("/g/"), subnet("/subnets/a")]).unwrap();
        assert!(matter.is_wide, "one speaks for all: {matter:?}");
        assert!(matter.is_around(&[nic("/other/"), subnet("/subnets/b")]), "{matter:?}");
        assert!(!matter.is_around(&[nic("/g/"), subnet("2/subnets/a")]), "{matter:?}");
        assert!(error.matter(&[nic("/g/")]).is_none(), "nothing of it was to be joined");
    }
}
