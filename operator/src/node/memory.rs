//! What this process remembers of a node between two reconciles. All of it can be lost: it saves requests, nothing more.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use kube::ResourceExt;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, condition};

use super::attachments::Attaching;
use super::growth;
use super::observe::hint::Hints;
use super::report::sandboxes::Outlived;
use super::setback::Setback;
use crate::azure::ResourceId;
use crate::lock::lock;
use crate::planner::Plan;
use crate::shortage::Said;

/// One node's, taken out while it is reconciled: the controller never runs two reconciles of one object at once.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The object it is about: one made anew is a stranger.
    uid: Option<String>,
    /// The generation of `spec` as we last saw or wrote it; a later one is somebody else's work.
    generation: Option<i64>,
    /// When this process last read or wrote the NIC.
    pub nic_known: Option<Instant>,
    /// The NIC may not be as we know it.
    pub must_read: bool,
    /// A write is under way, or its outcome isn't known.
    pub writing: bool,
    /// What we have said of that last: the condition `Writing`, which is no other leader's while we haven't taken it back.
    said_writing: bool,
    /// The subnet for which the VM had no NIC when it was last asked.
    pub chosen: Option<ResourceId>,
    /// Addresses that left the NIC under their pods and belong to somebody else by now: not asked for again.
    pub taken: BTreeSet<Ipv4Net>,
    pub hints: Hints,
    pub growth_since: Option<Instant>,
    pub release_since: Option<Instant>,
    pub setback: Option<Setback>,
    /// Azure has refused the pool's application security groups.
    pub grouping: Option<Setback>,
    /// What an operator before this one has found of the subnet, until it has been looked into.
    pub recalled: Option<Said>,
    /// UID and generation of the pool that served the node when last looked.
    pool: Option<(Option<String>, Option<i64>)>,
    /// Since when the agent lags behind `spec`.
    pub behind_since: Option<Instant>,
    /// When the conditions were last written.
    pub reported: Option<Instant>,
    /// Since when the Node is gone.
    pub vacant_since: Option<Instant>,
    /// A subscription and resource group of a gone Node's that Azure doesn't know, and since when.
    pub scope_missing: Option<(String, Instant)>,
    /// Errors of the API server in a row.
    pub api_errors: u32,
    pub attaching: Attaching,
    pub outlived: Outlived,
}

impl Memory {
    fn of(allocation: &NodeIPAllocation) -> Memory {
        // Left behind by an operator that ended during a write.
        let writing = is_writing(allocation);
        Memory {
            uid: allocation.uid(),
            generation: allocation.metadata.generation,
            nic_known: None,
            must_read: writing,
            writing,
            said_writing: writing,
            chosen: None,
            taken: BTreeSet::new(),
            hints: Hints::default(),
            growth_since: None,
            release_since: None,
            setback: None,
            grouping: None,
            recalled: growth::recalled(allocation),
            pool: None,
            behind_since: None,
            reported: None,
            vacant_since: None,
            scope_missing: None,
            api_errors: 0,
            attaching: Attaching::default(),
            outlived: Outlived::default(),
        }
    }

    /// Looks for the hand of another: an old leader's or a person's `spec`, another leader's write. Either may have changed
    /// the NIC as well.
    pub fn notice(&mut self, seen: &NodeIPAllocation) {
        if seen.metadata.generation > self.generation {
            self.generation = seen.metadata.generation;
            self.must_read = true;
        }
        if is_writing(seen) && !self.said_writing {
            self.said_writing = true;
            self.writing = true;
            self.must_read = true;
        }
    }

    /// Takes note of the API server's answer to conditions of ours. They are applied whatever the version, so what it shows
    /// of `spec` may be somebody else's.
    pub fn said(&mut self, answer: &NodeIPAllocation) {
        self.said_writing = is_writing(answer);
        self.notice(answer);
    }

    /// Takes note of the API server's answer to our writing `spec`.
    pub fn wrote(&mut self, answer: &NodeIPAllocation) {
        self.generation = answer.metadata.generation;
    }

    /// A pool that a person has edited, or another pool, is tried at once, whatever Azure refused before: it may be the change
    /// that was waited for, and whoever made it is looking.
    /// Gives a number that stands for that edit.
    pub fn served_by(&mut self, pool: Option<&NodeIPPool>, now: Instant) -> Option<u64> {
        let pool = pool.map(|pool| (pool.uid(), pool.metadata.generation));
        let before = std::mem::replace(&mut self.pool, pool.clone());
        if before == pool {
            return None;
        }
        for setback in [&mut self.setback, &mut self.grouping].into_iter().flatten() {
            if setback.needs_change {
                setback.until = setback.until.min(now);
            }
        }
        // The first pool that is seen is no edit.
        before.map(|_| BuildHasherDefault::<DefaultHasher>::default().hash_one(pool))
    }

