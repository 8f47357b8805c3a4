//! The proxy of an application gateway. It is in a network namespace of its own, plugged into the network
//! like a machine, ends its clients' HTTP connections there and connects to the backends from its own
//! address.

use crate::topology::ApplicationGateway as Gateway;
use anyhow::Context;
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderName;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client, server};
use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, setns, unshare};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The number of clients that may wait to be accepted.
const BACKLOG: u32 = 128;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A network namespace without a name: it ends with this file and the sockets in it, however the simulator
/// ends.
struct Namespace(File);

impl Namespace {
    fn new() -> io::Result<Self> {
        // The thread gets a namespace of its own, and can end once the file refers to it.
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        joined(thread::spawn(make).join()).map(Self)
    }

    /// A socket in this namespace. It stays there, whichever thread uses it.
    fn socket(&self) -> io::Result<TcpSocket> {
        let make = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            TcpSocket::new_v4()
        };
        thread::scope(|scope| joined(scope.spawn(make).join()))
    }
}

fn joined<T>(outcome: thread::Result<io::Result<T>>) -> io::Result<T> {
    outcome.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// The way from a gateway to its backends.
#[derive(Clone)]
pub(crate) struct Exit {
    namespace: Arc<Namespace>,
    instance: Ipv4Addr,
}

impl Exit {
    /// A socket with the address that the gateway has in its subnet.
    pub(crate) fn socket(&self) -> io::Result<TcpSocket> {
        let socket = self.namespace.socket()?;
        socket.bind(SocketAddr::from((self.instance, 0)))?;
        Ok(socket)
    }
}

/// Ends when dropped.
pub(super) struct Proxy {
    exit: Exit,
    frontends: BTreeSet<Ipv4Addr>,
    listeners: BTreeMap<SocketAddrV4, Listener>,
}

struct Listener {
    backends: watch::Sender<Vec<SocketAddrV4>>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// A gateway whose namespace isn't plugged into the network yet.
    pub(super) fn new(instance: Ipv4Addr) -> anyhow::Result<Self> {
        let namespace = Namespace::new().context("a network namespace for an application gateway")?;
        let exit = Exit { namespace: Arc::new(namespace), instance };
        Ok(Self { exit, frontends: BTreeSet::new(), listeners: BTreeMap::new() })
    }

    /// The path of its namespace as long as this exists.
    pub(super) fn netns(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.exit.namespace.0.as_raw_fd())
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit.clone()
    }

    /// Listens at the gateway's addresses, and leads to the backends it names.
    pub(super) async fn follow(&mut self, gateway: &Gateway) -> anyhow::Result<()> {
        let Gateway { instance: _, frontends, listeners } = gateway;
        if *frontends != self.frontends {
            let add = |address: &Ipv4Addr| format!("address replace {address}/32 dev eth0\n");
            super::ip_in(&self.netns(), &frontends.iter().map(add).collect::<String>()).await?;
            self.frontends.clone_from(frontends);
        }
        self.listeners.retain(|address, _| listeners.contains_key(address));
        for (address, backends) in listeners {
            match self.listeners.get(address) {
                Some(listener) => drop(listener.backends.send_replace(backends.clone())),
                None => drop(self.listeners.insert(*address, self.listen(*address, backends.clone())?)),
            }
        }
        Ok(())
    }

    fn listen(&self, address: SocketAddrV4, backends: Vec<SocketAddrV4>) -> anyhow::Result<Listener> {
        let socket = self.exit.namespace.socket()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address.into()).with_context(|| format!("an application gateway at {address}"))?;
        let listener = socket.listen(BACKLOG)?;
        let (backends, known) = watch::channel(backends);
        let turns = Turns { backends: known, next: Arc::default(), exit: self.exit() };
        let task = tokio::spawn(async move {
            if let Err(error) = serve(&listener, &turns).await {
                tracing::error!("the application gateway at {address}: {error}");
            }
        });
        Ok(Listener { backends, task })
    }
}

/// The backends of a listener, one after the other.
#[derive(Clone)]
struct Turns {
    backends: watch::Receiver<Vec<SocketAddrV4>>,
    next: Arc<AtomicUsize>,
    exit: Exit,
}

impl Turns {
    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let backend = {
            let backends = self.backends.borrow();
            let turn = self.next.fetch_add(1, Ordering::Relaxed).checked_rem(backends.len());
            *backends.get(turn.context("no backend is healthy")?).context("no backend")?
        };
        Ok(self.exit.socket()?.connect(backend.into()).await?)
    }
}

async fn serve(listener: &TcpListener, turns: &Turns) -> io::Result<()> {
    loop {
        let (stream, client) = listener.accept().await?;
        let turns = turns.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, client, &turns));
            let connection =
                server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                tracing::debug!("a client of an application gateway: {error}");
            }
        });
    }
}

type Body = Either<Incoming, Empty<Bytes>>;

/// A backend's answer, or Azure's 502 if none answers.
async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    turns: &Turns,
) -> anyhow::Result<Response<Body>> {
    match forward(request, client, turns).await {
        Ok(response) => Ok(response.map(Either::Left)),
        Err(error) => {
            tracing::info!("an application gateway: {error:#}");
            let body = Empty::<Bytes>::new();
            Ok(Response::builder().status(StatusCode::BAD_GATEWAY).body(Either::Right(body))?)
        }
    }
}

async fn forward(
    mut request: Request<Incoming>,
    client: SocketAddr,
    turns: &Turns,
) -> anyhow::Result<Response<Incoming>> {
    // "A comma-separated list of IP:port" ("How an application gateway works").
    let earlier = request.headers().get(&FORWARDED_FOR).and_then(|value| value.to_str().ok());
    let callers: Vec<String> = earlier.map(str::to_owned).into_iter().chain([client.to_string()]).collect();
    request.headers_mut().insert(FORWARDED_FOR, callers.join(", ").parse()?);
    let stream = turns.connect().await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a backend of an application gateway: {error}");
        }
    });
    Ok(sender.send_request(request).await?)
}
