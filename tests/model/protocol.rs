//! The protocol as a stateright model: the possible next steps, and the invariants.

mod settle;

use std::collections::HashSet;
use std::sync::Mutex;

use stateright::{Model, Property};
use vnetpool_plugin::ledger::State;

use crate::Broken;
use crate::operator::{Lost, Operator, number};
use crate::world::{Faults, PODS, Step, World};
use settle::Rules;

/// A world to explore, from a node at rest with `pods` pods running.
pub struct Protocol {
    pub pods: usize,
    pub faults: Faults,
    /// How many faults strike at most, of all kinds together.
    pub at_once: u32,
    /// How many versions of the object, the current one included, a watch may show.
    pub seen_versions: usize,
    /// How many names there may be in all.
    pub names: u8,
    /// How many addresses a reservation has.
    pub grain: u8,
    /// Whether other processes may take steps between the two halves of an ADD.
    pub splits_adds: bool,
    /// Whether they may while Azure works on a NIC write that it has taken.
    pub splits_writes: bool,
    pub broken: Broken,
    /// Worlds known to come to a good end, so that each is followed only until it meets one of them.
    pub settled: Mutex<HashSet<u64>>,
}

/// The possible steps. A `usize` is an operator, a pod or a version in the object's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// An operator begins a reconcile, seeing a version: reads, plans.
    Observe(usize, usize),
    /// ... goes on with it: sends the NIC write, or publishes and reports.
    GoOn(usize),
    /// ... the same, without an answer of the API server's.
    GoOnWithout(usize, Lost),
    HeldBackLands,
    /// ... reads again after its write.
    ObserveAgain(usize, usize),
    Recreate(usize),
    Admit(usize),
    /// A NIC write reaches Azure.
    Handle(usize),
    FailWrite(usize),
    /// Azure ends the write that it has taken, well or badly.
    Finish(bool),
    LoseAnswer(usize),
    OperatorDies(usize),
    OperatorStarts(usize),
    SecondLeader,
    /// The agent, seeing a version, supplies the ledger; then it relinquishes, and has a report to send.
    AgentSupplies(usize),
    AgentRelinquishes,
    AgentReads,
    AgentRebuilds,
    Report,
    Sweep,
    AgentDies,
    ReportIsLate,
    LateReportLands,
    /// An inspection of the agent has failed at the rules, or has made them.
    Rules(bool),
    Wipe,
    Reboot,
    /// ... and with it the locks of the verbs that run.
    WipeFolder,
    Bind(usize),
    Add(usize),
    AddAssigns(usize),
    AddWires(usize),
    AddDies(usize),
    GcBegins,
    GcCollects(usize),
    GcEnds,
    Del(usize),
    DelDies(usize),
    DeleteObject,
    StrangerTakes,
}

