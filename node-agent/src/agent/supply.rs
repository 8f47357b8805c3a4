//! The agent's stages that concern the ledger: supplying it, relinquishing, building it anew.

use anyhow::Context;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::verdict::Verdict;
use vnetpool_crds::{NodeIPAllocation, NodeIPAllocationStatus, condition};
use vnetpool_plugin::{
    ledger::{Entry, Ledger, Millis, Supplied, Supply, file, file::Store},
    wiring,
};

use super::{Agent, blocking::blocking, notes::Finding};
use crate::{
    report::leased,
    supply::{Invalid, supply},
    watch::version,
};

/// The ledger after a reconcile has supplied it.
pub(super) struct TakenIn {
    pub ledger: Ledger,
    /// CLOCK_BOOTTIME of its read.
    pub at: Millis,
    /// The generation of the object in it; None if the object isn't.
    pub generation: Option<i64>,
    pub findings: Vec<Finding>,
}

/// The object's meaning for this node.
pub(super) enum Meaning {
    /// For this Node; whether it is for this boot the ledger decides.
    Ours(Supply),
    /// Not to be taken in, and why.
    Refused { reason: Reason, message: String },
}

impl Agent {
    /// Supplies the ledger from the object and relinquishes what the object asks for; builds a ledger if
    /// there is none. None if there is no ledger and nothing to build one from.
    pub(super) async fn take_in(
        &mut self,
        object: Option<&NodeIPAllocation>,
        meaning: Option<Meaning>,
    ) -> anyhow::Result<Option<TakenIn>> {
        let supply = match &meaning {
            Some(Meaning::Ours(supply)) => Some(supply.clone()),
            _ => None,
        };
        let target = object.map_or(0, |object| object.spec.target);
        let mut transacted = self.transact(supply.clone(), target).await?;
        if let Err(error) = &transacted
            && error.needs_rebuild()
        {
            if supply.is_none() {
                self.reports.send_replace(None);
                return Ok(None);
            }
            tracing::info!(%error, "building a ledger");
            self.rebuild(matches!(error, file::Error::Missing(_) | file::Error::OtherBoot(_))).await?;
            // The ledger is as of a later version than the watch has brought? Then the watch's is yet to
            // come.
            let supply = supply.filter(|_| object.is_some_and(|object| version(object) >= self.latest));
            transacted = self.transact(supply, target).await?;
        }
        let Transacted { supplied, relinquished, ledger, at } = transacted?;
        self.has_seen_ledger = true;
        if !relinquished.is_empty() {
            tracing::info!(names = ?relinquished, target_addresses = target, "relinquished");
            self.metrics.count_relinquished(relinquished.len());
        }
        let generation = object.and_then(|object| object.metadata.generation).unwrap_or_default();
        let held = match supplied {
            Some(Supplied::Applied) => Some(generation),
            // The ledger is ahead of the object: by the watch's delay, or because the API server's store was
            // set back, which the operator learns from this.
            Some(Supplied::Stale) => Some(ledger.generation()),
            Some(Supplied::OtherBoot) | None => None,
        };
        let mut findings = Vec::new();
        findings
            .extend(meaning.and_then(|meaning| self.supplied_verdict(meaning, supplied, ledger.is_ruled())));
        findings.push(backed(&ledger));
        Ok(Some(TakenIn { ledger, at, generation: held, findings }))
    }

    /// The object's meaning for this node. Asks for our Node only when in doubt.
    pub(super) async fn meaning(&mut self, object: &NodeIPAllocation) -> anyhow::Result<Meaning> {
        let supply = match supply(object) {
            Ok(supply) => supply,
            Err(error) => {
                let reason = match error {
                    Invalid::Copy => Reason::Copied,
                    Invalid::Address { .. } => Reason::InvalidSpec,
                };
                return Ok(Meaning::Refused { reason, message: error.to_string() });
            }
        };
        // A Node gets a new UID when it is deleted and registers itself anew.
        if self.node_uid.as_ref() != Some(&supply.node_uid) {
            self.node_uid = self.source.node_uid(&supply.node_uid).await?;
        }
        if self.node_uid.as_ref() != Some(&supply.node_uid) {
            let (name, spec) = (&self.config.node_name, &supply.node_uid);
            let uid = self.node_uid.as_deref().unwrap_or("none");
            let message = format!(
                "spec is for the Node {name} with UID {spec}, and this one's is {uid}: waiting for the operator to adopt it"
            );
            return Ok(Meaning::Refused { reason: Reason::OtherNode, message });
        }
        Ok(Meaning::Ours(supply))
    }

