//! What the agent keeps right on the node beside the ledger: rules, CNI files, the pods' links.
//!
//! It looks at all of it at once, in a task of its own, since a look runs other programs and lists what grows
//! with the pods: nobody who waits for an address waits for a look.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use vnetpool_crds::{NodeIPAllocationSpec, condition, reason::Reason};
use vnetpool_plugin::{
    ledger::{Entry, Ledger, file, file::Store},
    wiring::{self, Uplinks},
};
use vnetpool_process::lock::lock;

use super::{Said, blocking};
use crate::{
    chain,
    config::Config,
    disturbance::{self, Disturbances, Kind},
    firewall::apply::Firewall,
    host_ports::HostPorts,
    metrics::Metrics,
    refusals::Refusals,
    sweep::{self, Sweep},
};

/// What a look is for. A change of it has the node looked at soon.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// What the rules are made from, see [`rules::basis`](super::rules::basis). None if there is no spec for
    /// this node and boot.
    pub rules: Option<NodeIPAllocationSpec>,
    /// Whether pods may come: the node has had an address.
    pub installs: bool,
}

/// What a look has come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Looked {
    pub wanted: Wanted,
    pub said: Vec<Said>,
    /// Whether the CNI configuration is in place.
    pub is_installed: bool,
    /// Whether something failed that may go well soon.
    pub has_failed: bool,
}

/// The addresses that mustn't be on the node's own links, and those that must.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserved {
    for_pods: Vec<Ipv4Addr>,
    primaries: Vec<Ipv4Addr>,
}

impl Reserved {
    pub(super) fn of(spec: &NodeIPAllocationSpec, entries: &[Entry]) -> Reserved {
        let primaries = spec.interfaces.iter().filter_map(|interface| interface.primary_address.parse().ok());
        let for_pods = entries.iter().map(|entry| entry.address).collect();
        Reserved { for_pods, primaries: primaries.collect() }
    }
}

/// Where it is told what others do on the node. A clone tells in the same place.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    metrics: Metrics,
    disturbances: Arc<Mutex<Disturbances>>,
}

impl Notes {
    pub(super) fn new(metrics: Metrics) -> Notes {
        Notes { metrics, disturbances: Arc::default() }
    }

    pub(super) fn repaired(&self, kind: Kind, what: String) {
        tracing::warn!(kind = kind.word(), what, "put right what somebody else had changed");
        self.metrics.count_repair(kind.word());
        lock(&self.disturbances).repaired(kind, what, file::now());
    }

    /// What was found in the way, by all of a look.
    fn looked(&self, standing: BTreeSet<String>) {
        lock(&self.disturbances).looked(standing);
    }

    /// The condition `Undisturbed`.
    pub(super) fn say(&self) -> Said {
        let (is_true, reason, message) = lock(&self.disturbances).tell(file::now());
        Said { type_: condition::UNDISTURBED, is_true, reason, message }
    }

    /// Takes addresses that Azure reserves for pods off the node's own links: the kernel takes packets to an
    /// address of a link for the node itself, whatever the routes say. Returns what couldn't be taken off.
    pub(super) async fn take_off(&self, reserved: &Reserved, config: &Config) -> Vec<String> {
        let (Reserved { for_pods, primaries }, net) = (reserved.clone(), config.sysctl_net_dir.clone());
        let taken = blocking(move || {
            let misplaced = disturbance::misplaced(&for_pods, &primaries, wiring::addresses()?);
            Ok::<_, wiring::Error>(disturbance::take_off(&misplaced, &net))
        });
        let mut standing = Vec::new();
        match taken.await {
            Ok(Ok(taken)) => {
                for (what, result) in taken {
                    match result {
                        Ok(()) => self.repaired(Kind::Address, what),
                        Err(error) => standing.push(format!("{what}: {error}")),
                    }
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "can't look at the node's addresses"),
            Err(error) => tracing::warn!(%error, "can't look at the node's addresses"),
        }
        standing
    }
}

/// Keeps one node right. Each look gives it back.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) notes: Notes,
    pub(super) firewall: Firewall,
    pub(super) arp: Firewall,
    /// Whether this process has seen to forwarding.
    pub(super) has_forwarded: bool,
    sweep: Sweep,
    pub(super) chained: chain::Look,
    /// What was said of the CNI files last.
    pub(super) said_installed: Option<Said>,
    pub(super) refusals: Refusals,
    pub(super) host_ports: HostPorts,
    /// The links that pods get out by, for the watch of the kernel.
    pub(super) uplinks: watch::Sender<Uplinks>,
    /// Why changes of the ledger go unseen until somebody looks.
    unwatched: watch::Receiver<Option<String>>,
    /// What this look has found in the way.
    standing: BTreeSet<String>,
}

