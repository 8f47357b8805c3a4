//! Other writers of the NICs: nothing of theirs is lost, and the node ends with what it wants.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_apiserver::reading::Reading;
use vnetpool_azure_sim::{Config, Effect};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_node_agent::report::publish;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    no_report_lands_that_was_made_before_a_new_ledger_was_announced,
    another_clients_write_between_our_read_and_write_is_seen_and_survives,
    a_newer_write_that_takes_the_place_of_ours_survives_and_ours_is_made_again,
];

const NETWORK: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool/providers/Microsoft.Network";

/// Everything that others may have on a NIC, in an order that no tool would choose.
async fn somebody_elses_settings(stage: &Stage<'_>, owner: &str) -> Result<()> {
    for (balancer, pool) in [("z", "b"), ("a", "a")] {
        let body = json!({ "sku": { "name": "Standard" }, "properties": { "backendAddressPools": [{ "name": pool }] } });
        stage.put(&format!("Microsoft.Network/loadBalancers/{balancer}"), body).await?;
    }
    let primary = stage.nic("n1")["properties"]["ipConfigurations"][0].clone();
    let pool = |kind: &str, name: &str| json!({ "id": format!("{NETWORK}/{kind}/{name}") });
    let mut first = primary.clone();
    first["properties"]["loadBalancerBackendAddressPools"] = json!([
        pool("loadBalancers/z/backendAddressPools", "b"),
        pool("loadBalancers/a/backendAddressPools", "a")
    ]);
    first["properties"]["applicationGatewayBackendAddressPools"] = json!([
        pool("applicationGateways/g/backendAddressPools", "2"),
        pool("applicationGateways/g/backendAddressPools", "1")
    ]);
    first["properties"]["aFieldOfTheFuture"] =
        json!({ "list": [3, 1, 2, null], "deep": { "flag": false, "number": 0.5 } });
    let theirs = json!({ "name": "egress", "properties": { "primary": false, "privateIPAllocationMethod": "Static",
        "privateIPAddress": "10.240.3.3", "subnet": primary["properties"]["subnet"] } });
    let settings = json!({ "tags": { "owner": owner, "b": "2", "a": "1" }, "properties": {
        "enableAcceleratedNetworking": true, "auxiliaryMode": "None", "disableTcpStateTracking": true,
        "dnsSettings": { "dnsServers": ["10.9.9.9", "10.1.1.1"] }, "anotherFieldOfTheFuture": ["x", { "y": [] }],
        "ipConfigurations": [first, theirs] } });
    stage.sim.patch_nic("n1-nic", &settings).await?;
    Ok(())
}

/// The NIC without our parts, and without the parts that each write changes.
fn theirs(nic: &Value) -> Value {
    let mut nic = nic.clone();
    if let Some(list) = nic["properties"]["ipConfigurations"].as_array_mut() {
        list.retain(|one| !one["name"].as_str().unwrap_or_default().starts_with("vnp-"));
        for one in list.iter_mut().filter_map(Value::as_object_mut) {
            one.remove("etag");
        }
    }
    nic.as_object_mut().and_then(|nic| nic.remove("etag"));
    nic
}

/// Equal as JSON values: the order of arrays counts.
fn survived(before: &Value, after: &Value) -> Result<()> {
    let (before, after) = (theirs(before), theirs(after));
    ensure!(before == after, "before: {before}\nafter: {after}");
    Ok(())
}

async fn another_clients_write_between_our_read_and_write_is_seen_and_survives(
    plane: &ControlPlane,
) -> Result<()> {
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    // Ours is on its way when theirs arrives.
    let fault = stage.fault("PUT", "/networkInterfaces/", Some(1), Effect::HoldBefore);
    stage.node("n1", None).await?;
    stage.until_struck(fault, 1).await?;
    somebody_elses_settings(&stage, "somebody").await?;
    let before = stage.nic("n1");
    stage.sim.lift_fault(fault)?;
    stage.until_holds("n1", 4).await?;
    let answers: Vec<u16> = stage.writes("n1").iter().map(|write| write.status).collect();
    ensure!(answers == [412, 200], "{answers:?}");
    survived(&before, &stage.nic("n1"))?;
    // So does it all when ours are given back.
    stage
        .pool("default", json!({ "sizing": { "minimum": 1, "warm": 0, "batch": 1, "releaseAfter": "0s" } }))
        .await?;
    stage.until_holds("n1", 1).await?;
    survived(&before, &stage.nic("n1"))
}

async fn a_newer_write_that_takes_the_place_of_ours_survives_and_ours_is_made_again(
    plane: &ControlPlane,
) -> Result<()> {
    // Long enough for a busy machine to write in the middle of it.
    let slow = Config { write_seconds: 4.0, ..Config::default() };
    let stage = Stage::set(plane, slow, json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.node("n1", None).await?;
    let accepted = |_: &_| (stage.held("n1").len() == 4).then_some(());
    stage.until("Azure has the write", "n1", accepted).await?;
    // Another client has read the NIC before ours: our addresses are not in their list.
    somebody_elses_settings(&stage, "somebody").await?;
    let before = stage.nic("n1");
    ensure!(stage.held("n1").is_empty(), "theirs replaces the list");
    stage.until_holds("n1", 4).await?;
    survived(&before, &stage.nic("n1"))?;
    ensure!(stage.writes("n1").len() == 2, "{:?}", stage.writes("n1"));
    Ok(())
}

/// However long the API server held it back: addresses that it gives as relinquished, the new ledger may have
/// free.
async fn no_report_lands_that_was_made_before_a_new_ledger_was_announced(plane: &ControlPlane) -> Result<()> {
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 2 } })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    let agent = Client::try_from(plane.config(User::Agent("n1")).await?)?;
    let (api, agents) =
        (Api::<NodeIPAllocation>::all(agent.clone()), Api::<Reading<NodeIPAllocation>>::all(agent));
    let announced = eventually("a new ledger is announced", Duration::from_secs(30), || async {
        let before = api.get("n1").await?;
        // The operator or the other agent may be writing at this moment: then it is a conflict here, too.
        Ok(publish::announce(&agents, &before).await.ok().map(|after| (before, after)))
    });
    let (before, after) = announced.await?;
    ensure!(before.resource_version() != after.resource_version(), "the object wasn't written");
    let error = publish::announce(&agents, &before).await.err().context("a report of before has landed")?;
    ensure!(matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 409), "{error}");
    Ok(())
}
