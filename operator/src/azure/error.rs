//! What can go wrong with Azure as facts of our domain, and the one place that says what to do about each.

use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::Value;

use super::{nic, route_table};

/// Why a call of [`super::Azure`] failed. `Display` names the resource, the cause and the remedy for whoever
/// runs the cluster: it is meant for conditions and Events.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "Azure throttles calls about {resource} ({message}). Vnetpool goes on in {}; if this lasts, find out who else \
         uses up the subscription's request limits.",
        seconds(*retry_after)
    )]
    Throttled {
        resource: String,
        message: String,
        retry_after: Duration,
        /// Whether a limit of the resource provider's (network, compute) is used up, rather than ARM's own.
        by_provider: bool,
    },
    #[error(
        "subnet {subnet} has no free address for {resource}. Free addresses in it, lower minimum, warm or maximum of the \
         NodeIPPool, or give new nodes another subnet. Azure says: {message}"
    )]
    SubnetFull { subnet: String, resource: String, message: String },
    #[error(
        "an address asked for {resource} belongs to somebody else by now; Vnetpool reads again. Azure says: {message}"
    )]
    AddressTaken { resource: String, message: String },
    #[error(
        "Azure doesn't let the operator's identity do {action} on {scope}. Grant its role that action there (a new role \
         assignment takes minutes to work). Azure says: {message}"
    )]
    Denied { action: String, scope: String, message: String },
    #[error(
        "a deny assignment ({name}) forbids {action} on {resource}, whatever roles grant. On AKS that is the lockdown of the node \
         resource group: `az aks update --nrg-lockdown-restriction-level Unrestricted` lifts it, but not on AKS Automatic, \
         where Vnetpool can't work. Elsewhere ask whoever made it. Azure says: {message}"
    )]
    DenyAssignment { action: String, resource: String, name: String, message: String },
    #[error("a lock forbids writing {resource}. Remove the lock on {scope}. Azure says: {message}")]
    Locked { resource: String, scope: String, message: String },
    #[error(
        "a quota is used up by writing {resource}. Have it raised, or lower the NodeIPPool's sizing. Azure says: {message}"
    )]
    QuotaExceeded { resource: String, message: String },
    #[error(
        "an Azure Policy forbids writing {resource}. Exempt it, or change the policy. Azure says: {message}"
    )]
    PolicyForbidden { resource: String, message: String },
    #[error("{resource} has been changed by somebody else since it was read; Vnetpool reads it again")]
    Stale { resource: String },
    #[error(
        "another write to {resource} took the place of Vnetpool's; Vnetpool reads it again. If this lasts, find out what \
         else writes to it. Azure says: {message}"
    )]
    Superseded { resource: String, message: String },
    #[error(
        "{resource} is busy with another operation; Vnetpool goes on in {}. Azure says: {message}",
        seconds(*retry_after)
    )]
    Busy { resource: String, message: String, retry_after: Duration },
    #[error(
        "{resource} doesn't exist in Azure, or the operator's identity may not see it. Delete the Node if its VM is gone, or grant \
         the identity's role read access there. Azure says: {message}"
    )]
    NotFound { resource: String, message: String },
    #[error("Azure didn't answer about {resource} ({message}); nothing was changed, Vnetpool goes on in {}", seconds(*retry_after))]
    Unavailable { resource: String, message: String, retry_after: Duration },
    #[error(
        "a write to {resource} was sent, but its outcome isn't known ({message}); Vnetpool reads it again"
    )]
    OutcomeUnknown { resource: String, message: String },
    #[error(
        "Azure took a write to {resource} and then gave it up with {code}; Vnetpool reads it and writes it again, ever less \
         often. If this lasts, ask Azure's support about that operation. Azure says: {message}"
    )]
    Failed { resource: String, code: String, message: String },
    #[error("Azure can't attach this to an address of {resource}. {remedy} Azure says: {message}")]
    Unattachable { resource: String, remedy: &'static str, message: String },
    #[error(
        "what was about to be asked of {resource} waited for Azure's request limits, and pods that came meanwhile need more; \
         nothing was sent, Vnetpool plans anew"
    )]
    Outgrown { resource: String },
    #[error("the operator can't sign in to Azure: {message}")]
    Credential { message: String },
    #[error("providerID {provider_id:?}: {cause}; {remedy}")]
    ProviderId { provider_id: String, cause: &'static str, remedy: &'static str },
    #[error(
        "{text:?} isn't the id of an Azure resource; expected /subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME"
    )]
    ResourceId { text: String },
    #[error("{resource}: {source}")]
    Nic { resource: String, source: nic::Error },
    #[error("route table {table}: {source}")]
    Routes { table: String, source: route_table::Refusal },
    #[error("Azure's answer about {resource} makes no sense: {message}")]
    Unexpected { resource: String, message: String },
    #[error(
        "Azure refused a call about {resource} with HTTP {status}, {code}. Change what it objects to; Vnetpool tries again, ever \
         less often, and at once when the NodeIPPool is edited. Azure says: {message}"
    )]
    Arm { resource: String, status: u16, code: String, message: String },
    #[error(
        "dry run: {resource} would be written now; nothing was sent to Azure. Start the operator without --dry-run to have it \
         done"
    )]
    DryRun { resource: String },
    #[error("the operator's Azure configuration can't be used: {message}")]
    Config { message: String },
}

