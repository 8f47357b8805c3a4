//! What the chart renders, and what helm does with it over an installation's life.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use vnetpool_tests::cluster::root;
use vnetpool_tests::control_plane::{ControlPlane, path, template};

/// The objects of a rendered chart by the template they come from.
fn rendered(args: &[&str]) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut objects: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for document in template(args)?.split("\n---\n") {
        let source = document.lines().find_map(|line| line.strip_prefix("# Source: vnetpool/templates/"));
        let object = Value::deserialize(serde_yaml_ng::Deserializer::from_str(document))?;
        if !object.is_null() {
            objects.entry(source.unwrap_or_default().into()).or_default().push(object);
        }
    }
    Ok(objects)
}

fn object(template: &str, args: &[&str]) -> Result<Value> {
    let mut objects =
        rendered(args)?.remove(template).with_context(|| format!("{template} renders nothing"))?;
    objects.pop().context("no object")
}

pub fn each_template_is_one_object() -> Result<()> {
    let objects = rendered(&[])?;
    ensure!(objects.len() >= 20, "{:?}", objects.keys());
    for (template, objects) in objects {
        ensure!(objects.len() == 1, "{template} renders {} objects", objects.len());
    }
    Ok(())
}

/// Helm deletes what its templates make; CRDs take every pool and allocation with them.
pub fn no_template_owns_a_custom_resource_definition() -> Result<()> {
    let all = rendered(&[])?;
    let found = all.values().flatten().find(|object| object["kind"] == "CustomResourceDefinition");
    ensure!(found.is_none(), "{found:?}");
    Ok(())
}

pub fn what_must_run_first_needs_no_pod_network() -> Result<()> {
    for template in ["operator/deployment.yaml", "crds/job.yaml", "node-agent/daemonset.yaml"] {
        let pod = object(template, &[])?["spec"]["template"]["spec"].clone();
        ensure!(pod["hostNetwork"] == true && pod["dnsPolicy"] == "Default", "{template}");
        let tolerated: Vec<_> = pod["tolerations"].as_array().into_iter().flatten().collect();
        for taint in [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/network-unavailable",
            "node.cloudprovider.kubernetes.io/uninitialized",
        ] {
            let tolerates = tolerated
                .iter()
                .any(|one| one["operator"] == "Exists" && (one["key"] == taint || one["key"].is_null()));
            ensure!(tolerates, "{template} doesn't tolerate {taint}");
        }
    }
    Ok(())
}

pub fn two_operators_never_share_a_node_and_can_still_be_replaced() -> Result<()> {
    let operator = object("operator/deployment.yaml", &[])?;
    ensure!(operator["spec"]["replicas"] == 2);
    ensure!(operator["spec"]["strategy"]["rollingUpdate"] == json!({ "maxSurge": 0, "maxUnavailable": 1 }));
    let pod = &operator["spec"]["template"];
    let rule =
        &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    ensure!(rule["topologyKey"] == "kubernetes.io/hostname", "{rule}");
    let selected = rule["labelSelector"]["matchLabels"].as_object().context("no labels")?;
    ensure!(selected.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value), "{selected:?}");
    let budget = rendered(&["--set", "operator.replicas=1"])?.remove("operator/poddisruptionbudget.yaml");
    ensure!(budget.is_none(), "a budget for a single replica would block every drain");
    Ok(())
}

pub fn the_agent_runs_everywhere_and_is_never_throttled() -> Result<()> {
    let pod = object("node-agent/daemonset.yaml", &[])?["spec"]["template"]["spec"].clone();
    ensure!(pod["tolerations"] == json!([{ "operator": "Exists" }]), "{}", pod["tolerations"]);
    ensure!(pod["containers"][0]["resources"]["limits"].get("cpu").is_none());
    let refusal =
        template(&["--set", "nodeAgent.resources.limits.cpu=1"]).err().map(|error| error.to_string());
    ensure!(
        refusal.as_ref().is_some_and(|text| text.contains("nodeAgent/resources/limits/cpu")),
        "{refusal:?}"
    );
    Ok(())
}

/// One of our programs, as the images have it.
fn program(name: &str) -> PathBuf {
    root().join("target/x86_64-unknown-linux-gnu/debug").join(name)
}

