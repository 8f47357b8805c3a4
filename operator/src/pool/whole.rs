//! Whole statuses of pools, as all their parts make them together.

use serde_json::{Value, json};
use vnetpool_crds::condition::{RECONCILING, STALLED, Type};
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, definitions};

use super::rolling::tests::behind;
use super::status::tests::{node, pool};
use super::*;
use crate::cluster::Cluster;
use crate::cluster::served::tests::node as with_blocks;
use crate::heap;
use crate::node_object::Node;

/// What a tool that waits for objects makes of one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Judged {
    InProgress,
    Failed,
    Current,
}

/// By the rules of kstatus (`sigs.k8s.io/cli-utils/pkg/kstatus/status`, `Compute`) for a kind that it has no
/// rules of its own for: the generation first, then `Reconciling` and `Stalled`, then `Ready`. What isn't
/// there holds nothing up.
fn compute(object: &Value) -> Judged {
    let (generation, status) = (&object["metadata"]["generation"], &object["status"]);
    if status.get("observedGeneration").is_some_and(|observed| observed != generation) {
        return Judged::InProgress;
    }
    let conditions: Vec<&Value> = status["conditions"].as_array().into_iter().flatten().collect();
    for one in &conditions {
        match (one["type"].as_str(), one["status"].as_str()) {
            (Some("Reconciling"), Some("True")) => return Judged::InProgress,
            (Some("Stalled"), Some("True")) => return Judged::Failed,
            _ => {}
        }
    }
    match conditions.iter().find(|one| one["type"] == "Ready") {
        Some(ready) if ready["status"] != "True" => Judged::InProgress,
        _ => Judged::Current,
    }
}

/// Pools that select all nodes, and others.
const WELL: &str = r#"{"rollout": {"maxUpdating": 2}}"#;
const INVALID: &str = r#"{"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}"#;
const RANGE: &str = r#"{"mode": "Route", "route": {"podCIDR": "10.128.0.0/16", "routeTableID": "/t"}}"#;

