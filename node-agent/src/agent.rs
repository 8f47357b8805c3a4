//! The agent's loop: at every change of the object or the ledger, and every so often, one pass over all its
//! duties.
//!
//! A pass is a list of stages. One that fails is told in a condition and doesn't stop the others; only
//! without a ledger is there nothing to go on with. Everything is read anew in every pass: what an earlier
//! one knew is never trusted.

mod install;
mod restore;
mod rules;
mod supply;

use std::{
    collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::Path, sync::Arc, sync::atomic::Ordering,
    time::Duration,
};

use anyhow::Context;
use ipnet::Ipv4Net;
use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use vnetpool_crds::{
    NodeIPAllocation,
    condition::{self, Type},
    pool::Wiring,
    reason::Reason,
};
use vnetpool_plugin::{ledger::file::Store, wiring::Uplinks};

use crate::{
    chain,
    config::Config,
    disturbance::Disturbances,
    firewall::{self, apply::Firewall},
    host_ports::HostPorts,
    metrics::Metrics,
    refusals::Refusals,
    report::{Report, publish::Publisher},
    source::Source,
    sweep::Sweep,
    watch as watches,
};
use rules::Ruled;
use supply::{Meaning, Taken};

/// How long changes of the ledger are collected before a pass: pods come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often everything on the node is looked at without an occasion.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two looks because something has changed on the node: a daemon that fights with us costs no more.
const LOOKS_APART: Duration = Duration::from_secs(1);
/// Between two passes for the ends of cooldowns, which come as closely as pods once went.
const COOLED_EVERY: Duration = Duration::from_secs(1);
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
    firewall: Firewall,
    arp: Firewall,
    /// The node's own ranges, closed to what no pod has.
    closed: Vec<Ipv4Net>,
    /// The rules that were put in place last.
    ruled: Option<Ruled>,
    /// Whether this process has seen to forwarding.
    has_forwarded: bool,
    sweep: Sweep,
    chained: chain::Look,
    /// How the CNI configuration that is in place has pods wired.
    installed: Option<Wiring>,
    /// What was said of it. It is told with every report: a condition that lags behind the object's generation
    /// would cost a write of its own.
    said_installed: Option<Said>,
    disturbances: Disturbances,
    refusals: Refusals,
    host_ports: HostPorts,
    /// The links that pods get out by, for the watch of the kernel.
    uplinks: watch::Sender<Uplinks>,
    /// Names of what the metadata service no longer lists.
    unlisted: watch::Sender<BTreeSet<String>>,
    /// Why changes of the ledger go unseen until somebody looks.
    unwatched: watch::Sender<Option<String>>,
    /// When everything was looked at last, and when to do so again.
    looked: Option<Instant>,
    next_look: Instant,
    gate: Arc<Mutex<()>>,
    objects: watch::Sender<Option<Arc<NodeIPAllocation>>>,
    /// Whether a pod waits for an address.
    waiting: watch::Sender<bool>,
    reports: watch::Sender<Option<Report>>,
}

/// What one stage has to say: a condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    type_: Type,
    is_true: bool,
    reason: Reason,
    message: String,
}

