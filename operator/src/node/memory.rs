//! What this process remembers of a node between two reconciles. All of it can be lost: it saves requests,
//! nothing more. Each part is a file below, or a room of its own; the others act by it.

pub mod attaching;
mod hint;
pub mod known;
pub mod left;
pub mod others;
pub mod outlived;
pub mod reports;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use kube::ResourceExt;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use super::absences::Absences;
use super::blame::Part;
use super::lag::Lag;
use super::mending::Mending;
use super::pending::Pending;
use super::recalled::Recalled;
use super::setback::{Setback, Stage};
use super::strays::Strays;
use crate::lock::lock;
use crate::planner::{Change, Plan};
use attaching::Attaching;
use known::Known;
use left::Left;
use others::Found;
use reports::Reports;

/// One node's, taken out while it is reconciled: the controller never runs two reconciles of one object at
/// once.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The object it is about: one made anew is a stranger.
    uid: Option<String>,
    pub nic: Known,
    /// Addresses that left the NIC under their pods and belong to another NIC now: not asked for again.
    pub taken: BTreeSet<Ipv4Net>,
    /// Since when addresses have left the NIC by another hand, until the agent has reported which of them
    /// pods use.
    pub vanished_since: Option<Instant>,
    pub growth_since: Option<Instant>,
    pub surplus_since: Option<Instant>,
    pub release_since: Option<Instant>,
    pub setback: Option<Setback>,
    pub strays: Strays,
    /// The NICs that the node has left.
    pub left: Left,
    /// Others' ipConfigurations, and since when the agent is asked about them.
    pub others: Found,
    pub mending: Mending,
    /// Parts of writes that Azure has refused.
    pub left_out: BTreeMap<Part, Setback>,
    /// An earlier operator's finding about the subnet or network, until it has been checked.
    pub recalled: Option<Recalled>,
    /// UID and generation of the pool that served the node at the last reconcile.
    pool: Option<(Option<String>, Option<i64>)>,
    /// All pods that the node had when this process came to lead are known.
    pub knows_pods: bool,
    /// Since when some of them aren't known that there are.
    pub lacks_pods_since: Option<tokio::time::Instant>,
    /// Since when the Node is gone.
    pub vacant_since: Option<Instant>,
    /// The object was deleted, and serves its node as long as it is the only one that names something.
    pub serves_on: bool,
    /// The resources that Azure reports as absent.
    pub absences: Absences,
    /// What Azure has refused of the resources that it leaves behind.
    pub pending: Pending,
    /// Reconciles in a row that the API server or their deadline has ended.
    pub failures: u32,
    /// Reconciles in a row that wrote to a version of an object that others have replaced.
    pub conflicts: u32,
    pub attaching: Attaching,
    pub reports: Reports,
}

impl Memory {
    fn of(allocation: &NodeIPAllocation) -> Memory {
        Memory {
            uid: allocation.uid(),
            nic: Known::of(allocation),
            taken: BTreeSet::new(),
            vanished_since: None,
            growth_since: None,
            surplus_since: None,
            release_since: None,
            setback: None,
            strays: Strays::of(allocation),
            left: Left::default(),
            others: Found::default(),
            mending: Mending::default(),
            left_out: BTreeMap::new(),
            recalled: Recalled::of(allocation),
            pool: None,
            knows_pods: false,
            lacks_pods_since: None,
            vacant_since: None,
            serves_on: false,
            absences: Absences::of(allocation),
            pending: Pending::default(),
            failures: 0,
            conflicts: 0,
            attaching: Attaching::default(),
            reports: Reports::default(),
        }
    }

    /// A pool that a person has edited, or another pool, is tried at once, whatever Azure refused before: it
    /// may be the awaited change, and its author is watching. Returns a number that stands for that edit.
    pub fn pool_seen(&mut self, pool: Option<&NodeIPPool>, now: Instant) -> Option<u64> {
        let pool = pool.map(|pool| (pool.uid(), pool.metadata.generation));
        let before = std::mem::replace(&mut self.pool, pool.clone());
        if before == pool {
            return None;
        }
        for setback in self.left_out.values_mut().chain(&mut self.setback) {
            setback.edited(now);
        }
        self.attaching.edited(now);
        // The first pool that is seen is no edit.
        before.map(|_| BuildHasherDefault::<DefaultHasher>::default().hash_one(pool))
    }

    /// Whether a part is left out of writes for now.
    pub fn is_left_out(&self, part: Part, now: Instant) -> bool {
        self.left_out.get(&part).is_some_and(|setback| setback.holds(now))
    }

    /// Whether something of a write was refused before.
    pub fn has_refused_part_of(&self, change: &Change) -> bool {
        Part::of(change).iter().any(|part| self.left_out.contains_key(part))
            || self.mending.has_withheld(&change.restore)
    }

