//! What pods ask to have attached to their addresses: observed, carried out step by step, and said.
//!
//! It has errors and waits of its own: a pod that asks for what Azure refuses must not keep the node from its addresses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::ResourceExt;
use vnetpool_crds::allocation::{self, NodeIPAllocation};
use vnetpool_crds::names;
use vnetpool_crds::pool::Mode;

use super::lag::{Lag, lag};
use super::memory::Memory;
use super::observe::Seen;
use super::setback::{Setback, Stage};
use super::{Error, Round, report};
use crate::azure::{self, Attached, Change, NewPublicAddress, Priority, PublicAddress, ResourceId, Urgency};
use crate::cluster::kept;
use crate::context::Context;
use crate::events;
use crate::planner::attachments::{self, Attach, Facts, Mark, Plan, Step};
use crate::verdict::Verdict;

/// So many pods are named in a message.
const NAMED: usize = 3;

/// What this process remembers of a node's attachments. All of it can be lost.
#[derive(Clone, Debug)]
pub struct Attaching {
    /// What Azure has told of public addresses; `None`: there is none.
    public: HashMap<ResourceId, Option<allocation::PublicAddress>>,
    /// Pods that Azure has refused something, by UID, with their names.
    refused: HashMap<String, (String, Setback)>,
    /// What keeps all of the node's attachments waiting.
    setback: Option<Setback>,
    /// How many to attach in one write.
    batch: usize,
}

impl Default for Attaching {
    fn default() -> Self {
        Attaching { public: HashMap::new(), refused: HashMap::new(), setback: None, batch: usize::MAX }
    }
}

impl Attaching {
    /// How long until something that was refused may be tried again.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let all = self.refused.values().map(|(_, setback)| setback).chain(&self.setback);
        all.filter(|setback| setback.holds(now)).map(|setback| setback.until - now).min()
    }

    pub fn holds(&self, now: Instant) -> bool {
        self.setback.as_ref().is_some_and(|setback| setback.holds(now))
    }
}

/// What should be attached to the node's addresses.
pub fn plan(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    seen: &Seen,
    memory: &mut Memory,
    now: Instant,
) -> Plan {
    let wishes = ctx.cluster.wishes(&node.name_any());
    let attaching = &mut memory.attaching;
    attaching.refused.retain(|uid, _| wishes.contains_key(uid));
    let marks = marks(allocation);
    for public in marks.values().filter_map(|mark| mark.public_address.as_ref()) {
        if let (Ok(id), Some(_)) = (public.id.parse(), &public.address) {
            attaching.public.entry(id).or_insert_with(|| Some(public.clone()));
        }
    }
    let status = allocation.status.as_ref().filter(|status| status.boot_id == kept::boot_id(node));
    let assignments = status.into_iter().flat_map(|status| &status.assignments);
    let has = assignments
        .filter(|one| !one.pod_uid.is_empty())
        .filter_map(|one| Some((one.address.parse().ok()?, one.pod_uid.clone())))
        .collect();
    let refused: HashSet<String> =
        attaching.refused.iter().filter(|(_, (_, one))| one.holds(now)).map(|(uid, _)| uid.clone()).collect();
    let nic: Option<ResourceId> = seen.nic.as_ref().and_then(|nic| nic.id.parse().ok());
    let plan = attachments::plan(
        &Facts {
            held: &seen.observed.held,
            marks: &marks,
            wishes: &wishes,
            has: &has,
            confirmed: lag(allocation, kept::boot_id(node)) == Lag::None,
            offered: &seen.pool.as_ref().map(|pool| pool.spec.attachments.clone()).unwrap_or_default(),
            impossible: impossible(seen, nic.as_ref()),
            public: &attaching.public,
            refused: &refused,
            batch: attaching.batch,
        },
        |uid| public_id(nic.as_ref()?, uid),
    );
    // A dry run keeps no address for anybody, and takes none from whom it is kept for.
    if ctx.azure.is_dry_run() { Plan { marks, step: None, ..plan } } else { plan }
}

