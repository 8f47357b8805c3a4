//! The node controller: one pass = observe → plan → write the NIC → publish → report.
//!
//! Its objects are the NodeIPAllocations, so a node's work goes on, under the same lock, when its Node is gone. They have
//! no ownerReference to the Node: what the garbage collector begins can't be undone, and an object must outlive its Node
//! as long as the VM lives and its pods use the addresses. The finalizer decides instead (see [`vacate`]).

pub mod admit;
mod adopt;
mod apply;
mod attach;
mod drift;
mod facts;
mod groups;
mod growth;
mod hint;
mod interfaces;
mod memory;
mod need;
mod observe;
mod obstacle;
mod outlived;
mod recheck;
mod report;
pub mod route;
mod setback;
mod surroundings;
mod vacate;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};
use tracing::{Instrument, debug, info_span, warn};
use vnetpool_apiserver::jittered;
use vnetpool_crds::NodeIPAllocation;

use crate::Stop;
use crate::azure::{self, Azure};
use crate::cluster::{Caller, Cluster};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::network::Networks;
use crate::planner::{self, Plan, Rehearsal, attachments};
use crate::shortage::Shortages;
use memory::{Memories, Memory};
use need::Need;
use observe::Seen;
use obstacle::Obstacle;
use setback::{Setback, Stage};

/// What every reconcile works with.
pub struct Context {
    pub client: Client,
    pub azure: Arc<Azure>,
    pub cluster: Cluster,
    pub networks: Arc<Networks>,
    pub events: Events,
    pub metrics: Arc<Metrics>,
    /// Has nodes looked at again.
    pub caller: Caller,
    /// Subnets that have run out of addresses.
    pub shortages: Arc<Mutex<Shortages>>,
    /// When this process began to lead.
    started: Instant,
    memories: Memories,
}

impl Context {
    /// As of the moment this process begins to lead.
    pub fn new(
        client: Client,
        events: Events,
        azure: Arc<Azure>,
        metrics: Arc<Metrics>,
        (cluster, caller): (Cluster, Caller),
    ) -> Context {
        Context {
            networks: Arc::new(Networks::new(azure.clone())),
            shortages: Arc::default(),
            started: Instant::now(),
            memories: Memories::default(),
            client,
            events,
            azure,
            cluster,
            metrics,
            caller,
        }
    }
}

