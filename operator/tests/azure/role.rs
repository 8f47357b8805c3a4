//! The list of actions against the calls that are really made: it is enough, and none of it is unused.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vnetpool_azure_sim::{Access, Grant, LogEntry, NewInstance, NewScaleSet};
use vnetpool_operator::azure::role::{Action, On};
use vnetpool_operator::azure::{
    Claim, Error, Freshness, NewPublicAddress, Priority, RouteChange, VmId, route_name, vnet_of,
};

use crate::listed::{action_of, actions};
use crate::simulated::{World, change};

/// Everything the client does, for a node whose NIC refers to one of each, and for an instance of a Uniform
/// scale set.
async fn everything(world: &World) -> Result<(), Error> {
    let instance = world.sim.machine("pool_0").unwrap();
    let instance = format!("azure://{}", instance["id"].as_str().unwrap());
    for vm in [&world.vm, &VmId::from_provider_id(&instance)?] {
        on(world, vm).await?;
    }
    let network = format!("{}/providers/Microsoft.Network", world.nic.group());
    let public = format!("{network}/publicIPAddresses/vnp-pod").parse()?;
    let new = NewPublicAddress { location: "westeurope".into(), dns_label: None, pod: "default/pod".into() };
    let reserved = world.azure.reserve_public_address(&public).await;
    world.azure.make_public_address(&reserved, &new, Priority::WaitingPods).await?;
    drop(reserved);
    world.azure.public_address(&public, Priority::WarmRefill).await?;
    world.azure.delete_public_address(&public, Priority::GiveBack).await?;
    let table = format!("{network}/routeTables/t").parse()?;
    world.azure.route_table(&table, Priority::NewNode).await?;
    let claim = Claim {
        node: "node-1".into(),
        name: route_name("node-1", 1),
        held: None,
        within: "10.244.0.0/16".parse().unwrap(),
        length: 24,
        next_hop: [10, 240, 0, 4].into(),
        avoid: BTreeSet::new(),
    };
    world.azure.change_routes(&table, RouteChange::Claim(claim), Priority::NewNode).await.map(drop)
}

async fn on(world: &World, vm: &VmId) -> Result<(), Error> {
    let nic = world.azure.primary_nic(vm, Priority::NewNode).await?;
    let subnet = world.azure.nic(&nic, Freshness::Fresh, Priority::NewNode).await?.subnet.clone();
    world.azure.network(&subnet, Priority::NewNode).await?;
    world.azure.usages(&vnet_of(&subnet)?, Priority::GiveBack).await?;
    world.azure.update(&nic, &change(&["vnp-1"], &[]), Priority::WarmRefill).await?;
    world.azure.update(&nic, &change(&[], &["vnp-1"]), Priority::GiveBack).await.map(drop)
}

