//! The operator's view of a virtual network. `azure_mgmt_network` makes the request and has the models of its
//! address spaces and peerings. The crate's model of the whole is not used: it would build every
//! ipConfiguration of every subnet, tens of thousands, of which nothing is needed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use azure_core_legacy as legacy;
use azure_core_legacy::util::deserialize_null_as_default as or_default;
use azure_mgmt_network::package_2024_03::models::virtual_network_peering_properties_format::PeeringState;
use azure_mgmt_network::package_2024_03::{self as arm, models};
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

use super::budget::Kind;
use super::transport::{Call, Transport};
use super::{Error, NETWORK_KEPT, Priority, Remedy, ResourceId};
use crate::resource_id::Malformed;

/// A subnet and the virtual network around it. IPv4 only; each list sorted, without repetitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The virtual network.
    pub id: ResourceId,
    pub address_space: Vec<Ipv4Net>,
    /// The address spaces in other virtual networks that the subnet has routes to by peerings.
    pub peered: Vec<Ipv4Net>,
    /// The subnet's own prefixes.
    pub subnet: Vec<Ipv4Net>,
    /// The subnet's route table, if it has one.
    pub route_table: Option<ResourceId>,
}

/// The cached part of a virtual network.
#[derive(Debug)]
pub(super) struct VirtualNetwork {
    address_space: Vec<Ipv4Net>,
    peerings: Vec<Peering>,
    /// By name in lower case.
    subnets: HashMap<String, (Vec<Ipv4Net>, Option<ResourceId>)>,
}

/// A peering that has routes.
#[derive(Debug)]
struct Peering {
    reaches: Vec<String>,
    /// The subnets that have its routes, in lower case; `None`: all.
    subnets: Option<Vec<String>>,
}

impl Peering {
    /// `None`: it has no routes. Until both networks have one to the other, and after one of them is gone, a
    /// peering leads nowhere; one may be closed; and one may be for IPv6 only.
    fn of(one: models::VirtualNetworkPeeringPropertiesFormat) -> Option<Peering> {
        let is_up = matches!(one.peering_state, None | Some(PeeringState::Connected));
        let is_open = one.allow_virtual_network_access != Some(false);
        if !is_up || !is_open || one.enable_only_i_pv6_peering == Some(true) {
            return None;
        }
        // The space that the peering routes. The remote network's own space may have changed since the two
        // were synchronised.
        let routed = one.remote_address_space.or(one.remote_virtual_network_address_space);
        let names = || one.local_subnet_names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Some(Peering {
            reaches: routed.unwrap_or_default().address_prefixes,
            subnets: (one.peer_complete_vnets == Some(false)).then(names),
        })
    }

    fn serves(&self, subnet: &str) -> bool {
        self.subnets.as_ref().is_none_or(|names| names.iter().any(|name| name == subnet))
    }
}

/// How long what was read is used, or the error that came instead: for as long as Azure asks to be left in
/// peace, if it does.
pub(super) fn kept(error: Option<&Error>) -> Duration {
    match error.map(Error::remedy) {
        Some(Remedy::RetryAfter(wait)) => wait,
        Some(Remedy::WaitForChange { .. } | Remedy::ReadAgain) | None => NETWORK_KEPT,
    }
}

/// The parts of Azure's document that are needed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    #[serde(deserialize_with = "or_default")]
    properties: Properties,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Properties {
    #[serde(deserialize_with = "or_default")]
    address_space: models::AddressSpace,
    #[serde(deserialize_with = "or_default")]
    subnets: Vec<Subnet>,
    #[serde(deserialize_with = "or_default")]
    virtual_network_peerings: Vec<models::VirtualNetworkPeering>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subnet {
    name: Option<String>,
    #[serde(deserialize_with = "or_default")]
    properties: SubnetProperties,
}

/// Its ipConfigurations are left out, and so are the routes of its route table.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SubnetProperties {
    address_prefix: Option<String>,
    #[serde(deserialize_with = "or_default")]
    address_prefixes: Vec<String>,
    route_table: Option<models::SubResource>,
}

impl VirtualNetwork {
    fn of(Document { properties }: Document) -> VirtualNetwork {
        let peerings = properties.virtual_network_peerings.into_iter().filter_map(|one| one.properties);
        VirtualNetwork {
            address_space: ipv4(properties.address_space.address_prefixes),
            peerings: peerings.filter_map(Peering::of).collect(),
            subnets: properties
                .subnets
                .into_iter()
                .filter_map(|Subnet { name, properties: own }| {
                    // Azure uses either the one field or the other.
                    let all = own.address_prefixes.into_iter().chain(own.address_prefix);
                    let table = own.route_table.and_then(|table| table.id?.parse().ok());
                    Some((name?.to_ascii_lowercase(), (ipv4(all), table)))
                })
                .collect(),
        }
    }

