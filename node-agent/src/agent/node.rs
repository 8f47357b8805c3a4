//! The agent's stages that concern the node as a whole: its rules and its CNI files.

use std::{net::Ipv4Addr, path::Path, sync::atomic::Ordering};

use anyhow::Context;
use ipnet::Ipv4Net;
use vnetpool_crds::{NodeIPAllocationSpec, condition, pool::Wiring};
use vnetpool_plugin::wiring::{bridge, range, steer};

use super::{Agent, Said, blocking};
use crate::{
    chain::{self, Chain, Missing},
    disturbance::Kind,
    firewall::{self, Rules, apply::Ensured},
    install::{self, Preceding},
    sysctl,
    uplink::{self, Uplink},
};

impl Agent {
    /// Turns on forwarding and puts the nftables table in place. Says how that went, and through which link the pods get
    /// out. Asks the kernel what it has only on a look or when there is something new.
    pub(super) async fn rules(
        &mut self,
        spec: &NodeIPAllocationSpec,
        is_look: bool,
    ) -> (Said, Option<Uplink>) {
        let said =
            |is_true, reason, message| Said { type_: condition::RULES_APPLIED, is_true, reason, message };
        let mut uplinks = Vec::new();
        for interface in &spec.interfaces {
            match uplink::find(Path::new(uplink::LINKS), &interface.mac) {
                Ok(Some(uplink)) => uplinks.push((interface.mac.as_str(), uplink)),
                Ok(None) => {
                    let message = format!(
                        "no link of the node has the hardware address {} of NIC {}",
                        interface.mac, interface.id
                    );
                    return (said(false, "InterfaceMissing", message), None);
                }
                Err(error) => {
                    let message = format!("can't read {}: {error}", uplink::LINKS);
                    return (said(false, "InterfaceMissing", message), None);
                }
            }
        }
        let name_of =
            |mac: &str| uplinks.iter().find(|(known, _)| *known == mac).map(|(_, link)| link.name.clone());
        let text = match Rules::new(spec, name_of) {
            Ok(rules) => rules.render(),
            Err(error) => return (said(false, "InvalidSpec", error.to_string()), None),
        };
        self.uplinks.send_replace(uplinks.iter().map(|(_, link)| (link.name.clone(), link.mtu)).collect());
        let links = uplinks.iter().map(|(_, link)| link.name.as_str());
        match sysctl::ensure(&self.config.sysctl_net_dir, links) {
            // The first time it's the node that is set up.
            Ok(changed) if self.has_forwarded => {
                changed.into_iter().for_each(|what| self.repaired(Kind::Forwarding, what));
            }
            Ok(_) => self.has_forwarded = true,
            Err(error) => return (said(false, "ForwardingOff", error.to_string()), None),
        }
        // Before a configuration asks for it, and for the pods there are when none does any more.
        if let (Wiring::Bridge, Some((_, uplink))) = (spec.wiring, uplinks.first())
            && (is_look || !bridge::is_there())
        {
            match bridge::ensure(uplink.mtu, &self.config.sysctl_net_dir) {
                Ok(false) => {}
                Ok(true) => tracing::info!("made the pods' bridge"),
                Err(error) => {
                    return (said(false, "BridgeMissing", format!("{error}: {}", error.remedy())), None);
                }
            }
        }
        let steered = match steer(spec, name_of).await {
            Ok(steered) => steered,
            Err(error) => return (said(false, "NotSteered", format!("{error:#}")), None),
        };
        if is_look || !self.firewall.is_applied(&text) {
            match self.firewall.ensure(&text).await {
                Ok(ensured) => self.tell_of("inet vnetpool", ensured),
                Err(error) => return (said(false, "TableRefused", error.to_string()), None),
            }
        }
        let text = firewall::arp(self.config.ipam_only);
        let mut lacks = String::new();
        if is_look || !self.arp.is_applied(&text) {
            match self.arp.ensure(&text).await {
                Ok(ensured) => self.tell_of("arp vnetpool", ensured),
                Err(_) if self.config.ipam_only => {}
                // Pods are as well connected without it.
                Err(error) => {
                    lacks = format!("; a pod can fill the node's table of neighbours, because {error}");
                }
            }
        }
        if is_look {
            match self.firewall.dropped().await {
                Ok(dropped) => {
                    dropped
                        .into_iter()
                        .for_each(|(target, packets)| self.metrics.count_dropped(target, packets));
                }
                Err(error) => tracing::warn!(%error, "can't count what table inet vnetpool drops"),
            }
        }
        let ranges = own_ranges(spec);
        if is_look || self.closed != ranges {
            let close = ranges.clone();
            match blocking(move || range::close(&close)).await {
                Ok(Ok(())) => self.closed = ranges,
                Ok(Err(error)) => {
                    return (said(false, "RangeOpen", format!("{error}: {}", error.remedy())), None);
                }
                Err(error) => return (said(false, "RangeOpen", format!("{error:#}")), None),
            }
        }
        let message = format!("forwarding is on and table inet vnetpool is in place{steered}{lacks}");
        (said(true, "Applied", message), uplinks.into_iter().next().map(|(_, uplink)| uplink))
    }

