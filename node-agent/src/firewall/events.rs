//! Changes in the tables `vnetpool`, by any program: one multicast socket.
//!
//! Every change of every table is announced there, thousands at once when kube-proxy writes its own. Only the
//! name of the table is read of them, before anything else is done.

use std::{io, thread};

use anyhow::Context;
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
    netlink::{Asking, DATAGRAM, HEADER, NEW_GENERATION, OURS, is, messages, number, subject},
};
use crate::metrics::{Metrics, Watch};

/// NFNLGRP_NFTABLES of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// Room for all that kube-proxy writes at once.
const BACKLOG: usize = 4 * 1024 * 1024;

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

/// The messages of a datagram that matter.
fn events(datagram: &[u8]) -> impl Iterator<Item = Event> {
    messages(datagram).filter_map(|message| meaning(message.message_type(), message.payload()))
}

/// The meaning of a message; None if it is about another program's table.
fn meaning(kind: u16, payload: &[u8]) -> Option<Event> {
    let (&[family, _, high, low], attributes) = payload.split_first_chunk::<HEADER>()?;
    let subject = subject(attributes)?;
    if kind == NEW_GENERATION {
        return number(subject).map(|number| Event::End(Generation(number)));
    }
    let family = Family::ALL.into_iter().find(|one| one.number() == family)?;
    (subject == OURS).then_some(Event::Touched(family, u16::from_be_bytes([high, low])))
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
