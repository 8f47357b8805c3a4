//! The use of an address of the node.

use std::{net::Ipv4Addr, ops::Deref, sync::OnceLock};

use super::Millis;
use super::format::{line::Line, reader};
use super::tenant::{Entry, Proof, Tenant};
use crate::sandbox::Sandbox;

/// An entry and its use.
///
/// It keeps the line that it was read from until it is changed, and is written as that line. A usual line
/// isn't even parsed until somebody asks for more than all verbs do. So a verb pays for the records that it
/// changes, not for all that the node holds. Only the methods below can change it.
#[derive(Clone, Debug)]
pub struct Record {
    address: Ipv4Addr,
    usage: Usage,
    line: Option<Line>,
    parsed: OnceLock<Box<(Entry, State)>>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub since: Millis,
    /// The entry has gone from the spec while the pod was using it.
    pub vanished: bool,
    pub(super) tenant: Tenant,
}

impl Deref for Assignment {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.tenant
    }
}

/// As much of a [`State`] as a verb needs of each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Free { since: Option<Millis> },
    Assigned { vanished: bool, is_by_namespace: bool },
    Withdrawn { since: Option<Millis> },
}

impl Usage {
    pub(super) fn of(state: &State) -> Usage {
        match *state {
            State::Free { since } => Usage::Free { since },
            State::Assigned(Assignment { vanished, ref tenant, .. }) => {
                let is_by_namespace = matches!(tenant.proof, Proof::Namespace { .. });
                Usage::Assigned { vanished, is_by_namespace }
            }
            State::Withdrawn { since } => Usage::Withdrawn { since },
        }
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        self.parsed() == other.parsed()
    }
}

impl Eq for Record {}

impl Record {
    pub(super) fn new(entry: Entry, state: State) -> Record {
        let (address, usage) = (entry.address, Usage::of(&state));
        Record { address, usage, line: None, parsed: OnceLock::from(Box::new((entry, state))) }
    }

    /// A record as it was read from a line.
    pub(super) fn read(entry: Entry, state: State, line: Line) -> Record {
        Record { line: Some(line), ..Record::new(entry, state) }
    }

    /// A record as it was read from a usual line.
    pub(super) fn usual(address: Ipv4Addr, usage: Usage, line: Line) -> Record {
        Record { address, usage, line: Some(line), parsed: OnceLock::new() }
    }

    fn parsed(&self) -> &(Entry, State) {
        self.parsed.get_or_init(|| match self.line.as_ref().map(|line| reader::record(line.as_bytes())) {
            Some(Ok(parsed)) => Box::new(parsed),
            _ => unreachable!("a usual line can be parsed"),
        })
    }

    /// Its usual line, as long as that is not parsed.
    pub(super) fn unparsed(&self) -> Option<&Line> {
        self.line.as_ref().filter(|_| self.parsed.get().is_none())
    }

    pub fn entry(&self) -> &Entry {
        &self.parsed().0
    }

    pub fn state(&self) -> &State {
        &self.parsed().1
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// The name of its entry, to compare it with others.
    pub(super) fn name(&self) -> &[u8] {
        self.unparsed().map_or_else(|| self.entry().name.as_bytes(), Line::name)
    }

    /// Whether it is of this entry of the spec. A record from a rebuild, in use and unnamed yet, takes the
    /// name that the spec has for its address.
    pub(super) fn is_of_entry(&self, entry: &Entry) -> bool {
        self.address == entry.address && (self.name().is_empty() || self.name() == entry.name.as_bytes())
    }

    /// UID of the only pod that may have it.
    pub(super) fn attached_to(&self) -> Option<&str> {
        // A usual line has none.
        self.parsed.get().and_then(|parsed| parsed.0.attached_to.as_deref())
    }

    /// Whether the pod with this UID may have it. No pod has the empty UID.
    pub(super) fn is_for(&self, pod_uid: &str) -> bool {
        self.attached_to().is_none_or(|uid| uid == pod_uid)
    }

    /// The line that has exactly this record, if it was read and not changed since.
    pub(super) fn line(&self) -> Option<&Line> {
        self.line.as_ref()
    }

    pub(super) fn set(&mut self, state: State) {
        let entry = match self.unparsed() {
            Some(line) => {
                let name = String::from_utf8_lossy(line.name()).into_owned();
                Entry { name, address: self.address, attached_to: None }
            }
            None => self.entry().clone(),
        };
        *self = Record::new(entry, state);
    }

    pub(super) fn is_of(&self, sandbox: &Sandbox) -> bool {
        self.is_assigned()
            && match self.unparsed() {
                Some(line) => line.is_of(sandbox),
                None => matches!(self.state(), State::Assigned(assignment) if assignment.sandbox == *sandbox),
            }
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.usage, Usage::Free { .. })
    }

    pub(super) fn is_assigned(&self) -> bool {
        matches!(self.usage, Usage::Assigned { .. })
    }

    /// Whether the proof of life of its sandbox is a namespace.
    pub(super) fn is_by_namespace(&self) -> bool {
        matches!(self.usage, Usage::Assigned { is_by_namespace: true, .. })
    }

    /// When it was freed; None if it wasn't used in this boot.
    pub(super) fn freed(&self) -> Option<Millis> {
        match self.usage {
            Usage::Free { since } => since,
            Usage::Assigned { .. } | Usage::Withdrawn { .. } => None,
        }
    }

    /// Whether a pod uses this address although the spec no longer had it.
    pub(super) fn waits_for(&self, address: Ipv4Addr) -> bool {
        self.address == address && matches!(self.usage, Usage::Assigned { vanished: true, .. })
    }

    /// The spec no longer has this entry, which was not relinquished.
    pub(super) fn vanish(&mut self) {
        match self.usage {
            Usage::Assigned { vanished: false, .. } => self.set_vanished(true),
            Usage::Free { since } => self.set(State::Withdrawn { since }),
            Usage::Assigned { .. } | Usage::Withdrawn { .. } => {}
        }
    }

    /// The spec has this entry, perhaps again.
    pub(super) fn come_back(&mut self, entry: &Entry) {
        let Entry { name, address, attached_to } = entry;
        if (self.name(), self.address, self.attached_to())
            != (name.as_bytes(), *address, attached_to.as_deref())
        {
            *self = Record::new(entry.clone(), self.state().clone());
        }
        match self.usage {
            Usage::Assigned { vanished: true, .. } => self.set_vanished(false),
            Usage::Withdrawn { since } => self.set(State::Free { since }),
            Usage::Assigned { .. } | Usage::Free { .. } => {}
        }
    }

    fn set_vanished(&mut self, vanished: bool) {
        if let State::Assigned(assignment) = self.state() {
            self.set(State::Assigned(Assignment { vanished, ..assignment.clone() }));
        }
    }
}
