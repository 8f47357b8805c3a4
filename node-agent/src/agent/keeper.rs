//! The parts of the node that the agent maintains beside the ledger: rules, CNI files, the pods' links.
//!
//! It inspects all of it at once, in a task of its own, since an inspection runs other programs and lists
//! what grows with the pods: a pod that waits for an address never waits for an inspection.

mod install;
mod restore;
mod rules;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use vnetpool_crds::{NodeIPAllocationSpec, condition, reason::Reason, verdict::Verdict};
use vnetpool_plugin::{
    ledger::{Ledger, file, file::Store},
    wiring::{self, HostLink, Uplink, Uplinks},
};

use super::blocking::blocking;
use super::notes::{Finding, Notes, Reserved};
use super::tables::Tables;
use crate::{
    chain,
    config::Config,
    disturbance::Kind,
    host_ports::{self, HostPorts},
    metrics::Metrics,
    refusals::{Refusals, Tenants},
    sweep::{self, Sweep},
};

pub use install::put_in_place;
use restore::Firewalls;
pub(super) use rules::basis;

/// How long an inspection may take: longer than all together that it runs and waits for, each of which has
/// its own limit, but for the kernel.
pub(super) const INSPECT_WITHIN: Duration = Duration::from_secs(240);

/// The purpose of an inspection. A change of it has the node inspected soon.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Purpose {
    /// The source of the rules, see [`basis`]: the latest spec for this node and boot, which outlives its
    /// object and the process for the pods that still run. `None` if there was none.
    pub rules: Option<NodeIPAllocationSpec>,
    /// Whether pods may come: the node has had an address.
    pub installs: bool,
}

/// The outcome of an inspection.
#[derive(Clone, Debug, Default)]
pub(super) struct Inspected {
    pub wanted: Purpose,
    /// Whether the wanted rules are in place: not if they couldn't be put there, or read.
    pub is_ruled: bool,
    pub findings: Vec<Finding>,
    /// Whether the CNI configuration is in place.
    pub is_installed: bool,
    /// Whether there was a failure that may be gone soon.
    pub has_failed: bool,
}

/// Keeps one node right. Each inspection gives it back.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) config: Config,
    store: Store,
    metrics: Metrics,
    notes: Notes,
    tables: Tables,
    /// Whether this process has seen to forwarding.
    has_forwarded: bool,
    /// Whether this process has seen to the packets of bridged pods.
    has_routed_bridged: bool,
    /// Whether this process has seen to packets that come by the first NIC to pods of the second.
    has_loosened: bool,
    /// Whether this process has seen to the pods' links.
    has_restored: bool,
    sweep: Sweep,
    chained: chain::Finder,
    /// Whether this process has seen to the CNI files.
    has_installed: bool,
    /// Held while they are put in place: an inspection that was broken off may still be at it beside the
    /// next.
    pub(super) installing: Arc<tokio::sync::Mutex<()>>,
    refusals: Refusals,
    /// Which pods have addresses, as each reconcile sees it.
    tenants: Arc<Mutex<Tenants>>,
    host_ports: HostPorts,
    /// As they were read last.
    firewalls: Option<Firewalls>,
    /// The links that pods get out by, for the watch of the kernel.
    uplinks: watch::Sender<Uplinks>,
    /// Why changes of the ledger go unseen until the next check.
    unwatched: watch::Receiver<Option<String>>,
    /// The obstacles that this inspection has found.
    standing: BTreeSet<String>,
}

