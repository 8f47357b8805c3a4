//! What a refusal shows of other resources than the refused one: the scope in which all are refused.

use vnetpool_crds::reason::Reason;

use super::{Error, Scope};

/// What is refused, and in which scope: two errors of the same matter are one refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matter {
    reason: Reason,
    /// The part that is refused, where the reason alone doesn't name it.
    what: String,
    /// An id in lower case.
    scope: String,
    /// One refusal shows that everything in the scope is refused. Otherwise it may concern one resource only.
    pub is_wide: bool,
}

impl Matter {
    /// `None`: that isn't the id of anything that one of the sites is in.
    fn of(reason: Reason, what: &str, scope: &str, sites: &[String]) -> Option<Matter> {
        let scope = scope.trim_end_matches('/').to_ascii_lowercase();
        // A resource that is only referred to, such as an application security group, is refused to the
        // resource that refers to it: this shows nothing of the rest of its group.
        if !scope.starts_with("/subscriptions/") || !is_around(&scope, sites) {
            return None;
        }
        let is_network = scope.contains("/providers/microsoft.network/virtualnetworks/");
        let is_wide = is_network || !scope.contains("/providers/");
        // A refusal mostly names the resource itself, wherever the right to it, or the lock on it, is missing
        // or set.
        let scope = if is_wide { scope } else { group(&scope) };
        Some(Matter { reason, what: what.to_ascii_lowercase(), scope, is_wide })
    }

    /// Whether one of these, ids in lower case, is in the scope.
    pub fn is_around(&self, sites: &[String]) -> bool {
        is_around(&self.scope, sites)
    }
}

fn is_around(scope: &str, sites: &[String]) -> bool {
    let rest = |site: &String| site.strip_prefix(scope).map(|rest| rest.is_empty() || rest.starts_with('/'));
    sites.iter().any(|site| rest(site) == Some(true))
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
    /// What this error of a write shows of other resources than the sites, which are the written ones: ids in
    /// lower case. `None`: nothing.
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
        | Error::SubscriptionUnusable { resource, .. }
        | Error::ScopeMissing { resource, .. } = &mut self
        {
            other.clone_into(resource);
        }
        self
    }
}
