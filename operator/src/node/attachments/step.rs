//! The steps by which a resource is attached to a pod's address, or is taken off again.

use std::collections::HashSet;
use std::time::Instant;

use futures::FutureExt;
use futures::future::join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use tracing::warn;
use vnetpool_crds::allocation;
use vnetpool_crds::reason::Reason;

use crate::azure::{
    self, Attached, Azure, Change, NewPublicAddress, Nic, Priority, PublicAddress, Reserved, ResourceId,
    Urgency,
};
use crate::caught::caught;
use crate::context::Context;
use crate::events;
use crate::node::memory::Memory;
use crate::node::memory::attaching::{Attaching, Begun, Done, Order};
use crate::node::pause;
use crate::node::progress::Progress;
use crate::node::setback::{Setback, Stage};
use crate::planner::attachments::{Attach, Invalid, Make, Plan, Step};

/// The next step and the NIC it is for, if it may be taken now.
pub fn next(progress: &Progress, attaching: &Attaching, now: Instant) -> Option<(ResourceId, Step)> {
    let step = progress.attachments.as_ref()?.step.clone()?;
    Some((nic(progress, attaching, now)?, step))
}

/// The NIC, unless an error holds the node's writes or its attachments back.
fn nic(progress: &Progress, attaching: &Attaching, now: Instant) -> Option<ResourceId> {
    let seen = progress.seen.as_ref().filter(|seen| seen.observed.may_write && !attaching.holds(now))?;
    seen.nic.as_ref()?.id.parse().ok()
}

/// The rank of what is attached to an address, and of a public address that is made or read for one: a pod
/// that asks for them has its address, so they come after pods that have none.
const ATTACHED: Priority = Priority::WarmRefill;

/// Carries out a step. The plan has been published before, and a write of the NIC announced.
///
/// # Errors
/// The step was outgrown while it waited. Azure's other errors are remembered: they end only this step.
pub async fn carry_out(
    ctx: &Context,
    (nic, step): (ResourceId, Step),
    urgency: impl Fn(Priority) -> Urgency,
    memory: &mut Memory,
) -> Result<(), azure::Error> {
    match step {
        Step::Detach(names) => detach_all(ctx, &nic, &names, urgency(Priority::GiveBack), memory).await,
        Step::Attach(attach) => attach_all(ctx, &nic, attach, urgency(ATTACHED), memory).await,
    }
}

/// Detaches everything in one write. An address off which Azure takes nothing waits alone.
async fn detach_all(
    ctx: &Context,
    nic: &ResourceId,
    names: &[String],
    urgency: Urgency,
    memory: &mut Memory,
) -> Result<(), azure::Error> {
    let attach = names.iter().map(|name| (name.clone(), Attached::default())).collect();
    let change = Change { attach, ..Change::default() };
    let result = ctx.azure.update(nic, &change, urgency).await;
    memory.nic.wrote(&result);
    let (attaching, now) = (&mut memory.attaching, Instant::now());
    match result {
        // An answer alone detaches nothing.
        Ok(written) => attaching.detached((nic, names), |name| still_shows(&written, name), now),
        Err(error) if error.is_given_up() => return Err(error),
        Err(error) => attaching.not_detached(names, &error, now),
    }
    Ok(())
}

/// Whether something that Vnetpool attaches is on this ipConfiguration.
fn still_shows(nic: &Nic, name: &str) -> bool {
    nic.ip_configurations.iter().any(|one| {
        one.name == name && (!one.attached.backend_pools.is_empty() || one.attached.public_address.is_some())
    })
}

/// Reads public addresses, all at once, and remembers those that are there. Returns the errors of the others.
async fn read_all(
    ctx: &Context,
    attaching: &mut Attaching,
    ids: Vec<ResourceId>,
    urgency: &Urgency,
) -> Vec<(ResourceId, azure::Error)> {
    let found = join_all(ids.iter().map(|id| ctx.azure.public_address(id, urgency))).await;
    let mut failed = vec![];
    for (id, found) in ids.into_iter().zip(found) {
        match found {
            Ok(public) => attaching.ended(&id, Some(shown(public))),
            Err(error) => failed.push((id, error)),
        }
    }
    failed
}

fn shown(PublicAddress { id, address, dns_name }: PublicAddress) -> allocation::PublicAddress {
    allocation::PublicAddress { id: id.to_string(), address, dns_name }
}