    /// Starts and stops the clocks that the planner asks for.
    pub fn note(&mut self, plan: &Plan, now: Instant) {
        let clock = |since: Option<Instant>, runs: bool| runs.then(|| since.unwrap_or(now));
        self.growth_since = clock(self.growth_since, plan.grows);
        self.release_since = clock(self.release_since, plan.releases);
    }
}

fn is_writing(allocation: &NodeIPAllocation) -> bool {
    condition::is_true(allocation.conditions(), condition::WRITING)
}

/// Of all nodes, by name.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<String, Memory>>);

impl Memories {
    /// Takes out what is remembered of the object, if it is still the same one.
    pub fn take(&self, allocation: &NodeIPAllocation) -> Memory {
        self.lock()
            .remove(&allocation.name_any())
            .filter(|memory| memory.uid == allocation.uid())
            .unwrap_or_else(|| Memory::of(allocation))
    }

    pub fn put(&self, name: &str, memory: Memory) {
        self.lock().insert(name.to_owned(), memory);
    }

    pub fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// How long the error of the last reconcile wants the next one to wait.
    pub fn wait(&self, name: &str, now: Instant) -> Option<Duration> {
        let until = self.lock().get(name)?.setback.as_ref()?.until;
        Some(until.saturating_duration_since(now))
    }

    /// How many errors of the API server there were in a row.
    pub fn api_errors(&self, name: &str) -> u32 {
        self.lock().get(name).map_or(0, |memory| memory.api_errors)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::setback::Stage;
    use super::*;
    use serde_json::json;

    fn allocation(uid: &str, version: u64, generation: i64) -> NodeIPAllocation {
        let object = json!({
            "metadata": {"name": "n", "uid": uid, "resourceVersion": version.to_string(), "generation": generation},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
        });
        serde_json::from_value(object).unwrap()
    }

    fn written(mut object: NodeIPAllocation) -> NodeIPAllocation {
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let writing = condition::new(condition::WRITING, true, "Writing", "", None, now);
        object.status.get_or_insert_default().conditions.push(writing);
        object
    }

    #[test]
    fn a_spec_written_by_somebody_else_makes_us_read_the_nic() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.notice(&allocation("a", 10, 1));
        assert!(!memory.must_read);
        memory.notice(&allocation("a", 11, 2));
        assert!(memory.must_read);
    }

    #[test]
    fn a_spec_of_somebody_else_in_the_answer_to_our_conditions_makes_us_read_the_nic() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.said(&allocation("a", 10, 1));
        assert!(!memory.must_read);
        memory.said(&allocation("a", 12, 2));
        assert!(memory.must_read);
    }

    #[test]
    fn a_write_that_another_leader_began_makes_us_read_the_nic() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.notice(&written(allocation("a", 10, 1)));
        assert!(memory.must_read && memory.writing);
    }

    #[test]
    fn a_write_of_ours_that_has_ended_is_no_other_leaders_while_its_announcement_stands() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.writing = true;
        let announced = written(allocation("a", 10, 1));
        memory.said(&announced);
        // It has ended, and what came of it couldn't be published: an agent reported in that moment.
        memory.writing = false;
        memory.notice(&announced);
        memory.notice(&written(allocation("a", 11, 1)));
        assert!(!memory.must_read && !memory.writing);
        memory.said(&allocation("a", 12, 1));
        memory.notice(&written(allocation("a", 13, 1)));
        assert!(memory.must_read && memory.writing, "another's");
    }

    #[test]
    fn an_edited_pool_ends_the_wait_for_a_person() {
        let now = Instant::now();
        let pool = |generation: i64| -> NodeIPPool {
            let metadata = json!({"name": "p", "uid": "p", "generation": generation});
            serde_json::from_value(json!({"metadata": metadata, "spec": {}})).unwrap()
        };
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.served_by(Some(&pool(1)), now);
        let denied =
            crate::azure::Error::Denied { action: "a".into(), scope: "s".into(), message: "m".into() };
        memory.setback = Some(Setback::after(None, Stage::Write, &denied, now));
        let holds = |memory: &Memory| memory.setback.as_ref().unwrap().holds(now);
        memory.served_by(Some(&pool(1)), now);
        assert!(holds(&memory));
        memory.served_by(Some(&pool(2)), now);
        assert!(!holds(&memory));
    }

    #[test]
    fn an_object_made_anew_is_a_stranger() {
        let memories = Memories::default();
        let mut memory = memories.take(&allocation("a", 9, 1));
        memory.nic_known = Some(Instant::now());
        memories.put("n", memory);
        assert!(memories.take(&allocation("b", 10, 1)).nic_known.is_none());
    }

    #[test]
    fn a_write_left_behind_by_a_dead_operator_makes_us_read_the_nic() {
        let object = written(allocation("a", 9, 1));
        let memory = Memories::default().take(&object);
        assert!(memory.must_read && memory.writing);
    }
}
