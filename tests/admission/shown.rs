//! kubectl's view of our kinds without any log: field docs and columns.

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::time::Duration;
use vnetpool_tests::control_plane::{ControlPlane, User, allocation};

pub fn explain_shows_the_meaning_of_each_field(plane: &ControlPlane) -> Result<()> {
    for (field, meaning) in [
        ("nodeippool", "Policy for the Azure virtual network addresses"),
        ("nodeippool.spec.sizing", "How many addresses"),
        ("nodeippool.spec.sizing.warm", "kept free beyond the demand"),
        ("nodeippool.spec.cooldown", "rests before another pod gets it"),
        ("nodeippool.status.free", "a new pod could get at once"),
        ("nodeippool.status.subnets.free", "a minute ago at most"),
        ("nodeippool.spec.subnetExhaustingPercent", "SubnetExhausting"),
        ("nodeipallocation.spec.interfaces.ipConfigurations.name", "Name of the ipConfiguration"),
        ("nodeipallocation.status.relinquished", "given up for good"),
        ("nodeipallocation.status.unlisted", "lists no longer"),
        ("nodeipallocation.status.metadataSilent", "every 15 minutes"),
        ("nodeipallocation.status.confirmed", "gets an attachment"),
        ("nodeipallocation.status.lost.pod", "namespace/name"),
    ] {
        let text = plane.kubectl(&["explain", field])?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(text.contains(meaning), "{field}: {text}");
    }
    Ok(())
}

pub fn a_pool_is_shown_in_the_promised_columns(plane: &ControlPlane) -> Result<()> {
    let pool = json!({ "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPPool", "metadata": { "name": "shown" }, "spec": {} });
    plane.apply(&pool.to_string())?;
    let ready = condition("Ready", "False", "SubnetFull");
    let status = json!({ "nodes": 3, "nodesReady": 2, "updatedNodes": 1, "held": 24, "assigned": 11, "free": 12, "cooling": 1, "waiting": 0, "conditions": [ready, condition("SubnetExhausting", "True", "FewFree")] });
    patch_status(plane, User::Operator, "nodeippool", "shown", status)?;
    columns(
        plane,
        "nodeippools",
        "shown",
        &[],
        "NAME MODE NODES NODES-READY UPDATED HELD ASSIGNED FREE READY REASON AGE",
        "shown Address 3 2 1 24 11 12 False SubnetFull",
    )?;
    columns(
        plane,
        "nipp",
        "shown",
        &["-o", "wide"],
        "NAME MODE NODES NODES-READY UPDATED HELD ASSIGNED FREE READY REASON AGE COUNTED SUBNET-EXHAUSTING",
        "True",
    )
}

pub fn an_allocation_is_shown_in_the_promised_columns(plane: &ControlPlane) -> Result<()> {
    plane.apply_as(User::Operator, &allocation("shown", "uid"))?;
    let counted = Timestamp::now() - Duration::from_secs(9 * 86_400);
    let status = json!({ "held": 12, "assigned": 7, "free": 3, "cooling": 2, "waiting": 4,
        "countedAt": Timestamp::from_second(counted.as_second())? });
    patch_status(plane, User::Agent("shown"), "nodeipallocation", "shown", status)?;
    let ready = json!({ "conditions": [condition("Ready", "True", "Ready")] });
    patch_status(plane, User::Operator, "nodeipallocation", "shown", ready)?;
    let header = "NAME POOL HELD ASSIGNED FREE COOLING WAITING COUNTED READY REASON AGE";
    let of_pool = ["--field-selector", "spec.pool=default,metadata.name=shown"];
    columns(plane, "nodeipallocations", "", &of_pool, header, "shown default 12 7 3 2 4 9d True Ready")?;
    let header = format!("{header} NIC SUBNET");
    columns(plane, "nipa", "shown", &["-o", "wide"], &header, "networkInterfaces/shown-nic")?;
    columns(plane, "nipa", "shown", &["-o", "wide"], &header, "virtualNetworks/vnet/subnets/nodes")
}

/// A condition as `status.conditions` holds it.
pub fn condition(type_: &str, status: &str, reason: &str) -> serde_json::Value {
    json!({ "type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" })
}

/// Merges this into an object's status.
pub fn patch_status(
    plane: &ControlPlane,
    user: User,
    kind: &str,
    name: &str,
    status: serde_json::Value,
) -> Result<()> {
    let patch = json!({ "status": status }).to_string();
    plane
        .kubectl_as(user, &["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch])
        .map(drop)
}

/// `kubectl get` of one object has this header, and `row` in its line.
fn columns(
    plane: &ControlPlane,
    kind: &str,
    name: &str,
    args: &[&str],
    header: &str,
    row: &str,
) -> Result<()> {
    let name = Some(name).filter(|name| !name.is_empty());
    let table = plane.kubectl(&[&["get", kind], name.as_slice(), args].concat())?;
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let shown = lines.next().context("nothing shown")?;
    ensure!(shown == header, "{shown}");
    let line = lines.next().context("no row")?;
    ensure!(line.contains(row), "{line}");
    Ok(())
}
