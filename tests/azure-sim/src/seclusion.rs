//! A network that leads nowhere: for tests of programs that, should they go wrong, would ask this machine's metadata service.

use nix::sched::{CloneFlags, unshare};
use std::io;
use std::process::Command;

/// Moves the calling thread into a network namespace of its own, which has a loopback link and no other. What the thread starts
/// from then on is in there, too: sockets, threads, programs.
///
/// # Errors
/// The kernel's, for whoever isn't root; and when `ip` can't set the link up.
pub fn seclude() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let set = Command::new("ip").args(["link", "set", "lo", "up"]).output()?;
    if set.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&set.stderr))) }
}
