//! Asks the instance metadata service, by HTTP over a connection whose own address is known.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};

use super::{Instance, Network};

/// The same in every cloud of Azure's; never through a proxy.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// A version that every Azure cloud has had for years.
const INSTANCE: &str = "/metadata/instance?api-version=2021-02-01";
const NETWORK: &str = "/metadata/instance/network?api-version=2021-02-01";
const TIMEOUT: Duration = Duration::from_secs(10);
/// With 256 addresses an answer has about 20 KB.
const LARGEST: usize = 1024 * 1024;

/// The service's answer about this VM, and the address of ours that it answered.
pub async fn instance() -> anyhow::Result<(Instance, Ipv4Addr)> {
    ask(INSTANCE).await
}

/// Its answer about the VM's NICs.
pub async fn network() -> anyhow::Result<Network> {
    Ok(ask(NETWORK).await?.0)
}

async fn ask<T: DeserializeOwned>(path: &'static str) -> anyhow::Result<(T, Ipv4Addr)> {
    let answer = timeout(TIMEOUT, exchange(path)).await.context("no answer in time").flatten();
    answer.context("can't ask the instance metadata service at 169.254.169.254")
}

async fn exchange<T: DeserializeOwned>(path: &'static str) -> anyhow::Result<(T, Ipv4Addr)> {
    let stream = TcpStream::connect((ADDRESS, 80)).await?;
    let IpAddr::V4(seen_as) = stream.local_addr()?.ip() else { bail!("it was asked by IPv6") };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let request = Request::get(path)
            .header(HOST, ADDRESS.to_string())
            .header("Metadata", "true")
            .header(USER_AGENT, concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, LARGEST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        if head.status != StatusCode::OK {
            bail!("it answers {}: {}", head.status, String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body).context("its answer can't be read")
    };
    tokio::select! {
        answer = exchange => Ok((answer?, seen_as)),
        Err(error) = connection => Err(error.into()),
    }
}
