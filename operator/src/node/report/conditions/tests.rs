//! The conditions in each situation that a user asks about.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use vnetpool_crds::NodeIPPool;
use vnetpool_crds::allocation::Interface;
use vnetpool_crds::pool::Sizing;
use vnetpool_crds::reason::Reason;

use super::*;
use crate::azure::{Error, IpConfiguration, ProvisioningState};
use crate::node::policy;
use crate::planner::{self, Observed};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// A node of pool `p` in boot `b`, its agent up to date.
struct Story {
    allocation: NodeIPAllocation,
    seen: Option<Seen>,
    setback: Option<Setback>,
    dry_run: bool,
    pause: Option<Pause>,
    is_updating: bool,
    is_settled: bool,
    behind_for: Duration,
    networkless: Option<&'static str>,
    beside: Option<&'static str>,
    surplus_for: Duration,
}

fn story(held: u32, bound: u32, maximum: u32, status: Value) -> Story {
    let mut allocation: NodeIPAllocation = serde_json::from_value(json!({
        "metadata": {"name": "n", "generation": 3},
        "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "bootID": "b",
            "interfaces": [{"id": "/nic", "mac": "", "primaryAddress": "10.0.0.4", "subnet": {"id": "/subnet"}}]},
        "status": {"observedGeneration": 3, "bootID": "b"}
    }))
    .unwrap();
    let mut merged = serde_json::to_value(&allocation.status).unwrap();
    merged.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
    allocation.status = serde_json::from_value(merged).unwrap();
    let sizing = Sizing { minimum: 8.min(maximum), warm: 8, maximum, batch: 4, ..Sizing::default() };
    let held = (0..held).map(|n| IpConfiguration {
        name: format!("vnp-{n}"),
        address: Some(format!("10.0.1.{n}/32").parse().unwrap()),
        state: ProvisioningState::Succeeded,
        attached: Default::default(),
    });
    let observed =
        Observed { sizing: Some(sizing), held: held.collect(), ..planner::tests::observed(0, bound) };
    let seen = Seen {
        pool: Some(Arc::new(NodeIPPool::new("p", serde_json::from_value(json!({})).unwrap()))),
        pool_change: None,
        nic: Some(Interface { id: "/nic".into(), ..Default::default() }),
        obstacle: None,
        snat_exclusions: vec![],
        backend: Default::default(),
        primary_nic: None,
        elsewhere: 0,
        observed,
        is_read: true,
        is_held_back: false,
        adoption: None,
        grouping: Default::default(),
        left: vec![],
        has_vanished: false,
        is_taken_off: false,
        reported_by: None,
    };
    Story {
        allocation,
        seen: Some(seen),
        setback: None,
        dry_run: false,
        pause: None,
        is_updating: false,
        is_settled: false,
        behind_for: Duration::ZERO,
        surplus_for: Duration::ZERO,
        networkless: None,
        beside: None,
    }
}

impl Story {
    fn failed(self, stage: Stage, error: Error) -> Story {
        Story { setback: Some(Setback::after(None, stage, &error, Instant::now())), ..self }
    }

    fn conditions(&self) -> Vec<Condition> {
        let plan = self.seen.as_ref().map(|seen| planner::plan(&seen.observed));
        let (plan, rehearsal) = match plan.filter(|_| self.dry_run).map(|plan| plan.rehearse(1)) {
            Some((plan, rehearsal)) => (Some(plan), Some(rehearsal)),
            None => (self.seen.as_ref().map(|seen| planner::plan(&seen.observed)), None),
        };
        let facts = Facts {
            allocation: &self.allocation,
            boot_id: "b",
            seen: self.seen.as_ref(),
            plan: plan.as_ref(),
            grace: Duration::from_secs(900),
            dry_run: self.dry_run,
            is_updating: self.is_updating,
            is_settled: self.is_settled,
            pause: self.pause.as_ref(),
            rehearsal: rehearsal.as_ref(),
            setback: self.setback.as_ref(),
            lacking: None,
            beside: self.beside.map(str::to_owned),
            writing: false,
            tracked: None,
            grouped: None,
            attached: None,
            outlived: None,
            missing: None,
            taken_off: None,
            behind_for: self.behind_for,
            networkless: self.networkless,
            surplus_for: self.surplus_for,
        };
        conditions(&facts, NOW)
    }

