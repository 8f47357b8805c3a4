//! Metrics of the operator and others, as Prometheus would scrape them.

use crate::stage::Stage;
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;
use vnetpool_process::lock::lock;
use vnetpool_tests::eventually;

/// One scrape.
pub struct Metrics {
    text: String,
    /// What was asked of it, and the answers: all that a reader of a failure wants of hundreds of series.
    asked: Mutex<BTreeMap<String, f64>>,
}

impl Metrics {
    pub async fn scrape(stage: &Stage<'_>) -> Result<Metrics> {
        Metrics::at(stage.admin).await
    }

    pub async fn at(admin: SocketAddr) -> Result<Metrics> {
        let url = format!("http://{admin}/metrics");
        Ok(Metrics::of(reqwest::get(url).await?.error_for_status()?.text().await?))
    }

    /// Another program's.
    pub fn of(text: String) -> Metrics {
        Metrics { text, asked: Mutex::default() }
    }

    /// Scrapes until a series has the wanted value.
    pub async fn until(stage: &Stage<'_>, what: &str, shows: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
        eventually(what, Duration::from_secs(60), || async {
            // The endpoint may not be up yet.
            let metrics = Metrics::scrape(stage).await?;
            ensure!(shows(&metrics), "{:?}", lock(&metrics.asked));
            Ok(Some(metrics))
        })
        .await
    }

    /// Scrapes until the operator doesn't lead, as after the loss of its Lease.
    pub async fn until_standby(stage: &Stage<'_>) -> Result<Metrics> {
        let stands_by = |metrics: &Metrics| metrics.sum("vnetpool_operator_leader", &[]) == 0.0;
        Metrics::until(stage, "the operator leads no more", stands_by).await
    }

    /// The sum over all series of a family that have these labels, written as in the text: `kind="read"`.
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let of_family = |line: &&str| {
            line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        let lines = self.text.lines().filter(of_family);
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        let sum: f64 = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        lock(&self.asked).insert(format!("{family}{{{}}}", labels.join(",")), sum);
        sum
    }

    /// How many time series there are.
    #[allow(dead_code, reason = "only the benchmark of size, which shares this file, asks")]
    pub fn series(&self) -> usize {
        self.text.lines().filter(|line| !line.starts_with('#')).count()
    }

    /// The values of all labels, such as `outcome="ok"`.
    #[allow(dead_code, reason = "the benchmark of size, which shares this file, doesn't ask")]
    pub fn label_values(&self) -> BTreeSet<String> {
        let samples = self.text.lines().filter(|line| !line.starts_with('#'));
        let labels = samples.filter_map(|line| line.split_once('{')?.1.split_once('}'));
        labels.flat_map(|(labels, _)| labels.split(',')).map(str::to_owned).collect()
    }

    /// Whether a family is announced with help and type.
    pub fn has(&self, family: &str) -> bool {
        let of = |what: &str| self.text.lines().any(|line| line.starts_with(&format!("# {what} {family} ")));
        of("HELP") && of("TYPE")
    }
}