/// What to do about an [`Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The same again, not earlier than this from now.
    RetryAfter(Duration),
    /// Nothing helps until somebody changes something: say so in a condition and an Event, look again after
    /// `retry`.
    WaitForChange { reason: &'static str, retry: Duration },
    /// A race was lost, or the outcome isn't known: read the NIC and plan anew at once. What was known of it
    /// is dropped.
    ReadAgain,
}

/// How long to wait where Azure doesn't say.
const THROTTLED: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_secs(15);
const UNAVAILABLE: Duration = Duration::from_secs(10);
const FAILED: Duration = Duration::from_secs(5);
/// A full subnet may empty by our own give-backs, the rest needs a person, and role assignments take minutes
/// to work.
const FULL: Duration = Duration::from_secs(60);
const PERSON: Duration = Duration::from_secs(120);
const SIGN_IN: Duration = Duration::from_secs(15);
/// No `Retry-After` longer than this is believed; Azure's longest window is an hour.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

impl Error {
    /// An answer about this resource that can't be used, and why.
    pub(super) fn unexpected(resource: impl ToString, message: impl ToString) -> Error {
        Error::Unexpected { resource: resource.to_string(), message: message.to_string() }
    }

    pub fn remedy(&self) -> Remedy {
        let wait = |retry| Remedy::WaitForChange { reason: self.reason(), retry };
        match self {
            Error::Throttled { retry_after, .. }
            | Error::Busy { retry_after, .. }
            | Error::Unavailable { retry_after, .. } => Remedy::RetryAfter(*retry_after),
            Error::Failed { .. } => Remedy::RetryAfter(FAILED),
            Error::Stale { .. }
            | Error::Superseded { .. }
            | Error::AddressTaken { .. }
            | Error::Outgrown { .. }
            | Error::OutcomeUnknown { .. } => Remedy::ReadAgain,
            Error::SubnetFull { .. } => wait(FULL),
            Error::Credential { .. } => wait(SIGN_IN),
            Error::Denied { .. }
            | Error::DenyAssignment { .. }
            | Error::Locked { .. }
            | Error::QuotaExceeded { .. }
            | Error::PolicyForbidden { .. }
            | Error::NotFound { .. }
            | Error::Unattachable { .. }
            | Error::ProviderId { .. }
            | Error::ResourceId { .. }
            | Error::Nic { .. }
            | Error::Routes { .. }
            | Error::Unexpected { .. }
            | Error::Arm { .. }
            | Error::DryRun { .. }
            | Error::Config { .. } => wait(PERSON),
        }
    }

