//! What this process remembers of a node between two reconciles. All of it can be lost: it saves requests, nothing more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use vnetpool_crds::{NodeIPAllocation, condition};

use super::setback::Setback;
use crate::planner::Plan;

/// One node's, taken out while it is reconciled: the controller never runs two reconciles of one object at once.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The object it is about: one made anew is a stranger.
    uid: Option<String>,
    /// What the API server last answered us, until the watch has caught up with it.
    latest: Option<Arc<NodeIPAllocation>>,
    /// The generation of `spec` as we last saw or wrote it; a later one is somebody else's work.
    generation: Option<i64>,
    /// When this process last read or wrote the NIC.
    pub nic_known: Option<Instant>,
    /// The NIC may not be as we know it.
    pub must_read: bool,
    /// A write is under way, or its outcome isn't known: the condition `Writing`.
    pub writing: bool,
    pub growth_since: Option<Instant>,
    pub release_since: Option<Instant>,
    pub setback: Option<Setback>,
    /// Since when the agent lags behind `spec`.
    pub behind_since: Option<Instant>,
    /// When the conditions were last written.
    pub reported: Option<Instant>,
    /// Since when the Node is gone.
    pub vacant_since: Option<Instant>,
    /// Errors of the API server in a row.
    pub api_errors: u32,
}

impl Memory {
    fn of(allocation: &NodeIPAllocation) -> Memory {
        let conditions =
            allocation.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        // Left behind by an operator that ended during a write.
        let writing = condition::is_true(conditions, condition::WRITING);
        Memory {
            uid: allocation.uid(),
            latest: None,
            generation: allocation.metadata.generation,
            nic_known: None,
            must_read: writing,
            writing,
            growth_since: None,
            release_since: None,
            setback: None,
            behind_since: None,
            reported: None,
            vacant_since: None,
            api_errors: 0,
        }
    }

    /// The newest version of the object there is, given the watch's.
    pub fn newest(&mut self, watched: Arc<NodeIPAllocation>) -> Arc<NodeIPAllocation> {
        let newest = match self.latest.take() {
            Some(latest) if version(&latest) > version(&watched) => {
                self.latest = Some(latest.clone());
                latest
            }
            _ => watched,
        };
        if newest.metadata.generation > self.generation {
            // An old leader's, or a person's: either may have touched the NIC as well.
            self.generation = newest.metadata.generation;
            self.must_read = true;
        }
        newest
    }

    /// Takes note of the API server's answer to a write of ours.
    pub fn wrote(&mut self, answer: Arc<NodeIPAllocation>) -> Arc<NodeIPAllocation> {
        self.generation = answer.metadata.generation;
        self.latest = Some(answer.clone());
        answer
    }

    /// Starts and stops the clocks that the planner asks for.
    pub fn note(&mut self, plan: &Plan, now: Instant) {
        let clock = |since: Option<Instant>, runs: bool| runs.then(|| since.unwrap_or(now));
        self.growth_since = clock(self.growth_since, plan.grows);
        self.release_since = clock(self.release_since, plan.releases);
    }
}

/// Kubernetes lets clients compare the resourceVersions of one object as numbers.
fn version(allocation: &NodeIPAllocation) -> u64 {
    allocation
        .metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allocation(uid: &str, version: u64, generation: i64) -> Arc<NodeIPAllocation> {
        let object = json!({
            "metadata": {"name": "n", "uid": uid, "resourceVersion": version.to_string(), "generation": generation},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn our_own_write_counts_until_the_watch_has_caught_up() {
        let memories = Memories::default();
        let mut memory = memories.take(&allocation("a", 9, 1));
        memory.wrote(allocation("a", 10, 2));
        assert_eq!(version(&memory.newest(allocation("a", 9, 1))), 10);
        assert_eq!(version(&memory.newest(allocation("a", 11, 2))), 11);
        assert!(!memory.must_read);
    }

    #[test]
    fn a_spec_written_by_somebody_else_makes_us_read_the_nic() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.newest(allocation("a", 10, 1));
        assert!(!memory.must_read);
        memory.newest(allocation("a", 11, 2));
        assert!(memory.must_read);
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
        let mut object = (*allocation("a", 9, 1)).clone();
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        object.status.get_or_insert_default().conditions.push(condition::new(
            condition::WRITING,
            true,
            "Writing",
            "",
            None,
            now,
        ));
        let memory = Memories::default().take(&object);
        assert!(memory.must_read && memory.writing);
    }
}