    /// Why the next writes go without a part. Groups have a condition of their own.
    pub fn lacking(&self) -> Option<&Setback> {
        [Part::Release, Part::Adoption].iter().find_map(|part| self.left_out.get(part))
    }

    /// From the moment an address has vanished, the agent is waited for until it has taken up a `spec`
    /// without it.
    fn await_agent(&mut self, has_vanished: bool, lag: &Lag, now: Instant) {
        self.vanished_since = match (has_vanished, lag) {
            (true, _) => self.vanished_since.or(Some(now)),
            (false, Lag::None) => None,
            (false, Lag::Behind | Lag::Silent) => self.vanished_since,
        };
    }

    /// Starts and stops the clocks that the planner asks for.
    pub fn run_clocks(&mut self, plan: &Plan, now: Instant) {
        let clock = |since: Option<Instant>, runs: bool| runs.then(|| since.unwrap_or(now));
        self.growth_since = clock(self.growth_since, plan.grows);
        self.release_since = clock(self.release_since, plan.releases);
        self.surplus_since = clock(self.surplus_since, plan.surplus);
    }

    /// Ends the waits that the NIC, or the plan made from it, shows to be over.
    pub fn end_what_is_over(&mut self, plan: &Plan, has_vanished: bool, lag: &Lag, now: Instant) {
        self.await_agent(has_vanished, lag, now);
        if !plan.repairs && !plan.reroutes {
            self.mending.mended();
        }
        if !plan.releases {
            self.left_out.remove(&Part::Release);
        }
        let releases = plan.releases && !self.left_out.contains_key(&Part::Release);
        let regroups = plan.regroups && !self.left_out.contains_key(&Part::Groups);
        self.setback = self.setback.take().filter(|setback| match setback.stage {
            Stage::Find => setback.holds(now),
            Stage::Growth => plan.grows,
            Stage::Write => {
                let mends = plan.repairs || plan.reroutes || plan.replaces;
                plan.grows || releases || mends || regroups
            }
        });
    }
}

/// An object that seems to be set back is made again no more often than this: only its agent claims it, and
/// may lie.
const RENEWALS_APART: Duration = Duration::from_secs(600);

/// Of all nodes, by name.
#[derive(Default)]
pub struct Memories {
    /// Before a node's NIC has been read, it is not taken to match its `spec`.
    reads_all: bool,
    all: Mutex<HashMap<String, Memory>>,
    /// When the object of a node was made again.
    renewed: Mutex<HashMap<String, Instant>>,
}

impl Memories {
    pub fn new(reads_all: bool) -> Memories {
        Memories { reads_all, ..Memories::default() }
    }

    /// Takes out the memory of the object, if it is still the same one.
    pub fn take(&self, allocation: &NodeIPAllocation) -> Memory {
        self.lock()
            .remove(&allocation.name_any())
            .filter(|memory| memory.uid == allocation.uid())
            .unwrap_or_else(|| {
                let mut memory = Memory::of(allocation);
                memory.nic.must_read |= self.reads_all;
                memory
            })
    }

    pub fn put(&self, name: &str, memory: Memory) {
        self.lock().insert(name.to_owned(), memory);
    }

    pub fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Whether the object may be made again because it was set back. If so, it is taken to be.
    pub fn may_renew(&self, name: &str, now: Instant) -> bool {
        let mut renewed = lock(&self.renewed);
        renewed.retain(|_, at| now.saturating_duration_since(*at) < RENEWALS_APART);
        let may = !renewed.contains_key(name);
        renewed.entry(name.to_owned()).or_insert(now);
        may
    }

    /// How many reconciles in a row the API server or their deadline has ended, and how many were refused as
    /// outdated.
    pub fn failures(&self, name: &str) -> (u32, u32) {
        self.lock().get(name).map_or((0, 0), |memory| (memory.failures, memory.conflicts))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        lock(&self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::{self, sample_nic};
    use crate::planner::{self, Observed};
    use serde_json::json;
    use vnetpool_crds::condition;
    use vnetpool_crds::reason::Reason;
    use vnetpool_crds::verdict::Verdict;

    fn allocation(uid: &str, version: u64, generation: i64) -> NodeIPAllocation {
        let object = json!({
            "metadata": {"name": "n", "uid": uid, "resourceVersion": version.to_string(), "generation": generation},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
        });
        serde_json::from_value(object).unwrap()
    }

    fn written(mut object: NodeIPAllocation) -> NodeIPAllocation {
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let writing = Verdict::yes(Reason::Writing, "").condition(condition::WRITING, None, now);
        object.status.get_or_insert_default().conditions.push(writing);
        object
    }

    #[test]
    fn a_spec_of_another_writer_makes_us_read_the_nic() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.nic.saw(&allocation("a", 10, 1));
        assert!(!memory.nic.must_read);
        memory.nic.saw(&allocation("a", 11, 2));
        assert!(memory.nic.must_read);
    }

    #[test]
    fn another_writers_spec_in_the_answer_to_our_conditions_makes_us_read_the_nic() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.nic.status_written(&allocation("a", 10, 1));
        assert!(!memory.nic.must_read);
        memory.nic.status_written(&allocation("a", 12, 2));
        assert!(memory.nic.must_read);
    }

