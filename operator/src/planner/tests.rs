//! The planner's rules, each as a sentence, and properties of any node.

use super::*;
use proptest::prelude::*;

const LONG: Duration = Duration::from_secs(3600);

fn ours(names: impl IntoIterator<Item = u32>) -> Vec<IpConfiguration> {
    names
        .into_iter()
        .map(|n| IpConfiguration {
            name: name(n),
            address: Some(format!("10.240.{}.{}/32", n / 256, n % 256).parse().unwrap()),
            state: ProvisioningState::Succeeded,
            attached: Default::default(),
        })
        .collect()
}

/// The same as blocks of 16.
fn blocks(names: impl IntoIterator<Item = u32>) -> Vec<IpConfiguration> {
    let block = |(n, one)| IpConfiguration {
        address: Some(format!("10.{}.{}.{}/28", n / 4096, n / 16 % 256, n % 16 * 16).parse().unwrap()),
        ..one
    };
    let names: Vec<u32> = names.into_iter().collect();
    names.iter().copied().zip(ours(names.iter().copied())).map(block).collect()
}

fn name(n: u32) -> String {
    format!("vnp-{n:016x}")
}

/// A node whose every wait is over.
pub(crate) fn observed(held: u32, bound: u32) -> Observed {
    Observed {
        sizing: Some(Sizing { minimum: 8, warm: 8, maximum: 255, batch: 4, ..Sizing::default() }),
        demand: Demand { bound, ..Demand::default() },
        held: ours(0..held),
        lost: BTreeSet::new(),
        slots: 255,
        grain: 1,
        release_after: Duration::from_secs(300),
        coarseness: 1,
        relinquished: BTreeSet::new(),
        shown: BTreeSet::new(),
        adopt: vec![],
        surplus_for: None,
        bound_still_for: LONG,
        growth_wanted_for: Duration::ZERO,
        release_wanted_for: Duration::ZERO,
        may_reserve: u32::MAX,
        may_write: true,
        nic_failed: false,
        may_mend: true,
        may_regroup: true,
        may_release: true,
        forwarding_lacks: false,
        join: vec![],
        leave: vec![],
        route_is_wrong: false,
    }
}

#[test]
fn a_new_node_gets_its_minimum_before_its_warm_refill() {
    let plan = plan(&observed(0, 0));
    assert_eq!((plan.target, plan.change.reserve, plan.priority), (8, 8, Priority::NewNode));
}

#[test]
fn lost_addresses_of_pods_are_restored_at_once_and_first() {
    let lost: BTreeSet<_> = ["10.240.0.7/32", "10.240.0.9/32"].map(|one| one.parse().unwrap()).into();
    let wiped = Observed { lost: lost.clone(), bound_still_for: Duration::ZERO, ..observed(0, 2) };
    let first = plan(&wiped);
    assert_eq!((first.change.restore, first.change.reserve), (Vec::from_iter(lost.clone()), 0));
    assert_eq!(first.priority, Priority::WaitingPods);
    // When the burst is over, the rest goes into the same write, less the restored addresses.
    let over = plan(&Observed { bound_still_for: STILL, ..wiped.clone() });
    assert_eq!((over.change.restore.len(), over.change.reserve), (2, over.wanted - 2));
    // No more than the NIC takes, and nothing while no write is allowed, or where no addresses are wanted any
    // more.
    assert_eq!(plan(&Observed { slots: 1, ..wiped.clone() }).change.restore.len(), 1);
    assert!(plan(&Observed { may_write: false, ..wiped.clone() }).change.is_empty());
    assert!(plan(&Observed { sizing: None, ..wiped }).change.is_empty());
}

#[test]
fn a_burst_is_waited_for_until_it_is_still() {
    let burst = Observed { bound_still_for: Duration::from_millis(100), ..observed(8, 40) };
    let waiting = plan(&burst);
    assert!(waiting.change.is_empty() && waiting.grows);
    assert_eq!(waiting.requeue, Some(Duration::from_millis(200)));
    let over = plan(&Observed { bound_still_for: STILL, ..burst });
    assert_eq!((over.change.reserve, over.priority), (40, Priority::WaitingPods));
}