impl Protocol {
    /// Does it, whether or not it may happen now.
    pub fn act(&self, world: &mut World, action: &Action) {
        let broken = self.broken;
        match *action {
            Action::Observe(index, view) => {
                let watched = world.api.history[view].clone();
                Operator::of(world, index, broken).observe(&watched);
            }
            Action::GoOn(index) => Operator::of(world, index, broken).go_on(),
            Action::GoOnWithout(index, lost) => {
                Operator { loses: Some(lost), ..Operator::of(world, index, broken) }.go_on();
                world.faults.lost_publications -= 1;
            }
            Action::HeldBackLands => world.land_held_back(),
            Action::ObserveAgain(index, view) => {
                let watched = world.api.history[view].clone();
                Operator::of(world, index, broken).observe_again(&watched);
            }
            Action::Recreate(index) => Operator::of(world, index, broken).recreate(),
            Action::Admit(index) => Operator::of(world, index, broken).admit(),
            Action::Handle(index) => self.handle(world, index),
            Action::FailWrite(put) => {
                if let Some(index) = world.azure.puts.remove(put).by {
                    Operator::of(world, index, broken).answered(None);
                }
                world.faults.failed_writes -= 1;
            }
            Action::Finish(succeeds) => {
                self.finish(world, succeeds);
                world.faults.late_failures -= u8::from(!succeeds);
            }
            Action::LoseAnswer(index) => {
                Operator::of(world, index, broken).loses_answer();
                world.faults.lost_answers -= 1;
            }
            Action::OperatorDies(index) => {
                Operator::of(world, index, broken).hangs_up();
                world.operators[index] = None;
                world.faults.operator_deaths -= 1;
            }
            Action::OperatorStarts(index) => world.operators[index] = Some(Default::default()),
            Action::SecondLeader => {
                world.operators[1] = Some(Default::default());
                world.faults.second_leaders -= 1;
            }
            Action::AgentSupplies(view) => {
                let object = world.api.history[view].clone();
                world.agent_supplies(&object, broken);
            }
            Action::AgentRelinquishes => world.agent_relinquishes(broken),
            Action::AgentReads => world.agent_reads(broken),
            Action::AgentRebuilds => world.agent_rebuilds(broken),
            Action::Report => {
                if let Some(report) = world.node.report.take() {
                    world.land(&report);
                }
            }
            Action::Sweep => world.sweep(broken),
            Action::AgentDies => {
                world.agent_dies();
                world.faults.agent_crashes -= 1;
            }
            Action::ReportIsLate => {
                world.node.late = world.node.report.take();
                world.faults.late_reports -= 1;
            }
            Action::LateReportLands => {
                if let Some(report) = world.node.late.take() {
                    world.land(&report);
                }
            }
            Action::Rules(is_ruled) => {
                world.agent_rules(is_ruled);
                world.faults.lost_rules -= u8::from(!is_ruled);
            }
            Action::Wipe | Action::WipeFolder => {
                if *action == Action::WipeFolder {
                    world.node.adding.iter_mut().flatten().for_each(|adding| adding.is_locked = false);
                }
                world.node.ledger = None;
                world.node.supplied = None;
                world.faults.wipes -= 1;
            }
            Action::Reboot => {
                world.reboot();
                world.faults.reboots -= 1;
            }
            Action::Bind(pod) => {
                world.node.pods[pod] = true;
                world.faults.pod_changes -= 1;
            }
            Action::Add(pod) => world.add(pod),
            Action::AddAssigns(pod) => world.add_assigns(pod),
            Action::AddWires(pod) => world.add_wires(pod, broken),
            Action::AddDies(pod) => {
                world.node.adding[pod] = None;
                world.faults.broken_adds -= 1;
            }
            Action::GcBegins => {
                world.gc_begins();
                world.faults.collections -= 1;
            }
            Action::GcCollects(pod) => world.gc_collects(pod),
            Action::GcEnds => world.node.gc = None,
            Action::Del(pod) => {
                world.node.pods[pod] = false;
                world.del(pod, false);
                world.faults.pod_changes -= 1;
            }
            Action::DelDies(pod) => {
                world.node.pods[pod] = false;
                world.del(pod, true);
                world.faults.pod_changes -= 1;
                world.faults.broken_dels -= 1;
            }
            Action::DeleteObject => {
                world.api.write(|object| object.deleted = true);
                world.faults.deletions -= 1;
            }
            Action::StrangerTakes => {
                world.azure.strangers.extend(world.azure.lowest_free());
                world.faults.strangers -= 1;
            }
        }
    }

    fn handle(&self, world: &mut World, index: usize) {
        let put = world.azure.puts.remove(index);
        let before = world.azure.nic.clone();
        let is_taken = world.azure.take(&put, self.broken != Broken::WritesUnconditionally);
        let removed = before.iter().filter(|one| world.azure.nic.iter().all(|left| left.name != one.name));
        world.robbed |= removed.into_iter().any(|one| !world.given_up.contains(&one.name));
        if is_taken && !self.splits_writes {
            self.finish(world, true);
        } else if let (false, Some(index)) = (is_taken, put.by) {
            Operator::of(world, index, self.broken).answered(None);
        }
    }

