//! The VM behind a Node's `providerID`. Pure.

use std::fmt;

use super::{Error, ResourceId};

/// A virtual machine: one that stands alone or belongs to a Flexible scale set (as AKS VirtualMachines pools
/// and Karpenter make them), or an instance of a Uniform scale set, whose NICs are written in another way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VmId(ResourceId);

const INSTANCES: &str = "virtualMachineScaleSets/virtualMachines";
const EXPECTED: &str = "expected \
    azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/NAME or \
    …/virtualMachineScaleSets/SET/virtualMachines/INSTANCE";

impl VmId {
    /// Reads a Node's `spec.providerID` as Azure's cloud provider writes it:
    /// `azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/NAME`, or
    /// `…/virtualMachineScaleSets/SET/virtualMachines/INSTANCE` for one of a Uniform scale set. In any letter
    /// case but that of `azure`, and with a slash at its end, too: people write it for the kubelet.
    pub fn from_provider_id(provider_id: &str) -> Result<VmId, Error> {
        let refuse =
            |cause, remedy| Err(Error::ProviderId { provider_id: provider_id.to_owned(), cause, remedy });
        if provider_id.is_empty() {
            return refuse(
                "the Node has no spec.providerID",
                "start the kubelet with --cloud-provider=external and run Azure's cloud-controller-manager, \
                 or pass --provider-id to the kubelet. A Node that is there without one can be given it once: kubectl \
                 patch node NODE -p '{\"spec\":{\"providerID\":\"azure:///subscriptions/…\"}}'",
            );
        }
        let Some(path) = provider_id.strip_prefix("azure://") else {
            return refuse(
                "the Node isn't an Azure virtual machine, or another cloud controller than Azure's has set it",
                "keep nodes that are no Azure VMs out of every NodeIPPool's nodeSelector. On an Azure VM turn that controller \
                 off (k3s server --disable-cloud-controller), run Azure's cloud-controller-manager, and delete the Node, \
                 which registers anew: the field can't be changed",
            );
        };
        let Ok(id) = path.trim_end_matches('/').parse::<ResourceId>() else {
            return refuse("what follows azure:// isn't the id of a resource", EXPECTED);
        };
        let is_vm = id.is("Microsoft.Compute", "virtualMachines");
        let is_instance = id.is("Microsoft.Compute", INSTANCES);
        if !is_vm && !is_instance {
            return refuse("it doesn't name a virtual machine", EXPECTED);
        }
        Ok(VmId(id))
    }

    pub fn resource(&self) -> &ResourceId {
        &self.0
    }

    /// Whether it is an instance of a Uniform scale set.
    pub fn is_instance(&self) -> bool {
        self.0.is("Microsoft.Compute", INSTANCES)
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ResourceId {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_of_vm_is_known_by_its_provider_id() {
        let group = "/subscriptions/S/resourcegroups/mc_g/providers";
        let table = [
            ("standalone", "Microsoft.Compute/virtualMachines/node-1", false),
            ("Flexible scale set", "Microsoft.Compute/virtualMachines/flex_1a2b3c4d", false),
            ("AKS VirtualMachines pool", "Microsoft.Compute/virtualMachines/aks-pool1-12345678-vm0", false),
            ("Karpenter", "Microsoft.Compute/virtualMachines/aks-default-x7k2p", false),
            (
                "AKS scale set",
                "Microsoft.Compute/virtualMachineScaleSets/aks-pool1-12345678-vmss/virtualMachines/0",
                true,
            ),
            ("in lower case", "microsoft.compute/virtualmachinescalesets/pool/virtualmachines/12", true),
            ("in lower case", "microsoft.compute/virtualmachines/node-1", false),
            ("with a slash at its end", "Microsoft.Compute/virtualMachines/node-1/", false),
        ];
        for (kind, path, is_instance) in table {
            let vm = VmId::from_provider_id(&format!("azure://{group}/{path}")).unwrap();
            let path = path.trim_end_matches('/');
            assert_eq!(vm.resource(), &id(&format!("{group}/{path}")), "{kind}");
            assert_eq!(vm.is_instance(), is_instance, "{kind}");
        }
    }

    #[test]
    fn every_other_provider_id_is_refused_with_a_cause_of_its_own() {
        let table = [
            ("", "no spec.providerID"),
            ("", "kubectl patch node"),
            ("aws:///eu-west-1a/i-0abc", "isn't an Azure virtual machine"),
            ("kind://docker/kind/kind-worker", "isn't an Azure virtual machine"),
            ("k3s://node-1", "--disable-cloud-controller"),
            ("azure:///nonsense", "isn't the id of a resource"),
            (
                "azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachineScaleSets/p",
                "doesn't name a virtual machine",
            ),
            (
                "azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/disks/d",
                "doesn't name a virtual machine",
            ),
        ];
        for (provider_id, cause) in table {
            let error = VmId::from_provider_id(provider_id).unwrap_err().to_string();
            assert!(error.contains(cause), "{provider_id:?} gives {error}");
        }
    }
}
