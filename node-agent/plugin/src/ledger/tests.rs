//! The rules of the ledger, one by one and under any sequence of events.

mod properties;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use super::*;

const BOOT: &str = "this-boot";
const COOLDOWN: Millis = 30_000;
/// Long after boot, so that a cooldown lies behind.
const START: Millis = 1_000_000;

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn entry(number: u8) -> Entry {
    Entry { name: format!("vnp-{number}"), address: address(number), attached_to: None }
}

fn supply(generation: i64, numbers: &[u8]) -> Supply {
    Supply {
        object: "allocation".to_owned(),
        generation,
        node_uid: "node".to_owned(),
        boot_id: BOOT.to_owned(),
        cooldown: Duration::from_millis(COOLDOWN),
        entries: numbers.iter().copied().map(entry).collect(),
    }
}

/// A ledger on the first start of a node.
fn holding(numbers: &[u8]) -> Ledger {
    Ledger::rebuild(BOOT, &[], &[], &supply(1, numbers), None, START, true)
}

fn sandbox(number: u8) -> Sandbox {
    Sandbox { container_id: format!("container{number}"), ifname: "eth0".to_owned() }
}

fn pod(number: u8) -> Pod {
    Pod { namespace: "default".to_owned(), name: format!("pod{number}"), uid: format!("uid{number}") }
}

fn occupant(number: u8, address: Ipv4Addr) -> Occupant {
    let proof = Proof::Link(sandbox(number).host_link(&pod(number)));
    Occupant { sandbox: sandbox(number), pod: pod(number), address, proof }
}

fn assign(ledger: &mut Ledger, number: u8, now: Millis) -> Option<Ipv4Addr> {
    match ledger.assign(&Claim::wired(&sandbox(number), &pod(number), ""), now) {
        Assign::Assigned(address) => Some(address),
        Assign::Waiting => None,
    }
}

fn written(ledger: &Ledger) -> String {
    String::from_utf8(format::write(ledger).pieces().flatten().copied().collect()).unwrap()
}

fn read(text: &str) -> Ledger {
    format::read(&Arc::new(text.into())).unwrap()
}

/// A sandbox that gets an address has it still when its ledger was written and read.
pub(crate) fn is_kept(sandbox: &Sandbox, pod: &Pod, network: &str) {
    let mut ledger = holding(&[1]);
    let proof = Proof::Link(sandbox.host_link(pod));
    assert_eq!(ledger.assign(&Claim { sandbox, pod, network, proof }, START), Assign::Assigned(address(1)));
    let read = read(&written(&ledger));
    assert_eq!((&read, read.address_of(sandbox)), (&ledger, Some(address(1))));
}

#[test]
fn the_same_sandbox_gets_the_same_address_again() {
    let mut ledger = holding(&[1, 2]);
    assert_eq!(assign(&mut ledger, 7, START), Some(address(1)));
    assert_eq!(assign(&mut ledger, 7, START), Some(address(1)));
    assert_eq!(ledger.counts(START).assigned, 1);
}

#[test]
fn a_cooling_address_is_not_free() {
    let mut ledger = holding(&[1]);
    assign(&mut ledger, 7, START);
    assert_eq!(ledger.free(&sandbox(7), START + 1), Some(address(1)));
    let counts = ledger.counts(START + COOLDOWN);
    assert_eq!((counts.cooling, counts.free), (1, 0));
    let ready = START + 1 + COOLDOWN;
    assert_eq!(assign(&mut ledger, 8, ready - 1), None);
    assert_eq!(ledger.next_ready(ready - 1), Some(ready));
    assert_eq!(assign(&mut ledger, 8, ready), Some(address(1)));
}

#[test]
fn addresses_go_out_in_the_order_in_which_they_were_freed() {
    let mut ledger = holding(&[1, 2, 3]);
    for number in [1, 2, 3] {
        assign(&mut ledger, number, START);
    }
    for (number, now) in [(2, START + 1), (3, START + 2), (1, START + 3)] {
        ledger.free(&sandbox(number), now);
    }
    let later = START + 3 + COOLDOWN;
    let order: Vec<_> =
        [7, 8, 9].into_iter().filter_map(|number| assign(&mut ledger, number, later)).collect();
    assert_eq!(order, [address(2), address(3), address(1)]);
}

