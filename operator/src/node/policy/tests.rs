use super::*;
use crate::context::Waits;
use serde_json::{Value, json};
use vnetpool_crds::pool::Wiring;

const GRACE: Duration = Waits::FULL.grace;
const SUBNET: &str = "/s/subnets/nodes";

fn pool(name: &str, spec: Value) -> Option<Arc<NodeIPPool>> {
    Some(Arc::new(NodeIPPool::new(name, serde_json::from_value(spec).unwrap())))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A node that pool `p` has served, with a group and two addresses, after `change`.
fn served(change: Value) -> NodeIPAllocation {
    let mut spec = json!({
        "nodeUID": "u", "pool": "p", "cooldown": "7s", "target": 2, "sizing": {"minimum": 2, "warm": 1, "maximum": 9},
        "snatExclusions": ["10.0.0.0/8"],
        "interfaces": [{"id": "n", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": SUBNET},
            "applicationSecurityGroups": ["g"],
            "ipConfigurations": [{"name": "vnp-1", "address": "10.0.0.5/32"}, {"name": "vnp-2", "address": "10.0.0.6/32"}]}],
    });
    change.as_object().unwrap().iter().for_each(|(field, value)| spec[field] = value.clone());
    serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": spec})).unwrap()
}

fn reporting(allocation: NodeIPAllocation, second: i64) -> NodeIPAllocation {
    reporting_so(allocation, Reason::NoPool, second)
}

fn reporting_so(mut allocation: NodeIPAllocation, reason: Reason, second: i64) -> NodeIPAllocation {
    let condition = Verdict::no(reason, "").condition(SELECTED, None, at(second));
    allocation.status.get_or_insert_default().conditions.push(condition);
    allocation
}

fn decided(
    allocation: &NodeIPAllocation,
    selected: Option<Arc<NodeIPPool>>,
    last: Option<Arc<NodeIPPool>>,
    second: i64,
) -> Policy {
    decide(Facts { allocation, selected, last, is_paused: false, grace: GRACE, now: at(second) })
}

fn rest(policy: &Policy) -> Option<Rest> {
    policy.change.as_ref().map(|change| change.rest)
}

#[test]
fn the_policy_of_a_pool_that_is_gone_holds_for_the_grace_as_the_object_records_it() {
    let policy = decided(&served(json!({})), None, None, 100);
    assert_eq!(rest(&policy), Some(Rest::Lasts(GRACE)));
    let held = policy.pool.unwrap();
    assert_eq!((held.name_any().as_str(), held.spec.sizing.maximum, held.spec.sizing.warm), ("p", 9, 1));
    assert_eq!(held.spec.snat.non_masquerade_cidrs, ["10.0.0.0/8"]);
    assert_eq!(held.spec.application_security_groups.as_ref().unwrap().ids, ["g"]);
    // The clock is in the API: the next leader goes on with it.
    let allocation = reporting(served(json!({})), 100);
    assert_eq!(rest(&decided(&allocation, None, None, 999)), Some(Rest::Lasts(Duration::from_secs(1))));
    let over = decided(&allocation, None, None, 1000);
    assert_eq!((over.pool.is_none(), rest(&over)), (true, Some(Rest::Over)));
}

/// An operator whose clock was behind has begun the grace, or one whose clock is ahead goes on with it.
#[test]
fn a_clock_an_hour_off_ends_or_prolongs_the_grace_and_a_pool_made_again_serves_all_the_same() {
    let hour = 3600;
    let allocation = reporting(served(json!({})), 2 * hour);
    let (behind, ahead) =
        (decided(&allocation, None, None, hour), decided(&allocation, None, None, 3 * hour));
    assert_eq!(rest(&behind), Some(Rest::Lasts(GRACE)), "no longer than a grace from any moment on");
    assert_eq!((ahead.pool.is_none(), rest(&ahead)), (true, Some(Rest::Over)));
    let again = pool("p", json!({}));
    for second in [hour, 3 * hour] {
        let policy = decided(&allocation, again.clone(), again.clone(), second);
        assert_eq!(policy, Policy { pool: again.clone(), change: None });
    }
}

#[test]
fn a_pool_made_again_serves_at_once_and_one_that_selects_no_more_holds_as_it_stands() {
    let p = pool("p", json!({}));
    assert_eq!(
        decided(&served(json!({})), p.clone(), p.clone(), 0),
        Policy { pool: p.clone(), change: None }
    );
    let deselected = decided(&served(json!({})), None, p.clone(), 0);
    assert_eq!((deselected.pool == p, rest(&deselected)), (true, Some(Rest::Lasts(GRACE))));
    // Of another mode it isn't the same pool.
    let blocks = pool("p", json!({"mode": "Prefix"}));
    let held = decided(&served(json!({})), blocks.clone(), blocks, 0).pool.unwrap();
    assert_eq!(held.spec.mode, Mode::Address);
}

#[test]
fn a_pool_with_an_unreadable_selector_keeps_its_nodes_for_any_time() {
    let broken = pool("p", json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}));
    let allocation = reporting(served(json!({})), 0);
    for selected in [None, pool("default", json!({}))] {
        let policy = decided(&allocation, selected, broken.clone(), 1_000_000);
        assert_eq!((policy.pool == broken, rest(&policy)), (true, Some(Rest::Open)));
    }
}