impl Agent {
    pub fn new(config: Config, source: Source, metrics: Metrics) -> anyhow::Result<Agent> {
        let boot_id = config.boot_id()?;
        Ok(Agent {
            store: Store::at(&config.state_dir).of_boot(&boot_id),
            boot_id,
            config,
            source,
            metrics,
            node_uid: None,
            latest: 0,
            generation: None,
            has_seen_ledger: false,
            firewall: Firewall::default(),
            arp: Firewall::of("arp"),
            closed: Vec::new(),
            ruled: None,
            has_forwarded: false,
            sweep: Sweep::default(),
            chained: chain::Look::default(),
            installed: None,
            said_installed: None,
            disturbances: Disturbances::default(),
            refusals: Refusals::default(),
            host_ports: HostPorts::default(),
            uplinks: watch::Sender::default(),
            unlisted: watch::Sender::default(),
            unwatched: watch::Sender::default(),
            looked: None,
            next_look: Instant::now(),
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
        let (changed, disturbed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let publisher = Publisher {
            state_dir: self.config.state_dir.clone(),
            reports: self.reports.subscribe(),
            objects: self.objects.subscribe(),
            gate: self.gate.clone(),
            metrics: self.metrics.clone(),
        };
        let source = self.source.clone();
        let errors = self.metrics.watch_errors.clone();
        tokio::select! {
            result = source.follow(self.objects.clone(), self.waiting.subscribe(), errors) => result,
            result = watches::ledger(self.config.state_dir.clone(), changed.clone(), self.unwatched.clone()) => result,
            result = watches::kernel(self.uplinks.subscribe(), disturbed.clone()) => result,
            result = firewall::events::watch(disturbed.clone()) => result,
            result = source.look_out(self.objects.subscribe(), self.unlisted.clone()) => result,
            result = source.report(publisher) => result,
            result = self.work(&changed, &disturbed) => result,
        }
    }

    async fn work(mut self, changed: &Notify, disturbed: &Notify) -> anyhow::Result<()> {
        let (mut objects, mut unlisted) = (self.objects.subscribe(), self.unlisted.subscribe());
        let mut retry = FIRST_RETRY;
        loop {
            let object = objects.borrow_and_update().clone();
            anyhow::ensure!(
                !self.is_store_set_back(object.as_deref()).await,
                "the API server's store was set back to an earlier state; starting over"
            );
            let outcome = self.pass(object.as_deref()).await;
            self.metrics.pass_ended();
            let again = match outcome {
                Ok(again) => {
                    retry = FIRST_RETRY;
                    again
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
                    again
                }
            };
            tokio::select! {
                result = objects.changed() => result?,
                result = unlisted.changed() => result?,
                () = changed.notified() => sleep(DEBOUNCE).await,
                () = disturbed.notified() => {
                    sleep(DEBOUNCE).await;
                    let soon = self.looked.map_or_else(Instant::now, |looked| looked + LOOKS_APART);
                    self.next_look = self.next_look.min(soon);
                }
                () = sleep_until(again) => {}
            }
        }
    }

    /// One pass. Returns when to make the next one at the latest.
    ///
    /// The order of the stages is part of how pods are kept safe:
    /// 1. `rules`, because a pod needs them with its first packet;
    /// 2. `take_off`, because an address must be the pods' alone when it is handed out;
    /// 3. `take_in`, which hands addresses out;
    /// 4. `install`, because the runtime sends pods as soon as there is a configuration;
    /// 5. `sweep`, `restore` and `let_through`, which mend what has gone wrong since.
    async fn pass(&mut self, object: Option<&NodeIPAllocation>) -> anyhow::Result<Instant> {
        let is_look = self.begin(object);
        let object = self.newest(object);
        let meaning = match object {
            Some(object) => Some(self.meaning(object).await?),
            None => None,
        };
        let mut rules = None;
        if let (Some(object), Some(Meaning::Ours(supply))) = (object, &meaning) {
            if supply.boot_id == self.boot_id {
                rules = Some(self.rules(&object.spec, is_look).await);
            }
            if is_look || object.metadata.generation != self.generation {
                self.take_off(&object.spec, &supply.entries).await;
                self.generation = object.metadata.generation;
            }
        }
        let Some(mut taken) = self.take_in(object, meaning).await? else { return Ok(self.next_look) };
        let (rules, uplink) = rules.unzip();
        let uplink = uplink.flatten();
        if let Some(uplink) = uplink.as_ref().filter(|_| taken.ledger.had_first_address()) {
            let wiring = object.map(|object| object.spec.wiring).unwrap_or_default();
            self.install(uplink, wiring, is_look).await;
        }
        taken.said.extend(self.said_installed.clone());
        taken.said.extend(rules);
        if is_look {
            self.sweep(&taken.ledger).await;
            self.restore(&taken.ledger).await;
            if let Some(uplink) = uplink {
                self.let_through(&taken.ledger, &uplink.name).await;
            }
        }
        taken.said.push(self.say_undisturbed());
        if let Some(object) = object {
            taken.said.extend(self.say_refused(&taken.ledger, &object.spec.pool));
        }
        Ok(self.report(object, taken))
    }

    /// Begins a pass. Returns whether it is a look: one that reads everything on the node anew.
    fn begin(&mut self, object: Option<&NodeIPAllocation>) -> bool {
        // Before there was an object, not everything could be looked at.
        let is_first = object.is_some() && self.generation.is_none();
        let is_look = is_first || Instant::now() >= self.next_look;
        if is_look {
            self.next_look = Instant::now() + LOOK_EVERY;
            self.looked = Some(Instant::now());
            self.disturbances.look();
            if let Some(why) = &*self.unwatched.borrow() {
                self.disturbances.stands(format!(
                    "{why}: the agent looks every second instead. Raise fs.inotify.max_user_instances and \
                     fs.inotify.max_user_watches, or stop what has used them up"
                ));
            }
        }
        is_look
    }

    /// Whether the API server itself has an older version of the object than this process has seen, as after a
    /// restore from a backup. What the watch brings may be older for a moment; what is read isn't.
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

    /// Reports what a pass has come to. Returns when to make the next one at the latest.
    fn report(&self, object: Option<&NodeIPAllocation>, taken: Taken) -> Instant {
        let Taken { ledger, at, generation: supplied, said } = taken;
        let counts = ledger.counts(at);
        self.waiting.send_replace(counts.waiting > 0);
        self.metrics.set_counts(counts);
        let time = Timestamp::now();
        let generation = object.and_then(|object| object.metadata.generation);
        let conditions = said.into_iter().map(|Said { type_, is_true, reason, message }| {
            condition::new(type_, is_true, reason, message, generation, time)
        });
        let cooled = ledger
            .next_ready(at)
            .map(|ready| Instant::now() + Duration::from_millis(ready.saturating_sub(at)).max(COOLED_EVERY));
        let is_held = |name: &&String| {
            object.is_some_and(|object| object.spec.ip_configurations().any(|one| one.name == **name))
        };
        let unlisted = self.unlisted.borrow().iter().filter(is_held).cloned().collect();
        let conditions = conditions.collect();
        let spec = object.map(|object| &object.spec);
        self.reports.send_replace(Some(Report {
            warm: spec.map_or(0, |spec| spec.warm),
            names_holders: spec.is_some_and(|spec| spec.report_holders),
            unlisted,
            conditions,
            generation: supplied,
            at,
            time,
            ledger,
        }));
        cooled.map_or(self.next_look, |cooled| cooled.min(self.next_look))
    }
}

/// Whether the folder exists only because somebody still has it open.
fn is_deleted(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|metadata| metadata.nlink() == 0)
}

/// Runs what waits for locks or the kernel aside, so that the watches go on meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a task was lost")
}
