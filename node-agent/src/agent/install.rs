//! The agent's stage that installs the CNI files.

use std::sync::atomic::Ordering;

use vnetpool_crds::{condition, pool::Wiring};

use super::{Agent, Said};
use crate::{
    chain::{Chain, Missing},
    install,
    uplink::Uplink,
};

impl Agent {
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
        let chain = self.chained.at(&self.config.chain, &self.config.cni_bin_dir).await;
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
        let used = format!("the runtime uses {}", install::CONFLIST);
        Ok(match install::preceding(conf_dir)? {
            Some(other) => {
                let message = format!(
                    "the runtime uses {} instead of {}, since it comes first by name: remove or rename it",
                    conf_dir.join(other).display(),
                    install::CONFLIST
                );
                (false, "OtherConfiguration", message)
            }
            None if chain.missing.is_empty() => (true, "Installed", used),
            // Pods run all the same, so the node is as ready as without what is missing.
            None => (true, "PluginMissing", format!("{used}; {}", Missing(&chain.missing, bin_dir))),
        })
    }
}
