//! An object whose Node is gone: kept while the VM lives, deleted when Azure has no reservation of ours left.
//! And an object that was deleted although its Node lives.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tracing::warn;
use vnetpool_crds::allocation::Interface;
use vnetpool_crds::pool::Mode;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::{NodeIPAllocation, names};

use super::absences::{Recorded, is_confirmed_gone};
use super::error::Error;
use super::memory::Memory;
use super::progress::{Next, SOON};
use super::setback::{Setback, Stage};
use super::{backend, growth, pause, publish, report};
use crate::azure::{self, Change, Freshness, Priority, ResourceId, Urgency};
use crate::context::Context;

/// How soon to check again whether the VM still lives. Mostly it is about to go; the longer it stays, the
/// longer it may.
const SOONEST: Duration = Duration::from_secs(30);
const LATEST: Duration = Duration::from_secs(1800);

/// NIC gone → object deleted. NIC without a VM → our ipConfigurations removed, then object deleted. VM there
/// → kept: its pods may still run, and a Node of the same name with the same VM adopts it.
pub async fn vacate(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &mut Memory,
) -> Result<Next, Error> {
    let now = Instant::now();
    if memory.vacant_since.is_none() {
        // A setback of the node's service doesn't delay its end.
        memory.setback = None;
    }
    let since = *memory.vacant_since.get_or_insert(now);
    if let Some(pause) = pause::of(&ctx.cluster, allocation) {
        report::paused(ctx, allocation, &memory.absences, &pause).await?;
        return Ok(Next::After(LATEST));
    }
    if let Some(wait) = held_back(allocation, memory, now) {
        return Ok(Next::After(wait));
    }
    let is_gone = proof(ctx, allocation, memory, now);
    let gone = format!("Node {} is gone", allocation.name_any());
    let mut in_use = None;
    let strays = memory.strays.nics().to_vec();
    for (id, mac) in nics(allocation, &strays) {
        let settled = match id.parse() {
            Ok(nic) => end_or_leave(ctx, &nic, mac, allocation, &is_gone).await,
            Err(error) => Err(error.into()),
        };
        match settled {
            Ok(Some(vm)) => {
                memory.absences.found(id);
                in_use = in_use.or(Some(vm));
            }
            Ok(None) => {}
            Err(error) => return refused(ctx, allocation, memory, (error, &gone), now).await,
        }
    }
    if in_use.is_none()
        && let Err(error) = leave(ctx, allocation, &is_gone).await
    {
        return refused(ctx, allocation, memory, (error, &gone), now).await;
    }
    memory.setback = None;
    let Some(vm) = in_use else {
        // Another client may write the object in that moment: then returned addresses are counted once, and a
        // resource that was found to be absent stays so, when it is tried again.
        publish::delete(ctx, allocation).await?;
        growth::gone(ctx, allocation);
        return Ok(Next::Gone);
    };
    memory.absences.clear();
    let message = format!(
        "there is no Node {} any more, but its VM {vm} lives, so its addresses stay reserved. They are given back when the \
         VM is deleted; a new Node of that name takes them over. If that VM is another machine, and what the NIC holds is to \
         stay with it, confirm it with the annotation {}=true.",
        allocation.name_any(),
        names::GONE
    );
    report::vacant(ctx, allocation, &memory.absences, Reason::NodeGone, message).await?;
    Ok(Next::After(now.saturating_duration_since(since).clamp(SOONEST, LATEST)))
}

/// The same as [`end`]. But a NIC is left to its VM, with all that it has, if another node's object records
/// it by now, or if a person says so.
async fn end_or_leave(
    ctx: &Context,
    nic: &ResourceId,
    mac: Option<&str>,
    allocation: &NodeIPAllocation,
    is_gone: &(dyn Fn(&azure::Error) -> bool + Sync),
) -> Result<Option<ResourceId>, azure::Error> {
    let Some(vm) = end(ctx, nic, mac, allocation, is_gone).await? else { return Ok(None) };
    let is_left = is_confirmed_gone(allocation) || {
        let all = ctx.cluster.allocations().state();
        is_anothers(nic, allocation, all.iter().map(AsRef::as_ref))
    };
    if !is_left {
        return Ok(Some(vm));
    }
    warn!(%nic, %vm, "what it holds is left to another machine");
    // With the public addresses that it has.
    let is_left = |error: &azure::Error| is_gone(error) || matches!(error, azure::Error::InUse { .. });
    delete(ctx, allocation, public_addresses(allocation, nic), &is_left).await?;
    Ok(None)
}

