//! What can go wrong with Azure as facts of our domain, and the one place that says what to do about each.

mod arm_error;
mod codes;

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::{nic, route_table};
use crate::resource_id::Malformed;
pub(super) use arm_error::ArmError;
use codes::Class;
pub use codes::Limit;
use vnetpool_crds::reason::Reason;

/// Why a call of [`super::Azure`] failed. `Display` names the resource, the cause and the remedy for whoever
/// runs the cluster: it is meant for conditions and Events.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "Azure throttles calls about {resource} ({message}). Vnetpool goes on in {}; if this lasts, find out who else \
         uses up the subscription's request limits.",
        seconds(*retry_after)
    )]
    Throttled { resource: String, message: String, retry_after: Duration, limit: Limit },
    #[error(
        "subnet {subnet} has no free address for {resource}. Free addresses in it, lower minimum, warm or maximum of the \
         NodeIPPool, or give new nodes another subnet. Azure says: {message}"
    )]
    SubnetFull { subnet: String, resource: String, message: String },
    #[error(
        "the virtual network of {resource} has as many private addresses as Azure lets it have. Use mode Prefix, where a block \
         of 16 counts once, lower minimum, warm or maximum of the NodeIPPool, or give new nodes another virtual network. Azure \
         says: {message}"
    )]
    NetworkFull { resource: String, message: String },
    #[error(
        "an address asked for {resource} belongs to somebody else by now; Vnetpool reads again. Azure says: {message}"
    )]
    AddressTaken { resource: String, message: String },
    #[error(
        "an address asked for {resource} is being freed by Azure and can't be had yet; Vnetpool goes on without it and asks \
         again in seconds. Azure says: {message}"
    )]
    AddressBeingFreed { resource: String, message: String },
    #[error("the subscription of {resource} can't be used. {remedy} Azure says: {message}")]
    SubscriptionUnusable { resource: String, remedy: &'static str, message: String },
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
    #[error(
        "Azure doesn't know the {scope} of {resource}. That may pass, so everything is kept as it is. If the {scope} is \
         gone for good, say so with the annotation {}=true on the NodeIPAllocation. Azure says: {message}",
        vnetpool_crds::names::GONE
    )]
    ScopeMissing { resource: String, scope: Scope, message: String },
    #[error(
        "Azure refuses a call about {resource} because of a conflict ({code}); Vnetpool tries again, ever less often. If this \
         lasts, change what it objects to. Azure says: {message}"
    )]
    Conflict { resource: String, code: String, message: String },
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
        "what was about to be asked of {resource} waited for Azure's request limits, and meanwhile pods came that need more, or \
         the API server didn't confirm the write; nothing was sent, Vnetpool plans anew"
    )]
    Outgrown { resource: String },
    #[error("the operator can't sign in to Azure: {message}")]
    Credential { message: String },
    #[error("providerID {provider_id:?}: {cause}; {remedy}")]
    ProviderId { provider_id: String, cause: &'static str, remedy: &'static str },
    #[error(transparent)]
    ResourceId(#[from] Malformed),
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

/// What a resource is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Group,
    Subscription,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Scope::Group => "resource group",
            Scope::Subscription => "subscription",
        })
    }
}

/// What is refused, and to everything in which scope: two errors of the same matter are one refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matter {
    reason: Reason,
    /// What of it, where the reason alone doesn't say.
    what: String,
    /// An id in lower case.
    scope: String,
    /// One refusal says that everything in the scope is refused. Otherwise it may concern one resource only.
    pub is_wide: bool,
}

impl Matter {
    /// `None`: that isn't the id of anything in which a node could be.
    fn of(reason: Reason, what: &str, scope: &str) -> Option<Matter> {
        let scope = scope.trim_end_matches('/').to_ascii_lowercase();
        if !scope.starts_with("/subscriptions/") {
            return None;
        }
        let is_network = scope.contains("/providers/microsoft.network/virtualnetworks/");
        let is_wide = is_network || !scope.contains("/providers/");
        // What a refusal names is mostly the resource itself, wherever the right to it, or the lock on it, is
        // missing or set.
        let scope = if is_wide { scope } else { group(&scope) };
        Some(Matter { reason, what: what.to_ascii_lowercase(), scope, is_wide })
    }