/// Attaches everything in one write. A pod that is refused waits alone.
async fn attach_all(
    ctx: &Context,
    nic: &ResourceId,
    attach: Vec<Attach>,
    urgency: Urgency,
    memory: &mut Memory,
) -> Result<(), azure::Error> {
    let attached = attach.iter().map(|one| (one.name.clone(), one.attached.clone())).collect();
    let change = Change { attach: attached, ..Change::default() };
    let result = ctx.azure.update(nic, &change, &urgency).await;
    memory.nic.wrote(&result);
    let attaching = &mut memory.attaching;
    match result {
        Ok(written) => {
            attaching.batch = attaching.batch.saturating_mul(2);
            // An answer alone attaches nothing.
            let (there, lacking): (Vec<_>, Vec<_>) = attach.iter().partition(|one| shows(&written, one));
            for one in there {
                attaching.refused.remove(&one.uid);
                attaching.anew.remove(&one.uid);
                ctx.events.report(&[about(&one.pod, &one.uid)], events::attached(&one.attached));
            }
            let last = attaching.setback.take();
            attaching.setback = lacking.first().map(|one| {
                let message = format!("it doesn't show what was attached to the address of pod {}", one.pod);
                setback(last.as_ref(), &azure::Error::OutcomeUnknown { resource: nic.to_string(), message })
            });
        }
        Err(error) if error.is_given_up() => return Err(error),
        Err(error) => {
            if !lost(ctx, &attach, &error, urgency, attaching).await? {
                refuse(ctx, &attach.iter().map(Sought::from).collect::<Vec<_>>(), &error, attaching);
            }
        }
    }
    Ok(())
}

/// Whether nothing was attached because Azure doesn't find public addresses of these pods. Then they are made
/// anew, at once; one that is there is changed by that into the same. A pod whose own isn't found again
/// before it has it is refused like any other.
async fn lost(
    ctx: &Context,
    attach: &[Attach],
    error: &azure::Error,
    urgency: Urgency,
    attaching: &mut Attaching,
) -> Result<bool, azure::Error> {
    let ids: Vec<ResourceId> = attach.iter().filter_map(|one| one.attached.public_address.clone()).collect();
    if !matches!(error, azure::Error::Unattachable { .. }) || ids.is_empty() {
        return Ok(false);
    }
    let mut missed = HashSet::new();
    for (id, error) in read_all(ctx, attaching, ids, &urgency).await {
        match error {
            azure::Error::NotFound { .. } => drop(missed.insert(id)),
            error if error.is_given_up() => return Err(error),
            // It is as it was.
            _ => {}
        }
    }
    Ok(attaching.make_anew(&missed))
}

fn shows(nic: &Nic, asked: &Attach) -> bool {
    nic.ip_configurations.iter().any(|one| one.name == asked.name && one.attached == asked.attached)
}

/// What is asked for a pod.
struct Sought<'a> {
    uid: &'a str,
    pod: &'a str,
    /// What its address is to refer to, and others' may, too.
    referred: Vec<&'a ResourceId>,
}

impl<'a> From<&'a Attach> for Sought<'a> {
    fn from(Attach { uid, pod, attached, .. }: &'a Attach) -> Sought<'a> {
        Sought { uid, pod, referred: attached.backend_pools.iter().collect() }
    }
}

impl<'a> From<&'a Make> for Sought<'a> {
    fn from(Make { uid, pod, .. }: &'a Make) -> Sought<'a> {
        Sought { uid, pod, referred: vec![] }
    }
}

/// Begins to make the public addresses that pods of the node are to have, to read those of which only the id
/// is known, and to delete those that no pod has any more: beside its reconciles, for each takes Azure some
/// seconds, and neither the node's addresses nor what is attached to others must wait for it. What the plan
/// records has been published.
pub fn order(ctx: &Context, progress: &Progress, attaching: &mut Attaching, now: Instant) {
    if let Some(plan) = &progress.attachments
        && progress.may_write()
        && !attaching.holds(now)
    {
        plan.read.iter().for_each(|id| read(ctx, progress, attaching, id));
        plan.delete.iter().for_each(|id| delete(ctx, progress, attaching, id));
        plan.make.iter().for_each(|asked| make(ctx, progress, attaching, asked, now));
    }
}

