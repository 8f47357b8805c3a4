//! The chart's output: the objects that it makes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use vnetpool_tests::control_plane::{Objects, path, rendered, template, template_of};
use vnetpool_tests::project::programs;

/// The pod that the one object of a template makes.
pub fn pod<'a>(objects: &'a Objects, template: &str) -> Result<&'a Value> {
    let object = objects.get(template).and_then(|all| all.first());
    Ok(&object.with_context(|| format!("{template} renders nothing"))?["spec"]["template"])
}

pub fn container<'a>(objects: &'a Objects, template: &str) -> Result<&'a Value> {
    Ok(&pod(objects, template)?["spec"]["containers"][0])
}

/// The container's environment, by name; values from elsewhere are left out.
pub fn environment(objects: &Objects, template: &str) -> Result<BTreeMap<String, Option<String>>> {
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
    let agent = &pod["containers"][0];
    ensure!(agent["resources"]["limits"].get("cpu").is_none());
    // With less, all other pods of a full node go before a holder of the ledger's lock.
    ensure!(agent["resources"]["requests"]["cpu"] == "100m", "{}", agent["resources"]);
    ensure!(agent["livenessProbe"]["timeoutSeconds"] == 5, "{}", agent["livenessProbe"]);
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
  probes: {{ liveness: {{ timeoutSeconds: 20 }}, startup: {{ failureThreshold: 90 }} }}
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
        // A process that starts slowly isn't one that hangs.
        let startup = &container["startupProbe"];
        ensure!(startup["failureThreshold"] == 90 && startup["periodSeconds"] == 2, "{startup}");
        ensure!(startup["httpGet"] == liveness["httpGet"], "{startup}");
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
        let (distribution, folders) = line.trim().strip_prefix("# - ")?.split_once(": /")?;
        let (bin, conf) = folders.split_once(" and ")?;
        Some((distribution, format!("/{bin}"), conf))
    });
    let named: Vec<_> = named.collect();
    let distributions: Vec<_> = named.iter().map(|(name, ..)| *name).collect();
    ensure!(distributions == ["k3s", "MicroK8s", "OpenShift"], "{distributions:?}");
    for (distribution, bin, conf) in &named {
        let (bin, conf) = (bin.as_str(), *conf);
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

pub fn every_pod_has_the_secrets_for_its_registry_those_of_a_parent_chart_too() -> Result<()> {
    let own = "image: { pullSecrets: [{ name: ours }, { name: both }] }\n";
    let objects =
        with_values(&format!("{own}global: {{ other: 1, imagePullSecrets: [{{ name: both }}, plain] }}"))?;
    let expected = json!([{ "name": "both" }, { "name": "plain" }, { "name": "ours" }]);
    let specs = objects.values().flatten().filter_map(|object| match object["kind"].as_str()? {
        "Pod" => Some(&object["spec"]),
        "Deployment" | "DaemonSet" | "Job" => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    });
    let secrets: Vec<_> = specs.map(|spec| &spec["imagePullSecrets"]).collect();
    ensure!(secrets.len() == 4 && secrets.iter().all(|one| **one == expected), "{secrets:?}");
    ensure!(pod(&rendered(&[])?, "operator/deployment.yaml")?["spec"]["imagePullSecrets"].is_null());
    Ok(())
}

/// Helm gives the value that is the condition to this chart, too.
pub fn a_parent_chart_switches_it_on_and_off_by_its_condition() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let parts = folder.path().join("charts");
    std::fs::create_dir(&parts)?;
    let copied = Command::new("cp").args(["-r", &path("charts/vnetpool")]).arg(&parts).status()?;
    ensure!(copied.success());
    let parent = "apiVersion: v2
name: parent
version: 1.0.0
dependencies: [{ name: vnetpool, version: '*', condition: vnetpool.enabled }]
";
    std::fs::write(folder.path().join("Chart.yaml"), parent)?;
    let folder = folder.path().to_string_lossy();
    let has_agents = |enabled: bool| -> Result<bool> {
        let values = format!("vnetpool.image.registry=registry.example,vnetpool.enabled={enabled}");
        Ok(template_of(&folder, &["--set", &values])?.contains("name: vnetpool-node-agent"))
    };
    ensure!(has_agents(true)?);
    ensure!(!has_agents(false)?);
    // Alone it would be rendered all the same.
    let refusal = template(&["--set", "enabled=false"]).err().map(|error| error.to_string());
    ensure!(refusal.as_ref().is_some_and(|text| text.contains("enabled")), "{refusal:?}");
    Ok(())
}

/// Artifact Hub takes lists only as texts of YAML, and ignores one that isn't.
pub fn what_artifact_hub_reads_of_the_chart_names_its_kinds() -> Result<()> {
    let chart: Value =
        serde_yaml_ng::from_str(&std::fs::read_to_string(path("charts/vnetpool/Chart.yaml"))?)?;
    let list = |name: &str| -> Result<Value> {
        let text = chart["annotations"][format!("artifacthub.io/{name}")].as_str();
        Ok(serde_yaml_ng::from_str(text.with_context(|| format!("no {name}"))?)?)
    };
    let listed = list("crds")?;
    let listed: Vec<_> = listed.as_array().into_iter().flatten().collect();
    let there_are = vnetpool_crds::definitions()?;
    ensure!(listed.len() == there_are.len(), "{listed:?}");
    for definition in &there_are {
        let definition = serde_json::to_value(definition)?;
        let (name, spec) = (&definition["metadata"]["name"], &definition["spec"]);
        let has = |one: &&&Value| one["name"] == *name && one["kind"] == spec["names"]["kind"];
        let one = listed.iter().find(has).with_context(|| format!("no {name} in {listed:?}"))?;
        ensure!(one["version"] == spec["versions"][0]["name"], "{one}");
    }
    let changes = list("changes")?;
    ensure!(changes[0]["kind"].is_string() && changes[0]["description"].is_string(), "{changes}");
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
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
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
