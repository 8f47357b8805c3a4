//! How a subnet without enough addresses is asked and shared, rule by rule, and that no node is forgotten.

use super::*;
use proptest::prelude::*;

fn source() -> Source {
    Source::Subnet { id: "/vnets/v/subnets/s".into(), grain: 1 }
}

fn answer() -> Answer {
    Answer { subnet: "s".into(), message: "full".into() }
}

/// `pods` that need an address, of which `held` have one, and `warm` besides.
fn want(pods: u32, held: u32, warm: u32) -> Want {
    let wanted = pods + warm;
    Want { pods, held, wanted, units: wanted.saturating_sub(held), grain: 1 }
}

fn refused(all: &mut Shortages, node: &str, want: Want, asked: u32, now: Instant) -> Woken {
    all.refused(&source(), (node, want), asked, answer(), now)
}

fn ask(all: &mut Shortages, node: &str, want: Want, now: Instant) -> Turn {
    all.ask(&[source()], node, want, now).0
}

/// A shortage in which the last address was refused to `a`.
fn empty(want: Want, now: Instant) -> Shortages {
    let mut all = Shortages::default();
    refused(&mut all, "a", want, 1, now);
    all
}

/// The same, and no node has had a turn in vain.
fn empty_anew(want: Want, now: Instant) -> Shortages {
    let mut all = empty(want, now);
    all.released(&source(), 0, now);
    all
}

/// Held back by the subnet.
fn later() -> Turn {
    Turn::Later(source(), answer())
}

#[test]
fn without_a_shortage_every_node_is_free_to_ask() {
    assert_eq!(ask(&mut Shortages::default(), "a", want(4, 0, 8), Instant::now()), Turn::Free);
}

#[test]
fn one_refusal_holds_all_of_the_subnet_back_and_none_of_another() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    assert_eq!(ask(&mut all, "b", want(1, 0, 0), now), later());
    let other = Source::Subnet { id: "/vnets/v/subnets/other".into(), grain: 1 };
    assert_eq!(all.ask(&[other], "b", want(1, 0, 0), now).0, Turn::Free);
    let blocks = Source::Subnet { id: "/vnets/v/subnets/s".into(), grain: 16 };
    assert_eq!(all.ask(&[blocks], "b", want(1, 0, 0), now).0, Turn::Free);
}

#[test]
fn a_refused_request_is_halved_and_never_asks_for_more_than_may_be_left() {
    // Eight are there and ten are wanted.
    let (now, mut free, mut asked) = (Instant::now(), 8, vec![]);
    let mut all = Shortages::default();
    let mut held = 0;
    loop {
        let (count, want) = (10 - held, want(10, held, 0));
        let count = match ask(&mut all, "a", want, now) {
            Turn::Free => count,
            Turn::Now(count) => count,
            Turn::Later(..) => break,
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
        assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), later());
        let start = now;
        let woken = loop {
            now += Duration::from_secs(1);
            let woken = all.tick(now);
            if !woken.is_empty() {
                break woken;
            }
        };
        waits.push((now - start).as_secs());
        assert_eq!(
            (woken.as_slice(), ask(&mut all, "a", want(4, 0, 0), now)),
            (&["a".to_owned()][..], Turn::Now(1))
        );
        refused(&mut all, "a", want(4, 0, 0), 1, now);
    }
    assert_eq!(waits, [60, 120, 240, 480, 600, 600]);
}

#[test]
fn only_one_node_has_the_turn_and_the_next_is_woken_when_it_is_done() {
    let now = Instant::now();
    let mut all = empty_anew(want(4, 0, 0), now);
    ask(&mut all, "b", want(4, 1, 0), now);
    let now = now + PROBE;
    assert_eq!(all.tick(now), ["a"]);
    // Another node that asks without its turn wakes no node: the turn has been given.
    assert_eq!(all.ask(&[source()], "b", want(4, 1, 0), now), (later(), vec![]));
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Now(1));
    assert_eq!(all.granted(&source(), "a", 1, now), ["a"]);
    assert_eq!(ask(&mut all, "b", want(4, 1, 0), now), later());
    assert_eq!(ask(&mut all, "a", want(4, 1, 0), now), Turn::Now(1));
    assert_eq!(refused(&mut all, "a", want(4, 1, 0), 1, now), [""; 0]);
    assert_eq!(all.released(&source(), 1, now), ["a"]);
}

