//! The end of what an object records in Azure: its NICs' reservations and groups, its route, and the public
//! addresses of its pods.

use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use tracing::warn;
use vnetpool_crds::allocation::Interface;
use vnetpool_crds::pool::Mode;
use vnetpool_crds::{NodeIPAllocation, names};

use super::owner::{
    is_left, is_left_to_its_vm, is_living_nodes, is_recorded_elsewhere, word_that_gives_away,
};
use crate::azure::{self, Change, Kind, Nic, Priority, ResourceId, Urgency, VmId};
use crate::context::Context;
use crate::node::absences::{Absences, Recorded, is_confirmed_gone};
use crate::node::asking::{Asking, OfAll, Refused, Turns};
use crate::node::error::Error;
use crate::node::memory::left;
use crate::node::pending::Pending;
use crate::node::{backend, pause, publish, strays};

/// An attempt to end what an object records in Azure. Its resources don't depend on each other, but for the
/// order below: what Azure refuses of one, or doesn't find, keeps none of the others. So all that aren't
/// found are asked for a second time in the same attempt.
pub struct Attempt<'a> {
    ctx: &'a Context,
    allocation: &'a NodeIPAllocation,
    asking: Asking<'a>,
    absences: &'a mut Absences,
    pending: &'a mut Pending,
    refused: Vec<Refused>,
    /// The VM of a node that is there.
    own: Option<&'a VmId>,
}

/// What Azure's answer shows.
enum Answer<T> {
    Done(T),
    /// The requested resource is proved to be gone.
    Gone,
    /// Nothing yet, which is noted.
    Refused,
}

/// What has become of a NIC.
#[derive(Clone, Debug)]
pub enum Ended {
    /// It holds nothing of ours.
    Nothing,
    /// A VM has it, and with it our reservations.
    InUse(ResourceId),
    /// A pod of the node has an address of it; all else has gone back.
    InPart,
    /// It may be in use.
    Unknown,
}

