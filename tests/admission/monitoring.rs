//! The chart's objects for Prometheus and Grafana.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use vnetpool_tests::control_plane::{path, rendered};
use vnetpool_tests::monitoring::{self, ALERTS};
use vnetpool_tests::project::tool;

const ALL: [&str; 2] = [
    "--set",
    "monitoring.podMonitors.enabled=true,monitoring.alerts.enabled=true,monitoring.dashboards.enabled=true,\
     monitoring.labels.release=ours,monitoring.alerts.runbooks=https://docs.example/runbooks",
];

pub fn every_alert_fires_when_it_should_and_only_then() -> Result<()> {
    for (what, file) in [("check", ALERTS), ("test", "tests/monitoring/alerts.yaml")] {
        let ran = Command::new("promtool").args([what, "rules", &path(file)]).output();
        let ran = ran.context("no promtool: `make cluster-build` installs it")?;
        let printed = [ran.stdout, ran.stderr].concat();
        ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&printed));
    }
    Ok(())
}

pub fn nothing_of_the_prometheus_operator_is_rendered_unless_it_is_asked_for() -> Result<()> {
    let of = |objects: Value| objects["apiVersion"] == "monitoring.coreos.com/v1";
    ensure!(!rendered(&[])?.into_values().flatten().any(of), "a cluster without its kinds refuses the chart");
    let asked =
        rendered(&ALL)?.into_values().flatten().filter(|object| of(object.clone())).collect::<Vec<_>>();
    ensure!(asked.len() == 3, "{asked:?}");
    for object in asked {
        ensure!(object["metadata"]["labels"]["release"] == "ours", "{}", object["metadata"]);
    }
    Ok(())
}

/// A field that they don't know would be dropped without a word.
pub fn the_prometheus_operators_own_types_know_each_field_of_its_objects() -> Result<()> {
    let known = |objects: &[Value]| -> Result<Result<String, String>> {
        let documents: Vec<_> = objects.iter().map(Value::to_string).collect();
        let mut monitors = Command::new(tool("monitors"));
        monitors.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut monitors = monitors.spawn().context("no monitors: `make cluster-build` makes it")?;
        monitors.stdin.take().context("no input")?.write_all(documents.join("\n---\n").as_bytes())?;
        let output = monitors.wait_with_output()?;
        let [printed, error] =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        Ok(if output.status.success() { Ok(printed) } else { Err(error) })
    };
    let mut objects: Vec<Value> = rendered(&ALL)?.into_values().flatten().collect();
    ensure!(known(&objects)? == Ok("3\n".into()), "{:?}", known(&objects)?);
    let monitor =
        objects.iter_mut().find(|object| object["kind"] == "PodMonitor").context("no PodMonitor")?;
    monitor["spec"]["podMetricsEndpoint"] = json!([]);
    let refused = known(&objects)?.err().context("a field that there isn't has passed")?;
    ensure!(refused.contains("podMetricsEndpoint"), "{refused}");
    Ok(())
}

pub fn a_pod_monitor_selects_the_pods_of_its_program_and_names_a_port_that_they_have() -> Result<()> {
    let objects = rendered(&ALL)?;
    for (program, workload) in
        [("operator", "operator/deployment.yaml"), ("node-agent", "node-agent/daemonset.yaml")]
    {
        let monitor = &objects[&format!("monitoring/{program}.yaml")][0];
        let pod = &objects[workload][0]["spec"]["template"];
        let selected = monitor["spec"]["selector"]["matchLabels"].as_object().context("no labels")?;
        ensure!(selected.len() == 2, "{selected:?}");
        ensure!(selected.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value), "{selected:?}");
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        let mut ports = pod["spec"]["containers"][0]["ports"].as_array().context("no ports")?.iter();
        ensure!(ports.any(|port| port["name"] == endpoint["port"]), "{endpoint}");
        ensure!(
            endpoint["relabelings"][0]["targetLabel"] == "node" && endpoint["interval"] == "30s",
            "{endpoint}"
        );
    }
    Ok(())
}

