//! One probe, from the source address of Azure's probes: the platform's, or an application gateway's own.

use super::Exit;
use crate::health::Probe;
use crate::topology::WIRE_SERVER;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the member answers. `exits` are the ways out of application gateways.
pub(crate) async fn answers(probe: &Probe, exits: &BTreeMap<String, Exit>) -> bool {
    timeout(PATIENCE, ask(probe, exits)).await.is_ok_and(|answer| answer.unwrap_or(false))
}

async fn ask(probe: &Probe, exits: &BTreeMap<String, Exit>) -> io::Result<bool> {
    let Probe { address, port, page, gateway } = probe;
    let socket = match gateway {
        Some(gateway) => exits.get(gateway).ok_or(io::ErrorKind::NotConnected)?.socket()?,
        None => {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((WIRE_SERVER, 0)))?;
            socket
        }
    };
    let mut stream = socket.connect(SocketAddr::from((*address, *port))).await?;
    let Some(page) = page else { return Ok(true) };
    let request = format!("GET {page} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    // A gateway accepts 200 to 399, a load balancer only 200 (both documentations on health probes).
    Ok(start.ends_with(b" 200") || gateway.is_some() && matches!(start, [.., b'2' | b'3', _, _]))
}
