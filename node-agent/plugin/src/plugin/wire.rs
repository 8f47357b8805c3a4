//! Wiring, under the name `vnetpool`: the sandbox gets an address and a veth pair.

use std::{net::Ipv4Addr, path::Path};

use super::{Add, Answer, Duty, Error, Line, Undone, free_in_ledger};
use crate::{
    cni::{Wire, Wired},
    ledger::{Assignment, Claim, Proof, file::Store},
    sandbox::{POD_IFNAME, Pod, Sandbox},
    wiring::{self, Identity, Netns, bridge},
};

impl Duty for Wire {
    fn proof(&self, sandbox: &Sandbox, pod: &Pod, _netns: &Path) -> Proof {
        Claim::wired(sandbox, pod, "").proof
    }

    /// A container has one interface of ours. Before its first there is nothing to check.
    fn admit(&self, store: &Store, sandbox: &Sandbox) -> Result<(), Error> {
        if sandbox.ifname == POD_IFNAME {
            return Ok(());
        }
        let Ok(ledger) = store.peek() else { return Ok(()) };
        let is_wired = |assignment: &Assignment| matches!(assignment.proof, Proof::Link(_));
        let is_other =
            |other: &Sandbox| other.container_id == sandbox.container_id && other.ifname != sandbox.ifname;
        match ledger.assignments().any(|(_, found)| is_wired(found) && is_other(&found.sandbox)) {
            true => Err(wiring::Error::NotTheFirst(sandbox.ifname.clone()).into()),
            false => Ok(()),
        }
    }

    fn has_served(&self, proof: &Proof) -> bool {
        matches!(proof, Proof::Link(_))
    }

    fn connect(&self, add: Add<'_>, line: &mut Line) -> Result<Answer, Error> {
        let Add { version, before, identity, path, netns, lock, store } = add;
        let connect = || wiring::connect(netns, identity, self.sizes, self.wiring);
        let wired = match connect() {
            Err(wiring::Error::NameInUse { link, older }) => match store.try_lock_sandbox(&older)? {
                Some(_lock) => wiring::move_aside(&older, &identity.pod).and_then(|()| connect()),
                None => Err(wiring::Error::NameInUse { link, older }),
            },
            wired => wired,
        };
        line.phase("wiring");
        let host_link = wired?;
        // The agent builds a ledger from the wired sandboxes once no verb runs, but it can't see this verb if
        // the lock has gone.
        if !lock.is_current() {
            return Err(Error::LockLost);
        }
        let Identity { address, sandbox, .. } = identity;
        let host = (host_link.as_str(), wiring::HOST_MAC);
        let ends = [host, (sandbox.ifname.as_str(), wiring::pod_mac(*address))];
        Ok(Answer::success(&Wired::new(version, before, ends, *address, wiring::GATEWAY, path)))
    }

    fn faults(&self, identity: &Identity, netns: &Path) -> Result<Vec<String>, Error> {
        Ok(wiring::faults(&Netns::open(netns)?, identity)?)
    }

    fn free(&self, store: &Store, sandbox: &Sandbox, pod: &Pod) -> Result<Undone, Error> {
        let link = wiring::disconnect(sandbox, pod)?;
        // A port's route leads to the bridge, so it goes neither with the port nor without help. Most nodes
        // have no bridge.
        if bridge::is_there()
            && let Some(address) = store.peek().ok().and_then(|ledger| ledger.address_of(sandbox))
        {
            bridge::disconnect(address, link)?;
        }
        Ok(Undone { address: free_in_ledger(store, sandbox)?, is_found: link.is_some() })
    }

    fn tidy(&self, sandbox: &Sandbox, netns: Option<&Path>, _had: &[Ipv4Addr]) -> Result<(), Error> {
        Ok(netns.map_or(Ok(()), |netns| wiring::delete_unfinished(netns, sandbox))?)
    }
}
