//! A pause: a person has annotated a Node or its pool. As long as the annotation stands, nothing is written
//! to Azure for the node, and nothing that it has is taken away. Pure but for the stores that it reads.

use kube::ResourceExt;
use vnetpool_crds::condition::{self, PAUSED};
use vnetpool_crds::names;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use crate::azure::Urgency;
use crate::cluster::{Cluster, Waker, woken};

/// The part of a person's text that a message repeats.
const LONGEST_WORD: usize = 256;

/// Why a node is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// `Paused`: its own Node is. `PoolPaused`: its pool is, or was when it was deleted.
    pub reason: Reason,
    message: String,
}

impl Pause {
    /// The condition's message.
    pub fn verdict(&self) -> Verdict {
        Verdict::yes(self.reason, &self.message)
    }

    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Whether a node is paused: by its Node, by the pool that serves it, or by the one that is to serve it. So
/// neither a label nor a weight leads a node out of a pause, nor does the end of the pool that has paused it.
pub fn of(cluster: &Cluster, allocation: &NodeIPAllocation) -> Option<Pause> {
    let node = cluster.node(&allocation.name_any());
    let selecting = node.as_ref().and_then(|node| cluster.pool_of(node));
    let pools = [cluster.pool(&allocation.spec.pool), selecting];
    let pools = pools.iter().flatten().map(AsRef::as_ref);
    let gone = paused_by(allocation).filter(|pool| cluster.pool(pool).is_none());
    decide(allocation, node.as_ref().map(|node| word(&**node)), pools, gone)
}

/// The same, from the Node's annotation, if there is a Node, the pools that may serve it, and one that had
/// paused it and is gone.
fn decide<'a>(
    allocation: &NodeIPAllocation,
    node: Option<Option<&str>>,
    pools: impl Iterator<Item = &'a NodeIPPool>,
    gone: Option<&str>,
) -> Option<Pause> {
    let (name, paused) = (allocation.name_any(), names::PAUSED);
    let own = match node {
        Some(word) => word.map(|word| {
            format!(
                "Node {name} is paused ({word}): nothing is written to Azure for it. It keeps what it has, and pods get the free \
                 addresses that are there. To go on: kubectl annotate node {name} {paused}-"
            )
        }),
        // The annotation went with the Node, so it can't be taken off any more.
        None => (was_paused(allocation) && !is_confirmed_released(allocation)).then(|| {
            format!(
                "Node {name} was paused when it was deleted, so nothing is written to Azure for it and its addresses stay reserved. \
                 Register it again, or, to give them back: kubectl annotate nodeipallocation {name} {}=true",
                names::RELEASE
            )
        }),
    };
    let of_pool = || {
        pools.filter_map(|pool| Some((pool.name_any(), word(pool)?))).next().map(|(pool, word)| {
            format!(
                "{POOL}{pool} is paused ({word}): nothing is written to Azure for its nodes. They keep what they have, and pods \
                 get the free addresses that are there. To go on: kubectl annotate nodeippool {pool} {paused}-"
            )
        })
    };
    // The annotation went with the pool.
    let of_gone = || {
        gone.filter(|_| !is_confirmed_released(allocation)).map(|pool| {
            format!(
                "{POOL}{pool} was paused when it was deleted, so nothing is written to Azure for node {name}. It keeps what it has, \
                 and pods get the free addresses that are there. Make the pool again, or, to give everything back: kubectl annotate \
                 nodeipallocation {name} {}=true",
                names::RELEASE
            )
        })
    };
    match own {
        Some(message) => Some(Pause { reason: Reason::Paused, message }),
        None => of_pool().or_else(of_gone).map(|message| Pause { reason: Reason::PoolPaused, message }),
    }
}

/// The text of the annotation that pauses the object; `None` if it isn't paused. An empty text, or `false`,
/// pauses it, too.
pub fn word(object: &impl ResourceExt) -> Option<&str> {
    let word = object.annotations().get(names::PAUSED)?.trim();
    Some(match word {
        "" => "no reason given",
        word => &word[..word.floor_char_boundary(LONGEST_WORD)],
    })
}

