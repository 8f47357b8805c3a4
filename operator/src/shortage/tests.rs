//! How a subnet without enough addresses is asked and shared, rule by rule, and that nobody is forgotten.

use super::*;
use proptest::prelude::*;

fn source() -> Source {
    Source { subnet: "/subnets/s".into(), grain: 1 }
}

fn said() -> Said {
    Said { subnet: "s".into(), message: "full".into() }
}

/// `pods` that need an address, of which `held` have one, and `warm` besides.
fn want(pods: u32, held: u32, warm: u32) -> Want {
    let wanted = pods + warm;
    Want { pods, held, wanted, units: wanted.saturating_sub(held) }
}

fn refused(all: &mut Shortages, node: &str, want: Want, asked: u32, now: Instant) -> Woken {
    all.refused(&source(), (node, want), asked, said(), now)
}

fn ask(all: &mut Shortages, node: &str, want: Want, now: Instant) -> Turn {
    all.ask(&source(), node, want, now).0
}

/// A shortage in which the last address was refused to `a`.
fn empty(want: Want, now: Instant) -> Shortages {
    let mut all = Shortages::default();
    refused(&mut all, "a", want, 1, now);
    all
}

/// The same, and nobody has had a turn in vain.
fn empty_anew(want: Want, now: Instant) -> Shortages {
    let mut all = empty(want, now);
    all.released(&source(), 0);
    all
}

const LATER: Turn = Turn::Later { at: None };

#[test]
fn without_a_shortage_everybody_is_free() {
    assert_eq!(ask(&mut Shortages::default(), "a", want(4, 0, 8), Instant::now()), Turn::Free);
}

#[test]
fn one_refusal_holds_all_of_the_subnet_back_and_none_of_another() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    assert!(matches!(ask(&mut all, "b", want(1, 0, 0), now), Turn::Later { .. }));
    let other = Source { subnet: "/subnets/other".into(), ..source() };
    assert_eq!(all.ask(&other, "b", want(1, 0, 0), now).0, Turn::Free);
    let blocks = Source { grain: 16, ..source() };
    assert_eq!(all.ask(&blocks, "b", want(1, 0, 0), now).0, Turn::Free);
}

#[test]
fn a_subnet_is_asked_for_half_until_nothing_is_left_and_never_for_what_it_can_not_have() {
    // Eight are there and ten are wanted.
    let (now, mut free, mut asked) = (Instant::now(), 8, vec![]);
    let mut all = Shortages::default();
    let mut held = 0;
    loop {
        let (count, want) = (10 - held, want(10, held, 0));
        let count = match ask(&mut all, "a", want, now) {
            Turn::Free => count,
            Turn::Now(count) => count,
            Turn::Later { at } => {
                assert_eq!(at, Some(now + PROBE));
                break;
            }
        };
        asked.push(count);
        if count <= free {
            (free, held) = (free - count, held + count);
            all.granted(&source(), "a", count, now);
        } else {
            refused(&mut all, "a", want, count, now);
        }
    }
    assert_eq!(asked, [10, 5, 4, 2, 1]);
}

#[test]
fn an_empty_subnet_is_probed_for_one_by_one_node_ever_less_often() {
    let mut now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    let mut waits = vec![];
    for _ in 0..6 {
        let Turn::Later { at: Some(at) } = ask(&mut all, "a", want(4, 0, 0), now) else { panic!("no time") };
        waits.push((at - now).as_secs());
        now = at;
        assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Now(1));
        refused(&mut all, "a", want(4, 0, 0), 1, now);
    }
    assert_eq!(waits, [60, 120, 240, 480, 600, 600]);
}

#[test]
fn only_one_node_has_the_turn_and_the_next_is_called_when_it_is_done() {
    let now = Instant::now();
    let mut all = empty_anew(want(4, 0, 0), now);
    ask(&mut all, "b", want(4, 1, 0), now);
    let now = now + PROBE;
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Now(1));
    assert_eq!(ask(&mut all, "b", want(4, 1, 0), now), Turn::Later { at: Some(now + TURN) });
    assert_eq!(all.granted(&source(), "a", 1, now), ["a"]);
    // Another that looks by itself calls the one whose turn it is.
    assert_eq!(all.ask(&source(), "b", want(4, 1, 0), now), (LATER, vec!["a".to_owned()]));
    assert_eq!(ask(&mut all, "a", want(4, 1, 0), now), Turn::Now(1));
}