    fn finish(&self, world: &mut World, succeeds: bool) {
        let by = world.azure.finish(succeeds);
        let answer = succeeds.then(|| world.azure.read());
        if let Some(index) = by {
            Operator::of(world, index, self.broken).answered(answer);
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = settle::rest(World::new(self.pods, self.grain));
        world.operators.swap(0, 1);
        world.faults = self.faults;
        vec![world.canonical(1)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let World { azure, api, operators, node, faults, .. } = world;
        let views = 0..api.history.len();
        for (index, process) in operators.iter().enumerate() {
            let Some(process) = process else { continue };
            match &process.step {
                Step::Idle => {
                    actions.extend(views.clone().map(|view| Action::Observe(index, view)));
                    if !api.exists {
                        actions.push(Action::Admit(index));
                    }
                }
                Step::Observed { observation, may_write, .. } => {
                    let reserve = if *may_write { observation.reserve } else { 0 };
                    if u32::from(azure.last_name) + reserve <= self.names.into() {
                        actions.push(Action::GoOn(index));
                        if faults.lost_publications > 0 {
                            let lost = [Lost::Answer, Lost::HeldBack];
                            actions.extend(lost.map(|lost| Action::GoOnWithout(index, lost)));
                        }
                    }
                }
                Step::Writing { .. } | Step::Releasing { .. } if faults.lost_answers > 0 => {
                    actions.push(Action::LoseAnswer(index));
                }
                Step::Writing { .. } | Step::Releasing { .. } => {}
                Step::Answered { .. } => {
                    actions.extend(views.clone().map(|view| Action::ObserveAgain(index, view)))
                }
                Step::Recreating { .. } => actions.push(Action::Recreate(index)),
            }
            if faults.operator_deaths > 0 {
                actions.push(Action::OperatorDies(index));
            }
        }
        if operators.iter().all(Option::is_none) {
            actions.push(Action::OperatorStarts(1));
        }
        if operators[1].is_none() && faults.second_leaders > 0 {
            actions.push(Action::SecondLeader);
        }
        for put in 0..azure.puts.len() {
            actions.push(Action::Handle(put));
            if faults.failed_writes > 0 {
                actions.push(Action::FailWrite(put));
            }
        }
        if azure.operation.is_some() {
            actions.push(Action::Finish(true));
            if faults.late_failures > 0 {
                actions.push(Action::Finish(false));
            }
        }
        if api.held_back.is_some() {
            actions.push(Action::HeldBackLands);
        }
        let is_quiet = world.is_quiet() || self.broken == Broken::BuildsDuringAVerb;
        match (&node.ledger, &node.read) {
            (Some(_), _) => {
                match &node.supplied {
                    Some(_) => actions.push(Action::AgentRelinquishes),
                    None => actions.extend(views.map(Action::AgentSupplies)),
                }
                if world.has_leaks() {
                    actions.push(Action::Sweep);
                }
            }
            (None, None) if api.exists => actions.push(Action::AgentReads),
            (None, None) => {}
            (None, Some(_)) if is_quiet => actions.push(Action::AgentRebuilds),
            (None, Some(_)) => {}
        }
        if node.report.is_some() {
            actions.push(Action::Report);
            if faults.late_reports > 0 {
                actions.push(Action::ReportIsLate);
            }
        }
        if node.late.is_some() {
            actions.push(Action::LateReportLands);
        }
        for pod in 0..PODS {
            if node.adding[pod].is_some() {
                actions.push(Action::AddWires(pod));
                if faults.broken_adds > 0 {
                    actions.push(Action::AddDies(pod));
                }
                continue; // a DEL waits for the lock
            }
            // A pod that comes anew has another sandbox, and GC knows them apart.
            let was_known = node.gc.is_some_and(|gc| gc.had[pod]);
            match (node.pods[pod], node.wired[pod]) {
                (false, _) if faults.pod_changes > 0 && !was_known => actions.push(Action::Bind(pod)),
                (true, None) if node.ledger.is_some() && self.splits_adds => {
                    actions.push(Action::AddAssigns(pod));
                }
                (true, None) if node.ledger.is_some() => actions.push(Action::Add(pod)),
                _ => {}
            }
            if world.is_garbage(pod, self.broken) {
                actions.push(Action::GcCollects(pod));
            }
            if node.pods[pod] && faults.pod_changes > 0 {
                actions.push(Action::Del(pod));
                if faults.broken_dels > 0 {
                    actions.push(Action::DelDies(pod));
                }
            }
        }
        let is_agent_busy = node.report.is_some() || node.read.is_some() || node.supplied.is_some();
        let may = [
            (faults.agent_crashes > 0 && is_agent_busy, Action::AgentDies),
            (faults.wipes > 0 && node.ledger.is_some(), Action::Wipe),
            (faults.wipes > 0 && !world.is_at_rest(), Action::WipeFolder),
            (faults.collections > 0 && node.gc.is_none() && node.ledger.is_some(), Action::GcBegins),
            (node.gc.is_some(), Action::GcEnds),
            (faults.reboots > 0, Action::Reboot),
            (faults.lost_rules > 0 && node.is_ruled, Action::Rules(false)),
            (!node.is_ruled, Action::Rules(true)),
            (
                faults.deletions > 0 && api.current().is_some_and(|object| !object.deleted),
                Action::DeleteObject,
            ),
            (faults.strangers > 0 && azure.lowest_free().is_some(), Action::StrangerTakes),
        ];
        actions.extend(may.into_iter().filter(|(may, _)| *may).map(|(_, action)| action));
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        self.act(&mut world, &action);
        if self.faults.count() - world.faults.count() >= self.at_once {
            world.faults = world.faults.none_left();
        }
        let world = world.canonical(self.seen_versions);
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TWICE, |_, world: &World| {
                let wired: Vec<u8> = world.node.wired.iter().flatten().copied().collect();
                wired.iter().collect::<HashSet<_>>().len() == wired.len()
            }),
            Property::always(ON_THE_NIC, |_, world: &World| {
                let mut wired = world.node.wired.iter().flatten();
                let is_held = |address: u8| world.azure.nic.iter().any(|one| one.address == address);
                wired.all(|address| is_held(address / world.grain))
            }),
            Property::always(HANDED_OUT, |_, world: &World| {
                let records = world.node.ledger.iter().flat_map(|book| book.read().records());
                let mut in_circulation = records.filter(|record| {
                    !record.entry().name.is_empty() && !matches!(record.state(), State::Withdrawn { .. })
                });
                in_circulation.all(|record| {
                    let (name, address) = (number(&record.entry().name), record.entry().address.octets()[3]);
                    let address = address / world.grain;
                    world.azure.nic.iter().any(|one| (one.name, one.address) == (name, address))
                })
            }),
            Property::always(NOT_ROBBED, |_, world: &World| !world.robbed),
            Property::always(NOT_EXPOSED, |_, world: &World| !world.exposed),
            Property::always(REACHED, |_, world: &World| !world.unreached),
            Property::always(NOT_CUT_OFF, |_, world: &World| !world.cut_off),
            Property::always(GOOD_END, |protocol: &Protocol, world: &World| {
                settle::comes_to_a_good_end(protocol, world, Rules::ComeBack)
            }),
            Property::always(GIVEN_BACK, |protocol: &Protocol, world: &World| {
                world.node.is_ruled || settle::comes_to_a_good_end(protocol, world, Rules::StayAway)
            }),
            Property::sometimes(COMES_AGAIN, |protocol, world: &World| {
                let first = protocol.pods as u8; // at first, names and addresses go up together from 1 and 0
                world.azure.nic.iter().any(|one| {
                    one.name > first && one.address < first && world.node.wired.contains(&Some(one.address))
                })
            }),
        ]
    }
}

