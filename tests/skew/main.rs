//! Two releases beside one another: this one and a later one, a step ahead in each format that crosses
//! programs or time (`vnetpool_tests::later`). Operator, agent and plugin are of either, on one real cluster,
//! while pods come and go on every node and a connection between pods of two nodes goes on from the first
//! chapter to the last. The chapters come one after the other, in any order.
//!
//! Building the later release takes minutes, so it comes with the first chapter, once.
//!
//! ```text
//!   connection  the one between pods of two nodes
//!   world       the cluster, and which release each program on it is of
//!   marks       by what a program has written: which release it is of
//!   traffic     what goes on all the while
//!   together    each mixture serves
//!   refused     what only the later release reads
//! ```

mod connection;
mod marks;
mod refused;
mod together;
mod traffic;
mod world;

use anyhow::Result;
use std::process::ExitCode;
use vnetpool_tests::chapters;
use vnetpool_tests::probe;
use world::World;

fn main() -> Result<ExitCode> {
    if let Some(probe) = probe::asked_for() {
        return probe;
    }
    let ended = chapters![
        World::make;
        together::an_upgrade_to_the_later_release_and_a_rollback_go_unnoticed,
        together::later_agents_go_on_with_our_operator,
        together::a_later_operator_goes_on_with_our_agents,
        together::a_later_plugin_goes_on_under_our_agent,
        together::our_plugin_goes_on_under_a_later_agent,
        refused::a_node_whose_ledger_only_the_later_release_reads_keeps_its_pods_and_the_later_plugin,
        refused::nodes_whose_spec_only_the_later_release_reads_go_on_with_their_addresses,
    ];
    world::end();
    ended
}
