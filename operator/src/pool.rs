//! The pool controller: is the pool sound, and how do its nodes stand?

mod blocks;
mod forecast;
mod leaving;
mod left_alone;
mod rolling;
mod scarce;
pub mod status;
mod unreadable;
#[cfg(test)]
mod whole;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tracing::warn;
use vnetpool_apiserver::jittered;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::condition::{self, NETWORK_EXHAUSTING, SELECTED, SUBNET_EXHAUSTING, VALID};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::{NodeIPPool, NodeIPPoolStatus, names};

use crate::api_server::read_again;
use crate::azure::ResourceId;
use crate::caught::{RETRY, or_later};
use crate::context::{Context, Stop};
use crate::events;
use crate::lock::lock;
use crate::network::{Hint, Networks, Subnet};
use crate::pod_cidr;
use blocks::Blocks;
use status::{is_the_same, only_sums_differ, roll_up, turned_false, turned_true};

/// A pool is reconciled no more often than this.
const PACE: Duration = Duration::from_secs(1);
/// Sums alone are written no more often than this: every report of any of its nodes changes them.
const SUMS: Duration = Duration::from_secs(30);
/// So many objects or reasons are named in a message.
const NAMED: usize = 5;

/// The state that all reconciles of pools share.
struct Pools {
    ctx: Arc<Context>,
    /// When each pool was last reconciled.
    reconciled: Mutex<HashMap<String, Instant>>,
    /// What was last written to the status of a pool, by its name.
    written: Mutex<HashMap<String, Written>>,
    /// The writes that the API server hasn't answered.
    unanswered: Mutex<HashMap<String, Unanswered>>,
}

struct Written {
    /// The pool's: one of the same name may be made anew.
    uid: Option<String>,
    at: Instant,
    conditions: Vec<Condition>,
    /// The last generation whose rollout has stopped. Nodes are tried again and refused again, and each time
    /// it goes on for a moment: that is no news of the same edit.
    stopped: Option<i64>,
}

struct Unanswered {
    uid: Option<String>,
    /// The conditions that the pool had before.
    before: Vec<Condition>,
    next: NodeIPPoolStatus,
}

/// Runs until `stop`.
pub async fn run(ctx: Arc<Context>, requests: UnboundedReceiver<ObjectRef<NodeIPPool>>, stop: Stop) {
    let pools = Pools::new(ctx.clone());
    Controller::for_stream(futures::stream::pending(), ctx.cluster.pools())
        .graceful_shutdown_on(stop)
        .reconcile_on(requests)
        .run(reconcile, |_, _, _| Action::requeue(jittered(RETRY)), Arc::new(pools))
        .for_each(|result| async {
            match result {
                Ok(_) => {}
                // Its nodes still name a pool that is gone.
                Err(controller::Error::ObjectNotFound(pool)) => ctx.metrics.pool_gone(&pool.name),
                Err(controller::Error::ReconcilerFailed(error, pool)) => {
                    warn!(pool = pool.name, %error, "pool not reported");
                }
                Err(error) => warn!(%error, "pool not reported"),
            }
        })
        .await;
}

async fn reconcile(pool: Arc<NodeIPPool>, pools: Arc<Pools>) -> Result<Action, kube::Error> {
    or_later(&pools.ctx, ("pool", &pool.name_any()), reconcile_one(&pool, &pools)).await
}

async fn reconcile_one(pool: &NodeIPPool, controller: &Pools) -> Result<Action, kube::Error> {
    let (ctx, name, now) = (&controller.ctx, pool.name_any(), Instant::now());
    if let Some(rest) = controller.too_soon(&name, now) {
        return Ok(Action::requeue(rest));
    }
    if ctx.cluster.is_unreadable_pool(&name) {
        return Ok(Action::await_change());
    }
    controller.settle_unanswered(pool, now).await?;
    let before = pool.status.clone().unwrap_or_default();
    let (next, due) = status_of(ctx, pool, Timestamp::now());
    ctx.metrics.pool(&name, &next);
    if is_the_same(&before, &next) {
        ctx.metrics.reconciled("pool", "ok", now.elapsed());
        return Ok(again(due));
    }
    if let Some(rest) = controller.sums_wait(pool, now).filter(|_| only_sums_differ(&before, &next)) {
        return Ok(again(due.into_iter().chain([rest]).min()));
    }
    let asked = Unanswered { uid: pool.uid(), before: before.conditions, next: next.clone() };
    lock(&controller.unanswered).insert(name.clone(), asked);
    let result = apply(ctx, &name, &next).await;
    ctx.metrics.reconciled("pool", if result.is_ok() { "ok" } else { "APIServer" }, now.elapsed());
    result?;
    if let Some(asked) = lock(&controller.unanswered).remove(&name) {
        controller.report(pool, asked, now);
    }
    Ok(again(due))
}

