//! What this process knows of a node's NIC, and when that is out of date.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use vnetpool_crds::{NodeIPAllocation, condition, names};

use super::hint::Hints;
use crate::azure::{self, Freshness, Nic, ResourceId};

/// How long an unsettled NIC is left alone at first. It may stay so for hours, and each read is one less for
/// other nodes; so it is twice as long each time.
const UNSETTLED: Duration = Duration::from_secs(5);
const LONGEST_UNSETTLED: Duration = Duration::from_secs(320);
/// How soon to read all of a VM's NICs again when one beside the serving one wasn't shown: each attempt may
/// take as long as a request without an answer.
const OTHERS_AGAIN: Duration = Duration::from_secs(600);
/// How soon where Azure has refused to show it. That may be so for all nodes of a pool.
const REFUSED_AGAIN: Duration = Duration::from_secs(3600);

/// All of it can be lost: the NIC is then read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Known {
    /// When this process last read or wrote the NIC.
    pub at: Option<Instant>,
    /// The NIC may not be as we know it.
    pub must_read: bool,
    /// The VM's NICs are to be read, all of them.
    pub must_choose: bool,
    /// When this process last read all of them.
    pub all_at: Option<Instant>,
    /// Until when a write may come late to one that doesn't serve any more. Then all of them are read once
    /// more.
    late_until: Option<Instant>,
    /// When to read all of them again, because Azure hasn't shown one.
    hidden_until: Option<Instant>,
    /// A leader before us has recorded such NICs. What it has sent may still come.
    inherits_strays: bool,
    /// An operation was at work on it when it was read: how long it is left alone since, and when it is to be
    /// read again.
    unsettled: Option<(Duration, Instant)>,
    /// A write is under way, or its outcome isn't known.
    pub writing: bool,
    /// The outcome of a write isn't known, of ours or of a leader before us.
    in_doubt: bool,
    /// A write to the model of the NIC's instance has failed and may have left something there.
    pub model_failed: bool,
    /// When to read the NIC once more, because such a write may have come late.
    once_more: Option<Instant>,
    /// The condition `Writing` as we last wrote it. While we haven't cleared it, a `Writing` that we see is
    /// our own.
    reported_writing: bool,
    /// The subnet for which the VM had no NIC when it was last asked.
    pub lacking: Option<ResourceId>,
    /// Why not all of the VM's NICs were read when they were to be.
    pub hidden: Option<String>,
    pub hints: Hints,
    /// The generation of `spec` as we last saw or wrote it; a later one is another writer's work.
    generation: Option<i64>,
    /// The last word by which a person asked for a read. One that was there before us counts as answered:
    /// otherwise each new leader would read the NICs of all whose nodes were ever asked for.
    asked: Option<String>,
}

/// What a reconcile takes the NIC from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Its mirror in `spec`.
    Mirror,
    Nic(Freshness),
    /// All of the VM's NICs, read from Azure.
    AllNics,
}

/// The NICs that were read from Azure, and when.
pub enum Read {
    Nothing,
    Nic {
        at: Instant,
    },
    /// The one that serves. All of the VM's were to be read, and Azure hasn't shown another: why, and whether
    /// that may pass by itself.
    Serving {
        at: Instant,
        why: String,
        may_pass: bool,
        others: Box<Others>,
    },
    /// The VM and each of its NICs. `lacking` is the subnet in which the pool wants a NIC that the VM doesn't
    /// have.
    All {
        at: Instant,
        lacking: Option<ResourceId>,
        others: Box<Others>,
    },
}

/// What was seen of the VM's NICs beside the one that serves.
#[derive(Debug, Default)]
pub struct Others {
    /// The ids of all of the VM's; none if Azure hasn't shown the VM.
    pub own: Vec<ResourceId>,
    /// Those of them whose content Azure has shown.
    pub shown: Vec<ResourceId>,
    /// They have a reservation of ours, or served until now.
    pub strays: Vec<ResourceId>,
    /// There is one that served until now.
    pub serves_anew: bool,
}