    /// Whether one of these, ids in lower case, is in the scope.
    pub fn is_around(&self, sites: &[String]) -> bool {
        let rest = |site: &String| {
            site.strip_prefix(self.scope.as_str()).map(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        sites.iter().any(|site| rest(site) == Some(true))
    }
}

/// The id of the resource group of a resource.
fn group(id: &str) -> String {
    id.split_once("/providers/").map_or(id, |(group, _)| group).to_ascii_lowercase()
}

/// The id of the subscription of a resource.
fn subscription(id: &str) -> String {
    id.split('/').take(3).collect::<Vec<_>>().join("/").to_ascii_lowercase()
}

/// What to do about an [`Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The same again, not earlier than this from now.
    RetryAfter(Duration),
    /// Nothing helps until somebody changes something: say so in a condition and an Event, look again after
    /// `retry`.
    WaitForChange { reason: Reason, retry: Duration },
    /// A race was lost, or the outcome isn't known: read the NIC and plan anew at once. What was known of it
    /// is dropped.
    ReadAgain,
}

/// How long to wait where Azure doesn't say.
const THROTTLED: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_secs(15);
const UNAVAILABLE: Duration = Duration::from_secs(10);
const FAILED: Duration = Duration::from_secs(5);
const BEING_FREED: Duration = Duration::from_secs(5);
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
            Error::AddressBeingFreed { .. } => Remedy::RetryAfter(BEING_FREED),
            Error::Conflict { .. } => Remedy::RetryAfter(BUSY),
            Error::Stale { .. }
            | Error::Superseded { .. }
            | Error::AddressTaken { .. }
            | Error::Outgrown { .. }
            | Error::OutcomeUnknown { .. } => Remedy::ReadAgain,
            Error::SubnetFull { .. } | Error::NetworkFull { .. } => wait(FULL),
            Error::Credential { .. } => wait(SIGN_IN),
            Error::Denied { .. }
            | Error::DenyAssignment { .. }
            | Error::Locked { .. }
            | Error::QuotaExceeded { .. }
            | Error::PolicyForbidden { .. }
            | Error::SubscriptionUnusable { .. }
            | Error::NotFound { .. }
            | Error::ScopeMissing { .. }
            | Error::Unattachable { .. }
            | Error::ProviderId { .. }
            | Error::ResourceId(_)
            | Error::Nic { .. }
            | Error::Routes { .. }
            | Error::Unexpected { .. }
            | Error::Arm { .. }
            | Error::DryRun { .. }
            | Error::Config { .. } => wait(PERSON),
        }
    }

    /// The reason of conditions and Events, and the metric's label: one of a fixed few.
    pub fn reason(&self) -> Reason {
        match self {
            Error::Throttled { .. } => Reason::Throttled,
            Error::SubnetFull { .. } => Reason::SubnetFull,
            Error::NetworkFull { .. } => Reason::VirtualNetworkFull,
            Error::AddressTaken { .. } => Reason::AddressTaken,
            Error::AddressBeingFreed { .. } => Reason::AddressBeingFreed,
            Error::SubscriptionUnusable { .. } => Reason::SubscriptionUnusable,
            Error::ScopeMissing { .. } => Reason::ScopeMissing,
            Error::Conflict { .. } => Reason::ResourceConflict,
            Error::Denied { .. } => Reason::PermissionDenied,
            Error::DenyAssignment { .. } => Reason::DenyAssignment,
            Error::Locked { .. } => Reason::ResourceLocked,
            Error::QuotaExceeded { .. } => Reason::QuotaExceeded,
            Error::PolicyForbidden { .. } => Reason::PolicyForbidden,
            Error::Stale { .. } => Reason::Stale,
            Error::Superseded { .. } => Reason::Superseded,
            Error::Busy { .. } => Reason::ResourceBusy,
            Error::NotFound { .. } => Reason::ResourceNotFound,
            Error::Unavailable { .. } => Reason::AzureUnavailable,
            Error::OutcomeUnknown { .. } => Reason::OutcomeUnknown,
            Error::Outgrown { .. } => Reason::Outgrown,
            Error::Failed { .. } => Reason::OperationFailed,
            Error::Unattachable { .. } => Reason::NotAttachable,
            Error::Credential { .. } => Reason::CredentialRefused,
            Error::ProviderId { .. } => Reason::ProviderIDUnusable,
            Error::ResourceId(_) => Reason::ResourceIDMalformed,
            Error::Nic { .. } | Error::Unexpected { .. } => Reason::UnexpectedAnswer,
            Error::Routes { source, .. } => source.reason(),
            Error::Arm { .. } => Reason::AzureRefused,
            Error::DryRun { .. } => Reason::DryRun,
            Error::Config { .. } => Reason::ConfigurationUnusable,
        }
    }

    /// What this error says of other resources than its own; `None`: nothing.
    pub fn matter(&self) -> Option<Matter> {
        let reason = self.reason();
        match self {
            Error::Denied { action, scope, .. } => Matter::of(reason, action, scope),
            Error::DenyAssignment { action, resource, .. } => Matter::of(reason, action, resource),
            Error::Locked { scope, .. } => Matter::of(reason, "", scope),
            Error::SubscriptionUnusable { resource, .. }
            | Error::ScopeMissing { resource, scope: Scope::Subscription, .. } => {
                Matter::of(reason, "", &subscription(resource))
            }
            Error::ScopeMissing { resource, scope: Scope::Group, .. } => {
                Matter::of(reason, "", &group(resource))
            }
            _ => None,
        }
    }

    /// The same of another resource, which would meet it, too.
    pub fn about(mut self, other: &str) -> Error {
        if let Error::DenyAssignment { resource, .. }
        | Error::Locked { resource, .. }
        | Error::SubscriptionUnusable { resource, .. }
        | Error::ScopeMissing { resource, .. } = &mut self
        {
            other.clone_into(resource);
        }
        self
    }

    /// Which of the addresses or blocks asked for belong to somebody else: those that Azure names, or all if
    /// it names none. A block that Azure knows by an address in it counts as named.
    pub fn taken(&self, asked: &[Ipv4Net]) -> Vec<Ipv4Net> {
        let Error::AddressTaken { message, .. } = self else { return vec![] };
        named_in(message, asked)
    }

    /// Which of the addresses or blocks asked for can't be had for a while, likewise.
    pub fn being_freed(&self, asked: &[Ipv4Net]) -> Vec<Ipv4Net> {
        let Error::AddressBeingFreed { message, .. } = self else { return vec![] };
        named_in(message, asked)
    }

    /// Whether a NIC is certainly as it was before the write that was answered with this.
    pub(super) fn left_all_as_it_was(&self) -> bool {
        match self {
            Error::Throttled { .. }
            | Error::SubnetFull { .. }
            | Error::NetworkFull { .. }
            | Error::AddressTaken { .. }
            | Error::AddressBeingFreed { .. }
            | Error::Denied { .. }
            | Error::DenyAssignment { .. }
            | Error::Locked { .. }
            | Error::QuotaExceeded { .. }
            | Error::PolicyForbidden { .. }
            | Error::SubscriptionUnusable { .. }
            | Error::Conflict { .. }
            | Error::Busy { .. }
            | Error::Unavailable { .. }
            | Error::Unattachable { .. }
            | Error::Outgrown { .. }
            | Error::Credential { .. }
            | Error::ProviderId { .. }
            | Error::ResourceId(_)
            | Error::Nic { .. }
            | Error::Routes { .. }
            | Error::DryRun { .. }
            | Error::Config { .. } => true,
            Error::Arm { status, .. } => (400..500).contains(status),
            Error::Stale { .. }
            | Error::Superseded { .. }
            | Error::NotFound { .. }
            | Error::ScopeMissing { .. }
            | Error::OutcomeUnknown { .. }
            | Error::Failed { .. }
            | Error::Unexpected { .. } => false,
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64().ceil())
}

