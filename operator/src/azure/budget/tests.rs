use proptest::prelude::*;

use super::*;

fn lane(region: Option<&str>, writes: bool) -> Lane {
    Lane {
        subscription: "sub".into(),
        provider: region.map_or(Provider::Other, |_| Provider::Network),
        region: region.map(str::to_owned),
        kind: if writes { Kind::Write } else { Kind::Read },
        resource: String::new(),
    }
}

fn write() -> Lane {
    lane(Some("westeurope"), true)
}

fn vm(name: &str, kind: Kind) -> Lane {
    Lane { provider: Provider::Compute, kind, resource: name.into(), ..lane(None, false) }
}

fn budget() -> Budget {
    Budget::new(80)
}

fn after(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

/// How many calls that all want to go at `now` get through at once.
fn burst(budget: &mut Budget, lane: &Lane, priority: Priority, now: Instant) -> usize {
    for _ in 0..2000 {
        budget.ask(lane, priority);
    }
    let through = budget.grant(now).0.len();
    budget.queues.clear();
    through
}

#[test]
fn a_fifth_of_azures_limit_is_left_to_others() {
    let now = Instant::now();
    assert_eq!(burst(&mut budget(), &lane(None, false), Priority::WaitingPods, now), 200);
    assert_eq!(burst(&mut budget(), &lane(None, true), Priority::WaitingPods, now), 160);
}

#[test]
fn lower_priorities_leave_room_for_higher_ones() {
    let now = Instant::now();
    let mut budget = budget();
    assert_eq!(burst(&mut budget, &write(), Priority::GiveBack, now), 80);
    assert_eq!(burst(&mut budget, &write(), Priority::WarmRefill, now), 40);
    assert_eq!(burst(&mut budget, &write(), Priority::NewNode, now), 24);
    assert_eq!(burst(&mut budget, &write(), Priority::WaitingPods, now), 16);
}

#[test]
fn an_empty_bucket_refills_at_our_share_of_azures_rate() {
    let start = Instant::now();
    let mut budget = budget();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, start);
    budget.ask(&lane(None, true), Priority::WaitingPods);
    let (granted, again) = budget.grant(start);
    assert!(granted.is_empty());
    let wait = again.unwrap() - start;
    assert!((0.125..0.126).contains(&wait.as_secs_f64()), "{wait:?}");
    assert_eq!(budget.grant(again.unwrap()).0.len(), 1);
}

#[test]
fn no_five_minutes_see_more_writes_in_a_region_than_our_share_allows() {
    let start = Instant::now();
    let mut budget = budget();
    let mut gone: Vec<f64> = vec![];
    for step in 0..900 {
        let at = f64::from(step);
        for _ in 0..10 {
            budget.ask(&write(), Priority::WaitingPods);
        }
        gone.extend(budget.grant(after(start, at)).0.iter().map(|_| at));
    }
    for from in 0..900 {
        let from = f64::from(from);
        let within = gone.iter().filter(|&&at| (from..from + 300.0).contains(&at)).count();
        assert!(within <= 800, "{within} in the five minutes from {from}");
    }
    assert_eq!(gone.len(), 3 * 800);
}

#[test]
fn one_region_full_of_writes_does_not_hold_up_another() {
    let start = Instant::now();
    let mut budget = budget();
    for step in 0..200 {
        burst(&mut budget, &write(), Priority::WaitingPods, after(start, f64::from(step)));
    }
    let now = after(start, 230.0);
    budget.ask(&write(), Priority::WaitingPods);
    let elsewhere = budget.ask(&lane(Some("northeurope"), true), Priority::GiveBack);
    assert_eq!(budget.grant(now).0, [elsewhere]);
}

#[test]
fn the_highest_priority_goes_first_and_then_the_oldest_call() {
    let start = Instant::now();
    let mut budget = budget();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, start);
    let give_back = budget.ask(&lane(None, true), Priority::GiveBack);
    let refill = budget.ask(&lane(None, true), Priority::WarmRefill);
    let pods = budget.ask(&write(), Priority::WaitingPods);
    let later_pods = budget.ask(&lane(None, true), Priority::WaitingPods);
    assert_eq!(budget.grant(after(start, 60.0)).0, [pods, later_pods, refill, give_back]);
}