#[test]
fn waiters_are_served_first_come_first_served() {
    let mut ledger = holding(&[]);
    for number in [7, 8, 9] {
        assert_eq!(assign(&mut ledger, number, START), None);
    }
    ledger.supply(&supply(2, &[1, 2]));
    // A newcomer doesn't get ahead of them.
    assert_eq!(assign(&mut ledger, 10, START), None);
    assert_eq!(ledger.address_of(&sandbox(7)), Some(address(1)));
    assert_eq!(ledger.address_of(&sandbox(8)), Some(address(2)));
    let waiting: Vec<_> = ledger.waiting().iter().map(|waiter| waiter.sandbox.clone()).collect();
    assert_eq!(waiting, [sandbox(9), sandbox(10)]);
}

#[test]
fn a_waiter_whose_add_is_dead_is_skipped() {
    let mut ledger = holding(&[]);
    assign(&mut ledger, 7, START);
    assign(&mut ledger, 8, START);
    ledger.supply(&supply(2, &[1]));
    ledger.serve(START, |alive| *alive == sandbox(8));
    assert_eq!(ledger.address_of(&sandbox(8)), Some(address(1)));
    assert!(ledger.waiting().is_empty());
}

#[test]
fn freeing_a_sandbox_ends_its_waiting() {
    let mut ledger = holding(&[]);
    assign(&mut ledger, 7, START);
    assert_eq!(ledger.free(&sandbox(7), START), None);
    assert!(!ledger.is_waiting(&sandbox(7)));
}

#[test]
fn the_surplus_is_relinquished_oldest_first_and_never_handed_out_again() {
    let mut ledger = holding(&[1, 2, 3, 4]);
    for number in [1, 2, 3] {
        assign(&mut ledger, number, START);
    }
    ledger.free(&sandbox(2), START + 1);
    ledger.free(&sandbox(1), START + 2);
    let cooled = START + 1 + COOLDOWN;
    // 4 was never used, 2 has cooled, 1 is still cooling, 3 is in use.
    assert_eq!(ledger.relinquish(0, cooled), ["vnp-4", "vnp-2"]);
    assert_eq!(ledger.counts(cooled).held, 2);
    // The spec still has them, until the operator has taken them off the NIC.
    ledger.supply(&supply(2, &[1, 2, 3, 4]));
    assert_eq!(ledger.relinquished().collect::<Vec<_>>(), ["vnp-4", "vnp-2"]);
    let later = cooled + COOLDOWN;
    assert_eq!(assign(&mut ledger, 7, later), Some(address(1)));
    assert_eq!(assign(&mut ledger, 8, later), None);
}

#[test]
fn addresses_up_to_the_target_are_kept() {
    let mut ledger = holding(&[1, 2, 3]);
    assert_eq!(ledger.relinquish(2, START), ["vnp-1"]);
    assert_eq!(ledger.relinquish(2, START), Vec::<String>::new());
}

#[test]
fn a_relinquished_entry_is_forgotten_once_the_spec_has_it_no_more() {
    let mut ledger = holding(&[1, 2]);
    ledger.relinquish(1, START);
    ledger.supply(&supply(2, &[2]));
    assert_eq!(ledger.relinquished().count(), 0);
    assert_eq!(ledger.counts(START).withdrawn, 0);
}

#[test]
fn a_late_view_of_the_spec_does_not_bring_a_forgotten_entry_back() {
    let mut ledger = holding(&[1, 2]);
    ledger.relinquish(1, START);
    assert_eq!(ledger.supply(&supply(3, &[2])), Supplied::Applied);
    let before = ledger.clone();
    assert_eq!(ledger.supply(&supply(2, &[1, 2])), Supplied::Stale);
    assert_eq!(ledger, before);
}

#[test]
fn a_spec_of_another_boot_changes_nothing() {
    let mut ledger = holding(&[1]);
    let before = ledger.clone();
    let other = Supply { boot_id: "other-boot".to_owned(), ..supply(2, &[1, 2]) };
    assert_eq!(ledger.supply(&other), Supplied::OtherBoot);
    assert_eq!(ledger, before);
}

