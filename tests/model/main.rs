//! The model check of giving an address back: the real planner and the real ledger in a modelled world, through every
//! interleaving there is within bounds.

mod azure;
mod node;
mod operator;
mod protocol;
mod settle;
mod world;

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use protocol::{HANDED_OUT, NOT_ROBBED, ON_THE_NIC, Protocol};
use world::Faults;

/// A rule of the protocol that the model's glue (never the product) can leave out, to show that it is needed and that the
/// model would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    None,
    ReleasesTheMerelyFree,
    ReportsBeforeRelinquishing,
    ForgetsWhatWasRelinquished,
    AcceptsStaleGenerations,
    AcceptsOtherBoot,
    ReusesNames,
    PublishesUnguarded,
    WritesUnconditionally,
    TakesTheVersionAfterTheLook,
    OverlooksAnothersSpec,
}

fn explore(title: &str, protocol: Protocol, until: HasDiscoveries) -> impl Checker<Protocol> + use<> {
    let started = Instant::now();
    let checker = protocol.checker().threads(2).finish_when(until).spawn_bfs().join();
    println!(
        "{title}: {} states, depth {}, {:.1?}",
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed()
    );
    for (property, path) in checker.discoveries() {
        println!("  broken: {property}");
        for action in path.into_actions() {
            println!("    {action:?}");
        }
    }
    checker
}

fn holds(title: &str, protocol: Protocol) {
    explore(title, protocol, HasDiscoveries::AnyFailures).assert_properties();
}

/// Finds how a rule left out comes to break `property`.
fn fails(broken: Broken, property: &'static str, faults: Faults) {
    fails_in(property, Protocol { seen_versions: 2, ..Protocol::new(broken, faults) });
}

fn fails_in(property: &'static str, protocol: Protocol) {
    let title = format!("without a rule, {:?}", protocol.broken);
    let checker = explore(&title, protocol, HasDiscoveries::AnyOf([property].into()));
    assert!(checker.discovery(property).is_some(), "{title}: no harm within these bounds");
}

const NONE: Faults = Faults::NONE;

#[test]
fn a_second_leader_while_the_first_goes_on_does_no_harm() {
    let faults = Faults { second_leaders: 1, pod_changes: 2, ..NONE };
    holds("leaders", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) });
}

#[test]
fn writes_that_fail_or_whose_answers_are_lost_and_operators_that_die_do_no_harm() {
    let faults = Faults { lost_answers: 1, failed_writes: 1, operator_deaths: 1, pod_changes: 2, ..NONE };
    holds("writes", Protocol { pods: 1, ..Protocol::new(Broken::None, faults) });
}

#[test]
fn an_agent_that_crashes_and_a_ledger_that_is_lost_do_no_harm() {
    let faults = Faults { agent_crashes: 1, wipes: 1, broken_dels: 1, pod_changes: 2, ..NONE };
    holds("wiped", Protocol { seen_versions: 2, ..Protocol::new(Broken::None, faults) });
}

#[test]
fn a_node_that_boots_does_no_harm() {
    let faults = Faults { reboots: 1, lost_answers: 1, pod_changes: 2, ..NONE };
    holds("rebooted", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) });
}

#[test]
fn an_object_deleted_by_hand_does_no_harm() {
    let faults = Faults { deletions: 1, pod_changes: 2, ..NONE };
    holds("deleted", Protocol { pods: 1, seen_versions: 2, ..Protocol::new(Broken::None, faults) });
}

#[test]
fn an_object_deleted_by_hand_while_the_ledger_is_lost_does_no_harm() {
    let faults = Faults { deletions: 1, wipes: 1, pod_changes: 1, ..NONE };
    holds("deleted and wiped", Protocol { pods: 1, seen_versions: 6, ..Protocol::new(Broken::None, faults) });
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
fn a_ledger_rebuilt_without_what_was_relinquished_hands_it_out_again() {
    fails(Broken::ForgetsWhatWasRelinquished, HANDED_OUT, Faults { wipes: 1, pod_changes: 2, ..NONE });
}

#[test]
fn a_ledger_that_takes_stale_generations_hands_out_what_is_gone() {
    fails(Broken::AcceptsStaleGenerations, HANDED_OUT, Faults { pod_changes: 2, ..NONE });
}

#[test]
fn a_ledger_that_takes_the_spec_of_another_boot_hands_out_what_is_gone() {
    fails(
        Broken::AcceptsOtherBoot,
        HANDED_OUT,
        Faults { deletions: 1, wipes: 1, lost_answers: 1, pod_changes: 1, ..NONE },
    );
}

#[test]
fn names_used_twice_are_mistaken_for_each_other() {
    fails(Broken::ReusesNames, HANDED_OUT, Faults { pod_changes: 3, ..NONE });
}

#[test]
fn a_spec_applied_without_its_resource_version_brings_back_what_is_gone() {
    fails(Broken::PublishesUnguarded, HANDED_OUT, Faults { second_leaders: 1, pod_changes: 1, ..NONE });
}

#[test]
fn a_nic_write_without_its_etag_undoes_another() {
    fails(Broken::WritesUnconditionally, NOT_ROBBED, Faults { second_leaders: 1, pod_changes: 2, ..NONE });
}

#[test]
fn a_version_taken_after_the_look_guards_nothing() {
    fails(
        Broken::TakesTheVersionAfterTheLook,
        HANDED_OUT,
        Faults { second_leaders: 1, pod_changes: 1, ..NONE },
    );
}

#[test]
fn another_leaders_spec_overlooked_in_an_answer_leaves_a_stale_nic_in_use() {
    fails(Broken::OverlooksAnothersSpec, HANDED_OUT, Faults { second_leaders: 1, pod_changes: 2, ..NONE });
}

#[test]
fn known_limit_a_report_that_lands_after_a_rebuild_is_believed() {
    fails(Broken::None, HANDED_OUT, Faults { late_reports: 1, wipes: 1, pod_changes: 1, ..NONE });
}
