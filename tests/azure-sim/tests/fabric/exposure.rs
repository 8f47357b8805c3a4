//! Public addresses, load balancers, service endpoints: addresses that no NIC holds.

use crate::stage::Stage;
use crate::trial;
use libtest_mimic::Trial;
use serde_json::{Value, json};

const HOST: &str = "203.0.113.10";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_public_address_stands_for_its_private_one_both_ways", a_public_address),
        trial("a_standard_public_address_lets_in_only_what_a_security_group_allows", a_closed_public_address),
        trial("a_load_balancer_keeps_the_clients_address_and_leaves_out_members_that_are_down", balancing),
        trial("a_floating_rule_reaches_the_member_under_the_frontends_address", a_floating_rule),
        trial("an_internal_load_balancer_takes_members_by_address", an_internal_balancer),
        trial("a_service_sees_the_address_of_a_machine_only_with_a_service_endpoint", a_service_endpoint),
    ]
}

/// A rule that lets everything in.
fn open(stage: &Stage) {
    let allow = json!({ "name": "all", "properties": { "priority": 100, "direction": "Inbound", "access": "Allow",
        "protocol": "*", "sourceAddressPrefix": "Internet", "sourcePortRange": "*", "destinationAddressPrefix": "*",
        "destinationPortRange": "*" } });
    stage.put("networkSecurityGroups/open", &json!({ "properties": { "securityRules": [allow] } }));
    stage.put_subnet(
        "nodes",
        &json!({ "networkSecurityGroup": { "id": Stage::id("networkSecurityGroups/open") } }),
    );
}

/// A static public address of the Standard SKU; gives the address.
pub(crate) fn public_address(stage: &Stage, name: &str) -> String {
    let body =
        json!({ "sku": { "name": "Standard" }, "properties": { "publicIPAllocationMethod": "Static" } });
    let made = stage.put(&format!("publicIPAddresses/{name}"), &body);
    made["properties"]["ipAddress"].as_str().unwrap().to_owned()
}

/// Gives `a` a second address, 10.240.0.6, with an attachment.
fn attach(stage: &Stage, field: &str, attached: &Value) {
    stage.quicken();
    let mut nic = stage.get_nic("a");
    let mut second = json!({ "name": "second", "properties": {} });
    second["properties"][field] = attached.clone();
    let configurations = nic["properties"]["ipConfigurations"].as_array_mut().unwrap();
    configurations.retain(|configuration| configuration["name"] != "second");
    configurations.push(second);
    stage.admin("PATCH", "/nics/a-nic", &nic);
    stage.wait_for_write("a");
}

fn a_public_address(stage: &mut Stage) {
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    open(stage);
    let address = public_address(stage, "pip");
    attach(stage, "publicIPAddress", &json!({ "id": Stage::id("publicIPAddresses/pip") }));
    let (_a, _internet) = (stage.serve("a", 80), stage.serve("internet", 80));
    assert_eq!(stage.fetch("internet", HOST, &address, 80), "203.0.113.10 reached 10.240.0.6");
    assert_eq!(stage.fetch("a", "10.240.0.6", HOST, 80), format!("{address} reached {HOST}"));
    // The primary has none: it goes on as itself.
    assert_eq!(stage.fetch("a", "10.240.0.4", HOST, 80), "10.240.0.4 reached 203.0.113.10");
    // Inside of the network nothing is translated.
    let _b = stage.serve("b", 80);
    assert_eq!(stage.fetch("a", "10.240.0.6", "10.240.0.5", 80), "10.240.0.6 reached 10.240.0.5");
    attach(stage, "publicIPAddress", &Value::Null);
    assert_eq!(stage.fetch("internet", HOST, &address, 80), "");
    assert_eq!(stage.fetch("a", "10.240.0.6", HOST, 80), "");
}

fn a_closed_public_address(stage: &mut Stage) {
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    let address = public_address(stage, "pip");
    attach(stage, "publicIPAddress", &json!({ "id": Stage::id("publicIPAddresses/pip") }));
    let _a = stage.serve("a", 80);
    assert_eq!(stage.fetch("internet", HOST, &address, 80), "");
    open(stage);
    assert_eq!(stage.fetch("internet", HOST, &address, 80), "203.0.113.10 reached 10.240.0.6");
}

/// A load balancer `lb` with one pool, one probe on port 81 and one rule for port 80.
fn balancer(stage: &Stage, frontend: &Value, members: &Value, floating: bool) -> Value {
    let part = |part: &str| json!({ "id": Stage::id(&format!("loadBalancers/lb/{part}")) });
    stage.put(
        "loadBalancers/lb",
        &json!({ "sku": { "name": "Standard" }, "properties": {
            "frontendIPConfigurations": [{ "name": "front", "properties": frontend }],
            "backendAddressPools": [{ "name": "pool", "properties": { "loadBalancerBackendAddresses": members } }],
            "probes": [{ "name": "probe", "properties": { "protocol": "Http", "port": 81, "requestPath": "/" } }],
            "loadBalancingRules": [{ "name": "web", "properties": {
                "frontendIPConfiguration": part("frontendIPConfigurations/front"),
                "backendAddressPool": part("backendAddressPools/pool"),
                "probe": part("probes/probe"),
                "protocol": "Tcp", "frontendPort": 80, "backendPort": if floating { 80 } else { 8080 },
                "enableFloatingIP": floating,
            } }],
        } }),
    )
}

