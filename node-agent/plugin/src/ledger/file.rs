//! The ledger on disk: locks, reading, atomic replacement. Only [`Store::with`] and [`Store::note`] change
//! it.
//!
//! The folder holds `ledger`, which is replaced atomically, and `lock`, which is never replaced or removed.
//! The locks are OFD byte-range locks on `lock`, so they end with their holder however it ends. Byte 0 is the
//! ledger's lock: it is held for microseconds and never across netlink, network or exec. Each sandbox has a
//! byte of its own behind it, which is held for a whole verb. Every wait for a lock is bounded.

use std::{
    fs,
    io::{self, IoSlice, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
    time::{ClockId, clock_gettime},
};

use super::{Ledger, Malformed, Millis, Sandbox, VERSIONS, format};

#[cfg(test)]
mod tests;
mod wake;

pub use wake::WakeUp;

/// How long to wait for a lock at most.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Name of the ledger's file in its folder; each change renames a new one to it.
pub const LEDGER: &str = "ledger";
const LOCK: &str = "lock";
/// The mode of every file in the folder: they name pods, and decide which pod has which address.
pub const PRIVATE: u32 = 0o600;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only the agent creates a ledger, and it hasn't yet.
    #[error("{0} doesn't exist: the Vnetpool agent of this node has not created it yet")]
    Missing(PathBuf),
    #[error("{0} can't be read as a ledger: {1}; the agent replaces it")]
    Unreadable(PathBuf, Malformed),
    /// Nothing replaces such a ledger: a new one would lack its waiters and the holders of its addresses.
    #[error(
        "{0} is of format version {1}, and this release reads {VERSIONS:?}: a newer release of Vnetpool has \
         written it"
    )]
    OtherVersion(PathBuf, u32),
    #[error("the ledger is of boot {0}, not of this one; the agent replaces it")]
    OtherBoot(String),
    #[error("no lock on {0} within {1:?}")]
    Busy(PathBuf, Duration),
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

impl Error {
    /// Whether there is no ledger, so that the agent has to build one.
    pub fn needs_rebuild(&self) -> bool {
        match self {
            Error::Missing(_) | Error::Unreadable(..) | Error::OtherBoot(_) => true,
            Error::OtherVersion(..) | Error::Busy(..) | Error::Io(..) => false,
        }
    }

    /// Whether there is no ledger that this release could use. All other errors may pass.
    pub fn is_lasting(&self) -> bool {
        self.needs_rebuild() || matches!(self, Error::OtherVersion(..))
    }
}

/// CLOCK_BOOTTIME, the time of everything in the ledger.
pub fn now() -> Millis {
    // The clock exists since Linux 2.6.39. Without it everything would seem to have been freed just now.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| Duration::from(time).as_millis() as Millis)
}

/// The kernel's id of this boot.
pub fn boot_id() -> Result<&'static str, Error> {
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let read = || -> io::Result<String> {
        let mut buffer = [0; 64];
        let length = fs::File::open(BOOT_ID)?.read(&mut buffer)?; // all at once, since every pod waits for it
        Ok(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned())
    };
    let id = read().map_err(|error| Error::Io(BOOT_ID.into(), error))?;
    Ok(ID.get_or_init(|| id))
}

/// The folder with a node's ledger and its locks. Every operation opens the files it needs, since locks
/// belong to the open file. So one Store can serve many threads.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    /// None: the boot that the kernel names in this process.
    boot_id: Option<String>,
}

/// One state of a file that is replaced: its inode, and when that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64, i64, i64);

/// Held for a whole verb on one sandbox; released when dropped.
#[derive(Debug)]
pub struct SandboxLock(Lock);

/// While this is held no verb runs on this node.
#[derive(Debug)]
pub struct Quiet {
    store: Store,
    _lock: Lock,
}

/// An open lock file, with the range locked through it.
#[derive(Debug)]
struct Lock {
    file: fs::File,
    path: PathBuf,
}

impl Store {
    /// The ledger in this folder. Creates nothing: folder and lock file are made when they are first needed.
    pub fn at(dir: impl Into<PathBuf>) -> Store {
        Store { dir: dir.into(), boot_id: None }
    }

    /// The same folder, with the node's boot id given. It is for the agent, whose container may show another
    /// boot id than the node's plugins see.
    pub fn of_boot(self, boot_id: impl Into<String>) -> Store {
        Store { boot_id: Some(boot_id.into()), ..self }
    }