    /// `True Reason` or `False Reason`, and the message.
    fn reported(&self, type_: Type) -> (String, String) {
        let conditions = self.conditions();
        let one = condition::find(&conditions, type_).unwrap();
        (format!("{} {}", one.status, one.reason), one.message.clone())
    }
}

fn denied() -> Error {
    Error::Denied {
        action: "Microsoft.Network/networkInterfaces/write".into(),
        scope: "/nic".into(),
        message: "no".into(),
    }
}

fn full_subnet() -> Error {
    Error::SubnetFull { subnet: "small".into(), resource: "/nic".into(), message: "full".into() }
}

#[test]
fn a_node_whose_other_nics_are_not_shown_is_served_and_reports_why() {
    let served = story(8, 0, 255, json!({"held": 8, "free": 8}));
    let story = Story { beside: Some("not all are shown"), ..served };
    let found = story.reported(INTERFACE_FOUND);
    assert_eq!(found, ("True Found".into(), "/nic in /subnet; not all are shown".into()));
    assert_eq!(story.reported(READY).0, "True Ready");
}

#[test]
fn the_clock_of_the_grace_stands_in_the_condition_and_begins_anew_with_another_reason() {
    let mut story = story(1, 1, 8, json!({}));
    let at = |second| Timestamp::from_second(second).unwrap();
    let invalid = Verdict::no(Reason::SelectorInvalid, "").condition(SELECTED, None, NOW);
    story.allocation.status.get_or_insert_default().conditions.push(invalid);
    let held = json!([{"name": "vnp-1", "address": "10.0.1.1/32"}]);
    story.allocation.spec.interfaces[0].ip_configurations = serde_json::from_value(held).unwrap();
    for second in [1000, 1500] {
        let (grace, now) = (Duration::from_secs(900), at(second));
        let allocation = &story.allocation;
        let change = policy::decide(policy::Facts {
            allocation,
            selected: None,
            last: None,
            is_paused: false,
            grace,
            now,
        });
        story.seen.as_mut().unwrap().pool_change = change.change;
        let conditions = story.conditions();
        let selected = condition::find(&conditions, SELECTED).unwrap();
        assert_eq!((selected.reason.as_str(), selected.last_transition_time.0), ("NoPool", at(1000)));
        story.allocation.status.get_or_insert_default().conditions = conditions;
    }
}

#[test]
fn a_subnet_without_a_free_block_is_reported_with_its_remedy() {
    let mut story = story(0, 4, 255, json!({})).failed(Stage::Growth, full_subnet());
    assert!(!story.reported(RESERVED).1.contains("in a row"));
    story.seen.as_mut().unwrap().observed.grain = 16;
    let (reserved, message) = story.reported(RESERVED);
    assert_eq!(reserved, "False SubnetFull");
    assert!(message.contains("16 free addresses in a row") && message.contains("mode Address"), "{message}");
    assert!(!message.contains("  "), "{message}");
}

#[test]
fn a_node_with_enough_addresses_is_ready_with_no_counts_in_the_message() {
    let (ready, message) = story(8, 0, 255, json!({"held": 8, "free": 8})).reported(READY);
    assert_eq!(ready, "True Ready");
    assert_eq!(message, "the node holds what its pool asks for, and its agent reports");
    let conditions = story(8, 0, 255, json!({"held": 8, "assigned": 1, "free": 7})).conditions();
    assert!(condition::same(&conditions, &story(8, 0, 255, json!({"held": 8, "free": 8})).conditions()));
}

#[test]
fn a_node_that_grows_is_not_ready_yet() {
    let story = story(8, 40, 255, json!({}));
    assert_eq!(story.reported(RESERVED).0, "False Reserving");
    assert_eq!(story.reported(READY).0, "False Reserving");
    assert_eq!(story.reported(FULL).0, "False NotFull");
}

#[test]
fn a_denied_write_names_cause_and_remedy_and_fills_the_node() {
    let story = story(8, 40, 255, json!({"assigned": 8})).failed(Stage::Write, denied());
    let (reserved, message) = story.reported(RESERVED);
    assert_eq!(reserved, "False PermissionDenied");
    assert!(message.contains("networkInterfaces/write") && message.contains("Grant"));
    assert_eq!(story.reported(READY).0, "False PermissionDenied");
    assert_eq!(story.reported(FULL).0, "True PermissionDenied");
}

