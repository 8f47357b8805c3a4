//! A network that leads nowhere. It is for tests of programs that would, on a fault, reach this machine's
//! metadata service.

use nix::sched::{CloneFlags, unshare};
use std::io;
use std::process::Command;

/// Moves the current thread into a network namespace of its own, which has only a loopback link. Everything
/// that the thread starts from then on is in there, too: sockets, threads, programs.
///
/// # Errors
/// The kernel's error without root, or an error if `ip` can't set the link up.
pub fn seclude() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let set = Command::new("ip").args(["link", "set", "lo", "up"]).output()?;
    if set.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&set.stderr))) }
}