    /// The reason of conditions and Events, and the metric's label: one of a fixed few.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Throttled { .. } => "Throttled",
            Error::SubnetFull { .. } => "SubnetFull",
            Error::AddressTaken { .. } => "AddressTaken",
            Error::Denied { .. } => "PermissionDenied",
            Error::DenyAssignment { .. } => "DenyAssignment",
            Error::Locked { .. } => "ResourceLocked",
            Error::QuotaExceeded { .. } => "QuotaExceeded",
            Error::PolicyForbidden { .. } => "PolicyForbidden",
            Error::Stale { .. } => "Stale",
            Error::Superseded { .. } => "Superseded",
            Error::Busy { .. } => "ResourceBusy",
            Error::NotFound { .. } => "ResourceNotFound",
            Error::Unavailable { .. } => "AzureUnavailable",
            Error::OutcomeUnknown { .. } => "OutcomeUnknown",
            Error::Outgrown { .. } => "Outgrown",
            Error::Failed { .. } => "OperationFailed",
            Error::Unattachable { .. } => "NotAttachable",
            Error::Credential { .. } => "CredentialRefused",
            Error::ProviderId { .. } => "ProviderIDUnusable",
            Error::ResourceId { .. } => "ResourceIDMalformed",
            Error::Nic { .. } | Error::Unexpected { .. } => "UnexpectedAnswer",
            Error::Routes { source, .. } => source.reason(),
            Error::Arm { .. } => "AzureRefused",
            Error::DryRun { .. } => "DryRun",
            Error::Config { .. } => "ConfigurationUnusable",
        }
    }

    /// Which of the addresses asked for belong to somebody else: those that Azure names, or all if it names none.
    pub fn taken(&self, asked: &[Ipv4Net]) -> Vec<Ipv4Net> {
        let Error::AddressTaken { message, .. } = self else { return vec![] };
        let words = || message.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '/'));
        let named = |one: &&Ipv4Net| {
            words().any(|word| {
                word.parse() == Ok(**one) || word.parse() == Ok(one.addr()) && one.prefix_len() == 32
            })
        };
        let named: Vec<Ipv4Net> = asked.iter().filter(named).copied().collect();
        if named.is_empty() { asked.to_vec() } else { named }
    }

    /// Whether a NIC is certainly as it was before the write that was answered with this.
    pub(super) fn left_all_as_it_was(&self) -> bool {
        match self {
            Error::Throttled { .. }
            | Error::SubnetFull { .. }
            | Error::AddressTaken { .. }
            | Error::Denied { .. }
            | Error::DenyAssignment { .. }
            | Error::Locked { .. }
            | Error::QuotaExceeded { .. }
            | Error::PolicyForbidden { .. }
            | Error::Busy { .. }
            | Error::Unavailable { .. }
            | Error::Unattachable { .. }
            | Error::Outgrown { .. }
            | Error::Credential { .. }
            | Error::ProviderId { .. }
            | Error::ResourceId { .. }
            | Error::Nic { .. }
            | Error::Routes { .. }
            | Error::DryRun { .. }
            | Error::Config { .. } => true,
            Error::Arm { status, .. } => (400..500).contains(status),
            Error::Stale { .. }
            | Error::Superseded { .. }
            | Error::NotFound { .. }
            | Error::OutcomeUnknown { .. }
            | Error::Failed { .. }
            | Error::Unexpected { .. } => false,
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64().ceil())
}

/// ARM's error object; `details` carry the code that matters more often than the outermost does.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ArmError {
    #[serde(deserialize_with = "or_default")]
    code: String,
    #[serde(deserialize_with = "or_default")]
    message: String,
    /// What of the request it is about.
    #[serde(deserialize_with = "or_default")]
    target: String,
    #[serde(deserialize_with = "or_default")]
    details: Vec<ArmError>,
}

/// ARM sends `null` where it has nothing to say.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl ArmError {
    /// One of which nothing but the code is known.
    pub(super) fn bare(code: &str) -> ArmError {
        ArmError { code: code.to_owned(), ..ArmError::default() }
    }

    /// Of a body such as `{"error": {…}}`, or one that is the error object itself, or no JSON at all.
    pub(super) fn of_body(body: &[u8]) -> ArmError {
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            return ArmError { message: text, ..ArmError::default() };
        };
        ArmError::of(body.get("error").unwrap_or(&body))
    }

    pub(super) fn of(error: &Value) -> ArmError {
        ArmError::deserialize(error)
            .unwrap_or_else(|_| ArmError { message: error.to_string(), ..ArmError::default() })
    }

    /// The error and its details, outermost first.
    fn all(&self) -> Vec<&ArmError> {
        let mut all = vec![self];
        all.extend(self.details.iter().flat_map(|detail| detail.all()));
        all
    }

    fn has(&self, codes: &[&str]) -> bool {
        self.find(codes).is_some()
    }

    fn find(&self, codes: &[&str]) -> Option<&ArmError> {
        self.all().into_iter().find(|error| codes.iter().any(|code| error.code.eq_ignore_ascii_case(code)))
    }

    /// Every message there is, in words only: NRP puts the telling one into the details.
    fn words(&self) -> String {
        let mut words: Vec<&str> = self
            .all()
            .iter()
            .map(|error| error.message.trim())
            .filter(|message| !message.is_empty())
            .collect();
        words.dedup();
        if words.is_empty() { "no message".to_owned() } else { words.join(" ") }
    }
}

/// Whether a call could have changed anything, for outcomes that can't be told from the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Write,
}