fn made(name: &str, spec: &str, is_paused: bool) -> NodeIPPool {
    let mut pool = pool(serde_json::from_str(spec).unwrap());
    (pool.metadata.name, pool.metadata.generation) = (Some(name.into()), Some(2));
    let age = if name == "p" { "2026-01-02T00:00:00Z" } else { "2026-01-01T00:00:00Z" };
    pool.metadata.creation_timestamp = serde_json::from_value(json!(age)).unwrap();
    pool.annotations_mut().extend(is_paused.then(|| (names::PAUSED.to_owned(), "incident".to_owned())));
    // As the API server makes it.
    let [pools, _] = definitions().unwrap();
    let schema = json!(pools)["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take();
    pool.status = serde_json::from_value(schema["properties"]["status"]["default"].clone()).unwrap();
    pool
}

fn leaving(name: &str) -> NodeIPAllocation {
    let mut node = node(name, "s", 8, "Ready");
    let leaves = Verdict::no(Reason::NoPool, "until noon").condition(SELECTED, None, Timestamp::UNIX_EPOCH);
    node.status.get_or_insert_default().conditions.push(leaves);
    node
}

fn windows(name: &str) -> Node {
    let labels = json!({"kubernetes.io/os": "windows", "kubernetes.io/arch": "amd64"});
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
}

fn ctx(nodes: Vec<Node>, allocations: Vec<NodeIPAllocation>, pools: Vec<NodeIPPool>) -> Context {
    Context::sample_of(Cluster::sample(nodes, allocations, pools), None)
}

fn judge(pool: &NodeIPPool, generation: i64) -> Judged {
    let mut object = json!(pool);
    object["metadata"]["generation"] = json!(generation);
    compute(&object)
}

#[tokio::test]
async fn every_status_of_a_pool_is_by_kstatus_rules_what_it_means() {
    use Judged::{Current, Failed, InProgress};
    let ready = |name| node(name, "s", 8, "Ready");
    let (updating, waits) = (|name| behind(name, "Ready", true), |name| behind(name, "Ready", false));
    let stuck = |name| behind(name, "SubnetFull", true);
    // Nodes, and what a pool that is well makes of them.
    let nodes = [
        (vec![], Current),
        (vec![ready("a"), leaving("b")], Current),
        (vec![ready("a"), node("b", "s", 8, "SubnetFull")], Current),
        (vec![ready("a"), waits("b")], InProgress),
        (vec![ready("a"), updating("b"), waits("c")], InProgress),
        (vec![stuck("a"), updating("b"), waits("c")], InProgress),
        (vec![stuck("a"), stuck("b"), waits("c")], Failed),
        (vec![stuck("a"), stuck("b")], Failed),
    ];
    let others = vec![made("older", RANGE, false)];
    let pools = [(WELL, false), (WELL, true), (INVALID, false), (INVALID, true), (RANGE, false)];
    let mut situations = vec![];
    for ((nodes, outcome), (spec, is_paused)) in
        nodes.iter().flat_map(|one| pools.iter().map(move |pool| (one, pool)))
    {
        let follow = nodes.iter().all(|node| rolling::has_taken_up(&made("p", spec, false), node));
        let expected = match (*spec, *is_paused) {
            (WELL, false) => *outcome,
            (WELL, true) => InProgress,
            _ => Failed,
        };
        assert!(*spec != WELL || follow == (*outcome == Current));
        let ctx = ctx(vec![windows("w")], nodes.clone(), others.clone());
        situations.push((ctx, made("p", spec, *is_paused), expected));
    }
    let fresh = made("p", WELL, false);
    assert_eq!(judge(&fresh, 1), InProgress, "no operator has seen it");
    let first = situations.iter().map(|(ctx, pool, _)| status_of(ctx, pool, Timestamp::UNIX_EPOCH).0);
    let before: Vec<_> = first.chain(fresh.status).collect();
    for (ctx, pool, expected) in &mut situations {
        for before in &before {
            pool.status = Some(before.clone());
            let (status, _) = status_of(ctx, pool, Timestamp::UNIX_EPOCH);
            pool.status = Some(status.clone());
            let conditions = &status.conditions;
            assert_eq!(judge(pool, 2), *expected, "{conditions:?}\nafter {:?}", before.conditions);
            assert_eq!(judge(pool, 3), InProgress, "an edit that hasn't been seen");
            let found = |type_: Type| condition::find(conditions, type_);
            let abnormal: Vec<_> = [RECONCILING, STALLED].into_iter().filter_map(found).collect();
            assert!(abnormal.len() <= 1 && abnormal.iter().all(|one| one.status == "True"), "{abnormal:?}");
            let (again, _) = status_of(ctx, pool, Timestamp::UNIX_EPOCH);
            assert!(is_the_same(&status, &again), "{conditions:?}\nthen {:?}", again.conditions);
        }
    }
}

#[tokio::test]
async fn no_message_of_a_pool_depends_on_how_many_nodes_or_addresses_there_are() {
    let conditions = |many: usize, max_updating: usize| {
        let names = |kind: &'static str| (0..many).map(move |n| format!("{kind}{n:02}"));
        let full = names("b").map(|name| behind(&name, "SubnetFull", true));
        let waits = names("c").map(|name| behind(&name, "Throttled", false));
        let leave = names("d").map(|name| leaving(&name));
        let ready = names("e").map(|name| node(&name, "s", 8, "Ready"));
        let ctx = ctx(
            names("w").map(|name| windows(&name)).collect(),
            full.chain(waits).chain(leave).chain(ready).collect(),
            vec![],
        );
        let pool = made("p", &json!({"rollout": {"maxUpdating": max_updating}}).to_string(), false);
        let (status, _) = status_of(&ctx, &pool, Timestamp::UNIX_EPOCH);
        assert_eq!(status.nodes as usize, 4 * many);
        status.conditions
    };
    // More than are named, and so many more that all of the counts are others.
    for (max_updating, type_) in [(6, STALLED), (99, RECONCILING)] {
        let few = conditions(6, max_updating);
        for about in [type_, SELECTED, condition::NODES_READY, condition::NODES_SUPPORTED] {
            assert!(condition::find(&few, about).is_some_and(|one| !one.message.is_empty()), "{about:?}");
        }
        assert_eq!(few, conditions(17, max_updating));
    }
}

#[tokio::test]
async fn a_pool_is_reconciled_without_a_visit_to_the_nodes_of_others() {
    let pool = made("p", WELL, false);
    let most = |others: usize| {
        let own = ["a", "b"].into_iter().map(|name| with_blocks(name, "p", "s", 2));
        let others = (0..others).map(|n| with_blocks(&format!("n{n}"), "other", "s", 1));
        let ctx = ctx(vec![], own.chain(others).collect(), vec![pool.clone()]);
        // What is made once, at the first use.
        drop(status_of(&ctx, &pool, Timestamp::UNIX_EPOCH));
        heap::kept(|| drop(status_of(&ctx, &pool, Timestamp::UNIX_EPOCH))).1
    };
    let (few, many) = (most(1), most(3000));
    assert!(many <= few + 256, "{few} bytes beside one node of another pool, {many} beside 3,000");
}
