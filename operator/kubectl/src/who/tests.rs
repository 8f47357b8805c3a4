use super::*;
use crate::fixture;
use serde_json::json;
use vnetpool_crds::inspection::{AddressView, Tenant};

fn record(n: u8, state: State, since: u64, pod: &str) -> AddressView {
    let tenant =
        Tenant { pod: format!("shop/{pod}"), pod_uid: format!("uid-{pod}"), sandbox: "c/eth0".into() };
    AddressView {
        address: format!("10.240.0.{n}"),
        name: format!("vnp-{n}"),
        state,
        since_seconds: Some(since),
        tenant: (!pod.is_empty()).then_some(tenant),
        is_leased: false,
    }
}

fn answers() -> Answers<NodeView> {
    let addresses = vec![
        record(10, State::Assigned, 60, "a"),
        record(11, State::Assigned, 60, "gone"),
        record(12, State::Free, 10, ""),
        record(9, State::Withdrawn, 60, ""),
        record(8, State::Vanished, 60, "b"),
    ];
    [("node-1".to_owned(), Ok(NodeView { addresses, ..NodeView::default() }))].into()
}

fn asked(what: &str) -> Answer {
    let mut objects = fixture::objects();
    objects.pods.retain(|pod| pod.name_any() != "b" || what != "10.240.0.11");
    who(&objects, &Question::parse(what), &answers()).unwrap()
}

#[test]
fn an_address_leads_to_its_pod_its_node_its_pool_and_its_nic() {
    let expected = "\
ADDRESS       STATE      POD      NODE     POOL      RESERVED ON   AS
10.240.0.10   assigned   shop/a   node-1   default   node-1-nic    vnp-10
";
    assert_eq!(asked("10.240.0.10").to_string(), expected);
    assert_eq!(asked("shop/a").to_string(), expected);
    assert_eq!(asked("a").to_string(), expected);
}

#[test]
fn states_that_the_ledger_alone_knows_are_shown() {
    let state = |n: u8| asked(&format!("10.240.0.{n}")).addresses[0].state.words();
    assert_eq!(
        [11, 12, 13, 9, 8, 99].map(state),
        ["outlived", "cooling", "leaked", "withdrawn", "lost", "unknown"]
    );
    let mut answers = answers();
    answers.values_mut().flatten().for_each(|view| view.lacks_rules = true);
    let answer = who(&fixture::objects(), &Question::parse("10.240.0.12"), &answers).unwrap();
    assert_eq!(answer.addresses[0].state, Standing::Withheld);
    let cooling = asked("10.240.0.12").to_string();
    assert!(cooling.contains("A pod had it 10 s ago; another one can get it in 20s."), "{cooling}");
}

#[test]
fn without_the_ledger_the_objects_count_and_the_answer_warns_of_it() {
    let silent = [("node-1".to_owned(), Err("no pod of vnetpool-node-agent runs".to_owned()))].into();
    let answer = who(&fixture::objects(), &Question::parse("10.240.0.12"), &silent).unwrap();
    assert_eq!(answer.addresses[0].state, Standing::Unheld);
    assert!(answer.to_string().contains("weren't read"), "{answer}");
}

#[test]
fn an_address_that_no_object_knows_is_sought_in_every_ledger() {
    let nodes = |what: &str| nodes_to_ask(&fixture::objects(), &Question::parse(what));
    assert_eq!(nodes("10.240.0.99"), ["node-1", "node-2"]);
    assert_eq!((nodes("10.240.0.22"), nodes("d")), (vec!["node-2".to_owned()], vec!["node-2".to_owned()]));
}

#[test]
fn an_address_of_a_block_is_reserved_with_it() {
    let of = |address: &str| contains("10.240.0.16/28", address.parse().unwrap());
    assert_eq!(
        ["10.240.0.15", "10.240.0.16", "10.240.0.31", "10.240.0.32"].map(of),
        [false, true, true, false]
    );
    assert!(!contains("10.240.0.16", "10.240.0.16".parse().unwrap()));
}

