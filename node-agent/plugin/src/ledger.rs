//! The ledger: which addresses this node holds and which sandbox has which, as pure state and transitions.
//!
//! Nothing here reads a clock, a file or the kernel: `now` is an argument. [`file::Store`] is the only way to
//! the copy on disk. The agent supplies the ledger; the plugin assigns and frees addresses.
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
//!
//! While the node lacks its rules, which a pod needs with its first packet, free addresses go to no pod: see
//! [`Ledger::rule`]. They are given back all the same, since an address needs no rules to leave.

mod choice;
pub mod file;
mod format;
mod record;
mod supply;
mod tenant;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use choice::{Choice, Readiness};
use record::Usage;

pub use crate::sandbox::{Pod, Sandbox};
pub use format::{Malformed, VERSIONS};
pub use record::{Assignment, Record, State};
pub use supply::{Occupant, Supplied, Supply};
pub use tenant::{Entry, Proof, Tenant};

/// Milliseconds of CLOCK_BOOTTIME, which goes on while the machine sleeps and starts anew with each boot.
pub type Millis = u64;

/// The sandbox for which an ADD asks for an address.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    pub sandbox: &'a Sandbox,
    pub pod: &'a Pod,
    /// The name of the sandbox's CNI network.
    pub network: &'a str,
    pub proof: Proof,
}

impl<'a> Claim<'a> {
    /// The claim of a sandbox that we wire: the host's end of its veth pair shows that it lives.
    pub fn wired(sandbox: &'a Sandbox, pod: &'a Pod, network: &'a str) -> Claim<'a> {
        Claim { sandbox, pod, network, proof: Proof::Link(sandbox.host_link(pod)) }
    }
}

/// An ADD that waits because there was nothing to assign. It counts and is served only while it holds its
/// sandbox's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub sandbox: Sandbox,
    pub pod: Pod,
    pub network: String,
    pub since: Millis,
    pub proof: Proof,
}

/// The outcome of [`Ledger::assign`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assign {
    /// This sandbox's address, now or since earlier.
    Assigned(Ipv4Addr),
    /// The sandbox waits in line.
    Waiting,
}

/// `held` = `assigned` - `vanished` + `cooling` + `free`. The entries counted by `relinquished` and
/// `withdrawn` are no longer held, and those that are `withheld` not as long as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub held: u32,
    pub assigned: u32,
    /// Held and free, but not assignable to a new pod yet: freed less than a cooldown ago, or something is
    /// attached to it.
    pub cooling: u32,
    pub free: u32,
    pub waiting: u32,
    pub relinquished: u32,
    /// Assigned, but gone from the spec.
    pub vanished: u32,
    pub withdrawn: u32,
    /// Not assigned, while the node lacks its rules: neither free nor cooling until it has them.
    pub withheld: u32,
}

/// The node's addresses and their use. See the module for the transitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    boot_id: String,
    node_uid: String,
    /// UID and generation of the NodeIPAllocation supplied last. They distinguish a stale view of the object
    /// from a new one.
    object: String,
    generation: i64,
    /// How long a freed address cools before it is assignable again, in milliseconds.
    cooldown: Millis,
    /// When entries that are new to this ledger were freed, as far as is known.
    freed_at: Option<Millis>,
    had_first_address: bool,
    is_ruled: bool,
    records: Vec<Record>,
    /// Names given up for release. They are never assigned, and forgotten once the spec no longer has them.
    relinquished: Vec<String>,
    /// In the order in which they came.
    waiting: Vec<Waiter>,
}

impl Ledger {
    /// A ledger from its three sources, in the order of their authority: addresses in use on the node are
    /// assigned, whatever the other sources have; relinquished names are never supplied again; then comes the
    /// spec.
    ///
    /// `freed_at` is when the addresses not in use were freed, as far as is known. It is None for the first
    /// ledger of a boot, since whatever used them ended with the boot before. It is `Some(now)` when an
    /// earlier ledger of this boot may have been lost. `is_ruled` is as in [`Ledger::rule`].
    pub fn rebuild(
        boot_id: &str,
        occupants: &[Occupant],
        relinquished: &[String],
        supply: &Supply,
        freed_at: Option<Millis>,
        now: Millis,
        is_ruled: bool,
    ) -> Ledger {
        let mut ledger = Ledger {
            boot_id: boot_id.to_owned(),
            node_uid: supply.node_uid.clone(),
            object: supply.object.clone(),
            generation: supply.generation,
            cooldown: millis(supply.cooldown),
            freed_at,
            had_first_address: false,
            is_ruled,
            records: Vec::new(),
            relinquished: relinquished.to_vec(),
            waiting: Vec::new(),
        };
        for occupant in occupants {
            ledger.adopt(occupant, now);
        }
        ledger.supply(supply);
        ledger
    }