#[test]
fn pods_that_wait_come_before_warm_addresses_and_the_worst_served_first() {
    let now = Instant::now();
    let mut all = empty_anew(want(2, 2, 8), now);
    for (node, want) in [("b", want(10, 5, 0)), ("c", want(10, 2, 0)), ("d", want(0, 0, 8))] {
        assert_eq!(ask(&mut all, node, want, now), later());
    }
    let mut order = all.tick(now + PROBE);
    for _ in 0..3 {
        let done = order.last().unwrap().clone();
        order.extend(all.withdraw(&done, now + PROBE));
    }
    assert_eq!(order, ["c", "b", "d", "a"]);
}

#[test]
fn released_addresses_are_shared_by_need_without_a_wait() {
    let now = Instant::now();
    let mut all = empty(want(6, 2, 0), now);
    ask(&mut all, "b", want(4, 2, 0), now);
    ask(&mut all, "c", want(3, 3, 8), now);
    // Four for a, which then has as large a part of its need as b gets with one of two.
    assert_eq!(all.released(&source(), 4, now), ["a"]);
    assert_eq!(ask(&mut all, "a", want(6, 2, 0), now), Turn::Now(3));
    all.granted(&source(), "a", 3, now);
    assert_eq!(ask(&mut all, "b", want(4, 2, 0), now), Turn::Now(1));
    all.granted(&source(), "b", 1, now);
    // No more is known to be there: both wait for time to bring more, and c behind them.
    assert_eq!(ask(&mut all, "a", want(6, 5, 0), now), later());
    assert_eq!(ask(&mut all, "c", want(3, 3, 8), now), later());
}

#[test]
fn enough_for_all_ends_the_shortage_and_wakes_them() {
    let now = Instant::now();
    let mut all = empty(want(2, 0, 0), now);
    ask(&mut all, "b", want(3, 0, 0), now);
    assert_eq!(all.released(&source(), 5, now), ["a", "b"]);
    assert_eq!(ask(&mut all, "b", want(3, 0, 0), now), Turn::Free);
}

#[test]
fn a_node_that_asks_in_vain_or_wastes_its_turn_goes_behind_its_equals() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    ask(&mut all, "b", want(4, 3, 0), now);
    // a has asked in vain already, so b is next although a holds less.
    let now = now + PROBE;
    assert_eq!(all.ask(&[source()], "a", want(4, 0, 0), now), (later(), vec!["b".to_owned()]));
    // b doesn't use it, and is out until it asks again.
    let now = now + TURN;
    assert_eq!(all.tick(now), ["a"]);
    assert_eq!(ask(&mut all, "b", want(4, 3, 0), now), later());
    // a can't, for another reason, such as a permission.
    assert_eq!(all.missed(&source(), "a", now), ["b"]);
}

#[test]
fn a_turn_ends_though_its_node_never_came_and_one_that_comes_late_goes_behind_its_equals() {
    let now = Instant::now();
    let mut all = empty_anew(want(4, 0, 0), now);
    ask(&mut all, "b", want(4, 0, 0), now);
    assert_eq!(all.released(&source(), 2, now), ["a"]);
    assert_eq!(all.tick(now + TURN - Duration::from_millis(1)), [""; 0]);
    let now = now + TURN;
    assert_eq!(all.ask(&[source()], "a", want(4, 0, 0), now), (later(), vec!["b".to_owned()]));
    assert_eq!(ask(&mut all, "b", want(4, 0, 0), now), Turn::Now(2));
}

#[test]
fn a_node_that_wants_nothing_more_gives_its_turn_away_and_the_last_ends_the_shortage() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    ask(&mut all, "b", want(4, 3, 0), now);
    let now = now + PROBE;
    assert_eq!(all.tick(now), ["b"]);
    assert_eq!(all.withdraw("b", now), ["a"]);
    assert_eq!(all.withdraw("a", now), [""; 0]);
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Free);
}