#[test]
fn an_address_that_two_nodes_have_is_a_line_for_each() {
    let mut objects = fixture::objects();
    objects.pods[2] = fixture::pod("c", "node-2", "10.240.0.8");
    objects.allocations[1] = fixture::allocation("node-2", &[8], json!({}));
    let mut answers = answers();
    let addresses = vec![record(8, State::Assigned, 5, "c")];
    answers.insert("node-2".into(), Ok(NodeView { addresses, ..NodeView::default() }));
    let answer = who(&objects, &Question::parse("10.240.0.8"), &answers).unwrap().to_string();
    let expected = "\
ADDRESS      STATE      POD      NODE     POOL      RESERVED ON   AS
10.240.0.8   lost       shop/b   node-1   default   -             -
10.240.0.8   assigned   shop/c   node-2   default   node-2-nic    vnp-8
";
    assert!(answer.starts_with(expected), "{answer}");
}

#[test]
fn an_address_of_a_pod_that_the_ledger_does_not_have_is_in_doubt() {
    let mut objects = fixture::objects();
    objects.pods.push(fixture::pod("x", "node-1", "10.240.0.13"));
    let asked = |objects: &Objects, answers| who(objects, &Question::parse("10.240.0.13"), &answers).unwrap();
    assert_eq!(asked(&objects, answers()).addresses[0].state, Standing::InDoubt);
    assert_eq!(asked(&objects, Answers::new()).addresses[0].state, Standing::Assigned);
    let mut given_up = answers();
    given_up.get_mut("node-1").unwrap().as_mut().unwrap().relinquished.push("vnp-13".into());
    let answer = asked(&objects, given_up);
    assert_eq!(answer.addresses[0].state, Standing::GivenUp);
    assert!(answer.to_string().contains("shop/x reports it"), "{answer}");
}

