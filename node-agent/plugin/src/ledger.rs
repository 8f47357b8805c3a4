//! The ledger: which addresses this node holds and which sandbox has which, as pure state and transitions.
//!
//! Nothing here reads a clock, a file or the kernel: `now` is an argument. [`file::Store`] is the only door to the
//! copy on disk; the agent supplies it, the plugin assigns and frees.
//!
//! ```text
//!            supply                 assign
//!   spec ──────────────▶  Free  ──────────────▶ Assigned
//!                       │  ▲  ▲ ◀────────────── │     │ gone from spec
//!            relinquish │  │  │      free       │     ▼
//!                       ▼  │  └── back in ──── Assigned (vanished)
//!            relinquished  │       spec         │
//!            (names only)  │                    │ free
//!                       │  └───── Withdrawn ◀───┘
//!    gone from spec     ▼
//!                    forgotten      (a Free entry gone from spec is Withdrawn, too)
//! ```

pub mod file;
mod format;
mod supply;
#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::HashMap, net::Ipv4Addr};

pub use crate::sandbox::{Pod, Sandbox};
pub use format::{Malformed, VERSIONS};
pub use supply::{Occupant, Supplied, Supply};

/// Milliseconds of CLOCK_BOOTTIME, which goes on while the machine sleeps and starts anew with each boot.
pub type Millis = u64;

/// An address the node holds, as published in the spec. Its identity is the name of its ipConfiguration, never used
/// twice; the address is its attribute. The addresses of a block are entries of one name: each is assigned by itself, but
/// they come and go, and are relinquished, only together.
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
    /// To be assigned once `since` lies a cooldown back; None = not used in this boot.
    Free {
        since: Option<Millis>,
    },
    Assigned(Assignment),
    /// Gone from the spec without having been relinquished: not assigned unless it comes back.
    Withdrawn {
        since: Option<Millis>,
    },
}

/// Who has an entry, and how to see whether they live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub sandbox: Sandbox,
    pub pod: Pod,
    /// The name of the CNI network whose ADD asked for it. Empty if nobody remembers: what is wired doesn't tell, nor did the
    /// release before.
    pub network: String,
    pub since: Millis,
    pub proof: Proof,
    /// The entry has gone from the spec while the pod was using it.
    pub vanished: bool,
}

/// By what to see whether a sandbox lives. What can't be looked at lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The host's end of the sandbox's veth pair: our wiring. It ends with the sandbox's network namespace. By the name that ADD gave
    /// it; it says itself whose it is, and its name may have changed since.
    Link(String),
    /// The file of the sandbox's network namespace and, if it is known, the namespace's inode: another plugin did the wiring
    /// and asked for the address only (delegated IPAM). Inodes come again, but not behind the same path.
    Namespace { path: String, inode: Option<u64> },
}

/// What an ADD says of itself when it asks for an address.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub sandbox: &'a Sandbox,
    pub pod: &'a Pod,
    /// The name of its CNI network.
    pub network: &'a str,
    pub proof: &'a Proof,
}

/// An ADD that found nothing to assign. It counts, and is served, only while it holds its sandbox's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub sandbox: Sandbox,
    pub pod: Pod,
    pub network: String,
    pub since: Millis,
    pub proof: Proof,
}

/// What [`Ledger::assign`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assign {
    /// This sandbox's address, now or since earlier.
    Assigned(Ipv4Addr),
    /// The sandbox waits in line; an address that cools now is ready at `until`, if there is one.
    Waiting { until: Option<Millis> },
}

/// `held` = `assigned` - `vanished` + `cooling` + `free`; the entries under `relinquished` and `withdrawn` are no longer held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub held: u32,
    pub assigned: u32,
    /// Held and free, but of no use to a new pod yet: freed less than a cooldown ago, or something is attached to it.
    pub cooling: u32,
    pub free: u32,
    pub waiting: u32,
    pub relinquished: u32,
    /// Assigned, but gone from the spec.
    pub vanished: u32,
    pub withdrawn: u32,
}

