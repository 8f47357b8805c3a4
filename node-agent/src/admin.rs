//! What the agent answers over HTTP: /healthz and /readyz to probes, /metrics to scrapes.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};

use crate::metrics::Metrics;

/// A pass comes every 30 s, and none waits for so long.
const STUCK: Duration = Duration::from_secs(120);

/// For probes, which come from the node itself. Alive is whose passes end, well or badly; a task that dies
/// ends the process. Ready is a node that has a ledger and the CNI configuration.
pub fn probes(metrics: &Metrics) -> Router {
    let readiness = metrics.ready.clone();
    let ready = move || async move {
        match readiness.load(Ordering::Relaxed) {
            true => (StatusCode::OK, "ok\n"),
            false => {
                (StatusCode::SERVICE_UNAVAILABLE, "no ledger yet, or the CNI configuration isn't installed\n")
            }
        }
    };
    let passes = metrics.clone();
    let alive = move || async move {
        let since = passes.since_pass();
        match since < STUCK {
            true => (StatusCode::OK, "ok\n".to_owned()),
            false => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("no pass has ended for {} s\n", since.as_secs()))
            }
        }
    };
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready))
}

/// For scrapes, from wherever they may come.
pub fn scrapes(metrics: &Metrics) -> Router {
    let metrics = metrics.clone();
    let text = move || async move {
        let text = metrics.text().map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Ok::<_, (StatusCode, String)>(([(CONTENT_TYPE, media_type)], text))
    };
    Router::new().route("/metrics", get(text))
}
