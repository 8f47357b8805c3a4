//! A TLS-inspecting HTTP proxy, as companies have them, in front of simulated Azure. Clients reach Entra and
//! ARM under their own names, by HTTPS, with a certificate of an authority that they must be configured to
//! trust.

use crate::lock::lock;
use anyhow::{Context, bail};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Ends when dropped.
pub struct Proxy {
    url: String,
    authority: String,
    tunnels: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

/// The parts of the proxy that a connection needs.
struct Lead {
    azure: SocketAddr,
    authority: CertifiedIssuer<'static, KeyPair>,
    tunnels: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// On any free port of 127.0.0.1. Every host that clients ask for is the simulator at `azure`.
    pub(crate) async fn start(azure: SocketAddr) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // With a server's name for itself, OpenSSL would take each of its certificates for self-signed.
        params.distinguished_name.push(DnType::CommonName, "The company's authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let tunnels = Arc::<Mutex<Vec<String>>>::default();
        let pem = authority.pem();
        let lead = Arc::new(Lead { azure, authority, tunnels: tunnels.clone() });
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let lead = lead.clone();
                tokio::spawn(async move {
                    if let Err(error) = lead.through(client).await {
                        tracing::info!("proxy: {error:#}");
                    }
                });
            }
        });
        Ok(Proxy { url, authority: pem, tunnels, task })
    }

    /// For `HTTPS_PROXY`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificate of its authority, for `SSL_CERT_FILE`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The hosts that clients asked for, with ports, in order.
    #[must_use]
    pub fn tunnels(&self) -> Vec<String> {
        lock(&self.tunnels).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lead {
    async fn through(&self, client: TcpStream) -> anyhow::Result<()> {
        let mut client = BufReader::new(client);
        let mut line = String::new();
        client.read_line(&mut line).await?;
        let Some(host) = line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
            bail!("only CONNECT is served, not {line:?}");
        };
        let host = host.to_owned();
        while line.trim() != "" {
            line.clear();
            client.read_line(&mut line).await?;
        }
        lock(&self.tunnels).push(host.clone());
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        let name = host.split(':').next().unwrap_or_default();
        let acceptor = TlsAcceptor::from(Arc::new(self.certified(name)?));
        // A client begins TLS only after the answer, so none of it is in the buffer.
        let mut client = acceptor.accept(client.into_inner()).await.context("TLS")?;
        let mut azure = TcpStream::connect(self.azure).await?;
        // Either end may break it off.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut azure).await;
        Ok(())
    }

    /// A server of that name.
    fn certified(&self, name: &str) -> anyhow::Result<ServerConfig> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.authority)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?)
    }
}
