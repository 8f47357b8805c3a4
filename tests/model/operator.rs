//! The operator's reconciles around the real planner: the same steps in the same order as
//! `operator/src/node.rs`, each of them a point where the process may be paused for as long as anything else
//! takes.

use std::collections::BTreeSet;
use std::time::Duration;

use vnetpool_crds::pool::Sizing;
use vnetpool_operator::azure::{self, IpConfiguration};
use vnetpool_operator::planner::{self, Demand, Observed, Plan};

use crate::Broken;
use crate::world::{
    Configuration, Document, Memory, Object, Observation, PODS, Process, ProvisioningState, Put, Spec, Step,
    World,
};

/// Time is no part of the model: every wait of the planner is over.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// The step of this process, its node, and the broken rule, if any.
pub struct Operator<'a> {
    pub world: &'a mut World,
    pub index: usize,
    pub broken: Broken,
    pub loses: Option<Lost>,
}

/// What becomes of this process's next write to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It lands, and its answer is lost.
    Answer,
    /// A write of conditions lands after its sender has given it up.
    HeldBack,
}

impl Operator<'_> {
    pub fn of(world: &mut World, index: usize, broken: Broken) -> Operator<'_> {
        Operator { world, index, broken, loses: None }
    }

    /// Begins a reconcile: the watch shows `watched`.
    pub fn observe(&mut self, watched: &Object) {
        let allocation = self.newest(watched);
        if allocation.deleted {
            // `vacate::replace`: the addresses that the node has given up leave the NIC while there is still
            // a list of them.
            let document = self.world.azure.read();
            let is_held = |name: &u8| document.held.iter().any(|one| one.name == *name);
            let mut release = allocation.status.relinquished.clone();
            release.retain(is_held);
            let is_current = self.world.api.current().is_some_and(|current| current.uid == allocation.uid);
            if release.is_empty() || !is_current || self.broken == Broken::ForgetsReleasesUnderWay {
                return self.let_go(allocation);
            }
            self.process().document = None;
            let by = Some(self.index);
            self.world.azure.puts.push(Put { by, document, reserve: vec![], release });
            self.process().step = Step::Releasing { allocation };
            return;
        }
        let observation = self.observe_and_plan(&allocation);
        self.process().step = Step::Observed { allocation, observation, may_write: true };
    }

    /// The finalizer goes, and the object with it, its status included.
    fn let_go(&mut self, allocation: Object) {
        if self.world.api.current().is_some_and(|current| current.uid == allocation.uid) {
            self.world.api.exists = false;
        }
        let boot = if self.broken == Broken::AcceptsOtherBoot { allocation.spec.boot } else { 0 };
        let process = self.process();
        process.step = Step::Recreating { spec: Spec { boot, ..allocation.spec } };
        process.memory = None;
    }

    /// Goes on from a read: to the NIC write, if one was planned, else to the end of the reconcile.
    pub fn go_on(&mut self) {
        let Step::Observed { allocation, observation, may_write } = std::mem::take(&mut self.process().step)
        else {
            return;
        };
        let wants_write = observation.reserve > 0 || !observation.release.is_empty() || observation.repair;
        if !may_write || !wants_write {
            self.publish(allocation, observation.spec);
            return;
        }
        let mut allocation = allocation;
        if !allocation.spec.has_interface {
            // `spec` names the NIC before anything is reserved on it.
            let Some(answer) = self.apply(&allocation, &observation.spec) else { return };
            allocation = answer;
        }
        let Some(allocation) = self.report(allocation, true) else { return };
        let Some(document) = self.process().document.take() else { return };
        let reserve = (0..observation.reserve).map(|_| self.new_name(&document)).collect();
        self.world.azure.puts.push(Put {
            by: Some(self.index),
            document,
            reserve,
            release: observation.release,
        });
        self.process().step = Step::Writing { allocation };
    }

    /// The answers to this process's requests find no receiver any more.
    pub fn hangs_up(&mut self) {
        let azure = &mut self.world.azure;
        let waits = azure.puts.iter_mut().map(|put| &mut put.by);
        let waits = waits.chain(azure.operation.iter_mut().map(|operation| &mut operation.by));
        waits.filter(|by| **by == Some(self.index)).for_each(|by| *by = None);
    }

    /// Azure's answer: the NIC after the write, or no information.
    pub fn answered(&mut self, answer: Option<Document>) {
        let process = self.process();
        match std::mem::take(&mut process.step) {
            Step::Writing { allocation } => {
                process.document = answer;
                process.step = Step::Answered { allocation };
                if let (Some(_), Some(memory)) = (&process.document, &mut process.memory) {
                    memory.nic_known = true;
                }
            }
            // Without an answer the reconcile ends, and the next begins with another read of the NIC.
            Step::Releasing { allocation } if answer.is_some() => self.let_go(allocation),
            _ => {}
        }
    }

    /// Whatever became of the write, the NIC's present content is published: takes the newest version, then
    /// reads the NIC.
    pub fn observe_again(&mut self, watched: &Object) {
        let Step::Answered { allocation } = std::mem::take(&mut self.process().step) else { return };
        let allocation = match self.broken {
            Broken::TakesTheVersionAfterTheRead => allocation,
            _ if watched.uid == allocation.uid => self.newest(watched),
            _ => allocation,
        };
        let observation = self.observe_and_plan(&allocation);
        self.process().step = Step::Observed { allocation, observation, may_write: false };
    }

    /// `apply::replace`, second half. Forced, without a resourceVersion: it may meet an object that another
    /// leader has made since.
    pub fn recreate(&mut self) {
        let Step::Recreating { spec } = std::mem::take(&mut self.process().step) else { return };
        if self.world.api.write(|object| object.spec = spec.clone()).is_none() {
            self.world.api.create(spec);
        }
    }

    /// `admit`: a Node without an object gets one.
    pub fn admit(&mut self) {
        self.world.api.create(Spec::default());
    }

    fn process(&mut self) -> &mut Process {
        self.world.operators[self.index].get_or_insert_default()
    }

    /// `Cluster::allocation` and `Memories::take`: the newest object known, and what is remembered of it.
    fn newest(&mut self, watched: &Object) -> Object {
        let process = self.process();
        let memory = match process.memory.take().filter(|memory| memory.uid == watched.uid) {
            Some(memory) => process.memory.insert(memory),
            None => process.memory.insert(Memory {
                uid: watched.uid,
                latest: None,
                generation: watched.generation,
                nic_known: false,
                must_read: watched.status.writing,
                writing: watched.status.writing,
            }),
        };
        let newest = match memory.latest.take().filter(|latest| latest.version > watched.version) {
            Some(latest) => memory.latest.insert(latest).clone(),
            None => watched.clone(),
        };
        memory.note_generation(newest.generation);
        newest
    }

    /// `node::observe_and_plan`, and once more from the NIC itself if a plan from the `spec`'s mirror wants a
    /// write.
    fn observe_and_plan(&mut self, allocation: &Object) -> Observation {
        let boot = self.world.node.boot;
        let is_new = !allocation.spec.has_interface || allocation.spec.boot != boot;
        let nic = self.world.azure.read();
        let process = self.process();
        let Some(memory) = &mut process.memory else { return self.as_it_is(allocation) };
        let mut is_read = is_new || memory.must_read || memory.nic_known;
        if is_new || memory.must_read || (memory.nic_known && process.document.is_none()) {
            process.document = Some(nic.clone());
            memory.nic_known = true;
            memory.must_read = false;
        }
        if is_read {
            memory.writing = false;
        }
        let mirror = || Document {
            etag: 0,
            held: allocation.spec.entries.clone(),
            state: ProvisioningState::Succeeded,
            unfinished: BTreeSet::new(),
        };
        let mut seen = process.document.clone().filter(|_| is_read).unwrap_or_else(mirror);
        let mut plan = self.plan(allocation, &seen);
        if !plan.change.is_empty() && !is_read {
            is_read = true;
            let process = self.process();
            process.document = Some(nic.clone());
            if let Some(memory) = &mut process.memory {
                (memory.nic_known, memory.writing) = (true, false);
            }
            plan = self.plan(allocation, &nic);
            seen = nic;
        }
        if let Some(memory) = &mut self.process().memory {
            // It is read again until it has settled.
            memory.must_read |= seen.state == ProvisioningState::Updating;
        }
        debug_assert!(is_read || plan.change.is_empty());
        let grain = self.world.grain;
        let entries = plan.publish.iter().map(|one| configuration(&one.name, &one.address, grain)).collect();
        Observation {
            spec: Spec { boot, target: plan.target, has_interface: true, entries },
            reserve: plan.change.reserve,
            release: plan.change.release.iter().map(|name| number(name)).collect(),
            repair: plan.change.repair,
        }
    }

    fn as_it_is(&self, allocation: &Object) -> Observation {
        Observation { spec: allocation.spec.clone(), reserve: 0, release: vec![], repair: false }
    }

    /// The real decision.
    fn plan(&self, allocation: &Object, seen: &Document) -> Plan {
        let Document { held, state, unfinished, .. } = seen;
        let grain = self.world.grain;
        let status = &allocation.status;
        let bound = self.world.node.pods.iter().filter(|is_bound| **is_bound).count() as u32;
        let assigned = if status.boot == self.world.node.boot { status.assigned } else { 0 };
        let mut relinquished: BTreeSet<String> =
            status.relinquished.iter().map(|&number| name(number)).collect();
        if self.broken == Broken::ReleasesTheMerelyFree {
            // The operator chooses by its own view of the addresses in use.
            relinquished.extend(held.iter().skip(bound.max(assigned) as usize).map(|one| name(one.name)));
        }
        let is_finished =
            |name: &u8| !unfinished.contains(name) || self.broken == Broken::PublishesTheUnfinished;
        let held = held.iter().map(|one| IpConfiguration {
            name: name(one.name),
            address: Some(range(one.address, grain).parse().unwrap()),
            state: match state {
                _ if is_finished(&one.name) => azure::ProvisioningState::Succeeded,
                ProvisioningState::Updating => azure::ProvisioningState::Updating,
                _ => azure::ProvisioningState::Failed,
            },
            attached: Default::default(),
        });
        planner::plan(&Observed {
            sizing: Some(Sizing {
                minimum: 0,
                // With blocks more than one of them is wanted by so few pods.
                warm: u32::from(grain) - 1,
                maximum: PODS as u32 * u32::from(grain),
                batch: 1,
                release_after: Duration::ZERO.into(),
            }),
            demand: Demand { bound, assigned, ..Demand::default() },
            held: held.collect(),
            lost: BTreeSet::new(),
            slots: 255,
            grain: grain.into(),
            release_after: Duration::ZERO,
            coarseness: 1,
            adopt: vec![],
            relinquished,
            shown: allocation.spec.entries.iter().map(|one| name(one.name)).collect(),
            surplus_for: Some(LONG),
            bound_still_for: LONG,
            growth_wanted_for: LONG,
            release_wanted_for: LONG,
            may_reserve: u32::MAX,
            may_write: *state != ProvisioningState::Updating,
            nic_failed: *state == ProvisioningState::Failed,
            may_mend: self.broken != Broken::NeverRepairs,
            may_regroup: true,
            may_release: true,
            forwarding_lacks: false,
            join: vec![],
            leave: vec![],
            route_is_wrong: false,
        })
    }

    fn new_name(&mut self, document: &Document) -> u8 {
        if self.broken == Broken::ReusesNames {
            let is_taken = |name: &u8| {
                let on_the_way = self.world.azure.puts.iter().any(|put| put.reserve.contains(name));
                on_the_way || document.held.iter().any(|one| one.name == *name)
            };
            return (1..=u8::MAX).find(|name| !is_taken(name)).unwrap_or_default();
        }
        self.world.azure.last_name += 1;
        self.world.azure.last_name
    }

    /// `apply::publish`: only onto the version that was planned from, unless there is no news. Then the
    /// report.
    fn publish(&mut self, allocation: Object, spec: Spec) {
        let allocation = match self.broken {
            Broken::TakesTheVersionAfterTheRead => match self.world.api.current().cloned() {
                Some(current) if current.uid == allocation.uid => self.newest(&current),
                _ => allocation,
            },
            _ => allocation,
        };
        if let Some(allocation) = self.apply(&allocation, &spec) {
            let writing = self.process().memory.as_ref().is_some_and(|memory| memory.writing);
            self.report(allocation, writing);
        }
    }

    fn apply(&mut self, allocation: &Object, spec: &Spec) -> Option<Object> {
        if allocation.spec == *spec {
            return Some(allocation.clone());
        }
        let is_guarded = self.broken != Broken::PublishesUnguarded;
        let current = self.world.api.current()?;
        if is_guarded && (current.uid, current.version) != (allocation.uid, allocation.version) {
            return None;
        }
        let answer = self.world.api.write(|object| object.spec = spec.clone())?;
        if self.loses.take() == Some(Lost::Answer) {
            return None;
        }
        let memory = self.process().memory.as_mut()?;
        memory.generation = answer.generation;
        memory.latest = Some(answer.clone());
        Some(answer)
    }

    /// The report: conditions are applied whatever the version, so the answer may hold another leader's
    /// `spec`.
    fn report(&mut self, allocation: Object, writing: bool) -> Option<Object> {
        if self.world.api.current()?.uid != allocation.uid {
            return None;
        }
        if self.loses == Some(Lost::HeldBack) {
            self.world.api.held_back = Some((allocation.uid, writing));
            return None;
        }
        let answer = self.world.api.write(|object| object.status.writing = writing)?;
        if self.loses.take() == Some(Lost::Answer) {
            return None;
        }
        let swallows = self.broken == Broken::OverlooksAnothersSpec;
        let memory = self.process().memory.as_mut()?;
        memory.writing = writing;
        match swallows {
            true => memory.generation = answer.generation,
            false => memory.note_generation(answer.generation),
        }
        memory.latest = Some(answer.clone());
        Some(answer)
    }
}

impl Memory {
    /// A later generation than the one we saw or wrote last is another writer's work: it may have written the
    /// NIC as well.
    fn note_generation(&mut self, generation: u8) {
        if generation > self.generation {
            self.generation = generation;
            self.must_read = true;
        }
    }
}

pub fn name(number: u8) -> String {
    format!("vnp-{number:016x}")
}

pub fn number(name: &str) -> u8 {
    u8::from_str_radix(name.trim_start_matches("vnp-"), 16).unwrap()
}

/// As Azure writes an address, or a block of so many.
fn range(address: u8, grain: u8) -> String {
    format!("10.0.0.{}/{}", address * grain, 32 - grain.ilog2())
}

fn configuration(name: &str, address: &str, grain: u8) -> Configuration {
    let first = address.trim_start_matches("10.0.0.").split('/').next().unwrap();
    Configuration { name: number(name), address: first.parse::<u8>().unwrap() / grain }
}
