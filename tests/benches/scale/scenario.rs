//! The events in the cluster, and the measurements.

use crate::cost::{Cost, each};
use crate::gateway::{Gateway, Trouble};
use crate::process::Process;
use crate::trouble;
use crate::world::{AT_ONCE, World};
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::{interval, sleep, timeout};
use vnetpool_tests::control_plane::User;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    Join,
    Idle,
    Churn,
    Edit,
    Strangers,
    Outage,
    Takeover,
    Relist,
}

impl Scenario {
    const ALL: [Scenario; 8] = [
        Scenario::Join,
        Scenario::Idle,
        Scenario::Churn,
        Scenario::Edit,
        Scenario::Strangers,
        Scenario::Outage,
        Scenario::Takeover,
        Scenario::Relist,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Scenario::Join => "join",
            Scenario::Idle => "idle",
            Scenario::Churn => "churn",
            Scenario::Edit => "edit",
            Scenario::Strangers => "strangers",
            Scenario::Outage => "outage",
            Scenario::Takeover => "takeover",
            Scenario::Relist => "relist",
        }
    }

    /// The scenarios of these names, separated by commas, or of `all`: the cluster has to come first.
    pub fn named(names: &str) -> Result<Vec<Scenario>> {
        if names == "all" {
            return Ok(Scenario::ALL.to_vec());
        }
        let named = |name: &str| {
            let known = || {
                format!("no scenario {name}; there are all, {}", Scenario::ALL.map(Scenario::name).join(", "))
            };
            Scenario::ALL.into_iter().find(|one| one.name() == name).with_context(known)
        };
        let asked: Vec<Scenario> = names.split(',').map(named).collect::<Result<_>>()?;
        let further = asked.into_iter().filter(|one| *one != Scenario::Join);
        Ok(std::iter::once(Scenario::Join).chain(further).collect())
    }
}

/// Nothing happens for so long.
const IDLE: Duration = Duration::from_secs(60);
/// So many pods start a second, each in the place of another, for so long: longer than the agents' counts
/// wait.
const STARTS: u32 = 50;
const CHURN: Duration = Duration::from_secs(180);
/// The work that trails a phase is waited for at most so long.
const TRAIL: Duration = Duration::from_secs(300);

/// The cluster under way.
pub struct Run<'a> {
    world: &'a World<'a>,
    operator: Option<Process>,
    /// Between the operator and the API server, once all watches were to expire.
    gateway: Option<Gateway>,
    /// All so far, at the end of the last phase.
    cost: Cost,
}

