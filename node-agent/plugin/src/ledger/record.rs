//! An address of the node and what it is used for.

use std::net::Ipv4Addr;

use super::Millis;
use crate::sandbox::{Pod, Sandbox};

/// An address that the node holds, as published in the spec. Its identity is the name of its ipConfiguration,
/// which is never used twice. The addresses of a block are entries of one name: each is assigned by itself,
/// but they come, go and are relinquished only together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Empty after a rebuild for an address in use that no spec has named yet.
    pub name: String,
    pub address: Ipv4Addr,
    /// UID of the only pod that may have it: something in Azure is attached to this address.
    pub attached_to: Option<String>,
}

/// An entry and what it is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub entry: Entry,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Assignable once a cooldown has passed since `since`. None: not used in this boot.
    Free {
        since: Option<Millis>,
    },
    Assigned(Assignment),
    /// Gone from the spec without having been relinquished. Not assignable unless it comes back.
    Withdrawn {
        since: Option<Millis>,
    },
}

/// The sandbox that has an entry, and how to see whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub sandbox: Sandbox,
    pub pod: Pod,
    /// The name of the CNI network whose ADD asked for it. Empty if it isn't known: the wiring doesn't tell,
    /// nor did the release before.
    pub network: String,
    pub since: Millis,
    pub proof: Proof,
    /// The entry has gone from the spec while the pod was using it.
    pub vanished: bool,
}

impl Assignment {
    /// Whose it is, for people: the pod as `namespace/name`, or the container where the runtime named none.
    pub fn whose(&self) -> String {
        match self.pod.name.is_empty() {
            true => self.sandbox.container_id.clone(),
            false => self.pod.to_string(),
        }
    }
}

/// How to see whether a sandbox lives. One that can't be looked at lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// By the host's end of its veth pair, which is our wiring and ends with the sandbox's network namespace.
    /// The name is the one that ADD gave the link. It may have changed since; the link's alias tells whose it
    /// is.
    Link(String),
    /// By the file of its network namespace and, if known, the namespace's inode: another plugin wired the
    /// sandbox and asked only for the address (delegated IPAM). An inode number comes again, but not behind
    /// the same path.
    Namespace { path: String, inode: Option<u64> },
}

impl Entry {
    /// Whether the pod with this UID may have it. No pod has the empty UID.
    pub(super) fn is_for(&self, pod_uid: &str) -> bool {
        self.attached_to.as_deref().is_none_or(|uid| uid == pod_uid)
    }

    /// Whether the record of `recorded` is of this entry of the spec. A record from a rebuild, in use and
    /// unnamed yet, takes the name that the spec has for its address.
    pub(super) fn is_recorded_as(&self, recorded: &Entry) -> bool {
        self.address == recorded.address && (recorded.name.is_empty() || self.name == recorded.name)
    }
}

impl Record {
    pub(super) fn is_of(&self, sandbox: &Sandbox) -> bool {
        matches!(&self.state, State::Assigned(assignment) if assignment.sandbox == *sandbox)
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Free { .. })
    }

    /// Whether a pod uses this address although the spec no longer had it.
    pub(super) fn waits_for(&self, address: Ipv4Addr) -> bool {
        self.entry.address == address
            && matches!(&self.state, State::Assigned(assignment) if assignment.vanished)
    }

    /// The spec no longer has this entry, which was not relinquished.
    pub(super) fn vanish(&mut self) {
        match &mut self.state {
            State::Assigned(assignment) => assignment.vanished = true,
            State::Free { since } => self.state = State::Withdrawn { since: *since },
            State::Withdrawn { .. } => {}
        }
    }

    /// The spec has this entry, perhaps again.
    pub(super) fn come_back(&mut self, entry: &Entry) {
        self.entry.clone_from(entry);
        match &mut self.state {
            State::Assigned(assignment) => assignment.vanished = false,
            State::Withdrawn { since } => self.state = State::Free { since: *since },
            State::Free { .. } => {}
        }
    }
}
