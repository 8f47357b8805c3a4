//! Modes Address and Prefix: a node's reservations are ipConfigurations of its NIC.

use std::time::Instant;

use ipnet::Ipv4Net;
use kube::runtime::events::Event;
use tracing::info;
use uuid::Uuid;
use vnetpool_crds::names;

use super::terms::{Outcome, Task};
use crate::azure::{self, IpConfiguration, Nic, ResourceId};
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
    let lacks = lacking(planned, held, &nic);
    let made = planned.without(&lacks);
    let released = count(&mut held.iter().filter(|one| made.release.contains(&one.name)));
    let held = count(&mut nic.ip_configurations.iter());
    info!(reserved = made.reserve * grain, released, held, nic = %id, "NIC written");
    for event in events_of(&made, grain, (released, held), id.name()) {
        ctx.events.report(&task.about, event);
    }
    Ok(Outcome { was_sent: nic.was_sent, is_known: true, lacks })
}

/// The part of a change that a NIC doesn't show after it; `held` are its reservations before.
fn lacking(planned: &Change, held: &[IpConfiguration], nic: &Nic) -> Change {
    let ours = &nic.ip_configurations;
    let is_there = |name: &&String| ours.iter().any(|one| one.name == **name);
    let has = |address: &Ipv4Net| ours.iter().any(|one| one.address == Some(*address));
    let is_restored = |one: &IpConfiguration| one.address.is_some_and(|one| planned.restore.contains(&one));
    let is_new = |one: &&IpConfiguration| !held.iter().any(|old| old.name == one.name) && !is_restored(one);
    let has_other = |name: &&String| nic.others.idle.contains(name) || nic.others.attached.contains(name);
    Change {
        reserve: planned.reserve.saturating_sub(ours.iter().filter(is_new).count() as u32),
        restore: planned.restore.iter().filter(|address| !has(address)).copied().collect(),
        release: planned.release.iter().filter(is_there).cloned().collect(),
        adopt: planned.adopt.iter().filter(has_other).cloned().collect(),
        join: planned.join.iter().filter(|group| !nic.groups.contains(group)).cloned().collect(),
        leave: planned.leave.iter().filter(|group| nic.groups.contains(group)).cloned().collect(),
        ..Change::default()
    }
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
    use std::collections::HashSet;

    use super::*;
    use crate::azure::sample_nic;

    #[test]
    fn what_a_nic_does_not_show_after_a_write_has_had_no_effect() {
        let group: ResourceId =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/web"
                .parse()
                .unwrap();
        let planned = Change {
            reserve: 2,
            restore: ["10.0.0.8/32", "10.0.0.9/32"].map(|one| one.parse().unwrap()).to_vec(),
            release: vec!["vnp-1".into(), "vnp-2".into()],
            adopt: vec!["theirs".into()],
            join: vec![group.clone()],
            repair: true,
            ..Change::default()
        };
        let before = sample_nic(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.6/32")]);
        let held = before.ip_configurations.clone();
        let others = azure::Others { idle: vec!["theirs".into()], attached: vec![] };
        let same = Nic { others, ..before };
        assert_eq!(lacking(&planned, &held, &same), Change { repair: false, ..planned.clone() });
        let half =
            sample_nic(&[("vnp-2", "10.0.0.6/32"), ("vnp-3", "10.0.0.7/32"), ("vnp-4", "10.0.0.8/32")]);
        let half = Nic { groups: vec![group], ..half };
        let lacks = lacking(&planned, &held, &half);
        let rest = Change {
            reserve: 1,
            restore: vec![planned.restore[1]],
            release: vec!["vnp-2".into()],
            ..Change::default()
        };
        assert_eq!(lacks, rest);
        assert_eq!(planned.without(&lacks).release, ["vnp-1"]);
    }

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