#[test]
fn a_free_entry_gone_from_the_spec_is_withdrawn_until_it_comes_back() {
    let mut ledger = holding(&[1, 2]);
    ledger.supply(&supply(2, &[2]));
    assert_eq!(ledger.counts(START), Counts { held: 1, free: 1, withdrawn: 1, ..Counts::default() });
    assert_eq!(assign(&mut ledger, 7, START), Some(address(2)));
    assert_eq!(assign(&mut ledger, 8, START), None);
    ledger.supply(&supply(3, &[1, 2]));
    assert_eq!(assign(&mut ledger, 8, START), Some(address(1)));
}

#[test]
fn without_the_nodes_rules_no_pod_gets_an_address_and_with_them_all_is_as_it_was() {
    let mut ledger = holding(&[1, 2]);
    assign(&mut ledger, 7, START);
    assign(&mut ledger, 8, START);
    ledger.free(&sandbox(8), START);
    ledger.rule(false);
    assert_eq!(ledger.supply(&supply(2, &[1, 2, 3])), Supplied::Applied);
    let counts = Counts { held: 1, assigned: 1, withheld: 2, ..Counts::default() };
    assert_eq!(ledger.counts(START + COOLDOWN), counts);
    assert_eq!(ledger.next_ready(START), None, "time alone makes nothing ready");
    assert_eq!(assign(&mut ledger, 9, START + COOLDOWN), None);
    ledger.cancel(&sandbox(9));
    ledger.free(&sandbox(7), START + COOLDOWN);
    assert_eq!(assign(&mut ledger, 9, START + 3 * COOLDOWN), None, "nor one that a pod gives back meanwhile");
    ledger.rule(true);
    assert_eq!(assign(&mut ledger, 9, START + COOLDOWN), Some(address(3)));
    let since = |number: u8| {
        ledger.records().iter().find(|one| one.entry().address == address(number)).unwrap().freed()
    };
    assert_eq!([since(1), since(2)], [Some(START + COOLDOWN), Some(START)]);
}

#[test]
fn a_sandbox_whose_first_add_has_died_waits_for_the_nodes_rules_like_any_other() {
    let mut ledger = holding(&[1]);
    assert_eq!(assign(&mut ledger, 7, START), Some(address(1)));
    ledger.rule(false);
    assert_eq!(assign(&mut ledger, 7, START), None);
    assert!(ledger.is_waiting(&sandbox(7)));
    assert_eq!(ledger.granted_to(&sandbox(7)), None);
    assert_eq!(ledger.counts(START).waiting, 0, "it needs no further address");
    let mut cancelled = ledger.clone();
    cancelled.cancel(&sandbox(7));
    assert_eq!(cancelled.granted_to(&sandbox(7)), None, "as by a DEL");
    ledger.rule(true);
    assert!(!ledger.is_waiting(&sandbox(7)));
    assert_eq!(ledger.granted_to(&sandbox(7)), Some(address(1)));
    assert_eq!(assign(&mut ledger, 7, START), Some(address(1)));
}

#[test]
fn a_node_that_lacks_its_rules_gives_back_only_cooled_addresses_beyond_the_target() {
    let mut ledger = holding(&[1, 2, 3, 4]);
    for number in [7, 8] {
        assign(&mut ledger, number, START);
    }
    ledger.free(&sandbox(8), START);
    ledger.rule(false);
    let cooled = START + COOLDOWN;
    assert_eq!(ledger.relinquish(4, cooled), Vec::<String>::new(), "what is withheld counts once");
    assert_eq!(ledger.relinquish(3, cooled - 1), ["vnp-3"]);
    assert_eq!(ledger.relinquish(0, cooled - 1), ["vnp-4"], "one is in use, and one cools");
    assert_eq!(ledger.relinquish(0, cooled), ["vnp-2"]);
    assert_eq!(ledger.counts(cooled), Counts { held: 1, assigned: 1, relinquished: 3, ..Counts::default() });
    ledger.free(&sandbox(7), cooled);
    assert_eq!(ledger.relinquish(0, cooled + COOLDOWN), ["vnp-1"]);
    ledger.rule(true);
    assert_eq!(assign(&mut ledger, 9, cooled + COOLDOWN), None, "what was given up never comes back");
}

