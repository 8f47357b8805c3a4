//! The part of an inspection that keeps the node's rules: forwarding, the nftables table, steering, closed
//! ranges.

use std::{collections::BTreeMap, fmt::Display, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::Context;
use ipnet::Ipv4Net;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::refusal::{Refusal, Service};
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{
    NodeIPAllocationSpec,
    allocation::{Interface, IpConfiguration},
    condition,
    pool::Wiring,
};
use vnetpool_plugin::{
    ledger::file,
    wiring::{self, Uplink, bridge, kernel, range, steer},
};
use vnetpool_process::lock::lock;

use super::Keeper;
use crate::{
    agent::{blocking::blocking, notes::Finding},
    disturbance::Kind,
    firewall::{
        self, Egress, Family, Rules, Steered,
        apply::{Ensured, Error},
    },
    sysctl,
};

/// The spec without the fields from which no rule is made: addresses that come and go change no rule.
pub(in crate::agent) fn basis(spec: &NodeIPAllocationSpec) -> NodeIPAllocationSpec {
    let counts = |one: &IpConfiguration| spec.route_table_id.is_some() || one.public_address.is_some();
    let mut interfaces = spec.interfaces.clone();
    interfaces.iter_mut().for_each(|interface| interface.ip_configurations.retain(counts));
    NodeIPAllocationSpec {
        interfaces,
        sizing: None,
        elsewhere: 0,
        target: 0,
        cooldown: Duration::ZERO.into(),
        warm: 0,
        report_holders: false,
        taken_off_at: vec![],
        detached_public_addresses: vec![],
        stray_interfaces: vec![],
        left_interfaces: vec![],
        ..spec.clone()
    }
}

/// Why the rules aren't in place: reason and message of the condition `RulesApplied`.
struct Failure {
    reason: Reason,
    message: String,
}

impl Failure {
    /// A failure of this reason, with the error's own words.
    fn of<E: Display>(reason: Reason) -> impl Fn(E) -> Failure {
        move |error| Failure { reason, message: error.to_string() }
    }

    /// A failure of the wiring, with its remedy.
    fn of_wiring(reason: Reason) -> impl Fn(wiring::Error) -> Failure {
        move |error| Failure { reason, message: format!("{error}: {}", error.remedy()) }
    }

    /// A failure of this reason, with the errors that led to it.
    fn of_chain(reason: Reason) -> impl Fn(anyhow::Error) -> Failure {
        move |error| Failure { reason, message: format!("{error:#}") }
    }
}

impl Keeper {
    /// Turns on forwarding and puts the nftables table in place. Returns how that went, and the link through
    /// which the pods get out.
    pub(super) async fn rules(&mut self, spec: &NodeIPAllocationSpec) -> (Finding, Option<Uplink>) {
        let (verdict, uplink) = match self.apply_rules(spec).await {
            Ok((message, uplink)) => (Verdict::yes(Reason::Applied, message), uplink),
            Err(Failure { reason, message }) => (Verdict::no(reason, message), None),
        };
        // Whatever has failed, the last table counts on, and its addresses may soon be other pods'.
        self.count_dropped().await;
        (Finding { type_: condition::RULES_APPLIED, verdict }, uplink)
    }

    async fn apply_rules(
        &mut self,
        spec: &NodeIPAllocationSpec,
    ) -> Result<(String, Option<Uplink>), Failure> {
        kernel::require(kernel::TRANSLATION).map_err(Failure::of_wiring(Reason::KernelTooOld))?;
        let uplinks = uplinks_of(spec, &aside(Reason::LinksUnlisted, wiring::uplinks).await?)?;
        let name_of =
            |mac: &str| uplinks.iter().find(|(known, _)| *known == mac).map(|(_, link)| link.name.clone());
        let rules = Rules::new(spec, name_of).map_err(Failure::of(Reason::InvalidSpec))?;
        self.uplinks.send_replace(uplinks.iter().map(|(_, link)| (link.name.clone(), link.mtu)).collect());
        self.forward(uplinks.iter().map(|(_, link)| link.name.clone()).collect()).await?;
        // Before a configuration asks for the bridge. The bridge stays for the pods that have it when no
        // configuration asks for it any more.
        if let (Wiring::Bridge, Some((_, uplink))) = (spec.wiring, uplinks.first()) {
            let (mtu, net) = (uplink.mtu, self.config.sysctl_net_dir.clone());
            if aside(Reason::BridgeMissing, move || bridge::ensure(mtu, &net)).await? {
                tracing::info!("made the pods' bridge");
            }
        }
        self.route_bridged().await?;
        // The table first, which marks packets for the routing rules: without its mark they would have a pod
        // ask for names by the wrong NIC. Neither waits for the other's success.
        let unseen = self.put_table(&rules.render()).await;
        let steered = self.steer(&rules).await;
        let (unseen, steered) = (unseen?, steered?);
        let lacks = self.put_arp_table().await;
        self.close_ranges(spec).await?;
        let message = format!("forwarding is on and table inet vnetpool is in place{steered}{unseen}{lacks}");
        let uplink = uplinks.into_iter().next().map(|(_, uplink)| uplink);
        Ok((message, uplink))
    }

    async fn forward(&mut self, links: Vec<String>) -> Result<(), Failure> {
        let changed = self.ensure_forwarding(links).await.map_err(Failure::of(Reason::ForwardingOff))?;
        // The first time it is no repair: the node is being set up.
        if self.has_forwarded {
            changed.into_iter().for_each(|what| self.repaired(Kind::Forwarding, what));
        }
        self.has_forwarded = true;
        Ok(())
    }

    /// Has the node's rules see packets of bridged pods only where the node routes them. The bridge stays for
    /// the pods that have it when no configuration asks for it any more, and so does this.
    async fn route_bridged(&mut self) -> Result<(), Failure> {
        let net = self.config.sysctl_net_dir.clone();
        let route = move || {
            let is_there = bridge::is_there();
            Ok::<_, sysctl::Error>((is_there, is_there && sysctl::route_bridged(&net)?))
        };
        let routed = blocking(route).await.and_then(|routed| Ok(routed?));
        let (is_there, is_new) = routed.map_err(Failure::of_chain(Reason::BridgeMissing))?;
        // The first time it is no repair: the node is being set up.
        if is_new && self.has_routed_bridged {
            self.repaired(Kind::Bridge, sysctl::BRIDGES.to_owned());
        } else if is_new {
            tracing::info!(
                "bridge-nf-call-iptables is 0: packets of pods meet the node's rules where it routes them"
            );
        }
        self.has_routed_bridged |= is_there;
        Ok(())
    }

    /// Has packets of a secondary NIC's pods leave by it, and those that come for them by another NIC taken;
    /// with one NIC, nothing is steered. Returns the message.
    async fn steer(&mut self, rules: &Rules) -> Result<String, Failure> {
        const NOT_STEERED: Reason = Reason::NotSteered;
        let Some(Steered { uplink: Egress { link, address }, sources }) = rules.steered.clone() else {
            aside(NOT_STEERED, steer::unsteer).await?;
            return Ok(String::new());
        };
        let others = rules.uplinks.iter().map(|uplink| uplink.link.clone()).filter(|other| *other != link);
        let (others, net) = (others.collect(), self.config.sysctl_net_dir.clone());
        let gateway = gateway(address, &sources).map_err(Failure::of_chain(NOT_STEERED))?;
        let message = format!("; what pods send leaves by {link}");
        let prober = Service::WireServer.address();
        aside(NOT_STEERED, move || steer::steer(&sources, &link, gateway, prober)).await?;
        self.loosen(others, net).await.map_err(Failure::of_chain(NOT_STEERED))?;
        Ok(message)
    }

    async fn loosen(&mut self, links: Vec<String>, net: PathBuf) -> anyhow::Result<()> {
        let loosen = move || {
            let changed = links.iter().map(|link| sysctl::loosen(&net, link));
            changed.collect::<Result<Vec<_>, sysctl::Error>>()
        };
        for setting in blocking(loosen).await??.into_iter().flatten() {
            // The first time it is no repair: the node is being set up.
            if self.has_loosened {
                self.repaired(Kind::ReversePath, setting);
            } else {
                tracing::info!("{setting} is 2: what comes by this NIC may be for pods of the other");
            }
        }
        self.has_loosened = true;
        Ok(())
    }

    /// Says so if nft couldn't show the table.
    async fn put_table(&mut self, table: &str) -> Result<&'static str, Failure> {
        let ensured = self.tables.lock().await.inet.ensure(table).await.map_err(|error| {
            let is_silent = matches!(error, Error::Run(_) | Error::Uncounted(_));
            let reason = if is_silent { Reason::TableInDoubt } else { Reason::TableRefused };
            Failure { reason, message: error.to_string() }
        })?;
        self.notes.kept(Family::Inet, ensured);
        Ok(match ensured {
            Ensured::Unseen => "; nft doesn't answer, and by the kernel nobody has changed the table",
            Ensured::Standing | Ensured::Put | Ensured::Restored => "",
        })
    }

    /// Names the missing part of a node that refuses the table: pods are as well connected without the table.
    async fn put_arp_table(&mut self) -> String {
        let table = firewall::arp::table(self.config.ipam_only);
        let ensured = self.tables.lock().await.arp.ensure(&table).await;
        match ensured {
            Ok(ensured) => _ = self.notes.kept(Family::Arp, ensured),
            Err(_) if self.config.ipam_only => {}
            Err(error) => {
                return format!("; a pod can fill or forge the node's table of neighbours, because {error}");
            }
        }
        String::new()
    }

    async fn count_dropped(&mut self) {
        let begun = file::now();
        let (dropped, asked) = {
            let table = &mut self.tables.lock().await.inet;
            let dropped = table.count().await.map(|()| table.take_dropped());
            (dropped, table.take_asked())
        };
        self.count_refused(asked);
        match dropped {
            Ok(dropped) => {
                lock(&self.tenants).counted(begun);
                dropped.into_iter().for_each(|(target, packets)| self.metrics.count_dropped(target, packets));
            }
            // What was counted before can wait, and has the pods looked for that were to be read next.
            Err(error) => tracing::warn!(%error, "can't count what table inet vnetpool drops"),
        }
    }

    /// Counts by pod the packets that were sent to Azure's services in vain.
    fn count_refused(&mut self, asked: BTreeMap<(Ipv4Addr, Service), u64>) {
        let asked: Vec<_> = asked.into_iter().filter(|(_, packets)| *packets > 0).collect();
        if asked.is_empty() {
            return;
        }
        let (ledger, now) = (self.store.peek(), file::now());
        let mut tenants = lock(&self.tenants);
        // A pod that has just come may have asked, too.
        ledger.iter().for_each(|ledger| tenants.see(ledger, now));
        for ((address, service), packets) in asked {
            let Some(pod) = tenants.only(address) else { continue };
            let refusal = Refusal { service, pod: pod.to_owned() };
            self.metrics.count_refused(&refusal, packets);
            self.refusals.asked(refusal, now);
        }
    }

    async fn close_ranges(&self, spec: &NodeIPAllocationSpec) -> Result<(), Failure> {
        let ranges = firewall::own_ranges(spec);
        aside(Reason::RangeOpen, move || range::close(&ranges)).await
    }
}

