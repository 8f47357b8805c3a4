//! The model check of giving an address back: the model's world ([`vnetpool_model`]) through every
//! interleaving there is within bounds.
//!
//! One test has trouble of every kind: each single fault, at any moment, beside halved ADDs, slow NICs and
//! garbage collection; nightly any two of them, in any order, which are more than ten million states.
//!
//! Every rule of the protocol can be left out ([`Broken`]), in the modelled part only, and each then does
//! harm: that is what the second half of the tests shows, and that the model would notice. Run with
//! `--nocapture` for the sizes and the ways to each harm.
//!
//! Beside it stand the models of attachments ([`attach`]) and of others' changes of a NIC ([`others`]). And
//! the traces that `conduct` replays are checked here for what they have happen ([`traces`]).

#![allow(clippy::unwrap_used)] // all of it is a test

mod attach;
mod others;
mod traces;

use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use vnetpool_model::Broken;
use vnetpool_model::protocol::{
    ALWAYS, COMES_AGAIN, GIVEN_BACK, GOOD_END, HANDED_OUT, NEVER_TWICE, NOT_CUT_OFF, NOT_EXPOSED, NOT_ROBBED,
    ON_THE_NIC, Protocol, REACHED,
};
use vnetpool_model::world::Faults;

/// How long an exploration may take. One that takes longer hasn't seen all.
const LONGEST: Duration = Duration::from_secs(45 * 60);

/// How many actions may be taken, each of which leads to a state, new or known: all that there are.
const ALL: usize = usize::MAX;

/// Explores breadth first, so that the way to a harm is a shortest one, until so many actions were taken, and
/// prints what it found.
fn explore<M>(title: &str, model: M, until: HasDiscoveries, actions: usize) -> impl Checker<M> + use<M>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let started = Instant::now();
    let checker = model.checker().threads(2).timeout(LONGEST).finish_when(until);
    let checker = checker.target_state_count(actions).spawn_bfs().join();
    let (states, took) = (checker.unique_state_count(), started.elapsed());
    println!(
        "{title}: {states} states, depth {}, {took:.1?}, {:.0} states a second",
        checker.max_depth(),
        states as f64 / took.as_secs_f64()
    );
    assert!(took < LONGEST, "{title}: there is more to see");
    for (property, path) in checker.discoveries() {
        println!("  {property}:");
        for action in path.into_actions() {
            println!("    {action:?}");
        }
    }
    checker
}

/// Finds that no invariant breaks, in every state there is; returns what else was found.
fn holds(title: &str, protocol: Protocol) -> impl Checker<Protocol> + use<> {
    holds_within(title, protocol, ALL)
}

/// The same of the states to which so many actions lead, the nearest first.
fn holds_within(title: &str, protocol: Protocol, actions: usize) -> impl Checker<Protocol> + use<> {
    let checker = explore(title, protocol, HasDiscoveries::AnyFailures, actions);
    for property in ALWAYS {
        checker.assert_no_discovery(property);
    }
    checker
}

/// Finds how a rule left out comes to break `property`.
fn fails(broken: Broken, property: &'static str, faults: Faults) {
    fails_in(property, Protocol { seen_versions: 2, ..Protocol::new(broken, faults) });
}

fn fails_in(property: &'static str, protocol: Protocol) {
    let title = format!("without a rule, {:?}", protocol.broken);
    let checker = explore(&title, protocol, HasDiscoveries::AnyOf([property].into()), ALL);
    assert!(checker.discovery(property).is_some(), "{title}: no harm within these bounds");
}

const NONE: Faults = Faults::NONE;

#[test]
fn an_address_that_comes_again_under_a_new_name_is_not_mistaken_for_the_old_one() {
    let faults = Faults { strangers: 1, pod_changes: 3, ..NONE };
    let checker = holds("comes again", Protocol::new(Broken::None, faults));
    // It does come again: the model gets all the way round.
    checker.assert_any_discovery(COMES_AGAIN);
}

