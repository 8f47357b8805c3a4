//! The parts of an inspection that undo what others on the node do to the pods' network.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::Ipv4Addr,
    time::Duration,
};

use tokio::time::timeout;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{condition, reason::Reason};
use vnetpool_plugin::{
    ledger::{Ledger, file},
    sandbox::LINK_PREFIX,
    wiring::HostLink,
};

use super::Keeper;
use crate::{
    agent::{blocking::blocking, notes::Finding},
    config::SourceKind,
    disturbance::{self, Kind},
    firewall::{known::Generation, netlink::generation},
    host_ports,
    others_firewall::{Packet, nft},
    sysctl,
};

/// How long it may take to list others' firewalls: thousands of rules hold up no other part of an inspection.
const FIREWALLS_WITHIN: Duration = Duration::from_secs(60);

/// What nftables has of others' firewalls, as far as it concerns pods.
#[derive(Debug)]
pub(super) struct Firewalls {
    /// The kernel's generation in which this is so, an address of a pod's, and the link its packets leave by.
    of: (Option<Generation>, Ipv4Addr, String),
    /// Chains that drop what pods send or receive.
    dropping: Vec<nft::Base>,
    /// The marks of portmap's rules for single pods.
    host_ports: BTreeSet<String>,
}

impl Firewalls {
    async fn listed(
        of: (Option<Generation>, Ipv4Addr, String),
        packets: &[Packet<'_>],
    ) -> Result<Firewalls, nft::Error> {
        let listed = nft::Listed::now().await?;
        let host_ports = listed.host_ports().await?;
        Ok(Firewalls { of, dropping: nft::dropping(&listed, packets).await?, host_ports })
    }
}

impl Keeper {
    /// Restores the host ends of pods and the settings of the node that they need. A part that can't be
    /// inspected stays as it is.
    pub(super) async fn restore(&mut self, ledger: &Ledger, links: &[HostLink]) {
        let names = links.iter().filter(|link| !link.is_silenced()).map(|link| link.name.clone()).collect();
        match self.ensure_forwarding(names).await {
            Ok(changed) => changed.into_iter().for_each(|what| self.repaired(Kind::Forwarding, what)),
            Err(error) => self.stands(error.to_string()),
        }
        let damaged: Vec<_> = disturbance::damaged(ledger, links)
            .map(|(link, identity)| (link.clone(), identity.address))
            .collect();
        let first = !std::mem::replace(&mut self.has_restored, true);
        for (link, pod) in damaged {
            let store = self.store.clone();
            match blocking(move || disturbance::restore(&store, &link)).await {
                Ok(Ok(damage)) if !disturbance::is_disturbance(&damage, first) => {
                    tracing::info!(address = %pod, "added the node's neighbour entry for a pod");
                }
                Ok(Ok(damage)) => {
                    damage.into_iter().for_each(|damage| self.repaired(damage.into(), pod.to_string()));
                }
                Ok(Err(error)) => self.stands(format!("can't restore the way to {pod}: {error}")),
                Err(error) => tracing::warn!(address = %pod, %error, "can't restore the way to a pod"),
            }
        }
    }

    /// Turns forwarding on, for all links and for each of these. Returns the settings it had to change.
    pub(super) async fn ensure_forwarding(&self, links: Vec<String>) -> anyhow::Result<Vec<String>> {
        let dir = self.config.sysctl_net_dir.clone();
        Ok(blocking(move || sysctl::ensure(&dir, links.iter().map(String::as_str))).await??)
    }

    /// Finds firewalls that drop packets from or to pods, and opens them if the configuration asks for it.
    /// They are read anew only if any rule of nftables has changed.
    pub(super) async fn let_through(&mut self, ledger: &Ledger, uplink: &str) {
        let Some(pod) = ledger.records().first().map(|record| record.entry().address) else { return };
        let link = &format!("{LINK_PREFIX}00000000000");
        let packets = [
            Packet { from_link: link, to_link: uplink, source: Some(pod), destination: None },
            Packet { from_link: uplink, to_link: link, source: None, destination: Some(pod) },
        ];
        let mut bases = Vec::new();
        let of = (generation().ok(), pod, uplink.to_owned());
        let late =
            || nft::Error::Run("nft", io::Error::new(io::ErrorKind::TimedOut, "its lists take too long"));
        let firewalls = match self.firewalls.take().filter(|known| known.of == of && of.0.is_some()) {
            Some(known) => Ok(known),
            None => {
                let listed = timeout(FIREWALLS_WITHIN, Firewalls::listed(of, &packets)).await;
                listed.unwrap_or_else(|_| Err(late()))
            }
        };
        match firewalls {
            Ok(firewalls) => {
                bases.extend(firewalls.dropping.iter().cloned());
                self.name_lost_host_ports(ledger, &firewalls.host_ports);
                self.firewalls = Some(firewalls);
            }
            Err(error) => self.stands(format!(
                "it is unknown whether a firewall of the node drops what pods send or receive: {error}: see that nft runs \
                 in the agent's container"
            )),
        }
        match nft::legacy(&packets).await {
            Ok(dropping) => bases.extend(dropping),
            Err(error) => self.stands(format!(
                "it is unknown whether iptables-legacy's table filter drops what pods send or receive: {error}: give the \
                 agent the node's /run/xtables.lock to write to, and NET_RAW"
            )),
        }
        for base in bases {
            if !self.config.open_forward {
                self.stands(format!(
                    "{base} drops what pods send or receive: accept there what comes in by links vnp* and what goes out by \
                     them (docker: in DOCKER-USER), or have the agent do so (nodeAgent.openForward of the chart, \
                     --open-forward)"
                ));
                continue;
            }
            match nft::open(&base).await {
                Ok(()) => self.repaired(Kind::Firewall, base.to_string()),
                Err(error) => self.stands(format!("{base} drops pods' packets: {error}")),
            }
        }
    }

    fn name_lost_host_ports(&mut self, ledger: &Ledger, marks: &BTreeSet<String>) {
        let assignments = ledger.assignments().map(|(_, assignment)| &**assignment);
        let lost = self.host_ports.lost(assignments, marks);
        if let Err(error) = host_ports::write(&self.host_ports, &self.config.state_dir) {
            tracing::warn!(%error, "the next agent won't know which pods have host ports");
        }
        if !lost.is_empty() {
            self.stands(format!(
                "the hostPort of pods {} leads nowhere, since somebody has flushed the nftables tables in which portmap \
                 keeps its rules, and it makes them only when a pod starts: delete these pods, and have firewalls reload \
                 their own tables only",
                lost.join(", ")
            ));
        }
    }

    /// The condition `MetadataRefused`, if there is anything to report of this pool's pods.
    pub(super) fn refused(&mut self, ledger: &Ledger, pool: &str) -> Option<Finding> {
        let there: HashSet<String> = ledger.assignments().map(|(_, one)| one.whose()).collect();
        let now = file::now();
        let gone = self.refusals.forget(|pod| there.contains(pod), now);
        gone.iter().for_each(|refusal| self.metrics.forget_refused(refusal));
        let pool = matches!(self.config.source, SourceKind::Cluster).then_some(pool);
        let message = self.refusals.message(pool, now)?;
        Some(Finding { type_: condition::METADATA_REFUSED, verdict: Verdict::yes(Reason::PodsAsk, message) })
    }
}
