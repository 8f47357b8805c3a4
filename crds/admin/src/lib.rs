//! The endpoint on which both programs answer the kubelet's probes and scrapes of metrics.
//!
//! Both are on the host's network, and a client that reaches the port may ask without a name. So a client can
//! hold a bounded number of connections for a bounded time, with a bounded head: connections beyond wait in
//! the kernel. `axum::serve` bounds none of these.

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Connections that are served at once on one address. The kubelet and a Prometheus or two need a few.
pub const CONNECTIONS: usize = 64;
/// How long one connection may take from its first byte to the last of its one answer.
pub const LIFE: Duration = Duration::from_secs(10);
/// Bytes of a request's head, at most: hyper takes no less.
const HEAD: usize = 8192;
/// After a connection that couldn't be taken, because there are no more file descriptors for instance.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// For scrapes, from wherever they may come. `text` makes the metrics, in the text format of OpenMetrics.
pub fn scrapes(text: impl Fn() -> Result<String, fmt::Error> + Clone + Send + Sync + 'static) -> Router {
    let answer = move || async move {
        let text = text().map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Ok::<_, (StatusCode, String)>(([(CONTENT_TYPE, media_type)], text))
    };
    Router::new().route("/metrics", get(answer))
}

/// Serves until the process ends. Fails when the address can't be listened on.
pub async fn serve(address: SocketAddr, routes: Router) -> io::Result<Infallible> {
    let listener = TcpListener::bind(address).await?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            sleep(AFTER_FAILURE).await;
            continue;
        };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let mut builder = http1::Builder::new();
            // The life of a connection bounds the wait for its head, too.
            builder.keep_alive(false).max_buf_size(HEAD);
            // A client that asked and went away, or took too long, concerns nobody else.
            let _ = timeout(LIFE, builder.serve_connection(TokioIo::new(stream), service)).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::Instant,
    };

    /// An endpoint of its own for a test, on this address of the loopback.
    async fn endpoint(address: &str) -> SocketAddr {
        let free = TcpListener::bind(address).await.unwrap().local_addr().unwrap();
        tokio::spawn(serve(free, Router::new().route("/healthz", get(|| async { "ok" }))));
        while TcpStream::connect(free).await.is_err() {
            tokio::task::yield_now().await;
        }
        free
    }

    /// The answer to these bytes until the endpoint closes the connection.
    async fn answer(to: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    const WHOLE: &str = "GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n";
    const HALF: &str = "GET /healthz HTTP/1.1\r\nhost: ";

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_ends_is_ended() {
        let endpoint = endpoint("127.0.0.1:0").await;
        let begun = Instant::now();
        assert!(answer(endpoint, WHOLE).await.ends_with("ok"));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(answer(endpoint, HALF).await, "");
        assert!(begun.elapsed() >= LIFE && begun.elapsed() < 2 * LIFE, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn half_requests_beyond_the_cap_are_dropped_and_a_later_request_is_served() {
        let endpoint = endpoint("127.0.0.1:0").await;
        let begun = Instant::now();
        let mut half = Vec::new();
        for _ in 0..4 * CONNECTIONS {
            let mut stream = TcpStream::connect(endpoint).await.unwrap();
            stream.write_all(HALF.as_bytes()).await.unwrap();
            half.push(stream);
        }
        assert!(answer(endpoint, WHOLE).await.ends_with("ok"));
        // Four lots of them went one after the other: no more were held at once.
        assert!(begun.elapsed() >= 4 * LIFE, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let endpoint = endpoint("127.0.0.1:0").await;
        let long = format!("GET /healthz HTTP/1.1\r\nx: {}", "x".repeat(16 * HEAD));
        let refused = answer(endpoint, &long).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
    }
}
