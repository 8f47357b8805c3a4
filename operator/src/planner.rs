//! Decides how many addresses a node should hold, and which to reserve, release and publish. The only place
//! that does. Pure.

mod alike;
pub mod attachments;
mod rehearsal;
pub mod sizing;

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::Ipv4Net;
use vnetpool_crds::allocation;
use vnetpool_crds::pool::Sizing;

use crate::ip_configuration::{IpConfiguration, ProvisioningState};
use crate::priority::Priority;
use crate::resource_id::ResourceId;
pub use alike::alike;
pub use rehearsal::Rehearsal;
pub use sizing::{Demand, Steps};

/// A burst of pods counts as over when the scheduler has bound none for this long.
pub const STILL: Duration = Duration::from_millis(300);
/// A burst that goes on is not waited for any longer than this. The controller manager's default of 20
/// requests a second after the first 30 makes 60 pods in 1.5 s: a NIC write takes ten, so to wait for them
/// costs less than a second write.
const BURST: Duration = Duration::from_secs(2);
/// Addresses to release are collected for this long while the agent is still giving up more: no pod waits for
/// them.
const COLLECT: Duration = Duration::from_secs(30);

/// Everything a decision may depend on, read beforehand: no client and no clock in here.
#[derive(Clone, Debug)]
pub struct Observed {
    /// `None`: nothing is wanted for this node on this NIC (any more), so all is given back.
    pub sizing: Option<Sizing>,
    pub demand: Demand,
    /// Our ipConfigurations on the NIC.
    pub held: Vec<IpConfiguration>,
    /// What pods use though it has left the NIC, and may be asked for again: addresses, or the blocks they
    /// are in.
    pub lost: BTreeSet<Ipv4Net>,
    /// How many ipConfigurations of ours the NIC can take: Azure's limit less those of others.
    pub slots: u32,
    /// How many addresses a new ipConfiguration brings: 1, or 16 if it is a block.
    pub grain: u32,
    /// How long a surplus must last before it is given back, where writes aren't scarce.
    pub release_after: Duration,
    /// How many batches make a step: more than 1 where writes to Azure are scarce.
    pub coarseness: u32,
    /// Names the agent has given up for good.
    pub relinquished: BTreeSet<String>,
    /// Names that `spec` shows.
    pub shown: BTreeSet<String>,
    /// Names of others' ipConfigurations that are to leave the NIC.
    pub adopt: Vec<String>,
    /// Application security groups that the NIC lacks.
    pub join: Vec<ResourceId>,
    /// Application security groups that the NIC is in by our doing and isn't to be in any more.
    pub leave: Vec<ResourceId>,
    /// How long more has been held than wanted; `None` if that wasn't so at the last reconcile.
    pub surplus_for: Option<Duration>,
    /// How long no pod has been bound to the node, nor taken from it.
    pub bound_still_for: Duration,
    /// How long growth has been wanted.
    pub growth_wanted_for: Duration,
    /// How long a release has been wanted.
    pub release_wanted_for: Duration,
    /// How many more may be reserved in one write: 0 while growth is held back by an error, a part after a
    /// full subnet.
    pub may_reserve: u32,
    /// False while an error holds every write back.
    pub may_write: bool,
    /// The NIC itself is Failed, or the model of its instance is, whatever its ipConfigurations are.
    pub nic_failed: bool,
    /// False while a write that was to mend a fault has to show its effect first.
    pub may_mend: bool,
    /// False while Azure's refusal of application security groups holds these back.
    pub may_regroup: bool,
    /// False while Azure's refusal of a release holds releases back.
    pub may_release: bool,
    /// The NIC must let packets of other addresses through, and doesn't.
    pub forwarding_lacks: bool,
    /// The node's route isn't there any more, or doesn't lead to it.
    pub route_is_wrong: bool,
}

