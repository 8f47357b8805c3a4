//! Removes from the node what the agent put there, for uninstalling.

use std::{fs, path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::{Context, ensure};
use vnetpool_plugin::{
    cni,
    ledger::file::{Error, Quiet, Store},
    wiring,
};

use crate::install::{self, gone};
use crate::{config::Config, firewall, metrics::Metrics, others_firewall};

/// How long between two attempts.
const PAUSE: Duration = Duration::from_secs(10);

/// Removes configuration, plugin, table and state. Refused while a pod has an address: it would lose its
/// network. IP forwarding stays on, since others on the node may have come to need it.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let store = Store::at(&config.state_dir).of_boot(config.boot_id()?);
    // To the end: an ADD that runs beside it would wire a pod without its rules.
    let _quiet = tokio::task::spawn_blocking(move || vacant(&store)).await??;
    // First the files that would bring new pods.
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
    // In a container the folder is a mount, which stays: its files have gone.
    let is_empty = fs::read_dir(&config.state_dir).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty { Ok(()) } else { gone(emptied).with_context(|| failed(&config.state_dir)) }
}

/// No verb runs on this node from here on, and no pod has an address. A ledger that can't be read may name
/// any pod.
fn vacant(store: &Store) -> anyhow::Result<Quiet> {
    // An ADD that waits for an address would hold this up, and so would the next of its pod.
    match store.note(|ledger, _| ledger.cancel_all()) {
        Ok(()) | Err(Error::Missing(_) | Error::OtherBoot(_)) => {}
        Err(error) => return Err(unknown(error)),
    }
    let quiet = store.quiesce()?;
    let assigned = match store.peek() {
        Ok(ledger) => ledger.assignments().count(),
        Err(Error::Missing(_) | Error::OtherBoot(_)) => 0,
        Err(error) => return Err(unknown(error)),
    };
    let wired = wiring::occupants()?.len();
    ensure!(
        assigned == 0 && wired == 0,
        "{} pods of this node still have an address of Vnetpool: drain the node first",
        assigned.max(wired)
    );
    Ok(quiet)
}

fn unknown(error: Error) -> anyhow::Error {
    let message = "it is unknown whether pods of this node still have an address of Vnetpool (if it lasts, \
                   drain the node and remove the file)";
    anyhow::Error::new(error).context(message)
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
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the node isn't clean yet"),
        }
        metrics.reconcile_ended();
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use vnetpool_plugin::ledger::{
        Assign, Claim, Entry, Ledger, Pod, Sandbox, Supply,
        file::{LEDGER, WakeUp, boot_id, now},
    };

    fn holding(dir: &Path, addresses: u8) -> Store {
        let entry = |n: u8| Entry { name: n.to_string(), address: [10, 240, 0, n].into(), attached_to: None };
        let boot = boot_id().unwrap();
        let supply = Supply {
            object: "object".into(),
            generation: 1,
            node_uid: "node".into(),
            boot_id: boot.into(),
            cooldown: Duration::ZERO,
            entries: (1..=addresses).map(entry).collect(),
        };
        let store = Store::at(dir);
        let ledger = Ledger::rebuild(boot, &[], &[], &supply, None, now(), true);
        store.quiesce().unwrap().create(&ledger).unwrap();
        store
    }

    fn sandbox() -> Sandbox {
        Sandbox { container_id: "a".into(), ifname: "eth0".into() }
    }

    fn assign(store: &Store) -> Assign {
        let (sandbox, pod) = (sandbox(), Pod::default());
        store.with(|ledger, now| ledger.assign(&Claim::wired(&sandbox, &pod, ""), now)).unwrap()
    }

    /// The cleaning has come to where it waits for verbs that run.
    fn is_waited_for(add: &WakeUp) {
        assert!(add.wait(Duration::from_secs(10)).unwrap(), "nobody waits for an ADD that runs");
    }

    #[test]
    fn a_node_is_not_cleaned_beside_an_add_that_is_about_to_have_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let store = holding(dir.path(), 1);
        let add = store.lock_sandbox(&sandbox(), Duration::ZERO).unwrap();
        let wake_up = WakeUp::of(&store, &sandbox()).unwrap();
        let cleaning = thread::spawn({
            let store = store.clone();
            move || vacant(&store).map(drop)
        });
        is_waited_for(&wake_up);
        assert!(matches!(assign(&store), Assign::Assigned(_)));
        drop(add);
        let refused = cleaning.join().unwrap().unwrap_err().to_string();
        assert!(refused.contains("1 pods of this node still have an address"), "{refused}");
        store.note(|ledger, now| ledger.free(&sandbox(), now)).unwrap();
        let quiet = vacant(&store).unwrap();
        assert!(store.try_lock_sandbox(&sandbox()).unwrap().is_none(), "no verb comes until all is gone");
        drop(quiet);
    }

    #[test]
    fn an_add_that_waits_for_an_address_does_not_hold_the_cleaning_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = holding(dir.path(), 0);
        let add = store.lock_sandbox(&sandbox(), Duration::ZERO).unwrap();
        assert_eq!(assign(&store), Assign::Waiting);
        let wake_up = WakeUp::of(&store, &sandbox()).unwrap();
        let cleaning = thread::spawn({
            let store = store.clone();
            move || vacant(&store).map(drop)
        });
        is_waited_for(&wake_up);
        assert!(!store.peek().unwrap().is_waiting(&sandbox()), "it may wait on");
        drop(add);
        cleaning.join().unwrap().unwrap();
    }

    #[test]
    fn only_a_missing_ledger_or_one_of_another_boot_means_that_no_pod_has_an_address() {
        let dir = tempfile::tempdir().unwrap();
        assert!(vacant(&Store::at(dir.path())).is_ok());
        let store = holding(dir.path(), 1);
        assert!(vacant(&store.clone().of_boot("the next")).is_ok());
        let (ledger, unread) = (dir.path().join(LEDGER), "it is unknown whether pods");
        let text = fs::read_to_string(&ledger).unwrap();
        for other in ["nonsense".to_owned(), text.replacen("ledger 1", "ledger 4", 1)] {
            fs::write(&ledger, other).unwrap();
            let refused = format!("{:#}", vacant(&store).unwrap_err());
            assert!(refused.starts_with(unread), "{refused}");
        }
        fs::remove_file(&ledger).unwrap();
        fs::create_dir(&ledger).unwrap();
        let refused = format!("{:#}", vacant(&store).unwrap_err());
        assert!(refused.starts_with(unread), "{refused}");
    }
}