    /// The part that concerns one of its subnets.
    pub(super) fn around(&self, subnet: &ResourceId) -> Result<Network, Error> {
        let id = vnet_of(subnet)?;
        let name = subnet.name().to_ascii_lowercase();
        let peerings = self.peerings.iter().filter(|peering| peering.serves(&name));
        match self.subnets.get(&name) {
            Some((own, table)) => Ok(Network {
                id,
                address_space: self.address_space.clone(),
                peered: ipv4(peerings.flat_map(|peering| peering.reaches.clone())),
                subnet: own.clone(),
                route_table: table.clone(),
            }),
            None => Err(Error::NotFound {
                resource: subnet.to_string(),
                message: format!("virtual network {id} has no such subnet."),
            }),
        }
    }
}

/// The virtual network that a subnet belongs to.
pub fn vnet_of(subnet: &ResourceId) -> Result<ResourceId, Error> {
    subnet
        .parent()
        .filter(|_| subnet.is("Microsoft.Network", "virtualNetworks/subnets"))
        .ok_or_else(|| Error::ResourceId(Malformed(subnet.to_string())))
}

/// Reads a virtual network from Azure.
pub(super) async fn read(
    transport: &Transport,
    vnet: &ResourceId,
    api_version: &str,
    priority: Priority,
) -> Result<VirtualNetwork, Error> {
    let call = Call::about(Kind::Read, priority, vnet.as_str());
    let below = Arc::new(Below { transport: transport.clone(), call, api_version: api_version.to_owned() });
    let client = arm::Client::builder(Arc::new(SignedBelow))
        .endpoint(transport.endpoint().clone())
        // Retries of the SDK's own would bypass the budget.
        .retry(legacy::RetryOptions::none())
        .transport(legacy::TransportOptions::new(below))
        .build()
        .map_err(|error| Error::Config { message: error.to_string() })?;
    let networks = client.virtual_networks_client();
    let request = networks.get(vnet.resource_group(), vnet.name(), vnet.subscription());
    let ours = |error: legacy::Error| match error.into_downcast::<Error>() {
        Ok(ours) => ours,
        Err(theirs) => Error::unexpected(vnet, theirs),
    };
    let answer = request.send().await.map_err(ours)?.into_raw_response();
    let body = answer.into_body().collect().await.map_err(ours)?;
    let document = serde_json::from_slice(&body).map_err(|error| Error::unexpected(vnet, error))?;
    Ok(VirtualNetwork::of(document))
}

