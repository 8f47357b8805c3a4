//! What Azure's error codes mean: one table, read from its top. The first row that fits an error decides.
//!
//! A row asks for a code first, and only then for the place: Azure answers one HTTP status for very different
//! things (409 for a lock, an operation under way and a disabled subscription), and an operation that ended
//! badly has a code and no status. A code counts wherever it stands in the error, since NRP puts the specific
//! one into `details`. Where no code is known, the status decides.
//!
//! The codes are those of recorded traffic, of Microsoft's documentation and of public issues.

use super::arm_error::ArmError;

/// What an error means for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    SubnetFull,
    /// The virtual network's limit of private addresses.
    NetworkFull,
    AddressTaken,
    AddressBeingFreed,
    Superseded,
    Locked,
    PolicyForbidden,
    /// With the remedy.
    Unattachable(&'static str),
    /// A public address can't be deleted, since something else has it.
    InUse,
    /// The subscription has as many as it may in a region.
    PublicAddressesUsedUp,
    Denied,
    /// With the remedy.
    SubscriptionUnusable(&'static str),
    /// The provider doesn't know the API version that it was asked in.
    VersionUnknown,
    /// Waiting doesn't end it, and nothing more is known of it.
    Refused,
    QuotaExceeded,
    /// Another operation holds the resource, and will release it without help.
    Busy,
    NotFound,
    GroupMissing,
    SubscriptionMissing,
    Throttled(Limit),
    TokenRefused,
    Stale,
    /// A conflict of an unknown kind: it may pass, or need a person.
    Conflict,
    /// Whether the call had an effect isn't known.
    Unanswered,
    OperationFailed,
}

/// Whose limit on requests is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Azure Resource Manager's own, of the subscription.
    Arm,
    /// The network provider's or Compute's.
    Provider,
    /// A limit on one kind of call: other calls pass.
    Action,
}

/// Where an error was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Anywhere,
    /// In an answer with this HTTP status.
    Answer(u16),
    /// In an answer with this HTTP status or a higher one.
    AnswerFrom(u16),
    /// At the end of an operation that was followed.
    Operation,
}

struct Row {
    /// Codes, compared without regard to case. A code that begins with `*` is the end of a code. None: any
    /// error.
    codes: &'static [&'static str],
    origin: Origin,
    class: Class,
}

const fn row(codes: &'static [&'static str], origin: Origin, class: Class) -> Row {
    Row { codes, origin, class }
}

use Origin::{Answer, AnswerFrom, Anywhere, Operation};

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Addresses.
    row(&["SubnetIsFull"], Anywhere, Class::SubnetFull),
    // The limit is documented ("Networking limits": 65,536 a virtual network), its code is published nowhere.
    row(&["PrivateIPAddressLimitReached", "PrivateIPAddressesPerVirtualNetworkLimitReached"], Anywhere,
        Class::NetworkFull),
    row(&["PrivateIPAddressIsAllocated", "PrivateIPAddressInUse", "PrivateIPAddressNotInSubnet",
          "PrivateIPAddressInReservedRange"], Anywhere, Class::AddressTaken),
    row(&["PrivateIPAddressIsBeingCleanedUp"], Anywhere, Class::AddressBeingFreed),
    // Other writers.
    row(&["CanceledAndSupersededDueToAnotherOperation", "OperationPreempted"], Anywhere, Class::Superseded),
    // Causes that a person has set up.
    row(&["ScopeLocked"], Anywhere, Class::Locked),
    row(&["RequestDisallowedByPolicy"], Anywhere, Class::PolicyForbidden),
    row(&["AuthorizationFailed", "LinkedAuthorizationFailed", "DenyAssignmentAuthorizationFailed"], Anywhere,
        Class::Denied),
    row(&["MissingSubscriptionRegistration"], Anywhere, Class::SubscriptionUnusable(
        "Register the resource provider there: az provider register --namespace Microsoft.Network.")),
    row(&["ReadOnlyDisabledSubscription", "SubscriptionDisabled"], Anywhere, Class::SubscriptionUnusable(
        "The subscription is disabled: have it enabled again.")),
    row(&["NoRegisteredProviderFound", "InvalidApiVersionParameter"], Anywhere, Class::VersionUnknown),
    row(&["PropertyChangeNotAllowed"], Anywhere, Class::Refused),
    // Things that can't be attached. The first is of terraform-provider-azurerm issue 9084, the second of its
    // issue 9878.
    row(&["OutboundRuleCannotBeUsedWithBackendAddressPoolThatIsReferencedBySecondaryIpConfigs"], Anywhere,
        Class::Unattachable("The backend pool has an outbound rule, which takes primary addresses only: give the pods a \
            backend pool without one.")),
    row(&["NetworkInterfaceUsesMultipleLoadBalancersOfSameType"], Anywhere,
        Class::Unattachable("The NIC is behind another load balancer of that type already: give the pods a backend pool \
            of that one.")),
    row(&["DnsRecordInUse"], Anywhere,
        Class::Unattachable("Another public address in this region has that name: choose another vnetpool.io/dns-label.")),
    row(&["PublicIPAddressInUse"], Anywhere,
        Class::Unattachable("Something else uses the public address: detach it there.")),
    row(&["PublicIPAddressCannotBeDeleted"], Anywhere, Class::InUse),
    row(&["PublicIPCountLimitReached"], Anywhere, Class::PublicAddressesUsedUp),
    row(&["InvalidResourceReference"], Anywhere,
        Class::Unattachable("What is referred to doesn't exist: correct the id in the NodeIPPool's attachments or \
            applicationSecurityGroups, or make it in Azure.")),
    row(&["*QuotaExceeded", "*LimitReached", "*LimitExceeded", "SecondaryIpConfigurationCountPerVMSSVMExceeded"],
        Anywhere, Class::QuotaExceeded),
    // Limits on requests. Compute's throttling goes by the code of anything it doesn't allow. The second code
    // names an operation, and its words how many calls of it the provider takes.
    row(&["ResourceRequestsThrottled", "RetryableErrorDueToTooManyCallsToThisOperation"], Anywhere,
        Class::Throttled(Limit::Action)),
    row(&["OperationNotAllowed"], Answer(429), Class::Throttled(Limit::Provider)),
    // Causes that pass without help. "Conflict" isn't one of them: Compute answers so to a concurrent
    // request, but it is also the outer code of conflicts that last.
    row(&["RetryableErrorDueToAnotherOperation", "ReferencedResourceNotProvisioned", "AnotherOperationInProgress"],
        Anywhere, Class::Busy),
    // Things that aren't there.
    row(&["SubscriptionNotFound"], Anywhere, Class::SubscriptionMissing),
    row(&["ResourceGroupNotFound"], Anywhere, Class::GroupMissing),
    row(&["ParentResourceNotFound"], Anywhere, Class::NotFound),
    // No code that is known: the status of an answer.
    row(&[], Answer(401), Class::TokenRefused),
    row(&[], Answer(404), Class::NotFound),
    row(&[], Answer(408), Class::Unanswered),
    row(&[], Answer(409), Class::Conflict),
    row(&[], Answer(412), Class::Stale),
    row(&[], Answer(429), Class::Throttled(Limit::Arm)),
    row(&[], AnswerFrom(500), Class::Unanswered),
    row(&[], AnswerFrom(0), Class::Refused),
    // The end of an operation.
    row(&["Canceled"], Operation, Class::Superseded),
    row(&[], Operation, Class::OperationFailed),
];