#[test]
fn a_second_leader_while_the_first_goes_on_does_no_harm() {
    let faults = Faults { second_leaders: 1, lost_answers: 1, pod_changes: 1, ..NONE };
    holds("two leaders, less wanted", Protocol { seen_versions: 2, ..Protocol::new(Broken::None, faults) });
    holds(
        "two leaders, more wanted",
        Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) },
    );
}

#[test]
fn writes_that_fail_or_whose_answers_are_lost_and_operators_that_die_do_no_harm() {
    let faults = Faults { lost_answers: 1, failed_writes: 1, operator_deaths: 1, pod_changes: 2, ..NONE };
    holds("writes", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) });
}

#[test]
fn an_agent_that_crashes_and_a_ledger_that_is_lost_do_no_harm() {
    let faults = Faults { agent_crashes: 1, wipes: 1, broken_dels: 1, pod_changes: 2, ..NONE };
    holds("wiped", Protocol { seen_versions: 2, ..Protocol::new(Broken::None, faults) });
}

#[test]
fn a_node_that_lacks_its_rules_gets_no_pods_meanwhile_and_loses_nothing() {
    let faults = Faults { lost_rules: 1, wipes: 1, pod_changes: 2, ..NONE };
    holds("without rules", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) });
    fails(Broken::BuildsAsIfRuled, NOT_EXPOSED, faults);
}

/// The runtime may repeat an ADD for the same sandbox.
#[test]
fn an_add_whose_predecessor_has_died_waits_for_the_nodes_rules_too() {
    let faults = Faults { lost_rules: 1, broken_adds: 1, pod_changes: 1, ..NONE };
    let split = Protocol { pods: 1, splits_adds: true, ..Protocol::new(Broken::None, faults) };
    holds("dies without rules", split);
}

/// As when the pool of a node goes whose kernel is too old: no process waits for rules that never come.
#[test]
fn a_node_that_lacks_its_rules_for_good_gives_back_unassigned_addresses() {
    let faults = Faults { lost_rules: 1, lost_answers: 1, pod_changes: 2, ..NONE };
    holds("without rules for good", Protocol { seen_versions: 2, ..Protocol::new(Broken::None, faults) });
    fails(Broken::KeepsAllWithoutRules, GIVEN_BACK, faults);
}

#[test]
fn a_node_that_boots_does_no_harm() {
    let faults = Faults { reboots: 1, pod_changes: 2, ..NONE };
    holds("booted", Protocol { pods: 1, ..Protocol::new(Broken::None, faults) });
    let during_a_write = Faults { lost_answers: 1, pod_changes: 1, ..faults };
    holds(
        "booted during a write",
        Protocol { seen_versions: 2, ..Protocol::new(Broken::None, during_a_write) },
    );
}

#[test]
fn an_object_deleted_by_hand_does_no_harm() {
    let faults = Faults { deletions: 1, pod_changes: 2, ..NONE };
    holds("deleted", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) });
}

/// With the object goes the list of relinquished addresses, and a ledger may be built anew without it. So the
/// listed addresses leave the NIC first: an earlier release that is still on its way then comes too late to
/// do harm.
#[test]
fn a_release_under_way_when_the_object_is_deleted_and_the_ledger_is_lost_does_no_harm() {
    let faults = Faults { deletions: 1, wipes: 1, lost_answers: 1, pod_changes: 1, ..NONE };
    let in_order = |broken| Protocol { pods: 1, seen_versions: 1, ..Protocol::new(broken, faults) };
    holds("deleted during a release", in_order(Broken::None));
    fails_in(HANDED_OUT, in_order(Broken::ForgetsReleasesUnderWay));
}

/// A ledger recognizes a stale view by the generation, which starts anew with the object; the agent by the
/// version, which doesn't.
#[test]
fn a_late_view_of_a_deleted_object_is_not_taken_for_news_of_its_successor() {
    let faults = Faults { deletions: 1, wipes: 1, pod_changes: 1, ..NONE };
    let late = |broken| Protocol { pods: 1, seen_versions: 4, ..Protocol::new(broken, faults) };
    holds("deleted, seen late", late(Broken::None));
    fails_in(HANDED_OUT, Protocol { seen_versions: 6, ..late(Broken::AcceptsOldVersions) });
}