#[test]
fn a_pod_that_is_gone_is_sought_in_every_ledger() {
    let mut objects = fixture::objects();
    objects.pods.clear();
    let asked = Question::parse("shop/gone");
    assert_eq!(nodes_to_ask(&objects, &asked), ["node-1", "node-2"]);
    let answer = who(&objects, &asked, &answers()).unwrap();
    let one = &answer.addresses[0];
    assert_eq!((one.address.as_str(), one.state), ("10.240.0.11", Standing::Outlived));
    let mut answers = answers();
    answers.insert("node-2".into(), Err("no agent".into()));
    let error = who(&objects, &Question::parse("shop/never"), &answers).unwrap_err().to_string();
    for part in ["pod as shop/never", "2 nodes", "node node-2: no agent", "kubectl get pods"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn reports_of_agents_stand_for_ledgers_that_were_not_read() {
    let mut objects = fixture::objects();
    let holder = |n: u8, pod: &str| json!({"address": format!("10.240.0.{n}"), "pod": format!("shop/{pod}"), "sandbox": "s"});
    let status = json!({"lost": [holder(9, "lost")], "holders": [holder(12, "held")]});
    objects.allocations[0] = fixture::allocation("node-1", &[12], status);
    let found = |what: &str| {
        let answer = who(&objects, &Question::parse(what), &Answers::new()).unwrap();
        (answer.addresses[0].address.clone(), answer.addresses[0].state)
    };
    assert_eq!(found("shop/lost"), ("10.240.0.9".into(), Standing::Lost));
    assert_eq!(found("shop/held"), ("10.240.0.12".into(), Standing::Assigned));
}

#[test]
fn of_pods_on_the_host_network_only_the_one_asked_for_is_named() {
    let mut objects = fixture::objects();
    for name in ["first", "second", "third"] {
        let mut pod = serde_json::to_value(fixture::pod(name, "node-1", "10.240.0.4")).unwrap();
        pod["spec"]["hostNetwork"] = json!(true);
        objects.pods.push(serde_json::from_value(pod).unwrap());
    }
    let pod = |what: &str| {
        let answer = who(&objects, &Question::parse(what), &answers()).unwrap();
        assert_eq!(answer.addresses[0].state, Standing::NodesOwn);
        answer.addresses[0].pod.clone()
    };
    assert_eq!((pod("shop/second"), pod("10.240.0.4")), (Some("shop/second".into()), None));
}

#[test]
fn an_address_that_stands_only_in_a_left_nic_leads_to_the_node_that_has_left_it() {
    let mut objects = fixture::objects();
    fixture::leave(&mut objects.allocations[0], &[10, 30]);
    let asked = |objects: &Objects, what: &str| who(objects, &Question::parse(what), &answers()).unwrap();
    let expected = "\
ADDRESS       STATE           POD   NODE     POOL      RESERVED ON     AS
10.240.0.30   on a left NIC   -     node-1   default   node-1-former   vnp-30

10.240.0.30
  Its node has left that NIC, and what the NIC holds is given back. The condition InterfaceFound of
  the node's NodeIPAllocation shows what that waits for.
";
    assert_eq!(asked(&objects, "10.240.0.30").to_string(), expected);
    assert_eq!(nodes_to_ask(&objects, &Question::parse("10.240.0.30")), ["node-1"]);
    let present = asked(&objects, "10.240.0.10").addresses.remove(0);
    assert_eq!(present.state, Standing::Assigned);
    assert!(present.nic.is_some_and(|nic| nic.ends_with("/node-1-nic")) && present.notes.is_empty());
    // What is left of a NIC isn't in the table that the node has now.
    objects.allocations[0].spec.route_table_id = Some("/table".into());
    let left = asked(&objects, "10.240.0.30").addresses.remove(0);
    assert!(left.nic.is_some_and(|nic| nic.ends_with("/node-1-former")));
}

#[test]
fn a_pods_address_on_a_left_nic_was_taken_off_by_nobody() {
    let mut objects = fixture::objects();
    fixture::leave(&mut objects.allocations[0], &[8, 9]);
    let of = |address: &str| {
        let answer = who(&objects, &Question::parse(address), &answers()).unwrap();
        (answer.addresses[0].state, answer.addresses[0].notes.join(" "))
    };
    let (state, notes) = of("10.240.0.8");
    assert_eq!(state, Standing::Lost);
    assert!(notes.contains("once its pod is gone") && !notes.contains("Somebody"), "{notes}");
    // In the ledger no pod has it any more.
    assert_eq!(of("10.240.0.9").0, Standing::OnLeftNic);
}

#[test]
fn the_primary_address_of_a_left_nic_names_the_node_that_has_left_it_unless_another_has_the_nic() {
    let mut objects = fixture::objects();
    fixture::leave(&mut objects.allocations[0], &[]);
    let asked = |objects: &Objects| {
        let answer = who(objects, &Question::parse("10.240.0.5"), &answers()).unwrap();
        let one = answer.addresses[0].clone();
        (one.state, one.node, one.nic.as_deref().map(short), one.notes.join(" "))
    };
    let left = (Some("node-1".to_owned()), Some("node-1-former".to_owned()));
    let note = "Its node has left that NIC.".to_owned();
    assert_eq!(asked(&objects), (Standing::Primary, left.0, left.1, note));
    objects.allocations[1].spec.interfaces[0].primary_address = "10.240.0.5".into();
    assert_eq!(asked(&objects), (Standing::Primary, Some("node-2".into()), None, String::new()));
}

/// Each state stands in the table for people.
#[test]
fn the_states_are_those_of_the_document() {
    let document = include_str!("../../../../docs/inspect.md");
    for state in [
        Standing::Assigned,
        Standing::Outlived,
        Standing::Lost,
        Standing::Withdrawn,
        Standing::Withheld,
        Standing::InDoubt,
        Standing::GivenUp,
        Standing::Kept,
        Standing::Cooling,
        Standing::Free,
        Standing::Unheld,
        Standing::Leaked,
        Standing::OnLeftNic,
        Standing::NodesOwn,
        Standing::Primary,
        Standing::Unknown,
        Standing::Waits,
        Standing::NeedsNone,
    ] {
        assert!(document.contains(&format!("\n| {} |", state.words())), "{}", state.words());
    }
}
