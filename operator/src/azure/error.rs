//! What can go wrong with Azure as facts of our domain, and the one place that decides what to do about each.

mod arm_error;
mod classify;
mod codes;
mod consequence;
mod matter;
mod steady;

use std::time::Duration;

use ipnet::Ipv4Net;

use super::{nic, route_table};
use crate::resource_id::Malformed;
pub(super) use arm_error::ArmError;
use classify::named_in;
pub(super) use classify::{Effect, LONGEST_WAIT, classify};
pub use codes::{Limit, codes};
use consequence::BUSY;
pub use matter::Matter;
pub(super) use matter::is_within;
pub(super) use steady::steady;
use vnetpool_crds::reason::Reason;

/// Why a call of [`super::Azure`] failed. `Display` names the resource, the cause and the remedy for the
/// cluster's administrator: it is meant for conditions and Events. It has nothing that is of one answer only,
/// such as a time to wait: that would make a condition another one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "Azure throttles calls about {resource} ({message}). Vnetpool goes on as soon as Azure allows it; if this lasts, find \
         out who else uses up the subscription's request limits."
    )]
    Throttled { resource: String, message: String, retry_after: Duration, limit: Limit },
    #[error(
        "subnet {subnet} has no free address for {resource}. Free up addresses in it, lower minimum, warm or maximum of the \
         NodeIPPool, or give new nodes another subnet. Azure answered: {message}"
    )]
    SubnetFull { subnet: String, resource: String, message: String },
    #[error(
        "the virtual network of {resource} has as many private addresses as Azure lets it have. Use mode Prefix, where a block \
         of 16 counts once, lower minimum, warm or maximum of the NodeIPPool, or give new nodes another virtual network. Azure \
         answered: {message}"
    )]
    NetworkFull { resource: String, message: String },
    #[error(
        "an address asked for {resource} now belongs to another NIC; Vnetpool reads again. Azure answered: {message}"
    )]
    AddressTaken { resource: String, message: String },
    #[error(
        "an address asked for {resource} is being freed by Azure and can't be had yet; Vnetpool goes on without it and asks \
         again in seconds. Azure answered: {message}"
    )]
    AddressBeingFreed { resource: String, message: String },
    #[error("the subscription of {resource} can't be used. {remedy} Azure answered: {message}")]
    SubscriptionUnusable { resource: String, remedy: &'static str, message: String },
    #[error(
        "Azure doesn't let the operator's identity do {action} on {scope}. Grant its role that action there (a new role \
         assignment takes minutes to work). Azure answered: {message}"
    )]
    Denied { action: String, scope: String, message: String },
    #[error(
        "a deny assignment ({name}) forbids {action} on {resource}, whatever roles grant. On AKS that is the lockdown of the node \
         resource group: `az aks update --nrg-lockdown-restriction-level Unrestricted` lifts it, but not on AKS Automatic, \
         where Vnetpool can't work. Elsewhere ask whoever made it. Azure answered: {message}"
    )]
    DenyAssignment { action: String, resource: String, name: String, message: String },
    #[error("a lock forbids writing {resource}. Remove the lock on {scope}. Azure answered: {message}")]
    Locked { resource: String, scope: String, message: String },
    #[error(
        "a quota is used up by writing {resource}. Have it raised, or lower the NodeIPPool's sizing. Azure answered: {message}"
    )]
    QuotaExceeded { resource: String, message: String },
    #[error(
        "an Azure Policy{} forbids writing {resource}. Exempt it, or change the policy. Azure answered: {message}",
        assignment.as_ref().map(|id| format!(" ({id})")).unwrap_or_default()
    )]
    PolicyForbidden { resource: String, assignment: Option<String>, message: String },
    #[error("{resource} has been changed by somebody else since it was read; Vnetpool reads it again")]
    Stale { resource: String },
    #[error(
        "another write to {resource} took the place of Vnetpool's; Vnetpool reads it again. If this lasts, find out what \
         else writes to it. Azure answered: {message}"
    )]
    Superseded { resource: String, message: String },
    #[error("{resource} is busy; Vnetpool goes on soon. Azure answered: {message}")]
    Busy { resource: String, message: String, retry_after: Duration },
    #[error(
        "{resource} doesn't exist in Azure, or the operator's identity may not see it. Delete the Node if its VM is gone, or grant \
         the identity's role read access there. Azure answered: {message}"
    )]
    NotFound { resource: String, message: String },
    #[error(
        "Azure doesn't know the {scope} of {resource}. That may pass, so everything is kept as it is. If the {scope} is \
         gone for good, confirm it with the annotation {}=true on the NodeIPAllocation. Azure answered: {message}",
        vnetpool_crds::names::GONE
    )]
    ScopeMissing { resource: String, scope: Scope, message: String },
    #[error(
        "Azure refuses a call about {resource} because of a conflict ({code}); Vnetpool tries again, ever less often. If this \
         lasts, change what it objects to. Azure answered: {message}"
    )]
    Conflict { resource: String, code: String, message: String },
    #[error("Azure didn't answer about {resource} ({message}); nothing was changed, Vnetpool goes on soon")]
    Unavailable { resource: String, message: String, retry_after: Duration },
    #[error(
        "a write to {resource} was sent, but its outcome isn't known ({message}); Vnetpool reads it again"
    )]
    OutcomeUnknown { resource: String, message: String },
    #[error(
        "{resource} is deleted, but a request to make it may still be carried out, since its answer was lost; Vnetpool deletes \
         it once more after a while"
    )]
    MayComeBack { resource: String, retry_after: Duration },
    #[error(
        "Azure took a write to {resource} and then gave it up with {code}; Vnetpool reads it and writes it again, ever less \
         often. If this lasts, ask Azure's support about that operation. Azure answered: {message}"
    )]
    Failed { resource: String, code: String, message: String },
    #[error(
        "Azure reports a write to {resource} as a success, and it isn't as it was to be afterwards; Vnetpool writes it again, \
         ever less often. If this lasts, find out what undoes it: an Azure Policy that modifies it, a proxy or another client"
    )]
    WithoutEffect { resource: String },
    #[error("Azure can't attach this to an address of {resource}. {remedy} Azure answered: {message}")]
    Unattachable { resource: String, remedy: &'static str, message: String },
    #[error(
        "{resource} can't be deleted while something else has it. Detach it there or, if it is to stay there, confirm it with the \
         annotation {}=true on the NodeIPAllocation. Azure answered: {message}",
        vnetpool_crds::names::GONE
    )]
    InUse { resource: String, message: String },
    #[error(
        "Azure gives no public address {resource}: the subscription's are used up in this region. Have the quota raised, or let \
         fewer pods ask for one. Azure answered: {message}"
    )]
    PublicAddressesUsedUp { resource: String, message: String },
    #[error(
        "what was about to be asked of {resource} was given up before it was sent, since pods came that need more, or somebody \
         has paused the node; Vnetpool plans anew"
    )]
    Outgrown { resource: String },
    #[error(
        "the API server didn't confirm that {resource} may be written; nothing was sent, Vnetpool plans anew"
    )]
    Unconfirmed { resource: String },
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
         less often, and at once when the NodeIPPool is edited. Azure answered: {message}"
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

