//! The node controller: a reconcile observes, plans, writes at Azure, publishes `spec` and reports.
//!
//! Its objects are the NodeIPAllocations, so a node's work goes on, under the same lock, when its Node is
//! gone. They have no ownerReference to the Node: a deletion that the garbage collector begins can't be
//! undone, and an object must outlive its Node as long as the VM lives and its pods use the addresses. The
//! finalizer decides instead (see [`vacate`]).
//!
//! ```text
//!  controller    when a node is reconciled, and what is remembered until the next time
//!  observe/      the cluster's stores and the NIC: reads only
//!  backend/      where addresses are reserved: NIC, instance of a scale set, route table
//!  reads         which of these may be made
//!  asking, pending                  requests for a node that is gone, and to NICs that don't serve
//!  strays, left                     NICs of the VM that don't serve, and those that the node has left
//!  policy, takeup                   which pool the node goes by
//!  planner, scope, growth, attachments     what to do
//!  calm          which pods may come and go until the next time
//!  pause         whether any of it may be done
//!  write, attachments/step          the plan at Azure
//!  blame         which part of it Azure may have refused
//!  publish       spec, and the object's end
//!  answer        the agent's report on it, for which conditions wait
//!  report/       conditions, Events, the taint
//!  memory/       what is kept from one reconcile to the next: the rooms above act by it
//! ```
//!
//! Thousands of nodes may wait for Azure at the same time. So the parts of a reconcile are boxed: a node that
//! waits in one of them has no room for the others.

mod absences;
pub mod admit;
mod answer;
mod asking;
mod attachments;
pub mod backend;
mod blame;
mod calm;
pub mod controller;
mod error;
mod growth;
mod lag;
mod left;
mod memory;
mod mending;
mod need;
mod observe;
pub mod outlook;
pub mod pause;
mod pending;
mod policy;
mod progress;
mod publish;
mod reads;
mod recalled;
mod report;
mod scope;
mod setback;
mod strays;
mod takeup;
pub mod turns;
mod vacate;
mod write;

use std::sync::Arc;
use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::NodeIPAllocationSpec;

use crate::azure::{self, Priority, ResourceId, Urgency};
use crate::cluster::proof::Unproved;
use crate::context::Context;
use crate::node_object::Node;
use crate::planner;
use attachments::step;
use blame::Part;
use error::Error;
pub use lag::AGENT_GRACE;
use memory::Memory;
pub use memory::known::{Basis, Known, Read};
pub use memory::others::Found;
use need::Need;
use observe::Seen;
pub use observe::adopt::adoption;
pub use observe::lost;
use observe::recheck::{self, Recheck};
pub use policy::follows;
use progress::{Next, Progress, SOON};
use reads::Reads;
use report::announcement::Announcement;
use report::taint;
use takeup::Place;
use turns::stand_back;

/// The object of a Node that is gone, an object that was deleted, or the object of a node to serve.
async fn reconcile_one(
    ctx: &Context,
    allocation: Arc<NodeIPAllocation>,
    memory: &mut Memory,
    is_of_another_past: bool,
) -> Result<Next, Error> {
    let allocation = Box::pin(report::settle_unanswered(ctx, allocation, memory)).await?;
    let node = match ctx.cluster.node(&allocation.name_any()) {
        Some(node) if is_served(&allocation, memory, is_of_another_past) => node,
        node => return Box::pin(let_go(ctx, &allocation, memory, node.is_none())).await,
    };
    memory.vacant_since = None;
    if is_of_another_past && !ctx.azure.is_dry_run() {
        Box::pin(publish::begin_to_replace(ctx, &allocation)).await?;
        return Ok(Next::After(recheck::REQUEUE));
    }
    let need = Need::of(&ctx.cluster, &ctx.waker, &allocation.name_any());
    let mut progress = Progress::of(allocation, need);
    let outcome = loop {
        match Box::pin(serve(ctx, &mut progress, &node, memory)).await {
            // This reconcile goes on: the need that has outgrown the write waits for an answer.
            Err(error) if error.is_given_up() => {
                let begun = progress.allocation.clone();
                let name = begun.name_any();
                let (newest, newest_node) = (ctx.cluster.allocation(&name), ctx.cluster.node(&name));
                if !is_as_begun((&begun, &node), newest.as_deref(), newest_node.as_deref()) {
                    return Ok(Next::After(SOON));
                }
                catch_up(ctx, &mut progress, memory);
            }
            outcome => break outcome,
        }
    };
    match &outcome {
        Ok(()) | Err(Error::Find(_) | Error::Write(_)) => {}
        Err(_) => return outcome.map(|()| Next::Gone),
    }
    if progress.is_done_with(&memory.strays) && progress.pause.is_none() {
        Box::pin(taint::set(ctx, &node, false)).await?;
        Box::pin(publish::delete(ctx, &progress.allocation)).await?;
        return Ok(Next::Gone);
    }
    let report_again = Box::pin(report::report(ctx, &mut progress, &node, memory)).await?;
    if progress.has_taken_up() {
        takeup::leave(ctx, &progress.allocation.name_any());
    }
    outcome?;
    let recheck = Recheck::of(&progress.allocation, &memory.nic, ctx.started, ctx.waits.unlisted)
        .due_in(progress.observed_at);
    let again = |memory: &Memory| progress.requeue_in(memory, report_again, recheck, Instant::now());
    let urgency = beside_need(ctx, &progress, Priority::GiveBack);
    // What the node itself needs at once comes first, and everything of it has been reported by now.
    let may_settle = !again(memory).is_zero();
    if may_settle && Box::pin(left::settle(ctx, &progress, &node, &urgency, memory)).await {
        return Ok(Next::After(SOON));
    }
    ctx.cluster.settle(&node.name_any(), calm::calm(&progress, node.boot_id(), memory));
    Ok(Next::After(again(memory)))
}

