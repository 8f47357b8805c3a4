//! The operator's HTTP answers to probes: `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// For probes, which come from the node itself. `/healthz` fails when a task is stuck, since only a restart
/// can cure that; `/readyz` follows `ready`.
pub fn probes(metrics: Arc<Metrics>, ready: watch::Receiver<bool>) -> Router {
    let live = Router::new().route("/healthz", get(liveness)).with_state(metrics);
    live.merge(Router::new().route("/readyz", get(readiness)).with_state(ready))
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
