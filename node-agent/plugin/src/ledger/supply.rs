//! The agent's half of the ledger: taking over what the spec says, giving entries up, building a ledger anew.

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use super::{Assignment, Entry, Ledger, Millis, Pod, Proof, Record, Sandbox, State};

/// What one version of a NodeIPAllocation's spec says about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supply {
    /// `metadata.uid` of the object.
    pub object: String,
    /// `metadata.generation`: grows with every change of the spec.
    pub generation: i64,
    pub node_uid: String,
    /// `spec.bootID`: the boot for which the operator has read the NIC.
    pub boot_id: String,
    pub cooldown: Duration,
    pub entries: Vec<Entry>,
}

/// What became of a [`Supply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplied {
    Applied,
    /// An older generation than the ledger has seen: nothing changed. Without this a late event could bring an entry
    /// back that was relinquished, removed from the NIC and forgotten.
    Stale,
    /// The spec is not of this boot: nothing changed.
    OtherBoot,
}

/// A sandbox found to use an address, whatever the ledger says: a host link of ours and the address behind it, or what was
/// reported of a sandbox that another plugin wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    pub sandbox: Sandbox,
    pub pod: Pod,
    pub address: Ipv4Addr,
    pub proof: Proof,
}

impl Ledger {
    /// A ledger from the three sources there are, in the order of their authority: addresses in use on the node are
    /// assigned, whatever the others say; relinquished names are never supplied again; then comes the spec.
    ///
    /// `freed_at` is when the addresses not in use were freed, for all we know: None on the first ledger of a boot
    /// (whatever used them ended with the boot before), `Some(now)` when an earlier one of this boot may have been lost.
    pub fn rebuild(
        boot_id: &str,
        occupants: &[Occupant],
        relinquished: &[String],
        supply: &Supply,
        freed_at: Option<Millis>,
        now: Millis,
    ) -> Ledger {
        let mut ledger = Ledger {
            boot_id: boot_id.to_owned(),
            node_uid: supply.node_uid.clone(),
            object: supply.object.clone(),
            generation: supply.generation,
            cooldown: millis(supply.cooldown),
            freed_at,
            had_first_address: false,
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

    /// Takes over the spec: new entries become free; a relinquished one that is gone is forgotten; any other that is
    /// gone is withdrawn if free and kept under its pod if assigned; one that comes back is as it was. So is an address
    /// under its pod that comes back under another name: this node has it again, and nobody else's can it be.
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
            if !entries.iter().any(|entry| is_same(entry, &record.entry)) {
                record.vanish();
            }
        }
        for entry in entries.iter().filter(|entry| !self.relinquished.contains(&entry.name)) {
            let known = self.records.iter().position(|record| is_same(entry, &record.entry));
            let under_its_pod = || self.records.iter().position(|record| record.waits_for(entry.address));
            match known.or_else(under_its_pod) {
                Some(index) => self.records[index].come_back(entry),
                None => self
                    .records
                    .push(Record { entry: entry.clone(), state: State::Free { since: self.freed_at } }),
            }
        }
        self.had_first_address |= !self.records.is_empty();
        Supplied::Applied
    }

    /// Takes what is held beyond `target` out of circulation, as far as it is free, has cooled and has nothing
    /// attached: the entries freed longest ago first, those of a block only all together. There is no way back, since the
    /// operator may already be removing them. Returns their names.
    pub fn relinquish(&mut self, target: u32, now: Millis) -> Vec<String> {
        let mut surplus = self.counts(now).held.saturating_sub(target);
        let mut names = Vec::new();
        for (name, size) in self.idle(now) {
            if size <= surplus {
                surplus -= size;
                names.push(name);
            }
        }
        self.records.retain(|record| !record.is_free() || !names.contains(&record.entry.name));
        self.relinquished.extend_from_slice(&names);
        names
    }

    /// The names all of whose addresses could be assigned now, with how many these are; the one freed longest ago first, and
    /// a block is freed when its last address is.
    fn idle(&self, now: Millis) -> Vec<(String, u32)> {
        #[derive(Default)]
        struct Reservation {
            freed: Option<Millis>,
            size: u32,
            in_use: bool,
        }
        // By name in the order of the records, so that equal times leave that order.
        let mut order: Vec<&str> = Vec::new();
        let mut all: HashMap<&str, Reservation> = HashMap::new();
        for (index, record) in self.records.iter().enumerate() {
            let name = record.entry.name.as_str();
            let one = all.entry(name).or_insert_with(|| {
                order.push(name);
                Reservation::default()
            });
            one.size += 1;
            one.freed = one.freed.max(self.freed(index));
            // No pod has the empty UID, so one that is attached to something is in use, too.
            one.in_use |= !record.entry.is_for("") || self.ready_at(index).is_none_or(|ready| ready > now);
        }
        let mut idle: Vec<(&str, &Reservation)> =
            order.iter().filter_map(|name| all.get_key_value(name)).map(|(name, one)| (*name, one)).collect();
        idle.retain(|(_, one)| !one.in_use);
        idle.sort_by_key(|(_, one)| one.freed);
        idle.into_iter().map(|(name, one)| (name.to_owned(), one.size)).collect()
    }

    /// Assigns an address to the sandbox that uses it on the node without the ledger knowing. Says whether it did:
    /// not if the sandbox or the address is assigned already.
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
            State::Assigned(Assignment { sandbox, pod, network: String::new(), since: now, proof, vanished })
        };
        match self.records.iter_mut().find(|record| record.entry.address == *address) {
            Some(record) => record.state = assignment(matches!(record.state, State::Withdrawn { .. })),
            None => {
                let entry = Entry { name: String::new(), address: *address, attached_to: None };
                self.records.push(Record { entry, state: assignment(true) });
            }
        }
        self.had_first_address = true;
        true
    }
}

impl Record {
    /// A pod uses this address though the spec had it no more.
    fn waits_for(&self, address: Ipv4Addr) -> bool {
        self.entry.address == address
            && matches!(&self.state, State::Assigned(assignment) if assignment.vanished)
    }

    /// The spec no longer has this entry, and it was not relinquished.
    fn vanish(&mut self) {
        match &mut self.state {
            State::Assigned(assignment) => assignment.vanished = true,
            State::Free { since } => self.state = State::Withdrawn { since: *since },
            State::Withdrawn { .. } => {}
        }
    }

    /// The spec has this entry, perhaps again.
    fn come_back(&mut self, entry: &Entry) {
        self.entry.clone_from(entry);
        match &mut self.state {
            State::Assigned(assignment) => assignment.vanished = false,
            State::Withdrawn { since } => self.state = State::Free { since: *since },
            State::Free { .. } => {}
        }
    }
}

/// Whether the spec's entry is the one of a record; a record from a rebuild, in use and yet unnamed, takes the name
/// the spec has for its address.
fn is_same(published: &Entry, recorded: &Entry) -> bool {
    published.address == recorded.address && (recorded.name.is_empty() || published.name == recorded.name)
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
