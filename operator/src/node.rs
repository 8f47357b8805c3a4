//! The node controller: a reconcile observes, plans, writes at Azure, publishes `spec` and reports.
//!
//! Its objects are the NodeIPAllocations, so a node's work goes on, under the same lock, when its Node is
//! gone. They have no ownerReference to the Node: what the garbage collector begins can't be undone, and an
//! object must outlive its Node as long as the VM lives and its pods use the addresses. The finalizer decides
//! instead (see [`vacate`]).
//!
//! ```text
//!  observe/      the cluster's stores and the NIC: reads only
//!  backend/      where addresses are reserved: NIC, instance of a scale set, route table
//!  planner, takeup, scope, growth, attachments     what to do
//!  pause         whether any of it may be done
//!  write, attachments/step          the plan at Azure
//!  publish       spec, and the object's end
//!  report/       conditions, Events, the taint
//!  memory        what is kept from one reconcile to the next
//! ```

mod absences;
pub mod admit;
mod attachments;
pub mod backend;
mod error;
mod growth;
mod lag;
mod memory;
mod mending;
mod need;
mod observe;
pub mod outlook;
pub mod pause;
mod progress;
mod publish;
mod recalled;
mod report;
mod scope;
mod setback;
mod strays;
mod takeup;
mod vacate;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;
use tracing::{Instrument, debug, info_span, warn};
use vnetpool_apiserver::{doubled, jittered};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::NodeIPAllocationSpec;

use crate::azure;
use crate::cluster::kept;
use crate::cluster::proof::Unproved;
use crate::context::{Context, Stop};
use crate::deadline::within;
use crate::lock::lock;
use crate::planner;
use attachments::step;
use error::Error;
use memory::{Memories, Memory};
use need::Need;
use observe::Seen;
use observe::known::Read;
pub use observe::policy::follows;
use observe::recheck::{self, Recheck};
use progress::{Next, Progress};
use report::announcement::Announcement;
use report::taint;
use setback::{Setback, Stage};
use takeup::Place;

/// From a reconcile that was overtaken to the next.
const SOON: Duration = Duration::from_millis(100);

/// What the node controller works with.
struct Nodes {
    ctx: Arc<Context>,
    memories: Memories,
}

