//! Wiring, under the name `vnetpool`: the sandbox gets an address and a veth pair.

use std::{net::Ipv4Addr, path::Path};

use super::{Add, Answer, Duty, Error, Line, free_in_ledger};
use crate::{
    cni::{Wire, Wired},
    ledger::{Claim, Proof, file::Store},
    sandbox::{Pod, Sandbox},
    wiring::{self, Identity, Netns, bridge},
};

impl Duty for Wire {
    fn proof(&self, sandbox: &Sandbox, pod: &Pod, _netns: &Path) -> Proof {
        Claim::wired(sandbox, pod, "").proof
    }

    fn has_served(&self, proof: &Proof) -> bool {
        matches!(proof, Proof::Link(_))
    }

    fn connect(&self, add: Add<'_>, line: &mut Line) -> Result<Answer, Error> {
        let Add { version, before, identity, path, netns, lock } = add;
        let wired = wiring::connect(netns, identity, self.mtu, self.wiring);
        line.phase("wiring");
        let host_link = wired?;
        // The agent builds a ledger from what is wired once no verb runs, but it can't see this verb if the
        // lock has gone.
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

    fn free(&self, store: &Store, sandbox: &Sandbox, pod: &Pod) -> Result<Option<Ipv4Addr>, Error> {
        let link = wiring::disconnect(sandbox, pod)?;
        // A port's route leads to the bridge, so it goes neither with the port nor by itself. Most nodes have
        // no bridge.
        if bridge::is_there()
            && let Some(address) = store.read().ok().and_then(|ledger| ledger.address_of(sandbox))
        {
            bridge::disconnect(address, link)?;
        }
        free_in_ledger(store, sandbox)
    }
}
