//! The pool controller: is the pool sound, and how do its nodes stand?

mod blocks;
mod forecast;
mod leaving;
mod left_alone;
mod rolling;
mod scarce;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tracing::warn;
use vnetpool_apiserver::jittered;
use vnetpool_apiserver::reading::Unreadable;
use vnetpool_crds::allocation::IpConfiguration;
use vnetpool_crds::condition::{
    self, NETWORK_EXHAUSTING, NODES_READY, OBJECTS_READABLE, PAUSED, READY, SELECTED, STALLED,
    SUBNET_EXHAUSTING, Type, VALID,
};
use vnetpool_crds::pool::SubnetUse;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::{Verdict, name_some};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool, NodeIPPoolStatus, names};

use crate::azure::ResourceId;
use crate::caught::or_later;
use crate::cluster::unreadable;
use crate::context::{Context, Stop};
use crate::events;
use crate::lock::lock;
use crate::network::{Hint, Networks, Subnet};
use crate::node::pause;
use crate::pod_cidr;
use blocks::Blocks;

/// A pool is reconciled no more often than this.
const PACE: Duration = Duration::from_secs(1);
/// Sums alone are written no more often than this: every report of any of its nodes changes them.
const SUMS: Duration = Duration::from_secs(30);
/// After an error of the API server.
const RETRY: Duration = Duration::from_secs(8);
/// So many objects or reasons are named in a message.
const NAMED: usize = 5;

/// The state that all reconciles of pools share.
struct Pools {
    ctx: Arc<Context>,
    /// When each pool was last reconciled.
    reconciled: Mutex<HashMap<String, Instant>>,
    /// What was last written to the status of a pool, by its name.
    written: Mutex<HashMap<String, Written>>,
}

struct Written {
    /// The pool's: one of the same name may be made anew.
    uid: Option<String>,
    at: Instant,
    conditions: Vec<Condition>,
}

/// Runs until `stop`.
pub async fn run(ctx: Arc<Context>, calls: UnboundedReceiver<ObjectRef<NodeIPPool>>, stop: Stop) {
    let pools = Pools { ctx: ctx.clone(), reconciled: Mutex::default(), written: Mutex::default() };
    Controller::for_stream(futures::stream::pending(), ctx.cluster.pools())
        .graceful_shutdown_on(stop)
        .reconcile_on(calls)
        .run(reconcile, |_, _, _| Action::requeue(jittered(RETRY)), Arc::new(pools))
        .for_each(|result| async {
            match result {
                Ok(_) => {}
                // Its nodes still name a pool that is gone.
                Err(controller::Error::ObjectNotFound(pool)) => ctx.metrics.pool_gone(&pool.name),
                Err(error) => warn!(%error, "pool not reported"),
            }
        })
        .await;
}

async fn reconcile(pool: Arc<NodeIPPool>, pools: Arc<Pools>) -> Result<Action, kube::Error> {
    or_later(&pool.name_any(), reconcile_one(&pool, &pools)).await
}

