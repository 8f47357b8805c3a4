//! NICs that don't serve their node and may hold reservations of ours all the same: a leader that was paused
//! while a pool got another subnet has written there. The reservations go back once the agent reports that no
//! pod has them.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use vnetpool_apiserver::doubled;
use vnetpool_crds::NodeIPAllocation;

use super::asking::{Asking, Refused, Turns};
use super::lag::{Lag, lag};
use crate::azure::{self, Change, Freshness, Nic, ResourceId, Urgency, VmId};
use crate::context::Context;
use crate::node_object::Node;

const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// `spec` records these NICs: only a read of all of the VM's finds them, which comes within hours, and never
/// once the VM is gone.
#[derive(Clone, Debug, Default)]
pub struct Strays {
    nics: Vec<ResourceId>,
    /// How often in a row Azure has refused, and when it is tried again.
    refused: Option<(u32, Instant)>,
    /// Since when Azure doesn't find them. The first 404 proves nothing.
    missing: HashMap<ResourceId, Instant>,
}

/// What was done about a NIC.
enum Outcome {
    /// There was nothing to release.
    Nothing,
    Released,
    /// Azure doesn't show that the node's VM has it. Another may, and use what it holds.
    Departed,
}

impl Strays {
    /// Those that the object records.
    pub fn of(allocation: &NodeIPAllocation) -> Strays {
        let all = allocation.spec.stray_interfaces.iter().filter_map(|id| id.parse().ok());
        Strays { nics: all.collect(), ..Strays::default() }
    }

    /// The VM's NICs were read: these are such, and the one that is `serving` isn't. `own` are all of the
    /// VM's, none if Azure hasn't shown the VM, and `shown` those whose content it has shown. A NIC known
    /// before stays as long as it isn't shown, or a write to it may come late. Returns those known before
    /// that aren't the VM's any more: this read shows nothing of what they hold.
    #[must_use]
    pub fn found(
        &mut self,
        nics: &[ResourceId],
        (own, shown): (&[ResourceId], &[ResourceId]),
        serving: &ResourceId,
        may_come_late: bool,
    ) -> Vec<ResourceId> {
        let before = std::mem::take(&mut self.nics).into_iter();
        let is_own = |nic: &ResourceId| own.is_empty() || own.contains(nic) || nic == serving;
        let (covered, departed): (Vec<_>, Vec<_>) = before.partition(is_own);
        let stay = covered.into_iter().filter(|nic| may_come_late || !shown.contains(nic));
        for nic in nics.iter().cloned().chain(stay) {
            if nic != *serving {
                self.add(nic);
            }
        }
        self.missing.retain(|nic, _| self.nics.contains(nic) && !nics.contains(nic));
        departed
    }

    /// This one, of the node's VM, may hold something.
    pub fn add(&mut self, nic: ResourceId) {
        if !self.nics.contains(&nic) {
            self.nics.push(nic);
        }
    }

    /// Those that are known.
    pub fn nics(&self) -> &[ResourceId] {
        &self.nics
    }

    /// These, and those that the object records: one that has departed stands there until `spec` names it as
    /// left.
    pub fn with_recorded(&self, allocation: &NodeIPAllocation) -> Vec<ResourceId> {
        let mut all = self.clone();
        Strays::of(allocation).nics.into_iter().for_each(|nic| all.add(nic));
        all.nics
    }

    /// How long Azure's refusal still holds.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let (_, until) = self.refused.filter(|(_, until)| now < *until)?;
        Some(until - now)
    }

    /// Azure has refused, after it had done so `last` times in a row. It is tried ever less often, and not
    /// before its `pause` is over.
    fn put_off(&mut self, last: Option<u32>, pause: Duration, now: Instant) {
        let times = last.map_or(0, |times| times + 1);
        let until = now + doubled(FIRST, times, LONGEST).max(pause);
        let later = self.refused.map_or(until, |(_, other)| other.max(until));
        self.refused = Some((times, later));
    }

    fn forget(&mut self, nic: &ResourceId) {
        self.nics.retain(|one| one != nic);
        self.missing.remove(nic);
    }

    /// Azure doesn't find this NIC. It is gone if it wasn't there before either, at least so long ago.
    fn missed(&mut self, nic: &ResourceId, second_read: Duration, now: Instant) {
        let since = *self.missing.entry(nic.clone()).or_insert(now);
        if now.saturating_duration_since(since) >= second_read {
            self.forget(nic);
        } else {
            let until = since + second_read;
            let later = self.refused.map_or(until, |(_, other)| other.max(until));
            self.refused = Some((0, later));
        }
    }
}

