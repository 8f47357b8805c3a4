use proptest::prelude::*;

use super::*;

const WITHIN: Option<Ipv4Net> = Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 22));

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn table(routes: Vec<Value>) -> Value {
    json!({ "id": "t", "location": "westeurope", "etag": "W/\"1\"", "tags": { "owner": "somebody" },
        "properties": { "provisioningState": "Succeeded", "disableBgpRoutePropagation": true, "routes": routes } })
}

fn hop(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 240, 0, number)
}

fn claim(node: u8) -> Claim {
    Claim {
        node: format!("node-{node}"),
        name: name(&format!("node-{node}"), u32::from(node)),
        held: None,
        within: net("10.244.0.0/22"),
        length: 24,
        next_hop: hop(node),
        avoid: BTreeSet::new(),
    }
}

fn claims(nodes: &[u8]) -> Vec<Change> {
    nodes.iter().map(|&node| Change::Claim(claim(node))).collect()
}

fn read(document: &Value) -> RouteTable {
    RouteTable::read(document).unwrap()
}

fn ranges(document: &Value) -> Vec<Ipv4Net> {
    let mut all: Vec<Ipv4Net> = read(document).routes.iter().filter_map(|route| route.range).collect();
    all.sort();
    all
}

#[test]
fn the_claims_of_many_nodes_are_met_in_one_document_each_with_a_range_of_its_own() {
    // Each two of these begin their search for a free range at the same one.
    let (edited, outcomes) = edit(&table(vec![]), &claims(&[1, 5, 2, 6]));
    assert!(outcomes.iter().all(Result::is_ok));
    let expected = ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"].map(net);
    assert_eq!(ranges(&edited), expected);
    let route = read(&edited).of("node-2", WITHIN, hop(2)).unwrap().clone();
    assert_eq!(route.next_hop, Some(hop(2)));
}

#[test]
fn a_document_that_is_none_of_a_route_table_is_not_read() {
    let odd =
        [json!("x"), json!([]), json!({ "properties": "x" }), json!({ "properties": { "routes": "x" } })];
    assert!(odd.iter().all(|document| RouteTable::read(document).is_none()));
    assert!(RouteTable::read(&json!({ "properties": {} })).is_some_and(|table| table.routes.is_empty()));
}

#[test]
fn a_claim_that_is_met_changes_nothing() {
    let (met, _) = edit(&table(vec![]), &claims(&[1]));
    let own = read(&met).routes[0].clone();
    let held = Claim { held: Some((own.name, own.range.unwrap())), ..claim(1) };
    for again in [claim(1), held] {
        assert_eq!(edit(&met, &[Change::Claim(again)]).0, met);
    }
}

#[test]
fn everything_that_is_not_ours_goes_back_as_it_came() {
    let theirs = json!({ "name": "to-firewall", "id": "x", "properties": { "addressPrefix": "0.0.0.0/0",
        "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.240.9.9", "futureField": 1 } });
    let before = table(vec![theirs.clone()]);
    let leave = Change::Leave { node: "node-1".into(), names: vec!["to-firewall".into()], next_hop: hop(1) };
    let (edited, _) = edit(&before, &[leave, Change::Claim(claim(1))]);
    assert_eq!(edited["properties"]["routes"][0], theirs);
    assert_eq!(
        (&edited["tags"], &edited["properties"]["disableBgpRoutePropagation"]),
        (&before["tags"], &json!(true))
    );
}

#[test]
fn a_removed_or_changed_route_is_repaired_with_the_same_range() {
    let (met, _) = edit(&table(vec![]), &claims(&[1]));
    let own = read(&met).routes[0].clone();
    let held = Change::Claim(Claim { held: Some((own.name.clone(), own.range.unwrap())), ..claim(1) });
    assert_eq!(ranges(&edit(&table(vec![]), std::slice::from_ref(&held)).0), [own.range.unwrap()]);
    let mut bent = met.clone();
    bent["properties"]["routes"][0]["properties"]["nextHopIpAddress"] = json!("10.240.0.99");
    let (mended, _) = edit(&bent, &[held]);
    assert_eq!(read(&mended).routes[0].next_hop, Some(hop(1)));
}