/// What to do next for one node: at most one NIC write, then one patch.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How the number of wanted addresses follows from the node's pods; `None` where none are wanted.
    pub steps: Option<Steps>,
    /// What the node should hold, for `spec.target`.
    pub target: u32,
    /// The number of the sizing before any limit.
    pub asked: u32,
    /// How many should be held now: `target` is above while a surplus hasn't lasted yet.
    pub wanted: u32,
    /// The present purpose of the NIC write.
    pub change: Change,
    /// The rank by which writes wait for the budget.
    pub priority: Priority,
    /// The content of the next `spec`, by address.
    pub publish: Vec<allocation::IpConfiguration>,
    /// Addresses of ours on the NIC that the node hasn't given up.
    pub kept: u32,
    /// More is held than wanted.
    pub surplus: bool,
    /// Growth is wanted, now or when the burst is over.
    pub grows: bool,
    /// A release is wanted, now or when all has been collected.
    pub releases: bool,
    /// Some of the held addresses don't work, because Azure gave a write up.
    pub repairs: bool,
    /// A route's range doesn't reach the node: its NIC lets no packets of other addresses through, or the
    /// route isn't there or leads elsewhere.
    pub reroutes: bool,
    /// Lost addresses are to be asked for, or others' ipConfigurations to be removed.
    pub replaces: bool,
    /// Application security groups are to be joined or left, now or with a write that is due later.
    pub regroups: bool,
    /// When the plan should be made anew though nothing has changed.
    pub requeue: Option<Duration>,
}

/// One NIC write can do both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// How many ipConfigurations to add, of [`Observed::grain`] addresses each.
    pub reserve: u32,
    /// Addresses or blocks to ask for by themselves: pods use them.
    pub restore: Vec<Ipv4Net>,
    /// Names of ipConfigurations to remove.
    pub release: Vec<String>,
    /// Names of others' ipConfigurations to remove.
    pub adopt: Vec<String>,
    /// Application security groups to put the NIC into.
    pub join: Vec<ResourceId>,
    /// Application security groups to take the NIC out of.
    pub leave: Vec<ResourceId>,
    /// Azure gave the last write up half-way: the same once more finishes the NIC's state.
    pub repair: bool,
    /// Have the NIC let packets of other addresses through.
    pub forward: bool,
    /// Put the node's route right.
    pub mend: bool,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        *self == Change::default()
    }

    /// This change but for a part of it.
    pub fn without(&self, part: &Change) -> Change {
        fn rest<T: Clone + PartialEq>(all: &[T], part: &[T]) -> Vec<T> {
            all.iter().filter(|one| !part.contains(one)).cloned().collect()
        }
        Change {
            reserve: self.reserve.saturating_sub(part.reserve),
            restore: rest(&self.restore, &part.restore),
            release: rest(&self.release, &part.release),
            adopt: rest(&self.adopt, &part.adopt),
            join: rest(&self.join, &part.join),
            leave: rest(&self.leave, &part.leave),
            repair: self.repair && !part.repair,
            forward: self.forward && !part.forward,
            mend: self.mend && !part.mend,
        }
    }
}

pub fn plan(observed: &Observed) -> Plan {
    let sizes = Sizes::of(observed);
    let timing = Timing::of(observed, &sizes);
    let Sizes { steps, kept, asked, wanted, target, .. } = sizes;
    let (grows, releases) = (wanted > kept, !sizes.release.is_empty());
    let replaces = !sizes.restore.is_empty() || !observed.adopt.is_empty();
    let regroup = |groups: &[ResourceId]| if timing.regroup { groups.to_vec() } else { vec![] };
    let change = if observed.may_write {
        Change {
            reserve: if timing.grow { sizes.reserve } else { 0 },
            restore: sizes.restore,
            release: if timing.release { sizes.release } else { vec![] },
            adopt: observed.adopt.clone(),
            join: regroup(&observed.join),
            leave: regroup(&observed.leave),
            repair: timing.repair,
            forward: observed.forwarding_lacks && observed.may_mend,
            mend: observed.route_is_wrong && observed.may_mend,
        }
    } else {
        Change::default()
    };
    Plan {
        steps,
        target,
        asked,
        wanted,
        priority: priority(&observed.demand, kept, &change),
        repairs: lacks_repair(observed),
        reroutes: observed.forwarding_lacks || observed.route_is_wrong,
        replaces,
        regroups: !observed.join.is_empty() || !observed.leave.is_empty(),
        change,
        publish: published(&observed.held, &observed.shown),
        kept,
        surplus: wanted < kept,
        grows,
        releases,
        requeue: [sizes.surplus_to_last, timing.requeue].into_iter().flatten().min(),
    }
}