/// Releases the addresses that no pod has. Returns whether there is news: then the VM's NICs are to be read
/// again. And those that Azure doesn't show on the VM any more: they go on as NICs that the node has left. An
/// error ends nothing but this, and all of it waits while the node needs something more urgent.
pub async fn settle(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    node: &Node,
    urgency: &Urgency,
    strays: &mut Strays,
) -> (bool, Vec<ResourceId>) {
    let waits = strays.nics.is_empty() || strays.wait(Instant::now()).is_some();
    if waits || ctx.azure.is_dry_run() || lag(allocation, node.boot_id()) != Lag::None {
        return Default::default();
    }
    let Ok(vm) = VmId::from_provider_id(node.provider_id()) else { return Default::default() };
    let last = strays.refused.take().map(|(times, _)| times);
    let (mut is_news, mut departed) = (false, vec![]);
    for id in strays.nics.clone() {
        let released = release(ctx, allocation, &vm, (&id, urgency)).await;
        if !matches!(&released, Err(Refused { error: azure::Error::NotFound { .. }, .. })) {
            strays.missing.remove(&id);
        }
        match released {
            Ok(Outcome::Nothing) => {}
            Ok(Outcome::Released) => is_news = true,
            Ok(Outcome::Departed) => {
                strays.forget(&id);
                departed.push(id);
                is_news = true;
            }
            Err(Refused { error: azure::Error::NotFound { .. }, .. }) => {
                strays.missed(&id, ctx.waits.second_read, Instant::now());
            }
            // The node needs something else by now, a person has paused it, or others were refused the same:
            // it is repeated when it goes on.
            Err(Refused { error, .. }) if error.is_given_up() => return (is_news, departed),
            Err(Refused { error, .. }) => {
                warn!(nic = %id, reason = %error.reason(), %error, "what it holds of ours stays there for now");
                strays.put_off(last, error.pause(), Instant::now());
            }
        }
    }
    (is_news, departed)
}

async fn release(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    vm: &VmId,
    (id, urgency): (&ResourceId, &Urgency),
) -> Result<Outcome, Refused> {
    let asking = Asking::of(ctx, allocation, Turns::Left);
    let read = async {
        // What is known shows nothing of refusals.
        let known = |urgency| ctx.azure.nic(id, Freshness::Cached, urgency);
        let known = asking.ask(&ctx.refusals.reads, &[id.key()], urgency.into(), known, |_| false).await?;
        if is_of(&known, vm) && idle(allocation, &known).is_empty() {
            return Ok(None);
        }
        asking.read(id, urgency).await.map(Some)
    };
    let nic = tokio::select! {
        biased;
        nic = read => nic?,
        // A read changes nothing, and may never be answered.
        () = urgency.outgrown() => return Err(azure::Error::Outgrown { resource: id.to_string() }.into()),
    };
    let Some(nic) = nic else { return Ok(Outcome::Nothing) };
    if !is_of(&nic, vm) {
        return Ok(Outcome::Departed);
    }
    let change = Change { release: idle(allocation, &nic), ..Change::default() };
    asking.take_off(&nic, &change, urgency).await?;
    info!(nic = %id, release = change.release.len(), "released what a NIC that doesn't serve its node held");
    Ok(Outcome::Released)
}

/// Whether a NIC shows this VM.
fn is_of(nic: &Nic, vm: &VmId) -> bool {
    nic.vm.as_ref() == Some(vm.resource())
}

/// Names of ours on such a NIC that no pod has: `spec` doesn't show them, and the agent, which has taken that
/// up, names none of their addresses as lost.
pub fn idle(allocation: &NodeIPAllocation, nic: &Nic) -> Vec<String> {
    let shown = allocation.spec.names();
    let lost = in_use(allocation);
    let is_used = |range: ipnet::Ipv4Net| lost.iter().any(|address| range.contains(address));
    let all = nic.ip_configurations.iter();
    let idle = all.filter(|one| !shown.contains(&one.name) && !one.address.is_some_and(is_used));
    idle.map(|one| one.name.clone()).collect()
}