#[test]
fn a_range_in_use_is_not_taken_by_another_though_its_route_is_gone() {
    let used: BTreeSet<Ipv4Net> = ["10.244.0.0/24", "10.244.1.0/24", "10.244.3.0/24"].map(net).into();
    let (edited, _) = edit(&table(vec![]), &[Change::Claim(Claim { avoid: used, ..claim(1) })]);
    assert_eq!(ranges(&edited), [net("10.244.2.0/24")]);
}

#[test]
fn another_route_over_a_nodes_range_is_named_and_the_node_gets_no_second_range() {
    let theirs =
        json!({ "name": "lab", "properties": { "addressPrefix": "10.244.1.0/25", "nextHopType": "None" } });
    let held = Some((name("node-1", 1), net("10.244.1.0/24")));
    let (edited, outcomes) = edit(&table(vec![theirs]), &[Change::Claim(Claim { held, ..claim(1) })]);
    assert_eq!(outcomes, [Err(Refusal::Taken { range: net("10.244.1.0/24"), by: "lab".into() })]);
    assert_eq!(ranges(&edited), [net("10.244.1.0/25")]);
}

#[test]
fn a_full_table_and_a_used_up_cidr_are_distinct_refusals() {
    let filler = |n: usize| {
        let range = format!("172.16.{}.{}/32", n / 256, n % 256);
        json!({ "name": format!("r{n}"), "properties": { "addressPrefix": range, "nextHopType": "None" } })
    };
    let full = table((0..MOST_ROUTES).map(filler).collect());
    assert_eq!(edit(&full, &claims(&[1])).1, [Err(Refusal::Full)]);
    let outcomes = edit(&table(vec![]), &claims(&[1, 2, 3, 4, 5])).1;
    assert_eq!(outcomes[4], Err(Refusal::Exhausted { within: net("10.244.0.0/22"), length: 24 }));
}

#[test]
fn a_release_makes_room_in_the_same_write() {
    let full = edit(&table(vec![]), &claims(&[1, 2, 3, 4])).0;
    let gone = read(&full).of("node-1", WITHIN, hop(1)).unwrap().clone();
    let changes = [Change::Claim(claim(5)), Change::Release { names: vec![gone.name] }];
    let (edited, outcomes) = edit(&full, &changes);
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(read(&edited).of("node-5", WITHIN, hop(5)).unwrap().range, gone.range);
}

#[test]
fn a_node_that_is_gone_takes_its_routes_along_and_not_its_successors() {
    let met = edit(&table(vec![]), &claims(&[1, 2])).0;
    // Whatever name it had: the name may be known nowhere, if the operator died between table and spec.
    let leave = |next_hop| Change::Leave { node: "node-1".into(), names: vec![], next_hop };
    assert_eq!(read(&edit(&met, &[leave(hop(1))]).0).routes.len(), 1);
    assert_eq!(read(&edit(&met, &[leave(hop(77))]).0).routes.len(), 2);
}

#[test]
fn a_table_without_a_list_of_routes_is_an_empty_one() {
    let bare = json!({ "location": "x", "properties": { "provisioningState": "Succeeded" } });
    assert_eq!(read(&bare).routes, []);
    assert_eq!(edit(&bare, &[Change::Release { names: vec![] }]).0, bare);
    assert_eq!(read(&edit(&bare, &claims(&[1])).0).routes.len(), 1);
}

proptest! {
    /// However often, by whomever and in whatever order: with a stale list of names, without a held route,
    /// twice.
    #[test]
    fn no_range_is_ever_two_nodes(steps in prop::collection::vec((0..8_u8, any::<bool>(), any::<bool>()), 1..40)) {
        let mut document = table(vec![]);
        for (node, leaves, knows) in steps {
            let own = read(&document).of(&format!("node-{node}"), WITHIN, hop(node)).cloned();
            let held = own.filter(|_| knows).map(|route| (route.name, route.range.unwrap()));
            let change = if leaves {
                Change::Release { names: held.into_iter().map(|(name, _)| name).collect() }
            } else {
                Change::Claim(Claim { held, ..claim(node) })
            };
            document = edit(&document, &[change]).0;
            let all = ranges(&document);
            prop_assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
            for node in 0..8 {
                let prefix = names_of(&format!("node-{node}"));
                let count = read(&document).routes.iter().filter(|route| route.name.starts_with(&prefix)).count();
                prop_assert!(count <= 1, "node-{node} has {count} routes");
            }
        }
    }
}
