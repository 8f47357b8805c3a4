//! Has nodes reconciled: each with its memory, within a deadline, and again when that is due.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc::{self, UnboundedReceiver};
use futures::future::join_all;
use kube::ResourceExt;
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;
use tracing::{Instrument, debug, info_span, warn};
use vnetpool_apiserver::{doubled, jittered};
use vnetpool_crds::NodeIPAllocation;

use super::error::Error;
use super::memory::Memories;
use super::progress::{Next, SOON};
use super::{reconcile_one, takeup, turns};
use crate::caught::caught;
use crate::cluster::paced;
use crate::context::{Context, Stop};
use crate::deadline::{Overdue, within};

/// The state that all reconciles of nodes share.
struct Nodes {
    ctx: Arc<Context>,
    memories: Memories,
}

impl Nodes {
    /// There is no object of that name: a Node or a pod wakes it before it is made, and one may go by another
    /// hand, without a reconcile.
    fn absent(&self, name: &str) {
        self.memories.forget(name);
        takeup::leave(&self.ctx, name);
        turns::stand_back(&self.ctx, name);
    }
}

/// So many controllers share the nodes.
///
/// kube-runtime 5's controller visits all objects that it has under way, and all that wait behind one,
/// whenever one of them is woken or ends. When a cluster is new, nearly all nodes wait for Azure at once. The
/// work of one controller would grow with the square of their number.
const SHARDS: u64 = 64;

/// Runs until `stop`; then reconciles under way are finished.
///
/// Concurrency is unbounded: Azure's budget sets the pace.
pub async fn run(ctx: Arc<Context>, requests: UnboundedReceiver<ObjectRef<NodeIPAllocation>>, stop: Stop) {
    let nodes = Arc::new(Nodes { ctx: ctx.clone(), memories: Memories::new(ctx.may_be_set_back) });
    let (shards, queues): (Vec<_>, Vec<_>) = (0..SHARDS).map(|_| mpsc::unbounded()).unzip();
    let controllers = queues.into_iter().map(|requests| control(nodes.clone(), requests, stop.clone()));
    let spread = async {
        paced(requests)
            .for_each(async |object| {
                // A controller that has ended takes no more work.
                let _ = shards[shard(&object.name)].unbounded_send(object);
            })
            .await;
        std::future::pending().await
    };
    tokio::select! {
        _ = join_all(controllers) => {}
        () = spread => {}
    }
}

/// Which of the controllers has this node.
fn shard(node: &str) -> usize {
    (BuildHasherDefault::<DefaultHasher>::default().hash_one(node) % SHARDS) as usize
}

async fn control(nodes: Arc<Nodes>, requests: UnboundedReceiver<ObjectRef<NodeIPAllocation>>, stop: Stop) {
    let all = nodes.clone();
    Controller::for_stream(futures::stream::pending(), nodes.ctx.cluster.allocations())
        .graceful_shutdown_on(stop)
        .reconcile_on(requests)
        .run(reconcile, error_policy, nodes)
        .for_each(|result| async {
            match result {
                Ok(_) => {}
                Err(controller::Error::ObjectNotFound(object)) => all.absent(&object.name),
                Err(controller::Error::ReconcilerFailed(error, object)) if error.is_conflict() => {
                    debug!(node = object.name, %error, "planned from the past");
                }
                Err(controller::Error::ReconcilerFailed(error, object)) => {
                    warn!(node = object.name, %error, "reconcile failed");
                }
                Err(error) => warn!(%error, "reconcile failed"),
            }
        })
        .await;
}