impl<'a> Attempt<'a> {
    pub fn of(
        ctx: &'a Context,
        allocation: &'a NodeIPAllocation,
        (absences, pending): (&'a mut Absences, &'a mut Pending),
        turns: Turns,
    ) -> Attempt<'a> {
        let asking = Asking::of(ctx, allocation, turns);
        Attempt { ctx, allocation, asking, absences, pending, refused: vec![], own: None }
    }

    /// The same for a node that is there, on this VM: pods may have addresses of any of its NICs.
    pub fn beside(self, own: &'a VmId) -> Attempt<'a> {
        Attempt { own: Some(own), ..self }
    }

    /// Whether a person says that all of the object is gone. Of a node that lives that may be an old word,
    /// about a machine before.
    fn is_confirmed_gone(&self) -> bool {
        self.own.is_none() && is_confirmed_gone(self.allocation)
    }

    /// What was refused, if anything was. An error that a second answer doesn't turn into a proof comes
    /// first.
    pub fn refusal(mut self) -> Option<Refused> {
        let recorded = Recorded::of(self.allocation, Timestamp::now());
        let is_other = |one: &Refused| !recorded.lacks_second_read(&one.error);
        let first = self.refused.iter().position(is_other).unwrap_or_default();
        (!self.refused.is_empty()).then(|| self.refused.swap_remove(first))
    }

    /// Whether the resource of this id isn't to be asked for yet. What was refused of it still counts.
    fn waits_for(&mut self, id: &str) -> bool {
        let waits = self.pending.refusal(id, (self.ctx, self.allocation), Instant::now());
        self.refused.extend(waits.cloned());
        waits.is_some()
    }

    /// Takes in Azure's answer about the resource of this id.
    ///
    /// # Errors
    /// Nothing can be asked of Azure now, or nothing is to be.
    fn learn<T>(&mut self, id: &str, answer: Result<T, Refused>) -> Result<Answer<T>, azure::Error> {
        let refused = match answer {
            Ok(done) => {
                self.pending.ended(id);
                return Ok(Answer::Done(done));
            }
            Err(refused) if refused.error.is_given_up() => return Err(refused.error),
            Err(refused) => refused,
        };
        let (error, now) = (&refused.error, Instant::now());
        let recorded = Recorded::of(self.allocation, Timestamp::now());
        let is_confirmed = self.is_confirmed_gone();
        let second_read = self.ctx.waits.second_read;
        if self.absences.prove(error, &recorded, second_read, is_confirmed, now) {
            self.pending.ended(id);
            return Ok(Answer::Gone);
        }
        // Of what others were refused Azure hasn't answered.
        if refused.of_all.is_none() {
            self.absences.note(id, error, now);
        }
        match error {
            azure::Error::Throttled { .. } | azure::Error::Credential { .. } => Err(refused.error),
            _ => {
                let wait = recorded.lacks_second_read(error).then_some(second_read);
                self.pending.refused(id, &refused, wait, now);
                self.refused.push(refused);
                Ok(Answer::Refused)
            }
        }
    }

    /// All that the object records of a node that is gone, and `strays`. What is beside its NICs comes last:
    /// a NIC may be in use. Returns the VM that has one of them.
    pub(super) async fn all(&mut self, strays: &[ResourceId]) -> Result<Option<InUse>, azure::Error> {
        let mut vacated = Vacated::default();
        for (id, mac) in nics(self.allocation, strays) {
            let ended = self.end_or_leave(id, mac).await?;
            vacated.take(ended, id, is_left(&self.allocation.spec, id));
        }
        if vacated.may_leave() {
            self.leave().await?;
        }
        Ok(vacated.in_use)
    }

    /// The same as [`Attempt::end`]. But a NIC may be left to its VM, with all that it has.
    async fn end_or_leave(&mut self, id: &str, mac: Option<&str>) -> Result<Ended, azure::Error> {
        let ended = self.end(id, mac).await?;
        let (Ended::InUse(vm), Ok(nic)) = (&ended, id.parse()) else { return Ok(ended) };
        let (ctx, allocation) = (self.ctx, self.allocation);
        if !is_confirmed_gone(allocation) && !is_left_to_its_vm(ctx, allocation, &nic) {
            return Ok(ended);
        }
        warn!(%nic, %vm, "what it holds is left to another machine");
        // With the public addresses that it has.
        self.delete(public_addresses(allocation, &nic), true).await?;
        Ok(Ended::Nothing)
    }

    /// Makes sure that a NIC without a Node holds nothing of ours, is in no group by our doing, and that the
    /// public addresses made for its pods are deleted, unless a VM has it. A NIC with another hardware
    /// address than `mac` and nothing of ours on it belongs to a machine that has come back under an old
    /// one's id: the old one is gone. A public address that something else has is left to that if a person
    /// says so. If it is the node's own VM that has the NIC, all goes back that no pod has.
    pub async fn end(&mut self, id: &str, mac: Option<&str>) -> Result<Ended, azure::Error> {
        if self.waits_for(id) {
            return Ok(Ended::Unknown);
        }
        let nic: ResourceId = match id.parse() {
            Ok(nic) => nic,
            Err(error) => {
                self.learn::<()>(id, Err(azure::Error::from(error).into()))?;
                return Ok(Ended::Unknown);
            }
        };
        if self.waits_for_public_addresses(&nic) {
            return Ok(Ended::Unknown);
        }
        let settled = self.settle(&nic, mac).await;
        match self.learn(id, settled)? {
            Answer::Done(Ended::Nothing) | Answer::Gone => {}
            Answer::Done(ended) => return Ok(ended),
            Answer::Refused => return Ok(Ended::Unknown),
        }
        self.delete(public_addresses(self.allocation, &nic), self.is_confirmed_gone()).await?;
        Ok(Ended::Nothing)
    }

    /// Whether a NIC has public addresses, and all of them still wait. Their deletion comes after all else,
    /// so the NIC needn't be read again.
    fn waits_for_public_addresses(&mut self, nic: &ResourceId) -> bool {
        let (mut count, mut waiting) = (0, 0);
        for id in public_addresses(self.allocation, nic) {
            (count, waiting) = (count + 1, waiting + usize::from(self.waits_for(id)));
        }
        count > 0 && waiting == count
    }

    /// The NIC's part of it.
    async fn settle(&mut self, id: &ResourceId, mac: Option<&str>) -> Result<Ended, Refused> {
        let (ctx, allocation) = (self.ctx, self.allocation);
        let nic = self.asking.read(id, Priority::GiveBack).await?;
        // Whatever becomes of the write: a 404 from before shows nothing any more.
        self.absences.found(id.as_str());
        let is_another = mac.is_some_and(|mac| nic.mac.as_deref().is_some_and(|now| now != mac));
        if is_another && nic.ip_configurations.is_empty() {
            return Ok(Ended::Nothing);
        }
        let seen_without = format!("{id}/virtualMachine");
        if let Some(vm) = &nic.vm {
            self.absences.found(&seen_without);
            return match self.own {
                None => Ok(Ended::InUse(vm.clone())),
                Some(own) if own.resource() != vm => {
                    let message = "another VM has the NIC, and it shows nothing of ours".to_owned();
                    let error = azure::Error::NotFound { resource: format!("{id}/reservations"), message };
                    self.with_another(&nic, vm, &error).ok_or_else(|| error.into())
                }
                Some(_) => {
                    let (change, is_all) = of_own(allocation, &nic);
                    self.give_back(&nic, &change).await?;
                    Ok(if is_all { Ended::Nothing } else { Ended::InPart })
                }
            };
        }
        // Azure may leave the VM out: another node's, or the node's own.
        let is_in_part_used = || strays::idle(allocation, &nic).len() < nic.ip_configurations.len();
        match self.own {
            None if is_living_nodes(ctx, allocation, id) => return Ok(Ended::Nothing),
            Some(_) if is_recorded_elsewhere(ctx, allocation, id) || is_in_part_used() => {
                return Ok(Ended::InPart);
            }
            _ => {}
        }
        let release: Vec<String> = nic.ip_configurations.iter().map(|one| one.name.clone()).collect();
        let leave = ours(allocation, id);
        if !release.is_empty() || records_addresses(allocation, id) {
            // One answer proves nothing, and a current ETag doesn't either: the VM may be left out of it. It
            // counts when it is given again, like an absence.
            let message = match release.is_empty() {
                true => "the NIC shows neither a VM nor the addresses that this object records".to_owned(),
                false => "the NIC shows no VM that has it".to_owned(),
            };
            let error = azure::Error::NotFound { resource: seen_without.clone(), message };
            let (recorded, second_read) = (Recorded::default(), ctx.waits.second_read);
            if !self.absences.prove(&error, &recorded, second_read, false, Instant::now()) {
                return Err(error.into());
            }
        }
        if !release.is_empty() || !leave.is_empty() {
            self.give_back(&nic, &Change { release, leave, ..Change::default() }).await?;
            // While its node lives, another machine may have the NIC before all of this is done.
            if self.own.is_none() {
                self.absences.deleted(&seen_without);
            }
        }
        ctx.azure.forget(id);
        Ok(Ended::Nothing)
    }

    /// What a NIC is for the node that has left it, now that another VM has it. One that holds nothing of
    /// ours is done with when a second read shows the same. Until then the `error` stands, and this is
    /// `None`.
    fn with_another(&mut self, nic: &Nic, vm: &ResourceId, error: &azure::Error) -> Option<Ended> {
        let groups = ours(self.allocation, &nic.id);
        if !nic.ip_configurations.is_empty() || nic.groups.iter().any(|group| groups.contains(group)) {
            self.absences.found(&format!("{}/reservations", nic.id));
            return Some(Ended::InUse(vm.clone()));
        }
        let (recorded, second_read) = (Recorded::default(), self.ctx.waits.second_read);
        let is_proved = self.absences.prove(error, &recorded, second_read, false, Instant::now());
        is_proved.then_some(Ended::Nothing)
    }

    /// Takes these reservations and groups of ours off a NIC.
    async fn give_back(&self, nic: &Nic, change: &Change) -> Result<(), Refused> {
        if change.release.is_empty() && change.leave.is_empty() {
            return Ok(());
        }
        self.asking.take_off(nic, change, give_back(self.ctx, self.allocation)).await.map(drop)
    }

    /// Makes sure that nothing is left of what was made for the node beside its NICs: its route, and public
    /// addresses that have lost their ipConfigurations.
    async fn leave(&mut self) -> Result<(), azure::Error> {
        let (ctx, allocation) = (self.ctx, self.allocation);
        if let Some(table) = &allocation.spec.route_table_id
            && !self.waits_for(table)
        {
            let leave = |urgency| backend::leave(ctx, allocation, table, urgency);
            let (refusals, sites) = (&ctx.refusals.writes, [table.to_ascii_lowercase()]);
            let urgency = give_back(ctx, allocation);
            let left = self.asking.ask(refusals, &sites, urgency, leave, |was_sent| *was_sent).await;
            if let Answer::Done(_) = self.learn(table, left)? {
                self.absences.found(table);
            }
        }
        let detached = allocation.spec.detached_public_addresses.iter().map(String::as_str);
        self.delete(detached, self.is_confirmed_gone()).await
    }

    /// Deletes public addresses, except for those that something else has where these are `left`.
    pub(super) async fn delete(
        &mut self,
        all: impl Iterator<Item = &str>,
        leaves_used: bool,
    ) -> Result<(), azure::Error> {
        let (ctx, allocation) = (self.ctx, self.allocation);
        for id in all {
            if self.waits_for(id) {
                continue;
            }
            let deleted = match id.parse() {
                Ok(id) => ctx.azure.delete_public_address(&id, give_back(ctx, allocation)).await,
                Err(error) => Err(azure::Error::from(error)),
            };
            if leaves_used && matches!(deleted, Err(azure::Error::InUse { .. })) {
                continue;
            }
            let is_silent = matches!(deleted, Err(azure::Error::Unavailable { .. }));
            let deleted = deleted.map_err(|error| of_public_address(ctx, id, error));
            if let Answer::Done(()) = self.learn(id, deleted)? {
                self.absences.deleted(id);
            }
            // The others would wait as long, each for itself.
            if is_silent {
                break;
            }
        }
        Ok(())
    }

    /// Returns the interfaces without the addresses that their NICs no longer hold: the object may be a copy
    /// from a backup, and an agent that has forgotten that it gave an address up would hand it out again.
    /// `None`: the object has gone.
    ///
    /// The NIC is read from Azure now: an earlier write whose outcome isn't known may have ended meanwhile.
    /// If it hasn't, the ETag of ours makes it fail. Then the object is read, uncached: if it has gone, the
    /// addresses that it lists as given up may be in use again. If another leader removes the object after
    /// that read, it has written the NIC first, so that our write fails.
    pub(super) async fn release_relinquished(&mut self) -> Result<Option<Vec<Interface>>, Error> {
        let (ctx, allocation) = (self.ctx, self.allocation);
        let mut interfaces = allocation.spec.interfaces.clone();
        let release: Vec<String> =
            allocation.status.iter().flat_map(|status| status.relinquished.clone()).collect();
        let is_on_nic = allocation.spec.mode != Mode::Route;
        for interface in &mut interfaces {
            let has_addresses = is_on_nic && !interface.ip_configurations.is_empty();
            if release.is_empty() && !has_addresses {
                continue;
            }
            if self.waits_for(&interface.id) {
                continue;
            }
            let id = interface.id.parse().map_err(azure::Error::from).map_err(Error::Find)?;
            let read = self.asking.read(&id, Priority::NewNode).await;
            let Answer::Done(mut nic) = self.learn(&interface.id, read).map_err(Error::Find)? else {
                continue;
            };
            self.absences.found(&interface.id);
            if !release.is_empty() {
                if !publish::is_there(ctx, allocation).await? {
                    return Ok(None);
                }
                let change = Change { release: release.clone(), ..Change::default() };
                let written = self.asking.take_off(&nic, &change, give_back(ctx, allocation)).await;
                let Answer::Done(written) = self.learn(&interface.id, written).map_err(Error::Find)? else {
                    continue;
                };
                nic = written.after;
            }
            if is_on_nic {
                let is_held = |name: &str| nic.ip_configurations.iter().any(|one| one.name == name);
                interface.ip_configurations.retain(|one| is_held(&one.name));
            }
        }
        Ok(Some(interfaces))
    }
}