/// Whether a node is served with this object: it is to stay, or can't go yet. One that can't is served until
/// its NIC has been read and published: before that `spec` may show on it what has left it.
fn is_served(allocation: &NodeIPAllocation, memory: &Memory, is_of_another_past: bool) -> bool {
    if allocation.metadata.deletion_timestamp.is_none() {
        return true;
    }
    let names_more =
        |spec: &NodeIPAllocationSpec| publish::named_only_here(spec, &spec.interfaces).next().is_some();
    !is_of_another_past && memory.serves_on && (memory.nic.must_read || names_more(&allocation.spec))
}

/// The object of a Node that is gone, or one that was deleted.
async fn let_go(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &mut Memory,
    is_node_gone: bool,
) -> Result<Next, Error> {
    let name = allocation.name_any();
    growth::stand_back(ctx, &name, Instant::now());
    let next = if is_node_gone {
        takeup::leave(ctx, &name);
        vacate::vacate(ctx, allocation, memory).await
    } else {
        memory.vacant_since = None;
        takeup::stand_back(ctx, allocation);
        know_pods(ctx, allocation, memory).await?;
        vacate::replace(ctx, allocation, memory).await
    };
    // Unless it waits for its turn to ask on behalf of all.
    if !memory.pending.is_shared() {
        stand_back(ctx, &name);
    }
    next
}

/// Whether a reconcile that has waited goes on: for the same machine, and an object that nobody has deleted
/// or made again meanwhile.
/// Otherwise the next reconcile finds out what to do instead.
fn is_as_begun(
    (allocation, node): (&NodeIPAllocation, &Node),
    newest: Option<&NodeIPAllocation>,
    newest_node: Option<&Node>,
) -> bool {
    let is_same_node = newest_node.is_some_and(|newest| node.is_same_machine(newest));
    let is_to_go = |object: &NodeIPAllocation| object.metadata.deletion_timestamp.is_some();
    let is_same_object = newest
        .is_some_and(|newest| newest.uid() == allocation.uid() && is_to_go(newest) == is_to_go(allocation));
    is_same_node && is_same_object
}

/// Observe, plan, write, publish, attach, and hear the agent.
async fn serve(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    Box::pin(observe_and_plan(ctx, progress, node, memory)).await?;
    if progress.acts_on_a_mirror(&memory.attaching) {
        memory.nic.must_read = true;
        Box::pin(observe_and_plan(ctx, progress, node, memory)).await?;
    }
    // Its place stands in its object before it takes anything up: the next leader counts it.
    if progress.is_updating() && !progress.records_updating() {
        Box::pin(report::report(ctx, progress, node, memory)).await?;
    }
    let mut outcome = Ok(());
    if progress.wants_write() {
        // `spec` names the NIC, or the route table, before anything is reserved in it, and the groups before
        // it joins them: the next leader finds it there.
        if progress.names_less_than_is_written() {
            Box::pin(publish(ctx, progress, node, memory)).await?;
        }
        outcome = Box::pin(write(ctx, progress, node, memory)).await;
        if outcome.as_ref().is_err_and(Error::has_sent_nothing) {
            return outcome;
        }
        // Whatever became of the write, the NIC's present content is published.
        if let Err(error) = Box::pin(observe_again(ctx, progress, node, memory)).await {
            return outcome.and(Err(error));
        }
    }
    Box::pin(publish(ctx, progress, node, memory)).await?;
    if progress.pause.is_none() {
        let (allocation, urgency) = (&progress.allocation, beside_need(ctx, progress, Priority::GiveBack));
        let settled = strays::settle(ctx, allocation, node, &urgency, &mut memory.strays);
        let (is_news, departed) = Box::pin(settled).await;
        memory.nic.must_choose |= is_news;
        departed.into_iter().for_each(|nic| memory.left.depart(nic));
    }
    outcome?;
    Box::pin(attach(ctx, progress, node, memory)).await?;
    Box::pin(hear(ctx, progress, node, memory)).await;
    Ok(())
}

