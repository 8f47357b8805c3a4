//! Which of a VM's NICs serves its node's pool.

use std::sync::Arc;

use vnetpool_crds::{NodeIPAllocationSpec, NodeIPPool};

use super::Context;
use super::memory::Memory;
use crate::azure::{self, Freshness, Nic, ResourceId, Urgency, VmId};

/// What the choice depends on.
pub struct Wanted<'a> {
    pub pool: Option<&'a NodeIPPool>,
    pub spec: &'a NodeIPAllocationSpec,
    /// The VM may have other NICs than `spec` says: it can get one only while it is off.
    pub is_new: bool,
}

/// A VM's NICs.
pub struct Chosen {
    pub serving: Arc<Nic>,
    pub primary: Arc<Nic>,
    pub all: Vec<ResourceId>,
    /// How many ipConfigurations are on the others.
    pub elsewhere: u32,
}

impl Wanted<'_> {
    /// A node that is new, or whose NIC is empty and isn't where its pool wants it. Of the latter the VM is asked once.
    pub fn must_choose(&self, memory: &Memory) -> bool {
        let Some(serving) = self.spec.serving() else { return true };
        let wanted = self.subnet();
        let current: Option<ResourceId> = serving.subnet.id.parse().ok();
        let is_elsewhere = wanted.is_some() && wanted != current;
        let is_empty = serving.ip_configurations.is_empty() && serving.application_security_groups.is_empty();
        self.is_new || (is_elsewhere && is_empty && memory.chosen != wanted)
    }

    /// The NIC that is in application security groups by our doing.
    fn grouped(&self) -> Option<ResourceId> {
        let serving = self.spec.serving().filter(|nic| !nic.application_security_groups.is_empty());
        serving?.id.parse().ok()
    }

    fn subnet(&self) -> Option<ResourceId> {
        self.pool?.spec.subnet_id.as_ref()?.parse().ok()
    }
}

/// Reads the VM and each of its NICs once, and chooses.
pub async fn choose(
    ctx: &Context,
    vm: &VmId,
    wanted: &Wanted<'_>,
    memory: &mut Memory,
    urgency: &Urgency,
) -> Result<Chosen, azure::Error> {
    let all = ctx.azure.nics(vm, urgency).await?;
    let reads = all.iter().map(|id| ctx.azure.nic(id, Freshness::Fresh, urgency));
    let nics = futures::future::try_join_all(reads).await?;
    let index = pick(&nics, wanted.subnet().as_ref(), wanted.grouped().as_ref());
    // One that has been found needs no note: `spec` will name it.
    memory.chosen = wanted.subnet().filter(|wanted| nics[index].subnet != *wanted);
    let counts = nics.iter().map(|nic| nic.foreign + nic.ip_configurations.len() as u32);
    let elsewhere = counts.enumerate().filter(|(other, _)| *other != index).map(|(_, count)| count).sum();
    let (serving, primary) = (nics[index].clone(), nics[0].clone());
    Ok(Chosen { serving, primary, all, elsewhere })
}

/// The NIC in the wanted subnet, or the primary one, which comes first. But one that holds something of ours serves until that
/// is gone: nothing would bring its pods' addresses to the other, or take its groups off.
fn pick(nics: &[Arc<Nic>], wanted: Option<&ResourceId>, grouped: Option<&ResourceId>) -> usize {
    let is_wanted = |nic: &Arc<Nic>| wanted.is_some_and(|wanted| nic.subnet == *wanted);
    let holding = |nic: &Arc<Nic>| !nic.ip_configurations.is_empty() || grouped == Some(&nic.id);
    nics.iter()
        .position(|nic| holding(nic) && is_wanted(nic))
        .or_else(|| nics.iter().position(holding))
        .or_else(|| nics.iter().position(is_wanted))
        .unwrap_or_default()
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
        assert_eq!(pick(&nics, Some(&nics[2].subnet), None), 2);
        let upper: ResourceId = nics[1].subnet.to_string().to_uppercase().parse().unwrap();
        assert_eq!(pick(&nics, Some(&upper), None), 1);
        assert_eq!(pick(&nics, Some(&nic("d", &[]).subnet), None), 0);
        assert_eq!(pick(&nics, None, None), 0);
    }

    #[test]
    fn a_nic_that_still_holds_addresses_serves_until_they_are_gone() {
        let nics = [nic("a", &[]), nic("b", &[("vnp-1", "10.0.0.5/32")])];
        assert_eq!(pick(&nics, Some(&nics[0].subnet), None), 1);
        assert_eq!(pick(&nics, None, None), 1);
        // Nor does one that has no more than groups to lose.
        let nics = [nic("a", &[]), nic("b", &[])];
        assert_eq!(pick(&nics, Some(&nics[1].subnet), Some(&nics[0].id)), 0);
    }
}
