//! The real API server's answers about our kinds (accepted, refused, shown), the rights to write them, and
//! the chart's output.

mod chart;
mod installation;
mod monitoring;
mod pools;
mod shown;
mod values;
mod writers;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::{Arc, OnceLock};
use vnetpool_tests::control_plane::ControlPlane;

/// Comes up with the first test that needs it.
type Shared = Arc<OnceLock<Result<ControlPlane, String>>>;
type Test = Box<dyn FnOnce(&ControlPlane) -> Result<()> + Send>;

fn main() {
    let arguments = Arguments::from_args();
    let shared = Shared::default();
    let trial = |name: String, test: Test| {
        let shared = shared.clone();
        Trial::test(name, move || {
            let plane =
                shared.get_or_init(|| ControlPlane::up("admission").map_err(|error| format!("{error:#}")));
            let plane = plane.as_ref().map_err(Failed::from)?;
            test(plane).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    macro_rules! on_the_server {
        ($($test:path),* $(,)?) => { vec![$(trial(stringify!($test).replace(' ', ""), Box::new($test))),*] };
    }
    macro_rules! alone {
        ($($test:path),* $(,)?) => {
            [$(Trial::test(stringify!($test).replace(' ', ""), || {
                $test().map_err(|error| Failed::from(format!("{error:#}")))
            })),*]
        };
    }
    let mut trials = on_the_server![
        pools::an_empty_spec_gets_the_documented_defaults,
        pools::a_mode_can_not_be_changed,
        pools::a_pod_cidr_in_use_can_not_be_changed,
        pools::an_unknown_field_is_refused_by_its_name,
        pools::every_example_applies,
        installation::the_server_is_of_the_kubernetes_that_the_tests_are_to_have,
        installation::the_hook_brings_older_definitions_up_to_date,
        shown::explain_shows_the_meaning_of_each_field,
        shown::a_pool_is_shown_in_the_promised_columns,
        shown::an_allocation_is_shown_in_the_promised_columns,
        writers::an_agent_writes_the_status_of_its_own_node,
        writers::an_agent_does_not_write_the_status_of_another_node,
        writers::an_agent_without_a_node_in_its_token_writes_nothing,
        writers::an_agent_does_not_touch_the_operators_conditions,
        writers::an_agent_takes_off_what_the_agent_of_a_later_release_has_added,
        writers::an_agent_can_not_report_contradictory_or_invalid_values,
        writers::an_agent_writes_no_spec,
        writers::an_agent_with_more_rights_than_it_should_have_still_writes_no_spec,
        writers::only_the_operator_writes_a_spec,
        writers::a_record_whose_operator_is_gone_ends_by_the_documented_command,
        writers::the_operator_writes_spec_and_conditions,
        writers::of_a_node_the_operator_changes_its_own_taint_and_nothing_else,
        writers::the_rights_are_the_least_that_do,
        installation::the_notes_warn_of_an_identity_that_every_process_of_a_node_can_use,
        installation::a_plain_default_pool_is_applied_again_and_again_and_an_edit_survives,
        installation::the_documented_step_keeps_another_network_on_the_nodes_there_were,
        installation::a_persons_pool_survives_upgrade_rollback_and_a_new_installation,
    ];
    for case in pools::REFUSED {
        let name = format!("pools::{}_is_refused", case.what.replace(' ', "_"));
        trials.push(trial(name, Box::new(|plane| pools::refused(plane, case))));
    }
    for case in pools::ACCEPTED {
        let name = format!("pools::{}_is_accepted", case.what.replace(' ', "_"));
        trials.push(trial(name, Box::new(|plane| pools::accepted(plane, case))));
    }
    trials.extend(alone![
        chart::each_template_is_one_object,
        chart::no_template_owns_a_custom_resource_definition,
        chart::programs_that_must_run_first_need_no_pod_network,
        chart::the_agents_of_an_uninstall_clean_all_nodes_at_once,
        chart::every_pod_runs_only_on_the_architectures_of_the_images,
        chart::a_node_selector_that_no_image_runs_on_is_refused_with_what_to_give,
        chart::every_object_has_the_labels_that_the_values_give_and_keeps_its_own,
        chart::two_operators_never_share_a_node_and_can_still_be_replaced,
        chart::the_agent_runs_everywhere_but_on_virtual_nodes_and_is_never_throttled,
        values::the_programs_know_the_settings_they_are_given,
        values::each_identity_gets_its_settings_and_the_chart_names_missing_ones,
        values::a_share_of_azures_limits_beyond_reason_is_refused,
        values::an_unknown_value_is_refused,
        values::a_map_that_is_null_is_empty_or_refused_by_its_name,
        values::an_installation_without_a_registry_is_refused_with_the_value_to_set,
        chart::the_chart_sets_fields_a_cluster_demands_of_all_pods,
        chart::every_pod_has_the_secrets_for_its_registry_those_of_a_parent_chart_too,
        chart::a_parent_chart_switches_it_on_and_off_by_its_condition,
        chart::what_artifact_hub_reads_of_the_chart_names_its_kinds,
        chart::the_hook_and_the_operator_tolerate_the_values_taints,
        chart::replicas_are_spread_over_zones_and_no_affinity_puts_two_on_a_node,
        chart::the_folders_of_cni_are_those_of_the_values,
        chart::further_plugins_reach_the_agent_and_ours_are_refused_as_such,
        chart::only_the_node_sees_metrics_unless_the_values_expose_them,
        chart::the_agent_has_these_capabilities_and_no_other,
        monitoring::every_alert_fires_when_it_should_and_only_then,
        monitoring::nothing_of_the_prometheus_operator_is_rendered_unless_it_is_asked_for,
        monitoring::the_prometheus_operators_own_types_know_each_field_of_its_objects,
        monitoring::a_pod_monitor_selects_the_pods_of_its_program_and_names_a_port_that_they_have,
        monitoring::every_alert_leads_to_its_runbook,
        monitoring::an_alert_has_no_runbook_that_is_no_url,
        monitoring::every_dashboard_is_grafanas_json_with_a_panel_for_each_query,
    ]);
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(shared);
    conclusion.exit()
}
