//! Traces for the real programs. On each leg of one something happens to the programs: a pod comes, Azure
//! handles a write, an operator dies. Then the programs take steps of their own until none of these changes
//! anything that is seen, and the [`View`] of that moment is the model's claim about the real world.
//!
//! Which steps they take, and in which order, is for the programs to choose, and nobody can stop a real one
//! between two of them. So a leg is in a trace only if all orders of the model's steps come to one view. Both
//! worlds are compared where the real one must stand still, too: what goes on in them is a write that Azure
//! has yet to handle, at most.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::Ipv4Addr;

use stateright::Model;
use vnetpool_plugin::ledger::{Ledger, State};

use crate::Broken;
use crate::operator::name;
use crate::protocol::{Action, Protocol};
use crate::world::{Configuration, Faults, Object, Process, Step, World};

/// So many legs a trace has before all trouble ends.
const LEGS: usize = 8;
/// The first address of the model's subnet.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);

/// A way from rest to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What is seen at first: a node with one pod.
    pub begins: View,
    pub legs: Vec<Leg>,
}

/// Something that happens to the programs, and what is seen once they have come to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    pub action: Action,
    pub view: View,
}

/// What both worlds show of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// How many writes Azure has yet to handle.
    pub writes: usize,
    /// The reservations on the NIC: name and address, which is counted from the first of the subnet.
    pub nic: Vec<(String, u32)>,
    pub object: Option<Shown>,
    /// Of the ledger's records: name, address and use.
    pub ledger: Vec<(String, u32, Use)>,
    /// The addresses of the pods that are there.
    pub pods: Vec<u32>,
}

/// What the API server shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// It was deleted, and the finalizer keeps it.
    pub is_deleted: bool,
    /// `spec` is of the present boot.
    pub is_of_boot: bool,
    pub target: u32,
    /// The reservations in `spec`, as on the NIC.
    pub spec: Vec<(String, u32)>,
    pub assigned: u32,
    pub relinquished: Vec<String>,
    /// The condition `Writing`.
    pub writing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    Free,
    Assigned,
    /// Assigned, and gone from `spec`.
    Vanished,
    Withdrawn,
}

impl Trace {
    /// What happens is drawn by the seed, among all that can be done to the real programs. In the end each
    /// write is handled, and there is an operator.
    pub fn of(seed: u64) -> Trace {
        let faults = Faults {
            failed_writes: 1,
            lost_answers: 1,
            operator_deaths: 1,
            wipes: 1,
            reboots: 1,
            deletions: 1,
            strangers: 1,
            pod_changes: 6,
            ..Faults::NONE
        };
        let protocol =
            Protocol { pods: 1, seen_versions: 1, names: u8::MAX, ..Protocol::new(Broken::None, faults) };
        let begun = rests(&protocol, protocol.init_states());
        let begins = View::of(&begun[0]);
        let mut way: Vec<(Vec<World>, Leg)> = vec![];
        while way.len() < LEGS {
            let worlds = way.last().map_or(&begun, |(worlds, _)| worlds);
            let actions = drawn(&protocol, worlds, (seed, way.len()));
            let Some(next) = actions.into_iter().find_map(|action| go(&protocol, worlds, action)) else {
                break;
            };
            way.push(next);
        }
        loop {
            let worlds = way.last().map_or(&begun, |(worlds, _)| worlds);
            if let Some(end) = heal(&protocol, worlds) {
                let legs = way.into_iter().map(|(_, leg)| leg).chain(end).collect();
                return Trace { begins, legs };
            }
            // From here the programs may come to more than one end.
            way.pop();
        }
    }
}

/// All that may happen next in each of these worlds, in a drawn order.
fn drawn(protocol: &Protocol, worlds: &[World], draw: (u64, usize)) -> Vec<Action> {
    let may = |world: &World| {
        let mut actions = vec![];
        protocol.actions(world, &mut actions);
        actions.retain(|action| can_be_done(world, action));
        actions
    };
    let mut common = may(&worlds[0]);
    worlds[1..].iter().map(may).for_each(|others| common.retain(|action| others.contains(action)));
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    common.sort_by_cached_key(|action| hasher.hash_one((draw, format!("{action:?}"))));
    common
}