    async fn transact(
        &self,
        supply: Option<Supply>,
        target: u32,
    ) -> anyhow::Result<Result<Transacted, file::Error>> {
        let (store, is_ruled) = (self.store.clone(), self.is_ruled());
        blocking(move || transact(&store, supply.as_ref(), target, is_ruled)).await
    }

    /// Builds a ledger: from what is wired on the node, then from the names relinquished earlier, then from
    /// the spec, whose rules may be others than those of the version that the watch has brought. `is_first`
    /// if nothing shows that there was a ledger in this boot before.
    async fn rebuild(&mut self, is_first: bool) -> anyhow::Result<()> {
        // From here on nothing of an earlier ledger is reported: a name that it relinquished and did not
        // report is free again.
        let gate = self.gate.clone();
        let _gate = gate.lock().await;
        self.reports.send_replace(None);
        let name = &self.config.node_name;
        let object = self.source.read(&self.objects).await?;
        let object = object.with_context(|| format!("NodeIPAllocation {name} is gone"))?;
        let supply = match self.meaning(&object).await? {
            Meaning::Ours(supply) => supply,
            Meaning::Refused { message, .. } => anyhow::bail!(message),
        };
        self.want_rules(&object).await?;
        if !self.are_rules_tried() {
            self.is_ruled = Some(false);
        }
        let is_ruled = self.is_ruled() == Some(true);
        // A report that is still on its way can't be written any more, either.
        let object = self.source.announce(object).await?;
        self.latest = self.latest.max(version(&object));
        let status = object.status.unwrap_or_default();
        let is_first = is_first && !self.has_seen_ledger && status.boot_id != self.boot_id;
        let (store, boot_id) = (self.store.clone(), self.boot_id.clone());
        blocking(move || rebuild(&store, &boot_id, &status, &supply, is_first, is_ruled)).await??;
        self.metrics.rebuilds.inc();
        Ok(())
    }

    /// The condition `Supplied`; None if there is no news, as with a view older than one already taken in.
    fn supplied_verdict(
        &self,
        meaning: Meaning,
        supplied: Option<Supplied>,
        is_ruled: bool,
    ) -> Option<Finding> {
        let verdict = match (meaning, supplied) {
            (Meaning::Refused { reason, message }, _) => Verdict::no(reason, message),
            (Meaning::Ours(_), Some(Supplied::Applied)) if !is_ruled => {
                let message =
                    "the node lacks its rules (RulesApplied), so no pod gets an address that is free";
                Verdict::no(Reason::RulesMissing, message)
            }
            (Meaning::Ours(_), Some(Supplied::Applied)) => {
                Verdict::yes(Reason::Supplied, "the ledger has all addresses of spec")
            }
            (Meaning::Ours(supply), Some(Supplied::OtherBoot)) => {
                let message = format!(
                    "spec.bootID is {:?} and the node's boot is {:?}: waiting for the operator to read the NIC for this boot",
                    supply.boot_id, self.boot_id
                );
                Verdict::no(Reason::OtherBoot, message)
            }
            (Meaning::Ours(_), Some(Supplied::Stale) | None) => return None,
        };
        Some(Finding { type_: condition::SUPPLIED, verdict })
    }
}

/// Builds the missing ledger, once no verb runs: from the addresses in use on the node, then from the
/// object's status about an earlier ledger, and from the spec last. `is_ruled` is as in [`Ledger::rule`].
pub fn rebuild(
    store: &Store,
    boot_id: &str,
    status: &NodeIPAllocationStatus,
    supply: &Supply,
    is_first: bool,
    is_ruled: bool,
) -> anyhow::Result<()> {
    let quiet = store.quiesce()?;
    // Another agent, which is just being replaced, has built one since.
    if store.peek().is_ok() {
        return Ok(());
    }
    let mut occupants = wiring::occupants()?;
    occupants.extend(leased(status, boot_id));
    let now = file::now();
    let freed_at = if is_first && occupants.is_empty() { None } else { Some(now) };
    quiet.create(&Ledger::rebuild(
        boot_id,
        &occupants,
        &status.relinquished,
        supply,
        freed_at,
        now,
        is_ruled,
    ))?;
    tracing::info!(in_use = occupants.len(), relinquished = status.relinquished.len(), "built a ledger");
    Ok(())
}

