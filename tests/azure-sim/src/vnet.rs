//! Virtual networks and their subnets as documents: PUT, and reading them.

use crate::document::default;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// The document a PUT of a virtual network leaves.
pub(crate) fn replace(
    id: &str,
    name: &str,
    old: Option<&Value>,
    mut body: Value,
    etag: &str,
    state: &str,
) -> Value {
    body["id"] = json!(id);
    body["name"] = json!(name);
    body["type"] = json!("Microsoft.Network/virtualNetworks");
    let properties = &mut body["properties"];
    properties["resourceGuid"] = old.map_or(Value::Null, |old| old["properties"]["resourceGuid"].clone());
    for (field, value) in [
        ("resourceGuid", json!(uuid::Uuid::new_v4().to_string())),
        ("privateEndpointVNetPolicies", json!("Disabled")),
        ("subnets", json!([])),
        ("virtualNetworkPeerings", json!([])),
        ("enableDdosProtection", json!(false)),
    ] {
        default(properties, field, value);
    }
    for subnet in properties["subnets"].as_array_mut().into_iter().flatten() {
        let name = subnet["name"].as_str().unwrap_or_default().to_owned();
        *subnet = replace_subnet(&format!("{id}/subnets/{name}"), &name, subnet.take(), etag, state);
    }
    set_state(&mut body, state, etag);
    body
}

/// The document a PUT of a subnet leaves.
pub(crate) fn replace_subnet(id: &str, name: &str, mut body: Value, etag: &str, state: &str) -> Value {
    body["id"] = json!(id);
    body["name"] = json!(name);
    body["type"] = json!("Microsoft.Network/virtualNetworks/subnets");
    body["etag"] = json!(etag);
    let properties = &mut body["properties"];
    properties["provisioningState"] = json!(state);
    default(properties, "delegations", json!([]));
    default(properties, "privateEndpointNetworkPolicies", json!("Disabled"));
    default(properties, "privateLinkServiceNetworkPolicies", json!("Enabled"));
    body
}

/// Sets the state of the virtual network and all its subnets, with a new etag.
pub(crate) fn set_state(vnet: &mut Value, state: &str, etag: &str) {
    vnet["etag"] = json!(etag);
    vnet["properties"]["provisioningState"] = json!(state);
    for subnet in vnet["properties"]["subnets"].as_array_mut().into_iter().flatten() {
        subnet["etag"] = json!(etag);
        subnet["properties"]["provisioningState"] = json!(state);
    }
}

pub(crate) fn subnets(vnet: &Value) -> &[Value] {
    vnet.pointer("/properties/subnets").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A subnet's prefixes, from either of the two fields.
pub(crate) fn prefixes(subnet: &Value) -> Vec<Ipv4Net> {
    let properties = &subnet["properties"];
    let many = properties["addressPrefixes"].as_array().into_iter().flatten();
    let all = std::iter::once(&properties["addressPrefix"]).chain(many);
    let mut prefixes: Vec<Ipv4Net> = all.filter_map(|prefix| prefix.as_str()?.parse().ok()).collect();
    prefixes.dedup();
    prefixes
}

/// The prefixes of a virtual network.
pub(crate) fn address_space(vnet: &Value) -> Vec<Ipv4Net> {
    prefixes_of(&vnet["properties"]["addressSpace"])
}

/// Those of an address space.
fn prefixes_of(space: &Value) -> Vec<Ipv4Net> {
    let prefixes = space["addressPrefixes"].as_array();
    prefixes.into_iter().flatten().filter_map(|prefix| prefix.as_str()?.parse().ok()).collect()
}

/// The prefixes of the remote network to which a subnet has routes by a peering: those of the time when the
/// two were synchronised. A peering of subnets is for those that it names.
pub(crate) fn reached(peering: &Value, subnet: &str) -> Vec<Ipv4Net> {
    let properties = &peering["properties"];
    let is_it = |name: &Value| name.as_str().is_some_and(|name| name.eq_ignore_ascii_case(subnet));
    let is_named = properties["localSubnetNames"].as_array().is_some_and(|names| names.iter().any(is_it));
    let is_whole = properties["peerCompleteVnets"] != json!(false);
    let is_ours = properties["enableOnlyIPv6Peering"] != json!(true) && (is_whole || is_named);
    if is_ours { prefixes_of(&properties["remoteAddressSpace"]) } else { vec![] }
}

/// The part of a network that a peering to it names.
pub(crate) fn peered_part(vnet: &Value, peering: &Value) -> Vec<Ipv4Net> {
    let properties = &peering["properties"];
    if properties["peerCompleteVnets"] != json!(false) {
        return address_space(vnet);
    }
    let named = properties["remoteSubnetNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let named: Vec<String> = named.map(str::to_lowercase).collect();
    let is_named =
        |subnet: &&Value| subnet["name"].as_str().is_some_and(|name| named.contains(&name.to_lowercase()));
    subnets(vnet).iter().filter(is_named).flat_map(prefixes).collect()
}

/// A peering that is up, to a network with these prefixes.
pub(crate) fn peering(vnet: &Value, name: &str, prefixes: &[Ipv4Net], etag: &str) -> Value {
    let id = vnet["id"].as_str().unwrap_or_default();
    let networks = id.rsplit_once('/').map_or("", |(parent, _)| parent);
    let space = json!({ "addressPrefixes": prefixes });
    json!({
        "id": format!("{id}/virtualNetworkPeerings/{name}"),
        "name": name,
        "type": "Microsoft.Network/virtualNetworks/virtualNetworkPeerings",
        "etag": etag,
        "properties": {
            "provisioningState": "Succeeded",
            "resourceGuid": uuid::Uuid::new_v4().to_string(),
            "peeringState": "Connected",
            "peeringSyncLevel": "FullyInSync",
            "remoteVirtualNetwork": { "id": format!("{networks}/{name}") },
            "allowVirtualNetworkAccess": true,
            "allowForwardedTraffic": true,
            "allowGatewayTransit": false,
            "useRemoteGateways": false,
            "doNotVerifyRemoteGateways": false,
            "peerCompleteVnets": true,
            "remoteAddressSpace": space,
            "remoteVirtualNetworkAddressSpace": space,
        },
    })
}