/// Makes sure that the view shows each pod that the node had when this process came to lead, where a decision
/// rests on the absence of one.
///
/// # Errors
/// It doesn't, or the API server doesn't answer.
async fn know_pods(ctx: &Context, allocation: &NodeIPAllocation, memory: &mut Memory) -> Result<(), Error> {
    if memory.knows_pods || !ctx.cluster.misses_pods(allocation) {
        memory.lacks_pods_since = None;
        return Ok(());
    }
    let name = allocation.name_any();
    let proof = ctx.writes.read(ctx.cluster.prove_pods(&ctx.client, &name));
    let proved = Box::pin(proof).await;
    if matches!(proved, Err(Unproved::Behind)) {
        let since = memory.lacks_pods_since.get_or_insert_with(tokio::time::Instant::now);
        ctx.cluster.lacks_pods_since(*since);
    }
    // Unproved it won't ask again, so it holds no other node up meanwhile.
    proved.inspect_err(|_| stand_back(ctx, &name))?;
    memory.knows_pods = true;
    Ok(())
}

/// Observes and plans. `seen` and `plan` stay `None` while an error holds the observation back.
async fn observe_and_plan(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    know_pods(ctx, &progress.allocation, memory).await?;
    let now = Instant::now();
    progress.begin(now);
    progress.pause = pause::of(&ctx.cluster, &progress.allocation);
    let name = node.name_any();
    let mut reads = Reads::of(ctx, &name);
    let observed = Box::pin(observe(ctx, progress, node, (&mut *memory, &mut reads), now)).await;
    if !matches!(observed, Ok(Some(_))) {
        // It won't write, so it holds no other node up meanwhile.
        turns::write_nothing(ctx, &name);
    }
    if let Err(error) = &observed
        && !error.is_given_up()
    {
        memory.setback = Some(reads.failed(error, memory.setback.as_ref(), Instant::now()));
    }
    let Some(mut seen) = observed.map_err(Error::Find)? else { return Ok(()) };
    scope::limit_groups(ctx, &mut seen, &mut memory.left_out, now);
    seen.observed.may_write &= progress.pause.is_none();
    seen.observed.coarseness = growth::coarseness(ctx, &seen);
    let plan = planner::plan(&seen.observed);
    let plan = scope::limit(ctx, &progress.allocation, &mut seen, plan, &mut memory.setback, now);
    let shortage = (&mut memory.setback, &mut memory.recalled);
    let plan = growth::limit(ctx, &progress.allocation, &mut seen, plan, shortage, now);
    if plan.change.is_empty() && seen.observed.may_write {
        // It waits for room, and doesn't try on behalf of others meanwhile.
        scope::stand_back(ctx, &node.name_any(), now);
    }
    memory.run_clocks(&plan, now);
    if !seen.is_held_back {
        let lag = lag::lag(&progress.allocation, node.boot_id());
        memory.end_what_is_over(&plan, seen.has_vanished, &lag, now);
    }
    let attachments = attachments::plan(ctx, &progress.allocation, node, &seen, memory, now);
    let is_dry_run = ctx.azure.is_dry_run();
    let (plan, rehearsal) = if is_dry_run || progress.pause.is_some() {
        // No address is kept for a pod, and none taken from the pod for which it is kept.
        progress.attachments = Some(attachments::rehearsed(attachments, &progress.allocation, &seen));
        let (plan, rehearsal) = plan.rehearse(seen.observed.grain);
        // For a NIC that isn't known, the writes of a dry run aren't known either.
        (plan, Some(rehearsal).filter(|_| is_dry_run && !seen.is_held_back))
    } else {
        progress.attachments = Some(attachments);
        (plan, None)
    };
    (progress.seen, progress.plan) = (Some(Box::new(seen)), Some(Box::new(plan)));
    progress.rehearsal = rehearsal;
    Ok(())
}

