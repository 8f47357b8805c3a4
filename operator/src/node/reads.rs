//! A node's part in a refusal of reads that concerns all of a scope: it reads nothing while others are known
//! to be refused the same, unless it is its turn to try on behalf of all.

use std::time::{Duration, Instant};

use vnetpool_crds::allocation::NodeIPAllocationSpec;

use super::setback::{Setback, Stage};
use crate::azure::{Error, Matter, ResourceId, Urgency, VmId};
use crate::context::Context;
use crate::lock::lock;
use crate::refusals;

/// A node that is held up is woken when it may read. Should that be missed, it asks after this time.
const MISSED: Duration = Duration::from_secs(600);

/// The reads of one observation.
pub struct Reads<'a> {
    ctx: &'a Context,
    node: &'a str,
    /// What has been read so far or was about to be: ids in lower case.
    sites: Vec<String>,
    /// What is refused to others, so that nothing was asked.
    held_by: Option<Matter>,
}

impl<'a> Reads<'a> {
    pub fn of(ctx: &'a Context, node: &'a str) -> Reads<'a> {
        Reads { ctx, node, sites: vec![], held_by: None }
    }

    /// How urgent it is to read these, too: until others are refused the same.
    ///
    /// # Errors
    /// That they are: nothing is to be asked.
    pub fn may<'b>(
        &mut self,
        ids: impl IntoIterator<Item = &'b ResourceId>,
        urgency: &Urgency,
    ) -> Result<Urgency, Error> {
        self.sites.extend(ids.into_iter().map(ResourceId::key));
        let refusals = &self.ctx.refusals.reads;
        if let Some((matter, error)) = lock(refusals).holds(&self.sites, self.node, Instant::now()) {
            self.held_by = Some(matter);
            return Err(error.about(self.sites.last().map(String::as_str).unwrap_or_default()));
        }
        let held = refusals::until_held(refusals.clone(), self.sites.clone(), self.node.to_owned());
        Ok(urgency.clone().at_most_until(held))
    }

    /// Whatever was to be read has been read: it is refused to no node.
    pub fn succeeded(&mut self, now: Instant) {
        let mut refusals = lock(&self.ctx.refusals.reads);
        let sites = std::mem::take(&mut self.sites);
        let woken =
            if sites.is_empty() { refusals.left(self.node, now) } else { refusals.passed(&sites, now) };
        drop(refusals);
        self.ctx.wake(&woken);
    }

    /// What an error of the observation means for the node, and for others.
    pub fn failed(&self, error: &Error, last: Option<&Setback>, now: Instant) -> Setback {
        let own = Setback::after(last, Stage::Find, error, now);
        if let Some(matter) = &self.held_by {
            return own.of(matter.clone()).shared();
        }
        let Some(matter) = error.matter(&self.sites) else {
            // Its turn, if it has one, shows nothing.
            stand_back(self.ctx, self.node, now);
            return own;
        };
        let met = (self.node, self.sites.as_slice());
        let holds_all = lock(&self.ctx.refusals.reads).refused(matter.clone(), met, error, now);
        let own = own.of(matter);
        if holds_all { own.shared() } else { own }
    }
}

/// A read that is refused to many is held up until it is the node's turn or the refusal has ended, however
/// long that takes.
pub fn await_turn(
    ctx: &Context,
    (node, vm, spec): (&str, &VmId, &NodeIPAllocationSpec),
    setback: &mut Option<Setback>,
    now: Instant,
) {
    let Some(shared) = setback.as_mut().filter(|setback| setback.is_shared) else { return };
    let of_nics = spec.interfaces.iter().map(|nic| nic.id.to_ascii_lowercase());
    let sites: Vec<String> = std::iter::once(vm.resource().key()).chain(of_nics).collect();
    let mut refusals = lock(&ctx.refusals.reads);
    let waits = shared.matter.as_ref().is_some_and(|matter| refusals.waits(matter, (node, &sites)));
    shared.until = if waits { now + MISSED } else { now };
}

/// The node reads nothing now, or can't.
pub fn stand_back(ctx: &Context, node: &str, now: Instant) {
    let woken = lock(&ctx.refusals.reads).left(node, now);
    ctx.wake(&woken);
}
