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
use super::lag::lag;
use super::memory::Memory;
use super::observe::{groups, taken_off};
use super::pause::Pause;
use super::progress::Progress;
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
        is_updating: progress.is_updating,
        is_settled: progress.is_settled(node.boot_id(), memory),
        rehearsal: progress.rehearsal.as_ref(),
        setback: memory.setback.as_ref(),
        lacking: memory.lacking(),
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
    let write = apply_conditions(&ctx.client, &progress.allocation, &next);
    let answer = ctx.writes.report(write).await.map_err(Error::Report)?;
    applied(ctx, progress, memory, answer);
    let about = [node.object_ref(&()), progress.allocation.object_ref(&())];
    for event in conditions::turned(&before, &next, memory.setback.as_ref().or(memory.lacking())) {
        ctx.events.report(&about, event);
    }
    Ok(())
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
    let api = Api::<NodeIPAllocation>::all(client.clone());
    let mut answer = api.patch_status(&name, &params, &Patch::Apply(&object)).await?;
    kept::strip_allocation(&mut answer);
    Ok(answer)
}

fn ours(allocation: &NodeIPAllocation) -> Vec<Condition> {
    let all = allocation.conditions().iter();
    all.filter(|one| !condition::is_agents(one)).cloned().collect()
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
