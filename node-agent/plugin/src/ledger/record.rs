//! The use of an address of the node.

use std::{net::Ipv4Addr, ops::Deref, sync::OnceLock};

use super::Millis;
use super::format::line::Line;
use super::format::reader::{self, SoundEntry};
use super::tenant::{Entry, Proof, Tenant};
use crate::sandbox::Sandbox;

/// An entry and its use.
///
/// It keeps the line that it was read from until it is changed, and is written as that line. So a verb pays
/// for the records that it changes, not for all that the node holds. Only the methods below can change it.
#[derive(Clone, Debug)]
pub struct Record {
    address: Ipv4Addr,
    /// Of an entry in its usual form no more than the address is parsed until the rest is needed.
    entry: OnceLock<Box<Entry>>,
    state: State,
    line: Option<Line>,
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
    /// The tenant as it was read. Its words are parsed when they are needed, which most verbs do for no pod
    /// but their own.
    words: Option<Line>,
    tenant: OnceLock<Box<Tenant>>,
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
        let read = || self.words.as_ref().map(|words| reader::tenant(words.as_str())).unwrap_or_default();
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
            (None, Some(words)) => reader::is_tenant(words.as_str(), sandbox),
            _ => self.sandbox == *sandbox,
        }
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        (self.entry(), &self.state) == (other.entry(), &other.state)
    }
}

impl Eq for Record {}

impl Record {
    pub(super) fn new(entry: Entry, state: State) -> Record {
        Record { address: entry.address, entry: OnceLock::from(Box::new(entry)), state, line: None }
    }

    /// A record as it was read from a line.
    pub(super) fn read(entry: SoundEntry, state: State, line: Line) -> Record {
        let (address, entry) = match entry {
            SoundEntry::Usual(address) => (address, OnceLock::new()),
            SoundEntry::Other(entry) => (entry.address, OnceLock::from(entry)),
        };
        Record { address, entry, state, line: Some(line) }
    }

    pub fn entry(&self) -> &Entry {
        self.entry.get_or_init(|| {
            let attached_to = None;
            Box::new(Entry { name: self.name_in_line().to_owned(), address: self.address, attached_to })
        })
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The name of its entry.
    pub(super) fn name(&self) -> &str {
        self.entry.get().map_or_else(|| self.name_in_line(), |entry| &entry.name)
    }

    fn name_in_line(&self) -> &str {
        self.line.as_ref().map_or("", |line| reader::name(line.as_str()))
    }

    /// UID of the only pod that may have it.
    pub(super) fn attached_to(&self) -> Option<&str> {
        self.entry.get().and_then(|entry| entry.attached_to.as_deref())
    }

    /// Whether the pod with this UID may have it. No pod has the empty UID.
    pub(super) fn is_for(&self, pod_uid: &str) -> bool {
        self.attached_to().is_none_or(|uid| uid == pod_uid)
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// The line that has exactly this record, if it was read and not changed since.
    pub(super) fn line(&self) -> Option<&Line> {
        self.line.as_ref()
    }

    pub(super) fn set(&mut self, state: State) {
        self.entry(); // while its line is there
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
        self.address == address && matches!(&self.state, State::Assigned(assignment) if assignment.vanished)
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
        if self.entry() != entry {
            (self.address, self.line) = (entry.address, None);
            self.entry = OnceLock::from(Box::new(entry.clone()));
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