async fn reconcile(watched: Arc<NodeIPAllocation>, nodes: Arc<Nodes>) -> Result<Action, Error> {
    let Nodes { ctx, memories } = &*nodes;
    let name = watched.name_any();
    let started = Instant::now();
    // Each pod that comes or goes from here on wakes the node again.
    ctx.cluster.settle(&name, None);
    if let Some(unreadable) = ctx.cluster.unreadable(&name) {
        // Unknown isn't absent. The node is woken when it can be read.
        debug!(node = name, kind = unreadable.kind, object = unreadable.name(), "left as it is: unreadable");
        takeup::stand_back(ctx, &watched);
        turns::stand_back(ctx, &name);
        ctx.metrics.reconciled("node", "Unreadable", started.elapsed());
        return Ok(Action::await_change());
    }
    let allocation = ctx.cluster.allocation(&name).unwrap_or(watched);
    let _under_way = ctx.metrics.health.begin(&name);
    let mut memory = memories.take(&allocation);
    memory.nic.saw(&allocation);
    // A reconcile that was dropped may have left them, or one that made the object again.
    let serving = allocation.spec.serving().and_then(|nic| nic.id.parse().ok());
    memory.nic.model_failed |= serving.is_some_and(|nic| ctx.azure.take_remains(&nic));
    // It is made again like one that a person deleted. If the store was set back, the agent ignores versions
    // that are older than what it has seen, and the next versions would all be older. A copy's addresses
    // belong to the writer of the original: the apply leaves them there.
    let is_set_back = || allocation.is_set_back() && memories.may_renew(&name, started);
    let is_of_another_past = allocation.is_copy() || is_set_back();
    let work = reconcile_one(ctx, allocation.clone(), &mut memory, is_of_another_past);
    let work = Box::pin(caught(work.instrument(info_span!("reconcile", node = name))));
    let result = match within(ctx.waits.deadline, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => {
            // Only the count of failures is whole. What was published meanwhile is in the newest object.
            let failures = memory.failures;
            memory = memories.take(&ctx.cluster.allocation(&name).unwrap_or(allocation));
            memory.failures = failures;
            Err(panicked.into())
        }
        Err(Overdue) => Err(Error::Overdue { limit: ctx.waits.deadline }),
    };
    if matches!(result, Err(Error::Overdue { .. } | Error::Panicked(_))) {
        // Whatever it had begun, the NIC shows the outcome, at once or when a write comes late.
        memory.nic.must_read = true;
        memory.nic.lost_answer();
    }
    ctx.metrics.reconciled("node", result.as_ref().err().map_or("ok", Error::reason), started.elapsed());
    match &result {
        Err(Error::Find(_) | Error::Write(_)) | Ok(_) => (memory.failures, memory.conflicts) = (0, 0),
        Err(error) if error.is_conflict() => memory.conflicts += 1,
        Err(_) => memory.failures += 1,
    }
    match result {
        Ok(Next::Gone) => {
            memories.forget(&name);
            Ok(Action::await_change())
        }
        Ok(Next::After(wait)) => {
            memories.put(&name, memory);
            Ok(Action::requeue(wait))
        }
        Err(error) => {
            memories.put(&name, memory);
            Err(error)
        }
    }
}

