//! Simulated Azure as a test sets it: the resources of the first moment, and how it behaves.

use super::Access;
use ipnet::Ipv4Net;
use serde::Deserialize;
use std::net::Ipv4Addr;

/// The resources before the first request. Every field has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub tenant: String,
    pub subscription: String,
    pub resource_group: String,
    pub location: String,
    pub vnets: Vec<VnetConfig>,
    /// How long a write to the NIC of a running VM takes, and every other long-running operation. In Azure it
    /// is about 10 s.
    pub write_seconds: f64,
    /// Whether a write to the NIC of a running VM is complete in the answer, as it is in Azure for NICs
    /// without a VM.
    pub synchronous: bool,
    /// The interval of load balancers' probes, whatever the probes' own settings are. Azure's minimum is 5 s.
    pub probe_seconds: f64,
    /// Whether requests beyond Azure's published limits are refused with 429.
    pub limits: bool,
    /// The actions that the managed identity may not do.
    pub denied: Vec<String>,
    /// Further restrictions of the identity.
    pub access: Access,
    /// How many ipConfigurations the NICs of a VNet can have in all.
    pub network_addresses: usize,
    /// How many reads Compute takes of the subscription at once, and how many more a minute.
    pub compute_reads: (f64, f64),
    pub habits: Habits,
    /// How many entries a page of a VNet's usages has at most; without it, all.
    pub page_size: Option<usize>,
    /// The application that may sign in to Entra, or is a VM's user-assigned identity.
    pub application: Application,
    /// How long tokens last.
    pub token_seconds: i64,
}

/// The application that may sign in. Its id is also that of the user-assigned managed identity of every VM.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Application {
    pub client_id: String,
    pub client_secret: String,
    /// The service account's token that it trusts. Real Entra checks the token's issuer, subject and
    /// audience.
    pub trusted_token: String,
}

impl Default for Application {
    fn default() -> Self {
        Self {
            client_id: "33333333-3333-3333-3333-333333333333".into(),
            client_secret: "a-simulated-secret".into(),
            trusted_token: "eyJhbGciOiJSUzI1NiJ9.c2ltdWxhdGVk.dG9rZW4".into(),
        }
    }
}

/// Behaviour that isn't known of Azure, or differs: a test can have it either way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Habits {
    /// A write to a NIC that is complete in its answer names an operation all the same (recorded at
    /// 2021-08-01, and for other resources).
    pub names_ended_operations: bool,
    /// A write to a NIC while another is under way is refused instead of taking its place
    /// (bosh-azure-cpi#179).
    pub refuses_second_write: bool,
    /// Another of a NIC's ipConfigurations may become its primary one, which is then listed first
    /// (azure-cli's recording `test_network_nic_subresources`, of a NIC without a machine); otherwise that is
    /// refused.
    pub moves_primary: bool,
    /// A NIC lists its primary ipConfiguration last.
    pub lists_primary_last: bool,
    /// A write to a NIC or to an instance of a scale set is answered with 202 and `Location`, and without a
    /// body.
    pub answers_location_only: bool,
    /// A write to the NIC of a stopped machine is refused; otherwise it is complete in its answer.
    pub refuses_writes_to_stopped: bool,
    /// A write to the NIC of a machine that is being deleted is refused.
    pub refuses_writes_to_leaving: bool,
    /// A public address without zones is refused to every machine, as if all were in one.
    pub wants_zones: bool,
    /// A VNet's usages count a block of 16 addresses as one, as its limit does; otherwise as 16.
    pub usages_count_blocks_once: bool,
    /// How long the addresses of a VM's NIC stay taken when both have gone (transformerlab#2357: 3 minutes).
    pub frees_after_seconds: f64,
}

/// A virtual network of the first moment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VnetConfig {
    pub name: String,
    pub address_prefixes: Vec<Ipv4Net>,
    /// Name and prefix of each subnet.
    pub subnets: Vec<(String, Ipv4Net)>,
}

impl Default for Config {
    fn default() -> Self {
        let net = |a, b, c, len| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), len);
        let vnet = VnetConfig {
            name: "vnet".into(),
            address_prefixes: vec![net(10, 240, 0, 16)],
            subnets: vec![("nodes".into(), net(10, 240, 0, 20)), ("small".into(), net(10, 240, 16, 28))],
        };
        Self {
            tenant: "11111111-1111-1111-1111-111111111111".into(),
            subscription: "00000000-0000-0000-0000-000000000001".into(),
            resource_group: "vnetpool".into(),
            location: "westeurope".into(),
            vnets: vec![vnet],
            write_seconds: 10.0,
            synchronous: false,
            probe_seconds: 5.0,
            limits: true,
            denied: Vec::new(),
            access: Access::default(),
            network_addresses: 65_536,
            compute_reads: (15_000.0, 5_000.0),
            habits: Habits::default(),
            page_size: None,
            application: Application::default(),
            token_seconds: 86_400,
        }
    }
}
