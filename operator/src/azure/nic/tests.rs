use proptest::prelude::*;
use serde_json::Map;

use super::*;

const ID: &str = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/networkInterfaces/node-1-nic";
const SUBNET: &str =
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/vnet/subnets/nodes";
const VM: &str = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/node-1";

fn ip_configuration(name: &str, address: &str, primary: bool) -> Value {
    json!({
        "name": name,
        "etag": "W/\"1\"",
        "properties": {
            "provisioningState": "Succeeded",
            "privateIPAddress": address,
            "privateIPAllocationMethod": "Dynamic",
            "subnet": { "id": SUBNET },
            "primary": primary,
            "privateIPAddressVersion": "IPv4",
        },
    })
}

fn document(ip_configurations: Vec<Value>) -> Value {
    json!({
        "id": ID,
        "etag": "W/\"1\"",
        "location": "westeurope",
        "properties": {
            "provisioningState": "Succeeded",
            "macAddress": "00-0D-3A-E5-1C-C0",
            "virtualMachine": { "id": VM },
            "ipConfigurations": ip_configurations,
            "allowPort25Out": true,
        },
    })
}

fn change(reserve: &[&str], release: &[&str]) -> Change {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Change { reserve: names(reserve), release: names(release), ..Change::default() }
}

fn edit(document: &Value, change: &Change) -> Result<Value, Error> {
    super::edit(document, change, Form::Nic)
}

fn names(document: &Value) -> Vec<&str> {
    ip_configurations(document).unwrap().iter().map(name).collect()
}

fn read(document: &Value) -> Result<Nic, Error> {
    Nic::read(&ID.parse().unwrap(), document)
}

/// A NIC with these of ours, for tests to which the rest of it doesn't matter.
pub fn sample_nic(held: &[(&str, &str)]) -> Nic {
    let primary = ip_configuration("ipconfig1", "10.0.0.4", true);
    let mut nic = read(&document(vec![primary])).unwrap();
    nic.ip_configurations = held
        .iter()
        .map(|(name, address)| IpConfiguration {
            name: (*name).into(),
            address: Some(address.parse().unwrap()),
            state: ProvisioningState::Succeeded,
            attached: Attached::default(),
        })
        .collect();
    nic
}

/// Azure marks one as primary. If it didn't, no name would make the node's own address a pod's.
#[test]
fn the_nodes_own_address_is_none_of_ours_whatever_its_name_and_in_no_block_of_ours() {
    let unmarked = |name, address| {
        let mut one = ip_configuration(name, address, false);
        one["properties"].as_object_mut().unwrap().remove("primary");
        one
    };
    let nic =
        read(&document(vec![unmarked("vnp-1", "10.240.0.4"), unmarked("vnp-2", "10.240.0.5")])).unwrap();
    let ours: Vec<&str> = nic.ip_configurations.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((ours, nic.primary.to_string(), nic.foreign), (vec!["vnp-2"], "10.240.0.4".to_owned(), 1));
    for address in ["10.240.0.4", "10.240.0.0/28"] {
        let ours = ip_configuration("vnp-1", address, false);
        let refused = read(&document(vec![ip_configuration("ipconfig1", "10.240.0.4", true), ours]));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "ipConfiguration vnp-1 has 10.240.0.4, which is the node's own"
        );
    }
}

#[test]
fn a_nic_shows_our_ip_configurations_and_the_number_of_foreign_ones() {
    let nic = read(&document(vec![
        ip_configuration("ipconfig1", "10.240.0.4", true),
        ip_configuration("vnp-1", "10.240.0.5", false),
        ip_configuration("egress", "10.240.0.6", false),
        ip_configuration("vnp-2", "10.240.0.16/28", false),
    ]))
    .unwrap();
    assert_eq!(nic.primary, Ipv4Addr::new(10, 240, 0, 4));
    assert_eq!(nic.mac.as_deref(), Some("00:0d:3a:e5:1c:c0"));
    assert_eq!(nic.vm, Some(VM.parse().unwrap()));
    assert_eq!(nic.subnet, SUBNET.parse().unwrap());
    assert_eq!(nic.foreign, 2);
    let ours: Vec<(&str, String)> = nic
        .ip_configurations
        .iter()
        .map(|one| (one.name.as_str(), one.address.unwrap().to_string()))
        .collect();
    assert_eq!(ours, [("vnp-1", "10.240.0.5/32".to_owned()), ("vnp-2", "10.240.0.16/28".to_owned())]);
}

#[test]
fn an_address_that_azure_has_not_chosen_yet_is_none() {
    let mut pending = ip_configuration("vnp-1", "", false);
    pending["properties"] = json!({ "provisioningState": "Updating", "subnet": { "id": SUBNET } });
    let nic = read(&document(vec![ip_configuration("ipconfig1", "10.240.0.4", true), pending])).unwrap();
    assert_eq!(nic.ip_configurations[0].address, None);
    assert_eq!(nic.ip_configurations[0].state, ProvisioningState::Updating);
}

