//! The operator as its process runs it: in a thread with a runtime of its own, so that it can be killed with
//! all it began.

use anyhow::{Result, anyhow};
use reqwest::Url;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use vnetpool_operator::azure::{self, ApiVersions, Cloud, Credential};
use vnetpool_operator::{Architectures, Config, Waits};
use vnetpool_tests::control_plane::NAMESPACE;
use vnetpool_tests::eventually;

/// The usual configuration: ARM is at `arm`, the metadata service at `imds`, its own metrics at `admin`.
pub fn config(arm: Url, imds: Url, admin: SocketAddr, identity: String) -> Config {
    let azure = azure::Config {
        cloud: Cloud::Public,
        endpoint: Some(arm),
        imds: Some(imds),
        credential: Credential::ManagedIdentity { client_id: None },
        versions: ApiVersions::of(Cloud::Public),
        budget_percent: 80,
        dry_run: false,
    };
    // A pool that goes takes effect at once, but where a test is about that.
    let soon = Duration::from_secs(2);
    // And steps are fine, but where a test is about coarse ones.
    let scarce = Duration::from_secs(3600);
    let waits = Waits { second_read: soon, late: soon, grace: Duration::ZERO, scarce, ..Waits::FULL };
    Config {
        azure,
        namespace: NAMESPACE.into(),
        identity,
        admin: Some(admin),
        scraped: None,
        architectures: Architectures::default(),
        waits,
    }
}

/// Where a server may listen, and listen again once it was killed. Each has an IP address of its own, so that
/// no other server in this process, and no client that connects from 127.0.0.1, is given the port meanwhile.
pub fn free_address() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ok(TcpListener::bind((Ipv4Addr::new(127, 88, high, low), 0))?.local_addr()?)
}

/// Waits until the caches of the operator that serves its metrics there are synced.
pub async fn until_ready(admin: SocketAddr, within: Duration) -> Result<()> {
    eventually("the operator is ready", within, || async {
        let answer = reqwest::get(format!("http://{admin}/readyz")).await?;
        Ok(answer.status().is_success().then_some(()))
    })
    .await
}

/// How it ends.
#[derive(Debug, PartialEq)]
pub enum End {
    /// It may finish its present work.
    Term,
    /// At once.
    Kill,
}

/// Killed when dropped.
pub struct Operator {
    thread: Option<JoinHandle<Result<()>>>,
    term: Option<oneshot::Sender<()>>,
    kill: Option<oneshot::Sender<()>>,
}

impl Operator {
    pub fn start(config: Config, kube: kube::Config) -> Result<Operator> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (term, terminated) = oneshot::channel::<()>();
        let (kill, killed) = oneshot::channel::<()>();
        let run = move || {
            runtime.block_on(async {
                let lease = vnetpool_apiserver::client::client(kube.clone())?;
                let client = vnetpool_apiserver::client::client(kube)?;
                let stop = async {
                    if terminated.await.is_err() {
                        std::future::pending().await
                    }
                };
                tokio::select! {
                    ended = vnetpool_operator::run(config, client, lease, stop) => Ok(ended?),
                    _ = killed => Ok(()),
                }
            })
        };
        let thread = std::thread::Builder::new().name("operator".into()).spawn(run)?;
        Ok(Operator { thread: Some(thread), term: Some(term), kill: Some(kill) })
    }

    /// Why it has ended without a signal, if it has.
    pub fn ended(&mut self) -> Option<String> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        Some(match thread.join() {
            Ok(Ok(())) => "without a word".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "it panicked".to_owned(),
        })
    }

    /// Waits until it has.
    ///
    /// # Errors
    /// Its own.
    pub fn end(mut self, end: End) -> Result<()> {
        let signal = if end == End::Term { self.term.take() } else { self.kill.take() };
        // Without a receiver it has ended already, with a reason.
        signal.map(|signal| signal.send(()));
        let thread = self.thread.take().ok_or_else(|| anyhow!("ended twice"))?;
        thread.join().map_err(|_| anyhow!("the operator panicked"))?
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        drop(self.kill.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
