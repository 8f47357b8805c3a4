//! Helm's and others' use of the chart over an installation's life.

use crate::chart::container;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::process::Command;
use vnetpool_tests::control_plane::{ControlPlane, kubernetes, path, rendered};
use vnetpool_tests::project::{programs, root};
use vnetpool_tests::snippets;

/// Argo CD's way: it renders without a cluster, compares, and applies; and it deletes objects without `keep`.
pub fn a_plain_default_pool_is_applied_again_and_again_and_an_edit_survives(
    plane: &ControlPlane,
) -> Result<()> {
    let plain = ["--set", "defaultPool.plain=true,defaultPool.spec.sizing.minimum=6", "--include-crds"];
    let (first, second) = (rendered(&plain)?, rendered(&plain)?);
    ensure!(first == second, "two renders differ");
    for kept in ["defaultpool.yaml", ""] {
        for object in first.get(kept).into_iter().flatten() {
            let annotations = &object["metadata"]["annotations"];
            ensure!(annotations["helm.sh/resource-policy"] == "keep", "{}", object["metadata"]);
            ensure!(annotations.get("helm.sh/hook").is_none(), "{annotations}");
        }
    }
    let definitions =
        first.values().flatten().filter(|one| one["kind"] == "CustomResourceDefinition").count();
    ensure!(definitions == 2, "{definitions} definitions without a template");
    let mut pool = first["defaultpool.yaml"][0].clone();
    // Another test works on the pool of that name.
    pool["metadata"]["name"] = "gitops".into();
    let manifest = tempfile::NamedTempFile::new()?;
    std::fs::write(manifest.path(), pool.to_string())?;
    let path = manifest.path().to_string_lossy();
    let apply = || plane.kubectl(&["apply", "--server-side", "--field-manager=argocd", "-f", &path]);
    apply()?;
    plane.kubectl(&["patch", "nodeippool", "gitops", "--type=merge", "-p", r#"{"spec":{"weight":-7}}"#])?;
    apply()?;
    let shown = plane.kubectl(&[
        "get",
        "nodeippool",
        "gitops",
        "-o",
        "jsonpath={.spec.weight} {.spec.sizing.minimum}",
    ])?;
    ensure!(shown == "-7 6", "{shown}");
    plane.kubectl(&["delete", "nodeippool", "gitops"]).map(drop)
}

/// Before a cluster is moved. The DaemonSet's own wishes stay.
pub fn the_documented_step_keeps_another_network_on_the_nodes_there_were(plane: &ControlPlane) -> Result<()> {
    let node = |name: &str, os: &str| {
        let metadata = json!({ "name": name, "labels": { "kubernetes.io/os": os } });
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata }).to_string()
    };
    plane.apply(&node("before", "linux"))?;
    plane.apply(&node("other-system", "windows"))?;
    let (labels, own) = (json!({ "app": "old-network" }), json!({ "kubernetes.io/os": "linux" }));
    let term = json!({ "matchExpressions": [{ "key": "type", "operator": "NotIn", "values": ["virtual-kubelet"] }] });
    let required =
        json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] } });
    let pod = json!({ "nodeSelector": own, "affinity": { "nodeAffinity": required },
        "containers": [{ "name": "network", "image": "network" }] });
    let daemon_set = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "old-network", "namespace": "kube-system" },
        "spec": { "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod } } });
    plane.apply(&daemon_set.to_string())?;
    for snippet in snippets::of("migrate")? {
        plane.type_in(&snippet, &[("NETWORK", "old-network")])?;
    }
    plane.apply(&node("after", "linux"))?;
    let nodes = plane.kubectl(&["get", "nodes", "--selector", "network=old", "--output", "name"])?;
    let has = |name: &str| nodes.lines().any(|line| line == format!("node/{name}"));
    ensure!(has("before") && !has("other-system") && !has("after"), "{nodes}");
    let of = ["get", "daemonset", "old-network", "--namespace", "kube-system", "--output", "json"];
    let kept: Value = serde_json::from_str(&plane.kubectl(&of)?)?;
    let kept = &kept["spec"]["template"]["spec"];
    ensure!(kept["nodeSelector"] == json!({ "kubernetes.io/os": "linux", "network": "old" }), "{kept}");
    ensure!(kept["affinity"]["nodeAffinity"] == required, "{kept}");
    plane.kubectl(&["delete", "daemonset", "old-network", "--namespace", "kube-system"])?;
    plane.kubectl(&["delete", "node", "before", "other-system", "after"]).map(drop)
}

