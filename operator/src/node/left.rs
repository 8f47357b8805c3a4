//! Gives back what is reserved on NICs that a node has left: it had another VM, or its VM other NICs. The
//! node's present NIC is published before, and `spec` names those meanwhile. So a NIC that is locked, or that
//! Azure doesn't show, holds up nothing: each waits by itself.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use tracing::{info, warn};

use super::absences::Recorded;
use super::asking::{Refused, Turns};
use super::lag::{Lag, lag};
use super::memory::Memory;
use super::memory::left::{self, Over};
use super::pending::Pending;
use super::progress::Progress;
use super::vacate::{Attempt, Ended, is_given_away, is_left_to_its_vm, word_that_gives_away};
use super::{growth, strays};
use crate::azure::{self, ResourceId, Urgency, VmId};
use crate::context::Context;
use crate::events;
use crate::node_object::Node;

/// Ends what is left of one of them, once the agent has taken up that the node has another and reports no pod
/// with its addresses. All of it waits while the node is paused or not served, or needs something more
/// urgent. Returns whether there is more to do at once.
pub async fn settle(
    ctx: &Context,
    progress: &Progress,
    node: &Node,
    urgency: &Urgency,
    memory: &mut Memory,
) -> bool {
    if progress.allocation.spec.left_interfaces.is_empty() {
        return false;
    }
    // Of a node whose VM or NIC isn't known, any NIC may be in use.
    let is_served = progress.seen.as_ref().is_some_and(|seen| !seen.is_held_back && seen.nic.is_some());
    let Ok(own) = VmId::from_provider_id(node.provider_id()) else { return false };
    if !is_served || progress.pause.is_some() || ctx.azure.is_dry_run() {
        return false;
    }
    let allocation = &*progress.allocation;
    if lag(allocation, node.boot_id()) != Lag::None {
        return false;
    }
    let in_use = strays::in_use(allocation);
    let is_given_away = |id: &str| id.parse().is_ok_and(|nic| is_given_away(allocation, &nic));
    memory.left.heed(&allocation.spec, is_given_away);
    let Some(nic) = memory.left.due(&allocation.spec, &in_use, Instant::now()) else { return false };
    // Nothing but its id is known of one that was beside the serving one.
    let (id, mac) = (nic.id.as_str(), Some(nic.mac.as_str()).filter(|mac| !mac.is_empty()));
    // All of its resources wait as one.
    let (absences, mut pending) = (&mut memory.absences, Pending::default());
    let mut attempt = Attempt::of(ctx, allocation, (absences, &mut pending), Turns::Left).beside(&own);
    let ended = tokio::select! {
        biased;
        ended = attempt.end(id, mac) => ended,
        // Azure may never answer. Whatever was sent, the NIC shows it at the next attempt.
        () = urgency.outgrown() => return false,
    };
    match (ended, attempt.refusal()) {
        (Ok(Ended::Nothing), None) => {
            info!(nic = id, "the node has left it, and it holds nothing of ours");
            memory.left.over(id, Over::Emptied);
            growth::left_emptied(ctx, allocation, id);
        }
        (Ok(Ended::InUse(vm)), None) => leave_to(ctx, progress, node, (id, &vm), memory),
        (Ok(Ended::InPart), None) => {
            memory.left.put_off(id, left::IN_USE.to_owned(), Duration::ZERO, Instant::now());
        }
        (Err(error), _) | (Ok(_), Some(Refused { error, .. })) => put_off(ctx, progress, id, &error, memory),
        // It is asked for again when the node is reconciled next.
        (Ok(Ended::Unknown), None) => return false,
    }
    true
}

/// Another VM has the NIC. What is recorded of it goes only if that VM's node is known to have it, or by a
/// person's word: it may be the node's former machine, which is about to be deleted and to leave the NIC.
fn leave_to(
    ctx: &Context,
    progress: &Progress,
    node: &Node,
    (id, vm): (&str, &ResourceId),
    memory: &mut Memory,
) {
    let allocation = &*progress.allocation;
    if id.parse().is_ok_and(|nic| is_left_to_its_vm(ctx, allocation, &nic)) {
        let about = [node.object_ref(&()), allocation.object_ref(&())];
        ctx.events.report(&about, events::left_behind(id, vm.as_str()));
        memory.left.over(id, Over::Used);
    } else {
        let why = format!(
            "VM {vm} has it, and no other node's object names it. If it is to stay with that VM, confirm it with the \
             annotation {}",
            word_that_gives_away(id)
        );
        memory.left.put_off(id, why, Duration::ZERO, Instant::now());
    }
}

fn put_off(ctx: &Context, progress: &Progress, id: &str, error: &azure::Error, memory: &mut Memory) {
    let now = Instant::now();
    let recorded = Recorded::of(&progress.allocation, Timestamp::now());
    if error.is_given_up() || recorded.lacks_second_read(error) {
        memory.left.ask_again(id, ctx.waits.second_read, now);
    } else {
        warn!(nic = id, reason = %error.reason(), %error, "left by its node, and not emptied yet");
        memory.left.put_off(id, error.to_string(), error.pause(), now);
    }
}