/// The node's addresses and their use. See the module for the transitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    boot_id: String,
    node_uid: String,
    /// UID and generation of the NodeIPAllocation supplied last, so that a stale view of it is told from a new one.
    object: String,
    generation: i64,
    /// Milliseconds from free to assignable.
    cooldown: Millis,
    /// When entries new to this ledger were freed, for all we know.
    freed_at: Option<Millis>,
    had_first_address: bool,
    records: Vec<Record>,
    /// Names given up for release: never assigned, forgotten once the spec has them no more.
    relinquished: Vec<String>,
    /// First come first.
    waiting: Vec<Waiter>,
}

impl Ledger {
    /// Gives the sandbox an address: the one it has, or the one freed longest ago among those that have cooled and
    /// may go to its pod, in the fullest block that has one. If there is none, or others wait for it, the sandbox waits in line.
    pub fn assign(&mut self, sandbox: &Sandbox, pod: &Pod, now: Millis) -> Assign {
        let proof = &Proof::Link(sandbox.host_link(pod));
        self.assign_to(Claim { sandbox, pod, network: "", proof }, now)
    }

    /// The same for a sandbox that is seen to live by `proof`, of a network by its name.
    pub fn assign_to(&mut self, Claim { sandbox, pod, network, proof }: Claim<'_>, now: Millis) -> Assign {
        if let Some(address) = self.address_of(sandbox) {
            return Assign::Assigned(address);
        }
        if !self.is_waiting(sandbox) {
            let (sandbox, pod, proof) = (sandbox.clone(), pod.clone(), proof.clone());
            self.waiting.push(Waiter { sandbox, pod, network: network.to_owned(), since: now, proof });
        }
        self.serve(now);
        match self.address_of(sandbox) {
            Some(address) => Assign::Assigned(address),
            None => Assign::Waiting { until: self.next_ready(now) },
        }
    }

    /// Takes the sandbox's address back and gives up its place in line. Returns the address it had.
    pub fn free(&mut self, sandbox: &Sandbox, now: Millis) -> Option<Ipv4Addr> {
        self.cancel(sandbox);
        let record = self.records.iter_mut().find(|record| record.is_of(sandbox))?;
        let State::Assigned(assignment) = &record.state else { return None };
        record.state = match assignment.vanished {
            true => State::Withdrawn { since: Some(now) },
            false => State::Free { since: Some(now) },
        };
        Some(record.entry.address)
    }