#[test]
fn a_full_network_holds_all_of_its_subnets_back_and_no_other_network() {
    let now = Instant::now();
    let network = |name: &str| Source::Network { id: format!("/vnets/{name}") };
    let mut all = Shortages::default();
    all.refused(&network("v"), ("a", want(4, 0, 0)), 1, answer(), now);
    let turn = |all: &mut Shortages, name: &str, vnet: &str, now| {
        let subnet = Source::Subnet { id: format!("/vnets/{vnet}/subnets/{name}"), grain: 16 };
        all.ask(&[network(vnet), subnet], name, want(4, 0, 0), now).0
    };
    assert_eq!(turn(&mut all, "b", "v", now), Turn::Later(network("v"), answer()));
    assert_eq!(turn(&mut all, "c", "w", now), Turn::Free);
    // Addresses that go back in any of them help all; a change of one of its subnets is a reason to try.
    assert_eq!(all.released(&network("v"), 1, now), ["a"]);
    assert_eq!(all.missed(&network("v"), "a", now), ["b"]);
    let mut all = Shortages::default();
    all.refused(&network("v"), ("a", want(4, 0, 0)), 1, answer(), now);
    assert_eq!(all.try_now("/vnets/vv/subnets/s", None, now), [""; 0]);
    assert_eq!(all.try_now("/vnets/v/subnets/s", None, now), ["a"]);
}

#[test]
fn a_node_that_lacks_the_turn_of_its_subnet_does_not_keep_that_of_the_network() {
    let now = Instant::now();
    let network = Source::Network { id: "/vnets/v".into() };
    let mut all = empty(want(4, 0, 0), now);
    for (node, want) in [("a", want(4, 0, 0)), ("b", want(4, 3, 0))] {
        all.refused(&network, (node, want), 1, answer(), now);
    }
    assert_eq!(all.released(&network, 1, now), ["a"]);
    let answer = all.ask(&[network.clone(), source()], "a", want(4, 0, 0), now);
    assert_eq!(answer, (later(), vec!["b".to_owned()]));
    assert_eq!(all.ask(&[network], "b", want(4, 3, 0), now).0, Turn::Now(1));
}

#[test]
fn an_edited_pool_has_its_subnet_tried_once_for_all_its_nodes() {
    let now = Instant::now();
    let mut all = empty(want(4, 0, 0), now);
    all.try_now("/vnets/v/subnets/s", Some(7), now);
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Now(1));
    refused(&mut all, "a", want(4, 0, 0), 1, now);
    assert_eq!(all.try_now("/vnets/v/subnets/s", Some(7), now), [""; 0]);
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), later());
    // Another pool that was edited with it, whose nodes come in turn with the first one's.
    all.try_now("/vnets/v/subnets/s", Some(8), now);
    assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), Turn::Now(1));
    refused(&mut all, "a", want(4, 0, 0), 1, now);
    for cause in [7, 8, 7] {
        assert_eq!(all.try_now("/vnets/v/subnets/s", Some(cause), now), [""; 0]);
        assert_eq!(ask(&mut all, "a", want(4, 0, 0), now), later());
    }
}

/// Seen with a node whose write was on its way when others left the subnet.
#[test]
fn room_that_is_made_while_a_write_is_under_way_is_not_forgotten() {
    let now = Instant::now();
    let mut all = Shortages::default();
    refused(&mut all, "a", want(3, 0, 0), 3, now);
    assert_eq!(ask(&mut all, "a", want(3, 0, 0), now), Turn::Now(1));
    all.granted(&source(), "a", 1, now);
    // As far as the refusal shows there is one left.
    assert_eq!(ask(&mut all, "a", want(3, 1, 0), now), Turn::Now(1));
    all.try_now("/vnets/v/subnets/s", Some(7), now);
    all.granted(&source(), "a", 1, now);
    assert_eq!(ask(&mut all, "a", want(3, 2, 0), now), Turn::Free);
}

#[test]
fn after_a_restart_one_node_asks_and_not_all_of_them() {
    let now = Instant::now();
    let mut all = Shortages::default();
    let turns: Vec<Turn> = ["a", "b", "c"]
        .map(|node| {
            all.recall(&source(), answer(), now);
            ask(&mut all, node, want(8, 4, 0), now)
        })
        .into();
    assert_eq!(turns[0], Turn::Now(1));
    assert_eq!(turns[1..], [later(), later()]);
}