fn make(ctx: &Context, progress: &Progress, attaching: &mut Attaching, asked: &Make, now: Instant) {
    let Some(nic) = nic(progress, attaching, now) else { return };
    let Some(begun) = attaching.orders.begin(&asked.id) else { return };
    let presence = Presence::of(attaching, asked);
    // If its answer is lost, it may be there all the same.
    attaching.public.retain(|id, public| public.is_some() || *id != asked.id);
    let urgency = pause::while_not(&ctx.cluster, &ctx.waker, &progress.allocation, ATTACHED);
    let (azure, for_pod) = (ctx.azure.clone(), asked.clone());
    let (waited_for, id) = (azure.clone(), asked.id.clone());
    let mut reserved = Box::pin(async move { waited_for.reserve_public_address(&id).await });
    // From now on whoever deletes it comes later. Another node's object may be about to, and get no answer.
    let at_once = (&mut reserved).now_or_never();
    let work = async move {
        let reserved = match at_once {
            Some(reserved) => reserved,
            None => reserved.await,
        };
        let new = new(&azure, &nic, &for_pod, &urgency).await?;
        presence.made(&azure, &reserved, &new, urgency).await.map(Some)
    };
    beside(ctx, progress, begun, Order::Make(asked.clone()), work);
}

fn read(ctx: &Context, progress: &Progress, attaching: &Attaching, id: &ResourceId) {
    let Some(begun) = attaching.orders.begin(id) else { return };
    let urgency = pause::while_not(&ctx.cluster, &ctx.waker, &progress.allocation, ATTACHED);
    let (azure, public) = (ctx.azure.clone(), id.clone());
    let work = async move { azure.public_address(&public, urgency).await.map(Some) };
    beside(ctx, progress, begun, Order::Read(id.clone()), work);
}

fn delete(ctx: &Context, progress: &Progress, attaching: &mut Attaching, id: &ResourceId) {
    if progress.lacks_nic() {
        return;
    }
    let Some(begun) = attaching.orders.begin(id) else { return };
    // Unknown, it is attached to nothing meanwhile.
    attaching.public.remove(id);
    let urgency = pause::while_not(&ctx.cluster, &ctx.waker, &progress.allocation, Priority::GiveBack);
    let (azure, public) = (ctx.azure.clone(), id.clone());
    let work = async move { azure.delete_public_address(&public, urgency).await.map(|()| None) };
    beside(ctx, progress, begun, Order::Delete(id.clone()), work);
}

/// Carries an order out beside the node's reconciles. Its end wakes the node.
fn beside(
    ctx: &Context,
    progress: &Progress,
    begun: Begun,
    order: Order,
    work: impl Future<Output = Result<Option<PublicAddress>, azure::Error>> + Send + 'static,
) {
    let (waker, node, azure) = (ctx.waker.clone(), progress.allocation.name_any(), ctx.azure.clone());
    ctx.beside.begin(async move {
        let result = caught(work).await.unwrap_or_else(|panicked| {
            let resource = order.id().to_string();
            Err(azure::Error::OutcomeUnknown { resource, message: format!("the operator {panicked}") })
        });
        let of_all = azure.refusal_of_public_address(order.call(), order.id());
        let is_shared =
            of_all.zip(result.as_ref().err()).is_some_and(|(all, own)| all.reason() == own.reason());
        begun.ended(Done { order, result, is_shared });
        waker.allocation(&node);
    });
}

/// Reports to each pod what it can't have, and why: by an Event, which its owner sees.
pub fn report(ctx: &Context, invalid: &[Invalid], attaching: &mut Attaching) {
    attaching.reported.retain(|uid, _| invalid.iter().any(|one| one.uid == *uid));
    for Invalid { uid, pod, message } in invalid {
        if attaching.reported.insert(uid.clone(), message.clone()).as_ref() != Some(message) {
            let event = events::stuck(Reason::Unavailable, "Attach", message);
            ctx.events.report(&[about(pod, uid)], event);
        }
    }
}

async fn new(
    azure: &Azure,
    nic: &ResourceId,
    asked: &Make,
    urgency: &Urgency,
) -> Result<NewPublicAddress, azure::Error> {
    let location = azure.nic(nic, azure::Freshness::Cached, urgency).await?.location.clone();
    Ok(NewPublicAddress { location, dns_label: asked.dns_label.clone(), pod: asked.pod.clone() })
}

/// Whether a public address that is to be made is there already, and so takes nothing of the quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    There,
    /// Perhaps from before this operator led: detached, and given back to its pod since.
    Unknown,
    Absent,
}

impl Presence {
    fn of(attaching: &Attaching, asked: &Make) -> Presence {
        match attaching.public.get(&asked.id) {
            Some(Some(_)) => Presence::There,
            // Whether it is there was found out before it was refused, unless another was asked for.
            _ => match attaching.refused.get(&asked.uid) {
                Some((_, one)) if one.needs_change && !one.is_shared => Presence::Absent,
                _ => Presence::Unknown,
            },
        }
    }

