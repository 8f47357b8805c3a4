//! The protocol as a stateright model: the possible next steps, and the invariants.

mod settle;

use std::collections::HashSet;
use std::sync::Mutex;

use stateright::{Model, Property};
use vnetpool_plugin::ledger::State;

use crate::Broken;
use crate::operator::{Operator, number};
use crate::world::{Faults, PODS, Step, World};
use settle::Rules;

/// A world to explore, from a node at rest with `pods` pods running.
pub struct Protocol {
    pub pods: usize,
    pub faults: Faults,
    /// How many versions of the object, the current one included, a watch may show.
    pub seen_versions: usize,
    /// How many names there may be in all.
    pub names: u8,
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
    /// ... reads again after its write.
    ObserveAgain(usize, usize),
    Recreate(usize),
    Admit(usize),
    /// A NIC write reaches Azure.
    Handle(usize),
    FailWrite(usize),
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
    Bind(usize),
    Add(usize),
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
                Operator { world, index, broken }.observe(&watched);
            }
            Action::GoOn(index) => Operator { world, index, broken }.go_on(),
            Action::ObserveAgain(index, view) => {
                let watched = world.api.history[view].clone();
                Operator { world, index, broken }.observe_again(&watched);
            }
            Action::Recreate(index) => Operator { world, index, broken }.recreate(),
            Action::Admit(index) => Operator { world, index, broken }.admit(),
            Action::Handle(index) => self.handle(world, index),
            Action::FailWrite(put) => {
                if let Some(index) = world.azure.puts.remove(put).by {
                    Operator { world, index, broken }.answered(None);
                }
                world.faults.failed_writes -= 1;
            }
            Action::LoseAnswer(index) => {
                let mut operator = Operator { world, index, broken };
                operator.hangs_up();
                operator.answered(None);
                world.faults.lost_answers -= 1;
            }
            Action::OperatorDies(index) => {
                Operator { world, index, broken }.hangs_up();
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
            Action::Sweep => world.sweep(),
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
            Action::Wipe => {
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
        let answer = world.azure.put(&put, self.broken != Broken::WritesUnconditionally);
        let removed = before.iter().filter(|one| world.azure.nic.iter().all(|left| left.name != one.name));
        world.robbed |= removed.into_iter().any(|one| !world.given_up.contains(&one.name));
        if let Some(index) = put.by {
            Operator { world, index, broken: self.broken }.answered(answer);
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = settle::rest(World::new(self.pods));
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
            (None, Some(_)) => actions.push(Action::AgentRebuilds),
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
            match (node.pods[pod], node.wired[pod]) {
                (false, _) if faults.pod_changes > 0 => actions.push(Action::Bind(pod)),
                (true, None) if node.ledger.is_some() => actions.push(Action::Add(pod)),
                _ => {}
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
                wired.all(|address| world.azure.nic.iter().any(|one| one.address == *address))
            }),
            Property::always(HANDED_OUT, |_, world: &World| {
                let records = world.node.ledger.iter().flat_map(|book| book.read().records());
                let mut in_circulation = records.filter(|record| {
                    !record.entry().name.is_empty() && !matches!(record.state(), State::Withdrawn { .. })
                });
                in_circulation.all(|record| {
                    let (name, address) = (number(&record.entry().name), record.entry().address.octets()[3]);
                    world.azure.nic.iter().any(|one| (one.name, one.address) == (name, address))
                })
            }),
            Property::always(NOT_ROBBED, |_, world: &World| !world.robbed),
            Property::always(NOT_EXPOSED, |_, world: &World| !world.exposed),
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
pub const GOOD_END: &str = "with no more faults, NIC, spec and ledger come to agree on what is wanted";
pub const GIVEN_BACK: &str = "with no more faults but without rules, what no pod is there for is given back";
pub const ALWAYS: [&str; 7] =
    [NEVER_TWICE, ON_THE_NIC, HANDED_OUT, NOT_ROBBED, NOT_EXPOSED, GOOD_END, GIVEN_BACK];
/// Not a promise but a proof that the model gets there.
pub const COMES_AGAIN: &str = "an address given back is in use under a new name";

impl Protocol {
    /// From two running pods, watches up to two versions behind.
    pub fn new(broken: Broken, faults: Faults) -> Protocol {
        Protocol { pods: 2, faults, seen_versions: 3, names: 5, broken, settled: Mutex::default() }
    }
}
