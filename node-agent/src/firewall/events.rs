//! Changes in the tables `vnetpool`, by any program: one multicast socket.
//!
//! Every change of every table is announced there, thousands at once when kube-proxy writes its own. Only the
//! name of the table is read of them, before anything else is done.

use std::{io, thread};

use anyhow::Context;
use netlink_packet_core::{NetlinkBuffer, NlaBuffer};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use tokio::sync::{oneshot, watch};

use crate::metrics::{Metrics, Watch};

/// NFNLGRP_NFTABLES of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// `struct nfgenmsg`, before the attributes.
const HEADER: usize = 4;
/// The attribute with the table's name, which has the same number in messages of tables, chains, rules, sets,
/// their elements and objects (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and so on).
const TABLE: u16 = 1;
const OURS: &[u8] = b"vnetpool\0";
/// Messages and attributes are aligned to four bytes.
const ALIGN: usize = 4;
/// The kernel sends no larger datagrams.
const DATAGRAM: usize = 64 * 1024;
/// Room for all that kube-proxy writes at once.
const BACKLOG: usize = 4 * 1024 * 1024;

/// The state of our tables by the kernel's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// How many changes it has reported. The opening of the socket counts as one; 0 as long as there is none.
    pub heard: u64,
    /// After which of them table `inet vnetpool` was seen to stand as it was put. None: this process hasn't
    /// put it there.
    pub seen: Option<u64>,
}

impl Known {
    /// Whether the table may have been changed since it was seen.
    pub fn is_in_doubt(&self) -> bool {
        self.seen.is_some_and(|seen| seen != self.heard)
    }
}

/// A socket that hears of every change in the tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Events(Socket);

impl Events {
    pub fn open() -> io::Result<Events> {
        Events::with_room(BACKLOG)
    }

    /// With room for so many bytes that wait to be read; more are lost.
    pub fn with_room(bytes: usize) -> io::Result<Events> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        // Refused outside the machine's own user namespace. Then more is lost, and the next inspection finds
        // it.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &bytes);
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        Ok(Events(socket))
    }

    /// Waits for the next datagram; returns whether it concerns a table of ours, or may have come after a
    /// lost one that did.
    pub fn wait(&self) -> io::Result<bool> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        match self.0.recv(&mut buffer, 0) {
            Ok(_) => Ok(concerns(&buffer)),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether one of these messages is about a table of ours.
fn concerns(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(&rest) {
        if is_ours(message.payload()) {
            return true;
        }
        rest = rest.get((message.length() as usize).next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    false
}

/// Whether a message is about a table of ours.
fn is_ours(payload: &[u8]) -> bool {
    let mut rest = payload.get(HEADER..).unwrap_or_default();
    while let Ok(attribute) = NlaBuffer::new_checked(rest) {
        if attribute.kind() == TABLE {
            return attribute.value() == OURS;
        }
        rest = rest.get((attribute.length() as usize).next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    false
}

/// Counts every change of our tables in `known`, our own changes included.
pub async fn watch(known: watch::Sender<Known>, metrics: Metrics) -> anyhow::Result<()> {
    const CANT: &str = "can't hear the kernel's nftables events";
    let events = Events::open().context(CANT)?;
    let heard = move || known.send_modify(|known| known.heard += 1);
    metrics.heard(Watch::Tables);
    heard(); // for whatever happened before
    let (ended, end) = oneshot::channel();
    // A thread of its own, as for the kernel's other events.
    thread::Builder::new().name("nftables-events".to_owned()).spawn(move || {
        let error = loop {
            match events.wait() {
                Ok(is_ours) => {
                    metrics.heard(Watch::Tables);
                    if is_ours {
                        heard();
                    }
                }
                Err(error) => break error,
            }
        };
        // The receiver is dropped only when the agent ends.
        let _ = ended.send(error);
    })?;
    Err(end.await?).context(CANT)
}