#[test]
fn pods_that_wait_come_before_warm_addresses_and_the_worst_served_first() {
    let now = Instant::now();
    let mut all = empty_anew(want(2, 2, 8), now);
    for (node, want) in [("b", want(10, 5, 0)), ("c", want(10, 2, 0)), ("d", want(0, 0, 8))] {
        assert!(matches!(ask(&mut all, node, want, now), Turn::Later { .. }));
    }
    let now = now + PROBE;
    let order: Vec<String> = (0..4)
        .map(|_| {
            let (_, calls) = all.ask(&source(), "a", want(2, 2, 8), now);
            let node = calls.first().cloned().unwrap_or("a".into());
            all.content(&node);
            node
        })
        .collect();
    assert_eq!(order, ["c", "b", "d", "a"]);
}

#[test]
fn what_goes_back_is_shared_by_need_without_a_wait() {
    let now = Instant::now();
    let mut all = empty(want(6, 2, 0), now);
    ask(&mut all, "b", want(4, 2, 0), now);
    ask(&mut all, "c", want(3, 3, 8), now);
    // Four for a, which then has as large a part of what it needs as b gets with one of two.
    assert_eq!(all.released(&source(), 4), ["a"]);
    assert_eq!(ask(&mut all, "a", want(6, 2, 0), now), Turn::Now(3));
    all.granted(&source(), "a", 3, now);
    assert_eq!(ask(&mut all, "b", want(4, 2, 0), now), Turn::Now(1));
    all.granted(&source(), "b", 1, now);
    // No more is known to be there: both wait for time to bring more, and c behind them.
    assert!(matches!(ask(&mut all, "a", want(6, 5, 0), now), Turn::Later { .. }));
    assert_eq!(ask(&mut all, "c", want(3, 3, 8), now), LATER);
}

#[test]
fn enough_for_all_ends_the_shortage_and_calls_them() {
    let now = Instant::now();
    let mut all = empty(want(2, 0, 0), now);
    ask(&mut all, "b", want(3, 0, 0), now);
    assert_eq!(all.released(&source(), 5), ["a", "b"]);
    assert_eq!(ask(&mut all, "b", want(3, 0, 0), now), Turn::Free);
}

#[test]
fn who_asks_in_vain_or_does_not_use_its_turn_goes_behind_its_equals() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    ask(&mut all, "b", want(4, 3, 0), now);
    // a has asked in vain already, so b is next although a holds less.
    let now = now + PROBE;
    assert_eq!(all.ask(&source(), "a", want(4, 0, 0), now).1, ["b"]);
    assert_eq!(ask(&mut all, "b", want(4, 3, 0), now), Turn::Now(1));
    // b doesn't use it.
    let now = now + TURN;
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Now(1));
    // a can't, for another reason: a permission, say.
    assert_eq!(all.missed(&source(), "a"), ["b"]);
}

#[test]
fn a_node_that_wants_nothing_more_gives_its_turn_away_and_the_last_ends_the_shortage() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    ask(&mut all, "b", want(4, 3, 0), now);
    let now = now + PROBE;
    assert_eq!(ask(&mut all, "b", want(4, 3, 0), now), Turn::Now(1));
    assert_eq!(all.content("b"), ["a"]);
    assert_eq!(all.content("a"), [] as [&str; 0]);
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Free);
}

#[test]
fn an_edited_pool_has_its_subnet_tried_once_for_all_its_nodes() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    all.try_now("/subnets/s", Some(7), now);
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Now(1));
    refused(&mut all, "a", want(4, 0, 0), 1, now);
    all.try_now("/subnets/s", Some(7), now);
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Later { at: Some(now + PROBE) });
}

/// Seen with a node whose write was on its way when others left the subnet.
#[test]
fn room_that_is_made_while_a_write_is_under_way_is_not_forgotten() {
    let now = Instant::now();
    let mut all = Shortages::default();
    refused(&mut all, "a", want(3, 0, 0), 3, now);
    assert_eq!(ask(&mut all, "a", want(3, 0, 0), now), Turn::Now(1));
    all.granted(&source(), "a", 1, now);
    // As far as the refusal tells there is one left.
    assert_eq!(ask(&mut all, "a", want(3, 1, 0), now), Turn::Now(1));
    all.try_now("/subnets/s", Some(7), now);
    all.granted(&source(), "a", 1, now);
    assert_eq!(ask(&mut all, "a", want(3, 2, 0), now), Turn::Free);
}