#[test]
fn another_cause_has_a_grace_of_its_own() {
    let (p, other) = (pool("p", json!({})), pool("other", json!({})));
    // The selector was unreadable for days, then a person puts it right, to one that matches no node.
    let corrected = reporting_so(served(json!({})), Reason::SelectorInvalid, 0);
    for (selected, last) in [(None, p.clone()), (None, None), (other.clone(), p.clone())] {
        let policy = decided(&corrected, selected, last, 1_000_000);
        assert_eq!(rest(&policy), Some(Rest::Lasts(GRACE)));
        assert_eq!(policy.change.unwrap().since(), at(1_000_000));
    }
    let outweighed = reporting_so(served(json!({})), Reason::OtherPool, 0);
    assert_eq!(
        rest(&decided(&outweighed, other.clone(), p, 890)),
        Some(Rest::Lasts(GRACE - Duration::from_secs(890)))
    );
    assert_eq!(rest(&decided(&outweighed, None, None, 890)), Some(Rest::Lasts(GRACE)));
    // What no pool serves any more loses nothing to a new one.
    let unserved = reporting(served(json!({})), 0);
    let goes_over = decided(&unserved, other.clone(), None, 900);
    assert_eq!((goes_over.pool == other, rest(&goes_over)), (true, Some(Rest::Over)));
    assert_eq!(rest(&decided(&unserved, other, None, 899)), Some(Rest::Lasts(GRACE)));
}

#[test]
fn only_an_edit_of_nodes_addresses_or_wiring_is_rolled_out() {
    let same = json!({"sizing": {"minimum": 2, "warm": 1, "maximum": 9}, "applicationSecurityGroups":
        {"ids": ["G"], "onSharedNIC": true}});
    let follows = |change: Value, node: Value| {
        let mut spec = same.clone();
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        follows(&served(node).spec, &pool("p", spec).unwrap())
    };
    let none = json!({});
    assert!(follows(json!({}), none.clone()));
    for edit in [
        json!({"cooldown": "0s"}),
        json!({"podMetadataAccess": "All"}),
        json!({"snat": {"nonMasqueradeCIDRs": ["10.1.0.0/16"]}}),
        json!({"adopt": "Secondaries"}),
        json!({"subnetID": SUBNET.to_uppercase()}),
        json!({"applicationSecurityGroups": {"ids": ["g", "h"], "onSharedNIC": true}}),
    ] {
        assert!(follows(edit.clone(), none.clone()), "{edit}");
    }
    for edit in [
        json!({"sizing": {"minimum": 2, "warm": 1, "maximum": 8}}),
        json!({"wiring": "Bridge"}),
        json!({"subnetID": "/s/subnets/b"}),
        json!({"applicationSecurityGroups": {"ids": ["h"], "onSharedNIC": true}}),
        json!({"applicationSecurityGroups": {"ids": ["g"]}}),
        json!({"applicationSecurityGroups": null}),
    ] {
        assert!(!follows(edit.clone(), none.clone()), "{edit}");
        assert!(follows(edit.clone(), json!({"interfaces": []})), "{edit}: it has nothing");
    }
}

#[test]
fn a_waiting_node_keeps_the_fields_it_took_up_and_follows_its_pool_in_the_rest() {
    let edited = json!({"sizing": {"minimum": 5}, "wiring": "Bridge", "subnetID": "/s/subnets/b", "cooldown": "0s",
        "adopt": "Secondaries", "applicationSecurityGroups": {"ids": ["h"], "onSharedNIC": true}});
    let (node, edited) = (served(json!({})), pool("p", edited).unwrap());
    let held = held(&node.spec, Some(&edited));
    assert!(follows(&node.spec, &held) && !follows(&node.spec, &edited));
    assert_eq!((held.spec.sizing.minimum, held.spec.wiring, held.spec.subnet_id), (2, Wiring::Routed, None));
    assert_eq!((held.spec.adopt, held.spec.cooldown), (Adopt::Secondaries, edited.spec.cooldown));
    let none = self::held(&node.spec, None);
    assert!(follows(&node.spec, &none) && none.spec.adopt == Adopt::Nothing);
}

#[test]
fn a_node_is_needy_if_its_pods_exceed_its_sizing_and_the_edit_gives_more() {
    let needy = |bound: u32, edit: Value| {
        let demand = Demand { bound, ..Demand::default() };
        let groups = json!({"ids": ["g"], "onSharedNIC": true});
        let mut spec = json!({"applicationSecurityGroups": groups});
        spec.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
        is_needy(&served(json!({})).spec, &pool("p", spec).unwrap(), &demand)
    };
    let more = json!({"sizing": {"maximum": 20}});
    assert!(needy(10, more.clone()) && !needy(9, more.clone()));
    assert!(!needy(10, json!({"sizing": {"maximum": 8}})));
    assert!(!needy(10, json!({"sizing": {"maximum": 20}, "subnetID": "/s/subnets/b"})), "it would lose some");
}

