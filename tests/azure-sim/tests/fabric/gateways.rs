//! Application gateways: proxies in a subnet of their own.

use crate::exposure::public_address;
use crate::stage::Stage;
use crate::trial;
use libtest_mimic::Trial;
use serde_json::{Value, json};

const HOST: &str = "203.0.113.10";
const FRONTEND: &str = "10.240.17.10";
/// The source of its connections: the subnet's lowest address.
const INSTANCE: &str = "10.240.17.4";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_application_gateway_calls_its_backends_from_its_own_subnet", calls_of_a_gateway),
        trial("an_application_gateway_leaves_out_backends_that_are_down_and_ends_with_its_deletion", health),
    ]
}

/// A gateway `gw` with a private and a public frontend on port 80, for backends on port 8080. Gives its
/// public address.
fn set_up(stage: &Stage, backends: &Value) -> String {
    let subnet = json!({ "properties": { "addressPrefix": "10.240.17.0/24" } });
    stage.put("virtualNetworks/vnet/subnets/gateways", &subnet);
    let address = public_address(stage, "front");
    write(stage, backends);
    address
}

fn write(stage: &Stage, backends: &Value) {
    let subnet = json!({ "id": Stage::id("virtualNetworks/vnet/subnets/gateways") });
    let part = |part: &str| json!({ "id": Stage::id(&format!("applicationGateways/gw/{part}")) });
    let both = |make: &dyn Fn(&str) -> Value| json!([make("private"), make("public")]);
    let listener = |name: &str| {
        json!({ "name": name, "properties": { "protocol": "Http", "frontendPort": part("frontendPorts/http"),
            "frontendIPConfiguration": part(&format!("frontendIPConfigurations/{name}")) } })
    };
    let rule = |name: &str| {
        json!({ "name": name, "properties": { "ruleType": "Basic", "priority": 1, "httpListener": part(&format!("httpListeners/{name}")),
            "backendAddressPool": part("backendAddressPools/pods"),
            "backendHttpSettings": part("backendHttpSettingsCollection/http") } })
    };
    let probe = json!({ "protocol": "Http", "host": "x", "path": "/", "interval": 1, "timeout": 1, "unhealthyThreshold": 1 });
    let body = json!({ "properties": {
        "sku": { "name": "Standard_v2", "tier": "Standard_v2", "capacity": 1 },
        "gatewayIPConfigurations": [{ "name": "own", "properties": { "subnet": subnet } }],
        "frontendIPConfigurations": [
            { "name": "private", "properties": { "subnet": subnet, "privateIPAddress": FRONTEND, "privateIPAllocationMethod": "Static" } },
            { "name": "public", "properties": { "publicIPAddress": { "id": Stage::id("publicIPAddresses/front") } } },
        ],
        "frontendPorts": [{ "name": "http", "properties": { "port": 80 } }],
        "backendAddressPools": [{ "name": "pods", "properties": { "backendAddresses": backends } }],
        "probes": [{ "name": "page", "properties": probe }],
        "backendHttpSettingsCollection": [{ "name": "http", "properties": { "port": 8080, "protocol": "Http", "probe": part("probes/page") } }],
        "httpListeners": both(&listener),
        "requestRoutingRules": both(&rule),
    } });
    stage.put("applicationGateways/gw", &body);
}

fn calls_of_a_gateway(stage: &mut Stage) {
    let _a = stage.serve("a", 8080);
    let public = set_up(stage, &json!([{ "ipAddress": "10.240.0.4" }]));
    let seen = format!("{INSTANCE} reached 10.240.0.4");
    stage.fetch_until("b", "10.240.0.5", FRONTEND, 80, &seen);
    // Its public address needs no security group.
    stage.fetch_until("internet", HOST, &public, 80, &seen);
    // A machine can't take its address, and its subnet is its own.
    stage.ip("b", &format!("address add {INSTANCE}/32 dev lo"));
    assert_eq!(stage.fetch("b", INSTANCE, "10.240.0.4", 8080), "");
}

fn health(stage: &mut Stage) {
    let a = stage.serve("a", 8080);
    set_up(stage, &json!([{ "ipAddress": "10.240.0.4" }, { "ipAddress": "10.240.0.5" }]));
    let fetch = |expected: &str| stage.fetch_until("b", "10.240.0.5", FRONTEND, 80, expected);
    let of = |backend: &str| format!("{INSTANCE} reached {backend}");
    fetch(&of("10.240.0.4"));
    // The other backend doesn't answer: every turn is the first's.
    for _ in 0..4 {
        assert_eq!(stage.fetch("b", "10.240.0.5", FRONTEND, 80), of("10.240.0.4"));
    }
    let _b = stage.serve("b", 8080);
    fetch(&of("10.240.0.5"));
    drop(a);
    // Until the next probe its turns are lost.
    let mut in_a_row = 0;
    for _ in 0..100 {
        let is_b = stage.fetch("b", "10.240.0.5", FRONTEND, 80) == of("10.240.0.5");
        in_a_row = if is_b { in_a_row + 1 } else { 0 };
        if in_a_row == 4 {
            break;
        }
    }
    assert_eq!(in_a_row, 4, "a backend that is down still gets calls");
    write(stage, &json!([{ "ipAddress": "10.240.0.77" }]));
    fetch("");
    write(stage, &json!([{ "ipAddress": "10.240.0.5" }]));
    fetch(&of("10.240.0.5"));
    stage.delete("applicationGateways/gw");
    fetch("");
}
