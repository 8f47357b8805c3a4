//! The part of a look that installs the CNI files.

use std::path::Path;

use vnetpool_crds::reason::Reason;
use vnetpool_crds::{condition, pool::Wiring};
use vnetpool_plugin::{cni::IPAM, wiring::Uplink};

use super::{Said, keeper::Keeper};
use crate::{
    chain::{self, Chain, Missing},
    install::{self, Preceding},
};

impl Keeper {
    /// Installs the CNI plugin and the configuration that leads to it.
    pub(super) async fn install(&mut self, uplink: &Uplink, wiring: Wiring) {
        let found = install::found(&self.config.cni_conf_dir).unwrap_or_default();
        let (further, bin_dir) = (&self.config.further_plugins, &self.config.cni_bin_dir);
        let chain =
            self.chained.at(&self.config.chain, further, chain::others(&found, further), bin_dir).await;
        let installed = self.put_in_place(uplink, wiring, &chain);
        let (is_true, reason, message) =
            installed.unwrap_or_else(|error| (false, Reason::NotInstalled, error.to_string()));
        self.said_installed = Some(Said { type_: condition::CNI_INSTALLED, is_true, reason, message });
    }

    fn put_in_place(
        &self,
        uplink: &Uplink,
        wiring: Wiring,
        chain: &Chain,
    ) -> Result<(bool, Reason, String), install::Error> {
        let (bin_dir, conf_dir) = (&self.config.cni_bin_dir, &self.config.cni_conf_dir);
        let plugin = install::plugin(&self.config.plugin, bin_dir)?;
        let configuration = match self.config.ipam_only {
            true => install::no_configuration(conf_dir)?,
            false => {
                let wanted = install::conflist(uplink, wiring, chain, &self.config.state_dir);
                install::configuration(&wanted, conf_dir)?
            }
        };
        if plugin || configuration {
            tracing::info!(plugin, configuration, "changed CNI files");
        }
        if self.config.ipam_only {
            let message =
                format!("{} is there for the plugin that wires the pods", bin_dir.join(IPAM).display());
            return Ok((true, Reason::IPAMOnly, message));
        }
        Ok(said_of(chain, install::preceding(conf_dir)?, bin_dir))
    }
}

/// What the condition `CNIInstalled` says of files that are in place.
fn said_of(chain: &Chain, preceding: Option<Preceding>, bin_dir: &Path) -> (bool, Reason, String) {
    let conflist = install::CONFLIST;
    if let Some(Preceding { path, leads_to_ours: false }) = &preceding {
        let message = format!(
            "the runtime uses {} instead of {conflist}, since it comes first by name: remove or rename it",
            path.display()
        );
        return (false, Reason::OtherConfiguration, message);
    }
    if !chain.needed_missing.is_empty() {
        let message = format!(
            "no pod can start: {} stands behind Vnetpool's entry in {conflist} and is not in {}: install it there, or take \
             its entry out (nodeAgent.cni.furtherPlugins, or the program that has put it there)",
            chain.needed_missing.join(" and "),
            bin_dir.display()
        );
        return (false, Reason::OthersPluginMissing, message);
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
        (true, None) => (true, Reason::Installed, used),
        (true, Some(_)) => (true, Reason::Delegated, used),
        // Pods run all the same, so the node is as ready as without what is missing.
        (false, _) => (true, Reason::PluginMissing, format!("{used}; {}", Missing(&chain.missing, bin_dir))),
    }
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
        assert_eq!((true, Reason::Installed), (said(&alone, None).0, said(&alone, None).1));
        let (is_true, reason, message) = said(&alone, Some(true));
        assert_eq!((is_true, reason), (true, Reason::Delegated), "{message}");
        let (is_true, reason, message) = said(&alone, Some(false));
        assert_eq!((is_true, reason), (false, Reason::OtherConfiguration), "{message}");
        assert!(message.contains("/etc/cni/net.d/00-multus.conf"), "{message}");
        let mesh = Chain { others: vec!["istio-cni".into()], ..Chain::default() };
        let (is_true, reason, message) = said(&mesh, None);
        assert_eq!((is_true, reason), (true, Reason::Installed), "{message}");
        assert!(message.contains("istio-cni behind it"), "{message}");
        let (is_true, reason, message) = said(&Chain { needed_missing: mesh.others.clone(), ..mesh }, None);
        assert_eq!((is_true, reason), (false, Reason::OthersPluginMissing), "{message}");
        assert!(message.contains("istio-cni") && message.contains("/opt/cni/bin"), "{message}");
    }
}