/// The addresses that the agent reports as pods' though `spec` doesn't show them.
pub fn in_use(allocation: &NodeIPAllocation) -> Vec<Ipv4Addr> {
    let lost = allocation.status.iter().flat_map(|status| &status.lost);
    lost.filter_map(|one| one.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::sample_nic;
    use crate::context::Waits;
    use serde_json::json;

    fn id(name: &str) -> ResourceId {
        format!("/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/{name}")
            .parse()
            .unwrap()
    }

    #[test]
    fn a_nic_that_may_hold_something_is_known_until_no_write_to_it_can_come_late() {
        let spec =
            json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "strayInterfaces": [id("a").as_str()]});
        let allocation = serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let mut strays = Strays::of(&allocation);
        assert_eq!(strays.nics(), [id("a")]);
        let own = ["a", "b", "s"].map(id);
        let mut found = |nics: &[ResourceId], serving, may_come_late| {
            assert_eq!(strays.found(nics, (&own, &own), &id(serving), may_come_late), []);
            strays.nics().to_vec()
        };
        assert_eq!(found(&[id("b")], "s", true), [id("b"), id("a")]);
        // One of them has come to serve again.
        assert_eq!(found(&[id("s")], "A", true), [id("s"), id("b")]);
        assert_eq!(found(&[id("b")], "a", false), [id("b")]);
    }

    #[test]
    fn what_is_recorded_of_a_nic_that_the_vm_has_no_more_does_not_end_with_a_read_of_the_vms_nics() {
        let (mut strays, own) = (Strays::default(), ["b", "s"].map(id));
        strays.add(id("a"));
        strays.add(id("b"));
        // It was the former machine's.
        assert_eq!(strays.found(&[], (&own, &own), &id("s"), false), [id("a")]);
        assert_eq!(strays.nics(), [], "the read shows that the other holds nothing");
        // Until `spec` names it as left, it stands where it stood.
        let spec =
            json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "strayInterfaces": [id("a").as_str()]});
        let allocation = serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        assert_eq!(strays.with_recorded(&allocation), [id("a")]);
    }

    #[test]
    fn of_the_nics_beside_the_serving_one_those_that_azure_shows_are_known_to_be_empty_though_one_is_hidden()
    {
        let (mut strays, own) = (Strays::default(), ["a", "b", "s"].map(id));
        ["a", "b", "former"].iter().for_each(|name| strays.add(id(name)));
        // Azure shows neither the VM nor its other NICs.
        assert_eq!(strays.found(&[], (&[], &[]), &id("s"), false), []);
        assert_eq!(strays.nics().len(), 3);
        let but_b = ["a", "s"].map(id);
        assert_eq!(strays.found(&[], (&own, &but_b), &id("s"), true), [id("former")]);
        assert_eq!(strays.nics(), [id("a"), id("b")], "a write to the first may come late");
        assert_eq!(strays.found(&[], (&own, &but_b), &id("s"), false), []);
        assert_eq!(strays.nics(), [id("b")]);
    }

    #[test]
    fn a_nic_is_forgotten_when_a_second_read_a_minute_later_does_not_find_it_either() {
        let (start, minute) = (Instant::now(), Waits::FULL.second_read);
        let mut strays = Strays::default();
        ["a", "b"].iter().for_each(|name| strays.add(id(name)));
        strays.missed(&id("a"), minute, start);
        assert_eq!((strays.nics().len(), strays.wait(start)), (2, Some(minute)));
        strays.missed(&id("a"), minute, start + minute);
        assert_eq!(strays.nics(), [id("b")]);
        // One that was read in between is missed anew.
        strays.missed(&id("b"), minute, start);
        let _ = strays.found(&[id("b")], (&[id("b")], &[id("b")]), &id("s"), false);
        strays.missed(&id("b"), minute, start + minute);
        assert_eq!(strays.nics(), [id("b")]);
    }

    #[test]
    fn a_nic_is_not_asked_for_before_the_pause_that_azure_asks_for() {
        let (start, longer) = (Instant::now(), 3 * FIRST);
        let mut strays = Strays::default();
        strays.put_off(None, longer, start);
        assert_eq!(strays.wait(start), Some(longer));
        // Another NIC was refused for less.
        strays.put_off(None, Duration::ZERO, start);
        assert_eq!(strays.wait(start), Some(longer));
        strays.refused = None;
        strays.put_off(Some(1), Duration::ZERO, start);
        assert_eq!(strays.wait(start), Some(4 * FIRST), "ever less often");
    }

    #[test]
    fn a_nic_that_does_not_show_the_nodes_vm_may_be_anothers() {
        let vm = |name: &str| {
            format!("/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/{name}")
        };
        let ours = VmId::from_provider_id(&format!("azure://{}", vm("ours"))).unwrap();
        let of = |vm: Option<String>| {
            let nic = Nic { vm: vm.map(|vm| vm.parse().unwrap()), ..sample_nic(&[]) };
            is_of(&nic, &ours)
        };
        assert!(of(Some(vm("OURS"))) && !of(Some(vm("other"))) && !of(None));
    }

    #[test]
    fn only_addresses_without_a_pod_are_idle_on_a_nic_that_does_not_serve() {
        let nic =
            sample_nic(&[("vnp-1", "10.0.0.5/32"), ("vnp-2", "10.0.0.16/28"), ("vnp-3", "10.0.0.7/32")]);
        let shown = json!({"name": "vnp-3", "address": "10.0.0.7/32"});
        let interface = json!({"id": "i", "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
            "ipConfigurations": [shown]});
        let allocation = |lost: &[&str]| -> NodeIPAllocation {
            let lost: Vec<_> =
                lost.iter().map(|address| json!({"address": address, "sandbox": "s"})).collect();
            serde_json::from_value(json!({
                "metadata": {"name": "n"},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
                "status": {"bootID": "b", "lost": lost},
            }))
            .unwrap()
        };
        assert_eq!(idle(&allocation(&[]), &nic), ["vnp-1", "vnp-2"]);
        assert_eq!(idle(&allocation(&["10.0.0.20"]), &nic), ["vnp-1"]);
    }
}
