//! The network of simulated Azure in a real kernel: which packets arrive, and which are lost. Needs root;
//! makes its own network namespaces, named after this process, and removes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

mod exposure;
mod gateways;
mod interfaces;
mod neighbours;
mod probe;
mod routes;
mod stage;

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use stage::Stage;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "probe") {
        return probe::run(&arguments[2..]);
    }
    let mut trials = vec![
        trial("machines_reach_each_other_and_see_true_addresses", machines_reach_each_other),
        trial("an_unreserved_address_loses_its_packets_both_ways", an_unreserved_address_loses_its_packets),
        trial("an_address_is_delivered_from_the_end_of_the_write_that_adds_it", an_address_is_delivered_late),
        trial("an_address_is_lost_as_soon_as_its_removal_is_accepted", an_address_is_lost_early),
        trial("a_foreign_source_mac_is_dropped", a_foreign_source_mac_is_dropped),
        trial("only_the_primary_address_reaches_the_internet_and_the_platform", only_the_primary_reaches_out),
        trial("every_arp_request_is_answered_with_the_fabrics_mac", every_arp_request_is_answered),
        trial("ip_forwarding_lifts_the_check_of_addresses", ip_forwarding_lifts_the_check),
        trial("a_machine_whose_namespace_is_made_anew_is_plugged_again", a_rebooted_machine_is_plugged_again),
        trial("a_deleted_machine_gets_nothing_any_more", a_deleted_machine_gets_nothing),
        trial("hostility_begins_and_ends_over_the_admin_socket", hostility_begins_and_ends),
    ];
    trials.extend(routes::trials());
    trials.extend(exposure::trials());
    trials.extend(gateways::trials());
    trials.extend(interfaces::trials());
    trials.extend(neighbours::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, run: fn(&mut Stage)) -> Trial {
    Trial::test(name, move || {
        let mut stage = Stage::set().map_err(|error| Failed::from(format!("{error:#}")))?;
        run(&mut stage);
        Ok(())
    })
}

/// `a` is 10.240.0.4, `b` is 10.240.0.5, `internet` is 203.0.113.10.
fn machines_reach_each_other(stage: &mut Stage) {
    let mut b = stage.listen("b");
    stage.send("a", "10.240.0.4", "10.240.0.5", "hello");
    b.next_is("hello from 10.240.0.4 to 10.240.0.5");
    let mut a = stage.listen("a");
    stage.send("b", "10.240.0.5", "10.240.0.4", "hello back");
    a.next_is("hello back from 10.240.0.5 to 10.240.0.4");
    let mut internet = stage.listen("internet");
    stage.send("a", "10.240.0.4", "203.0.113.10", "out");
    internet.next_is("out from 10.240.0.4 to 203.0.113.10");
    stage.send("internet", "203.0.113.10", "10.240.0.4", "in");
    a.next_is("in from 203.0.113.10 to 10.240.0.4");
}

/// The packet that must not arrive is sent before the one that must: if the second comes first, the first is
/// lost.
fn an_unreserved_address_loses_its_packets(stage: &mut Stage) {
    stage.ip("a", "address add 10.240.0.77/32 dev eth0");
    let mut b = stage.listen("b");
    stage.send("a", "10.240.0.77", "10.240.0.5", "stray");
    stage.send("a", "10.240.0.4", "10.240.0.5", "good");
    b.next_is("good from 10.240.0.4 to 10.240.0.5");
    let mut a = stage.listen("a");
    stage.send("b", "10.240.0.5", "10.240.0.77", "stray");
    stage.send("b", "10.240.0.5", "10.240.0.4", "good");
    a.next_is("good from 10.240.0.5 to 10.240.0.4");
}

fn with_secondary(nic: &Value) -> Value {
    let mut nic = nic.clone();
    let added = json!({ "name": "vnp-1", "properties": {} });
    nic["properties"]["ipConfigurations"].as_array_mut().unwrap().push(added);
    nic
}

fn an_address_is_delivered_late(stage: &mut Stage) {
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    // Longer than the steps in between take, also on a machine with much other work.
    stage.admin("PATCH", "/settings", &json!({ "write_seconds": 4.0 }));
    let nic = stage.get_nic("a");
    let (mut a, mut b) = (stage.listen("a"), stage.listen("b"));
    stage.put_nic("a", &with_secondary(&nic));
    stage.send("a", "10.240.0.6", "10.240.0.5", "early");
    stage.send("a", "10.240.0.4", "10.240.0.5", "good");
    b.next_is("good from 10.240.0.4 to 10.240.0.5");
    assert_eq!(
        stage.get_nic("a")["properties"]["provisioningState"],
        "Updating",
        "this machine is too slow for the test"
    );
    stage.wait_for_write("a");
    stage.send("a", "10.240.0.6", "10.240.0.5", "late");
    b.next_is("late from 10.240.0.6 to 10.240.0.5");
    stage.send("b", "10.240.0.5", "10.240.0.6", "back");
    a.next_is("back from 10.240.0.5 to 10.240.0.6");
}

