//! The model of what other clients do to a NIC: an address that another plugin gave a pod isn't taken off it,
//! and Azure is asked only for addresses that pods still had once they were off the NIC. Through every
//! interleaving of the NIC's reads, the agent's reports and two pods' lives.
//!
//! Decided by the product: [`vnetpool_operator::adoption`] and [`vnetpool_operator::lost`]. Modelled: a
//! `spec` that is published after a read, the agent that takes it up whenever it does, its report that lands
//! whenever it does, a NIC write that takes as long as it takes. Assumed: an agent that has taken a `spec` up
//! has its configuration in place, so the runtime starts no other plugin from then on, and the other plugin
//! isn't installed once more.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Value, json};
use stateright::{Checker, HasDiscoveries, Model, Property};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::pool::Adopt;
use vnetpool_model::operator;
use vnetpool_operator::azure::{Nic, Others, ProvisioningState};
use vnetpool_operator::{Found, Uid, adoption, lost};

const PODS: [&str; 2] = ["a", "b"];
const BOOT: &str = "boot";
/// The address that another client takes off the NIC.
const ADDRESS: &str = "10.0.0.9";

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    None,
    /// A report counts only if it is of the present generation, which is newer than the NIC's read.
    BelievesOldReports,
    /// Who was asked for another reason before the read is asked anew.
    BelievesStandingAnswers,
}

/// The agent's report: the generation that it has taken up, and the pods with an address of ours, where these
/// were asked for, or which of them have lost theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Report {
    generation: u8,
    pods: BTreeSet<usize>,
}

/// A NIC with another plugin's ipConfiguration, or with none.
fn nic(has_other: bool) -> Nic {
    let others = Others { idle: has_other.then(|| "theirs".into()).into_iter().collect(), attached: vec![] };
    Nic { others, ..operator::nic(ProvisioningState::Succeeded) }
}

/// The object as the operator sees it, or as it would without the rule.
fn object(broken: Broken, generation: u8, asks: bool, reported: &Report) -> NodeIPAllocation {
    let holder = |&pod: &usize| json!({"address": ADDRESS, "podUID": PODS[pod], "sandbox": PODS[pod]});
    let pods: Vec<Value> = reported.pods.iter().map(holder).collect();
    let observed = if broken == Broken::BelievesOldReports { generation } else { reported.generation };
    let Nic { id, subnet, .. } = nic(false);
    let interface = json!({"id": id.as_str(), "mac": "m", "primaryAddress": "10.0.0.4",
        "subnet": {"id": subnet.as_str()}});
    let object = json!({
        "metadata": {"name": "node", "generation": generation},
        "spec": {"nodeUID": "node", "pool": "p", "cooldown": "30s", "interfaces": [interface],
            "reportHolders": asks},
        "status": {"bootID": BOOT, "observedGeneration": observed, "holders": pods, "lost": pods},
    });
    serde_json::from_value(object).unwrap()
}

/// Who has given a pod's sandbox its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Plugin {
    Ours,
    Theirs,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Which plugin the runtime starts.
    configured: Plugin,
    /// Their ipConfiguration is on the NIC; and it was when that was last read.
    is_there: bool,
    was_read: bool,
    may_come: bool,
    bound: [bool; 2],
    sandboxes: [Option<Plugin>; 2],
    generation: u8,
    asks: bool,
    /// The operator wants the holders' names for another reason, too.
    asks_otherwise: bool,
    found: Found,
    taken_up: (u8, bool),
    on_its_way: Option<Report>,
    reported: Report,
    /// A write that takes their ipConfiguration off the NIC is under way.
    writes: bool,
    changes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Binds(usize),
    Starts(usize),
    /// The sandbox ends; the pod may get another one.
    Ends(usize),
    /// Another plugin is installed, and puts an address on the NIC.
    TheyCome,
    AgentTakesUp,
    AgentReports,
    ReportLands,
    OperatorReads,
    AsksOtherwise,
    OperatorActs,
    WriteLands,
}

struct Adopting {
    broken: Broken,
    changes: u8,
}

impl State {
    /// One reconcile of the operator: decides by the NIC as it was read, and publishes whether it asks.
    fn operator_acts(&mut self, broken: Broken) {
        let bound: HashSet<Uid> =
            (0..2).filter(|&pod| self.bound[pod]).map(|pod| Uid::of(PODS[pod])).collect();
        let object = object(broken, self.generation, self.asks, &self.reported);
        let nic = nic(self.was_read);
        if broken != Broken::BelievesStandingAnswers {
            self.found.note(&nic, &object);
        }
        let Some(adoption) = adoption(Adopt::Secondaries, &bound, &object, BOOT, (&nic, &self.found)) else {
            return;
        };
        // What is ready goes (`planner::plan`); it is asked for as in `node::publish`.
        self.writes = !adoption.ready.is_empty();
        let asks = (self.asks_otherwise || adoption.is_left) && !self.found.must_ask_anew(&object);
        if asks != self.asks {
            self.generation += 1;
            self.asks = asks;
        }
    }