/// Whether a call could have changed anything, for outcomes that can't be told from the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Write,
}

/// Turns a refusal into our error. `status` is the HTTP status, or `None` for an operation that ended badly;
/// `resource` is the id of the resource that the call was about; `retry_after` is the header of that name.
/// What a code means stands in the table of [`codes`].
pub(super) fn classify(
    status: Option<u16>,
    error: &ArmError,
    retry_after: Option<Duration>,
    resource: &str,
    effect: Effect,
) -> Error {
    let message = error.words();
    let resource = resource.to_owned();
    // "0 seconds" is no time to wait.
    let stated = retry_after.or_else(|| seconds_in(&message)).filter(|wait| !wait.is_zero());
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
    let (class, telling) = codes::class(status, error);
    match class {
        Class::SubnetFull => {
            let subnet = telling.map(|full| subnet_in(&full.message)).unwrap_or_default();
            Error::SubnetFull { subnet, resource, message }
        }
        Class::NetworkFull => Error::NetworkFull { resource, message },
        Class::VersionUnknown => Error::Config {
            message: format!(
                "Azure doesn't know the API version in which it was asked about {resource}. Set azure.networkAPIVersion or \
                 azure.computeAPIVersion of the chart (--network-api-version, --compute-api-version) to one that it names. \
                 Azure says: {message}"
            ),
        },
        Class::AddressTaken => Error::AddressTaken { resource, message },
        Class::AddressBeingFreed => Error::AddressBeingFreed { resource, message },
        Class::Superseded => Error::Superseded { resource, message },
        Class::Locked => {
            let scope = quoted(&message).last().unwrap_or_else(|| resource.clone());
            Error::Locked { resource, scope, message }
        }
        Class::PolicyForbidden => Error::PolicyForbidden { resource, message },
        Class::Unattachable(remedy) => Error::Unattachable { resource, remedy, message },
        Class::Denied => {
            let (action, scope) = denied_in(&message).unwrap_or(("what it tried".to_owned(), resource));
            Error::Denied { action, scope, message }
        }
        Class::SubscriptionUnusable(remedy) => Error::SubscriptionUnusable { resource, remedy, message },
        Class::QuotaExceeded => Error::QuotaExceeded { resource, message },
        Class::Busy => Error::Busy { resource, retry_after: retry(BUSY), message },
        Class::Conflict => Error::Conflict { resource, code: error.code.clone(), message },
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
        Class::Refused => {
            Error::Arm { resource, status: status.unwrap_or_default(), code: error.code.clone(), message }
        }
        Class::OperationFailed => Error::Failed { resource, code: error.code.clone(), message },
    }
}

/// Azure reports a deny assignment under the codes of a missing permission, too. The words are the same.
fn deny_assignment(message: &str, resource: &str) -> Option<Error> {
    let (_, by) = message.split_once("because of the deny assignment")?;
    let name = between(by, "with name '", "' and Id").unwrap_or("without a name").to_owned();
    let action = between(message, "to perform action '", "'").unwrap_or("what it tried").to_owned();
    Some(Error::DenyAssignment { action, resource: resource.to_owned(), name, message: message.to_owned() })
}

/// Those of the addresses or blocks that a message names, by themselves or by an address in them; all, if it
/// names none.
fn named_in(message: &str, asked: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let words = || message.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '/'));
    let is_named = |one: &&Ipv4Net| {
        words().map(|word| word.trim_end_matches('.')).any(|word| {
            word.parse() == Ok(**one) || word.parse::<Ipv4Addr>().is_ok_and(|address| one.contains(&address))
        })
    };
    let named: Vec<Ipv4Net> = asked.iter().filter(is_named).copied().collect();
    if named.is_empty() { asked.to_vec() } else { named }
}

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
