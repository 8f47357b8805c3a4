//! The chart's output, and helm's use of it over an installation's life.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use vnetpool_tests::cluster::{programs, root};
use vnetpool_tests::control_plane::{ControlPlane, Objects, path, rendered, template};

/// The pod that the one object of a template makes.
fn pod<'a>(objects: &'a Objects, template: &str) -> Result<&'a Value> {
    let object = objects.get(template).and_then(|all| all.first());
    Ok(&object.with_context(|| format!("{template} renders nothing"))?["spec"]["template"])
}

fn container<'a>(objects: &'a Objects, template: &str) -> Result<&'a Value> {
    Ok(&pod(objects, template)?["spec"]["containers"][0])
}

/// The container's environment, by name; values from elsewhere are left out.
fn environment(objects: &Objects, template: &str) -> Result<BTreeMap<String, Option<String>>> {
    let variables = container(objects, template)?["env"].as_array().into_iter().flatten();
    Ok(variables
        .filter_map(|one| Some((one["name"].as_str()?.into(), one["value"].as_str().map(Into::into))))
        .collect())
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

pub fn programs_that_must_run_first_need_no_pod_network() -> Result<()> {
    let objects = rendered(&[])?;
    for template in ["operator/deployment.yaml", "crds/job.yaml", "node-agent/daemonset.yaml"] {
        let pod = &pod(&objects, template)?["spec"];
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
    let objects = rendered(&[])?;
    let operator = &objects["operator/deployment.yaml"][0];
    ensure!(operator["spec"]["replicas"] == 2);
    ensure!(operator["spec"]["strategy"]["rollingUpdate"] == json!({ "maxSurge": 0, "maxUnavailable": 1 }));
    let pod = &operator["spec"]["template"];
    let rule =
        &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    ensure!(rule["topologyKey"] == "kubernetes.io/hostname", "{rule}");
    let selected = rule["labelSelector"]["matchLabels"].as_object().context("no labels")?;
    ensure!(selected.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value), "{selected:?}");
    // Where the last node that takes it is drained, the other replica waits for a node: a budget would
    // protect the one that is left, and the drain would never end.
    let budgets: Vec<_> =
        objects.values().flatten().filter(|one| one["kind"] == "PodDisruptionBudget").collect();
    ensure!(budgets.is_empty(), "{budgets:?} can hold a drain up for ever");
    Ok(())
}

pub fn the_agent_runs_everywhere_but_on_virtual_nodes_and_is_never_throttled() -> Result<()> {
    let objects = rendered(&[])?;
    let pod = &pod(&objects, "node-agent/daemonset.yaml")?["spec"];
    ensure!(pod["tolerations"] == json!([{ "operator": "Exists" }]), "{}", pod["tolerations"]);
    let required = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let off = json!({ "key": "type", "operator": "NotIn", "values": ["virtual-kubelet"] });
    let fits = json!({ "key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"] });
    ensure!(required["nodeSelectorTerms"] == json!([{ "matchExpressions": [off, fits] }]), "{required}");
    let given = "{ matchExpressions: [{ key: ours, operator: Exists }] }, { matchFields: [{ key: metadata.name, \
                 operator: In, values: [n] }] }";
    let given = with_values(&format!(
        "nodeAgent: {{ affinity: {{ nodeAffinity: {{ requiredDuringSchedulingIgnoredDuringExecution: \
         {{ nodeSelectorTerms: [{given}] }} }} }} }}"
    ))?;
    let given = &self::pod(&given, "node-agent/daemonset.yaml")?["spec"]["affinity"];
    let terms = &given["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    // One of them is enough for a node, so each has to leave them out.
    for index in 0..2 {
        ensure!(terms[index]["matchExpressions"][0] == off, "{terms}");
        ensure!(terms[index]["matchExpressions"][1] == fits, "{terms}");
    }
    ensure!(
        terms[0]["matchExpressions"][2]["key"] == "ours"
            && terms[1]["matchFields"][0]["key"] == "metadata.name"
    );
    ensure!(pod["containers"][0]["resources"]["limits"].get("cpu").is_none());
    let refusal =
        template(&["--set", "nodeAgent.resources.limits.cpu=1"]).err().map(|error| error.to_string());
    ensure!(
        refusal.as_ref().is_some_and(|text| text.contains("nodeAgent/resources/limits/cpu")),
        "{refusal:?}"
    );
    Ok(())
}

/// And the operator knows them: on other nodes there is no agent for what it would reserve.
pub fn every_pod_runs_only_on_the_architectures_of_the_images() -> Result<()> {
    // A user with images for several sets this.
    for (value, names) in [(None, json!(["amd64"])), (Some("{amd64,arm64}"), json!(["amd64", "arm64"]))] {
        let value = value.map(|names| format!("image.architectures={names}"));
        let args: Vec<&str> = value.iter().flat_map(|value| ["--set", value.as_str()]).collect();
        let objects = rendered(&args)?;
        let workloads = ["operator/deployment.yaml", "node-agent/daemonset.yaml", "crds/job.yaml"];
        let pods = workloads.map(|template| pod(&objects, template)).into_iter();
        for pod in pods.chain([Ok(&objects["tests/pod.yaml"][0])]) {
            let affinity = &pod?["spec"]["affinity"]["nodeAffinity"];
            let terms = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
            let term = json!({ "key": "kubernetes.io/arch", "operator": "In", "values": names });
            let has = |one: &Value| one["matchExpressions"].as_array().is_some_and(|all| all.contains(&term));
            ensure!(terms.as_array().is_some_and(|all| all.len() == 1 && all.iter().all(has)), "{affinity}");
        }
        let architectures =
            environment(&objects, "operator/deployment.yaml")?.remove("VNETPOOL_ARCHITECTURES").flatten();
        let architectures: Option<Vec<Value>> =
            architectures.map(|all| all.split(',').map(Value::from).collect());
        ensure!(architectures.as_ref() == names.as_array(), "{architectures:?}");
    }
    Ok(())
}

/// Otherwise an upgrade would end the pods of a release that has no other way to name its architecture.
pub fn a_node_selector_that_no_image_runs_on_is_refused_with_what_to_give() -> Result<()> {
    for component in ["operator", "nodeAgent"] {
        let selector = format!("{component}.nodeSelector.kubernetes\\.io/arch=arm64");
        let refusal = template(&["--set", &selector]).err().map(|error| error.to_string());
        let names = |part: &str| refusal.as_ref().is_some_and(|text| text.contains(part));
        ensure!(names("image.architectures") && names(component), "{refusal:?}");
        rendered(&["--set", &format!("{selector},image.architectures={{arm64}}")])?;
    }
    Ok(())
}

pub fn every_object_has_the_labels_that_the_values_give_and_keeps_its_own() -> Result<()> {
    let objects = with_values(
        "commonLabels: { cost: network, team: everybodys, app.kubernetes.io/name: other }
operator: { podLabels: { team: operators, app.kubernetes.io/component: other } }
monitoring: { podMonitors: { enabled: true }, alerts: { enabled: true }, dashboards: { enabled: true } }
",
    )?;
    for (template, object) in objects.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one))) {
        let labels = &object["metadata"]["labels"];
        ensure!(
            labels["cost"] == "network" && labels["app.kubernetes.io/name"] == "vnetpool",
            "{template}: {labels}"
        );
    }
    for (template, team) in
        [("operator/deployment.yaml", "operators"), ("node-agent/daemonset.yaml", "everybodys")]
    {
        let object = &objects[template][0]["spec"];
        let labels = &object["template"]["metadata"]["labels"];
        ensure!(labels["cost"] == "network" && labels["team"] == team, "{template}: {labels}");
        let selected = object["selector"]["matchLabels"].as_object().context("no labels")?;
        ensure!(selected.iter().all(|(key, value)| labels[key] == *value), "{template}: {labels}");
    }
    Ok(())
}

