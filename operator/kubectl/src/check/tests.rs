use super::*;
use crate::fixture;
use serde_json::json;
use vnetpool_crds::inspection::{AddressView, Reservation, State, Tenant, Wired};

fn tenant(pod: &str) -> Tenant {
    Tenant { pod: format!("shop/{pod}"), pod_uid: format!("uid-{pod}"), sandbox: format!("{pod}/eth0") }
}

fn record(n: u8, pod: Option<&str>) -> AddressView {
    AddressView {
        address: format!("10.240.0.{n}"),
        name: format!("vnp-{n}"),
        state: if pod.is_some() { State::Assigned } else { State::Free },
        tenant: pod.map(tenant),
        ..AddressView::default()
    }
}

fn wired(n: u8, pod: &str) -> Wired {
    Wired { address: format!("10.240.0.{n}"), tenant: tenant(pod) }
}

/// Node 1 of the fixture, with all in agreement.
fn well() -> Snapshot {
    let mut objects = fixture::objects();
    objects.allocations.truncate(1);
    let reserve = |n: u8| Reservation {
        name: format!("vnp-{n}"),
        address: Some(format!("10.240.0.{n}/32")),
        state: "Succeeded".into(),
        next_hop: None,
    };
    let id = place(&objects.allocations[0]).unwrap().to_owned();
    let reserved =
        ReservedView { id: id.clone(), reservations: (10..14).map(reserve).collect(), ..Default::default() };
    let ledger = NodeView {
        boot_id: "boot".into(),
        generation: 3,
        addresses: vec![record(10, Some("a")), record(11, Some("b")), record(12, None), record(13, None)],
        wired: vec![wired(10, "a"), wired(11, "b")],
        ..NodeView::default()
    };
    Snapshot {
        objects,
        only: None,
        reserved: [(id.to_lowercase(), Ok(reserved))].into(),
        ledgers: [("node-1".to_owned(), Ok(ledger))].into(),
    }
}

fn differences(snapshot: &Snapshot) -> Vec<Difference> {
    Findings::of(snapshot).differences
}

fn changed(change: impl Fn(&mut Snapshot)) -> Snapshot {
    let mut snapshot = well();
    change(&mut snapshot);
    snapshot
}

fn nic(snapshot: &mut Snapshot) -> &mut ReservedView {
    snapshot.reserved.values_mut().next().unwrap().as_mut().unwrap()
}

fn ledger(snapshot: &mut Snapshot) -> &mut NodeView {
    snapshot.ledgers.values_mut().next().unwrap().as_mut().unwrap()
}

/// The findings after this change.
fn found(change: impl Fn(&mut Snapshot)) -> Vec<(String, String)> {
    differences(&changed(change)).into_iter().map(|one| (one.between.to_string(), one.what)).collect()
}

fn only(between: Between, what: &str) -> Vec<(String, String)> {
    vec![(between.to_string(), what.to_owned())]
}

#[test]
fn views_that_agree_have_no_difference() {
    assert_eq!(differences(&well()), []);
    let verdict = Verdict::of(&well(), &well());
    assert!(verdict.is_well());
    assert_eq!(verdict.to_string(), "NIC, spec, ledger, kernel and pods agree on each node: 1.\n");
}

#[test]
fn a_reservation_that_is_on_the_nic_alone_or_not_at_all_is_a_difference() {
    let leaked = found(|snapshot| {
        nic(snapshot).reservations.push(Reservation { name: "vnp-99".into(), ..Default::default() })
    });
    assert_eq!(leaked, only(Between::NicAndSpec, "vnp-99"));
    assert_eq!(found(|snapshot| drop(nic(snapshot).reservations.pop())), only(Between::NicAndSpec, "vnp-13"));
}

#[test]
fn an_address_that_the_ledger_lacks_or_remembers_is_a_difference() {
    assert_eq!(
        found(|snapshot| drop(ledger(snapshot).addresses.pop())),
        only(Between::SpecAndLedger, "vnp-13")
    );
    let given_up = found(|snapshot| {
        ledger(snapshot).addresses.pop();
        ledger(snapshot).relinquished.push("vnp-13".into());
    });
    assert_eq!(given_up, []);
    let gone = |state| {
        found(|snapshot| {
            ledger(snapshot).addresses.push(AddressView { state, ..record(9, Some("a")) });
            ledger(snapshot).wired.push(wired(9, "a"));
        })
    };
    assert_eq!(gone(State::Vanished), only(Between::SpecAndLedger, "10.240.0.9"));
    let withdrawn = found(|snapshot| {
        ledger(snapshot).addresses.push(AddressView { state: State::Withdrawn, ..record(9, None) })
    });
    assert_eq!(withdrawn, []);
}