#[test]
fn an_operator_that_releases_a_merely_free_address_takes_it_from_a_pod() {
    fails(Broken::ReleasesTheMerelyFree, ON_THE_NIC, Faults { pod_changes: 2, ..NONE });
}

#[test]
fn an_agent_that_reports_before_it_relinquishes_loses_an_address_under_a_pod() {
    fails(Broken::ReportsBeforeRelinquishing, ON_THE_NIC, Faults { pod_changes: 2, ..NONE });
}

#[test]
fn a_ledger_rebuilt_without_the_relinquished_names_assigns_them_again() {
    fails(Broken::ForgetsWhatWasRelinquished, HANDED_OUT, Faults { wipes: 1, pod_changes: 2, ..NONE });
}

#[test]
fn a_ledger_that_takes_stale_generations_assigns_gone_addresses() {
    let faults = Faults { pod_changes: 1, ..NONE };
    fails_in(
        HANDED_OUT,
        Protocol { seen_versions: 6, ..Protocol::new(Broken::AcceptsStaleGenerations, faults) },
    );
}

/// A plain boot does no harm without this rule, as long as no other client changes the NIC. But an object
/// that was deleted by hand is made again with a `spec` of unknown age and without the relinquished names.
#[test]
fn a_ledger_that_takes_a_spec_for_which_the_nic_was_not_read_assigns_gone_addresses() {
    let faults = Faults { deletions: 1, wipes: 1, pod_changes: 1, ..NONE };
    let in_order = |broken| Protocol { pods: 1, seen_versions: 1, ..Protocol::new(broken, faults) };
    holds("deleted and wiped, watched in order", in_order(Broken::None));
    fails_in(HANDED_OUT, in_order(Broken::AcceptsOtherBoot));
}

#[test]
fn names_used_twice_are_mistaken_for_each_other() {
    fails(Broken::ReusesNames, HANDED_OUT, Faults { pod_changes: 3, ..NONE });
}

#[test]
fn a_spec_applied_without_its_resource_version_brings_back_gone_addresses() {
    fails(Broken::PublishesUnguarded, HANDED_OUT, Faults { second_leaders: 1, pod_changes: 1, ..NONE });
}

#[test]
fn a_nic_write_without_its_etag_undoes_another() {
    fails(Broken::WritesUnconditionally, NOT_ROBBED, Faults { second_leaders: 1, pod_changes: 2, ..NONE });
}

#[test]
fn a_version_taken_after_the_read_guards_nothing() {
    fails(
        Broken::TakesTheVersionAfterTheRead,
        HANDED_OUT,
        Faults { second_leaders: 1, pod_changes: 1, ..NONE },
    );
}

#[test]
fn another_leaders_spec_overlooked_in_an_answer_leaves_a_stale_nic_in_use() {
    fails(Broken::OverlooksAnothersSpec, HANDED_OUT, Faults { second_leaders: 1, pod_changes: 2, ..NONE });
}

/// A report that the API server has held back lands long after its agent has given it up. Its relinquished
/// names are of a ledger that is no more, and the new one may have them free.
#[test]
fn a_report_that_lands_after_the_ledger_was_lost_and_built_anew_does_no_harm() {
    let wiped = Faults { late_reports: 1, wipes: 1, pod_changes: 1, ..NONE };
    let booted = Faults { late_reports: 1, reboots: 1, pod_changes: 1, ..NONE };
    holds("late, wiped", Protocol { seen_versions: 2, ..Protocol::new(Broken::None, wiped) });
    holds("late, booted", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, booted) });
    fails(Broken::ReportsOnAnyVersion, HANDED_OUT, wiped);
    fails(Broken::BuildsUnannounced, HANDED_OUT, wiped);
}

/// The lock of its sandbox keeps the agent and a DEL out between the halves, and ends with its process.
#[test]
fn an_add_that_stands_still_or_dies_between_its_halves_does_no_harm() {
    let faults = Faults { broken_adds: 1, wipes: 1, pod_changes: 2, ..NONE };
    let split =
        |broken| Protocol { pods: 0, seen_versions: 1, splits_adds: true, ..Protocol::new(broken, faults) };
    holds("an ADD in halves", split(Broken::None));
    for broken in [Broken::BuildsDuringAVerb, Broken::SweepsDuringAVerb, Broken::OverlooksALostLock] {
        fails_in(NEVER_TWICE, split(broken));
    }
}