#[test]
fn a_burst_that_goes_on_is_not_waited_for_forever() {
    let burst = Observed { bound_still_for: Duration::ZERO, growth_wanted_for: BURST, ..observed(8, 40) };
    assert_eq!(plan(&burst).change.reserve, 40);
}

#[test]
fn a_burst_of_sixty_pods_costs_one_write() {
    // The binds of 60 pods as the controller manager's default rate makes them: 30 at once, then 20 a second.
    let mut writes = 0;
    let mut growth_since = None;
    let mut held = 8;
    for tick in 0..100_u64 {
        let now = tick * 50;
        let bound = (30 + tick as u32).min(60);
        let last_bind = tick.min(30) * 50;
        let seen = Observed {
            bound_still_for: Duration::from_millis(now - last_bind),
            growth_wanted_for: Duration::from_millis(growth_since.map_or(0, |since| now - since)),
            ..observed(held, bound)
        };
        let plan = plan(&seen);
        growth_since = plan.grows.then_some(growth_since.unwrap_or(now));
        if plan.change.reserve > 0 {
            writes += 1;
            held += plan.change.reserve;
        }
    }
    assert_eq!((writes, held), (1, 68));
}

#[test]
fn a_surplus_is_the_target_until_it_has_lasted() {
    let fresh = plan(&observed(40, 0));
    assert!(fresh.surplus);
    assert_eq!((fresh.target, fresh.wanted, fresh.requeue), (40, 8, Some(Duration::from_secs(300))));
    let lasted = plan(&Observed { surplus_for: Some(Duration::from_secs(300)), ..observed(40, 0) });
    assert_eq!((lasted.target, lasted.requeue), (8, None));
}

#[test]
fn nothing_is_released_that_the_agent_has_not_relinquished() {
    let plan = plan(&Observed { surplus_for: Some(LONG), ..observed(40, 0) });
    assert!(plan.change.is_empty());
}

#[test]
fn a_relinquished_address_is_released_and_published_until_it_is_gone() {
    let giving =
        Observed { relinquished: (0..32).map(name).collect(), surplus_for: Some(LONG), ..observed(40, 0) };
    let plan = plan(&giving);
    assert_eq!(plan.change.release.len(), 32);
    assert_eq!(plan.publish.len(), 40);
    assert_eq!((plan.kept, plan.surplus, plan.priority), (8, false, Priority::GiveBack));
}

#[test]
fn a_release_waits_for_the_rest_of_the_relinquished_addresses() {
    let part =
        Observed { relinquished: (0..10).map(name).collect(), surplus_for: Some(LONG), ..observed(40, 0) };
    assert_eq!((plan(&part).change, plan(&part).requeue), (Change::default(), Some(COLLECT)));
    let late = Observed { release_wanted_for: COLLECT, ..part };
    assert_eq!(plan(&late).change.release.len(), 10);
}

#[test]
fn growth_and_release_go_in_one_write() {
    let both = Observed { relinquished: (0..4).map(name).collect(), ..observed(8, 10) };
    let plan = plan(&both);
    assert_eq!((plan.change.reserve, plan.change.release.len()), (16, 4));
}

#[test]
fn a_relinquished_address_is_not_counted_as_held() {
    let relinquished = Observed { relinquished: (0..4).map(name).collect(), ..observed(16, 8) };
    assert_eq!(plan(&relinquished).change.reserve, 4);
}

#[test]
fn an_address_azure_has_not_finished_is_counted_but_not_published() {
    let mut updating = observed(8, 0);
    updating.held[3].state = ProvisioningState::Updating;
    updating.held[4].address = None;
    let plan = plan(&updating);
    assert_eq!((plan.publish.len(), plan.change.reserve), (6, 0));
}

#[test]
fn a_node_that_no_pool_serves_gives_all_back() {
    let unserved = Observed { sizing: None, release_after: Duration::ZERO, ..observed(8, 3) };
    assert_eq!((plan(&unserved).target, plan(&unserved).surplus), (0, true));
}

#[test]
fn a_node_whose_pool_wants_another_subnet_gives_back_no_sooner_than_any_surplus() {
    let unwanted = |surplus_for| plan(&Observed { sizing: None, surplus_for, ..observed(8, 3) });
    let fresh = unwanted(None);
    assert_eq!((fresh.target, fresh.requeue), (8, Some(Duration::from_secs(300))));
    assert_eq!(unwanted(Some(Duration::from_secs(300))).target, 0);
}