#[test]
fn a_ledger_of_another_generation_is_one_difference_and_not_many() {
    let late = found(|snapshot| {
        ledger(snapshot).generation = 2;
        ledger(snapshot).addresses.pop();
    });
    assert_eq!(late, only(Between::SpecAndLedger, "generation"));
}

#[test]
fn a_record_without_a_link_and_a_link_without_a_record_are_differences() {
    assert_eq!(
        found(|snapshot| drop(ledger(snapshot).wired.pop())),
        only(Between::LedgerAndKernel, "10.240.0.11")
    );
    assert_eq!(
        found(|snapshot| ledger(snapshot).wired.push(wired(12, "x"))),
        only(Between::LedgerAndKernel, "10.240.0.12")
    );
    let leased = found(|snapshot| {
        ledger(snapshot).wired.pop();
        ledger(snapshot).addresses[1].is_leased = true;
    });
    assert_eq!(leased, []);
}

#[test]
fn an_outlived_sandbox_and_a_pod_that_the_ledger_does_not_know_are_differences() {
    let outlived = found(|snapshot| snapshot.objects.pods.retain(|pod| pod.name_any() != "a"));
    assert_eq!(outlived, only(Between::LedgerAndPods, "10.240.0.10"));
    let stranger = found(|snapshot| snapshot.objects.pods.push(fixture::pod("x", "node-1", "10.240.0.12")));
    assert_eq!(stranger, only(Between::LedgerAndPods, "10.240.0.12"));
    let host = found(|snapshot| {
        let mut pod = serde_json::to_value(fixture::pod("x", "node-1", "10.240.0.4")).unwrap();
        pod["spec"]["hostNetwork"] = json!(true);
        snapshot.objects.pods.push(serde_json::from_value(pod).unwrap());
    });
    assert_eq!(host, []);
}

#[test]
fn only_a_difference_in_two_snapshots_counts_and_an_unread_part_is_not_well() {
    let mut leaked = well();
    nic(&mut leaked).reservations.push(Reservation {
        name: "vnp-99".into(),
        state: "Succeeded".into(),
        ..Default::default()
    });
    assert!(Verdict::of(&well(), &leaked).is_well() && Verdict::of(&leaked, &well()).is_well());
    let expected = "\
NODE     BETWEEN     WHAT     HOW
node-1   NIC, spec   vnp-99   Azure has it (no address yet, Succeeded), and spec doesn't: no pod can get it.

Nodes: 1; differences, each seen twice: 1; not read: 0.
";
    assert_eq!(Verdict::of(&leaked, &leaked).to_string(), expected);
    let unseen = changed(silence);
    assert!(!Verdict::of(&well(), &unseen).is_well());
}

fn silence(snapshot: &mut Snapshot) {
    snapshot.ledgers.insert("node-1".into(), Err("no agent".into()));
}

#[test]
fn a_part_unread_in_the_first_snapshot_is_well_only_if_the_second_agrees() {
    assert!(Verdict::of(&changed(silence), &well()).is_well());
    let seen_once = |first: &Snapshot, second: &Snapshot, what: &str| {
        let verdict = Verdict::of(first, second);
        assert!(verdict.differences.is_empty() && !verdict.is_well(), "{verdict}");
        assert!(verdict.unseen.iter().any(|one| one.contains(what)), "{verdict}");
    };
    let unwired = changed(|snapshot| drop(ledger(snapshot).wired.pop()));
    seen_once(&changed(silence), &unwired, "seen in one of two snapshots: ledger, kernel: 10.240.0.11");
    let leaked = changed(|snapshot| drop(nic(snapshot).reservations.pop()));
    for deaf in [
        changed(|snapshot| snapshot.reserved.values_mut().for_each(|one| *one = Err("refused".into()))),
        changed(|snapshot| snapshot.reserved.clear()),
    ] {
        assert!(Verdict::of(&deaf, &well()).is_well());
        assert!(!Verdict::of(&deaf, &deaf).is_well());
        seen_once(&deaf, &leaked, "NIC, spec: vnp-13");
    }
}

fn lag(snapshot: &mut Snapshot, generation: i64) {
    ledger(snapshot).generation = generation;
    snapshot.objects.allocations[0].metadata.generation = Some(generation + 1);
}

