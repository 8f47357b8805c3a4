//! Hosts beyond a machine's own network (peers, premises, names), and the security groups on the way.

use crate::stage::Stage;
use crate::trial;
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("peered_networks_reach_each_other_when_both_sides_have_a_peering", peered_networks),
        trial("a_peering_that_one_side_closes_lets_no_packet_through", closed_peering),
        trial("a_range_that_a_peer_has_got_is_reached_once_both_are_in_sync", grown_peer),
        trial("a_peering_of_subnets_leads_from_those_it_names_to_those_it_names", peered_subnets),
        trial("nothing_reaches_a_stopped_machine_and_all_does_when_it_is_started", stopped),
        trial("premises_are_reached_through_the_gateway_with_true_addresses", premises),
        trial("a_security_group_decides_by_source_and_destination_and_lets_answers_pass", security_groups),
        trial("a_subnets_and_a_nics_group_must_both_allow", two_groups),
        trial("an_application_security_group_stands_for_its_members_addresses", an_application_group),
        trial("the_resolver_knows_private_zones_machines_and_labels_and_answers_only_the_primary", names),
    ]
}

fn peer(stage: &Stage, from: &str, to: &str, is_open: bool) {
    let id = Stage::id(&format!("virtualNetworks/{to}"));
    let body = json!({ "properties": { "remoteVirtualNetwork": { "id": id }, "allowGatewayTransit": true,
        "allowVirtualNetworkAccess": is_open } });
    stage.put(&format!("virtualNetworks/{from}/virtualNetworkPeerings/to-{to}"), &body);
}

/// A network that isn't that of `a` and `b`, with subnet `far`.
fn far() -> Value {
    let space = json!({ "addressPrefixes": ["10.60.0.0/16"] });
    let subnets = json!([{ "name": "far", "properties": { "addressPrefix": "10.60.0.0/24" } }]);
    json!({ "properties": { "addressSpace": space, "subnets": subnets } })
}

/// Makes `c`, which is 10.60.0.4 in a network of its own.
fn add_far(stage: &mut Stage) {
    stage.put("virtualNetworks/other", &far());
    stage.add_vm("c", &json!({ "vnet": "other", "subnet": "far" }));
}

/// `c` is 10.61.0.4 here, in a range that its network didn't have when it was peered with.
fn grown_peer(stage: &mut Stage) {
    let mut other = stage.put("virtualNetworks/other", &far());
    peer(stage, "vnet", "other", true);
    peer(stage, "other", "vnet", true);
    for (list, new) in [
        ("/properties/addressSpace/addressPrefixes", json!("10.61.0.0/16")),
        ("/properties/subnets", json!({ "name": "new", "properties": { "addressPrefix": "10.61.0.0/24" } })),
    ] {
        other.pointer_mut(list).unwrap().as_array_mut().unwrap().push(new);
    }
    other["properties"]["virtualNetworkPeerings"] =
        stage.get("virtualNetworks/other")["properties"]["virtualNetworkPeerings"].clone();
    stage.put("virtualNetworks/other", &other);
    stage.add_vm("c", &json!({ "vnet": "other", "subnet": "new" }));
    let mut c = stage.listen("c");
    stage.send("a", "10.240.0.4", "10.61.0.4", "not in sync");
    let peering = stage.get("virtualNetworks/vnet/virtualNetworkPeerings/to-other");
    let prefixes = |space: &str| peering["properties"][space]["addressPrefixes"].as_array().unwrap().len();
    assert_eq!(prefixes("remoteAddressSpace"), 1, "{peering}");
    assert_eq!(prefixes("remoteVirtualNetworkAddressSpace"), 2, "{peering}");
    assert_eq!(peering["properties"]["peeringSyncLevel"], "RemoteNotInSync");
    stage.put("virtualNetworks/vnet/virtualNetworkPeerings/to-other?syncRemoteAddressSpace=true", &peering);
    stage.send("a", "10.240.0.4", "10.61.0.4", "in sync");
    c.next_is("in sync from 10.240.0.4 to 10.61.0.4");
}

fn peered_subnets(stage: &mut Stage) {
    add_far(stage);
    let put = |from: &str, to: &str, locals: &str, remotes: &str| {
        let id = Stage::id(&format!("virtualNetworks/{to}"));
        let body = json!({ "properties": { "remoteVirtualNetwork": { "id": id }, "peerCompleteVnets": false,
            "localSubnetNames": [locals], "remoteSubnetNames": [remotes] } });
        let peering = format!("virtualNetworks/{from}/virtualNetworkPeerings/to-{to}");
        stage.put(&format!("{peering}?syncRemoteAddressSpace=true"), &body);
    };
    put("other", "vnet", "far", "nodes");
    let mut c = stage.listen("c");
    put("vnet", "other", "small", "far");
    stage.send("a", "10.240.0.4", "10.60.0.4", "from another subnet");
    put("vnet", "other", "nodes", "none");
    stage.send("a", "10.240.0.4", "10.60.0.4", "to another subnet");
    put("vnet", "other", "nodes", "far");
    stage.send("a", "10.240.0.4", "10.60.0.4", "as named");
    c.next_is("as named from 10.240.0.4 to 10.60.0.4");
}

