//! The agent's HTTP endpoint: /healthz, /readyz, /metrics.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use anyhow::Context;
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};

use crate::metrics::Metrics;

/// A pass comes every 30 s, and none waits for so long.
const STUCK: Duration = Duration::from_secs(120);

/// Serves until the process ends. Alive is whose passes end, well or badly; a task that dies ends the
/// process. Ready is a node that has a ledger and the CNI configuration.
pub async fn serve(address: SocketAddr, metrics: Metrics) -> anyhow::Result<()> {
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
    let text = move || async move {
        let text = metrics.text().map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Ok::<_, (StatusCode, String)>(([(CONTENT_TYPE, media_type)], text))
    };
    let routes =
        Router::new().route("/healthz", get(alive)).route("/readyz", get(ready)).route("/metrics", get(text));
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address} (--admin-address)"))?;
    axum::serve(listener, routes).await.context("the admin endpoint failed")
}
