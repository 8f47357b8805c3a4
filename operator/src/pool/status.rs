//! The status of a pool: the sums over its nodes, and the conditions that are about the whole pool. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use vnetpool_crds::allocation::IpConfiguration;
use vnetpool_crds::condition::{self, NODES_READY, PAUSED, READY, STALLED, Type, VALID};
use vnetpool_crds::pool::SubnetUse;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, NodeIPPoolStatus, names};

use super::{NAMED, rolling};
use crate::node::pause;

/// The status of a pool that serves these nodes, and whose pod CIDR has this `conflict`.
pub fn roll_up<'a>(
    pool: &NodeIPPool,
    nodes: impl Iterator<Item = &'a NodeIPAllocation>,
    conflict: Option<String>,
    now: Timestamp,
) -> NodeIPPoolStatus {
    let (sums, short) = sums(pool, nodes);
    let before = pool.status.clone().unwrap_or_default();
    let mut next = NodeIPPoolStatus {
        observed_generation: pool.metadata.generation,
        conditions: before.conditions,
        counted_at: Some(Time(now)),
        ..sums
    };
    let valid = valid(pool, conflict);
    let paused = paused(pool);
    let (ready, stalled) = match (valid.is_false(), &paused) {
        (true, _) => (valid.clone(), Some(Verdict::yes(valid.reason, &valid.message))),
        (false, Some(message)) => (Verdict::no(Reason::Paused, message), None),
        (false, None) => (Verdict::yes(Reason::Ready, "the pool can serve nodes"), None),
    };
    let verdicts = [
        (VALID, Some(valid)),
        (READY, Some(ready)),
        (STALLED, stalled),
        (PAUSED, paused.map(|message| Verdict::yes(Reason::Paused, message))),
        (NODES_READY, Some(nodes_ready(pool, next.nodes, short))),
    ];
    for (type_, verdict) in verdicts {
        match verdict {
            Some(verdict) => {
                let condition = verdict.condition(type_, pool.metadata.generation, now);
                condition::set(&mut next.conditions, condition);
            }
            None => next.conditions.retain(|one| one.type_ != type_),
        }
    }
    next
}

/// The sums over a pool's nodes, and the reasons why some aren't ready: without names or numbers, for in a
/// large pool some node is always joining.
fn sums<'a>(
    pool: &NodeIPPool,
    nodes: impl Iterator<Item = &'a NodeIPAllocation>,
) -> (NodeIPPoolStatus, BTreeSet<String>) {
    let (mut sums, mut short) = (NodeIPPoolStatus::default(), BTreeSet::new());
    let mut subnets: BTreeMap<String, SubnetUse> = BTreeMap::new();
    for node in nodes {
        sums.nodes += 1;
        if let Some(status) = &node.status {
            sums.held = sums.held.saturating_add(status.held);
            sums.assigned = sums.assigned.saturating_add(status.assigned);
            sums.free = sums.free.saturating_add(status.free);
            sums.cooling = sums.cooling.saturating_add(status.cooling);
            sums.waiting = sums.waiting.saturating_add(status.waiting);
        }
        for interface in &node.spec.interfaces {
            let usage = usage_of(&mut subnets, &interface.subnet.id);
            usage.nodes += 1;
            let held = interface.ip_configurations.iter().map(IpConfiguration::count);
            usage.held = held.fold(usage.held, u32::saturating_add);
        }
        // Of a NIC that is recorded by its id alone there is none, and no subnet is known.
        for (interface, left) in node.spec.left_reservations() {
            let usage = usage_of(&mut subnets, &interface.subnet.id);
            usage.held = usage.held.saturating_add(left.count());
            usage.on_left_interfaces = usage.on_left_interfaces.saturating_add(left.count());
        }
        sums.updated_nodes += u32::from(rolling::has_taken_up(pool, node));
        match condition::find(node.conditions(), READY) {
            Some(ready) if ready.status == "True" => sums.nodes_ready += 1,
            Some(ready) => drop(short.insert(ready.reason.clone())),
            None => drop(short.insert(Reason::Pending.name().to_owned())),
        }
    }
    sums.subnets = subnets.into_values().collect();
    (sums, short)
}

/// The counts of a subnet. Azure's ids differ in case from one answer to the next.
fn usage_of<'a>(subnets: &'a mut BTreeMap<String, SubnetUse>, id: &str) -> &'a mut SubnetUse {
    let unused = || SubnetUse { id: id.to_owned(), ..Default::default() };
    subnets.entry(id.to_lowercase()).or_insert_with(unused)
}