    /// Ends the sandbox's waiting, and with it the ADD that waits. Says whether it was waiting.
    pub fn cancel(&mut self, sandbox: &Sandbox) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiter| waiter.sandbox != *sandbox);
        self.waiting.len() < before
    }

    /// Assigns what is ready to those who wait, in the order they came.
    fn serve(&mut self, now: Millis) {
        let mut still = Vec::new();
        for waiter in std::mem::take(&mut self.waiting) {
            match self.next_for(&waiter.pod.uid, now) {
                Some(index) => {
                    let Waiter { sandbox, pod, network, since: _, proof } = waiter;
                    let assignment = Assignment { sandbox, pod, network, since: now, proof, vanished: false };
                    self.records[index].state = State::Assigned(assignment);
                }
                None => still.push(waiter),
            }
        }
        self.waiting = still;
    }

    /// Drops the waiters whose ADD is no more and serves the rest.
    pub(crate) fn settle(&mut self, now: Millis, is_alive: impl Fn(&Sandbox) -> bool) {
        if !self.waiting.is_empty() {
            self.waiting.retain(|waiter| is_alive(&waiter.sandbox));
            self.serve(now);
        }
    }

    /// The record to assign next to a pod: what was freed first goes first, what was never used before that. But before all
    /// that come the blocks with most addresses in use, so that the others become wholly free and can be given back:
    /// what the cooldown owes to an address's last user, it has got by then. First of all comes what is kept for this pod
    /// alone.
    fn next_for(&self, pod_uid: &str, now: Millis) -> Option<usize> {
        let mut in_use: HashMap<&str, u32> = HashMap::new();
        for (entry, _) in self.assignments() {
            *in_use.entry(&entry.name).or_default() += 1;
        }
        let fullness = |index: usize| in_use.get(self.records[index].entry.name.as_str()).copied();
        let mut free: Vec<usize> = (0..self.records.len())
            .filter(|&index| self.records[index].is_free() && self.records[index].entry.is_for(pod_uid))
            .collect();
        free.sort_by_key(|&index| {
            let is_for_all = self.records[index].entry.attached_to.is_none();
            (is_for_all, Reverse(fullness(index)), self.freed(index))
        });
        free.into_iter().find(|&index| self.ready_at(index).is_some_and(|ready| ready <= now))
    }

    /// When a record was freed; None if it wasn't used in this boot.
    fn freed(&self, index: usize) -> Option<Millis> {
        match self.records[index].state {
            State::Free { since } => since,
            State::Assigned(_) | State::Withdrawn { .. } => None,
        }
    }

    /// When this record can be assigned; None if that doesn't depend on time alone. Its address may also stand in
    /// other records, when it was given back and came again under a new name: their use and cooldown bind this one.
    fn ready_at(&self, index: usize) -> Option<Millis> {
        if !self.records[index].is_free() {
            return None;
        }
        let address = self.records[index].entry.address;
        let mut ready = 0;
        for record in self.records.iter().filter(|record| record.entry.address == address) {
            match record.state {
                State::Assigned(_) => return None,
                State::Free { since } | State::Withdrawn { since } => {
                    ready = ready.max(since.map_or(0, |since| since.saturating_add(self.cooldown)));
                }
            }
        }
        Some(ready)
    }

    /// When the next address that cools now will be ready.
    pub fn next_ready(&self, now: Millis) -> Option<Millis> {
        (0..self.records.len()).filter_map(|index| self.ready_at(index)).filter(|&ready| ready > now).min()
    }

    /// The counts that status, metrics and planner go by.
    pub fn counts(&self, now: Millis) -> Counts {
        let mut counts = Counts {
            waiting: self.waiting.len() as u32,
            relinquished: self.relinquished.len() as u32,
            ..Counts::default()
        };
        for (index, record) in self.records.iter().enumerate() {
            match &record.state {
                State::Assigned(assignment) => {
                    counts.assigned += 1;
                    counts.vanished += u32::from(assignment.vanished);
                }
                State::Withdrawn { .. } => counts.withdrawn += 1,
                State::Free { .. } if record.entry.attached_to.is_some() => counts.cooling += 1,
                State::Free { .. } if self.ready_at(index).is_some_and(|ready| ready <= now) => {
                    counts.free += 1
                }
                State::Free { .. } => counts.cooling += 1,
            }
        }
        counts.held = counts.assigned - counts.vanished + counts.cooling + counts.free;
        counts
    }

    /// The address the sandbox has.
    pub fn address_of(&self, sandbox: &Sandbox) -> Option<Ipv4Addr> {
        self.records.iter().find(|record| record.is_of(sandbox)).map(|record| record.entry.address)
    }

    pub fn is_waiting(&self, sandbox: &Sandbox) -> bool {
        self.waiting.iter().any(|waiter| waiter.sandbox == *sandbox)
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    pub fn assignments(&self) -> impl Iterator<Item = (&Entry, &Assignment)> {
        self.records.iter().filter_map(|record| match &record.state {
            State::Assigned(assignment) => Some((&record.entry, assignment)),
            _ => None,
        })
    }

    /// Those who wait, first come first.
    pub fn waiting(&self) -> &[Waiter] {
        &self.waiting
    }

    /// The names given up for release and still in the spec.
    pub fn relinquished(&self) -> impl Iterator<Item = &str> {
        self.relinquished.iter().map(String::as_str)
    }

    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    pub fn node_uid(&self) -> &str {
        &self.node_uid
    }

    /// Whether the node ever held an address in this boot: from then on it is ready for pods, though it may be full.
    pub fn had_first_address(&self) -> bool {
        self.had_first_address
    }
}

impl Entry {
    /// Whether the pod with this UID may have it. No pod has the empty UID.
    fn is_for(&self, pod_uid: &str) -> bool {
        self.attached_to.as_deref().is_none_or(|uid| uid == pod_uid)
    }
}

impl Record {
    fn is_of(&self, sandbox: &Sandbox) -> bool {
        matches!(&self.state, State::Assigned(assignment) if assignment.sandbox == *sandbox)
    }

    fn is_free(&self) -> bool {
        matches!(self.state, State::Free { .. })
    }
}
