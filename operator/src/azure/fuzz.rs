//! Any bytes as an answer of ARM's, or as an id.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use reqwest::header::{HeaderMap, HeaderValue};

use super::error::{ArmError, Effect, classify};
use super::nic::Form;
use super::transport::retry_after;
use super::*;

const ID: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n";
const NEW: &str = "vnp-0000000000000001";
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Its first line, and what is behind it.
fn line(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes.get(end + 1..).unwrap_or_default())
}

/// The node's own address is none of ours. A write brings what it is to bring, and nothing else. Returns
/// whether it is a NIC.
fn is_nic(bytes: &[u8]) -> bool {
    let Ok(document) = serde_json::from_slice::<Value>(bytes) else { return false };
    let read = |document: &Value| Nic::read(&ID.parse().unwrap(), document);
    let Ok(nic) = read(&document) else { return false };
    for one in &nic.ip_configurations {
        assert!(!one.address.is_some_and(|range| range.contains(&nic.primary)), "{one:?}");
    }
    let edit = |document: &Value, change: &Change| nic::edit(document, change, Form::Nic);
    assert_eq!(edit(&document, &Change::default()).unwrap(), document);

    let reserve = Change { reserve: vec![NEW.to_owned()], ..Change::default() };
    if let Ok(more) = edit(&document, &reserve) {
        let held = |nic: &Nic| -> BTreeSet<String> {
            nic.ip_configurations.iter().map(|one| one.name.clone()).collect()
        };
        let (after, mut expected) = (read(&more).unwrap(), held(&nic));
        let is_there = document["properties"]["ipConfigurations"].as_array().into_iter().flatten();
        if !is_there.into_iter().any(|one| one["name"] == NEW) {
            expected.insert(NEW.to_owned());
        }
        assert_eq!(held(&after), expected);
        assert_eq!((&after.others, after.foreign, after.primary), (&nic.others, nic.foreign, nic.primary));
    }
    let release = nic.ip_configurations.iter().map(|one| one.name.clone()).collect();
    match edit(&document, &Change { release, ..Change::default() }) {
        Ok(less) => {
            let after = read(&less).unwrap();
            assert_eq!((after.ip_configurations, after.primary), (vec![], nic.primary));
            assert_eq!((after.others, after.foreign), (nic.others, nic.foreign));
        }
        Err(error) => assert!(matches!(error, nic::Error::Primary { .. }), "{error}"),
    }
    true
}

/// A node's claim brings it one range, which is no other's, and changes no other route; the second time there
/// is nothing to do. Returns whether it is a route table.
fn is_table(bytes: &[u8]) -> bool {
    let Ok(document) = serde_json::from_slice::<Value>(bytes) else { return false };
    let Some(before) = RouteTable::read(&document) else { return false };
    let (node, within): (_, Ipv4Net) = ("node-1".to_owned(), "10.244.0.0/16".parse().unwrap());
    let next_hop = [10, 240, 0, 4].into();
    let name = route_name(&node, 1);
    let claim = Claim { node, name, held: None, within, length: 24, next_hop, avoid: BTreeSet::new() };
    let claims = [RouteChange::Claim(claim.clone())];
    let (edited, outcomes) = route_table::edit(&document, &claims);
    let after = RouteTable::read(&edited).unwrap();
    if outcomes[..] != [Ok(())] {
        assert_eq!(after.routes, before.routes);
        return true;
    }
    let own = after.of(&claim.node, Some(within), next_hop).unwrap();
    let range = own.range.unwrap();
    assert!(within.contains(&range) && own.next_hop == Some(next_hop), "{own:?}");
    let is_new = !before.routes.iter().any(|route| route.name == own.name);
    for route in &before.routes {
        let overlaps = route.range.is_some_and(|other| other.contains(&range) || range.contains(&other));
        let is_within = route.range.is_some_and(|other| other.prefix_len() >= within.prefix_len());
        assert!(!(is_new && overlaps && is_within), "{route:?} and {own:?}");
    }
    assert_eq!(after.routes.len(), before.routes.len() + usize::from(is_new));
    let changed = before.routes.iter().filter(|route| !after.routes.contains(route)).count();
    assert!(changed <= usize::from(!is_new), "{changed} routes of {before:?}");
    assert_eq!(route_table::edit(&edited, &claims), (edited, vec![Ok(())]));
    true
}