pub fn every_alert_leads_to_its_runbook() -> Result<()> {
    let objects = rendered(&ALL)?;
    let groups =
        objects["monitoring/prometheusrule.yaml"][0]["spec"]["groups"].as_array().context("no groups")?;
    let rules: Vec<_> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    ensure!(rules.len() == monitoring::alerts()?.len());
    for rule in rules {
        let name = rule["alert"].as_str().context("no name")?.to_lowercase();
        let url = format!("https://docs.example/runbooks#{name}");
        ensure!(rule["annotations"]["runbook_url"] == url.as_str(), "{rule}");
        // The placeholders that are Prometheus' to fill in have come through helm.
        let summary = rule["annotations"]["summary"].as_str().context("no summary")?;
        ensure!(!summary.contains("<no value>"), "{summary}");
    }
    Ok(())
}

/// Those who are woken by an alert can't follow a path within the project.
pub fn an_alert_has_no_runbook_that_is_no_url() -> Result<()> {
    let objects = rendered(&["--set", "monitoring.alerts.enabled=true"])?;
    let rules = objects["monitoring/prometheusrule.yaml"][0]["spec"]["groups"].to_string();
    ensure!(rules.contains("annotations") && !rules.contains("runbook_url"), "{rules}");
    // The default of earlier releases, which `--reuse-values` takes along.
    let path = "monitoring.alerts.enabled=true,monitoring.alerts.runbooks=docs/runbooks.md";
    let reused = rendered(&["--set", path])?;
    let groups = reused["monitoring/prometheusrule.yaml"][0]["spec"]["groups"].to_string();
    ensure!(groups == rules, "{reused:?}");
    Ok(())
}

pub fn every_dashboard_is_grafanas_json_with_a_panel_for_each_query() -> Result<()> {
    let objects = rendered(&ALL)?;
    let mut queries = 0;
    for name in ["fleet", "azure", "node"] {
        let object = &objects[&format!("monitoring/dashboard-{name}.yaml")][0];
        ensure!(object["metadata"]["labels"]["grafana_dashboard"] == "1", "{}", object["metadata"]);
        let text = object["data"][format!("vnetpool-{name}.json")].as_str().context("no JSON")?;
        let dashboard: Value = serde_json::from_str(text)?;
        ensure!(dashboard["uid"] == format!("vnetpool-{name}"), "{dashboard}");
        let variables = dashboard["templating"]["list"].as_array().context("no variables")?;
        ensure!(variables.iter().any(|one| one["type"] == "datasource"), "{variables:?}");
        let panels = dashboard["panels"].as_array().context("no panels")?;
        let mut ids: Vec<_> = panels.iter().map(|panel| panel["id"].as_i64()).collect();
        ids.sort_unstable();
        ids.dedup();
        ensure!(ids.len() == panels.len(), "ids are doubled: {ids:?}");
        // Nothing overlaps: each panel ends where the next of its row begins, and rows don't touch.
        let mut places = vec![];
        for panel in panels {
            let place = |key: &str| panel["gridPos"][key].as_i64();
            let (x, y) = (place("x").context("x")?, place("y").context("y")?);
            let (w, h) = (place("w").context("w")?, place("h").context("h")?);
            ensure!(x + w <= 24, "{panel}");
            let overlaps =
                |(a, b, c, d): &(i64, i64, i64, i64)| x < a + c && *a < x + w && y < b + d && *b < y + h;
            ensure!(!places.iter().any(overlaps), "{panel} overlaps another");
            places.push((x, y, w, h));
            for target in panel["targets"].as_array().into_iter().flatten() {
                ensure!(
                    target["datasource"] == json!({ "type": "prometheus", "uid": "${datasource}" }),
                    "{target}"
                );
                queries += 1;
            }
        }
    }
    let wanted = monitoring::expressions()?.len() - monitoring::alerts()?.len();
    ensure!(queries == wanted, "{queries} of {wanted}");
    Ok(())
}