/// The remedy for Azure's error was decided when it happened, see
/// [`Setback::after`](super::setback::Setback::after): it holds the next reconcile back from Azure, and from
/// nothing else. All other clocks of the node go on in that. The API server's errors are retried ever less
/// often. So are conflicts: the version that others have written wakes the node, but a watch that lags shows
/// it only when the API server has less to do.
fn error_policy(allocation: Arc<NodeIPAllocation>, error: &Error, nodes: Arc<Nodes>) -> Action {
    let (failures, conflicts) = nodes.memories.failures(&allocation.name_any());
    Action::requeue(match error {
        Error::Find(_) | Error::Write(_) => SOON,
        _ if error.is_conflict() => {
            jittered(doubled(SOON, conflicts.saturating_sub(1), Duration::from_secs(5)))
        }
        _ => jittered(doubled(Duration::from_secs(1), failures, Duration::from_secs(64))),
    })
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;
    use crate::cluster::{self, Cluster};
    use crate::heap;
    use crate::lock::lock;
    use crate::rollout::Asks;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    fn nodes() -> Nodes {
        of(Context::sample())
    }

    fn of(ctx: Context) -> Nodes {
        Nodes { ctx: Arc::new(ctx), memories: Memories::new(false) }
    }

    #[tokio::test]
    async fn a_node_whose_object_has_gone_without_a_reconcile_leaves_its_place_to_the_next() {
        let nodes = nodes();
        let rollouts = || lock(&nodes.ctx.rollouts);
        let tick = || rollouts().tick(|_| 1, |_| true);
        for node in ["a", "b"] {
            assert!(!rollouts().ask("p", node, Asks::default()));
        }
        assert_eq!(tick(), ["a"]);
        assert_eq!(tick(), [""; 0]);
        nodes.absent("a");
        assert_eq!(tick(), ["b"]);
    }

    #[tokio::test]
    async fn a_node_whose_writes_are_refused_as_outdated_is_reconciled_ever_less_often() {
        let nodes = Arc::new(nodes());
        let object =
            json!({"metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        let allocation: Arc<NodeIPAllocation> = Arc::new(serde_json::from_value(object).unwrap());
        let waits = |conflicts| {
            let mut memory = nodes.memories.take(&allocation);
            memory.conflicts = conflicts;
            nodes.memories.put("n", memory);
            error_policy(allocation.clone(), &Error::StillThere, nodes.clone())
        };
        assert_ne!(waits(1), waits(20));
    }

    /// When a cluster is new, or Azure is away, all nodes wait at once.
    #[test]
    fn a_node_that_waits_for_azure_takes_few_bytes() {
        const MANY: usize = 100;
        let name = |number: usize| format!("node-{number}");
        let ((nodes, mut all_nodes), (allocations, mut all_allocations), (pools, mut all_pools)) =
            (reflector::store(), reflector::store(), reflector::store());
        let read = |object: Value| Event::Apply(serde_json::from_value(object).unwrap());
        for number in 0..MANY {
            let vm = format!(
                "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/{}",
                name(number)
            );
            let node = json!({"metadata": {"name": name(number), "uid": "u"}, "spec": {"providerID": vm}});
            all_nodes.apply_watcher_event(&serde_json::from_value(node).map(Event::Apply).unwrap());
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
            let metadata = json!({"name": name(number), "uid": "a", "resourceVersion": "3", "generation": 1});
            all_allocations.apply_watcher_event(&read(json!({"metadata": metadata, "spec": spec})));
        }
        let pool = json!({"metadata": {"name": "p", "uid": "p", "generation": 1}, "spec": {}});
        all_pools.apply_watcher_event(&serde_json::from_value(pool).map(Event::Apply).unwrap());

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Takes every connection and never answers.
        let azure = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", azure.local_addr().unwrap()).parse().unwrap();
        let cluster = Cluster::new(nodes, allocations.clone(), pools, tokio::sync::watch::channel(true).1);
        let (waker, _wakeups) = cluster::channels();
        let nodes =
            runtime.block_on(async { Arc::new(of(Context::sample_of((cluster, waker), Some(endpoint)))) });
        let mut tasks = vec![];
        let mut wait = |numbers: std::ops::Range<usize>| {
            heap::kept(|| {
                runtime.block_on(async {
                    for number in numbers {
                        let allocation = allocations.get(&ObjectRef::new(&name(number))).unwrap();
                        tasks.push(tokio::spawn(reconcile(allocation, nodes.clone())));
                    }
                    tokio::time::sleep(Duration::from_millis(300)).await;
                });
            })
        };
        // The first brings what all share.
        wait(0..1);
        let (kept, _) = wait(1..MANY);
        assert!(tasks.iter().all(|task| !task.is_finished()), "one doesn't wait");
        let each = kept / (MANY - 1);
        println!("a node that waits: {each} bytes; beside, remembered of it: {}", size_of::<Memory>());
        assert!(each <= 12_500, "{each} bytes");
    }
}
