//! Which nodes take up an edit of their pool, and when: no more at a time than the pool allows, so that a
//! slip doesn't reach thousands of nodes before a person sees it. Pure.
//!
//! A node that takes an edit up has a place until it has settled. A node that can't settle keeps its place:
//! so few of them only slow the others down, and when they have all places, nothing goes on.
//!
//! A node with a place records it in its own object, in the condition `Updating`, before it takes anything
//! up. From that the next leader knows all of this. Each decision costs the logarithm of the number of nodes.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use vnetpool_crds::condition::{self, UPDATING};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use crate::woken::Woken;

/// Places of a pool that specifies none, in per cent of its nodes.
const SHARE: usize = 10;
/// And at least so many. A subscription has some three NIC writes a second, and each takes twelve seconds
/// with its polls: so many under way leave the pace to Azure.
const LEAST: usize = 50;

/// The places of all pools.
#[derive(Debug, Default)]
pub struct Rollouts {
    pools: HashMap<String, Rollout>,
    /// By node, where it is to be found.
    nodes: HashMap<String, Stand>,
}

#[derive(Debug, Default)]
struct Rollout {
    updating: usize,
    /// In the order in which they are woken.
    waiting: BTreeSet<Turn>,
}

/// Nodes with waiting pods first, which the edit may cure; then the healthy, lest the sick take all places;
/// then by name.
type Turn = (bool, bool, String);

#[derive(Clone, Debug, PartialEq)]
struct Stand {
    pool: String,
    /// `None`: it has a place.
    waits: Option<Turn>,
}

/// The report of a node that has an edit to take up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asks {
    /// Its object records that it has a place.
    pub is_updating: bool,
    /// Pods lack addresses that the edit brings: it waits for no place.
    pub is_needy: bool,
    pub has_waiting_pods: bool,
    pub is_ready: bool,
}

impl Rollouts {
    /// As the nodes' objects have it.
    pub fn of<'a>(nodes: impl IntoIterator<Item = &'a NodeIPAllocation>) -> Rollouts {
        let mut all = Rollouts::default();
        let updating = nodes.into_iter().filter(|node| condition::is_true(node.conditions(), UPDATING));
        for node in updating {
            all.stand(&node.name_any(), Stand { pool: node.spec.pool.clone(), waits: None });
        }
        all
    }

    /// Whether the node may take up the pool's present fields. If not, it is woken when it may.
    pub fn ask(&mut self, pool: &str, node: &str, asks: Asks) -> bool {
        let may = asks.is_updating || asks.is_needy || self.has_place(pool, node);
        let waits = (!may).then(|| (!asks.has_waiting_pods, !asks.is_ready, node.to_owned()));
        self.stand(node, Stand { pool: pool.to_owned(), waits });
        may
    }

    pub fn has_place(&self, pool: &str, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|stand| stand.pool == pool && stand.waits.is_none())
    }

    /// The node has settled, or has nothing to take up, or is gone.
    pub fn left(&mut self, node: &str) {
        let Some(stand) = self.nodes.remove(node) else { return };
        let Some(rollout) = self.pools.get_mut(&stand.pool) else { return };
        match &stand.waits {
            Some(turn) => drop(rollout.waiting.remove(turn)),
            None => rollout.updating -= 1,
        }
        if rollout.updating == 0 && rollout.waiting.is_empty() {
            self.pools.remove(&stand.pool);
        }
    }

    /// Gives away the free places, of which each pool has so many, and returns the nodes that got one. A node
    /// that can't act would hold its place in vain: it is left out until it asks again.
    pub fn tick(&mut self, places: impl Fn(&str) -> usize, can_act: impl Fn(&str) -> bool) -> Woken {
        let (mut woken, mut absent) = (vec![], vec![]);
        for (pool, rollout) in self.pools.iter().filter(|(_, rollout)| !rollout.waiting.is_empty()) {
            let mut free = places(pool).saturating_sub(rollout.updating);
            for (.., node) in &rollout.waiting {
                if free == 0 {
                    break;
                }
                if can_act(node) {
                    free -= 1;
                    woken.push((pool.clone(), node.clone()));
                } else {
                    absent.push(node.clone());
                }
            }
        }
        absent.iter().for_each(|node| self.left(node));
        let woken = woken.into_iter().map(|(pool, node)| {
            self.stand(&node, Stand { pool, waits: None });
            node
        });
        woken.collect()
    }

    fn stand(&mut self, node: &str, stand: Stand) {
        if self.nodes.get(node) == Some(&stand) {
            return;
        }
        self.left(node);
        let rollout = self.pools.entry(stand.pool.clone()).or_default();
        match &stand.waits {
            Some(turn) => drop(rollout.waiting.insert(turn.clone())),
            None => rollout.updating += 1,
        }
        self.nodes.insert(node.to_owned(), stand);
    }
}