#[test]
fn retry_after_closes_the_meter_it_came_from_and_no_other() {
    let now = Instant::now();
    let mut budget = budget();
    let throttled = Lesson::closed_by_arm(Duration::from_secs(17));
    budget.learn(&write(), &throttled, now);
    budget.ask(&write(), Priority::WaitingPods);
    let read = budget.ask(&lane(Some("westeurope"), false), Priority::GiveBack);
    let (granted, again) = budget.grant(now);
    assert_eq!(granted, [read]);
    assert_eq!(again, Some(after(now, 17.0)));
    assert_eq!(budget.grant(after(now, 17.0)).0.len(), 1);
}

#[test]
fn the_providers_throttling_closes_its_region_only() {
    let now = Instant::now();
    let mut budget = budget();
    let throttled = Lesson::closed_by_provider(Duration::from_secs(90));
    budget.learn(&write(), &throttled, now);
    budget.ask(&write(), Priority::WaitingPods);
    let elsewhere = budget.ask(&lane(Some("northeurope"), true), Priority::WaitingPods);
    assert_eq!(budget.grant(now).0, [elsewhere]);
}

/// Of the network provider, about a resource of that type.
fn about(kind: Kind, resource: &str, region: &str) -> Lane {
    let resource = format!("/subscriptions/sub/resourcegroups/g/providers/microsoft.network/{resource}");
    Lane { kind, resource, ..lane(Some(region), false) }
}

#[test]
fn a_limit_of_one_action_holds_up_that_action_in_its_region_and_nothing_else() {
    let now = Instant::now();
    let mut budget = budget();
    let throttled = Lesson::closed_for_action(Duration::from_secs(446));
    budget.learn(&about(Kind::Write, "networkinterfaces/a", "westeurope"), &throttled, now);
    let held_up = budget.ask(&about(Kind::Write, "networkinterfaces/b", "westeurope"), Priority::WaitingPods);
    let others = [
        about(Kind::Write, "networkinterfaces/c", "northeurope"),
        about(Kind::Write, "publicipaddresses/p", "westeurope"),
        about(Kind::Delete, "publicipaddresses/p", "westeurope"),
        about(Kind::Write, "routetables/t", "westeurope"),
        about(Kind::Read, "networkinterfaces/b", "westeurope"),
        about(Kind::Poll, "locations/westeurope/operations/o", "westeurope"),
    ];
    let others = others.map(|lane| budget.ask(&lane, Priority::GiveBack));
    let (mut granted, again) = budget.grant(now);
    granted.sort_unstable();
    assert_eq!((granted.as_slice(), again), (others.as_slice(), Some(after(now, 446.0))));
    let closed = |budget: &mut Budget, now| -> Vec<(String, u64)> {
        let accounts = budget.accounts(now).into_iter().filter(|one| !one.closed_for.is_zero());
        accounts.map(|one| (one.limit, one.closed_for.as_secs())).collect()
    };
    assert_eq!(closed(&mut budget, now), [("microsoft.network/networkinterfaces/write".to_owned(), 446)]);
    assert_eq!(budget.grant(after(now, 446.0)).0, [held_up]);
    assert_eq!(closed(&mut budget, after(now, 446.0)), []);
}

/// Nodes whose network is known go on without the read.
#[test]
fn a_limit_of_network_reads_holds_no_call_up() {
    let now = Instant::now();
    let mut budget = budget();
    for resource in ["virtualnetworks/v", "virtualnetworks/v/usages"] {
        let read = about(Kind::Read, resource, "");
        budget.learn(&read, &Lesson::closed_for_action(Duration::from_secs(372)), now);
        let ticket = budget.ask(&read, Priority::WaitingPods);
        assert_eq!(budget.grant(now).0, [ticket], "{resource}");
    }
}

#[test]
fn reads_that_the_provider_throttles_are_held_back_too() {
    let now = Instant::now();
    let mut budget = budget();
    let read = lane(Some("westeurope"), false);
    budget.learn(&read, &Lesson::closed_by_provider(Duration::from_secs(90)), now);
    budget.ask(&read, Priority::WaitingPods);
    let write = budget.ask(&write(), Priority::WaitingPods);
    assert_eq!(budget.grant(now), (vec![write], Some(after(now, 90.0))));
}

