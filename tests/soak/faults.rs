//! The faults that hit the cluster, drawn by a seed.

use crate::World;
use anyhow::{Result, ensure};
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use vnetpool_azure_sim::Draws;
use vnetpool_tests::cluster::Host;
use vnetpool_tests::node::processes_in;

/// How long a stopped process stands still, at most and at least.
const STILL: (u64, u64) = (5, 20);
/// How long to wait for a plugin in the middle of a verb, to kill it.
const HUNT: Duration = Duration::from_secs(3);
/// Where the Lease is.
const NAMESPACE: &str = "vnetpool-system";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    AgentKilled,
    OperatorKilled,
    PluginsKilled,
    KubeletKilled,
    RuntimeKilled,
    ProxyKilled,
    StoreStands,
    ApiServerStands,
    AgentStands,
    OperatorStands,
    AzureRefuses,
    AzureCuts,
    AzureFailsLate,
    AzureIsSlow,
    NicWiped,
    RulesFlushed,
    LeaseDeleted,
    LedgerRemoved,
    NodeRebooted,
    NodeReplaced,
}

use Kind::{
    AgentKilled, AgentStands, ApiServerStands, AzureCuts, AzureFailsLate, AzureIsSlow, AzureRefuses,
    KubeletKilled, LeaseDeleted, LedgerRemoved, NicWiped, NodeRebooted, NodeReplaced, OperatorKilled,
    OperatorStands, PluginsKilled, ProxyKilled, RulesFlushed, RuntimeKilled, StoreStands,
};

/// The nodes on which a fault can be felt.
#[derive(Clone, Copy, PartialEq)]
enum On {
    One,
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

const ALL: [Fault; 18] = [
    Fault { kind: AgentKilled, on: One, times: 3, name: "agent killed" },
    Fault { kind: OperatorKilled, on: Every, times: 3, name: "operators killed" },
    Fault { kind: PluginsKilled, on: One, times: 3, name: "plugins killed in the middle of a verb" },
    Fault { kind: KubeletKilled, on: One, times: 1, name: "kubelet killed" },
    Fault { kind: RuntimeKilled, on: One, times: 1, name: "containerd killed" },
    Fault { kind: ProxyKilled, on: One, times: 1, name: "kube-proxy killed" },
    Fault { kind: StoreStands, on: Every, times: 1, name: "etcd stands still" },
    Fault { kind: ApiServerStands, on: Every, times: 1, name: "API server stands still" },
    Fault { kind: AgentStands, on: One, times: 1, name: "agent stands still" },
    Fault { kind: OperatorStands, on: Every, times: 1, name: "operators stand still" },
    Fault { kind: AzureRefuses, on: Every, times: 2, name: "Azure refuses" },
    Fault { kind: AzureCuts, on: Every, times: 2, name: "Azure's answers are cut" },
    Fault { kind: AzureFailsLate, on: Every, times: 1, name: "operations of Azure fail" },
    Fault { kind: AzureIsSlow, on: Every, times: 1, name: "Azure is slow" },
    Fault { kind: NicWiped, on: One, times: 1, name: "NIC wiped by others" },
    Fault { kind: RulesFlushed, on: One, times: 1, name: "nftables flushed" },
    Fault { kind: LeaseDeleted, on: Every, times: 1, name: "Lease deleted" },
    Fault { kind: LedgerRemoved, on: One, times: 1, name: "ledger removed" },
];
/// They take a node half a minute, so they come only so often: one of them, in turn, in this many faults.
const RARE: [Fault; 2] = [
    Fault { kind: NodeRebooted, on: One, times: 1, name: "node rebooted" },
    Fault { kind: NodeReplaced, on: One, times: 1, name: "node replaced under its name" },
];
const RARE_EVERY: usize = 25;

pub struct Faults {
    draws: Draws,
    drawn: usize,
    /// Each as often as it is to be drawn.
    lots: Vec<Fault>,
}

impl Faults {
    pub fn new(draws: Draws) -> Self {
        let lots = ALL.iter().flat_map(|fault| std::iter::repeat_n(*fault, fault.times)).collect();
        Self { draws, drawn: 0, lots }
    }

    /// The next fault, and how much longer than usual to wait after it.
    pub fn draw(&mut self) -> (Fault, Duration) {
        self.drawn += 1;
        let fault = match self.drawn % RARE_EVERY {
            0 => RARE[(self.drawn / RARE_EVERY - 1) % RARE.len()],
            _ => self.lots[self.draws.below(self.lots.len(), "fault")],
        };
        (fault, Duration::from_millis(self.draws.below(3000, "pause") as u64))
    }