/// The status of a pool by what is known of its nodes, of no others, and how long until it may be another
/// though nothing changes.
fn status_of(ctx: &Context, pool: &NodeIPPool, now: Timestamp) -> (NodeIPPoolStatus, Option<Duration>) {
    let (cluster, name) = (&ctx.cluster, pool.name_any());
    let (served, pools, alone) = (cluster.served_by(&name), cluster.pools().state(), cluster.left_alone());
    let nodes = || served.iter().map(Arc::as_ref);
    // A thousand nodes are in one subnet or a few.
    let subnets: BTreeSet<&str> =
        nodes().flat_map(|node| &node.spec.interfaces).map(|nic| nic.subnet.id.as_str()).collect();
    let networks = ctx.networks.known_among(subnets.into_iter());
    let conflict = pod_cidr::conflict(pool, pools.iter().map(Arc::as_ref), &networks);
    let mut next = roll_up(pool, nodes(), conflict, now);
    let blocks = Blocks(cluster.blocks());
    let known = |id: &str| known(&ctx.networks, &blocks, &id.parse().ok()?);
    forecast::report(pool, &mut next, known, now);
    let usages = |vnet: &ResourceId| ctx.networks.usages(vnet);
    forecast::report_networks(pool, &mut next, usages, &blocks, now);
    left_alone::report(pool, &mut next, alone.iter().map(Arc::as_ref), cluster.architectures(), now);
    leaving::report(pool, &mut next, nodes(), now);
    let due = rolling::report(pool, &mut next, nodes(), now);
    let coarseness = |subscription: &str| lock(&ctx.scarcity).coarseness(subscription);
    scarce::report(pool, &mut next, nodes(), coarseness, now);
    unreadable::report(pool, &mut next, &cluster.unreadable_of(&name), now);
    (next, due)
}

/// When to report the pool again though nothing has changed.
fn again(due: Option<Duration>) -> Action {
    due.map_or_else(Action::await_change, Action::requeue)
}

impl Pools {
    fn new(ctx: Arc<Context>) -> Pools {
        Pools { ctx, reconciled: Mutex::default(), written: Mutex::default(), unanswered: Mutex::default() }
    }

    /// Reads the pool if the answer to its last status is lost. If that stands there, its Events are
    /// published now; otherwise it will be written again.
    async fn settle_unanswered(&self, pool: &NodeIPPool, now: Instant) -> Result<(), kube::Error> {
        let name = pool.name_any();
        if !lock(&self.unanswered).contains_key(&name) {
            return Ok(());
        }
        let found = read_again(&self.ctx.client, pool).await?;
        let asked = lock(&self.unanswered).remove(&name).filter(|asked| asked.uid == pool.uid());
        if let Some((asked, found)) = asked.zip(found.and_then(|found| found.status))
            && condition::same(&found.conditions, &asked.next.conditions)
        {
            self.report(pool, asked, now);
        }
        Ok(())
    }

    /// The pool has this status now: publishes an Event for each condition that has turned.
    fn report(&self, pool: &NodeIPPool, Unanswered { before, next, .. }: Unanswered, now: Instant) {
        let report = |event| self.ctx.events.report(&[pool.object_ref(&())], event);
        // The watch may not have shown yet what was written last, and each turn is published once.
        let written = self.wrote(pool, &next, now);
        let stopped = written.as_ref().and_then(|written| written.stopped);
        let reported = written.map_or(before, |written| written.conditions);
        if let Some(invalid) = turned_false(VALID, &reported, &next.conditions) {
            report(events::turned(invalid, "Validate"));
        }
        if let Some(leave) = turned_false(SELECTED, &reported, &next.conditions) {
            report(events::turned(leave, "Select"));
        }
        let turned = rolling::turned_stopped(&reported, &next.conditions);
        if let Some(turned) =
            turned.filter(|turned| stopped.is_none() || turned.observed_generation != stopped)
        {
            report(events::stuck(Reason::RolloutStopped, "RollOut", &turned.message));
        }
        for (type_, reason) in
            [(SUBNET_EXHAUSTING, Reason::SubnetExhausting), (NETWORK_EXHAUSTING, Reason::NetworkExhausting)]
        {
            if let Some(short) = turned_true(type_, &reported, &next.conditions) {
                report(events::stuck(reason, "Forecast", &short.message));
            }
        }
    }

    /// How much longer to wait; none starts the wait anew.
    fn too_soon(&self, pool: &str, now: Instant) -> Option<Duration> {
        let mut reconciled = lock(&self.reconciled);
        let rest = reconciled
            .get(pool)
            .map_or(Duration::ZERO, |last| PACE.saturating_sub(now.duration_since(*last)));
        if rest.is_zero() {
            reconciled.insert(pool.to_owned(), now);
        }
        (!rest.is_zero()).then_some(rest)
    }