#[test]
fn a_vm_is_read_and_updated_no_more_often_than_compute_allows_and_holds_up_no_other() {
    let now = Instant::now();
    let mut budget = budget();
    // Four fifths of 36 reads, of 12 updates, of 45 polls of an operation.
    assert_eq!(burst(&mut budget, &vm("a", Kind::Read), Priority::WaitingPods, now), 28);
    assert_eq!(burst(&mut budget, &vm("a", Kind::Write), Priority::WaitingPods, now), 9);
    assert_eq!(burst(&mut budget, &vm("a/op", Kind::Poll), Priority::WaitingPods, now), 36);
    budget.ask(&vm("a", Kind::Write), Priority::WaitingPods);
    let other = budget.ask(&vm("b", Kind::Write), Priority::GiveBack);
    assert_eq!(budget.grant(now).0, [other]);
}

#[test]
fn the_share_left_to_others_is_the_configured_one() {
    let now = Instant::now();
    for (percent, calls) in [(100, 200), (50, 100), (5, 10)] {
        assert_eq!(burst(&mut Budget::new(percent), &lane(None, true), Priority::WaitingPods, now), calls);
    }
}

#[test]
fn even_the_smallest_share_lets_every_sort_of_call_go_in_the_end() {
    let start = Instant::now();
    for priority in Priority::ALL {
        for kind in [Kind::Read, Kind::Write, Kind::Poll] {
            let mut budget = Budget::new(5);
            budget.ask(&vm("a", kind), priority);
            let (granted, again) = budget.grant(start);
            let later = again.map(|again| budget.grant(again).0).unwrap_or_default();
            assert_eq!(granted.len() + later.len(), 1, "{priority:?} {kind:?}");
        }
    }
}

#[test]
fn one_call_in_ten_is_the_one_that_has_waited_longest() {
    let start = Instant::now();
    let mut budget = budget();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, start);
    let patient = budget.ask(&lane(None, true), Priority::GiveBack);
    // Pods on other nodes ask for more than there is, for ever.
    let mut order = vec![];
    for step in 0..20 {
        for _ in 0..5 {
            budget.ask(&lane(None, true), Priority::WaitingPods);
        }
        order.extend(budget.grant(after(start, f64::from(step))).0);
    }
    let before = order.iter().position(|ticket| *ticket == patient);
    assert_eq!(before, Some(TURN as usize), "{order:?}");
}

#[test]
fn the_levels_of_single_vms_are_dropped_when_they_are_full_again() {
    let start = Instant::now();
    let mut budget = budget();
    for step in 0..10_000 {
        budget.ask(&vm(&step.to_string(), Kind::Read), Priority::WaitingPods);
        budget.grant(after(start, f64::from(step)));
    }
    assert!(budget.levels.len() <= 2 * TIDY_AT, "{}", budget.levels.len());
}

#[test]
fn accounts_show_the_spent_the_left_and_the_waiting_calls() {
    let now = Instant::now();
    let mut budget = budget();
    for _ in 0..3 {
        budget.ask(&write(), Priority::WaitingPods);
    }
    budget.grant(now);
    budget.learn(&write(), &Lesson::closed_by_arm(Duration::from_secs(7)), now);
    budget.ask(&write(), Priority::WarmRefill);
    budget.grant(now);
    let accounts = budget.accounts(now);
    let shown: Vec<_> = accounts
        .iter()
        .map(|one| {
            let closed_for = one.closed_for.as_secs();
            (one.limit.as_str(), one.region.as_str(), one.spent, one.left, one.capacity, closed_for)
        })
        .collect();
    assert_eq!(shown, [("arm", "", 3, 157.0, 160.0, 7), ("network", "westeurope", 3, 797.0, 800.0, 0)]);
    assert_eq!(budget.waiting().map(|(_, count)| count), [0, 0, 0, 1, 0]);
}

/// Nodes that each ask again some time after their last call was let through, like reconciles of the
/// controller do.
#[derive(Clone, Debug)]
struct Asking {
    priority: Priority,
    pause: u8,
}

fn nodes() -> impl Strategy<Value = Vec<Asking>> {
    let priority = prop::sample::select(Priority::ALL.to_vec());
    let node = (priority, 0..30_u8).prop_map(|(priority, pause)| Asking { priority, pause });
    prop::collection::vec(node, 2..120)
}

