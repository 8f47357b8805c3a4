//! Gives back what is reserved on NICs that a node has left: it had another VM, or its VM other NICs. The
//! node's present NIC is published before, and `spec` names those meanwhile. So a NIC that is locked, or that
//! Azure doesn't show, holds up nothing: each waits by itself.

use std::net::Ipv4Addr;
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use tracing::{info, warn};

use super::absences::Recorded;
use super::asking::{Refused, Turns};
use super::lag::{Lag, lag};
use super::memory::Memory;
use super::memory::left::Over;
use super::pending::Pending;
use super::progress::Progress;
use super::vacate::{Attempt, Ended};
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
    let is_served = progress.seen.as_ref().is_some_and(|seen| !seen.is_held_back);
    if !is_served || progress.pause.is_some() || ctx.azure.is_dry_run() {
        return false;
    }
    let allocation = &*progress.allocation;
    if lag(allocation, node.boot_id()) != Lag::None {
        return false;
    }
    let lost = allocation.status.iter().flat_map(|status| &status.lost);
    let in_use: Vec<Ipv4Addr> = lost.filter_map(|one| one.address.parse().ok()).collect();
    let Some(id) = memory.left.due(&allocation.spec, &in_use, Instant::now()) else { return false };
    // All of its resources wait as one.
    let (absences, mut pending) = (&mut memory.absences, Pending::default());
    let mut attempt = Attempt::of(ctx, allocation, (absences, &mut pending), Turns::Left);
    let ended = tokio::select! {
        biased;
        ended = attempt.end(id, None) => ended,
        // Azure may never answer. Whatever was sent, the NIC shows it at the next attempt.
        () = urgency.outgrown() => return false,
    };
    match (ended, attempt.refusal()) {
        (Ok(Ended::Nothing), None) => {
            info!(nic = id, "the node has left it, and it holds nothing of ours");
            memory.left.over(id, Over::Emptied);
        }
        (Ok(Ended::InUse(vm)), None) => leave_to(ctx, progress, node, (id, &vm), memory),
        (Err(error), _) | (Ok(_), Some(Refused { error, .. })) => put_off(ctx, progress, id, &error, memory),
        // It is asked for again when the node is reconciled next.
        (Ok(Ended::Unknown), None) => return false,
    }
    true
}

/// A VM has the NIC. If that is the node's, the NIC is one beside that which serves.
fn leave_to(
    ctx: &Context,
    progress: &Progress,
    node: &Node,
    (id, vm): (&str, &ResourceId),
    memory: &mut Memory,
) {
    let own = VmId::from_provider_id(node.provider_id());
    if let (Ok(nic), true) = (id.parse(), own.is_ok_and(|own| own.resource() == vm)) {
        memory.strays.add(nic);
        memory.nic.must_choose = true;
    } else {
        let about = [node.object_ref(&()), progress.allocation.object_ref(&())];
        ctx.events.report(&about, events::left_behind(id, vm.as_str()));
    }
    memory.left.over(id, Over::Used);
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
