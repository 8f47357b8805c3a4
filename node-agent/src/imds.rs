//! Azure's instance metadata service as the source of a node's addresses, for a VM that belongs to no
//! cluster: its answer, as a NodeIPAllocation. Pure; [`client`] asks it. In a cluster it only gives hints:
//! see [`listing`].
//!
//! Everything behind the source is the same as in a cluster. An operator knows these facts and the service
//! doesn't:
//!
//! - **The primary NIC and address** carry no mark, and NICs come in any order. The primary address is the
//!   source address of our request, since the service answers no other, and it is the first of its NIC in the
//!   answer. Unless both hold nothing is taken: an address of the node's own, mistaken for a pod's, would
//!   take the VM off the network.
//! - **Names of ipConfigurations.** An entry is named after its address. In a cluster names distinguish a
//!   reservation from an earlier one of the same address, because the operator takes back what the node has
//!   relinquished, and either's view may be old. Here nothing is taken back and there is one view, in order:
//!   an address that goes and comes back is, in the ledger, the same entry: still its container's if it was
//!   in use all the time, and else free once its cooldown is over.
//! - **The VNet.** Only the subnet's ranges are listed; others that are to see containers' own addresses are
//!   given by hand.

pub mod client;
pub mod listing;

use std::net::Ipv4Addr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use vnetpool_crds::{
    NodeIPAllocation, NodeIPAllocationSpec,
    allocation::{Interface, IpConfiguration, Subnet},
    pool::MetadataAccess,
};

/// The values that this source can't know and that flags give.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// With --source imds: how long a freed address rests before another container gets it.
    #[arg(long, global = true, env = "VNETPOOL_COOLDOWN", default_value = "30s")]
    pub cooldown: kube::core::Duration,
    /// With --source imds: ranges beyond the VM's subnet that see containers under their own addresses, since
    /// the VNet's other subnets, its peerings and on-premises networks can't be learnt from the metadata
    /// service.
    #[arg(long, global = true, env = "VNETPOOL_SNAT_EXCLUSIONS", value_delimiter = ',')]
    pub snat_exclusions: Vec<Ipv4Net>,
    /// With --source imds: how much containers reach of the instance metadata service, which gives every
    /// client tokens of the VM's identities. In a cluster the pool decides this.
    #[arg(long, global = true, env = "VNETPOOL_POD_METADATA_ACCESS", default_value = "All", value_parser = access())]
    pub pod_metadata_access: MetadataAccess,
}

/// Reads the words that a pool has for it.
fn access() -> impl TypedValueParser<Value = MetadataAccess> {
    PossibleValuesParser::new(["All", "None"]).map(|word| match word.as_str() {
        "All" => MetadataAccess::All,
        _ => MetadataAccess::None,
    })
}

/// The parts of an answer to `/metadata/instance` that matter here.
#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    compute: Compute,
    network: Network,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Compute {
    name: String,
    vm_id: String,
}

/// An answer to `/metadata/instance/network`: the VM's NICs.
#[derive(Clone, Debug, Deserialize)]
pub struct Network {
    interface: Vec<Nic>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Nic {
    ipv4: Addresses,
    mac_address: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Addresses {
    ip_address: Vec<Address>,
    subnet: Vec<SubnetRange>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    /// Empty for an address that a NIC is about to get, as seen on booting VMs.
    private_ip_address: String,
}

#[derive(Clone, Debug, Deserialize)]
struct SubnetRange {
    address: String,
    prefix: String,
}

/// Why an answer is not to be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the metadata service answered our address {0}, which is on none of the NICs it reports")]
    Unlisted(Ipv4Addr),
    #[error(
        "the metadata service answered our address {seen_as}, but lists {first} first for the NIC {mac}: which of them is the \
         VM's own is unknown, so none is handed out; take secondary addresses off the VM's own links"
    )]
    Ambiguous { seen_as: Ipv4Addr, first: String, mac: String },
    #[error(
        "the metadata service answered our address {seen_as}, and lists it again as {again} for the NIC {mac}: it is the \
         VM's own, so none is handed out until the service lists it once"
    )]
    Again { seen_as: Ipv4Addr, again: String, mac: String },
    #[error("the metadata service reports {0:?}, which is no address, range or hardware address")]
    Unreadable(String),
}