    /// Notes what became of a table.
    fn tell_of(&mut self, table: &str, ensured: Ensured) {
        if ensured == Ensured::Standing {
            return;
        }
        tracing::info!(table, "put a table of nftables in place");
        self.metrics.rules.inc();
        if ensured == Ensured::Restored {
            self.repaired(Kind::Table, format!("table {table}"));
        }
    }

    /// Installs the CNI plugin and the configuration that leads to it. None if this was not the time to look, and nothing else
    /// is wanted than before.
    pub(super) async fn install(
        &mut self,
        uplink: Option<&Uplink>,
        wiring: Wiring,
        is_look: bool,
    ) -> Option<Said> {
        let is_ready = self.metrics.ready.load(Ordering::Relaxed);
        let uplink = uplink.filter(|_| is_look || !is_ready || self.installed != Some(wiring))?;
        let found = install::found(&self.config.cni_conf_dir).unwrap_or_default();
        let others = chain::others(&found);
        let chain = self.chained.at(&self.config.chain, others, &self.config.cni_bin_dir).await;
        let installed = self.put_in_place(uplink, wiring, &chain);
        self.metrics.ready.store(installed.is_ok(), Ordering::Relaxed);
        self.installed = installed.is_ok().then_some(wiring);
        let (is_true, reason, message) =
            installed.unwrap_or_else(|error| (false, "NotInstalled", error.to_string()));
        Some(Said { type_: condition::CNI_INSTALLED, is_true, reason, message })
    }

    fn put_in_place(
        &self,
        uplink: &Uplink,
        wiring: Wiring,
        chain: &Chain,
    ) -> Result<(bool, &'static str, String), install::Error> {
        let (bin_dir, conf_dir) = (&self.config.cni_bin_dir, &self.config.cni_conf_dir);
        let plugin = install::plugin(&self.config.plugin, bin_dir)?;
        let configuration = match self.config.ipam_only {
            true => install::no_configuration(conf_dir)?,
            false => install::configuration(&install::conflist(uplink.mtu, wiring, chain), conf_dir)?,
        };
        if plugin || configuration {
            tracing::info!(plugin, configuration, "changed CNI files");
        }
        if self.config.ipam_only {
            let message = format!(
                "{} is there for the plugin that wires the pods",
                bin_dir.join(install::IPAM).display()
            );
            return Ok((true, "IPAMOnly", message));
        }
        Ok(said_of(chain, install::preceding(conf_dir)?, bin_dir))
    }
}

