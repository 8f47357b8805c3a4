//! The series that the chart's alerts and dashboards ask Prometheus for, and those that the programs serve
//! it.

use crate::project::root;
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Labels that Prometheus adds to every series when it scrapes by the PodMonitors.
const TARGET: [&str; 4] = ["namespace", "node", "pod", "instance"];

/// An expression of an alert or of a panel.
#[derive(Clone, Debug)]
pub struct Expression {
    /// The alert, or dashboard and panel.
    pub place: String,
    pub text: String,
}

/// A metric that an expression asks for, with the labels it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub metric: String,
    /// Label and value, or alternatives of values.
    pub labels: Vec<(String, String)>,
}

/// The chart's alerts, as Prometheus takes them.
pub const ALERTS: &str = "charts/vnetpool/monitoring/alerts.yaml";

/// The expressions of all alerts and panels.
///
/// # Errors
/// When a file can't be read.
pub fn expressions() -> Result<Vec<Expression>> {
    let mut found = vec![];
    for rule in alerts()? {
        let place = text(&rule["alert"])?;
        found.push(Expression { place, text: text(&rule["expr"])? });
    }
    for dashboard in dashboards()?.values() {
        let rows = dashboard["rows"].as_array().context("no rows")?;
        for panel in rows.iter().filter_map(|row| row["panels"].as_array()).flatten() {
            let place = format!("{}: {}", text(&dashboard["title"])?, text(&panel["title"])?);
            let queries = panel["queries"].as_object().with_context(|| place.clone())?;
            for query in queries.values() {
                found.push(Expression { place: place.clone(), text: text(query)? });
            }
        }
    }
    Ok(found)
}

/// The chart's dashboards, by the names of their files without the ending.
///
/// # Errors
/// When a file can't be read.
pub fn dashboards() -> Result<BTreeMap<String, Value>> {
    let folder = root().join("charts/vnetpool/monitoring/dashboards");
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_stem().context("no name")?.to_string_lossy().into_owned();
        found.insert(name, yaml(&std::fs::read_to_string(path)?)?);
    }
    Ok(found)
}

/// Every alert of the chart.
///
/// # Errors
/// When the file can't be read.
pub fn alerts() -> Result<Vec<Value>> {
    let rules = yaml(&std::fs::read_to_string(root().join(ALERTS))?)?;
    let groups = rules["groups"].as_array().context("no groups")?;
    Ok(groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
}

/// The configuration by which a Prometheus scrapes the pods that PodMonitors select, as the Prometheus
/// operator makes it of them, but every second; and evaluates the chart's alerts. The pods to select from
/// stand in the file `targets`: Debian's Prometheus can't ask Kubernetes itself.
///
/// # Errors
/// When a PodMonitor lacks a required field.
pub fn configuration(monitors: &[&Value], targets: &Path) -> Result<Value> {
    let mut jobs = vec![];
    for monitor in monitors {
        let [namespace, name] = ["namespace", "name"].map(|key| text(&monitor["metadata"][key]));
        let (namespace, name) = (namespace?, name?);
        let labels = monitor["spec"]["selector"]["matchLabels"].as_object().context("no labels")?;
        let endpoints = monitor["spec"]["podMetricsEndpoints"].as_array().context("no endpoints")?;
        for endpoint in endpoints {
            let keep = |label: &str, value: &Value| json!({ "action": "keep", "source_labels": [label], "regex": value });
            let set = |from: &str, to: &str| json!({ "source_labels": [from], "target_label": to });
            let of_label = |(key, value): (&String, &Value)| keep(&meta_label(key), value);
            let mut relabeling: Vec<Value> = labels.iter().map(of_label).collect();
            relabeling.push(keep("__meta_kubernetes_namespace", &monitor["metadata"]["namespace"]));
            relabeling.push(keep("__meta_kubernetes_pod_container_port_name", &endpoint["port"]));
            relabeling.push(set("__meta_kubernetes_namespace", "namespace"));
            relabeling.push(set("__meta_kubernetes_pod_name", "pod"));
            relabeling
                .extend(endpoint["relabelings"].as_array().into_iter().flatten().map(in_prometheus_words));
            jobs.push(json!({
                "job_name": format!("{namespace}/{name}"),
                "metrics_path": endpoint["path"],
                "file_sd_configs": [{ "files": [targets] }],
                "relabel_configs": relabeling,
            }));
        }
    }
    Ok(json!({
        "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
        "rule_files": [root().join(ALERTS)],
        "scrape_configs": jobs,
    }))
}

/// What Prometheus' discovery in Kubernetes (`role: pod`) makes of pods: a target for each port of a
/// container.
pub fn targets(pods: &[Value]) -> Value {
    let mut targets = vec![];
    for pod in pods {
        let labels = pod["metadata"]["labels"].as_object().into_iter().flatten();
        let labels: Map<_, _> = labels.map(|(key, value)| (meta_label(key), value.clone())).collect();
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        for port in containers.flat_map(|one| one["ports"].as_array().into_iter().flatten()) {
            let mut labels = labels.clone();
            for (label, value) in [
                ("namespace", &pod["metadata"]["namespace"]),
                ("pod_name", &pod["metadata"]["name"]),
                ("pod_node_name", &pod["spec"]["nodeName"]),
                ("pod_container_port_name", &port["name"]),
            ] {
                labels.insert(format!("__meta_kubernetes_{label}"), value.clone());
            }
            let address = pod["status"]["podIP"].as_str().unwrap_or_default();
            let target = format!("{address}:{}", port["containerPort"]);
            targets.push(json!({ "targets": [target], "labels": labels }));
        }
    }
    targets.into()
}

fn meta_label(key: &str) -> String {
    format!("__meta_kubernetes_pod_label_{}", key.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}

/// A PodMonitor has `sourceLabels`, Prometheus `source_labels`.
fn in_prometheus_words(relabeling: &Value) -> Value {
    let word = |key: &String| {
        let letters = key.chars().flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c]));
        letters.collect::<String>().to_lowercase()
    };
    let fields = relabeling.as_object().into_iter().flatten();
    Value::Object(fields.map(|(key, value)| (word(key), value.clone())).collect::<Map<_, _>>())
}