#[test]
fn a_ledger_that_moves_follows_and_one_that_stands_is_behind() {
    let at = |generation| changed(|snapshot| lag(snapshot, generation));
    assert!(Verdict::of(&at(3), &at(5)).is_well());
    let stands = Verdict::of(
        &at(3),
        &changed(|snapshot| {
            lag(snapshot, 4);
            ledger(snapshot).generation = 3;
        }),
    );
    assert_eq!((stands.differences.len(), stands.unseen.len()), (1, 0), "{stands}");
    assert_eq!(stands.differences[0].what, "generation");
}

#[test]
fn a_ledger_that_is_behind_in_one_snapshot_hides_nothing() {
    let vanished = |snapshot: &mut Snapshot| ledger(snapshot).addresses[0].state = State::Vanished;
    let behind = changed(|snapshot| {
        vanished(snapshot);
        lag(snapshot, 3);
    });
    let verdict = Verdict::of(&behind, &changed(vanished));
    assert_eq!(verdict.differences.len(), 1, "{verdict}");
    assert_eq!(verdict.differences[0].what, "10.240.0.10");
    // A difference that only a ledger of the same spec shows has been seen once, whichever snapshot is
    // behind.
    let lacking = changed(|snapshot| drop(ledger(snapshot).addresses.pop()));
    let behind = changed(|snapshot| lag(snapshot, 3));
    for verdict in [Verdict::of(&behind, &lacking), Verdict::of(&lacking, &behind)] {
        assert!(verdict.unseen.iter().any(|one| one.contains("vnp-13")), "{verdict}");
    }
}

#[test]
fn a_ledger_of_another_boot_is_one_difference() {
    let other = found(|snapshot| {
        ledger(snapshot).boot_id = "before".into();
        ledger(snapshot).addresses.pop();
    });
    assert_eq!(other, only(Between::SpecAndLedger, "boot"));
}

#[test]
fn a_route_that_leads_elsewhere_or_a_reservation_that_failed_is_a_difference() {
    let route = |hop: Option<&str>| {
        found(|snapshot| {
            let id = nic(snapshot).id.clone();
            snapshot.objects.allocations[0].spec.route_table_id = Some(id);
            nic(snapshot).reservations.iter_mut().for_each(|one| one.next_hop = Some("10.240.0.4".into()));
            nic(snapshot).reservations[0].next_hop = hop.map(Into::into);
        })
    };
    assert_eq!(route(Some("10.240.0.4")), []);
    assert_eq!(route(Some("10.240.0.5")), only(Between::NicAndSpec, "vnp-10"));
    assert_eq!(route(None), only(Between::NicAndSpec, "vnp-10"));
    let failed = found(|snapshot| nic(snapshot).reservations[0].state = "Failed".into());
    assert_eq!(failed, only(Between::NicAndSpec, "vnp-10"));
}

#[test]
fn an_address_that_two_nodes_have_is_a_difference_of_both() {
    let other = |held: &str| {
        let mut other = fixture::allocation("node-2", &[20], json!({}));
        other.spec.interfaces[0].ip_configurations[0].address = held.to_owned();
        move |snapshot: &mut Snapshot| {
            snapshot.only = Some(["node-1".to_owned()].into());
            snapshot.objects.allocations.push(other.clone());
        }
    };
    assert_eq!(found(other("10.240.0.13/32")), only(Between::NodeAndNode, "10.240.0.13"));
    assert_eq!(found(other("10.240.0.16/28")), []);
    assert_eq!(found(other("10.240.0.0/28")).len(), 4, "each address of node-1");
    // By their ledgers alone, and reported for both.
    let ledgers = differences(&changed(|snapshot| {
        snapshot.objects.allocations.push(fixture::allocation("node-2", &[], json!({})));
        let mut theirs = ledger(snapshot).clone();
        theirs.addresses =
            vec![record(12, None), AddressView { state: State::Withdrawn, ..record(13, None) }];
        theirs.wired.clear();
        snapshot.ledgers.insert("node-2".into(), Ok(theirs));
    }));
    let shared: Vec<_> = ledgers.iter().filter(|one| one.between == Between::NodeAndNode).collect();
    assert!(shared.iter().all(|one| one.what.starts_with("10.240.0.12")), "{shared:?}");
    assert!(["node-1", "node-2"].iter().all(|node| shared.iter().any(|one| one.node == *node)), "{shared:?}");
}