/// With these words, and the pool's name, begins the message about a node that its pool has paused.
const POOL: &str = "NodeIPPool ";

fn was_paused(allocation: &NodeIPAllocation) -> bool {
    message_of(allocation, Reason::Paused).is_some()
}

/// The pool by which the node was paused when that was last reported.
fn paused_by(allocation: &NodeIPAllocation) -> Option<&str> {
    message_of(allocation, Reason::PoolPaused)?.strip_prefix(POOL)?.split(' ').next()
}

/// The message of the node's object about a pause for this reason.
fn message_of(allocation: &NodeIPAllocation, reason: Reason) -> Option<&str> {
    let condition = condition::find(allocation.conditions(), PAUSED)?;
    (condition.status == "True" && reason == condition.reason.as_str()).then_some(condition.message.as_str())
}

/// Whether a person has confirmed that the node needn't keep what it has.
pub fn is_confirmed_released(allocation: &NodeIPAllocation) -> bool {
    allocation.annotations().get(names::RELEASE).is_some_and(|value| value == "true")
}

/// The same urgency for a write about a node, but at most until that is paused: thousands of writes may wait
/// for their turn at Azure when a person pauses them.
pub fn while_not(
    cluster: &Cluster,
    waker: &Waker,
    allocation: &NodeIPAllocation,
    urgency: impl Into<Urgency>,
) -> Urgency {
    let (cluster, name, recorded) = (cluster.clone(), allocation.name_any(), allocation.clone());
    let mut wakeups = waker.hear(&name);
    urgency.into().at_most_until(async move {
        loop {
            let newest = cluster.allocation(&name);
            if of(&cluster, newest.as_deref().unwrap_or(&recorded)).is_some() {
                return;
            }
            woken(&mut wakeups).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    fn record() -> NodeIPAllocation {
        let object =
            json!({"metadata": {"name": "n1"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        serde_json::from_value(object).unwrap()
    }

    fn pool(name: &str, word: Option<&str>) -> NodeIPPool {
        let mut pool = NodeIPPool::new(name, serde_json::from_value(json!({})).unwrap());
        pool.annotations_mut().extend(word.map(|word| (names::PAUSED.to_owned(), word.to_owned())));
        pool
    }

    fn reporting(mut allocation: NodeIPAllocation, reason: Reason) -> NodeIPAllocation {
        let condition = Verdict::yes(reason, "").condition(PAUSED, None, Timestamp::UNIX_EPOCH);
        allocation.status.get_or_insert_default().conditions.push(condition);
        allocation
    }

    /// As of a cluster that has no other pools.
    fn pause(
        allocation: &NodeIPAllocation,
        node: Option<Option<&str>>,
        pools: &[NodeIPPool],
    ) -> Option<Pause> {
        let gone = paused_by(allocation).filter(|name| pools.iter().all(|pool| pool.name_any() != *name));
        decide(allocation, node, pools.iter(), gone)
    }

    fn decided(
        allocation: &NodeIPAllocation,
        node: Option<Option<&str>>,
        pools: &[NodeIPPool],
    ) -> Option<Reason> {
        pause(allocation, node, pools).map(|pause| pause.reason)
    }

    #[test]
    fn a_node_is_paused_by_its_own_word_or_by_a_pool_that_serves_it_or_is_to() {
        let (free, held) = (pool("p", None), pool("q", Some("incident 7")));
        assert_eq!(decided(&record(), Some(None), std::slice::from_ref(&free)), None);
        assert_eq!(decided(&record(), Some(Some("mine")), std::slice::from_ref(&free)), Some(Reason::Paused));
        assert_eq!(decided(&record(), Some(Some("mine")), std::slice::from_ref(&held)), Some(Reason::Paused));
        assert_eq!(decided(&record(), Some(None), &[free, held]), Some(Reason::PoolPaused));
    }

    #[test]
    fn a_pauses_message_names_its_reason_and_its_end() {
        let message = |node: Option<Option<&str>>, pools: &[NodeIPPool]| {
            pause(&reporting(record(), Reason::Paused), node, pools).unwrap().message
        };
        let of_pool = message(Some(None), &[pool("p", Some("incident 7"))]);
        assert!(of_pool.starts_with("NodeIPPool p is paused (incident 7)"), "{of_pool}");
        assert!(of_pool.ends_with("kubectl annotate nodeippool p vnetpool.io/paused-"), "{of_pool}");
        let own = message(Some(Some("disk swap")), &[]);
        assert!(own.starts_with("Node n1 is paused (disk swap)"), "{own}");
        assert!(own.ends_with("kubectl annotate node n1 vnetpool.io/paused-"), "{own}");
        let deleted = message(None, &[]);
        assert!(
            deleted.ends_with("kubectl annotate nodeipallocation n1 vnetpool.io/release=true"),
            "{deleted}"
        );
    }

    #[test]
    fn a_blank_value_pauses_too_and_a_long_one_is_cut() {
        assert_eq!(word(&pool("p", None)), None);
        assert_eq!(word(&pool("p", Some(" "))), Some("no reason given"));
        assert_eq!(word(&pool("p", Some("false"))), Some("false"));
        assert_eq!(word(&pool("p", Some(&"ü".repeat(500)))).unwrap().len(), LONGEST_WORD);
    }

    #[test]
    fn a_node_that_was_paused_stays_so_when_it_is_deleted_until_a_person_releases_it() {
        let mut record = reporting(record(), Reason::Paused);
        assert_eq!(decided(&record, None, &[]), Some(Reason::Paused));
        record.annotations_mut().insert(names::RELEASE.into(), "true".into());
        assert_eq!(decided(&record, None, &[]), None);
        // Another Node of that name has its own annotations.
        assert_eq!(decided(&record, Some(None), &[]), None);
        // The pool is still there to be asked.
        let by_pool = reporting(self::record(), Reason::PoolPaused);
        assert_eq!(decided(&by_pool, None, &[pool("p", None)]), None);
    }

    #[test]
    fn a_node_whose_pool_had_paused_it_stays_so_when_that_is_deleted_until_it_is_there_again() {
        let held = pool("p", Some("incident 7"));
        let (free, other) = (pool("p", None), pool("q", None));
        let mut record = record();
        let mut report = |pause: Option<Pause>| {
            let condition =
                pause.expect("it is paused").verdict().condition(PAUSED, None, Timestamp::UNIX_EPOCH);
            record.status.get_or_insert_default().conditions = vec![condition];
            record.clone()
        };
        let paused = report(pause(&self::record(), Some(None), std::slice::from_ref(&held)));
        // The message is the same from then on, whichever operator leads, and whether the Node lives or not.
        let gone = pause(&paused, Some(None), std::slice::from_ref(&other));
        let message = gone.clone().map(|pause| pause.message).unwrap_or_default();
        assert!(message.starts_with("NodeIPPool p was paused when it was deleted"), "{message}");
        assert!(message.ends_with("nodeipallocation n1 vnetpool.io/release=true"), "{message}");
        let mut paused = report(gone);
        assert_eq!(decided(&paused, None, &[]), Some(Reason::PoolPaused));
        // A pool that is there says for itself.
        assert_eq!(decided(&paused, Some(None), &[free, other]), None);
        paused.annotations_mut().insert(names::RELEASE.into(), "true".into());
        assert_eq!(decided(&paused, None, &[]), None);
        assert_eq!(decided(&paused, None, &[held]), Some(Reason::PoolPaused));
    }

    #[test]
    fn a_pool_that_is_long_gone_keeps_no_node_paused_that_another_had_paused() {
        // Its pool p is gone, and q is to serve it.
        let of_other = pause(&record(), Some(None), &[pool("q", Some("incident 7"))]).unwrap();
        let mut record = record();
        let condition = of_other.verdict().condition(PAUSED, None, Timestamp::UNIX_EPOCH);
        record.status.get_or_insert_default().conditions.push(condition);
        assert_eq!(decided(&record, Some(None), &[pool("q", None)]), None);
    }
}
