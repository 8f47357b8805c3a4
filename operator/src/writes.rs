//! How many writes to the API server are under way at once, and whether this process may still write.

use tokio::sync::Semaphore;

use crate::deadline::uncounted;
use crate::fence;
use crate::leader::Tenure;

/// How many writes of each sort are under way at once. An edit of a pool concerns thousands of nodes in the
/// same moment, and each request that is under way has a connection of its own.
///
/// A process that may not lead any more writes nothing, see [`fence`]: conditions are applied whatever the
/// version, so nothing else would stop them.
pub struct Writes {
    announcements: Semaphore,
    urgent: Semaphore,
    reports: Semaphore,
    tenure: Tenure,
}

const AT_ONCE: usize = 32;

impl Writes {
    pub fn new(tenure: Tenure) -> Writes {
        let [announcements, urgent, reports] = [(); 3].map(|()| Semaphore::new(AT_ONCE));
        Writes { announcements, urgent, reports, tenure }
    }

    /// Makes a write on which a write to Azure waits, in its turn: it isn't to stand behind an edit of a
    /// pool.
    pub async fn announcement<T>(&self, write: impl Future<Output = T>) -> T {
        self.turn(&self.announcements, write).await
    }

    /// Makes a write on which nodes wait: of `spec`, and of the object itself.
    pub async fn urgent<T>(&self, write: impl Future<Output = T>) -> T {
        self.turn(&self.urgent, write).await
    }

    /// Writes status that people read.
    pub async fn report<T>(&self, write: impl Future<Output = T>) -> T {
        self.turn(&self.reports, write).await
    }

    async fn turn<T>(&self, of: &Semaphore, write: impl Future<Output = T>) -> T {
        // It is never closed.
        let _turn = uncounted(of.acquire()).await.ok();
        fence::only_while(|| self.tenure.is_sure(), "the API server", write).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::LEASE;
    use axum::Router;
    use axum::http::StatusCode;
    use futures::future::join_all;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use kube::api::{Patch, PatchParams};
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::net::TcpListener;
    use tokio::time::{Instant, advance, timeout};

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_lease_has_expired_writes_neither_spec_nor_conditions() {
        let writes = Writes::new(Tenure::new(Instant::now()));
        writes.urgent(ready(())).await;
        writes.report(ready(())).await;
        writes.announcement(ready(())).await;
        advance(LEASE).await;
        assert!(timeout(LEASE, writes.announcement(ready(()))).await.is_err());
        assert!(timeout(LEASE, writes.urgent(ready(()))).await.is_err());
        assert!(timeout(LEASE, writes.report(ready(()))).await.is_err());
    }

    /// The API server says when a write is to be made again, and the client makes it: by then another may
    /// lead.
    #[tokio::test(start_paused = true)]
    async fn a_write_that_the_api_server_has_put_off_is_not_sent_once_the_lease_has_expired() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let routes = Router::new().fallback(move || async move {
            count.fetch_add(1, Ordering::Relaxed);
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "5")])
        });
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let api = Api::<ConfigMap>::namespaced(
            vnetpool_apiserver::client::client(kube::Config::new(url)).unwrap(),
            "n",
        );
        let (params, patch) = (PatchParams::default(), Patch::Merge(serde_json::json!({})));

        let asked_by = async |writes: Writes| {
            let write = writes.report(api.patch("p", &params, &patch));
            let sent = timeout(Duration::from_secs(8), write).await;
            assert!(sent.is_err(), "{sent:?}");
            asked.swap(0, Ordering::Relaxed)
        };
        assert_eq!(asked_by(Writes::new(Tenure::new(Instant::now()))).await, 2, "one that leads");
        let tenure = Tenure::new(Instant::now());
        advance(Duration::from_secs(8)).await;
        assert!(tenure.is_sure());
        assert_eq!(asked_by(Writes::new(tenure)).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn few_writes_of_a_sort_are_under_way_at_once_and_no_other_sort_waits_for_them() {
        let writes = Writes::new(Tenure::new(Instant::now()));
        let begun = AtomicUsize::new(0);
        let held = || async {
            begun.fetch_add(1, Ordering::Relaxed);
            pending::<()>().await
        };
        let mut reports = pin!(join_all((0..100).map(|_| writes.report(held()))));
        assert!(timeout(Duration::from_secs(1), &mut reports).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), AT_ONCE);
        writes.announcement(ready(())).await;
        writes.urgent(ready(())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_lost_its_lease_writes_nothing_though_it_has_just_renewed() {
        let tenure = Tenure::new(Instant::now());
        let writes = Writes::new(tenure.clone());
        writes.urgent(ready(())).await;
        tenure.end();
        assert!(!tenure.is_sure());
        assert!(timeout(LEASE, writes.urgent(ready(()))).await.is_err());
        assert!(timeout(LEASE, writes.report(ready(()))).await.is_err());
    }
}
