//! The agent's loop: at every change of the object or the ledger, and when an address has cooled, one
//! reconcile of the ledger's part; beside it, every so often, an inspection of the whole node.
//!
//! A reconcile supplies the ledger and reports. It waits for locks and for the API server, never for another
//! program. The slow work is done in inspections (`keeper`), of which one is under way at a time. A reconcile
//! holds back only what needs an inspection first: a spec whose rules are others than those in place.
//!
//! A failure is reported in a condition and stops nothing else, with two exceptions: without its rules the
//! node gives no pod an address, and without a ledger there is nothing to go on with. Everything is read
//! anew: the findings of an earlier reconcile or inspection are never trusted.

mod blocking;
mod keeper;
mod notes;
mod rules_spec;
mod supply;
mod tables;
#[cfg(test)]
mod tests;

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc, sync::atomic::Ordering, time::Duration};

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::{Mutex, Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use vnetpool_crds::{NodeIPAllocation, condition};
use vnetpool_plugin::{ledger::file::Store, wiring::Uplinks};
use vnetpool_process::lock::lock;

use crate::{
    beat::Beat,
    config::Config,
    firewall::{self, Family, netlink},
    imds::listing::Comparison,
    metrics::Metrics,
    object::{Objects, Seen},
    refusals::Tenants,
    report::{Report, publish::Publisher},
    source::Source,
    watch as watches,
};
use blocking::blocking;
use keeper::{Inspected, Keeper, Purpose};
use notes::{Finding, Notes, Reserved};
use supply::{Meaning, TakenIn};
use tables::{Tables, guard};

pub use keeper::put_in_place;
pub use rules_spec::RulesSpec;
pub use supply::{Transacted, rebuild, transact};

/// How long changes of the ledger are collected before a reconcile: pods come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Between two inspections because something has changed on the node: a daemon that fights with us costs no
/// more.
const INSPECTIONS_APART: Duration = Duration::from_secs(1);
/// Between two reconciles for the ends of cooldowns, which come as closely as pods once went.
const COOLED_EVERY: Duration = Duration::from_secs(1);
/// After an inspection, before a change on the node causes the next.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// After an inspection with a failure that may be gone soon; twice as long after each further one.
const FIRST_INSPECTION_RETRY: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// A node's agent, ready to run.
pub struct Agent {
    config: Config,
    source: Source,
    /// When there is a reconcile and an inspection without an occasion.
    beat: Beat,
    /// The boot that the plugin goes by.
    boot_id: String,
    store: Store,
    metrics: Metrics,
    /// UID of our Node as last read.
    node_uid: Option<String>,
    /// Version of the latest object that went into the ledger.
    latest: u64,
    /// The generation of the object for whose addresses the node's own were last checked.
    generation: Option<i64>,
    /// Whether there has been a ledger since this process started.
    has_seen_ledger: bool,
    notes: Notes,
    tables: Tables,
    /// Which pods have addresses, for the packets that an inspection counts.
    tenants: Arc<std::sync::Mutex<Tenants>>,
    /// `None` during an inspection.
    keeper: Option<Keeper>,
    /// The source of the wanted rules, as the next agent of this boot will know it.
    rules_spec: Option<RulesSpec>,
    /// The purpose of the next inspection, and the purpose and outcome of the last one.
    wanted: Purpose,
    inspected: Inspected,
    /// Whether the rules that the ledger's spec needs are in place, by the last inspection for them; `None`
    /// before the first. An object that is gone or refused changes nothing of it, nor do rules yet to come.
    is_ruled: Option<bool>,
    reserved: Reserved,
    /// When the last inspection began, and when the next one is due.
    begun: Option<Instant>,
    next_inspection: Instant,
    /// Before this no change on the node causes an inspection: inspections take about half of the time at
    /// most.
    rested: Instant,
    inspection_retry: Duration,
    uplinks: watch::Sender<Uplinks>,
    /// What the metadata service reports of the NIC.
    listed: watch::Sender<Comparison>,
    /// Why changes of the ledger go unseen until the next check.
    unwatched: watch::Sender<Option<String>>,
    gate: Arc<Mutex<()>>,
    objects: Objects,
    /// Whether a pod waits for an address.
    waiting: watch::Sender<bool>,
    reports: watch::Sender<Option<Report>>,
}

impl Agent {
    pub fn new(config: Config, source: Source, metrics: Metrics, beat: Beat) -> anyhow::Result<Agent> {
        let boot_id = config.boot_id()?;
        let store = Store::at(&config.state_dir).of_boot(&boot_id);
        let rules_spec = RulesSpec::read(&store, &boot_id).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "can't read which rules the node had");
            None
        });
        let rules = rules_spec.as_ref().map(|known| known.spec.clone());
        let notes = Notes::new(metrics.clone());
        let (uplinks, unwatched) = (watch::Sender::default(), watch::Sender::default());
        let (sent, received) = (watch::Sender::clone(&uplinks), unwatched.subscribe());
        let (tables, tenants) = (Tables::default(), Arc::<std::sync::Mutex<Tenants>>::default());
        let keeper = Keeper::new(
            config.clone(),
            store.clone(),
            notes.clone(),
            tables.clone(),
            tenants.clone(),
            sent,
            received,
        );
        Ok(Agent {
            keeper: Some(keeper),
            store,
            boot_id,
            config,
            source,
            beat,
            metrics,
            node_uid: None,
            latest: 0,
            generation: None,
            has_seen_ledger: false,
            notes,
            tables,
            tenants,
            rules_spec,
            wanted: Purpose { rules, ..Purpose::default() },
            inspected: Inspected::default(),
            is_ruled: None,
            reserved: Reserved::default(),
            begun: None,
            next_inspection: Instant::now(),
            rested: Instant::now(),
            inspection_retry: FIRST_INSPECTION_RETRY,
            uplinks,
            listed: watch::Sender::default(),
            unwatched,
            gate: Arc::default(),
            objects: Objects::default(),
            waiting: watch::Sender::new(false),
            reports: watch::Sender::new(None),
        })
    }

    /// Runs until one of its tasks can't go on.
    pub async fn run(self) -> anyhow::Result<()> {
        let dir = &self.config.state_dir;
        self.store.make_private().with_context(|| format!("can't close {} to others", dir.display()))?;
        let [changed, disturbed] = std::array::from_fn(|_| Arc::new(Notify::new()));
        let publisher = self.publisher();
        let source = self.source.clone();
        let metrics = || self.metrics.clone();
        tokio::select! {
            result = source.follow(self.objects.clone(), self.waiting.subscribe(), metrics(), self.beat) => result,
            result = watches::ledger(self.config.state_dir.clone(), changed.clone(), self.unwatched.clone(), metrics()) => result,
            result = watches::kernel(self.uplinks.subscribe(), self.store.clone(), disturbed.clone(), metrics()) => result,
            result = firewall::events::watch(self.tables.known.clone(), metrics()) => result,
            result = guard(self.tables.clone(), self.notes.clone(), &disturbed) => result,
            result = source.compare(self.objects.subscribe(), self.listed.clone(), self.beat) => result,
            result = source.report(publisher) => result,
            result = self.work(&changed, &disturbed) => result,
        }
    }

    fn publisher(&self) -> Publisher {
        Publisher {
            state_dir: self.config.state_dir.clone(),
            reports: self.reports.subscribe(),
            objects: self.objects.subscribe(),
            gate: self.gate.clone(),
            metrics: self.metrics.clone(),
        }
    }

    async fn work(mut self, changed: &Notify, disturbed: &Notify) -> anyhow::Result<()> {
        let (mut objects, mut listed) = (self.objects.subscribe(), self.listed.subscribe());
        let mut tables = self.tables.known.subscribe();
        let mut retry = FIRST_RETRY;
        let mut inspections = JoinSet::new();
        loop {
            let seen = objects.borrow_and_update().clone();
            let object = seen.object();
            anyhow::ensure!(
                !self.is_store_set_back(object).await,
                "the API server's store was set back to an earlier state; starting over"
            );
            let outcome = self.reconcile(object).await;
            self.metrics.reconcile_ended();
            let again = match outcome {
                Ok(cooled) => {
                    retry = FIRST_RETRY;
                    self.metrics.ready.store(self.is_ready(&seen), Ordering::Relaxed);
                    cooled
                }
                Err(error) => {
                    // A container sees a folder that was deleted on its node for as long as it lives.
                    let dir = &self.config.state_dir;
                    anyhow::ensure!(
                        !is_deleted(dir),
                        "{} was deleted; starting over to get it back",
                        dir.display()
                    );
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "can't take in the spec or use the ledger; trying again"
                    );
                    self.metrics.ready.store(false, Ordering::Relaxed);
                    let again = Instant::now() + retry;
                    retry = (retry * 2).min(LONGEST_RETRY);
                    Some(again)
                }
            };
            self.inspect_if_due(&mut inspections);
            // An inspection that is under way, however long, holds up none of this.
            let every = Some(self.beat.next());
            let inspection = self.keeper.as_ref().map(|_| self.next_inspection);
            let again = [again, every, inspection].into_iter().flatten().min();
            tokio::select! {
                result = objects.changed() => result?,
                result = listed.changed() => result?,
                () = changed.notified() => sleep(DEBOUNCE).await,
                // A table that was changed stands again by then, as a rule.
                result = tables.changed() => {
                    result?;
                    sleep(DEBOUNCE).await;
                }
                () = disturbed.notified() => {
                    sleep(DEBOUNCE).await;
                    self.next_inspection = self.next_inspection.min(self.rested);
                }
                Some(ended) = inspections.join_next() => self.take_back(ended.context("an inspection was lost")?),
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// Whether the agent has done its part by the object that the last reconcile had: then an upgrade goes on
    /// to the next agent. That the node has addresses is no part of it, since an agent can't bring them about
    /// and would hold the upgrade up for ever. Until it has, STATUS fails and there is no CNI configuration.
    fn is_ready(&self, seen: &Seen) -> bool {
        let (may_lack_ledger, may_lack_rules) = match seen {
            // There may be a spec, whose rules and plugin are yet to come.
            Seen::Unknown => return false,
            Seen::Absent => (true, true),
            // Until the operator has read a NIC, which it may never find, there is nothing to make rules of.
            Seen::There(object) => (false, object.spec.boot_id.is_empty()),
        };
        // Every report has the ledger.
        let has_ledger = may_lack_ledger || self.reports.borrow().is_some();
        let has_rules = self.wanted.rules.as_ref().map_or(may_lack_rules, |_| self.inspected.is_ruled);
        let is_installed = self.inspected.is_installed || !self.wanted.installs;
        has_ledger && has_rules && is_installed
    }

    /// Begins an inspection if one is due, or something else is wanted than at the last.
    fn inspect_if_due(&mut self, inspections: &mut JoinSet<(Keeper, Inspected)>) {
        let is_due = Instant::now() >= self.next_inspection || self.wanted != self.inspected.wanted;
        if let Some(keeper) = self.keeper.take_if(|_| is_due) {
            self.begun = Some(Instant::now());
            self.next_inspection = self.beat.next();
            if !self.are_rules_tried() {
                // Until it ends the kernel may have these rules or those of before, should they come back.
                self.inspected.wanted.rules = None;
            }
            inspections.spawn(keeper.inspect(self.wanted.clone(), self.reserved.clone()));
        }
    }

    /// An inspection has ended.
    fn take_back(&mut self, (keeper, inspected): (Keeper, Inspected)) {
        let now = Instant::now();
        if inspected.has_failed {
            self.next_inspection = self.next_inspection.min(now + self.inspection_retry);
            self.inspection_retry = (self.inspection_retry * 2).min(LONGEST_RETRY);
        } else {
            self.inspection_retry = FIRST_INSPECTION_RETRY;
        }
        let took = self.begun.map_or(Duration::ZERO, |begun| now - begun);
        self.rested = now + took.clamp(INSPECTIONS_APART, LONGEST_REST);
        self.next_inspection = self.next_inspection.max(self.rested);
        (self.keeper, self.inspected) = (Some(keeper), inspected);
    }

    /// One reconcile. Returns when the next address has cooled.
    ///
    /// The order is part of how pods are kept safe: a pod needs its rules with its first packet, and an
    /// address must be the pods' alone when it is handed out.
    async fn reconcile(&mut self, object: Option<&NodeIPAllocation>) -> anyhow::Result<Option<Instant>> {
        let is_there = object.is_some();
        let object = self.newest(object);
        // An address that the NIC no longer holds is the administrator's to give to a link.
        self.reserved = Reserved::default();
        let meaning = match object {
            Some(object) => Some(self.meaning(object).await?),
            None => None,
        };
        if let (Some(object), Some(Meaning::Ours(supply))) = (object, &meaning) {
            self.reserved = Reserved::of(&object.spec, &supply.entries);
            self.want_rules(object).await?;
        }
        let is_ours = matches!(meaning, Some(Meaning::Ours(_)));
        // A spec that can't be taken in, or not yet, or is older than what the ledger was built from, leaves
        // pods what they have of another one.
        self.wanted.installs &= is_there;
        // The parts that rules are made from wait for the inspection that makes the rules, well or badly.
        let is_tried = self.are_rules_tried();
        if is_tried && self.wanted.rules.is_some() {
            self.is_ruled = Some(self.inspected.is_ruled);
        }
        let meaning = meaning.filter(|_| is_tried);
        if let (Some(object), Some(Meaning::Ours(_))) = (object, &meaning)
            && object.metadata.generation != self.generation
        {
            // The next inspection reports what can't be taken off, or seen.
            let _ = self.notes.take_off(&self.reserved, &self.config).await;
            self.generation = object.metadata.generation;
        }
        let Some(mut taken) = self.take_in(object, meaning).await? else { return Ok(None) };
        lock(&self.tenants).see(&taken.ledger, taken.at);
        if is_ours {
            self.wanted.installs = taken.ledger.had_first_address();
        }
        // Rules that are yet to come are not reported. A refusal of pods that isn't reported again has ended.
        let is_reported = |finding: &&Finding| is_tried || finding.type_ == condition::METADATA_REFUSED;
        taken.findings.extend(self.inspected.findings.iter().filter(is_reported).cloned());
        taken.findings.push(self.notes.undisturbed());
        Ok(self.report(object, taken))
    }

    /// From here on inspections make the rules of this object, which is for this node, if it is for this
    /// boot. Fails if the next agent couldn't know them.
    async fn want_rules(&mut self, object: &NodeIPAllocation) -> anyhow::Result<()> {
        let rules_spec = RulesSpec::of(object);
        if object.spec.boot_id != self.boot_id || self.rules_spec.as_ref() == Some(&rules_spec) {
            return Ok(());
        }
        let (store, written) = (self.store.clone(), rules_spec.clone());
        blocking(move || written.write(&store)).await??;
        self.wanted.rules = Some(rules_spec.spec.clone());
        self.rules_spec = Some(rules_spec);
        Ok(())
    }

    /// Whether the last inspection was for the wanted rules.
    fn are_rules_tried(&self) -> bool {
        self.wanted.rules == self.inspected.wanted.rules
    }

    /// What the ledger is to record of the node's rules; `None`: what it has. They aren't in place while the
    /// table hasn't been seen to stand since the kernel reported a change of it, whatever an inspection has
    /// seen before. Before the first inspection they are as the last agent left them, if there is a table:
    /// an agent that is replaced keeps no pod waiting.
    fn is_ruled(&self) -> Option<bool> {
        match self.is_ruled {
            Some(is_ruled) => Some(is_ruled && !self.tables.are_in_doubt()),
            None => (!netlink::has_table(Family::Inet).unwrap_or(false)).then_some(false),
        }
    }

    /// Whether the API server itself has an older version of the object than this process has seen, as after
    /// a restore from a backup. The watch may bring an older version for a moment; a read doesn't.
    async fn is_store_set_back(&self, object: Option<&NodeIPAllocation>) -> bool {
        let is_older = |object: &NodeIPAllocation| watches::version(object) < self.latest;
        if !object.is_some_and(is_older) {
            return false;
        }
        let read = self.source.read(&self.objects).await;
        read.is_ok_and(|read| read.as_ref().is_some_and(is_older))
    }

    /// The object, unless the ledger was built from a later version, read past the watch, perhaps of an
    /// object that was made anew. Addresses that were relinquished and released in between must not come
    /// back.
    fn newest<'a>(&mut self, object: Option<&'a NodeIPAllocation>) -> Option<&'a NodeIPAllocation> {
        let object = object.filter(|object| watches::version(object) >= self.latest);
        self.latest = object.map_or(self.latest, watches::version);
        object
    }

    /// Reports the outcome of a reconcile. Returns when the next address has cooled.
    fn report(&self, object: Option<&NodeIPAllocation>, taken: TakenIn) -> Option<Instant> {
        let TakenIn { ledger, at, generation: supplied, findings } = taken;
        let counts = ledger.counts(at);
        self.waiting.send_replace(counts.waiting > 0);
        self.metrics.set_counts(counts);
        let time = Timestamp::now();
        let generation = object.and_then(|object| object.metadata.generation);
        let conditions =
            findings.into_iter().map(|Finding { type_, verdict }| verdict.condition(type_, generation, time));
        let cooled = ledger
            .next_ready(at)
            .map(|ready| Instant::now() + Duration::from_millis(ready.saturating_sub(at)).max(COOLED_EVERY));
        let is_held = |name: &&String| {
            object.is_some_and(|object| object.spec.ip_configurations().any(|one| one.name == **name))
        };
        let comparison = self.listed.borrow().clone();
        let unlisted = comparison.unlisted.iter().filter(is_held).cloned().collect();
        let conditions = conditions.collect();
        let spec = object.map(|object| &object.spec);
        self.reports.send_replace(Some(Report {
            warm: spec.map_or(0, |spec| spec.warm),
            names_holders: spec.is_some_and(|spec| spec.report_holders),
            unlisted,
            metadata_silent: comparison.is_silent,
            conditions,
            generation: supplied,
            at,
            time,
            ledger,
        }));
        cooled
    }
}

/// Whether the folder exists only because a process still has it open.
fn is_deleted(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|metadata| metadata.nlink() == 0)
}
