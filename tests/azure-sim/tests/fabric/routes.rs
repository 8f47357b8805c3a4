//! User-defined routes: the effect of a subnet's route table on its machines' packets.

use crate::stage::Stage;
use crate::trial;
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_route_to_an_appliance_steers_packets_only_through_a_nic_that_forwards",
            through_an_appliance,
        ),
        trial("the_longest_prefix_wins_and_none_drops", the_longest_prefix_wins),
        trial("a_route_for_everything_replaces_the_internet", a_default_route_replaces_the_internet),
        trial("a_range_routed_to_a_node_arrives_there_and_its_answers_leave", a_range_routed_to_a_node),
    ]
}

fn route(name: &str, prefix: &str, hop: &str, address: Option<&str>) -> Value {
    let mut route = json!({ "name": name, "properties": { "addressPrefix": prefix, "nextHopType": hop } });
    if let Some(address) = address {
        route["properties"]["nextHopIpAddress"] = json!(address);
    }
    route
}

/// Gives the subnet `nodes`, that of `a` and `b`, a route table.
fn steer(stage: &Stage, routes: &[Value]) {
    stage.put("routeTables/steer", &json!({ "properties": { "routes": routes } }));
    stage.put_subnet("nodes", &json!({ "routeTable": { "id": Stage::id("routeTables/steer") } }));
}

/// `c` is 10.240.16.4. The packet that must not arrive is sent before the one that must.
fn through_an_appliance(stage: &mut Stage) {
    stage.add_vm("c", &json!({ "subnet": "small" }));
    stage.sysctl("c", "net.ipv4.ip_forward=1");
    stage.sysctl("c", "net.ipv4.conf.all.send_redirects=0");
    stage.sysctl("c", "net.ipv4.conf.eth0.send_redirects=0");
    steer(stage, &[route("b", "10.240.0.5/32", "VirtualAppliance", Some("10.240.16.4"))]);
    let mut b = stage.listen("b");
    stage.send("a", "10.240.0.4", "10.240.0.5", "not for c");
    stage.admin("PATCH", "/nics/c-nic", &json!({ "properties": { "enableIPForwarding": true } }));
    stage.sysctl("c", "net.ipv4.ip_forward=0");
    stage.send("a", "10.240.0.4", "10.240.0.5", "c does nothing");
    stage.sysctl("c", "net.ipv4.ip_forward=1");
    stage.send("a", "10.240.0.4", "10.240.0.5", "through c");
    b.next_is("through c from 10.240.0.4 to 10.240.0.5");
    // The table doesn't concern the way back.
    let mut a = stage.listen("a");
    stage.sysctl("c", "net.ipv4.ip_forward=0");
    stage.send("b", "10.240.0.5", "10.240.0.4", "straight back");
    a.next_is("straight back from 10.240.0.5 to 10.240.0.4");
}

fn the_longest_prefix_wins(stage: &mut Stage) {
    stage.add_vm("c", &json!({ "subnet": "small" }));
    steer(stage, &[route("small", "10.240.16.0/28", "None", None)]);
    let mut c = stage.listen("c");
    stage.send("a", "10.240.0.4", "10.240.16.4", "nowhere");
    stage.put("routeTables/steer/routes/c", &route("c", "10.240.16.4/32", "VnetLocal", None));
    stage.send("a", "10.240.0.4", "10.240.16.4", "local");
    c.next_is("local from 10.240.0.4 to 10.240.16.4");
}

fn a_default_route_replaces_the_internet(stage: &mut Stage) {
    stage.add_vm("c", &json!({ "subnet": "small" }));
    steer(stage, &[route("all", "0.0.0.0/0", "None", None)]);
    let mut internet = stage.listen("internet");
    stage.send("a", "10.240.0.4", "203.0.113.10", "nowhere");
    // Another subnet has no part in it.
    stage.send("c", "10.240.16.4", "203.0.113.10", "from small");
    internet.next_is("from small from 10.240.16.4 to 203.0.113.10");
    stage.put("routeTables/steer/routes/host", &route("host", "203.0.113.10/32", "Internet", None));
    stage.send("a", "10.240.0.4", "203.0.113.10", "out");
    internet.next_is("out from 10.240.0.4 to 203.0.113.10");
    // The VNet's own route is longer.
    let mut b = stage.listen("b");
    stage.send("a", "10.240.0.4", "10.240.0.5", "inside");
    b.next_is("inside from 10.240.0.4 to 10.240.0.5");
}

/// The way of kubenet: a range of pods behind each node.
fn a_range_routed_to_a_node(stage: &mut Stage) {
    stage.add_vm("c", &json!({ "subnet": "small" }));
    stage.ip("c", "address add 10.244.1.5/32 dev lo");
    let mut c = stage.listen("c");
    stage.send("a", "10.240.0.4", "10.244.1.5", "no route");
    steer(stage, &[route("pods-of-c", "10.244.1.0/24", "VirtualAppliance", Some("10.240.16.4"))]);
    stage.send("a", "10.240.0.4", "10.244.1.5", "to a NIC that doesn't forward");
    stage.admin("PATCH", "/nics/c-nic", &json!({ "properties": { "enableIPForwarding": true } }));
    stage.send("a", "10.240.0.4", "10.244.1.5", "routed");
    c.next_is("routed from 10.240.0.4 to 10.244.1.5");
    let mut a = stage.listen("a");
    stage.send("c", "10.244.1.5", "10.240.0.4", "answer");
    a.next_is("answer from 10.244.1.5 to 10.240.0.4");
}
