//! The NIC that serves a node's pool: which of its VM's NICs that is, and what it holds, from Azure only
//! where it must be. One that Azure refuses to show keeps no other from serving that would serve anyway.

use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use tracing::warn;
use vnetpool_crds::allocation::{Interface, NodeIPAllocation, NodeIPAllocationSpec, Subnet};
use vnetpool_crds::pool::NIC_SLOTS;
use vnetpool_crds::{NodeIPPool, names};

use crate::azure::{
    self, Attached, Freshness, IpConfiguration, Nic, ProvisioningState, ResourceId, Urgency, VmId,
};
use crate::context::Context;
use crate::node::memory::known::{Basis, Known, Others, Read};
use crate::node::reads::Reads;

/// The facts on which the choice depends.
pub struct Facts<'a> {
    pub pool: Option<&'a NodeIPPool>,
    pub allocation: &'a NodeIPAllocation,
    pub occasion: Occasion,
}

/// Why Azure is to be asked, or not to be.
#[derive(Clone, Copy, Debug)]
pub struct Occasion {
    /// The VM may have other NICs than `spec` shows: it can get one only while it is off.
    pub is_new: bool,
    /// The node misses some of its addresses.
    pub is_hinted: bool,
    /// A write of ours to the NIC has failed, and its outcome isn't known yet.
    pub is_begun: bool,
    /// It is time to read the NIC though nothing has changed.
    pub is_due: bool,
    /// It is time to read which of our reservations the VM's other NICs hold.
    pub all_are_due: bool,
    /// No error holds that back.
    pub may_ask: bool,
    /// Azure is to be asked, and an error holds that back: until then the node is as `spec` has it.
    pub is_held_back: bool,
}

/// The NIC that serves, as far as it had to be read.
pub struct Found {
    /// From Azure, now or not long ago; `None`: `spec` is believed.
    pub nic: Option<Arc<Nic>>,
    /// It for `spec`, its ipConfigurations left out.
    pub serving: Interface,
    /// The VM's primary NIC, if that is another one.
    pub primary: Option<Interface>,
    /// Our ipConfigurations on it.
    pub held: Vec<IpConfiguration>,
    /// How many of ours it can take.
    pub slots: u32,
    /// How many ipConfigurations the VM has on other NICs.
    pub elsewhere: u32,
    /// A write to it is under way that isn't ours.
    pub is_updating: bool,
    /// NICs that serve by `spec` and that aren't the node's any more.
    pub left: Vec<ResourceId>,
    /// The NICs that were read from Azure for this.
    pub read: Read,
}

/// A VM's NICs, as far as Azure shows them.
struct Chosen {
    serving: Arc<Nic>,
    primary: Arc<Nic>,
    all: Vec<ResourceId>,
    /// Those that Azure has shown.
    shown: Vec<ResourceId>,
    /// How many ipConfigurations are on the others.
    elsewhere: u32,
    /// The wanted subnet, if none of the NICs is in it.
    lacking: Option<ResourceId>,
    /// Other NICs with a reservation of ours.
    strays: Vec<ResourceId>,
    /// Why not all of them are shown.
    hidden: Option<azure::Error>,
}

