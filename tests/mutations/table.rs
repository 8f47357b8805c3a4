//! The mutations: a rule of safety each, its place in the product, the code that replaces it, and the tests
//! that must notice.

use vnetpool_tests::overlay::Edit;

/// One edit of one place in the product's source.
pub struct Mutation {
    /// The rule that it leaves out, as the test's name.
    pub rule: &'static str,
    pub file: &'static str,
    /// Stands there once.
    pub from: &'static str,
    pub to: &'static str,
    /// The test program, as cargo's argument.
    pub program: &'static str,
    /// Its tests, at least one of which must fail.
    pub tests: &'static [&'static str],
}

impl Mutation {
    pub fn edit(&self) -> Edit {
        Edit { file: self.file, from: self.from, to: self.to }
    }
}

const UNITS: &str = "--lib";
const KERNEL: &str = "--test=kernel";
const AZURE: &str = "--test=azure";
/// It takes one name only.
const CONDUCT: &str = "--test=conduct";

const PLANNER: &str = "operator/src/planner.rs";
const NIC: &str = "operator/src/azure/nic.rs";
const LEADER: &str = "operator/src/leader.rs";
const LEDGER: &str = "node-agent/plugin/src/ledger.rs";
const FILE: &str = "node-agent/plugin/src/ledger/file.rs";
const PLUGIN: &str = "node-agent/plugin/src/plugin.rs";
const WIRE: &str = "node-agent/plugin/src/plugin/wire.rs";
const BRIDGE: &str = "node-agent/plugin/src/wiring/bridge.rs";
const NETLINK: &str = "node-agent/plugin/src/wiring/netlink.rs";
const REPORT: &str = "node-agent/src/report/publish.rs";
const SWEEP: &str = "node-agent/src/sweep.rs";

