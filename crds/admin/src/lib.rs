//! The endpoint on which both programs answer the kubelet's probes and scrapes of metrics.
//!
//! Both are on the host's network, and a client that reaches the port may ask without a name. So there is a
//! bounded number of connections for a bounded time, with a bounded head, and a connection beyond that number
//! ends one of the client's that holds most: nobody shuts out another. `axum::serve` bounds none of these.

use std::{
    cmp::Reverse,
    collections::HashMap,
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
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
/// After a connection that ended another one: a flood of them takes little of the processor, and waits in the
/// kernel.
const AFTER_FULL: Duration = Duration::from_millis(1);

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
    let mut served: Vec<(IpAddr, JoinHandle<()>)> = Vec::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(AFTER_FAILURE).await;
            continue;
        };
        let service = TowerToHyperService::new(routes.clone());
        let serving = tokio::spawn(async move {
            let mut builder = http1::Builder::new();
            // The life of a connection bounds the wait for its head, too.
            builder.keep_alive(false).max_buf_size(HEAD);
            // A client that asked and went away, or took too long, concerns nobody else.
            let _ = timeout(LIFE, builder.serve_connection(TokioIo::new(stream), service)).await;
        });
        served.retain(|(_, serving)| !serving.is_finished());
        served.push((peer.ip(), serving));
        if served.len() > CONNECTIONS {
            let peers: Vec<IpAddr> = served.iter().map(|(peer, _)| *peer).collect();
            let (_, ended) = served.remove(one_too_many(&peers));
            ended.abort();
            sleep(AFTER_FULL).await;
        }
    }
}

/// Which connection ends for the others: the oldest of the client's that has most. They are given by their
/// clients, the oldest first.
fn one_too_many(peers: &[IpAddr]) -> usize {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    peers.iter().for_each(|peer| *counts.entry(*peer).or_default() += 1);
    let counted = peers.iter().enumerate().map(|(index, peer)| (Reverse(counts[peer]), index));
    counted.min().map_or(0, |(_, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, TcpStream},
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

    #[test]
    fn the_client_that_has_most_connections_loses_its_oldest() {
        let peers = |last: &[u8]| last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect::<Vec<_>>();
        assert_eq!(one_too_many(&peers(&[1, 2, 3, 2, 1, 2])), 1);
        assert_eq!(one_too_many(&peers(&[3, 2, 1, 1, 2])), 1, "of those that have as many");
        assert_eq!(one_too_many(&peers(&[1])), 0);
    }

    /// Half a request of a client with this address.
    async fn half_request(from: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        stream.write_all(HALF.as_bytes()).await.unwrap();
        stream
    }

    /// The answer to the whole of it; none if it was ended.
    async fn other_half(mut stream: TcpStream) -> String {
        let _ = stream.write_all(WHOLE.strip_prefix(HALF).unwrap().as_bytes()).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn a_client_that_holds_half_requests_shuts_nobody_out_and_holds_no_more_than_the_cap() {
        let endpoint = endpoint("127.0.0.1:0").await;
        let slow = half_request("127.0.0.3", endpoint).await;
        let mut held = Vec::new();
        for _ in 0..4 * CONNECTIONS {
            held.push(half_request("127.0.0.2", endpoint).await);
        }
        assert!(answer(endpoint, WHOLE).await.ends_with("ok"));
        assert!(other_half(slow).await.ends_with("ok"), "another client's was ended");
        let mut answered = Vec::new();
        for stream in held {
            answered.push(other_half(stream).await.ends_with("ok"));
        }
        // Beside the other two.
        let newest = 4 * CONNECTIONS - (CONNECTIONS - 2);
        let expected: Vec<bool> = (0..4 * CONNECTIONS).map(|index| index >= newest).collect();
        assert_eq!(answered, expected);
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let endpoint = endpoint("127.0.0.1:0").await;
        let long = format!("GET /healthz HTTP/1.1\r\nx: {}", "x".repeat(16 * HEAD));
        let refused = answer(endpoint, &long).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
    }
}
