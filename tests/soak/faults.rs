//! The faults that hit the cluster, drawn by a seed.

use crate::conntrack;
use crate::hunt::{OPENINGS, hunt};
use crate::logs::keep_plugin_logs;
use crate::world::World;
use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{File, remove_file};
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use vnetpool_azure_sim::Draws;
use vnetpool_operator::azure::codes;
use vnetpool_tests::audit::healing::Sign;
use vnetpool_tests::audit::sums::EACH_KIND;
use vnetpool_tests::clock;
use vnetpool_tests::cluster::Host;
use vnetpool_tests::lots::Lots;
use vnetpool_tests::node::processes_in;

/// How long a process stands still, or something else lasts, at least and at most.
const STILL: (u64, u64) = (5, 20);
/// Another operator leads within this time after the leader has stopped: a lease is over after 15 s.
const SUCCEEDED: Duration = Duration::from_secs(60);
/// A clock is set wrong by this many seconds, and what is read shows it up to so many more or less.
const HOUR: i32 = 3600;
const NEARLY: i64 = 60;
const PAUSE: Duration = Duration::from_millis(500);
/// Where the Lease is.
const NAMESPACE: &str = "vnetpool-system";
/// The page of a tmpfs, which fills up page by page.
const PAGE: [u8; 4096] = [0; 4096];
/// A node's `/run` has no more room than this.
const ROOM: usize = 256 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    AgentKilled,
    OperatorKilled,
    PluginsKilled,
    PluginsStand,
    KubeletKilled,
    RuntimeKilled,
    ProxyKilled,
    StoreKilled,
    ApiServerKilled,
    AgentStands,
    OperatorStands,
    LeaderStands,
    KubeletStands,
    RuntimeStands,
    StoreStands,
    ApiServerStands,
    WatchesCut,
    AzureIsHostile,
    AzureFailsLate,
    AzureIsSlow,
    NicWiped,
    RulesFlushed,
    LeaseDeleted,
    LedgerRemoved,
    RunFilled,
    ClocksBack,
    ClocksAhead,
    ConntrackFilled,
    NodeRebooted,
    NodeReplaced,
    StoreRestored,
}
use Kind::*;

/// The nodes on which a fault can be felt.
#[derive(Clone, Copy, PartialEq)]
enum On {
    One,
    /// It is Azure's, the operator's or the control plane's.
    Every,
}
use On::{Every, One};

#[derive(Clone, Copy)]
pub struct Fault {
    kind: Kind,
    on: On,
    /// How often it is drawn in relation to the others.
    times: usize,
    pub name: &'static str,
}