fn yaml(text: &str) -> Result<Value> {
    Ok(serde_yaml_ng::from_str(text)?)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("{value} is no text"))?.to_owned())
}

impl Expression {
    /// The metrics it asks for.
    pub fn selectors(&self) -> Vec<Selector> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut found = vec![];
        let mut rest = self.text.as_str();
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '"') {
            if rest[start..].starts_with('"') {
                let end = rest[start + 1..].find('"').map_or(rest.len(), |end| start + end + 2);
                rest = &rest[end..];
                continue;
            }
            let word = &rest[start..];
            let end = word.find(|c| !is_word(c)).unwrap_or(word.len());
            let (metric, after) = word.split_at(end);
            rest = after;
            if !["vnetpool_", "process_"].iter().any(|prefix| metric.starts_with(prefix)) {
                continue;
            }
            let matchers = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            if let Some((_, after)) = matchers {
                rest = after;
            }
            let labels = matchers.map(|(inside, _)| matchers_of(inside)).unwrap_or_default();
            found.push(Selector { metric: metric.to_owned(), labels });
        }
        found
    }

    /// The labels that it groups by.
    pub fn groups(&self) -> Vec<&str> {
        let lists = self.text.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
        lists.flat_map(|list| list.split(',')).map(str::trim).collect()
    }
}

fn matchers_of(inside: &str) -> Vec<(String, String)> {
    let mut parts = inside.split('"');
    let mut found = vec![];
    while let (Some(label), Some(value)) = (parts.next(), parts.next()) {
        let label = label.trim_start_matches(',').trim_end_matches(['=', '!', '~']);
        found.push((label.trim().to_owned(), value.to_owned()));
    }
    found
}

/// A program's answer at `/metrics`, in the text format of OpenMetrics.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    pub families: Vec<Family>,
}

#[derive(Clone, Debug, Default)]
pub struct Family {
    pub name: String,
    pub help: String,
    /// `gauge`, `counter`, `histogram` or `info`.
    pub kind: String,
    /// The labels of its samples, but for the bounds of buckets.
    pub labels: BTreeSet<String>,
}

impl Family {
    /// The names of its samples.
    pub fn samples(&self) -> Vec<String> {
        let ends: &[&str] = match self.kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        ends.iter().map(|end| format!("{}{end}", self.name)).collect()
    }
}