    /// How much longer sums alone are to wait.
    fn sums_wait(&self, pool: &NodeIPPool, now: Instant) -> Option<Duration> {
        let written = lock(&self.written);
        let last = written.get(&pool.name_any()).filter(|last| last.uid == pool.uid())?.at;
        Some(SUMS.saturating_sub(now.duration_since(last))).filter(|rest| !rest.is_zero())
    }

    /// Notes that this was written, and gives what was written to the same pool before.
    fn wrote(&self, pool: &NodeIPPool, status: &NodeIPPoolStatus, now: Instant) -> Option<Written> {
        let mut all = lock(&self.written);
        let last = all.remove(&pool.name_any()).filter(|last| last.uid == pool.uid());
        let stopped = rolling::stopped(&status.conditions).and_then(|stopped| stopped.observed_generation);
        let stopped = stopped.or(last.as_ref().and_then(|last| last.stopped));
        let written = Written { uid: pool.uid(), at: now, conditions: status.conditions.clone(), stopped };
        all.insert(pool.name_any(), written);
        last
    }
}

async fn apply(ctx: &Context, name: &str, status: &NodeIPPoolStatus) -> Result<(), kube::Error> {
    let object = json!({
        "apiVersion": NodeIPPool::api_version(&()),
        "kind": NodeIPPool::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    let params = PatchParams::apply(names::OPERATOR).force();
    let (api, patch) = (Api::<Reading<NodeIPPool>>::all(ctx.client.clone()), Patch::Apply(&object));
    ctx.writes.report(api.patch_status(name, &params, &patch)).await?;
    Ok(())
}

/// What is known of a subnet. What lies in blocks isn't free, however Azure counts these.
fn known(networks: &Networks, blocks: &Blocks, id: &ResourceId) -> Option<Subnet> {
    let subnet = networks.subnet(id)?;
    let (Hint::Counted(free), Hint::Counted(usages)) = (&subnet.free, networks.usages(&id.parent()?)) else {
        return Some(subnet);
    };
    let hidden = blocks.hidden(id, blocks.reading(&id.parent()?, &usages));
    Some(Subnet { free: Hint::Counted(free.saturating_sub(hidden)), ..subnet })
}

#[cfg(test)]
mod tests {
    use super::status::tests::pool;
    use super::*;
    use vnetpool_crds::verdict::Verdict;

    #[tokio::test]
    async fn a_pool_about_which_the_api_server_never_answers_is_given_up_and_reported_again() {
        let (ctx, _silent) = Context::sample().before_silence(Duration::from_secs(1));
        let ctx = Arc::new(ctx);
        let work = reconcile(Arc::new(pool(json!({}))), Arc::new(Pools::new(ctx.clone())));
        let done = tokio::time::timeout(Duration::from_secs(20), work).await.expect("it waits for ever");
        assert_ne!(done.unwrap(), Action::await_change(), "it isn't reported again");
        let counted = r#"reconciles_total{controller="pool",outcome="Overdue"} 1"#;
        assert!(ctx.metrics.render().unwrap().contains(counted));
    }

    #[tokio::test]
    async fn of_the_pools_that_had_a_name_the_last_ones_status_is_kept() {
        let ctx = Arc::new(Context::sample());
        let pools = Pools::new(ctx);
        let (mut pool, status, now) = (pool(json!({})), NodeIPPoolStatus::default(), Instant::now());
        for uid in ["a", "b", "c"] {
            pool.metadata.uid = Some(uid.into());
            assert!(pools.sums_wait(&pool, now).is_none() && pools.wrote(&pool, &status, now).is_none());
            assert!(pools.sums_wait(&pool, now).is_some() && pools.wrote(&pool, &status, now).is_some());
        }
        assert_eq!(lock(&pools.written).len(), 1);
    }

    #[tokio::test]
    async fn the_edit_that_has_stopped_is_known_while_its_nodes_are_tried_again() {
        let (pools, now) = (Pools::new(Arc::new(Context::sample())), Instant::now());
        let mut pool = pool(json!({}));
        pool.metadata.uid = Some("u".into());
        let stopped = |generation| {
            let verdict = Verdict::yes(Reason::RolloutStopped, "m");
            let condition = verdict.condition(condition::STALLED, Some(generation), Timestamp::UNIX_EPOCH);
            NodeIPPoolStatus { conditions: vec![condition], ..NodeIPPoolStatus::default() }
        };
        let written = [stopped(3), NodeIPPoolStatus::default(), stopped(3), stopped(4), stopped(4)];
        let known = written.map(|status| pools.wrote(&pool, &status, now).and_then(|last| last.stopped));
        assert_eq!(known, [None, Some(3), Some(3), Some(3), Some(4)]);
    }
}
