//! The agent's loop: at every change of the object or the ledger, and when an address has cooled, one
//! reconcile over what concerns the ledger; beside it, every so often, a look at the whole node.
//!
//! A reconcile supplies the ledger and reports. It waits for locks and for the API server, never for another
//! program. What is slow is done in looks (`keeper`), of which one is under way at a time. A reconcile
//! holds back only what needs a look first: a spec whose rules are others than those in place.
//!
//! What fails is told in a condition and stops nothing else, with two exceptions: without its rules the node
//! gives no pod an address, and without a ledger there is nothing to go on with. Everything is read anew:
//! what an earlier reconcile or look knew is never trusted.

mod blocking;
mod install;
mod keeper;
mod notes;
mod restore;
mod rules;
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

use crate::{
    config::Config,
    firewall,
    imds::listing::Told,
    metrics::Metrics,
    report::{Report, publish::Publisher},
    source::Source,
    watch as watches,
};
use keeper::{Keeper, Looked, Wanted};
use notes::{Notes, Reserved, Said};
use supply::{Meaning, Taken};
use tables::{Tables, guard};

pub use supply::rebuild;

/// How long changes of the ledger are collected before a reconcile: pods come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often a reconcile comes without an occasion.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);
/// How often everything on the node is looked at without an occasion.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two looks because something has changed on the node: a daemon that fights with us costs no more.
const LOOKS_APART: Duration = Duration::from_secs(1);
/// How long a look may take: longer than all together that it runs and waits for, each of which is bounded by
/// itself, but for the kernel.
const LOOK_WITHIN: Duration = Duration::from_secs(240);
/// Between two reconciles for the ends of cooldowns, which come as closely as pods once went.
const COOLED_EVERY: Duration = Duration::from_secs(1);
/// After a look at which something failed that may go well soon; twice as long after each further one.
const FIRST_LOOK_AGAIN: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// A node's agent, ready to run.
pub struct Agent {
    config: Config,
    source: Source,
    /// The boot that the plugin goes by.
    boot_id: String,
    store: Store,
    metrics: Metrics,
    /// UID of our Node as last read.
    node_uid: Option<String>,
    /// Version of the latest object that went into the ledger.
    latest: u64,
    /// Generation of the object for whose addresses was last looked at the node's own.
    generation: Option<i64>,
    /// Whether there has been a ledger since this process started.
    has_seen_ledger: bool,
    notes: Notes,
    tables: Tables,
    /// None while it looks.
    keeper: Option<Keeper>,
    /// What the next look is for, and what the last one was for and has come to.
    wanted: Wanted,
    looked: Looked,
    /// Whether the rules of what the ledger holds are in place, by the last look for them; None if this process
    /// hasn't looked. An object that is gone or refused changes nothing of it, nor do rules yet to come.
    is_ruled: Option<bool>,
    reserved: Reserved,
    /// When the last look began, and when the next one is due.
    begun: Option<Instant>,
    next_look: Instant,
    /// Before this nothing on the node has it looked at: looks take about half of the time at most.
    rested: Instant,
    look_again: Duration,
    uplinks: watch::Sender<Uplinks>,
    /// What the metadata service tells of the NIC.
    listed: watch::Sender<Told>,
    /// Why changes of the ledger go unseen until somebody looks.
    unwatched: watch::Sender<Option<String>>,
    gate: Arc<Mutex<()>>,
    objects: watch::Sender<Option<Arc<NodeIPAllocation>>>,
    /// Whether a pod waits for an address.
    waiting: watch::Sender<bool>,
    reports: watch::Sender<Option<Report>>,
}

impl Agent {
    pub fn new(config: Config, source: Source, metrics: Metrics) -> anyhow::Result<Agent> {
        let boot_id = config.boot_id()?;
        let store = Store::at(&config.state_dir).of_boot(&boot_id);
        let notes = Notes::new(metrics.clone());
        let (uplinks, unwatched) = (watch::Sender::default(), watch::Sender::default());
        let (told, heard) = (watch::Sender::clone(&uplinks), unwatched.subscribe());
        let tables = Tables::default();
        let keeper = Keeper::new(config.clone(), store.clone(), notes.clone(), tables.clone(), told, heard);
        Ok(Agent {
            keeper: Some(keeper),
            store,
            boot_id,
            config,
            source,
            metrics,
            node_uid: None,
            latest: 0,
            generation: None,
            has_seen_ledger: false,
            notes,
            tables,
            wanted: Wanted::default(),
            looked: Looked::default(),
            is_ruled: None,
            reserved: Reserved::default(),
            begun: None,
            next_look: Instant::now(),
            rested: Instant::now(),
            look_again: FIRST_LOOK_AGAIN,
            uplinks,
            listed: watch::Sender::default(),
            unwatched,
            gate: Arc::default(),
            objects: watch::Sender::new(None),
            waiting: watch::Sender::new(false),
            reports: watch::Sender::new(None),
        })
    }