/// Ten minutes of these nodes: how long each waited at most, and how many calls each got.
fn ten_minutes(nodes: &[Asking], percent: u8) -> Vec<(f64, u32)> {
    const STEP: f64 = 0.25;
    let start = Instant::now();
    let mut budget = Budget::new(percent);
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, start);
    let mut result = vec![(0.0_f64, 0_u32); nodes.len()];
    let mut asked: HashMap<Ticket, (usize, f64)> = HashMap::new();
    // When each asks again, in the order in which they were let through.
    let mut to_ask: Vec<(f64, usize)> = (0..nodes.len()).map(|index| (0.0, index)).collect();
    for step in 0..2400 {
        let at = f64::from(step) * STEP;
        for (_, index) in to_ask.extract_if(.., |(due, _)| *due <= at) {
            asked.insert(budget.ask(&lane(None, true), nodes[index].priority), (index, at));
        }
        for ticket in budget.grant(after(start, at)).0 {
            let (index, since) = asked.remove(&ticket).unwrap();
            result[index].0 = result[index].0.max(at - since);
            result[index].1 += 1;
            to_ask.push((at + f64::from(nodes[index].pause), index));
        }
    }
    for (index, since) in asked.into_values() {
        result[index].0 = result[index].0.max(600.0 - since);
    }
    result
}

/// What a thousand new nodes at once cost: for each its VM, its NIC, a write of ten seconds, a poll, and the
/// read-back. Gives the requests, and when each was served, in seconds.
fn a_rush_of_new_nodes(nodes: usize) -> (u64, Vec<f64>) {
    const STEP: f64 = 0.05;
    let start = Instant::now();
    let mut budget = budget();
    let network = |kind| Lane { kind, ..lane(Some("westeurope"), false) };
    let stages = [None, Some(Kind::Read), Some(Kind::Write), Some(Kind::Poll), Some(Kind::Read)];
    let mut asked: HashMap<Ticket, (usize, usize)> = HashMap::new();
    let mut to_ask: Vec<(f64, usize, usize)> = (0..nodes).map(|node| (0.0, node, 0)).collect();
    let (mut requests, mut now, mut done) = (0, 0.0, vec![]);
    while done.len() < nodes {
        for (_, node, stage) in to_ask.extract_if(.., |(due, ..)| *due <= now) {
            let lane = stages[stage].map_or_else(|| vm(&node.to_string(), Kind::Read), network);
            let priority = if stage > 2 { Priority::UnderWay } else { Priority::NewNode };
            asked.insert(budget.ask(&lane, priority), (node, stage));
        }
        for ticket in budget.grant(after(start, now)).0 {
            let (node, stage) = asked.remove(&ticket).unwrap();
            requests += 1;
            match stage {
                4 => done.push(now),
                2 => to_ask.push((now + 10.0, node, stage + 1)),
                _ => to_ask.push((now + 0.1, node, stage + 1)),
            }
        }
        now += STEP;
    }
    (requests, done)
}

#[test]
fn a_thousand_new_nodes_are_served_at_the_pace_that_azure_allows() {
    let (requests, served) = a_rush_of_new_nodes(1000);
    let (first, half, last) = (served[0], served[499], served[999]);
    println!(
        "1,000 new nodes: {requests} requests; served after {first:.0}, {half:.0}, {last:.0} s: first, half, all"
    );
    assert_eq!(requests, 5000);
    // A tenth of our 800 writes in five minutes is left to waiting pods, so the last wait for a second
    // window.
    assert!((300.0..350.0).contains(&last), "{last}");
}

#[test]
fn in_a_rush_the_first_are_served_long_before_the_last_have_begun() {
    let (_, served) = a_rush_of_new_nodes(1000);
    assert!(served[0] < 12.0, "the first after {} s", served[0]);
    assert!(served[499] < 150.0, "half of them after {} s", served[499]);
}

#[test]
fn an_operation_under_way_goes_on_before_more_begin() {
    let start = Instant::now();
    let mut budget = budget();
    burst(&mut budget, &lane(None, false), Priority::WaitingPods, start);
    let find = budget.ask(&vm("a", Kind::Read), Priority::NewNode);
    let read = budget.ask(&lane(Some("westeurope"), false), Priority::NewNode);
    let pods = budget.ask(&vm("b", Kind::Read), Priority::WaitingPods);
    let poll = budget.ask(&lane(Some("westeurope"), false), Priority::UnderWay);
    assert_eq!(budget.grant(after(start, 60.0)).0, [poll, pods, read, find]);
}