/// Why a reconcile ended early, by the stage that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Find(#[source] azure::Error),
    #[error("{0}")]
    Write(#[source] azure::Error),
    #[error("spec not applied: {0}")]
    Publish(#[source] kube::Error),
    #[error("conditions not applied: {0}")]
    Report(#[source] kube::Error),
    #[error("object not removed: {0}")]
    Delete(#[source] kube::Error),
    #[error("taint not changed: {0}")]
    Taint(#[source] kube::Error),
}

impl Error {
    /// One of a fixed few, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Find(error) | Error::Write(error) => error.reason(),
            _ if self.is_conflict() => "Conflict",
            Error::Publish(_) | Error::Report(_) | Error::Delete(_) | Error::Taint(_) => "APIServer",
        }
    }

    /// What waited for its turn at Azure gave its place up: nothing was sent, and the node is planned anew.
    fn is_outgrown(&self) -> bool {
        matches!(self, Error::Find(error) | Error::Write(error) if matches!(error, azure::Error::Outgrown { .. }))
    }

    /// The object had been changed since it was read: nothing is wrong, the plan was made from the past.
    fn is_conflict(&self) -> bool {
        match self {
            Error::Publish(error) | Error::Report(error) | Error::Delete(error) | Error::Taint(error) => {
                apply::is(error, 409)
            }
            Error::Find(_) | Error::Write(_) => false,
        }
    }
}

/// One pass over a node: what it has found and done so far.
pub struct Round {
    /// The newest version there is.
    allocation: Arc<NodeIPAllocation>,
    need: Need,
    /// When it was last looked: what held then has shaped the plan, though it may hold no more.
    looked: Instant,
    seen: Option<Seen>,
    plan: Option<Plan>,
    /// What would be done, in a dry run.
    rehearsal: Option<Rehearsal>,
    attachments: Option<attachments::Plan>,
}

/// Runs until `stop`; then passes under way are finished.
///
/// Concurrency is unbounded: a pass that waits for Azure costs nothing, and Azure's budget sets the pace.
pub async fn run(ctx: Arc<Context>, calls: UnboundedReceiver<ObjectRef<NodeIPAllocation>>, stop: Stop) {
    Controller::for_stream(futures::stream::pending(), ctx.cluster.allocations())
        .graceful_shutdown_on(stop)
        .reconcile_on(calls)
        .run(reconcile, error_policy, ctx)
        .for_each(|result| async {
            match result {
                // A Node or a pod calls for its object by name, before there is one.
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(controller::Error::ReconcilerFailed(error, _)) if error.is_conflict() => {
                    debug!(%error, "planned from the past");
                }
                Err(error) => warn!(%error, "pass failed"),
            }
        })
        .await;
}

async fn reconcile(watched: Arc<NodeIPAllocation>, ctx: Arc<Context>) -> Result<Action, Error> {
    let name = watched.name_any();
    let started = Instant::now();
    if let Some(unreadable) = ctx.cluster.unreadable(&name) {
        // Unknown isn't absent. The node is called when it can be read.
        debug!(node = name, kind = unreadable.kind, object = unreadable.name(), "left as it is: unreadable");
        ctx.metrics.reconciled("node", "Unreadable", started.elapsed());
        return Ok(Action::await_change());
    }
    let allocation = ctx.cluster.allocation(&name).unwrap_or(watched);
    let _under_way = ctx.metrics.health.begin(&name);
    let mut memory = ctx.memories.take(&allocation);
    memory.notice(&allocation);
    let result = pass(&ctx, allocation, &mut memory).instrument(info_span!("node", name)).await;
    ctx.metrics.reconciled("node", result.as_ref().err().map_or("ok", Error::reason), started.elapsed());
    match &result {
        Err(Error::Find(_) | Error::Write(_)) | Ok(_) => memory.api_errors = 0,
        Err(error) if error.is_conflict() => {}
        Err(_) => memory.api_errors += 1,
    }
    match result {
        Ok(Next::Gone) => {
            ctx.memories.forget(&name);
            ctx.cluster.forget(&name);
            Ok(Action::await_change())
        }
        Ok(Next::After(wait)) => {
            ctx.memories.put(&name, memory);
            Ok(Action::requeue(wait))
        }
        Err(error) => {
            ctx.memories.put(&name, memory);
            Err(error)
        }
    }
}

/// What follows a pass.
enum Next {
    After(Duration),
    /// There is no object any more.
    Gone,
}

async fn pass(ctx: &Context, allocation: Arc<NodeIPAllocation>, memory: &mut Memory) -> Result<Next, Error> {
    let Some(node) = ctx.cluster.node(&allocation.name_any()) else {
        return vacate::vacate(ctx, &allocation, memory).await;
    };
    memory.vacant_since = None;
    if allocation.metadata.deletion_timestamp.is_some() {
        return vacate::replace(ctx, &allocation, memory).await;
    }
    let need = Need::of(&ctx.cluster, &ctx.caller, &allocation.name_any());
    let mut round = Round::of(allocation, need);
    let outcome = loop {
        match serve(ctx, &mut round, &node, memory).await {
            // In this pass, because nothing may come after it: `Writing` is True by now.
            Err(error) if error.is_outgrown() => catch_up(ctx, &mut round, memory),
            outcome => break outcome,
        }
    };
    match &outcome {
        Ok(()) | Err(Error::Write(_)) => {}
        Err(Error::Find(error)) => {
            memory.setback =
                Some(Setback::after(memory.setback.as_ref(), Stage::Find, error, Instant::now()));
        }
        Err(_) => return outcome.map(|()| Next::Gone),
    }
    if is_done_with(&round) {
        apply::taint(ctx, &node, false).await?;
        apply::delete(ctx, &round.allocation).await?;
        return Ok(Next::Gone);
    }
    let say_again = report::report(ctx, &mut round, &node, memory).await?;
    outcome?;
    let next_look =
        recheck::next_look(&node.name_any(), memory.nic_known.unwrap_or(ctx.started), round.looked);
    Ok(Next::After(wait(&round, memory, say_again, next_look, Instant::now())))
}

/// Observe, plan, write, publish.
async fn serve(ctx: &Context, round: &mut Round, node: &Node, memory: &mut Memory) -> Result<(), Error> {
    look(ctx, round, node, memory).await?;
    // A plan made from what `spec` mirrors is made again from the NIC itself before anything is written.
    let is_mirrored = round.seen.as_ref().is_some_and(|seen| !seen.is_read);
    if is_mirrored && (round.wants_write() || round.wants_attachments() || round.rehearses()) {
        memory.must_read = true;
        look(ctx, round, node, memory).await?;
    }
    let mut outcome = Ok(());
    if round.wants_write() {
        // `spec` names the NIC, or the route table, before anything is reserved in it, and the groups before it joins them: whoever
        // comes after us finds it there.
        if round.names_less_than_is_written() {
            publish(ctx, round, node, memory).await?;
        }
        report::writing(ctx, round, node, memory).await?;
        outcome = write(ctx, round, node, memory).await;
        if outcome.as_ref().is_err_and(Error::is_outgrown) {
            return outcome;
        }
        // Whatever became of the write, what the NIC holds now is published.
        if let Err(error) = look_anew(ctx, round, node, memory).await {
            return outcome.and(Err(error));
        }
    }
    settle_left(ctx, round, node).await?;
    publish(ctx, round, node, memory).await?;
    outcome?;
    if attach::step(ctx, round, node, memory).await? {
        look_anew(ctx, round, node, memory).await?;
        publish(ctx, round, node, memory).await?;
    }
    Ok(())
}

/// Looks once more after a write. First the version, then the look, then the publication at that version: the other way
/// round a leader that was paused in between would put its old look at the NIC into the version of its successor, and names
/// that have left the NIC since would come back.
async fn look_anew(ctx: &Context, round: &mut Round, node: &Node, memory: &mut Memory) -> Result<(), Error> {
    catch_up(ctx, round, memory);
    let result = look(ctx, round, node, memory).await;
    memory.must_read |= result.is_err();
    result
}

/// Goes on with the newest version of the object.
fn catch_up(ctx: &Context, round: &mut Round, memory: &mut Memory) {
    if let Some(newest) = ctx.cluster.allocation(&round.allocation.name_any()) {
        memory.notice(&newest);
        round.allocation = newest;
    }
}

impl Round {
    fn of(allocation: Arc<NodeIPAllocation>, need: Need) -> Round {
        let looked = Instant::now();
        Round { allocation, need, looked, seen: None, plan: None, rehearsal: None, attachments: None }
    }

    fn names_less_than_is_written(&self) -> bool {
        let (spec, seen) = (&self.allocation.spec, self.seen.as_ref());
        let table = seen.and_then(|seen| seen.routed.as_ref()).map(|routed| routed.table.to_string());
        let nic = seen.and_then(|seen| seen.nic.as_ref());
        let is_named =
            spec.serving().zip(nic).is_some_and(|(named, nic)| named.id.eq_ignore_ascii_case(&nic.id));
        let named = spec.serving().map(|named| &named.application_security_groups);
        let joins_more = nic.is_some_and(|nic| {
            nic.application_security_groups.iter().any(|id| !named.is_some_and(|named| named.contains(id)))
        });
        !is_named || joins_more || spec.route_table_id != table
    }

    fn wants_write(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| !plan.change.is_empty())
    }

    fn rehearses(&self) -> bool {
        self.rehearsal.as_ref().is_some_and(|rehearsal| !rehearsal.is_empty())
    }

    fn wants_attachments(&self) -> bool {
        self.attachments.as_ref().is_some_and(|plan| plan.step.is_some())
    }
}

/// Observes and plans. `seen` and `plan` stay `None` while an error holds the look back.
async fn look(ctx: &Context, round: &mut Round, node: &Node, memory: &mut Memory) -> Result<(), Error> {
    (round.seen, round.plan, round.rehearsal, round.attachments) = (None, None, None, None);
    let now = Instant::now();
    round.looked = now;
    round.need.note();
    let seen = observe::observe(ctx, &round.allocation, node, &round.need, memory, now).await;
    let seen = seen.map_err(Error::Find)?;
    let Some(mut seen) = seen else { return Ok(()) };
    let plan = planner::plan(&seen.observed);
    let plan = growth::limited(ctx, &round.allocation, &mut seen, plan, memory, now);
    memory.note(&plan, now);
    memory.setback = memory.setback.take().filter(|setback| match setback.stage {
        Stage::Find => setback.holds(now),
        Stage::Write | Stage::Repair => plan.grows || plan.releases || plan.repairs || plan.regroups,
    });
    round.attachments = Some(attach::plan(ctx, &round.allocation, node, &seen, memory, now));
    let (plan, rehearsal) = if ctx.azure.is_dry_run() {
        let (plan, rehearsal) = plan.rehearse(seen.observed.grain);
        (plan, Some(rehearsal))
    } else {
        (plan, None)
    };
    (round.seen, round.plan, round.rehearsal) = (Some(seen), Some(plan), rehearsal);
    Ok(())
}

async fn write(ctx: &Context, round: &Round, node: &Node, memory: &mut Memory) -> Result<(), Error> {
    let is_routed = round.seen.as_ref().is_some_and(|seen| seen.routed.is_some());
    let written = match is_routed {
        true => route::write(ctx, round, node, memory).await,
        false => apply::write_nic(ctx, round, node, memory).await,
    };
    written.map_err(Error::Write)
}

async fn publish(ctx: &Context, round: &mut Round, node: &Node, memory: &mut Memory) -> Result<(), Error> {
    let (Some(seen), Some(plan)) = (&round.seen, &round.plan) else { return Ok(()) };
    let marks = round.attachments.as_ref().map(|plan| &plan.marks);
    let spec = apply::spec(&round.allocation.spec, node, seen, plan, marks);
    round.allocation = apply::publish(ctx, round.allocation.clone(), spec, memory).await?;
    Ok(())
}

/// NICs that `spec` names and that aren't the node's any more: what they hold of ours is given back before `spec` forgets
/// them, unless another VM has them and may use it.
async fn settle_left(ctx: &Context, round: &Round, node: &Node) -> Result<(), Error> {
    for nic in round.seen.iter().flat_map(|seen| &seen.left) {
        if let Some(vm) = vacate::end(ctx, nic, None, &round.allocation).await.map_err(Error::Find)? {
            report::left_behind(ctx, node, &round.allocation, nic.as_str(), vm.as_str());
        }
    }
    Ok(())
}

/// No pool serves the node any more, and it has given back everything.
fn is_done_with(round: &Round) -> bool {
    let no_pool = round.seen.as_ref().is_some_and(|seen| seen.obstacle == Some(Obstacle::NoPool));
    let holds_nothing =
        round.plan.as_ref().is_some_and(|plan| plan.kept == 0 && !plan.releases && !plan.regroups);
    no_pool && holds_nothing
}

/// How long until the node is to be looked at again. All is asked as of the last look, and what has come due since then is due
/// at once: an error that held writes back then and has run out since would be nobody's business otherwise.
fn wait(
    round: &Round,
    memory: &Memory,
    say_again: Option<Duration>,
    next_look: Duration,
    now: Instant,
) -> Duration {
    let since = now.saturating_duration_since(round.looked);
    let now = round.looked;
    let plan = round.plan.as_ref();
    let setback =
        memory.setback.as_ref().filter(|setback| setback.holds(now)).map(|setback| setback.until - now);
    let unsettled = round.seen.as_ref().is_some_and(|seen| seen.is_unsettled).then_some(observe::UNSETTLED);
    // While the last write was under way, more may have come to do.
    let attaches = round.wants_attachments() && !memory.attaching.holds(now);
    let at_once = (round.wants_write() || attaches).then_some(Duration::ZERO);
    let turn = round.seen.as_ref().and_then(|seen| seen.turn).map(|turn| turn.saturating_duration_since(now));
    let refused = memory.attaching.wait(now);
    let ungrouped = memory.grouping.as_ref().filter(|setback| setback.holds(now));
    let ungrouped = ungrouped.map(|setback| setback.until - now);
    // One that is due and wasn't answered is held back by an error, which has a time of its own.
    let hint = memory.hints.due(&round.allocation, now).filter(|wait| !wait.is_zero());
    let plan = plan.and_then(|plan| plan.requeue);
    let sooner = [plan, setback, unsettled, at_once, refused, ungrouped, say_again, turn, hint];
    sooner.into_iter().flatten().fold(next_look, Duration::min).saturating_sub(since)
}

/// What Azure's error means was decided when it happened, see [`Setback::after`]; the API server's are retried sooner.
fn error_policy(allocation: Arc<NodeIPAllocation>, error: &Error, ctx: Arc<Context>) -> Action {
    const SOON: Duration = Duration::from_millis(100);
    let name = allocation.name_any();
    Action::requeue(match error {
        Error::Find(_) | Error::Write(_) => ctx.memories.wait(&name, Instant::now()).unwrap_or(SOON),
        _ if error.is_conflict() => SOON,
        _ => jittered(Duration::from_secs(1) * 2_u32.pow(ctx.memories.api_errors(&name).min(6))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn an_error_that_runs_out_between_look_and_end_of_a_pass_is_looked_at_again_at_once() {
        let object = json!({
            "metadata": {"name": "n", "uid": "a", "resourceVersion": "9"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"},
        });
        let allocation: Arc<NodeIPAllocation> = Arc::new(serde_json::from_value(object).unwrap());
        let mut memory = Memories::default().take(&allocation);
        // A cluster that nobody watches.
        let url = "http://127.0.0.1:1".parse().unwrap();
        let (cluster, caller, ..) =
            Cluster::watch(&Client::try_from(kube::Config::new(url)).unwrap(), &Arc::default());
        let round = Round::of(allocation, Need::of(&cluster, &caller, "n"));
        let lost = azure::Error::OutcomeUnknown { resource: "nic".into(), message: "cut off".into() };
        memory.setback = Some(Setback::after(None, Stage::Write, &lost, round.looked));
        let hour = Duration::from_secs(3600);
        let wait = |after| wait(&round, &memory, None, hour, round.looked + Duration::from_millis(after));
        // Half a second is how long it holds.
        assert_eq!(wait(200), Duration::from_millis(300));
        assert_eq!(wait(2000), Duration::ZERO);
    }
}