#[test]
fn a_failed_reservation_is_repaired_and_not_published_before() {
    let mut failed = observed(8, 0);
    failed.held[3].state = ProvisioningState::Failed;
    let broken = plan(&failed);
    assert!(broken.change.repair && broken.repairs);
    assert_eq!((broken.publish.len(), broken.change.reserve), (7, 0));
    assert!(!plan(&Observed { may_write: false, ..failed }).change.repair);
}

#[test]
fn a_full_subnet_holds_growth_back_but_not_a_release() {
    let full = Observed {
        may_reserve: 0,
        relinquished: [name(0)].into(),
        release_wanted_for: COLLECT,
        ..observed(8, 40)
    };
    let plan = plan(&full);
    assert_eq!((plan.change.reserve, plan.change.release.len()), (0, 1));
    assert!(plan.grows);
}

#[test]
fn a_release_that_azure_has_refused_waits_and_holds_no_growth_up() {
    let refused = Observed {
        may_release: false,
        relinquished: [name(0)].into(),
        release_wanted_for: COLLECT,
        ..observed(9, 40)
    };
    let grows = plan(&refused);
    assert!(grows.change.reserve > 0 && grows.change.release.is_empty() && grows.releases);
    let idle = plan(&Observed { demand: Demand::default(), ..refused });
    assert!(idle.change.is_empty() && idle.requeue.is_none(), "{idle:?}");
}

#[test]
fn a_node_with_blocks_reserves_as_many_as_its_pods_need_and_each_counts_sixteen() {
    let observed = |held, bound| Observed { grain: 16, held: blocks(0..held), ..observed(0, bound) };
    assert_eq!((plan(&observed(0, 0)).change.reserve, plan(&observed(0, 0)).target), (1, 16));
    assert_eq!((plan(&observed(1, 8)).change.reserve, plan(&observed(1, 8)).kept), (0, 16));
    assert_eq!((plan(&observed(1, 9)).change.reserve, plan(&observed(1, 9)).target), (1, 32));
    let shrinking = plan(&Observed { surplus_for: Some(LONG), ..observed(3, 0) });
    assert_eq!((shrinking.kept, shrinking.target, shrinking.surplus), (48, 16, true));
}

#[test]
fn a_block_takes_one_of_the_nics_slots() {
    let plan = plan(&Observed { grain: 16, held: blocks(0..1), slots: 2, ..observed(0, 100) });
    assert_eq!((plan.change.reserve, plan.wanted), (1, 32));
}

#[test]
fn a_node_that_came_from_another_pool_trades_single_addresses_for_blocks() {
    let mixed = Observed { grain: 16, ..observed(8, 0) };
    assert_eq!(plan(&mixed).change.reserve, 1);
    let held = ours(0..8).into_iter().chain(blocks(20..21)).collect();
    let after = plan(&Observed { held, surplus_for: Some(LONG), ..mixed });
    assert_eq!((after.change.reserve, after.kept, after.target), (0, 24, 16));
}

#[test]
fn a_route_that_is_wrong_is_put_right_at_once_though_nothing_is_to_be_reserved() {
    let wrong = Observed { route_is_wrong: true, ..observed(16, 0) };
    let mending = plan(&wrong);
    assert_eq!(mending.change, Change { mend: true, ..Change::default() });
    assert_eq!(mending.priority, Priority::WaitingPods);
    assert!(plan(&Observed { may_write: false, ..wrong.clone() }).change.is_empty());
    let written = plan(&Observed { may_mend: false, ..wrong });
    assert!(written.reroutes && written.change.is_empty(), "it has to show its effect first");
}

#[test]
fn a_block_is_published_as_a_range() {
    let published = plan(&Observed { grain: 16, held: blocks(1..2), ..observed(0, 0) }).publish;
    assert_eq!(published[0].address, "10.0.0.16/28");
}