    /// Closes the folder to all but root, and makes it if need be.
    pub fn make_private(&self) -> io::Result<()> {
        make_private(&self.dir)?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One transaction: takes the ledger's lock, reads, runs `f(ledger, now)`, serves the waiting ADDs in the
    /// order in which they came, writes if anything changed, and wakes the ADDs whose wait is over. `f` must
    /// not do I/O: all verbs on the node wait for it.
    ///
    /// They are served before `f`, too, which decides over what they leave: who gets an address, or whether
    /// it is given up.
    pub fn with<T>(&self, f: impl FnOnce(&mut Ledger, Millis) -> T) -> Result<T, Error> {
        self.transact(true, f)
    }

    /// A transaction that records facts: the node lacks its rules, the spec has lost an address, one is in
    /// use. No ADD is served by the ledger as it was before.
    pub fn note<T>(&self, f: impl FnOnce(&mut Ledger, Millis) -> T) -> Result<T, Error> {
        self.transact(false, f)
    }

    fn transact<T>(&self, serves_first: bool, f: impl FnOnce(&mut Ledger, Millis) -> T) -> Result<T, Error> {
        let lock = self.lock(Bytes::LEDGER, LOCK_WAIT)?;
        let before = self.load()?;
        let mut ledger = self.parse(&before)?;
        let line: Vec<Sandbox> = ledger.waiting.iter().map(|waiter| waiter.sandbox.clone()).collect();
        let now = now();
        let is_alive = |sandbox: &Sandbox| is_held(&lock.file, sandbox);
        if serves_first {
            ledger.serve(now, is_alive);
        }
        let value = f(&mut ledger, now);
        ledger.serve(now, is_alive);
        self.replace(&ledger, &before)?;
        drop(lock);
        wake::wake(&self.dir, &wake::to_wake(&line, &ledger.waiting));
        Ok(value)
    }

    /// The ledger as it stands. There may be waiters in it whose ADD has ended. Takes no lock: the file is
    /// replaced atomically.
    pub fn peek(&self) -> Result<Ledger, Error> {
        self.parse(&self.load()?)
    }

    /// Distinguishes one state of the ledger from another: each change is a new file. `None` if there is no
    /// ledger.
    pub fn stamp(&self) -> Option<Stamp> {
        stamp(&self.dir.join(LEDGER))
    }

    /// The ledger as it stands, without the waiters whose ADD has ended.
    pub fn read(&self) -> Result<Ledger, Error> {
        Ok(self.living(self.peek()?))
    }

    /// Without the waiters whose ADD has ended. Each check for that costs a system call.
    pub fn living(&self, mut ledger: Ledger) -> Ledger {
        if !ledger.waiting.is_empty() {
            let lock = fs::File::open(self.dir.join(LOCK));
            let is_alive = |sandbox: &Sandbox| lock.as_ref().map_or(true, |lock| is_held(lock, sandbox));
            ledger.waiting.retain(|waiter| is_alive(&waiter.sandbox));
        }
        ledger
    }

    /// Waits until no verb runs on this node, and keeps verbs from starting. The agent needs this to build a
    /// ledger from the wired sandboxes: of a verb that is halfway it would miss an address that is being put
    /// into use. An ADD that waits for an address is a verb that runs: all of them are woken, so that they
    /// see if there is no ledger to wait for any more.
    pub fn quiesce(&self) -> Result<Quiet, Error> {
        wake::wake_all(&self.dir);
        Ok(Quiet { store: self.clone(), _lock: self.lock(Bytes::ALL_SANDBOXES, LOCK_WAIT)? })
    }

    /// The sandbox's lock, for which it waits for at most `wait`. With zero it only tries.
    pub fn lock_sandbox(&self, sandbox: &Sandbox, wait: Duration) -> Result<SandboxLock, Error> {
        self.lock(Bytes::of(sandbox), wait).map(SandboxLock)
    }

    /// The sandbox's lock; None while a verb runs on the sandbox.
    pub fn try_lock_sandbox(&self, sandbox: &Sandbox) -> Result<Option<SandboxLock>, Error> {
        match self.lock_sandbox(sandbox, Duration::ZERO) {
            Err(Error::Busy(..)) => Ok(None),
            lock => lock.map(Some),
        }
    }

    /// Takes a lock by trying repeatedly: F_OFD_SETLKW can't be bounded without signals, which a library must
    /// leave alone. The interval doesn't grow, so that a process that has waited long has the same chance as
    /// one that has just come.
    fn lock(&self, range: Bytes, wait: Duration) -> Result<Lock, Error> {
        let path = self.dir.join(LOCK);
        let file = self.open_lock_file(&path).map_err(|error| Error::Io(path.clone(), error))?;
        let mut deadline = None;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&range.request())) {
                Ok(_) => return Ok(Lock { file, path }),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => {}
                Err(errno) => return Err(Error::Io(path, errno.into())),
            }
            if Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + wait) {
                return Err(Error::Busy(path, wait));
            }
            thread::sleep(range.nap());
        }
    }

    fn open_lock_file(&self, path: &Path) -> io::Result<fs::File> {
        let open = || {
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(PRIVATE)
                .open(path)
        };
        open().or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => make_private(&self.dir).and_then(|()| open()),
            _ => Err(error),
        })
    }

    fn load(&self) -> Result<Arc<Vec<u8>>, Error> {
        let path = self.dir.join(LEDGER);
        let read = || -> io::Result<Vec<u8>> {
            let file = fs::File::open(&path)?;
            // No process writes to a file that has this name, so it doesn't grow.
            let length = file.metadata()?.len();
            let mut bytes = Vec::with_capacity(length as usize);
            file.take(length).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(text) => Ok(Arc::new(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Missing(path)),
            Err(error) => Err(Error::Io(path, error)),
        }
    }

    fn parse(&self, text: &Arc<Vec<u8>>) -> Result<Ledger, Error> {
        let ledger = format::read(text).map_err(|malformed| match malformed {
            Malformed::Version(version) => Error::OtherVersion(self.dir.join(LEDGER), version),
            malformed => Error::Unreadable(self.dir.join(LEDGER), malformed),
        })?;
        let this_boot = match &self.boot_id {
            Some(id) => id,
            None => boot_id()?,
        };
        if ledger.boot_id != this_boot {
            return Err(Error::OtherBoot(ledger.boot_id));
        }
        Ok(ledger)
    }

    /// Replaces the ledger that reads `before`. Called under its lock.
    fn replace(&self, ledger: &Ledger, before: &[u8]) -> Result<(), Error> {
        let text = format::write(ledger);
        if text.is(before) {
            return Ok(());
        }
        let path = self.dir.join(LEDGER);
        replace(&path, text.pieces()).map_err(|error| Error::Io(path, error))
    }
}