#[test]
fn a_nic_that_no_vm_has_had_has_no_mac() {
    let mut bare = document(vec![ip_configuration("ipconfig1", "10.240.0.4", true)]);
    bare["properties"]["macAddress"] = Value::Null;
    bare["properties"]["virtualMachine"] = Value::Null;
    let nic = read(&bare).unwrap();
    assert_eq!((nic.mac, nic.vm), (None, None));
}

#[test]
fn a_nic_whose_vm_can_not_be_read_is_not_taken_for_one_without() {
    for vm in [json!({}), json!({ "id": null }), json!({ "id": "vm" }), json!("vm"), json!([])] {
        let mut odd = document(vec![ip_configuration("ipconfig1", "10.240.0.4", true)]);
        odd["properties"]["virtualMachine"] = vm;
        assert_eq!(read(&odd), Err(Error::Lacks { what: "a well-formed id of its VM" }));
    }
}

#[test]
fn a_nic_with_an_ip_configuration_that_has_no_properties_is_neither_read_nor_written() {
    let group = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationSecurityGroups/web";
    let joining = Change { join: vec![group.parse().unwrap()], ..Change::default() };
    for odd in [json!("x"), json!({ "name": "x" }), json!({ "name": "x", "properties": "y" })] {
        let primary = ip_configuration("ipconfig1", "10.0.0.4", true);
        let document = document(vec![primary, odd]);
        let lacks = Error::Lacks { what: "the properties of an ipConfiguration" };
        assert_eq!(edit(&document, &joining), Err(lacks.clone()));
        assert_eq!(read(&document), Err(lacks));
    }
}

#[test]
fn an_incomplete_documents_error_names_the_missing_part() {
    assert_eq!(read(&json!({})), Err(Error::Lacks { what: "properties.ipConfigurations" }));
    assert_eq!(read(&document(vec![])), Err(Error::Lacks { what: "an ipConfiguration" }));
}

#[test]
fn macs_are_written_as_linux_does() {
    for text in ["00-0D-3A-E5-1C-C0", "000D3AE51CC0", "00:0d:3a:e5:1c:c0"] {
        assert_eq!(mac(text), "00:0d:3a:e5:1c:c0");
    }
}

#[test]
fn a_reserved_block_is_one_ip_configuration_with_a_prefix_length_and_no_address() {
    let change = Change { blocks: true, ..change(&["vnp-1"], &[]) };
    let edited = edit(&document(vec![ip_configuration("ipconfig1", "10.240.0.4", true)]), &change).unwrap();
    let block = &edited["properties"]["ipConfigurations"][1]["properties"];
    assert_eq!(block["privateIPAddressPrefixLength"], 28);
    assert_eq!(
        (&block["privateIPAllocationMethod"], &block["privateIPAddress"]),
        (&json!("Dynamic"), &Value::Null)
    );
}

#[test]
fn turning_forwarding_on_changes_that_field_and_nothing_else() {
    let before = document(vec![ip_configuration("ipconfig1", "10.240.0.4", true)]);
    let edited = edit(&before, &Change { forward: true, ..Change::default() }).unwrap();
    let mut expected = before.clone();
    expected["properties"]["enableIPForwarding"] = json!(true);
    assert_eq!(edited, expected);
    assert!(!read(&before).unwrap().forwards && read(&edited).unwrap().forwards);
}

#[test]
fn a_restored_address_is_asked_for_by_itself_and_before_azure_chooses_others() {
    let before = document(vec![ip_configuration("ipconfig1", "10.240.0.4", true)]);
    let restore = [("vnp-2", "10.240.0.9/32"), ("vnp-3", "10.240.0.16/28")];
    let restore = restore.map(|(name, address)| (name.to_owned(), address.parse().unwrap())).into();
    let after = edit(&before, &Change { restore, ..change(&["vnp-1"], &[]) }).unwrap();
    assert_eq!(names(&after), ["ipconfig1", "vnp-2", "vnp-3", "vnp-1"]);
    let field_of =
        |index: usize, field: &str| ip_configurations(&after).unwrap()[index]["properties"][field].clone();
    for (index, address) in [(1, "10.240.0.9"), (2, "10.240.0.16/28")] {
        assert_eq!(field_of(index, "privateIPAllocationMethod"), "Static");
        assert_eq!(field_of(index, "privateIPAddress"), address);
    }
    assert_eq!(
        (field_of(1, "privateIPAddressPrefixLength"), field_of(2, "privateIPAddressPrefixLength")),
        (Value::Null, json!(28))
    );
    assert_eq!(field_of(3, "privateIPAllocationMethod"), "Dynamic");
}