#[test]
fn a_place_given_up_costs_nothing_and_the_others_keep_theirs() {
    let start = Instant::now();
    let mut budget = budget();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, start);
    let first = budget.ask(&write(), Priority::WarmRefill);
    let given_up = budget.ask(&write(), Priority::WarmRefill);
    let last = budget.ask(&write(), Priority::WarmRefill);
    assert!(budget.withdraw(&write(), Priority::WarmRefill, given_up));
    let urgent = budget.ask(&write(), Priority::WaitingPods);
    let spent = |budget: &mut Budget, now| budget.accounts(now)[0].spent;
    let before = spent(&mut budget, start);
    assert_eq!(budget.waiting().map(|(_, count)| count), [0, 1, 0, 2, 0]);
    let later = after(start, 60.0);
    assert_eq!(budget.grant(later), (vec![urgent, first, last], None));
    assert_eq!(spent(&mut budget, later) - before, 3);
    // A call that has been granted is paid.
    assert!(!budget.withdraw(&write(), Priority::WarmRefill, first));
    assert_eq!(spent(&mut budget, later) - before, 3);
}

/// A rush that the network provider holds up for minutes is searched at every grant.
#[test]
fn thousands_of_calls_that_wait_for_one_meter_cost_as_much_as_one() {
    let start = Instant::now();
    let mut budget = budget();
    // Nine calls that came later have gone before: the longest-waiting call has its turn, and no call can go.
    budget.learn(&write(), &Lesson::closed_by_provider(Duration::from_secs(300)), start);
    for priority in Priority::ALL {
        (0..4000).for_each(|_| _ = budget.ask(&write(), priority));
    }
    for _ in 0..TURN {
        budget.ask(&lane(Some("northeurope"), true), Priority::NewNode);
    }
    assert_eq!(budget.grant(start).0.len(), TURN as usize);
    let before = budget.draws;
    assert!(budget.grant(start).0.is_empty());
    assert!(budget.draws - before <= 2, "{}", budget.draws - before);
}

/// A call with its arguments.
type Queued = (Lane, Priority, Ticket);

/// The calls that may go, found by visiting each call that waits.
fn by_visiting_all(
    budget: &mut Budget,
    waiting: &mut Vec<Queued>,
    overtaken: &mut u32,
    now: Instant,
) -> (Vec<Ticket>, Option<Instant>) {
    let (mut granted, mut again, mut gives_turns) = (vec![], None::<Instant>, true);
    let draw = |budget: &mut Budget, (lane, priority, ticket): &Queued, at: Priority| {
        let (shared, own) = meter::of(lane);
        budget.draw(&Next { shared, own, rank: rank(lane, *priority, *ticket) }, at, now)
    };
    waiting.sort_by_key(|(lane, priority, ticket)| rank(lane, *priority, *ticket));
    // A turn may be due before each call, and after the last one.
    for call in waiting.clone().into_iter().map(Some).chain([None]) {
        if gives_turns && *overtaken >= TURN {
            let mut oldest = waiting.clone();
            oldest.sort_by_key(|call| call.2);
            let goes = oldest.into_iter().find(|one| draw(budget, one, Priority::WaitingPods).is_ok());
            gives_turns = goes.is_some();
            if let Some((.., ticket)) = goes {
                waiting.retain(|one| one.2 != ticket);
                *overtaken = 0;
                granted.push(ticket);
            }
        }
        let Some(call) = call.filter(|call| waiting.iter().any(|one| one.2 == call.2)) else { continue };
        match draw(budget, &call, call.1) {
            Ok(()) => {
                waiting.retain(|one| one.2 != call.2);
                *overtaken = if waiting.iter().any(|one| one.2 < call.2) { *overtaken + 1 } else { 0 };
                granted.push(call.2);
            }
            Err(Shut { ready, whom }) => {
                again = Some(again.map_or(ready, |again| again.min(ready)));
                if matches!(whom, Whom::All) {
                    break;
                }
            }
        }
    }
    (granted, again)
}