    /// Takes over the spec:
    /// - a new entry becomes free;
    /// - a relinquished entry that is gone is forgotten;
    /// - any other entry that is gone is withdrawn if it was free, and kept for its pod if it was assigned;
    /// - an entry that comes back is as it was before.
    ///
    /// An address that its pod kept and that comes back under another name is taken back, too: this node has
    /// it again, so no other node can have it.
    pub fn supply(&mut self, supply: &Supply) -> Supplied {
        let Supply { object, generation, node_uid, boot_id, cooldown, entries } = supply;
        if *object == self.object && *generation < self.generation {
            return Supplied::Stale;
        }
        if *boot_id != self.boot_id {
            return Supplied::OtherBoot;
        }
        self.object.clone_from(object);
        self.generation = *generation;
        self.node_uid.clone_from(node_uid);
        self.cooldown = millis(*cooldown);

        self.relinquished.retain(|name| entries.iter().any(|entry| entry.name == *name));
        for record in &mut self.records {
            if !entries.iter().any(|entry| record.is_of_entry(entry)) {
                record.vanish();
            }
        }
        for entry in entries.iter().filter(|entry| !self.relinquished.contains(&entry.name)) {
            let known = self.records.iter().position(|record| record.is_of_entry(entry));
            let under_its_pod = || self.records.iter().position(|record| record.waits_for(entry.address));
            match known.or_else(under_its_pod) {
                Some(index) => self.records[index].come_back(entry),
                None => {
                    self.records.push(Record::new(entry.clone(), State::Free { since: self.freed_at }));
                }
            }
        }
        self.note_first_address();
        Supplied::Applied
    }

    /// Records whether the node's rules are in place. Without them no address is assigned, or counts as free;
    /// pods' addresses, and the times at which others were freed, aren't touched. With them the waits end of
    /// the sandboxes that have an address already.
    pub fn rule(&mut self, is_ruled: bool) {
        self.is_ruled = is_ruled;
        if is_ruled {
            let records = &self.records;
            self.waiting.retain(|waiter| !records.iter().any(|record| record.is_of(&waiter.sandbox)));
        }
        self.note_first_address();
    }

    fn note_first_address(&mut self) {
        let is_held = |record: &Record| match record.usage() {
            Usage::Free { .. } => self.is_ruled,
            Usage::Assigned { .. } => true,
            Usage::Withdrawn { .. } => false,
        };
        self.had_first_address |= self.records.iter().any(is_held);
    }

    /// Relinquishes the addresses held or withheld beyond `target`, as far as they are free, have cooled and
    /// have no attachment: the entries freed longest ago first, those of a block only all together. This
    /// can't be taken back, since the operator may already be removing the entries. Returns their names.
    pub fn relinquish(&mut self, target: u32, now: Millis) -> Vec<String> {
        let Counts { held, withheld, .. } = self.counts(now);
        let mut surplus = (held + withheld).saturating_sub(target);
        let mut names = Vec::new();
        for (name, size) in self.idle(now) {
            if size <= surplus {
                surplus -= size;
                names.push(name);
            }
        }
        let is_given_up = |record: &Record| names.iter().any(|name| name.as_bytes() == record.name());
        self.records.retain(|record| !record.is_free() || !is_given_up(record));
        self.relinquished.extend_from_slice(&names);
        names
    }

    /// The names of which every address could be assigned now if the node has its rules, each with the number
    /// of its addresses. The name freed longest ago comes first; a block counts as freed when its last
    /// address was freed.
    fn idle(&self, now: Millis) -> Vec<(String, u32)> {
        #[derive(Default)]
        struct Reservation {
            freed: Option<Millis>,
            size: u32,
            in_use: bool,
        }
        // In the order of the records, so that names freed at the same time keep that order.
        let mut order: Vec<&[u8]> = Vec::new();
        let mut all: HashMap<&[u8], Reservation> = HashMap::new();
        let readiness = self.readiness();
        for record in &self.records {
            let name = record.name();
            let one = all.entry(name).or_insert_with(|| {
                order.push(name);
                Reservation::default()
            });
            one.size += 1;
            one.freed = one.freed.max(record.freed());
            // No pod has the empty UID, so an entry with an attachment counts as in use, too.
            one.in_use |= !record.is_for("") || !readiness.is_ready(record, now);
        }
        let mut idle: Vec<(&[u8], &Reservation)> =
            order.iter().filter_map(|name| all.get_key_value(name)).map(|(name, one)| (*name, one)).collect();
        idle.retain(|(_, one)| !one.in_use);
        idle.sort_by_key(|(_, one)| one.freed);
        idle.into_iter().map(|(name, one)| (String::from_utf8_lossy(name).into_owned(), one.size)).collect()
    }