/// Azure attaches to single addresses of ordinary NICs only.
fn impossible(seen: &Seen, nic: Option<&ResourceId>) -> Option<&'static str> {
    let mode = seen.pool.as_ref().map(|pool| pool.spec.mode);
    if mode.is_some_and(|mode| mode != Mode::Address) {
        return Some(
            "its NodeIPPool's mode doesn't reserve single addresses, and Azure attaches things to single addresses only. Run the pod \
             on a node of a pool with mode Address.",
        );
    }
    nic.filter(|nic| !nic.is("Microsoft.Network", "networkInterfaces")).map(|_| {
        "the node belongs to a scale set with uniform orchestration, whose addresses nothing can be attached to one by one. Run \
         the pod on a node of a flexible scale set or on a virtual machine of its own."
    })
}

/// The public address of a pod stands beside the NIC.
fn public_id(nic: &ResourceId, uid: &str) -> Option<ResourceId> {
    let (subscription, group) = (nic.subscription(), nic.resource_group());
    let prefix = names::IP_CONFIGURATION_PREFIX;
    format!(
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/publicIPAddresses/{prefix}{uid}"
    )
    .parse()
    .ok()
}

/// The marks that `spec` shows.
fn marks(allocation: &NodeIPAllocation) -> BTreeMap<String, Mark> {
    let marked = allocation.spec.ip_configurations().filter_map(|one| {
        let mark = Mark { attached_to: one.attached_to.clone()?, public_address: one.public_address.clone() };
        Some((one.name.clone(), mark))
    });
    marked.collect()
}

/// Carries out the plan's next step. Says whether anything may have changed. The caller has published the plan's marks.
///
/// # Errors
/// The API server's, or that the step was outgrown while it waited. Azure's are remembered: they end nothing but this step.
pub async fn step(ctx: &Context, round: &mut Round, node: &Node, memory: &mut Memory) -> Result<bool, Error> {
    let Some((nic, step)) = next(round, memory, Instant::now()) else { return Ok(false) };
    let urgency = |round: &Round, priority| match &round.seen {
        Some(seen) => round.need.of_write(&seen.observed, priority),
        None => priority.into(),
    };
    let result = match step {
        Step::Detach(names) => {
            report::writing(ctx, round, node, memory).await?;
            let attach = names.into_iter().map(|name| (name, Attached::default())).collect();
            let change = Change { attach, ..Change::default() };
            ctx.azure.update(&nic, &change, urgency(round, Priority::GiveBack)).await.map(drop)
        }
        Step::Delete(ids) => delete(ctx, memory, ids, urgency(round, Priority::GiveBack)).await,
        Step::LookUp(ids) => look_up(ctx, memory, ids, urgency(round, Priority::WarmRefill)).await,
        Step::Attach(attach) => {
            report::writing(ctx, round, node, memory).await?;
            attach_all(ctx, &nic, attach, memory).await;
            return Ok(true);
        }
    };
    let attaching = &mut memory.attaching;
    attaching.setback = match result {
        Ok(()) => None,
        Err(error @ azure::Error::Outgrown { .. }) => return Err(Error::Write(error)),
        Err(error) => Some(setback(attaching.setback.as_ref(), &error)),
    };
    Ok(true)
}

/// What to do to which NIC now, if anything.
fn next(round: &Round, memory: &Memory, now: Instant) -> Option<(ResourceId, Step)> {
    let seen = round.seen.as_ref().filter(|seen| seen.observed.may_write)?;
    let step = round.attachments.as_ref()?.step.clone()?;
    let nic = seen.nic.as_ref()?.id.parse().ok()?;
    (!memory.attaching.holds(now)).then_some((nic, step))
}

async fn delete(
    ctx: &Context,
    memory: &mut Memory,
    ids: Vec<ResourceId>,
    urgency: Urgency,
) -> Result<(), azure::Error> {
    for id in ids {
        ctx.azure.delete_public_address(&id, &urgency).await?;
        memory.attaching.public.insert(id, None);
    }
    Ok(())
}

async fn look_up(
    ctx: &Context,
    memory: &mut Memory,
    ids: Vec<ResourceId>,
    urgency: Urgency,
) -> Result<(), azure::Error> {
    for id in ids {
        let found = ctx.azure.public_address(&id, &urgency).await?;
        memory.attaching.public.insert(id, found.map(shown));
    }
    Ok(())
}