/// Runs work that waits for the kernel aside. A failure of it is of this reason.
async fn aside<T: Send + 'static>(
    reason: Reason,
    work: impl FnOnce() -> Result<T, wiring::Error> + Send + 'static,
) -> Result<T, Failure> {
    blocking(work).await.map_err(Failure::of_chain(reason))?.map_err(Failure::of_wiring(reason))
}

/// The node's link of each NIC in the spec, beside the NIC's hardware address.
fn uplinks_of<'a>(
    spec: &'a NodeIPAllocationSpec,
    links: &[(String, Uplink)],
) -> Result<Vec<(&'a str, Uplink)>, Failure> {
    let find = |mac: &str| links.iter().find(|(found, _)| found.eq_ignore_ascii_case(mac));
    let uplink = |interface: &'a Interface| match find(&interface.mac) {
        Some((_, uplink)) => Ok((interface.mac.as_str(), uplink.clone())),
        None => {
            let (mac, id) = (&interface.mac, &interface.id);
            let message = format!("no link of the node has the hardware address {mac} of NIC {id}");
            Err(Failure { reason: Reason::InterfaceMissing, message })
        }
    };
    spec.interfaces.iter().map(uplink).collect()
}

/// Azure's gateway for a NIC with this primary address: the first address of the prefix that has it.
fn gateway(primary: Ipv4Addr, prefixes: &[Ipv4Net]) -> anyhow::Result<Ipv4Addr> {
    let own = prefixes.iter().find(|range| range.contains(&primary));
    let own = own.with_context(|| format!("no prefix of the secondary NIC's subnet has {primary}"))?;
    own.hosts().next().with_context(|| format!("{own} has no gateway"))
}