/// A subnet, its nodes, and the requests that they would have made to Azure.
struct Subnet {
    free: u32,
    nodes: Vec<Node>,
    requests: u32,
    /// Azure has decided these and not answered yet.
    under_way: Vec<Decided>,
}

#[derive(Debug)]
struct Decided {
    node: usize,
    asked: u32,
    is_granted: bool,
    due: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    pods: u32,
    held: u32,
    /// Its answer to a wakeup.
    acts: Acts,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Acts {
    Well,
    /// Its reconcile doesn't end, or it isn't woken at all.
    Never,
    /// It asks, and its next write hangs.
    Hangs,
    /// Its NIC is gone: its reconcile fails before it asks.
    Fails,
    /// It may not write its NIC.
    IsRefused,
    /// Azure answers it after so many seconds.
    IsLate(u64),
}

impl Subnet {
    fn of(pods: &[u32], free: u32) -> Subnet {
        let node = |&pods: &u32| Node { pods, held: 0, acts: Acts::Well };
        Subnet { free, nodes: pods.iter().map(node).collect(), requests: 0, under_way: vec![] }
    }

    /// One reconcile of a node, and of all nodes that it wakes.
    fn reconcile(&mut self, all: &mut Shortages, node: usize, now: Instant) {
        let mut woken = vec![node];
        while let Some(node) = woken.pop() {
            woken.extend(self.ask(all, node, now).iter().map(|name| name[1..].parse::<usize>().unwrap()));
        }
    }

    /// Time has passed.
    fn tick(&mut self, all: &mut Shortages, now: Instant) {
        while let Some(due) = self.under_way.iter().position(|answer| answer.due <= now) {
            let Decided { node, asked, is_granted, .. } = self.under_way.swap_remove(due);
            let woken = self.answer(all, node, asked, is_granted, now);
            for next in woken.iter().map(|name| name[1..].parse().unwrap()).chain([node]) {
                self.reconcile(all, next, now);
            }
        }
        for woken in all.tick(now) {
            self.reconcile(all, woken[1..].parse().unwrap(), now);
        }
    }

    /// The requests of one reconcile of a node; returns the nodes that it wakes.
    fn ask(&mut self, all: &mut Shortages, node: usize, now: Instant) -> Woken {
        let Node { pods, held, acts } = self.nodes[node];
        let (name, want) = (format!("n{node:02}"), want(pods, held, 0));
        match acts {
            Acts::Never => return vec![],
            Acts::Fails => return all.withdraw(&name, now),
            // Its last write isn't answered yet.
            _ if self.under_way.iter().any(|answer| answer.node == node) => return vec![],
            _ if pods <= held => return all.withdraw(&name, now),
            Acts::Well | Acts::Hangs | Acts::IsRefused | Acts::IsLate(_) => {}
        }
        let (turn, mut woken) = all.ask(&[source()], &name, want, now);
        let count = match turn {
            Turn::Free => want.units,
            Turn::Now(count) => count,
            Turn::Later(..) => return woken,
        };
        if acts == Acts::Hangs {
            return woken;
        }
        self.requests += 1;
        if acts == Acts::IsRefused {
            woken.extend(all.missed(&source(), &name, now));
            // Until it may try again it can't ask.
            woken.extend(all.withdraw(&name, now));
            return woken;
        }
        let is_granted = count <= self.free;
        self.free -= if is_granted { count } else { 0 };
        if let Acts::IsLate(seconds) = acts {
            let due = now + Duration::from_secs(seconds);
            self.under_way.push(Decided { node, asked: count, is_granted, due });
            return woken;
        }
        woken.extend(self.answer(all, node, count, is_granted, now));
        if is_granted {
            woken.push(name);
        }
        woken
    }

    /// Azure's answer to a node; gives whom it wakes.
    fn answer(
        &mut self,
        all: &mut Shortages,
        node: usize,
        asked: u32,
        is_granted: bool,
        now: Instant,
    ) -> Woken {
        let (name, Node { pods, held, .. }) = (format!("n{node:02}"), self.nodes[node]);
        if !is_granted {
            return all.refused(&source(), (&name, want(pods, held, 0)), asked, answer(), now);
        }
        self.nodes[node].held += asked;
        all.granted(&source(), &name, asked, now)
    }

