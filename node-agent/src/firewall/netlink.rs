//! Questions that the kernel's nftables answers by netlink: its generation, whether a table is there, and
//! which chains there are. For the last two nft would first read what all programs have there, and that grows
//! with the cluster's Services.

use std::{io, iter, str};

use netlink_packet_core::{
    Emitable, NLA_HEADER_SIZE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NlaBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{errno::Errno, libc::MSG_DONTWAIT};
use vnetpool_plugin::wiring::socket::KernelSocket;

use super::{Family, known::Generation};

/// `struct nfgenmsg`, before the attributes: a family, a version, and the generation's last bits.
pub(super) const HEADER: usize = 4;
/// NFT_MSG_* of `linux/netfilter/nf_tables.h`, of the subsystem NFNL_SUBSYS_NFTABLES.
const GET_TABLE: u16 = 0x0a01;
const GET_CHAIN: u16 = 0x0a04;
pub(super) const NEW_GENERATION: u16 = 0x0a0f;
const GET_GENERATION: u16 = 0x0a10;
/// The attribute with the generation (`NFTA_GEN_ID`), or with the table's name, which has the same number in
/// messages of tables, chains, rules, sets, their elements and objects (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`
/// and so on).
const SUBJECT: u16 = 1;
/// NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK with NFTA_HOOK_HOOKNUM in it, and NFTA_CHAIN_POLICY.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const CHAIN_POLICY: u16 = 5;
/// NF_INET_FORWARD and NF_DROP of `linux/netfilter.h`.
const FORWARD: u32 = 2;
const DROP: u32 = 0;
/// The families whose chains meet IPv4 packets: NFPROTO_INET and NFPROTO_IPV4.
const OF_IPV4: [(u8, &str); 2] = [(1, "inet"), (2, "ip")];
/// NFPROTO_UNSPEC.
const NO_FAMILY: u8 = 0;

pub(super) const OURS: &[u8] = b"vnetpool\0";
/// Messages and attributes are aligned to four bytes.
const ALIGN: usize = 4;
/// The kernel sends no larger datagrams.
pub(super) const DATAGRAM: usize = 64 * 1024;
/// How often a dump is repeated at most because of a change during it.
const DUMPS: usize = 20;

/// The kernel's present generation in this network namespace.
pub fn generation() -> io::Result<Generation> {
    Asking::open()?.generation()
}

/// Whether there is a table `vnetpool` of this family, whatever is in it.
pub fn has_table(family: Family) -> io::Result<bool> {
    match Asking::open()?.get(GET_TABLE, family.number(), &our_name(), |_, _| Some(())) {
        Err(error) if is(&error, Errno::ENOENT) => Ok(false),
        answer => answer.map(|()| true),
    }
}

/// A chain of a table for IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// The table's family: `ip` or `inet`.
    pub family: &'static str,
    pub table: &'a str,
    pub name: &'a str,
    /// Of a chain at the forward hook: whether its policy is to drop.
    pub forward: Option<bool>,
}

