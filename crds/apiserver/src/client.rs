//! The client: each request has an end, and a peer that is gone is noticed. kube's own would wait for an
//! answer for ever.
//!
//! Only a watch may be silent, and for no longer than the API server is: it sends a bookmark once a minute.
//! That its peer lives is TCP's to find out, which costs no request. But a proxy may live, and pass nothing
//! on.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tower::filter::FilterLayer;
use tower::retry::{Policy, RetryLayer};
use tower::{BoxError, Service, ServiceBuilder};

/// Until an answer begins. The API server itself gives up after as long for most that it waits for.
pub const ANSWER: Duration = Duration::from_secs(15);
/// Between two pieces of an answer that isn't a watch's.
const PIECE: Duration = Duration::from_secs(10);
/// Until such an answer is complete.
const WHOLE: Duration = Duration::from_secs(60);
/// Between two pieces of a watch's answer: two bookmarks are lacking. It is begun anew where it was.
const BOOKMARKS: Duration = Duration::from_secs(125);
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that was silent for so long is probed for its peer.
const QUIET: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// Data or probes without an acknowledgement for so long end a connection.
const UNHEARD: Duration = Duration::from_secs(20);

/// # Errors
/// When the configuration can't be used.
pub fn client(mut config: Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(QUIET));
    connector.set_keepalive_interval(Some(PROBE));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(UNHEARD));
    let https = config.rustls_https_connector_with_connector(connector)?;
    let token = config.auth_info.token_file.take().map(|file| FilterLayer::new(bearer(file)));
    let retry = config.default_retry.then(|| RetryLayer::new(Patience::new()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(token)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(Limited(service), config.default_namespace))
}

/// Has each request carry the token that its file has by then: the kubelet replaces it before it ends. kube
/// would read the file again a minute later by the clock that can be set. If that has been an hour ahead
/// meanwhile, a token would stay in use for an hour, and end in it.
fn bearer(file: String) -> impl Fn(Request<Body>) -> Result<Request<Body>, BoxError> + Clone {
    move |mut request| {
        let token = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim_end()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
        Ok(request)
    }
}

/// What the API server refuses for a while is asked for again when it wants that, as long as the request may
/// last. A refusal for longer is the answer: whoever asks has a wait of its own, and may have other work.
#[derive(Clone)]
struct Patience {
    policy: RetryPolicy,
    /// When the request is to have ended.
    end: Option<Instant>,
}

impl Patience {
    fn new() -> Patience {
        Patience { policy: RetryPolicy::server_retry(), end: None }
    }
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for Patience {
    type Future = Sleep;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Sleep> {
        let end = *self.end.get_or_insert_with(|| Instant::now() + ANSWER);
        self.policy.retry(request, result).filter(|wait| wait.deadline() < end)
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Policy::<_, Response<B>, BoxError>::clone_request(&mut self.policy, request)
    }
}

/// Why a request was ended.
#[derive(Debug, thiserror::Error)]
pub enum Silent {
    #[error("the API server didn't answer within {} s", ANSWER.as_secs())]
    Answer,
    #[error("the API server stopped in the middle of its answer")]
    Rest,
    #[error("nothing has come by this watch for {} s, no bookmark either", BOOKMARKS.as_secs())]
    Watch,
}

/// A service whose requests end.
#[derive(Clone)]
struct Limited<S>(S);

type Answer<B> = Pin<Box<dyn Future<Output = Result<Response<Ending<B>>, BoxError>> + Send>>;

impl<S, B> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Ending<B>>;
    type Error = BoxError;
    type Future = Answer<B>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<B> {
        let is_watch = is_watch(&request);
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = timeout(ANSWER, answer).await.map_err(|_| Silent::Answer)??;
            Ok(answer.map(|body| Ending::new(body, is_watch)))
        })
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|one| matches!(one, "watch=true" | "watch=1"))
}

/// An answer's body that ends, with an error if need be.
struct Ending<B> {
    body: Pin<Box<B>>,
    /// When to end it, if nothing comes.
    silent: Pin<Box<Sleep>>,
    /// When to end it at the latest; never, for a watch.
    end: Option<Instant>,
}

impl<B> Ending<B> {
    fn new(body: B, is_watch: bool) -> Ending<B> {
        let now = Instant::now();
        let end = (!is_watch).then_some(now + WHOLE);
        let silent = Box::pin(sleep_until(Self::silent_from(now, end)));
        Ending { body: Box::pin(body), silent, end }
    }

    /// When the answer is over if nothing comes from now on.
    fn silent_from(now: Instant, end: Option<Instant>) -> Instant {
        end.map_or(now + BOOKMARKS, |end| end.min(now + PIECE))
    }
}