    /// Another operator leads, which knows only the objects. It finds the outcomes of writes under way on the
    /// NICs.
    fn begin_anew(&mut self, now: Instant) -> Shortages {
        for Decided { node, asked, .. } in self.under_way.drain(..).filter(|one| one.is_granted) {
            self.nodes[node].held += asked;
        }
        let mut all = Shortages::default();
        all.recall(&source(), answer(), now);
        (0..self.nodes.len()).for_each(|node| self.reconcile(&mut all, node, now));
        all
    }
}

fn acts() -> impl Strategy<Value = Acts> {
    prop_oneof![
        2 => Just(Acts::Well), 1 => Just(Acts::Never), 1 => Just(Acts::Hangs), 1 => Just(Acts::Fails),
        1 => Just(Acts::IsRefused)
    ]
}

proptest! {
    /// All free addresses are found, nothing more is given, and once there is enough every node has what it
    /// needs, though each is reconciled only when it is woken.
    #[test]
    fn no_node_is_forgotten_and_no_address_lies_idle(
        pods in prop::collection::vec(1..12_u32, 2..8),
        free in 0..30_u32,
        steps in prop::collection::vec((0..8_usize, 0..6_u32, prop::bool::ANY), 1..40),
    ) {
        let mut now = Instant::now();
        let mut all = Shortages::default();
        let total: u32 = pods.iter().sum();
        let mut subnet = Subnet::of(&pods, free);
        let count = subnet.nodes.len();
        (0..count).for_each(|node| subnet.reconcile(&mut all, node, now));
        for (node, more, ours) in steps {
            subnet.free += more;
            if ours && more > 0 {
                for woken in all.released(&source(), more, now) {
                    subnet.reconcile(&mut all, woken[1..].parse().unwrap(), now);
                }
            }
            subnet.reconcile(&mut all, node % count, now);
            now += Duration::from_secs(7);
        }
        // Time passes with no further news.
        subnet.free += total;
        subnet.requests = 0;
        for _ in 0..20 {
            now += LONGEST;
            subnet.tick(&mut all, now);
        }
        prop_assert!(subnet.nodes.iter().all(|node| node.pods <= node.held), "{:?}", subnet.nodes);
        prop_assert!(subnet.requests <= 4 * total, "{} requests", subnet.requests);
    }

    /// Nodes that can't act, in any way, keep the others waiting for no longer than a turn each.
    #[test]
    fn a_node_that_can_not_act_holds_no_other_node_up(
        nodes in prop::collection::vec((1..12_u32, acts()), 2..8),
        reconciles in prop::collection::vec((0..8_usize, acts()), 0..20),
    ) {
        let mut now = Instant::now();
        let mut all = Shortages::default();
        let pods: Vec<u32> = nodes.iter().map(|(pods, _)| *pods).collect();
        let mut subnet = Subnet::of(&pods, 0);
        let count = subnet.nodes.len();
        // All have asked while they could.
        (0..count).for_each(|node| subnet.reconcile(&mut all, node, now));
        for (node, (_, acts)) in subnet.nodes.iter_mut().zip(&nodes) {
            node.acts = *acts;
        }
        for (node, acts) in reconciles {
            let node = node % count;
            subnet.nodes[node].acts = acts;
            subnet.reconcile(&mut all, node, now);
            now += Duration::from_secs(1);
            subnet.tick(&mut all, now);
        }
        let total: u32 = pods.iter().sum();
        subnet.free = total;
        for woken in all.released(&source(), total, now) {
            subnet.reconcile(&mut all, woken[1..].parse().unwrap(), now);
        }
        for _ in 0..count as u64 * TURN.as_secs() {
            now += Duration::from_secs(1);
            subnet.tick(&mut all, now);
        }
        // A node that has failed since comes back when its own error allows it.
        (0..count).for_each(|node| subnet.reconcile(&mut all, node, now));
        for _ in 0..count as u64 * TURN.as_secs() {
            now += Duration::from_secs(1);
            subnet.tick(&mut all, now);
        }
        let served = subnet.nodes.iter().all(|node| node.acts != Acts::Well || node.pods <= node.held);
        prop_assert!(served, "{:?} {:?}", subnet.nodes, all);
    }

    /// Answers that come when turns are long over, and operators that come and go, lose no node and no turn.
    #[test]
    fn late_answers_lose_no_node_and_no_turn(
        pods in prop::collection::vec((1..12_u32, 0..90_u64), 2..8),
        free in 0..30_u32,
        steps in prop::collection::vec((0..8_usize, 0..6_u32, prop::bool::weighted(0.1)), 1..40),
    ) {
        let mut now = Instant::now();
        let mut all = Shortages::default();
        let mut subnet = Subnet::of(&pods.iter().map(|(pods, _)| *pods).collect::<Vec<_>>(), free);
        for (node, (_, seconds)) in subnet.nodes.iter_mut().zip(&pods) {
            node.acts = Acts::IsLate(*seconds);
        }
        let count = subnet.nodes.len();
        (0..count).for_each(|node| subnet.reconcile(&mut all, node, now));
        for (node, more, is_another) in steps {
            subnet.free += more;
            if is_another {
                all = subnet.begin_anew(now);
            }
            subnet.reconcile(&mut all, node % count, now);
            now += Duration::from_secs(7);
            subnet.tick(&mut all, now);
        }
        subnet.free += pods.iter().map(|(pods, _)| *pods).sum::<u32>();
        let is_served = |subnet: &Subnet| subnet.nodes.iter().all(|node| node.pods <= node.held);
        let end = now + 20 * LONGEST;
        while !is_served(&subnet) && now < end {
            now += Duration::from_secs(5);
            subnet.tick(&mut all, now);
        }
        prop_assert!(is_served(&subnet), "{:?} {:?} {:?}", subnet.nodes, subnet.under_way, all);
    }

    /// While there is too little, no node is more than one address better off than its need allows.
    #[test]
    fn addresses_released_one_by_one_serve_all_nodes_alike(pods in prop::collection::vec(4..12_u32, 2..8)) {
        let now = Instant::now();
        let mut all = Shortages::default();
        let mut subnet = Subnet::of(&pods, 0);
        (0..pods.len()).for_each(|node| subnet.reconcile(&mut all, node, now));
        for _ in 0..pods.len() * 3 {
            subnet.free += 1;
            for woken in all.released(&source(), 1, now) {
                subnet.reconcile(&mut all, woken[1..].parse().unwrap(), now);
            }
        }
        prop_assert_eq!(subnet.free, 0);
        let parts: Vec<f64> = subnet.nodes.iter().map(|node| f64::from(node.held) / f64::from(node.pods)).collect();
        let (least, most) = (parts.iter().copied().fold(1.0, f64::min), parts.iter().copied().fold(0.0, f64::max));
        prop_assert!(most - least <= 0.25 + 1e-9, "{:?}", subnet.nodes);
    }
}

#[tokio::test]
async fn a_call_that_is_queued_is_given_up_when_its_subnet_runs_out_and_another_subnets_is_not() {
    let all = Arc::new(Mutex::new(Shortages::default()));
    let (now, moment) = (Instant::now(), Duration::from_millis(50));
    let source = |id: &str| Source::Subnet { id: id.into(), grain: 1 };
    let network = || Source::Network { id: "v".into() };
    let queued = |id: &str| Box::pin(until_short(all.clone(), vec![network(), source(id)]));
    let (mut here, mut elsewhere) = (queued("v/subnets/a"), queued("v/subnets/b"));
    assert!(tokio::time::timeout(moment, &mut here).await.is_err());
    let want = Want { pods: 4, held: 0, wanted: 4, units: 4, grain: 1 };
    lock(&all).refused(&source("v/subnets/a"), ("n", want), 4, Answer::default(), now);
    assert!(tokio::time::timeout(moment, &mut here).await.is_ok());
    assert!(tokio::time::timeout(moment, &mut elsewhere).await.is_err());
    assert!(lock(&all).is_turn_of(&source("v/subnets/a"), "n") && !lock(&all).is_turn_of(&network(), "n"));
    lock(&all).refused(&network(), ("n", want), 1, Answer::default(), now);
    assert!(tokio::time::timeout(moment, &mut elsewhere).await.is_ok());
}
