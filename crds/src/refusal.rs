//! The message of the condition `MetadataRefused`: the agent writes it, and the operator reads out of it
//! which pods no Event has named yet.

use std::{collections::BTreeSet, net::Ipv4Addr};

/// Pods that are named for a service, at most.
pub const NAMED: usize = 20;
/// Between the pods, in place of those that aren't named, behind the last of them, and between the services.
const BETWEEN: &str = ", ";
const OTHERS: &str = " and others";
const BEHIND: &str = ": packets to ";
const APART: &str = "; ";

/// A service of Azure's on the host that nodes keep their pods from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Facts about the machine, and tokens of its identities.
    Metadata,
    /// DNS, which pods may use, the source of load balancers' probes, and the machine's configuration with
    /// its secrets.
    WireServer,
}

impl Service {
    pub const ALL: [Service; 2] = [Service::Metadata, Service::WireServer];

    pub const fn address(self) -> Ipv4Addr {
        match self {
            Service::Metadata => Ipv4Addr::new(169, 254, 169, 254),
            Service::WireServer => Ipv4Addr::new(168, 63, 129, 16),
        }
    }

    /// In a word, for metrics and rules.
    pub const fn word(self) -> &'static str {
        match self {
            Service::Metadata => "metadata",
            Service::WireServer => "wire_server",
        }
    }

    /// Why this pool's pods are kept from it, and the remedy. A VM of no cluster has no pool.
    fn why(self, pool: Option<&str>) -> String {
        let Some(pool) = pool else { return self.why_alone().to_owned() };
        match self {
            Service::Metadata => format!(
                "Azure's instance metadata service, are dropped, as podMetadataAccess of NodeIPPool {pool} is None. Give \
                 the pod a workload identity or the host network, or give its nodes a pool with podMetadataAccess: All, \
                 where every pod gets tokens of the VM (docs/metadata.md)"
            ),
            Service::WireServer => {
                "Azure's wire server, are dropped but for DNS, as it has secrets of the VM for all that ask. Find out what \
                 asks in the pod; if it must, give the pod the host network (docs/metadata.md)"
                    .to_owned()
            }
        }
    }

    /// The same of a VM of no cluster.
    fn why_alone(self) -> &'static str {
        match self {
            Service::Metadata => {
                "Azure's instance metadata service, are dropped, as the agent runs with --pod-metadata-access None. Give \
                 the container the VM's own network, or run the agent with --pod-metadata-access All, where every \
                 container gets tokens of the VM (docs/metadata.md)"
            }
            Service::WireServer => {
                "Azure's wire server, are dropped but for DNS, as it has secrets of the VM for all that ask. Find out what \
                 asks in the container; if it must, give the container the VM's own network (docs/metadata.md)"
            }
        }
    }
}

/// A pod that was kept from a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    pub service: Service,
    /// As `namespace/name`.
    pub pod: String,
}

/// The message about these pods of a pool, or about containers of a VM of no cluster. Of those that asked a
/// service it names the first [`NAMED`].
pub fn message<'a>(refusals: impl IntoIterator<Item = &'a Refusal> + Clone, pool: Option<&str>) -> String {
    let of = |service: Service| {
        let all = refusals.clone().into_iter().filter(|one| one.service == service);
        let mut pods: Vec<&str> = all.map(|one| one.pod.as_str()).collect();
        let others = if pods.len() > NAMED { OTHERS } else { "" };
        pods.truncate(NAMED);
        pods.sort_unstable();
        let (address, why) = (service.address(), service.why(pool));
        (!pods.is_empty()).then(|| format!("{}{others}{BEHIND}{address}, {why}", pods.join(BETWEEN)))
    };
    Service::ALL.into_iter().filter_map(of).collect::<Vec<_>>().join(APART)
}

/// The refusals that a message names.
pub fn refusals(message: &str) -> BTreeSet<Refusal> {
    let of = |part: &str| {
        let (pods, rest) = part.split_once(BEHIND)?;
        let address = rest.split(',').next()?;
        let service = Service::ALL.into_iter().find(|one| one.address().to_string() == address)?;
        let pods = pods.strip_suffix(OTHERS).unwrap_or(pods);
        let pods = pods.split(BETWEEN).filter(|pod| !pod.is_empty());
        Some(pods.map(|pod| Refusal { service, pod: pod.to_owned() }).collect::<Vec<_>>())
    };
    message.split(APART).filter_map(of).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(service: Service, pod: &str) -> Refusal {
        Refusal { service, pod: pod.to_owned() }
    }

    #[test]
    fn the_pods_named_in_a_message_can_be_read_out_of_it() {
        let [metadata, wire_server] = Service::ALL;
        for named in [
            BTreeSet::from([refusal(metadata, "default/a"), refusal(metadata, "kube-system/b")]),
            BTreeSet::from([refusal(wire_server, "default/a")]),
            BTreeSet::from([refusal(metadata, "default/a"), refusal(wire_server, "default/a")]),
        ] {
            let message = message(&named, Some("default"));
            assert_eq!(refusals(&message), named, "{message}");
        }
        let many = (0..100).rev().map(|n| refusal(metadata, &format!("{}/{n}", "n".repeat(63))));
        let all: Vec<Refusal> = many.chain([refusal(wire_server, "default/a")]).collect();
        let text = message(&all, Some("default"));
        let named: BTreeSet<Refusal> = all[..NAMED].iter().chain(&all[100..]).cloned().collect();
        assert_eq!(refusals(&text), named, "the first, whatever their names");
        assert_eq!(text.matches(" and others: ").count(), 1, "{text}");
        assert!(refusals("").is_empty());
    }

    #[test]
    fn each_service_has_its_remedy_in_the_message() {
        let both: BTreeSet<Refusal> = Service::ALL.map(|service| refusal(service, "default/a")).into();
        let in_a_pool =
            ["workload identity", "NodeIPPool blue", "podMetadataAccess: All", "the host network"];
        let alone = ["--pod-metadata-access All", "the VM's own network", "container"];
        for (pool, remedies) in [(Some("blue"), &in_a_pool[..]), (None, &alone)] {
            let message = message(&both, pool);
            for part in [remedies, &["169.254.169.254", "168.63.129.16"]].concat() {
                assert!(message.contains(part), "{message}");
            }
            assert!(!message.contains("  "), "{message}");
            assert_eq!(refusals(&message), both);
        }
    }
}