impl<B> http_body::Body for Ending<B>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let Ending { body, silent, end } = &mut *self;
        let frame = body.as_mut().poll_frame(context);
        let now = Instant::now();
        if frame.is_ready() && end.is_none_or(|end| now < end) {
            silent.as_mut().reset(Self::silent_from(now, *end));
            return frame.map_err(Into::into);
        }
        let why = if end.is_some() { Silent::Rest } else { Silent::Watch };
        match silent.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(why.into()))),
            Poll::Pending => frame.map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::is_status;
    use futures::{StreamExt, TryStreamExt};
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::{ListParams, WatchParams};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that takes each request and gives this text, then falls silent.
    async fn server(text: &'static str) -> Api<Pod> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut taken = [0; 4096];
                    while connection.read(&mut taken).await.is_ok_and(|count| count > 0) {
                        connection.write_all(text.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        Api::default_namespaced(client(config).unwrap())
    }

    const HEAD: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_taken_and_never_answered_ends() {
        let pods = server("").await;
        let asked = Instant::now();
        let error = pods.get("p").await.unwrap_err();
        assert!(error.to_string().contains("didn't answer within 15 s"), "{error}");
        assert_eq!(asked.elapsed().as_secs(), ANSWER.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_asked_again_about_when_it_wants_that_and_is_the_answer_if_that_takes_too_long() {
        let refusal = |status: &str, wait: u32| {
            let text = format!("HTTP/1.1 {status}\r\nretry-after: {wait}\r\ncontent-length: 0\r\n\r\n");
            &*Box::leak(text.into_boxed_str())
        };
        let (busy, gone) = ("429 Too Many Requests", "503 Service Unavailable");
        for (status, wait, lasts) in
            [(busy, 30, 0), (busy, 4000, 0), (busy, 5, 10), (gone, 6, 12), (gone, 60, 0)]
        {
            let pods = server(refusal(status, wait)).await;
            let asked = Instant::now();
            let error = pods.get("p").await.unwrap_err();
            assert!(is_status(&error, status[..3].parse().unwrap()), "{error:?}");
            assert_eq!(asked.elapsed().as_secs(), lasts, "{status}, {wait}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_stops_in_the_middle_ends() {
        let text: String = format!("{HEAD}9\r\n{{\"items\":\r\n");
        let pods = server(Box::leak(text.into_boxed_str())).await;
        let asked = Instant::now();
        let error = pods.list(&ListParams::default()).await.unwrap_err();
        assert!(format!("{error:?}").contains("Rest"), "{error:?}");
        assert_eq!(asked.elapsed().as_secs(), PIECE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_may_be_silent_until_two_bookmarks_are_lacking() {
        let pods = server(HEAD).await;
        let begun = Instant::now();
        let events = pods.watch(&WatchParams::default(), "0").await.unwrap();
        let error = events.boxed().try_next().await.unwrap_err();
        assert!(format!("{error:?}").contains("Watch"), "{error:?}");
        assert_eq!(begun.elapsed().as_secs(), BOOKMARKS.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_taken_and_never_answered_ends() {
        let pods = server("").await;
        let asked = Instant::now();
        assert!(pods.watch(&WatchParams::default(), "0").await.is_err());
        assert_eq!(asked.elapsed().as_secs(), ANSWER.as_secs());
    }

    #[tokio::test]
    async fn a_request_carries_the_token_that_its_file_has_by_then() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        config.auth_info.token_file = Some(file.path().display().to_string());
        let pods: Api<Pod> = Api::default_namespaced(client(config).unwrap());
        for token in ["first", "second"] {
            std::fs::write(file.path(), format!("{token}\n")).unwrap();
            let takes = async {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut taken = vec![0; 4096];
                let count = connection.read(&mut taken).await.unwrap();
                let refusal = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                connection.write_all(refusal.as_bytes()).await.unwrap();
                String::from_utf8_lossy(&taken[..count]).into_owned()
            };
            let (answer, request) = tokio::join!(pods.get("p"), takes);
            assert!(answer.is_err());
            assert!(request.contains(&format!("authorization: Bearer {token}\r\n")), "{request}");
        }
        let path = file.path().display().to_string();
        file.close().unwrap();
        let error = pods.get("p").await.unwrap_err();
        assert!(format!("{error:?}").contains(&path), "{error:?}");
    }

    /// In the kernel's time: it finds out.
    #[tokio::test]
    async fn a_watch_whose_peer_is_dead_ends_within_half_a_minute() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        let pods: Api<Pod> = Api::default_namespaced(client(config).unwrap());
        let dies = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            assert!(connection.read(&mut [0; 4096]).await.unwrap() > 0);
            connection.write_all(HEAD.as_bytes()).await.unwrap();
            // BPF's "return 0": no segment gets through any more, and none is acknowledged.
            let nothing = socket2::SockFilter::new(0x06, 0, 0, 0);
            socket2::SockRef::from(&connection).attach_filter(&[nothing]).unwrap();
            connection
        };
        let params = WatchParams::default();
        let (events, _connection) = tokio::join!(pods.watch(&params, "0"), dies);
        let begun = Instant::now();
        let end = timeout(Duration::from_secs(30), events.unwrap().boxed().try_next()).await;
        assert!(matches!(&end, Ok(Err(_))), "after {:?}: {end:?}", begun.elapsed());
    }
}
