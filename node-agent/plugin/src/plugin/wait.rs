//! How an ADD gets its address: at once if there is one. Otherwise it waits in line and is woken when its
//! turn has come.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::Error;
use crate::ledger::{
    Assign, Claim,
    file::{Store, WakeUp, now},
};

/// How often who waits looks by itself: who would have woken it may have died in between, or may not reach
/// it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The sandbox's address, for which it waits for at most `wait`. The caller holds the sandbox's lock, by
/// which others see that this place in line isn't that of a process that died.
pub(super) fn address(store: &Store, claim: &Claim<'_>, wait: Duration) -> Result<Ipv4Addr, Error> {
    let sandbox = claim.sandbox;
    let assigned = store.with(|ledger, now| ledger.assign(claim, now))?;
    if let Assign::Assigned(address) = assigned {
        return Ok(address);
    }
    let deadline = Instant::now() + wait;
    // Before the first look, so that nothing is missed in between.
    let wake_up = WakeUp::of(store, sandbox)?;
    loop {
        let ledger = store.peek()?;
        if let Some(address) = ledger.address_of(sandbox) {
            return Ok(address); // the agent, or whoever came by, has served us
        }
        let place = ledger.waiting().iter().position(|waiter| waiter.sandbox == *sandbox);
        let place = place.ok_or(Error::Cancelled)?;
        let (now, left) = (now(), deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() || ledger.is_due(now) {
            let served = store.with(|ledger, now| match ledger.address_of(sandbox) {
                None if !ledger.is_waiting(sandbox) => Err(Error::Cancelled),
                None if left.is_zero() => {
                    ledger.cancel(sandbox);
                    Err(Error::NoAddress(wait))
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
        // Time alone wakes nobody but the first in line, who then serves the others, too.
        let ready = if place == 0 { ledger.next_ready(now) } else { None };
        let until_ready = ready.map_or(LOOK_EVERY, |ready| Duration::from_millis(ready - now));
        wake_up.wait(left.min(LOOK_EVERY).min(until_ready))?;
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