const ALL: [Fault; 27] = [
    Fault { kind: AgentKilled, on: One, times: 3, name: "agent killed" },
    Fault { kind: OperatorKilled, on: Every, times: 3, name: "operators killed" },
    Fault { kind: PluginsKilled, on: One, times: 3, name: "plugins killed in the middle of a verb" },
    Fault { kind: PluginsStand, on: One, times: 1, name: "plugins stand still in the middle of a verb" },
    Fault { kind: KubeletKilled, on: One, times: 1, name: "kubelet killed" },
    Fault { kind: RuntimeKilled, on: One, times: 1, name: "containerd killed" },
    Fault { kind: ProxyKilled, on: One, times: 1, name: "kube-proxy killed" },
    Fault { kind: StoreKilled, on: Every, times: 1, name: "etcd killed" },
    Fault { kind: ApiServerKilled, on: Every, times: 1, name: "API server killed" },
    Fault { kind: AgentStands, on: One, times: 1, name: "agent stands still" },
    Fault { kind: OperatorStands, on: Every, times: 1, name: "operators stand still" },
    Fault { kind: LeaderStands, on: Every, times: 1, name: "leader stands still until after another leads" },
    Fault { kind: KubeletStands, on: One, times: 1, name: "kubelet stands still" },
    Fault { kind: RuntimeStands, on: One, times: 1, name: "containerd stands still" },
    Fault { kind: StoreStands, on: Every, times: 1, name: "etcd stands still" },
    Fault { kind: ApiServerStands, on: Every, times: 1, name: "API server stands still" },
    Fault { kind: WatchesCut, on: Every, times: 1, name: "watches cut" },
    Fault { kind: AzureIsHostile, on: Every, times: 3, name: "Azure gives any answer" },
    Fault { kind: AzureFailsLate, on: Every, times: 1, name: "operations of Azure fail" },
    Fault { kind: AzureIsSlow, on: Every, times: 1, name: "Azure is slow" },
    Fault { kind: NicWiped, on: One, times: 1, name: "NIC wiped by others" },
    Fault { kind: RulesFlushed, on: One, times: 1, name: "nftables flushed" },
    Fault { kind: LeaseDeleted, on: Every, times: 1, name: "Lease deleted" },
    Fault { kind: LedgerRemoved, on: One, times: 1, name: "ledger removed" },
    Fault { kind: RunFilled, on: One, times: 1, name: "/run filled up" },
    Fault { kind: ClocksBack, on: Every, times: 1, name: "clocks set an hour back" },
    Fault { kind: ClocksAhead, on: Every, times: 1, name: "clocks set an hour ahead" },
];
/// It takes a processor for seconds, which a short run needs for pods: only in runs in which each kind has to
/// strike.
const LONG: Fault = Fault { kind: ConntrackFilled, on: One, times: 1, name: "conntrack table filled up" };
/// They take a node or the control plane half a minute, so they come only so often: one of them, in turn, in
/// this many faults.
const RARE: [Fault; 3] = [
    Fault { kind: NodeRebooted, on: One, times: 1, name: "node rebooted" },
    Fault { kind: NodeReplaced, on: One, times: 1, name: "node replaced under its name" },
    Fault { kind: StoreRestored, on: Every, times: 1, name: "etcd restored from a snapshot" },
];
const RARE_EVERY: usize = 12;

/// All kinds of faults by their names.
pub fn names() -> Vec<&'static str> {
    ALL.iter().chain([&LONG]).chain(&RARE).map(|fault| fault.name).collect()
}

pub struct Faults {
    draws: Draws,
    drawn: usize,
    /// Each as often as it is to be drawn.
    lots: Lots<Fault>,
}

impl Faults {
    /// For a run of this length.
    pub fn new(draws: Draws, length: Duration) -> Self {
        let long = (length >= EACH_KIND).then_some(&LONG);
        let lots =
            ALL.iter().chain(long).flat_map(|fault| std::iter::repeat_n(*fault, fault.times)).collect();
        Self { draws, drawn: 0, lots: Lots::new(lots) }
    }

    /// The next fault, and how much longer than usual to wait after it.
    pub fn draw(&mut self) -> Result<(Fault, Duration)> {
        self.drawn += 1;
        let fault = match self.drawn % RARE_EVERY {
            0 => RARE[(self.drawn / RARE_EVERY - 1) % RARE.len()],
            _ => self.lots.draw(&mut self.draws).context("no faults")?,
        };
        Ok((fault, Duration::from_millis(self.draws.below(3000, "pause") as u64)))
    }