fn balancing(stage: &mut Stage) {
    open(stage);
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    let address = public_address(stage, "pip");
    let frontend = json!({ "publicIPAddress": { "id": Stage::id("publicIPAddresses/pip") } });
    let by_address = json!([{ "name": "b", "properties": { "ipAddress": "10.240.0.5" } }]);
    balancer(stage, &frontend, &by_address, false);
    attach(
        stage,
        "loadBalancerBackendAddressPools",
        &json!([{ "id": Stage::id("loadBalancers/lb/backendAddressPools/pool") }]),
    );
    let (_a, _b) = (stage.serve("a", 8080), stage.serve("b", 8080));
    // The probe has no answer yet.
    assert_eq!(stage.fetch("internet", HOST, &address, 80), "");
    let healthy_a = stage.serve("a", 81);
    stage.fetch_until("internet", HOST, &address, 80, "203.0.113.10 reached 10.240.0.6");
    let _healthy_b = stage.serve("b", 81);
    stage.fetch_until("internet", HOST, &address, 80, "203.0.113.10 reached 10.240.0.5");
    stage.fetch_until("internet", HOST, &address, 80, "203.0.113.10 reached 10.240.0.6");
    drop(healthy_a);
    // Both turns go to b as soon as a is seen to be down.
    let b = "203.0.113.10 reached 10.240.0.5";
    stage.fetch_until("internet", HOST, &address, 80, b);
    let mut in_a_row = 0;
    for _ in 0..100 {
        in_a_row = if stage.fetch("internet", HOST, &address, 80) == b { in_a_row + 1 } else { 0 };
        if in_a_row == 4 {
            return;
        }
    }
    panic!("a member that is down still gets flows");
}

fn a_floating_rule(stage: &mut Stage) {
    open(stage);
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    let address = public_address(stage, "pip");
    stage.ip("a", &format!("address add {address}/32 dev lo"));
    let frontend = json!({ "publicIPAddress": { "id": Stage::id("publicIPAddresses/pip") } });
    balancer(stage, &frontend, &json!([]), true);
    attach(
        stage,
        "loadBalancerBackendAddressPools",
        &json!([{ "id": Stage::id("loadBalancers/lb/backendAddressPools/pool") }]),
    );
    let (_a, _healthy) = (stage.serve("a", 80), stage.serve("a", 81));
    stage.fetch_until("internet", HOST, &address, 80, &format!("203.0.113.10 reached {address}"));
}

fn an_internal_balancer(stage: &mut Stage) {
    let subnet = Stage::id("virtualNetworks/vnet/subnets/nodes");
    let frontend = json!({ "subnet": { "id": subnet }, "privateIPAddress": "10.240.0.100",
        "privateIPAllocationMethod": "Static" });
    let by_address = json!([{ "name": "b", "properties": { "ipAddress": "10.240.0.5" } }]);
    let made = balancer(stage, &frontend, &by_address, false);
    let given = &made["properties"]["frontendIPConfigurations"][0]["properties"]["privateIPAddress"];
    assert_eq!(*given, "10.240.0.100");
    let (_b, _healthy) = (stage.serve("b", 8080), stage.serve("b", 81));
    stage.fetch_until("a", "10.240.0.4", "10.240.0.100", 80, "10.240.0.4 reached 10.240.0.5");
}

fn a_service_endpoint(stage: &mut Stage) {
    stage.quicken();
    let storage =
        json!({ "netns": stage.netns("c"), "address": "203.0.113.20", "service": "Microsoft.Storage" });
    stage.admin("POST", "/internet", &storage);
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    attach(stage, "loadBalancerBackendAddressPools", &json!([]));
    let _storage = stage.serve("c", 80);
    let seen = |from: &str| stage.fetch("a", from, "203.0.113.20", 80);
    assert_eq!(seen("10.240.0.4"), "203.0.113.127 reached 203.0.113.20");
    assert_eq!(seen("10.240.0.6"), "");
    stage.put_subnet("nodes", &json!({ "serviceEndpoints": [{ "service": "Microsoft.Storage" }] }));
    assert_eq!(seen("10.240.0.4"), "10.240.0.4 reached 203.0.113.20");
    assert_eq!(seen("10.240.0.6"), "10.240.0.6 reached 203.0.113.20");
}
