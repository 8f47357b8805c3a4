//! What a refusal shows of other resources than the refused one: the scope in which all are refused.

use vnetpool_crds::reason::Reason;

use super::{Error, Scope};
use crate::resource_id::ResourceId;

/// What is refused, and in which scope: two errors of the same matter are one refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matter {
    reason: Reason,
    /// The part that is refused, where the reason alone doesn't name it.
    what: String,
    /// An id in lower case.
    scope: String,
    /// The types of the refused resource, in lower case, where one refusal shows nothing of other types.
    kind: String,
    /// One refusal shows that everything in the scope is refused. Otherwise it may concern one resource only.
    pub is_wide: bool,
}

impl Matter {
    /// `None`: that isn't the id of anything that one of the sites is in.
    fn of(reason: Reason, what: &str, scope: &str, sites: &[String]) -> Option<Matter> {
        let scope = scope.trim_end_matches('/').to_ascii_lowercase();
        if !scope.starts_with("/subscriptions/") {
            return None;
        }
        // A resource that is only referred to, such as an application security group, is refused to the
        // resource that refers to it: this shows nothing of the rest of its group.
        let refused = sites.iter().find(|site| is_in(&scope, site))?;
        let is_network = scope.contains("/providers/microsoft.network/virtualnetworks/");
        let is_wide = is_network || !scope.contains("/providers/");
        // A refusal mostly names the resource itself, wherever the right to it, or the lock on it, is missing
        // or set.
        let (scope, kind) = if is_wide { (scope, String::new()) } else { (group(&scope), kind(refused)) };
        Some(Matter { reason, what: what.to_ascii_lowercase(), scope, kind, is_wide })
    }

    /// Whether one of these, ids in lower case, is in the scope, whatever its type.
    pub fn contains(&self, sites: &[String]) -> bool {
        sites.iter().any(|site| is_in(&self.scope, site))
    }

    /// Whether it concerns one of these, ids in lower case.
    pub fn is_around(&self, sites: &[String]) -> bool {
        sites.iter().any(|site| is_in(&self.scope, site) && (self.is_wide || self.kind == kind(site)))
    }
}

fn is_in(scope: &str, site: &str) -> bool {
    site.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a resource, whose id is in lower case, is in this scope.
pub(in crate::azure) fn is_within(id: &str, scope: &str) -> bool {
    is_in(&scope.to_ascii_lowercase(), id)
}

/// The provider and the types of a resource, without the names.
fn kind(id: &str) -> String {
    let Some((_, resource)) = id.split_once("/providers/") else { return String::new() };
    let (provider, rest) = resource.split_once('/').unwrap_or((resource, ""));
    let types = rest.split('/').step_by(2);
    std::iter::once(provider).chain(types).collect::<Vec<_>>().join("/")
}

/// The id of the resource group of a resource.
fn group(id: &str) -> String {
    id.split_once("/providers/").map_or(id, |(group, _)| group).to_ascii_lowercase()
}

/// The id of the subscription of a resource.
fn subscription(id: &str) -> String {
    id.split('/').take(3).collect::<Vec<_>>().join("/").to_ascii_lowercase()
}

impl Error {
    /// What this error shows of other resources than the sites, which are those that were written or read:
    /// ids in lower case. `None`: nothing.
    pub fn matter(&self, sites: &[String]) -> Option<Matter> {
        let matter = |what, scope| Matter::of(self.reason(), what, scope, sites);
        match self {
            Error::Denied { action, scope, .. } => matter(action, scope),
            Error::DenyAssignment { action, resource, .. } => matter(action, resource),
            Error::Locked { scope, .. } => matter("", scope),
            // An assignment may spare some resources of its scope, so three have to be refused before it
            // counts for their group.
            Error::PolicyForbidden { assignment: Some(assignment), resource, .. } => {
                matter(assignment, resource)
            }
            Error::SubscriptionUnusable { resource, .. }
            | Error::ScopeMissing { resource, scope: Scope::Subscription, .. } => {
                matter("", &subscription(resource))
            }
            Error::ScopeMissing { resource, scope: Scope::Group, .. } => matter("", &group(resource)),
            _ => None,
        }
    }

    /// The same of another resource, which would meet it, too.
    pub fn about(mut self, other: &str) -> Error {
        if let Error::DenyAssignment { resource, .. }
        | Error::Locked { resource, .. }
        | Error::PolicyForbidden { resource, .. }
        | Error::PublicAddressesUsedUp { resource, .. }
        | Error::SubscriptionUnusable { resource, .. }
        | Error::Unattachable { resource, .. }
        | Error::ScopeMissing { resource, .. } = &mut self
        {
            other.clone_into(resource);
        }
        self
    }

    /// Whether it is about a resource to which the refused one was to refer.
    pub fn is_about(&self, referred: &ResourceId) -> bool {
        self.is_about_id(&referred.key())
    }

    /// The same, by its id in lower case.
    pub(in crate::azure) fn is_about_id(&self, id: &str) -> bool {
        let is_named_in = |message: &str| {
            let message = message.to_ascii_lowercase();
            let mut ends = message.match_indices(id).map(|(start, _)| &message[start + id.len()..]);
            ends.any(|rest| {
                !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || "-_/".contains(next))
            })
        };
        match self {
            Error::Denied { scope, .. } => is_within(id, scope),
            // A lock on a group is one on the NIC, too.
            Error::Locked { scope, .. } => scope.contains("/providers/") && is_within(id, scope),
            Error::DenyAssignment { message, .. } | Error::Unattachable { message, .. } => {
                is_named_in(message)
            }
            _ => false,
        }
    }
}