#[test]
fn a_reserved_address_is_dynamic_and_in_the_subnet_and_groups_of_the_first() {
    let mut first = ip_configuration("ipconfig1", "10.240.0.4", true);
    first["properties"]["applicationSecurityGroups"] = json!([{ "id": "/asg" }]);
    let edited = edit(&document(vec![first]), &change(&["vnp-1"], &[])).unwrap();
    assert_eq!(
        edited["properties"]["ipConfigurations"][1],
        json!({
            "name": "vnp-1",
            "properties": {
                "subnet": { "id": SUBNET },
                "privateIPAllocationMethod": "Dynamic",
                "privateIPAddressVersion": "IPv4",
                "primary": false,
                "applicationSecurityGroups": [{ "id": "/asg" }],
            },
        })
    );
}

#[test]
fn one_edit_releases_and_reserves() {
    let before = document(vec![
        ip_configuration("vnp-1", "10.240.0.5", false),
        ip_configuration("ipconfig1", "10.240.0.4", true),
        ip_configuration("vnp-2", "10.240.0.6", false),
    ]);
    let after = edit(&before, &change(&["vnp-3", "vnp-4"], &["vnp-1"])).unwrap();
    assert_eq!(names(&after), ["ipconfig1", "vnp-2", "vnp-3", "vnp-4"]);
}

#[test]
fn an_edit_already_made_is_not_made_twice() {
    let before = document(vec![
        ip_configuration("ipconfig1", "10.240.0.4", true),
        ip_configuration("vnp-1", "10.240.0.5", false),
    ]);
    assert_eq!(edit(&before, &change(&["vnp-1"], &["vnp-9"])).unwrap(), before);
}

#[test]
fn an_ip_configuration_of_others_is_neither_released_nor_reserved() {
    let before = document(vec![
        ip_configuration("ipconfig1", "10.240.0.4", true),
        ip_configuration("egress", "10.240.0.5", false),
    ]);
    for refused in [change(&[], &["egress"]), change(&["egress-2"], &[]), change(&[], &["ipconfig1"])] {
        assert!(matches!(edit(&before, &refused), Err(Error::NotOurs { .. })), "{refused:?}");
    }
}

#[test]
fn the_primary_stays_even_if_it_has_a_name_like_ours() {
    let before = document(vec![ip_configuration("vnp-1", "10.240.0.4", true)]);
    assert_eq!(edit(&before, &change(&[], &["vnp-1"])), Err(Error::Primary { name: "vnp-1".into() }));
    let nic = read(&before).unwrap();
    assert_eq!((nic.ip_configurations.len(), nic.foreign), (0, 1));
}

/// JSON with fields that no API version has.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[ -~]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,6}", inner, 0..4)
                .prop_map(|all| Value::Object(Map::from_iter(all))),
        ]
    })
}

/// A NIC with unknown fields at every level, and the names of ours on it.
fn any_nic() -> impl Strategy<Value = Value> {
    let one = (prop::bool::weighted(0.7), anything(), anything()).prop_map(|(ours, inside, beside)| {
        let mut one = ip_configuration("", "10.240.0.9", false);
        one["properties"]["future"] = inside;
        one["future"] = beside;
        (ours, one)
    });
    (prop::collection::vec(one, 0..12), anything(), anything()).prop_map(|(all, inside, beside)| {
        let mut list = vec![ip_configuration("ipconfig1", "10.240.0.4", true)];
        list.extend(all.into_iter().enumerate().map(|(index, (ours, mut one))| {
            one["name"] = json!(if ours { format!("vnp-{index}") } else { format!("theirs-{index}") });
            one
        }));
        // Not always first.
        let middle = list.len() / 2;
        list.swap(0, middle);
        let mut document = document(list);
        document["properties"]["future"] = inside;
        document["future"] = beside;
        document
    })
}

fn without_ours(document: &Value) -> Value {
    let mut rest = document.clone();
    if let Some(list) = rest["properties"]["ipConfigurations"].as_array_mut() {
        list.retain(|one| !is_ours(one));
    }
    rest
}

proptest! {
    #[test]
    fn everything_that_is_not_ours_survives(
        before in any_nic(),
        add in 0usize..5,
        remove in prop::collection::hash_set(0usize..12, 0..12),
    ) {
        let reserve: Vec<String> = (100..100 + add).map(|index| format!("vnp-{index}")).collect();
        let release: Vec<String> = remove.iter().map(|index| format!("vnp-{index}")).collect();
        let after = edit(&before, &Change { reserve: reserve.clone(), release: release.clone(), ..Change::default() }).unwrap();
        prop_assert_eq!(without_ours(&after), without_ours(&before));

        let mut expected: Vec<&str> =
            names(&before).into_iter().filter(|&name| !release.iter().any(|gone| gone == name)).collect();
        expected.extend(reserve.iter().map(String::as_str));
        prop_assert_eq!(names(&after), expected);
        // Ours that stay are untouched as well.
        for one in ip_configurations(&after).unwrap().iter().filter(|one| !reserve.iter().any(|new| new == name(one))) {
            prop_assert!(ip_configurations(&before).unwrap().contains(one));
        }
    }
}

