//! What follows from each error: one table, a row for each kind.

use std::time::Duration;

use vnetpool_crds::reason::Reason;

use super::{Error, Remedy};

/// How long to wait where Azure names no time.
pub(super) const BUSY: Duration = Duration::from_secs(15);
pub(super) const FAILED: Duration = Duration::from_secs(5);
const BEING_FREED: Duration = Duration::from_secs(5);
/// A full subnet may empty by our own give-backs, the rest needs a person, and role assignments take minutes
/// to work.
const FULL: Duration = Duration::from_secs(60);
const PERSON: Duration = Duration::from_secs(120);
const SIGN_IN: Duration = Duration::from_secs(15);

/// A row of the table.
struct Consequence {
    /// Of conditions and Events, and the metric's label.
    reason: Reason,
    next: Next,
    nic: NicAfter,
    objection: Objection,
}

/// What to do next.
enum Next {
    /// The same again after so long.
    Again(Duration),
    /// Nothing helps until a person changes something. It is tried again after so long.
    Person(Duration),
    ReadAgain,
}

/// The state of the NIC after the write that was answered with this.
#[derive(PartialEq)]
enum NicAfter {
    /// Certainly as before.
    AsBefore,
    Unknown,
}

/// What of a write Azure objects to.
#[derive(PartialEq)]
enum Objection {
    /// Perhaps to a part of it.
    Part,
    /// Not to its content: the moment, another writer, the operator's own state or that of the whole resource
    /// is the cause.
    Whole,
}

use Next::{Again, Person, ReadAgain};
use NicAfter::{AsBefore, Unknown};
use Objection::{Part, Whole};

impl Error {
    #[rustfmt::skip]
    fn consequence(&self) -> Consequence {
        let (reason, next, nic, objection) = match self {
            Error::Throttled { retry_after, .. } => (Reason::Throttled, Again(*retry_after), AsBefore, Whole),
            Error::SubnetFull { .. } => (Reason::SubnetFull, Person(FULL), AsBefore, Part),
            Error::NetworkFull { .. } => (Reason::VirtualNetworkFull, Person(FULL), AsBefore, Part),
            Error::AddressTaken { .. } => (Reason::AddressTaken, ReadAgain, AsBefore, Part),
            Error::AddressBeingFreed { .. } => (Reason::AddressBeingFreed, Again(BEING_FREED), AsBefore, Part),
            Error::SubscriptionUnusable { .. } =>
                (Reason::SubscriptionUnusable, Person(PERSON), AsBefore, Whole),
            Error::Denied { .. } => (Reason::PermissionDenied, Person(PERSON), AsBefore, Part),
            Error::DenyAssignment { .. } => (Reason::DenyAssignment, Person(PERSON), AsBefore, Part),
            Error::Locked { .. } => (Reason::ResourceLocked, Person(PERSON), AsBefore, Whole),
            Error::QuotaExceeded { .. } => (Reason::QuotaExceeded, Person(PERSON), AsBefore, Part),
            Error::PolicyForbidden { .. } => (Reason::PolicyForbidden, Person(PERSON), AsBefore, Part),
            Error::Stale { .. } => (Reason::Stale, ReadAgain, Unknown, Whole),
            Error::Superseded { .. } => (Reason::Superseded, ReadAgain, Unknown, Whole),
            Error::Busy { retry_after, .. } => (Reason::ResourceBusy, Again(*retry_after), AsBefore, Whole),
            Error::NotFound { .. } => (Reason::ResourceNotFound, Person(PERSON), Unknown, Whole),
            Error::ScopeMissing { .. } => (Reason::ScopeMissing, Person(PERSON), Unknown, Whole),
            Error::Conflict { .. } => (Reason::ResourceConflict, Again(BUSY), AsBefore, Part),
            Error::Unavailable { retry_after, .. } =>
                (Reason::AzureUnavailable, Again(*retry_after), AsBefore, Whole),
            Error::OutcomeUnknown { .. } => (Reason::OutcomeUnknown, ReadAgain, Unknown, Whole),
            Error::MayComeBack { retry_after, .. } =>
                (Reason::OutcomeUnknown, Again(*retry_after), Unknown, Whole),
            Error::Failed { .. } => (Reason::OperationFailed, Again(FAILED), Unknown, Part),
            Error::WithoutEffect { .. } => (Reason::WithoutEffect, Again(FAILED), Unknown, Whole),
            Error::Unattachable { .. } | Error::PublicAddressesUsedUp { .. } =>
                (Reason::NotAttachable, Person(PERSON), AsBefore, Part),
            Error::InUse { .. } => (Reason::AzureRefused, Person(PERSON), AsBefore, Part),
            Error::Outgrown { .. } => (Reason::Outgrown, ReadAgain, AsBefore, Whole),
            Error::Unconfirmed { .. } => (Reason::Unconfirmed, ReadAgain, AsBefore, Whole),
            Error::Credential { .. } => (Reason::CredentialRefused, Person(SIGN_IN), AsBefore, Whole),
            Error::ProviderId { .. } => (Reason::ProviderIDUnusable, Person(PERSON), AsBefore, Whole),
            Error::ResourceId(_) => (Reason::ResourceIDMalformed, Person(PERSON), AsBefore, Whole),
            Error::Nic { .. } => (Reason::UnexpectedAnswer, Person(PERSON), AsBefore, Part),
            Error::Routes { source, .. } => (source.reason(), Person(PERSON), AsBefore, Part),
            Error::Unexpected { .. } => (Reason::UnexpectedAnswer, Person(PERSON), Unknown, Part),
            Error::Arm { status: 400..500, .. } => (Reason::AzureRefused, Person(PERSON), AsBefore, Part),
            Error::Arm { .. } => (Reason::AzureRefused, Person(PERSON), Unknown, Part),
            Error::DryRun { .. } => (Reason::DryRun, Person(PERSON), AsBefore, Whole),
            Error::Config { .. } => (Reason::ConfigurationUnusable, Person(PERSON), AsBefore, Whole),
        };
        Consequence { reason, next, nic, objection }
    }

    /// What to do about it.
    pub fn remedy(&self) -> Remedy {
        let Consequence { reason, next, .. } = self.consequence();
        match next {
            Again(wait) => Remedy::RetryAfter(wait),
            Person(retry) => Remedy::WaitForChange { reason, retry },
            ReadAgain => Remedy::ReadAgain,
        }
    }

    /// The reason of conditions and Events, and the metric's label: one of a fixed few.
    pub fn reason(&self) -> Reason {
        self.consequence().reason
    }

    /// Whether a NIC is certainly as it was before the write that was answered with this.
    pub(in crate::azure) fn left_all_as_it_was(&self) -> bool {
        self.consequence().nic == AsBefore
    }

    /// Whether Azure may object to a part of a write.
    pub fn may_be_about_a_part(&self) -> bool {
        self.consequence().objection == Part
    }
}
