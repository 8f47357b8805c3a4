//! When addresses are ready to be assigned, and which of them a pod gets.

use std::{cmp::Reverse, collections::HashMap, net::Ipv4Addr};

use foldhash::fast::FixedState;

use super::{Millis, Record, State};

/// The keys come from Azure and the operator, and neither would search for collisions. So there is no need to
/// ask the kernel for random bytes, nor for a hash that takes as long as the reading of the ledger.
type Map<K, V> = HashMap<K, V, FixedState>;

/// When each address is ready that is free under some name; None while a pod has it under another. An address
/// may be in several records, if it was given back and came again under a new name. Use and cooldown under
/// one name hold for the others, too.
#[derive(Default)]
pub(super) struct Readiness(Map<Ipv4Addr, Option<Millis>>);

impl Readiness {
    pub(super) fn of(records: &[Record], cooldown: Millis) -> Readiness {
        let mut all: Map<Ipv4Addr, Option<Millis>> =
            Map::with_capacity_and_hasher(records.len(), FixedState::default());
        for record in records.iter().filter(|record| record.is_free()) {
            all.insert(record.entry().address, Some(0));
        }
        for record in records {
            let ready = match record.state() {
                State::Assigned(_) => None,
                State::Free { since } | State::Withdrawn { since } => {
                    Some(since.map_or(0, |since| since.saturating_add(cooldown)))
                }
            };
            if let Some(known) = all.get_mut(&record.entry().address) {
                *known = known.zip(ready).map(|(known, ready)| known.max(ready));
            }
        }
        Readiness(all)
    }

    /// When this record can be assigned; None if that doesn't depend on time alone.
    pub(super) fn at(&self, record: &Record) -> Option<Millis> {
        if record.is_free() { self.0.get(&record.entry().address).copied().flatten() } else { None }
    }

    pub(super) fn is_ready(&self, record: &Record, now: Millis) -> bool {
        self.at(record).is_some_and(|ready| ready <= now)
    }
}

/// The records that can be assigned at one moment.
#[derive(Default)]
pub(super) struct Choice {
    /// In the order of the records.
    ready: Vec<Candidate>,
    /// How many addresses of a candidate's block are in use.
    in_use: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Candidate {
    /// Of the record.
    index: usize,
    /// Of its block, in `in_use`.
    block: usize,
}

impl Choice {
    pub(super) fn at(records: &[Record], cooldown: Millis, now: Millis) -> Choice {
        // Most ledgers of a node on which pods wait have nothing free at all.
        if !records.iter().any(Record::is_free) {
            return Choice::default();
        }
        let readiness = Readiness::of(records, cooldown);
        let mut blocks: Map<&str, usize> =
            Map::with_capacity_and_hasher(records.len(), FixedState::default());
        let mut ready = Vec::new();
        for (index, record) in records.iter().enumerate().filter(|(_, one)| readiness.is_ready(one, now)) {
            let count = blocks.len();
            let block = *blocks.entry(&record.entry().name).or_insert(count);
            ready.push(Candidate { index, block });
        }
        let mut in_use = vec![0; blocks.len()];
        for record in records.iter().filter(|record| matches!(record.state(), State::Assigned(_))) {
            if let Some(&block) = blocks.get(record.entry().name.as_str()) {
                in_use[block] += 1;
            }
        }
        Choice { ready, in_use }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// The record to assign next to a pod. In this order of preference:
    /// 1. a record that is kept for this pod alone;
    /// 2. a record of the block with the most addresses in use, so that other blocks become wholly free and
    ///    can be given back (the cooldown of the address's last user has passed then);
    /// 3. the record that was freed first; before it any that was never used.
    pub(super) fn for_pod(&self, records: &[Record], pod_uid: &str) -> Option<usize> {
        let may_go = self.ready.iter().filter(|one| records[one.index].entry().is_for(pod_uid));
        let best = may_go.min_by_key(|one| {
            let record = &records[one.index];
            (record.entry().attached_to.is_none(), Reverse(self.in_use[one.block]), record.freed())
        });
        best.map(|one| one.index)
    }

    /// The record of this index has just been assigned.
    pub(super) fn take(&mut self, records: &[Record], index: usize) {
        if let Some(taken) = self.ready.iter().find(|one| one.index == index) {
            self.in_use[taken.block] += 1;
        }
        let address = records[index].entry().address;
        self.ready.retain(|one| records[one.index].entry().address != address);
    }
}
