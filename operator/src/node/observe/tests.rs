use super::*;
use serde_json::json;

const SUBNET: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a";

fn node(boot: &str) -> Node {
    let info = k8s_openapi::api::core::v1::NodeSystemInfo { boot_id: boot.into(), ..Default::default() };
    let mut node = Node::default();
    node.status.get_or_insert_default().node_info = Some(info);
    node
}

fn allocation(status: serde_json::Value) -> NodeIPAllocation {
    serde_json::from_value(json!({
        "metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}, "status": status
    }))
    .unwrap()
}

fn pool(spec: serde_json::Value) -> NodeIPPool {
    NodeIPPool::new("p", serde_json::from_value(spec).unwrap())
}

#[test]
fn a_surplus_lasts_since_its_condition_turned_true() {
    let surplus = |status: &str| {
        allocation(json!({"conditions": [{"type": "Surplus", "status": status, "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
    };
    let now = "2026-01-01T00:05:00Z".parse().unwrap();
    assert_eq!(surplus_for(&surplus("True"), now), Some(Duration::from_secs(300)));
    assert_eq!(surplus_for(&surplus("False"), now), None);
}

#[test]
fn a_pool_for_another_subnet_gives_the_node_nothing_and_says_which() {
    let interface = allocation::Interface {
        subnet: Subnet { id: SUBNET.to_uppercase(), prefixes: vec![] },
        ..Default::default()
    };
    let same = pool(json!({"subnetID": SUBNET}));
    assert_eq!(mismatch(&same, &interface, &node("b")).unwrap(), None);
    let other = pool(json!({"subnetID": SUBNET.replace("subnets/a", "subnets/b")}));
    let Some(Obstacle::Interface { reason, message }) = mismatch(&other, &interface, &node("b")).unwrap()
    else {
        panic!("no obstacle");
    };
    assert_eq!(reason, "SubnetMismatch");
    assert!(message.contains("subnets/b") && message.contains("SUBNETS/A"));
}

#[test]
fn exclusions_are_the_vnet_its_peerings_and_what_the_pool_names_sorted_and_once() {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let network = Network {
        id: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
            .parse()
            .unwrap(),
        address_space: nets(&["10.240.0.0/16"]),
        peered: nets(&["10.3.0.0/16"]),
        subnet: nets(&["10.240.0.0/20"]),
        route_table: None,
    };
    let pool = pool(json!({"snat": {"nonMasqueradeCIDRs": ["192.168.0.0/16", "10.3.0.0/16"]}}));
    assert_eq!(exclusions(&network, Some(&pool), None), ["10.3.0.0/16", "10.240.0.0/16", "192.168.0.0/16"]);
}

#[test]
fn what_has_no_route_to_a_pod_cidr_sees_the_nodes_address() {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let vnet: ResourceId = SUBNET.parse::<ResourceId>().unwrap().parent().unwrap();
    let network = Network {
        address_space: nets(&["10.240.0.0/16"]),
        peered: nets(&["10.3.0.0/16"]),
        subnet: vec![],
        route_table: None,
        id: vnet.clone(),
    };
    let routed = Routed { table: vnet, within: "10.244.0.0/16".parse().ok(), claim: None };
    assert_eq!(exclusions(&network, None, Some(&routed)), ["10.240.0.0/16", "10.244.0.0/16"]);
}

#[test]
fn a_pool_of_blocks_gives_an_instance_of_a_uniform_scale_set_nothing_and_says_why() {
    let instance = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/p/virtualMachines/0";
    let interface = |id: &str| allocation::Interface {
        id: id.into(),
        subnet: Subnet { id: SUBNET.into(), prefixes: vec![] },
        ..Default::default()
    };
    let on_instance = interface(&format!("{instance}/networkInterfaces/primary"));
    let ordinary = interface(&SUBNET.replace("virtualNetworks/v/subnets/a", "networkInterfaces/n"));
    let blocks = pool(json!({"mode": "Prefix"}));
    let addresses = pool(json!({}));
    assert_eq!(mismatch(&blocks, &ordinary, &node("b")).unwrap(), None);
    assert_eq!(mismatch(&addresses, &on_instance, &node("b")).unwrap(), None);
    let found = mismatch(&blocks, &on_instance, &node("b")).unwrap();
    assert!(matches!(found, Some(Obstacle::Interface { reason: "ModeUnavailable", .. })), "{found:?}");
}
