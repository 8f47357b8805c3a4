//! Changes in the tables `vnetpool`, by any program: one multicast socket.
//!
//! Every change of every table is announced there, thousands at once when kube-proxy writes its own. Only the
//! name of the table is read of them, before anything else is done.

use std::{io, thread};

use anyhow::Context;
use netlink_packet_core::{
    Emitable, ErrorBuffer, NLA_HEADER_SIZE, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NlaBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{
    errno::Errno,
    libc::MSG_DONTWAIT,
    sys::socket::{setsockopt, sockopt},
};
use tokio::sync::{oneshot, watch};
use vnetpool_plugin::wiring::socket::KernelSocket;

use super::{
    Family,
    known::{Event, Generation, Heard, Known},
};
use crate::metrics::{Metrics, Watch};

/// NFNLGRP_NFTABLES of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// `struct nfgenmsg`, before the attributes: a family, a version, and the generation's last bits.
const HEADER: usize = 4;
/// NFT_MSG_NEWGEN and NFT_MSG_GETGEN of `linux/netfilter/nf_tables.h`, of the subsystem
/// NFNL_SUBSYS_NFTABLES.
const NEW_GENERATION: u16 = 0x0a0f;
const GET_GENERATION: u16 = 0x0a10;
/// The attribute with the generation (`NFTA_GEN_ID`), or with the table's name, which has the same number in
/// messages of tables, chains, rules, sets, their elements and objects (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`
/// and so on).
const SUBJECT: u16 = 1;
const OURS: &[u8] = b"vnetpool\0";
/// Messages and attributes are aligned to four bytes.
const ALIGN: usize = 4;
/// The kernel sends no larger datagrams.
const DATAGRAM: usize = 64 * 1024;
/// Room for all that kube-proxy writes at once.
const BACKLOG: usize = 4 * 1024 * 1024;

/// The kernel's present generation in this network namespace.
pub fn generation() -> io::Result<Generation> {
    Asking::open()?.generation()
}

/// A socket that asks for the generation of the network namespace in which it was opened.
#[derive(Debug)]
struct Asking(KernelSocket);

impl Asking {
    fn open() -> io::Result<Asking> {
        Ok(Asking(KernelSocket::open(NETLINK_NETFILTER)?))
    }

    /// The kernel takes no lock for it, and has answered when the request is sent: this never waits.
    fn generation(&self) -> io::Result<Generation> {
        let mut header = NetlinkHeader::default();
        (header.message_type, header.flags) = (GET_GENERATION, NLM_F_REQUEST);
        let mut request = vec![0; header.buffer_len() + HEADER];
        header.length = u32::try_from(request.len()).map_err(io::Error::other)?;
        header.emit(&mut request);
        self.0.send(&request)?;
        let answer = self.0.receive(DATAGRAM, MSG_DONTWAIT)?;
        let message = NetlinkBuffer::new_checked(&answer).map_err(io::Error::other)?;
        if message.message_type() == NLMSG_ERROR {
            let error = ErrorBuffer::new_checked(message.payload()).map_err(io::Error::other)?;
            return Err(io::Error::from_raw_os_error(error.code().map_or(0, |code| -code.get())));
        }
        match meaning(message.message_type(), message.payload()) {
            Some(Event::End(generation)) => Ok(generation),
            _ => Err(io::Error::other("the kernel's answer has no generation")),
        }
    }
}

/// A socket that hears of every change in the tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Events {
    socket: KernelSocket,
    asking: Asking,
    heard: Heard,
}

impl Events {
    pub fn open() -> io::Result<Events> {
        Events::with_room(BACKLOG)
    }

    /// With room for so many bytes that wait to be read; more are lost.
    pub fn with_room(bytes: usize) -> io::Result<Events> {
        let socket = KernelSocket::open(NETLINK_NETFILTER)?;
        // Refused outside the machine's own user namespace. Then more is lost, and the tables are listed
        // more often.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &bytes);
        socket.join(GROUP)?;
        // From here on nothing is missed.
        let asking = Asking::open()?;
        let heard = Heard::from(asking.generation()?);
        Ok(Events { socket, asking, heard })
    }

    /// What has been read so far.
    pub fn heard(&self) -> Heard {
        self.heard
    }

    /// Waits for the next datagram, and reads it. After one was lost, the next call drops all that was sent
    /// until then, and goes on from the kernel's generation.
    pub fn read(&mut self) -> io::Result<Heard> {
        if self.heard.is_incomplete() {
            self.drop_all()?;
            // The kernel counts a transaction before it reports it, so none that was lost comes after this.
            self.heard = Heard::from(self.asking.generation()?);
            return Ok(self.heard);
        }
        match self.socket.receive(DATAGRAM, 0) {
            Ok(datagram) => self.heard = events(&datagram).fold(self.heard, Heard::and),
            Err(error) if is(&error, Errno::ENOBUFS) => self.heard = self.heard.lost(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(self.heard)
    }

    /// Reads until there is nothing to read. Only then the kernel sends again.
    fn drop_all(&self) -> io::Result<()> {
        loop {
            match self.socket.receive(DATAGRAM, MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is(&error, Errno::ENOBUFS) || is(&error, Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// The messages of a datagram that matter.
fn events(datagram: &[u8]) -> impl Iterator<Item = Event> {
    let mut rest = datagram;
    let messages = std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        rest = rest.get((message.length() as usize).next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(meaning(message.message_type(), message.payload()))
    });
    messages.flatten()
}

/// The meaning of a message; None if it is about another program's table.
fn meaning(kind: u16, payload: &[u8]) -> Option<Event> {
    let (&[family, _, high, low], attributes) = payload.split_first_chunk::<HEADER>()?;
    let subject = subject(attributes)?;
    if kind == NEW_GENERATION {
        return Some(Event::End(Generation(u32::from_be_bytes(subject.try_into().ok()?))));
    }
    let family = Family::ALL.into_iter().find(|one| one.number() == family)?;
    (subject == OURS).then_some(Event::Touched(family, u16::from_be_bytes([high, low])))
}

fn subject(attributes: &[u8]) -> Option<&[u8]> {
    let mut rest = attributes;
    while let Ok(attribute) = NlaBuffer::new_checked(rest) {
        if attribute.kind() == SUBJECT {
            return rest.get(NLA_HEADER_SIZE..attribute.length() as usize);
        }
        rest = rest.get((attribute.length() as usize).next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    None
}

/// Keeps in `known` what the kernel reports of our tables, our own changes included.
pub async fn watch(known: watch::Sender<Known>, metrics: Metrics) -> anyhow::Result<()> {
    const CANT: &str = "can't hear the kernel's nftables events";
    let mut events = Events::open().context(CANT)?;
    let note = move |heard: Heard| {
        metrics.heard(Watch::Tables);
        Known::change(&known, |known| known.heard = Some(heard));
    };
    note(events.heard());
    let (ended, end) = oneshot::channel();
    // A thread of its own, as for the kernel's other events.
    thread::Builder::new().name("nftables-events".to_owned()).spawn(move || {
        let error = loop {
            match events.read() {
                Ok(heard) => note(heard),
                Err(error) => break error,
            }
        };
        // The receiver is dropped only when the agent ends.
        let _ = ended.send(error);
    })?;
    Err(end.await?).context(CANT)
}