#[test]
fn a_ledger_built_without_the_nodes_rules_knows_the_holders_and_asks_for_no_pods() {
    let supply = supply(5, &[1, 2, 3]);
    let relinquished = ["vnp-2".to_owned()];
    let mut empty = Ledger::rebuild(BOOT, &[], &relinquished, &supply, None, START, false);
    assert!(!empty.had_first_address());
    empty.rule(true);
    assert!(empty.had_first_address());
    let wired = [occupant(7, address(1))];
    let ledger = Ledger::rebuild(BOOT, &wired, &relinquished, &supply, Some(START), START, false);
    let counts = Counts { held: 1, assigned: 1, withheld: 1, relinquished: 1, ..Counts::default() };
    assert_eq!(ledger.counts(START), counts, "its address isn't lost");
    assert!(ledger.had_first_address());
}

#[test]
fn an_assigned_entry_gone_from_the_spec_is_kept_and_withdrawn_when_freed() {
    let mut ledger = holding(&[1]);
    assign(&mut ledger, 7, START);
    ledger.supply(&supply(2, &[]));
    assert_eq!(ledger.counts(START), Counts { assigned: 1, vanished: 1, ..Counts::default() });
    assert_eq!(assign(&mut ledger, 7, START), Some(address(1)));
    ledger.free(&sandbox(7), START);
    assert_eq!(ledger.counts(START), Counts { withdrawn: 1, ..Counts::default() });
}

#[test]
fn an_assigned_entry_that_comes_back_is_a_normal_one_again() {
    let mut ledger = holding(&[1]);
    assign(&mut ledger, 7, START);
    ledger.supply(&supply(2, &[]));
    ledger.supply(&supply(3, &[1]));
    ledger.free(&sandbox(7), START);
    assert_eq!(ledger.counts(START), Counts { held: 1, cooling: 1, ..Counts::default() });
}

#[test]
fn an_address_in_use_that_comes_back_under_another_name_is_only_its_pods_again() {
    let mut ledger = holding(&[1]);
    assert_eq!(assign(&mut ledger, 1, START), Some(address(1)));
    ledger.supply(&supply(2, &[]));
    let again = Entry { name: "vnp-9".to_owned(), ..entry(1) };
    ledger.supply(&Supply { entries: vec![again.clone()], ..supply(3, &[]) });
    assert_eq!(ledger.counts(START), Counts { held: 1, assigned: 1, ..Counts::default() });
    assert_eq!(assign(&mut ledger, 2, START), None);
    // Given back by its pod it goes on under the new name, after its cooldown.
    ledger.free(&sandbox(1), START);
    assert_eq!(ledger.counts(START), Counts { held: 1, cooling: 1, waiting: 1, ..Counts::default() });
    assert_eq!(*ledger.records()[0].entry(), again);
    assert_eq!(assign(&mut ledger, 2, START + COOLDOWN), Some(address(1)));
}

#[test]
fn a_vanished_entry_is_no_surplus() {
    let mut ledger = holding(&[1, 2, 3]);
    assign(&mut ledger, 7, START);
    ledger.supply(&supply(2, &[2, 3]));
    assert_eq!(ledger.relinquish(2, START), Vec::<String>::new());
}

#[test]
fn an_address_under_a_new_name_waits_for_the_pod_that_has_it_under_the_old_one() {
    let mut ledger = holding(&[1]);
    assign(&mut ledger, 7, START);
    let again = Entry { name: "vnp-again".to_owned(), ..entry(1) };
    ledger.supply(&Supply { entries: vec![again], ..supply(2, &[]) });
    assert_eq!(assign(&mut ledger, 8, START), None);
    ledger.free(&sandbox(7), START);
    assert_eq!(
        assign(&mut ledger, 8, START + COOLDOWN - 1),
        None,
        "its cooldown counts for the new name, too"
    );
    assert_eq!(assign(&mut ledger, 8, START + COOLDOWN), Some(address(1)));
}

