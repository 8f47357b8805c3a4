//! A node's part in a refusal of reads that concerns all of a scope: it reads nothing while others are known
//! to be refused the same, unless it is its turn to try on behalf of all.

use std::time::{Duration, Instant};

use vnetpool_crds::allocation::NodeIPAllocationSpec;

use super::setback::{Setback, Stage};
use crate::azure::{Error, Matter, ResourceId, Urgency, VmId};
use crate::context::Context;
use crate::lock::lock;
use crate::refusals;

/// A node that is held up is woken when it may read. It is reconciled this often all the same, and waits on.
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

    /// How urgent it is to read these, too: until others are refused the same. Those before have been read.
    ///
    /// # Errors
    /// That they are: nothing is to be asked.
    pub fn may<'b>(
        &mut self,
        ids: impl IntoIterator<Item = &'b ResourceId>,
        urgency: &Urgency,
    ) -> Result<Urgency, Error> {
        let (refusals, now) = (&self.ctx.refusals.reads, Instant::now());
        let woken = lock(refusals).passed_in_part(&self.sites, now);
        self.ctx.wake(&woken);
        self.sites.extend(ids.into_iter().map(ResourceId::key));
        let held = lock(refusals).holds(&self.sites, self.node, now);
        if let Some((matter, error)) = held {
            self.held_by = Some(matter);
            return Err(error.about(self.sites.last().map(String::as_str).unwrap_or_default()));
        }
        let held = refusals::until_held(refusals.clone(), self.sites.clone(), self.node.to_owned());
        Ok(urgency.clone().at_most_until(held))
    }

    /// What was to be read so far wasn't shown, which shows nothing of refusals.
    pub fn leave(&mut self) {
        self.sites.clear();
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
        let failed = lock(&self.ctx.refusals.reads).failed(error, (self.node, &self.sites), now);
        match failed {
            None => {
                // Its turn, if it has one, shows nothing.
                stand_back(self.ctx, self.node, now);
                own
            }
            Some((matter, true)) => own.of(matter).shared(),
            Some((matter, false)) => own.of(matter),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Priority;

    fn id(type_: &str, node: usize) -> ResourceId {
        format!("/subscriptions/s/resourceGroups/g/providers/{type_}/n{node}").parse().unwrap()
    }

    fn denied(id: &ResourceId) -> Error {
        Error::Denied { action: "read".into(), scope: id.to_string(), message: "no".into() }
    }

    #[tokio::test]
    async fn a_refusal_of_vms_has_ended_when_one_was_read_though_the_right_to_nics_is_missing() {
        let (ctx, start) = (Context::sample(), Instant::now());
        let vm = |node| id("Microsoft.Compute/virtualMachines", node);
        let nic = |node| id("Microsoft.Network/networkInterfaces", node);
        let urgency = Urgency::from(Priority::NewNode);
        for node in 0..4 {
            let name = format!("n{node}");
            let mut reads = Reads::of(&ctx, &name);
            assert_eq!(reads.may([&vm(node)], &urgency).is_ok(), node < 3);
            if node < 3 {
                reads.failed(&denied(&vm(node)), None, start);
            }
        }
        let all = &ctx.refusals.reads;
        let vms = denied(&vm(0)).matter(&[vm(0).key()]).unwrap();
        assert!(lock(all).stands(&vms, &[vm(9).key()]));
        assert_eq!(lock(all).tick(start + Duration::from_secs(100)), ["n3"]);
        let mut reads = Reads::of(&ctx, "n3");
        reads.may([&vm(3)], &urgency).unwrap();
        reads.may([&nic(3)], &urgency).unwrap();
        assert!(!lock(all).stands(&vms, &[vm(9).key()]), "each node would try it, one a second");
    }
}