impl Facts<'_> {
    fn basis(&self, known: &Known, now: Instant) -> Basis {
        let Occasion { is_held_back, is_due, may_ask, .. } = self.occasion;
        match is_held_back {
            true => Basis::Mirror,
            false => known.basis(self.must_choose(known, now) && may_ask, is_due, now),
        }
    }

    /// A node that is new, or whose NIC is empty and isn't where its pool wants it. For the latter the VM is
    /// read once.
    fn must_choose(&self, known: &Known, now: Instant) -> bool {
        let is_due = self.occasion.all_are_due || known.must_choose(now);
        self.occasion.is_new || is_due || self.may_move(known)
    }

    /// Whether none serves yet, or another is to serve.
    fn may_move(&self, known: &Known) -> bool {
        let Some(serving) = self.spec().serving() else { return true };
        let wanted = self.subnet();
        let current: Option<ResourceId> = serving.subnet.id.parse().ok();
        let is_elsewhere = wanted.is_some() && wanted != current;
        let is_empty = serving.ip_configurations.is_empty() && serving.application_security_groups.is_empty();
        is_elsewhere && is_empty && known.lacking != wanted
    }

    /// Whether the NIC that serves is enough for now, though this error keeps another from being read: as
    /// long as Azure may not show that, the node's pods would wait.
    fn may_go_on(&self, error: &azure::Error, known: &Known) -> bool {
        matches!(error, azure::Error::Unavailable { .. }) && !self.occasion.is_new && !self.may_move(known)
    }

    /// The NIC that is in application security groups by our doing.
    fn grouped(&self) -> Option<ResourceId> {
        let serving = self.spec().serving().filter(|nic| !nic.application_security_groups.is_empty());
        serving?.id.parse().ok()
    }

    /// The NIC whose addresses pods may have. When the node boots none has any.
    fn current(&self) -> Option<ResourceId> {
        self.spec().serving().filter(|_| !self.occasion.is_new)?.id.parse().ok()
    }

    fn spec(&self) -> &NodeIPAllocationSpec {
        &self.allocation.spec
    }

    /// The pool's subnet or, if it names none, that of the VM's primary NIC, as far as it is known.
    fn subnet(&self) -> Option<ResourceId> {
        let primary = || self.spec().interfaces.iter().find(|nic| !nic.secondary).map(|nic| &nic.subnet.id);
        self.pool?.spec.subnet_id.as_ref().or_else(primary)?.parse().ok()
    }
}

