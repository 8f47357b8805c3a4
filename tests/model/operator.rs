//! The operator's reconciles around the real planner and the real memory of a NIC: the same steps in the same
//! order as `operator/src/node.rs`, each of them a point where the process may be paused for as long as
//! anything else takes.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::json;
use vnetpool_crds::pool::Sizing;
use vnetpool_crds::{NodeIPAllocation, condition};
use vnetpool_operator::azure::{self, Freshness, IpConfiguration, Nic, Others};
use vnetpool_operator::planner::{self, Demand, Observed, Plan};
use vnetpool_operator::{Basis, Known, Read};

use crate::Broken;
use crate::world::{
    Configuration, Document, Memory, Object, Observation, PODS, Process, ProvisioningState, Put, Spec, Step,
    World,
};

/// Time is no part of the model: every wait of the planner is over.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// All is learnt at this moment, and a write whose answer was lost comes late at once.
static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
const LATE: Duration = Duration::ZERO;

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

    /// No answer of Azure's comes: the write may have been taken, or be yet to come.
    pub fn loses_answer(&mut self) {
        self.hangs_up();
        self.process().memory.iter_mut().for_each(|memory| memory.nic().lost_answer());
        self.answered(None);
    }

    /// Azure's answer: the NIC after the write, or no information.
    pub fn answered(&mut self, answer: Option<Document>) {
        let process = self.process();
        match std::mem::take(&mut process.step) {
            Step::Writing { allocation } => {
                process.document = answer;
                process.step = Step::Answered { allocation };
                if let (Some(_), Some(memory)) = (&process.document, &mut process.memory) {
                    memory.nic().at = Some(*NOW);
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
            None => process.memory.insert(Memory::new(watched.uid, Known::of(as_read(watched)))),
        };
        let newest = match memory.latest.take().filter(|latest| latest.version > watched.version) {
            Some(latest) => memory.latest.insert(latest).clone(),
            None => watched.clone(),
        };
        memory.nic().saw(as_read(&newest));
        newest
    }

    /// `node::observe_and_plan`, and once more from the NIC itself if a plan from the `spec`'s mirror wants a
    /// write.
    fn observe_and_plan(&mut self, allocation: &Object) -> Observation {
        if self.process().memory.is_none() {
            return self.as_it_is(allocation);
        }
        let mut nic = self.observe_nic(allocation);
        let mut plan = self.plan(allocation, nic.as_ref());
        if nic.is_none() && !plan.change.is_empty() {
            self.process().memory.iter_mut().for_each(|memory| memory.nic().must_read = true);
            nic = self.observe_nic(allocation);
            plan = self.plan(allocation, nic.as_ref());
        }
        debug_assert!(nic.is_some() || plan.change.is_empty());
        let (boot, grain) = (self.world.node.boot, self.world.grain);
        let entries = plan.publish.iter().map(|one| configuration(&one.name, &one.address, grain)).collect();
        Observation {
            spec: Spec { boot, target: plan.target, has_interface: true, entries },
            reserve: plan.change.reserve,
            release: plan.change.release.iter().map(|name| number(name)).collect(),
            repair: plan.change.repair,
        }
    }

    /// `observe::interfaces::find`: the NIC, from where the memory has it taken from; `None`: from the
    /// mirror.
    fn observe_nic(&mut self, allocation: &Object) -> Option<Document> {
        let is_new = !allocation.spec.has_interface || allocation.spec.boot != self.world.node.boot;
        let now = self.world.azure.read();
        let process = self.process();
        let memory = process.memory.as_mut()?;
        let read = match memory.known().basis(is_new, false, *NOW + LONG) {
            Basis::AllNics => Read::All { at: *NOW, lacking: None, others: Box::default() },
            Basis::Nic(Freshness::Fresh) => Read::Nic { at: *NOW },
            Basis::Nic(Freshness::Cached | Freshness::LastRead) => Read::Nothing,
            Basis::Mirror => return None,
        };
        // Azure's client keeps only what has settled.
        let is_kept = |document: &&Document| document.state != ProvisioningState::Updating;
        let cached = process.document.as_ref().filter(is_kept).filter(|_| matches!(read, Read::Nothing));
        let nic = match cached {
            Some(cached) => cached.clone(),
            None => process.document.insert(now).clone(),
        };
        memory.nic().learn(&read, Some(as_nic(nic.state)), as_read(allocation), LATE, *NOW);
        Some(nic)
    }

    fn as_it_is(&self, allocation: &Object) -> Observation {
        Observation { spec: allocation.spec.clone(), reserve: 0, release: vec![], repair: false }
    }

    /// The real decision. `None`: from the mirror.
    fn plan(&self, allocation: &Object, seen: Option<&Document>) -> Plan {
        let mirror = Document {
            etag: 0,
            held: allocation.spec.entries.clone(),
            state: ProvisioningState::Succeeded,
            unfinished: BTreeSet::new(),
        };
        let Document { held, state, unfinished, .. } = seen.unwrap_or(&mirror);
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
            let writing = self.process().memory.as_ref().is_some_and(|memory| memory.known().writing);
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
        memory.nic().spec_written(as_read(&answer));
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
        memory.nic().writing = writing;
        if swallows {
            memory.nic().spec_written(as_read(&answer));
        }
        memory.nic().status_written(as_read(&answer));
        memory.latest = Some(answer.clone());
        Some(answer)
    }
}

/// The object as far as the memory heeds it.
fn as_read(object: &Object) -> &'static NodeIPAllocation {
    static ALL: LazyLock<Vec<[NodeIPAllocation; 2]>> = LazyLock::new(|| {
        let object = |generation: u8, writing: &str| {
            let condition = json!({"type": condition::WRITING.name(), "status": writing, "reason": "Writing",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let object = json!({
                "metadata": {"name": "node", "generation": generation},
                "spec": {"nodeUID": "node", "pool": "p", "cooldown": "30s"},
                "status": {"bootID": "", "conditions": [condition]},
            });
            serde_json::from_value(object).unwrap()
        };
        (0..=u8::MAX).map(|generation| ["False", "True"].map(|writing| object(generation, writing))).collect()
    });
    &ALL[usize::from(object.generation)][usize::from(object.status.writing)]
}

/// A NIC as far as the memory heeds it: what of it isn't finished is as all of it is.
fn as_nic(state: ProvisioningState) -> &'static Nic {
    static ALL: LazyLock<[Nic; 3]> = LazyLock::new(|| {
        use azure::ProvisioningState::{Failed, Succeeded, Updating};
        [Succeeded, Updating, Failed].map(nic)
    });
    let [succeeded, updating, failed] = &*ALL;
    match state {
        ProvisioningState::Succeeded => succeeded,
        ProvisioningState::Updating => updating,
        ProvisioningState::Failed => failed,
    }
}

/// A NIC in this state, with nothing of ours on it.
pub fn nic(state: azure::ProvisioningState) -> Nic {
    const NETWORK: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
    Nic {
        id: format!("{NETWORK}/networkInterfaces/nic").parse().unwrap(),
        location: "westeurope".into(),
        mac: None,
        vm: None,
        primary: "10.0.0.4".parse().unwrap(),
        subnet: format!("{NETWORK}/virtualNetworks/v/subnets/nodes").parse().unwrap(),
        state,
        ip_configurations: vec![],
        forwards: false,
        groups: vec![],
        foreign: 1,
        others: Others::default(),
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