fn shown(PublicAddress { id, address, dns_name }: PublicAddress) -> allocation::PublicAddress {
    allocation::PublicAddress { id: id.to_string(), address, dns_name }
}

/// Makes the pods' public addresses, then attaches everything in one write. Who is refused waits alone.
async fn attach_all(ctx: &Context, nic: &ResourceId, attach: Vec<Attach>, memory: &mut Memory) {
    let mut ready = vec![];
    for one in attach {
        match make(ctx, nic, &one, memory).await {
            Ok(()) => ready.push(one),
            Err(error) => refuse(ctx, &[one], &error, memory),
        }
    }
    if ready.is_empty() {
        return;
    }
    let attached = ready.iter().map(|one| (one.name.clone(), one.attached.clone())).collect();
    let change = Change { attach: attached, ..Change::default() };
    match ctx.azure.update(nic, &change, Priority::WaitingPods).await {
        Ok(_) => {
            memory.attaching.setback = None;
            memory.attaching.batch = memory.attaching.batch.saturating_mul(2);
            for one in &ready {
                memory.attaching.refused.remove(&one.uid);
                ctx.events.say(&[about(&one.pod, &one.uid)], events::attached(&one.attached));
            }
        }
        Err(error) => refuse(ctx, &ready, &error, memory),
    }
}

/// Sees to it that the public address is there that the pod is to have.
async fn make(
    ctx: &Context,
    nic: &ResourceId,
    one: &Attach,
    memory: &mut Memory,
) -> Result<(), azure::Error> {
    let Some(id) = &one.attached.public_address else { return Ok(()) };
    let location =
        ctx.azure.nic(nic, azure::Freshness::Cached, Priority::WaitingPods).await?.location.clone();
    let new = NewPublicAddress { location, dns_label: one.dns_label.clone(), pod: one.pod.clone() };
    let made = ctx.azure.make_public_address(id, &new, Priority::WaitingPods).await?;
    memory.attaching.public.insert(id.clone(), Some(shown(made)));
    Ok(())
}

/// What an error means to those it was about. Of several, one may have been the cause, so fewer are tried next time.
fn refuse(ctx: &Context, attach: &[Attach], error: &azure::Error, memory: &mut Memory) {
    let attaching = &mut memory.attaching;
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
    memory.attaching.refused.insert(one.uid.clone(), (one.pod.clone(), setback));
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

/// The condition `Attached`; none while nobody asks for anything.
pub fn condition(plan: &Plan, attaching: &Attaching) -> Option<Verdict> {
    let some = |pods: Vec<String>| {
        let more = pods.len().saturating_sub(NAMED);
        let named = pods.into_iter().take(NAMED).collect::<Vec<_>>().join(" ");
        if more > 0 { format!("{named} And {more} more.") } else { named }
    };
    let Plan { marks: _, step: _, invalid, attached, pending, foreign } = plan;
    if !invalid.is_empty() {
        let pods = invalid.iter().map(|one| format!("Pod {}: {}", one.pod, one.message)).collect();
        return Some(Verdict::no("NotToBeHad", some(pods)));
    }
    let mut refused: Vec<_> = attaching.refused.values().collect();
    refused.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some((_, first)) = refused.first() {
        let pods = refused.iter().map(|(pod, setback)| format!("Pod {pod}: {}", setback.message)).collect();
        return Some(Verdict::no(first.reason, some(pods)));
    }
    if let Some(setback) = &attaching.setback {
        return Some(Verdict::no(setback.reason, &setback.message));
    }
    if !foreign.is_empty() {
        let mut addresses: Vec<String> = foreign.iter().map(ToString::to_string).collect();
        addresses.sort();
        let message = format!(
            "somebody else than Vnetpool has attached something to {}: no further pod gets such an address until it is detached in Azure.",
            addresses.join(", ")
        );
        return Some(Verdict::no("AttachedByOthers", message));
    }
    match (pending, attached) {
        (0, 0) => None,
        (0, pods) => Some(Verdict::yes("Attached", format!("{pods} pods have what they ask for"))),
        (pods, _) => Some(Verdict::no("Attaching", format!("{pods} pods are yet to get what they ask for"))),
    }
}