/// Finds the NIC. The facts that are known from before are enough, unless there is a reason to ask Azure.
pub async fn find(
    (ctx, reads): (&Context, &mut Reads<'_>),
    vm: &VmId,
    wanted: &Facts<'_>,
    known: &Known,
    urgency: &Urgency,
) -> Result<Found, azure::Error> {
    let (spec, now) = (wanted.spec(), Instant::now());
    let mut elsewhere = spec.elsewhere;
    let mut primary = spec.interfaces.iter().find(|nic| !nic.secondary).cloned();
    let mut own = vec![];
    let (nic, read) = match wanted.basis(known, now) {
        Basis::AllNics => match choose((ctx, &mut *reads), vm, wanted, urgency).await {
            Ok(chosen) => {
                (elsewhere, primary) = (chosen.elsewhere, Some(interface(&chosen.primary)));
                own.clone_from(&chosen.all);
                let Chosen { serving, lacking, mut strays, all, shown, hidden, .. } = chosen;
                let former = spec.serving().and_then(|nic| nic.id.parse::<ResourceId>().ok());
                let former = former.filter(|former| *former != serving.id && own.contains(former));
                let serves_anew = former.is_some();
                strays.extend(former);
                let others = Others { own: all, shown, strays, serves_anew }.into();
                let read = match hidden {
                    None => Read::All { at: Instant::now(), lacking, others },
                    Some(error) => without(&error, reads, others),
                };
                (Some(serving), read)
            }
            Err(error) if wanted.may_go_on(&error, known) => {
                let read = without(&error, reads, Box::default());
                (Some(fresh((ctx, reads), spec, urgency).await?), read)
            }
            Err(error) => return Err(error),
        },
        Basis::Nic(Freshness::Fresh) => {
            (Some(fresh((ctx, reads), spec, urgency).await?), Read::Nic { at: Instant::now() })
        }
        Basis::Nic(freshness) => {
            (Some(ctx.azure.nic(&serving(spec)?, freshness, urgency).await?), Read::Nothing)
        }
        Basis::Mirror => (None, Read::Nothing),
    };
    let is_updating = nic.as_deref().is_some_and(Nic::is_updating);
    let mirror = || spec.serving().cloned().unwrap_or_default();
    let (held, foreign, found) = match &nic {
        Some(nic) => (nic.ip_configurations.clone(), nic.foreign, interface(nic)),
        // The primary ipConfiguration at least.
        None => (mirrored(&mirror()), 1, Interface { ip_configurations: vec![], ..mirror() }),
    };
    // Of two NICs, the one that isn't primary is used for its pool; a single one is primary.
    let primary = primary.filter(|nic| !nic.id.eq_ignore_ascii_case(&found.id));
    Ok(Found {
        left: left(spec, &found.id.parse()?, &own),
        serving: Interface { secondary: primary.is_some(), ..found },
        slots: NIC_SLOTS.saturating_sub(foreign).saturating_sub(elsewhere),
        nic,
        primary,
        held,
        elsewhere,
        is_updating,
        read,
    })
}

/// The NIC that serves is read, and this error keeps another from it. Of the `others` these were seen.
fn without(error: &azure::Error, reads: &mut Reads<'_>, others: Box<Others>) -> Read {
    warn!(%error, "not all of the VM's NICs are read");
    reads.leave();
    let may_pass = matches!(error, azure::Error::Unavailable { .. } | azure::Error::NotFound { .. });
    Read::Serving { at: Instant::now(), why: error.to_string(), may_pass, others }
}

/// Reads the NIC that serves.
async fn fresh(
    (ctx, reads): (&Context, &mut Reads<'_>),
    spec: &NodeIPAllocationSpec,
    urgency: &Urgency,
) -> Result<Arc<Nic>, azure::Error> {
    let serving = serving(spec)?;
    let urgency = reads.may([&serving], urgency)?;
    ctx.azure.nic(&serving, Freshness::Fresh, urgency).await
}

/// Reads the VM and each of its NICs once, and chooses.
async fn choose(
    (ctx, reads): (&Context, &mut Reads<'_>),
    vm: &VmId,
    wanted: &Facts<'_>,
    urgency: &Urgency,
) -> Result<Chosen, azure::Error> {
    let of_vm = reads.may([vm.resource()], urgency)?;
    let all = ctx.azure.nics(vm, of_vm).await?;
    let of_nics = &reads.may(&all, urgency)?;
    let read = join_all(all.iter().map(|id| ctx.azure.nic(id, Freshness::Fresh, of_nics))).await;
    let (mut nics, mut hidden) = (vec![], vec![]);
    for nic in read {
        match nic {
            Ok(nic) => nics.push(nic),
            Err(error) => hidden.push(error),
        }
    }
    let (subnet, grouped, current) = (wanted.subnet(), wanted.grouped(), wanted.current());
    let index = pick(&nics, subnet.as_ref(), grouped.as_ref(), current.as_ref());
    let named: Option<ResourceId> = wanted.spec().serving().and_then(|nic| nic.id.parse().ok());
    // One that is about all of them comes first.
    hidden.sort_by_key(is_about_one);
    let (hidden_count, hidden) = (hidden.len() as u32, hidden.into_iter().next());
    if let Some(error) = &hidden {
        let at = (&all[0], subnet.as_ref());
        if !is_about_one(error) || !serves_anyway(&nics, index, at, named.as_ref()) {
            return Err(error.clone());
        }
    }
    // The subnet is lacking only if no NIC is in it: another may serve because it still holds a reservation.
    let lacking = subnet.filter(|wanted| nics.iter().all(|nic| nic.subnet != *wanted));
    let counts = nics.iter().map(|nic| nic.foreign + nic.ip_configurations.len() as u32);
    let others = counts.enumerate().filter(|(other, _)| *other != index).map(|(_, count)| count);
    // Each has one at least.
    let elsewhere = others.sum::<u32>() + hidden_count;
    let (serving, primary) = (nics[index].clone(), nics[0].clone());
    let holds = |nic: &&Arc<Nic>| nic.id != serving.id && !nic.ip_configurations.is_empty();
    let strays = nics.iter().filter(holds).map(|nic| nic.id.clone()).collect();
    let shown = nics.iter().map(|nic| nic.id.clone()).collect();
    Ok(Chosen { serving, primary, all, shown, elsewhere, lacking, strays, hidden })
}

/// Whether an error of a NIC's read shows nothing of the VM's other NICs.
fn is_about_one(error: &azure::Error) -> bool {
    let is_about_all = matches!(
        error,
        azure::Error::Throttled { .. } | azure::Error::Credential { .. } | azure::Error::Config { .. }
    );
    !is_about_all && !error.is_given_up()
}

/// Whether the NIC that is picked of those that Azure shows would serve whatever the others hold: it is where
/// the pool wants it, and `spec` names no other, or one that is shown: that has nothing to lose any more, or
/// it would be picked. The primary NIC is shown, or nothing is known of the node's own subnet.
fn serves_anyway(
    shown: &[Arc<Nic>],
    picked: usize,
    (primary, wanted): (&ResourceId, Option<&ResourceId>),
    named: Option<&ResourceId>,
) -> bool {
    let Some(nic) = shown.get(picked).filter(|_| shown[0].id == *primary) else { return false };
    let is_wanted = wanted.map_or(picked == 0, |wanted| nic.subnet == *wanted);
    is_wanted && named.is_none_or(|named| shown.iter().any(|one| one.id == *named))
}

/// The NIC in the wanted subnet, or the primary one, which comes first. But a NIC that holds a reservation of
/// ours serves until that is gone, and before all others the one that serves `current`ly: otherwise its pods'
/// addresses would not move to the other NIC, and its groups would not be left.
fn pick(
    nics: &[Arc<Nic>],
    wanted: Option<&ResourceId>,
    grouped: Option<&ResourceId>,
    current: Option<&ResourceId>,
) -> usize {
    let is_wanted = |nic: &Arc<Nic>| wanted.is_some_and(|wanted| nic.subnet == *wanted);
    let holding = |nic: &Arc<Nic>| !nic.ip_configurations.is_empty() || grouped == Some(&nic.id);
    nics.iter()
        .position(|nic| holding(nic) && current == Some(&nic.id))
        .or_else(|| nics.iter().position(|nic| holding(nic) && is_wanted(nic)))
        .or_else(|| nics.iter().position(holding))
        .or_else(|| nics.iter().position(is_wanted))
        .unwrap_or_default()
}

fn interface(nic: &Nic) -> Interface {
    Interface {
        id: nic.id.to_string(),
        mac: nic.mac.clone().unwrap_or_default(),
        secondary: false,
        primary_address: nic.primary.to_string(),
        subnet: Subnet { id: nic.subnet.to_string(), prefixes: vec![] },
        application_security_groups: vec![],
        ip_configurations: vec![],
    }
}

/// The reservations of a NIC as `spec` shows them: good enough to find that there is nothing to do, which is
/// what an operator that starts finds for nearly every node.
pub fn mirrored(interface: &Interface) -> Vec<IpConfiguration> {
    let held = interface.ip_configurations.iter().map(|one| IpConfiguration {
        name: one.name.clone(),
        address: one.address.parse().ok(),
        state: ProvisioningState::Succeeded,
        attached: Attached {
            backend_pools: one.backend_pools.iter().filter_map(|id| id.parse().ok()).collect(),
            public_address: one
                .public_address
                .as_ref()
                .filter(|public| public.address.is_some())
                .and_then(|public| public.id.parse().ok()),
            other: one.attached_to.as_deref() == Some(names::OTHERS),
        },
    });
    held.collect()
}

/// NICs that serve by `spec` and that aren't the VM's any more; `own_nics` are those it is known to have. And
/// one of these that is in groups by our doing, which nothing else records.
fn left(spec: &NodeIPAllocationSpec, current: &ResourceId, own_nics: &[ResourceId]) -> Vec<ResourceId> {
    let Some(nic) = spec.serving() else { return vec![] };
    let Ok(known) = nic.id.parse() else { return vec![] };
    let stays = own_nics.contains(&known) && nic.application_security_groups.is_empty();
    if known == *current || stays { vec![] } else { vec![known] }
}

/// The id of the NIC that the pool uses.
fn serving(spec: &NodeIPAllocationSpec) -> Result<ResourceId, azure::Error> {
    Ok(spec.serving().map(|nic| nic.id.as_str()).unwrap_or_default().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::sample_nic;

    fn nic(subnet: &str, held: &[(&str, &str)]) -> Arc<Nic> {
        let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
        Arc::new(Nic {
            id: format!("{network}/networkInterfaces/{subnet}").parse().unwrap(),
            subnet: format!("{network}/virtualNetworks/v/subnets/{subnet}").parse().unwrap(),
            ..sample_nic(held)
        })
    }

    #[test]
    fn the_nic_in_the_pools_subnet_serves_and_without_one_the_primary() {
        let nics = [nic("a", &[]), nic("b", &[]), nic("c", &[])];
        assert_eq!(pick(&nics, Some(&nics[2].subnet), None, None), 2);
        let upper: ResourceId = nics[1].subnet.to_string().to_uppercase().parse().unwrap();
        assert_eq!(pick(&nics, Some(&upper), None, None), 1);
        assert_eq!(pick(&nics, Some(&nic("d", &[]).subnet), None, None), 0);
        assert_eq!(pick(&nics, None, None, None), 0);
    }

    #[test]
    fn a_nic_serves_without_those_that_azure_does_not_show_only_where_none_of_them_could_serve_instead() {
        let [first, second] = [nic("a", &[]), nic("b", &[])];
        let holding = nic("b", &[("vnp-1", "10.0.0.5/32")]);
        let serves = |shown: &[&Arc<Nic>], wanted: Option<&Arc<Nic>>, named: Option<&Arc<Nic>>| {
            let shown: Vec<Arc<Nic>> = shown.iter().copied().cloned().collect();
            let wanted = wanted.map(|nic| &nic.subnet);
            let picked = pick(&shown, wanted, None, None);
            serves_anyway(&shown, picked, (&first.id, wanted), named.map(|nic| &nic.id))
        };
        assert!(serves(&[&first], Some(&first), None), "a new node in the subnet of its first NIC");
        assert!(serves(&[&first], None, None), "in whatever subnet that is");
        assert!(serves(&[&first], Some(&first), Some(&first)), "one that has booted");
        assert!(!serves(&[&first], Some(&second), None), "the other may be where the pool wants it");
        assert!(!serves(&[&first], Some(&first), Some(&second)), "pods may have the other's addresses");
        assert!(serves(&[&first, &second], Some(&first), Some(&second)), "the other is shown to have none");
        assert!(!serves(&[&second], Some(&second), None) && !serves(&[], None, None), "no primary one");
        assert!(serves(&[&first, &second], Some(&second), None), "a third one isn't shown");
        assert!(!serves(&[&first, &holding], Some(&first), None), "it serves until that is gone");
    }

    #[test]
    fn a_nic_that_the_vm_still_has_is_left_only_if_nothing_else_records_its_groups() {
        let (own, other) = (nic("a", &[]).id.clone(), nic("b", &[]).id.clone());
        let left = |groups: &[&str], own_nics: &[ResourceId]| {
            let spec = serde_json::json!({"nodeUID": "u", "pool": "p", "cooldown": "30s", "interfaces": [{
                "id": own.as_str(), "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
                "applicationSecurityGroups": groups}]});
            left(&serde_json::from_value(spec).unwrap(), &other, own_nics)
        };
        let both = [own.clone(), other.clone()];
        assert_eq!((left(&[], &both), left(&["g"], &both)), (vec![], vec![own.clone()]));
        assert_eq!(left(&[], std::slice::from_ref(&other)), std::slice::from_ref(&own));
    }

    #[test]
    fn a_nic_that_still_holds_addresses_serves_until_they_are_gone() {
        let nics = [nic("a", &[]), nic("b", &[("vnp-1", "10.0.0.5/32")])];
        assert_eq!(pick(&nics, Some(&nics[0].subnet), None, None), 1);
        assert_eq!(pick(&nics, None, None, None), 1);
        // The same is true of a NIC that has no more than groups to lose.
        let nics = [nic("a", &[]), nic("b", &[])];
        assert_eq!(pick(&nics, Some(&nics[1].subnet), Some(&nics[0].id), None), 0);
    }

    #[test]
    fn the_nic_whose_addresses_pods_have_goes_on_serving_though_another_holds_some() {
        let nics = [nic("a", &[("vnp-1", "10.0.0.5/32")]), nic("b", &[("vnp-2", "10.0.1.5/32")])];
        let pick = |current| pick(&nics, Some(&nics[1].subnet), None, current);
        assert_eq!((pick(Some(&nics[0].id)), pick(None)), (0, 1));
        let empty = [nic("a", &[]), nics[1].clone()];
        assert_eq!(super::pick(&empty, Some(&nics[0].subnet), None, Some(&nics[0].id)), 1);
    }
}