fn peered_networks(stage: &mut Stage) {
    add_far(stage);
    let (mut a, mut c) = (stage.listen("a"), stage.listen("c"));
    stage.send("a", "10.240.0.4", "10.60.0.4", "no peering");
    peer(stage, "vnet", "other", true);
    stage.send("a", "10.240.0.4", "10.60.0.4", "one side only");
    stage.send("c", "10.60.0.4", "10.240.0.4", "one side only");
    peer(stage, "other", "vnet", true);
    stage.send("a", "10.240.0.4", "10.60.0.4", "there");
    c.next_is("there from 10.240.0.4 to 10.60.0.4");
    stage.send("c", "10.60.0.4", "10.240.0.4", "and back");
    a.next_is("and back from 10.60.0.4 to 10.240.0.4");
}

fn closed_peering(stage: &mut Stage) {
    add_far(stage);
    peer(stage, "vnet", "other", true);
    peer(stage, "other", "vnet", false);
    let (mut a, mut c) = (stage.listen("a"), stage.listen("c"));
    stage.send("a", "10.240.0.4", "10.60.0.4", "closed there");
    stage.send("c", "10.60.0.4", "10.240.0.4", "closed here");
    peer(stage, "other", "vnet", true);
    stage.send("a", "10.240.0.4", "10.60.0.4", "open");
    c.next_is("open from 10.240.0.4 to 10.60.0.4");
    stage.send("c", "10.60.0.4", "10.240.0.4", "open, too");
    a.next_is("open, too from 10.60.0.4 to 10.240.0.4");
}

fn stopped(stage: &mut Stage) {
    stage.admin("POST", "/vms/b/deallocate", &json!({}));
    stage.send("a", "10.240.0.4", "10.240.0.5", "to nobody");
    stage.admin("POST", "/vms/b/start", &json!({}));
    let mut b = stage.listen("b");
    stage.send("a", "10.240.0.4", "10.240.0.5", "started");
    b.next_is("started from 10.240.0.4 to 10.240.0.5");
}

fn premises(stage: &mut Stage) {
    stage.quicken();
    let mut premises = stage.listen("premises");
    let network = json!({ "netns": stage.netns("premises"), "address": "192.168.0.10", "vnet": "vnet",
        "prefixes": ["192.168.0.0/16"] });
    stage.admin("POST", "/premises", &network);
    stage.send("a", "10.240.0.4", "192.168.0.10", "up");
    premises.next_is("up from 10.240.0.4 to 192.168.0.10");
    let mut a = stage.listen("a");
    stage.send("premises", "192.168.0.10", "10.240.0.4", "down");
    a.next_is("down from 192.168.0.10 to 10.240.0.4");
    // A table that takes no learned routes has no way there.
    stage.put("routeTables/shut", &json!({ "properties": { "disableBgpRoutePropagation": true } }));
    stage.put_subnet("nodes", &json!({ "routeTable": { "id": Stage::id("routeTables/shut") } }));
    stage.send("a", "10.240.0.4", "192.168.0.10", "no route");
    stage.put_subnet("nodes", &json!({}));
    stage.send("b", "10.240.0.5", "192.168.0.10", "open again");
    premises.next_is("open again from 10.240.0.5 to 192.168.0.10");
}

fn rule(name: &str, priority: u32, access: &str, from: &str, to: &str) -> Value {
    json!({ "name": name, "properties": { "priority": priority, "direction": "Inbound", "access": access, "protocol": "*",
        "sourceAddressPrefix": from, "sourcePortRange": "*", "destinationAddressPrefix": to,
        "destinationPortRange": "*" } })
}

fn group(stage: &Stage, name: &str, rules: &[Value]) {
    stage.put(&format!("networkSecurityGroups/{name}"), &json!({ "properties": { "securityRules": rules } }));
}

fn guard_subnet(stage: &Stage, name: &str) {
    let group = json!({ "id": Stage::id(&format!("networkSecurityGroups/{name}")) });
    stage.put_subnet("nodes", &json!({ "networkSecurityGroup": group }));
}

