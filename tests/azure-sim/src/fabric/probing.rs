//! One look of a health probe, from the address that Azure's probes come from.

use super::WIRE_SERVER;
use crate::topology::Probe;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the member answers.
pub(crate) async fn look(probe: &Probe) -> bool {
    timeout(PATIENCE, ask(probe)).await.is_ok_and(|answer| answer.unwrap_or(false))
}

async fn ask(Probe { address, port, page }: &Probe) -> std::io::Result<bool> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((WIRE_SERVER, 0)))?;
    let mut stream = socket.connect(SocketAddr::from((*address, *port))).await?;
    let Some(page) = page else { return Ok(true) };
    let request = format!("GET {page} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    Ok(start.ends_with(b" 200"))
}
