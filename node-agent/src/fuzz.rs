//! Any bytes as what the agent learns of its node: an answer of the instance metadata service, and the node's
//! object.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;
use serde_json::Value;
use vnetpool_crds::{NodeIPAllocation, allocation::Interface, pool::MetadataAccess};
use vnetpool_plugin::ledger::{Claim, Ledger, Pod, Sandbox, Supply};

use crate::{
    firewall::Rules,
    imds::{Instance, Network, Settings, listing::Listing},
    supply::supply,
};

/// The VM's own address, from which it asks.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);

/// No address of the VM's own is handed out, and none that the answer doesn't list. Returns whether any is.
fn is_instance(bytes: &[u8]) -> bool {
    let Ok(instance) = serde_json::from_slice::<Instance>(bytes) else { return false };
    let settings = Settings {
        cooldown: Duration::from_secs(30).into(),
        snat_exclusions: vec![],
        pod_metadata_access: MetadataAccess::All,
    };
    let Ok(mut object) = instance.allocation(OWN, &settings, "boot", 7) else { return false };
    let [nic] = &object.spec.interfaces[..] else { panic!("one NIC is the VM's own: {object:?}") };
    assert_eq!(nic.primary_address.parse(), Ok(OWN));
    for one in &nic.ip_configurations {
        let range: Ipv4Net = one.address.parse().unwrap();
        assert!(!range.contains(&OWN), "{range}");
    }
    // Of a field that isn't read the answer may hold anything.
    if let Ok(answer) = serde_json::from_slice::<Value>(bytes) {
        is_compared(nic, &answer["network"]);
    }
    object.metadata.uid.get_or_insert_default();
    supply(&object).is_ok_and(|supply| {
        is_handed_out_once(&supply);
        assert!(supply.entries.iter().all(|entry| entry.address != OWN));
        !supply.entries.is_empty()
    })
}

/// What an answer lists is not missing by the same answer.
fn is_compared(nic: &Interface, answer: &Value) {
    let answer: Network = serde_json::from_value(answer.clone()).unwrap();
    let mut listing = Listing::default();
    for _ in 0..3 {
        listing.take_in(nic, &answer);
    }
    assert_eq!(listing.comparison().unlisted, BTreeSet::new());
}

/// A ledger that is built from it gives no address to two sandboxes, however often it is there.
fn is_handed_out_once(supply: &Supply) {
    let mut ledger = Ledger::rebuild(&supply.boot_id, &[], &[], supply, None, 0, true);
    for number in 0..supply.entries.len() {
        let sandbox = Sandbox { container_id: number.to_string(), ifname: "eth0".to_owned() };
        ledger.assign(&Claim::wired(&sandbox, &Pod::default(), ""), 0);
    }
    let mut in_use = BTreeSet::new();
    for (entry, _) in ledger.assignments() {
        assert!(in_use.insert(entry.address), "{} goes to two sandboxes: {supply:?}", entry.address);
    }
}

/// An object of which rules or addresses are made is the same after it was written and read. Returns whether
/// it has addresses to hand out.
fn is_object(bytes: &[u8]) -> bool {
    let Ok(object) = serde_json::from_slice::<NodeIPAllocation>(bytes) else { return false };
    let written = serde_json::to_value(&object).unwrap();
    let read: NodeIPAllocation = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), written);
    if let Ok(rules) = Rules::new(&object.spec, |mac| (!mac.is_empty()).then(|| "eth0".to_owned())) {
        for (one, next) in rules.direct.iter().zip(rules.direct.iter().skip(1)) {
            assert!(!one.contains(next) && !next.contains(one), "{one} and {next}");
        }
        let words = |c: char| c.is_ascii_alphanumeric() || " \t\n{}\"*.,:;!=@/_-+".contains(c);
        let text = rules.render();
        assert!(text.chars().all(words), "{text}");
    }
    supply(&object).is_ok_and(|supply| {
        is_handed_out_once(&supply);
        !supply.entries.is_empty()
    })
}

#[test]
fn of_no_answer_of_the_metadata_service_the_vms_own_address_is_handed_out() {
    vnetpool_fuzz::search("metadata", is_instance);
}

#[test]
fn of_no_object_an_address_is_handed_out_twice() {
    vnetpool_fuzz::search("allocation", is_object);
}