    /// Assigns an address to a sandbox that uses it on the node without being in the ledger. Returns whether
    /// it did: not if the sandbox or the address is assigned already.
    pub fn adopt(&mut self, occupant: &Occupant, now: Millis) -> bool {
        let Occupant { sandbox, pod, address, proof } = occupant;
        let is_taken = self
            .assignments()
            .any(|(entry, assignment)| assignment.sandbox == *sandbox || entry.address == *address);
        if is_taken {
            return false;
        }
        self.cancel(sandbox);
        let assignment = |vanished| {
            let (sandbox, pod, proof) = (sandbox.clone(), pod.clone(), proof.clone());
            let tenant = Tenant { sandbox, pod, network: String::new(), proof };
            State::Assigned(Assignment { since: now, vanished, tenant })
        };
        match self.records.iter_mut().find(|record| record.address() == *address) {
            Some(record) => record.set(assignment(matches!(record.usage(), Usage::Withdrawn { .. }))),
            None => {
                let entry = Entry { name: String::new(), address: *address, attached_to: None };
                self.records.push(Record::new(entry, assignment(true)));
            }
        }
        self.had_first_address = true;
        true
    }

    /// Gives the sandbox an address: the one it has, or the one freed longest ago among those that have
    /// cooled and may go to its pod, in the fullest block that has one. If there is none, or others wait for
    /// it, the sandbox waits in line. It does so, too, while the node lacks its rules, though it may have an
    /// address of an ADD that has died: a pod that is wired then would be reached past the rules.
    pub fn assign(&mut self, claim: &Claim<'_>, now: Millis) -> Assign {
        let Claim { sandbox, pod, network, proof } = claim;
        if self.is_ruled
            && let Some(address) = self.address_of(sandbox)
        {
            return Assign::Assigned(address);
        }
        if !self.is_waiting(sandbox) {
            let (sandbox, pod, network) = (Sandbox::clone(sandbox), Pod::clone(pod), (*network).to_owned());
            self.waiting.push(Waiter { sandbox, pod, network, since: now, proof: proof.clone() });
        }
        self.serve(now, |_| true);
        match self.granted_to(sandbox) {
            Some(address) => Assign::Assigned(address),
            None => Assign::Waiting,
        }
    }

    /// Takes the sandbox's address back and gives up its place in line. Returns the address it had.
    pub fn free(&mut self, sandbox: &Sandbox, now: Millis) -> Option<Ipv4Addr> {
        self.cancel(sandbox);
        let record = self.records.iter_mut().find(|record| record.is_of(sandbox))?;
        let Usage::Assigned { vanished, .. } = record.usage() else { return None };
        record.set(match vanished {
            true => State::Withdrawn { since: Some(now) },
            false => State::Free { since: Some(now) },
        });
        Some(record.address())
    }

