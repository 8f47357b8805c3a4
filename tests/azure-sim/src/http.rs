//! The HTTP side of ARM and IMDS: requests in, faults, the log, answers out, and a connection that can be
//! cut.

use crate::azure::Azure;
use crate::fault::{Effect, Strike};
use crate::reply::Reply;
use crate::request::{Request, decode};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use axum::serve::{IncomingStream, Listener};
use futures::StreamExt;
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// The service behind a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// ARM, and IMDS below `/metadata`.
    Azure,
    /// The wire server. It answers 200 to anything, and its requests aren't recorded.
    Wire,
}

/// Serves until the task is aborted.
pub(crate) async fn serve(listener: TcpListener, azure: Arc<Azure>, service: Service) -> io::Result<()> {
    let router = match service {
        Service::Azure => Router::new().fallback(exchange).with_state(azure),
        Service::Wire => Router::new().fallback(|| async { StatusCode::OK }),
    };
    axum::serve(Cuttable(listener), router.into_make_service_with_connect_info::<Peer>()).await
}

async fn exchange(
    State(azure): State<Arc<Azure>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let request = Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: if body.is_empty() {
            Ok(None)
        } else if headers.get("content-type").is_some_and(|sort| sort == "application/x-www-form-urlencoded")
        {
            Ok(Some(form(&String::from_utf8_lossy(&body))))
        } else {
            document(&body).map(Some)
        },
        from: peer.address.ip(),
    };
    // In a task of its own, because Azure goes on with a request whose client has hung up.
    let azure = azure.responsible(&request).unwrap_or(azure);
    match tokio::spawn(handle(azure, request)).await {
        Ok(Answer::Whole(reply)) => response(reply),
        Ok(Answer::Half(reply)) => halved(reply),
        Ok(Answer::None) => {
            peer.cut.store(true, Ordering::Release);
            response(Reply::empty(500))
        }
        Err(error) => {
            response(Reply::error(500, "InternalServerError", format!("the simulator has a bug: {error}")))
        }
    }
}

/// ARM's reader of JSON takes a name without quotes. `az` sends a deployment's template under such a one, as
/// the last of its properties.
fn document(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).or_else(|error| {
        let text = String::from_utf8_lossy(body).replacen(", template:", ", \"template\":", 1);
        serde_json::from_str(&text).map_err(|_| error.to_string())
    })
}

/// The fields of a form.
fn form(text: &str) -> Value {
    let fields = text.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(name, value)| (decode(name), Value::String(decode(value)))).collect()
}

/// The outgoing answer.
enum Answer {
    Whole(Reply),
    /// The connection is cut in the middle of the body.
    Half(Reply),
    /// The connection is cut.
    None,
}

async fn handle(azure: Arc<Azure>, request: Request) -> Answer {
    let Some(strike) = azure.faults.strike(&request) else {
        return Answer::Whole(azure.answer(&request).await);
    };
    Answer::Whole(match &strike.effect {
        Effect::Status { status, body, headers } => {
            let reply = Reply {
                status: *status,
                headers: Vec::new(),
                body: Some(body.clone()).filter(|body| !body.is_null()),
            };
            azure.record(&request, with_headers(reply, headers))
        }
        Effect::Delay { ms } => {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            azure.answer(&request).await
        }
        Effect::HoldBefore => {
            Strike::lifted(strike).await;
            azure.answer(&request).await
        }
        Effect::Hold => {
            let reply = azure.answer(&request).await;
            Strike::lifted(strike).await;
            reply
        }
        Effect::CutBeforeApply => return Answer::None,
        Effect::CutAfterApply => {
            azure.answer(&request).await;
            return Answer::None;
        }
        Effect::CutBody => return Answer::Half(azure.answer(&request).await),
        Effect::Garble { body } => {
            let reply = azure.answer(&request).await;
            Reply { status: 200, headers: Vec::new(), body: reply.body.and(Some(body.clone())) }
        }
        Effect::OperationEnds { status, error } => {
            let reply = azure.answer(&request).await;
            azure.doom(&request.path, *status, error);
            reply
        }
    })
}

/// The first half of a body whose Content-Length promises all of it; the server then has to close the
/// connection.
fn halved(reply: Reply) -> Response<Body> {
    let mut whole = reply.body.as_ref().map(Value::to_string).unwrap_or_default().into_bytes();
    let mut response = response(reply);
    response.headers_mut().insert(CONTENT_LENGTH, whole.len().into());
    whole.truncate(whole.len() / 2);
    let broken = async {
        // Written bytes are only sent once nothing more has been written for a moment.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    };
    let half = futures::stream::iter([Ok(whole)]);
    *response.body_mut() = Body::from_stream(half.chain(futures::stream::once(broken)));
    response
}

fn with_headers(mut reply: Reply, headers: &std::collections::BTreeMap<String, String>) -> Reply {
    reply.headers.extend(headers.iter().map(|(name, value)| (name.clone().into(), value.clone())));
    reply
}

fn response(reply: Reply) -> Response<Body> {
    let Reply { status, headers, body } = reply;
    let mut response = Response::builder().status(status);
    let typed = headers.iter().any(|(name, _)| name == "content-type");
    for (name, value) in headers {
        response = response.header(name.as_ref(), value);
    }
    let body = match body {
        None => Body::empty(),
        Some(Value::String(text)) if typed => Body::from(text),
        Some(body) => {
            if !typed {
                response = response.header("content-type", "application/json; charset=utf-8");
            }
            Body::from(body.to_string())
        }
    };
    response.body(body).unwrap_or_else(|_| {
        let mut failed = Response::new(Body::from("a header ordered by a fault is not a valid header"));
        *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        failed
    })
}

/// A listener whose connections can be broken: no HTTP library lets a handler do that.
struct Cuttable(TcpListener);

impl Listener for Cuttable {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        (Connection { stream, cut: Arc::default() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct Connection {
    stream: TcpStream,
    cut: Arc<AtomicBool>,
}

/// The other end of a connection, and the means to cut it.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Connected<IncomingStream<'_, Cuttable>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Cuttable>) -> Self {
        Self { address: *stream.remote_addr(), cut: stream.io().cut.clone() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cut.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