pub const NEVER_TWICE: &str = "no address is in two sandboxes";
pub const ON_THE_NIC: &str = "an address in use is on the NIC";
pub const HANDED_OUT: &str = "what the ledger hands out is on the NIC";
pub const NOT_ROBBED: &str = "nothing but what was relinquished is removed from the NIC";
pub const NOT_EXPOSED: &str = "no pod comes while the node lacks its rules";
pub const REACHED: &str = "no pod is given an address that Azure has yet to finish";
pub const NOT_CUT_OFF: &str = "no pod that is there loses its address to a GC";
pub const GOOD_END: &str = "with no more faults, NIC, spec and ledger come to agree on what is wanted";
pub const GIVEN_BACK: &str = "with no more faults but without rules, what no pod is there for is given back";
pub const ALWAYS: [&str; 9] = [
    NEVER_TWICE,
    ON_THE_NIC,
    HANDED_OUT,
    NOT_ROBBED,
    NOT_EXPOSED,
    REACHED,
    NOT_CUT_OFF,
    GOOD_END,
    GIVEN_BACK,
];
/// Not a promise but a proof that the model gets there.
pub const COMES_AGAIN: &str = "an address given back is in use under a new name";

impl Protocol {
    /// From two running pods, watches up to two versions behind.
    pub fn new(broken: Broken, faults: Faults) -> Protocol {
        Protocol {
            pods: 2,
            faults,
            at_once: u32::MAX,
            seen_versions: 3,
            names: 5,
            grain: 1,
            splits_adds: false,
            splits_writes: false,
            broken,
            settled: Mutex::default(),
        }
    }
}
