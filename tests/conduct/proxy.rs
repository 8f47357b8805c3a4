//! A TCP proxy between the operator or an agent and the API server. It reads nothing of the passing bytes,
//! and imitates faults of networks and dying servers.

use anyhow::Result;
use socket2::{SockFilter, SockRef};
use std::future::pending;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Ends when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Ends the connections that are open.
    ending: watch::Sender<()>,
    met: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// A request on a connection is never answered again. It reaches the server.
    LoseAnswers,
    /// A connection opened now falls silent when so many bytes of answers have passed.
    StallAfter(usize),
    /// Every connection ends now.
    Cut,
    /// The server behind the open connections is gone: no segment is acknowledged on them, and no connection
    /// ends. Connections opened later lead to one that lives.
    Die,
}

/// BPF's "return 0": no incoming packet is let through to the socket.
const NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

impl Proxy {
    /// On any free port of 127.0.0.1.
    pub fn start(server: SocketAddr) -> Result<Proxy> {
        Proxy::at(std::net::TcpListener::bind("127.0.0.1:0")?, server)
    }

    /// Where this listens, which may be in another network namespace.
    pub fn at(listener: std::net::TcpListener, server: SocketAddr) -> Result<Proxy> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let (fault, faults) = watch::channel(Fault::None);
        let ending = watch::Sender::default();
        let met = Arc::<AtomicUsize>::default();
        let (count, ends) = (met.clone(), ending.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                tokio::spawn(lead(client, server, (faults.clone(), ends.subscribe()), count.clone()));
            }
        });
        Ok(Proxy { address, fault, ending, met, task })
    }

    /// From now on.
    pub fn fault(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Every connection that is open now ends, once. What was asked on one has reached the server.
    pub fn cut_open(&self) {
        self.ending.send_replace(());
    }

    /// How many connections have met a fault.
    pub fn met(&self) -> usize {
        self.met.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn lead(
    client: TcpStream,
    server: TcpStream,
    (mut faults, mut ending): (watch::Receiver<Fault>, watch::Receiver<()>),
    met: Arc<AtomicUsize>,
) {
    let Ok(far) = client.as_fd().try_clone_to_owned() else { return };
    let fault = *faults.borrow_and_update();
    let stall = if let Fault::StallAfter(bytes) = fault { bytes } else { usize::MAX };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (deaf, is_deaf) = watch::channel(false);
    let questions = ask(from_client, to_server, faults.clone(), deaf, met.clone());
    let answers = answer(from_server, to_client, is_deaf, stall, met.clone());
    let mut passing = pin!(async { tokio::join!(questions, answers) });
    let ends = |fault: &Fault| matches!(fault, Fault::Cut | Fault::Die);
    let fault = tokio::select! {
        _ = &mut passing => return,
        Ok(fault) = faults.wait_for(ends) => *fault,
        Ok(()) = ending.changed() => Fault::Cut,
    };
    let dies = fault == Fault::Die;
    // No acknowledgement leaves either, so this is not the end of a connection but of its far end.
    if dies && let Err(error) = SockRef::from(&far).attach_filter(&[NOTHING]) {
        eprintln!("the server can't die: {error}");
        return;
    }
    met.fetch_add(1, Ordering::Relaxed);
    if dies {
        // These connections are held open: closing them would show it.
        pending().await
    }
}

async fn ask(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    faults: watch::Receiver<Fault>,
    deaf: watch::Sender<bool>,
    met: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 16384];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if *faults.borrow() == Fault::LoseAnswers && !deaf.send_replace(true) {
            met.fetch_add(1, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_deaf: watch::Receiver<bool>,
    stall: usize,
    met: Arc<AtomicUsize>,
) {
    let (mut buffer, mut passed) = (vec![0; 16384], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if *is_deaf.borrow() || passed == stall {
            continue;
        }
        let count = count.min(stall - passed);
        passed += count;
        if passed == stall {
            met.fetch_add(1, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