impl Known {
    pub fn of(allocation: &NodeIPAllocation) -> Known {
        // Left behind by an operator that ended during a write.
        let writing = is_writing(allocation);
        Known {
            must_read: writing,
            writing,
            in_doubt: writing,
            model_failed: writing && is_of_instance(allocation),
            reported_writing: writing,
            inherits_strays: !allocation.spec.stray_interfaces.is_empty(),
            generation: allocation.metadata.generation,
            asked: asked(allocation).cloned(),
            ..Known::default()
        }
    }

    /// A version of the object was seen. The `spec` of an old leader or of a person, and the write of another
    /// leader, may have changed the NIC as well.
    pub fn saw(&mut self, allocation: &NodeIPAllocation) {
        if allocation.metadata.generation > self.generation {
            self.generation = allocation.metadata.generation;
            self.must_read = true;
        }
        if self.asked.as_ref() != asked(allocation) {
            self.asked = asked(allocation).cloned();
            self.must_read |= self.asked.is_some();
        }
        if is_writing(allocation) && !self.reported_writing {
            self.reported_writing = true;
            self.writing = true;
            self.in_doubt = true;
            self.model_failed = is_of_instance(allocation);
            self.must_read = true;
        }
    }

    /// The API server has answered to conditions of ours. They are applied whatever the version, so the
    /// `spec` in the answer may be another writer's.
    pub fn status_written(&mut self, answer: &NodeIPAllocation) {
        self.reported_writing = is_writing(answer);
        self.saw(answer);
    }

    /// The API server has answered to a `spec` of ours.
    pub fn spec_written(&mut self, answer: &NodeIPAllocation) {
        self.generation = answer.metadata.generation;
    }

    /// Whether to wait with another read, because an operation was at work on the NIC a moment ago.
    pub fn is_left_alone(&self, now: Instant) -> bool {
        self.unsettled.is_some_and(|(_, until)| now < until)
    }

    /// The outcome of a write of ours.
    pub fn wrote<T>(&mut self, outcome: &Result<T, azure::Error>) {
        if matches!(outcome, Err(azure::Error::OutcomeUnknown { .. })) {
            self.lost_answer();
        }
    }

    /// A write of ours may have been sent, and Azure's answer is lost.
    pub fn lost_answer(&mut self) {
        self.in_doubt = true;
    }

