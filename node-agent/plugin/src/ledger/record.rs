//! An address of the node and what it is used for.

use std::{
    net::Ipv4Addr,
    ops::{Deref, Range},
    sync::{Arc, OnceLock},
};

use super::{Millis, format};
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
///
/// It keeps the line that it was read from until it is changed, and is written as that line. So a verb pays
/// for the records that it changes, not for all that the node holds. Only the methods below can change it.
#[derive(Clone, Debug)]
pub struct Record {
    entry: Entry,
    state: State,
    line: Option<Line>,
}

/// A part of the text that a ledger was read from.
#[derive(Clone, Debug)]
pub(super) struct Line {
    text: Arc<String>,
    range: Range<u32>,
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

/// That an entry is in use. It reads like its [`Tenant`].
#[derive(Clone, Debug)]
pub struct Assignment {
    pub since: Millis,
    /// The entry has gone from the spec while the pod was using it.
    pub vanished: bool,
    /// Whether its proof of life is a namespace.
    is_by_namespace: bool,
    /// The tenant as it was read. Its words are taken apart when somebody looks at them, which most verbs do
    /// for no pod but their own.
    words: Option<Line>,
    tenant: OnceLock<Box<Tenant>>,
}

/// The sandbox that has an entry, and how to see whether it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenant {
    pub sandbox: Sandbox,
    pub pod: Pod,
    /// The name of the CNI network whose ADD asked for it. Empty if it isn't known: the wiring doesn't tell,
    /// nor did the release before.
    pub network: String,
    pub proof: Proof,
}

impl Tenant {
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

impl Default for Proof {
    fn default() -> Proof {
        Proof::Link(String::new())
    }
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

impl Line {
    /// This part of the text, which is shorter than 4 GiB.
    pub(super) fn of(text: &Arc<String>, range: Range<usize>) -> Line {
        Line { text: text.clone(), range: range.start as u32..range.end as u32 }
    }

    pub(super) fn as_str(&self) -> &str {
        self.text.get(self.range.start as usize..self.range.end as usize).unwrap_or_default()
    }

    /// This line and `next` as one, if `next` follows it in the same text.
    pub(super) fn joined(&self, next: &Line) -> Option<Line> {
        let follows = Arc::ptr_eq(&self.text, &next.text) && self.range.end == next.range.start;
        follows.then(|| Line { text: self.text.clone(), range: self.range.start..next.range.end })
    }
}

impl PartialEq for Assignment {
    fn eq(&self, other: &Assignment) -> bool {
        (self.since, self.vanished) == (other.since, other.vanished) && **self == **other
    }
}

impl Eq for Assignment {}

impl Deref for Assignment {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        let read = || self.words.as_ref().map(|words| format::tenant(words.as_str())).unwrap_or_default();
        self.tenant.get_or_init(|| Box::new(read()))
    }
}

impl Assignment {
    pub(super) fn new(tenant: Tenant, since: Millis, vanished: bool) -> Assignment {
        let is_by_namespace = matches!(tenant.proof, Proof::Namespace { .. });
        let tenant = OnceLock::from(Box::new(tenant));
        Assignment { since, vanished, is_by_namespace, words: None, tenant }
    }

    /// An assignment as it was read. Its tenant stands in `words`, which have been found sound.
    pub(super) fn read(since: Millis, vanished: bool, is_by_namespace: bool, words: Line) -> Assignment {
        Assignment { since, vanished, is_by_namespace, words: Some(words), tenant: OnceLock::new() }
    }

    pub(super) fn is_by_namespace(&self) -> bool {
        self.is_by_namespace
    }

    fn is_of(&self, sandbox: &Sandbox) -> bool {
        match (self.tenant.get(), &self.words) {
            (None, Some(words)) => format::is_tenant(words.as_str(), sandbox),
            _ => self.sandbox == *sandbox,
        }
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        (&self.entry, &self.state) == (&other.entry, &other.state)
    }
}

impl Eq for Record {}

impl Record {
    pub(super) fn new(entry: Entry, state: State) -> Record {
        Record { entry, state, line: None }
    }

    /// A record as it was read from a line.
    pub(super) fn read(entry: Entry, state: State, line: Line) -> Record {
        Record { entry, state, line: Some(line) }
    }

    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// The line that says just what this record does, if it was read and not changed since.
    pub(super) fn line(&self) -> Option<&Line> {
        self.line.as_ref()
    }

    pub(super) fn set(&mut self, state: State) {
        self.line = None;
        self.state = state;
    }

    pub(super) fn is_of(&self, sandbox: &Sandbox) -> bool {
        matches!(&self.state, State::Assigned(assignment) if assignment.is_of(sandbox))
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Free { .. })
    }

    /// When it was freed; None if it wasn't used in this boot.
    pub(super) fn freed(&self) -> Option<Millis> {
        match self.state {
            State::Free { since } => since,
            State::Assigned(_) | State::Withdrawn { .. } => None,
        }
    }

    /// Whether a pod uses this address although the spec no longer had it.
    pub(super) fn waits_for(&self, address: Ipv4Addr) -> bool {
        self.entry.address == address
            && matches!(&self.state, State::Assigned(assignment) if assignment.vanished)
    }

    /// The spec no longer has this entry, which was not relinquished.
    pub(super) fn vanish(&mut self) {
        match &self.state {
            State::Assigned(assignment) if !assignment.vanished => {
                self.set(State::Assigned(Assignment { vanished: true, ..assignment.clone() }));
            }
            State::Free { since } => self.set(State::Withdrawn { since: *since }),
            State::Assigned(_) | State::Withdrawn { .. } => {}
        }
    }

    /// The spec has this entry, perhaps again.
    pub(super) fn come_back(&mut self, entry: &Entry) {
        if self.entry != *entry {
            self.line = None;
            self.entry.clone_from(entry);
        }
        match &self.state {
            State::Assigned(assignment) if assignment.vanished => {
                self.set(State::Assigned(Assignment { vanished: false, ..assignment.clone() }));
            }
            State::Withdrawn { since } => self.set(State::Free { since: *since }),
            State::Assigned(_) | State::Free { .. } => {}
        }
    }
}
