//! A running simulator: listeners, the clock, and the end of both when it is dropped.

use crate::admin;
use crate::azure::Azure;
use crate::dns;
use crate::fabric::{self, Fabric};
use crate::http::{self, Service};
use crate::proxy::Proxy;
use crate::topology::WIRE_SERVER;
use crate::world::Config;
use anyhow::Context;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::task::JoinSet;

/// A simulator that answers as long as it exists. Its admin's actions are the methods of [`Azure`].
pub struct Sim {
    azure: Arc<Azure>,
    arm: String,
    tasks: JoinSet<()>,
}

impl Deref for Sim {
    type Target = Azure;

    fn deref(&self) -> &Azure {
        &self.azure
    }
}

impl Sim {
    /// On any free port of 127.0.0.1, with no network behind it.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::listen(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// On one address, which serves both ARM and IMDS, with no network behind it.
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub async fn listen(config: Config, address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let arm = format!("http://{}", listener.local_addr()?);
        let mut sim = Self::new(Azure::new(config, None), arm);
        sim.serve(listener, Service::Azure);
        Ok(sim)
    }

    /// In the network namespace of this process, which becomes the network between the simulated machines.
    ///
    /// # Errors
    /// When the namespace can't be made one: no root, `ip` or `nft` missing, addresses in use.
    pub async fn start_fabric(config: Config) -> anyhow::Result<Self> {
        let fabric = Fabric::start().await?;
        let mut sim = Self::new(Azure::new(config, Some(fabric)), format!("http://{}", fabric::ARM));
        let watch = sim.azure.clone();
        sim.tasks.spawn(async move { watch.keep_watch().await });
        for (address, service) in
            [(fabric::ARM, Service::Azure), (fabric::IMDS, Service::Azure), (WIRE_SERVER, Service::Wire)]
        {
            let listener = TcpListener::bind((address, 80))
                .await
                .with_context(|| format!("listening on {address}:80"))?;
            sim.serve(listener, service);
        }
        let resolver = (WIRE_SERVER, 53);
        let datagrams = UdpSocket::bind(resolver).await.context("listening at the resolver's address")?;
        let streams = TcpListener::bind(resolver).await.context("listening at the resolver's address")?;
        let azure = sim.azure.clone();
        let resolve = move |message: &[u8], from| azure.resolve(message, from);
        sim.tasks.spawn(async move {
            let ended = tokio::try_join!(
                dns::serve_datagrams(datagrams, resolve.clone()),
                dns::serve_streams(streams, resolve)
            );
            if let Err(error) = ended {
                tracing::error!("{error}");
            }
        });
        Ok(sim)
    }

    fn new(azure: Azure, arm: String) -> Self {
        let azure = Arc::new(azure);
        let mut tasks = JoinSet::new();
        let clock = azure.clone();
        tasks.spawn(async move { clock.keep_time().await });
        Self { azure, arm, tasks }
    }

    fn serve(&mut self, listener: TcpListener, service: Service) {
        let azure = self.azure.clone();
        self.tasks.spawn(async move {
            if let Err(error) = http::serve(listener, azure, service).await {
                tracing::error!("{error}");
            }
        });
    }

    /// Opens the admin API at a Unix socket. A socket left over there is replaced.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn open_admin(&mut self, path: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        let azure = self.azure.clone();
        self.tasks.spawn(async move {
            if let Err(error) = admin::serve(listener, azure).await {
                tracing::error!("{error}");
            }
        });
        Ok(())
    }

    /// From now on this simulator's ARM serves the other one's subscription, too, without a network between
    /// the two.
    pub fn join(&self, neighbour: &Sim) {
        self.azure.join(neighbour.azure.clone());
    }

    /// A proxy to this simulator under the names of Azure's clouds.
    ///
    /// # Errors
    /// When there is no port to be had, or no certificate.
    pub async fn open_proxy(&self) -> anyhow::Result<Proxy> {
        Proxy::start(self.arm.trim_start_matches("http://").parse()?).await
    }

    /// ARM's endpoint. IMDS is at the same place below `/metadata`.
    #[must_use]
    pub fn arm_url(&self) -> &str {
        &self.arm
    }
}
