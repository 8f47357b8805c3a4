//! How an ADD gets its address: at once if there is one. Otherwise it waits in line and is woken when its
//! turn has come.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{ADDRESS_WAIT, Error, Line};
use crate::ledger::{
    Assign, Claim,
    file::{LOCK_WAIT, SandboxLock, Store, WakeUp, now},
};

/// How often a waiting ADD checks whether the ledger has changed or an address has cooled: the process that
/// would have woken it may have died in between, or may not reach it.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How often an ADD checks whether there is a ledger, as long as there is none.
const LEDGER_EVERY: Duration = Duration::from_millis(100);

/// The sandbox's address, for which it waits until `deadline` at most, and the sandbox's lock.
///
/// After a boot the runtime sends pods before the agent has made a ledger, and a ledger may be lost. An ADD
/// that waits for a ledger holds no lock, since the agent needs all of them to make one. Its socket shows
/// that it waits: a DEL removes it, and so ends the wait.
pub(super) fn address(
    store: &Store,
    claim: &Claim<'_>,
    deadline: Instant,
    line: &mut Line,
) -> Result<(SandboxLock, Ipv4Addr), Error> {
    let mut waited: Option<WakeUp> = None;
    loop {
        let lock = store.lock_sandbox(claim.sandbox, LOCK_WAIT)?;
        line.phase("lock");
        if waited.take().is_some_and(|wake_up| !wake_up.is_there()) {
            return Err(Error::Cancelled);
        }
        let wake_up = match in_line(store, claim, deadline) {
            Err(Error::Ledger(error)) if error.needs_rebuild() && Instant::now() < deadline => {
                WakeUp::of(store, claim.sandbox)?
            }
            address => return Ok((lock, address?)),
        };
        drop(lock);
        let is_missing = || store.peek().is_err_and(|error| error.needs_rebuild());
        while is_missing() && wake_up.is_there() && Instant::now() < deadline {
            wake_up.wait(LEDGER_EVERY)?;
        }
        line.phase("no-ledger");
        waited = Some(wake_up);
    }
}

/// The sandbox's address by a ledger that is there. The caller holds the sandbox's lock, which shows others
/// that this place in line isn't that of a dead process.
fn in_line(store: &Store, claim: &Claim<'_>, deadline: Instant) -> Result<Ipv4Addr, Error> {
    let sandbox = claim.sandbox;
    let assigned = store.with(|ledger, now| ledger.assign(claim, now))?;
    if let Assign::Assigned(address) = assigned {
        return Ok(address);
    }
    // Before the first check, so that nothing is missed in between.
    let wake_up = WakeUp::of(store, sandbox)?;
    loop {
        let stamp = store.stamp();
        let ledger = store.peek()?;
        if let Some(address) = ledger.granted_to(sandbox) {
            return Ok(address); // the agent, or another verb, has served us
        }
        let place = ledger.waiting().iter().position(|waiter| waiter.sandbox == *sandbox);
        let place = place.ok_or(Error::Cancelled)?;
        let (read_at, left) = (now(), deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() || ledger.is_due(read_at) {
            let served = store.with(|ledger, now| match ledger.granted_to(sandbox) {
                None if !ledger.is_waiting(sandbox) => Err(Error::Cancelled),
                None if left.is_zero() => {
                    ledger.cancel(sandbox);
                    Err(Error::NoAddress(ADDRESS_WAIT))
                }
                address => Ok(address.or_else(|| match ledger.assign(claim, now) {
                    Assign::Assigned(address) => Some(address),
                    Assign::Waiting => None,
                })),
            })??;
            if let Some(address) = served {
                return Ok(address);
            }
            continue; // its place may be another now
        }
        // Time alone wakes only the first in line, which then serves the others, too. If it has died, the
        // others notice at their next check.
        let ready = ledger.next_ready(read_at);
        let at_once = ready.filter(|_| place == 0);
        let wait = at_once.map_or(left, |ready| left.min(Duration::from_millis(ready - read_at)));
        let end = Instant::now() + wait;
        let until_end = || end.saturating_duration_since(Instant::now());
        let is_ready = || ready.is_some_and(|ready| ready <= now());
        // The time to read the ledger grows with the number of waiters, so none reads it twice.
        while !wake_up.wait(until_end().min(CHECK_EVERY))?
            && store.stamp() == stamp
            && !until_end().is_zero()
            && !is_ready()
        {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, Pod, Sandbox, Supply, file::boot_id};

    #[test]
    fn an_add_gives_up_its_place_in_line_or_its_wait_for_a_ledger_when_its_time_is_over() {
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
        let ledger = Ledger::rebuild(boot_id().unwrap(), &[], &[], &nothing, None, now(), true);
        store.quiesce().unwrap().create(&ledger).unwrap();

        let sandbox = Sandbox { container_id: "a".to_owned(), ifname: "eth0".to_owned() };
        let pod = Pod::default();
        let claim = Claim::wired(&sandbox, &pod, "vnetpool");
        let soon = || Instant::now() + Duration::from_millis(50);
        let refused = address(&store, &claim, soon(), &mut Line::new("ADD"));
        assert!(matches!(refused, Err(Error::NoAddress(_))), "{refused:?}");
        assert!(!store.read().unwrap().is_waiting(&sandbox));

        std::fs::remove_file(dir.path().join("ledger")).unwrap();
        let refused = address(&store, &claim, soon(), &mut Line::new("ADD"));
        assert!(matches!(&refused, Err(Error::Ledger(error)) if error.needs_rebuild()), "{refused:?}");
    }
}