/// The outcome of [`transact`].
#[derive(Debug)]
pub struct Transacted {
    /// What became of the spec; `None` without one.
    pub supplied: Option<Supplied>,
    /// The names that were given up.
    pub relinquished: Vec<String>,
    /// The ledger afterwards, and CLOCK_BOOTTIME of its read.
    pub ledger: Ledger,
    pub at: Millis,
}

/// Takes the spec, if there is one, into the ledger, and relinquishes what is beyond `target`. Records
/// whether the node has its rules, if that is known.
///
/// These are two transactions, so that waiting pods get new addresses before any of them is given up.
pub fn transact(
    store: &Store,
    supply: Option<&Supply>,
    target: u32,
    is_ruled: Option<bool>,
) -> Result<Transacted, file::Error> {
    let supplied = store.note(|ledger, _| {
        is_ruled.into_iter().for_each(|is_ruled| ledger.rule(is_ruled));
        supply.map(|supply| ledger.supply(supply))
    })?;
    let transacted = store.with(|ledger, at| {
        let relinquished = match supplied {
            Some(Supplied::Applied) => ledger.relinquish(target, at),
            _ => Vec::new(),
        };
        Transacted { supplied, relinquished, ledger: ledger.clone(), at }
    })?;
    Ok(Transacted { ledger: store.living(transacted.ledger), ..transacted })
}

/// The condition `AssignmentsBacked`.
fn backed(ledger: &Ledger) -> Finding {
    let vanished: Vec<String> = ledger
        .assignments()
        .filter(|(_, assignment)| assignment.vanished)
        .map(|(Entry { address, .. }, assignment)| format!("{address} of {}", assignment.whose()))
        .collect();
    let type_ = condition::ASSIGNMENTS_BACKED;
    if vanished.is_empty() {
        let verdict = Verdict::yes(Reason::Backed, "every pod's address is reserved for this node");
        return Finding { type_, verdict };
    }
    let message = format!(
        "no longer reserved for this node, though in use: {}; these pods can't be reached, delete them so that they get new addresses",
        vanished.join(", ")
    );
    Finding { type_, verdict: Verdict::no(Reason::AddressVanished, message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use vnetpool_plugin::ledger::{Claim, Pod, Sandbox};

    fn supply(generation: i64, addresses: &[&str]) -> Supply {
        let entry = |address: &&str| Entry {
            name: format!("vnp-{address}"),
            address: address.parse().unwrap(),
            attached_to: None,
        };
        Supply {
            object: "o".to_owned(),
            generation,
            node_uid: "n".to_owned(),
            boot_id: "b".to_owned(),
            cooldown: Duration::from_secs(30),
            entries: addresses.iter().map(entry).collect(),
        }
    }

    #[test]
    fn each_pod_whose_address_is_lost_is_named_with_the_remedy_and_no_other() {
        let mut ledger =
            Ledger::rebuild("b", &[], &[], &supply(1, &["10.0.0.5", "10.0.0.6", "10.0.0.7"]), None, 0, true);
        for name in ["web-0", "web-1", ""] {
            let pod = Pod { namespace: "shop".to_owned(), name: name.to_owned(), uid: name.to_owned() };
            let sandbox = Sandbox { container_id: format!("container-{name}"), ifname: "eth0".to_owned() };
            ledger.assign(&Claim::wired(&sandbox, &pod, ""), 0);
        }
        assert_eq!(backed(&ledger).verdict.reason, "Backed");
        ledger.supply(&supply(2, &["10.0.0.6"]));
        let verdict = backed(&ledger).verdict;
        assert_eq!((verdict.holds, verdict.reason), (Some(false), Reason::AddressVanished));
        assert!(verdict.message.contains("10.0.0.5 of shop/web-0, "), "{}", verdict.message);
        assert!(verdict.message.contains("10.0.0.7 of container-;"), "{}", verdict.message);
        assert!(
            verdict.message.contains("delete them") && !verdict.message.contains("web-1"),
            "{}",
            verdict.message
        );
    }
}
