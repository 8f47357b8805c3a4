//! ADDs that find nothing to assign.

use std::{fs, process::Child, time::Duration};

use crate::{
    node::{Node, Pod, eventually, finish, supply},
    thrift::Traced,
};
use vnetpool_plugin::ledger::{Ledger, Sandbox, file};

fn waiting(node: &Node) -> Vec<Sandbox> {
    node.ledger().waiting().iter().map(|waiter| waiter.sandbox.clone()).collect()
}

#[test]
fn waiting_adds_are_listed_and_served_in_their_order() {
    let node = Node::holding(0);
    let pods = [Pod::new("a"), Pod::new("b"), Pod::new("c")];
    let mut adds = Vec::new();
    for pod in &pods {
        adds.push(node.start_add(pod));
        eventually("the ADD waits", || waiting(&node), |all| all.contains(&pod.sandbox()));
    }
    node.store.with(|ledger, _| ledger.supply(&supply(2, 2))).unwrap();
    let last = adds.pop().unwrap();
    let addresses: Vec<_> = adds.into_iter().map(|add| finish(add).address().to_string()).collect();
    assert_eq!(addresses, ["10.240.1.1", "10.240.1.2"]);
    assert_eq!(waiting(&node), [pods[2].sandbox()]);
    node.del(&pods[0]).succeeds();
    assert_eq!(finish(last).address().to_string(), "10.240.1.1", "freed by the DEL");
}

#[test]
fn del_cancels_an_add_that_waits_and_a_later_add_works() {
    let (node, pod) = (Node::holding(0), Pod::new("a"));
    let add = node.start_add(&pod);
    eventually("the ADD waits", || waiting(&node), |all| *all == [pod.sandbox()]);
    node.del(&pod).succeeds();
    let cancelled = finish(add);
    assert_eq!(cancelled.code(), 11);
    assert!(cancelled.message().contains("DEL"), "{}", cancelled.message());
    assert_eq!(waiting(&node), []);

    let again = node.start_add(&pod);
    eventually("the second ADD waits", || waiting(&node), |all| *all == [pod.sandbox()]);
    node.store.with(|ledger, _| ledger.supply(&supply(2, 1))).unwrap();
    finish(again).succeeds();
}

/// The sockets of ADDs that wait.
fn sockets(node: &Node) -> usize {
    let names = fs::read_dir(node.dir.path()).unwrap().map(|file| file.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("wake-")).count()
}

fn make_ledger(node: &Node, count: u8) {
    let ledger =
        Ledger::rebuild(file::boot_id().unwrap(), &[], &[], &supply(1, count), None, file::now(), true);
    node.store.quiesce().unwrap().create(&ledger).unwrap();
}

