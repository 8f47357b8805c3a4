//! When addresses are ready to be assigned, and which of them a pod gets.

use std::{cmp::Reverse, collections::HashMap, net::Ipv4Addr};

use foldhash::fast::FixedState;

use super::{Millis, Record, Usage};

/// The keys come from Azure and the operator, and neither would search for collisions. So there is no need to
/// ask the kernel for random bytes, nor for a hash that takes as long as the reading of the ledger.
type Map<K, V> = HashMap<K, V, FixedState>;

/// When records can be assigned, as far as that depends on time alone.
pub(super) struct Readiness {
    cooldown: Millis,
    /// Addresses that are in several records, in their order: each was given back and came again under a new
    /// name. Use and cooldown under one name hold for the others, too.
    shared: Vec<(Ipv4Addr, Option<Millis>)>,
}

impl Readiness {
    pub(super) fn of(records: &[Record], cooldown: Millis) -> Readiness {
        let alone = Readiness { cooldown, shared: Vec::new() };
        // Every pod waits for this. Most ledgers are in this order, and then no address is in two records.
        if records.is_sorted_by(|one, next| one.address() < next.address()) {
            return alone;
        }
        let mut by_address: Vec<&Record> = records.iter().collect();
        by_address.sort_unstable_by_key(|record| record.address());
        let same = by_address.chunk_by(|one, next| one.address() == next.address());
        let shared = same.filter(|same| same.len() > 1).map(|same| {
            let each = same.iter().map(|record| alone.by_itself(record));
            let last = each.reduce(|one, next| one.zip(next).map(|(one, next)| one.max(next)));
            (same[0].address(), last.flatten())
        });
        Readiness { shared: shared.collect(), cooldown }
    }

    fn by_itself(&self, record: &Record) -> Option<Millis> {
        let cooldown = self.cooldown;
        match record.usage() {
            Usage::Assigned { .. } => None,
            Usage::Free { since } | Usage::Withdrawn { since } => {
                Some(since.map_or(0, |since| since.saturating_add(cooldown)))
            }
        }
    }

    /// When this record can be assigned; None if that doesn't depend on time alone.
    pub(super) fn at(&self, record: &Record) -> Option<Millis> {
        if !record.is_free() {
            return None;
        }
        match self.shared.binary_search_by_key(&record.address(), |(address, _)| *address) {
            Ok(index) => self.shared[index].1,
            Err(_) => self.by_itself(record),
        }
    }

    pub(super) fn is_ready(&self, record: &Record, now: Millis) -> bool {
        self.at(record).is_some_and(|ready| ready <= now)
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
        let readiness = Readiness::of(records, cooldown);
        let ready = records.iter().enumerate().filter(|(_, record)| readiness.is_ready(record, now));
        let mut ready: Vec<Candidate> = ready.map(|(index, _)| Candidate { index, in_use: 0 }).collect();
        let mut assigned = records.iter().filter(|record| record.is_assigned()).peekable();
        if assigned.peek().is_some() {
            // Only of the blocks that have an address to assign, which are fewer than those in use.
            let names = ready.iter().map(|one| (records[one.index].name(), 0));
            let mut in_use: Map<&[u8], u32> = names.collect();
            for record in assigned {
                if let Some(in_use) = in_use.get_mut(record.name()) {
                    *in_use += 1;
                }
            }
            for one in &mut ready {
                one.in_use = in_use.get(records[one.index].name()).copied().unwrap_or_default();
            }
        }
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