/// How many addresses the node has and should have, whenever that may be.
struct Sizes {
    steps: Option<Steps>,
    coarseness: u32,
    /// The names of ipConfigurations that the node has given up.
    release: Vec<String>,
    /// Addresses of the others, and whether there are any of these.
    kept: u32,
    keeps_any: bool,
    asked: u32,
    wanted: u32,
    target: u32,
    /// How much longer a surplus has to last.
    surplus_to_last: Option<Duration>,
    restore: Vec<Ipv4Net>,
    /// ipConfigurations that are to come beside those that are restored.
    reserve: u32,
}

impl Sizes {
    fn of(observed: &Observed) -> Sizes {
        let Observed { sizing, demand, held, slots, grain, relinquished, .. } = observed;
        let (given_up, keeping): (Vec<_>, Vec<_>) =
            held.iter().partition(|one| relinquished.contains(&one.name));
        let kept = keeping.iter().map(|one| addresses(one, *grain)).sum();
        let free_slots = slots.saturating_sub(keeping.len() as u32);
        let room = free_slots.saturating_mul(*grain).saturating_add(kept);
        let steps =
            sizing.as_ref().map(|sizing| sizing::steps(sizing, demand, (*grain, room), observed.coarseness));
        let coarseness = steps.map_or(1, |steps| steps.coarseness);
        // Addresses that pods use go first and wait for no burst, within the slots there are.
        let restore: Vec<Ipv4Net> = match sizing {
            Some(_) => observed.lost.iter().copied().take(free_slots as usize).collect(),
            None => vec![],
        };
        let restored = (restore.len() as u32).saturating_mul(*grain);
        let (asked, wanted) =
            steps.map_or((0, 0), |steps| (steps.asked, should_hold(&steps, kept, kept + restored)));

        let release_after = observed.release_after.saturating_mul(coarseness);
        let surplus_to_last = (wanted < kept)
            .then(|| release_after.saturating_sub(observed.surplus_for.unwrap_or_default()))
            .filter(|rest| !rest.is_zero());
        // The number that the NIC holds stays the target until its surplus has lasted: the agent must not
        // give any up before.
        let target = if surplus_to_last.is_some() { kept } else { wanted };
        let reserve = wanted.saturating_sub(kept + restored).div_ceil((*grain).max(1));
        Sizes {
            steps,
            coarseness,
            release: given_up.into_iter().map(|one| one.name.clone()).collect(),
            kept,
            keeps_any: !keeping.is_empty(),
            asked,
            wanted,
            target,
            surplus_to_last,
            reserve: reserve.min(observed.may_reserve).min(free_slots - restore.len() as u32),
            restore,
        }
    }
}

/// What of a change is made now.
struct Timing {
    grow: bool,
    release: bool,
    repair: bool,
    regroup: bool,
    /// In how long there is more.
    requeue: Option<Duration>,
}