#[test]
fn a_paused_node_stays_with_its_pool_though_another_selects_it() {
    let (p, other) = (pool("p", json!({})), pool("other", json!({})));
    let held = |last: Option<Arc<NodeIPPool>>| {
        let node = reporting(served(json!({})), 0);
        let now = at(1_000_000);
        decide(Facts { allocation: &node, selected: other.clone(), last, is_paused: true, grace: GRACE, now })
    };
    assert_eq!(held(p.clone()), Policy { pool: p, change: None });
    assert_eq!(held(None).pool.unwrap().spec.sizing.maximum, 9, "as the object has it");
}

#[test]
fn a_person_ends_the_grace_by_annotation() {
    let mut allocation = served(json!({}));
    allocation.annotations_mut().insert(names::RELEASE.into(), "true".into());
    let policy = decided(&allocation, None, pool("p", json!({})), 0);
    assert_eq!((policy.pool, policy.change.unwrap().rest), (None, Rest::Over));
}

#[test]
fn a_node_goes_over_at_once_to_a_pool_that_takes_nothing_from_it() {
    let groups = json!({"ids": ["G", "h"], "onSharedNIC": true});
    let kind = |spec: Value| pool("other", spec);
    let goes = |allocation: &NodeIPAllocation, other: Option<Arc<NodeIPPool>>| {
        decided(allocation, other, pool("p", json!({})), 0).change.is_none()
    };
    let node = served(json!({}));
    assert!(goes(&node, kind(json!({"applicationSecurityGroups": groups, "sizing": {"minimum": 0}}))));
    assert!(goes(
        &node,
        kind(json!({"applicationSecurityGroups": groups, "subnetID": SUBNET.to_uppercase()}))
    ));
    assert!(!goes(&node, kind(json!({}))), "it would leave a group");
    assert!(!goes(&node, kind(json!({"applicationSecurityGroups": {"ids": ["g"]}}))), "not on this NIC");
    assert!(!goes(&node, kind(json!({"applicationSecurityGroups": groups, "mode": "Prefix"}))));
    assert!(!goes(&node, kind(json!({"applicationSecurityGroups": groups, "subnetID": "/s/subnets/b"}))));
    assert!(goes(&served(json!({"interfaces": []})), kind(json!({"mode": "Prefix"}))), "it has nothing");
}

#[test]
fn a_range_goes_over_to_a_pool_that_it_is_part_of() {
    let interface = json!({"id": "n", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": SUBNET},
        "ipConfigurations": [{"name": "r", "address": "10.244.3.0/24"}]});
    let node = served(json!({"mode": "Route", "routeTableID": "T", "interfaces": [interface]}));
    let goes = |cidr: &str, length: u32, table: &str| {
        let route = json!({"podCIDR": cidr, "nodePrefixLength": length, "routeTableID": table});
        decided(&node, pool("other", json!({"mode": "Route", "route": route})), None, 0).change.is_none()
    };
    assert!(goes("10.244.0.0/16", 24, "t"));
    assert!(!goes("10.245.0.0/16", 24, "t") && !goes("10.244.0.0/16", 25, "t"));
    assert!(!goes("10.244.0.0/16", 24, "other"));
    let held = decided(&node, None, None, 0).pool.unwrap();
    assert_eq!(held.spec.route.as_ref().unwrap().pod_cidr, "10.244.3.0/24");
    assert_eq!(held.spec.grain(), 256);
}

#[test]
fn a_coming_change_of_pool_is_reported_with_its_time_and_both_remedies() {
    let verdict = |change: Option<Change>| change.unwrap().verdict("n1", "p", GRACE).message;
    let node = reporting(served(json!({})), 100);
    let waits = verdict(decided(&node, pool("other", json!({})), pool("p", json!({})), 100).change);
    for part in ["NodeIPPool other", "node n1", "Until 1970-01-01T00:16:40Z, 15 minutes", "release=true"] {
        assert!(waits.contains(part), "{part} isn't in {waits}");
    }
    let gone = verdict(decided(&node, None, None, 100).change);
    assert!(gone.contains("NodeIPPool p is gone") && gone.contains("pods keep their addresses"), "{gone}");
    let over = verdict(decided(&node, None, None, 1000).change);
    assert!(over.contains("Now free addresses go back") && !over.contains("release=true"), "{over}");
}

#[test]
fn a_change_that_is_dated_at_the_end_of_all_time_can_be_named() {
    let grace = Duration::from_secs(900);
    let change = Change { cause: Cause::Gone, since: Timestamp::MAX, rest: Rest::Lasts(grace) };
    let message = change.verdict("n", "p", grace).message;
    assert!(message.contains("Until 9999-12-30"), "{message}");
}