    /// Makes it, or changes the one that is there.
    async fn made(
        self,
        azure: &Azure,
        reserved: &Reserved,
        new: &NewPublicAddress,
        urgency: Urgency,
    ) -> Result<PublicAddress, azure::Error> {
        if self == Presence::There
            && let Some(changed) = azure.change_public_address(reserved, new, &urgency).await?
        {
            return Ok(changed);
        }
        match azure.make_public_address(reserved, new, &urgency).await {
            Err(error @ azure::Error::PublicAddressesUsedUp { .. }) if self == Presence::Unknown => {
                azure.change_public_address(reserved, new, urgency).await?.ok_or(error)
            }
            made => made,
        }
    }
}

/// Takes in the outcomes of the orders that have ended. A public address that isn't made, read or deleted
/// holds nothing else up. One that something else has is given up if a person has confirmed that nothing is
/// left.
pub fn take_outcomes(ctx: &Context, attaching: &mut Attaching, is_confirmed_gone: bool) {
    for Done { order, result, is_shared } in attaching.orders.take() {
        match (result, order) {
            (Ok(public), order) => {
                let public = public.map(shown);
                attaching.ended(order.id(), public.clone());
                // It would be ordered again at once, and without end.
                if let Order::Make(asked) = order
                    && !asked.is_met_by(public.as_ref())
                {
                    let error = azure::Error::WithoutEffect { resource: asked.id.to_string() };
                    refuse_one(ctx, &Sought::from(&asked), &error, false, attaching);
                }
            }
            (Err(error), Order::Make(asked)) => {
                refuse_one(ctx, &Sought::from(&asked), &error, is_shared, attaching);
            }
            (Err(error), Order::Read(id)) => attaching.not_read(&id, &error, is_shared, Instant::now()),
            (Err(error @ azure::Error::InUse { .. }), Order::Delete(id)) if is_confirmed_gone => {
                warn!(public_address = %id, %error, "given up on a person's word");
                attaching.ended(&id, None);
            }
            (Err(error), Order::Delete(id)) => {
                attaching.not_deleted(&id, (&error, is_shared), ctx.waits.second_read, Instant::now());
            }
        }
    }
}

/// What an error means to the pods of the write. Where it doesn't show whose part was the cause, fewer are
/// tried next time.
fn refuse(ctx: &Context, asked: &[Sought<'_>], error: &azure::Error, attaching: &mut Attaching) {
    if !is_for_a_person(error) {
        attaching.setback = Some(setback(attaching.setback.as_ref(), error));
        return;
    }
    let concerned = concerned(asked, error);
    if concerned.is_empty() {
        attaching.batch = (asked.len() / 2).max(1);
    }
    for one in concerned {
        let is_shared = ctx.azure.refusal_of(one.referred.iter().copied()).is_some();
        refuse_one(ctx, one, error, is_shared, attaching);
    }
}

/// Whether nothing helps until a person changes something.
fn is_for_a_person(error: &azure::Error) -> bool {
    matches!(error.remedy(), azure::Remedy::WaitForChange { .. })
}

/// Those of several whose part was the cause, as far as an error shows that.
fn concerned<'a, 'b>(asked: &'a [Sought<'b>], error: &azure::Error) -> Vec<&'a Sought<'b>> {
    let is_concerned = |one: &&Sought| asked.len() == 1 || one.referred.iter().any(|id| error.is_about(id));
    asked.iter().filter(is_concerned).collect()
}

/// A pod waits: by itself, ever longer, or for one that tries on behalf of all.
fn refuse_one(
    ctx: &Context,
    asked: &Sought<'_>,
    error: &azure::Error,
    is_shared: bool,
    attaching: &mut Attaching,
) {
    let last = attaching.refused.get(asked.uid).map(|(_, setback)| setback);
    let is_news = last.is_none_or(|last| last.reason != error.reason());
    let own = Setback::of_many(last, Stage::Write, error, is_shared, Instant::now());
    if is_news && own.needs_change {
        let event = events::stuck(own.reason, "Attach", &own.message);
        ctx.events.report(&[about(asked.pod, asked.uid)], event);
    }
    attaching.refused.insert(asked.uid.to_owned(), (asked.pod.to_owned(), own));
}

/// Whether a public address isn't to be deleted now: that is under way, or refused. What many are refused is
/// decided anew each time.
pub fn keeps(ctx: &Context, id: &ResourceId, attaching: &mut Attaching, now: Instant) -> bool {
    let own = attaching.undeleted.get(id);
    if attaching.orders.has(id) || own.is_some_and(|own| own.holds(now) && !own.is_shared) {
        return true;
    }
    let of_all = ctx.azure.refusal_of_public_address(azure::Kind::Delete, id);
    if let Some(error) = &of_all {
        attaching.not_deleted(id, (&error.clone().about(id.as_str()), true), ctx.waits.second_read, now);
    }
    of_all.is_some()
}