pub fn the_agents_of_an_uninstall_clean_all_nodes_at_once() -> Result<()> {
    let objects = rendered(&["--set", "nodeAgent.cleanUp=true"])?;
    let spec = &objects["node-agent/daemonset.yaml"][0]["spec"];
    ensure!(
        container(&objects, "node-agent/daemonset.yaml")?["args"] == json!(["cleanup", "--stay"]),
        "{spec}"
    );
    ensure!(spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "100%", "{spec}");
    let usual = rendered(&[])?;
    ensure!(container(&usual, "node-agent/daemonset.yaml")?.get("args").is_none());
    // Options of the program stand before the subcommand.
    let further = rendered(&["--set", "nodeAgent.cleanUp=true,nodeAgent.extraArgs={--log-format=text}"])?;
    let args = &container(&further, "node-agent/daemonset.yaml")?["args"];
    ensure!(*args == json!(["--log-format=text", "cleanup", "--stay"]), "{args}");
    Ok(())
}

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

/// The paths of the values that a schema or a values file has; a field that the schema leaves free ends a
/// path.
fn values(schema: &Value, path: &str, see: &mut impl FnMut(&str, &Value)) {
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        see(&path, value);
        if value["additionalProperties"] == false {
            values(value, &path, see);
        }
    }
}

