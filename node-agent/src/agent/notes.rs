//! The reports of inspections and repairs: conditions, and what others have changed on the node.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::timeout;
use vnetpool_crds::{
    NodeIPAllocationSpec,
    condition::{self, Type},
    verdict::Verdict,
};
use vnetpool_plugin::{
    ledger::{Entry, file},
    wiring,
};
use vnetpool_process::lock::lock;

use super::blocking::blocking;
use crate::{
    config::Config,
    disturbance::{self, Disturbances, Kind},
    firewall::{Family, apply::Ensured},
    metrics::Metrics,
};

/// How long it may take to take addresses off the node's own links.
pub(super) const TAKE_OFF_WITHIN: Duration = Duration::from_secs(5);

/// The report of one stage: a condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) type_: Type,
    pub(super) verdict: Verdict,
}

/// The addresses that mustn't be on the node's own links, and those that must.
#[derive(Clone, Debug, Default, PartialEq)]
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

/// Where disturbances by others on the node are reported. A clone reports to the same place.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    pub(super) metrics: Metrics,
    disturbances: Arc<Mutex<Disturbances>>,
}

impl Notes {
    pub(super) fn new(metrics: Metrics) -> Notes {
        Notes { metrics, disturbances: Arc::default() }
    }

    pub(super) fn repaired(&self, kind: Kind, what: String) {
        tracing::warn!(repair = kind.word(), what, "put right what somebody else had changed");
        self.metrics.count_repair(kind.word());
        lock(&self.disturbances).repaired(kind, what, file::now());
    }

    /// Notes the outcome for a table; returns whether it was put back.
    pub(super) fn kept(&self, family: Family, ensured: Ensured) -> bool {
        if matches!(ensured, Ensured::Standing | Ensured::Unseen) {
            return false;
        }
        let table = format!("table {family} vnetpool");
        tracing::info!(nft_table = table, "put a table of nftables in place");
        self.metrics.rules.inc();
        if ensured == Ensured::Restored {
            self.repaired(Kind::Table, table);
        }
        ensured == Ensured::Restored
    }

    /// The obstacles that an inspection has found, whether it has seen all or not.
    pub(super) fn inspected(&self, standing: BTreeSet<String>, has_seen_all: bool) {
        lock(&self.disturbances).inspected(standing, has_seen_all);
    }

    /// The condition `Undisturbed`.
    pub(super) fn undisturbed(&self) -> Finding {
        Finding { type_: condition::UNDISTURBED, verdict: lock(&self.disturbances).verdict(file::now()) }
    }

    /// Takes addresses that Azure reserves for pods off the node's own links: the kernel takes packets to an
    /// address of a link for the node itself, whatever the routes are. Returns those that couldn't be taken
    /// off; fails if they couldn't be read. It takes [`TAKE_OFF_WITHIN`] at most, since pods that wait for an
    /// address wait for it.
    pub(super) async fn take_off(&self, reserved: &Reserved, config: &Config) -> anyhow::Result<Vec<String>> {
        let (Reserved { for_pods, primaries }, net) = (reserved.clone(), config.sysctl_net_dir.clone());
        let taken = blocking(move || {
            let misplaced = disturbance::misplaced(&for_pods, &primaries, wiring::addresses()?);
            Ok::<_, wiring::Error>(disturbance::take_off(&misplaced, &net))
        });
        let late = |_| Err(anyhow::anyhow!("the kernel hasn't answered for {TAKE_OFF_WITHIN:?}"));
        let taken = timeout(TAKE_OFF_WITHIN, taken).await.unwrap_or_else(late);
        let taken = taken.and_then(|taken| Ok(taken?)).inspect_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "can't read the node's addresses");
        })?;
        let mut standing = Vec::new();
        for (what, result) in taken {
            match result {
                Ok(()) => self.repaired(Kind::Address, what),
                Err(error) => standing.push(format!("{what}: {error}")),
            }
        }
        Ok(standing)
    }
}