impl Keeper {
    pub(super) fn new(
        config: Config,
        store: Store,
        notes: Notes,
        tables: Tables,
        tenants: Arc<Mutex<Tenants>>,
        uplinks: watch::Sender<Uplinks>,
        unwatched: watch::Receiver<Option<String>>,
    ) -> Keeper {
        let host_ports = host_ports::read(&config.state_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "can't read which pods have host ports");
            HostPorts::default()
        });
        Keeper {
            config,
            store,
            metrics: notes.metrics.clone(),
            notes,
            tables,
            has_forwarded: false,
            has_routed_bridged: false,
            has_loosened: false,
            has_restored: false,
            sweep: Sweep::default(),
            chained: chain::Finder::default(),
            has_installed: false,
            installing: Arc::default(),
            refusals: Refusals::default(),
            tenants,
            host_ports,
            firewalls: None,
            uplinks,
            unwatched,
            standing: BTreeSet::new(),
        }
    }

    /// Inspects everything, and repairs what differs; breaks off after [`INSPECT_WITHIN`].
    pub(super) async fn inspect(mut self, wanted: Purpose, reserved: Reserved) -> (Keeper, Inspected) {
        let mut inspected = Inspected { wanted, has_failed: true, ..Inspected::default() };
        self.metrics.inspection_began();
        let has_seen_all = match timeout(INSPECT_WITHIN, self.inspect_all(&mut inspected, &reserved)).await {
            Ok(has_seen_all) => {
                self.metrics.inspection_ended();
                has_seen_all
            }
            Err(_) => {
                let message =
                    format!("an inspection of the node was broken off after {} s", INSPECT_WITHIN.as_secs());
                tracing::warn!("{message}");
                self.stands(format!("{message}: see what keeps the kernel or nft from answering"));
                false
            }
        };
        self.notes.inspected(std::mem::take(&mut self.standing), has_seen_all);
        let installs = inspected.wanted.installs || self.has_installed;
        let reported = [
            (condition::RULES_APPLIED, inspected.wanted.rules.is_some()),
            (condition::CNI_INSTALLED, installs),
        ];
        for (type_, _) in reported.into_iter().filter(|(_, is_reported)| *is_reported) {
            // The findings of an earlier inspection may be out of date.
            if !inspected.findings.iter().any(|finding| finding.type_ == type_) {
                inspected.findings.push(Finding { type_, verdict: unseen() });
            }
        }
        (self, inspected)
    }

    /// The order is part of how pods are kept safe: the rules come before the configuration that brings pods.
    /// Returns whether everything could be inspected.
    async fn inspect_all(&mut self, inspected: &mut Inspected, reserved: &Reserved) -> bool {
        if let Some(why) = &*self.unwatched.borrow() {
            self.standing.insert(format!(
                "{why}: the agent checks it every second instead. Raise fs.inotify.max_user_instances and \
                 fs.inotify.max_user_watches, or stop what has used them up"
            ));
        }
        let (wanted, mut uplink) = (inspected.wanted.clone(), None);
        if let Some(spec) = &wanted.rules {
            let (finding, found) = self.rules(spec).await;
            inspected.is_ruled = finding.verdict.holds == Some(true);
            inspected.findings.push(finding);
            uplink = found;
        }
        let taken_off = self.notes.take_off(reserved, &self.config).await;
        let has_seen_addresses = taken_off.is_ok();
        self.standing.extend(taken_off.unwrap_or_else(|error| {
            vec![format!("it is unknown whether a pods' address is on a link of the node: {error:#}")]
        }));
        if let (Some(spec), Some(uplink), true) = (&wanted.rules, &uplink, wanted.installs) {
            let verdict = self.install(uplink, spec.wiring).await;
            inspected.is_installed = verdict.reason != Reason::NotInstalled;
            inspected.findings.push(Finding { type_: condition::CNI_INSTALLED, verdict });
        }
        let has_seen_all = self.inspect_pods(inspected, uplink.as_ref()).await && has_seen_addresses;
        inspected.has_failed = !has_seen_all
            || (wanted.installs && !inspected.is_installed)
            || (wanted.rules.is_some() && !inspected.is_ruled);
        has_seen_all
    }

    /// Inspects the links and namespaces of the ledger's records, and the pods' traffic. Returns whether they
    /// could be inspected.
    async fn inspect_pods(&mut self, inspected: &mut Inspected, uplink: Option<&Uplink>) -> bool {
        let ledger = match self.store.peek() {
            Ok(ledger) => ledger,
            // The reconcile makes one as soon as there is a spec.
            Err(file::Error::Missing(_)) => return false,
            Err(error) => {
                tracing::warn!(%error, "can't inspect the node's pods");
                return false;
            }
        };
        let links = blocking(wiring::host_links).await.and_then(|links| Ok(links?));
        match &links {
            Ok(links) => {
                self.sweep(&ledger, links).await;
                self.restore(&ledger, links).await;
            }
            Err(error) => tracing::warn!(%error, "can't read the pods' links"),
        }
        if let Some(uplink) = uplink {
            self.let_through(&ledger, &uplink.name).await;
        }
        let pool = inspected.wanted.rules.as_ref().map(|spec| spec.pool.as_str());
        inspected.findings.extend(pool.and_then(|pool| self.refused(&ledger, pool)));
        links.is_ok()
    }

    fn repaired(&self, kind: Kind, what: String) {
        self.notes.repaired(kind, what);
    }

    fn stands(&mut self, what: impl Into<String>) {
        self.standing.insert(what.into());
    }

    /// Finds and clears leaks. What can't be inspected stays as it is.
    async fn sweep(&mut self, ledger: &Ledger, links: &[HostLink]) {
        for suspect in self.sweep.suspects(ledger, links, file::now()) {
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

/// The verdict on parts that an inspection hasn't reached.
fn unseen() -> Verdict {
    let message = "not inspected: the inspection of the node was broken off, or the node lacks its rules or a spec of its own";
    Verdict::unknown(Reason::NotInspected, message)
}
