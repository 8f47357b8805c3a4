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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tokio::time::{advance, timeout};
    use tower::ServiceExt;

    use super::*;

    async fn asked(probes: &Router, path: &str) -> (StatusCode, String) {
        let answer = probes.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_liveness_probe_fails_and_names_the_task_that_is_stuck() {
        let metrics = Arc::new(Metrics::default());
        let (_ready, is_ready) = watch::channel(false);
        let probes = probes(metrics.clone(), is_ready);
        // The task beats once and is never polled again.
        let work = metrics.health.alive("the watch of Nodes", pending::<()>());
        assert!(timeout(Duration::from_secs(1), work).await.is_err());
        assert_eq!(asked(&probes, "/healthz").await, (StatusCode::OK, "ok".to_owned()));
        advance(Duration::from_secs(300)).await;
        let (status, body) = asked(&probes, "/healthz").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("the watch of Nodes"), "{body}");
    }

    #[tokio::test]
    async fn the_readiness_probe_follows_the_caches() {
        let (ready, is_ready) = watch::channel(false);
        let probes = probes(Arc::default(), is_ready);
        assert_eq!(asked(&probes, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        ready.send_replace(true);
        assert_eq!(asked(&probes, "/readyz").await, (StatusCode::OK, "ok".to_owned()));
    }
}