#[test]
fn an_entry_with_an_attachment_is_for_its_pod_only_and_not_relinquished() {
    let attached = Entry { attached_to: Some("uid9".to_owned()), ..entry(1) };
    let entries = Supply { entries: vec![attached], ..supply(2, &[]) };
    let mut ledger = holding(&[]);
    ledger.supply(&entries);
    assert_eq!(assign(&mut ledger, 8, START), None);
    assert_eq!(ledger.relinquish(0, START), Vec::<String>::new());
    assert_eq!(assign(&mut ledger, 9, START), Some(address(1)), "though another pod waits");
}

#[test]
fn a_pod_gets_the_address_that_is_kept_for_it_before_any_other() {
    let attached = Entry { attached_to: Some("uid9".to_owned()), ..entry(2) };
    let mut ledger = holding(&[]);
    ledger.supply(&Supply { entries: vec![entry(1), attached, entry(3)], ..supply(2, &[]) });
    assert_eq!(assign(&mut ledger, 9, START), Some(address(2)));
}

#[test]
fn a_free_address_with_an_attachment_is_of_no_use_to_new_pods() {
    let attached = Entry { attached_to: Some("uid9".to_owned()), ..entry(2) };
    let mut ledger = holding(&[]);
    ledger.supply(&Supply { entries: vec![entry(1), attached], ..supply(2, &[]) });
    assert_eq!(ledger.counts(START), Counts { held: 2, free: 1, cooling: 1, ..Counts::default() });
}

#[test]
fn a_rebuilt_ledger_assigns_wired_addresses_before_it_gets_the_spec() {
    let wired = [occupant(7, address(1)), occupant(8, address(9))];
    let relinquished = ["vnp-2".to_owned()];
    let mut ledger =
        Ledger::rebuild(BOOT, &wired, &relinquished, &supply(5, &[1, 2, 3]), Some(START), START, true);
    assert_eq!(ledger.address_of(&sandbox(7)), Some(address(1)));
    assert_eq!(ledger.address_of(&sandbox(8)), Some(address(9)));
    let counts =
        Counts { held: 2, assigned: 2, cooling: 1, relinquished: 1, vanished: 1, ..Counts::default() };
    assert_eq!(ledger.counts(START), counts);
    // A free address may have been freed a moment ago, before the ledger was lost.
    assert_eq!(assign(&mut ledger, 9, START + COOLDOWN - 1), None);
    assert_eq!(assign(&mut ledger, 9, START + COOLDOWN), Some(address(3)));
}

#[test]
fn a_ledger_rebuilt_before_the_operator_has_seen_this_boot_keeps_relinquished_names() {
    let old = Supply { boot_id: "boot before".to_owned(), ..supply(5, &[1, 2]) };
    let mut ledger = Ledger::rebuild(BOOT, &[], &["vnp-1".to_owned()], &old, None, START, true);
    assert_eq!(ledger.counts(START), Counts { relinquished: 1, ..Counts::default() });
    assert!(!ledger.had_first_address());
    ledger.supply(&supply(6, &[1, 2]));
    assert_eq!(assign(&mut ledger, 7, START), Some(address(2)));
    assert_eq!(assign(&mut ledger, 8, START), None);
}

#[test]
fn the_spec_names_an_address_that_was_found_in_use() {
    let mut ledger =
        Ledger::rebuild(BOOT, &[occupant(7, address(1))], &[], &supply(1, &[]), None, START, true);
    assert_eq!(ledger.counts(START).vanished, 1);
    ledger.supply(&supply(2, &[1]));
    let names: Vec<_> = ledger.assignments().map(|(entry, _)| entry.name.clone()).collect();
    assert_eq!(names, ["vnp-1"]);
    assert_eq!(ledger.counts(START).vanished, 0);
}

#[test]
fn an_address_or_sandbox_that_is_assigned_is_not_adopted() {
    let mut ledger = holding(&[1, 2]);
    assign(&mut ledger, 7, START);
    assert!(!ledger.adopt(&occupant(8, address(1)), START));
    assert!(!ledger.adopt(&occupant(7, address(2)), START));
    assert!(ledger.adopt(&occupant(8, address(2)), START));
}