impl Origin {
    /// `status` is that of an answer; `None` at the end of an operation.
    fn is(self, status: Option<u16>) -> bool {
        match (self, status) {
            (Origin::Anywhere, _) | (Origin::Operation, None) => true,
            (Origin::Answer(one), Some(status)) => one == status,
            (Origin::AnswerFrom(least), Some(status)) => status >= least,
            _ => false,
        }
    }
}

/// What an error means, and the part of it with the specific code, if it has one. `status` is the HTTP status
/// of an answer, `None` for the end of an operation.
pub(super) fn class(status: Option<u16>, error: &ArmError) -> (Class, Option<&ArmError>) {
    let fits = |row: &Row| {
        if !row.origin.is(status) {
            return None;
        }
        if row.codes.is_empty() {
            return Some((row.class, None));
        }
        error.find(row.codes).map(|matched| (row.class, Some(matched)))
    };
    // The last two rows take all other errors.
    TABLE.iter().find_map(fits).unwrap_or((Class::Refused, None))
}

/// Every code of the table, with the status that its answers have, if that counts: for the simulation of an
/// Azure that refuses.
pub fn codes() -> impl Iterator<Item = (Option<u16>, String)> {
    TABLE.iter().flat_map(|row| {
        let status = if let Answer(status) = row.origin { Some(status) } else { None };
        row.codes.iter().map(move |code| (status, code.replace('*', "Some")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_table_leads_to_its_own_row() {
        for (index, row) in TABLE.iter().enumerate() {
            let status = match row.origin {
                Origin::Anywhere => Some(400),
                Origin::Answer(status) | Origin::AnswerFrom(status) => Some(status),
                Origin::Operation => None,
            };
            for code in row.codes {
                let error = ArmError::bare(&code.replace('*', "Some"));
                let first = TABLE.iter().position(|one| {
                    one.origin.is(status) && (one.codes.is_empty() || error.find(one.codes).is_some())
                });
                assert_eq!(first, Some(index), "{code}");
                assert_eq!(class(status, &error).0, row.class, "{code}");
            }
        }
    }

    #[test]
    fn a_code_means_the_same_in_an_answer_and_at_the_end_of_an_operation() {
        for row in TABLE.iter().filter(|row| row.origin == Origin::Anywhere) {
            for code in row.codes {
                let error = ArmError::bare(&code.replace('*', "Some"));
                assert_eq!(class(Some(409), &error).0, class(None, &error).0, "{code}");
            }
        }
    }
}
