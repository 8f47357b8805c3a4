//! The agent's HTTP answers to probes: /healthz and /readyz.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{Router, http::StatusCode, routing::get};

use crate::metrics::Metrics;

/// A reconcile comes twice a minute, and none waits for so long.
const STUCK: Duration = Duration::from_secs(120);
/// An inspection that takes long is broken off, and the next one begins: several in a row are broken off only
/// if something hangs.
const INSPECTION_STUCK: Duration = Duration::from_secs(600);

/// For probes, which come from the node itself. An agent is alive while its reconciles and inspections end,
/// well or badly; a task that dies ends the process. It is ready once it has done its part for the node, with
/// addresses or without.
pub fn probes(metrics: &Metrics) -> Router {
    let readiness = metrics.ready.clone();
    let ready = move || async move {
        match readiness.load(Ordering::Relaxed) {
            true => (StatusCode::OK, "ok\n"),
            false => (
                StatusCode::SERVICE_UNAVAILABLE,
                "this agent has not done its part for the node: see its log\n",
            ),
        }
    };
    let metrics = metrics.clone();
    let alive = move || async move {
        match stuck(metrics.since_reconcile(), metrics.inspecting_for()) {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(why) => (StatusCode::INTERNAL_SERVER_ERROR, why + "\n"),
        }
    };
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready))
}

/// The task that has not ended for too long: the last reconcile ended so long ago, and inspections have been
/// under way for so long.
fn stuck(since_reconcile: Duration, inspecting_for: Duration) -> Option<String> {
    let all =
        [("reconcile", since_reconcile, STUCK), ("inspection of the node", inspecting_for, INSPECTION_STUCK)];
    let (what, since, _) = all.into_iter().find(|(_, since, most)| since >= most)?;
    Some(format!("no {what} has ended for {} s", since.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_whose_reconciles_or_inspections_hang_is_not_alive_and_one_that_inspects_long_is() {
        let stuck =
            |reconcile, inspection| stuck(Duration::from_secs(reconcile), Duration::from_secs(inspection));
        assert_eq!(stuck(40, 0), None);
        assert_eq!(stuck(40, 599), None);
        assert_eq!(stuck(120, 0).unwrap(), "no reconcile has ended for 120 s");
        assert_eq!(stuck(40, 600).unwrap(), "no inspection of the node has ended for 600 s");
    }
}
