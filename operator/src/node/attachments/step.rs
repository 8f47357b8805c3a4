//! The steps by which something comes to be attached to a pod's address, or is taken off again.

use std::time::Instant;

use k8s_openapi::api::core::v1::ObjectReference;
use vnetpool_crds::allocation;

use super::remembered::Attaching;
use crate::azure::{self, Attached, Change, NewPublicAddress, Priority, PublicAddress, ResourceId, Urgency};
use crate::context::Context;
use crate::events;
use crate::node::progress::Progress;
use crate::node::setback::{Setback, Stage};
use crate::planner::attachments::{Attach, Step};

/// The next step and the NIC it is for, if it may be taken now.
pub fn next(progress: &Progress, attaching: &Attaching, now: Instant) -> Option<(ResourceId, Step)> {
    let seen = progress.seen.as_ref().filter(|seen| seen.observed.may_write)?;
    let step = progress.attachments.as_ref()?.step.clone()?;
    let nic = seen.nic.as_ref()?.id.parse().ok()?;
    (!attaching.holds(now)).then_some((nic, step))
}

/// Whether the step writes the NIC, which the condition `Writing` must announce.
pub fn writes_nic(step: &Step) -> bool {
    match step {
        Step::Detach(_) | Step::Attach(_) => true,
        Step::Delete(_) | Step::LookUp(_) => false,
    }
}

/// Carries out a step. The plan's marks have been published before, and a write of the NIC announced.
///
/// # Errors
/// That the step was outgrown while it waited. Azure's other errors are remembered: they end nothing but this
/// step.
pub async fn carry_out(
    ctx: &Context,
    (nic, step): (ResourceId, Step),
    urgency: impl Fn(Priority) -> Urgency,
    attaching: &mut Attaching,
) -> Result<(), azure::Error> {
    let result = match step {
        Step::Detach(names) => {
            let attach = names.into_iter().map(|name| (name, Attached::default())).collect();
            let change = Change { attach, ..Change::default() };
            ctx.azure.update(&nic, &change, urgency(Priority::GiveBack)).await.map(drop)
        }
        Step::Delete(ids) => delete(ctx, attaching, ids, urgency(Priority::GiveBack)).await,
        Step::LookUp(ids) => look_up(ctx, attaching, ids, urgency(Priority::WarmRefill)).await,
        Step::Attach(attach) => {
            attach_all(ctx, &nic, attach, attaching).await;
            return Ok(());
        }
    };
    attaching.setback = match result {
        Ok(()) => None,
        Err(error @ azure::Error::Outgrown { .. }) => return Err(error),
        Err(error) => Some(setback(attaching.setback.as_ref(), &error)),
    };
    Ok(())
}

async fn delete(
    ctx: &Context,
    attaching: &mut Attaching,
    ids: Vec<ResourceId>,
    urgency: Urgency,
) -> Result<(), azure::Error> {
    for id in ids {
        ctx.azure.delete_public_address(&id, &urgency).await?;
        attaching.public.insert(id, None);
    }
    Ok(())
}

async fn look_up(
    ctx: &Context,
    attaching: &mut Attaching,
    ids: Vec<ResourceId>,
    urgency: Urgency,
) -> Result<(), azure::Error> {
    for id in ids {
        let found = ctx.azure.public_address(&id, &urgency).await?;
        attaching.public.insert(id, found.map(shown));
    }
    Ok(())
}

fn shown(PublicAddress { id, address, dns_name }: PublicAddress) -> allocation::PublicAddress {
    allocation::PublicAddress { id: id.to_string(), address, dns_name }
}

/// Makes the pods' public addresses, then attaches everything in one write. Who is refused waits alone.
async fn attach_all(ctx: &Context, nic: &ResourceId, attach: Vec<Attach>, attaching: &mut Attaching) {
    let mut ready = vec![];
    for one in attach {
        match make(ctx, nic, &one, attaching).await {
            Ok(()) => ready.push(one),
            Err(error) => refuse(ctx, &[one], &error, attaching),
        }
    }
    if ready.is_empty() {
        return;
    }
    let attached = ready.iter().map(|one| (one.name.clone(), one.attached.clone())).collect();
    let change = Change { attach: attached, ..Change::default() };
    match ctx.azure.update(nic, &change, Priority::WaitingPods).await {
        Ok(_) => {
            attaching.setback = None;
            attaching.batch = attaching.batch.saturating_mul(2);
            for one in &ready {
                attaching.refused.remove(&one.uid);
                ctx.events.say(&[about(&one.pod, &one.uid)], events::attached(&one.attached));
            }
        }
        Err(error) => refuse(ctx, &ready, &error, attaching),
    }
}

/// Sees to it that the public address is there that the pod is to have.
async fn make(
    ctx: &Context,
    nic: &ResourceId,
    one: &Attach,
    attaching: &mut Attaching,
) -> Result<(), azure::Error> {
    let Some(id) = &one.attached.public_address else { return Ok(()) };
    let location =
        ctx.azure.nic(nic, azure::Freshness::Cached, Priority::WaitingPods).await?.location.clone();
    let new = NewPublicAddress { location, dns_label: one.dns_label.clone(), pod: one.pod.clone() };
    let made = ctx.azure.make_public_address(id, &new, Priority::WaitingPods).await?;
    attaching.public.insert(id.clone(), Some(shown(made)));
    Ok(())
}

/// What an error means to those it was about. Of several, one may have been the cause, so fewer are tried
/// next time.
fn refuse(ctx: &Context, attach: &[Attach], error: &azure::Error, attaching: &mut Attaching) {
    if !matches!(error.remedy(), azure::Remedy::WaitForChange { .. }) {
        attaching.setback = Some(setback(attaching.setback.as_ref(), error));
        return;
    }
    let [one] = attach else {
        attaching.batch = (attach.len() / 2).max(1);
        return;
    };
    let last = attaching.refused.get(&one.uid).map(|(_, setback)| setback);
    let is_news = last.is_none_or(|last| last.reason != error.reason());
    let setback = setback(last, error);
    if is_news {
        let event = events::stuck(setback.reason, "Attach", &setback.message);
        ctx.events.say(&[about(&one.pod, &one.uid)], event);
    }
    attaching.refused.insert(one.uid.clone(), (one.pod.clone(), setback));
}

fn setback(last: Option<&Setback>, error: &azure::Error) -> Setback {
    Setback::after(last, Stage::Write, error, Instant::now())
}

/// The pod, for an Event.
fn about(pod: &str, uid: &str) -> ObjectReference {
    let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        uid: Some(uid.into()),
        ..Default::default()
    }
}