#[test]
fn after_a_restart_one_node_asks_and_not_all_of_them() {
    let now = Instant::now();
    let mut all = Shortages::default();
    let turns: Vec<Turn> = ["a", "b", "c"]
        .map(|node| {
            all.recall(&source(), said(), now);
            ask(&mut all, node, want(8, 4, 0), now)
        })
        .into();
    assert_eq!(turns[0], Turn::Now(1));
    assert!(turns[1..].iter().all(|turn| matches!(turn, Turn::Later { .. })), "{turns:?}");
}

/// A subnet, its nodes, and what they would have asked of Azure.
struct Subnet {
    free: u32,
    nodes: Vec<(u32, u32)>,
    requests: u32,
}

impl Subnet {
    /// One pass of a node, and of all whom it calls.
    fn look(&mut self, all: &mut Shortages, node: usize, now: Instant) {
        let mut calls = vec![node];
        while let Some(node) = calls.pop() {
            let (pods, held) = self.nodes[node];
            let (name, want) = (format!("n{node:02}"), want(pods, held, 0));
            let called = if pods <= held {
                all.content(&name)
            } else {
                let (turn, mut called) = all.ask(&source(), &name, want, now);
                let count = match turn {
                    Turn::Free => want.units,
                    Turn::Now(count) => count,
                    Turn::Later { .. } => 0,
                };
                if count > 0 {
                    self.requests += 1;
                    if count <= self.free {
                        self.free -= count;
                        self.nodes[node].1 += count;
                        called.extend(all.granted(&source(), &name, count, now));
                        called.push(name);
                    } else {
                        called.extend(all.refused(&source(), (&name, want), count, said(), now));
                    }
                }
                called
            };
            calls.extend(called.iter().map(|name| name[1..].parse::<usize>().unwrap()));
        }
    }
}

proptest! {
    /// Whatever is there is found, nothing more is given, and once there is enough everybody has what it
    /// needs.
    #[test]
    fn nobody_is_forgotten_and_nothing_lies_idle(
        pods in prop::collection::vec(1..12_u32, 2..8),
        free in 0..30_u32,
        steps in prop::collection::vec((0..8_usize, 0..6_u32, prop::bool::ANY), 1..40),
    ) {
        let mut now = Instant::now();
        let mut all = Shortages::default();
        let total: u32 = pods.iter().sum();
        let mut subnet = Subnet { free, nodes: pods.iter().map(|&pods| (pods, 0)).collect(), requests: 0 };
        let count = subnet.nodes.len();
        for (node, more, ours) in steps {
            subnet.free += more;
            if ours && more > 0 {
                for called in all.released(&source(), more) {
                    subnet.look(&mut all, called[1..].parse().unwrap(), now);
                }
            }
            subnet.look(&mut all, node % count, now);
            now += Duration::from_secs(7);
        }
        // Time passes with no further news: every node looks again when its own clock says so.
        subnet.free += total;
        subnet.requests = 0;
        for _ in 0..20 {
            now += LONGEST;
            (0..count).for_each(|node| subnet.look(&mut all, node, now));
        }
        prop_assert!(subnet.nodes.iter().all(|(pods, held)| pods <= held), "{:?}", subnet.nodes);
        prop_assert!(subnet.requests <= 4 * total, "{} requests", subnet.requests);
    }

    /// While there is too little, no node is more than one address better off than its need allows.
    #[test]
    fn what_goes_back_one_by_one_serves_all_alike(pods in prop::collection::vec(4..12_u32, 2..8)) {
        let now = Instant::now();
        let mut all = Shortages::default();
        let mut subnet = Subnet { free: 0, nodes: pods.iter().map(|&pods| (pods, 0)).collect(), requests: 0 };
        (0..pods.len()).for_each(|node| subnet.look(&mut all, node, now));
        for _ in 0..pods.len() * 3 {
            subnet.free += 1;
            for called in all.released(&source(), 1) {
                subnet.look(&mut all, called[1..].parse().unwrap(), now);
            }
        }
        prop_assert_eq!(subnet.free, 0);
        let parts: Vec<f64> = subnet.nodes.iter().map(|&(pods, held)| f64::from(held) / f64::from(pods)).collect();
        let (least, most) = (parts.iter().copied().fold(1.0, f64::min), parts.iter().copied().fold(0.0, f64::max));
        prop_assert!(most - least <= 0.25 + 1e-9, "{:?}", subnet.nodes);
    }
}