pub fn the_schema_describes_each_value_and_no_other() -> Result<()> {
    let read = |file: &str| std::fs::read_to_string(root().join("charts/vnetpool").join(file));
    let defaults: Value = serde_yaml_ng::from_str(&read("values.yaml")?)?;
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let (mut described, mut wrong) = (vec![], vec![]);
    values(&schema, "", &mut |path, value| {
        let default = defaults.pointer(&path.replace('.', "/"));
        // A parent chart's values are no value of this one.
        if default.is_none() && path != ".global" {
            wrong.push(format!("values.yaml has no {path}"));
        }
        if value["description"].as_str().is_none_or(str::is_empty) {
            wrong.push(format!("the schema doesn't describe {path}"));
        }
        let is_free = value["additionalProperties"] != false;
        described.push((path.to_owned(), is_free));
    });
    let mut open = vec![(String::new(), &defaults)];
    while let Some((path, value)) = open.pop() {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            match described.iter().find(|(known, _)| *known == path) {
                None => wrong.push(format!("the schema has no {path}")),
                Some((_, true)) => {}
                Some((_, false)) => open.push((path, value)),
            }
        }
    }
    ensure!(described.len() > 30 && wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Renders with each of these lines of values.
fn with_values(lines: &str) -> Result<Objects> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), lines)?;
    rendered(&["--values", &file.path().to_string_lossy()])
}

pub fn the_chart_sets_fields_a_cluster_demands_of_all_pods() -> Result<()> {
    for (component, template) in
        [("operator", "operator/deployment.yaml"), ("nodeAgent", "node-agent/daemonset.yaml")]
    {
        let digest = format!("sha256:{}", "a".repeat(64));
        let given = format!(
            "{component}:
  imageDigest: {digest}
  podLabels: {{ team: network }}
  podAnnotations: {{ scrape: 'true' }}
  serviceAccount: {{ annotations: {{ owner: network }} }}
  probes: {{ liveness: {{ timeoutSeconds: 20 }} }}
  priorityClassName: ours
  extraEnv: [{{ name: EXTRA, value: given }}]
  extraArgs: [--log-format=text]
  extraVolumes: [{{ name: further, emptyDir: {{}} }}]
  extraVolumeMounts: [{{ name: further, mountPath: /further }}]
  revisionHistoryLimit: 0
  tolerations: [{{ key: dedicated, operator: Exists }}]
"
        );
        let objects = with_values(&given)?;
        let pod = pod(&objects, template)?;
        ensure!(pod["metadata"]["labels"]["team"] == "network", "{pod}");
        ensure!(pod["metadata"]["labels"]["app.kubernetes.io/name"] == "vnetpool", "{pod}");
        ensure!(pod["metadata"]["annotations"]["scrape"] == "true", "{pod}");
        ensure!(pod["spec"]["priorityClassName"] == "ours", "{pod}");
        let container = &pod["spec"]["containers"][0];
        ensure!(container["image"].as_str().is_some_and(|image| image.ends_with(&digest)), "{container}");
        let liveness = &container["livenessProbe"];
        ensure!(liveness["timeoutSeconds"] == 20 && liveness["periodSeconds"] == 10, "{liveness}");
        ensure!(liveness["httpGet"]["path"] == "/healthz", "{liveness}");
        let has = |list: &Value, one: Value| list.as_array().is_some_and(|all| all.contains(&one));
        ensure!(has(&container["env"], json!({ "name": "EXTRA", "value": "given" })), "{container}");
        ensure!(container["args"] == json!(["--log-format=text"]), "{container}");
        let mount = json!({ "name": "further", "mountPath": "/further" });
        ensure!(has(&container["volumeMounts"], mount), "{container}");
        ensure!(has(&pod["spec"]["volumes"], json!({ "name": "further", "emptyDir": {} })), "{pod}");
        ensure!(objects[template][0]["spec"]["revisionHistoryLimit"] == 0, "{template}");
        ensure!(
            has(&pod["spec"]["tolerations"], json!({ "key": "dedicated", "operator": "Exists" })),
            "{pod}"
        );
        let account = template.replace("deployment", "serviceaccount").replace("daemonset", "serviceaccount");
        ensure!(objects[&account][0]["metadata"]["annotations"]["owner"] == "network");
        // As `--reuse-values` brings them from a release that didn't have these.
        let older = "{ probes: null, affinity: null, serviceAccount: { create: null } }";
        ensure!(with_values(&format!("{component}: {older}"))?.contains_key(&account), "{account} goes");
        let objects = with_values(&format!("{component}: {{ serviceAccount: {{ create: false }} }}"))?;
        ensure!(!objects.contains_key(&account), "{account} was made");
    }
    Ok(())
}

