//! An Azure at its worst: the fate of a request is drawn from a table of answers that Azure, its networks and
//! proxies have been seen to give.

use super::{Effect, Ending};
use crate::draws::Draws;
use crate::request::Request;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Codes with the status they come with.
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

/// The statuses of codes that may come with any.
const REFUSING: [u16; 3] = [400, 403, 409];

/// Reports that the resource isn't there. A client that gets this twice must believe it. So only a PUT gets
/// it, of a resource that hasn't been missed.
const ABSENT: &str = "ParentResourceNotFound";

/// The same, by a resource's own 404: any other request than a PUT gets it, once for each resource.
const MISSING: &str = "ResourceNotFound";

/// One seed's answers.
pub(crate) struct Hostile {
    draws: Draws,
    codes: Vec<Code>,
    /// The paths of resources that have been missed.
    missed: BTreeSet<String>,
}

/// A code, and the status that it comes with; without one, any of [`REFUSING`].
type Code = (Option<u16>, String);

impl Hostile {
    /// `further` codes are drawn beside those known here.
    pub(crate) fn of(seed: u64, further: Vec<Code>) -> Self {
        let known = CODES.iter().map(|(status, code)| (Some(*status), (*code).to_owned()));
        Self { draws: Draws::of(seed), codes: known.chain(further).collect(), missed: BTreeSet::new() }
    }

    /// The fate of a request; `None`: it is answered as always.
    pub(crate) fn draw(&mut self, request: &Request) -> Option<Effect> {
        // An operation's own name differs each time.
        let path = request.path.split("/operations/").next().unwrap_or_default().to_lowercase();
        let random = self.draws.next(&format!("{} {path}", request.method));
        let (choice, detail) = (random % 100, (random / 100) as usize);
        let is_write = request.method != "GET";
        let (status, code) = &self.codes[detail % self.codes.len()];
        let status = status.unwrap_or(REFUSING[detail / self.codes.len() % REFUSING.len()]);
        let would_be_believed = code == ABSENT && (request.method != "PUT" || self.missed.contains(&path));
        Some(match choice {
            0..14 | 38..48 if would_be_believed => return None,
            0..14 => refusal(status, code, &request.path),
            14..18 => Effect::CutBeforeApply,
            18..22 => Effect::CutAfterApply,
            22..25 => Effect::CutBody,
            25..31 => Effect::Delay { ms: detail as u64 % 1500 },
            31..32 => Effect::Hold,
            32..33 => Effect::HoldBefore,
            33..36 => Effect::Status { status: 200, body: garbage(detail), headers: BTreeMap::new() },
            36..38 => Effect::Garble { body: garbage(detail) },
            38..48 if is_write => {
                let status = if detail.is_multiple_of(3) { Ending::Canceled } else { Ending::Failed };
                let error = json!({ "code": code, "message": words(code, &request.path) });
                Effect::OperationEnds { status, error }
            }
            48..56 if request.method != "PUT" && self.missed.insert(path) => {
                refusal(404, MISSING, &request.path)
            }
            _ => return None,
        })
    }
}

fn refusal(status: u16, code: &str, path: &str) -> Effect {
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
        _ => format!("{code}, answers Azure."),
    }
}

/// JSON, and not of the requested kind.
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

    /// How many NICs there are. Each is either read or written.
    const NICS: usize = 14;

    fn path(index: usize) -> String {
        format!("/subscriptions/s/resourceGroups/g/providers/P/networkInterfaces/n{}", index % NICS)
    }

    fn further() -> Vec<Code> {
        vec![(Some(429), "OfOneStatus".to_owned()), (None, "OfAny".to_owned()), (None, ABSENT.to_owned())]
    }

    fn drawn(seed: u64, count: usize) -> Vec<Value> {
        let mut hostile = Hostile::of(seed, further());
        let request = |index: usize| Request {
            method: if index.is_multiple_of(2) { "GET" } else { "PUT" }.into(),
            path: path(index),
            query: String::new(),
            headers: BTreeMap::new(),
            body: Ok(None),
            from: std::net::Ipv4Addr::LOCALHOST.into(),
        };
        (0..count).map(|index| json!(hostile.draw(&request(index)))).collect()
    }

    #[test]
    fn a_seed_draws_the_same_again_and_another_seed_does_not() {
        assert_eq!(drawn(1, 500), drawn(1, 500));
        assert_ne!(drawn(1, 500), drawn(2, 500));
    }

    #[test]
    fn every_kind_of_answer_is_drawn() {
        let all = drawn(1, 20_000);
        for (status, code) in Hostile::of(1, further()).codes {
            for status in status.map_or(REFUSING.to_vec(), |status| vec![status]) {
                let is_drawn = (0..NICS).any(|nic| all.contains(&json!(refusal(status, &code, &path(nic)))));
                assert!(is_drawn, "{status} {code}");
            }
        }
        let missing = json!(refusal(404, MISSING, ""));
        let missed = all.iter().filter(|effect| **effect == missing).count();
        assert_eq!(missed, NICS / 2, "each NIC that is read is missed once");
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
