use super::*;

fn lane(region: Option<&str>, writes: bool) -> Lane {
    Lane { subscription: "sub".into(), region: region.map(str::to_owned), writes }
}

fn write() -> Lane {
    lane(Some("westeurope"), true)
}

fn after(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

/// How many calls that all want to go at `now` get through at once.
fn burst(budget: &mut Budget, lane: &Lane, priority: Priority, now: Instant) -> usize {
    for _ in 0..2000 {
        budget.ask(lane.clone(), priority);
    }
    let through = budget.grant(now).0.len();
    budget.waiting.clear();
    through
}

#[test]
fn a_fifth_of_what_azure_allows_is_left_to_others() {
    let now = Instant::now();
    assert_eq!(burst(&mut Budget::default(), &lane(None, false), Priority::WaitingPods, now), 200);
    assert_eq!(burst(&mut Budget::default(), &lane(None, true), Priority::WaitingPods, now), 160);
}

#[test]
fn lower_priorities_leave_room_for_higher_ones() {
    let now = Instant::now();
    let mut budget = Budget::default();
    assert_eq!(burst(&mut budget, &write(), Priority::GiveBack, now), 80);
    assert_eq!(burst(&mut budget, &write(), Priority::WarmRefill, now), 40);
    assert_eq!(burst(&mut budget, &write(), Priority::NewNode, now), 24);
    assert_eq!(burst(&mut budget, &write(), Priority::WaitingPods, now), 16);
}

#[test]
fn an_empty_bucket_refills_at_our_share_of_azures_rate() {
    let start = Instant::now();
    let mut budget = Budget::default();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, start);
    budget.ask(lane(None, true), Priority::WaitingPods);
    let (granted, again) = budget.grant(start);
    assert!(granted.is_empty());
    let wait = again.unwrap() - start;
    assert!((0.125..0.126).contains(&wait.as_secs_f64()), "{wait:?}");
    assert_eq!(budget.grant(again.unwrap()).0.len(), 1);
}

#[test]
fn no_five_minutes_see_more_writes_in_a_region_than_our_share_allows() {
    let start = Instant::now();
    let mut budget = Budget::default();
    let mut gone: Vec<f64> = vec![];
    for step in 0..900 {
        let at = f64::from(step);
        for _ in 0..10 {
            budget.ask(write(), Priority::WaitingPods);
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
    let mut budget = Budget::default();
    for step in 0..200 {
        burst(&mut budget, &write(), Priority::WaitingPods, after(start, f64::from(step)));
    }
    let now = after(start, 230.0);
    budget.ask(write(), Priority::WaitingPods);
    let elsewhere = budget.ask(lane(Some("northeurope"), true), Priority::GiveBack);
    assert_eq!(budget.grant(now).0, [elsewhere]);
}

#[test]
fn the_highest_priority_goes_first_and_then_whoever_asked_first() {
    let start = Instant::now();
    let mut budget = Budget::default();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, start);
    let give_back = budget.ask(lane(None, true), Priority::GiveBack);
    let refill = budget.ask(lane(None, true), Priority::WarmRefill);
    let pods = budget.ask(write(), Priority::WaitingPods);
    let later_pods = budget.ask(lane(None, true), Priority::WaitingPods);
    assert_eq!(budget.grant(after(start, 60.0)).0, [pods, later_pods, refill, give_back]);
}

#[test]
fn retry_after_closes_the_meter_it_came_from_and_no_other() {
    let now = Instant::now();
    let mut budget = Budget::default();
    let throttled = Lesson { closed_for: Some(Duration::from_secs(17)), ..Lesson::default() };
    budget.learn(&write(), &throttled, now);
    budget.ask(write(), Priority::WaitingPods);
    let read = budget.ask(lane(Some("westeurope"), false), Priority::GiveBack);
    let (granted, again) = budget.grant(now);
    assert_eq!(granted, [read]);
    assert_eq!(again, Some(after(now, 17.0)));
    assert_eq!(budget.grant(after(now, 17.0)).0.len(), 1);
}

#[test]
fn the_providers_throttling_closes_its_region_only() {
    let now = Instant::now();
    let mut budget = Budget::default();
    let throttled =
        Lesson { closed_for: Some(Duration::from_secs(90)), by_provider: true, ..Lesson::default() };
    budget.learn(&write(), &throttled, now);
    budget.ask(write(), Priority::WaitingPods);
    let elsewhere = budget.ask(lane(Some("northeurope"), true), Priority::WaitingPods);
    assert_eq!(budget.grant(now).0, [elsewhere]);
}

#[test]
fn a_shorter_retry_after_does_not_open_a_meter_earlier() {
    let now = Instant::now();
    let mut budget = Budget::default();
    for seconds in [5, 60, 20] {
        let lesson = Lesson { closed_for: Some(Duration::from_secs(seconds)), ..Lesson::default() };
        budget.learn(&write(), &lesson, now);
    }
    budget.ask(write(), Priority::WaitingPods);
    assert_eq!(budget.grant(now).1, Some(after(now, 60.0)));
}

#[test]
fn what_azure_counts_as_left_lowers_our_level_but_never_raises_it() {
    let now = Instant::now();
    let mut budget = Budget::default();
    let left = |remaining| Lesson { remaining: Some(remaining), ..Lesson::default() };
    // 45 of 200 left in all, 40 of them are the others'.
    budget.learn(&write(), &left(45.0), now);
    assert_eq!(burst(&mut budget, &write(), Priority::WaitingPods, now), 5);
    budget.learn(&write(), &left(11_999.0), now);
    assert_eq!(burst(&mut budget, &write(), Priority::WaitingPods, now), 0);
}

#[test]
fn subscriptions_have_budgets_of_their_own() {
    let now = Instant::now();
    let mut budget = Budget::default();
    burst(&mut budget, &lane(None, true), Priority::WaitingPods, now);
    let other = Lane { subscription: "other".into(), ..lane(None, true) };
    assert_eq!(burst(&mut budget, &other, Priority::WaitingPods, now), 160);
}