/// A refusal: a line with its status and its `Retry-After`, then its body. No wait is longer than Azure's
/// longest, and each refusal has its words. Returns whether it has a code.
fn is_refusal(bytes: &[u8]) -> bool {
    let (line, body) = line(bytes);
    let (status, wait) = line.split_once(' ').unwrap_or((&line, ""));
    let mut headers = HeaderMap::new();
    if let Ok(wait) = HeaderValue::from_str(wait) {
        headers.insert("retry-after", wait);
    }
    let error = ArmError::of_body(body);
    for effect in [Effect::None, Effect::Write] {
        for status in [status.parse().ok(), None] {
            let error = classify(status, &error, retry_after(&headers), ID, effect);
            assert!(!error.to_string().is_empty());
            if let Error::Throttled { retry_after, .. }
            | Error::Busy { retry_after, .. }
            | Error::Unavailable { retry_after, .. } = &error
            {
                assert!(*retry_after <= LONGEST_WAIT && !retry_after.is_zero(), "{error:?}");
            }
            error.remedy();
            error.matter(&[ID.to_ascii_lowercase()]);
            let asked: Vec<Ipv4Net> = vec!["10.0.0.5/32".parse().unwrap(), "10.0.0.16/28".parse().unwrap()];
            for named in [error.taken(&asked), error.being_freed(&asked)].concat() {
                assert!(asked.contains(&named), "{named} wasn't asked for");
            }
        }
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body["error"]["code"].is_string()
}

/// An id, or a Node's providerID, is the same after it was written and read, and in any case of its letters.
/// It is all of a URL's path. Returns whether it is one.
fn is_id(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if let Ok(vm) = VmId::from_provider_id(text) {
        let id = vm.resource();
        assert_eq!(VmId::from_provider_id(&format!("azure://{id}")).unwrap(), vm);
        assert_eq!(vm.is_instance(), id.parent().is_some());
        return is_id(id.as_str().as_bytes());
    }
    let Ok(id) = text.parse::<ResourceId>() else { return false };
    assert_eq!((id.to_string().as_str(), id.to_string().parse().as_ref()), (text, Ok(&id)));
    assert_eq!(id.key().parse().as_ref(), Ok(&id));
    assert_eq!(id.key(), id.to_string().to_ascii_uppercase().parse::<ResourceId>().unwrap().key());
    let url = Url::parse("https://management.azure.com").unwrap().join(text).unwrap();
    assert_eq!(url.path_segments().unwrap().count(), text.split('/').count() - 1, "{url}");
    assert_eq!((url.query(), url.fragment(), url.host_str()), (None, None, Some("management.azure.com")));
    if let Some(parent) = id.parent() {
        assert_eq!(parent.to_string().parse().as_ref(), Ok(&parent));
        assert!(text.starts_with(parent.as_str()));
    }
    assert!(id.is(id.namespace(), &id.kind()));
    assert!(text.ends_with(id.name()) && text.starts_with(&id.group()));
    true
}

#[test]
fn of_no_nic_the_nodes_own_address_is_ours_and_a_write_changes_what_it_is_to() {
    vnetpool_fuzz::search("nic", is_nic);
}

#[test]
fn in_no_route_table_a_claim_takes_anothers_range() {
    vnetpool_fuzz::search("route_table", is_table);
}

#[test]
fn any_refusal_has_words_and_an_end_of_its_wait() {
    vnetpool_fuzz::search("refusal", is_refusal);
}

#[test]
fn any_text_that_is_an_id_is_the_same_written_and_read_and_all_of_a_path() {
    vnetpool_fuzz::search("id", is_id);
}