fn security_groups(stage: &mut Stage) {
    stage.add_vm("c", &json!({ "subnet": "small" }));
    let closed = rule("not-c", 200, "Deny", "10.240.16.4", "10.240.0.5");
    group(stage, "g", &[closed]);
    guard_subnet(stage, "g");
    let mut b = stage.listen("b");
    stage.send("c", "10.240.16.4", "10.240.0.5", "denied");
    stage.send("a", "10.240.0.4", "10.240.0.5", "allowed");
    b.next_is("allowed from 10.240.0.4 to 10.240.0.5");
    let mut a = stage.listen("a");
    stage.send("c", "10.240.16.4", "10.240.0.4", "another destination");
    a.next_is("another destination from 10.240.16.4 to 10.240.0.4");
    // The answer to a flow that b began is no new flow.
    let _c = stage.serve("c", 80);
    assert_eq!(stage.fetch("b", "10.240.0.5", "10.240.16.4", 80), "10.240.0.5 reached 10.240.16.4");
    // The rule that comes first decides.
    stage.put("networkSecurityGroups/g/securityRules/c", &rule("c", 100, "Allow", "10.240.16.0/28", "*"));
    stage.send("c", "10.240.16.4", "10.240.0.5", "allowed now");
    b.next_is("allowed now from 10.240.16.4 to 10.240.0.5");
}

fn two_groups(stage: &mut Stage) {
    group(stage, "open", &[]);
    group(stage, "shut", &[rule("all", 100, "Deny", "VirtualNetwork", "*")]);
    guard_subnet(stage, "open");
    let mut b = stage.listen("b");
    let shut = json!({ "networkSecurityGroup": { "id": Stage::id("networkSecurityGroups/shut") } });
    stage.admin("PATCH", "/nics/b-nic", &json!({ "properties": shut }));
    stage.send("a", "10.240.0.4", "10.240.0.5", "denied by the NIC's");
    stage.admin("PATCH", "/nics/b-nic", &json!({ "properties": { "networkSecurityGroup": null } }));
    stage.send("a", "10.240.0.4", "10.240.0.5", "allowed by both");
    b.next_is("allowed by both from 10.240.0.4 to 10.240.0.5");
}

fn an_application_group(stage: &mut Stage) {
    stage.put("applicationSecurityGroups/web", &json!({}));
    let web = json!([{ "id": Stage::id("applicationSecurityGroups/web") }]);
    let mut deny = rule("web", 100, "Deny", "*", "*");
    deny["properties"].as_object_mut().unwrap().remove("sourceAddressPrefix");
    deny["properties"]["sourceApplicationSecurityGroups"] = web.clone();
    group(stage, "g", &[deny]);
    guard_subnet(stage, "g");
    let mut b = stage.listen("b");
    stage.send("a", "10.240.0.4", "10.240.0.5", "no member");
    b.next_is("no member from 10.240.0.4 to 10.240.0.5");
    let mut nic = stage.get_nic("a");
    nic["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] = web;
    stage.put_nic_now("a", &nic);
    stage.send("a", "10.240.0.4", "10.240.0.5", "a member");
    nic["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] = json!([]);
    stage.put_nic_now("a", &nic);
    stage.send("a", "10.240.0.4", "10.240.0.5", "no member again");
    b.next_is("no member again from 10.240.0.4 to 10.240.0.5");
}

fn names(stage: &mut Stage) {
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    stage.admin("PUT", "/names", &json!({ "db.corp.example": "10.240.0.99" }));
    let labelled = json!({ "sku": { "name": "Standard" }, "properties": { "publicIPAllocationMethod": "Static",
        "dnsSettings": { "domainNameLabel": "shop" } } });
    let made = stage.put("publicIPAddresses/pip", &labelled);
    assert_eq!(made["properties"]["dnsSettings"]["fqdn"], "shop.westeurope.cloudapp.azure.com");
    let mut nic = stage.get_nic("a");
    nic["properties"]["ipConfigurations"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "second", "properties": {} }));
    stage.put_nic_now("a", &nic);
    let asked = |from: &str, name: &str| stage.resolve("a", from, name);
    assert_eq!(asked("10.240.0.4", "db.corp.example"), "10.240.0.99");
    assert_eq!(asked("10.240.0.4", "DB.corp.example"), "10.240.0.99");
    assert_eq!(asked("10.240.0.4", "b.simulated0azure0internal0.ax.internal.cloudapp.net"), "10.240.0.5");
    assert_eq!(asked("10.240.0.4", "shop.westeurope.cloudapp.azure.com"), "203.0.113.128");
    assert_eq!(asked("10.240.0.4", "nobody.corp.example"), "NameError");
    assert_eq!(asked("10.240.0.6", "db.corp.example"), "no answer");
}