fn valid(pool: &NodeIPPool, conflict: Option<String>) -> Verdict {
    match (pool.spec.selector(), conflict) {
        (Ok(_), None) => Verdict::yes(Reason::Valid, ""),
        (Ok(_), Some(conflict)) => Verdict::no(Reason::RangeOverlap, conflict),
        (Err(error), _) => Verdict::no(
            Reason::SelectorInvalid,
            format!(
                "NodeIPPool {} takes no further node, for its nodeSelector can't be read ({error}); the nodes that it serves \
                 keep what they have. Use the operators In, NotIn, Exists and DoesNotExist.",
                pool.name_any()
            ),
        ),
    }
}

fn nodes_ready(pool: &NodeIPPool, nodes: u32, short: BTreeSet<String>) -> Verdict {
    match short.is_empty() {
        true if nodes == 0 => Verdict::yes(Reason::NoNodes, "no node is served by this pool"),
        true => Verdict::yes(Reason::AllReady, "all nodes of the pool are ready"),
        false => {
            let message = format!(
                "some nodes are not ready ({}): kubectl get nodeipallocations --field-selector spec.pool={}",
                name_some(short.into_iter(), NAMED),
                pool.name_any()
            );
            Verdict::no(Reason::NodesNotReady, message)
        }
    }
}

/// The message about a pool that a person has paused.
fn paused(pool: &NodeIPPool) -> Option<String> {
    pause::word(pool).map(|word| {
        format!(
            "nothing is written to Azure for nodes of NodeIPPool {name} ({word}). They keep what they have, and new nodes get \
             nothing. To go on: kubectl annotate nodeippool {name} {}-",
            names::PAUSED,
            name = pool.name_any(),
        )
    })
}

/// Blind to the order of conditions and to their transition times.
pub fn is_the_same(before: &NodeIPPoolStatus, next: &NodeIPPoolStatus) -> bool {
    let without = |status: &NodeIPPoolStatus| NodeIPPoolStatus {
        conditions: vec![],
        counted_at: None,
        ..status.clone()
    };
    without(before) == without(next) && condition::same(&before.conditions, &next.conditions)
}

/// Whether only sums have moved since. That something is there at all is news, and so is that the nodes have
/// all that is reserved for them. That all are ready, or have taken up an edit, turns a condition.
pub fn only_sums_differ(before: &NodeIPPoolStatus, next: &NodeIPPoolStatus) -> bool {
    let without = |status: &NodeIPPoolStatus| {
        let mut status = NodeIPPoolStatus { assigned: 0, cooling: 0, free: 0, ..status.clone() };
        let sums =
            [&mut status.held, &mut status.nodes_ready, &mut status.updated_nodes, &mut status.waiting];
        let of_subnets = status.subnets.iter_mut().flat_map(|subnet| {
            subnet.free = subnet.free.map(|_| 0);
            [&mut subnet.nodes, &mut subnet.held, &mut subnet.on_left_interfaces]
        });
        sums.into_iter().chain(of_subnets).for_each(|sum| *sum = (*sum).min(1));
        status.networks.iter_mut().for_each(|network| network.used = network.used.map(|_| 0));
        status
    };
    // No agent counts what a NIC holds that its node has left.
    let of_agents = |subnet: &SubnetUse| subnet.held.saturating_sub(subnet.on_left_interfaces);
    let has_all = |status: &NodeIPPoolStatus| {
        status.held >= status.subnets.iter().map(of_agents).fold(0, u32::saturating_add)
    };
    is_the_same(&without(before), &without(next)) && (has_all(before) || !has_all(next))
}

/// The condition that has just turned false.
pub fn turned_false<'a>(type_: Type, before: &[Condition], next: &'a [Condition]) -> Option<&'a Condition> {
    let was_false = condition::find(before, type_).is_some_and(|was| was.status == "False");
    condition::find(next, type_).filter(|now| now.status == "False" && !was_false)
}