impl Timing {
    fn of(observed: &Observed, sizes: &Sizes) -> Timing {
        let Sizes { kept, target, reserve, coarseness, .. } = *sizes;
        let releases = !sizes.release.is_empty();
        let burst_to_last = burst_to_last(observed.bound_still_for, observed.growth_wanted_for);
        // The agent may still be giving up more; or growth will need a write in a moment anyway, which can
        // take the release along. Where writes are scarce one is waited for in any case.
        let is_collected = kept > target || (reserve > 0 && !burst_to_last.is_zero()) || coarseness > 1;
        let release_to_wait = if is_collected {
            COLLECT.saturating_mul(coarseness).saturating_sub(observed.release_wanted_for)
        } else {
            Duration::ZERO
        };
        let grow = reserve > 0 && burst_to_last.is_zero();
        let repair = lacks_repair(observed) && observed.may_mend;
        let may_release = releases && observed.may_release;
        let release = may_release && (grow || repair || release_to_wait.is_zero());
        // A write begun in the middle of a burst would keep its pods waiting. And where no pool decides any
        // more, the groups go with the last address: a pod that is still there keeps the rules it was started
        // under.
        let regroup = observed.may_regroup
            && (reserve == 0 || grow)
            && (observed.sizing.is_some() || (!sizes.keeps_any && (!releases || release)));
        let later = [
            (reserve > 0 && !grow).then_some(burst_to_last),
            (may_release && !release).then_some(release_to_wait),
        ];
        let requeue = later.into_iter().flatten().min().filter(|_| observed.may_write);
        Timing { grow, release, repair, regroup, requeue }
    }
}

/// Whether Azure has given a write up, so that some of what is held doesn't work.
fn lacks_repair(observed: &Observed) -> bool {
    observed.nic_failed || observed.held.iter().any(|one| one.state == ProvisioningState::Failed)
}

/// What the node should hold, of which it has so many with those that are restored. Where steps are coarse,
/// only what it lacks makes it grow, and only what a coarse step can't explain is too much: that the step
/// has changed makes no node write. A new node takes what it needs, for many that join together are one
/// cause of scarce writes, and would soon give the rest back.
fn should_hold(steps: &Steps, kept: u32, has: u32) -> u32 {
    if has == 0 {
        steps.wanted
    } else if has < steps.wanted || kept > steps.coarse {
        steps.coarse
    } else {
        kept.max(steps.wanted)
    }
}

/// How much longer to wait for the scheduler to bind the rest of a burst: its pods then cost one NIC write,
/// not a dozen.
pub fn burst_to_last(bound_still_for: Duration, growth_wanted_for: Duration) -> Duration {
    STILL.saturating_sub(bound_still_for).min(BURST.saturating_sub(growth_wanted_for))
}

fn priority(demand: &Demand, kept: u32, change: &Change) -> Priority {
    let mends = change.repair || !change.restore.is_empty();
    if change.mend || change.forward {
        // Pods have these addresses already, and can't be reached.
        Priority::WaitingPods
    } else if change.reserve == 0 && !mends {
        if change.join.is_empty() { Priority::GiveBack } else { Priority::WarmRefill }
    } else if mends || demand.pods() > kept {
        Priority::WaitingPods
    } else if kept == 0 {
        Priority::NewNode
    } else {
        Priority::WarmRefill
    }
}

/// The addresses that the NIC holds and Azure has finished: only such an address gets its packets. A
/// relinquished one is shown until it has left the NIC, and only then forgotten by the agent. One that is
/// shown stays so while Azure works on it: its pod has it, and no other record names the pod for which it is
/// kept.
fn published(held: &[IpConfiguration], shown: &BTreeSet<String>) -> Vec<allocation::IpConfiguration> {
    let mut ready: Vec<_> = held
        .iter()
        .filter(|one| one.state == ProvisioningState::Succeeded || shown.contains(&one.name))
        .filter_map(|one| Some((one.address?, one)))
        .collect();
    ready.sort_by_key(|(address, one)| (*address, one.name.clone()));
    ready
        .into_iter()
        .map(|(address, one)| {
            let mut pools: Vec<String> = one.attached.backend_pools.iter().map(ToString::to_string).collect();
            pools.sort();
            allocation::IpConfiguration {
                name: one.name.clone(),
                address: address.to_string(),
                backend_pools: pools,
                ..Default::default()
            }
        })
        .collect()
}

/// How many addresses an ipConfiguration has, or will have once Azure has chosen them.
pub fn addresses(one: &IpConfiguration, grain: u32) -> u32 {
    one.address
        .map_or(grain, |range| 1_u32.checked_shl(32 - u32::from(range.prefix_len())).unwrap_or(u32::MAX))
}

#[cfg(test)]
pub(crate) mod tests;
