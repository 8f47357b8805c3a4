//! The cost of a cluster of many nodes: a real API server, the operator as a process of its own, simulated
//! Azure with its published limits and NIC writes of ten seconds, agents without machines, and pods.
//!
//! `make bench-scale SCENARIO=… NODES=… SUBSCRIPTIONS=… EACH=… PODS=…`: EACH addresses and PODS pods a node.
//! Azure limits each subscription, so nodes in many show what the operator itself takes. Every scenario
//! begins with all nodes and their pods coming (`join`), then goes on: `idle` for a minute, `churn` of pods,
//! `edit` of the pool, `strangers` among the nodes, an `outage` of ARM, `takeover` by a standby, `relist`
//! when all watches expire at once; or `all` of these. What each has cost goes to `target/bench/scale.json`,
//! which has of each size the last play of each scenario, and the aims beside it; `make plots` draws it.
//!
//! The pods are made and deleted by the benchmark itself, not by KWOK: its agents have to assign an address
//! to each of them, and KWOK would choose one. A pod's later changes of status are left out but for one.

#![allow(clippy::unwrap_used)] // a benchmark that can't go on has to stop

#[path = "../../conduct/agent.rs"]
#[allow(dead_code)] // the tests need more of it, here and below
mod agent;
mod aims;
mod cost;
#[path = "../../conduct/gateway.rs"]
#[allow(dead_code)]
mod gateway;
#[path = "../../conduct/metrics.rs"]
#[allow(dead_code)]
mod metrics;
#[path = "../../conduct/operator.rs"]
#[allow(dead_code)]
mod operator;
mod process;
mod runs;
mod scenario;
#[path = "../../conduct/stage.rs"]
#[allow(dead_code)]
mod stage;
mod trouble;
mod world;

use anyhow::{Context, Result, ensure};
use process::Process;
use scenario::{Run, Scenario};
use serde_json::json;
use vnetpool_tests::control_plane::ControlPlane;
use world::{Size, World};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|one| !one.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let [role, server, arm, admin, identity] = arguments.as_slice()
        && role == process::ROLE
    {
        return runtime.block_on(process::run([server, arm, admin, identity]));
    }
    let number = |index: usize, usual: usize| {
        let given = arguments.get(index);
        given.map_or(Ok(usual), |given| given.parse().context("SCENARIO NODES SUBSCRIPTIONS EACH PODS"))
    };
    let scenarios = Scenario::named(arguments.first().map_or("all", String::as_str))?;
    let (nodes, subscriptions, each) = (number(1, 1000)?, number(2, 1)?, number(3, 12)?);
    // A third of the addresses is free, for pods that replace others and for the addresses that cool
    // meanwhile.
    let size = Size { nodes, subscriptions, each, pods: number(4, each - each / 3)? };
    ensure!(nodes > 0 && subscriptions > 0 && each > 2 && size.pods <= each, "no such cluster: {size:?}");
    let plane = ControlPlane::up("scale")?;
    runtime.block_on(measure(&plane, &scenarios, size))
}

async fn measure(plane: &ControlPlane, scenarios: &[Scenario], size: Size) -> Result<()> {
    let world = World::new(plane, size).await?;
    let Size { nodes, subscriptions, each, pods } = size;
    println!("{nodes} nodes of {each} addresses and {pods} pods, in {subscriptions} subscriptions");
    let operator = Process::start(plane, world.stage.sim.arm_url(), &world.stage.new_identity())?;
    let mut run = Run::begin(&world, operator).await?;
    let mut costs = serde_json::Map::new();
    for scenario in scenarios {
        costs.insert(scenario.name().to_owned(), run.play(*scenario).await?);
        // It keeps the bodies of all requests.
        world.subscriptions().for_each(|sim| sim.clear_log());
        runs::keep(json!({
            "nodes": nodes,
            "subscriptions": subscriptions,
            "addressesEach": each,
            "podsEach": pods,
            "isOptimised": !cfg!(debug_assertions),
            "objectBytes": world.object_size().await?,
            "scenarios": costs,
        }))?;
    }
    Ok(())
}
