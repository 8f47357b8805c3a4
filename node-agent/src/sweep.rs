//! Frees leaks on the node: records whose sandbox is gone, links that outlive their sandbox; and takes in
//! addresses that are in use without a record.
//!
//! Unknown means in use. A suspicion is acted on when it has held for [`GRACE`] over at least two
//! inspections, and then only if it still holds under the sandbox's lock, so never while a verb is at work on
//! it.

use std::{collections::HashMap, path::Path, time::Duration};

use vnetpool_plugin::{
    ledger::{Ledger, Millis, Occupant, Proof, Sandbox, Tenant, file::Store},
    wiring::{self, HostLink, bridge, netns},
};

use crate::error::Error;

/// How long a suspicion must hold before it is taken for a leak.
pub const GRACE: Duration = Duration::from_secs(60);

/// A suspected leak.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Suspect {
    /// A record whose proof of life is gone: its host link, or silenced; or its namespace.
    Record { sandbox: Sandbox, proof: Proof },
    /// A link that DEL has silenced and whose network namespace lives on.
    Link { name: String, index: u32 },
    /// A wired sandbox without a record: the ledger was lost while its ADD was running.
    Stranger(Sandbox),
}

/// The suspicions of earlier inspections and when they arose.
#[derive(Debug, Default)]
pub struct Sweep {
    since: HashMap<Suspect, Millis>,
}

impl Sweep {
    /// Compares ledger and links; returns the suspicions that have held for [`GRACE`].
    pub fn suspects(&mut self, ledger: &Ledger, links: &[HostLink], now: Millis) -> Vec<Suspect> {
        let known = std::mem::take(&mut self.since);
        self.since = suspects(ledger, links)
            .into_iter()
            .map(|suspect| {
                let since = known.get(&suspect).copied().unwrap_or(now);
                (suspect, since)
            })
            .collect();
        let grace = GRACE.as_millis() as Millis;
        let due = self.since.iter().filter(|&(_, &since)| now.saturating_sub(since) >= grace);
        due.map(|(suspect, _)| suspect.clone()).collect()
    }
}

impl Suspect {
    /// Every word of [`Suspect::kind`].
    pub const KINDS: [&str; 3] = ["record", "link", "stranger"];

    /// In a word, for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Suspect::Record { .. } => "record",
            Suspect::Link { .. } => "link",
            Suspect::Stranger(_) => "stranger",
        }
    }
}

fn suspects(ledger: &Ledger, links: &[HostLink]) -> Vec<Suspect> {
    let is_alive = |Tenant { sandbox, proof, .. }: &Tenant| match proof {
        Proof::Link(name) => links.iter().any(|link| is_of(link, sandbox, name)),
        Proof::Namespace { path, inode } => !netns::is_gone(Path::new(netns::DIR), path, *inode),
    };
    let dead = ledger.assignments().filter(|(_, assignment)| !is_alive(assignment));
    let records = dead.map(|(_, assignment)| Suspect::Record {
        sandbox: assignment.sandbox.clone(),
        proof: assignment.proof.clone(),
    });
    let silenced = links.iter().filter(|link| link.is_silenced());
    let silenced = silenced.map(|link| Suspect::Link { name: link.name.clone(), index: link.index });
    let strangers = strangers(ledger, links).map(|occupant| Suspect::Stranger(occupant.sandbox));
    records.chain(silenced).chain(strangers).collect()
}

/// Whether a link shows that a sandbox lives: by its alias, or because it is used, has the name that the
/// sandbox's was given, and has no alias.
fn is_of(link: &HostLink, sandbox: &Sandbox, name: &str) -> bool {
    let names_sandbox = || link.occupants().iter().any(|occupant| occupant.sandbox == *sandbox);
    names_sandbox() || (link.identity.is_none() && !link.is_silenced() && link.name == name)
}

fn strangers(ledger: &Ledger, links: &[HostLink]) -> impl Iterator<Item = Occupant> {
    links.iter().flat_map(HostLink::occupants).filter(|occupant| {
        !ledger.assignments().any(|(entry, assignment)| {
            entry.address == occupant.address || assignment.sandbox == occupant.sandbox
        })
    })
}

