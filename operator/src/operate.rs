//! A replica's life: it waits for the Lease, runs the controllers, ends the work under way and releases the
//! Lease. A replica that loses the Lease begins anew, without anything that it knew.

mod news;

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::channel::mpsc::UnboundedReceiver;
use futures::channel::oneshot;
use futures::{FutureExt, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};
use vnetpool_apiserver::reading::Unreadable;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::reason::Reason;

use crate::azure::{self, Azure};
use crate::cluster::{Cluster, Wakeups, Watched, unreadable};
use crate::context::{Context, Stop, Waits};
use crate::events::{self, Events};
use crate::health::Health;
use crate::leader::{Candidate, Ending, Leadership};
use crate::left_alone::Architectures;
use crate::lock::lock;
use crate::metrics::{self, Metrics};
use crate::rollout::Rollouts;
use crate::scarcity::Scarcity;
use crate::writes;
use crate::{admin, node, pool};

/// The Lease's name.
const LEASE: &str = "vnetpool-operator";
/// A store that is set back shows a Lease that was last renewed at least so long ago: a restore of a backup
/// takes longer. A leader is replaced within a third of that.
const LEADERLESS: Duration = Duration::from_secs(60);
/// How long reconciles under way may take to end when the process is asked to: a NIC write takes about ten
/// seconds.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the last Events may take to be published after that.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// All settings of the process.
#[derive(Clone, Debug)]
pub struct Config {
    pub azure: azure::Config,
    /// The namespace of the Lease.
    pub namespace: String,
    /// Distinguishes replicas, and one start of a replica from the next.
    pub identity: String,
    /// Where to serve metrics and health; nowhere, if none.
    pub admin: Option<SocketAddr>,
    /// Where to serve metrics to others than the node itself.
    pub scraped: Option<SocketAddr>,
    pub architectures: Architectures,
    pub waits: Waits,
}

/// Why the operator ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Azure(#[from] azure::Error),
    #[error("the admin endpoint can't be served on {address}: {source}")]
    Admin { address: SocketAddr, source: std::io::Error },
    #[error("a background task ended: {task}")]
    Ended { task: &'static str },
}

/// Serves these; gives the error that ended it.
async fn listen(address: SocketAddr, routes: Router) -> Error {
    match vnetpool_admin::serve(address, routes).await {
        Ok(never) => match never {},
        Err(source) => Error::Admin { address, source },
    }
}

