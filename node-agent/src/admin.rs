//! What the agent answers over HTTP to probes: /healthz and /readyz.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{Router, http::StatusCode, routing::get};

use crate::metrics::Metrics;

/// A reconcile comes every 30 s, and none waits for so long.
const STUCK: Duration = Duration::from_secs(120);

/// For probes, which come from the node itself. Alive is whose reconciles end, well or badly; a task that dies
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
    let reconciles = metrics.clone();
    let alive = move || async move {
        let since = reconciles.since_reconcile();
        match since < STUCK {
            true => (StatusCode::OK, "ok\n".to_owned()),
            false => (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("no reconcile has ended for {} s\n", since.as_secs()),
            ),
        }
    };
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready))
}