impl Exposition {
    /// # Errors
    /// When a line isn't in the format.
    pub fn parse(text: &str) -> Result<Self> {
        let mut families: Vec<Family> = vec![];
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (word, name, rest) = (words.next(), words.next(), words.next().unwrap_or_default());
                let Some(name) = name else { continue };
                if families.last().is_none_or(|family| family.name != name) {
                    families.push(Family { name: name.to_owned(), ..Family::default() });
                }
                let family = families.last_mut().context("no family")?;
                match word {
                    Some("HELP") => rest.trim_end_matches('.').clone_into(&mut family.help),
                    Some("TYPE") => rest.clone_into(&mut family.kind),
                    _ => {}
                }
                continue;
            }
            let family = families.last_mut().with_context(|| format!("{line:?} comes before any family"))?;
            ensure!(line.starts_with(&family.name), "{line:?} is none of {}", family.name);
            let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
            let labels = inside.map(|(inside, _)| matchers_of(inside)).unwrap_or_default();
            family.labels.extend(labels.into_iter().map(|(label, _)| label).filter(|label| label != "le"));
        }
        Ok(Self { families })
    }

    /// The series that an expression asks for and none of these programs serves, in sentences.
    pub fn lacks(all: &[Exposition], expression: &Expression) -> Vec<String> {
        let families = all.iter().flat_map(|one| &one.families);
        let samples: BTreeMap<String, &Family> = families
            .flat_map(|family| family.samples().into_iter().map(move |name| (name, family)))
            .collect();
        let (mut lacking, mut known) = (vec![], BTreeSet::from(TARGET));
        for Selector { metric, labels } in expression.selectors() {
            let Some(family) = samples.get(&metric) else {
                lacking.push(format!("{}: there is no {metric}", expression.place));
                continue;
            };
            known.extend(family.labels.iter().map(String::as_str));
            known.extend(metric.ends_with("_bucket").then_some("le"));
            let is_there = |label: &str| family.labels.contains(label) || TARGET.contains(&label);
            for (label, _) in labels.iter().filter(|(label, _)| !is_there(label)) {
                lacking.push(format!("{}: {metric} has no label {label}", expression.place));
            }
        }
        let unknown = expression.groups().into_iter().filter(|label| !known.contains(label));
        lacking.extend(unknown.map(|label| format!("{}: nothing has a label {label}", expression.place)));
        lacking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_monitor_becomes_a_job_that_keeps_its_pods_and_its_port() {
        let monitor = json!({
            "metadata": { "namespace": "n", "name": "m" },
            "spec": {
                "selector": { "matchLabels": { "app.kubernetes.io/name": "a" } },
                "podMetricsEndpoints": [{
                    "port": "admin", "path": "/metrics",
                    "relabelings": [{ "sourceLabels": ["__meta_x"], "targetLabel": "node" }],
                }],
            },
        });
        let made = configuration(&[&monitor], Path::new("/targets")).unwrap();
        let job = &made["scrape_configs"][0];
        assert_eq!((&job["job_name"], &job["metrics_path"]), (&json!("n/m"), &json!("/metrics")));
        let steps = &job["relabel_configs"];
        assert_eq!(steps[0]["source_labels"], json!(["__meta_kubernetes_pod_label_app_kubernetes_io_name"]));
        let kept: Vec<_> = (0..3).map(|step| &steps[step]["regex"]).collect();
        assert_eq!(kept, ["a", "n", "admin"]);
        assert_eq!(steps[5], json!({ "source_labels": ["__meta_x"], "target_label": "node" }));
        let pod = json!({
            "metadata": { "namespace": "n", "name": "p", "labels": { "app.kubernetes.io/name": "a" } },
            "spec": { "nodeName": "node-1", "containers": [{ "ports": [{ "name": "admin", "containerPort": 9 }] }] },
            "status": { "podIP": "10.0.0.4" },
        });
        let made = &targets(&[pod])[0];
        assert_eq!(made["targets"], json!(["10.0.0.4:9"]));
        assert_eq!(made["labels"]["__meta_kubernetes_pod_label_app_kubernetes_io_name"], "a");
        assert_eq!(made["labels"]["__meta_kubernetes_pod_node_name"], "node-1");
    }

    #[test]
    fn an_expression_names_its_metrics_their_labels_and_its_groups() {
        let text = r#"sum by (le, kind) (rate(vnetpool_a_bucket{kind=~"x|vnetpool_no",node="$node"}[5m])) / process_b"#;
        let expression = Expression { place: "here".into(), text: text.into() };
        let labels = vec![("kind".into(), "x|vnetpool_no".into()), ("node".into(), "$node".into())];
        let wanted = [
            Selector { metric: "vnetpool_a_bucket".into(), labels },
            Selector { metric: "process_b".into(), labels: vec![] },
        ];
        assert_eq!(expression.selectors(), wanted);
        assert_eq!(expression.groups(), ["le", "kind"]);
        let served = "# HELP vnetpool_a_seconds A.\n# TYPE vnetpool_a histogram\nvnetpool_a_bucket{le=\"1.0\",kind=\"x\"} 1\n# EOF\n";
        let served = served.replace("vnetpool_a_seconds", "vnetpool_a");
        let lacking = Exposition::lacks(&[Exposition::parse(&served).unwrap()], &expression);
        assert_eq!(lacking, ["here: there is no process_b"]);
        let other =
            Expression { text: r#"sum by (nobody) (vnetpool_a_sum{colour="red"})"#.into(), ..expression };
        let lacking = Exposition::lacks(&[Exposition::parse(&served).unwrap()], &other);
        assert_eq!(lacking, ["here: vnetpool_a_sum has no label colour", "here: nothing has a label nobody"]);
    }
}
