//! What the agent keeps right on the node beside the ledger: rules, CNI files, the pods' links.
//!
//! It looks at all of it at once, in a task of its own, since a look runs other programs and lists what grows
//! with the pods: nobody who waits for an address waits for a look.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use vnetpool_crds::{NodeIPAllocationSpec, condition, reason::Reason, verdict::Verdict};
use vnetpool_plugin::{
    ledger::{Ledger, file, file::Store},
    wiring::{self, HostLink, Uplink, Uplinks},
};

use super::blocking::blocking;
use super::notes::{Notes, Reserved, Said};
use super::tables::Tables;
use crate::{
    chain,
    config::Config,
    disturbance::Kind,
    host_ports::HostPorts,
    metrics::Metrics,
    refusals::Refusals,
    sweep::{self, Sweep},
};

/// What a look is for. A change of it has the node looked at soon.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// What the rules are made from, see [`rules::basis`](super::rules::basis): the latest spec for this node
    /// and boot, which outlives its object for the pods that still run. None if there was none.
    pub rules: Option<NodeIPAllocationSpec>,
    /// Whether pods may come: the node has had an address.
    pub installs: bool,
}

/// What a look has come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Looked {
    pub wanted: Wanted,
    /// Whether the rules that are wanted are in place: not if they couldn't be put there, or looked at.
    pub is_ruled: bool,
    pub said: Vec<Said>,
    /// Whether the CNI configuration is in place.
    pub is_installed: bool,
    /// Whether something failed that may go well soon.
    pub has_failed: bool,
}

/// Keeps one node right. Each look gives it back.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) notes: Notes,
    pub(super) tables: Tables,
    /// Whether this process has seen to forwarding.
    pub(super) has_forwarded: bool,
    /// Whether this process has seen to the packets of bridged pods.
    pub(super) has_routed_bridged: bool,
    sweep: Sweep,
    pub(super) chained: chain::Look,
    /// Whether this process has seen to the CNI files.
    pub(super) has_installed: bool,
    /// Held while they are put in place: a look that was broken off may still be at it beside the next.
    pub(super) installing: Arc<tokio::sync::Mutex<()>>,
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
        tables: Tables,
        uplinks: watch::Sender<Uplinks>,
        unwatched: watch::Receiver<Option<String>>,
    ) -> Keeper {
        Keeper {
            config,
            store,
            metrics: notes.metrics.clone(),
            notes,
            tables,
            has_forwarded: false,
            has_routed_bridged: false,
            sweep: Sweep::default(),
            chained: chain::Look::default(),
            has_installed: false,
            installing: Arc::default(),
            refusals: Refusals::default(),
            host_ports: HostPorts::default(),
            uplinks,
            unwatched,
            standing: BTreeSet::new(),
        }
    }

    /// Looks at everything, and puts right what isn't as it should be; breaks off after `within`.
    pub(super) async fn look(
        mut self,
        wanted: Wanted,
        reserved: Reserved,
        within: Duration,
    ) -> (Keeper, Looked) {
        let mut looked = Looked { wanted, has_failed: true, ..Looked::default() };
        self.metrics.look_began();
        let has_seen_all = match timeout(within, self.look_at_all(&mut looked, &reserved)).await {
            Ok(has_seen_all) => {
                self.metrics.look_ended();
                has_seen_all
            }
            Err(_) => {
                let told =
                    format!("a look of the agent at the node was broken off after {} s", within.as_secs());
                tracing::warn!("{told}");
                self.stands(format!("{told}: see what keeps the kernel or nft from answering"));
                false
            }
        };
        self.notes.looked(std::mem::take(&mut self.standing), has_seen_all);
        let installs = looked.wanted.installs || self.has_installed;
        let told =
            [(condition::RULES_APPLIED, looked.wanted.rules.is_some()), (condition::CNI_INSTALLED, installs)];
        for (type_, _) in told.into_iter().filter(|(_, is_told)| *is_told) {
            // What an earlier look has found may be otherwise by now.
            if !looked.said.iter().any(|said| said.type_ == type_) {
                looked.said.push(Said { type_, verdict: unseen() });
            }
        }
        (self, looked)
    }

    /// The order is part of how pods are kept safe: the rules come before the configuration that brings pods.
    /// Says whether everything could be looked at.
    async fn look_at_all(&mut self, looked: &mut Looked, reserved: &Reserved) -> bool {
        if let Some(why) = &*self.unwatched.borrow() {
            self.standing.insert(format!(
                "{why}: the agent looks every second instead. Raise fs.inotify.max_user_instances and \
                 fs.inotify.max_user_watches, or stop what has used them up"
            ));
        }
        let (wanted, mut uplink) = (looked.wanted.clone(), None);
        if let Some(spec) = &wanted.rules {
            let (told, found) = self.rules(spec).await;
            looked.is_ruled = told.verdict.holds == Some(true);
            looked.said.push(told);
            uplink = found;
        }
        let taken_off = self.notes.take_off(reserved, &self.config).await;
        let has_seen_addresses = taken_off.is_ok();
        self.standing.extend(taken_off.unwrap_or_else(|error| {
            vec![format!("can't tell whether a pods' address is on a link of the node: {error:#}")]
        }));
        if let (Some(spec), Some(uplink), true) = (&wanted.rules, &uplink, wanted.installs) {
            let verdict = self.install(uplink, spec.wiring).await;
            looked.is_installed = verdict.reason != Reason::NotInstalled;
            looked.said.push(Said { type_: condition::CNI_INSTALLED, verdict });
        }
        let has_seen_all = self.look_at_pods(looked, uplink.as_ref()).await && has_seen_addresses;
        looked.has_failed = !has_seen_all
            || (wanted.installs && !looked.is_installed)
            || (wanted.rules.is_some() && !looked.is_ruled);
        has_seen_all
    }

    /// Looks at what the ledger tells of, and how it goes for the pods. Says whether that could be looked at.
    async fn look_at_pods(&mut self, looked: &mut Looked, uplink: Option<&Uplink>) -> bool {
        let ledger = match self.store.peek() {
            Ok(ledger) => ledger,
            // The reconcile makes one as soon as there is a spec.
            Err(file::Error::Missing(_)) => return false,
            Err(error) => {
                tracing::warn!(%error, "can't look at the node's pods");
                return false;
            }
        };
        let links = blocking(wiring::host_links).await.and_then(|links| Ok(links?));
        match &links {
            Ok(links) => {
                self.sweep(&ledger, links).await;
                self.restore(&ledger, links).await;
            }
            Err(error) => tracing::warn!(%error, "can't look at the pods' links"),
        }
        if let Some(uplink) = uplink {
            self.let_through(&ledger, &uplink.name).await;
        }
        let pool = looked.wanted.rules.as_ref().map(|spec| spec.pool.as_str());
        looked.said.extend(pool.and_then(|pool| self.say_refused(&ledger, pool)));
        links.is_ok()
    }

    pub(super) fn repaired(&self, kind: Kind, what: String) {
        self.notes.repaired(kind, what);
    }

    pub(super) fn stands(&mut self, what: impl Into<String>) {
        self.standing.insert(what.into());
    }

    /// Looks for what leaked and clears it. What can't be looked at stays as it is.
    async fn sweep(&mut self, ledger: &Ledger, links: &[HostLink]) {
        for suspect in self.sweep.look(ledger, links, file::now()) {
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

/// What is said of what a look hasn't come to.
fn unseen() -> Verdict {
    let message = "not looked at: the look at the node was broken off, or the node lacks its rules or a spec of its own";
    Verdict::unknown(Reason::NotLookedAt, message)
}