/// A NIC that is Updating, or Failed, is seen as such.
#[test]
fn a_nic_write_that_takes_its_time_or_is_given_up_by_azure_does_no_harm() {
    let faults = Faults { late_failures: 1, pod_changes: 2, ..NONE };
    let slow =
        |broken| Protocol { pods: 1, seen_versions: 2, splits_writes: true, ..Protocol::new(broken, faults) };
    holds("a slow NIC", slow(Broken::None));
    let lost = Faults { lost_answers: 1, operator_deaths: 1, pod_changes: 1, ..faults };
    holds("a slow NIC, whose answers are lost", Protocol { faults: lost, ..slow(Broken::None) });
    fails_in(REACHED, slow(Broken::PublishesTheUnfinished));
    fails_in(GOOD_END, slow(Broken::NeverRepairs));
}

#[test]
fn an_api_server_whose_answers_are_lost_or_that_holds_conditions_back_does_no_harm() {
    let faults = Faults { lost_publications: 1, operator_deaths: 1, pod_changes: 2, ..NONE };
    holds("no answer", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) });
    let twice = Faults { lost_publications: 2, second_leaders: 1, pod_changes: 1, ..NONE };
    holds("no answers", Protocol { pods: 1, seen_versions: 1, ..Protocol::new(Broken::None, twice) });
}

#[test]
fn a_collection_of_garbage_takes_what_is_left_and_nothing_of_a_pod_that_has_come_since() {
    let faults = Faults { collections: 1, broken_dels: 1, wipes: 1, pod_changes: 2, ..NONE };
    let collected = |broken| Protocol { pods: 1, seen_versions: 1, ..Protocol::new(broken, faults) };
    holds("collected", collected(Broken::None));
    fails_in(NOT_CUT_OFF, collected(Broken::CollectsWhatCameSince));
}

/// Of two addresses, where pods use one of them.
#[test]
fn a_block_goes_back_only_when_no_pod_uses_any_of_it() {
    let faults = Faults { wipes: 1, lost_answers: 1, pod_changes: 2, ..NONE };
    let blocks = |broken| Protocol { seen_versions: 2, grain: 2, ..Protocol::new(broken, faults) };
    holds("blocks", blocks(Broken::None));
    let one = Faults { pod_changes: 1, ..NONE };
    fails_in(ON_THE_NIC, Protocol { faults: one, ..blocks(Broken::GivesUpPartsOfBlocks) });
}

/// How many states the nightly exploration is to see, and the actions that it takes for them. The whole would
/// need more memory than a machine of 24 GB has.
const MANY: usize = 10_000_000;
const ACTIONS: usize = 40_000_000;

/// Each fault that another test has by itself, and nightly each two, in any order and at any moment.
#[test]
fn trouble_of_every_kind_at_once_does_no_harm() {
    let is_nightly = std::env::var_os("NIGHTLY").is_some();
    let faults = Faults {
        failed_writes: 1,
        lost_answers: 1,
        operator_deaths: 1,
        second_leaders: 1,
        agent_crashes: 1,
        wipes: 1,
        reboots: 1,
        broken_dels: 1,
        lost_rules: 1,
        deletions: 1,
        strangers: 1,
        late_reports: 1,
        broken_adds: 1,
        late_failures: 1,
        lost_publications: 1,
        collections: 1,
        pod_changes: 1,
    };
    let every = Protocol {
        pods: 1,
        at_once: if is_nightly { 2 } else { 1 },
        seen_versions: 1,
        splits_adds: true,
        splits_writes: true,
        ..Protocol::new(Broken::None, faults)
    };
    let checker = holds_within("trouble of every kind", every, if is_nightly { ACTIONS } else { ALL });
    let states = checker.unique_state_count();
    assert!(!is_nightly || states >= MANY, "{states} states");
}