    /// Whether a pod uses their address.
    fn is_used(&self) -> bool {
        self.sandboxes.contains(&Some(Plugin::Theirs))
    }
}

impl Model for Adopting {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            configured: Plugin::Ours,
            is_there: false,
            was_read: false,
            may_come: true,
            bound: [false; 2],
            sandboxes: [None; 2],
            generation: 1,
            asks: false,
            asks_otherwise: false,
            found: Found::default(),
            taken_up: (1, false),
            on_its_way: None,
            reported: Report { generation: 1, ..Report::default() },
            writes: false,
            changes: self.changes,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for pod in 0..PODS.len() {
            match (state.bound[pod], state.sandboxes[pod]) {
                (false, _) => actions.push(Action::Binds(pod)),
                (true, None) => actions.push(Action::Starts(pod)),
                (true, Some(_)) if state.changes > 0 => actions.push(Action::Ends(pod)),
                _ => {}
            }
        }
        if state.may_come {
            actions.push(Action::TheyCome);
        }
        if !state.asks_otherwise {
            actions.push(Action::AsksOtherwise);
        }
        actions.push(Action::AgentTakesUp);
        actions.push(if state.on_its_way.is_some() { Action::ReportLands } else { Action::AgentReports });
        actions.push(if state.writes { Action::WriteLands } else { Action::OperatorReads });
        if !state.writes {
            actions.push(Action::OperatorActs);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Binds(pod) => state.bound[pod] = true,
            Action::Starts(pod) => {
                state.sandboxes[pod] = match state.configured {
                    Plugin::Ours => Some(Plugin::Ours),
                    Plugin::Theirs if state.is_there && !state.is_used() => Some(Plugin::Theirs),
                    Plugin::Theirs => None,
                };
            }
            Action::Ends(pod) => {
                state.sandboxes[pod] = None;
                state.changes -= 1;
            }
            Action::TheyCome => {
                (state.configured, state.is_there, state.may_come) = (Plugin::Theirs, true, false);
            }
            Action::AgentTakesUp => {
                (state.taken_up, state.configured) = ((state.generation, state.asks), Plugin::Ours);
            }
            Action::AgentReports => {
                let (generation, asks) = state.taken_up;
                let has = |pod: &usize| asks && state.sandboxes[*pod] == Some(Plugin::Ours);
                state.on_its_way = Some(Report { generation, pods: (0..2).filter(has).collect() });
            }
            Action::ReportLands => state.reported = state.on_its_way.take()?,
            Action::OperatorReads => state.was_read = state.is_there,
            Action::AsksOtherwise => state.asks_otherwise = true,
            Action::OperatorActs => state.operator_acts(self.broken),
            Action::WriteLands => {
                (state.is_there, state.was_read, state.writes) = (false, false, false);
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_UNDER_A_POD, |_, state: &State| state.is_there || !state.is_used()),
            Property::sometimes(GONE, |_, state: &State| {
                !state.may_come && !state.is_there && state.bound == [true; 2]
            }),
        ]
    }
}

const NOT_UNDER_A_POD: &str = "another plugin's address isn't taken off the NIC under its pod";
/// Not a promise but a proof that the model gets there.
const GONE: &str = "what another plugin has left is gone, and pods run";

fn adopting(broken: Broken, changes: u8) -> impl Checker<Adopting> {
    let title = format!("adoption, {broken:?}");
    crate::explore(&title, Adopting { broken, changes }, HasDiscoveries::AnyFailures, crate::ALL)
}

#[test]
fn what_another_plugin_has_left_goes_only_when_no_pod_uses_it() {
    let checker = adopting(Broken::None, 3);
    checker.assert_no_discovery(NOT_UNDER_A_POD);
    checker.assert_any_discovery(GONE);
}

/// Its agent hasn't put its own configuration in place since, so a pod may still come to use the address.
#[test]
fn a_report_that_is_older_than_the_nics_read_is_not_enough_to_adopt() {
    assert!(adopting(Broken::BelievesOldReports, 2).discovery(NOT_UNDER_A_POD).is_some());
}

/// The agent answers already when their address is found, by what it saw before.
#[test]
fn an_answer_from_before_the_nics_read_is_not_enough_to_adopt_either() {
    assert!(adopting(Broken::BelievesStandingAnswers, 2).discovery(NOT_UNDER_A_POD).is_some());
}

