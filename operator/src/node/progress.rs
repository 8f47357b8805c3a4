//! How far one reconcile of a node has got.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{self, UPDATING};

use kube::ResourceExt;

use super::lag::{Lag, lag};
use super::memory::Memory;
use super::memory::attaching::Attaching;
use super::need::Need;
use super::observe::Seen;
use super::observe::obstacle::Obstacle;
use super::pause::Pause;
use super::policy;
use super::setback::Setback;
use super::strays::Strays;
use super::takeup::Place;
use crate::planner::{Plan, Rehearsal, attachments};

/// The findings and decisions so far.
pub struct Progress {
    /// The newest version there is.
    pub allocation: Arc<NodeIPAllocation>,
    /// When a `spec` was published that the agent is about to take up; `None` if it isn't, or if conditions
    /// have been reported since.
    pub published_at: Option<tokio::time::Instant>,
    pub need: Need,
    /// Why nothing may be written to Azure.
    pub pause: Option<Pause>,
    /// The node's place in the rollout of its pool's edit.
    pub place: Place,
    /// When the node was last observed: the state of then has shaped the plan, though it may be over.
    pub observed_at: Instant,
    /// `None` while an error holds the observation back. On the heap, like the plan: thousands of nodes may
    /// wait for their first observation.
    pub seen: Option<Box<Seen>>,
    pub plan: Option<Box<Plan>>,
    /// The intended writes, in a dry run.
    pub rehearsal: Option<Rehearsal>,
    pub attachments: Option<attachments::Plan>,
}

/// From a reconcile that was overtaken to the next.
pub const SOON: Duration = Duration::from_millis(100);

/// The next steps after a reconcile.
pub enum Next {
    After(Duration),
    /// There is no object any more.
    Gone,
}

/// Why a node is to be reconciled again though nothing has changed, and in how long.
#[derive(Default)]
struct Reasons {
    /// The plan waits for a burst or a surplus to last.
    plan: Option<Duration>,
    /// The policy of a pool that serves the node no more holds until then.
    grace: Option<Duration>,
    /// An error holds writes or reads back until then.
    setback: Option<Duration>,
    /// Another client's write to the NIC is under way, or one of ours may come late.
    nic: Option<Duration>,
    /// There is more to write.
    more: Option<Duration>,
    /// Azure has refused an attachment.
    refused: Option<Duration>,
    /// Azure has refused parts of writes.
    left_out: Option<Duration>,
    /// A condition is due.
    report: Option<Duration>,
    /// The agent hasn't reported yet which addresses pods use.
    reported_by: Option<Duration>,
    /// The metadata service misses an address.
    hint: Option<Duration>,
    /// A write that mends has to show its effect, or Azure is freeing an address.
    mending: Option<Duration>,
    /// Azure has refused to take back our reservations on another NIC, or the VM's NICs are to be read again.
    strays: Option<Duration>,
    /// Azure has refused to take back our reservations on a NIC that the node has left.
    left: Option<Duration>,
}

impl Progress {
    pub fn of(allocation: Arc<NodeIPAllocation>, need: Need) -> Progress {
        let observed_at = Instant::now();
        Progress {
            allocation,
            published_at: None,
            need,
            pause: None,
            place: Place::Unneeded,
            observed_at,
            seen: None,
            plan: None,
            rehearsal: None,
            attachments: None,
        }
    }

    /// Forgets the findings, to observe the node anew.
    pub fn begin(&mut self, now: Instant) {
        (self.seen, self.plan, self.rehearsal, self.attachments) = (None, None, None, None);
        self.observed_at = now;
        self.need.note();
    }

    /// Goes on with this version, in which `spec` is published. An agent that had taken up the one before is
    /// there, and takes this one up within moments.
    pub fn published(&mut self, answer: Arc<NodeIPAllocation>, boot_id: &str) {
        let is_changed = answer.metadata.generation != self.allocation.metadata.generation;
        if is_changed && lag(&self.allocation, boot_id) == Lag::None {
            self.published_at.get_or_insert_with(tokio::time::Instant::now);
        }
        self.allocation = answer;
    }

