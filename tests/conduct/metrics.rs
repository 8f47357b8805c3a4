//! The operator's metrics, as Prometheus would scrape them.

use crate::stage::Stage;
use anyhow::{Context, Result, bail};
use std::time::Duration;

/// One scrape.
pub struct Metrics(String);

impl Metrics {
    pub async fn scrape(stage: &Stage<'_>) -> Result<Metrics> {
        let url = format!("http://{}/metrics", stage.admin);
        Ok(Metrics(reqwest::get(url).await?.error_for_status()?.text().await?))
    }

    /// Scrapes until something shows.
    pub async fn until(stage: &Stage<'_>, what: &str, shows: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            // The endpoint may not be up yet.
            match Metrics::scrape(stage).await {
                Ok(metrics) if shows(&metrics) => return Ok(metrics),
                Ok(metrics) if tokio::time::Instant::now() > deadline => bail!("{what}: {}", metrics.0),
                Err(error) if tokio::time::Instant::now() > deadline => {
                    return Err(error).context(what.to_owned());
                }
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The sum over all series of a family that have these labels, written as in the text: `kind="read"`.
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let of_family = |line: &&str| {
            line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        let lines =
            self.0.lines().filter(of_family).filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Whether a family is announced with help and type.
    pub fn has(&self, family: &str) -> bool {
        let of = |what: &str| self.0.lines().any(|line| line.starts_with(&format!("# {what} {family} ")));
        of("HELP") && of("TYPE")
    }
}
