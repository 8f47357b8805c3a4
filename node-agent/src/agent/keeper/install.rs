//! The part of an inspection that installs the CNI files.

use std::path::Path;

use vnetpool_crds::pool::Wiring;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_plugin::{cni::IPAM, wiring::Uplink};

use super::Keeper;
use crate::{
    agent::blocking::blocking,
    chain::{self, Chain, Missing},
    config::Config,
    install::{self, Preceding},
};

impl Keeper {
    /// Installs the CNI plugin and the configuration that leads to it. Returns the verdict.
    pub(super) async fn install(&mut self, uplink: &Uplink, wiring: Wiring) -> Verdict {
        let found = match install::found(&self.config.cni_conf_dir) {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => return Verdict::no(Reason::NotInstalled, error.to_string()),
        };
        let (further, bin_dir) = (&self.config.further_plugins, &self.config.cni_bin_dir);
        let chain =
            self.chained.find(&self.config.chain, further, chain::others(&found, further), bin_dir).await;
        self.has_installed = true;
        let (config, uplink) = (self.config.clone(), uplink.clone());
        let alone = self.installing.clone().lock_owned().await;
        let installed = blocking(move || {
            let _alone = alone;
            put_in_place(&config, &uplink, wiring, &chain)
        })
        .await;
        let installed = installed.and_then(|installed| Ok(installed?));
        installed.unwrap_or_else(|error| Verdict::no(Reason::NotInstalled, error.to_string()))
    }
}

/// Makes the files as they are to be. Returns the verdict.
pub fn put_in_place(
    config: &Config,
    uplink: &Uplink,
    wiring: Wiring,
    chain: &Chain,
) -> Result<Verdict, install::Error> {
    let (bin_dir, conf_dir) = (&config.cni_bin_dir, &config.cni_conf_dir);
    let plugin = install::plugin(&config.plugin, bin_dir)?;
    let configuration = match config.ipam_only {
        true => install::no_configuration(conf_dir)?,
        false => {
            let wanted = install::conflist(uplink, wiring, chain, &config.state_dir);
            install::configuration(&wanted, conf_dir)?
        }
    };
    if plugin || configuration {
        tracing::info!(plugin, configuration, "changed CNI files");
    }
    if config.ipam_only {
        let message = format!("{} is there for the plugin that wires the pods", bin_dir.join(IPAM).display());
        return Ok(Verdict::yes(Reason::IPAMOnly, message));
    }
    Ok(verdict_of(chain, install::preceding(conf_dir)?, bin_dir))
}

/// The condition `CNIInstalled` for files that are in place.
fn verdict_of(chain: &Chain, preceding: Option<Preceding>, bin_dir: &Path) -> Verdict {
    let conflist = install::CONFLIST;
    if let Some(Preceding { path, leads_to_ours: false }) = &preceding {
        let message = format!(
            "the runtime uses {} instead of {conflist}, since it comes first by name: remove or rename it",
            path.display()
        );
        return Verdict::no(Reason::OtherConfiguration, message);
    }
    if !chain.needed_missing.is_empty() {
        let message = format!(
            "no pod can start: {} stands behind Vnetpool's entry in {conflist} and is not in {}: install it there, or take \
             its entry out (nodeAgent.cni.furtherPlugins, or the program that has put it there)",
            chain.needed_missing.join(" and "),
            bin_dir.display()
        );
        return Verdict::no(Reason::OthersPluginMissing, message);
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
        (true, None) => Verdict::yes(Reason::Installed, used),
        (true, Some(_)) => Verdict::yes(Reason::Delegated, used),
        // Pods run all the same, so the node is ready without the missing part.
        (false, _) => {
            Verdict::yes(Reason::PluginMissing, format!("{used}; {}", Missing(&chain.missing, bin_dir)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_names_the_plugins_before_and_behind_ours() {
        let judge = |chain: &Chain, preceding: Option<bool>| {
            let path = "/etc/cni/net.d/00-multus.conf".into();
            let preceding = preceding.map(|leads_to_ours| Preceding { path, leads_to_ours });
            verdict_of(chain, preceding, Path::new("/opt/cni/bin"))
        };
        let alone = Chain::default();
        assert_eq!(
            judge(&alone, None),
            Verdict::yes(Reason::Installed, "the runtime uses 10-vnetpool.conflist")
        );
        let kind = |verdict: &Verdict| (verdict.holds, verdict.reason);
        let verdict = judge(&alone, Some(true));
        assert_eq!(kind(&verdict), (Some(true), Reason::Delegated), "{verdict:?}");
        let verdict = judge(&alone, Some(false));
        assert_eq!(kind(&verdict), (Some(false), Reason::OtherConfiguration), "{verdict:?}");
        assert!(verdict.message.contains("/etc/cni/net.d/00-multus.conf"), "{verdict:?}");
        let mesh = Chain { others: vec!["istio-cni".into()], ..Chain::default() };
        let verdict = judge(&mesh, None);
        assert_eq!(kind(&verdict), (Some(true), Reason::Installed), "{verdict:?}");
        assert!(verdict.message.contains("istio-cni behind it"), "{verdict:?}");
        let Verdict { holds, reason, message } =
            judge(&Chain { needed_missing: mesh.others.clone(), ..mesh }, None);
        assert_eq!((holds, reason), (Some(false), Reason::OthersPluginMissing), "{message}");
        assert!(message.contains("istio-cni") && message.contains("/opt/cni/bin"), "{message}");
    }
}