    /// Runs until one of its tasks can't go on.
    pub async fn run(self) -> anyhow::Result<()> {
        let dir = &self.config.state_dir;
        self.store.make_private().with_context(|| format!("can't close {} to others", dir.display()))?;
        let [changed, disturbed] = std::array::from_fn(|_| Arc::new(Notify::new()));
        let publisher = Publisher {
            state_dir: self.config.state_dir.clone(),
            reports: self.reports.subscribe(),
            objects: self.objects.subscribe(),
            gate: self.gate.clone(),
            metrics: self.metrics.clone(),
        };
        let source = self.source.clone();
        let metrics = || self.metrics.clone();
        tokio::select! {
            result = source.follow(self.objects.clone(), self.waiting.subscribe(), metrics()) => result,
            result = watches::ledger(self.config.state_dir.clone(), changed.clone(), self.unwatched.clone(), metrics()) => result,
            result = watches::kernel(self.uplinks.subscribe(), self.store.clone(), disturbed.clone(), metrics()) => result,
            result = firewall::events::watch(self.tables.known.clone(), metrics()) => result,
            result = guard(self.tables.clone(), self.notes.clone(), &disturbed) => result,
            result = source.look_out(self.objects.subscribe(), self.listed.clone()) => result,
            result = source.report(publisher) => result,
            result = self.work(&changed, &disturbed) => result,
        }
    }

