//! The traces of the model that `conduct` replays: what happens in them, and that a view isn't taken for
//! another.

use std::collections::HashSet;
use std::mem::discriminant;

use vnetpool_model::protocol::Action;
use vnetpool_model::trace::{Leg, Shown, Trace, Use, View};

/// Those of every run and of every night.
fn replayed() -> impl Iterator<Item = (u64, Trace)> {
    (1..=22).map(|seed| (seed, Trace::of(seed)))
}

#[test]
fn the_traces_that_are_replayed_have_everything_happen_that_can_be_done_to_the_programs() {
    let traces: Vec<Trace> = replayed().map(|(_, trace)| trace).collect();
    for (trace, seed) in traces.iter().zip(1..) {
        println!("{seed} begins with {:?}", trace.begins);
        trace.legs.iter().for_each(|Leg { action, view }| println!("  {action:?}: {view:?}"));
    }
    let legs = || traces.iter().flat_map(|trace| &trace.legs);
    let met: HashSet<_> = legs().map(|leg| discriminant(&leg.action)).collect();
    for action in [
        Action::Handle(0),
        Action::FailWrite(0),
        Action::LoseAnswer(0),
        Action::OperatorDies(0),
        Action::OperatorStarts(1),
        Action::Bind(0),
        Action::Del(0),
        Action::Wipe,
        Action::Reboot,
        Action::DeleteObject,
        Action::StrangerTakes,
    ] {
        assert!(met.contains(&discriminant(&action)), "{action:?} happens in none");
    }
    // A write for which no process waits any more comes to a NIC to which the next one is on its way.
    let comes_late = |two: &[Leg]| two[0].view.writes == 2 && two[1].action == Action::Handle(0);
    assert!(traces.iter().any(|trace| trace.legs.windows(2).any(comes_late)));
    let gives_up = |leg: &Leg| leg.view.object.as_ref().is_some_and(|object| !object.relinquished.is_empty());
    assert!(legs().any(gives_up), "nothing is given up");
}

#[test]
fn a_trace_is_the_same_for_a_seed_and_ends_well() {
    assert_eq!(Trace::of(1), Trace::of(1));
    for (seed, trace) in replayed() {
        let View { writes, nic, object, ledger, pods } = &trace.legs.last().unwrap().view;
        let object = object.as_ref().unwrap();
        let in_use = ledger.iter().filter(|(.., state)| *state == Use::Assigned).count();
        assert!(*writes == 0 && object.relinquished.is_empty() && !object.is_deleted, "{seed}: {trace:?}");
        assert!(in_use == pods.len() && object.assigned as usize == in_use, "{seed}: {trace:?}");
        assert!(nic.len() >= in_use, "{seed}: {trace:?}");
    }
}

/// A node with two addresses, of which a pod has one and the other is given up.
fn view(names: [&str; 2]) -> View {
    let [kept, given_up] = names.map(str::to_owned);
    let held = vec![(kept.clone(), 0), (given_up.clone(), 1)];
    View {
        writes: 1,
        nic: held.clone(),
        object: Some(Shown {
            is_deleted: false,
            is_of_boot: true,
            target: 1,
            spec: held,
            assigned: 1,
            relinquished: vec![given_up],
            writing: true,
        }),
        ledger: vec![(kept, 0, Use::Assigned)],
        pods: vec![0],
    }
    .labelled()
}

#[test]
fn a_view_has_letters_for_names_and_is_another_one_where_anything_is_otherwise() {
    let modelled = view(["vnp-1", "vnp-2"]);
    assert_eq!(modelled, view(["vnp-f00d", "vnp-beef"]));
    let mut shuffled = modelled.clone();
    shuffled.nic.reverse();
    assert_eq!(modelled, shuffled.labelled());
    type Falsify = fn(&mut View);
    let falsified: [(&str, Falsify); 15] = [
        ("no write", |view| view.writes = 0),
        ("another address", |view| view.nic[1].1 = 2),
        ("one less on the NIC", |view| drop(view.nic.pop())),
        ("another name on the NIC", |view| view.nic[1].0 = "vnp-3".into()),
        ("no object", |view| view.object = None),
        ("deleted", |view| shown(view).is_deleted = true),
        ("another boot", |view| shown(view).is_of_boot = false),
        ("another target", |view| shown(view).target = 2),
        ("one less in spec", |view| drop(shown(view).spec.pop())),
        ("one more in use", |view| shown(view).assigned = 2),
        ("nothing given up", |view| shown(view).relinquished.clear()),
        ("the other given up", |view| shown(view).relinquished = vec!["a".into()]),
        ("not announced", |view| shown(view).writing = false),
        ("free", |view| view.ledger[0].2 = Use::Free),
        ("no pod", |view| view.pods.clear()),
    ];
    for (what, falsify) in falsified {
        let mut real = modelled.clone();
        falsify(&mut real);
        assert_ne!(modelled, real.labelled(), "{what}");
    }
}

fn shown(view: &mut View) -> &mut Shown {
    view.object.as_mut().unwrap()
}
