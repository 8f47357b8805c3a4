//! Netlink sockets that believe nobody but the kernel.
//!
//! A process with CAP_NET_ADMIN in a network namespace may send to every netlink socket there, and reads
//! their numbers in `/proc/net/netlink`. So a pod with that capability could answer in the kernel's place
//! while the plugin inspects the pod's end of its link.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_sys::{Socket, SocketAddr};
use nix::libc::c_int;

/// The number under which the kernel has its sockets. No other process can have it.
const KERNEL: u32 = 0;

/// A socket of the network namespace in which it was opened, which takes messages from the kernel alone.
#[derive(Debug)]
pub struct KernelSocket(Socket);

impl KernelSocket {
    /// `protocol` is one of `netlink_sys::protocols`.
    pub fn open(protocol: isize) -> io::Result<KernelSocket> {
        let socket = Socket::new(protocol)?;
        // From here on the kernel refuses what others send to this socket, so that they can't fill it either.
        socket.connect(&SocketAddr::new(KERNEL, 0))?;
        Ok(KernelSocket(socket))
    }

    /// Receives what is sent to this group from here on.
    pub fn join(&self, group: u32) -> io::Result<()> {
        self.0.add_membership(group)
    }

    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        self.0.send(message, 0).map(drop)
    }

    /// The kernel's next datagram, as far as it takes no more than this room. What others have sent to a
    /// group, or before the socket was connected, is dropped. `flags` are those of recv(2).
    pub fn receive(&self, room: usize, flags: c_int) -> io::Result<Vec<u8>> {
        let mut datagram = Vec::with_capacity(room);
        loop {
            let (_, sender) = self.0.recv_from(&mut datagram, flags)?;
            if sender.port_number() == KERNEL {
                return Ok(datagram);
            }
            datagram.clear();
        }
    }
}

impl AsFd for KernelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
