//! The rules for ipConfigurations, one by one.

use super::*;

const NIC: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n";
const SUBNET: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/nodes";

fn subnet(prefix: &str, taken: &[&str]) -> Subnet {
    Subnet {
        id: SUBNET.into(),
        prefixes: vec![prefix.parse().unwrap()],
        state: "Succeeded".into(),
        taken: taken.iter().map(|address| (address.parse().unwrap(), "other NIC".into())).collect(),
    }
}

fn nic(secondaries: &[(&str, Value)]) -> Value {
    let primary =
        json!({ "name": "ipconfig1", "properties": { "primary": true, "subnet": { "id": SUBNET } } });
    let secondaries =
        secondaries.iter().map(|(name, properties)| json!({ "name": name, "properties": properties }));
    let all: Vec<Value> = std::iter::once(primary).chain(secondaries).collect();
    json!({ "location": "westeurope", "properties": { "ipConfigurations": all } })
}

fn put_into(subnet: &Subnet, old: Option<&Value>, body: Value) -> Result<Value, Reply> {
    apply(subnet, old, body, false)
}

fn apply(subnet: &Subnet, old: Option<&Value>, body: Value, moves_primary: bool) -> Result<Value, Reply> {
    let etag = "W/\"1\"".into();
    let put = Put { id: NIC, name: "n", old, body, etag, state: "Succeeded", moves_primary };
    put.apply(|id| id.eq_ignore_ascii_case(SUBNET).then(|| subnet.clone()))
}

fn put(old: Option<&Value>, body: Value) -> Result<Value, Reply> {
    put_into(&subnet("10.0.0.0/24", &["10.0.0.5/32"]), old, body)
}

fn held(nic: &Value) -> Vec<String> {
    ip_configurations(nic).iter().map(|c| text_of(address(c).unwrap())).collect()
}

fn refused(outcome: Result<Value, Reply>) -> String {
    let reply = outcome.expect_err("Azure refuses this");
    assert_eq!(reply.status, 400);
    reply.code().unwrap().to_owned()
}

fn fixed(address: &str) -> Value {
    json!({ "privateIPAllocationMethod": "Static", "privateIPAddress": address })
}

#[test]
fn dynamic_addresses_are_the_lowest_free_ones() {
    let document = put(None, nic(&[("a", json!({})), ("b", json!({}))])).unwrap();
    assert_eq!(held(&document), ["10.0.0.4", "10.0.0.6", "10.0.0.7"]);
}

#[test]
fn an_address_asked_for_by_name_is_not_given_to_another() {
    let document = put(None, nic(&[("a", json!({})), ("b", fixed("10.0.0.6"))])).unwrap();
    assert_eq!(held(&document), ["10.0.0.4", "10.0.0.7", "10.0.0.6"]);
}

#[test]
fn an_address_stays_with_its_name() {
    let old = put(None, nic(&[("a", json!({})), ("b", json!({}))])).unwrap();
    let document = put(Some(&old), nic(&[("c", json!({})), ("B", json!({}))])).unwrap();
    assert_eq!(held(&document), ["10.0.0.4", "10.0.0.6", "10.0.0.7"]);
}

#[test]
fn an_ip_configuration_left_out_is_gone() {
    let old = put(None, nic(&[("a", json!({})), ("b", json!({}))])).unwrap();
    let document = put(Some(&old), nic(&[])).unwrap();
    assert_eq!(held(&document), ["10.0.0.4"]);
}

#[test]
fn unknown_fields_are_kept_and_read_only_ones_are_not_taken_from_the_client() {
    let old = put(None, nic(&[])).unwrap();
    let mut body = nic(&[("a", json!({ "futureIpProp": 1 }))]);
    body["futureTop"] = json!([1]);
    body["properties"]["futureProp"] = json!({ "x": true });
    body["properties"]["macAddress"] = json!("de-ad");
    body["properties"]["resourceGuid"] = json!("mine");
    let document = put(Some(&old), body).unwrap();
    assert_eq!(document["futureTop"], json!([1]));
    assert_eq!(document["properties"]["futureProp"], json!({ "x": true }));
    assert_eq!(ip_configurations(&document)[1]["properties"]["futureIpProp"], json!(1));
    assert_eq!(document["properties"].get("macAddress"), None);
    assert_eq!(document["properties"]["resourceGuid"], old["properties"]["resourceGuid"]);
}

#[test]
fn the_primary_can_be_neither_removed_nor_renamed() {
    let old = put(None, nic(&[("a", json!({}))])).unwrap();
    let mut body = nic(&[("a", json!({}))]);
    body["properties"]["ipConfigurations"][0]["name"] = json!("other");
    assert_eq!(refused(put(Some(&old), body)), "IpConfigDeleteNotSupported");
}

#[test]
fn another_becomes_the_primary_where_that_is_allowed_as_long_as_the_old_one_stays() {
    let free = subnet("10.0.0.0/24", &[]);
    let old = put(None, nic(&[("a", json!({}))])).unwrap();
    let mut moved = old.clone();
    for (index, is_primary) in [false, true].into_iter().enumerate() {
        moved["properties"]["ipConfigurations"][index]["properties"]["primary"] = json!(is_primary);
    }
    assert_eq!(refused(put(Some(&old), moved.clone())), "IpConfigDeleteNotSupported");
    let document = apply(&free, Some(&old), moved.clone(), true).unwrap();
    assert_eq!(primary(&document).unwrap()["name"], "a");
    assert_eq!(held(&document), held(&old));
    moved["properties"]["ipConfigurations"].as_array_mut().unwrap().remove(0);
    assert_eq!(refused(apply(&free, Some(&old), moved, true)), "IpConfigDeleteNotSupported");
}

