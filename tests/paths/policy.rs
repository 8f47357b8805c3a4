//! Decisions of the network's owner: security groups, route tables, service endpoints, all of them for
//! addresses of pods.

use crate::World;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Call, Place, STORAGE, Seen, arm, id, put_subnet};
use vnetpool_tests::workload::PORT;

const NODES: &str = "vnet/subnets/nodes";
const SOON: Duration = Duration::from_secs(20);

fn deny(name: &str, priority: u32, from: &str, to: &str) -> Value {
    json!({ "name": name, "properties": { "priority": priority, "direction": "Inbound", "access": "Deny", "protocol": "*",
        "sourceAddressPrefix": from, "sourcePortRange": "*", "destinationAddressPrefix": to,
        "destinationPortRange": "*" } })
}

pub async fn a_security_group_acts_on_the_addresses_of_pods(world: &World) -> Result<()> {
    let (one, two) = (world.pod(0)?, world.pod(1)?);
    let vm = &world.vm.address;
    let rules = [deny("by-source", 100, &one.address, vm), deny("by-destination", 110, vm, &two.address)];
    let group = json!({ "properties": { "securityRules": rules } });
    arm(&world.cluster, "PUT", "networkSecurityGroups/pods", group).await?;
    let guarded = json!({ "networkSecurityGroup": { "id": id("networkSecurityGroups/pods") } });
    put_subnet(&world.cluster, NODES, guarded).await?;
    one.is_dropped(vm, PORT).await.context("a pod that is denied as a source")?;
    world.vm.is_dropped(&two.address, PORT).await.context("a pod that is denied as a destination")?;
    // The other one of each, and the node's own address, pass.
    let seen = two.seen_by(vm).await?;
    ensure!(seen == Seen::new(&two.address, vm), "the VM sees {seen:?}");
    let seen = world.vm.seen_by(&one.address).await?;
    ensure!(seen == Seen::new(vm, &one.address), "the pod sees {seen:?}");
    let seen = world.node(0)?.seen_by(vm).await?;
    ensure!(seen == Seen::new(&world.node(0)?.address, vm), "the VM sees the node as {seen:?}");
    put_subnet(&world.cluster, NODES, json!({})).await
}