prop_compose! {
    fn any_observed()(
        held in 0..260_u32,
        bound in 0..300_u32,
        assigned in 0..260_u32,
        waiting in 0..50_u32,
        cooling in 0..50_u32,
        pods_allowed in prop::option::of(0..300_u32),
        (minimum, maximum) in (0..=255_u32, 1..=255_u32),
        (warm, batch) in (0..=255_u32, 1..=255_u32),
        slots in 0..=255_u32,
        grain in prop::sample::select(vec![1, 16]),
        served in prop::bool::weighted(0.9),
        relinquished in prop::collection::btree_set((0..300_u32).prop_map(name), 0..50),
        surplus in prop::option::of(0..600_u64),
        (still, grown, waited) in (0..1000_u64, 0..3000_u64, 0..60_000_u64),
        (may_reserve, may_write) in (0..300_u32, prop::bool::weighted(0.9)),
        coarseness in prop::sample::select(vec![1, 2, 4]),
    ) -> Observed {
        Observed {
            sizing: served.then(|| Sizing {
                minimum: minimum.min(maximum), warm, maximum, batch, ..Sizing::default()
            }),
            demand: Demand { bound, assigned, waiting, cooling, pods_allowed },
            held: if grain == 1 { ours(0..held) } else { blocks(0..held / 8) },
            slots,
            grain,
            coarseness,
            relinquished,
            surplus_for: surplus.map(Duration::from_secs),
            bound_still_for: Duration::from_millis(still),
            growth_wanted_for: Duration::from_millis(grown),
            release_wanted_for: Duration::from_millis(waited),
            may_reserve,
            may_write,
            ..observed(0, 0)
        }
    }
}

#[test]
fn a_nic_that_failed_as_a_whole_is_written_once_more_and_then_only_when_that_may_have_shown_an_effect() {
    let failed = Observed { nic_failed: true, ..observed(8, 0) };
    let first = plan(&failed);
    assert!(first.change.repair && first.repairs);
    assert_eq!(first.priority, Priority::WaitingPods);
    let written = plan(&Observed { may_mend: false, ..failed.clone() });
    assert!(written.repairs && written.change.is_empty(), "{:?}", written.change);
    // The other steps don't wait for that.
    let grows = plan(&Observed { may_mend: false, nic_failed: true, ..observed(8, 20) });
    assert!(grows.change.reserve > 0 && !grows.change.repair);
    let closed = Observed { forwarding_lacks: true, ..observed(8, 0) };
    assert!(plan(&closed).change.forward);
    assert!(!plan(&Observed { may_mend: false, ..closed }).change.forward);
}

#[test]
fn an_address_that_azure_works_on_is_shown_only_if_it_was() {
    let mut observed = observed(2, 0);
    observed.held[0].state = ProvisioningState::Updating;
    observed.held[1].state = ProvisioningState::Updating;
    observed.shown = [name(1)].into();
    let shown: Vec<String> = plan(&observed).publish.into_iter().map(|one| one.name).collect();
    assert_eq!(shown, [name(1)]);
}

#[test]
fn an_adoption_has_the_lowest_priority_and_waits_while_writes_are_held_back() {
    let idle = Observed { adopt: vec!["ipconfig2".into()], ..observed(16, 0) };
    let now = plan(&idle);
    assert_eq!((&now.change.adopt, now.priority), (&idle.adopt, Priority::GiveBack));
    assert!(!now.change.is_empty());
    assert!(plan(&Observed { may_write: false, ..idle }).change.is_empty());
}

fn group() -> ResourceId {
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/web"
        .parse()
        .unwrap()
}

#[test]
fn groups_are_joined_with_a_reservation_and_delay_no_burst() {
    let new = Observed { join: vec![group()], ..observed(0, 0) };
    let first = plan(&new);
    assert_eq!((first.change.reserve, first.change.join), (8, vec![group()]));
    let burst = Observed { join: vec![group()], bound_still_for: Duration::ZERO, ..observed(8, 30) };
    let waits = plan(&burst);
    assert!(waits.change.is_empty() && waits.regroups && waits.requeue.is_some(), "{waits:?}");
    // Where nothing can be reserved there is nothing to wait for.
    let full = plan(&Observed { may_reserve: 0, ..burst });
    assert_eq!((full.change.join, full.priority), (vec![group()], Priority::WarmRefill));
}

