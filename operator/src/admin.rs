//! The admin endpoint: `/metrics`, `/healthz`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Serves until it fails.
///
/// `/healthz` fails when a task is stuck, since only a restart can cure that; `/readyz` follows `ready`.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    ready: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(liveness))
        .with_state(metrics)
        .merge(Router::new().route("/readyz", get(readiness)).with_state(ready));
    axum::serve(TcpListener::bind(address).await?, routes).await
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