    /// Does it; gives the one node that it concerns.
    pub async fn strike(&mut self, world: &World, fault: Fault) -> Result<Option<String>> {
        let nodes = &world.cluster.state.nodes;
        let node = nodes[self.draws.below(nodes.len(), "node")].name.clone();
        let host = world.cluster.host(&node)?;
        let still = STILL.0 + self.draws.below((STILL.1 - STILL.0) as usize, "still") as u64;
        let still = Duration::from_secs(still);
        println!("fault: {} ({node})", fault.name);
        match fault.kind {
            AgentKilled => signal("KILL", &host.processes("vnetpool-node-agent"))?,
            KubeletKilled => signal("KILL", &host.processes("kubelet"))?,
            RuntimeKilled => signal("KILL", &host.processes("containerd"))?,
            ProxyKilled => signal("KILL", &host.processes("kube-proxy"))?,
            PluginsKilled => hunt(&host).await?,
            AgentStands => stand(&host.processes("vnetpool-node-agent"), still).await?,
            OperatorKilled => signal("KILL", &operators(world)?)?,
            OperatorStands => stand(&operators(world)?, still).await?,
            // The API server has no other store: it ends its waiting with the store's.
            StoreStands => stand(&of_control_plane("etcd"), still / 2).await?,
            ApiServerStands => stand(&of_control_plane("kube-apiserver"), still / 2).await?,
            AzureRefuses | AzureCuts | AzureFailsLate | AzureIsSlow => self.spoil(world, fault.kind).await?,
            NicWiped => wipe(world, &host).await?,
            RulesFlushed => {
                world.cluster.run_on(&node, &["nft", "flush", "ruleset"]).await?;
            }
            LeaseDeleted => {
                let lease = ["delete", "lease", "--all", "--namespace", NAMESPACE, "--request-timeout=10s"];
                world.cluster.kubectl(&lease).await?;
            }
            LedgerRemoved => std::fs::remove_file(host.path("/run/vnetpool/ledger"))?,
            NodeRebooted => world.cluster.node("reboot", &node).await?,
            NodeReplaced => replace(world, &host).await?,
        }
        Ok((fault.on == One).then_some(node))
    }

    /// The next few requests about NICs meet this.
    async fn spoil(&mut self, world: &World, kind: Kind) -> Result<()> {
        const REFUSALS: [(u16, &str); 6] = [
            (429, "TooManyRequests"),
            (500, "InternalServerError"),
            (503, "ServerBusy"),
            (409, "AnotherOperationInProgress"),
            (412, "PreconditionFailed"),
            (400, "SubnetIsFull"),
        ];
        let effect = match kind {
            AzureRefuses => {
                let (status, code) = REFUSALS[self.draws.below(REFUSALS.len(), "refusal")];
                json!({ "kind": "status", "status": status,
                    "body": { "error": { "code": code, "message": "as the soak has it" } } })
            }
            AzureCuts => {
                let kinds = ["cut_before_apply", "cut_after_apply", "cut_body"];
                json!({ "kind": kinds[self.draws.below(kinds.len(), "cut")] })
            }
            AzureFailsLate => json!({ "kind": "operation_ends", "status": "Failed",
                "error": { "code": "InternalServerError", "message": "as the soak has it" } }),
            _ => json!({ "kind": "delay", "ms": 4000 }),
        };
        let method =
            if kind == AzureFailsLate { "PUT" } else { ["GET", "PUT"][self.draws.below(2, "method")] };
        let count = 1 + self.draws.below(3, "count");
        let order = json!({ "method": method, "path_contains": "/networkInterfaces/", "count": count,
            "effect": effect });
        world.cluster.azure.fault(order).await.map(drop)
    }
}

fn operators(world: &World) -> Result<Vec<u32>> {
    let nodes = world.cluster.state.nodes.iter();
    let of_node = |node: &Host| Ok(world.cluster.host(&node.name)?.processes("vnetpool-operator"));
    Ok(nodes.map(of_node).collect::<Result<Vec<_>>>()?.concat())
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

/// Kills plugins as they come.
async fn hunt(host: &Host) -> Result<()> {
    let until = Instant::now() + HUNT;
    while Instant::now() < until {
        let plugins = host.processes("vnetpool");
        if !plugins.is_empty() {
            signal("KILL", &plugins)?;
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
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
    let replaced = async {
        let held = world.cluster.azure.nic(&host.nic_id).await.map(|nic| nic.pod_addresses());
        let deleted = world.cluster.node("delete", &host.name).await;
        let added = world.cluster.node("add", &host.name).await;
        (held, deleted.and(added))
    };
    excused(world, &host.name, replaced).await
}