/// Runs the operator until `stop`, then ends the reconciles under way and gives the Lease up. Dropped, it
/// stops at once. The client `lease` is for the Lease and for nothing else: when an API server dies without a
/// word, all idle connections of a client are dead, and the time in which a Lease must be renewed is enough
/// to find out one.
///
/// # Errors
/// When it can't go on; the caller should end the process, for then another replica leads.
pub async fn run(
    config: Config,
    client: Client,
    lease: Client,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut stop = pin!(stop);
    let mut candidate = Candidate::new(lease, &config.namespace, LEASE, config.identity.clone());
    loop {
        match serve(&config, &client, &mut candidate, stop.as_mut()).await {
            // An outage of the API server is no reason to restart a process.
            Ok(Some(lost)) => warn!(error = %lost, "begins anew as a standby"),
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Stands by and leads, until `stop` or until the Lease is lost; returns the reason. All its tasks end with
/// it, so that nothing is written in its name beside the next leadership, and no task keeps its view.
async fn serve(
    config: &Config,
    client: &Client,
    candidate: &mut Candidate,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Ending>, Error> {
    let metrics = Arc::new(Metrics::default());
    let health = metrics.health.clone();
    let azure = Arc::new(Azure::new(&config.azure)?);
    metrics::observe(&metrics, &azure);
    let mut tasks = JoinSet::new();
    // A standby watches, too, so that it knows the cluster when it comes to lead.
    let Watched { cluster, waker, mut wakeups, watches } =
        Cluster::watch(client, &health, &config.architectures);
    for (task, watch) in watches {
        spawn(&mut tasks, task, &health, watch);
    }
    let ready = follow_readiness(&mut tasks, &health, cluster.clone());
    open(&mut tasks, config, &metrics, ready);

    let mut leadership = tokio::select! {
        acquired = candidate.acquire() => match acquired {
            Ok(leadership) => leadership,
            Err(lost) => {
                tasks.shutdown().await;
                return Ok(Some(lost));
            }
        },
        () = wakeups.ignore() => return Err(Error::Ended { task: "watches" }),
        error = ended(&mut tasks) => return Err(error),
        () = &mut stop => return Ok(None),
    };
    metrics.leading(true);
    let may_be_set_back = leadership.was_set_back() || is_leaderless(leadership.gap());
    let unled_since = leadership.gap().map(|gap| Timestamp::now() - gap);
    // Only the leader serves the nodes' states, or each would be counted once for every replica.
    metrics::watch(&metrics, &cluster);
    let tenure = leadership.tenure();
    let fenced = writes::fenced(client.clone(), tenure.clone());
    let may_write = tenure.clone();
    azure.begin_to_lead(move || may_write.is_sure(), config.waits.late);

    let (events, mut delivery) = deliver(config, client, &cluster, &health);
    let ctx = Arc::new(Context::new(
        fenced,
        events,
        azure,
        metrics,
        (cluster, waker),
        (unled_since, may_be_set_back),
        config.waits,
    ));
    let beside = ctx.beside.clone();
    spawn(&mut tasks, "networks", &health, news::follow(ctx.clone()));
    spawn(&mut tasks, "turns", &health, node::turns::keep_time(ctx.clone()));

    let outcome = lead(&mut leadership, &mut tasks, (ctx, wakeups), stop).await;
    tenure.end();
    tasks.shutdown().await;
    beside.end().await;
    if let Ok(None) = outcome {
        leadership.release().await;
        if timeout(LAST_WORDS, delivery.join_next()).await.is_err() {
            warn!("some Events were not published");
        }
    }
    outcome
}

/// Opens the endpoints of probes and metrics that are configured.
fn open(tasks: &mut JoinSet<Error>, config: &Config, metrics: &Arc<Metrics>, ready: watch::Receiver<bool>) {
    let scrapes = || {
        let metrics = metrics.clone();
        vnetpool_admin::scrapes(move || metrics.render())
    };
    if let Some(address) = config.admin {
        let routes = admin::probes(metrics.clone(), ready).merge(scrapes());
        tasks.spawn(listen(address, routes));
    }
    if let Some(address) = config.scraped {
        tasks.spawn(listen(address, scrapes()));
    }
}

/// Turns true once the caches are filled.
fn follow_readiness(
    tasks: &mut JoinSet<Error>,
    health: &Arc<Health>,
    cluster: Cluster,
) -> watch::Receiver<bool> {
    let (is_ready, ready) = watch::channel(false);
    let sync = async move {
        if cluster.ready().await {
            is_ready.send_replace(true);
        }
        // Never again otherwise: a list that is made anew takes nothing out of the caches before it is
        // complete.
        futures::future::pending().await
    };
    spawn(tasks, "readiness", health, sync);
    ready
}

/// The queue of Events, and the task that delivers them. That has a JoinSet of its own, because it may end:
/// it delivers the Events of tasks that ended before it.
fn deliver(
    config: &Config,
    client: &Client,
    cluster: &Cluster,
    health: &Arc<Health>,
) -> (Events, JoinSet<()>) {
    let view = cluster.clone();
    let pool_of = move |node: &str| {
        let pool = view.pools().get(&ObjectRef::new(&view.allocation(node)?.spec.pool))?;
        Some(pool.object_ref(&()))
    };
    let (events, deliver) = Events::new(client.clone(), &config.identity, pool_of);
    let mut delivery = JoinSet::new();
    let alive = health.clone();
    delivery.spawn(async move { alive.alive("Events", deliver).await });
    (events, delivery)
}

/// Runs the controllers until `stop`, then until the reconciles under way are done. Gives how the Lease was
/// lost, if it was meanwhile.
async fn lead(
    leadership: &mut Leadership<'_>,
    tasks: &mut JoinSet<Error>,
    (ctx, wakeups): (Arc<Context>, Wakeups),
    stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Ending>, Error> {
    let (end, stopped) = oneshot::channel();
    let stopped = stopped.map((|_| ()) as fn(Result<(), oneshot::Canceled>)).shared();
    let mut control = pin!(control(ctx, wakeups, stopped));
    tokio::select! {
        lost = leadership.keep() => return Ok(Some(lost)),
        error = ended(tasks) => return Err(error),
        ended = &mut control => return match ended {
            Ok(()) => Err(Error::Ended { task: "controllers" }),
            Err(lost) => Ok(Some(lost)),
        },
        () = stop => info!("asked to stop"),
    }
    drop(end);
    tokio::select! {
        lost = leadership.keep() => warn!(error = %lost, "no longer the leader"),
        drained = timeout(DRAIN, control) => {
            if drained.is_err() {
                warn!("reconciles under way are abandoned: the next leader reads their NICs");
            }
        }
    }
    Ok(None)
}

/// The controllers. End when they are stopped and their reconciles are done.
async fn control(ctx: Arc<Context>, mut wakeups: Wakeups, stop: Stop) -> Result<(), Ending> {
    let proved = async {
        let is_ready = ctx.cluster.ready().await;
        if is_ready {
            ctx.cluster.catch_up_with(&ctx.client).await?;
            let nodes = ctx.cluster.allocations().state();
            *lock(&ctx.rollouts) = Rollouts::of(nodes.iter().map(AsRef::as_ref));
            let pools = ctx.cluster.pools().state();
            let statuses = pools.iter().filter_map(|pool| pool.status.as_ref());
            *lock(&ctx.scarcity) = Scarcity::recalled(statuses.flat_map(|status| &status.scarce_writes));
        }
        Ok(is_ready)
    };
    tokio::select! {
        is_proved = proved => if !is_proved? { return Ok(()) },
        () = wakeups.ignore() => return Ok(()),
        () = stop.clone() => return Ok(()),
    }
    ctx.cluster.wake_all(&ctx.waker);
    info!(nodes = ctx.cluster.nodes().len(), "caches are as new as the Lease, controllers start");
    let Wakeups { nodes, allocations, pools, unreadable } = wakeups;
    let controllers = async {
        futures::join!(
            node::controller::run(ctx.clone(), allocations, stop.clone()),
            node::admit::run(ctx.clone(), nodes, stop.clone()),
            pool::run(ctx.clone(), pools, stop),
        )
    };
    let allocations = || ctx.cluster.allocations().state();
    let tables = node::backend::watch(&ctx.azure, allocations, |node| ctx.waker.allocation(node));
    tokio::select! {
        _ = controllers => {}
        () = report(&ctx, unreadable) => {}
        () = tables => {}
    }
    Ok(())
}

/// Reports each object that has turned out to be unreadable, and the nodes or pools that it concerns.
async fn report(ctx: &Context, mut unreadable: UnboundedReceiver<Arc<Unreadable>>) {
    while let Some(object) = unreadable.next().await {
        let node = ctx.cluster.node(&object.name()).filter(|_| object.kind == NodeIPAllocation::kind(&()));
        let about = node.map(|node| node.object_ref(&())).into_iter().chain([object.object_ref()]);
        let event = events::stuck(Reason::Unreadable, "Read", &unreadable::message(&object));
        ctx.events.report(&about.collect::<Vec<_>>(), event);
    }
}

/// A background task that must not end.
fn spawn(
    tasks: &mut JoinSet<Error>,
    task: &'static str,
    health: &Arc<Health>,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let health = health.clone();
    tasks.spawn(async move {
        health.alive(task, work).await;
        Error::Ended { task }
    });
}

/// Waits for the first background task to end.
async fn ended(tasks: &mut JoinSet<Error>) -> Error {
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(_)) => Error::Ended { task: "one that panicked" },
        None => futures::future::pending().await,
    }
}

/// Whether no replica led for so long before this leader that the store may have been set back: its Lease
/// wasn't renewed for that time, or there was none.
fn is_leaderless(gap: Option<Duration>) -> bool {
    gap.is_none_or(|gap| gap > LEADERLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_not_there_or_was_not_renewed_for_a_minute_may_be_of_a_store_that_was_set_back() {
        let after = |seconds| is_leaderless(Some(Duration::from_secs(seconds)));
        assert_eq!([after(0), after(60), after(61), is_leaderless(None)], [false, false, true, true]);
    }
}
