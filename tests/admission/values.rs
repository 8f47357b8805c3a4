//! The chart's values: which there are, what they set in the programs, and which are refused.

use crate::chart::{container, environment, pod};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use vnetpool_tests::control_plane::{path, rendered, template};
use vnetpool_tests::project::programs;

/// A setting that was renamed would otherwise go unheard in a cluster.
pub fn the_programs_know_the_settings_they_are_given() -> Result<()> {
    let everything = [
        "--set",
        "azure.armEndpoint=http://198.51.100.10,azure.networkAPIVersion=2024-05-01,\
         azure.computeAPIVersion=2024-07-01,operator.dryRun=true,nodeAgent.openForward=true,\
         nodeAgent.cni.ipamOnly=true,nodeAgent.cni.furtherPlugins[0].type=tuning,monitoring.expose=true",
    ];
    let objects = rendered(&everything)?;
    for (template, program, count) in [
        ("operator/deployment.yaml", "vnetpool-operator", 11),
        ("node-agent/daemonset.yaml", "vnetpool-node-agent", 12),
    ] {
        let binary = programs().join(program);
        let help = Command::new(&binary).arg("--help").output();
        let help = help.with_context(|| format!("{}: run `make build`", binary.display()))?;
        let text = String::from_utf8_lossy(&help.stdout);
        let known: Vec<_> =
            text.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).collect();
        let foreign: Vec<_> = known.iter().filter(|name| !name.starts_with("VNETPOOL_")).collect();
        ensure!(foreign.is_empty(), "{program} goes by {foreign:?}, which may be anybody's variables");
        let given = environment(&objects, template)?;
        let ours: Vec<_> = given.keys().filter(|name| name.starts_with("VNETPOOL_")).collect();
        ensure!(ours.len() >= count, "{template} sets only {ours:?}");
        for name in ours {
            ensure!(known.contains(&name.as_str()), "{program} doesn't know {name}:\n{text}");
        }
        let started = Command::new(&binary)
            .arg("--help")
            .envs(given.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))))
            .output()?;
        ensure!(started.status.success(), "{program}: {}", String::from_utf8_lossy(&started.stderr));
    }
    Ok(())
}

pub fn each_identity_gets_its_settings_and_the_chart_names_missing_ones() -> Result<()> {
    let env = |args: &[&str]| -> Result<BTreeMap<String, String>> {
        let objects = rendered(args)?;
        let container = container(&objects, "operator/deployment.yaml")?;
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
    let objects = rendered(&private)?;
    let pod = &pod(&objects, "operator/deployment.yaml")?["spec"];
    let given = environment(&objects, "operator/deployment.yaml")?;
    let variable = |name: &str| given.get(name)?.as_deref();
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
    let objects = rendered(&["--set", "azure.budgetPercent=35"])?;
    let given = environment(&objects, "operator/deployment.yaml")?;
    ensure!(given["VNETPOOL_BUDGET_PERCENT"].as_deref() == Some("35"), "{given:?}");
    Ok(())
}

pub fn an_installation_without_a_registry_is_refused_with_the_value_to_set() -> Result<()> {
    let refusal = template(&["--set", "image.registry="]).err().map(|error| error.to_string());
    ensure!(refusal.as_ref().is_some_and(|text| text.contains("--set image.registry=")), "{refusal:?}");
    Ok(())
}

/// Also in a map that the schema doesn't go into by name.
pub fn an_unknown_value_is_refused() -> Result<()> {
    for (value, named) in [
        ("operator.replica=3", "replica"),
        ("operator.probes.liveness.initialDelaySeconds=3", "initialDelaySeconds"),
        ("image.pullSecrets[0].names=acr", "name"),
    ] {
        let refusal = template(&["--set", value]).err().map(|error| error.to_string());
        ensure!(refusal.as_ref().is_some_and(|text| text.contains(named)), "{value}: {refusal:?}");
    }
    Ok(())
}

/// What stands in a file of values without anything below it is null, and takes its defaults away.
pub fn a_map_that_is_null_is_empty_or_refused_by_its_name() -> Result<()> {
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(path("charts/vnetpool/values.schema.json"))?)?;
    let (mut parts, mut free) = (vec![], vec![]);
    maps("", &schema, &mut parts, &mut free);
    ensure!(parts.len() > 10 && free.len() > 20, "{parts:?}, {free:?}");
    let all = "monitoring.podMonitors.enabled=true,monitoring.alerts.enabled=true,monitoring.dashboards.enabled=true";
    let null = |path: &String| format!("{path}=null");
    let nulls: Vec<_> = free.iter().map(null).collect();
    let objects = rendered(&["--set", all, "--set", &nulls.join(",")])?;
    ensure!(objects["defaultpool.yaml"][0]["spec"] == json!({}), "{:?}", objects["defaultpool.yaml"]);
    let mut refused = vec![];
    for part in parts {
        let Err(error) = template(&["--set", all, "--set", &null(&part)]) else { continue };
        let (error, name) = (error.to_string(), part.rsplit('.').next().unwrap_or_default());
        ensure!(error.contains("schema") && error.contains(name), "{part}: {error}");
        refused.push(part);
    }
    // Without the defaults of these there would be nothing to go by.
    let required =
        ["azure.identity", "azure", "defaultPool", "image", "nodeAgent.cni", "nodeAgent", "operator"];
    ensure!(refused == required, "{refused:?}");
    Ok(())
}

/// The paths of all maps of the chart's own: parts, which have certain names, and those that are free to hold
/// any.
fn maps(above: &str, schema: &Value, parts: &mut Vec<String>, free: &mut Vec<String>) {
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        if value["type"] != "object" || name == "global" {
            continue;
        }
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if value["additionalProperties"] == false {
            maps(&path, value, parts, free);
            parts.push(path);
        } else {
            free.push(path);
        }
    }
}