async fn reconcile_one(pool: &NodeIPPool, controller: &Pools) -> Result<Action, kube::Error> {
    let (ctx, name, now) = (&controller.ctx, pool.name_any(), Instant::now());
    if let Some(rest) = controller.too_soon(&name, now) {
        return Ok(Action::requeue(rest));
    }
    if ctx.cluster.is_unreadable_pool(&name) {
        return Ok(Action::await_change());
    }
    let served = ctx.cluster.allocations().state_filter(|allocation| allocation.spec.pool == name);
    let before = pool.status.clone().unwrap_or_default();
    let pools = ctx.cluster.pools().state();
    // A thousand nodes are in one subnet or a few.
    let subnets: BTreeSet<&str> =
        served.iter().flat_map(|node| &node.spec.interfaces).map(|nic| nic.subnet.id.as_str()).collect();
    let networks = ctx.networks.known_among(subnets.into_iter());
    let conflict = pod_cidr::conflict(pool, pools.iter().map(Arc::as_ref), &networks);
    let mut next = roll_up(pool, served.iter().map(Arc::as_ref), conflict, Timestamp::now());
    let blocks = Blocks::of(ctx.cluster.allocations().state().iter().map(Arc::as_ref));
    let known = |id: &str| known(&ctx.networks, &blocks, &id.parse().ok()?);
    forecast::report(pool, &mut next, known, Timestamp::now());
    let usages = |vnet: &ResourceId| ctx.networks.usages(vnet);
    forecast::report_networks(pool, &mut next, usages, &blocks, Timestamp::now());
    let nodes = ctx.cluster.nodes().state_filter(|node| ctx.cluster.leaves_alone(node));
    let architectures = ctx.cluster.architectures();
    left_alone::report(pool, &mut next, nodes.iter().map(Arc::as_ref), architectures, Timestamp::now());
    leaving::report(pool, &mut next, served.iter().map(Arc::as_ref), Timestamp::now());
    rolling::report(pool, &mut next, served.iter().map(Arc::as_ref), Timestamp::now());
    let coarseness = |subscription: &str| lock(&ctx.scarcity).coarseness(subscription);
    scarce::report(pool, &mut next, served.iter().map(Arc::as_ref), coarseness, Timestamp::now());
    report_unreadable(pool, &mut next, &ctx.cluster.unreadable_of(&name), Timestamp::now());
    ctx.metrics.pool(&name, &next);
    if is_the_same(&before, &next) {
        ctx.metrics.reconciled("pool", "ok", now.elapsed());
        return Ok(Action::await_change());
    }
    if let Some(rest) = controller.sums_wait(pool, now).filter(|_| only_sums_differ(&before, &next)) {
        return Ok(Action::requeue(rest));
    }
    let result = apply(ctx, &name, &next).await;
    ctx.metrics.reconciled("pool", if result.is_ok() { "ok" } else { "APIServer" }, now.elapsed());
    result?;
    // The watch may not have shown yet what was written last, and each turn is published once.
    let written = controller.wrote(pool, &next, now);
    let reported = written.map_or(before.conditions, |written| written.conditions);
    if let Some(invalid) = turned_false(VALID, &reported, &next.conditions) {
        let event = events::turned(invalid, "Validate");
        ctx.events.report(&[pool.object_ref(&())], event);
    }
    if let Some(leave) = turned_false(SELECTED, &reported, &next.conditions) {
        ctx.events.report(&[pool.object_ref(&())], events::turned(leave, "Select"));
    }
    if let Some(stopped) = rolling::turned_stopped(&reported, &next.conditions) {
        let event = events::stuck(Reason::RolloutStopped, "RollOut", &stopped.message);
        ctx.events.report(&[pool.object_ref(&())], event);
    }
    for (type_, reason) in
        [(SUBNET_EXHAUSTING, Reason::SubnetExhausting), (NETWORK_EXHAUSTING, Reason::NetworkExhausting)]
    {
        if let Some(short) = turned_true(type_, &reported, &next.conditions) {
            let event = events::stuck(reason, "Forecast", &short.message);
            ctx.events.report(&[pool.object_ref(&())], event);
        }
    }
    Ok(Action::await_change())
}

impl Pools {
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
        let written = Written { uid: pool.uid(), at: now, conditions: status.conditions.clone() };
        let last = lock(&self.written).insert(pool.name_any(), written);
        last.filter(|last| last.uid == pool.uid())
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
    let (api, patch) = (Api::<NodeIPPool>::all(ctx.client.clone()), Patch::Apply(&object));
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

/// The status of a pool that serves these nodes, and whose pod CIDR has this `conflict`. Pure.
pub(crate) fn roll_up<'a>(
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
            // Azure's ids differ in case from one answer to the next.
            let usage = subnets
                .entry(interface.subnet.id.to_lowercase())
                .or_insert_with(|| SubnetUse { id: interface.subnet.id.clone(), ..Default::default() });
            usage.nodes += 1;
            let held = interface.ip_configurations.iter().map(IpConfiguration::count);
            usage.held = held.fold(usage.held, u32::saturating_add);
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

/// Names in the status the unreadable objects of the pool's nodes. Reports nothing as long as there was none.
fn report_unreadable(
    pool: &NodeIPPool,
    status: &mut NodeIPPoolStatus,
    unreadable: &[Arc<Unreadable>],
    now: Timestamp,
) {
    let verdict = match unreadable {
        [] if condition::find(&status.conditions, OBJECTS_READABLE).is_none() => return,
        [] => Verdict::yes(Reason::Readable, "all objects of the pool's nodes can be read"),
        [first, others @ ..] => {
            let mut message = unreadable::message(first);
            if !others.is_empty() {
                let names = others.iter().map(|one| format!("{} {}", one.kind, one.name()));
                message += &format!(" Likewise unreadable: {}.", name_some(names, NAMED));
            }
            Verdict::no(Reason::Unreadable, message)
        }
    };
    let condition = verdict.condition(OBJECTS_READABLE, pool.metadata.generation, now);
    condition::set(&mut status.conditions, condition);
}

/// Blind to the order of conditions and to their transition times.
fn is_the_same(before: &NodeIPPoolStatus, next: &NodeIPPoolStatus) -> bool {
    let without = |status: &NodeIPPoolStatus| NodeIPPoolStatus {
        conditions: vec![],
        counted_at: None,
        ..status.clone()
    };
    without(before) == without(next) && condition::same(&before.conditions, &next.conditions)
}

/// Whether the statuses differ only in what nodes count.
fn only_sums_differ(before: &NodeIPPoolStatus, next: &NodeIPPoolStatus) -> bool {
    let without = |status: &NodeIPPoolStatus| {
        let mut status = NodeIPPoolStatus { assigned: 0, cooling: 0, free: 0, ..status.clone() };
        status.waiting = status.waiting.min(1);
        status.subnets.iter_mut().for_each(|subnet| subnet.free = subnet.free.map(|_| 0));
        status.networks.iter_mut().for_each(|network| network.used = network.used.map(|_| 0));
        status
    };
    is_the_same(&without(before), &without(next))
}

fn turned_false<'a>(type_: Type, before: &[Condition], next: &'a [Condition]) -> Option<&'a Condition> {
    let was_false = condition::find(before, type_).is_some_and(|was| was.status == "False");
    condition::find(next, type_).filter(|now| now.status == "False" && !was_false)
}