impl<'a> Run<'a> {
    pub async fn begin(world: &'a World<'a>, operator: Process) -> Result<Run<'a>> {
        operator.until_ready(world.size.patience()).await?;
        let cost = Cost::so_far(world, &operator).await?;
        Ok(Run { world, operator: Some(operator), gateway: None, cost })
    }

    /// Plays a scenario to its end, and returns its cost.
    ///
    /// # Errors
    /// When a step fails, or it takes longer than a cluster of this size may.
    pub async fn play(&mut self, scenario: Scenario) -> Result<Value> {
        println!("\n{} begins", scenario.name());
        let patience = self.world.size.patience();
        let played = timeout(patience, self.play_on(scenario)).await;
        played.with_context(|| format!("{} hasn't ended after {patience:?}", scenario.name()))?
    }

    async fn play_on(&mut self, scenario: Scenario) -> Result<Value> {
        let world = self.world;
        match scenario {
            Scenario::Join => {
                let began = Instant::now();
                let join = async { world.join().await.map(|()| began.elapsed().as_secs_f64()) };
                let (joined, served) = futures::join!(join, world.until_served());
                let (made, progress) = (joined?, served?);
                let bound = world.size.bound();
                println!(
                    "  nodes and pods were made after {made:.1} s; Azure's limits take {bound:.1} s at least"
                );
                let more = json!({ "bound": bound, "madeAfter": made, "progress": progress });
                self.costs("all nodes come", more, Some(("aNode", world.nodes()))).await
            }
            Scenario::Idle => {
                sleep(IDLE).await;
                self.costs("idle", Value::Null, None).await
            }
            Scenario::Churn => {
                let starts = churn(world).await?;
                self.costs("churn", json!({ "podStarts": starts }), Some(("aPodStart", starts))).await
            }
            Scenario::Edit => {
                let steps = world.edit().await?;
                let bound = world.size.bound();
                println!("  Azure's limits take {bound:.1} s at least for a write of each node");
                self.costs("a pool edit", json!({ "bound": bound, "updatedNodes": steps }), None).await
            }
            Scenario::Strangers => {
                let waits = trouble::strangers(world).await?;
                self.costs("strangers among the nodes", waits, None).await
            }
            Scenario::Outage => {
                let waits =
                    trouble::outage(world, async || self.costs("without ARM", Value::Null, None).await)
                        .await?;
                self.costs("ARM is back", waits, None).await
            }
            Scenario::Takeover => self.takeover().await,
            Scenario::Relist => self.relist().await,
        }
    }

    /// The cost since the last time, and of the work that trails, as Events and reports do. With a name and a
    /// count, each one's part of it under that name.
    async fn costs(&mut self, phase: &str, more: Value, parts: Option<(&str, usize)>) -> Result<Value> {
        let operator = self.operator.as_ref().context("no operator")?;
        let before = std::mem::replace(&mut self.cost, Cost::so_far(self.world, operator).await?);
        let took = self.cost.since(&before);
        let settled = settle(operator).await?;
        let now = Cost::so_far(self.world, operator).await?;
        let mut figures = now.less(&before, phase, took)?;
        figures["trailSeconds"] = json!(now.since(&before) - took);
        figures["settled"] = json!(settled);
        if let Some((name, count)) = parts {
            figures[name] = each(&figures, count);
        }
        self.cost = now;
        if let (Some(figures), Value::Object(more)) = (figures.as_object_mut(), more) {
            figures.extend(more);
        }
        Ok(figures)
    }

    /// A standby syncs, the leader is killed and then, with another standby, asked to end.
    async fn takeover(&mut self) -> Result<Value> {
        let mut figures = serde_json::Map::new();
        for end in ["killed", "asked to end"] {
            let began = Instant::now();
            let identity = self.world.stage.new_identity();
            let standby = Process::start(self.world.plane, self.world.stage.sim.arm_url(), &identity)?;
            standby.until_ready(self.world.size.patience()).await?;
            let synced = began.elapsed().as_secs_f64();
            let warm = standby.usage()?;
            let leader = self.operator.take().context("no operator")?;
            let began = Instant::now();
            let is_killed = end == "killed";
            let ended = tokio::task::spawn_blocking(move || {
                if is_killed { leader.kill() } else { leader.end() }.map(|()| began.elapsed().as_secs_f64())
            });
            self.until_leads(&identity).await?;
            let won = began.elapsed().as_secs_f64();
            until_reconciled(&standby, 1).await?;
            let first = began.elapsed().as_secs_f64();
            until_reconciled(&standby, self.world.nodes()).await?;
            let all = began.elapsed().as_secs_f64();
            let ended = ended.await??;
            let requests = standby.metrics().await?.sum("vnetpool_operator_arm_requests_total", &[]);
            let usage = standby.usage()?;
            println!(
                "\nleader {end}: it had gone after {ended:.1} s, the standby won after {won:.1} s, reconciled a node \
                 after {first:.1} s and at all after {all:.1} s, and asked Azure {requests} times; it had synced in {synced:.1} s, \
                 with {:.0} MB, has had {:.0} MB at most, and has used {:.1} s of processor",
                warm.memory[1], usage.memory[1], usage.processor
            );
            let one = json!({ "leaderGone": ended, "leaseWon": won, "firstReconciled": first, "allReconciled": all,
                "azureRequests": requests, "syncSeconds": synced, "standbyMemoryMB": warm.memory[1],
                "mostMemoryMB": usage.memory[1], "processorSeconds": usage.processor });
            figures.insert(end.to_owned(), one);
            self.cost = Cost::so_far(self.world, &standby).await?;
            self.operator = Some(standby);
        }
        Ok(Value::Object(figures))
    }

    /// All watches of a leader expire at once, as when etcd was compacted while the API server was away: it
    /// lists everything anew. It is behind a gateway from here on.
    async fn relist(&mut self) -> Result<Value> {
        let gateway = Gateway::start(self.world.plane, User::Operator).await?;
        let identity = self.world.stage.new_identity();
        let behind = Process::start_behind(gateway.address, self.world.stage.sim.arm_url(), &identity)?;
        self.gateway = Some(gateway);
        behind.until_ready(self.world.size.patience()).await?;
        let leader = self.operator.take().context("no operator")?;
        let ended = tokio::task::spawn_blocking(move || leader.end());
        self.until_leads(&identity).await?;
        until_reconciled(&behind, self.world.nodes()).await?;
        ended.await??;
        settle(&behind).await?;
        behind.forget_most()?;
        let before = behind.usage()?.memory[0];
        self.cost = Cost::so_far(self.world, &behind).await?;
        self.operator = Some(behind);

        let gateway = self.gateway.as_ref().context("no gateway")?;
        let (began, lists, watches) = (Instant::now(), gateway.lists(), gateway.watches());
        gateway.trouble(Trouble::Expire, KINDS);
        gateway.end_watches();
        // A watch is asked for when its list is complete.
        while gateway.watches() < watches + KINDS {
            sleep(POLL).await;
        }
        let synced = began.elapsed().as_secs_f64();
        let lists = gateway.lists() - lists;
        println!(
            "\nall watches have expired: synced after {synced:.1} s by {lists} lists, {before:.0} MB before"
        );
        let more = json!({ "syncSeconds": synced, "lists": lists, "memoryBeforeMB": before });
        self.costs("all is listed anew", more, None).await
    }

    async fn until_leads(&self, identity: &str) -> Result<()> {
        while self.world.stage.leader().await?.0.as_deref() != Some(identity) {
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// Waits until the operator works no more on what has happened. Gives whether that came.
async fn settle(operator: &Process) -> Result<bool> {
    let (began, mut last) = (Instant::now(), f64::NEG_INFINITY);
    loop {
        let used = operator.usage()?.processor;
        if used - last < 0.5 {
            return Ok(true);
        }
        if began.elapsed() > TRAIL {
            return Ok(false);
        }
        last = used;
        sleep(Duration::from_secs(10)).await;
    }
}

/// So many kinds are watched.
const KINDS: usize = 4;
/// How often to check whether a timed event has happened.
const POLL: Duration = Duration::from_millis(100);

/// Waits until the operator has reconciled so many nodes.
async fn until_reconciled(operator: &Process, nodes: usize) -> Result<()> {
    loop {
        let ok = [r#"controller="node""#, r#"outcome="ok""#];
        let metrics = operator.metrics().await?;
        if metrics.sum("vnetpool_operator_reconciles_total", &ok) >= nodes as f64 {
            return Ok(());
        }
        sleep(POLL).await;
    }
}

/// Pods end and others start in their places; gives how many did.
async fn churn(world: &World<'_>) -> Result<usize> {
    let count = STARTS as usize * CHURN.as_secs() as usize;
    let beat = interval(Duration::from_secs(1) / STARTS);
    let beats = stream::unfold(beat, async |mut beat| {
        beat.tick().await;
        Some(((), beat))
    });
    // Far from one another, so that no node has two at once.
    let places = beats.take(count).enumerate().map(|(index, ())| (index * 7919) % world.nodes());
    let replaced = places.map(async |place| {
        let node = format!("n{place}");
        world.end_pod(&node).await?;
        world.run_pod(&node).await
    });
    let began = Instant::now();
    replaced.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let a_second = count as f64 / began.elapsed().as_secs_f64();
    println!("  {count} pods were replaced, {a_second:.1} a second");
    Ok(count)
}
