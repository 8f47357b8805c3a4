//! The agent's answer to a `spec`: its report that it has taken that up. Conditions wait for it, so that one
//! write of them has what was published and what the agent has made of that. And a report is applied only to
//! the version it was made from: conditions that come right after the `spec` would have it refused.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::timeout_at;
use vnetpool_crds::{NodeIPAllocation, NodeIPAllocationStatus};

use super::lag::{Lag, lag};
use super::need;
use super::observe::Seen;
use super::progress::Progress;
use crate::cluster::woken;
use crate::context::Context;
use crate::node_object::Node;

/// By no more than this conditions are late. An agent whose rules stay the same answers in a fifth of it.
const WITHIN: Duration = Duration::from_secs(1);

/// Waits for the agent's answer to the `spec` that was just published, or until pods come or go: these are
/// for the next reconcile, which they don't wait for. Gives the answer if the plan is the same by it.
pub async fn comes(ctx: &Context, progress: &Progress, node: &Node) -> Option<Arc<NodeIPAllocation>> {
    let published_at = progress.published_at?;
    // Which of the lost addresses pods use is planned when the agent has reported it.
    let awaits_more = |seen: &Seen| seen.has_vanished || seen.reported_by.is_some();
    let is_whole = !progress.seen.as_deref().is_some_and(awaits_more);
    let name = node.name_any();
    let (mut wakeups, pods) = (ctx.waker.hear(&name), ctx.cluster.bound(&name));
    let answer = async {
        loop {
            let newest = ctx.cluster.allocation(&name).filter(|_| ctx.cluster.bound(&name) == pods)?;
            if let Some(is_alike) = answers(&newest, &progress.allocation, node, pods.0) {
                return Some(newest).filter(|_| is_alike && is_whole);
            }
            woken(&mut wakeups).await;
        }
    };
    timeout_at(published_at + WITHIN, answer).await.ok().flatten()
}

/// Whether this version has the answer to the published one, and the plan of a node with so many `bound` pods
/// is the same by it; `None`: there is no answer yet. Once another has written `spec`, or made the object
/// again, there will be none.
fn answers(newest: &NodeIPAllocation, published: &NodeIPAllocation, node: &Node, bound: u32) -> Option<bool> {
    let [now, then] = [newest, published].map(|one| (&one.metadata.uid, one.metadata.generation));
    if now == then && lag(newest, node.boot_id()) != Lag::None {
        return None;
    }
    let pods = |one: &NodeIPAllocation| need::demand(one, node, bound).pods();
    Some(now == then && uncounted(newest) == uncounted(published) && pods(newest) == pods(published))
}