    /// Ends the sandbox's wait, and with it the ADD that waits. Returns whether the sandbox was waiting.
    pub fn cancel(&mut self, sandbox: &Sandbox) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiter| waiter.sandbox != *sandbox);
        self.waiting.len() < before
    }

    /// Ends the waits of all ADDs.
    pub fn cancel_all(&mut self) {
        self.waiting.clear();
    }

    /// Assigns the addresses that are ready to the waiting ADDs, in the order in which these came. An ADD
    /// that has ended loses its place instead of being served.
    ///
    /// Only ADDs that would be served are checked for life, since each check is a system call: an ADD that
    /// can get nothing keeps its place, which costs nothing.
    pub(crate) fn serve(&mut self, now: Millis, is_alive: impl Fn(&Sandbox) -> bool) {
        if self.waiting.is_empty() {
            return;
        }
        let mut choice = self.choice(now);
        let mut line = std::mem::take(&mut self.waiting).into_iter();
        while !choice.is_empty()
            && let Some(waiter) = line.next()
        {
            match choice.for_pod(&self.records, &waiter.pod.uid) {
                // The release before this one may have put the rules back without ending this wait.
                Some(_) if self.address_of(&waiter.sandbox).is_some() => {}
                Some(index) if is_alive(&waiter.sandbox) => {
                    if line.len() > 0 {
                        choice.take(&self.records, index); // for those behind it
                    }
                    let Waiter { sandbox, pod, network, since: _, proof } = waiter;
                    let tenant = Tenant { sandbox, pod, network, proof };
                    let assignment = Assignment { since: now, vanished: false, tenant };
                    self.records[index].set(State::Assigned(assignment));
                }
                Some(_) => {}
                None => self.waiting.push(waiter),
            }
        }
        self.waiting.extend(line);
    }

    /// The records that can be assigned now.
    fn choice(&self, now: Millis) -> Choice {
        if self.is_ruled { Choice::at(&self.records, self.cooldown, now) } else { Choice::default() }
    }

    fn readiness(&self) -> Readiness {
        Readiness::of(&self.records, self.cooldown)
    }

    /// When the next of the addresses that cool now will be ready.
    pub fn next_ready(&self, now: Millis) -> Option<Millis> {
        let readiness = self.readiness();
        let ready = self.records.iter().filter_map(|record| readiness.at(record));
        ready.filter(|&ready| self.is_ruled && ready > now).min()
    }

    /// Whether an ADD waits that could have an address now, since time alone makes cooling addresses ready.
    pub fn is_due(&self, now: Millis) -> bool {
        let choice = self.choice(now);
        let can_be_served = |waiter: &Waiter| choice.for_pod(&self.records, &waiter.pod.uid).is_some();
        !choice.is_empty() && self.waiting.iter().any(can_be_served)
    }

    /// The counts for status, metrics and planner.
    pub fn counts(&self, now: Millis) -> Counts {
        let waits = |waiter: &&Waiter| self.is_ruled || self.address_of(&waiter.sandbox).is_none();
        let mut counts = Counts {
            waiting: self.waiting.iter().filter(waits).count() as u32,
            relinquished: self.relinquished.len() as u32,
            ..Counts::default()
        };
        let readiness = self.readiness();
        for record in &self.records {
            match record.usage() {
                Usage::Assigned { vanished, .. } => {
                    counts.assigned += 1;
                    counts.vanished += u32::from(vanished);
                }
                Usage::Withdrawn { .. } => counts.withdrawn += 1,
                Usage::Free { .. } if !self.is_ruled => counts.withheld += 1,
                Usage::Free { .. } if record.attached_to().is_some() => counts.cooling += 1,
                Usage::Free { .. } if readiness.is_ready(record, now) => counts.free += 1,
                Usage::Free { .. } => counts.cooling += 1,
            }
        }
        counts.held = counts.assigned - counts.vanished + counts.cooling + counts.free;
        counts
    }

    /// The address the sandbox has.
    pub fn address_of(&self, sandbox: &Sandbox) -> Option<Ipv4Addr> {
        self.records.iter().find(|record| record.is_of(sandbox)).map(Record::address)
    }

    /// The address with which the sandbox's ADD may go on. An ADD that waits has none, nor does one whose
    /// wait was cancelled while the node lacks its rules, though its sandbox may have the address of an ADD
    /// that has died.
    pub fn granted_to(&self, sandbox: &Sandbox) -> Option<Ipv4Addr> {
        self.address_of(sandbox).filter(|_| self.is_ruled && !self.is_waiting(sandbox))
    }

    pub fn is_waiting(&self, sandbox: &Sandbox) -> bool {
        self.waiting.iter().any(|waiter| waiter.sandbox == *sandbox)
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    pub fn assignments(&self) -> impl Iterator<Item = (&Entry, &Assignment)> {
        self.records.iter().filter_map(|record| match record.state() {
            State::Assigned(assignment) => Some((record.entry(), assignment)),
            _ => None,
        })
    }

    /// The waiting ADDs in the order in which they came.
    pub fn waiting(&self) -> &[Waiter] {
        &self.waiting
    }

    /// The names that were given up for release and that the spec still has.
    pub fn relinquished(&self) -> impl Iterator<Item = &str> {
        self.relinquished.iter().map(String::as_str)
    }

    /// UID of the object supplied last.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Of the spec supplied last.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Whether the node's rules are in place, as far as the agent knows.
    pub fn is_ruled(&self) -> bool {
        self.is_ruled
    }

    /// Whether the node ever held an address in this boot, with its rules in place or in use. From then on it
    /// is ready for pods, though it may be full.
    pub fn had_first_address(&self) -> bool {
        self.had_first_address
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