    /// Does it, and reports it to the sums.
    ///
    /// # Errors
    /// When it couldn't be done: another fault may be in its way, or there was nothing to be hit.
    pub async fn strike(&mut self, world: &World, fault: Fault) -> Result<()> {
        let nodes = &world.cluster.state.nodes;
        let node = nodes[self.draws.below(nodes.len(), "node")].name.clone();
        let host = brought_up(world, &node).await?;
        let still = STILL.0 + self.draws.below((STILL.1 - STILL.0) as usize, "still") as u64;
        let still = Duration::from_secs(still);
        println!("fault: {} ({node})", fault.name);
        let began = Instant::now();
        match fault.kind {
            AgentKilled => signal("KILL", &host.processes("vnetpool-node-agent"))?,
            KubeletKilled => signal("KILL", &host.processes("kubelet"))?,
            RuntimeKilled => signal("KILL", &host.processes("containerd"))?,
            ProxyKilled => signal("KILL", &host.processes("kube-proxy"))?,
            PluginsKilled => {
                let killed = self.hunt(&host, Signal::SIGKILL).await?;
                ensure!(!killed.is_empty(), "no plugin ran");
            }
            PluginsStand => {
                let stopped = self.hunt(&host, Signal::SIGSTOP).await?;
                ensure!(!stopped.is_empty(), "no plugin ran");
                sleep(still).await;
                signal("CONT", &stopped)?;
            }
            StoreKilled => world.cluster.crash("etcd", still / 4).await?,
            ApiServerKilled => world.cluster.crash("kube-apiserver", still / 4).await?,
            AgentStands => stand(&host.processes("vnetpool-node-agent"), still).await?,
            KubeletStands => stand(&host.processes("kubelet"), still).await?,
            RuntimeStands => stand(&host.processes("containerd"), still).await?,
            OperatorKilled => signal("KILL", &operators(world)?)?,
            OperatorStands => stand(&operators(world)?, still).await?,
            LeaderStands => depose(world, still).await?,
            StoreStands => stand(&of_control_plane("etcd"), still).await?,
            ApiServerStands => stand(&of_control_plane("kube-apiserver"), still).await?,
            WatchesCut => cut_watches(world).await?,
            AzureIsHostile => self.defy(world, still).await?,
            AzureFailsLate | AzureIsSlow => self.spoil(world, fault.kind).await?,
            NicWiped => wipe(world, &host).await?,
            RulesFlushed => {
                world.cluster.run_on(&node, &["nft", "flush", "ruleset"]).await?;
            }
            LeaseDeleted => {
                let lease = ["delete", "lease", "--all", "--namespace", NAMESPACE, "--request-timeout=10s"];
                let deleted = world.cluster.kubectl(&lease).await?;
                ensure!(deleted.contains("deleted"), "there is no Lease: {deleted}");
            }
            LedgerRemoved => remove_file(host.path("/run/vnetpool/ledger"))?,
            RunFilled => fill(&host, still).await?,
            ClocksBack => set_clocks(world, &host, -HOUR, still).await?,
            ClocksAhead => set_clocks(world, &host, HOUR, still).await?,
            ConntrackFilled => conntrack::fill(world, &host, still).await?,
            NodeRebooted => {
                keep_plugin_logs(world, &node)?;
                world.cluster.node("reboot", &node).await?;
            }
            NodeReplaced => replace(world, &host).await?,
            StoreRestored => set_back(world, still).await?,
        }
        let felt: BTreeSet<String> = match fault.on {
            One => [node].into(),
            Every => nodes.iter().map(|node| node.name.clone()).collect(),
        };
        let sign = match fault.kind {
            RulesFlushed | ConntrackFilled => Sign::Internet,
            _ if fault.on == Every => Sign::Write,
            _ => Sign::None,
        };
        world.sums(|sums| sums.struck(fault.name, began, felt, sign));
        Ok(())
    }

    /// Sends this to plugins of a node in the middle of their verbs: these.
    async fn hunt(&mut self, host: &Host, what: Signal) -> Result<Vec<u32>> {
        let (folder, first) = (host.path("/run/vnetpool"), self.draws.below(OPENINGS, "opening"));
        spawn_blocking(move || hunt(&folder, first, what)).await?
    }

    /// For a while Azure gives any answer. Some of its refusals only a person ends, and an edit of the pool
    /// has them tried again.
    async fn defy(&mut self, world: &World, time: Duration) -> Result<()> {
        world.cluster.azure.be_hostile(self.draws.next("hostility"), codes().collect()).await?;
        sleep(time).await;
        world.cluster.azure.heal().await?;
        world.edit_pool().await
    }

    /// The next few requests about NICs meet this.
    async fn spoil(&mut self, world: &World, kind: Kind) -> Result<()> {
        let (method, effect) = match kind {
            AzureFailsLate => {
                let error = json!({ "code": "InternalServerError", "message": "as the soak has it" });
                ("PUT", json!({ "kind": "operation_ends", "status": "Failed", "error": error }))
            }
            _ => (["GET", "PUT"][self.draws.below(2, "method")], json!({ "kind": "delay", "ms": 4000 })),
        };
        let count = 1 + self.draws.below(3, "count");
        let order = json!({ "method": method, "path_contains": "/networkInterfaces/", "count": count,
            "effect": effect });
        world.cluster.azure.fault(order).await.map(drop)
    }
}