impl Nic {
    /// Its addresses, the empty ones included.
    fn listed(&self) -> impl Iterator<Item = &str> {
        self.ipv4.ip_address.iter().map(|one| one.private_ip_address.as_str())
    }
}

impl Instance {
    /// The VM's name in Azure.
    pub fn name(&self) -> &str {
        &self.compute.name
    }

    /// The allocation that this answer amounts to. `seen_as` is the address it was asked from, `boot_id` this
    /// boot's, and `moment` a number that grows: the version of the answer.
    pub fn allocation(
        &self,
        seen_as: Ipv4Addr,
        settings: &Settings,
        boot_id: &str,
        moment: i64,
    ) -> Result<NodeIPAllocation, Invalid> {
        let own = seen_as.to_string();
        let holds = |nic: &&Nic| nic.listed().any(|address| address == own);
        let nic = self.network.interface.iter().find(holds).ok_or(Invalid::Unlisted(seen_as))?;
        let mac = hardware_address(&nic.mac_address)?;
        if let Some(first) = nic.listed().next().filter(|first| *first != own) {
            return Err(Invalid::Ambiguous { seen_as, first: first.to_owned(), mac });
        }
        let secondary = nic.listed().skip(1).filter(|address| !address.is_empty());
        let secondary = secondary.map(ip_configuration).collect::<Result<Vec<_>, _>>()?;
        if let Some(again) = secondary.iter().find(|one| covers(one, seen_as)) {
            return Err(Invalid::Again { seen_as, again: again.address.clone(), mac });
        }
        let ranges =
            nic.ipv4.subnet.iter().map(|SubnetRange { address, prefix }| format!("{address}/{prefix}"));
        let interface = Interface {
            id: format!("the VM's primary NIC, {mac}"),
            mac,
            application_security_groups: vec![],
            secondary: false,
            primary_address: own,
            subnet: Subnet {
                id: "the VM's subnet".to_owned(),
                prefixes: ranges.map(|range| valid(&range)).collect::<Result<_, _>>()?,
            },
            ip_configurations: secondary,
        };
        Ok(NodeIPAllocation {
            metadata: ObjectMeta {
                name: Some(self.compute.name.clone()),
                uid: Some(self.compute.vm_id.clone()),
                generation: Some(moment),
                resource_version: Some(moment.to_string()),
                ..ObjectMeta::default()
            },
            spec: NodeIPAllocationSpec {
                node_uid: self.compute.vm_id.clone(),
                boot_id: boot_id.to_owned(),
                pool: "none".to_owned(),
                mode: Default::default(),
                wiring: Default::default(),
                // No operator asks for anything back.
                route_table_id: None,
                sizing: None,
                elsewhere: 0,
                target: u32::MAX,
                cooldown: settings.cooldown,
                warm: 0,
                report_holders: false,
                pod_metadata_access: settings.pod_metadata_access,
                snat_exclusions: settings.snat_exclusions.iter().map(Ipv4Net::to_string).collect(),
                taken_off_at: vec![],
                interfaces: vec![interface],
                detached_public_addresses: vec![],
                stray_interfaces: vec![],
                left_interfaces: vec![],
            },
            status: None,
        })
    }
}

fn ip_configuration(address: &str) -> Result<IpConfiguration, Invalid> {
    let range = if address.contains('/') { address.to_owned() } else { format!("{address}/32") };
    Ok(IpConfiguration { name: address.to_owned(), address: valid(&range)?, ..IpConfiguration::default() })
}

/// Whether this address is in its range. In doubt it is.
fn covers(one: &IpConfiguration, address: Ipv4Addr) -> bool {
    one.address.parse::<Ipv4Net>().map_or(true, |range| range.contains(&address))
}

fn valid(range: &str) -> Result<String, Invalid> {
    let parsed = range.parse::<Ipv4Net>().map_err(|_| Invalid::Unreadable(range.to_owned()))?;
    Ok(parsed.to_string())
}

