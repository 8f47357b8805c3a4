//! The end of a world in which nothing fails any more: one fixed schedule in which every process does its
//! duty in turn. If it comes to rest in the good end, the good end was reachable, and no address is lost for
//! good. A node may lack its rules to the end: then no pod comes, and nothing else is missing.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use vnetpool_plugin::ledger::State;

use super::{Action, Protocol};
use crate::Broken;
use crate::operator::{Operator, number};
use crate::world::{Faults, PODS, Step, World};

/// More rounds than any world needs.
const ROUNDS: usize = 30;

/// What becomes of rules that the node lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rules {
    ComeBack,
    StayAway,
}

/// The world at rest.
pub fn rest(world: World) -> World {
    let protocol = Protocol::new(Broken::None, Faults::NONE);
    let mut world = begin(&world);
    for _ in 0..ROUNDS {
        world = round(&protocol, &world, Rules::ComeBack);
    }
    world
}

/// The property: see the module.
pub fn comes_to_a_good_end(protocol: &Protocol, world: &World, rules: Rules) -> bool {
    let mut world = begin(world);
    let mut passed = vec![];
    let mut is_rechecked = false;
    let is_known = |hash: &u64| protocol.settled.lock().unwrap().contains(hash);
    for _ in 0..ROUNDS {
        let hash = hash(&world, rules);
        if is_known(&hash) || is_good_end(&world, rules) {
            passed.push(hash);
            protocol.settled.lock().unwrap().extend(passed);
            return true;
        }
        passed.push(hash);
        let next = round(protocol, &world, rules);
        if next != world {
            world = next;
        } else if !is_rechecked {
            // Hours later, the operator reads each NIC without an occasion.
            is_rechecked = true;
            let memory = world.operators[1].as_mut().and_then(|process| process.memory.as_mut());
            memory.into_iter().for_each(|memory| memory.nic().must_read = true);
        } else {
            return false;
        }
    }
    false
}

/// No more faults: the old leader is gone, strangers have left, reports are not late, and there is a leader.
fn begin(world: &World) -> World {
    let mut world = world.clone();
    world.faults = Faults::NONE;
    Operator::of(&mut world, 0, Broken::None).hangs_up();
    world.operators[0] = None;
    world.operators[1].get_or_insert_default();
    world.azure.strangers.clear();
    if let Some(report) = world.node.late.take() {
        world.land(&report);
    }
    world.land_held_back();
    world.node.gc = None;
    (0..PODS).for_each(|pod| world.add_wires(pod, Broken::None));
    world.given_up.clear();
    world.robbed = false;
    world.exposed = false;
    world.unreached = false;
    world.cut_off = false;
    world.canonical(1)
}

/// One step of the new leader, after everything on its way has arrived in Azure.
fn step(protocol: &Protocol, world: &mut World) {
    loop {
        if world.azure.operation.is_some() {
            protocol.act(world, &Action::Finish(true));
        } else if !world.azure.puts.is_empty() {
            protocol.act(world, &Action::Handle(0));
        } else {
            break;
        }
    }
    let last = world.api.history.len().wrapping_sub(1);
    let action = match world.operators[1].as_ref().map(|process| &process.step) {
        Some(Step::Observed { .. }) => Action::GoOn(1),
        Some(Step::Answered { .. }) => Action::ObserveAgain(1, last),
        Some(Step::Recreating { .. }) => Action::Recreate(1),
        Some(Step::Idle) if !world.api.exists => Action::Admit(1),
        Some(Step::Idle) => Action::Observe(1, last),
        // Every write has been handled, so a process that waits is no more than an answer away.
        Some(Step::Writing { .. } | Step::Releasing { .. }) | None => return,
    };
    protocol.act(world, &action);
}

/// Every process does its duty once.
fn round(protocol: &Protocol, world: &World, rules: Rules) -> World {
    let mut world = world.clone();
    let act = |world: &mut World, action: Action| protocol.act(world, &action);
    // A reconcile of the operator: a new one, or the rest of the one it is in.
    let is_idle =
        |world: &World| world.operators[1].as_ref().is_none_or(|process| process.step == Step::Idle);
    if is_idle(&world) {
        step(protocol, &mut world);
    }
    while !is_idle(&world) {
        step(protocol, &mut world);
    }
    if !world.node.is_ruled && rules == Rules::ComeBack {
        act(&mut world, Action::Rules(true));
    }
    if world.api.exists {
        if world.node.ledger.is_none() {
            if world.node.read.is_none() {
                act(&mut world, Action::AgentReads);
            }
            act(&mut world, Action::AgentRebuilds);
        }
        let last = world.api.history.len() - 1;
        act(&mut world, Action::AgentSupplies(last));
        act(&mut world, Action::AgentRelinquishes);
        act(&mut world, Action::Report);
    }
    act(&mut world, Action::Sweep);
    for pod in 0..PODS {
        if world.node.pods[pod] && world.node.wired[pod].is_none() {
            act(&mut world, Action::Add(pod));
        }
    }
    world.canonical(1)
}

/// NIC = spec = ledger, held = wanted, every pod has an address, unless the rules stay away, and no process
/// waits for another.
fn is_good_end(world: &World, rules: Rules) -> bool {
    let (Some(object), Some(book)) = (world.api.current(), &world.node.ledger) else { return false };
    let bound = world.node.pods.iter().filter(|is_bound| **is_bound).count();
    let ledger = book.read();
    let mut names = vec![];
    for record in ledger.records() {
        let is_sound = match record.state() {
            State::Free { .. } => true,
            State::Assigned(assignment) => !assignment.vanished && !record.entry().name.is_empty(),
            State::Withdrawn { .. } => false,
        };
        if !is_sound {
            return false;
        }
        names.push(number(&record.entry().name));
    }
    names.sort();
    names.dedup();
    let grain = usize::from(world.grain);
    let on_nic: Vec<u8> = world.azure.nic.iter().map(|one| one.name).collect();
    let mut published = object.spec.entries.clone();
    published.sort();
    names == on_nic
        && published == world.azure.nic
        && on_nic.len() == (bound + grain - 1).div_ceil(grain)
        && !world.azure.has_failed
        && world.azure.unfinished.is_empty()
        && (0..PODS).all(|pod| match world.node.wired[pod] {
            Some(_) => world.node.pods[pod],
            None => !world.node.pods[pod] || rules == Rules::StayAway,
        })
        && ledger.relinquished().next().is_none()
        && object.status.relinquished.is_empty()
        && !object.status.writing
        && world.operators[1].as_ref().is_some_and(|process| process.step == Step::Idle)
}

fn hash(world: &World, rules: Rules) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((world, rules))
}