/// A node as it is now. One that an earlier fault has left deleted or switched off is brought up again first:
/// hours of a run would be worth little without it.
async fn brought_up(world: &World, node: &str) -> Result<Host> {
    match world.cluster.host(node) {
        Err(_) => world.cluster.node("add", node).await?,
        Ok(host) if host.pid == 0 => world.cluster.node("start", node).await?,
        Ok(host) => return Ok(host),
    }
    world.cluster.host(node)
}

fn operators(world: &World) -> Result<Vec<u32>> {
    let nodes = world.cluster.state.nodes.iter();
    let of_node = |node: &Host| Ok(world.cluster.host(&node.name)?.processes("vnetpool-operator"));
    Ok(nodes.map(of_node).collect::<Result<Vec<_>>>()?.concat())
}

/// The operator that leads gets no processor until another leads, and for a while after that: it goes on with
/// what it was about to write, under a Lease that is no longer its own.
async fn depose(world: &World, time: Duration) -> Result<()> {
    let former = leader(world).await?;
    // An operator's identity begins with its pod's name.
    let pod = former.split('_').next().unwrap_or_default();
    let variable = format!("POD_NAME={pod}");
    let is_it = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
    };
    let pids: Vec<u32> = operators(world)?.into_iter().filter(is_it).collect();
    signal("STOP", &pids)?;
    let until = Instant::now() + SUCCEEDED;
    let mut successor = Ok(former.clone());
    // The API server may have trouble from the fault before.
    while Instant::now() < until && successor.as_ref().map_or(true, |now| *now == former) {
        sleep(PAUSE).await;
        successor = leader(world).await;
    }
    sleep(time).await;
    signal("CONT", &pids)?;
    ensure!(successor? != former, "nobody has taken over from {pod}");
    Ok(())
}

/// The Lease's holder.
async fn leader(world: &World) -> Result<String> {
    of_lease(world, "holderIdentity").await
}

async fn of_lease(world: &World, field: &str) -> Result<String> {
    let output = format!("--output=jsonpath={{.spec.{field}}}");
    let lease = ["get", "lease", "vnetpool-operator", &output];
    let where_and_within = ["--namespace", NAMESPACE, "--request-timeout=5s"];
    let found = world.cluster.kubectl(&[&lease[..], &where_and_within].concat()).await?;
    ensure!(!found.is_empty(), "nobody leads");
    Ok(found)
}

/// All operators and the agent of a node have a wrong clock, until one of them leads by it and for a while
/// after that. Then the clock is set right, under the same processes.
async fn set_clocks(world: &World, host: &Host, seconds: i32, time: Duration) -> Result<()> {
    let pids = [operators(world)?, host.processes("vnetpool-node-agent")].concat();
    ensure!(!pids.is_empty(), "neither an operator nor the agent runs");
    let set = move || pids.into_iter().map(|pid| clock::set(pid, seconds)).collect::<Vec<_>>();
    let (wrong, failed): (Vec<_>, Vec<_>) = spawn_blocking(set).await?.into_iter().partition(Result::is_ok);
    let is_seen = shows(world, seconds).await;
    sleep(time).await;
    let set_right = move || wrong.into_iter().flatten().map(clock::Wrong::set_right).collect::<Vec<_>>();
    let right = spawn_blocking(set_right).await?;
    failed.into_iter().map(|one| one.map(drop)).chain(right).chain([is_seen]).collect()
}

/// Waits until the Lease is renewed by a clock that is off by so much.
async fn shows(world: &World, seconds: i32) -> Result<()> {
    let until = Instant::now() + SUCCEEDED;
    loop {
        let off = match of_lease(world, "renewTime").await {
            Ok(renewed) => Ok(renewed.parse::<Timestamp>()?.as_second() - Timestamp::now().as_second()),
            Err(error) => Err(error),
        };
        match off {
            Ok(off) if (off - i64::from(seconds)).abs() < NEARLY => return Ok(()),
            Err(error) if Instant::now() > until => return Err(error),
            Ok(off) if Instant::now() > until => bail!("the Lease is renewed by a clock that is {off} s off"),
            // The API server may have trouble from the fault before.
            _ => sleep(PAUSE).await,
        }
    }
}

