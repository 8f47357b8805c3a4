//! Which identity may write which part of a NodeIPAllocation, and that none has more rights than its work
//! takes.

use crate::shown::{condition, patch_status};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_crds::names;
use vnetpool_tests::control_plane::{ControlPlane, NAMESPACE, User, allocation};
use vnetpool_tests::snippets;
use vnetpool_tests::wait::Limit;

pub fn an_agent_writes_the_status_of_its_own_node(plane: &ControlPlane) -> Result<()> {
    published(plane, "own")?;
    patch_status(plane, User::Agent("own"), "nodeipallocation", "own", json!({ "held": 1, "free": 1 }))?;
    let hint = json!({ "unlisted": ["vnp-0123456789abcdef"], "metadataSilent": true });
    patch_status(plane, User::Agent("own"), "nodeipallocation", "own", hint)?;
    let both = json!({ "conditions": [condition("Ready", "True", "Ready"), condition("Supplied", "True", "Supplied")] });
    patch_status(plane, User::Agent("own"), "nodeipallocation", "own", both)
}

pub fn an_agent_does_not_write_the_status_of_another_node(plane: &ControlPlane) -> Result<()> {
    published(plane, "victim")?;
    let message = refused(
        plane,
        User::Agent("attacker"),
        "victim",
        json!({ "relinquished": ["vnp-0123456789abcdef"] }),
    )?;
    let objection = "the agent of node attacker may not write the NodeIPAllocation of node victim";
    ensure!(message.contains(objection), "{message}");
    Ok(())
}

pub fn an_agent_without_a_node_in_its_token_writes_nothing(plane: &ControlPlane) -> Result<()> {
    published(plane, "unbound")?;
    let message = refused(plane, User::AgentWithoutNode, "unbound", json!({ "held": 1 }))?;
    ensure!(message.contains("(none named in its token)"), "{message}");
    Ok(())
}

pub fn an_agent_does_not_touch_the_operators_conditions(plane: &ControlPlane) -> Result<()> {
    published(plane, "verdict")?;
    let supplied = condition("Supplied", "True", "Supplied");
    for (what, conditions) in [
        ("changed", json!([condition("Ready", "False", "Sabotage"), supplied])),
        ("removed", json!([supplied])),
        ("added", json!([condition("Ready", "True", "Ready"), condition("Full", "True", "Sabotage")])),
    ] {
        let message = refused(plane, User::Agent("verdict"), "verdict", json!({ "conditions": conditions }))?;
        ensure!(message.contains("writes none of the operator's conditions: "), "{what}: {message}");
    }
    Ok(())
}