fn turned_true<'a>(type_: Type, before: &[Condition], next: &'a [Condition]) -> Option<&'a Condition> {
    let was = condition::is_true(before, type_);
    condition::find(next, type_).filter(|now| now.status == "True" && !was)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use vnetpool_apiserver::reading::Reading;

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
    fn pods_change_only_sums_and_all_other_changes_are_news() {
        let mut nodes: Vec<_> = (0..8).map(|n| node(&format!("n{n}"), "s", 8, "SubnetFull")).collect();
        let before = rolled(&pool(json!({})), &nodes);
        let status = nodes[0].status.as_mut().unwrap();
        (status.assigned, status.free, status.cooling) = (4, 3, 1);
        let moved = rolled(&pool(json!({})), &nodes);
        assert!(!is_the_same(&before, &moved) && only_sums_differ(&before, &moved));
        nodes[0] = node("n0", "s", 8, "Ready");
        let ready = rolled(&pool(json!({})), &nodes);
        assert!(!only_sums_differ(&before, &ready));
        let condition = |status: &NodeIPPoolStatus| condition::find(&status.conditions, NODES_READY).cloned();
        assert_eq!(condition(&before), condition(&ready), "which is no other message");
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

    #[tokio::test]
    async fn of_the_pools_that_had_a_name_the_last_ones_status_is_kept() {
        let ctx = Arc::new(Context::sample());
        let pools = Pools { ctx, reconciled: Mutex::default(), written: Mutex::default() };
        let (mut pool, status, now) = (pool(json!({})), NodeIPPoolStatus::default(), Instant::now());
        for uid in ["a", "b", "c"] {
            pool.metadata.uid = Some(uid.into());
            assert!(pools.sums_wait(&pool, now).is_none() && pools.wrote(&pool, &status, now).is_none());
            assert!(pools.sums_wait(&pool, now).is_some() && pools.wrote(&pool, &status, now).is_some());
        }
        assert_eq!(lock(&pools.written).len(), 1);
    }

    #[test]
    fn a_pool_names_unreadable_objects_of_its_nodes_until_they_are_readable() {
        let unreadable = |name: &str| -> Arc<Unreadable> {
            let object = json!({"metadata": {"name": name}, "spec": {"nodeUID": 1}});
            let reading: Reading<NodeIPAllocation> = serde_json::from_value(object).unwrap();
            Arc::new(*reading.0.unwrap_err())
        };
        let (pool, now) = (pool(json!({})), Timestamp::UNIX_EPOCH);
        let mut status = NodeIPPoolStatus::default();
        report_unreadable(&pool, &mut status, &[], now);
        assert!(status.conditions.is_empty());
        let many: Vec<_> = (0..8).map(|n| unreadable(&format!("n{n}"))).collect();
        report_unreadable(&pool, &mut status, &many, now);
        let condition = condition::find(&status.conditions, OBJECTS_READABLE).unwrap().clone();
        assert_eq!(condition.status, "False");
        for part in ["NodeIPAllocation n0", "spec.nodeUID", "NodeIPAllocation n5, 2 more", "kubectl edit"] {
            assert!(condition.message.contains(part), "{}", condition.message);
        }
        report_unreadable(&pool, &mut status, &[], now);
        assert!(condition::is_true(&status.conditions, OBJECTS_READABLE));
    }
}