fn of_control_plane(program: &str) -> Vec<u32> {
    processes_in(Path::new("/run/netns/vnp-control-plane"), program)
}

/// Of the processes of this cluster, by their ids; one that has ended in the meantime is none.
fn signal(name: &str, pids: &[u32]) -> Result<()> {
    ensure!(!pids.is_empty(), "no such process runs");
    for pid in pids {
        Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).output()?;
    }
    Ok(())
}

/// They get no processor for a while.
async fn stand(pids: &[u32], time: Duration) -> Result<()> {
    signal("STOP", pids)?;
    sleep(time).await;
    signal("CONT", pids)
}

/// Cuts all connections to the API server, and with them each watch.
async fn cut_watches(world: &World) -> Result<()> {
    let cut = ["ss", "--kill", "--tcp", "--numeric", "--no-header", "sport = :6443"];
    let cut = world.cluster.run_on("control-plane", &cut).await?;
    ensure!(!cut.trim().is_empty(), "there was no connection");
    Ok(())
}

/// The node's `/run` has no room for a while.
async fn fill(host: &Host, time: Duration) -> Result<()> {
    let path = host.path("/run/filled");
    let filled = fill_up(&path);
    if filled.is_ok() {
        sleep(time).await;
    }
    filled.and(remove_file(&path).map_err(Into::into))
}

/// Writes a file until there is no room left.
fn fill_up(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..ROOM / PAGE.len() {
        match file.write_all(&PAGE) {
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            written => written?,
        }
    }
    bail!("{} has more room than any node's /run", path.display())
}

/// The API server's store is what it was some seconds before. As after any restore, what knows later versions
/// of objects is started again: a kubelet's watch would wait for versions that come only later, and
/// kube-proxy's, too ("Operating etcd clusters", Kubernetes' documentation). Ours must notice by itself.
async fn set_back(world: &World, time: Duration) -> Result<()> {
    world.cluster.backup("save").await?;
    sleep(time).await;
    world.sums(|sums| sums.excuses.set_back(Instant::now()));
    let restored = world.cluster.backup("restore").await;
    for node in &world.cluster.state.nodes {
        let host = world.cluster.host(&node.name)?;
        signal("KILL", &host.processes("kubelet"))?;
        signal("KILL", &host.processes("kube-proxy"))?;
    }
    world.sums(|sums| sums.excuses.set_back(Instant::now()));
    restored
}

/// Has something take addresses off a node's NIC, which is excused meanwhile and after that.
async fn excused(
    world: &World,
    node: &str,
    taking: impl Future<Output = (Result<Vec<Ipv4Addr>>, Result<()>)>,
) -> Result<()> {
    world.sums(|sums| sums.excuses.begin(node));
    let (taken, outcome) = taking.await;
    let off = taken.as_deref().unwrap_or_default();
    world.sums(|sums| sums.excuses.taken(node, off, Instant::now()));
    taken.map(drop).and(outcome)
}

/// Another client takes all our reservations off the NIC, as a template does that doesn't list them.
async fn wipe(world: &World, host: &Host) -> Result<()> {
    excused(world, &host.name, async { (world.cluster.wipe(host).await, Ok(())) }).await
}

/// Its machine and its Node are deleted and made anew. Until the API server and the new kubelet have noticed,
/// the old one's pods seem to run with the addresses that went with it.
async fn replace(world: &World, host: &Host) -> Result<()> {
    keep_plugin_logs(world, &host.name)?;
    let replaced = async {
        let held = world.cluster.azure.nic(&host.nic_id).await.map(|nic| nic.pod_addresses());
        let deleted = world.cluster.node("delete", &host.name).await;
        let added = world.cluster.node("add", &host.name).await;
        (held, deleted.and(added))
    };
    excused(world, &host.name, replaced).await
}
