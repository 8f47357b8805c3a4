//! The model of attachments: while a resource is attached to an address in Azure for one pod, no other pod of
//! the node has that address, through every interleaving of two pods' lives, the kubelet's report, the
//! agent's reports and the operator's steps.
//!
//! Decided by the product: [`attachments::plan`], [`attachments::holders`] and the ledger. Modelled: a mark
//! reaches the node with a generation of `spec`, whenever the agent takes that up; its report lands whenever
//! it does; the kubelet reports a pod's address once, and doesn't take it back when the sandbox ends; a NIC
//! write takes as long as it takes; one whose answer is lost is carried out at once, later, or never, and not
//! after another write, whose ETag it doesn't have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use stateright::{Checker, HasDiscoveries, Model, Property};
use vnetpool_crds::pool::{Attachments, BackendPool};
use vnetpool_model::operator::{name, number};
use vnetpool_model::world::Book;
use vnetpool_operator::azure::{Attached, IpConfiguration, ProvisioningState, ResourceId};
use vnetpool_operator::planner::attachments::{self, Facts, Mark, Step, Wish};
use vnetpool_plugin::ledger::{Claim, Entry, Ledger, Pod, Sandbox, Supply};

/// The first asks for a backend pool, now or at times; the second for nothing.
const PODS: [&str; 2] = ["asks", "other"];
const POOL: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/loadBalancers/lb/backendAddressPools/web";

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    None,
    /// The holder of a marked address is the agent's report, not the kubelet's.
    BelievesTheKubelet,
    /// The report is of the generation that has the mark.
    BelievesOldReports,
    /// Generation and holders are of one write.
    ReportsInTwoWrites,
    /// While a write may still come, no mark goes.
    BelievesTheNic,
}

/// The marks of one generation of `spec`: UIDs by the number of the address.
type Marks = BTreeMap<u8, String>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Report {
    generation: u8,
    /// UIDs by the number of the marked address.
    confirmed: Marks,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    generation: u8,
    marks: Marks,
    /// The wish of the first pod's annotations.
    asks: bool,
    /// The generation and the marks that the ledger was supplied from.
    taken_up: (u8, Marks),
    ledger: Book,
    addresses: u8,
    /// Each pod's sandbox is there.
    runs: [bool; 2],
    /// The address in the first pod's status.
    pod_ip: Option<u8>,
    on_its_way: Option<Report>,
    reported: Report,
    /// The attachments in Azure, by address, and those that a write under way will attach or take off.
    attached: BTreeSet<u8>,
    write: Option<(bool, BTreeSet<u8>)>,
    /// A write whose answer was lost and that may still come; and whether the operator has to mind that.
    late: Option<(bool, BTreeSet<u8>)>,
    in_doubt: bool,
    changes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Starts(usize),
    /// The sandbox ends; the pod may get another one.
    Ends(usize),
    AsksOrNot,
    KubeletReports,
    AgentTakesUp,
    AgentReports,
    ReportLands,
    OperatorActs,
    WriteLands,
    AnswerIsLost,
    ComesLate,
    /// So long after the loss that no write comes any more.
    DoubtEnds,
}

struct Attaching {
    broken: Broken,
    addresses: u8,
    changes: u8,
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn sandbox(pod: usize) -> Sandbox {
    Sandbox { container_id: PODS[pod].into(), ifname: "eth0".into() }
}

fn supply(generation: u8, marks: &Marks, addresses: u8) -> Supply {
    let entry = |n: u8| Entry { name: name(n), address: address(n), attached_to: marks.get(&n).cloned() };
    Supply {
        object: "object".into(),
        generation: generation.into(),
        node_uid: "node".into(),
        boot_id: "boot".into(),
        cooldown: Duration::ZERO,
        entries: (1..=addresses).map(entry).collect(),
    }
}

impl State {
    /// The UID of the pod that has the address.
    fn holder(&self, n: u8) -> Option<String> {
        let mut all = self.ledger.read().assignments();
        all.find(|(entry, _)| entry.address == address(n)).map(|(_, one)| one.pod.uid.clone())
    }

    fn confirmed(&self) -> Marks {
        let marked = self.taken_up.1.keys().filter_map(|&n| Some((n, self.holder(n)?)));
        marked.collect()
    }