/// Replaces a file of the folder, or makes it, for root's eyes only. A process that dies in here leaves the
/// old file or the new one. There is no fsync, because the folder is a tmpfs and nothing in it outlives the
/// boot.
pub fn replace<'a>(path: &Path, pieces: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
    let new = path.with_extension("new");
    let made = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(&new)?;
    write_all(&made, pieces.into_iter())?;
    fs::rename(&new, path)
}

/// Distinguishes the file of this name from all that had the name before; `None` if there is none.
fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some(Stamp(file.ino(), file.ctime(), file.ctime_nsec()))
}

/// Whether a verb runs on this sandbox. If that can't be determined, the answer is yes.
fn is_held(lock_file: &fs::File, sandbox: &Sandbox) -> bool {
    let mut request = Bytes::of(sandbox).request();
    let tested = fcntl(lock_file, FcntlArg::F_OFD_GETLK(&mut request));
    tested.is_err() || i32::from(request.l_type) != libc::F_UNLCK
}

/// Writes these pieces one behind the other, all at once if the kernel takes them so.
fn write_all<'a>(mut file: &fs::File, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0); // over empty ones
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes the folder and those above it. Only root may read its files, and see which there are.
fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

impl Drop for Lock {
    /// Not left to the file's end: a child that is being started has the file, too, until it runs its
    /// program.
    fn drop(&mut self) {
        let all = Bytes { start: 0, len: 0 };
        let unlock = libc::flock { l_type: libc::F_UNLCK as i16, ..all.request() };
        // Unlocking a lock that is held doesn't fail. If it did, closing the file would release it.
        let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&unlock));
    }
}

impl SandboxLock {
    /// Whether others would still meet this lock. They don't once the lock file has been removed. Then the
    /// agent may have built a ledger without waiting for this verb.
    pub fn is_current(&self) -> bool {
        let Lock { file, path } = &self.0;
        match (file.metadata(), fs::metadata(path)) {
            (Ok(held), Ok(met)) => (held.dev(), held.ino()) == (met.dev(), met.ino()),
            _ => false,
        }
    }
}

impl Quiet {
    /// Puts a new ledger in place of any other, except for one that a newer release has written.
    pub fn create(self, ledger: &Ledger) -> Result<(), Error> {
        let _lock = self.store.lock(Bytes::LEDGER, LOCK_WAIT)?;
        if let Err(error @ Error::OtherVersion(..)) = self.store.peek() {
            return Err(error);
        }
        self.store.replace(ledger, &[])
    }
}

/// Bytes of the lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bytes {
    start: i64,
    /// As fcntl has it: 0 reaches to the end of all files.
    len: i64,
}

impl Bytes {
    const LEDGER: Bytes = Bytes { start: 0, len: 1 };
    const ALL_SANDBOXES: Bytes = Bytes { start: 1, len: 0 };

    fn of(sandbox: &Sandbox) -> Bytes {
        Bytes { start: 1 + (sandbox.digest() >> 2) as i64, len: 1 }
    }

    fn request(self) -> libc::flock {
        libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: self.start,
            l_len: self.len,
            l_pid: 0, // must be 0 for OFD locks
        }
    }

    /// About as long as a holder needs: for a transaction, or for the netlink calls of a verb.
    fn nap(self) -> Duration {
        Duration::from_micros(if self == Bytes::LEDGER { 200 } else { 1000 })
    }
}