const BACKEND_POOL: &str =
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/loadBalancers/lb/backendAddressPools/web";
const PUBLIC_ADDRESS: &str =
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/publicIPAddresses/vnp-u";

fn attach(name: &str, backend_pools: &[&str], public_address: Option<&str>) -> Change {
    let attached = Attached {
        backend_pools: backend_pools.iter().map(|id| id.parse().unwrap()).collect(),
        public_address: public_address.map(|id| id.parse().unwrap()),
        other: false,
    };
    Change { attach: BTreeMap::from([(name.to_owned(), attached)]), ..Change::default() }
}

#[test]
fn attached_resources_read_back_and_nothing_else_changes() {
    let before = document(vec![
        ip_configuration("ipconfig1", "10.240.0.4", true),
        ip_configuration("vnp-1", "10.240.0.5", false),
        ip_configuration("vnp-2", "10.240.0.6", false),
    ]);
    let change = attach("vnp-2", &[BACKEND_POOL], Some(PUBLIC_ADDRESS));
    let mut after = edit(&before, &change).unwrap();
    let nic = read(&after).unwrap();
    assert_eq!(nic.ip_configurations[1].attached, change.attach["vnp-2"]);
    assert!(nic.ip_configurations[0].attached.is_empty());
    assert_eq!(edit(&after, &change).unwrap(), after, "what is attached already needs no write");
    after = edit(&after, &attach("vnp-2", &[], None)).unwrap();
    assert!(read(&after).unwrap().ip_configurations[1].attached.is_empty());
    // An empty list means the same as no list, and takes nothing else along.
    after["properties"]["ipConfigurations"][2]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("loadBalancerBackendAddressPools");
    assert_eq!(after, before);
}

#[test]
fn resources_attached_by_others_are_seen_and_left_alone() {
    let mut one = ip_configuration("vnp-1", "10.240.0.5", false);
    one["properties"]["loadBalancerInboundNatRules"] = json!([{ "id": "x" }]);
    let before = document(vec![ip_configuration("ipconfig1", "10.240.0.4", true), one]);
    assert!(read(&before).unwrap().ip_configurations[0].attached.other);
    assert_eq!(edit(&before, &attach("vnp-1", &[], None)).unwrap(), before);
    assert_eq!(
        edit(&before, &attach("ipconfig1", &[BACKEND_POOL], None)),
        Err(Error::NotOurs { name: "ipconfig1".into() })
    );
}

#[test]
fn ip_configurations_of_others_go_only_by_name_and_with_nothing_attached() {
    let subnet = json!({ "id": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a" });
    let one = |name: &str, primary: bool, more: Value| {
        let mut properties = json!({ "primary": primary, "privateIPAddress": "10.0.0.9", "subnet": subnet });
        properties.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "name": name, "properties": properties })
    };
    let before = document(vec![
        one("ipconfig1", true, json!({})),
        one("ipconfig2", false, json!({})),
        one("Cilium-x", false, json!({ "loadBalancerBackendAddressPools": [] })),
        one("balanced", false, json!({ "loadBalancerBackendAddressPools": [{ "id": "/b" }] })),
        one("v6", false, json!({ "privateIPAddressVersion": "IPv6" })),
        one("vnp-1", false, json!({ "privateIPAddress": "10.0.0.10" })),
    ]);
    let nic = read(&before).unwrap();
    assert_eq!(nic.others.idle, ["ipconfig2", "Cilium-x"]);
    assert_eq!(nic.others.attached, ["balanced", "v6"]);
    let adopt = |names: &[&str]| {
        let adopt = names.iter().map(|&name| name.to_owned()).collect();
        edit(&before, &Change { adopt, reserve: vec!["vnp-2".into()], ..Change::default() })
    };
    let after = adopt(&["ipconfig2", "Cilium-x"]).unwrap();
    assert_eq!(names(&after), ["ipconfig1", "balanced", "v6", "vnp-1", "vnp-2"]);
    for not_to_be_had in ["ipconfig1", "balanced", "v6", "vnp-1"] {
        let error = adopt(&[not_to_be_had]).unwrap_err();
        assert_eq!(error, Error::NotOurs { name: not_to_be_had.into() });
    }
}