    /// One reconcile of the operator: plans, publishes the marks, and takes the next step.
    fn operator_acts(&mut self, broken: Broken) {
        let pool: ResourceId = POOL.parse().unwrap();
        let held: Vec<IpConfiguration> = (1..=self.addresses)
            .map(|n| IpConfiguration {
                name: name(n),
                address: Some(address(n).into()),
                state: ProvisioningState::Succeeded,
                attached: Attached {
                    backend_pools: self.attached.contains(&n).then(|| pool.clone()).into_iter().collect(),
                    ..Attached::default()
                },
            })
            .collect();
        let mark =
            |(n, uid): (&u8, &String)| (name(*n), Mark { attached_to: uid.clone(), public_address: None });
        let marks: BTreeMap<String, Mark> = self.marks.iter().map(mark).collect();
        let wish = Wish {
            pod: PODS[0].into(),
            backend_pools: Some("web".into()),
            address: self.pod_ip.map(address),
            ..Wish::default()
        };
        let wishes: HashMap<String, Wish> =
            self.asks.then(|| (PODS[0].to_owned(), wish)).into_iter().collect();
        let reported = self.reported.confirmed.iter().map(|(&n, uid)| (address(n), uid.clone()));
        let has = match broken {
            Broken::BelievesTheKubelet => {
                self.pod_ip.map(|n| (address(n), PODS[0].to_owned())).into_iter().collect()
            }
            _ => attachments::holders(&held, &marks, reported, &wishes),
        };
        let plan = attachments::plan(
            &Facts {
                held: &held,
                marks: &marks,
                recorded: &HashSet::new(),
                wishes: &wishes,
                has: &has,
                confirmed: self.reported.generation == self.generation
                    || broken == Broken::BelievesOldReports,
                in_doubt: self.in_doubt && broken != Broken::BelievesTheNic,
                offered: &Attachments {
                    backend_pools: vec![BackendPool { name: "web".into(), id: POOL.into() }],
                    public_address_namespaces: vec![],
                },
                impossible: None,
                public: &HashMap::new(),
                unread: &HashSet::new(),
                refused: &HashSet::new(),
                undetached: &HashSet::new(),
                batch: usize::MAX,
            },
            |_| None,
        );
        let next: Marks =
            plan.marks.iter().map(|(name, mark)| (number(name), mark.attached_to.clone())).collect();
        if next != self.marks {
            self.generation += 1;
            self.marks = next;
        }
        self.write = match plan.step {
            Some(Step::Attach(all)) => Some((true, all.iter().map(|one| number(&one.name)).collect())),
            Some(Step::Detach(names)) => Some((false, names.iter().map(|name| number(name)).collect())),
            None => None,
        };
    }