#[test]
fn a_node_with_a_free_address_is_not_full_though_its_subnet_is() {
    let story = story(8, 4, 255, json!({"assigned": 4, "free": 4})).failed(Stage::Growth, full_subnet());
    assert_eq!(story.reported(RESERVED).0, "False SubnetFull");
    assert_eq!(story.reported(FULL).0, "False NotFull");
}

#[test]
fn a_node_at_its_pools_maximum_names_the_field_to_raise() {
    let story = story(8, 12, 8, json!({"assigned": 8}));
    let (reserved, message) = story.reported(RESERVED);
    assert_eq!(reserved, "False MaximumReached");
    assert!(message.starts_with("pods lack an address: sizing.maximum of NodeIPPool p is 8"), "{message}");
    assert_eq!(story.reported(FULL).0, "True MaximumReached");
}

#[test]
fn a_node_exactly_as_full_as_it_may_be_takes_no_more_pods_but_lacks_nothing() {
    let story = story(8, 8, 8, json!({"assigned": 8}));
    assert_eq!(story.reported(RESERVED).0, "True Reserved");
    assert_eq!(story.reported(FULL).0, "True MaximumReached");
}

#[test]
fn a_throttled_recheck_is_no_news_while_nothing_is_wanted() {
    let throttled = Error::Throttled {
        resource: "/nic".into(),
        message: "slow".into(),
        retry_after: Duration::from_secs(9),
        limit: azure::Limit::Arm,
    };
    let story = story(8, 0, 255, json!({})).failed(Stage::Find, throttled);
    assert_eq!(story.reported(READY).0, "True Ready");
}

#[test]
fn a_nic_that_is_gone_is_not_found() {
    let gone = Error::NotFound { resource: "/nic".into(), message: "gone".into() };
    let story = Story { seen: None, ..story(8, 0, 255, json!({})) }.failed(Stage::Find, gone);
    assert_eq!(story.reported(INTERFACE_FOUND).0, "False ResourceNotFound");
    assert_eq!(story.reported(READY).0, "False ResourceNotFound");
}

#[test]
fn an_obstacle_names_the_remedy_and_never_taints_the_node() {
    let mut story = story(0, 5, 255, json!({}));
    let seen = story.seen.as_mut().unwrap();
    seen.obstacle =
        Some(Obstacle::Interface { reason: Reason::ProviderIDUnusable, message: "isn't Azure's".into() });
    (seen.nic, seen.observed.sizing) = (None, None);
    story.allocation.spec.interfaces.clear();
    assert_eq!(story.reported(INTERFACE_FOUND), ("False ProviderIDUnusable".into(), "isn't Azure's".into()));
    assert_eq!(story.reported(FULL).0, "False NotFull");
}