/// Runs until `stop`; then reconciles under way are finished.
///
/// Concurrency is unbounded: a reconcile that waits for Azure costs nothing, and Azure's budget sets the
/// pace.
pub async fn run(ctx: Arc<Context>, requests: UnboundedReceiver<ObjectRef<NodeIPAllocation>>, stop: Stop) {
    let nodes = Arc::new(Nodes { ctx: ctx.clone(), memories: Memories::new(ctx.was_leaderless) });
    Controller::for_stream(futures::stream::pending(), ctx.cluster.allocations())
        .graceful_shutdown_on(stop)
        .reconcile_on(requests)
        .run(reconcile, error_policy, nodes)
        .for_each(|result| async {
            match result {
                // A Node or a pod wakes its object by name, before there is one.
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(controller::Error::ReconcilerFailed(error, _)) if error.is_conflict() => {
                    debug!(%error, "planned from the past");
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
    if let Some(unreadable) = ctx.cluster.unreadable(&name) {
        // Unknown isn't absent. The node is woken when it can be read.
        debug!(node = name, kind = unreadable.kind, object = unreadable.name(), "left as it is: unreadable");
        ctx.metrics.reconciled("node", "Unreadable", started.elapsed());
        return Ok(Action::await_change());
    }
    let allocation = ctx.cluster.allocation(&name).unwrap_or(watched);
    let _under_way = ctx.metrics.health.begin(&name);
    let mut memory = memories.take(&allocation);
    memory.nic.saw(&allocation);
    // It is made again like one that somebody deleted. Of one that was set back its agent takes no version
    // that is older than what it has seen, and those still to come would all be. A copy's addresses belong to
    // whoever wrote them: what is applied leaves them there.
    let is_set_back = || allocation.is_set_back() && memories.may_renew(&name, started);
    let is_of_another_past = allocation.is_copy() || is_set_back();
    let work =
        reconcile_one(ctx, allocation, &mut memory, is_of_another_past).instrument(info_span!("node", name));
    let result =
        within(ctx.waits.deadline, work).await.unwrap_or(Err(Error::Overdue { limit: ctx.waits.deadline }));
    if matches!(result, Err(Error::Overdue { .. })) {
        // Whatever it had begun, the NIC tells what has come of it, at once or when a write comes late.
        memory.nic.must_read = true;
        memory.nic.lost_answer();
    }
    ctx.metrics.reconciled("node", result.as_ref().err().map_or("ok", Error::reason), started.elapsed());
    match &result {
        Err(Error::Find(_) | Error::Left(_) | Error::Write(_)) | Ok(_) => memory.failures = 0,
        Err(error) if error.is_conflict() => {}
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

/// The object of a Node that is gone, one that somebody deleted, or that of a node to serve.
async fn reconcile_one(
    ctx: &Context,
    allocation: Arc<NodeIPAllocation>,
    memory: &mut Memory,
    is_of_another_past: bool,
) -> Result<Next, Error> {
    let Some(node) = ctx.cluster.node(&allocation.name_any()) else {
        stand_back(ctx, &allocation);
        takeup::leave(ctx, &allocation.name_any());
        return vacate::vacate(ctx, &allocation, memory).await;
    };
    memory.vacant_since = None;
    if allocation.metadata.deletion_timestamp.is_some() {
        stand_back(ctx, &allocation);
        return vacate::replace(ctx, &allocation, memory).await;
    }
    if is_of_another_past && !ctx.azure.is_dry_run() {
        publish::begin_to_replace(ctx, &allocation).await?;
        return Ok(Next::After(recheck::REQUEUE));
    }
    let need = Need::of(&ctx.cluster, &ctx.waker, &allocation.name_any());
    let mut progress = Progress::of(allocation, need);
    let outcome = loop {
        match serve(ctx, &mut progress, &node, memory).await {
            // In this reconcile: what has outgrown it waits for an answer.
            Err(error) if error.is_given_up() => {
                let begun = progress.allocation.clone();
                catch_up(ctx, &mut progress, memory);
                let newest = ctx.cluster.node(&begun.name_any());
                if !is_as_begun((&begun, &node), &progress.allocation, newest.as_deref()) {
                    return Ok(Next::After(SOON));
                }
            }
            outcome => break outcome,
        }
    };
    match &outcome {
        Ok(()) | Err(Error::Write(_)) => {}
        Err(Error::Find(error)) => {
            memory.setback =
                Some(Setback::after(memory.setback.as_ref(), Stage::Find, error, Instant::now()));
        }
        Err(Error::Left(error)) => {
            let now = Instant::now();
            let mut setback = Setback::after(memory.setback.as_ref(), Stage::Find, error, now);
            // One that isn't there is soon asked for again; the node waits for it.
            if let azure::Error::NotFound { .. } = error {
                setback.until = now + ctx.waits.second_read;
            }
            memory.setback = Some(setback);
        }
        Err(_) => return outcome.map(|()| Next::Gone),
    }
    if progress.is_done_with() && progress.pause.is_none() {
        taint::set(ctx, &node, false).await?;
        publish::delete(ctx, &progress.allocation).await?;
        return Ok(Next::Gone);
    }
    let report_again = report::report(ctx, &mut progress, &node, memory).await?;
    if progress.has_taken_up() {
        takeup::leave(ctx, &progress.allocation.name_any());
    }
    outcome?;
    let recheck = Recheck::of(&progress.allocation, memory.nic.at, ctx.started).due_in(progress.observed_at);
    Ok(Next::After(progress.requeue_in(memory, report_again, recheck, Instant::now())))
}

/// Whether a reconcile that has waited goes on: for the same machine, and an object that is to stay. Another
/// one finds out what there is to do instead.
fn is_as_begun(
    (allocation, node): (&NodeIPAllocation, &Node),
    newest: &NodeIPAllocation,
    newest_node: Option<&Node>,
) -> bool {
    let is_same_node = newest_node.is_some_and(|newest| kept::is_same_machine(node, newest));
    let is_to_stay = newest.metadata.deletion_timestamp.is_none() && newest.uid() == allocation.uid();
    is_same_node && is_to_stay
}

/// The node gives away every turn that others may be waiting for.
fn stand_back(ctx: &Context, allocation: &NodeIPAllocation) {
    let (node, now) = (allocation.name_any(), Instant::now());
    growth::stand_back(ctx, &node, now);
    scope::stand_back(ctx, &node, now);
}

/// Ends turns and wakes the next nodes, for as long as the operator leads. Never ends.
pub async fn keep_time(ctx: Arc<Context>) {
    // A turn lasts half a minute, so a second more or less doesn't matter.
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let now = Instant::now();
        let woken = lock(&ctx.shortages).tick(now);
        ctx.wake(&woken);
        let woken = lock(&ctx.refusals).tick(now);
        ctx.wake(&woken);
        takeup::tick(&ctx);
    }
}

/// Observe, plan, write, publish, attach.
async fn serve(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    observe_and_plan(ctx, progress, node, memory).await?;
    if progress.acts_on_a_mirror() {
        memory.nic.must_read = true;
        observe_and_plan(ctx, progress, node, memory).await?;
    }
    // Its place stands in its object before it takes anything up: the next leader counts it.
    if progress.is_updating && !progress.says_updating() {
        report::report(ctx, progress, node, memory).await?;
    }
    let mut outcome = Ok(());
    if progress.wants_write() {
        // `spec` names the NIC, or the route table, before anything is reserved in it, and the groups before
        // it joins them: the next leader finds it there.
        if progress.names_less_than_is_written() {
            settle_left(ctx, progress, node, memory).await?;
            publish(ctx, progress, node, memory).await?;
        }
        outcome = write(ctx, progress, node, memory).await;
        if outcome.as_ref().is_err_and(Error::has_sent_nothing) {
            return outcome;
        }
        // Whatever became of the write, what the NIC holds now is published.
        if let Err(error) = observe_again(ctx, progress, node, memory).await {
            return outcome.and(Err(error));
        }
    }
    settle_left(ctx, progress, node, memory).await?;
    publish(ctx, progress, node, memory).await?;
    if progress.pause.is_none() {
        memory.nic.must_choose |=
            strays::settle(ctx, &progress.allocation, kept::boot_id(node), &mut memory.strays).await;
    }
    outcome?;
    attach(ctx, progress, node, memory).await
}

/// Observes and plans. `seen` and `plan` stay `None` while an error holds the observation back.
async fn observe_and_plan(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    if !memory.knows_pods && ctx.cluster.misses_pods(&progress.allocation) {
        let proved = ctx.cluster.prove_pods(&ctx.client, &node.name_any()).await;
        if matches!(proved, Err(Unproved::Behind)) {
            let since = memory.lacks_pods_since.get_or_insert_with(tokio::time::Instant::now);
            ctx.cluster.lacks_pods_since(*since);
        }
        // Unproved it won't come to ask, so it holds nobody up meanwhile.
        proved.inspect_err(|_| stand_back(ctx, &progress.allocation))?;
        memory.knows_pods = true;
    } else {
        memory.lacks_pods_since = None;
    }
    let now = Instant::now();
    progress.begin(now);
    progress.pause = pause::of(&ctx.cluster, &progress.allocation);
    let observed = observe(ctx, progress, node, memory, now).await.map_err(Error::Find);
    if !matches!(observed, Ok(Some(_))) {
        // It won't come to ask, so it holds nobody up meanwhile.
        stand_back(ctx, &progress.allocation);
    }
    let Some(mut seen) = observed? else { return Ok(()) };
    seen.observed.may_write &= progress.pause.is_none();
    let plan = planner::plan(&seen.observed);
    let plan = scope::limit(ctx, &progress.allocation, &mut seen, plan, &mut memory.setback, now);
    let shortage = (&mut memory.setback, &mut memory.recalled);
    let plan = growth::limit(ctx, &progress.allocation, &mut seen, plan, shortage, now);
    memory.run_clocks(&plan, now);
    if !seen.is_held_back {
        let lag = lag::lag(&progress.allocation, kept::boot_id(node));
        memory.end_what_is_over(&plan, seen.has_vanished, &lag, now);
    }
    let attachments = attachments::plan(ctx, &progress.allocation, node, &seen, memory, now);
    let is_dry_run = ctx.azure.is_dry_run();
    let (plan, rehearsal) = if is_dry_run || progress.pause.is_some() {
        // No address is kept for anybody, and none taken from whom it is kept for.
        progress.attachments = Some(attachments.rehearse(&progress.allocation));
        let (plan, rehearsal) = plan.rehearse(seen.observed.grain);
        // What would be done on a NIC that isn't known isn't known either.
        (plan, Some(rehearsal).filter(|_| is_dry_run && !seen.is_held_back))
    } else {
        progress.attachments = Some(attachments);
        (plan, None)
    };
    (progress.seen, progress.plan, progress.rehearsal) = (Some(seen), Some(plan), rehearsal);
    Ok(())
}

/// All reads, one after the other: what each has shown is remembered before the next may fail. `None`: Azure
/// must be asked, but an error holds that back for now.
async fn observe(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
    now: Instant,
) -> Result<Option<Seen>, azure::Error> {
    let allocation = &*progress.allocation.clone();
    let (cluster, place) = observe::cluster(ctx, allocation, node, progress.pause.is_some(), now);
    progress.is_updating = place == Place::Given;
    // An edit that isn't taken up yet can't cure what Azure has refused.
    if place != Place::Awaited
        && progress.pause.is_none()
        && let Some(edit) = memory.pool_seen(cluster.pool.as_deref(), now)
    {
        growth::pool_edited(ctx, &allocation.spec, edit, now);
        scope::pool_edited(ctx, &allocation.spec, edit, now);
    }
    let vm = match observe::vm(&cluster, allocation, node) {
        Ok(vm) => vm,
        Err(obstacle) => return Ok(Some(Seen::without_nic(cluster, allocation, obstacle, memory, now))),
    };
    let Some(occasion) = observe::occasion(ctx, allocation, node, memory, now) else { return Ok(None) };
    memory.nic.hints.note(allocation);
    let urgency = observe::urgency(&cluster, allocation, &progress.need, occasion);
    let occasion = (occasion, &urgency);
    let found = observe::nic(ctx, allocation, &cluster, &vm, occasion, memory).await?;
    memory.nic.learn(&found.read, found.nic.as_deref(), allocation, ctx.waits.late, now);
    if let Read::All { strays, .. } = &found.read {
        memory.strays.found(strays);
    }
    let seen = observe::around(ctx, (allocation, node), cluster, found, occasion, memory, now).await?;
    memory.grouping = memory.grouping.take().filter(|_| !seen.grouping.lacks.is_empty());
    Ok(Some(seen))
}

/// Announces the write and carries it out. One of a route table takes along what other nodes want, so it is
/// announced before its turn.
async fn write(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    if !progress.writes_alone() {
        report::announce_write(ctx, progress, node, memory).await?;
        return write::write(ctx, progress, node, memory, |write| write).await.map_err(Error::Write);
    }
    // The write may wait for minutes; what people look at says how things stand before that.
    report::report(ctx, progress, node, memory).await?;
    let announcement = Announcement::of(ctx, progress, node);
    let outcome = write::write(ctx, progress, node, memory, |write| announcement.before(write)).await;
    announcement.take_in(ctx, progress, node, memory)?;
    outcome.map_err(Error::Write)
}

/// Observes once more after a write. First the version, then the observation, then the publication at that
/// version: the other way round a leader that was paused in between would put its old view of the NIC into
/// the version of its successor, and names that have left the NIC since would come back.
async fn observe_again(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    catch_up(ctx, progress, memory);
    let result = observe_and_plan(ctx, progress, node, memory).await;
    memory.nic.must_read |= result.is_err();
    result
}

/// Goes on with the newest version of the object.
fn catch_up(ctx: &Context, progress: &mut Progress, memory: &mut Memory) {
    if let Some(newest) = ctx.cluster.allocation(&progress.allocation.name_any()) {
        memory.nic.saw(&newest);
        progress.allocation = newest;
    }
}

async fn publish(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    let (Some(seen), Some(plan)) = (&progress.seen, &progress.plan) else { return Ok(()) };
    // A Node that has just registered anew has no providerID for a while. What its object records is still
    // there, and is nobody else's to remember.
    if seen.nic.is_none() && !progress.allocation.spec.interfaces.is_empty() {
        return Ok(());
    }
    let marks = progress.attachments.as_ref().map(|plan| &plan.marks);
    let asks = memory.reports.outlived.asks || publish::adopts(&progress.allocation, seen);
    let before = &progress.allocation.spec;
    let spec = if seen.is_held_back {
        // All else waits for the NIC: nobody may take a list for newer than it is.
        NodeIPAllocationSpec { target: plan.target, ..before.clone() }
    } else {
        NodeIPAllocationSpec { report_holders: asks, ..publish::spec(before, node, seen, plan, marks) }
    };
    progress.allocation = publish::publish(ctx, progress.allocation.clone(), spec, &mut memory.nic).await?;
    Ok(())
}

/// Takes the next step towards what pods ask to have attached. The plan's marks are published.
async fn attach(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    let now = Instant::now();
    step::make(ctx, progress, &memory.attaching, now).await;
    let Some((nic, next)) = step::next(progress, &memory.attaching, now) else { return Ok(()) };
    if step::writes_nic(&next) {
        report::announce_write(ctx, progress, node, memory).await?;
    }
    let urgency = |priority| {
        let urgency = match &progress.seen {
            Some(seen) => progress.need.of_write(&seen.observed, priority),
            None => priority.into(),
        };
        pause::while_not(&ctx.cluster, &ctx.waker, &progress.allocation, urgency)
    };
    step::carry_out(ctx, (nic, next), urgency, memory).await.map_err(Error::Write)?;
    observe_again(ctx, progress, node, memory).await?;
    publish(ctx, progress, node, memory).await
}

/// NICs that `spec` names and that aren't the node's any more: what they hold of ours is given back before
/// `spec` forgets them, unless another VM has them and may use it.
async fn settle_left(
    ctx: &Context,
    progress: &Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    let now = Instant::now();
    if progress.pause.is_some() {
        return Ok(());
    }
    let is_gone = vacate::proof(ctx, &progress.allocation, memory, now);
    for nic in progress.seen.iter().flat_map(|seen| &seen.left) {
        match vacate::end(ctx, nic, None, &progress.allocation, &is_gone).await {
            Ok(None) => {}
            Ok(Some(vm)) => {
                report::left_behind(ctx, node, &progress.allocation, nic.as_str(), vm.as_str());
            }
            Err(error) => {
                memory.absences.note(&error, now);
                return Err(Error::Left(error));
            }
        }
    }
    if progress.seen.as_ref().is_some_and(|seen| !seen.is_held_back) {
        memory.absences.clear();
    }
    Ok(())
}

/// What Azure's error means was decided when it happened, see [`Setback::after`]: it holds the next reconcile
/// back from Azure, and from nothing else. All other clocks of the node go on in that. The API server's
/// errors are retried ever less often.
fn error_policy(allocation: Arc<NodeIPAllocation>, error: &Error, nodes: Arc<Nodes>) -> Action {
    Action::requeue(match error {
        Error::Find(_) | Error::Left(_) | Error::Write(_) => SOON,
        _ if error.is_conflict() => SOON,
        _ => {
            let failures = nodes.memories.failures(&allocation.name_any());
            jittered(doubled(Duration::from_secs(1), failures, Duration::from_secs(64)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reconcile_that_has_waited_goes_on_only_for_the_same_machine_and_an_object_that_is_to_stay() {
        let object = |uid: &str, ends: Option<&str>| -> NodeIPAllocation {
            let metadata = json!({"name": "n", "uid": uid, "deletionTimestamp": ends});
            let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
        };
        let machine = |uid: &str, vm: &str, boot: &str| -> Node {
            let info = json!({"architecture": "", "bootID": boot, "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": ""});
            serde_json::from_value(json!({"metadata": {"name": "n", "uid": uid}, "spec": {"providerID": vm},
                "status": {"nodeInfo": info}}))
            .unwrap()
        };
        let (begun, node) = (object("a", None), machine("u", "vm", "b"));
        let goes_on = |newest: &NodeIPAllocation, newest_node: Option<&Node>| {
            is_as_begun((&begun, &node), newest, newest_node)
        };
        assert!(goes_on(&object("a", None), Some(&machine("u", "vm", "b"))));
        assert!(!goes_on(&object("a", Some("2026-01-01T00:00:00Z")), Some(&node)), "somebody deletes it");
        assert!(!goes_on(&object("b", None), Some(&node)), "made anew");
        assert!(!goes_on(&begun, None), "the Node is gone");
        for other in [machine("v", "vm", "b"), machine("u", "vm2", "b"), machine("u", "vm", "b2")] {
            assert!(!goes_on(&begun, Some(&other)), "{other:?}");
        }
    }
}
