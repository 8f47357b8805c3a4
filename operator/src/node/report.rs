//! The findings and actions of a reconcile → conditions, Events and the taint.

pub mod announcement;
mod attached;
mod conditions;
mod sandboxes;
pub mod taint;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::allocation::NodeIPAllocation;
use vnetpool_crds::condition::{
    self, APPLICATION_SECURITY_GROUPS, FULL, GROUP_FOUND, PAUSED, READY, UPDATING,
};
use vnetpool_crds::names;
use vnetpool_crds::verdict::Verdict;

use super::absences::Absences;
use super::attachments::step;
use super::blame::Part;
use super::error::Error;
use super::lag::{AGENT_GRACE, lag};
use super::memory::Memory;
use super::memory::reports::Turn;
use super::observe::{groups, taken_off};
use super::pause::Pause;
use super::progress::Progress;
use super::strays;
use crate::api_server::read_again;
use crate::cluster::kept;
use crate::context::Context;
use crate::node_object::Node;
use crate::{azure, events};
use conditions::Facts;
use vnetpool_crds::reason::Reason;

/// Reports the node's state after a reconcile. Returns the time after which to report again though nothing
/// has changed.
pub async fn report(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<Option<Duration>, Error> {
    let now = Instant::now();
    progress.published_at = None;
    let (next, next_finding) = made(ctx, progress, node, memory, now).await?;
    let surplus_for = memory.surplus_since.map(|since| now.saturating_duration_since(since));
    let status = progress.allocation.status.as_ref();
    let refused = status.map(|status| memory.reports.news_of_refused(status, ctx.unled_since));
    for refusal in refused.unwrap_or_default() {
        let about = [node.object_ref(&()), progress.allocation.object_ref(&())];
        ctx.events.report(&about, events::refused(refusal, &progress.allocation.spec.pool));
    }
    if let Some(plan) = &progress.attachments {
        step::report(ctx, &plan.invalid, &mut memory.attaching);
    }
    let grace = memory.reports.grace_left(now);
    let is_reported = condition::is_true(&next, condition::SURPLUS);
    let surplus = surplus_for
        .filter(|_| !is_reported)
        .map(|lasted| conditions::surplus_is_reported_after(progress.seen.as_deref()).saturating_sub(lasted))
        .filter(|rest| !rest.is_zero());
    apply(ctx, progress, node, memory, next).await?;
    let full = condition::is_true(progress.allocation.conditions(), FULL);
    taint::set(ctx, node, full).await?;
    Ok([grace, surplus, next_finding].into_iter().flatten().min())
}

/// The operator's conditions as of now, and in how long there may be more to find.
async fn made(
    ctx: &Context,
    progress: &Progress,
    node: &Node,
    memory: &mut Memory,
    now: Instant,
) -> Result<(Vec<Condition>, Option<Duration>), Error> {
    memory.reports.run_clock(&lag(&progress.allocation, node.boot_id()), now);
    let (outlived, next_finding) =
        sandboxes::condition(ctx, &progress.allocation, node, &mut memory.reports.outlived, now).await?;
    let complaint = node
        .networkless()
        .filter(|_| condition::is_true(progress.allocation.conditions(), condition::CNI_INSTALLED));
    let (is_networkless, grace_of_runtime) = memory.reports.networkless(complaint.is_some(), now);
    let surplus_for = memory.surplus_since.map(|since| now.saturating_duration_since(since));
    let (taken_off, day_ends) = taken_off::verdict(&progress.allocation.spec, Timestamp::now()).unzip();
    let facts = Facts {
        allocation: &progress.allocation,
        boot_id: node.boot_id(),
        seen: progress.seen.as_deref(),
        plan: progress.plan.as_deref(),
        grace: ctx.waits.grace,
        dry_run: ctx.azure.is_dry_run(),
        pause: progress.pause.as_ref(),
        is_updating: progress.is_updating(),
        is_settled: progress.is_settled(node.boot_id(), memory),
        rehearsal: progress.rehearsal.as_ref(),
        setback: memory.setback.as_ref(),
        lacking: memory.lacking(),
        beside: beside(&progress.allocation, memory, now),
        writing: memory.nic.writing,
        tracked: tracked(ctx, &progress.allocation),
        grouped: progress.seen.as_ref().and_then(|seen| {
            let pool = seen.pool.as_ref().map(|pool| pool.name_any());
            let (nic, refused) = (seen.nic.as_ref()?, memory.left_out.get(&Part::Groups));
            groups::condition(&seen.grouping, &nic.id, pool.as_deref(), refused, ctx.azure.is_dry_run())
        }),
        attached: progress.attachments.as_ref().and_then(|plan| attached::condition(plan, &memory.attaching)),
        outlived,
        missing: memory.absences.condition(&progress.allocation, Timestamp::now()),
        taken_off,
        behind_for: memory.reports.behind_for(now),
        networkless: complaint.filter(|_| is_networkless),
        surplus_for: surplus_for.unwrap_or_default(),
    };
    let next = [next_finding, grace_of_runtime, day_ends].into_iter().flatten().min();
    Ok((conditions::conditions(&facts, Timestamp::now()), next))
}

/// What isn't well with NICs that don't serve the node. It is served all the same.
fn beside(allocation: &NodeIPAllocation, memory: &Memory, now: Instant) -> Option<String> {
    let hidden = memory.nic.hidden.iter();
    let hidden = hidden
        .map(|why| format!("not all of its VM's NICs are shown, and nothing is known of the others: {why}"));
    let (in_use, lags) = (strays::in_use(allocation), memory.reports.behind_for(now) >= AGENT_GRACE);
    let left = memory.left.reasons(&allocation.spec, &in_use, lags);
    let left = left.map(|(id, why)| format!("{id}, which the node has left, keeps what was reserved: {why}"));
    let all: Vec<String> = hidden.chain(left).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn tracked(ctx: &Context, allocation: &NodeIPAllocation) -> Option<Result<(), Arc<azure::Error>>> {
    ctx.azure.tracked(&allocation.spec.serving()?.id.parse().ok()?)
}

/// Announces a write before its turn has come, with the facts that are known before it. Where a write is of
/// one node alone, see [`announcement`].
pub async fn announce_write(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    memory.nic.writing = true;
    report(ctx, progress, node, memory).await.map(|_| ())
}

/// Applies the operator's conditions unless the object has the same already, and publishes the Events of
/// those that turned.
async fn apply(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
    next: Vec<Condition>,
) -> Result<(), Error> {
    let before = ours(&progress.allocation);
    if is_the_same(&before, &next) {
        return Ok(());
    }
    let setback = memory.setback.as_ref().or(memory.lacking()).cloned();
    memory.reports.unanswered = Some(Box::new(Turn { before, next: next.clone(), setback }));
    let write = apply_conditions(&ctx.client, &progress.allocation, &next);
    let answer = ctx.writes.report(write).await.map_err(Error::Report)?;
    applied(ctx, progress, memory, answer);
    if let Some(turn) = memory.reports.unanswered.take() {
        publish_turn(ctx, &progress.allocation, Some(node), &turn);
    }
    Ok(())
}

fn publish_turn(ctx: &Context, allocation: &NodeIPAllocation, node: Option<&Node>, turn: &Turn) {
    let about = node.map(|node| node.object_ref(&())).into_iter().chain([allocation.object_ref(&())]);
    let about: Vec<_> = about.collect();
    for event in conditions::turned(&turn.before, &turn.next, turn.setback.as_ref()) {
        ctx.events.report(&about, event);
    }
}

/// The object as it is to be reconciled. If the answer to its last conditions is lost, it is read: they
/// stand there, and their Events are published now, or they don't, and will be written again.
///
/// # Errors
/// The object can't be read. Then it can't be written either.
pub async fn settle_unanswered(
    ctx: &Context,
    allocation: Arc<NodeIPAllocation>,
    memory: &mut Memory,
) -> Result<Arc<NodeIPAllocation>, Error> {
    if memory.reports.unanswered.is_none() {
        return Ok(allocation);
    }
    let found = read_again(&ctx.client, &*allocation).await.map_err(Error::Report)?;
    let turn = memory.reports.unanswered.take();
    let Some((mut found, turn)) = found.zip(turn) else { return Ok(allocation) };
    kept::strip_allocation(&mut found);
    let found = Arc::new(found);
    ctx.cluster.answered(&found);
    memory.nic.status_written(&found);
    if condition::same(&ours(&found), &turn.next) {
        publish_turn(ctx, &found, ctx.cluster.node(&found.name_any()).as_deref(), &turn);
    }
    Ok(found)
}

/// Takes up the API server's answer to the operator's conditions.
fn applied(ctx: &Context, progress: &mut Progress, memory: &mut Memory, answer: NodeIPAllocation) {
    progress.allocation = Arc::new(answer);
    ctx.cluster.answered(&progress.allocation);
    memory.nic.status_written(&progress.allocation);
}

/// For an object whose Node is gone.
pub async fn vacant(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    absences: &Absences,
    reason: Reason,
    message: String,
) -> Result<(), Error> {
    set_vacant(ctx, allocation, absences, Verdict::no(reason, message), None).await
}

/// For an object that stays as it is though it is to go, because a person has paused its node.
pub async fn paused(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    absences: &Absences,
    pause: &Pause,
) -> Result<(), Error> {
    let ready = Verdict::no(pause.reason, pause.message());
    set_vacant(ctx, allocation, absences, ready, Some(pause.verdict())).await
}

async fn set_vacant(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    absences: &Absences,
    ready: Verdict,
    paused: Option<Verdict>,
) -> Result<(), Error> {
    let (generation, now) = (allocation.metadata.generation, Timestamp::now());
    let mut next = ours(allocation);
    next.retain(|one| one.type_ != UPDATING && (one.type_ != PAUSED || paused.is_some()));
    set_missing(&mut next, absences.condition(allocation, now));
    let verdicts = [Some((READY, ready)), paused.map(|paused| (PAUSED, paused))];
    for (type_, verdict) in verdicts.into_iter().flatten() {
        condition::set(&mut next, verdict.condition(type_, generation, now));
    }
    if !condition::same(&ours(allocation), &next) {
        let write = apply_conditions(&ctx.client, allocation, &next);
        ctx.writes.report(write).await.map_err(Error::Report)?;
    }
    Ok(())
}

/// Its transition time is a fact, which the condition's status wouldn't show.
fn set_missing(conditions: &mut Vec<Condition>, missing: Option<Condition>) {
    conditions.retain(|one| one.type_ != GROUP_FOUND);
    conditions.extend(missing);
}

/// The operator's conditions, all of them: one that isn't sent is taken off. Of this object only, not of one
/// made anew.
async fn apply_conditions(
    client: &Client,
    allocation: &NodeIPAllocation,
    conditions: &[Condition],
) -> Result<NodeIPAllocation, kube::Error> {
    let name = allocation.name_any();
    let object = json!({
        "apiVersion": NodeIPAllocation::api_version(&()),
        "kind": NodeIPAllocation::kind(&()),
        "metadata": {"name": name, "uid": allocation.uid()},
        "status": {"conditions": conditions},
    });
    let params = PatchParams::apply(names::OPERATOR).force();
    let api = Api::<Reading<NodeIPAllocation>>::all(client.clone());
    let mut answer = api.patch_status(&name, &params, &Patch::Apply(&object)).await?.readable()?;
    kept::strip_allocation(&mut answer);
    Ok(answer)
}

/// None of a type that isn't in the table. Applied, it would be the operator's as well, and stay when the
/// agent of a later release takes it off.
fn ours(allocation: &NodeIPAllocation) -> Vec<Condition> {
    let all = allocation.conditions().iter();
    all.filter(|one| condition::is_operators(one)).cloned().collect()
}

/// Whether a write would bring no news. A later generation of `spec` isn't news, since the operator writes it
/// itself; but the next leader learns from the generation which security groups are ours.
fn is_the_same(before: &[Condition], next: &[Condition]) -> bool {
    let timeless = |conditions: &[Condition]| {
        let mut conditions = conditions.to_vec();
        for one in conditions.iter_mut().filter(|one| one.type_ != APPLICATION_SECURITY_GROUPS) {
            one.observed_generation = None;
        }
        conditions
    };
    condition::same(&timeless(before), &timeless(next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;
    use crate::lock::lock;
    use crate::node::memory::Memories;
    use crate::node::need::Need;
    use axum::Router;
    use axum::http::{Method, StatusCode, Uri};
    use axum::response::IntoResponse;
    use serde_json::Value;
    use std::sync::Mutex;
    use tokio::net::TcpListener;

    /// What becomes of the first write of conditions.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum First {
        Answered,
        Lost,
        Refused,
    }

    /// What an API server has.
    struct Store {
        object: Value,
        first: First,
        /// What each Event is about, and its reason.
        events: Vec<String>,
    }

    fn answer(store: &mut Store, method: &Method, path: &str, body: &str) -> (StatusCode, Value) {
        let sent: Value = serde_json::from_str(body).unwrap_or_default();
        if path.contains("/events") {
            store.events.push(format!("{} {}", sent["regarding"]["kind"], sent["reason"]).replace('"', ""));
            return (StatusCode::CREATED, sent);
        }
        if *method == Method::GET {
            return (StatusCode::OK, store.object.clone());
        }
        let first = std::mem::replace(&mut store.first, First::Answered);
        if first != First::Refused {
            store.object["status"] = sent["status"].clone();
            store.object["metadata"]["resourceVersion"] = json!("8");
        }
        let status = if first == First::Answered { StatusCode::OK } else { StatusCode::GATEWAY_TIMEOUT };
        (status, store.object.clone())
    }

    /// The Events of a node whose `Reserved` turns false, after three reconciles.
    async fn events_of_a_turn(first: First) -> Vec<String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let object = json!({"apiVersion": "vnetpool.io/v1", "kind": "NodeIPAllocation",
            "metadata": {"name": "n", "uid": "a", "resourceVersion": "7"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        let store = Store { object: object.clone(), first, events: vec![] };
        let store = Arc::new(Mutex::new(store));
        let asked = store.clone();
        let routes = Router::new().fallback(move |method: Method, uri: Uri, body: String| async move {
            let (status, answer) = answer(&mut lock(&asked), &method, uri.path(), &body);
            (status, axum::Json(answer)).into_response()
        });
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        let client = Client::try_from(kube::Config::new(url)).unwrap();
        let (events, deliver) = Events::new(client.clone(), "us", |_| None);
        let ctx = Context { client, events, ..Context::sample() };

        let mut allocation: Arc<NodeIPAllocation> = Arc::new(serde_json::from_value(object).unwrap());
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u"}})).unwrap();
        let mut memory = Memories::default().take(&allocation);
        let turned = Verdict::no(Reason::AzureRefused, "m").condition(
            condition::RESERVED,
            None,
            Timestamp::UNIX_EPOCH,
        );
        for _ in 0..3 {
            allocation = settle_unanswered(&ctx, allocation, &mut memory).await.unwrap();
            let need = Need::of(&ctx.cluster, &ctx.waker, "n");
            let mut progress = Progress::of(allocation.clone(), need);
            let next = vec![turned.clone()];
            if apply(&ctx, &mut progress, &node, &mut memory, next).await.is_ok() {
                allocation = progress.allocation;
            }
        }
        drop(ctx);
        deliver.await;
        server.abort();
        std::mem::take(&mut lock(&store).events)
    }

    #[test]
    fn a_condition_that_this_release_does_not_know_is_not_made_the_operators() {
        let conditions = [
            ("Ready", "False"),
            ("Supplied", "True"),
            ("OfALaterAgent", "True"),
            ("example.org/Theirs", "False"),
        ];
        let conditions = conditions.map(|(type_, status)| {
            json!({"type": type_, "status": status, "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        let object = json!({"metadata": {"name": "n"}, "status": {"conditions": conditions},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        let allocation: NodeIPAllocation = serde_json::from_value(object).unwrap();
        let sent = conditions::announced(&allocation, Timestamp::UNIX_EPOCH);
        let sent: Vec<_> = sent.iter().map(|one| one.type_.as_str()).collect();
        assert_eq!(sent, ["Ready", "Writing"]);
    }

    #[tokio::test]
    async fn conditions_that_turn_have_their_event_once_though_the_answer_to_their_write_is_lost() {
        for first in [First::Answered, First::Lost, First::Refused] {
            let events = events_of_a_turn(first).await;
            assert_eq!(events, ["Node AzureRefused", "NodeIPAllocation AzureRefused"], "{first:?}");
        }
    }
}
