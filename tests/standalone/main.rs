//! Vnetpool on VMs that belong to no cluster, and other software on a node, by packets. Needs root; makes its
//! own network namespaces, named after this process, and removes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

mod hazards;
mod listing;
mod runtimes;
mod stage;
mod supply;
mod typed;

use libtest_mimic::{Arguments, Failed, Trial};
use stage::Stage;

/// The trials of a function, by its name.
macro_rules! trials {
    ($($module:ident::$name:ident),* $(,)?) => { vec![$(trial(stringify!($name), $module::$name)),*] };
}

fn main() {
    let trials = trials![
        runtimes::a_bare_namespace_is_attached_and_every_path_holds,
        runtimes::a_container_of_podman_gets_an_address_and_every_path_holds,
        runtimes::a_namespace_given_an_address_by_cnitool_keeps_every_path,
        runtimes::containers_reach_the_metadata_service_unless_a_flag_closes_it,
        supply::an_address_that_leaves_the_nic_and_comes_back_stays_with_its_container,
        supply::containers_start_while_the_agent_is_down,
        runtimes::a_container_of_docker_is_attached_and_every_path_holds,
        hazards::an_address_that_another_program_puts_on_eth0_is_taken_off_and_reported,
        hazards::systemd_networkd_with_cloud_inits_configuration_does_not_cut_pods_off,
        hazards::a_removed_route_is_restored_and_reported,
        hazards::a_rewritten_mac_is_restored_and_reported,
        hazards::forwarding_turned_off_is_turned_on_and_reported,
        hazards::a_strict_reverse_path_filter_drops_nothing_of_a_pods,
        hazards::a_new_mtu_of_the_nodes_is_the_next_containers,
        hazards::an_iptables_policy_that_drops_is_named_and_opened_only_if_asked_for,
        hazards::a_policy_of_the_older_iptables_that_drops_is_named_and_opened_only_if_asked_for,
        hazards::a_firewall_of_nftables_that_rejects_is_named_and_opened_only_if_asked_for,
        hazards::a_flushed_ruleset_is_back_within_a_second_and_reported,
        hazards::an_idle_agent_sleeps,
        typed::the_documented_commands_for_a_plain_vm_work,
        listing::an_address_taken_off_a_nic_is_missed_within_a_minute,
        listing::a_node_whose_metadata_service_is_closed_goes_on_without_a_report,
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, run: fn(&mut Stage) -> anyhow::Result<()>) -> Trial {
    Trial::test(name, move || {
        let failed = |error: anyhow::Error| Failed::from(format!("{error:#}"));
        run(&mut Stage::set().map_err(failed)?).map_err(failed)
    })
}