    /// Whether `spec` doesn't name yet what is about to be written: the NIC or the route table, or the groups
    /// that the NIC joins.
    pub fn names_less_than_is_written(&self) -> bool {
        let (spec, seen) = (&self.allocation.spec, self.seen.as_ref());
        let table = seen.and_then(|seen| seen.backend.route_table_id());
        let nic = seen.and_then(|seen| seen.nic.as_ref());
        let is_named =
            spec.serving().zip(nic).is_some_and(|(named, nic)| named.id.eq_ignore_ascii_case(&nic.id));
        let named = spec.serving().map(|named| &named.application_security_groups);
        let joins_more = nic.is_some_and(|nic| {
            nic.application_security_groups.iter().any(|id| !named.is_some_and(|named| named.contains(id)))
        });
        !is_named || joins_more || spec.route_table_id != table
    }

    /// Whether the node takes up an edit of its pool.
    pub fn is_updating(&self) -> bool {
        self.place == Place::Given
    }

    /// Whether the object records that the node has its place.
    pub fn records_updating(&self) -> bool {
        condition::is_true(self.allocation.conditions(), UPDATING)
    }

    /// Whether the node holds what its pool asks for, and its agent has taken that up. A surplus holds no
    /// place: pods may pin it, and an edit of less can be taken back until it has lasted. Groups that Azure
    /// refuses keep it: they would be refused to the next node, too.
    pub fn is_settled(&self, boot_id: &str, memory: &Memory) -> bool {
        let (Some(seen), Some(plan)) = (&self.seen, &self.plan) else { return false };
        let is_seen = !seen.is_held_back && seen.obstacle.is_none() && seen.left.is_empty();
        let is_fulfilled = !plan.grows && !plan.releases && !plan.repairs && !plan.reroutes;
        let follows = seen.pool.as_ref().is_some_and(|pool| {
            pool.name_any() == self.allocation.spec.pool && policy::follows(&self.allocation.spec, pool)
        });
        is_seen
            && is_fulfilled
            && !plan.regroups
            && follows
            && !memory.nic.writing
            && lag(&self.allocation, boot_id) == Lag::None
    }

    /// Whether the node has settled, and has reported it: its place is free.
    pub fn has_taken_up(&self) -> bool {
        self.is_updating() && self.pause.is_none() && !self.records_updating()
    }