fn an_address_is_lost_early(stage: &mut Stage) {
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    let nic = stage.get_nic("a");
    stage.admin("PATCH", "/nics/a-nic", &with_secondary(&nic));
    let (mut a, mut b) = (stage.listen("a"), stage.listen("b"));
    stage.send("a", "10.240.0.6", "10.240.0.5", "reserved");
    b.next_is("reserved from 10.240.0.6 to 10.240.0.5");
    // The write takes Azure's 10 s; its acceptance is enough.
    stage.put_nic("a", &nic);
    stage.send("a", "10.240.0.6", "10.240.0.5", "stray");
    stage.send("a", "10.240.0.4", "10.240.0.5", "good");
    b.next_is("good from 10.240.0.4 to 10.240.0.5");
    stage.send("b", "10.240.0.5", "10.240.0.6", "stray");
    stage.send("b", "10.240.0.5", "10.240.0.4", "good");
    a.next_is("good from 10.240.0.5 to 10.240.0.4");
}

fn a_foreign_source_mac_is_dropped(stage: &mut Stage) {
    let mut b = stage.listen("b");
    // Known already, so that the packet isn't lost for want of an answer to ARP.
    stage.ip("a", "neighbour replace 10.240.0.5 lladdr 12:34:56:78:9a:bc dev eth0 nud permanent");
    stage.ip("a", "link set eth0 address 02:00:00:00:00:01");
    stage.ip("a", "neighbour replace 10.240.0.5 lladdr 12:34:56:78:9a:bc dev eth0 nud permanent");
    stage.send("a", "10.240.0.4", "10.240.0.5", "foreign");
    stage.ip("a", "link set eth0 address 00:0d:3a:00:00:01");
    stage.ip("a", "neighbour replace 10.240.0.5 lladdr 12:34:56:78:9a:bc dev eth0 nud permanent");
    stage.send("a", "10.240.0.4", "10.240.0.5", "own");
    b.next_is("own from 10.240.0.4 to 10.240.0.5");
}

fn only_the_primary_reaches_out(stage: &mut Stage) {
    stage.ip("a", "address add 10.240.0.6/32 dev eth0");
    let nic = stage.get_nic("a");
    stage.admin("PATCH", "/nics/a-nic", &with_secondary(&nic));
    let (mut internet, mut a) = (stage.listen("internet"), stage.listen("a"));
    stage.send("a", "10.240.0.6", "203.0.113.10", "secondary");
    stage.send("a", "10.240.0.4", "203.0.113.10", "primary");
    internet.next_is("primary from 10.240.0.4 to 203.0.113.10");
    stage.send("internet", "203.0.113.10", "10.240.0.6", "secondary");
    stage.send("internet", "203.0.113.10", "10.240.0.4", "primary");
    a.next_is("primary from 203.0.113.10 to 10.240.0.4");
    for platform in ["169.254.169.254", "168.63.129.16", "198.51.100.10"] {
        assert!(stage.reaches("a", "10.240.0.4", platform), "{platform} doesn't answer the primary");
        assert!(!stage.reaches("a", "10.240.0.6", platform), "{platform} answers a secondary");
    }
}

fn every_arp_request_is_answered(stage: &mut Stage) {
    // The gateway, a neighbour, an address that no machine has.
    for address in ["10.240.0.1", "10.240.0.5", "10.240.3.3"] {
        stage.send("a", "10.240.0.4", address, "who has it?");
        let neighbour = stage.neighbour("a", address);
        assert_eq!(neighbour, "12:34:56:78:9a:bc", "{address}");
    }
}

fn ip_forwarding_lifts_the_check(stage: &mut Stage) {
    stage.ip("a", "address add 10.99.0.1/32 dev eth0");
    let mut b = stage.listen("b");
    stage.send("a", "10.99.0.1", "10.240.0.5", "stray");
    stage.admin("PATCH", "/nics/a-nic", &json!({ "properties": { "enableIPForwarding": true } }));
    stage.send("a", "10.99.0.1", "10.240.0.5", "forwarded");
    b.next_is("forwarded from 10.99.0.1 to 10.240.0.5");
}

fn a_rebooted_machine_is_plugged_again(stage: &mut Stage) {
    stage.remake("a");
    stage.admin("POST", "/vms/a/replug", &Value::Null);
    machines_reach_each_other(stage);
}

fn a_deleted_machine_gets_nothing(stage: &mut Stage) {
    stage.admin("DELETE", "/vms/a", &Value::Null);
    assert!(!stage.has_link("a"), "eth0 is still there");
    let mut internet = stage.listen("internet");
    stage.send("b", "10.240.0.5", "10.240.0.4", "stray");
    stage.send("b", "10.240.0.5", "203.0.113.10", "good");
    internet.next_is("good from 10.240.0.5 to 203.0.113.10");
}

/// Of this seed the first answer that isn't as always is a refusal.
fn hostility_begins_and_ends(stage: &mut Stage) {
    let is_answered = |stage: &Stage| stage.get_nic("a")["properties"]["ipConfigurations"].is_array();
    stage.admin("PUT", "/hostility", &json!({ "seed": 1, "codes": [[400, "SomeCode"], [null, "Another"]] }));
    assert!((0..50).any(|_| !is_answered(stage)), "fifty answers are as always");
    stage.admin("DELETE", "/hostility", &Value::Null);
    assert!((0..50).all(|_| is_answered(stage)), "an answer isn't as always");
}