/// The scope that a resource is in.
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

/// What to do about an [`Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The same again, not earlier than this from now.
    RetryAfter(Duration),
    /// Nothing helps until a person changes something: report it in a condition and an Event, and check again
    /// after `retry`.
    WaitForChange { reason: Reason, retry: Duration },
    /// A race was lost, or the outcome isn't known: read the NIC and plan anew at once. The known state of it
    /// is dropped.
    ReadAgain,
}

impl Error {
    /// An answer about this resource that can't be used, and why.
    pub(super) fn unexpected(resource: impl ToString, message: impl ToString) -> Error {
        Error::Unexpected { resource: resource.to_string(), message: message.to_string() }
    }

    /// Whether the call gave its place up by our own decision: nothing was sent, and nothing was learnt of
    /// Azure.
    pub fn is_given_up(&self) -> bool {
        matches!(self, Error::Outgrown { .. } | Error::Unconfirmed { .. })
    }

    /// Whether one attempt serves all that wait for the same, so that it costs no more when each is quick.
    pub fn is_tried_for_all(&self) -> bool {
        matches!(self, Error::Credential { .. } | Error::PublicAddressesUsedUp { .. })
    }

    /// How long Azure wants not to be asked the same again, whatever the wait of who has asked; zero if it
    /// names no time.
    pub fn pause(&self) -> Duration {
        match self {
            Error::Throttled { retry_after, .. }
            | Error::Busy { retry_after, .. }
            | Error::Unavailable { retry_after, .. } => *retry_after,
            _ => Duration::ZERO,
        }
    }

    /// The same of a write that asks for no address: what Azure objects to has its address already, and stays
    /// as it is until a person ends that.
    pub(super) fn of_no_address(self) -> Error {
        let code = self.reason().to_string();
        match self {
            Error::AddressTaken { resource, message } | Error::AddressBeingFreed { resource, message } => {
                Error::Conflict { resource, code, message }
            }
            other => other,
        }
    }

    /// Which of the requested addresses or blocks certainly belong to another client: those that Azure names,
    /// or the only one. A block that Azure knows by an address in it counts as named.
    pub fn taken(&self, asked: &[Ipv4Net]) -> Vec<Ipv4Net> {
        let Error::AddressTaken { message, .. } = self else { return vec![] };
        if asked.len() == 1 { asked.to_vec() } else { named_in(message, asked) }
    }

    /// Which of the requested addresses or blocks can't be had for a while: those that Azure names, or all if
    /// it names none.
    pub fn being_freed(&self, asked: &[Ipv4Net]) -> Vec<Ipv4Net> {
        let Error::AddressBeingFreed { message, .. } = self else { return vec![] };
        let named = named_in(message, asked);
        if named.is_empty() { asked.to_vec() } else { named }
    }
}

#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;
