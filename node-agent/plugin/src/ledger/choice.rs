//! When addresses are ready to be assigned, and which of them a pod gets.

use std::{cmp::Reverse, collections::HashMap, net::Ipv4Addr};

use foldhash::fast::FixedState;

use super::{Millis, Record, State};

/// The keys come from Azure and the operator, and neither would search for collisions. So there is no need to
/// ask the kernel for random bytes, nor for a hash that takes as long as the reading of the ledger.
type Map<K, V> = HashMap<K, V, FixedState>;

/// When each record can be assigned, in the order of the records; None if that doesn't depend on time alone.
/// An address may be in several records, if it was given back and came again under a new name. Use and
/// cooldown under one name hold for the others, too.
#[derive(Default)]
pub(super) struct Readiness(Vec<Option<Millis>>);

impl Readiness {
    pub(super) fn of(records: &[Record], cooldown: Millis) -> Readiness {
        let by_itself = |record: &Record| match record.state() {
            State::Assigned(_) => None,
            State::Free { since } | State::Withdrawn { since } => {
                Some(since.map_or(0, |since| since.saturating_add(cooldown)))
            }
        };
        let mut all: Vec<Option<Millis>> = records.iter().map(by_itself).collect();
        // Every pod waits for this. A ledger is mostly in this order already, so that sorting it takes less
        // time and memory than a table of hashes.
        let mut by_address: Vec<(Ipv4Addr, u32)> =
            records.iter().zip(0..).map(|(record, index)| (record.address(), index)).collect();
        by_address.sort_unstable();
        for same in by_address.chunk_by(|one, next| one.0 == next.0).filter(|same| same.len() > 1) {
            let each = same.iter().map(|&(_, index)| all[index as usize]);
            let last = each.reduce(|one, next| one.zip(next).map(|(one, next)| one.max(next))).flatten();
            same.iter().for_each(|&(_, index)| all[index as usize] = last);
        }
        for (ready, _) in all.iter_mut().zip(records).filter(|(_, record)| !record.is_free()) {
            *ready = None;
        }
        Readiness(all)
    }

    /// When the record of this index can be assigned; None if that doesn't depend on time alone.
    pub(super) fn at(&self, index: usize) -> Option<Millis> {
        self.0.get(index).copied().flatten()
    }

    pub(super) fn is_ready(&self, index: usize, now: Millis) -> bool {
        self.at(index).is_some_and(|ready| ready <= now)
    }
}

/// The records that can be assigned at one moment, in their order.
#[derive(Default)]
pub(super) struct Choice(Vec<Candidate>);

struct Candidate {
    /// Of the record.
    index: usize,
    /// How many addresses of its block are in use.
    in_use: u32,
}

impl Choice {
    pub(super) fn at(records: &[Record], cooldown: Millis, now: Millis) -> Choice {
        // Most ledgers of a node on which pods wait have nothing free at all.
        if !records.iter().any(Record::is_free) {
            return Choice::default();
        }
        let is_assigned = |record: &&Record| matches!(record.state(), State::Assigned(_));
        let assigned = records.iter().filter(is_assigned);
        let mut in_use: Map<&str, u32> =
            Map::with_capacity_and_hasher(assigned.clone().count(), FixedState::default());
        assigned.for_each(|record| *in_use.entry(record.name()).or_default() += 1);
        let readiness = Readiness::of(records, cooldown);
        let mut ready = Vec::with_capacity(records.len());
        let is_ready = |(index, _): &(usize, &Record)| readiness.is_ready(*index, now);
        ready.extend(records.iter().enumerate().filter(is_ready).map(|(index, record)| Candidate {
            index,
            in_use: if in_use.is_empty() {
                0
            } else {
                in_use.get(record.name()).copied().unwrap_or_default()
            },
        }));
        Choice(ready)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record to assign next to a pod. In this order of preference:
    /// 1. a record that is kept for this pod alone;
    /// 2. a record of the block with the most addresses in use, so that other blocks become wholly free and
    ///    can be given back (the cooldown of the address's last user has passed then);
    /// 3. the record that was freed first; before it any that was never used.
    pub(super) fn for_pod(&self, records: &[Record], pod_uid: &str) -> Option<usize> {
        let may_go = self.0.iter().filter(|one| records[one.index].is_for(pod_uid));
        let best = may_go.min_by_key(|one| {
            let record = &records[one.index];
            (record.attached_to().is_none(), Reverse(one.in_use), record.freed())
        });
        best.map(|one| one.index)
    }

    /// The record of this index has just been assigned.
    pub(super) fn take(&mut self, records: &[Record], index: usize) {
        let taken = &records[index];
        self.0.retain(|one| records[one.index].address() != taken.address());
        let is_of_block = |one: &&mut Candidate| records[one.index].name() == taken.name();
        self.0.iter_mut().filter(is_of_block).for_each(|one| one.in_use += 1);
    }
}