#[test]
fn a_silent_agent_is_named_at_once_and_a_slow_one_after_a_while() {
    let silent = story(8, 0, 255, json!({"observedGeneration": null}));
    assert_eq!(silent.reported(READY).0, "False NotReported");
    let reporting = json!([{"type": "AgentReporting", "status": "True", "reason": "Reporting", "message": "",
        "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
    let slow = story(8, 0, 255, json!({"observedGeneration": 2, "conditions": reporting}));
    assert_eq!(slow.reported(AGENT_REPORTING).0, "True Reporting");
    let slower = Story { behind_for: AGENT_GRACE, ..slow };
    assert_eq!(slower.reported(AGENT_REPORTING).0, "False Behind");
}

#[test]
fn a_false_condition_of_the_agent_makes_the_node_not_ready() {
    let wrong = |reason: &str| {
        let broken = json!([{"type": "RulesApplied", "status": "False", "reason": reason, "message": "no nftables",
            "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
        story(8, 0, 255, json!({"conditions": broken}))
    };
    let known = wrong("TableRefused");
    let (ready, message) = known.reported(READY);
    assert_eq!(ready, "False TableRefused");
    assert!(message.starts_with("RulesApplied: no nftables"));
    assert_eq!(condition::find(&known.conditions(), condition::RULES_APPLIED), None);
    // A reason that only an agent of another release knows.
    let (ready, message) = wrong("OfAnotherRelease").reported(READY);
    assert_eq!(ready, "False AgentComplains");
    assert!(message.starts_with("RulesApplied: no nftables"));
}

#[test]
fn a_runtime_that_does_not_use_our_configuration_is_named_with_the_values_to_set() {
    let elsewhere = Story { networkless: Some("cni plugin not initialized"), ..story(8, 0, 255, json!({})) };
    let (agent, message) = elsewhere.reported(AGENT_REPORTING);
    assert_eq!(agent, "False RuntimeReadsElsewhere");
    for part in ["node n", "cni plugin not initialized", "nodeAgent.cni.confDir"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(elsewhere.reported(READY).0, "False RuntimeReadsElsewhere");
}

#[test]
fn an_error_makes_one_event_however_often_it_repeats() {
    let story = story(8, 40, 255, json!({"free": 1})).failed(Stage::Growth, full_subnet());
    let next = story.conditions();
    let events = turned(&[], &next, story.setback.as_ref());
    assert_eq!(events.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(), ["SubnetFull"]);
    assert!(turned(&next, &next, story.setback.as_ref()).is_empty());
}

#[test]
fn a_node_without_a_pool_and_a_nic_has_one_event_of_that() {
    let mut story = story(0, 0, 255, json!({}));
    story.allocation.spec.interfaces.clear();
    let seen = story.seen.as_mut().unwrap();
    (seen.nic, seen.obstacle) = (None, Some(Obstacle::NoPool));
    let next = story.conditions();
    let found = condition::find(&next, INTERFACE_FOUND).unwrap();
    assert_eq!((found.status.as_str(), found.reason.as_str()), ("False", "NoPool"));
    let events = turned(&[], &next, None);
    assert_eq!(events.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(), ["NoPool"]);
}

#[test]
fn a_transient_error_makes_no_event() {
    let busy =
        Error::Busy { resource: "/nic".into(), message: "busy".into(), retry_after: Duration::from_secs(9) };
    let story = story(8, 40, 255, json!({"free": 1})).failed(Stage::Write, busy);
    assert_eq!(story.reported(RESERVED).0, "False ResourceBusy");
    assert!(turned(&[], &story.conditions(), story.setback.as_ref()).is_empty());
}

#[test]
fn a_dry_run_reports_its_plan_once_and_again_when_the_plan_changes() {
    let dry = |bound| Story { dry_run: true, ..story(0, bound, 255, json!({})) };
    let (status, message) = dry(0).reported(DRY_RUN);
    assert_eq!(status, "True WouldWrite");
    assert!(message.contains("would reserve 8 addresses on /nic"), "{message}");
    assert_eq!(dry(0).reported(RESERVED).0, "False DryRun");
    let (first, next) = (dry(0).conditions(), dry(9).conditions());
    let notes = |before: &[Condition], next: &[Condition]| {
        let events = turned(before, next, None);
        events.iter().map(|event| event.note.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(notes(&[], &first), [message]);
    assert!(notes(&first, &first).is_empty());
    assert!(notes(&first, &next)[0].contains("would reserve 20 addresses"));
}

#[test]
fn a_dry_run_with_nothing_to_do_is_reported_without_an_event() {
    let dry = Story { dry_run: true, ..story(8, 0, 255, json!({"free": 8})) };
    assert_eq!(dry.reported(DRY_RUN).0, "True NothingToDo");
    assert_eq!(dry.reported(RESERVED).0, "True Reserved");
    assert!(turned(&[], &dry.conditions(), None).is_empty());
}

#[test]
fn after_a_dry_run_nothing_of_it_is_left() {
    let rehearsed = json!([{"type": "DryRun", "status": "True", "reason": "WouldWrite", "message": "",
        "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
    let story = story(8, 0, 255, json!({"conditions": rehearsed}));
    assert_eq!(condition::find(&story.conditions(), DRY_RUN), None);
    // While it lasts, and Azure can't be read, the last report stands.
    let blind = Story { dry_run: true, seen: None, ..story };
    assert!(condition::find(&blind.conditions(), DRY_RUN).is_some());
}

#[test]
fn a_node_keeps_its_place_until_it_has_settled_and_its_agent_is_well() {
    let has_place = |story: &Story| condition::is_true(&story.conditions(), UPDATING);
    let mut story = Story { is_updating: true, ..story(8, 0, 255, json!({})) };
    assert!(has_place(&story), "it hasn't settled");
    story.is_settled = true;
    assert!(!has_place(&story));
    let complaint = json!({"conditions": [{"type": "RulesApplied", "status": "False", "reason": "KernelTooOld",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let ill = Story { is_updating: true, is_settled: true, ..self::story(8, 0, 255, complaint) };
    assert!(has_place(&ill), "its agent complains");
}