#[test]
fn without_a_pool_the_groups_go_with_the_last_address_and_with_a_pool_at_once() {
    let left = Observed { leave: vec![group()], ..observed(16, 0) };
    assert_eq!(plan(&left).change.leave, [group()]);
    let mut vacated = Observed { sizing: None, release_after: Duration::ZERO, ..left };
    vacated.relinquished = (0..15).map(name).collect();
    vacated.release_wanted_for = LONG;
    let some = plan(&vacated);
    assert_eq!((some.change.release.len(), some.change.leave.len(), some.regroups), (15, 0, true));
    vacated.relinquished.insert(name(15));
    let all = plan(&vacated);
    assert_eq!((all.change.release.len(), all.change.leave), (16, vec![group()]));
}

#[test]
fn where_writes_are_scarce_a_node_grows_by_coarse_steps_without_a_surplus() {
    let scarce = |held, bound| plan(&Observed { coarseness: 4, ..observed(held, bound) });
    // With 15 pods 23 are needed: 24 in batches of 4, and 32 in steps of four batches.
    let grows = scarce(16, 15);
    assert_eq!((grows.change.reserve, grows.wanted, grows.target), (16, 32, 32));
    for held in 24..=32 {
        let stays = scarce(held, 15);
        assert!(stays.change.is_empty() && !stays.surplus && !stays.grows, "{held}: {stays:?}");
        assert_eq!((stays.target, stays.requeue), (held, None));
    }
    // What is more than that goes back, after four times as long, down to the step.
    let waits = scarce(33, 15);
    assert_eq!((waits.surplus, waits.target, waits.requeue), (true, 33, Some(Duration::from_secs(1200))));
    let lasted = Observed { surplus_for: Some(Duration::from_secs(1200)), coarseness: 4, ..observed(40, 15) };
    assert_eq!(plan(&lasted).target, 32);
}

#[test]
fn where_writes_are_scarce_a_new_node_takes_no_more_than_elsewhere() {
    let new = Observed { coarseness: 4, ..observed(0, 15) };
    assert_eq!(plan(&new).change.reserve, 24);
    assert!(plan(&carried_out(&new, &plan(&new))).change.is_empty());
}

#[test]
fn where_writes_are_scarce_relinquished_addresses_wait_longer_for_one_write() {
    let given = Observed {
        relinquished: [name(0)].into(),
        release_wanted_for: COLLECT,
        coarseness: 2,
        ..observed(17, 0)
    };
    let waits = plan(&given);
    assert_eq!((waits.change.release.len(), waits.requeue), (0, Some(COLLECT)));
    assert_eq!(plan(&Observed { release_wanted_for: 2 * COLLECT, ..given.clone() }).change.release.len(), 1);
    assert_eq!(plan(&Observed { coarseness: 1, ..given }).change.release.len(), 1);
}

#[test]
fn pods_come_and_go_within_a_batch_before_another_plan_is_due() {
    let bounds = |observed: &Observed| alike(observed, &plan(observed));
    // Twelve pods and eight warm addresses, in batches of four.
    assert_eq!(bounds(&observed(20, 12)), 9..=12);
    let minimum = Sizing { minimum: 12, warm: 0, batch: 4, maximum: 255, ..Sizing::default() };
    let idle = Observed { sizing: Some(minimum.clone()), ..observed(12, 8) };
    assert_eq!(bounds(&idle), 0..=11);
    // At the limit each further pod lacks an address, and each that goes leaves one.
    let full = Observed { sizing: Some(Sizing { maximum: 12, ..minimum }), ..observed(12, 12) };
    assert_eq!(bounds(&full), 12..=12);
    let wild = Demand { waiting: u32::MAX, ..full.demand };
    assert_eq!(*bounds(&Observed { demand: wild, ..full }).start(), 0);
}

/// The NIC after the plan's write, as Azure would hold it.
fn carried_out(observed: &Observed, plan: &Plan) -> Observed {
    let mut next = observed.clone();
    next.held.retain(|one| !plan.change.release.contains(&one.name));
    let new = 1000..1000 + plan.change.reserve;
    next.held.extend(if observed.grain == 1 { ours(new) } else { blocks(new) });
    if plan.change.repair {
        next.held.iter_mut().for_each(|one| one.state = ProvisioningState::Succeeded);
    }
    next
}