/// What the condition `CNIInstalled` says of files that are in place.
fn said_of(chain: &Chain, preceding: Option<Preceding>, bin_dir: &Path) -> (bool, &'static str, String) {
    let conflist = install::CONFLIST;
    if let Some(Preceding { path, leads_to_ours: false }) = &preceding {
        let message = format!(
            "the runtime uses {} instead of {conflist}, since it comes first by name: remove or rename it",
            path.display()
        );
        return (false, "OtherConfiguration", message);
    }
    if !chain.others_missing.is_empty() {
        let message = format!(
            "no pod can start: {} stands behind Vnetpool's entry in {conflist} and is not in {}: install it again, or take \
             its entry out",
            chain.others_missing.join(" and "),
            bin_dir.display()
        );
        return (false, "OthersPluginMissing", message);
    }
    let mut used = match &preceding {
        Some(Preceding { path, .. }) => format!(
            "the runtime uses {}, which has Vnetpool's plugin wire the pods; if it holds a copy of {conflist}, whoever has \
             written it keeps that copy current",
            path.display()
        ),
        None => format!("the runtime uses {conflist}"),
    };
    if !chain.others.is_empty() {
        used = format!("{used}, with {} behind it, which others have put there", chain.others.join(" and "));
    }
    match (chain.missing.is_empty(), preceding) {
        (true, None) => (true, "Installed", used),
        (true, Some(_)) => (true, "Delegated", used),
        // Pods run all the same, so the node is as ready as without what is missing.
        (false, _) => (true, "PluginMissing", format!("{used}; {}", Missing(&chain.missing, bin_dir))),
    }
}

/// What Azure routes to the node as a whole, which only mode `Route` has.
fn own_ranges(spec: &NodeIPAllocationSpec) -> Vec<Ipv4Net> {
    let ranges = spec.ip_configurations().filter(|_| spec.route_table_id.is_some());
    ranges.filter_map(|one| one.address.parse().ok()).collect()
}

/// Has what pods of a secondary NIC send leave by it; with one NIC, nothing is steered. Says so.
async fn steer(
    spec: &NodeIPAllocationSpec,
    name_of: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<String> {
    let Some(nic) = spec.interfaces.iter().find(|nic| nic.secondary) else {
        blocking(steer::unsteer).await??;
        return Ok(String::new());
    };
    let link = name_of(&nic.mac).context("the secondary NIC has no link")?;
    let primary: Ipv4Addr = nic.primary_address.parse().context("the secondary NIC's primary address")?;
    let prefixes: Vec<Ipv4Net> = nic.subnet.prefixes.iter().filter_map(|range| range.parse().ok()).collect();
    let own = prefixes.iter().find(|range| range.contains(&primary));
    let own = own.with_context(|| format!("no prefix of subnet {} has {primary}", nic.subnet.id))?;
    // Azure's gateway is the first address of a subnet's prefix.
    let gateway = own.hosts().next().with_context(|| format!("{own} has no gateway"))?;
    let sources: Vec<Ipv4Net> = prefixes.iter().copied().chain(own_ranges(spec)).collect();
    let told = format!("; what pods send leaves by {link}");
    blocking(move || steer::steer(&sources, &link, gateway)).await??;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_tells_what_stands_before_and_behind_ours() {
        let said = |chain: &Chain, preceding: Option<bool>| {
            let path = "/etc/cni/net.d/00-multus.conf".into();
            let preceding = preceding.map(|leads_to_ours| Preceding { path, leads_to_ours });
            said_of(chain, preceding, Path::new("/opt/cni/bin"))
        };
        let alone = Chain::default();
        assert_eq!((true, "Installed"), (said(&alone, None).0, said(&alone, None).1));
        let (is_true, reason, message) = said(&alone, Some(true));
        assert_eq!((is_true, reason), (true, "Delegated"), "{message}");
        let (is_true, reason, message) = said(&alone, Some(false));
        assert_eq!((is_true, reason), (false, "OtherConfiguration"), "{message}");
        assert!(message.contains("/etc/cni/net.d/00-multus.conf"), "{message}");
        let mesh = Chain { others: vec!["istio-cni".into()], ..Chain::default() };
        let (is_true, reason, message) = said(&mesh, None);
        assert_eq!((is_true, reason), (true, "Installed"), "{message}");
        assert!(message.contains("istio-cni behind it"), "{message}");
        let (is_true, reason, message) = said(&Chain { others_missing: mesh.others.clone(), ..mesh }, None);
        assert_eq!((is_true, reason), (false, "OthersPluginMissing"), "{message}");
        assert!(message.contains("istio-cni") && message.contains("/opt/cni/bin"), "{message}");
    }
}