    pub fn wants_write(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| !plan.change.is_empty())
    }

    /// Whether the written resource is this node's alone.
    pub fn writes_alone(&self) -> bool {
        self.seen.as_ref().is_none_or(|seen| seen.backend.route_table_id().is_none())
    }

    /// Whether an attachment's step is to be taken.
    fn has_step(&self) -> bool {
        let has_nic = self.seen.as_ref().is_some_and(|seen| seen.nic.is_some());
        self.may_write() && has_nic && self.attachments.as_ref().is_some_and(|plan| plan.step.is_some())
    }

    /// Whether no error holds every write back.
    pub fn may_write(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.observed.may_write)
    }

    /// Whether the object records a NIC, and the node's isn't known.
    pub fn lacks_nic(&self) -> bool {
        let is_known = self.seen.as_ref().is_some_and(|seen| seen.nic.is_some());
        !is_known && !self.allocation.spec.interfaces.is_empty()
    }

    /// Whether something is to be attached or taken off, made, read or deleted, and no error holds all of it
    /// back.
    fn wants_attachments(&self, attaching: &Attaching) -> bool {
        let orders = |plan: &attachments::Plan| {
            !(plan.make.is_empty() && plan.read.is_empty() && plan.delete.is_empty())
        };
        let has_orders = self.may_write() && self.attachments.as_ref().is_some_and(orders);
        !attaching.holds(self.observed_at) && (self.has_step() || has_orders)
    }

    /// Whether the plan has a change and was made from the `spec`'s mirror: then it is made again from the
    /// NIC itself.
    pub fn acts_on_a_mirror(&self, attaching: &Attaching) -> bool {
        let is_mirrored = self.seen.as_ref().is_some_and(|seen| !seen.is_read && !seen.is_held_back);
        let rehearses = self.rehearsal.as_ref().is_some_and(|rehearsal| !rehearsal.is_empty());
        is_mirrored && (self.wants_write() || self.wants_attachments(attaching) || rehearses)
    }

    /// No pool serves the node any more, and it has given back everything, on whatever NIC that was, and
    /// public addresses that are on none.
    pub fn is_done_with(&self, strays: &Strays) -> bool {
        let is_known = self.seen.as_ref().filter(|seen| !seen.is_held_back);
        let no_pool = is_known.is_some_and(|seen| seen.obstacle == Some(Obstacle::NoPool));
        let holds_nothing =
            self.plan.as_ref().is_some_and(|plan| plan.kept == 0 && !plan.releases && !plan.regroups);
        let none_is_detached = self.allocation.spec.detached_public_addresses.is_empty();
        let has_left_none = strays.with_recorded(&self.allocation).is_empty()
            && self.allocation.spec.left_interfaces.is_empty();
        no_pool && holds_nothing && none_is_detached && has_left_none
    }

    /// How long until the node is to be reconciled again. Every reason is asked as of the last observation,
    /// and what has come due since then is due at once. An error that held a write back at the observation
    /// and has expired since would otherwise be forgotten.
    pub fn requeue_in(
        &self,
        memory: &Memory,
        report: Option<Duration>,
        recheck: Duration,
        now: Instant,
    ) -> Duration {
        let since = now.saturating_duration_since(self.observed_at);
        let now = self.observed_at;
        let seen = self.seen.as_ref();
        let holding = |setback: &Setback| setback.holds(now).then(|| setback.until - now);
        // Without a NIC there is none to read, however long it is due.
        let has_nic = seen.is_some_and(|seen| !seen.is_held_back && seen.nic.is_some());
        // While the last write was under way, more may have come to do.
        let attaches = self.has_step() && !memory.attaching.holds(now);
        let reasons = Reasons {
            plan: self.plan.as_ref().and_then(|plan| plan.requeue),
            grace: seen.and_then(|seen| seen.pool_change.as_ref()?.due()),
            setback: memory.setback.as_ref().and_then(holding),
            nic: memory.nic.wait(now).filter(|_| has_nic),
            more: (self.wants_write() || attaches).then_some(Duration::ZERO),
            refused: memory.attaching.wait(now),
            left_out: memory.left_out.values().filter_map(holding).min(),
            report,
            reported_by: seen
                .and_then(|seen| seen.reported_by)
                .map(|until| until.saturating_duration_since(now)),
            mending: memory.mending.wait(now),
            strays: if memory.nic.must_choose(now) && self.may_write() && has_nic {
                Some(Duration::ZERO)
            } else {
                [memory.strays.wait(now), memory.nic.wait_for_all(now)].into_iter().flatten().min()
            },
            left: memory.left.wait(now),
            // A read that is due and wasn't answered is held back by an error, which has a time of its own.
            hint: memory.nic.hints.due(&self.allocation, now).filter(|wait| !wait.is_zero()),
        };
        reasons.soonest().map_or(recheck, |soonest| soonest.min(recheck)).saturating_sub(since)
    }
}