#[test]
fn a_static_address_must_be_given_and_free_and_in_the_subnet() {
    for (properties, code) in [
        (json!({ "privateIPAllocationMethod": "Static" }), "PrivateIPAddressMissing"),
        (fixed("10.0.1.9"), "PrivateIPAddressNotInSubnet"),
        (fixed("10.0.0.3"), "PrivateIPAddressInReservedRange"),
        (fixed("10.0.0.255"), "PrivateIPAddressInReservedRange"),
        (fixed("10.0.0.5"), "PrivateIPAddressIsAllocated"),
        (fixed("many"), "InvalidIPAddressFormat"),
    ] {
        assert_eq!(refused(put(None, nic(&[("a", properties)]))), code);
    }
}

#[test]
fn a_full_subnet_is_named_with_the_requested_number() {
    let full = subnet("10.0.0.0/29", &["10.0.0.5/32"]);
    let refusal = put_into(&full, None, nic(&[("a", json!({})), ("b", json!({}))])).unwrap_err();
    assert_eq!(refusal.code(), Some("SubnetIsFull"));
    let message = refusal.body.unwrap()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(
        message,
        "Subnet nodes with address prefix 10.0.0.0/29 does not have enough capacity for 3 IP addresses."
    );
}

#[test]
fn a_nic_holds_256_ip_configurations_and_no_more() {
    let many = |count: usize| -> Value {
        let names: Vec<String> = (1..count).map(|index| format!("vnp-{index}")).collect();
        nic(&names.iter().map(|name| (name.as_str(), json!({}))).collect::<Vec<_>>())
    };
    let wide = subnet("10.0.0.0/16", &[]);
    assert_eq!(held(&put_into(&wide, None, many(256)).unwrap()).len(), 256);
    assert_eq!(refused(put_into(&wide, None, many(257))), "PrivateIPAddressesPerNicLimitReached");
}

#[test]
fn all_ip_configurations_are_in_one_subnet_and_in_the_same_security_groups() {
    let elsewhere = json!({ "subnet": { "id": format!("{SUBNET}2") } });
    let code = refused(put(None, nic(&[("a", elsewhere)])));
    assert_eq!(code, "IpConfigurationsOnSameNicCannotUseDifferentSubnets");
    let grouped = json!({ "applicationSecurityGroups": [{ "id": "/asg" }] });
    let code = refused(put(None, nic(&[("a", grouped)])));
    assert_eq!(code, "AllIpConfigurationsOnANicMustBelongToTheSameApplicationSecurityGroups");
}

#[test]
fn names_are_unique_and_one_is_primary() {
    let twice = nic(&[("a", json!({})), ("A", json!({}))]);
    assert_eq!(refused(put(None, twice)), "DuplicateResourceName");
    let two = nic(&[("a", json!({ "primary": true }))]);
    assert_eq!(refused(put(None, two)), "NetworkInterfaceMustHaveExactlyOnePrimaryIpConfiguration");
}

#[test]
fn a_missing_or_busy_subnet_has_its_own_error() {
    let mut body = nic(&[]);
    body["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"] = json!("/elsewhere/subnets/x");
    assert_eq!(refused(put(None, body)), "InvalidResourceReference");
    let busy = Subnet { state: "Updating".into(), ..subnet("10.0.0.0/24", &[]) };
    let reply = put_into(&busy, None, nic(&[])).unwrap_err();
    assert_eq!((reply.status, reply.code()), (429, Some("RetryableError")));
}

#[test]
fn a_block_of_sixteen_is_one_ip_configuration() {
    let document = put(None, nic(&[("a", json!({ "privateIPAddressPrefixLength": 28 }))])).unwrap();
    assert_eq!(held(&document), ["10.0.0.4", "10.0.0.16/28"]);
    assert_eq!(addresses(&document).len(), 17);
}

#[test]
fn a_block_is_of_sixteen_and_never_primary() {
    let refusal = "PrivateIPAddressPrefixLengthInvalid";
    assert_eq!(refused(put(None, nic(&[("a", json!({ "privateIPAddressPrefixLength": 24 }))]))), refusal);
    let mut primary = nic(&[]);
    primary["properties"]["ipConfigurations"][0]["properties"]["privateIPAddressPrefixLength"] = json!(28);
    assert_eq!(refused(put(None, primary)), refusal);
}

#[test]
fn a_subnet_with_no_whole_block_free_is_full_for_blocks_though_it_has_addresses() {
    let scattered = subnet("10.0.0.0/26", &["10.0.0.20/32", "10.0.0.40/32"]);
    let block = ("a", json!({ "privateIPAddressPrefixLength": 28 }));
    assert_eq!(refused(put_into(&scattered, None, nic(&[block]))), "SubnetIsFull");
    assert!(put_into(&scattered, None, nic(&[("a", json!({}))])).is_ok());
}

#[test]
fn a_malformed_body_is_refused_and_breaks_nothing() {
    for (body, code) in [
        (json!({ "location": "x", "properties": 1 }), "InvalidRequestContent"),
        (json!({ "properties": { "ipConfigurations": [] } }), "LocationRequired"),
        (json!({ "location": "x", "properties": {} }), "NetworkInterfaceMustHaveIpConfigurations"),
        (json!({ "location": "x", "properties": { "ipConfigurations": [1] } }), "InvalidRequestContent"),
        (
            json!({ "location": "x", "properties": { "ipConfigurations": [{ "name": "a" }] } }),
            "InvalidRequestContent",
        ),
    ] {
        assert_eq!(refused(put(None, body)), code);
    }
}