/// How many packets a machine has forwarded.
async fn forwarded(place: &Place) -> Result<u64> {
    let table = place.run("cat", &["/proc/net/snmp"]).await?;
    let mut lines = table.lines().filter(|line| line.starts_with("Ip:")).map(|line| line.split_whitespace());
    let (mut names, mut values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let column = names.position(|name| name == "ForwDatagrams").context("no column")?;
    Ok(values.nth(column).context("no value")?.parse()?)
}

pub async fn a_route_table_steers_a_pods_packets_through_an_appliance_and_back(world: &World) -> Result<()> {
    let appliance = &world.appliance.place;
    for setting in ["ip_forward=1", "conf.all.send_redirects=0", "conf.eth0.send_redirects=0"] {
        appliance.run("sysctl", &["-q", "-w", &format!("net.ipv4.{setting}")]).await?;
    }
    let forwards = json!({ "properties": { "enableIPForwarding": true } });
    world.cluster.azure.admin("PATCH", "/nics/appliance-nic", forwards).await?;
    let (pod, far) = (world.pod(0)?, &world.far.place);
    let through = |to: &str| {
        let hop = json!({ "addressPrefix": to, "nextHopType": "VirtualAppliance",
            "nextHopIpAddress": appliance.address });
        json!({ "properties": { "routes": [{ "name": "through", "properties": hop }] } })
    };
    arm(&world.cluster, "PUT", "routeTables/there", through("10.60.0.0/16")).await?;
    arm(&world.cluster, "PUT", "routeTables/back", through("10.240.0.0/20")).await?;
    let steered = |table: &str| json!({ "routeTable": { "id": id(&format!("routeTables/{table}")) } });
    put_subnet(&world.cluster, NODES, steered("there")).await?;
    let before = forwarded(appliance).await?;
    let seen = pod.seen_by(&far.address).await?;
    ensure!(seen == Seen::new(&pod.address, &far.address), "the far end sees {seen:?}");
    let one_way = forwarded(appliance).await? - before;
    ensure!(one_way > 0, "the appliance saw nothing on the way there");
    put_subnet(&world.cluster, "far/subnets/far", steered("back")).await?;
    let before = forwarded(appliance).await?;
    let seen = pod.seen_by(&far.address).await?;
    ensure!(seen == Seen::new(&pod.address, &far.address), "the far end sees {seen:?}");
    let both_ways = forwarded(appliance).await? - before;
    ensure!(both_ways > one_way, "{both_ways} packets both ways, {one_way} one way");
    appliance.run("sysctl", &["-q", "-w", "net.ipv4.ip_forward=0"]).await?;
    pod.is_dropped(&far.address, PORT).await.context("around the appliance")?;
    put_subnet(&world.cluster, "far/subnets/far", json!({})).await?;
    put_subnet(&world.cluster, NODES, json!({})).await
}

pub async fn a_service_endpoint_sees_the_nodes_primary_or_the_pod_where_its_prefix_is_not_translated(
    world: &World,
) -> Result<()> {
    let (pod, node) = (world.pod(0)?, world.node(0)?);
    // Without an endpoint the service is a host of the internet, which sees a public address.
    pod.is_seen_as("203.0.113.127", STORAGE, SOON).await?;
    put_subnet(&world.cluster, NODES, json!({ "serviceEndpoints": [{ "service": "Microsoft.Storage" }] }))
        .await?;
    pod.is_seen_as(&node.address, STORAGE, SOON).await?;
    let ranges = ["192.168.0.0/16".to_owned(), format!("{STORAGE}/32")];
    world.cluster.patch_pool(json!({ "snat": { "nonMasqueradeCIDRs": ranges } })).await?;
    pod.is_seen_as(&pod.address, STORAGE, SOON).await?;
    world.cluster.patch_pool(json!({ "snat": { "nonMasqueradeCIDRs": ["192.168.0.0/16"] } })).await?;
    put_subnet(&world.cluster, NODES, json!({})).await
}

/// Puts every ipConfiguration of a node's NIC into these groups, as the NIC's owner would.
async fn group(world: &World, nic: &str, groups: &Value) -> Result<()> {
    let resource = format!("networkInterfaces/{nic}");
    // The operator may write at the same time; its ipConfigurations come in one by one.
    eventually(&format!("{nic} in {groups}"), SOON, || async {
        let mut body = arm(&world.cluster, "GET", &resource, json!({})).await?;
        for configuration in body["properties"]["ipConfigurations"].as_array_mut().context("no NIC")? {
            configuration["properties"]["applicationSecurityGroups"] = groups.clone();
        }
        arm(&world.cluster, "PUT", &resource, body).await.map(Some)
    })
    .await
    .map(drop)
}

pub async fn a_pod_is_in_the_application_security_groups_of_its_nodes_nic(world: &World) -> Result<()> {
    let (one, two) = (world.pod(0)?, world.pod(1)?);
    let vm = &world.vm.address;
    arm(&world.cluster, "PUT", "applicationSecurityGroups/web", json!({})).await?;
    let web = json!([{ "id": id("applicationSecurityGroups/web") }]);
    let mut rule = deny("of-the-group", 100, "*", vm);
    rule["properties"]["sourceApplicationSecurityGroups"] = web.clone();
    rule["properties"].as_object_mut().context("no rule")?.remove("sourceAddressPrefix");
    arm(
        &world.cluster,
        "PUT",
        "networkSecurityGroups/pods",
        json!({ "properties": { "securityRules": [rule] } }),
    )
    .await?;
    let guarded = json!({ "networkSecurityGroup": { "id": id("networkSecurityGroups/pods") } });
    put_subnet(&world.cluster, NODES, guarded).await?;
    ensure!(one.seen_by(vm).await.is_ok(), "a pod is denied before its NIC is in the group");
    group(world, "node-1-nic", &web).await?;
    one.is_dropped(vm, PORT).await.context("a pod whose NIC is in the group")?;
    ensure!(two.seen_by(vm).await.is_ok(), "a pod of another NIC is denied");
    // A later reservation is in the same groups: Azure takes one set a NIC.
    world.cluster.patch_pool(json!({ "sizing": { "minimum": 24 } })).await?;
    eventually("24 addresses on node-1, all in the group", Duration::from_secs(60), || async {
        let nic = arm(&world.cluster, "GET", "networkInterfaces/node-1-nic", json!({})).await?;
        let all = nic["properties"]["ipConfigurations"].as_array().context("no NIC")?;
        ensure!(all.len() > 24, "{} ipConfigurations", all.len());
        let is_in = |one: &Value| one["properties"]["applicationSecurityGroups"] == web;
        ensure!(all.iter().all(is_in), "not all are in the group");
        Ok(Some(()))
    })
    .await?;
    put_subnet(&world.cluster, NODES, json!({})).await?;
    group(world, "node-1-nic", &json!([])).await
}

pub async fn a_pool_puts_its_pods_into_its_application_security_groups(world: &World) -> Result<()> {
    let (one, two) = (world.pod(0)?, world.pod(1)?);
    let vm = &world.vm.address;
    arm(&world.cluster, "PUT", "applicationSecurityGroups/pods", json!({})).await?;
    let pods = json!([{ "id": id("applicationSecurityGroups/pods") }]);
    let mut rule = deny("of-the-pool", 100, "*", vm);
    rule["properties"]["sourceApplicationSecurityGroups"] = pods;
    rule["properties"].as_object_mut().context("no rule")?.remove("sourceAddressPrefix");
    let rules = json!({ "properties": { "securityRules": [rule] } });
    arm(&world.cluster, "PUT", "networkSecurityGroups/pods", rules).await?;
    let guarded = json!({ "networkSecurityGroup": { "id": id("networkSecurityGroups/pods") } });
    put_subnet(&world.cluster, NODES, guarded).await?;
    ensure!(one.seen_by(vm).await.is_ok(), "a pod is denied before its pool has groups");
    let groups = json!({ "ids": [id("applicationSecurityGroups/pods")], "onSharedNIC": true });
    for (groups, denied) in [(groups, true), (Value::Null, false)] {
        world.cluster.patch_pool(json!({ "applicationSecurityGroups": groups })).await?;
        eventually("both pods are treated as their pool has it", Duration::from_secs(60), || async {
            for pod in [&one, &two] {
                let call = pod.call(vm, PORT).await?;
                ensure!(
                    (call == Call::Dropped) == denied && call != Call::Refused,
                    "{}: {call:?}",
                    pod.address
                );
            }
            Ok(Some(()))
        })
        .await?;
    }
    put_subnet(&world.cluster, NODES, json!({})).await
}