impl Reasons {
    fn soonest(self) -> Option<Duration> {
        let Reasons { plan, grace, setback, nic, more, refused, left_out, .. } = self;
        let Reasons { report, reported_by, hint, mending, strays, left, .. } = self;
        let of_service = [plan, grace, setback, nic, more, refused, left_out, report];
        let beside = [reported_by, hint, mending, strays, left];
        of_service.into_iter().chain(beside).flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memories;
    use super::super::memory::known::Read;
    use super::super::setback::Stage;
    use super::*;
    use crate::azure::{self, Nic, ProvisioningState, sample_nic};
    use crate::cluster::{Cluster, Watched};
    use crate::planner;
    use kube::Client;
    use serde_json::json;
    use vnetpool_crds::allocation::Interface;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The start of a node about which nothing is known, in a cluster without watches.
    fn begun() -> (Progress, Memory) {
        let object = json!({
            "metadata": {"name": "n", "uid": "a", "resourceVersion": "9"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
        });
        let allocation: Arc<NodeIPAllocation> = Arc::new(serde_json::from_value(object).unwrap());
        let memory = Memories::default().take(&allocation);
        let url = "http://127.0.0.1:1".parse().unwrap();
        let client = Client::try_from(kube::Config::new(url)).unwrap();
        let Watched { cluster, waker, .. } = Cluster::watch(&client, &Arc::default(), &Default::default());
        (Progress::of(allocation, Need::of(&cluster, &waker, "n")), memory)
    }

    /// Nothing is held for the node, and nothing wanted.
    fn with_nothing(progress: &mut Progress, memory: &Memory) {
        let seen = Seen::sample(&progress.allocation, Obstacle::NoPool, memory, progress.observed_at);
        progress.plan = Some(Box::new(planner::plan(&seen.observed)));
        progress.seen = Some(Box::new(seen));
    }

    #[tokio::test]
    async fn an_object_stays_as_long_as_a_nic_beside_the_serving_one_holds_our_addresses() {
        let (mut progress, mut memory) = begun();
        with_nothing(&mut progress, &memory);
        assert!(progress.is_done_with(&memory.strays));
        let nic = sample_nic(&[]).id;
        let serving =
            nic.as_str().replace("/networkInterfaces/", "/networkInterfaces/other-").parse().unwrap();
        memory.strays.add(nic.clone());
        assert!(!progress.is_done_with(&memory.strays));
        let own = std::slice::from_ref(&nic);
        assert_eq!(memory.strays.found(&[], (own, own), &serving, false), []);
        assert!(progress.is_done_with(&memory.strays));
        let mut named = NodeIPAllocation::clone(&progress.allocation);
        named.spec.left_interfaces = vec![Interface { id: nic.to_string(), ..Interface::default() }];
        progress.allocation = Arc::new(named);
        assert!(!progress.is_done_with(&memory.strays), "one that the node has left");
    }

    #[tokio::test]
    async fn an_object_stays_as_long_as_it_names_a_public_address_that_no_nic_has() {
        let (mut progress, memory) = begun();
        with_nothing(&mut progress, &memory);
        let mut named = NodeIPAllocation::clone(&progress.allocation);
        named.spec.detached_public_addresses = vec!["/subscriptions/s".into()];
        progress.allocation = Arc::new(named);
        assert!(!progress.is_done_with(&memory.strays));
    }

    #[tokio::test]
    async fn a_nic_is_not_read_with_each_event_while_azure_refuses_all_attachments() {
        let (mut progress, mut memory) = begun();
        with_nothing(&mut progress, &memory);
        if let Some(seen) = &mut progress.seen {
            seen.observed.may_write = true;
        }
        let delete = vec![sample_nic(&[]).id.clone()];
        progress.attachments = Some(attachments::Plan { delete, ..Default::default() });
        assert!(progress.acts_on_a_mirror(&memory.attaching));
        let conflict = azure::Error::WithoutEffect { resource: "nic".into() };
        memory.attaching.setback = Some(Setback::after(None, Stage::Write, &conflict, progress.observed_at));
        assert!(!progress.acts_on_a_mirror(&memory.attaching));
    }

    #[tokio::test]
    async fn a_read_that_is_due_does_not_requeue_a_node_without_a_nic() {
        let (mut progress, mut memory) = begun();
        let begun = progress.observed_at;
        let updating = Nic { state: ProvisioningState::Updating, ..sample_nic(&[]) };
        memory.nic.learn(&Read::Nic { at: begun }, Some(&updating), &progress.allocation, HOUR, begun);
        memory.nic.must_choose = true;
        // It is due by now.
        progress.observed_at += HOUR;
        with_nothing(&mut progress, &memory);
        let wait = progress.requeue_in(&memory, None, 2 * HOUR, progress.observed_at);
        assert_eq!(wait, 2 * HOUR);
        progress.seen.as_mut().unwrap().nic = Some(Default::default());
        assert_eq!(progress.requeue_in(&memory, None, 2 * HOUR, progress.observed_at), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_error_that_expires_during_a_reconcile_is_requeued_at_once() {
        let (progress, mut memory) = begun();
        let lost = azure::Error::OutcomeUnknown { resource: "nic".into(), message: "cut off".into() };
        memory.setback = Some(Setback::after(None, Stage::Write, &lost, progress.observed_at));
        let wait = |after| {
            progress.requeue_in(&memory, None, HOUR, progress.observed_at + Duration::from_millis(after))
        };
        // Half a second is how long it holds.
        assert_eq!(wait(200), Duration::from_millis(300));
        assert_eq!(wait(2000), Duration::ZERO);
    }
}
