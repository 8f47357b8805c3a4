//! An object whose Node is gone: kept while the VM lives, deleted when Azure has no reservation of ours left.
//! And an object that was deleted although its Node lives.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use tracing::warn;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::reason::Reason;

pub use attempt::{Attempt, Ended};
pub use owner::{is_given_away, is_left_to_its_vm, word_that_gives_away};

use super::absences::{Absences, Recorded};
use super::asking::{Refused, Turns};
use super::error::Error;
use super::memory::Memory;
use super::pending::Pending;
use super::progress::{Next, SOON};
use super::setback::{Setback, Stage};
use super::{growth, pause, publish, report};
use crate::azure::{self, ResourceId};
use crate::cluster::kept;
use crate::context::Context;
use crate::events;
use crate::planner::attachments::{Wish, pod_of};

mod attempt;
mod owner;

/// How soon to check again whether the VM still lives. Mostly it is about to go; the longer it stays, the
/// longer it may.
const SOONEST: Duration = Duration::from_secs(30);
const LATEST: Duration = Duration::from_secs(1800);

/// NIC gone → object deleted. NIC without a VM → our ipConfigurations removed, then object deleted. VM there
/// → kept: its pods may still run, and a Node of the same name with the same VM adopts it.
pub async fn vacate(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &mut Memory,
) -> Result<Next, Error> {
    let now = Instant::now();
    if memory.vacant_since.is_none() {
        // A setback of the node's service doesn't delay its end.
        (memory.setback, memory.pending) = (None, Pending::default());
    }
    let since = *memory.vacant_since.get_or_insert(now);
    if let Some(pause) = pause::of(&ctx.cluster, allocation) {
        report::paused(ctx, allocation, &memory.absences, &pause).await?;
        return Ok(Next::After(LATEST));
    }
    if let Some(wait) = held_back(ctx, allocation, memory, now) {
        return Ok(Next::After(wait));
    }
    let gone = format!("Node {} is gone", allocation.name_any());
    let strays = memory.strays.with_recorded(allocation);
    let mut attempt = Attempt::of(ctx, allocation, (&mut memory.absences, &mut memory.pending), Turns::Taken);
    let (in_use, refusal) = match attempt.all(&strays).await {
        Ok(in_use) => {
            memory.setback = None;
            (in_use, attempt.refusal())
        }
        Err(error) => (None, Some(put_off(&mut memory.setback, error))),
    };
    if let Some(refusal) = refusal {
        return refused(ctx, allocation, memory, (refusal, &gone)).await;
    }
    let Some(in_use) = in_use else {
        // Another client may write the object in that moment: then returned addresses are counted once, and a
        // resource that was found to be absent stays so, when it is tried again.
        publish::delete(ctx, allocation).await?;
        growth::gone(ctx, allocation);
        return Ok(Next::Gone);
    };
    let message = in_use.message(&allocation.name_any());
    report::vacant(ctx, allocation, &memory.absences, Reason::NodeGone, message).await?;
    Ok(Next::After(now.saturating_duration_since(since).clamp(SOONEST, LATEST)))
}

/// How long all of an object's resources still wait.
fn held_back(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &Memory,
    now: Instant,
) -> Option<Duration> {
    // What many were refused of the node's service holds nothing back here.
    let own = memory.setback.as_ref().filter(|setback| setback.holds(now) && !setback.is_shared);
    own.map(|setback| setback.until - now).or_else(|| memory.pending.wait((ctx, allocation), now))
}

/// An error that ends an attempt early holds all of the object's resources back.
fn put_off(setback: &mut Option<Setback>, error: azure::Error) -> Refused {
    if !error.is_given_up() {
        *setback = Some(Setback::after(setback.as_ref(), Stage::Find, &error, Instant::now()));
    }
    error.into()
}

async fn refused(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &mut Memory,
    (Refused { error, of_all }, why): (Refused, &str),
) -> Result<Next, Error> {
    if error.is_given_up() {
        // A person has paused the node while a write waited for its turn, or others were refused the same.
        return Ok(Next::After(SOON));
    }
    let wait = held_back(ctx, allocation, memory, Instant::now()).unwrap_or(SOON);
    let lacks_second_read = Recorded::of(allocation, Timestamp::now()).lacks_second_read(&error);
    let message = if lacks_second_read {
        format!(
            "{why}, and Azure doesn't find what this object records. That may pass, so it is asked again in {} s before the \
             record goes. {error}",
            ctx.waits.second_read.as_secs()
        )
    } else {
        format!("{why}, but: {error}")
    };
    report::vacant(ctx, allocation, &memory.absences, error.reason(), message).await?;
    // It is woken when it may try on behalf of all, or when another has succeeded.
    if lacks_second_read || of_all.is_some() { Ok(Next::After(wait)) } else { Err(Error::Find(error)) }
}