/// The pods that ask for what all are refused now, by UID: those of the next step, and those for which a
/// public address is to be made.
pub fn held_back(
    ctx: &Context,
    nic: Option<&ResourceId>,
    plan: &Plan,
    attaching: &mut Attaching,
) -> Vec<String> {
    let mut held = vec![];
    for asked in &plan.make {
        if let Some(error) = ctx.azure.refusal_of_public_address(azure::Kind::Write, &asked.id) {
            refuse_one(ctx, &Sought::from(asked), &error.about(asked.id.as_str()), true, attaching);
            held.push(asked.uid.clone());
        }
    }
    let (Some(nic), Some(Step::Attach(attach))) = (nic, &plan.step) else { return held };
    for one in attach {
        if let Some(error) = ctx.azure.refusal_of(&one.attached.backend_pools) {
            refuse_one(ctx, &Sought::from(one), &error.about(nic.as_str()), true, attaching);
            held.push(one.uid.clone());
        }
    }
    held
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_id::sample_public_address;

    fn pool(name: &str) -> ResourceId {
        let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
        format!("{network}/loadBalancers/{name}/backendAddressPools/pods").parse().unwrap()
    }

    #[test]
    fn of_pods_in_one_write_those_wait_that_ask_for_what_azure_refuses() {
        let (web, other) = (pool("web"), pool("other"));
        let asked = [("a", &web), ("b", &other), ("c", &web)];
        let asked = asked.map(|(uid, pool)| Sought { uid, pod: uid, referred: vec![pool] });
        let refused = |asked: &[Sought], scope: &ResourceId| {
            let (action, scope, message) = ("join".to_owned(), scope.to_string(), "m".to_owned());
            let error = azure::Error::Denied { action, scope, message };
            concerned(asked, &error).iter().map(|one| one.uid.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(refused(&asked, &web), ["a", "c"]);
        // It may be any of them, or the only one.
        assert_eq!(refused(&asked, &pool("third")), [""; 0]);
        assert_eq!(refused(&asked[..1], &pool("third")), ["a"]);
    }

    #[tokio::test]
    async fn a_public_address_that_is_not_made_keeps_only_its_own_pod_waiting() {
        let (ctx, mut attaching) = (Context::sample(), Attaching::default());
        let id = sample_public_address("a");
        let (resource, message) = (id.to_string(), "m".to_owned());
        let conflict = azure::Error::Conflict { resource, code: "c".into(), message };
        for _ in 0..2 {
            let asked = Make { id: id.clone(), uid: "a".into(), pod: "default/a".into(), dns_label: None };
            let begun = attaching.orders.begin(&id).unwrap();
            begun.ended(Done { order: Order::Make(asked), result: Err(conflict.clone()), is_shared: false });
            take_outcomes(&ctx, &mut attaching, false);
            assert!(attaching.setback.is_none() && attaching.refused["a"].1.holds(Instant::now()));
        }
        assert_eq!(attaching.refused["a"].1.strikes(), 1, "ever less often");
    }

    #[tokio::test]
    async fn a_public_address_that_azure_reports_as_made_without_its_dns_label_is_not_asked_for_again_at_once()
     {
        let (ctx, mut attaching) = (Context::sample(), Attaching::default());
        let id = sample_public_address("a");
        let mut answered = |dns_name: Option<&str>| {
            let dns_label = Some("shop".to_owned());
            let asked = Make { id: id.clone(), uid: "a".into(), pod: "default/a".into(), dns_label };
            let dns_name = dns_name.map(str::to_owned);
            let public = PublicAddress { id: id.clone(), address: Some("20.0.0.1".into()), dns_name };
            let begun = attaching.orders.begin(&id).unwrap();
            begun.ended(Done { order: Order::Make(asked), result: Ok(Some(public)), is_shared: false });
            take_outcomes(&ctx, &mut attaching, false);
            attaching.refused.get("a").is_some_and(|(_, setback)| setback.holds(Instant::now()))
        };
        assert!(!answered(Some("shop.westeurope.cloudapp.azure.com")));
        assert!(answered(None));
    }

    #[test]
    fn pods_that_have_an_address_wait_for_attachments_behind_pods_and_nodes_that_have_none() {
        assert!(ATTACHED > Priority::NewNode);
    }
}