/// What a plan reads of a report beside how many pods need an address.
fn uncounted(allocation: &NodeIPAllocation) -> NodeIPAllocationStatus {
    NodeIPAllocationStatus {
        observed_generation: None,
        held: 0,
        assigned: 0,
        free: 0,
        waiting: 0,
        pods: 0,
        counted_at: None,
        conditions: vec![],
        ..allocation.status.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::need::Need;
    use super::*;
    use crate::cluster::Cluster;
    use serde_json::{Value, json};
    use tokio::time::{Instant, sleep};

    /// An object of this version and generation, of which the agent has taken up `observed`.
    fn object(version: u32, generation: i64, observed: Option<i64>) -> NodeIPAllocation {
        reported(version, generation, json!({"bootID": "b", "observedGeneration": observed, "waiting": 2}))
    }

    fn reported(version: u32, generation: i64, status: Value) -> NodeIPAllocation {
        let metadata = json!({"name": "n", "uid": "a", "resourceVersion": version.to_string(),
            "generation": generation});
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    fn node(boot: &str) -> Node {
        let status = json!({"nodeInfo": {"bootID": boot}});
        serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u"}, "status": status})).unwrap()
    }

    /// Publishes the second generation of a node whose agent has taken this one up, and waits for its answer,
    /// which is as given and comes after a tenth of a second. Gives whether it came, and after how long.
    async fn wait(observed: Option<i64>, then: NodeIPAllocation) -> (bool, Duration) {
        let before = object(5, 1, observed);
        let ctx = Context::sample_of(Cluster::sample(vec![], vec![before.clone()], vec![]), None);
        let need = Need::of(&ctx.cluster, &ctx.waker, "n");
        let mut progress = Progress::of(Arc::new(before), need);
        let published = Arc::new(object(6, 2, observed));
        ctx.cluster.answered(&published);
        progress.published(published, "b");
        let begun = Instant::now();
        let (cluster, waker) = (ctx.cluster.clone(), ctx.waker.clone());
        tokio::spawn(async move {
            // Its own version comes by the watch, too.
            waker.allocation("n");
            sleep(WITHIN / 10).await;
            cluster.answered(&Arc::new(then));
            waker.allocation("n");
        });
        (comes(&ctx, &progress, &node("b")).await.is_some(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_wait_for_an_agent_that_answers_and_a_second_for_one_that_does_not() {
        let (is_there, after) = wait(Some(1), object(7, 2, Some(2))).await;
        assert!(is_there && after < WITHIN / 2, "{after:?}");
        let (is_there, after) = wait(Some(1), object(7, 2, Some(1))).await;
        assert!(!is_there && after > WITHIN / 2 && after < 2 * WITHIN, "on the one before: {after:?}");
        let (is_there, after) = wait(Some(1), object(7, 3, Some(1))).await;
        assert!(!is_there && after < WITHIN / 2, "another has written the spec: {after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_do_not_wait_for_an_agent_that_had_not_taken_up_the_spec_before() {
        for observed in [None, Some(0)] {
            assert_eq!(wait(observed, object(7, 2, Some(2))).await, (false, Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_are_no_later_for_a_spec_that_follows_another_before_they_are_reported() {
        let (cluster, waker) = Cluster::sample(vec![], vec![], vec![]);
        let mut progress = Progress::of(Arc::new(object(5, 1, Some(1))), Need::of(&cluster, &waker, "n"));
        progress.published(Arc::new(object(6, 2, Some(1))), "b");
        let first = progress.published_at;
        sleep(WITHIN / 2).await;
        progress.allocation = Arc::new(object(7, 2, Some(2)));
        progress.published(Arc::new(object(8, 3, Some(2))), "b");
        assert!(first.is_some() && progress.published_at == first);
    }

    #[test]
    fn an_answer_is_of_this_object_generation_and_boot() {
        let published = object(6, 2, Some(1));
        let with = |newest: NodeIPAllocation, boot| answers(&newest, &published, &node(boot), 2);
        assert_eq!(with(object(7, 2, Some(2)), "b"), Some(true));
        assert_eq!(with(object(7, 2, Some(1)), "b"), None);
        assert_eq!(with(object(7, 2, Some(2)), "c"), None);
        assert_eq!(with(object(7, 3, Some(3)), "b"), Some(false));
        let mut again = object(7, 2, Some(2));
        again.metadata.uid = Some("again".to_owned());
        assert_eq!(with(again, "b"), Some(false));
    }

    /// What is reported by a plan of before would be wrong: a node that has given up addresses hasn't settled
    /// before these are released.
    #[test]
    fn an_answer_by_which_there_is_more_to_do_is_for_the_next_reconcile() {
        let published = object(6, 2, Some(1));
        let with = |more: Value| {
            let mut status = json!({"bootID": "b", "observedGeneration": 2});
            status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            answers(&reported(7, 2, status), &published, &node("b"), 1)
        };
        assert_eq!(with(json!({"assigned": 2, "held": 4, "free": 2, "pods": 2})), Some(true));
        let holder = json!([{"address": "10.0.0.5", "podUID": "u", "sandbox": "s/eth0"}]);
        for more in [
            json!({"assigned": 2, "relinquished": ["vnp-1"]}),
            json!({"assigned": 2, "unlisted": ["vnp-1"]}),
            json!({"assigned": 2, "confirmed": holder}),
            json!({"assigned": 2, "lost": holder}),
            json!({"assigned": 2, "cooling": 1}),
            json!({"assigned": 2, "waiting": 1}),
            json!({}),
        ] {
            assert_eq!(with(more.clone()), Some(false), "{more}");
        }
    }
}
