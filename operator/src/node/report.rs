//! What a reconcile found and did → conditions, Events and the taint.

pub mod conditions;
pub mod sandboxes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use vnetpool_crds::allocation::NodeIPAllocation;
use vnetpool_crds::condition::{self, BY_AGENT, FULL, READY};
use vnetpool_crds::names;

use super::memory::Memory;
use super::observe::groups;
use super::{Error, Round, attachments, lag, publish};
use crate::cluster::kept;
use crate::context::Context;
use crate::{azure, events};
use conditions::Facts;
use lag::Lag;

/// `Ready`'s message counts addresses; a count alone isn't written more often than this.
const COUNTS: Duration = Duration::from_secs(10);

/// Says how the node stands after a round. Gives the time after which to say it again though nothing has changed.
pub async fn report(
    ctx: &Context,
    round: &mut Round,
    node: &Node,
    memory: &mut Memory,
) -> Result<Option<Duration>, Error> {
    let now = Instant::now();
    let lag = lag::lag(&round.allocation, kept::boot_id(node));
    if lag == Lag::None {
        memory.behind_since = None;
    } else {
        memory.behind_since.get_or_insert(now);
    }
    let (outlived, look) = sandboxes::condition(ctx, &round.allocation, node, memory, now).await?;
    let next = {
        let facts = Facts {
            allocation: &round.allocation,
            boot_id: kept::boot_id(node),
            seen: round.seen.as_ref(),
            plan: round.plan.as_ref(),
            dry_run: ctx.azure.is_dry_run(),
            rehearsal: round.rehearsal.as_ref(),
            setback: memory.setback.as_ref(),
            writing: memory.writing,
            tracked: tracked(ctx, &round.allocation),
            grouped: round.seen.as_ref().and_then(|seen| {
                let pool = seen.pool.as_ref().map(|pool| pool.name_any());
                let (nic, refused) = (seen.nic.as_ref()?, memory.grouping.as_ref());
                groups::condition(&seen.grouping, &nic.id, pool.as_deref(), refused, ctx.azure.is_dry_run())
            }),
            attached: round
                .attachments
                .as_ref()
                .and_then(|plan| attachments::condition(plan, &memory.attaching)),
            outlived,
            behind_for: memory
                .behind_since
                .map(|since| now.saturating_duration_since(since))
                .unwrap_or_default(),
        };
        conditions::conditions(&facts, Timestamp::now())
    };
    let grace = memory
        .behind_since
        .map(|since| lag::AGENT_GRACE.saturating_sub(now.saturating_duration_since(since)))
        .filter(|rest| !rest.is_zero());
    let pause = say(ctx, round, node, memory, next, now).await?;
    let full = condition::is_true(round.allocation.conditions(), FULL);
    publish::taint(ctx, node, full).await?;
    Ok([grace, pause, look].into_iter().flatten().min())
}

fn tracked(ctx: &Context, allocation: &NodeIPAllocation) -> Option<Result<(), Arc<azure::Error>>> {
    ctx.azure.tracked(&allocation.spec.serving()?.id.parse().ok()?)
}

/// Says that a write begins, with what is known before it.
pub async fn writing(
    ctx: &Context,
    round: &mut Round,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    memory.writing = true;
    report(ctx, round, node, memory).await.map(|_| ())
}

/// Applies the operator's conditions unless they say the same already, and publishes the Events of those that turned.
async fn say(
    ctx: &Context,
    round: &mut Round,
    node: &Node,
    memory: &mut Memory,
    next: Vec<Condition>,
    now: Instant,
) -> Result<Option<Duration>, Error> {
    let before = ours(&round.allocation);
    if condition::same(&before, &next) {
        return Ok(None);
    }
    if let Some(last) = memory.reported.filter(|_| only_counts_differ(&before, &next)) {
        let pause = COUNTS.saturating_sub(now.saturating_duration_since(last));
        if !pause.is_zero() {
            return Ok(Some(pause));
        }
    }
    round.allocation = Arc::new(apply_conditions(ctx, &round.allocation, &next).await?);
    ctx.cluster.answered(&round.allocation);
    memory.said(&round.allocation);
    memory.reported = Some(now);
    let about = [node.object_ref(&()), round.allocation.object_ref(&())];
    for event in conditions::turned(&before, &next, memory.setback.as_ref()) {
        ctx.events.say(&about, event);
    }
    Ok(None)
}

/// Of an object whose Node is gone.
pub async fn vacant(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    reason: &str,
    message: String,
) -> Result<(), Error> {
    let mut next = ours(allocation);
    condition::set(
        &mut next,
        condition::new(READY, false, reason, message, allocation.metadata.generation, Timestamp::now()),
    );
    if !condition::same(&ours(allocation), &next) {
        apply_conditions(ctx, allocation, &next).await?;
    }
    Ok(())
}

/// The operator's conditions, all of them: one that isn't sent is taken off. Of this object only, not of one made anew.
async fn apply_conditions(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    conditions: &[Condition],
) -> Result<NodeIPAllocation, Error> {
    let name = allocation.name_any();
    let object = json!({
        "apiVersion": NodeIPAllocation::api_version(&()),
        "kind": NodeIPAllocation::kind(&()),
        "metadata": {"name": name, "uid": allocation.uid()},
        "status": {"conditions": conditions},
    });
    let params = PatchParams::apply(names::OPERATOR).force();
    let api = Api::<NodeIPAllocation>::all(ctx.client.clone());
    let mut answer = api.patch_status(&name, &params, &Patch::Apply(&object)).await.map_err(Error::Report)?;
    kept::strip_allocation(&mut answer);
    Ok(answer)
}

/// The interfaces' NIC was left to another VM: said once, because `spec` forgets it right after.
pub fn left_behind(ctx: &Context, node: &Node, allocation: &NodeIPAllocation, nic: &str, vm: &str) {
    let about = [node.object_ref(&()), allocation.object_ref(&())];
    ctx.events.say(&about, events::left_behind(nic, vm));
}

fn ours(allocation: &NodeIPAllocation) -> Vec<Condition> {
    let all = allocation.conditions().iter();
    all.filter(|one| !BY_AGENT.contains(&one.type_.as_str())).cloned().collect()
}

/// Whether a reader who doesn't read `Ready`'s message would see no difference.
fn only_counts_differ(before: &[Condition], next: &[Condition]) -> bool {
    let without = |conditions: &[Condition]| {
        let mut conditions = conditions.to_vec();
        for one in &mut conditions {
            if one.type_ == READY {
                one.message.clear();
            }
        }
        conditions
    };
    condition::same(&without(before), &without(next))
}