/// The condition that has just turned true.
pub fn turned_true<'a>(type_: Type, before: &[Condition], next: &'a [Condition]) -> Option<&'a Condition> {
    let was = condition::is_true(before, type_);
    condition::find(next, type_).filter(|now| now.status == "True" && !was)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::{Value, json};
    use vnetpool_crds::allocation::Interface;

    pub fn pool(spec: Value) -> NodeIPPool {
        NodeIPPool::new("p", serde_json::from_value(spec).unwrap())
    }

    pub fn node(name: &str, subnet: &str, held: u32, ready: &str) -> NodeIPAllocation {
        let mut node: NodeIPAllocation = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [
                {"id": "nic", "mac": "", "primaryAddress": "10.0.0.4", "subnet": {"id": subnet},
                 "ipConfigurations": [{"name": "vnp-1", "address": "10.0.0.5/32"}]}
            ]},
            "status": {"held": held, "assigned": 1, "free": held - 1}
        }))
        .unwrap();
        let conditions = &mut node.status.as_mut().unwrap().conditions;
        let verdict = Verdict::new(Some(ready == "Ready"), Reason::of(ready).unwrap(), "");
        conditions.push(verdict.condition(READY, None, Timestamp::UNIX_EPOCH));
        node
    }

    pub fn rolled(pool: &NodeIPPool, nodes: &[NodeIPAllocation]) -> NodeIPPoolStatus {
        roll_up(pool, nodes.iter(), None, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_pool_shows_the_sums_of_its_nodes() {
        let status =
            rolled(&pool(json!({})), &[node("a", "/S/One", 8, "Ready"), node("b", "/s/one", 4, "Ready")]);
        assert_eq!((status.nodes, status.held, status.assigned, status.free), (2, 12, 2, 10));
        assert_eq!(status.subnets.len(), 1);
        assert_eq!((status.subnets[0].nodes, status.subnets[0].held), (2, 2));
        assert!(condition::is_true(&status.conditions, READY));
    }

    /// A node on a NIC in a subnet that has left another in this one.
    fn having_left(subnet: &str) -> NodeIPAllocation {
        let mut node = node("a", "/s/one", 8, "Ready");
        let mut left = node.spec.interfaces[0].clone();
        (left.id, left.subnet.id) = ("left".to_owned(), subnet.to_owned());
        left.ip_configurations[0].name = "vnp-2".to_owned();
        let by_its_id = Interface { id: "by-its-id".to_owned(), ..Interface::default() };
        node.spec.left_interfaces = vec![left, by_its_id];
        node
    }

    #[test]
    fn what_left_nics_hold_counts_in_their_subnets_and_not_as_addresses_for_pods() {
        let counts = |subnet: &str| {
            let status = rolled(&pool(json!({})), &[having_left(subnet)]);
            let of = |one: &SubnetUse| (one.id.clone(), one.nodes, one.held, one.on_left_interfaces);
            (status.held, status.subnets.iter().map(of).collect::<Vec<_>>())
        };
        let one = |nodes, held, left| ("/s/one".to_owned(), nodes, held, left);
        assert_eq!(counts("/S/One"), (8, vec![one(1, 2, 1)]));
        assert_eq!(counts("/s/two"), (8, vec![one(1, 1, 0), ("/s/two".to_owned(), 0, 1, 1)]));
    }

    #[test]
    fn the_nodes_have_all_that_is_reserved_for_them_whatever_left_nics_hold() {
        let shown = |held: u32| {
            let mut node = having_left("/s/one");
            node.status.as_mut().unwrap().held = held;
            rolled(&pool(json!({})), &[node, self::node("b", "/s/one", 1, "Ready")])
        };
        assert!(!only_sums_differ(&shown(0), &shown(1)), "that they have all is news");
        assert!(only_sums_differ(&shown(1), &shown(2)), "they had all before");
    }

    #[test]
    fn a_pool_reports_the_reason_of_short_nodes_and_their_selector_and_is_ready_itself() {
        let nodes: Vec<_> = (0..8).map(|n| node(&format!("n{n}"), "s", 8, "SubnetFull")).collect();
        let status = rolled(&pool(json!({})), &nodes);
        let ready = condition::find(&status.conditions, NODES_READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "NodesNotReady"));
        for part in ["(SubnetFull)", "--field-selector spec.pool=p"] {
            assert!(ready.message.contains(part), "{}", ready.message);
        }
        assert_eq!((status.nodes, status.nodes_ready), (8, 0));
        assert!(condition::is_true(&status.conditions, READY), "the pool itself is in order");
    }

    #[test]
    fn what_pods_and_single_nodes_change_is_sums_and_the_first_and_the_last_of_all_are_news() {
        let of = |ready: usize, held: u32| {
            let turned = |n| if n < ready { "Ready" } else { "SubnetFull" };
            let mut nodes: Vec<_> = (0..8).map(|n| node(&format!("n{n}"), "s", 8, turned(n))).collect();
            // Of what the eight nodes have reserved, one address each, the agents have taken up so many.
            let status = |node: &mut NodeIPAllocation| node.status.as_mut().unwrap().held = 0;
            nodes.iter_mut().for_each(status);
            nodes[0].status.as_mut().unwrap().held = held;
            nodes
        };
        let shown = |nodes: &[NodeIPAllocation]| rolled(&pool(json!({})), nodes);
        let mut moved = of(3, 4);
        let status = moved[0].status.as_mut().unwrap();
        (status.assigned, status.free, status.cooling) = (4, 3, 1);
        let before = shown(&of(3, 4));
        assert!(!is_the_same(&before, &shown(&moved)) && only_sums_differ(&before, &shown(&moved)));
        let is_news = |(ready, held), then: (usize, u32)| {
            let (before, next) = (shown(&of(ready, held)), shown(&of(then.0, then.1)));
            assert!(!is_the_same(&before, &next));
            !only_sums_differ(&before, &next)
        };
        for (before, next) in [((3, 4), (4, 4)), ((7, 4), (1, 4)), ((3, 4), (3, 7)), ((3, 8), (3, 4))] {
            assert!(!is_news(before, next), "{before:?} {next:?}");
        }
        for (before, next) in [
            ((0, 4), (1, 4)),
            ((1, 4), (0, 4)),
            ((7, 4), (8, 4)),
            ((8, 4), (7, 4)),
            ((3, 0), (3, 1)),
            ((3, 7), (3, 8)),
        ] {
            assert!(is_news(before, next), "{before:?} {next:?}");
        }
        // Another node is, too, and another edit.
        assert!(!only_sums_differ(&before, &shown(&of(3, 4)[..7])));
        let mut edited = before.clone();
        edited.observed_generation = Some(2);
        assert!(!only_sums_differ(&before, &edited));
    }

    #[test]
    fn a_selector_that_cannot_be_read_makes_the_pool_invalid_once() {
        let pool = pool(json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}));
        let status = rolled(&pool, &[]);
        let invalid = turned_false(VALID, &[], &status.conditions).unwrap();
        assert!(invalid.message.contains("NodeIPPool p"));
        assert!(!condition::is_true(&status.conditions, READY));
        assert!(condition::is_true(&status.conditions, STALLED));
        assert_eq!(turned_false(VALID, &status.conditions, &status.conditions), None);
    }

    #[test]
    fn a_paused_pool_names_its_reason_and_its_end_and_is_neither_ready_nor_stalled() {
        let mut pool = pool(json!({}));
        pool.annotations_mut().insert(names::PAUSED.into(), "incident 7".into());
        let mut status = rolled(&pool, &[node("a", "s", 8, "Ready")]);
        let [paused, ready] =
            [PAUSED, READY].map(|type_| condition::find(&status.conditions, type_).unwrap().clone());
        assert_eq!((paused.status.as_str(), ready.status.as_str()), ("True", "False"));
        assert_eq!((paused.reason.as_str(), ready.reason.as_str()), ("Paused", "Paused"));
        for part in ["(incident 7)", "kubectl annotate nodeippool p vnetpool.io/paused-"] {
            assert!(paused.message.contains(part), "{}", paused.message);
        }
        assert!(condition::find(&status.conditions, STALLED).is_none());
        pool.annotations_mut().clear();
        pool.status = Some(std::mem::take(&mut status));
        let status = rolled(&pool, &[]);
        assert!(condition::find(&status.conditions, PAUSED).is_none());
        assert!(condition::is_true(&status.conditions, READY));
    }

    #[test]
    fn a_status_that_differs_only_in_time_is_not_written() {
        let nodes = [node("a", "s", 8, "Ready")];
        let first = rolled(&pool(json!({})), &nodes);
        let later = roll_up(&pool(json!({})), nodes.iter(), None, Timestamp::from_second(60).unwrap());
        assert!(is_the_same(&first, &later));
        assert!(!is_the_same(&first, &rolled(&pool(json!({})), &[])));
    }
}