#[test]
fn del_cancels_an_add_that_waits_for_a_ledger_and_a_later_add_works() {
    let (node, pod) = (Node::new(), Pod::new("a"));
    let add = node.start_add(&pod);
    let observe = || (sockets(&node), node.store.try_lock_sandbox(&pod.sandbox()).unwrap().is_some());
    eventually("the ADD waits, under no lock", observe, |state| *state == (1, true));
    node.del(&pod).succeeds();
    make_ledger(&node, 1);
    let cancelled = finish(add);
    assert_eq!(cancelled.code(), 11);
    assert!(cancelled.message().contains("DEL"), "{}", cancelled.message());
    assert_eq!((waiting(&node), node.ledger().counts(file::now()).assigned, sockets(&node)), (vec![], 0, 0));
    assert!(node.store.try_lock_sandbox(&pod.sandbox()).unwrap().is_some());
    // The log names the wait for a missing ledger, and doesn't count it as a wait for a lock.
    let log = fs::read_to_string(node.dir.path().join("plugin.log")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let phases =
        lines.filter(|line| line["verb"] == "ADD").map(|line| line["phases"].clone()).next().unwrap();
    let names: Vec<_> = phases.as_array().unwrap().iter().map(|phase| phase[0].clone()).collect();
    assert_eq!(names, ["lock", "no-ledger", "lock"]);
    node.add(&pod).succeeds();
}

#[test]
fn a_del_leaves_nothing_of_an_add_that_was_killed_while_it_waited_for_a_ledger() {
    let (node, pod) = (Node::new(), Pod::new("a"));
    let mut dead = node.start_add(&pod);
    eventually("the ADD waits", || sockets(&node), |count| *count == 1);
    dead.kill().unwrap();
    dead.wait().unwrap();
    node.del(&pod).succeeds();
    assert_eq!(sockets(&node), 0);
}

#[test]
fn of_two_adds_of_a_sandbox_that_wait_for_a_ledger_the_later_gets_its_address() {
    let (node, pod) = (Node::new(), Pod::new("a"));
    let earlier = node.start_add(&pod);
    eventually("the first ADD waits", || sockets(&node), |count| *count == 1);
    let later = node.start_add(&pod);
    assert_eq!(finish(earlier).code(), 11);
    make_ledger(&node, 1);
    assert_eq!(finish(later).address().to_string(), "10.240.1.1");
    assert_eq!(sockets(&node), 0);
}

#[test]
fn a_dead_add_no_longer_waits() {
    let (node, a, b) = (Node::holding(0), Pod::new("a"), Pod::new("b"));
    let mut dead = node.start_add(&a);
    eventually("the ADD waits", || waiting(&node), |all| *all == [a.sandbox()]);
    dead.kill().unwrap();
    dead.wait().unwrap();
    assert_eq!(waiting(&node), []);
    let alive = node.start_add(&b);
    eventually("the other ADD waits", || waiting(&node), |all| *all == [b.sandbox()]);
    node.store.with(|ledger, _| ledger.supply(&supply(2, 1))).unwrap();
    finish(alive).succeeds();
}

#[test]
fn an_add_that_waits_when_the_ledger_is_lost_is_served_by_the_next_one() {
    let (node, pod) = (Node::holding(0), Pod::new("a"));
    let add = node.start_add(&pod);
    eventually("the ADD waits", || waiting(&node), |all| *all == [pod.sandbox()]);
    fs::remove_file(node.dir.path().join("ledger")).unwrap();
    // A process that builds a ledger has to wait for verbs to end, and this one lets go.
    let quiet = node.store.quiesce().unwrap();
    let next = Ledger::rebuild(file::boot_id().unwrap(), &[], &[], &supply(2, 1), None, file::now(), true);
    quiet.create(&next).unwrap();
    assert_eq!(finish(add).address().to_string(), "10.240.1.1");
}

/// How often the process has slept and was woken.
fn sleeps(process: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_change_wakes_only_the_adds_it_serves_and_the_new_first() {
    const MANY: usize = 40;
    const TIMES: usize = 4;
    let node = Node::holding(0);
    // Only those that are served get as far as their namespace.
    let pods: Vec<_> = (0..2 * TIMES).map(|number| Pod::new(&format!("pod{number}"))).collect();
    let path = |number: usize| pods[number % pods.len()].netns.path();
    let start = |number: usize| {
        let add = node.start("ADD", &format!("sandbox{number}"), &path(number), &node.config());
        eventually("the ADD waits", || node.ledger().waiting().len(), |count| *count == number + 1);
        add
    };
    let mut adds: Vec<Child> = (0..MANY).map(start).collect();
    let waiting = |adds: &[Child]| adds.iter().map(sleeps).collect::<Vec<_>>();
    let woken = |before: &[u64], after: &[u64]| before.iter().zip(after).filter(|(a, b)| a != b).count();
    // Each also checks every few seconds, and a slow machine may give many the time for it: then a change
    // that wakes all does so each time, and one that wakes few does so once in a while.
    let by_few = |what: &str, change: &mut dyn FnMut(usize, &mut Vec<Child>) -> usize, adds: &mut _| {
        let woken: Vec<_> = (0..TIMES).map(|number| change(number, adds)).collect();
        assert!(woken.iter().any(|woken| *woken < MANY / 4), "{what} woke {woken:?} of {MANY}");
    };
    eventually("all sleep", || [waiting(&adds), waiting(&adds)], |[one, next]| one == next);

    by_few(
        "a newcomer",
        &mut |number, adds| {
            let before = waiting(adds);
            adds.push(start(MANY + number));
            woken(&before, &waiting(adds))
        },
        &mut adds,
    );
    // Those that are served; the first in line of the others checks.
    let first_is_served = |adds: &mut Vec<Child>, change: &dyn Fn()| {
        let before = waiting(&adds[1..]);
        change();
        finish(adds.remove(0)).succeeds();
        eventually("the first in line has checked", || sleeps(&adds[0]), |now| *now != before[0]);
        woken(&before, &waiting(adds))
    };
    by_few(
        "an address of another's",
        &mut |number, adds| {
            let supply = supply(2 + number as i64, 1 + number as u8);
            let give = || {
                node.store.with(|ledger, _| ledger.supply(&supply)).unwrap();
            };
            first_is_served(adds, &give)
        },
        &mut adds,
    );
    by_few(
        "another's DEL",
        &mut |number, adds| {
            let del = || node.run("DEL", &format!("sandbox{number}"), &path(number), &node.config());
            first_is_served(adds, &|| assert!(del().is_success))
        },
        &mut adds,
    );
    for mut add in adds {
        add.kill().unwrap();
        add.wait().unwrap();
    }
}

/// The system calls of one ADD that waits and then is served, with so many in line before it.
fn calls_behind(others: usize) -> usize {
    let (node, pod) = (Node::holding(0), Pod::new("last"));
    let start = |number: usize| {
        let add = node.start("ADD", &format!("sandbox{number}"), &pod.netns.path(), &node.config());
        eventually("the ADD waits", || node.ledger().waiting().len(), |count| *count == number + 1);
        add
    };
    let adds: Vec<Child> = (0..others).map(start).collect();
    let trace = Traced::start(&node, "ADD", &pod);
    eventually("the last ADD waits", || waiting(&node), |all| all.contains(&pod.sandbox()));
    for mut add in adds {
        add.kill().unwrap();
        add.wait().unwrap();
    }
    node.store.with(|ledger, _| ledger.supply(&supply(2, 1))).unwrap();
    trace.finish().total()
}

#[test]
fn an_add_that_waits_makes_no_more_system_calls_because_others_wait_too() {
    let (alone, behind) = (calls_behind(0), calls_behind(100));
    // It may check once on its own, while the others are made.
    assert!(behind <= alone + 20, "{alone} system calls alone, {behind} behind a hundred others");
}

#[test]
fn an_add_is_served_when_an_address_has_cooled() {
    let (node, a, b) = (Node::holding(1), Pod::new("a"), Pod::new("b"));
    let mut cooling = supply(2, 1);
    cooling.cooldown = Duration::from_millis(300);
    node.store.with(|ledger, _| ledger.supply(&cooling)).unwrap();
    node.add(&a).succeeds();
    node.del(&a).succeeds();
    let freed = file::now();
    node.add(&b).succeeds();
    assert!(file::now() >= freed + 250, "assigned before it had cooled");
}

#[test]
fn the_second_add_gets_the_cooled_address_though_the_first_has_died() {
    let (node, a, b, c) = (Node::holding(1), Pod::new("a"), Pod::new("b"), Pod::new("c"));
    let mut cooling = supply(2, 1);
    // Long enough for a busy machine to see both wait, and over when the second checks again.
    cooling.cooldown = Duration::from_secs(4);
    node.store.with(|ledger, _| ledger.supply(&cooling)).unwrap();
    node.add(&a).succeeds();
    node.del(&a).succeeds();
    let mut first = node.start_add(&b);
    eventually("the first ADD waits", || waiting(&node), |all| *all == [b.sandbox()]);
    let second = node.start_add(&c);
    eventually("the second ADD waits", || waiting(&node), |all| all.len() == 2);
    first.kill().unwrap();
    first.wait().unwrap();
    let died = file::now();
    finish(second).succeeds();
    // It would have got it at the end of its time, too.
    let waited = file::now() - died;
    assert!(waited < 12_000, "{waited} ms");
}
