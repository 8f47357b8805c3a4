//! Makes the NodeIPAllocation of a Node that a pool serves and that has none.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::caught::or_later;
use crate::cluster::paced;
use crate::context::{Context, Stop};
use crate::node_object::Node;

/// After an error of the API server.
const RETRY: Duration = Duration::from_secs(8);

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
    or_later(&node.name_any(), admit(&node, &ctx)).await
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
