//! Takes what the agent put on the node off it again, for uninstalling.

use std::{fs, path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::{Context, ensure};
use vnetpool_plugin::{cni, ledger::file::Store, wiring};

use crate::install::{self, gone};
use crate::{config::Config, firewall, metrics::Metrics, others_firewall};

/// How long between two attempts.
const PAUSE: Duration = Duration::from_secs(10);

/// Removes configuration, plugin, table and state. Refused while a pod has an address: it would lose its
/// network. IP forwarding stays on, since others on the node may have come to need it.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let store = Store::at(&config.state_dir).of_boot(config.boot_id()?);
    let assigned = store.peek().map_or(0, |ledger| ledger.assignments().count());
    let wired = wiring::occupants()?.len();
    ensure!(
        assigned == 0 && wired == 0,
        "{} pods of this node still have an address of Vnetpool: drain the node first",
        assigned.max(wired)
    );
    // First what would bring new pods.
    let bin = |name| config.cni_bin_dir.join(name);
    let files = [config.cni_conf_dir.join(install::CONFLIST), bin(cni::IPAM), bin(cni::PLUGIN)];
    let failed = |path: &Path| format!("can't remove {}", path.display());
    for file in &files {
        gone(fs::remove_file(file)).with_context(|| failed(file))?;
    }
    firewall::apply::remove().await?;
    wiring::bridge::remove()?;
    others_firewall::nft::close().await?;
    wiring::steer::unsteer()?;
    wiring::range::close(&[])?;
    let emptied = fs::remove_dir_all(&config.state_dir);
    // In a container the folder is a mount, which stays: what is in it has gone.
    let is_empty = fs::read_dir(&config.state_dir).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty { Ok(()) } else { gone(emptied).with_context(|| failed(&config.state_dir)) }
}

/// Cleans the node as soon as no pod has an address any more, and keeps it so. Probes see whether it is
/// clean.
pub async fn stay(config: &Config, metrics: &Metrics) -> anyhow::Result<()> {
    loop {
        let cleaned = run(config).await;
        let was_clean = metrics.ready.swap(cleaned.is_ok(), Ordering::Relaxed);
        match cleaned {
            Ok(()) if was_clean => {}
            Ok(()) => tracing::info!("the node is clean"),
            Err(error) => tracing::warn!("the node isn't clean yet: {error:#}"),
        }
        metrics.reconcile_ended();
        tokio::time::sleep(PAUSE).await;
    }
}