    /// Whether a write with an unknown outcome may still come.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt || self.once_more.is_some()
    }

    /// What to take the NIC from, unless an error holds reads back. `chooses`: all of the VM's are to be
    /// read, and may be. `is_due`: it is time to read it though nothing has changed.
    pub fn basis(&self, chooses: bool, is_due: bool, now: Instant) -> Basis {
        if chooses {
            Basis::AllNics
        } else if self.is_left_alone(now) {
            Basis::Nic(Freshness::LastRead)
        } else if self.needs_read(now) || is_due {
            Basis::Nic(Freshness::Fresh)
        } else if self.at.is_some() {
            Basis::Nic(Freshness::Cached)
        } else {
            Basis::Mirror
        }
    }

    /// Whether the NIC is to be read before anything else.
    pub fn needs_read(&self, now: Instant) -> bool {
        let is_second = self.once_more.is_some_and(|at| now >= at);
        !self.is_left_alone(now) && (self.must_read || self.unsettled.is_some() || is_second)
    }

    /// Whether all of the VM's NICs are to be read.
    pub fn must_choose(&self, now: Instant) -> bool {
        self.must_choose || self.all_again().any(|at| now >= at)
    }

    /// How long until all of them are to be read once more.
    pub fn wait_for_all(&self, now: Instant) -> Option<Duration> {
        self.all_again().filter(|at| now < *at).map(|at| at - now).min()
    }

    fn all_again(&self) -> impl Iterator<Item = Instant> {
        [self.late_until, self.hidden_until].into_iter().flatten()
    }

    /// Whether a write may still come to a NIC that doesn't serve any more.
    pub fn awaits_late_write(&self, now: Instant) -> bool {
        self.late_until.is_some_and(|until| now < until)
    }

    /// Whether the NIC can be taken to be as `spec` has it while it can't be read: this process has seen it
    /// so, or nothing speaks against it.
    pub fn is_mirrored(&self) -> bool {
        self.at.is_some() || !self.must_read
    }

    /// How long until the NIC is to be read again, because it was unsettled or a write may have come late.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        // The reads of an unsettled NIC serve both.
        let next = self.unsettled.map(|(_, until)| until).or(self.once_more)?;
        Some(next.saturating_duration_since(now))
    }

    /// The NIC was read at `now`; `nic` is its content, if it is known. A NIC that no reconcile meant to read
    /// may have been read all the same, since Azure's client forgets a NIC after a write with an unknown
    /// outcome. A write whose answer was lost may still come within `late`.
    pub fn learn(
        &mut self,
        read: &Read,
        nic: Option<&Nic>,
        allocation: &NodeIPAllocation,
        late: Duration,
        now: Instant,
    ) {
        if std::mem::take(&mut self.inherits_strays) {
            self.late_until = Some(now + late);
        }
        if let Read::All { at, others, .. } | Read::Serving { at, others, .. } = read {
            (self.at, self.all_at) = (Some(*at), Some(*at));
            (self.must_read, self.must_choose) = (false, false);
            let left = self.late_until.filter(|until| now < *until);
            self.late_until = others.serves_anew.then_some(*at + late).or(left);
            self.hints.answered(allocation, *at);
        }
        match read {
            Read::All { lacking, .. } => {
                self.lacking.clone_from(lacking);
                (self.hidden, self.hidden_until) = (None, None);
            }
            Read::Nic { at } => {
                self.at = Some(*at);
                self.must_read = false;
                self.hints.answered(allocation, *at);
            }
            Read::Serving { at, why, may_pass, .. } => {
                self.hidden = Some(why.clone());
                self.hidden_until = Some(*at + if *may_pass { OTHERS_AGAIN } else { REFUSED_AGAIN });
            }
            Read::Nothing => {}
        }
        let read_at = match read {
            Read::All { at, .. } | Read::Nic { at } | Read::Serving { at, .. } => Some(*at),
            Read::Nothing => self.unsettled.is_none().then_some(now),
        };
        let Some(nic) = nic else { return };
        if nic.is_settled() {
            self.unsettled = None;
        } else if let Some(at) = read_at {
            let wait = self.unsettled.map_or(UNSETTLED, |(wait, _)| LONGEST_UNSETTLED.min(wait * 2));
            self.unsettled = Some((wait, at + wait));
        }
        if !nic.is_updating() {
            if !matches!(read, Read::Nothing) {
                self.once_more = self.once_more.filter(|at| now < *at);
            }
            if std::mem::take(&mut self.in_doubt) {
                self.once_more = Some(now + late);
            }
            // The condition stands until then, so that the next leader has the same doubt.
            self.writing = self.once_more.is_some() || self.model_failed;
        }
    }
}

/// Whether the node's NIC is written through the model of a scale set's instance.
fn is_of_instance(allocation: &NodeIPAllocation) -> bool {
    let serving = allocation.spec.serving().and_then(|nic| nic.id.parse::<ResourceId>().ok());
    serving.is_some_and(|nic| nic.instance().is_some())
}

/// A person's word that the NIC is to be read.
fn asked(allocation: &NodeIPAllocation) -> Option<&String> {
    allocation.annotations().get(names::READ)
}