/// An error of the deletion of a public address.
fn of_public_address(ctx: &Context, id: &str, error: azure::Error) -> Refused {
    let of_all = id.parse().ok().filter(|id| {
        let of_all = ctx.azure.refusal_of_public_address(Kind::Delete, id);
        of_all.is_some_and(|all| all.reason() == error.reason())
    });
    Refused { error, of_all: of_all.map(OfAll::Deletion) }
}

/// What the object records of a NIC.
fn interface<'a>(allocation: &'a NodeIPAllocation, nic: &ResourceId) -> impl Iterator<Item = &'a Interface> {
    allocation.spec.recorded_interfaces().filter(move |one| one.id.eq_ignore_ascii_case(nic.as_str()))
}

/// What goes back of a NIC that is the node's own VM's again and doesn't serve it: the reservations that no
/// pod has and, once that is all of them, the groups that the NIC is in by our doing. Whether that is all.
fn of_own(allocation: &NodeIPAllocation, nic: &Nic) -> (Change, bool) {
    let release = strays::idle(allocation, nic);
    let is_all = release.len() == nic.ip_configurations.len();
    let leave = if is_all { ours(allocation, &nic.id) } else { vec![] };
    (Change { release, leave, ..Change::default() }, is_all)
}

/// The groups that a NIC is in by our doing.
fn ours(allocation: &NodeIPAllocation, nic: &ResourceId) -> Vec<ResourceId> {
    let groups = interface(allocation, nic).flat_map(|one| &one.application_security_groups);
    groups.filter_map(|group| group.parse().ok()).collect()
}