/// A block of four addresses under one name.
fn block(name: &str, first: u8) -> Vec<Entry> {
    let entry = |number| Entry { name: name.to_owned(), address: address(number), attached_to: None };
    (first..first + 4).map(entry).collect()
}

fn holding_blocks() -> Ledger {
    let entries = [block("vnp-a", 16), block("vnp-b", 32)].concat();
    Ledger::rebuild(BOOT, &[], &[], &Supply { entries, ..supply(1, &[]) }, None, START, true)
}

#[test]
fn every_address_of_a_block_is_handed_out_and_each_by_itself() {
    let mut ledger = holding_blocks();
    let all: Vec<_> = (0..9).map(|number| assign(&mut ledger, number, START)).collect();
    let mut last: Vec<u8> = all.iter().flatten().map(|address| address.octets()[3]).collect();
    last.sort();
    assert_eq!(last, [16, 17, 18, 19, 32, 33, 34, 35]);
    assert_eq!(all[8], None);
}

#[test]
fn a_block_is_given_back_when_it_is_wholly_free_and_has_cooled_and_not_before() {
    let mut ledger = holding_blocks();
    for number in 0..5 {
        assign(&mut ledger, number, START);
    }
    assert_eq!(ledger.relinquish(4, START), Vec::<String>::new());
    ledger.free(&sandbox(4), START);
    assert_eq!(ledger.relinquish(4, START), Vec::<String>::new());
    assert_eq!(ledger.relinquish(4, START + COOLDOWN), ["vnp-b"]);
    assert_eq!(
        ledger.counts(START + COOLDOWN),
        Counts { held: 4, assigned: 4, relinquished: 1, ..Counts::default() }
    );
    assert_eq!(assign(&mut ledger, 9, START + COOLDOWN), None);
}

#[test]
fn a_block_is_not_given_back_if_less_than_the_target_would_be_left() {
    let mut ledger = holding_blocks();
    assert_eq!(ledger.relinquish(5, START), Vec::<String>::new());
    assert_eq!(ledger.relinquish(4, START), ["vnp-a"]);
}

#[test]
fn new_pods_go_into_the_fullest_block_so_that_the_others_become_free() {
    let mut ledger = holding_blocks();
    for number in 0..8 {
        assign(&mut ledger, number, START);
    }
    // First three of the second block come back, then one of the first.
    for number in 4..7 {
        ledger.free(&sandbox(number), START);
    }
    ledger.free(&sandbox(0), START + 1);
    let cooled = START + 1 + COOLDOWN;
    assert_eq!(assign(&mut ledger, 8, cooled), Some(address(16)));
    ledger.free(&sandbox(7), cooled);
    assert_eq!(ledger.relinquish(4, cooled + COOLDOWN), ["vnp-b"]);
}

#[test]
fn a_block_that_is_gone_is_withdrawn_but_for_the_addresses_in_use_and_comes_back_whole() {
    let mut ledger = holding_blocks();
    assign(&mut ledger, 0, START);
    ledger.supply(&Supply { entries: block("vnp-b", 32), ..supply(2, &[]) });
    let counts = ledger.counts(START);
    assert_eq!((counts.held, counts.vanished, counts.withdrawn, counts.free), (4, 1, 3, 4));
    ledger.supply(&Supply { entries: [block("vnp-a", 16), block("vnp-b", 32)].concat(), ..supply(3, &[]) });
    let counts = ledger.counts(START);
    assert_eq!((counts.held, counts.vanished, counts.withdrawn), (8, 0, 0));
}

#[test]
fn a_ledger_rebuilt_knows_the_block_of_an_address_in_use() {
    let entries = block("vnp-a", 16);
    let wired = [occupant(1, address(17))];
    let mut ledger =
        Ledger::rebuild(BOOT, &wired, &[], &Supply { entries, ..supply(1, &[]) }, Some(START), START, true);
    assert_eq!(ledger.relinquish(0, START + COOLDOWN), Vec::<String>::new());
    ledger.free(&sandbox(1), START);
    assert_eq!(ledger.relinquish(0, START + COOLDOWN), ["vnp-a"]);
}
