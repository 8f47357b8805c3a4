//! Names of things in Azure: resource ids, and the VM behind a Node's `providerID`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use super::Error;

/// An ARM resource id: `/subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME[/TYPE/NAME…]`.
///
/// Compared and hashed without regard to case, because ARM answers with whatever case it likes; shown as it
/// was given.
#[derive(Clone)]
pub struct ResourceId(String);

/// The indices of a resource id's parts when it is split at its slashes.
const SUBSCRIPTION: usize = 2;
const RESOURCE_GROUP: usize = 4;
const NAMESPACE: usize = 6;
const FIRST_TYPE: usize = 7;

impl ResourceId {
    pub fn subscription(&self) -> &str {
        self.part(SUBSCRIPTION)
    }

    pub fn resource_group(&self) -> &str {
        self.part(RESOURCE_GROUP)
    }

    /// The id of its resource group.
    pub fn group(&self) -> String {
        self.0.split('/').take(RESOURCE_GROUP + 1).collect::<Vec<_>>().join("/")
    }

    /// The provider's namespace, such as `Microsoft.Network`.
    pub fn namespace(&self) -> &str {
        self.part(NAMESPACE)
    }

    /// The resource's own name, the last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The types without their names: `networkInterfaces`, or `virtualNetworks/subnets`.
    pub fn kind(&self) -> String {
        self.0.split('/').skip(FIRST_TYPE).step_by(2).collect::<Vec<_>>().join("/")
    }

    /// Whether this is a resource of that namespace and kind, such as `Microsoft.Network`,
    /// `networkInterfaces`.
    pub fn is(&self, namespace: &str, kind: &str) -> bool {
        self.namespace().eq_ignore_ascii_case(namespace) && self.kind().eq_ignore_ascii_case(kind)
    }

    /// The resource that this one is a part of: a subnet's virtual network.
    pub fn parent(&self) -> Option<ResourceId> {
        let parts: Vec<&str> = self.0.split('/').collect();
        (parts.len() > FIRST_TYPE + 2).then(|| ResourceId(parts[..parts.len() - 2].join("/")))
    }

    /// The instance of a Uniform scale set that this NIC is a part of; `None` for every other NIC.
    pub fn instance(&self) -> Option<ResourceId> {
        self.parent().filter(|_| {
            self.is("Microsoft.Compute", "virtualMachineScaleSets/virtualMachines/networkInterfaces")
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form in which equal ids are equal bytes.
    pub(super) fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    /// `from_str` has checked that the part is there.
    fn part(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl FromStr for ResourceId {
    type Err = Error;

    /// Refuses everything that would change its meaning inside a URL's path.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && !part.chars().all(|c| c == '.')
                && part.chars().all(|c| c.is_alphanumeric() || "-_.()".contains(c))
        };
        let well_formed = parts.len() > FIRST_TYPE + 1
            && parts.len() % 2 == 1
            && parts[0].is_empty()
            && parts[1].eq_ignore_ascii_case("subscriptions")
            && parts[3].eq_ignore_ascii_case("resourceGroups")
            && parts[5].eq_ignore_ascii_case("providers")
            && parts[1..].iter().all(plain);
        if well_formed {
            Ok(ResourceId(text.to_owned()))
        } else {
            Err(Error::ResourceId { text: text.to_owned() })
        }
    }
}

impl PartialEq for ResourceId {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for ResourceId {}

impl Hash for ResourceId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

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
    /// case but that of `azure`.
    pub fn from_provider_id(provider_id: &str) -> Result<VmId, Error> {
        let refuse =
            |cause, remedy| Err(Error::ProviderId { provider_id: provider_id.to_owned(), cause, remedy });
        if provider_id.is_empty() {
            return refuse(
                "the Node has no spec.providerID",
                "start the kubelet with --cloud-provider=external and run Azure's cloud-controller-manager, \
                 or pass --provider-id to the kubelet",
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
        let Ok(id) = path.parse::<ResourceId>() else {
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

    const SUBNET: &str =
        "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/net/subnets/nodes";

    fn id(text: &str) -> ResourceId {
        text.parse().unwrap()
    }

    #[test]
    fn ids_that_differ_only_in_case_are_one() {
        assert_eq!(id(SUBNET), id(&SUBNET.to_uppercase()));
        assert_eq!(id(SUBNET).key(), id(&SUBNET.to_uppercase()).key());
        assert_eq!(id(SUBNET).to_string(), SUBNET);
    }

    #[test]
    fn an_id_knows_its_parts() {
        let subnet = id(SUBNET);
        assert_eq!(
            (subnet.subscription(), subnet.resource_group(), subnet.namespace(), subnet.name()),
            ("S", "G", "Microsoft.Network", "nodes")
        );
        assert_eq!(subnet.kind(), "virtualNetworks/subnets");
        assert_eq!(subnet.parent().unwrap(), id(SUBNET.strip_suffix("/subnets/nodes").unwrap()));
        assert_eq!(subnet.parent().unwrap().parent(), None);
    }

    #[test]
    fn what_would_mean_something_else_in_a_url_is_no_id() {
        for text in [
            "",
            "/subscriptions/S",
            "/subscriptions/S/resourceGroups/G/providers/N/type",
            "/subscriptions/S/resourceGroups/../providers/N/type/name",
            "/subscriptions/S/resourceGroups/G/providers/N/type/name?x=y",
            "/subscriptions/S/resourceGroups/G/providers/N/type/na%2Fme",
            "/subscriptions/S/resourceGroups//providers/N/type/name",
            "subscriptions/S/resourceGroups/G/providers/N/type/name",
        ] {
            assert!(text.parse::<ResourceId>().is_err(), "{text}");
        }
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
        ];
        for (kind, path, is_instance) in table {
            let vm = VmId::from_provider_id(&format!("azure://{group}/{path}")).unwrap();
            assert_eq!(vm.resource(), &id(&format!("{group}/{path}")), "{kind}");
            assert_eq!(vm.is_instance(), is_instance, "{kind}");
        }
    }

    #[test]
    fn a_nic_of_an_instance_names_it_and_an_ordinary_one_names_none() {
        let group = "/subscriptions/S/resourceGroups/G/providers";
        let instance = format!("{group}/microsoft.compute/virtualMachineScaleSets/p/VirtualMachines/0");
        let nic = id(&format!("{instance}/networkInterfaces/primary"));
        assert_eq!(nic.instance(), Some(id(&instance)));
        assert_eq!(id(&format!("{group}/Microsoft.Network/networkInterfaces/n")).instance(), None);
    }

    #[test]
    fn every_other_provider_id_is_refused_with_a_cause_of_its_own() {
        let table = [
            ("", "no spec.providerID"),
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