    async fn work(mut self, changed: &Notify, disturbed: &Notify) -> anyhow::Result<()> {
        let (mut objects, mut listed) = (self.objects.subscribe(), self.listed.subscribe());
        let mut tables = self.tables.known.subscribe();
        let mut retry = FIRST_RETRY;
        let mut looks = JoinSet::new();
        loop {
            let object = objects.borrow_and_update().clone();
            anyhow::ensure!(
                !self.is_store_set_back(object.as_deref()).await,
                "the API server's store was set back to an earlier state; starting over"
            );
            let outcome = self.reconcile(object.as_deref()).await;
            self.metrics.reconcile_ended();
            let again = match outcome {
                Ok(cooled) => {
                    retry = FIRST_RETRY;
                    self.metrics.ready.store(self.is_ready(), Ordering::Relaxed);
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
            self.look_if_due(&mut looks);
            // A look that is under way, however long, holds up none of this.
            let every = Some(Instant::now() + RECONCILE_EVERY);
            let look = self.keeper.as_ref().map(|_| self.next_look);
            let again = [again, every, look].into_iter().flatten().min();
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
                    self.next_look = self.next_look.min(self.rested);
                }
                Some(ended) = looks.join_next() => self.take_back(ended.context("a look was lost")?),
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// Whether pods can be given what they need: a ledger, of which each report is, and the CNI configuration.
    fn is_ready(&self) -> bool {
        self.looked.is_installed && self.reports.borrow().is_some()
    }

    /// Begins a look if one is due, or something else is wanted than at the last.
    fn look_if_due(&mut self, looks: &mut JoinSet<(Keeper, Looked)>) {
        let is_due = Instant::now() >= self.next_look || self.wanted != self.looked.wanted;
        if let Some(keeper) = self.keeper.take_if(|_| is_due) {
            self.begun = Some(Instant::now());
            self.next_look = Instant::now() + LOOK_EVERY;
            if !self.are_rules_tried() {
                // Until it ends the kernel may have these rules or those of before, should they come back.
                self.looked.wanted.rules = None;
            }
            looks.spawn(keeper.look(self.wanted.clone(), self.reserved.clone(), LOOK_WITHIN));
        }
    }

    /// A look has ended.
    fn take_back(&mut self, (keeper, looked): (Keeper, Looked)) {
        let now = Instant::now();
        if looked.has_failed {
            self.next_look = self.next_look.min(now + self.look_again);
            self.look_again = (self.look_again * 2).min(LOOK_EVERY);
        } else {
            self.look_again = FIRST_LOOK_AGAIN;
        }
        let took = self.begun.map_or(Duration::ZERO, |begun| now - begun);
        self.rested = now + took.clamp(LOOKS_APART, LOOK_EVERY);
        self.next_look = self.next_look.max(self.rested);
        (self.keeper, self.looked) = (Some(keeper), looked);
    }

    /// One reconcile. Returns when the next address has cooled.
    ///
    /// The order is part of how pods are kept safe: a pod needs its rules with its first packet, and an
    /// address must be the pods' alone when it is handed out.
    async fn reconcile(&mut self, object: Option<&NodeIPAllocation>) -> anyhow::Result<Option<Instant>> {
        let is_there = object.is_some();
        let object = self.newest(object);
        // What the NIC no longer holds is the administrator's to give to a link.
        self.reserved = Reserved::default();
        let meaning = match object {
            Some(object) => Some(self.meaning(object).await?),
            None => None,
        };
        if let (Some(object), Some(Meaning::Ours(supply))) = (object, &meaning) {
            self.reserved = Reserved::of(&object.spec, &supply.entries);
            self.want_rules(object);
        }
        let is_ours = matches!(meaning, Some(Meaning::Ours(_)));
        // A spec that can't be taken in, or not yet, or is older than what the ledger was built from, changes
        // nothing of what pods have of another one.
        self.wanted.installs &= is_there;
        // What the rules are made from waits for the look that makes them, well or badly.
        let is_tried = self.are_rules_tried();
        if is_tried && self.wanted.rules.is_some() {
            self.is_ruled = Some(self.looked.is_ruled);
        }
        let meaning = meaning.filter(|_| is_tried);
        if let (Some(object), Some(Meaning::Ours(_))) = (object, &meaning)
            && object.metadata.generation != self.generation
        {
            // What can't be taken off, or seen, is told by the next look.
            let _ = self.notes.take_off(&self.reserved, &self.config).await;
            self.generation = object.metadata.generation;
        }
        let Some(mut taken) = self.take_in(object, meaning).await? else { return Ok(None) };
        if is_ours {
            self.wanted.installs = taken.ledger.had_first_address();
        }
        // Of rules that are yet to come nothing is said. What isn't told of pods that were refused has ended.
        let is_said = |said: &&Said| is_tried || said.type_ == condition::METADATA_REFUSED;
        taken.said.extend(self.looked.said.iter().filter(is_said).cloned());
        taken.said.push(self.notes.say());
        Ok(self.report(object, taken))
    }

    /// From here on looks make the rules of this object, which is for this node, if it is for this boot.
    fn want_rules(&mut self, object: &NodeIPAllocation) {
        if object.spec.boot_id == self.boot_id {
            self.wanted.rules = Some(rules::basis(&object.spec));
        }
    }

    /// Whether the last look was for the rules that are wanted.
    fn are_rules_tried(&self) -> bool {
        self.wanted.rules == self.looked.wanted.rules
    }

    /// What the ledger is to say of the node's rules; None: what it says. They aren't in place while nobody has
    /// seen the table stand since the kernel told of a change of it, whatever a look has seen before.
    fn is_ruled(&self) -> Option<bool> {
        self.is_ruled.map(|is_ruled| is_ruled && !self.tables.are_in_doubt())
    }

    /// Whether the API server itself has an older version of the object than this process has seen, as after
    /// a restore from a backup. What the watch brings may be older for a moment; what is read isn't.
    async fn is_store_set_back(&self, object: Option<&NodeIPAllocation>) -> bool {
        let is_older = |object: &NodeIPAllocation| watches::version(object) < self.latest;
        if !object.is_some_and(is_older) {
            return false;
        }
        let read = self.source.read(&self.objects).await;
        read.is_ok_and(|read| read.as_ref().is_some_and(is_older))
    }

    /// The object, unless the ledger was built from a later version, read past the watch, perhaps of an
    /// object that was made anew. What was relinquished and released in between must not come back.
    fn newest<'a>(&mut self, object: Option<&'a NodeIPAllocation>) -> Option<&'a NodeIPAllocation> {
        let object = object.filter(|object| watches::version(object) >= self.latest);
        self.latest = object.map_or(self.latest, watches::version);
        object
    }

    /// Reports what a reconcile has come to. Returns when the next address has cooled.
    fn report(&self, object: Option<&NodeIPAllocation>, taken: Taken) -> Option<Instant> {
        let Taken { ledger, at, generation: supplied, said } = taken;
        let counts = ledger.counts(at);
        self.waiting.send_replace(counts.waiting > 0);
        self.metrics.set_counts(counts);
        let time = Timestamp::now();
        let generation = object.and_then(|object| object.metadata.generation);
        let conditions =
            said.into_iter().map(|Said { type_, verdict }| verdict.condition(type_, generation, time));
        let cooled = ledger
            .next_ready(at)
            .map(|ready| Instant::now() + Duration::from_millis(ready.saturating_sub(at)).max(COOLED_EVERY));
        let is_held = |name: &&String| {
            object.is_some_and(|object| object.spec.ip_configurations().any(|one| one.name == **name))
        };
        let told = self.listed.borrow().clone();
        let unlisted = told.unlisted.iter().filter(is_held).cloned().collect();
        let conditions = conditions.collect();
        let spec = object.map(|object| &object.spec);
        self.reports.send_replace(Some(Report {
            warm: spec.map_or(0, |spec| spec.warm),
            names_holders: spec.is_some_and(|spec| spec.report_holders),
            unlisted,
            metadata_silent: told.is_silent,
            conditions,
            generation: supplied,
            at,
            time,
            ledger,
        }));
        cooled
    }
}

/// Whether the folder exists only because somebody still has it open.
fn is_deleted(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|metadata| metadata.nlink() == 0)
}