/// What `keep` takes of the chains of all programs. There is never more than a datagram of the others.
pub fn chains<T>(keep: impl Fn(Chain<'_>) -> Option<T>) -> io::Result<Vec<T>> {
    let asking = Asking::open()?;
    for _ in 0..DUMPS {
        let (mut kept, mut is_whole) = (Vec::new(), true);
        for (number, family) in OF_IPV4 {
            let mut take = |body: &[u8]| kept.extend(chain(family, body).and_then(&keep));
            is_whole &= asking.dump(GET_CHAIN, number, &mut take)?;
        }
        if is_whole {
            return Ok(kept);
        }
    }
    Err(Errno::EINTR.into())
}

/// None for a chain whose name no command could have.
fn chain<'a>(family: &'static str, body: &'a [u8]) -> Option<Chain<'a>> {
    let (_, rest) = body.split_first_chunk::<HEADER>()?;
    let [table, name] = [SUBJECT, CHAIN_NAME].map(|kind| value(rest, kind).and_then(text));
    let hook = value(rest, CHAIN_HOOK).and_then(|hook| value(hook, HOOK_NUMBER)).and_then(number);
    let drops = value(rest, CHAIN_POLICY).and_then(number) == Some(DROP);
    Some(Chain { family, table: table?, name: name?, forward: (hook == Some(FORWARD)).then_some(drops) })
}

/// A socket that asks about the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Asking(KernelSocket);

impl Asking {
    pub(super) fn open() -> io::Result<Asking> {
        Ok(Asking(KernelSocket::open(NETLINK_NETFILTER)?))
    }

    pub(super) fn generation(&self) -> io::Result<Generation> {
        self.get(GET_GENERATION, NO_FAMILY, &[], |kind, body| {
            let (_, attributes) = body.split_first_chunk::<HEADER>()?;
            subject(attributes).filter(|_| kind == NEW_GENERATION).and_then(number).map(Generation)
        })
    }

    /// The kernel takes no lock for one object, and has answered when the request is sent: this never waits.
    /// `read` gets the type of the answer and its body.
    fn get<T>(
        &self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        read: impl FnOnce(u16, &[u8]) -> Option<T>,
    ) -> io::Result<T> {
        self.ask(kind, 0, family, attributes)?;
        let datagram = self.0.receive(DATAGRAM, MSG_DONTWAIT)?;
        let message = messages(&datagram).next().ok_or_else(unreadable)?;
        if message.message_type() == NLMSG_ERROR {
            outcome(message.payload())?;
        }
        read(message.message_type(), message.payload()).ok_or_else(unreadable)
    }

    /// Hands the body of each object to `take`. Returns whether there was no change meanwhile: otherwise some
    /// may be missing.
    fn dump(&self, kind: u16, family: u8, take: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        self.ask(kind, NLM_F_DUMP, family, &[])?;
        let mut is_whole = true;
        loop {
            let datagram = self.0.receive(DATAGRAM, 0)?;
            for message in messages(&datagram) {
                is_whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => return outcome(message.payload()).map(|()| is_whole),
                    _ => take(message.payload()),
                }
            }
        }
    }

    fn ask(&self, kind: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        (header.message_type, header.flags) = (kind, NLM_F_REQUEST | flags);
        let mut request = vec![0; header.buffer_len()];
        request.extend([family, 0, 0, 0]);
        request.extend(attributes);
        header.length = u32::try_from(request.len()).map_err(io::Error::other)?;
        header.emit(&mut request);
        self.0.send(&request)
    }
}

/// The messages of a datagram.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        rest = rest.get((message.length() as usize).next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    })
}

/// The value of the attribute that is the first: a generation, or the name of a table.
pub(super) fn subject(attributes: &[u8]) -> Option<&[u8]> {
    value(attributes, SUBJECT)
}

/// The value of the first attribute of this kind.
fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    while let Ok(attribute) = NlaBuffer::new_checked(rest) {
        let length = attribute.length() as usize;
        if attribute.kind() == kind {
            return rest.get(NLA_HEADER_SIZE..length);
        }
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    None
}

/// A number as nftables has all of them.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn text(value: &[u8]) -> Option<&str> {
    str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

/// The attribute that names our table.
fn our_name() -> Vec<u8> {
    let length = NLA_HEADER_SIZE + OURS.len();
    let mut bytes = [(length as u16).to_ne_bytes(), SUBJECT.to_ne_bytes()].concat();
    bytes.extend(OURS);
    bytes.resize(length.next_multiple_of(ALIGN), 0);
    bytes
}

/// The failure that a message at an end begins with, if it was one.
fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(0..) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(unreadable()),
    }
}

fn unreadable() -> io::Error {
    io::Error::other("the kernel's answer about nftables can't be read")
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