proptest! {
    #[test]
    fn with_numbers_of_bound_pods_that_are_alike_a_node_that_is_not_to_grow_has_the_same_plan(
        observed in any_observed(), (any, still) in (0..300_u32, 0..1000_u64)
    ) {
        let first = plan(&observed);
        prop_assume!(!first.grows);
        let bounds = alike(&observed, &first);
        prop_assert!(bounds.contains(&observed.demand.bound));
        let content = |plan: Plan| Plan { steps: None, ..plan };
        for bound in [*bounds.start(), any.clamp(*bounds.start(), *bounds.end()), *bounds.end()] {
            let demand = Demand { bound, ..observed.demand };
            let bound_still_for = Duration::from_millis(still);
            let next = plan(&Observed { demand, bound_still_for, ..observed.clone() });
            prop_assert_eq!(content(next), content(first.clone()));
            let lacks = |demand: Demand| demand.pods().saturating_sub(first.kept);
            prop_assert_eq!(lacks(demand), lacks(observed.demand));
        }
    }

    #[test]
    fn only_relinquished_addresses_are_ever_released(observed in any_observed()) {
        for name in plan(&observed).change.release {
            prop_assert!(observed.relinquished.contains(&name));
        }
    }

    #[test]
    fn no_write_reserves_beyond_the_maximum_or_azures_limit(observed in any_observed()) {
        let plan = plan(&observed);
        if plan.change.reserve > 0 {
            let after = carried_out(&observed, &plan).held;
            let maximum = observed.sizing.as_ref().map_or(0, |sizing| sizing.maximum);
            prop_assert!(after.iter().map(|one| addresses(one, observed.grain)).sum::<u32>() <= maximum);
            prop_assert!(after.len() as u32 <= observed.slots);
        }
    }

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(observed in any_observed()) {
        let observed = Observed { may_reserve: u32::MAX, ..observed };
        let first = plan(&observed);
        let second = plan(&carried_out(&observed, &first));
        prop_assume!(!first.change.is_empty());
        prop_assert!(second.change.reserve == 0, "{:?} then {:?}", first.change, second.change);
        prop_assert!(second.change.release.iter().all(|name| !first.change.release.contains(name)));
    }

    #[test]
    fn a_plan_that_leaves_work_undone_requeues_its_node(observed in any_observed()) {
        let observed = Observed { may_reserve: u32::MAX, may_write: true, ..observed };
        let plan = plan(&observed);
        let left_out = (plan.grows && plan.change.reserve == 0) || (plan.releases && plan.change.release.is_empty());
        prop_assert!(!left_out || plan.requeue.is_some());
    }

    #[test]
    fn the_target_never_asks_for_more_than_the_larger_of_held_and_wanted(observed in any_observed()) {
        let plan = plan(&observed);
        prop_assert!(plan.target <= plan.kept.max(plan.wanted));
        prop_assert!(plan.target >= plan.wanted);
    }

    #[test]
    fn scarce_writes_cause_none_and_serve_pods_no_less(observed in any_observed(), lost in 0..20_u32) {
        let lost = if observed.grain == 1 { ours(2000..2000 + lost) } else { blocks(2000..2000 + lost) };
        let scarce = Observed { lost: lost.iter().filter_map(|one| one.address).collect(), ..observed };
        let (coarse, fine) = (plan(&scarce), plan(&Observed { coarseness: 1, ..scarce.clone() }));
        prop_assert!(coarse.change.reserve >= fine.change.reserve, "{:?} and {:?}", coarse, fine);
        prop_assert!(coarse.target >= fine.target && coarse.grows == fine.grows);
        prop_assert!(coarse.change.release.is_empty() || coarse.change.release == fine.change.release);
        // But for how many are reserved, and what waits to be given back, they are the same.
        let of_fine = Change {
            reserve: if fine.change.reserve > 0 { coarse.change.reserve } else { 0 },
            release: coarse.change.release.clone(),
            ..fine.change.clone()
        };
        prop_assert_eq!(&coarse.change, &of_fine);
        prop_assert!(coarse.change.is_empty() || !fine.change.is_empty());
    }
}