/// Otherwise a cluster whose nodes all have a taint of their own could not install CRDs or get addresses.
pub fn the_hook_and_the_operator_tolerate_the_values_taints() -> Result<()> {
    let objects = with_values("operator: { tolerations: [{ operator: Exists }] }")?;
    for template in ["operator/deployment.yaml", "crds/job.yaml"] {
        let tolerations = &pod(&objects, template)?["spec"]["tolerations"];
        let all = tolerations.as_array().context("no tolerations")?;
        ensure!(all.contains(&json!({ "operator": "Exists" })), "{template}: {tolerations}");
        ensure!(
            all.iter().any(|one| one["key"] == "node.kubernetes.io/not-ready"),
            "{template}: {tolerations}"
        );
    }
    Ok(())
}

pub fn replicas_are_spread_over_zones_and_no_affinity_puts_two_on_a_node() -> Result<()> {
    let objects = with_values(
        "operator:
  affinity:
    nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [] } }
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution: [{ topologyKey: rack }]
",
    )?;
    let pod = pod(&objects, "operator/deployment.yaml")?;
    let affinity = &pod["spec"]["affinity"];
    ensure!(affinity["nodeAffinity"].is_object(), "{affinity}");
    let rules = &affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    ensure!(
        rules[0]["topologyKey"] == "kubernetes.io/hostname" && rules[1]["topologyKey"] == "rack",
        "{rules}"
    );
    let spread = &pod["spec"]["topologySpreadConstraints"][0];
    ensure!(spread["topologyKey"] == "topology.kubernetes.io/zone", "{spread}");
    let selected = spread["labelSelector"]["matchLabels"].as_object().context("no labels")?;
    ensure!(selected.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value), "{selected:?}");
    Ok(())
}

/// Those of the distributions that values.yaml names, each rendered.
pub fn the_folders_of_cni_are_those_of_the_values() -> Result<()> {
    let values = std::fs::read_to_string(path("charts/vnetpool/values.yaml"))?;
    let named = values.lines().filter_map(|line| {
        let mut words = line.trim().strip_prefix("#   ")?.split_whitespace();
        match [(); 4].map(|()| words.next()) {
            [Some(distribution), Some(bin), Some("and"), Some(conf)] if bin.starts_with('/') => {
                Some((distribution, bin, conf))
            }
            _ => None,
        }
    });
    let named: Vec<_> = named.collect();
    let distributions: Vec<_> = named.iter().map(|(name, ..)| *name).collect();
    ensure!(distributions == ["k3s", "RKE2", "MicroK8s", "OpenShift"], "{distributions:?}");
    for (distribution, bin, conf) in named {
        let folders = format!("nodeAgent.cni.binDir={bin},nodeAgent.cni.confDir={conf}");
        let objects = rendered(&["--set", &folders])?;
        let given = environment(&objects, "node-agent/daemonset.yaml")?;
        ensure!(given["VNETPOOL_CNI_BIN_DIR"].as_deref() == Some(bin), "{distribution}: {given:?}");
        ensure!(given["VNETPOOL_CNI_CONF_DIR"].as_deref() == Some(conf), "{distribution}: {given:?}");
        let pod = &pod(&objects, "node-agent/daemonset.yaml")?["spec"];
        let above = conf.rsplit_once('/').context("no folder above")?.0;
        for (name, path) in [("cni-bin", bin), ("cni-conf", above)] {
            let find = |list: &Value| -> Value {
                let mut all = list.as_array().into_iter().flatten();
                all.find(|one| one["name"] == name).cloned().unwrap_or_default()
            };
            ensure!(find(&pod["containers"][0]["volumeMounts"])["mountPath"] == path, "{name}: {pod}");
            ensure!(find(&pod["volumes"])["hostPath"]["path"] == path, "{name}: {pod}");
        }
    }
    Ok(())
}

