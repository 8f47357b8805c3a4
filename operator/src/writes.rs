//! How many requests to the API server are under way at once, and whether this process may still write.

use axum::http::{Method, Request};
use kube::Client;
use kube::client::Body;
use tokio::sync::Semaphore;
use tower::service_fn;

use crate::deadline::uncounted;
use crate::fence;
use crate::leader::Tenure;

/// The same client for a leader: once its Lease may be another's, no write leaves any more, see [`fence`],
/// whoever makes it. Conditions are applied whatever the version, so nothing else would stop them.
pub fn fenced(client: Client, tenure: Tenure) -> Client {
    let namespace = client.default_namespace().to_owned();
    let send = move |request: Request<Body>| {
        let (client, tenure) = (client.clone(), tenure.clone());
        async move {
            let is_read = request.method() == Method::GET;
            fence::only_while(|| is_read || tenure.is_sure(), "the API server", client.send(request)).await
        }
    };
    Client::new(service_fn(send), namespace)
}

/// How many requests of each sort are under way at once. An edit of a pool, or a new leader, concerns
/// thousands of nodes in the same moment, and each request that is under way has a connection of its own.
pub struct Writes {
    reads: Semaphore,
    announcements: Semaphore,
    urgent: Semaphore,
    reports: Semaphore,
}

const AT_ONCE: usize = 32;

impl Default for Writes {
    fn default() -> Writes {
        let [reads, announcements, urgent, reports] = [(); 4].map(|()| Semaphore::new(AT_ONCE));
        Writes { reads, announcements, urgent, reports }
    }
}

impl Writes {
    /// Reads of a node what no watch has.
    pub async fn read<T>(&self, read: impl Future<Output = T>) -> T {
        turn(&self.reads, read).await
    }

    /// Makes a write on which a write to Azure waits, in its turn: it isn't to stand behind an edit of a
    /// pool.
    pub async fn announcement<T>(&self, write: impl Future<Output = T>) -> T {
        turn(&self.announcements, write).await
    }

    /// Makes a write on which nodes wait: of `spec`, and of the object itself.
    pub async fn urgent<T>(&self, write: impl Future<Output = T>) -> T {
        turn(&self.urgent, write).await
    }

    /// Writes status that people read.
    pub async fn report<T>(&self, write: impl Future<Output = T>) -> T {
        turn(&self.reports, write).await
    }
}

async fn turn<T>(of: &Semaphore, request: impl Future<Output = T>) -> T {
    // It is never closed.
    let _turn = uncounted(of.acquire()).await.ok();
    request.await
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
    use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use tokio::net::TcpListener;
    use tokio::time::{Instant, advance, timeout};

    use crate::lock::lock;

    /// An API server that has no time, as a leader of this tenure reaches it, and the methods of the requests
    /// that it gets.
    async fn server(tenure: &Tenure) -> (Api<ConfigMap>, Arc<Mutex<Vec<Method>>>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::<Mutex<Vec<Method>>>::default();
        let log = asked.clone();
        let routes = Router::new().fallback(move |method: Method| async move {
            lock(&log).push(method);
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "5")])
        });
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let client = vnetpool_apiserver::client::client(kube::Config::new(url)).unwrap();
        (Api::namespaced(fenced(client, tenure.clone()), "n"), asked)
    }

    /// One request of each kind, for a second.
    async fn ask_all(api: &Api<ConfigMap>) {
        let (new, name) = (ConfigMap::default(), "p");
        let (post, patch) = (PostParams::default(), PatchParams::default());
        let merge = Patch::Merge(serde_json::json!({}));
        let second = Duration::from_secs(1);
        let _ = timeout(second, api.get(name)).await;
        let _ = timeout(second, api.list(&ListParams::default())).await;
        let _ = timeout(second, api.create(&post, &new)).await;
        let _ = timeout(second, api.replace(name, &post, &new)).await;
        let _ = timeout(second, api.patch(name, &patch, &merge)).await;
        let _ = timeout(second, api.patch_status(name, &patch, &merge)).await;
        let _ = timeout(second, api.delete(name, &DeleteParams::default())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_lease_has_expired_or_is_lost_sends_no_write_of_any_kind() {
        let all = [
            Method::GET,
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::PATCH,
            Method::DELETE,
        ];
        let expired = Tenure::new(Instant::now());
        advance(LEASE).await;
        // It has renewed its Lease just now.
        let lost = Tenure::new(Instant::now());
        lost.end();
        let leads = Tenure::new(Instant::now());
        for (tenure, sent) in [(leads, &all[..]), (expired, &all[..2]), (lost, &all[..2])] {
            let (api, asked) = server(&tenure).await;
            ask_all(&api).await;
            assert_eq!(*lock(&asked), sent);
        }
    }

    /// The API server says when a write is to be made again, and the client makes it: by then another may
    /// lead.
    #[tokio::test(start_paused = true)]
    async fn a_write_that_the_api_server_has_put_off_is_not_sent_once_the_lease_has_expired() {
        let asked_by = async |tenure: Tenure| {
            let (api, asked) = server(&tenure).await;
            let (params, patch) = (PatchParams::default(), Patch::Merge(serde_json::json!({})));
            let sent = timeout(Duration::from_secs(8), api.patch("p", &params, &patch)).await;
            assert!(sent.is_err(), "{sent:?}");
            lock(&asked).len()
        };
        assert_eq!(asked_by(Tenure::new(Instant::now())).await, 2, "one that leads");
        let tenure = Tenure::new(Instant::now());
        advance(Duration::from_secs(8)).await;
        assert!(tenure.is_sure());
        assert_eq!(asked_by(tenure).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn few_requests_of_a_sort_are_under_way_at_once_and_no_other_sort_waits_for_them() {
        let (writes, begun) = (Writes::default(), Mutex::new(0));
        let held = || async {
            *lock(&begun) += 1;
            pending::<()>().await
        };
        let second = Duration::from_secs(1);
        let mut reports = pin!(join_all((0..100).map(|_| writes.report(held()))));
        assert!(timeout(second, &mut reports).await.is_err());
        assert_eq!(*lock(&begun), AT_ONCE);
        let mut reads = pin!(join_all((0..100).map(|_| writes.read(held()))));
        assert!(timeout(second, &mut reads).await.is_err());
        assert_eq!(*lock(&begun), 2 * AT_ONCE);
        writes.announcement(ready(())).await;
        writes.urgent(ready(())).await;
    }
}