/// Those of one file stand together, so that least is compiled again.
pub const ALL: &[Mutation] = &[
    Mutation {
        rule: "the_operator_releases_only_what_the_agent_has_given_up",
        file: PLANNER,
        from: "partition(|one| relinquished.contains(&one.name));",
        to: "partition(|_| !relinquished.is_empty());",
        program: UNITS,
        tests: &["only_relinquished_addresses_are_ever_released"],
    },
    Mutation {
        rule: "a_surplus_is_given_back_only_when_it_has_lasted",
        file: PLANNER,
        from: "let target = if surplus_to_last.is_some() { kept } else { wanted };",
        to: "let target = wanted;",
        program: UNITS,
        tests: &["a_surplus_is_the_target_until_it_has_lasted"],
    },
    Mutation {
        rule: "an_address_that_azure_has_not_finished_is_not_published",
        file: PLANNER,
        from: ".filter(|one| one.state == ProvisioningState::Succeeded || shown.contains(&one.name))",
        to: ".filter(|_| true)",
        program: UNITS,
        tests: &["an_address_azure_has_not_finished_is_counted_but_not_published"],
    },
    Mutation {
        rule: "only_an_answer_of_the_agent_adopts",
        file: "operator/src/node/observe/adopt.rs",
        from: "let are_unused = is_answer && bound.is_subset(&assigned);",
        to: "let are_unused = bound.is_subset(&assigned);",
        program: UNITS,
        tests: &["who_is_asked_already_for_another_reason_is_asked_anew_once_something_was_found"],
    },
    Mutation {
        rule: "a_write_removes_nothing_of_others",
        file: NIC,
        from: "named.into_iter().find(|name| !name.starts_with(IP_CONFIGURATION_PREFIX))",
        to: "named.into_iter().find(|name| name.is_empty())",
        program: UNITS,
        tests: &["an_ip_configuration_of_others_is_neither_released_nor_reserved"],
    },
    Mutation {
        rule: "a_nic_is_written_only_as_it_was_read",
        file: "operator/src/azure/transport.rs",
        from: "if let Some(etag) = if_match {",
        to: "if let Some(etag) = if_match.filter(|etag| etag.is_empty()) {",
        program: AZURE,
        tests: &["a_race_with_another_writer_is_lost_once_and_then_won_without_undoing_theirs"],
    },
    Mutation {
        rule: "no_two_ip_configurations_ever_have_the_same_name",
        file: "operator/src/node/backend/nic.rs",
        from: "Uuid::new_v4().as_u64_pair().1",
        to: "Uuid::nil().as_u64_pair().1",
        program: UNITS,
        tests: &["names_are_ours_and_never_the_same"],
    },
    Mutation {
        rule: "a_spec_is_written_to_the_version_that_it_was_planned_from",
        file: "operator/src/node/publish.rs",
        from: "\"metadata\": {\"name\": name, \"resourceVersion\": version,",
        to: "\"metadata\": {\"name\": name, \"resourceVersion\": version.filter(|one| one.is_empty()),",
        program: UNITS,
        tests: &["a_spec_is_written_to_exactly_the_version_that_it_was_planned_from"],
    },
    Mutation {
        rule: "a_write_is_announced_before_it_is_sent",
        file: "operator/src/node.rs",
        from: "|write| announcement.before(write)",
        to: "|write| write",
        program: CONDUCT,
        tests: &["what_happens_in_a_trace_of_the_model_leads_the_programs_to_what_the_model_shows"],
    },
    Mutation {
        rule: "an_object_goes_only_when_the_nic_lacks_what_it_lists_as_relinquished",
        file: "operator/src/node/vacate.rs",
        from: "allocation.status.iter().flat_map(|status| status.relinquished.clone()).collect();",
        to: "allocation.status.iter().flat_map(|status| status.relinquished.clone()).take(0).collect();",
        program: CONDUCT,
        tests: &["an_object_deleted_during_a_release_is_made_again_once_the_nic_lacks_released_addresses"],
    },
    Mutation {
        rule: "a_leader_stops_before_another_may_start",
        file: LEADER,
        from: "const GIVE_UP: Duration = Duration::from_secs(12);",
        to: "const GIVE_UP: Duration = Duration::from_secs(20);",
        program: UNITS,
        tests: &["a_leader_that_can_not_renew_stops_before_another_may_start"],
    },
    Mutation {
        rule: "a_leader_that_was_paused_is_not_sure_to_lead",
        file: LEADER,
        from: "self.renewed().elapsed() < GIVE_UP",
        to: "self.renewed().elapsed() < GIVE_UP * 1000",
        program: UNITS,
        tests: &["a_leader_that_was_paused_for_longer_than_its_lease_is_not_sure_to_lead"],
    },
    Mutation {
        rule: "a_lease_that_was_set_back_ends_leading",
        file: LEADER,
        from: "found < self.newest",
        to: "found > self.newest && false",
        program: UNITS,
        tests: &["a_store_that_was_set_back_ends_leading_though_the_lease_still_names_us"],
    },
    Mutation {
        rule: "a_process_that_saw_the_store_go_back_believes_no_record",
        file: LEADER,
        from: "self.was_set_back |= is_back",
        to: "self.was_set_back &= is_back",
        program: UNITS,
        tests: &["a_standby_that_sees_the_store_set_back_begins_anew_and_remembers_it"],
    },
    Mutation {
        rule: "nobody_goes_by_an_edited_duration_of_the_lease",
        file: LEADER,
        from: "unchanged_since.elapsed() < LEASE",
        to: "unchanged_since.elapsed() < Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().max(0) as u64)",
        program: UNITS,
        tests: &["an_edited_duration_lets_nobody_lead_sooner_or_later_than_ours"],
    },
    Mutation {
        rule: "a_leader_whose_lease_has_expired_writes_nothing",
        file: "operator/src/writes.rs",
        from: "|| is_read || tenure.is_sure()",
        to: "|| true",
        program: UNITS,
        tests: &["a_leader_whose_lease_has_expired_or_is_lost_sends_no_write_of_any_kind"],
    },
    Mutation {
        rule: "a_relinquished_address_is_never_assigned_again",
        file: LEDGER,
        from: ".filter(|entry| !self.relinquished.contains(&entry.name))",
        to: ".filter(|_| true)",
        program: UNITS,
        tests: &["the_surplus_is_relinquished_oldest_first_and_never_handed_out_again"],
    },
    Mutation {
        rule: "a_late_view_of_the_spec_changes_nothing",
        file: LEDGER,
        from: "*object == self.object && *generation < self.generation",
        to: "*object == self.object && *generation < 0",
        program: UNITS,
        tests: &["a_late_view_of_the_spec_does_not_bring_a_forgotten_entry_back"],
    },
    Mutation {
        rule: "a_spec_of_another_boot_changes_nothing",
        file: LEDGER,
        from: "if *boot_id != self.boot_id {",
        to: "if false {",
        program: UNITS,
        tests: &["a_spec_of_another_boot_changes_nothing"],
    },
    Mutation {
        rule: "an_address_that_left_the_nic_under_its_pod_is_not_free_after_it",
        file: LEDGER,
        from: "true => State::Withdrawn { since: Some(now) },",
        to: "true => State::Free { since: Some(now) },",
        program: UNITS,
        tests: &["an_assigned_entry_gone_from_the_spec_is_kept_and_withdrawn_when_freed"],
    },
    Mutation {
        rule: "a_block_is_given_back_only_within_the_surplus",
        file: LEDGER,
        from: "if size <= surplus {",
        to: "if surplus > 0 {",
        program: UNITS,
        tests: &["a_block_is_not_given_back_if_less_than_the_target_would_be_left"],
    },
    Mutation {
        rule: "a_ledger_built_anew_knows_the_relinquished_names",
        file: LEDGER,
        from: "relinquished: relinquished.to_vec(),",
        to: "relinquished: relinquished[..0].to_vec(),",
        program: UNITS,
        tests: &["a_ledger_rebuilt_before_the_operator_has_seen_this_boot_keeps_relinquished_names"],
    },
    Mutation {
        rule: "a_ledger_built_anew_assigns_nothing_until_the_node_has_its_rules",
        file: LEDGER,
        from: "            is_ruled,\n            records: Vec::new(),",
        to: "            is_ruled: is_ruled || true,\n            records: Vec::new(),",
        program: UNITS,
        tests: &["a_ledger_built_without_the_nodes_rules_knows_the_holders_and_asks_for_no_pods"],
    },
    Mutation {
        rule: "a_sandbox_that_has_an_address_waits_for_the_nodes_rules_too",
        file: LEDGER,
        from: "if self.is_ruled\n            && let Some(address)",
        to: "if (self.is_ruled || true)\n            && let Some(address)",
        program: UNITS,
        tests: &["a_sandbox_whose_first_add_has_died_waits_for_the_nodes_rules_like_any_other"],
    },
    Mutation {
        rule: "an_add_whose_wait_for_the_rules_was_cancelled_wires_no_pod",
        file: LEDGER,
        from: ".filter(|_| self.is_ruled && !self.is_waiting(sandbox))",
        to: ".filter(|_| !self.is_waiting(sandbox))",
        program: UNITS,
        tests: &["a_sandbox_whose_first_add_has_died_waits_for_the_nodes_rules_like_any_other"],
    },
    Mutation {
        rule: "a_late_report_is_refused_by_its_version",
        file: REPORT,
        from: "\"resourceVersion\": metadata.resource_version }",
        to: "\"resourceVersion\": null }",
        program: UNITS,
        tests: &["a_report_is_written_to_exactly_the_object_and_version_that_were_read"],
    },
    Mutation {
        rule: "a_report_about_one_object_is_refused_by_its_successor",
        file: REPORT,
        from: "\"uid\": metadata.uid,",
        to: "\"uid\": null,",
        program: UNITS,
        tests: &["a_report_is_written_to_exactly_the_object_and_version_that_were_read"],
    },
    Mutation {
        rule: "an_address_cools_before_its_next_pod",
        file: "node-agent/plugin/src/ledger/choice.rs",
        from: "Some(since.map_or(0, |since| since.saturating_add(cooldown)))",
        to: "Some(since.map_or(0, |since| since.saturating_add(cooldown.min(0))))",
        program: UNITS,
        tests: &["a_cooling_address_is_not_free"],
    },
    Mutation {
        rule: "a_marked_address_goes_to_its_pod_only",
        file: "node-agent/plugin/src/ledger/record.rs",
        from: "self.attached_to().is_none_or(|uid| uid == pod_uid)",
        to: "self.attached_to().is_none_or(|uid| uid.len() >= pod_uid.len())",
        program: UNITS,
        tests: &["an_entry_with_an_attachment_is_for_its_pod_only_and_not_relinquished"],
    },
    Mutation {
        rule: "a_node_that_lacks_its_rules_assigns_nothing",
        file: LEDGER,
        from: "if self.is_ruled { Choice::at(&self.records, self.cooldown, now) } else { Choice::default() }",
        to: "Choice::at(&self.records, self.cooldown, now)",
        program: UNITS,
        tests: &["no_address_is_doubled_or_lost_under_any_sequence_of_events"],
    },
    Mutation {
        rule: "a_ledger_of_another_boot_is_none",
        file: FILE,
        from: "if ledger.boot_id != this_boot {",
        to: "if false && ledger.boot_id != this_boot {",
        program: KERNEL,
        tests: &["folder::a_ledger_rebuilt_from_a_broken_one"],
    },
    Mutation {
        rule: "a_ledger_is_replaced_as_a_whole",
        file: FILE,
        from: "fs::OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(&new)?;",
        to: "fs::OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(path)?; \
             fs::copy(path, &new)?;",
        program: KERNEL,
        tests: &["crashes::an_add_killed_before_any_of_its_system_calls_leaves_no_address"],
    },
    Mutation {
        rule: "gc_collects_its_own_network_only",
        file: PLUGIN,
        from: "tenant.network == network && duty.has_served(&tenant.proof)",
        to: "duty.has_served(&tenant.proof)",
        program: KERNEL,
        tests: &["verbs::gc_frees_addresses_of_its_own_network"],
    },
    Mutation {
        rule: "del_silences_a_pod_before_it_frees_its_address",
        file: WIRE,
        from: "let link = wiring::disconnect(sandbox, pod)?;",
        to: "let early = free_in_ledger(store, sandbox)?; let link = wiring::disconnect(sandbox, pod)?; \
             if early.is_some() { return Ok(Undone { address: early, is_found: link.is_some() }); }",
        program: KERNEL,
        tests: &["crashes::a_del_killed_before_any_of_its_system_calls_can_be_done_again"],
    },
    Mutation {
        rule: "del_removes_the_remains_of_a_killed_add",
        file: WIRE,
        from: "netns.map_or(Ok(()), |netns| wiring::delete_unfinished(netns, sandbox))?",
        to: "netns.map_or(Ok(()), |_| Ok::<(), wiring::Error>(())).inspect(|()| drop(sandbox))?",
        program: KERNEL,
        tests: &["crashes::the_pair_left_by_a_killed_add_goes_with_the_del"],
    },
    Mutation {
        rule: "an_add_whose_lock_was_removed_gives_its_address_back",
        file: WIRE,
        from: "if !lock.is_current() {",
        to: "if !lock.is_current() && false {",
        program: KERNEL,
        tests: &["crashes::an_add_whose_lock_file_was_removed_under_it"],
    },
    Mutation {
        rule: "an_address_behind_another_port_is_not_given_to_a_second_pod",
        file: NETLINK,
        from: "flags: NEW, body: Body::port_entry(port, address) }",
        to: "flags: NLM_F_CREATE | NLM_F_REPLACE, body: Body::port_entry(port, address) }",
        program: KERNEL,
        tests: &["bridge::an_add_without_its_bridge_is_to_be_retried"],
    },
    Mutation {
        rule: "a_ports_route_goes_with_its_pod",
        file: BRIDGE,
        from: "routes::remove(&mut netlink, address, bridge)?;",
        to: "let _ = routes::remove;",
        program: KERNEL,
        tests: &["crashes::a_del_killed_before_any_of_its_system_calls_leaves_the_bridge"],
    },
    Mutation {
        rule: "a_ledger_is_built_from_wired_addresses_first",
        file: "node-agent/src/agent/supply.rs",
        from: "let mut occupants = wiring::occupants()?;",
        to: "let mut occupants = wiring::occupants()?; occupants.clear();",
        program: KERNEL,
        tests: &["folder::a_ledger_rebuilt_from_a_broken_one"],
    },
    Mutation {
        rule: "nothing_is_swept_that_only_one_inspection_found_leaked",
        file: SWEEP,
        from: "let since = known.get(&suspect).copied().unwrap_or(now);",
        to: "let since = known.get(&suspect).copied().unwrap_or(0);",
        program: UNITS,
        tests: &["one_inspection_is_not_enough_however_late"],
    },
    Mutation {
        rule: "nothing_is_swept_that_a_verb_is_at_work_on",
        file: SWEEP,
        from: "let Some(_lock) = store.try_lock_sandbox(sandbox)? else { return Ok(false) };",
        to: "let _lock = store.try_lock_sandbox(sandbox)?;",
        program: KERNEL,
        tests: &["sweep::a_record_whose_pod_is_gone_is_freed_but_not_while_a_verb_is_at_work_on_it"],
    },
    Mutation {
        rule: "a_pod_sends_under_its_own_address_only",
        file: "node-agent/src/firewall.rs",
        from: "let spoofed = \"fib saddr . iif oif missing counter name \\\"spoofed\\\" drop\";",
        to: "let spoofed = \"fib saddr . iif oif missing counter name \\\"spoofed\\\"\";",
        program: KERNEL,
        tests: &["rules::a_pod_gets_nowhere_under_an_address_that_is_not_its_own"],
    },
    Mutation {
        rule: "a_nic_that_its_node_has_left_keeps_what_a_pod_reports_as_its_own",
        file: "operator/src/node/memory/left.rs",
        from: "&& !holds_any(nic, in_use)",
        to: "&& !(waits && holds_any(nic, in_use))",
        program: UNITS,
        tests: &["a_nic_that_its_node_has_left_keeps_what_a_pod_reports_as_its_own"],
    },
];
