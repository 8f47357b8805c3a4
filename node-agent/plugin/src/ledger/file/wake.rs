//! How an ADD that waits is woken: by a datagram to a socket of its own in the ledger's folder.
//!
//! A transaction wakes the ADDs whose wait it has ended, and the ADD that has become the first in line. A
//! watch of the folder would wake every ADD for each change, and each would read the whole ledger for
//! nothing. Such watches are scarce, too: the kernel gives all programs of root together 128.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{Error, PRIVATE, Stamp, Store, stamp};
use crate::ledger::{Sandbox, Waiter};

/// How the names of these sockets begin.
const PREFIX: &str = "wake-";

/// The socket of an ADD that waits; removed when dropped.
#[derive(Debug)]
pub struct WakeUp {
    socket: UnixDatagram,
    path: PathBuf,
    /// Distinguishes the socket's file from another's under this name.
    stamp: Option<Stamp>,
}

impl WakeUp {
    /// The caller holds the sandbox's lock. A file that is found under this name belongs to an ADD that was
    /// killed, or of one that waits for a ledger, under no lock: its wait ends with this.
    pub fn of(store: &Store, sandbox: &Sandbox) -> Result<WakeUp, Error> {
        let path = path(store.dir(), sandbox);
        let bind = || {
            let socket = UnixDatagram::bind(&path).or_else(|error| match error.kind() {
                io::ErrorKind::AddrInUse => fs::remove_file(&path).and_then(|()| UnixDatagram::bind(&path)),
                _ => Err(error),
            })?;
            socket.set_nonblocking(true)?;
            match fs::set_permissions(&path, fs::Permissions::from_mode(PRIVATE)) {
                // A DEL has ended the wait already.
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(socket),
            }
        };
        match bind() {
            Ok(socket) => Ok(WakeUp { stamp: stamp(&path), socket, path }),
            Err(error) => Err(Error::Io(path, error)),
        }
    }

    /// Ends the wait of a sandbox's ADD that waits under no lock. The caller holds the sandbox's lock, and
    /// needn't wake that ADD, which checks several times a second.
    pub fn end(store: &Store, sandbox: &Sandbox) -> Result<(), Error> {
        let path = path(store.dir(), sandbox);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Io(path, error)),
            _ => Ok(()),
        }
    }

    /// Whether the wait goes on: it wasn't ended, and no other was begun for this sandbox.
    pub fn is_there(&self) -> bool {
        self.stamp.is_some() && stamp(&self.path) == self.stamp
    }

    /// Returns after a wakeup, or after `timeout`; true means that a wakeup came.
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let failed = |error| Error::Io(self.path.clone(), error);
        // Rounded up, since an address that becomes ready in half a millisecond isn't ready now.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        let mut is_woken = false;
        loop {
            match self.socket.recv(&mut []) {
                Ok(_) => is_woken = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(is_woken),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Drop for WakeUp {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path); // a later finder removes it
        }
    }
}

fn path(dir: &Path, sandbox: &Sandbox) -> PathBuf {
    dir.join(format!("{PREFIX}{:016x}", sandbox.digest()))
}

/// The sandboxes that a transaction has to wake: those that were in line `before` and no longer are, and the
/// first in line now.
pub(super) fn to_wake<'a>(before: &'a [Sandbox], after: &'a [Waiter]) -> Vec<&'a Sandbox> {
    // A new waiter stands at the end, so the remaining ones of `before` are in its order.
    let mut left = after.iter().map(|waiter| &waiter.sandbox).peekable();
    let first = left.peek().copied();
    let mut woken: Vec<&Sandbox> = before.iter().filter(|one| left.next_if_eq(one).is_none()).collect();
    woken.extend(first.filter(|first| before.iter().skip(1).any(|one| one == *first)));
    woken
}

/// Wakes these. A failure is ignored: a waiting ADD also checks from time to time.
pub(super) fn wake(dir: &Path, sandboxes: &[&Sandbox]) {
    if !sandboxes.is_empty()
        && let Ok(socket) = waker()
    {
        sandboxes.iter().for_each(|sandbox| send(&socket, &path(dir, sandbox)));
    }
}

/// Wakes all that wait.
pub(super) fn wake_all(dir: &Path) {
    let (Ok(files), Ok(socket)) = (fs::read_dir(dir), waker()) else { return };
    let is_socket = |name: &OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    for file in files.flatten().filter(|file| is_socket(&file.file_name())) {
        send(&socket, &file.path());
    }
}

/// A socket to wake with. It doesn't block: a receiver whose queue is full has a wakeup already.
fn waker() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true).map(|()| socket)
}

/// Doesn't remove a socket without a listener, which an ADD that was killed has left: the sandbox's next ADD
/// may just be putting its own in that place. That ADD, or a DEL, removes it under the sandbox's lock.
fn send(socket: &UnixDatagram, path: &Path) {
    let _ = socket.send_to(&[], path);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::ledger::{Pod, Proof};

    fn sandbox(number: u8) -> Sandbox {
        Sandbox { container_id: format!("container{number}"), ifname: "eth0".to_owned() }
    }

    fn woken(before: &[u8], after: &[u8]) -> Vec<Sandbox> {
        let before: Vec<Sandbox> = before.iter().copied().map(sandbox).collect();
        let waiter = |number: &u8| Waiter {
            sandbox: sandbox(*number),
            pod: Pod::default(),
            network: String::new(),
            since: 0,
            proof: Proof::Link(String::new()),
        };
        let after: Vec<Waiter> = after.iter().map(waiter).collect();
        to_wake(&before, &after).into_iter().cloned().collect()
    }

    #[test]
    fn only_waiters_that_left_the_line_and_its_new_first_are_woken() {
        let all = |numbers: &[u8]| numbers.iter().copied().map(sandbox).collect::<Vec<_>>();
        assert_eq!(woken(&[1, 2, 3], &[1, 2, 3]), all(&[]));
        assert_eq!(woken(&[1, 2, 3], &[1, 2, 3, 4]), all(&[]), "who comes knows its place");
        assert_eq!(woken(&[1, 2, 3], &[2, 3]), all(&[1, 2]));
        assert_eq!(woken(&[1, 2, 3], &[1, 3]), all(&[2]));
        assert_eq!(woken(&[1, 2, 3], &[3, 4]), all(&[1, 2, 3]));
        assert_eq!(woken(&[1, 2], &[]), all(&[1, 2]));
        assert_eq!(woken(&[1, 2], &[3]), all(&[1, 2]));
        assert_eq!(woken(&[], &[1]), all(&[]));
    }

    #[test]
    fn the_socket_of_a_killed_add_hinders_no_later_add() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        let path = path(dir.path(), &sandbox(1));
        let is_killed = || drop(UnixDatagram::bind(&path).unwrap());
        is_killed();
        let waiting = WakeUp::of(&store, &sandbox(1)).unwrap();
        wake(dir.path(), &[&sandbox(1)]);
        let begun = Instant::now();
        assert!(waiting.wait(Duration::from_secs(60)).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(60));
        drop(waiting);
        assert!(!path.exists());
        is_killed();
        wake_all(dir.path());
        wake(dir.path(), &[&sandbox(1)]);
        assert!(path.exists(), "only who holds the sandbox's lock may take it away");
        WakeUp::end(&store, &sandbox(1)).unwrap();
        assert!(!path.exists());
    }
}