/// The agent takes them as they are rendered, and refuses what the schema refuses.
pub fn further_plugins_reach_the_agent_and_ours_are_refused_as_such() -> Result<()> {
    let values = r#"nodeAgent: { cni: { furtherPlugins: [{ type: tuning, sysctl: { net.core.somaxconn: "500" } }] } }"#;
    let objects = with_values(values)?;
    let given = environment(&objects, "node-agent/daemonset.yaml")?.remove("VNETPOOL_FURTHER_PLUGINS");
    let given = &given.flatten().context("the agent isn't given it")?;
    let sent: Value = serde_json::from_str(given)?;
    ensure!(sent == json!([{ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } }]), "{given}");
    let agent = |list: &str| {
        let help = Command::new(programs().join("vnetpool-node-agent"))
            .args(["--further-plugins", list, "status"])
            .output();
        help.map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    ensure!(!agent(given)?.contains("--further-plugins"), "{}", agent(given)?);
    for refused in ["portmap", "vnetpool", "../sh"] {
        let list = json!([{ "type": refused }]).to_string();
        ensure!(agent(&list)?.contains("--further-plugins"), "{refused}: {}", agent(&list)?);
        let rendered = with_values(&format!("nodeAgent: {{ cni: {{ furtherPlugins: {list} }} }}"));
        let refusal = rendered.err().map(|error| error.to_string());
        ensure!(
            refusal.as_ref().is_some_and(|text| text.contains("furtherPlugins")),
            "{refused}: {refusal:?}"
        );
    }
    Ok(())
}

/// Both programs are on the host's network, where every pod and the whole VNet could else ask.
pub fn only_the_node_sees_metrics_unless_the_values_expose_them() -> Result<()> {
    let (unless, so) = (rendered(&[])?, rendered(&["--set", "monitoring.expose=true"])?);
    for (template, port) in [("operator/deployment.yaml", 9470), ("node-agent/daemonset.yaml", 9471)] {
        let closed = environment(&unless, template)?;
        ensure!(closed["VNETPOOL_ADMIN_ADDRESS"] == Some(format!("127.0.0.1:{port}")), "{closed:?}");
        ensure!(!closed.contains_key("VNETPOOL_METRICS_ADDRESS"), "{closed:?}");
        let open = environment(&so, template)?;
        ensure!(open["VNETPOOL_ADMIN_ADDRESS"] == closed["VNETPOOL_ADMIN_ADDRESS"], "probes: {open:?}");
        ensure!(open["VNETPOOL_METRICS_ADDRESS"] == Some(format!("$(HOST_IP):{port}")), "{open:?}");
        let container = container(&unless, template)?;
        for probe in ["livenessProbe", "readinessProbe"] {
            ensure!(container[probe]["httpGet"]["host"] == "127.0.0.1", "{}", container[probe]);
        }
    }
    Ok(())
}

/// Each has its reason in the template.
pub fn the_agent_has_these_capabilities_and_no_other() -> Result<()> {
    let objects = rendered(&[])?;
    let security = &container(&objects, "node-agent/daemonset.yaml")?["securityContext"];
    let has = json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "DAC_OVERRIDE"] });
    ensure!(security["capabilities"] == has, "{security}");
    ensure!(
        security["allowPrivilegeEscalation"] == false && security.get("privileged").is_none(),
        "{security}"
    );
    let text = std::fs::read_to_string(path("charts/vnetpool/templates/node-agent/daemonset.yaml"))?;
    for one in ["NET_ADMIN is for", "NET_RAW is for", "DAC_OVERRIDE is"] {
        ensure!(text.contains(one), "no reason: {one}");
    }
    Ok(())
}

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

pub fn an_unknown_value_is_refused() -> Result<()> {
    let refusal = template(&["--set", "operator.replica=3"]).err().map(|error| error.to_string());
    ensure!(refusal.as_ref().is_some_and(|text| text.contains("replica")), "{refusal:?}");
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