/// Acts on a suspicion if it still holds; returns whether it did. A sandbox that a verb is at work on is left
/// alone. Blocks as long as a verb takes.
pub fn clear(store: &Store, suspect: &Suspect) -> Result<bool, Error> {
    let sandbox = match suspect {
        Suspect::Record { sandbox, .. } | Suspect::Stranger(sandbox) => sandbox,
        // By index: an ADD may have made a new link under this name in the meantime.
        Suspect::Link { index, .. } => return Ok(wiring::delete_host_link(*index).map(|()| true)?),
    };
    let Some(_lock) = store.try_lock_sandbox(sandbox)? else { return Ok(false) };
    let (ledger, links) = (store.peek()?, wiring::host_links()?);
    if !suspects(&ledger, &links).contains(suspect) {
        return Ok(false);
    }
    match strangers(&ledger, &links).find(|occupant| occupant.sandbox == *sandbox) {
        Some(occupant) => Ok(store.note(|ledger, now| ledger.adopt(&occupant, now))?),
        None => {
            // A route to a bridge stays behind when its pod goes.
            let assigned = ledger.assignments().find(|(_, assignment)| assignment.sandbox == *sandbox);
            match assigned.map(|(entry, assignment)| (entry.address, &**assignment)) {
                Some((address, Tenant { proof: Proof::Namespace { .. }, .. })) => {
                    wiring::unroute_from_any_bridge(address)?;
                }
                Some((address, Tenant { proof: Proof::Link(_), pod, .. })) => {
                    bridge::disconnect(address, wiring::disconnect(sandbox, pod)?)?;
                }
                None => {}
            }
            Ok(store.note(|ledger, now| ledger.free(sandbox, now))?.is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use vnetpool_plugin::{
        ledger::{Claim, Entry, Pod, Supply},
        wiring::Identity,
    };

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 5);
    const LATER: Millis = GRACE.as_millis() as Millis;

    fn sandbox() -> Sandbox {
        Sandbox { container_id: "c1".into(), ifname: "eth0".into() }
    }

    fn ledger() -> Ledger {
        let entries = vec![Entry { name: "vnp-1".into(), address: ADDRESS, attached_to: None }];
        let supply = Supply {
            object: "object".into(),
            generation: 1,
            node_uid: "node".into(),
            boot_id: "boot".into(),
            cooldown: Duration::ZERO,
            entries,
        };
        Ledger::rebuild("boot", &[], &[], &supply, None, 0, true)
    }

    fn assigned() -> Ledger {
        let mut ledger = ledger();
        ledger.assign(&Claim::wired(&sandbox(), &Pod::default(), ""), 0);
        ledger
    }

    fn wired() -> HostLink {
        let identity = Identity { address: ADDRESS, sandbox: sandbox(), pod: Pod::default() };
        let name = sandbox().host_link(&Pod::default());
        HostLink {
            name,
            index: 7,
            up: true,
            has_our_mac: true,
            identity: Some(identity),
            routes: vec![ADDRESS],
            knows_pod: true,
        }
    }

    fn silenced() -> HostLink {
        HostLink { up: false, identity: None, routes: vec![], ..wired() }
    }

    fn record() -> Suspect {
        Suspect::Record { sandbox: sandbox(), proof: Proof::Link(sandbox().host_link(&Pod::default())) }
    }

    #[test]
    fn a_record_with_its_link_is_no_suspect() {
        assert_eq!(suspects(&assigned(), &[wired()]), []);
        assert_eq!(suspects(&ledger(), &[]), []);
    }

    #[test]
    fn a_record_without_its_link_is_leaked_once_that_has_held_for_the_grace_period() {
        let mut sweep = Sweep::default();
        assert_eq!(sweep.suspects(&assigned(), &[], 0), []);
        assert_eq!(sweep.suspects(&assigned(), &[], LATER - 1), []);
        assert_eq!(sweep.suspects(&assigned(), &[], LATER), [record()]);
    }

    #[test]
    fn one_inspection_is_not_enough_however_late() {
        assert_eq!(Sweep::default().suspects(&assigned(), &[], 100 * LATER), []);
    }

    #[test]
    fn a_link_seen_in_between_starts_the_grace_period_anew() {
        let mut sweep = Sweep::default();
        sweep.suspects(&assigned(), &[], 0);
        sweep.suspects(&assigned(), &[wired()], LATER / 2);
        assert_eq!(sweep.suspects(&assigned(), &[], LATER), []);
    }

    #[test]
    fn a_record_whose_link_was_silenced_is_leaked_and_so_is_the_link() {
        let link = Suspect::Link { name: wired().name, index: 7 };
        assert_eq!(suspects(&assigned(), &[silenced()]), [record(), link]);
    }

    #[test]
    fn a_link_that_is_down_but_names_its_sandbox_proves_life() {
        assert_eq!(suspects(&assigned(), &[HostLink { up: false, ..wired() }]), []);
    }

    #[test]
    fn a_newer_sandbox_of_the_pod_under_the_same_name_proves_no_life() {
        let newer = Sandbox { container_id: "c2".into(), ifname: "eth0".into() };
        let identity =
            Identity { address: Ipv4Addr::new(10, 240, 0, 6), sandbox: newer, pod: Pod::default() };
        let link = HostLink { routes: vec![identity.address], identity: Some(identity), ..wired() };
        assert!(suspects(&assigned(), std::slice::from_ref(&link)).contains(&record()));
        // And the older's, wherever it has been moved, does.
        let moved = HostLink { name: "vnp00000000001".into(), ..wired() };
        assert!(!suspects(&assigned(), &[link, moved]).contains(&record()));
    }

    #[test]
    fn a_link_in_use_without_an_identity_proves_life_of_the_sandbox_it_was_made_for() {
        let silent = HostLink { identity: None, routes: vec![], ..wired() };
        assert_eq!(suspects(&assigned(), &[silent]), []);
    }

    #[test]
    fn a_wired_sandbox_without_a_record_is_a_stranger() {
        assert_eq!(suspects(&ledger(), &[wired()]), [Suspect::Stranger(sandbox())]);
    }
}