/// Turns a refusal into our error. `status` is the HTTP status, or `None` for an operation that ended badly;
/// `resource` is what the call was about; `retry_after` is the header of that name. The codes are
/// those of recorded traffic, Microsoft's documentation and public issues.
pub(super) fn classify(
    status: Option<u16>,
    error: &ArmError,
    retry_after: Option<Duration>,
    resource: &str,
    effect: Effect,
) -> Error {
    let message = error.words();
    let resource = resource.to_owned();
    let retry = |default| {
        retry_after
            .or_else(|| seconds_in(&message))
            .unwrap_or(default)
            .clamp(Duration::from_secs(1), LONGEST_WAIT)
    };
    if let Some(full) = error.find(&["SubnetIsFull"]) {
        return Error::SubnetFull { subnet: subnet_in(&full.message), resource, message };
    }
    if error.has(&["PrivateIPAddressIsAllocated"]) {
        return Error::AddressTaken { resource, message };
    }
    if error.has(&["CanceledAndSupersededDueToAnotherOperation", "OperationPreempted"]) {
        return Error::Superseded { resource, message };
    }
    if error.has(&["ScopeLocked"]) {
        let scope = quoted(&message).last().unwrap_or_else(|| resource.clone());
        return Error::Locked { resource, scope, message };
    }
    if error.has(&["RequestDisallowedByPolicy"]) {
        return Error::PolicyForbidden { resource, message };
    }
    if let Some((_, remedy)) = UNATTACHABLE.iter().find(|(code, _)| error.has(&[code])) {
        return Error::Unattachable { resource, remedy, message };
    }
    // Reported under either code; the words are the same.
    if let Some((_, by)) = message.split_once("because of the deny assignment") {
        let name = between(by, "with name '", "' and Id").unwrap_or("without a name").to_owned();
        let action = between(&message, "to perform action '", "'").unwrap_or("what it tried").to_owned();
        return Error::DenyAssignment { action, resource, name, message };
    }
    if error.has(&["AuthorizationFailed", "LinkedAuthorizationFailed", "DenyAssignmentAuthorizationFailed"]) {
        let (action, scope) = denied_in(&message).unwrap_or(("what it tried".to_owned(), resource));
        return Error::Denied { action, scope, message };
    }
    if error.all().iter().any(|error| {
        ["QuotaExceeded", "LimitReached", "LimitExceeded"].iter().any(|tail| error.code.ends_with(tail))
    }) {
        return Error::QuotaExceeded { resource, message };
    }
    if message.contains("marked for deletion") {
        return Error::Busy { resource, retry_after: retry(BUSY), message };
    }
    // Of a scale set, an instance that isn't there any more is a parameter out of range.
    if error.find(&["InvalidParameter"]).is_some_and(|wrong| wrong.target.eq_ignore_ascii_case("instanceId"))
    {
        return Error::NotFound { resource, message };
    }
    match status {
        Some(401) => Error::Credential { message: format!("ARM refused its token: {message}") },
        Some(404) => Error::NotFound { resource, message },
        Some(412) => Error::Stale { resource },
        Some(409) => Error::Busy { resource, retry_after: retry(BUSY), message },
        Some(429)
            if error.has(&["RetryableErrorDueToAnotherOperation", "ReferencedResourceNotProvisioned"]) =>
        {
            Error::Busy { resource, retry_after: retry(BUSY), message }
        }
        Some(429) => Error::Throttled {
            resource,
            retry_after: retry(THROTTLED),
            message,
            // Compute's throttling goes by the code of anything it doesn't allow.
            by_provider: error
                .has(&["RetryableErrorDueToTooManyCallsToThisOperation", "OperationNotAllowed"]),
        },
        Some(408 | 500..) if effect == Effect::Write => Error::OutcomeUnknown { resource, message },
        Some(408 | 500..) => Error::Unavailable { resource, retry_after: retry(UNAVAILABLE), message },
        Some(status) => Error::Arm { resource, status, code: error.code.clone(), message },
        None if error.has(&["Canceled"]) => Error::Superseded { resource, message },
        None => Error::Failed { resource, code: error.code.clone(), message },
    }
}

/// What Azure doesn't attach to a secondary ipConfiguration, by its code, and the remedy. The first is of terraform-provider-azurerm
/// issue 9084; the others are Azure's common codes, and those that no source names fall under [`Error::Arm`].
const UNATTACHABLE: &[(&str, &str)] = &[
    (
        "OutboundRuleCannotBeUsedWithBackendAddressPoolThatIsReferencedBySecondaryIpConfigs",
        "The backend pool has an outbound rule, which takes primary addresses only: give the pods a backend pool without one.",
    ),
    (
        "DnsRecordInUse",
        "Another public address in this region has that name: choose another vnetpool.io/dns-label.",
    ),
    ("PublicIPAddressInUse", "Something else uses the public address: detach it there."),
    (
        "PublicIPCountLimitReached",
        "The subscription's public addresses are used up in this region: have the quota raised, or let fewer pods ask for one.",
    ),
    (
        "InvalidResourceReference",
        "What is referred to doesn't exist: correct the id in the NodeIPPool's attachments or applicationSecurityGroups, or make it in Azure.",
    ),
];

/// What stands between the first `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inner, _)| inner)
}

/// What stands between single quotes, in order.
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

#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;