impl Keeper {
    pub(super) fn new(
        config: Config,
        store: Store,
        notes: Notes,
        uplinks: watch::Sender<Uplinks>,
        unwatched: watch::Receiver<Option<String>>,
    ) -> Keeper {
        Keeper {
            config,
            store,
            metrics: notes.metrics.clone(),
            notes,
            firewall: Firewall::default(),
            arp: Firewall::of("arp"),
            has_forwarded: false,
            sweep: Sweep::default(),
            chained: chain::Look::default(),
            said_installed: None,
            refusals: Refusals::default(),
            host_ports: HostPorts::default(),
            uplinks,
            unwatched,
            standing: BTreeSet::new(),
        }
    }

    /// Looks at everything, and puts right what isn't as it should be. The order is part of how pods are kept
    /// safe: the rules come before the configuration that brings pods.
    pub(super) async fn look(mut self, wanted: Wanted, reserved: Reserved) -> (Keeper, Looked) {
        if let Some(why) = &*self.unwatched.borrow() {
            self.standing.insert(format!(
                "{why}: the agent looks every second instead. Raise fs.inotify.max_user_instances and \
                 fs.inotify.max_user_watches, or stop what has used them up"
            ));
        }
        let (mut said, mut uplink) = (Vec::new(), None);
        if let Some(spec) = &wanted.rules {
            let (told, found) = self.rules(spec).await;
            said.push(told);
            uplink = found;
        }
        self.standing.extend(self.notes.take_off(&reserved, &self.config).await);
        if let (Some(spec), Some(uplink), true) = (&wanted.rules, &uplink, wanted.installs) {
            self.install(uplink, spec.wiring).await;
        }
        let is_installed =
            self.said_installed.as_ref().is_some_and(|said| said.reason != Reason::NotInstalled);
        let has_failed = said.iter().any(|said| !said.is_true) || (wanted.installs && !is_installed);
        said.extend(self.said_installed.clone());
        if let Ok(ledger) = self.store.peek() {
            self.sweep(&ledger).await;
            self.restore(&ledger).await;
            if let Some(uplink) = uplink {
                self.let_through(&ledger, &uplink.name).await;
            }
            said.extend(wanted.rules.as_ref().and_then(|spec| self.say_refused(&ledger, &spec.pool)));
        }
        self.notes.looked(std::mem::take(&mut self.standing));
        (self, Looked { wanted, said, is_installed, has_failed })
    }

    pub(super) fn repaired(&self, kind: Kind, what: String) {
        self.notes.repaired(kind, what);
    }

    pub(super) fn stands(&mut self, what: impl Into<String>) {
        self.standing.insert(what.into());
    }

    /// Looks for what leaked and clears it. What can't be looked at stays as it is.
    async fn sweep(&mut self, ledger: &Ledger) {
        let links = match blocking(wiring::host_links).await {
            Ok(Ok(links)) => links,
            Ok(Err(error)) => return tracing::warn!(%error, "can't look for leaked records"),
            Err(error) => return tracing::warn!(%error, "can't look for leaked records"),
        };
        for suspect in self.sweep.look(ledger, &links, file::now()) {
            let (store, kind) = (self.store.clone(), suspect.kind());
            let clear = {
                let suspect = suspect.clone();
                move || sweep::clear(&store, &suspect)
            };
            match blocking(clear).await {
                Ok(Ok(true)) => {
                    tracing::info!(?suspect, "swept");
                    self.metrics.count_sweep(kind);
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, ?suspect, "can't sweep"),
                Err(error) => tracing::warn!(%error, ?suspect, "can't sweep"),
            }
        }
    }
}