fn ipv4(prefixes: impl IntoIterator<Item = String>) -> Vec<Ipv4Net> {
    let mut all: Vec<Ipv4Net> = prefixes
        .into_iter()
        .filter_map(|prefix| match prefix.parse() {
            Ok(IpNet::V4(prefix)) => Some(prefix.trunc()),
            _ => None,
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Our transport below the typed client, for one call.
#[derive(Debug)]
struct Below {
    transport: Transport,
    call: Call,
    /// The typed client would ask in the version of its models, which a cloud may not have any more or yet.
    api_version: String,
}

#[async_trait::async_trait]
impl legacy::HttpClient for Below {
    async fn execute_request(&self, request: &legacy::Request) -> legacy::Result<legacy::Response> {
        let mut url = request.url().clone();
        url.set_query(Some(&format!("api-version={}", self.api_version)));
        let answer = self
            .transport
            .send(&self.call, url, None, None)
            .await
            .map_err(|error| legacy::Error::new(legacy::error::ErrorKind::Other, error))?;
        let status = legacy::StatusCode::try_from(answer.status)
            .map_err(|error| legacy::Error::new(legacy::error::ErrorKind::DataConversion, error))?;
        let body = futures::stream::iter([Ok(answer.body.into())]);
        Ok(legacy::Response::new(status, legacy::headers::Headers::new(), Box::pin(body)))
    }
}

/// Gives no token: our transport signs every request. The typed client would log a token that it holds.
#[derive(Debug)]
struct SignedBelow;

#[async_trait::async_trait]
impl legacy::auth::TokenCredential for SignedBelow {
    async fn get_token(&self, _scopes: &[&str]) -> legacy::Result<legacy::auth::AccessToken> {
        Ok(legacy::auth::AccessToken::new("", azure_core::time::OffsetDateTime::now_utc()))
    }

    async fn clear_cache(&self) -> legacy::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const VNET: &str = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/vnet";

    fn subnet(name: &str) -> ResourceId {
        format!("{VNET}/subnets/{name}").parse().unwrap()
    }

    #[test]
    fn a_network_read_that_azure_throttles_waits_as_long_as_azure_asks() {
        let throttled = |seconds| Error::Throttled {
            resource: VNET.into(),
            message: "m".into(),
            retry_after: Duration::from_secs(seconds),
            limit: super::super::Limit::Action,
        };
        assert_eq!(kept(Some(&throttled(372))), Duration::from_secs(372));
        assert_eq!(kept(Some(&throttled(2))), Duration::from_secs(2));
        let denied = Error::Denied { action: "a".into(), scope: "s".into(), message: "m".into() };
        assert_eq!((kept(Some(&denied)), kept(None)), (NETWORK_KEPT, NETWORK_KEPT));
    }

    fn vnet() -> VirtualNetwork {
        let model = serde_json::from_value(json!({
            "properties": {
                "addressSpace": { "addressPrefixes": ["10.240.0.0/16", "fd00::/48", "10.0.0.0/16"] },
                "subnets": [
                    { "name": "nodes", "properties": { "addressPrefix": "10.240.0.0/20" } },
                    { "name": "Dual", "properties": { "addressPrefixes": ["10.240.16.0/24", "fd00::/64"] } },
                ],
                "virtualNetworkPeerings": [
                    { "properties": {
                        "remoteAddressSpace": { "addressPrefixes": ["172.16.0.0/16"] },
                        "remoteVirtualNetworkAddressSpace": { "addressPrefixes": ["172.16.0.0/15"] },
                    }},
                    { "properties": { "remoteVirtualNetworkAddressSpace": { "addressPrefixes": ["10.50.0.0/16"] } } },
                    { "properties": { "remoteAddressSpace": { "addressPrefixes": ["172.16.0.0/16"] } } },
                ],
                "aFieldOfTheFuture": {},
            },
        }));
        VirtualNetwork::of(model.unwrap())
    }

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_network_is_its_space_its_peers_and_the_subnet() {
        let network = vnet().around(&subnet("nodes")).unwrap();
        assert_eq!(network.id, VNET.parse().unwrap());
        assert_eq!(network.address_space, nets(&["10.0.0.0/16", "10.240.0.0/16"]));
        assert_eq!(network.peered, nets(&["10.50.0.0/16", "172.16.0.0/16"]));
        assert_eq!(network.subnet, nets(&["10.240.0.0/20"]));
    }

    #[test]
    fn a_peering_without_routes_reaches_nothing_and_one_of_subnets_serves_these() {
        let reach = |more: serde_json::Value| {
            let mut peering = json!({
                "remoteAddressSpace": { "addressPrefixes": ["172.16.0.0/16"] },
                "remoteVirtualNetworkAddressSpace": { "addressPrefixes": ["172.16.0.0/16", "172.17.0.0/16"] },
            });
            peering.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let model = json!({ "properties": {
                "subnets": [{ "name": "Nodes", "properties": { "addressPrefix": "10.240.0.0/20" } }],
                "virtualNetworkPeerings": [{ "properties": peering }],
            } });
            let vnet = VirtualNetwork::of(serde_json::from_value(model).unwrap());
            vnet.around(&subnet("nodes")).unwrap().peered
        };
        for open in [
            json!({}),
            json!({ "peeringState": "Connected", "allowVirtualNetworkAccess": true, "peerCompleteVnets": true }),
            json!({ "peerCompleteVnets": false, "localSubnetNames": ["other", "NODES"] }),
        ] {
            assert_eq!(reach(open.clone()), nets(&["172.16.0.0/16"]), "{open}");
        }
        for closed in [
            json!({ "peeringState": "Initiated" }),
            json!({ "peeringState": "Disconnected" }),
            json!({ "allowVirtualNetworkAccess": false }),
            json!({ "peerCompleteVnets": false, "localSubnetNames": ["other"] }),
            json!({ "enableOnlyIPv6Peering": true }),
        ] {
            assert_eq!(reach(closed.clone()), nets(&[]), "{closed}");
        }
    }

    #[test]
    fn a_subnets_prefixes_may_come_as_a_list_and_its_name_in_another_case() {
        assert_eq!(vnet().around(&subnet("dual")).unwrap().subnet, nets(&["10.240.16.0/24"]));
    }

    #[test]
    fn ip_configurations_and_other_unneeded_fields_are_not_parsed() {
        let model = json!({
            "properties": {
                "addressSpace": { "addressPrefixes": ["10.240.0.0/16"] },
                "subnets": [
                    { "name": "nodes", "properties": {
                        "addressPrefix": "10.240.0.0/20",
                        "addressPrefixes": null,
                        "ipConfigurations": [{ "properties": "of no form that a model has" }],
                    } },
                    { "name": "bare", "properties": null },
                ],
                "virtualNetworkPeerings": null,
            },
        });
        let vnet = VirtualNetwork::of(serde_json::from_value(model).unwrap());
        assert_eq!(vnet.around(&subnet("nodes")).unwrap().subnet, nets(&["10.240.0.0/20"]));
        assert_eq!(vnet.around(&subnet("bare")).unwrap().subnet, []);
    }

    #[test]
    fn a_subnet_that_is_not_there_is_named() {
        let error = vnet().around(&subnet("gone")).unwrap_err();
        assert!(
            matches!(&error, Error::NotFound { resource, .. } if resource.ends_with("/subnets/gone")),
            "{error}"
        );
    }

    #[test]
    fn an_id_of_no_subnet_has_no_network() {
        assert!(matches!(vnet_of(&VNET.parse().unwrap()), Err(Error::ResourceId(_))));
    }
}