/// Whether the object records addresses on a NIC. One that the node has left may have held them in another
/// mode.
fn records_addresses(allocation: &NodeIPAllocation, nic: &ResourceId) -> bool {
    let spec = &allocation.spec;
    let may_be_on_nic = spec.mode != Mode::Route || !spec.left_interfaces.is_empty();
    may_be_on_nic && interface(allocation, nic).any(|one| !one.ip_configurations.is_empty())
}

/// The public addresses that go with a NIC: those that its ipConfigurations have. But of a NIC that the node
/// has left, one that another record names goes with that: a pod may have come by it again.
fn public_addresses<'a>(allocation: &'a NodeIPAllocation, nic: &ResourceId) -> impl Iterator<Item = &'a str> {
    let spec = &allocation.spec;
    let is_it = |one: &&Interface| one.id.eq_ignore_ascii_case(nic.as_str());
    let is_left = spec.left(nic.as_str()).is_some();
    let others = spec.interfaces.iter().filter(|one| is_left && !is_it(one)).flat_map(left::public_addresses);
    let detached = spec.detached_public_addresses.iter().filter(|_| is_left).map(String::as_str);
    let elsewhere: Vec<&str> = others.chain(detached).collect();
    let is_elsewhere = move |id: &str| elsewhere.iter().any(|one| one.eq_ignore_ascii_case(id));
    interface(allocation, nic).flat_map(left::public_addresses).filter(move |id| !is_elsewhere(id))
}

