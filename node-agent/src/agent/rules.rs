//! The agent's stage that keeps the node's rules: forwarding, the nftables table, steering, closed ranges.

use std::{net::Ipv4Addr, path::Path};

use anyhow::Context;
use ipnet::Ipv4Net;
use vnetpool_crds::{NodeIPAllocationSpec, condition, pool::Wiring};
use vnetpool_plugin::wiring::{bridge, range, steer};

use super::{Agent, Said, blocking};
use crate::{
    disturbance::Kind,
    firewall::{self, Rules, apply::Ensured},
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