fn is_writing(allocation: &NodeIPAllocation) -> bool {
    condition::is_true(allocation.conditions(), condition::WRITING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::{ProvisioningState, sample_nic};
    use crate::context::Waits;
    use serde_json::json;

    const LATE: Duration = Waits::FULL.late;

    #[test]
    fn each_new_word_of_a_person_has_the_nic_read_once() {
        let allocation = |word: Option<&str>| -> NodeIPAllocation {
            let words = word.map(|word| json!({ names::READ: word }));
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
            serde_json::from_value(json!({"metadata": {"name": "n", "annotations": words}, "spec": spec}))
                .unwrap()
        };
        let start = Instant::now();
        let mut known = Known::of(&allocation(Some("before")));
        let mut reads = |word| {
            let object = allocation(word);
            known.saw(&object);
            let must = known.must_read;
            known.learn(&Read::Nic { at: start }, Some(&sample_nic(&[])), &object, LATE, start);
            must
        };
        let words = [Some("before"), Some("1"), Some("1"), None, Some("2"), Some("1")];
        assert_eq!(words.map(&mut reads), [false, true, false, false, true, true]);
    }

    #[test]
    fn a_nic_that_stays_unsettled_is_read_ever_less_often_until_it_has_settled() {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let allocation: NodeIPAllocation =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let updating = Nic { state: ProvisioningState::Updating, ..sample_nic(&[]) };
        let (mut known, start) = (Known::of(&allocation), Instant::now());
        let mut reads = vec![];
        for second in 0..1000 {
            let now = start + Duration::from_secs(second);
            // An event happens to the node each second.
            let read = match second == 0 || known.needs_read(now) {
                true => Read::Nic { at: now },
                false => Read::Nothing,
            };
            if let Read::Nic { .. } = read {
                reads.push(second);
            }
            known.learn(&read, Some(&updating), &allocation, LATE, now);
        }
        assert_eq!(reads, [0, 5, 15, 35, 75, 155, 315, 635, 955]);
        let now = start + Duration::from_secs(1000);
        known.learn(&Read::Nic { at: now }, Some(&sample_nic(&[])), &allocation, LATE, now);
        assert!(!known.needs_read(now) && known.wait(now).is_none());
        // After a write whose answer was lost the cache returns the document that it has just read.
        known.learn(&Read::Nothing, Some(&updating), &allocation, LATE, now);
        assert_eq!(known.wait(now), Some(UNSETTLED));
    }

    #[test]
    fn spec_is_believed_until_the_nic_was_read_and_then_what_was_read_unless_it_may_have_changed() {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let allocation: NodeIPAllocation =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let (mut known, now, settled) = (Known::of(&allocation), Instant::now(), sample_nic(&[]));
        let updating = Nic { state: ProvisioningState::Updating, ..settled.clone() };
        assert_eq!(known.basis(false, false, now), Basis::Mirror);
        assert_eq!(known.basis(false, true, now), Basis::Nic(Freshness::Fresh));
        assert_eq!(known.basis(true, true, now), Basis::AllNics);
        known.learn(&Read::Nic { at: now }, Some(&settled), &allocation, LATE, now);
        assert_eq!(known.basis(false, false, now), Basis::Nic(Freshness::Cached));
        known.must_read = true;
        assert_eq!(known.basis(false, false, now), Basis::Nic(Freshness::Fresh));
        known.learn(&Read::Nic { at: now }, Some(&updating), &allocation, LATE, now);
        assert_eq!(known.basis(false, true, now), Basis::Nic(Freshness::LastRead));
        assert_eq!(known.basis(false, false, now + UNSETTLED), Basis::Nic(Freshness::Fresh));
    }

    #[test]
    fn all_nics_are_read_once_more_a_minute_after_another_has_come_to_serve() {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let allocation: NodeIPAllocation =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let (mut known, start, nic) = (Known::of(&allocation), Instant::now(), sample_nic(&[]));
        let mut read = |serves_anew, at| {
            let others = Others { serves_anew, ..Others::default() };
            let read = Read::All { at, lacking: None, others: others.into() };
            known.learn(&read, Some(&nic), &allocation, LATE, at);
            (known.must_choose(at), known.wait_for_all(at), known.must_choose(at + LATE))
        };
        assert_eq!(read(false, start), (false, None, false));
        assert_eq!(read(true, start), (false, Some(LATE), true));
        // A read before that is none after it.
        assert_eq!(read(false, start + LATE / 2), (false, Some(LATE / 2), true));
        assert_eq!(read(false, start + LATE), (false, None, false));
    }

    #[test]
    fn a_nic_beside_the_serving_one_that_azure_does_not_show_is_read_again_ten_minutes_or_an_hour_later() {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let allocation: NodeIPAllocation =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let (mut known, start) = (Known::of(&allocation), Instant::now());
        (known.must_read, known.must_choose) = (true, true);
        let all = [(true, false, OTHERS_AGAIN), (false, false, REFUSED_AGAIN), (false, true, LATE)];
        for (may_pass, serves_anew, again) in all {
            let others = Others { serves_anew, ..Others::default() };
            let read = Read::Serving { at: start, why: "denied".into(), may_pass, others: others.into() };
            known.learn(&read, Some(&sample_nic(&[])), &allocation, LATE, start);
            assert!(!known.needs_read(start) && !known.must_choose(start));
            assert_eq!(known.wait_for_all(start), Some(again));
            assert!(known.must_choose(start + again) && known.hidden.as_deref() == Some("denied"));
            assert_eq!(known.awaits_late_write(start), serves_anew);
        }
        let read = Read::All { at: start, lacking: None, others: Box::default() };
        known.learn(&read, Some(&sample_nic(&[])), &allocation, LATE, start + LATE);
        assert_eq!((known.hidden.as_deref(), known.wait_for_all(start + LATE)), (None, None));
    }

    #[test]
    fn where_a_leader_before_has_recorded_other_nics_all_of_them_are_read_a_minute_later() {
        let allocation = |strays: &[&str]| -> NodeIPAllocation {
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "strayInterfaces": strays});
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap()
        };
        let (start, nic) = (Instant::now(), sample_nic(&[]));
        let wait = |strays: &[&str]| {
            let allocation = allocation(strays);
            let mut known = Known::of(&allocation);
            known.learn(&Read::Nothing, Some(&nic), &allocation, LATE, start);
            known.learn(&Read::Nothing, Some(&nic), &allocation, LATE, start + LATE / 2);
            known.wait_for_all(start)
        };
        assert_eq!((wait(&[]), wait(&["other"])), (None, Some(LATE)));
    }

    #[test]
    fn a_nic_is_read_once_more_a_minute_after_the_outcome_of_a_write_was_unknown() {
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        let allocation: NodeIPAllocation =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let (mut known, start, nic) = (Known::of(&allocation), Instant::now(), sample_nic(&[]));
        let read =
            |known: &mut Known, now| known.learn(&Read::Nic { at: now }, Some(&nic), &allocation, LATE, now);
        read(&mut known, start);
        assert_eq!(known.wait(start), None);
        known.lost_answer();
        read(&mut known, start);
        assert_eq!(known.wait(start), Some(LATE));
        // Other reads by it don't count.
        read(&mut known, start + LATE / 2);
        assert!(!known.needs_read(start + LATE / 2) && known.needs_read(start + LATE));
        known.learn(&Read::Nothing, Some(&nic), &allocation, LATE, start + LATE);
        assert!(known.needs_read(start + LATE));
        assert!(known.is_in_doubt() && known.writing, "a leader that came now would not know of the doubt");
        read(&mut known, start + LATE);
        assert!(!known.needs_read(start + 2 * LATE) && known.wait(start + LATE).is_none());
        assert!(!known.is_in_doubt() && !known.writing);
    }
}