/// The legs on which all trouble ends, if the programs leave no choice on them.
fn heal(protocol: &Protocol, worlds: &[World]) -> Option<Vec<Leg>> {
    let (mut worlds, mut legs) = (worlds.to_vec(), vec![]);
    while legs.len() < LEGS {
        let world = worlds.first()?;
        let action = match world.operators {
            [None, None] => Action::OperatorStarts(1),
            _ if world.azure.puts.is_empty() => return Some(legs),
            _ => Action::Handle(0),
        };
        let (after, leg) = go(protocol, &worlds, action)?;
        worlds = after;
        legs.push(leg);
    }
    None
}

/// Goes a leg: the worlds at rest after an action, and the view of all of them. `None` if nothing has
/// changed, or if they don't have one view.
fn go(protocol: &Protocol, worlds: &[World], action: Action) -> Option<(Vec<World>, Leg)> {
    let after: Option<Vec<World>> =
        worlds.iter().map(|world| protocol.next_state(world, action.clone())).collect();
    let after = rests(protocol, after?);
    let view = View::of(after.first()?);
    let is_one = after.iter().all(|world| View::of(world) == view);
    is_one.then_some((after, Leg { action, view }))
}

/// Whether it happens to the real programs, and can be made to. All else is for the programs to do, for the
/// node's kernel, or in between their steps.
fn can_be_done(world: &World, action: &Action) -> bool {
    let puts = &world.azure.puts;
    let is_one_orphaned = puts.iter().any(|put| put.by.is_none());
    match action {
        Action::Handle(_) | Action::OperatorStarts(_) | Action::Bind(_) | Action::Del(_) => true,
        Action::Wipe | Action::DeleteObject | Action::StrangerTakes => true,
        // Another client's write comes before it, and would before all.
        Action::FailWrite(_) => puts.len() == 1,
        // Of two for which no process waits the model doesn't know which was sent first.
        Action::LoseAnswer(_) | Action::OperatorDies(_) => !is_one_orphaned,
        // An agent of `conduct` does nothing in a boot before `spec` is of it.
        Action::Reboot => puts.is_empty() && world.operators.iter().any(Option::is_some),
        _ => false,
    }
}

/// Whether it is a step of the programs: of operator, agent or plugin.
fn is_their_own(action: &Action) -> bool {
    matches!(
        action,
        Action::Observe(..)
            | Action::GoOn(_)
            | Action::ObserveAgain(..)
            | Action::Recreate(_)
            | Action::Admit(_)
            | Action::AgentSupplies(_)
            | Action::AgentRelinquishes
            | Action::AgentReads
            | Action::AgentRebuilds
            | Action::Report
            | Action::Sweep
            | Action::Add(_)
    )
}

/// The worlds in which the programs may come to rest. From there on no step of theirs changes what is seen,
/// and none of them is in the middle of anything but a write that Azure has yet to handle.
#[allow(clippy::mutable_key_type)] // what a ledger's records cache is no part of their hash
fn rests(protocol: &Protocol, begun: Vec<World>) -> Vec<World> {
    let mut numbers: HashMap<World, usize> = HashMap::new();
    let mut worlds: Vec<World> = vec![];
    let mut number = |world: World, worlds: &mut Vec<World>| {
        *numbers.entry(world).or_insert_with_key(|world| {
            worlds.push(world.clone());
            worlds.len() - 1
        })
    };
    for world in begun {
        number(world, &mut worlds);
    }
    // Of each world, those to which one step leads.
    let mut next: Vec<Vec<usize>> = vec![];
    while let Some(world) = worlds.get(next.len()).cloned() {
        let mut actions = vec![];
        protocol.actions(&world, &mut actions);
        let own = actions.into_iter().filter(is_their_own);
        let after = own.filter_map(|action| protocol.next_state(&world, action));
        next.push(after.map(|after| number(after, &mut worlds)).collect());
    }
    let views: Vec<View> = worlds.iter().map(View::of).collect();
    let mut is_restless = vec![false; worlds.len()];
    loop {
        let turns = |one: &usize| next[*one].iter().any(|&to| is_restless[to] || views[to] != views[*one]);
        let found: Vec<usize> = (0..worlds.len()).filter(|&one| !is_restless[one]).filter(turns).collect();
        if found.is_empty() {
            break;
        }
        found.into_iter().for_each(|one| is_restless[one] = true);
    }
    let at_rest = worlds.into_iter().zip(is_restless).filter(|(_, is_restless)| !is_restless);
    at_rest.map(|(world, _)| world).filter(is_between_steps).collect()
}