/// A VM that has a NIC of a node that is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct InUse {
    nic: String,
    vm: ResourceId,
    /// The node had left the NIC before.
    is_left: bool,
}

/// What becomes of all NICs of a node that is gone.
#[derive(Debug, Default)]
struct Vacated {
    in_use: Option<InUse>,
    /// One that the node still had may be in use.
    in_doubt: bool,
}

impl InUse {
    pub fn message(&self, node: &str) -> String {
        let InUse { nic, vm, is_left } = self;
        match is_left {
            false => format!(
                "there is no Node {node} any more, but its VM {vm} lives, so its addresses stay reserved. They are given back \
                 when the VM is deleted; a new Node of that name takes them over. If that VM is another machine, and what the \
                 NIC holds is to stay with it, confirm it with the annotation {}=true.",
                names::GONE
            ),
            true => format!(
                "there is no Node {node} any more, and VM {vm} has {nic}, which the node had left before. What that NIC holds \
                 stays reserved until the VM is deleted or another node's object names the NIC. If it is to stay with that VM, \
                 confirm it with the annotation {}.",
                word_that_gives_away(nic)
            ),
        }
    }
}

impl Vacated {
    /// One that the node still had counts for more than one that it had left.
    fn take(&mut self, ended: Ended, nic: &str, is_left: bool) {
        match ended {
            Ended::Nothing => {}
            Ended::InUse(vm) => {
                if self.in_use.as_ref().is_none_or(|one| one.is_left && !is_left) {
                    self.in_use = Some(InUse { nic: nic.to_owned(), vm, is_left });
                }
            }
            Ended::InPart | Ended::Unknown => self.in_doubt |= !is_left,
        }
    }

    /// Whether the node's machine uses nothing any more of what is beside its NICs.
    fn may_leave(&self) -> bool {
        !self.in_doubt && self.in_use.as_ref().is_none_or(|one| one.is_left)
    }
}

/// The NICs that may hold something of a node's, with their hardware addresses where these are known.
fn nics<'a>(
    allocation: &'a NodeIPAllocation,
    strays: &'a [ResourceId],
) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    let spec = &allocation.spec;
    let is_it = |nic: &ResourceId, one: &Interface| one.id.eq_ignore_ascii_case(nic.as_str());
    let is_named = move |nic: &&ResourceId| spec.recorded_interfaces().any(|one| is_it(nic, one));
    let others = strays.iter().filter(move |nic| !is_named(nic)).map(|nic| (nic.as_str(), None));
    spec.recorded_interfaces().map(|one| (one.id.as_str(), Some(one.mac.as_str()))).chain(others)
}

/// How urgent a write is by which addresses go back.
fn give_back(ctx: &Context, allocation: &NodeIPAllocation) -> Urgency {
    pause::while_not(&ctx.cluster, &ctx.waker, allocation, Priority::GiveBack)
}

