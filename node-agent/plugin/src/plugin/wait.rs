//! How an ADD gets its address: at once if there is one. Otherwise it waits in line and is woken when the
//! ledger changes.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use super::Error;
use crate::ledger::{
    Assign, Claim,
    file::{Store, now},
};

/// The ledger is read at least this often, in case a change goes unseen (the folder may be removed and made
/// anew).
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The sandbox's address, for which it waits for at most `wait`. The caller holds the sandbox's lock, by
/// which others see that this place in line isn't that of a process that died.
pub(super) fn address(store: &Store, claim: &Claim<'_>, wait: Duration) -> Result<Ipv4Addr, Error> {
    let sandbox = claim.sandbox;
    let assigned = store.with(|ledger, now| ledger.assign(claim, now))?;
    if let Assign::Assigned(address) = assigned {
        return Ok(address);
    }
    let deadline = Instant::now() + wait;
    let changes = Changes::watch(store)?;
    loop {
        let ledger = store.read()?;
        if let Some(address) = ledger.address_of(sandbox) {
            return Ok(address); // the agent, or whoever came by, has served us
        }
        if !ledger.is_waiting(sandbox) {
            return Err(Error::Cancelled);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || ledger.counts(now()).free > 0 {
            let served = store.with(|ledger, now| match ledger.address_of(sandbox) {
                None if !ledger.is_waiting(sandbox) => Err(Error::Cancelled),
                None if left.is_zero() => {
                    ledger.cancel(sandbox);
                    Err(Error::NoAddress(wait))
                }
                address => Ok(address.or_else(|| match ledger.assign(claim, now) {
                    Assign::Assigned(address) => Some(address),
                    Assign::Waiting { .. } => None,
                })),
            })??;
            if let Some(address) = served {
                return Ok(address);
            }
        }
        let now = now();
        let until_ready = ledger.next_ready(now).map(|ready| Duration::from_millis(ready - now));
        changes.wait(left.min(LOOK_EVERY).min(until_ready.unwrap_or(LOOK_EVERY)))?;
    }
}

/// Changes in the ledger's folder.
struct Changes {
    inotify: Inotify,
    store: Store,
}

impl Changes {
    fn watch(store: &Store) -> Result<Changes, Error> {
        let failed = |errno: Errno| Error::Watch { path: store.dir().to_owned(), source: errno.into() };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        // A new ledger is moved in. IN_CLOSE_WRITE would report every lock that is taken and every line that
        // is logged.
        let events = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(store.dir(), events).map_err(failed)?;
        Ok(Changes { inotify, store: store.clone() })
    }

    /// Returns after a change since the last call, or after `timeout`.
    fn wait(&self, timeout: Duration) -> Result<(), Error> {
        let failed = |errno: Errno| Error::Watch { path: self.store.dir().to_owned(), source: errno.into() };
        // Rounded up, since an address that becomes ready in half a millisecond isn't ready now.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        loop {
            match self.inotify.read_events() {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, Pod, Sandbox, Supply, file::boot_id};

    #[test]
    fn an_add_gives_up_its_place_in_line_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        let nothing = Supply {
            object: "allocation".to_owned(),
            generation: 1,
            node_uid: "node".to_owned(),
            boot_id: boot_id().unwrap().to_owned(),
            cooldown: Duration::ZERO,
            entries: Vec::new(),
        };
        let ledger = Ledger::rebuild(boot_id().unwrap(), &[], &[], &nothing, None, now());
        store.quiesce().unwrap().create(&ledger).unwrap();

        let sandbox = Sandbox { container_id: "a".to_owned(), ifname: "eth0".to_owned() };
        let _lock = store.lock_sandbox(&sandbox, Duration::ZERO).unwrap();
        let pod = Pod::default();
        let claim = Claim::wired(&sandbox, &pod, "vnetpool");
        let refused = address(&store, &claim, Duration::from_millis(50));
        assert!(matches!(refused, Err(Error::NoAddress(_))), "{refused:?}");
        assert!(!store.read().unwrap().is_waiting(&sandbox));
    }
}