    fn carry_out(&mut self, (attaches, all): (bool, BTreeSet<u8>)) {
        match attaches {
            true => self.attached.extend(all),
            false => self.attached.retain(|one| !all.contains(one)),
        }
    }
}

impl Model for Attaching {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let marks = Marks::new();
        vec![State {
            generation: 1,
            ledger: Book::new(Ledger::rebuild(
                "boot",
                &[],
                &[],
                &supply(1, &marks, self.addresses),
                None,
                0,
                true,
            )),
            addresses: self.addresses,
            taken_up: (1, marks.clone()),
            marks,
            asks: true,
            runs: [false; 2],
            pod_ip: None,
            on_its_way: None,
            reported: Report { generation: 1, confirmed: Marks::new() },
            attached: BTreeSet::new(),
            write: None,
            late: None,
            in_doubt: false,
            changes: self.changes,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for pod in 0..PODS.len() {
            match state.runs[pod] {
                false if state.changes > 0 => actions.push(Action::Starts(pod)),
                true if state.changes > 0 => actions.push(Action::Ends(pod)),
                _ => {}
            }
        }
        if state.changes > 0 {
            actions.push(Action::AsksOrNot);
        }
        actions.extend([Action::KubeletReports, Action::AgentTakesUp]);
        match &state.on_its_way {
            None => actions.push(Action::AgentReports),
            Some(_) => actions.push(Action::ReportLands),
        }
        actions.push(if state.write.is_some() { Action::WriteLands } else { Action::OperatorActs });
        if state.write.is_some() && !state.in_doubt && state.changes > 0 {
            actions.push(Action::AnswerIsLost);
        }
        if state.late.is_some() {
            actions.push(Action::ComesLate);
        }
        if state.in_doubt {
            actions.push(Action::DoubtEnds);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Starts(pod) => {
                let uid = PODS[pod].to_owned();
                state.ledger.with(|ledger| {
                    let pod_ = Pod { uid, ..Pod::default() };
                    ledger.assign(&Claim::wired(&sandbox(pod), &pod_, ""), 0);
                    ledger.cancel(&sandbox(pod));
                    state.runs[pod] = ledger.address_of(&sandbox(pod)).is_some();
                });
                state.changes -= 1;
            }
            Action::Ends(pod) => {
                state.ledger.with(|ledger| ledger.free(&sandbox(pod), 0));
                state.runs[pod] = false;
                state.changes -= 1;
            }
            Action::AsksOrNot => {
                state.asks = !state.asks;
                state.changes -= 1;
            }
            Action::KubeletReports => {
                let has = state.ledger.read().address_of(&sandbox(0)).map(|one| one.octets()[3]);
                state.pod_ip = has.or(state.pod_ip);
            }
            Action::AgentTakesUp => {
                state.taken_up = (state.generation, state.marks.clone());
                let supply = supply(state.generation, &state.marks, state.addresses);
                state.ledger.with(|ledger| ledger.supply(&supply));
            }
            Action::AgentReports => {
                let confirmed = state.confirmed();
                state.on_its_way = Some(Report { generation: state.taken_up.0, confirmed });
                if self.broken == Broken::ReportsInTwoWrites {
                    state.reported.generation = state.taken_up.0;
                }
            }
            Action::ReportLands => state.reported = state.on_its_way.take()?,
            Action::OperatorActs => state.operator_acts(self.broken),
            Action::WriteLands => {
                let write = state.write.take()?;
                state.carry_out(write);
                state.late = None;
            }
            Action::AnswerIsLost => {
                state.late = state.write.take();
                state.in_doubt = true;
                state.changes -= 1;
            }
            Action::ComesLate => {
                let write = state.late.take()?;
                state.carry_out(write);
            }
            Action::DoubtEnds => (state.late, state.in_doubt) = (None, false),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOBODY_ELSES, |_, state: &State| {
                state.attached.iter().all(|&n| state.holder(n).is_none_or(|uid| uid == PODS[0]))
            }),
            Property::sometimes(ATTACHED, |_, state: &State| {
                state.attached.iter().any(|&n| state.holder(n).is_some_and(|uid| uid == PODS[0]))
            }),
        ]
    }
}

const NOBODY_ELSES: &str = "what is attached for one pod reaches no other";
/// Not a promise but a proof that the model gets there.
const ATTACHED: &str = "a pod has what it asks for";

fn explore(broken: Broken, addresses: u8, changes: u8) -> impl Checker<Attaching> {
    let title = format!("attachments, {addresses}, {broken:?}");
    crate::explore(&title, Attaching { broken, addresses, changes }, HasDiscoveries::AnyFailures, crate::ALL)
}

#[test]
fn a_resource_attached_for_one_pod_reaches_no_other() {
    for (addresses, changes) in [(1, 6), (2, 5)] {
        let checker = explore(Broken::None, addresses, changes);
        checker.assert_no_discovery(NOBODY_ELSES);
        checker.assert_any_discovery(ATTACHED);
    }
}

/// The first pod's status names the address of a sandbox that has ended, and the other pod has it by now.
#[test]
fn the_kubelets_report_is_not_enough_to_attach_a_resource() {
    assert!(explore(Broken::BelievesTheKubelet, 1, 5).discovery(NOBODY_ELSES).is_some());
}

/// A mark that is taken off and set again while the agent knows neither protects nothing in between.
#[test]
fn a_report_from_before_the_mark_is_not_enough_to_attach_a_resource() {
    assert!(explore(Broken::BelievesOldReports, 1, 6).discovery(NOBODY_ELSES).is_some());
}

#[test]
fn a_generation_without_its_holders_is_not_enough_to_attach_a_resource() {
    assert!(explore(Broken::ReportsInTwoWrites, 1, 6).discovery(NOBODY_ELSES).is_some());
}

/// The NIC shows nothing attached, the mark goes, and then the write comes.
#[test]
fn an_empty_nic_frees_no_address_while_a_write_may_still_come() {
    assert!(explore(Broken::BelievesTheNic, 1, 6).discovery(NOBODY_ELSES).is_some());
}