fn some_lane() -> impl Strategy<Value = Lane> {
    prop_oneof![
        Just(lane(None, false)),
        Just(lane(Some("westeurope"), false)),
        Just(lane(Some("northeurope"), false)),
        (0..3_u8).prop_map(|name| vm(&name.to_string(), Kind::Read)),
        (0..3_u8).prop_map(|name| vm(&name.to_string(), Kind::Poll)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the others do, a node gets its turn: after all others once for each of ten calls at most, and
    /// the wait for the part of the bucket that its priority leaves to others.
    #[test]
    fn no_node_starves_another(nodes in nodes()) {
        let rate = 0.2 * 10.0;
        let to_fill = 0.5 * 0.2 * 200.0 / rate;
        let longest = nodes.len() as f64 * 10.0 / rate + to_fill + 1.0;
        for (index, (waited, _)) in ten_minutes(&nodes, 20).into_iter().enumerate() {
            prop_assert!(waited <= longest, "node {index} of {} waited {waited} s: {:?}", nodes.len(), nodes[index]);
        }
    }

    /// The same calls go, in the same order, as if each waiting call were visited each time.
    #[test]
    fn the_calls_that_may_go_are_found_without_a_visit_to_each(
        steps in prop::collection::vec(
            (prop::collection::vec((some_lane(), prop::sample::select(Priority::ALL.to_vec())), 0..40), 0..20_u8, 0..12_u8),
            1..20,
        ),
    ) {
        let start = Instant::now();
        let (mut budget, mut other) = (Budget::new(5), Budget::new(5));
        let (mut waiting, mut overtaken, mut now) = (vec![], 0, start);
        for (calls, pause, closed) in steps {
            for (lane, priority) in calls {
                waiting.push((lane.clone(), priority, budget.ask(&lane, priority)));
            }
            if closed > 9 {
                let closed = Lesson::closed_by_provider(Duration::from_secs(7));
                for budget in [&mut budget, &mut other] {
                    budget.learn(&lane(Some("westeurope"), false), &closed, now);
                }
            }
            let expected = by_visiting_all(&mut other, &mut waiting, &mut overtaken, now);
            let (granted, again) = budget.grant(now);
            prop_assert_eq!(&granted, &expected.0);
            prop_assert_eq!(again, expected.1);
            now += Duration::from_millis(u64::from(pause) * 100);
        }
    }

    /// Nodes of the same need that ask as fast as they can get the same, but for one call.
    #[test]
    fn nodes_in_the_same_need_share_equally(count in 2..100_usize, priority in prop::sample::select(Priority::ALL.to_vec())) {
        let nodes = vec![Asking { priority, pause: 0 }; count];
        let calls: Vec<u32> = ten_minutes(&nodes, 80).into_iter().map(|(_, calls)| calls).collect();
        let (least, most) = (calls.iter().min().unwrap(), calls.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{least} to {most}");
    }
}

#[test]
fn a_shorter_retry_after_does_not_open_a_meter_earlier() {
    let now = Instant::now();
    let mut budget = budget();
    for seconds in [5, 60, 20] {
        budget.learn(&write(), &Lesson::closed_by_arm(Duration::from_secs(seconds)), now);
    }
    budget.ask(&write(), Priority::WaitingPods);
    assert_eq!(budget.grant(now).1, Some(after(now, 60.0)));
}

#[test]
fn the_rest_that_azure_counts_lowers_our_level_but_never_raises_it() {
    let now = Instant::now();
    let mut budget = budget();
    // 45 of 200 left in all, 40 of them are the others'.
    budget.learn(&write(), &Lesson::left_to_all(45.0), now);
    assert_eq!(burst(&mut budget, &write(), Priority::WaitingPods, now), 5);
    budget.learn(&write(), &Lesson::left_to_all(11_999.0), now);
    assert_eq!(burst(&mut budget, &write(), Priority::WaitingPods, now), 0);
}

/// The network provider's writes of a region, all of our share left, and how many calls go at once.
fn window(now: Instant) -> Level {
    Meter::Network { subscription: "sub".into(), region: "r".into(), writes: true }.full(0.8, now)
}

fn through(level: &mut Level, now: Instant) -> usize {
    level.settle(now);
    std::iter::repeat_with(|| {
        level.ready(Priority::WaitingPods, now) <= now && {
            level.take(now);
            true
        }
    })
    .take_while(|went| *went)
    .count()
}

#[test]
fn a_window_that_others_use_up_too_is_gone_about_slowly_before_azure_throttles() {
    let start = Instant::now();
    let mut level = window(start);
    level.lower(80.0, start);
    assert_eq!(through(&mut level, start), 80);
    // The 720 of the others leave the window within five minutes.
    let again = level.ready(Priority::WaitingPods, start);
    assert!((0.416..0.419).contains(&(again - start).as_secs_f64()), "{:?}", again - start);
    assert_eq!(through(&mut level, again), 1);
    assert_eq!(through(&mut level, after(start, 100.1)), 239);
    assert_eq!(through(&mut level, after(start, 301.0)), 561, "239 are ours still");
}

/// What two operators get of the writes of a region, both with a share of 80 %, and both with more to write
/// than there is: after the first minute, those that went through, and those that Azure throttled.
fn shared(is_counted: bool) -> [(usize, usize); 2] {
    const LIMIT: usize = 1000;
    let (start, span) = (Instant::now(), Duration::from_secs(300));
    let mut operators = [(); 2].map(|()| (budget(), vec![], (0, 0)));
    let mut taken: Vec<Instant> = vec![];
    // For twenty minutes, a tenth of a second at a time; an answer takes half of one.
    for step in 0..12_000_usize {
        let now = start + Duration::from_millis(100 * step as u64);
        taken.retain(|at| now.duration_since(*at) < span);
        for (budget, answers, (through, throttled)) in rotated(&mut operators, step) {
            answers.retain(|(at, lesson): &(Instant, Lesson)| {
                let has_come = *at <= now;
                if has_come {
                    budget.learn(&write(), lesson, now);
                }
                !has_come
            });
            let waiting: usize = budget.waiting().iter().map(|(_, count)| count).sum();
            for _ in waiting..50 {
                budget.ask(&write(), Priority::WaitingPods);
            }
            for _ in budget.grant(now).0 {
                let is_through = taken.len() < LIMIT;
                taken.extend(is_through.then_some(now));
                let lesson = match is_through {
                    true if is_counted => Lesson::left_at_provider((LIMIT - taken.len()) as f64),
                    true => Lesson::default(),
                    false => Lesson::closed_by_provider(Duration::from_secs(30)),
                };
                answers.push((now + Duration::from_millis(500), lesson));
                if step >= 600 {
                    let count = if is_through { &mut *through } else { &mut *throttled };
                    *count += 1;
                }
            }
        }
    }
    operators.map(|(.., counts)| counts)
}

/// All of them, another one first each time.
fn rotated<T>(all: &mut [T; 2], step: usize) -> [&mut T; 2] {
    let [one, other] = all;
    if step.is_multiple_of(2) { [one, other] } else { [other, one] }
}

#[test]
fn two_operators_that_share_a_subscription_get_half_of_its_writes_each_and_are_throttled_no_more() {
    let counts = shared(true);
    println!("{counts:?}");
    // Three times 1,000 after those of the first minute.
    for (through, throttled) in counts {
        assert!(through >= 1400 && throttled == 0, "{counts:?}");
    }
}

#[test]
fn operators_that_learn_of_each_other_only_by_throttling_are_throttled_seldom() {
    let counts = shared(false);
    println!("{counts:?}");
    for (through, throttled) in counts {
        assert!(through >= 1400 && throttled <= through / 20, "{counts:?}");
    }
}

#[test]
fn azures_newest_count_of_a_window_holds() {
    let start = Instant::now();
    let mut level = window(start);
    level.lower(0.0, start);
    assert_eq!(through(&mut level, start), 0);
    level.lower(800.0, start);
    assert_eq!(through(&mut level, start), 800);
    let mut budget = budget();
    budget.learn(&write(), &Lesson::left_at_provider(100.0), start);
    let left = budget.accounts(start).into_iter().find(|one| one.limit == "network").map(|one| one.left);
    assert_eq!(left, Some(80.0), "our share of what the answer reports");
}

#[test]
fn subscriptions_have_budgets_of_their_own() {
    let now = Instant::now();
    let mut budget = budget();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, now);
    let other = Lane { subscription: "other".into(), ..lane(None, true) };
    assert_eq!(burst(&mut budget, &other, Priority::WaitingPods, now), 160);
}