/// Whether another node's object records this NIC: then what it holds is that one's to use and to release.
fn is_anothers<'a>(
    nic: &ResourceId,
    allocation: &NodeIPAllocation,
    all: impl IntoIterator<Item = &'a NodeIPAllocation>,
) -> bool {
    let others = all.into_iter().filter(|other| other.name_any() != allocation.name_any());
    let mut named = others.flat_map(|other| &other.spec.interfaces);
    named.any(|one| one.id.eq_ignore_ascii_case(nic.as_str()))
}

/// The NICs that may hold something of a node's, with their hardware addresses where these are known.
fn nics<'a>(
    allocation: &'a NodeIPAllocation,
    strays: &'a [ResourceId],
) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    let named = &allocation.spec.interfaces;
    let is_named = |nic: &&ResourceId| named.iter().any(|one| one.id.eq_ignore_ascii_case(nic.as_str()));
    let others = strays.iter().filter(move |nic| !is_named(nic)).map(|nic| (nic.as_str(), None));
    named.iter().map(|one| (one.id.as_str(), Some(one.mac.as_str()))).chain(others)
}

/// How long an error still holds this object's end back. A person's annotation ends that at once, if it is
/// about what that confirms.
fn held_back(allocation: &NodeIPAllocation, memory: &Memory, now: Instant) -> Option<Duration> {
    let is_confirmed = is_confirmed_gone(allocation);
    let setback = memory.setback.as_ref().filter(|setback| setback.holds(now))?;
    let is_ended = is_confirmed && (setback.reason == Reason::ScopeMissing || setback.is_in_use);
    (!is_ended).then(|| setback.until - now)
}

/// Decides for an error whether it proves, with what is known now, that the requested resource is gone.
pub fn proof(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &Memory,
    now: Instant,
) -> impl Fn(&azure::Error) -> bool + Sync + use<> {
    let (absences, is_confirmed) = (memory.absences.clone(), is_confirmed_gone(allocation));
    let recorded = Recorded::of(allocation, Timestamp::now());
    let second_read = ctx.waits.second_read;
    move |error| absences.prove(error, &recorded, second_read, is_confirmed, now)
}

async fn refused(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &mut Memory,
    (error, why): (azure::Error, &str),
    now: Instant,
) -> Result<Next, Error> {
    if error.is_given_up() {
        // A person has paused the node while a write waited for its turn.
        return Ok(Next::After(SOON));
    }
    memory.absences.note(&error, now);
    if Recorded::of(allocation, Timestamp::now()).lacks_second_read(&error) {
        let message = format!(
            "{why}, and Azure doesn't find what this object records. That may pass, so it is asked again in {} s before the \
             record goes. {error}",
            ctx.waits.second_read.as_secs()
        );
        report::vacant(ctx, allocation, &memory.absences, error.reason(), message).await?;
        return Ok(Next::After(ctx.waits.second_read));
    }
    memory.setback = Some(Setback::after(memory.setback.as_ref(), Stage::Find, &error, now));
    let message = format!("{why}, but: {error}");
    report::vacant(ctx, allocation, &memory.absences, error.reason(), message).await?;
    Err(Error::Find(error))
}

