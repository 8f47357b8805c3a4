//! An Azure at its worst: what becomes of a request is drawn from a table of what Azure, its networks and
//! proxies have been seen to answer.

use crate::draws::Draws;
use crate::fault::{Effect, Ending};
use crate::request::Request;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Codes with the status they come with. A resource's own 404 isn't among them: who is told twice that a NIC
/// is gone must believe it.
const CODES: &[(u16, &str)] = &[
    (400, "SubnetIsFull"),
    (400, "PrivateIPAddressLimitReached"),
    (400, "PrivateIPAddressInUse"),
    (400, "PrivateIPAddressIsBeingCleanedUp"),
    (400, "InvalidResourceReference"),
    (400, "ReferencedResourceNotProvisioned"),
    (400, "SomethingQuotaExceeded"),
    (400, "SomethingNobodyHasHeardOf"),
    (401, "InvalidAuthenticationToken"),
    (403, "AuthorizationFailed"),
    (403, "RequestDisallowedByPolicy"),
    (404, "ResourceGroupNotFound"),
    (404, "SubscriptionNotFound"),
    (409, "AnotherOperationInProgress"),
    (409, "Conflict"),
    (409, "MissingSubscriptionRegistration"),
    (409, "ReadOnlyDisabledSubscription"),
    (409, "ScopeLocked"),
    (409, "SomethingNobodyHasHeardOf"),
    (412, "PreconditionFailed"),
    (429, "ResourceRequestsThrottled"),
    (429, "RetryableError"),
    (429, "SubscriptionRequestsThrottled"),
    (408, "RequestTimeout"),
    (500, "InternalServerError"),
    (502, "BadGateway"),
    (503, "ServerTimeout"),
    (504, "GatewayTimeout"),
];

/// What becomes of a request; `None`: it is answered as always.
pub(crate) fn draw(draws: &mut Draws, request: &Request) -> Option<Effect> {
    // An operation's own name differs each time.
    let path = request.path.split("/operations/").next().unwrap_or_default().to_lowercase();
    let random = draws.next(&format!("{} {path}", request.method));
    let (choice, detail) = (random % 100, (random / 100) as usize);
    let is_write = request.method != "GET";
    Some(match choice {
        0..14 => refusal(CODES[detail % CODES.len()], &request.path),
        14..18 => Effect::CutBeforeApply,
        18..22 => Effect::CutAfterApply,
        22..25 => Effect::CutBody,
        25..31 => Effect::Delay { ms: detail as u64 % 1500 },
        31..32 => Effect::Hold,
        32..33 => Effect::HoldBefore,
        33..36 => Effect::Status { status: 200, body: garbage(detail), headers: BTreeMap::new() },
        36..38 => Effect::Garble { body: garbage(detail) },
        38..48 if is_write => {
            let (_, code) = CODES[detail % CODES.len()];
            let status = if detail.is_multiple_of(3) { Ending::Canceled } else { Ending::Failed };
            let error = json!({ "code": code, "message": words(code, &request.path) });
            Effect::OperationEnds { status, error }
        }
        _ => return None,
    })
}

fn refusal((status, code): (u16, &str), path: &str) -> Effect {
    let details = json!([{ "code": code, "message": words(code, path) }]);
    let body = json!({ "error": { "code": code, "message": words(code, path), "details": details } });
    // Without it a client waits for as long as it likes.
    let headers = [("retry-after".to_owned(), "1".to_owned())];
    let headers = headers.into_iter().filter(|_| status == 429 || status == 503).collect();
    Effect::Status { status, body, headers }
}

fn words(code: &str, path: &str) -> String {
    let group = path.split("/providers/").next().unwrap_or_default();
    match code {
        "SubnetIsFull" => {
            "Subnet nodes with address prefix 10.240.0.0/20 does not have enough capacity for 1 IP addresses."
                .into()
        }
        "AuthorizationFailed" => format!(
            "The client 'c' with object id 'o' does not have authorization to perform action \
             'Microsoft.Network/networkInterfaces/write' over scope '{path}' or the scope is invalid."
        ),
        "ScopeLocked" => format!(
            "The scope '{path}' cannot perform write operation because following scope(s) are locked: '{group}'. Please \
             remove the lock and try again."
        ),
        _ => format!("{code}, says Azure."),
    }
}

/// JSON, and not what was asked for.
fn garbage(which: usize) -> Value {
    let all = [
        json!({}),
        json!([]),
        json!("text"),
        json!(17),
        json!({ "value": [] }),
        json!({ "error": null }),
        json!({ "error": "text" }),
        json!({ "properties": { "ipConfigurations": "none" } }),
        json!({ "id": 7, "etag": [], "properties": { "provisioningState": {} } }),
        json!({ "status": "Novel" }),
    ];
    all[which % all.len()].clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// One of seven NICs.
    fn path(index: usize) -> String {
        format!("/subscriptions/s/resourceGroups/g/providers/P/networkInterfaces/n{}", index % 7)
    }

    fn drawn(seed: u64, count: usize) -> Vec<Value> {
        let mut draws = Draws::of(seed);
        let request = |index: usize| Request {
            method: if index.is_multiple_of(2) { "GET" } else { "PUT" }.into(),
            path: path(index),
            query: String::new(),
            headers: BTreeMap::new(),
            body: Ok(None),
            from: std::net::Ipv4Addr::LOCALHOST.into(),
        };
        (0..count).map(|index| json!(draw(&mut draws, &request(index)))).collect()
    }

    #[test]
    fn a_seed_draws_the_same_again_and_another_something_else() {
        assert_eq!(drawn(1, 500), drawn(1, 500));
        assert_ne!(drawn(1, 500), drawn(2, 500));
    }

    #[test]
    fn every_kind_of_answer_is_drawn() {
        let all = drawn(1, 20_000);
        for code in CODES {
            let is_refused = (0..7).any(|nic| all.contains(&json!(refusal(*code, &path(nic)))));
            assert!(is_refused, "{code:?}");
        }
        let kinds: BTreeSet<&str> = all.iter().filter_map(|effect| effect["kind"].as_str()).collect();
        let expected = [
            "cut_after_apply",
            "cut_before_apply",
            "cut_body",
            "delay",
            "garble",
            "hold",
            "hold_before",
            "operation_ends",
            "status",
        ];
        assert_eq!(kinds, BTreeSet::from(expected));
    }
}
