//! What a pod asks for in its annotations, and the part of it that its pool offers. Pure.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use vnetpool_crds::names;

use super::Facts;
use crate::resource_id::ResourceId;

/// What a live pod asks for in its annotations, as it wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wish {
    /// `namespace/name`, for people.
    pub pod: String,
    pub backend_pools: Option<String>,
    pub public_address: Option<String>,
    pub dns_label: Option<String>,
    /// The address that the kubelet reports. It may be of a sandbox that is gone: it is enough to keep the
    /// address for the pod, not to attach anything to it.
    pub address: Option<Ipv4Addr>,
}

impl Wish {
    /// Whether the pod's owner has written the same.
    pub fn asks_the_same_as(&self, other: &Wish) -> bool {
        let Wish { pod: _, backend_pools, public_address, dns_label, address: _ } = self;
        (backend_pools, public_address, dns_label)
            == (&other.backend_pools, &other.public_address, &other.dns_label)
    }

    /// Also in words that can't be granted.
    pub fn asks_for_public_address(&self) -> bool {
        self.public_address.as_deref().is_some_and(|word| word != "false")
    }
}

/// The attachments of a pod, by the pool's leave.
pub struct Grant {
    pub backend_pools: HashSet<ResourceId>,
    /// The public address that is made for it, if it asks for one.
    pub public: Option<ResourceId>,
    pub dns_label: Option<String>,
}

/// The part of the wish that the pool offers; `None` if the pod asks for nothing.
pub fn grant(
    wish: &Wish,
    facts: &Facts,
    public_id: impl Fn() -> Option<ResourceId>,
) -> Result<Option<Grant>, String> {
    let Wish { pod, backend_pools, public_address, dns_label, address: _ } = wish;
    let offered = facts.offered;
    let mut ids = HashSet::new();
    for name in
        backend_pools.iter().flat_map(|names| names.split(',')).map(str::trim).filter(|name| !name.is_empty())
    {
        let known = offered.backend_pools.iter().find(|pool| pool.name == name);
        let id = known.and_then(|pool| pool.id.parse().ok()).ok_or_else(|| {
            let offers: Vec<&str> = offered.backend_pools.iter().map(|pool| pool.name.as_str()).collect();
            format!(
                "annotation {} names {name:?}, which its NodeIPPool's attachments.backendPools doesn't have (it has: {}). \
                 Correct the annotation, or add the backend pool there.",
                names::BACKEND_POOLS,
                if offers.is_empty() { "none".to_owned() } else { offers.join(", ") },
            )
        })?;
        ids.insert(id);
    }
    let namespace = pod.split_once('/').map_or("", |(namespace, _)| namespace);
    let public = match public_address.as_deref() {
        None | Some("false") => false,
        Some("true") if offered.public_address_namespaces.iter().any(|one| one == namespace) => true,
        Some("true") => {
            return Err(format!(
                "annotation {} orders a public address, which costs money, and its NodeIPPool's \
                 attachments.publicAddressNamespaces doesn't name {namespace:?}. Who runs the cluster can add that namespace there.",
                names::PUBLIC_ADDRESS
            ));
        }
        Some(other) => {
            return Err(format!("annotation {} is {other:?}: write true or false.", names::PUBLIC_ADDRESS));
        }
    };
    match dns_label {
        Some(_) if !public => Err(format!(
            "annotation {} names a public address that the pod doesn't ask for. Add {}: \"true\".",
            names::DNS_LABEL,
            names::PUBLIC_ADDRESS
        )),
        Some(label) if !is_dns_label(label) => Err(format!(
            "annotation {} is {label:?}: Azure takes 3 to 63 lower-case letters, digits and dashes, beginning with a letter and \
             not ending with a dash.",
            names::DNS_LABEL
        )),
        _ if ids.is_empty() && !public => Ok(None),
        _ if let Some(impossible) = facts.impossible => Err(impossible.to_owned()),
        _ => Ok(Some(Grant {
            backend_pools: ids,
            public: public.then(public_id).flatten(),
            dns_label: dns_label.clone(),
        })),
    }
}

/// Azure's rule: `^[a-z][a-z0-9-]{1,61}[a-z0-9]$` (publicIPAddress.json, domainNameLabel; the pattern is in
/// the error of a label that breaks it).
fn is_dns_label(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&label.len())
        && label.chars().all(|c| inner(c) || c == '-')
        && label.starts_with(|c: char| c.is_ascii_lowercase())
        && label.ends_with(inner)
}
