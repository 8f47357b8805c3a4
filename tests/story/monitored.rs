//! A real Prometheus scrapes the programs by the chart's PodMonitors.

use crate::chapters::MINIMUM;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::eventually;
use vnetpool_tests::monitoring::{self, Selector};
use vnetpool_tests::prometheus::Prometheus;

const SOON: Duration = Duration::from_secs(60);

pub async fn prometheus_scrapes_by_the_charts_pod_monitors_and_has_the_metrics_of_alerts_and_panels(
    cluster: &Cluster,
) -> Result<()> {
    // Series that begin with a pod's start are there, too.
    cluster.deploy("watched", 1, Some("node-1")).await?;
    cluster.running("watched", 1, SOON).await?;
    let mut all: Value = serde_json::from_str(&cluster.kubectl(&["get", "pods", "-A", "-o", "json"]).await?)?;
    let all = all["items"].as_array_mut().map(std::mem::take).context("no pods")?;
    let prometheus = Prometheus::start(cluster).await?;
    let ours = all.iter().filter(|pod| pod["metadata"]["namespace"] == "vnetpool-system");
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods: BTreeSet<(String, String)> =
        ours.map(|pod| (name(&pod["metadata"]["name"]), name(&pod["spec"]["nodeName"]))).collect();
    eventually("every pod of both programs scraped, and nothing else", SOON, || async {
        let up = prometheus.series("up == 1").await?;
        let up: BTreeSet<(String, String)> =
            up.iter().map(|one| (name(&one["metric"]["pod"]), name(&one["metric"]["node"]))).collect();
        ensure!(up == pods && pods.len() == 5, "up are {up:?}, of {pods:?}");
        Ok(Some(()))
    })
    .await?;
    eventually("a series for all that alerts and panels ask for", SOON, || async {
        let mut lacking = BTreeSet::new();
        for expression in monitoring::expressions()? {
            prometheus
                .series(&expression.text.replace("$node", "node-1"))
                .await
                .context(expression.place.clone())?;
            for selector in expression.selectors() {
                let asked = with_any_outcome(&selector);
                if prometheus.series(&asked).await?.is_empty() {
                    lacking.insert(format!("{}: {asked}", expression.place));
                }
            }
        }
        ensure!(lacking.is_empty(), "no series for {lacking:#?}");
        Ok(Some(()))
    })
    .await?;
    eventually("every alert evaluated, and none has a reason", SOON, || async {
        let answer = prometheus.get("rules", &[]).await?;
        let groups = answer["groups"].as_array().context("no groups")?;
        let rules: Vec<&Value> =
            groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
        ensure!(rules.len() == monitoring::alerts()?.len(), "{} rules", rules.len());
        let wrong: Vec<_> =
            rules.iter().filter(|rule| rule["health"] != "ok" || rule["state"] != "inactive").collect();
        ensure!(wrong.is_empty(), "{wrong:#?}");
        Ok(Some(()))
    })
    .await?;
    cluster.undeploy("watched").await?;
    cluster.settled_on("node-1", MINIMUM, Duration::from_secs(180)).await
}

/// The selector as it is, but for how things ended or stand: on a healthy cluster only some ends are there.
/// A test of `docs` knows every value.
fn with_any_outcome(selector: &Selector) -> String {
    let matchers = selector.labels.iter().map(|(label, value)| match label.as_str() {
        "status" | "reason" | "outcome" => format!("{label}=~\".*\""),
        _ => format!("{label}=~\"{}\"", value.replace("$node", "node-1")),
    });
    format!("{}{{{}}}", selector.metric, matchers.collect::<Vec<_>>().join(","))
}
