//! Makes the NodeIPAllocation of a Node that a pool serves and that has none.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use kube::ResourceExt;
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;
use tracing::{info, warn};
use vnetpool_apiserver::jittered;

use super::publish::{self, Lasting};
use crate::api_server::{CONFLICT, is_status};
use crate::caught::{RETRY, or_later};
use crate::cluster::paced;
use crate::context::{Context, Stop};
use crate::node_object::Node;

/// Runs until `stop`.
pub async fn run(ctx: Arc<Context>, requests: UnboundedReceiver<ObjectRef<Node>>, stop: Stop) {
    Controller::for_stream(futures::stream::pending(), ctx.cluster.nodes())
        .graceful_shutdown_on(stop)
        .reconcile_on(paced(requests))
        .run(reconcile, |_, _, _| Action::requeue(jittered(RETRY)), ctx)
        .for_each(|result| async {
            match result {
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(controller::Error::ReconcilerFailed(error, node)) => {
                    warn!(node = node.name, %error, "Node not admitted");
                }
                Err(error) => warn!(%error, "Node not admitted"),
            }
        })
        .await;
}

async fn reconcile(node: Arc<Node>, ctx: Arc<Context>) -> Result<Action, kube::Error> {
    or_later(&ctx, ("admit", &node.name_any()), admit(&node, &ctx)).await
}

async fn admit(node: &Node, ctx: &Context) -> Result<Action, kube::Error> {
    let name = node.name_any();
    // An unreadable one is there, too.
    let is_known = ctx.cluster.allocation(&name).is_some() || ctx.cluster.unreadable(&name).is_some();
    if is_known || node.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let (Some(pool), Some(uid)) = (ctx.cluster.pool_of(node), node.uid()) else {
        return Ok(Action::await_change());
    };
    let started = Instant::now();
    let policy = &pool.spec;
    let first = Lasting {
        node_uid: uid,
        pool: pool.name_any(),
        mode: policy.mode,
        wiring: policy.wiring,
        sizing: Some(policy.sizing.clone()),
        cooldown: policy.cooldown,
        pod_metadata_access: policy.pod_metadata_access,
    };
    match publish::create(ctx, &name, first).await {
        Ok(made) => info!(node = name, pool = made.spec.pool, "Node admitted"),
        Err(error) if is_status(&error, CONFLICT) => {}
        Err(error) => {
            ctx.metrics.reconciled("admit", "APIServer", started.elapsed());
            return Err(error);
        }
    }
    ctx.metrics.reconciled("admit", "ok", started.elapsed());
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{self, Cluster};
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::json;
    use std::time::Duration;

    #[tokio::test]
    async fn a_new_node_about_which_the_api_server_never_answers_is_given_up_and_tried_again() {
        let ((nodes, _), (allocations, _), (pools, mut all_pools)) =
            (reflector::store(), reflector::store(), reflector::store());
        let pool = json!({"metadata": {"name": "p", "uid": "p", "generation": 1}, "spec": {}});
        all_pools.apply_watcher_event(&serde_json::from_value(pool).map(Event::Apply).unwrap());
        let cluster = Cluster::new(nodes, allocations, pools, tokio::sync::watch::channel(true).1);
        let (waker, _wakeups) = cluster::channels();
        let (ctx, _silent) =
            Context::sample_of((cluster, waker), None).before_silence(Duration::from_secs(1));
        let ctx = Arc::new(ctx);
        let node = json!({"metadata": {"name": "n", "uid": "u"}});
        let work = reconcile(Arc::new(serde_json::from_value(node).unwrap()), ctx.clone());
        let done = tokio::time::timeout(Duration::from_secs(20), work).await.expect("it waits for ever");
        assert_ne!(done.unwrap(), Action::await_change(), "it isn't tried again");
        let counted = r#"reconciles_total{controller="admit",outcome="Overdue"} 1"#;
        assert!(ctx.metrics.render().unwrap().contains(counted));
    }
}