/// A node's NIC with everything that a NIC may refer to.
async fn well_connected() -> World {
    let world = World::start("nodes", 0.2).await;
    let network = format!("{}/providers/Microsoft.Network", world.nic.group());
    let id = |rest: &str| json!({ "id": format!("{network}/{rest}") });
    let frontend = json!({ "name": "f", "properties": { "publicIPAddress": id("publicIPAddresses/f") } });
    let rule = json!({ "name": "r", "properties": { "protocol": "Tcp", "frontendPort": 22, "backendPort": 22,
        "frontendIPConfiguration": id("loadBalancers/l/frontendIPConfigurations/f") } });
    let balancer = json!({
        "backendAddressPools": [{ "name": "b" }], "frontendIPConfigurations": [frontend], "inboundNatRules": [rule],
    });
    for (path, properties) in [
        ("networkSecurityGroups/n", json!({})),
        ("applicationSecurityGroups/a", json!({})),
        ("publicIPAddresses/p", json!({ "publicIPAllocationMethod": "Static" })),
        ("publicIPAddresses/f", json!({ "publicIPAllocationMethod": "Static" })),
        ("loadBalancers/l", balancer),
        ("routeTables/t", json!({})),
    ] {
        let url = format!("{}{network}/{path}?api-version=2024-03-01", world.sim.arm_url());
        let body =
            json!({ "location": "westeurope", "sku": { "name": "Standard" }, "properties": properties });
        let made = reqwest::Client::new()
            .put(url)
            .bearer_auth("an administrator's")
            .json(&body)
            .send()
            .await
            .unwrap();
        assert!(made.status().is_success(), "{path}: {}", made.text().await.unwrap());
    }
    let held = world.azure.nic(&world.nic, Freshness::Fresh, Priority::NewNode).await.unwrap();
    let primary = json!({ "name": "ipconfig1", "properties": {
        "primary": true, "privateIPAllocationMethod": "Dynamic", "subnet": { "id": held.subnet.as_str() },
        "privateIPAddress": held.primary.to_string(),
        "publicIPAddress": id("publicIPAddresses/p"),
        "applicationSecurityGroups": [id("applicationSecurityGroups/a")],
        "loadBalancerBackendAddressPools": [id("loadBalancers/l/backendAddressPools/b")],
        "loadBalancerInboundNatRules": [id("loadBalancers/l/inboundNatRules/r")],
        "applicationGatewayBackendAddressPools": [id("applicationGateways/g/backendAddressPools/b")],
    } });
    let patch = json!({ "properties": {
        "networkSecurityGroup": id("networkSecurityGroups/n"), "ipConfigurations": [primary],
    } });
    world.sim.patch_nic("node-1-nic", &patch).await.unwrap();
    world.sim.add_scale_set(NewScaleSet { name: "pool".into(), ..NewScaleSet::default() }).unwrap();
    world.sim.add_instance("pool", NewInstance::default()).await.unwrap();
    world.sim.clear_log();
    world
}

/// Only these actions, on the resource group of the node and its network.
fn grant(world: &World, actions: impl Iterator<Item = &'static Action>) {
    let actions = actions.map(|action| action.name.to_owned()).collect();
    let grant = Grant { scope: world.nic.group(), actions, not_actions: vec![] };
    world.sim.control(Access { grants: vec![grant], ..Access::default() });
}

#[tokio::test]
async fn the_role_is_enough_and_each_action_of_it_is_used_or_a_join() {
    let world = well_connected().await;
    grant(&world, actions());
    everything(&world).await.unwrap();
    let used: BTreeSet<String> =
        world.arm_log().iter().map(|entry| action_of(&entry.method, &entry.path)).collect();
    let calls = actions().filter(|action| !matches!(action.on, On::Referenced(_)));
    let listed: BTreeSet<String> = calls.map(|action| action.name.to_owned()).collect();
    assert_eq!(used, listed);
}

#[tokio::test]
async fn without_any_one_action_of_the_role_azures_refusal_names_it() {
    // At once, because each waits for its writes.
    let one = |left_out: &'static Action| async move {
        let world = well_connected().await;
        grant(&world, actions().filter(|action| *action != left_out));
        let outcome = everything(&world).await;
        let refused = |entry: &LogEntry| {
            entry.status == 403
                && entry
                    .response
                    .as_ref()
                    .is_some_and(|body: &Value| body.to_string().contains(left_out.name))
        };
        assert!(world.arm_log().iter().any(refused), "nothing needs {}: {outcome:?}", left_out.name);
        if let Err(error) = outcome {
            // Refused once, no operation is followed: then a deletion is proved by a second one.
            let follows = left_out.name.ends_with("/locations/operations/read");
            if follows && matches!(error, Error::NotFound { .. }) {
                return;
            }
            // Azure's own words, with which the message ends, name it anyway: what we made of them counts.
            let Error::Denied { action, scope, .. } = &error else { panic!("{}: {error}", left_out.name) };
            assert_eq!(action, left_out.name);
            assert!(scope.starts_with("/subscriptions/") && error.to_string().contains(scope), "{error}");
        }
    };
    futures::future::join_all(actions().map(one)).await;
}