/// `000D3AE51CC0` as Linux shows it.
fn hardware_address(text: &str) -> Result<String, Invalid> {
    let digits: Vec<char> = text.chars().filter(|digit| !"-:".contains(*digit)).collect();
    if digits.len() != 12 || !digits.iter().all(char::is_ascii_hexdigit) {
        return Err(Invalid::Unreadable(text.to_owned()));
    }
    let bytes: Vec<String> = digits.chunks(2).map(|byte| byte.iter().collect()).collect();
    Ok(bytes.join(":").to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    const PRIMARY: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);

    fn nic(mac: &str, addresses: &[&str]) -> Value {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({ "privateIpAddress": address, "publicIpAddress": "" }))
            .collect();
        json!({
            "ipv4": { "ipAddress": addresses, "subnet": [{ "address": "10.240.0.0", "prefix": "20" }] },
            "ipv6": { "ipAddress": [] },
            "macAddress": mac,
        })
    }

    fn allocation(nics: &[Value]) -> Result<NodeIPAllocation, Invalid> {
        let instance: Instance = serde_json::from_value(json!({
            "compute": { "name": "vm", "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6", "osType": "Linux" },
            "network": { "interface": nics },
        }))
        .unwrap();
        let settings = Settings {
            cooldown: Duration::from_secs(30).into(),
            snat_exclusions: vec!["10.0.0.0/8".parse().unwrap()],
            pod_metadata_access: MetadataAccess::All,
        };
        instance.allocation(PRIMARY, &settings, "boot", 7)
    }

    #[test]
    fn all_but_the_primary_address_of_the_primary_nic_are_handed_out() {
        let second = nic("000D3AE51CC1", &["10.241.0.4", "10.241.0.5"]);
        let first = nic("000D3AE51CC0", &["10.240.0.4", "10.240.0.5", "", "10.240.0.16/28"]);
        let allocation = allocation(&[second, first]).unwrap();
        let spec = &allocation.spec;
        let addresses: Vec<_> = spec.ip_configurations().map(|one| one.address.as_str()).collect();
        assert_eq!(addresses, ["10.240.0.5/32", "10.240.0.16/28"]);
        assert_eq!(spec.interfaces.len(), 1);
        assert_eq!(spec.interfaces[0].mac, "00:0d:3a:e5:1c:c0");
        assert_eq!(spec.interfaces[0].primary_address, "10.240.0.4");
        assert_eq!(spec.interfaces[0].subnet.prefixes, ["10.240.0.0/20"]);
        assert_eq!(spec.snat_exclusions, ["10.0.0.0/8"]);
        assert_eq!((spec.boot_id.as_str(), allocation.metadata.generation), ("boot", Some(7)));
    }

    #[test]
    fn nothing_is_handed_out_while_the_vms_own_address_is_in_doubt() {
        let ambiguous = allocation(&[nic("000D3AE51CC0", &["10.240.0.5", "10.240.0.4"])]).unwrap_err();
        assert!(ambiguous.to_string().contains("lists 10.240.0.5 first"), "{ambiguous}");
        let unlisted = allocation(&[nic("000D3AE51CC0", &["10.240.0.5"])]).unwrap_err();
        assert_eq!(unlisted, Invalid::Unlisted(PRIMARY));
        assert_eq!(allocation(&[]).unwrap_err(), Invalid::Unlisted(PRIMARY));
    }

    #[test]
    fn nothing_is_handed_out_of_an_answer_that_has_the_vms_own_address_a_second_time_or_in_a_block() {
        for again in ["10.240.0.4", "10.240.0.4/32", "10.240.0.0/28"] {
            let error = allocation(&[nic("000D3AE51CC0", &["10.240.0.4", "10.240.0.5", again])]).unwrap_err();
            assert!(error.to_string().contains("10.240.0.4, and lists it again as"), "{again}: {error}");
        }
    }

    #[test]
    fn an_answer_that_can_not_be_read_is_refused_whole() {
        for (mac, address) in [("000D3AE51CC", "10.240.0.5"), ("000D3AE51CC0", "fd00::5")] {
            let error = allocation(&[nic(mac, &["10.240.0.4", address])]).unwrap_err();
            assert!(matches!(error, Invalid::Unreadable(_)), "{error}");
        }
    }
}