    #[test]
    fn a_write_that_another_leader_began_makes_us_read_the_nic() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.nic.saw(&written(allocation("a", 10, 1)));
        assert!(memory.nic.must_read && memory.nic.writing);
    }

    #[test]
    fn a_write_of_ours_that_has_ended_is_no_other_leaders_while_its_announcement_stands() {
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.nic.writing = true;
        let announced = written(allocation("a", 10, 1));
        memory.nic.status_written(&announced);
        // It has ended, and its outcome couldn't be published: an agent reported in that moment.
        memory.nic.writing = false;
        memory.nic.saw(&announced);
        memory.nic.saw(&written(allocation("a", 11, 1)));
        assert!(!memory.nic.must_read && !memory.nic.writing);
        memory.nic.status_written(&allocation("a", 12, 1));
        memory.nic.saw(&written(allocation("a", 13, 1)));
        assert!(memory.nic.must_read && memory.nic.writing, "another's");
    }

    #[test]
    fn an_edited_pool_ends_the_wait_for_a_person() {
        let now = Instant::now();
        let pool = |generation: i64| -> NodeIPPool {
            let metadata = json!({"name": "p", "uid": "p", "generation": generation});
            serde_json::from_value(json!({"metadata": metadata, "spec": {}})).unwrap()
        };
        let mut memory = Memories::default().take(&allocation("a", 9, 1));
        memory.pool_seen(Some(&pool(1)), now);
        let denied =
            crate::azure::Error::Denied { action: "a".into(), scope: "s".into(), message: "m".into() };
        let refused = Setback::after(None, Stage::Write, &denied, now);
        memory.setback = Some(refused.clone());
        memory.attaching.refused.insert("u".into(), ("default/p".into(), refused.clone()));
        memory.attaching.undeleted.insert(sample_nic(&[]).id.clone(), refused.clone());
        memory.attaching.setback = Some(refused);
        let holding = |memory: &Memory| {
            let Attaching { refused, undeleted, setback, .. } = &memory.attaching;
            let attaching = refused.values().map(|(_, one)| one).chain(undeleted.values()).chain(setback);
            attaching.chain(&memory.setback).filter(|one| one.holds(now)).count()
        };
        memory.pool_seen(Some(&pool(1)), now);
        assert_eq!(holding(&memory), 4);
        memory.pool_seen(Some(&pool(2)), now);
        assert_eq!(holding(&memory), 0);
    }

    #[test]
    fn a_route_or_an_adoption_that_azure_refuses_is_not_tried_with_each_event() {
        let (mut memory, now) = (Memories::default().take(&allocation("a", 9, 1)), Instant::now());
        let (resource, scope, message) = ("t".to_owned(), "t".to_owned(), "m".to_owned());
        let locked = azure::Error::Locked { resource, scope, message };
        memory.setback = Some(Setback::after(None, Stage::Write, &locked, now));
        let right = planner::tests::observed(16, 0);
        let wrong = Observed { route_is_wrong: true, may_write: false, ..right.clone() };
        let foreign = Observed { adopt: vec!["theirs".into()], may_write: false, ..right.clone() };
        for refused in [wrong, foreign] {
            memory.end_what_is_over(&planner::plan(&refused), false, &Lag::None, now);
            assert!(memory.setback.as_ref().is_some_and(|setback| setback.holds(now)));
        }
        memory.end_what_is_over(&planner::plan(&right), false, &Lag::None, now);
        assert_eq!(memory.setback, None);
    }

    #[test]
    fn an_object_is_made_again_for_being_set_back_once_in_ten_minutes() {
        let (memories, start) = (Memories::default(), Instant::now());
        assert!(memories.may_renew("n", start));
        assert!(!memories.may_renew("n", start + RENEWALS_APART / 2));
        assert!(memories.may_renew("m", start + RENEWALS_APART / 2));
        assert!(memories.may_renew("n", start + RENEWALS_APART));
    }

    #[test]
    fn an_object_made_anew_is_a_stranger() {
        let memories = Memories::default();
        let mut memory = memories.take(&allocation("a", 9, 1));
        memory.nic.at = Some(Instant::now());
        memories.put("n", memory);
        assert!(memories.take(&allocation("b", 10, 1)).nic.at.is_none());
    }

    #[test]
    fn a_write_left_behind_by_a_dead_operator_makes_us_read_the_nic() {
        let object = written(allocation("a", 9, 1));
        let memory = Memories::default().take(&object);
        assert!(memory.nic.must_read && memory.nic.writing);
    }
}