fn unreadable(kind: &str, name: &str) -> vnetpool_apiserver::reading::Unreadable {
    vnetpool_apiserver::reading::Unreadable {
        api_version: String::new(),
        kind: kind.into(),
        metadata: serde_json::from_value(json!({"name": name})).unwrap(),
        error: "wrong".into(),
        content: json!(null),
    }
}

#[test]
fn an_unreadable_object_is_unseen_and_concerns_its_own_node_alone() {
    let unread = |kind: &str, name: &str| {
        let one = unreadable(kind, name);
        changed(|snapshot| {
            snapshot.only = Some(["node-1".to_owned()].into());
            snapshot.objects.unreadable.push(one.clone());
        })
    };
    let is_well = |snapshot: &Snapshot| Verdict::of(snapshot, snapshot).is_well();
    assert!(is_well(&unread("NodeIPPool", "another")) && is_well(&unread("NodeIPAllocation", "node-2")));
    assert!(!is_well(&unread("NodeIPPool", "default")));
    let mut gone = unread("NodeIPAllocation", "node-1");
    gone.objects.allocations.clear();
    assert!(!Verdict::of(&well(), &gone).is_well(), "unreadable at the second snapshot alone");
    assert!(gone.has(Some("node-1")).is_ok());
}

#[test]
fn a_node_that_there_is_nothing_of_is_an_error_that_names_it() {
    let error = well().has(Some("node-7")).unwrap_err().to_string();
    assert_eq!(error, "node node-7 has no NodeIPAllocation: `kubectl vnetpool status` shows why not");
    assert!(well().has(Some("node-1")).is_ok() && well().has(None).is_ok());
}

#[test]
fn a_second_snapshot_is_due_at_the_nodes_in_doubt() {
    assert!(Findings::of(&well()).doubtful().is_empty());
    let doubtful = Findings::of(&changed(silence)).doubtful();
    assert_eq!(doubtful, BTreeSet::from(["node-1".to_owned()]));
    assert_eq!(
        Findings::of(&changed(|snapshot| drop(nic(snapshot).reservations.pop()))).doubtful(),
        doubtful
    );
}

#[test]
fn a_table_of_many_nodes_is_read_once() {
    let mut objects = fixture::objects();
    for (one, id) in objects.allocations.iter_mut().zip(["/Table", "/table"]) {
        one.spec.route_table_id = Some(id.into());
    }
    assert_eq!(places(&objects.allocations).count(), 1);
}

/// Node 1 has left a NIC that is recorded with two addresses, of which this is Azure's answer.
fn left(snapshot: &mut Snapshot, answer: Result<ReservedView, String>) {
    let node = &mut snapshot.objects.allocations[0];
    fixture::leave(node, &[30, 31]);
    snapshot.reserved.insert(node.spec.left_interfaces[0].id.to_lowercase(), answer);
}

/// One of the two is there still.
fn holds_one() -> Result<ReservedView, String> {
    let (name, address) = ("vnp-30".to_owned(), Some("10.240.0.30/32".to_owned()));
    let one = Reservation { name, address, state: "Succeeded".into(), next_hop: None };
    Ok(ReservedView { reservations: vec![one], ..Default::default() })
}

fn absent() -> Result<ReservedView, String> {
    Ok(ReservedView { error: Some("not found".into()), is_absent: true, ..Default::default() })
}

#[test]
fn what_a_left_nic_holds_is_shown_as_recorded_and_what_is_gone_is_no_difference() {
    let snapshot = changed(|snapshot| left(snapshot, holds_one()));
    let verdict = Verdict::of(&snapshot, &snapshot);
    let expected = "\
Recorded and on its way back, which is no fault:

NODE     NIC             WHAT     HOW
node-1   node-1-former   vnp-30   Azure has it (10.240.0.30/32, Succeeded), and the node has left this NIC. It goes back.

NIC, spec, ledger, kernel and pods agree on each node: 1.
";
    assert!(verdict.is_well());
    assert_eq!(verdict.to_string(), expected);
    let gone = changed(|snapshot| left(snapshot, absent()));
    let verdict = Verdict::of(&gone, &gone);
    assert!(verdict.is_well() && verdict.beside.is_empty(), "{verdict}");
}