/// As after a rollback: otherwise no report of the node would ever come through again.
pub fn an_agent_takes_off_what_the_agent_of_a_later_release_has_added(plane: &ControlPlane) -> Result<()> {
    published(plane, "rolled-back")?;
    let report = |conditions: &[&str]| {
        let conditions: Vec<Value> = conditions.iter().map(|one| condition(one, "True", "Good")).collect();
        let object = json!({
            "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation",
            "metadata": { "name": "rolled-back" }, "status": { "conditions": conditions },
        });
        let apply = ["apply", "--server-side", "--subresource=status", "--field-manager=vnetpool-node-agent"];
        let apply = [&apply[..], &["--force-conflicts", "-f", "-"]].concat();
        plane.try_kubectl(User::Agent("rolled-back"), &apply, &object.to_string())
    };
    for conditions in [&["Supplied", "OfALaterAgent"][..], &["Supplied"]] {
        let applied = report(conditions)?;
        ensure!(applied.is_ok(), "{conditions:?}: {applied:?}");
    }
    let types = ["get", "nodeipallocation", "rolled-back", "-o", "jsonpath={.status.conditions[*].type}"];
    let types = plane.kubectl(&types)?;
    ensure!(types == "Ready Supplied", "{types}");
    let many: Vec<String> = (0..33).map(|one| format!("Many{one}")).collect();
    let refused = report(&many.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure!(refused.is_err_and(|error| error.contains("32 conditions at most")), "there is no end");
    Ok(())
}

pub fn an_agent_can_not_report_contradictory_or_invalid_values(plane: &ControlPlane) -> Result<()> {
    published(plane, "values")?;
    let holder = |address: &str| json!([{ "address": address, "podUID": "u", "sandbox": "s/eth0" }]);
    for (status, objection) in [
        (json!({ "held": 2, "free": 1 }), "held is assigned, cooling and free together"),
        (json!({ "assigned": 60_000 }), "held is assigned, cooling and free together"),
        (json!({ "lost": holder("10.240.0.300") }), "is no IPv4 address"),
        (json!({ "confirmed": holder("fd00::1") }), "is no IPv4 address"),
    ] {
        let message = refused(plane, User::Agent("values"), "values", status.clone())?;
        ensure!(message.contains(objection), "{status}: {message}");
    }
    let status = json!({ "held": 3, "assigned": 1, "cooling": 1, "free": 1, "lost": holder("10.240.0.9") });
    patch_status(plane, User::Agent("values"), "nodeipallocation", "values", status)
}

pub fn an_agent_writes_no_spec(plane: &ControlPlane) -> Result<()> {
    published(plane, "spec")?;
    let patch = ["patch", "nodeipallocation", "spec", "--type=merge", "-p", r#"{"spec":{"target":200}}"#];
    let message = plane.refusal(User::Agent("spec"), &patch, "")?;
    ensure!(message.contains("cannot patch resource \"nodeipallocations\""), "{message}");
    let delete = plane.refusal(User::Agent("spec"), &["delete", "nodeipallocation", "spec"], "")?;
    ensure!(delete.contains("cannot delete resource \"nodeipallocations\""), "{delete}");
    Ok(())
}

/// The policy holds on its own, should a RoleBinding be too generous.
pub fn an_agent_with_more_rights_than_it_should_have_still_writes_no_spec(
    plane: &ControlPlane,
) -> Result<()> {
    published(plane, "generous")?;
    let account = format!("--serviceaccount={NAMESPACE}:vnetpool-node-agent");
    plane.kubectl(&[
        "create",
        "clusterrole",
        "generous",
        "--verb=create,delete",
        "--resource=nodeipallocations.vnetpool.io",
    ])?;
    plane.kubectl(&["create", "clusterrolebinding", "generous", "--clusterrole=generous", &account])?;
    let message = plane.refusal(
        User::Agent("generous-new"),
        &["create", "-f", "-"],
        &allocation("generous-new", "uid"),
    )?;
    ensure!(
        message.contains("writes only the status of its NodeIPAllocation")
            || message.contains("only Vnetpool's operator"),
        "{message}"
    );
    let message = plane.refusal(User::Agent("generous"), &["delete", "nodeipallocation", "generous"], "")?;
    ensure!(message.contains("writes only the status of its NodeIPAllocation"), "{message}");
    plane.kubectl(&["delete", "clusterrole,clusterrolebinding", "generous"]).map(drop)
}

pub fn only_the_operator_writes_a_spec(plane: &ControlPlane) -> Result<()> {
    published(plane, "mirror")?;
    let objection = "only Vnetpool's operator writes it; change the NodeIPPool";
    let patch = ["patch", "nodeipallocation", "mirror", "--type=merge", "-p", r#"{"spec":{"target":200}}"#];
    let message = plane.refusal(User::Administrator, &patch, "")?;
    ensure!(message.contains(objection), "{message}");
    let message =
        plane.refusal(User::Administrator, &["create", "-f", "-"], &allocation("invented", "uid"))?;
    ensure!(message.contains(objection), "{message}");
    Ok(())
}

pub fn a_record_whose_operator_is_gone_ends_by_the_documented_command(plane: &ControlPlane) -> Result<()> {
    published(plane, "stuck")?;
    let held = json!({ "metadata": { "finalizers": [names::FINALIZER] } }).to_string();
    plane.kubectl_as(User::Operator, &["patch", "nodeipallocation", "stuck", "--type=merge", "-p", &held])?;
    plane.kubectl(&["delete", "nodeipallocation", "stuck", "--wait=false"])?;
    let is_there = || plane.kubectl(&["get", "nodeipallocation", "stuck", "--ignore-not-found"]);
    ensure!(!is_there()?.is_empty(), "it went without its operator");
    for snippet in snippets::of("hanging")? {
        plane.type_in(&snippet, &[("NODE", "stuck")])?;
    }
    let left = is_there()?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

pub fn the_operator_writes_spec_and_conditions(plane: &ControlPlane) -> Result<()> {
    published(plane, "normal")?;
    let spec = allocation("normal", "uid").replace("target: 8", "target: 12");
    let apply =
        ["apply", "--server-side", "--field-manager=vnetpool-operator", "--force-conflicts", "-f", "-"];
    let applied = plane.try_kubectl(User::Operator, &apply, &spec)?;
    ensure!(applied.is_ok(), "{applied:?}");
    let conditions = json!({ "conditions": [condition("Ready", "False", "SubnetFull")] });
    patch_status(plane, User::Operator, "nodeipallocation", "normal", conditions)?;
    plane.kubectl_as(User::Operator, &["delete", "nodeipallocation", "normal"]).map(drop)
}

/// As far as the right to patch Nodes goes, for any holder of the token: labels and others' taints draw pods.
pub fn of_a_node_the_operator_changes_its_own_taint_and_nothing_else(plane: &ControlPlane) -> Result<()> {
    const FULL: &str = names::FULL_TAINT;
    let others = json!({ "key": "dedicated", "value": "etcd", "effect": "NoSchedule" });
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "tainted", "labels": { "zone": "1" } },
        "spec": { "taints": [others] },
    });
    plane.apply(&node.to_string())?;
    const PATCH: [&str; 5] = ["patch", "node", "tainted", "--type=merge", "-p"];
    let patch =
        |patch: &Value| plane.kubectl_as(User::Operator, &[&PATCH[..], &[&patch.to_string()]].concat());
    let taints = |taints: &[Value]| json!({ "spec": { "taints": taints } });
    // The API server itself has tainted the new Node as not ready.
    let ready = taints(std::slice::from_ref(&others)).to_string();
    plane.kubectl(&[&PATCH[..], &[&ready]].concat())?;
    let full = json!({ "key": FULL, "effect": "NoSchedule" });
    // The policy is taken up some moments after it was made.
    let mut limit = Limit::new(Duration::from_secs(30));
    let mut zones = 2..;
    let zone = |zone: Option<i32>| json!({ "metadata": { "labels": { "zone": zone.map(|zone| zone.to_string()) } } });
    while patch(&zone(zones.next())).is_ok() {
        ensure!(!limit.is_over(), "labels are the operator's to change");
    }
    let forbidden = [
        json!({ "metadata": { "annotations": { "a": "b" } } }),
        json!({ "metadata": { "finalizers": ["vnetpool.io/stuck"] } }),
        json!({ "spec": { "unschedulable": true } }),
        taints(&[]),
        taints(std::slice::from_ref(&full)),
        taints(&[others.clone(), json!({ "key": "other", "effect": "NoExecute" })]),
        // This evicts pods.
        taints(&[others.clone(), json!({ "key": FULL, "effect": "NoExecute" })]),
        taints(&[others.clone(), full.clone(), json!({ "key": FULL, "effect": "NoExecute" })]),
        taints(&[others.clone(), json!({ "key": FULL, "value": "a", "effect": "NoSchedule" })]),
    ];
    for forbidden in forbidden {
        let refusal = plane.refusal(User::Operator, &[&PATCH[..], &[&forbidden.to_string()]].concat(), "")?;
        ensure!(refusal.contains("changes nothing of a Node but the taint"), "{forbidden}: {refusal}");
    }
    for allowed in [taints(&[others.clone(), full]), taints(&[others])] {
        patch(&allowed)?;
    }
    let label = ["label", "node", "tainted", "zone=3", "--overwrite"];
    plane.kubectl(&label)?;
    plane.kubectl(&["delete", "node", "tainted"]).map(drop)
}

pub fn the_rights_are_the_least_that_do(plane: &ControlPlane) -> Result<()> {
    let lease = |name: &str| format!("leases.coordination.k8s.io/{name}");
    for (user, verb, what, may) in [
        (User::Operator, "patch", "nodes".to_string(), true),
        (User::Operator, "delete", "nodes".into(), false),
        (User::Operator, "watch", "pods".into(), true),
        (User::Operator, "get", "pods".into(), false),
        (User::Operator, "delete", "pods".into(), false),
        (User::Operator, "get", "secrets".into(), false),
        (User::Operator, "patch", "nodeippools.vnetpool.io".into(), false),
        (User::Operator, "patch", "nodeippools.vnetpool.io/status".into(), true),
        (User::Operator, "update", lease("vnetpool-operator"), true),
        (User::Operator, "update", lease("another"), false),
        (User::Operator, "create", "customresourcedefinitions.apiextensions.k8s.io".into(), false),
        (User::Agent("a"), "get", "nodes".into(), true),
        (User::Agent("a"), "list", "nodes".into(), false),
        (User::Agent("a"), "patch", "nodes".into(), false),
        (User::Agent("a"), "list", "pods".into(), false),
        (User::Agent("a"), "get", "secrets".into(), false),
        (User::Agent("a"), "watch", "nodeipallocations.vnetpool.io".into(), true),
        (User::Agent("a"), "get", "nodeippools.vnetpool.io".into(), false),
        (User::Agent("a"), "patch", "nodeippools.vnetpool.io".into(), false),
    ] {
        let (resource, subresource) = match what.split_once("/status") {
            Some((resource, _)) => (resource.to_string(), "--subresource=status"),
            None => (what.clone(), "--subresource="),
        };
        let asked = ["auth", "can-i", verb, &resource, subresource, "--namespace", NAMESPACE];
        let answer = plane.try_kubectl(user, &asked, "")?.is_ok();
        ensure!(answer == may, "{verb} {what}: {answer} where {may} was meant");
    }
    Ok(())
}

/// An allocation as the operator made it and judged it.
fn published(plane: &ControlPlane, node: &str) -> Result<()> {
    plane.apply_as(User::Operator, &allocation(node, "uid"))?;
    let ready = json!({ "conditions": [condition("Ready", "True", "Ready")] });
    patch_status(plane, User::Operator, "nodeipallocation", node, ready)
}

fn refused(plane: &ControlPlane, user: User, node: &str, status: Value) -> Result<String> {
    let patch = json!({ "status": status }).to_string();
    plane.refusal(
        user,
        &["patch", "nodeipallocation", node, "--subresource=status", "--type=merge", "-p", &patch],
        "",
    )
}