/// One address of ours and the pod that may have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Restoring {
    /// It is on the NIC; it was when that was last read; `spec` shows it.
    is_held: bool,
    was_read: bool,
    is_shown: bool,
    has: bool,
    /// A pod has had it since the read that showed it gone.
    had_since: bool,
    generation: u8,
    /// The generation, and whether that shows the address.
    taken_up: (u8, bool),
    on_its_way: Option<Report>,
    reported: Report,
    asked_in_vain: bool,
    was_restored: bool,
    /// How often others may still take it off.
    wipes: u8,
    changes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    PodComes,
    PodGoes,
    Wiped,
    AgentTakesUp,
    AgentReports,
    ReportLands,
    OperatorReads,
    OperatorPublishes,
    OperatorRestores,
}

struct Lost {
    broken: Broken,
    wipes: u8,
    changes: u8,
}

impl Model for Lost {
    type State = Restoring;
    type Action = Step;

    fn init_states(&self) -> Vec<Restoring> {
        vec![Restoring {
            is_held: true,
            was_read: true,
            is_shown: true,
            has: false,
            had_since: false,
            generation: 1,
            taken_up: (1, true),
            on_its_way: None,
            reported: Report { generation: 1, ..Report::default() },
            asked_in_vain: false,
            was_restored: false,
            wipes: self.wipes,
            changes: self.changes,
        }]
    }

    fn actions(&self, state: &Restoring, actions: &mut Vec<Step>) {
        if state.has && state.changes > 0 {
            actions.push(Step::PodGoes);
        }
        // A ledger gives out only what its `spec` has.
        if !state.has && state.taken_up.1 && state.changes > 0 {
            actions.push(Step::PodComes);
        }
        if state.is_held && state.wipes > 0 {
            actions.push(Step::Wiped);
        }
        actions.push(Step::AgentTakesUp);
        actions.push(if state.on_its_way.is_some() { Step::ReportLands } else { Step::AgentReports });
        actions.extend([Step::OperatorReads, Step::OperatorPublishes, Step::OperatorRestores]);
    }

    fn next_state(&self, last: &Restoring, step: Step) -> Option<Restoring> {
        let mut state = last.clone();
        match step {
            Step::PodComes => (state.has, state.had_since, state.changes) = (true, true, state.changes - 1),
            Step::PodGoes => (state.has, state.changes) = (false, state.changes - 1),
            Step::Wiped => (state.is_held, state.wipes) = (false, state.wipes - 1),
            Step::AgentTakesUp => state.taken_up = (state.generation, state.is_shown),
            Step::AgentReports => {
                let (generation, shows) = state.taken_up;
                let pods = (state.has && !shows).then_some(0).into_iter().collect();
                state.on_its_way = Some(Report { generation, pods });
            }
            Step::ReportLands => state.reported = state.on_its_way.take()?,
            Step::OperatorReads => {
                if state.was_read && !state.is_held {
                    state.had_since = state.has;
                }
                state.was_read = state.is_held;
            }
            // `spec` mirrors the NIC before anything is decided by it.
            Step::OperatorPublishes if state.is_shown != state.was_read => {
                (state.generation, state.is_shown) = (state.generation + 1, state.was_read);
            }
            Step::OperatorPublishes => {}
            // With the write comes the next `spec`, in the same reconcile.
            Step::OperatorRestores if !state.was_read => {
                let object = object(self.broken, state.generation, false, &state.reported);
                if !lost(&object, BOOT, &nic(false), 1, &BTreeSet::new()).is_empty() {
                    state.asked_in_vain |= !state.had_since;
                    (state.is_held, state.was_read, state.is_shown) = (true, true, true);
                    (state.generation, state.was_restored) = (state.generation + 1, true);
                }
            }
            Step::OperatorRestores => {}
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_IN_VAIN, |_, state: &Restoring| !state.asked_in_vain),
            Property::sometimes(RESTORED, |_, state: &Restoring| state.was_restored && state.has),
        ]
    }
}

const NOT_IN_VAIN: &str = "Azure is asked only for an address that a pod had when it was off the NIC";
const RESTORED: &str = "a pod's lost address is on the NIC again";

fn restoring(broken: Broken) -> impl Checker<Lost> {
    let title = format!("lost addresses, {broken:?}");
    crate::explore(&title, Lost { broken, wipes: 2, changes: 3 }, HasDiscoveries::AnyFailures, crate::ALL)
}

#[test]
fn azure_is_asked_only_for_an_address_that_a_pod_had_when_it_was_off_the_nic() {
    let checker = restoring(Broken::None);
    checker.assert_no_discovery(NOT_IN_VAIN);
    checker.assert_any_discovery(RESTORED);
}

/// It is taken off a second time: the report is still that of the first, and its pod has gone since.
#[test]
fn a_report_that_is_older_than_the_nics_read_is_not_enough_to_restore() {
    assert!(restoring(Broken::BelievesOldReports).discovery(NOT_IN_VAIN).is_some());
}