/// Otherwise `make older-kubernetes` would show nothing.
pub fn the_server_is_of_the_kubernetes_that_the_tests_are_to_have(plane: &ControlPlane) -> Result<()> {
    let version: Value = serde_json::from_str(&plane.kubectl(&["version", "--output", "json"])?)?;
    let server = version["serverVersion"]["gitVersion"].as_str().context("no version")?;
    ensure!(server == format!("v{}", kubernetes()?), "{version}");
    Ok(())
}

/// The commands of the hook's Job. The older definition differs in words only, since other tests use it at
/// the same time.
pub fn the_hook_brings_older_definitions_up_to_date(plane: &ControlPlane) -> Result<()> {
    let description =
        "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/nodes/description";
    let older = json!([{ "op": "replace", "path": description, "value": "of an older release" }]).to_string();
    plane.kubectl(&["patch", "crd", "nodeippools.vnetpool.io", "--type=json", "-p", &older])?;
    let objects = rendered(&[])?;
    let args = container(&objects, "crds/job.yaml")?["args"].as_array().context("no arguments")?;
    let ran = Command::new(programs().join("vnetpool-operator"))
        .args(args.iter().filter_map(Value::as_str))
        .env("KUBECONFIG", &plane.kubeconfig)
        .output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let shown = plane.kubectl(&["get", "crd", "nodeippools.vnetpool.io", "-o", "json"])?;
    ensure!(!shown.contains("of an older release"), "the definition is still the older one");
    Ok(())
}

pub fn a_persons_pool_survives_upgrade_rollback_and_a_new_installation(plane: &ControlPlane) -> Result<()> {
    // Without the Job, which nothing here would run, and without the objects of other tests.
    let folder = tempfile::tempdir()?;
    let copied = Command::new("cp").args(["-r", &path("charts/vnetpool")]).arg(folder.path()).status()?;
    ensure!(copied.success());
    let chart = folder.path().join("vnetpool");
    for made in ["crds/job.yaml", "admission", "operator", "node-agent", "tests", "NOTES.txt"] {
        let made = chart.join("templates").join(made);
        if made.is_dir() { std::fs::remove_dir_all(made)? } else { std::fs::remove_file(made)? }
    }
    let chart = chart.to_string_lossy();
    let weight = || plane.kubectl(&["get", "nodeippool", "default", "-o", "jsonpath={.spec.weight}"]);
    let upgrade = || plane.helm(&["upgrade", "--install", "vnetpool", &chart]);

    plane.kubectl(&["delete", "nodeippool", "default", "--ignore-not-found"])?;
    upgrade()?;
    ensure!(weight()? == "0", "the chart makes the pool where there is none");
    plane.kubectl(&["patch", "nodeippool", "default", "--type=merge", "-p", r#"{"spec":{"weight":-7}}"#])?;
    upgrade()?;
    ensure!(weight()? == "-7", "an upgrade leaves it alone");
    plane.helm(&["rollback", "vnetpool", "1"])?;
    ensure!(weight()? == "-7", "a rollback leaves it alone");
    plane.helm(&["uninstall", "vnetpool"])?;
    ensure!(weight()? == "-7", "uninstalling leaves it");
    upgrade()?;
    ensure!(weight()? == "-7", "a new installation takes it as it is");
    let plain = || plane.helm(&["upgrade", "vnetpool", &chart, "--set", "defaultPool.plain=true"]);
    let refused = plain().err().context("helm has taken over what a hook has made")?;
    ensure!(format!("{refused:#}").contains("cannot be imported"), "{refused:#}");
    for snippet in snippets::of("gitops")? {
        plane.type_in(&snippet, &[])?;
    }
    plain()?;
    ensure!(weight()? == "-7", "handed over, it stays as it is");
    plane.helm(&["uninstall", "vnetpool"]).map(drop)
}

pub fn the_notes_warn_of_an_identity_that_every_process_of_a_node_can_use(
    plane: &ControlPlane,
) -> Result<()> {
    let notes = |identity: &str| {
        let identity = format!("azure.identity.type={identity}");
        let others = "image.registry=registry.example,azure.identity.clientID=c,azure.identity.tenantID=t";
        let chart = root().join("charts/vnetpool");
        let chart = chart.to_string_lossy();
        plane.helm(&[
            "install",
            "noted",
            &chart,
            "--dry-run=client",
            "--take-ownership",
            "--set",
            &identity,
            "--set",
            others,
        ])
    };
    let warning = "Every process on the host network of a node that has\nthe identity can get one";
    let printed = notes("ManagedIdentity")?;
    ensure!(printed.contains(warning) && printed.contains("podMetadataAccess: All"), "{printed}");
    ensure!(!notes("WorkloadIdentity")?.contains(warning), "warned of what is no danger");
    Ok(())
}