/// An object that was deleted while its Node lives: let go, and made again. First the addresses that its node
/// has given up leave the NIC. The list of them goes with the object, and a node that then lost its ledger,
/// too, could hand out an address whose release is still on its way to Azure.
pub async fn replace(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    memory: &mut Memory,
) -> Result<Next, Error> {
    const WHY: &str = "somebody deleted this object while its Node lives; it is made again once the addresses that the node \
        has given up are off the NIC";
    let now = Instant::now();
    let has_given_up = allocation.status.as_ref().is_some_and(|status| !status.relinquished.is_empty());
    if let Some(pause) = pause::of(&ctx.cluster, allocation).filter(|_| has_given_up) {
        report::paused(ctx, allocation, &memory.absences, &pause).await?;
        return Ok(Next::After(LATEST));
    }
    if let Some(wait) = held_back(allocation, memory, now) {
        return Ok(Next::After(wait));
    }
    let is_gone = proof(ctx, allocation, memory, now);
    let interfaces = match release_relinquished(ctx, allocation, is_gone).await {
        Ok(Some(interfaces)) => interfaces,
        // A new one begins with its NIC's content.
        Ok(None) => return Ok(Next::Gone),
        Err(Error::Find(error) | Error::Write(error)) => {
            return refused(ctx, allocation, memory, (error, WHY), now).await;
        }
        Err(error) => return Err(error),
    };
    publish::replace(ctx, allocation, interfaces).await?;
    Ok(Next::Gone)
}

/// Returns the interfaces without the addresses that their NICs no longer hold: the object may be a copy from
/// a backup, and an agent that has forgotten that it gave an address up would hand it out again. `None`: the
/// object has gone.
///
/// The NIC is read from Azure now: an earlier write whose outcome isn't known may have ended meanwhile. If it
/// hasn't, the ETag of ours makes it fail. Then the object is read, uncached: if it has gone, the addresses
/// that it lists as given up may be in use again. If another leader removes the object after that read, it
/// has written the NIC first, so that our write fails.
async fn release_relinquished(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    is_gone: impl Fn(&azure::Error) -> bool,
) -> Result<Option<Vec<Interface>>, Error> {
    let mut interfaces = allocation.spec.interfaces.clone();
    let release: Vec<String> =
        allocation.status.iter().flat_map(|status| status.relinquished.clone()).collect();
    let is_on_nic = allocation.spec.mode != Mode::Route;
    for interface in &mut interfaces {
        let has_addresses = is_on_nic && !interface.ip_configurations.is_empty();
        if release.is_empty() && !has_addresses {
            continue;
        }
        let id = interface.id.parse().map_err(azure::Error::from).map_err(Error::Find)?;
        let mut nic = match ctx.azure.nic(&id, Freshness::Fresh, Priority::NewNode).await {
            Err(error) if is_gone(&error) => continue,
            nic => nic.map_err(Error::Find)?,
        };
        if !release.is_empty() {
            if !publish::is_there(ctx, allocation).await? {
                return Ok(None);
            }
            let change = Change { release: release.clone(), ..Change::default() };
            let written = ctx.azure.update(&id, &change, give_back(ctx, allocation)).await;
            nic = written.map_err(Error::Write)?.after;
        }
        if is_on_nic {
            let is_held = |name: &str| nic.ip_configurations.iter().any(|one| one.name == name);
            interface.ip_configurations.retain(|one| is_held(&one.name));
        }
    }
    Ok(Some(interfaces))
}

/// Makes sure that a NIC without a Node holds nothing of ours, is in no group by our doing, and that the
/// public addresses made for its pods are deleted. Returns the VM that still has the NIC, and with it our
/// reservations, if there is one. A NIC with another hardware address than `mac` and nothing of ours on it
/// belongs to a machine that has come back under an old one's id: the old one is gone. `is_gone` decides for
/// an error whether it proves that the requested resource is gone.
pub async fn end(
    ctx: &Context,
    nic: &ResourceId,
    mac: Option<&str>,
    allocation: &NodeIPAllocation,
    is_gone: &(dyn Fn(&azure::Error) -> bool + Sync),
) -> Result<Option<ResourceId>, azure::Error> {
    let groups = interface(allocation, nic).flat_map(|one| &one.application_security_groups);
    let groups = groups.filter_map(|id| id.parse().ok()).collect();
    let in_use = match settle(ctx, allocation, nic, mac, groups).await {
        Err(error) if is_gone(&error) => None,
        in_use => in_use?,
    };
    if in_use.is_none() {
        delete(ctx, allocation, public_addresses(allocation, nic), is_gone).await?;
    }
    Ok(in_use)
}

/// What the object records of a NIC.
fn interface<'a>(allocation: &'a NodeIPAllocation, nic: &ResourceId) -> impl Iterator<Item = &'a Interface> {
    allocation.spec.interfaces.iter().filter(move |one| one.id.eq_ignore_ascii_case(nic.as_str()))
}