/// How many of a pool's nodes may take up an edit at a time.
pub fn places(pool: &NodeIPPool, nodes: u32) -> usize {
    let share = |percent: usize| nodes as usize * percent / 100;
    match &pool.spec.rollout.max_updating {
        None => share(SHARE).max(LEAST),
        Some(IntOrString::Int(count)) => usize::try_from(*count).unwrap_or_default().max(1),
        // The API server has checked it.
        Some(IntOrString::String(percent)) => {
            share(percent.trim_end_matches('%').parse().unwrap_or_default()).max(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const READY: Asks = Asks { is_updating: false, is_needy: false, has_waiting_pods: false, is_ready: true };

    fn asked(nodes: &[&str]) -> Rollouts {
        let mut all = Rollouts::default();
        for node in nodes {
            assert!(!all.ask("p", node, READY), "{node} isn't woken yet");
        }
        all
    }

    #[test]
    fn as_many_are_woken_as_there_are_places_and_each_that_settles_makes_room_for_the_next_by_name() {
        let mut all = asked(&["c", "a", "d", "b"]);
        assert_eq!(all.tick(|_| 2, |_| true), ["a", "b"]);
        assert!(all.tick(|_| 2, |_| true).is_empty());
        assert!(all.ask("p", "a", READY) && !all.ask("p", "c", READY));
        all.left("a");
        assert_eq!(all.tick(|_| 2, |_| true), ["c"]);
    }

    #[test]
    fn an_unready_node_is_woken_last_and_a_needy_node_waits_for_no_place() {
        let mut all = asked(&["b", "c"]);
        all.ask("p", "a", Asks { is_ready: false, ..READY });
        assert!(all.ask("p", "d", Asks { is_needy: true, ..READY }));
        assert!(all.tick(|_| 1, |_| true).is_empty(), "the needy has the one place");
        assert_eq!(all.tick(|_| 3, |_| true), ["b", "c"]);
        all.left("b");
        assert_eq!(all.tick(|_| 3, |_| true), ["a"]);
    }

    #[test]
    fn a_node_with_waiting_pods_is_woken_first_ready_or_not() {
        let mut all = asked(&["a", "b"]);
        all.ask("p", "c", Asks { has_waiting_pods: true, ..Asks::default() });
        assert_eq!(all.tick(|_| 2, |_| true), ["c", "a"]);
    }

    #[test]
    fn a_node_that_can_not_act_takes_no_place_and_asks_again_later() {
        let mut all = asked(&["a", "b", "c"]);
        assert_eq!(all.tick(|_| 1, |node| node != "a"), ["b"]);
        all.left("b");
        assert_eq!(all.tick(|_| 2, |_| true), ["c"]);
        assert!(!all.ask("p", "a", READY), "it has no place");
        assert_eq!(all.tick(|_| 2, |_| true), ["a"]);
    }

    #[test]
    fn a_pool_without_places_wakes_no_node_and_other_pools_go_on() {
        let mut all = asked(&["a"]);
        all.ask("q", "b", READY);
        assert_eq!(all.tick(|pool| usize::from(pool == "q"), |_| true), ["b"]);
    }

    #[test]
    fn a_node_that_goes_over_to_another_pool_waits_there() {
        let mut all = asked(&["a", "b"]);
        assert_eq!(all.tick(|_| 1, |_| true), ["a"]);
        assert!(!all.ask("q", "a", READY));
        assert_eq!(all.tick(|pool| usize::from(pool == "p"), |_| true), ["b"]);
        assert_eq!(all.tick(|_| 1, |_| true), ["a"]);
    }

    #[test]
    fn the_next_leader_knows_the_nodes_with_a_place_from_their_objects() {
        let node = |name: &str, status: &str| -> NodeIPAllocation {
            let updating = json!({"type": "Updating", "status": status, "reason": "Updating", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
            serde_json::from_value(
                json!({"metadata": {"name": name}, "spec": spec, "status": {"conditions": [updating]}}),
            )
            .unwrap()
        };
        let mut all = Rollouts::of(&[node("a", "True"), node("b", "False")]);
        assert!(all.has_place("p", "a") && !all.ask("p", "b", READY));
        assert!(all.tick(|_| 1, |_| true).is_empty());
        assert_eq!(all.tick(|_| 2, |_| true), ["b"]);
    }

    #[test]
    fn a_tenth_of_the_nodes_and_at_least_fifty_take_an_edit_up_unless_the_pool_sets_a_number() {
        let places = |rollout: Value, nodes| {
            let spec = serde_json::from_value(json!({"rollout": rollout})).unwrap();
            places(&NodeIPPool::new("p", spec), nodes)
        };
        assert_eq!([12, 500, 5000].map(|nodes| places(json!({}), nodes)), [50, 50, 500]);
        assert_eq!([0, 12, 5000].map(|nodes| places(json!({"maxUpdating": 3}), nodes)), [3, 3, 3]);
        assert_eq!([0, 12, 5000].map(|nodes| places(json!({"maxUpdating": "20%"}), nodes)), [1, 2, 1000]);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Ask(usize, Asks),
        Left(usize),
        Tick,
    }

    fn act() -> impl Strategy<Value = Act> {
        // A recorded place was given before.
        let asks = any::<bool>().prop_map(|is_ready| Asks { is_ready, ..Asks::default() });
        prop_oneof![
            4 => (0..12_usize, asks).prop_map(|(node, asks)| Act::Ask(node, asks)),
            2 => (0..12_usize).prop_map(Act::Left),
            2 => Just(Act::Tick),
        ]
    }

    proptest! {
        #[test]
        fn nodes_never_exceed_the_places_and_each_waiting_node_is_woken_in_the_end(
            places in 1..5_usize,
            acts in proptest::collection::vec(act(), 1..60),
        ) {
            let mut all = Rollouts::default();
            let mut has: BTreeSet<usize> = BTreeSet::new();
            let mut waits: BTreeSet<usize> = BTreeSet::new();
            let name = |node: usize| format!("n{node:02}");
            let tick = |all: &mut Rollouts, has: &mut BTreeSet<usize>, waits: &mut BTreeSet<usize>| {
                for woken in all.tick(|_| places, |_| true) {
                    let node = woken[1..].parse().unwrap();
                    assert!(waits.remove(&node) && has.insert(node), "{woken} didn't wait");
                }
            };
            for act in acts {
                match act {
                    Act::Ask(node, asks) => {
                        prop_assert_eq!(all.ask("p", &name(node), asks), has.contains(&node));
                        if !has.contains(&node) {
                            waits.insert(node);
                        }
                    }
                    Act::Left(node) => {
                        all.left(&name(node));
                        has.remove(&node);
                        waits.remove(&node);
                    }
                    Act::Tick => tick(&mut all, &mut has, &mut waits),
                }
                prop_assert!(has.len() <= places);
                prop_assert_eq!(all.nodes.len(), has.len() + waits.len());
            }
            for _ in 0..12 {
                tick(&mut all, &mut has, &mut waits);
                for node in std::mem::take(&mut has) {
                    all.left(&name(node));
                }
            }
            prop_assert!(waits.is_empty() && all.pools.is_empty() && all.nodes.is_empty());
        }
    }
}