/// All reads, one after the other: the result of each is remembered before the next may fail. `None`: Azure
/// must be asked, but an error holds that back for now.
async fn observe(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    (memory, reads): (&mut Memory, &mut Reads<'_>),
    now: Instant,
) -> Result<Option<Seen>, azure::Error> {
    let allocation = &*progress.allocation.clone();
    let (cluster, place) = observe::cluster(ctx, allocation, node, progress.pause.is_some(), now);
    progress.place = place;
    let vm = observe::vm(&cluster, allocation, node);
    // An edit that isn't taken up yet can't cure what Azure has refused.
    if place != Place::Awaited
        && progress.pause.is_none()
        && let Some(edit) = memory.pool_seen(cluster.pool.as_deref(), now)
    {
        growth::pool_edited(ctx, &allocation.spec, edit, now);
        scope::pool_edited(ctx, &allocation.spec, vm.as_ref().ok(), edit, now);
    }
    let vm = match vm {
        Ok(vm) => vm,
        Err(obstacle) => {
            reads.succeeded(now);
            return Ok(Some(Seen::without_nic(cluster, allocation, obstacle, memory, now)));
        }
    };
    reads::await_turn(ctx, (&node.name_any(), &vm, &allocation.spec), &mut memory.setback, now);
    let Some(occasion) = observe::occasion(ctx, allocation, node, memory, now) else { return Ok(None) };
    memory.nic.hints.note(allocation);
    let urgency = observe::urgency(&cluster, allocation, &progress.need, occasion);
    let occasion = (occasion, &urgency);
    let found =
        Box::pin(observe::nic((ctx, &mut *reads), allocation, &cluster, &vm, occasion, memory)).await?;
    if !occasion.0.is_held_back {
        reads.succeeded(Instant::now());
    }
    memory.nic.learn(&found.read, found.nic.as_deref(), allocation, ctx.waits.late, now);
    if let (Read::All { others, .. } | Read::Serving { others, .. }, Some(serving)) =
        (&found.read, &found.nic)
    {
        let is_stray = |nic: &&ResourceId| !memory.left.covers(&allocation.spec, nic);
        let strays: Vec<ResourceId> = others.strays.iter().filter(is_stray).cloned().collect();
        let may_come_late = memory.nic.awaits_late_write(now);
        let departed = memory.strays.found(&strays, (&others.own, &others.shown), &serving.id, may_come_late);
        departed.into_iter().for_each(|nic| memory.left.depart(nic));
    }
    found.nic.iter().for_each(|nic| memory.others.note(nic, allocation));
    let seen =
        Box::pin(observe::around(ctx, (allocation, node), cluster, found, occasion, memory, now)).await?;
    if seen.grouping.lacks.is_empty() && seen.grouping.leave.is_empty() {
        memory.left_out.remove(&Part::Groups);
    }
    if seen.is_read && seen.adoption.as_ref().is_none_or(|adoption| adoption.ready.is_empty()) {
        memory.left_out.remove(&Part::Adoption);
    }
    Ok(Some(seen))
}

/// Announces the write and carries it out. A write to a route table carries the changes of other nodes, too,
/// so it is announced before its turn.
async fn write(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    if !progress.writes_alone() {
        Box::pin(report::announce_write(ctx, progress, node, memory)).await?;
        return write::write(ctx, progress, node, memory, |write| write).await.map_err(Error::Write);
    }
    // The write may wait for minutes; conditions and metrics show the present state before that.
    Box::pin(report::report(ctx, progress, node, memory)).await?;
    let announcement = Announcement::of(ctx, progress, node);
    let outcome = write::write(ctx, progress, node, memory, |write| announcement.before(write)).await;
    announcement.take_in(ctx, progress, memory)?;
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
    let result = Box::pin(observe_and_plan(ctx, progress, node, memory)).await;
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

/// Publishes `spec`. It goes on to name NICs that the node has left, as long as these may hold something of
/// ours. While the node is paused all stays as it is, and `spec` names the NIC that served before.
async fn publish(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    let (Some(seen), Some(plan), Some(attachments)) = (&progress.seen, &progress.plan, &progress.attachments)
    else {
        return Ok(());
    };
    if progress.pause.is_some() && !seen.left.is_empty() {
        return Ok(());
    }
    // A Node that has just registered anew has no providerID for a while. The values that its object records
    // are still there, and no other memory keeps them.
    if progress.lacks_nic() {
        return Ok(());
    }
    let asks = memory.reports.outlived.asks || publish::adopts(&progress.allocation, seen);
    let asks_anew = seen.adoption.is_some() && memory.others.must_ask_anew(&progress.allocation);
    let before = &progress.allocation.spec;
    let spec = if seen.is_held_back {
        // All else waits for the NIC: a list must not be taken for newer than it is.
        NodeIPAllocationSpec { target: plan.target, ..before.clone() }
    } else {
        NodeIPAllocationSpec {
            report_holders: asks && !asks_anew,
            ..publish::spec(before, node, seen, plan, attachments, (&memory.strays, &memory.left))
        }
    };
    let knows_all = !seen.is_held_back && progress.pause.is_none();
    let answer = publish::publish(ctx, progress.allocation.clone(), spec, &mut memory.nic).await?;
    progress.published(answer, node.boot_id());
    memory.left.published(&progress.allocation.spec);
    if knows_all {
        let left = &progress.allocation.spec.left_interfaces;
        let public = left.iter().flat_map(memory::left::public_addresses);
        memory.absences.keep(left.iter().map(|nic| nic.id.as_str()).chain(public));
    }
    Ok(())
}

/// Takes the next step towards the attachments that pods ask for. The plan is published.
async fn attach(
    ctx: &Context,
    progress: &mut Progress,
    node: &Node,
    memory: &mut Memory,
) -> Result<(), Error> {
    let now = Instant::now();
    step::order(ctx, progress, &mut memory.attaching, now);
    let Some((nic, next)) = step::next(progress, &memory.attaching, now) else { return Ok(()) };
    report::announce_write(ctx, progress, node, memory).await?;
    let urgency = |priority| beside_need(ctx, progress, priority);
    step::carry_out(ctx, (nic, next), urgency, memory).await.map_err(Error::Write)?;
    observe_again(ctx, progress, node, memory).await?;
    publish(ctx, progress, node, memory).await?;
    step::order(ctx, progress, &mut memory.attaching, Instant::now());
    Ok(())
}

/// Goes on with the agent's report on the `spec` that was published, if that comes within moments and changes
/// nothing of the plan. Nothing is observed anew for it: Azure might have to be asked, and conditions don't
/// wait for that.
async fn hear(ctx: &Context, progress: &mut Progress, node: &Node, memory: &mut Memory) {
    if let Some(answer) = answer::comes(ctx, progress, node).await {
        memory.nic.saw(&answer);
        progress.allocation = answer;
    }
}

/// The urgency of what isn't for the node's addresses: until these need something more urgent, or the node is
/// paused.
fn beside_need(ctx: &Context, progress: &Progress, priority: Priority) -> Urgency {
    let urgency = match &progress.seen {
        Some(seen) => progress.need.of_write(&seen.observed, priority),
        None => priority.into(),
    };
    pause::while_not(&ctx.cluster, &ctx.waker, &progress.allocation, urgency)
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
            serde_json::from_value(json!({"metadata": {"name": "n", "uid": uid}, "spec": {"providerID": vm},
                "status": {"nodeInfo": {"bootID": boot}}}))
            .unwrap()
        };
        let (begun, node) = (object("a", None), machine("u", "vm", "b"));
        let goes_on = |newest: &NodeIPAllocation, newest_node: Option<&Node>| {
            is_as_begun((&begun, &node), Some(newest), newest_node)
        };
        assert!(!is_as_begun((&begun, &node), None, Some(&node)), "it is gone");
        assert!(goes_on(&object("a", None), Some(&machine("u", "vm", "b"))));
        assert!(!goes_on(&object("a", Some("2026-01-01T00:00:00Z")), Some(&node)), "somebody deletes it");
        assert!(!goes_on(&object("b", None), Some(&node)), "made anew");
        let going = object("a", Some("2026-01-01T00:00:00Z"));
        assert!(is_as_begun((&going, &node), Some(&going), Some(&node)), "it was to go before");
        assert!(!goes_on(&begun, None), "the Node is gone");
        for other in [machine("v", "vm", "b"), machine("u", "vm2", "b"), machine("u", "vm", "b2")] {
            assert!(!goes_on(&begun, Some(&other)), "{other:?}");
        }
    }
}
