//! An application gateway's life, for the comparison with Azure's documents.

use crate::client::Client;
use serde_json::{Value, json};

/// Refused, written, read, in the way of its subnet's deletion, deleted.
pub(crate) async fn story(client: &Client, network: &str) {
    let at = |resource: &str| format!("{network}/{resource}?api-version=2024-03-01");
    let subnet = at("virtualNetworks/vnet/subnets/gateways");
    client.put(&subnet, &json!({ "properties": { "addressPrefix": "10.240.48.0/24" } })).await;
    let gateway = at("applicationGateways/gw");
    for refused in [
        body(network, "lost", "http"),
        // Its subnet is its own.
        body(network, "nodes", "http"),
        // A rule for a listener that isn't there.
        body(network, "gateways", "lost"),
    ] {
        client.put(&gateway, &refused).await;
    }
    let whole = body(network, "gateways", "http");
    client.put(&gateway, &whole).await;
    client.put(&gateway, &whole).await;
    client.get(&gateway).await;
    client.get(&at("applicationGateways")).await;
    client.send("DELETE", &subnet, &[], None).await.unwrap();
    client.send("DELETE", &gateway, &[], None).await.unwrap();
}

fn body(network: &str, subnet: &str, listener: &str) -> Value {
    let subnet = json!({ "id": format!("{network}/virtualNetworks/vnet/subnets/{subnet}") });
    let part = |part: &str| json!({ "id": format!("{network}/applicationGateways/gw/{part}") });
    json!({ "location": "westeurope", "properties": {
        "sku": { "name": "Standard_v2", "tier": "Standard_v2", "capacity": 1 },
        "gatewayIPConfigurations": [{ "name": "own", "properties": { "subnet": subnet } }],
        "frontendIPConfigurations": [{ "name": "front", "properties": { "subnet": subnet } }],
        "frontendPorts": [{ "name": "http", "properties": { "port": 80 } }],
        "probes": [{ "name": "page", "properties": { "protocol": "Http", "host": "pods", "path": "/", "interval": 30,
            "timeout": 30, "unhealthyThreshold": 3 } }],
        "backendAddressPools": [{ "name": "pods", "properties": { "backendAddresses": [{ "ipAddress": "10.240.0.77" }] } }],
        "backendHttpSettingsCollection": [{ "name": "http", "properties": {
            "port": 8080, "protocol": "Http", "probe": part("probes/page") } }],
        "httpListeners": [{ "name": "http", "properties": { "protocol": "Http", "frontendPort": part("frontendPorts/http"),
            "frontendIPConfiguration": part("frontendIPConfigurations/front") } }],
        "requestRoutingRules": [{ "name": "all", "properties": { "ruleType": "Basic", "priority": 1,
            "httpListener": part(&format!("httpListeners/{listener}")), "backendAddressPool": part("backendAddressPools/pods"),
            "backendHttpSettings": part("backendHttpSettingsCollection/http") } }],
    } })
}
