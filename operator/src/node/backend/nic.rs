//! Modes Address and Prefix: a node's reservations are ipConfigurations of its NIC.

use std::time::Instant;

use ipnet::Ipv4Net;
use kube::runtime::events::Event;
use tracing::info;
use uuid::Uuid;
use vnetpool_crds::names;

use super::terms::{Outcome, Task};
use crate::azure::{self, IpConfiguration, ResourceId};
use crate::context::Context;
use crate::events;
use crate::planner::{Change, addresses};

/// Carries a change out on the NIC.
///
/// # Errors
/// Azure's. The NIC is then to be read again.
pub async fn apply(ctx: &Context, task: &Task<'_>) -> Result<Outcome, azure::Error> {
    let id: ResourceId = task.nic.parse()?;
    let planned = task.change;
    let change = translated(planned, task.blocks);
    let begun = Instant::now();
    let result = ctx.azure.update(&id, &change, &task.urgency).await;
    match &result {
        Ok(_) => ctx.metrics.nic_written("ok", begun.elapsed()),
        Err(error) if error.is_given_up() => {}
        Err(error) => ctx.metrics.nic_written(error.reason().name(), begun.elapsed()),
    }
    let nic = result?;
    let (grain, held) = (task.observed.grain, &task.observed.held);
    let count =
        |all: &mut dyn Iterator<Item = &IpConfiguration>| all.map(|one| addresses(one, grain)).sum::<u32>();
    let released = count(&mut held.iter().filter(|one| planned.release.contains(&one.name)));
    let held = count(&mut nic.ip_configurations.iter());
    info!(reserved = planned.reserve * grain, released, held, nic = %id, "NIC written");
    let is_shown = |address: &Ipv4Net| nic.ip_configurations.iter().any(|one| one.address == Some(*address));
    let (restore, lacks) = planned.restore.iter().copied().partition(is_shown);
    let made = Change { restore, ..planned.clone() };
    for event in events_of(&made, grain, (released, held), id.name()) {
        ctx.events.report(&task.about, event);
    }
    let lacks_groups = !planned.join.iter().all(|group| nic.groups.contains(group));
    Ok(Outcome { was_sent: nic.was_sent, is_known: true, lacks_groups, lacks })
}

/// The planned change as Azure's client takes it: each new ipConfiguration has a name.
fn translated(planned: &Change, blocks: bool) -> azure::Change {
    azure::Change {
        reserve: (0..planned.reserve).map(|_| new_name()).collect(),
        restore: planned.restore.iter().map(|address| (new_name(), *address)).collect(),
        release: planned.release.clone(),
        adopt: planned.adopt.clone(),
        join: planned.join.clone(),
        leave: planned.leave.clone(),
        repair: planned.repair,
        blocks,
        ..Default::default()
    }
}

/// One for each kind of change. `held` addresses are on the NIC after it.
fn events_of(change: &Change, grain: u32, (released, held): (u32, u32), nic: &str) -> Vec<Event> {
    let restored = change.restore.len() as u32 * grain;
    let all = [
        (restored > 0).then(|| events::restored(restored, nic)),
        (change.reserve > 0).then(|| events::reserved(change.reserve * grain, held, nic)),
        (!change.release.is_empty()).then(|| events::released(released, held, nic)),
        (!change.adopt.is_empty()).then(|| events::adopted(&change.adopt, nic)),
        (!change.join.is_empty() || !change.leave.is_empty())
            .then(|| events::regrouped(&change.join, &change.leave, nic)),
    ];
    all.into_iter().flatten().collect()
}

/// 62 random bits: no two ipConfigurations of a NIC ever share a name, not even years apart.
fn new_name() -> String {
    format!("{}{:016x}", names::IP_CONFIGURATION_PREFIX, Uuid::new_v4().as_u64_pair().1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_ours_and_never_the_same() {
        let names: HashSet<String> = (0..1000).map(|_| new_name()).collect();
        assert_eq!(names.len(), 1000);
        for name in &names {
            let digits = name.strip_prefix("vnp-").unwrap();
            assert!(
                digits.len() == 16 && digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
            );
        }
    }
}