#[cfg(test)]
mod tests {
    use super::super::having_left;
    use super::*;
    use crate::azure::sample_nic;
    use serde_json::json;

    fn vm(name: &str) -> ResourceId {
        let machines = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines";
        format!("{machines}/{name}").parse().unwrap()
    }

    #[test]
    fn a_nic_that_the_node_had_left_holds_back_nothing_of_what_was_made_beside_the_nics() {
        let vacated = |all: &[(Ended, bool)]| {
            let mut vacated = Vacated::default();
            for (ended, is_left) in all {
                vacated.take(ended.clone(), "n", *is_left);
            }
            let names = vacated.in_use.as_ref().map(|one| (one.vm.clone(), one.is_left));
            (vacated.may_leave(), names)
        };
        let (in_use, other) = (|name| Ended::InUse(vm(name)), Some((vm("other"), true)));
        assert_eq!(vacated(&[(Ended::Nothing, false), (in_use("other"), true)]), (true, other.clone()));
        assert_eq!(vacated(&[(Ended::Unknown, true)]), (true, None));
        assert_eq!(vacated(&[(Ended::Unknown, false), (in_use("other"), true)]), (false, other));
        let own = Some((vm("own"), false));
        assert_eq!(vacated(&[(in_use("other"), true), (in_use("own"), false)]), (false, own.clone()));
        assert_eq!(vacated(&[(in_use("own"), false), (in_use("other"), true)]), (false, own));
        let message = |is_left| InUse { nic: "the-nic".into(), vm: vm("other"), is_left }.message("n");
        assert!(
            message(true).contains("the-nic, which the node had left") && !message(false).contains("left")
        );
    }

    #[test]
    fn a_nic_that_is_the_nodes_own_again_leaves_its_groups_with_its_last_reservation() {
        let nic = sample_nic(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.6/32")]);
        let lost = json!({"status": {"bootID": "b", "lost": [{"address": "10.0.0.6", "sandbox": "s"}]}});
        let decided = |more: serde_json::Value, nic: &Nic| {
            let (change, is_all) = of_own(&having_left(&nic.id, more), nic);
            (change.release.len(), change.leave.len(), is_all)
        };
        assert_eq!(decided(json!({}), &nic), (2, 1, true));
        assert_eq!(decided(lost, &nic), (1, 0, false), "a pod has the other, and may need the groups");
        assert_eq!(decided(json!({}), &sample_nic(&[])), (0, 1, true), "no more than groups");
    }

    #[test]
    fn a_public_address_that_a_pod_has_come_by_again_does_not_go_with_the_nic_that_had_it() {
        let nic = sample_nic(&[]).id;
        let count = |more| public_addresses(&having_left(&nic, more), &nic).count();
        assert_eq!(count(json!({})), 1);
        let serving = json!([{"id": "/other", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
            "ipConfigurations": [{"name": "vnp-9", "address": "10.0.0.9/32", "attachedTo": "u",
                "publicAddress": {"id": "/PUBLIC/u"}}]}]);
        assert_eq!(count(json!({"spec": {"interfaces": serving}})), 0);
        // No other record names what stands in two of the same NIC.
        let again = having_left(&nic, json!({})).spec.left_interfaces;
        assert_eq!(count(json!({"spec": {"interfaces": again}})), 2);
        assert_eq!(count(json!({"spec": {"detachedPublicAddresses": ["/public/u"]}})), 0);
    }

    #[test]
    fn each_nic_that_held_addresses_of_a_gone_node_is_emptied() {
        let stray = sample_nic(&[]).id;
        let left = stray.as_str().replace("/networkInterfaces/", "/networkInterfaces/left-");
        let before = json!({"id": left, "mac": "l", "primaryAddress": "10.0.0.5", "subnet": {"id": "s"}});
        let serving = stray.as_str().replace("/networkInterfaces/", "/networkInterfaces/other-");
        let interface =
            json!({"id": serving, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
        let allocation: NodeIPAllocation = serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface],
                "leftInterfaces": [before]},
        }))
        .unwrap();
        // A leader that was paused has written there before it served, too.
        let strays = [stray.clone(), serving.to_uppercase().parse().unwrap()];
        let all: Vec<_> = nics(&allocation, &strays).collect();
        let wanted = [(serving.as_str(), Some("m")), (left.as_str(), Some("l")), (stray.as_str(), None)];
        assert_eq!(all, wanted);
    }
}
