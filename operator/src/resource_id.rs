//! The ids of Azure's resources. Pure.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use thiserror::Error;

/// A text that isn't an id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} isn't the id of an Azure resource; expected /subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME"
)]
pub struct Malformed(pub String);

/// An ARM resource id: `/subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME[/TYPE/NAME…]`.
///
/// Compared and hashed without regard to case, because ARM answers in any case; shown as it was given.
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
    pub fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    /// `from_str` has checked that the part is there.
    fn part(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl FromStr for ResourceId {
    type Err = Malformed;

    /// Refuses everything that would change its meaning inside a URL's path.
    fn from_str(text: &str) -> Result<Self, Malformed> {
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
        if well_formed { Ok(ResourceId(text.to_owned())) } else { Err(Malformed(text.to_owned())) }
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

/// The id of the public address that is made for a pod.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a sample for tests")]
pub fn sample_public_address(uid: &str) -> ResourceId {
    format!("/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/publicIPAddresses/vnp-{uid}")
        .parse()
        .unwrap()
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
    fn a_text_with_another_meaning_in_a_url_is_no_id() {
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
    fn a_nic_of_an_instance_names_it_and_an_ordinary_one_names_none() {
        let group = "/subscriptions/S/resourceGroups/G/providers";
        let instance = format!("{group}/microsoft.compute/virtualMachineScaleSets/p/VirtualMachines/0");
        let nic = id(&format!("{instance}/networkInterfaces/primary"));
        assert_eq!(nic.instance(), Some(id(&instance)));
        assert_eq!(id(&format!("{group}/Microsoft.Network/networkInterfaces/n")).instance(), None);
    }
}