/// A flag that was renamed would otherwise show as a crash loop in a cluster.
pub fn the_programs_know_the_flags_they_are_given() -> Result<()> {
    let everything = ["--set", "azure.armEndpoint=http://198.51.100.10,operator.dryRun=true"];
    for (template, program) in [
        ("operator/deployment.yaml", "vnetpool-operator"),
        ("crds/job.yaml", "vnetpool-operator"),
        ("node-agent/daemonset.yaml", "vnetpool-node-agent"),
    ] {
        let container = object(template, &everything)?["spec"]["template"]["spec"]["containers"][0].clone();
        let args: Vec<_> =
            container["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let subcommands = args.iter().filter(|arg| !arg.starts_with("--"));
        let binary = self::program(program);
        let help = Command::new(&binary).args(subcommands).arg("--help").output();
        let help = help.with_context(|| format!("{}: run `make build`", binary.display()))?;
        let text = String::from_utf8_lossy(&help.stdout);
        ensure!(
            help.status.success(),
            "{program} {args:?} --help: {}",
            String::from_utf8_lossy(&help.stderr)
        );
        for flag in args.iter().filter_map(|arg| arg.split('=').next()).filter(|arg| arg.starts_with("--")) {
            ensure!(
                text.split_whitespace().any(|word| word == flag),
                "{program} doesn't know {flag}:\n{text}"
            );
        }
    }
    Ok(())
}

pub fn each_identity_gets_what_it_needs_and_says_what_it_lacks() -> Result<()> {
    let env = |args: &[&str]| -> Result<BTreeMap<String, String>> {
        let container =
            object("operator/deployment.yaml", args)?["spec"]["template"]["spec"]["containers"][0].clone();
        let azure = container["env"].as_array().into_iter().flatten().filter_map(|variable| {
            let name = variable["name"].as_str().filter(|name| name.starts_with("AZURE_"))?;
            let secret = &variable["valueFrom"]["secretKeyRef"]["name"];
            Some((name.to_owned(), variable["value"].as_str().or(secret.as_str())?.to_owned()))
        });
        Ok(azure.collect())
    };
    ensure!(env(&[])?.is_empty(), "the VM's own identity needs nothing");
    let managed = env(&["--set", "azure.identity.clientID=mine"])?;
    ensure!(managed == BTreeMap::from([("AZURE_CLIENT_ID".into(), "mine".into())]), "{managed:?}");

    let known = "azure.identity.clientID=c,azure.identity.tenantID=t";
    let workload = env(&["--set", "azure.identity.type=WorkloadIdentity", "--set", known])?;
    ensure!(
        workload.keys().eq(["AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_TENANT_ID"]),
        "{workload:?}"
    );
    let principal = [
        "--set",
        "azure.identity.type=ServicePrincipal",
        "--set",
        known,
        "--set",
        "azure.identity.secretName=s",
    ];
    let principal = env(&principal)?;
    ensure!(principal.get("AZURE_CLIENT_SECRET").is_some_and(|secret| secret == "s"), "{principal:?}");

    let private = [
        "--set",
        "azure.authorityHost=https://login.private.example,azure.httpsProxy=http://proxy:3128,azure.trustedCertificates=ours",
    ];
    let pod = object("operator/deployment.yaml", &private)?["spec"]["template"]["spec"].clone();
    let variable = |name: &str| {
        let all = pod["containers"][0]["env"].as_array().into_iter().flatten();
        all.filter(|one| one["name"] == name).find_map(|one| one["value"].as_str())
    };
    ensure!(variable("AZURE_AUTHORITY_HOST") == Some("https://login.private.example"));
    ensure!(variable("HTTPS_PROXY") == Some("http://proxy:3128"));
    let certificates = variable("SSL_CERT_FILE").and_then(|path| path.strip_suffix("/ca.crt"));
    let mounted = &pod["containers"][0]["volumeMounts"][0];
    ensure!(mounted["mountPath"].as_str() == certificates && mounted["name"] == "certificates", "{mounted}");
    ensure!(pod["volumes"][0]["configMap"]["name"] == "ours", "{}", pod["volumes"]);

    for (lacking, field) in [("WorkloadIdentity", "tenantID"), ("ServicePrincipal", "secretName")] {
        let refusal = template(&["--set", &format!("azure.identity.type={lacking}")])
            .err()
            .map(|error| error.to_string());
        ensure!(refusal.as_ref().is_some_and(|text| text.contains(field)), "{refusal:?}");
    }
    Ok(())
}

pub fn a_share_of_azures_limits_beyond_reason_is_refused() -> Result<()> {
    let args = |percent| template(&["--set", &format!("azure.budgetPercent={percent}")]);
    for percent in ["4", "101", "half"] {
        let refusal = args(percent).err().map(|error| error.to_string());
        ensure!(refusal.as_ref().is_some_and(|text| text.contains("azure/budgetPercent")), "{refusal:?}");
    }
    ensure!(args("35")?.contains("--budget-percent=35"));
    Ok(())
}

pub fn an_unknown_value_is_refused() -> Result<()> {
    let refusal = template(&["--set", "operator.replica=3"]).err().map(|error| error.to_string());
    ensure!(refusal.as_ref().is_some_and(|text| text.contains("replica")), "{refusal:?}");
    Ok(())
}

/// What the hook's Job runs. The older definition differs in words only, since other tests use it at the same time.
pub fn the_hook_brings_older_definitions_up_to_date(plane: &ControlPlane) -> Result<()> {
    let description =
        "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/nodes/description";
    let older = json!([{ "op": "replace", "path": description, "value": "of an older release" }]).to_string();
    plane.kubectl(&["patch", "crd", "nodeippools.vnetpool.io", "--type=json", "-p", &older])?;
    let job = object("crds/job.yaml", &[])?;
    let args =
        job["spec"]["template"]["spec"]["containers"][0]["args"].as_array().context("no arguments")?.clone();
    let ran = Command::new(program("vnetpool-operator"))
        .args(args.iter().filter_map(Value::as_str))
        .env("KUBECONFIG", &plane.kubeconfig)
        .output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let shown = plane.kubectl(&["get", "crd", "nodeippools.vnetpool.io", "-o", "json"])?;
    ensure!(!shown.contains("of an older release"), "the definition is still the older one");
    Ok(())
}

pub fn a_persons_pool_survives_upgrade_rollback_and_a_new_installation(plane: &ControlPlane) -> Result<()> {
    // Without the Job, which nobody here would run, and without what other tests have made already.
    let folder = tempfile::tempdir()?;
    let copied = Command::new("cp").args(["-r", &path("charts/vnetpool")]).arg(folder.path()).status()?;
    ensure!(copied.success());
    let chart = folder.path().join("vnetpool");
    for made in ["crds/job.yaml", "admission", "operator", "node-agent", "NOTES.txt"] {
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
    plane.helm(&["uninstall", "vnetpool"]).map(drop)
}