#[test]
fn a_reservation_beside_the_serving_nic_is_shown_with_what_it_waits_for() {
    let message = |change: fn(&mut NodeIPAllocation)| {
        let snapshot = changed(|snapshot| {
            left(snapshot, holds_one());
            change(&mut snapshot.objects.allocations[0]);
        });
        Verdict::of(&snapshot, &snapshot).beside[0].message.clone()
    };
    let lost = message(|node| {
        let lost = json!([{"address": "10.240.0.30", "pod": "shop/b", "sandbox": "s"}]);
        node.status.get_or_insert_default().lost = serde_json::from_value(lost).unwrap();
    });
    assert!(lost.ends_with("the node has left this NIC. It goes back once shop/b is gone."), "{lost}");
    let stray = message(|node| {
        let left = node.spec.left_interfaces.remove(0);
        node.spec.stray_interfaces = vec![left.id];
    });
    assert!(stray.ends_with("this NIC doesn't serve the node. It goes back."), "{stray}");
}

#[test]
fn a_left_nic_that_serves_again_or_that_another_node_has_is_compared_there() {
    let shown = |change: fn(&mut Snapshot)| {
        let snapshot = changed(|snapshot| {
            snapshot.only = Some(["node-1".to_owned()].into());
            left(snapshot, holds_one());
            change(snapshot);
        });
        beside::all(&[&snapshot]).len()
    };
    let other = |snapshot: &mut Snapshot| {
        let mut other = fixture::allocation("node-2", &[], json!({}));
        other.spec.interfaces[0].id =
            snapshot.objects.allocations[0].spec.left_interfaces[0].id.to_uppercase();
        snapshot.objects.allocations.push(other);
    };
    let own = |snapshot: &mut Snapshot| {
        let spec = &mut snapshot.objects.allocations[0].spec;
        spec.interfaces[0].id = spec.left_interfaces[0].id.to_uppercase();
    };
    assert_eq!((shown(|_| {}), shown(other), shown(own)), (1, 0, 0));
}

#[test]
fn each_nodes_left_nics_are_shown_as_the_last_snapshot_at_it_shows_them() {
    let first = changed(|snapshot| left(snapshot, holds_one()));
    let at = |node: &str| {
        let second = changed(|snapshot| {
            snapshot.only = Some([node.to_owned()].into());
            left(snapshot, absent());
        });
        beside::all(&[&first, &second]).len()
    };
    assert_eq!((at("node-1"), at("node-2")), (0, 1));
}

#[test]
fn a_left_nic_that_could_not_be_read_is_not_well_and_hides_no_difference_of_the_serving_one() {
    let unread = changed(|snapshot| left(snapshot, Err("refused".into())));
    let verdict = Verdict::of(&unread, &unread);
    assert!(!verdict.is_well() && verdict.differences.is_empty(), "{verdict}");
    assert!(verdict.unseen[0].ends_with("node-1-former: refused"), "{verdict}");
    // It is compared in both snapshots, and differs in one.
    let leaked = changed(|snapshot| drop(nic(snapshot).reservations.pop()));
    assert!(Verdict::of(&unread, &leaked).is_well());
}

#[test]
fn a_nic_that_is_to_serve_and_is_absent_could_not_be_read() {
    let gone = changed(|snapshot| snapshot.reserved.values_mut().for_each(|one| *one = absent()));
    let verdict = Verdict::of(&gone, &gone);
    assert!(verdict.differences.is_empty(), "{verdict}");
    assert!(verdict.unseen[0].ends_with("node-1-nic: not found"), "{verdict}");
}

#[test]
fn an_address_of_a_pod_on_a_left_nic_is_a_difference_that_names_the_cause() {
    let snapshot = changed(|snapshot| {
        left(snapshot, holds_one());
        let vanished = AddressView { state: State::Vanished, ..record(30, Some("a")) };
        ledger(snapshot).addresses.push(vanished);
        ledger(snapshot).wired.push(wired(30, "a"));
        snapshot.objects.pods.push(fixture::pod("x", "node-1", "10.240.0.31"));
    });
    let found = differences(&snapshot);
    let messages: Vec<&str> = found.iter().map(|one| one.message.as_str()).collect();
    let cause = "and its node has left the NIC that has it.";
    assert_eq!(messages, [format!("shop/a has it, {cause}"), format!("shop/x reports it, {cause}")]);
}

#[test]
fn the_nics_beside_the_serving_one_are_read_each_once() {
    let mut objects = fixture::objects();
    fixture::leave(&mut objects.allocations[0], &[30]);
    let left = objects.allocations[0].spec.left_interfaces[0].id.clone();
    objects.allocations[0].spec.stray_interfaces = vec![left.to_uppercase(), "/stray".into()];
    let read: Vec<&str> = places(&objects.allocations).map(|id| id.rsplit('/').next().unwrap()).collect();
    assert_eq!(read, ["stray", "node-1-former", "node-1-nic", "node-2-nic"]);
}
