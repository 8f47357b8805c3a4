//! The agent's answer to a `spec`: its report that it has taken that up. Conditions wait for it, so that one
//! write of them has what was published and what the agent has made of that. And a report is applied only to
//! the version it was made from: conditions that come right after the `spec` would have it refused.

use std::time::Duration;

use kube::ResourceExt;
use tokio::time::timeout_at;
use vnetpool_crds::NodeIPAllocation;

use super::lag::{Lag, lag};
use super::progress::Progress;
use crate::cluster::woken;
use crate::context::Context;

/// By no more than this conditions are late. An agent whose rules stay the same answers in a fifth of it.
const WITHIN: Duration = Duration::from_secs(1);

/// Waits for the agent's answer to the `spec` that was just published, or until pods come or go: these are
/// for the next reconcile, which they don't wait for. Returns whether the answer is there.
pub async fn comes(ctx: &Context, progress: &Progress, boot_id: &str) -> bool {
    let Some(published_at) = progress.published_at else { return false };
    let name = progress.allocation.name_any();
    let (mut wakeups, pods) = (ctx.waker.hear(&name), ctx.cluster.bound(&name));
    let answer = async {
        loop {
            let newest = ctx.cluster.allocation(&name).filter(|_| ctx.cluster.bound(&name) == pods);
            let Some(newest) = newest else { return false };
            if let Some(is_there) = answers(&newest, &progress.allocation, boot_id) {
                return is_there;
            }
            woken(&mut wakeups).await;
        }
    };
    timeout_at(published_at + WITHIN, answer).await.unwrap_or(false)
}

/// Whether this version has the answer to the published one; `None`: not yet. Once another has written `spec`
/// or made the object again there is none.
fn answers(newest: &NodeIPAllocation, published: &NodeIPAllocation, boot_id: &str) -> Option<bool> {
    let [now, then] = [newest, published].map(|one| (&one.metadata.uid, one.metadata.generation));
    match lag(newest, boot_id) {
        _ if now != then => Some(false),
        Lag::None => Some(true),
        Lag::Behind | Lag::Silent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::need::Need;
    use super::*;
    use crate::cluster::Cluster;
    use serde_json::json;
    use std::sync::Arc;
    use tokio::time::{Instant, sleep};

    /// An object of this version and generation, of which the agent has taken up `observed`.
    fn object(version: u32, generation: i64, observed: Option<i64>) -> NodeIPAllocation {
        let metadata = json!({"name": "n", "uid": "a", "resourceVersion": version.to_string(),
            "generation": generation});
        let status = json!({"bootID": "b", "observedGeneration": observed});
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
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
        (comes(&ctx, &progress, "b").await, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_wait_for_an_agent_that_answers_and_a_second_for_one_that_does_not() {
        let (is_there, after) = wait(Some(1), object(7, 2, Some(2))).await;
        assert!(is_there && after < WITHIN / 2, "{after:?}");
        let (is_there, after) = wait(Some(1), object(7, 2, Some(1))).await;
        assert!(
            !is_there && after > WITHIN / 2 && after < 2 * WITHIN,
            "a report on the one before: {after:?}"
        );
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
        let with = |newest: NodeIPAllocation, boot| answers(&newest, &published, boot);
        assert_eq!(with(object(7, 2, Some(2)), "b"), Some(true));
        assert_eq!(with(object(7, 2, Some(1)), "b"), None);
        assert_eq!(with(object(7, 2, Some(2)), "c"), None);
        assert_eq!(with(object(7, 3, Some(3)), "b"), Some(false));
        let mut again = object(7, 2, Some(2));
        again.metadata.uid = Some("again".to_owned());
        assert_eq!(with(again, "b"), Some(false));
    }
}
