//! What the operator answers over HTTP: `/healthz` and `/readyz` to probes, `/metrics` to scrapes.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// For probes, which come from the node itself. `/healthz` fails when a task is stuck, since only a restart
/// can cure that; `/readyz` follows `ready`.
pub fn probes(metrics: Arc<Metrics>, ready: watch::Receiver<bool>) -> Router {
    let live = Router::new().route("/healthz", get(liveness)).with_state(metrics);
    live.merge(Router::new().route("/readyz", get(readiness)).with_state(ready))
}

/// For scrapes, from wherever they may come.
pub fn scrapes(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", get(render)).with_state(metrics)
}

async fn render(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    let text = metrics.render().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok::<_, StatusCode>((
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        text,
    ))
}

async fn liveness(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    match metrics.health.stuck(Instant::now()).as_slice() {
        [] => (StatusCode::OK, "ok".to_owned()),
        [(task, age), ..] => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the task {task} has been stuck for {} s", age.as_secs()),
        ),
    }
}

async fn readiness(State(ready): State<watch::Receiver<bool>>) -> (StatusCode, &'static str) {
    if *ready.borrow() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the caches are not synced with the API server yet")
    }
}