/// An object that was deleted while its Node lives: let go, and made again, once nobody else holds it. First
/// the addresses that its node has given up leave the NIC. The list of them goes with the object, and a node
/// that then lost its ledger, too, could hand out an address whose release is still on its way to Azure.
pub async fn replace(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &mut Memory,
) -> Result<Next, Error> {
    const WHY: &str = "somebody deleted this object while its Node lives; it is made again once the addresses that the node \
        has given up are off the NIC";
    let now = Instant::now();
    let has_given_up = allocation.status.as_ref().is_some_and(|status| !status.relinquished.is_empty());
    if let Some(pause) = pause::of(&ctx.cluster, allocation).filter(|_| has_given_up) {
        report::paused(ctx, allocation, &memory.absences, &pause).await?;
        return Ok(Next::After(LATEST));
    }
    let held_by = kept::held_by(allocation);
    if !held_by.is_empty() {
        let message = format!(
            "somebody deleted this object while its Node lives; it is made again once others have taken their finalizers off \
             it: {}. Find out whose they are, if that lasts",
            held_by.join(", ")
        );
        report::vacant(ctx, allocation, &memory.absences, Reason::HeldByOthers, message).await?;
        return Ok(Next::After(LATEST));
    }
    if let Some(wait) = held_back(ctx, allocation, memory, now) {
        return Ok(Next::After(wait));
    }
    let mut attempt = Attempt::of(ctx, allocation, (&mut memory.absences, &mut memory.pending), Turns::Taken);
    let (interfaces, refusal) = match attempt.release_relinquished().await {
        Ok(Some(interfaces)) => {
            memory.setback = None;
            (interfaces, attempt.refusal())
        }
        // A new one begins with its NIC's content.
        Ok(None) => return Ok(Next::Gone),
        Err(Error::Find(error)) => (vec![], Some(put_off(&mut memory.setback, error))),
        Err(error) => return Err(error),
    };
    if let Some(refusal) = refusal {
        return refused(ctx, allocation, memory, (refusal, WHY)).await;
    }
    delete_ended(ctx, allocation, &mut memory.absences).await;
    // An object of another past serves nobody.
    if !allocation.is_copy() && !allocation.is_set_back() {
        let all = publish::named_only_here(&allocation.spec, &interfaces);
        let awaited: Vec<&str> = all.filter(|id| !memory.absences.has_deleted(id)).collect();
        let is_news = !std::mem::replace(&mut memory.serves_on, !awaited.is_empty());
        if memory.serves_on {
            if is_news {
                ctx.events.report(&[allocation.object_ref(&())], events::deletion_waits(&awaited));
            }
            memory.nic.must_read = true;
            return Ok(Next::After(SOON));
        }
    }
    publish::replace(ctx, allocation, interfaces).await?;
    Ok(Next::Gone)
}

/// Deletes the public addresses of pods that are gone, before the object goes: if this process ended before
/// it has made the next object, nothing would name those that no NIC has. Nor would anything name a living
/// pod's, if the pod ended, too. So while Azure refuses one, or a living pod's is on no NIC, the object stays
/// and serves its node.
async fn delete_ended(ctx: &Context, allocation: &NodeIPAllocation, absences: &mut Absences) {
    let wishes = ctx.cluster.wishes(&allocation.name_any());
    let asks = |uid: &str| wishes.get(uid).is_some_and(Wish::asks_for_public_address);
    let is_ended =
        |id: &&str| id.parse().is_ok_and(|id: ResourceId| pod_of(&id).is_some_and(|uid| !asks(uid)));
    let ended: Vec<&str> = allocation.spec.public_addresses().filter(is_ended).collect();
    let mut pending = Pending::default();
    let mut attempt = Attempt::of(ctx, allocation, (absences, &mut pending), Turns::Taken);
    if let Err(error) = attempt.delete(ended.into_iter(), true).await {
        warn!(%error, "public addresses of pods that are gone stay for now");
    }
}

/// Of a node that has left this NIC with a group, an address of this name, and the public address of it.
#[cfg(test)]
fn having_left(nic: &ResourceId, more: serde_json::Value) -> NodeIPAllocation {
    let group = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/a";
    let left = serde_json::json!({"id": nic.as_str(), "mac": "l", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
        "applicationSecurityGroups": [group], "ipConfigurations": [{"name": "vnp-1",
            "address": "10.0.0.5/32", "publicAddress": {"id": "/public/u"}}]});
    let mut spec =
        serde_json::json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "leftInterfaces": [left]});
    spec.as_object_mut().unwrap().extend(more["spec"].as_object().cloned().unwrap_or_default());
    let object = serde_json::json!({"metadata": {"name": "n"}, "spec": spec, "status": more["status"]});
    serde_json::from_value(object).unwrap()
}