fn is_between_steps(world: &World) -> bool {
    let waits = |process: &Process| {
        matches!(process.step, Step::Idle | Step::Writing { .. } | Step::Releasing { .. })
    };
    let node = &world.node;
    world.operators.iter().flatten().all(waits)
        && node.supplied.is_none()
        && node.report.is_none()
        && node.read.is_none()
}

impl View {
    fn of(world: &World) -> View {
        let World { azure, api, node, .. } = world;
        let pairs = |all: &[Configuration]| {
            all.iter().map(|one| (name(one.name), one.address.into())).collect::<Vec<_>>()
        };
        let shown = |object: &Object| Shown {
            is_deleted: object.deleted,
            is_of_boot: object.spec.boot == node.boot,
            target: object.spec.target,
            spec: pairs(&object.spec.entries),
            assigned: object.status.assigned,
            relinquished: object.status.relinquished.iter().map(|&number| name(number)).collect(),
            writing: object.status.writing,
        };
        let view = View {
            writes: azure.puts.len(),
            nic: pairs(&azure.nic),
            object: api.current().map(shown),
            ledger: node.ledger.iter().flat_map(|book| records(book.read(), FIRST)).collect(),
            pods: node.wired.iter().flatten().map(|&address| address.into()).collect(),
        };
        view.labelled()
    }

    /// The same in one order, and with letters for names. A name is chosen at random, and all that counts is
    /// where it stands again.
    pub fn labelled(mut self) -> View {
        let mut known: Vec<String> = vec![];
        let mut label = |name: &mut String| {
            // A ledger that was built anew has an address in use, and no name for it yet.
            if name.is_empty() {
                return;
            }
            let at = known.iter().position(|one| one == name).unwrap_or_else(|| {
                known.push(name.clone());
                known.len() - 1
            });
            *name = char::from(b'a' + at as u8).to_string();
        };
        let (View { nic, object, ledger, pods, .. }, mut none) = (&mut self, Shown::default());
        let Shown { spec, relinquished, .. } = object.as_mut().unwrap_or(&mut none);
        nic.sort_by_key(|(_, address)| *address);
        spec.sort_by_key(|(_, address)| *address);
        ledger.sort_by_key(|(_, address, state)| (*address, *state));
        nic.iter_mut().for_each(|(name, _)| label(name));
        spec.iter_mut().for_each(|(name, _)| label(name));
        ledger.iter_mut().for_each(|(name, ..)| label(name));
        relinquished.iter_mut().for_each(&mut label);
        relinquished.sort();
        pods.sort();
        self
    }
}

/// What a view has of a ledger. `first` is the first address of the subnet.
pub fn records(ledger: &Ledger, first: Ipv4Addr) -> Vec<(String, u32, Use)> {
    let records = ledger.records().iter().map(|record| {
        let state = match record.state() {
            State::Free { .. } => Use::Free,
            State::Assigned(one) if one.vanished => Use::Vanished,
            State::Assigned(_) => Use::Assigned,
            State::Withdrawn { .. } => Use::Withdrawn,
        };
        let entry = record.entry();
        (entry.name.clone(), counted(entry.address, first), state)
    });
    records.collect()
}

/// An address of the subnet, counted from its first.
pub fn counted(address: Ipv4Addr, first: Ipv4Addr) -> u32 {
    u32::from(address).wrapping_sub(u32::from(first))
}
