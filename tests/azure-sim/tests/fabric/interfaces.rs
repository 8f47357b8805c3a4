//! Machines with several NICs: each is a link of its own, with its own addresses.

use crate::stage::Stage;
use crate::trial;
use libtest_mimic::Trial;
use serde_json::json;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "each_nic_takes_and_sends_only_packets_of_its_own",
            each_nic_takes_and_sends_only_packets_of_its_own,
        ),
        trial("a_rebooted_machine_gets_all_its_nics_again", a_rebooted_machine_gets_all_its_nics_again),
    ]
}

/// `a` is 10.240.0.4 on `eth0` and, from here on, 10.240.16.4 on `eth1`.
fn with_a_second(stage: &Stage) {
    stage.admin("POST", "/vms/a/nics", &json!({ "subnet": "small" }));
}

/// The packet that must not arrive is sent before the one that must.
fn each_nic_takes_and_sends_only_packets_of_its_own(stage: &mut Stage) {
    with_a_second(stage);
    let (mut a, mut b) = (stage.listen("a"), stage.listen("b"));
    stage.send("b", "10.240.0.5", "10.240.16.4", "to the second");
    a.next_is("to the second from 10.240.0.5 to 10.240.16.4");
    // It has no route of its own but to its subnet.
    stage.send("a", "10.240.16.4", "10.240.0.5", "by the first");
    stage.ip("a", "rule add from 10.240.16.4 lookup 100");
    stage.ip("a", "route add default via 10.240.16.1 dev eth1 table 100");
    stage.send("a", "10.240.16.4", "10.240.0.5", "by the second");
    b.next_is("by the second from 10.240.16.4 to 10.240.0.5");
    assert!(stage.reaches("a", "10.240.0.4", "169.254.169.254"), "IMDS doesn't answer the first");
    assert!(!stage.reaches("a", "10.240.16.4", "169.254.169.254"), "IMDS answers the second");
}

fn a_rebooted_machine_gets_all_its_nics_again(stage: &mut Stage) {
    with_a_second(stage);
    stage.remake("a");
    stage.admin("POST", "/vms/a/replug", &json!(null));
    let mut a = stage.listen("a");
    for own in ["10.240.0.4", "10.240.16.4"] {
        stage.send("b", "10.240.0.5", own, "again");
        a.next_is(&format!("again from 10.240.0.5 to {own}"));
    }
}