/// The public addresses that the ipConfigurations of a NIC have.
pub fn public_addresses<'a>(
    allocation: &'a NodeIPAllocation,
    nic: &ResourceId,
) -> impl Iterator<Item = &'a str> {
    let all = interface(allocation, nic).flat_map(|one| &one.ip_configurations);
    all.filter_map(|one| Some(one.public_address.as_ref()?.id.as_str()))
}

/// Makes sure that nothing is left of what was made for the node beside its NICs: its route, and public
/// addresses that have lost their ipConfigurations.
async fn leave(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    is_gone: &(dyn Fn(&azure::Error) -> bool + Sync),
) -> Result<(), azure::Error> {
    match backend::leave(ctx, allocation, give_back(ctx, allocation)).await {
        Err(error) if is_gone(&error) => {}
        left => left?,
    }
    let detached = allocation.spec.detached_public_addresses.iter().map(String::as_str);
    let is_confirmed = is_confirmed_gone(allocation);
    let is_left = |error: &azure::Error| is_confirmed && matches!(error, azure::Error::InUse { .. });
    delete(ctx, allocation, detached, &|error: &azure::Error| is_gone(error) || is_left(error)).await
}

async fn delete(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    public_addresses: impl Iterator<Item = &str>,
    is_gone: &(dyn Fn(&azure::Error) -> bool + Sync),
) -> Result<(), azure::Error> {
    for id in public_addresses {
        match ctx.azure.delete_public_address(&id.parse()?, give_back(ctx, allocation)).await {
            Err(error) if is_gone(&error) => {}
            deleted => deleted?,
        }
    }
    Ok(())
}

/// The NIC's part of it.
async fn settle(
    ctx: &Context,
    allocation: &NodeIPAllocation,
    id: &ResourceId,
    mac: Option<&str>,
    groups: Vec<ResourceId>,
) -> Result<Option<ResourceId>, azure::Error> {
    let nic = ctx.azure.nic(id, Freshness::Fresh, Priority::GiveBack).await?;
    let is_another = mac.is_some_and(|mac| nic.mac.as_deref().is_some_and(|now| now != mac));
    if is_another && nic.ip_configurations.is_empty() {
        return Ok(None);
    }
    if nic.vm.is_some() {
        return Ok(nic.vm.clone());
    }
    let release = nic.ip_configurations.iter().map(|one| one.name.clone()).collect();
    let change = Change { release, leave: groups, ..Change::default() };
    ctx.azure.update(id, &change, give_back(ctx, allocation)).await?;
    ctx.azure.forget(id);
    Ok(None)
}

/// How urgent a write is by which addresses go back.
fn give_back(ctx: &Context, allocation: &NodeIPAllocation) -> Urgency {
    pause::while_not(&ctx.cluster, &ctx.waker, allocation, Priority::GiveBack)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::sample_nic;
    use serde_json::json;

    #[test]
    fn a_nic_that_another_nodes_object_records_is_that_ones() {
        let object = |name: &str, nic: &str| -> NodeIPAllocation {
            let interface =
                json!({"id": nic, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
            serde_json::from_value(json!({"metadata": {"name": name},
                "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]}}))
            .unwrap()
        };
        let nic = sample_nic(&[]).id;
        let (old, renamed) = (object("old", nic.as_str()), object("new", &nic.as_str().to_uppercase()));
        assert!(!is_anothers(&nic, &old, [&old, &object("other", "another")]));
        assert!(is_anothers(&nic, &old, [&old, &renamed]));
    }

    #[test]
    fn each_nic_that_held_addresses_of_a_gone_node_is_emptied() {
        let stray = sample_nic(&[]).id;
        let serving = stray.as_str().replace("/networkInterfaces/", "/networkInterfaces/other-");
        let interface =
            json!({"id": serving, "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"}});
        let allocation: NodeIPAllocation = serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [interface]},
        }))
        .unwrap();
        // A leader that was paused has written there before it served, too.
        let strays = [stray.clone(), serving.to_uppercase().parse().unwrap()];
        let all: Vec<_> = nics(&allocation, &strays).collect();
        assert_eq!(all, [(serving.as_str(), Some("m")), (stray.as_str(), None)]);
    }
}
