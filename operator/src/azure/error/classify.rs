//! From Azure's answer to our error: by its code and, where the code isn't specific, by its words.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use tracing::info;

use super::codes::{self, Class};
use super::{ArmError, BUSY, Error, Scope, steady};

/// How long to wait where Azure names no time.
pub(super) const THROTTLED: Duration = Duration::from_secs(30);
pub(super) const UNAVAILABLE: Duration = Duration::from_secs(10);
/// No `Retry-After` longer than this is believed; Azure's longest window is an hour.
pub(in crate::azure) const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Whether a call could have changed anything, for outcomes that the answer leaves open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Write,
}

/// Turns a refusal into our error. `status` is the HTTP status, or `None` for an operation that ended badly;
/// `resource` is the id of the resource that the call was about; `retry_after` is the header of that name.
/// What a code means stands in the table of [`codes`].
pub fn classify(
    status: Option<u16>,
    error: &ArmError,
    retry_after: Option<Duration>,
    resource: &str,
    effect: Effect,
) -> Error {
    let words = error.words();
    let (message, resource) = (steady(&words), resource.to_owned());
    if message != words {
        info!(resource, words, "what Azure's support may ask for");
    }
    let code = || error.specific_code().to_owned();
    // "0 seconds" is no time to wait.
    let stated = retry_after.or_else(|| seconds_in(&words)).filter(|wait| !wait.is_zero());
    let retry = |default: Duration| stated.unwrap_or(default).min(LONGEST_WAIT);
    if let Some(denied) = deny_assignment(&message, &resource) {
        return denied;
    }
    if message.contains("marked for deletion") {
        return Error::Busy { resource, retry_after: retry(BUSY), message };
    }
    // Of a scale set, an instance that isn't there any more is a parameter out of range.
    if error.find(&["InvalidParameter"]).is_some_and(|wrong| wrong.target.eq_ignore_ascii_case("instanceId"))
    {
        return Error::NotFound { resource, message };
    }
    let (class, matched) = codes::class(status, error);
    match class {
        Class::SubnetFull => {
            let subnet = matched.map(|full| subnet_in(&steady(&full.message))).unwrap_or_default();
            Error::SubnetFull { subnet, resource, message }
        }
        Class::NetworkFull => Error::NetworkFull { resource, message },
        Class::VersionUnknown => Error::Config {
            message: format!(
                "Azure doesn't know the API version in which it was asked about {resource}. Set azure.networkAPIVersion or \
                 azure.computeAPIVersion of the chart (--network-api-version, --compute-api-version) to one that it names. \
                 Azure answered: {message}"
            ),
        },
        Class::AddressTaken => Error::AddressTaken { resource, message },
        Class::AddressBeingFreed => Error::AddressBeingFreed { resource, message },
        Class::Superseded => Error::Superseded { resource, message },
        Class::Locked => {
            let scope = quoted(&message).last().unwrap_or_else(|| resource.clone());
            Error::Locked { resource, scope, message }
        }
        Class::PolicyForbidden => {
            let assignment = matched.and_then(assignment_in);
            Error::PolicyForbidden { resource, assignment, message }
        }
        Class::Unattachable(remedy) => Error::Unattachable { resource, remedy, message },
        Class::InUse => Error::InUse { resource, message },
        Class::PublicAddressesUsedUp => Error::PublicAddressesUsedUp { resource, message },
        Class::Denied => {
            let (action, scope) = denied_in(&message).unwrap_or(("what it tried".to_owned(), resource));
            Error::Denied { action, scope, message }
        }
        Class::SubscriptionUnusable(remedy) => Error::SubscriptionUnusable { resource, remedy, message },
        Class::QuotaExceeded => Error::QuotaExceeded { resource, message },
        Class::Busy => Error::Busy { resource, retry_after: retry(BUSY), message },
        Class::Conflict => Error::Conflict { resource, code: code(), message },
        Class::NotFound => Error::NotFound { resource, message },
        Class::GroupMissing => Error::ScopeMissing { resource, scope: Scope::Group, message },
        Class::SubscriptionMissing => Error::ScopeMissing { resource, scope: Scope::Subscription, message },
        Class::Throttled(limit) => {
            Error::Throttled { resource, retry_after: retry(THROTTLED), message, limit }
        }
        Class::TokenRefused => Error::Credential { message: format!("ARM refused its token: {message}") },
        Class::Stale => Error::Stale { resource },
        Class::Unanswered if effect == Effect::Write => Error::OutcomeUnknown { resource, message },
        Class::Unanswered => Error::Unavailable { resource, retry_after: retry(UNAVAILABLE), message },
        Class::Refused => Error::Arm { resource, status: status.unwrap_or_default(), code: code(), message },
        Class::OperationFailed => Error::Failed { resource, code: code(), message },
    }
}

/// Azure reports a deny assignment under the codes of a missing permission, too. The words are the same.
fn deny_assignment(message: &str, resource: &str) -> Option<Error> {
    let (_, by) = message.split_once("because of the deny assignment")?;
    let name = between(by, "with name '", "' and Id").unwrap_or("without a name").to_owned();
    let action = between(message, "to perform action '", "'").unwrap_or("what it tried").to_owned();
    Some(Error::DenyAssignment { action, resource: resource.to_owned(), name, message: message.to_owned() })
}

/// The id of the policy assignment that refuses a request. Azure's words quote it, unless the assignment has
/// words of its own.
fn assignment_in(refusal: &ArmError) -> Option<String> {
    let names_it = |text: &&str| text.to_ascii_lowercase().contains("/policyassignments/");
    let in_words = || refusal.message.split('"').find(names_it);
    refusal.assignment.as_deref().or_else(in_words).map(str::to_owned)
}

/// The addresses or blocks that a message names, directly or by an address in them.
pub fn named_in(message: &str, asked: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let words = || message.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '/'));
    let is_named = |one: &&Ipv4Net| {
        words().map(|word| word.trim_end_matches('.')).any(|word| {
            word.parse() == Ok(**one) || word.parse::<Ipv4Addr>().is_ok_and(|address| one.contains(&address))
        })
    };
    asked.iter().filter(is_named).copied().collect()
}

/// The text between the first `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inner, _)| inner)
}

/// The texts between single quotes, in order.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('\'').skip(1).step_by(2).map(str::to_owned)
}

/// The action and the scope that a 403 names after "does not have": the first quoted texts there. The linked
/// kind names the action that is granted before that.
fn denied_in(message: &str) -> Option<(String, String)> {
    let (_, lacks) = message.split_once("does not have")?;
    let mut names = quoted(lacks);
    Some((names.next()?, names.next()?))
}

/// "Subnet S with address prefix P does not have enough capacity for N IP addresses."
fn subnet_in(message: &str) -> String {
    let text = message.strip_prefix("Subnet ").unwrap_or(message);
    match text.split_once(" with address prefix ") {
        Some((name, rest)) => {
            let prefix = rest.split_once(" does not have").map_or(rest, |(prefix, _)| prefix);
            format!("{name} ({prefix})")
        }
        None => text.to_owned(),
    }
}

/// The wait is sometimes in words only: "The call can be retried in 14 seconds.", "try again after '5'
/// seconds".
fn seconds_in(message: &str) -> Option<Duration> {
    let (before, _) = message.split_once(" seconds")?;
    before.rsplit(' ').next()?.trim_matches('\'').parse().ok().map(Duration::from_secs)
}
