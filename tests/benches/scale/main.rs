//! What a cluster of many nodes costs: time until all hold addresses, requests to Azure and to the API
//! server, the operator's processor time and memory, a burst of pods meanwhile, and a restart.
//!
//! `cargo bench -p vnetpool-tests --bench scale -- NODES SUBSCRIPTIONS` (1,000 and 1 without): a real API
//! server, the operator as a process of its own, simulated Azure with its published limits, NIC writes of ten
//! seconds, agents without nodes. Azure limits each subscription, so nodes in many show what the operator
//! itself takes.

#![allow(clippy::unwrap_used)] // a benchmark that can't go on has to stop

#[path = "../../conduct/agent.rs"]
#[allow(dead_code)] // the tests need more of it, here and below
mod agent;
mod cost;
#[path = "../../conduct/metrics.rs"]
#[allow(dead_code)]
mod metrics;
#[path = "../../conduct/operator.rs"]
#[allow(dead_code)]
mod operator;
#[path = "../../conduct/stage.rs"]
#[allow(dead_code)]
mod stage;

use anyhow::{Context, Result};
use cost::{Cost, Process};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use serde_json::json;
use stage::Stage;
use std::path::Path;
use std::time::{Duration, Instant};
use vnetpool_azure_sim::{Config, NewVm, Sim, VnetConfig};
use vnetpool_crds::condition;
use vnetpool_tests::control_plane::{ControlPlane, NAMESPACE, User};
use vnetpool_tests::eventually;

/// So many pods come to one node at once.
const BURST: usize = 30;
/// No phase takes longer.
const PATIENCE: Duration = Duration::from_secs(900);
/// Nothing happens for so long.
const IDLE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|one| !one.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let [role, kubeconfig, arm, admin, identity] = arguments.as_slice()
        && role == "operator"
    {
        let config = operator::config(arm.parse()?, arm.parse()?, admin.parse()?, identity.clone());
        return runtime.block_on(async {
            let client = Client::try_from(User::Operator.config(Path::new(kubeconfig)).await?)?;
            Ok(vnetpool_operator::run(config, client.clone(), client, std::future::pending()).await?)
        });
    }
    let number = |index: usize, usual: usize| {
        arguments.get(index).map_or(Ok(usual), |given| given.parse().context("NODES SUBSCRIPTIONS"))
    };
    let (nodes, subscriptions) = (number(0, 1000)?, number(1, 1)?);
    let plane = ControlPlane::up("scale")?;
    runtime.block_on(measure(&plane, nodes, subscriptions))
}

async fn measure(plane: &ControlPlane, nodes: usize, subscriptions: usize) -> Result<()> {
    let stage = Stage::empty(plane, azure(0)?).await?;
    let world = (plane, &stage);
    let others = neighbours(&stage, subscriptions).await?;
    let vms: Vec<(String, String)> = stream::iter(0..nodes)
        .then(async |index| {
            let name = format!("n{index}");
            let new = NewVm { name: name.clone(), ..NewVm::default() };
            let made = match index % subscriptions {
                0 => stage.sim.add_vm(new).await?,
                other => others[other - 1].add_vm(new).await?,
            };
            Ok::<_, anyhow::Error>((name, made.provider_id))
        })
        .try_collect()
        .await?;
    stage.pool("default", json!({})).await?;
    println!("{nodes} nodes in {subscriptions} subscriptions, {BURST} pods in a burst");

    let mut operator = Process::start(&stage, plane)?;
    let mut cost = Cost::so_far(world, &operator).await?;
    let began = Instant::now();
    let joined =
        stream::iter(&vms).map(|(name, id)| stage.join(name, id)).buffer_unordered(16).try_collect::<()>();
    let (joined, took_burst) = futures::join!(joined, async {
        until(&stage, "the first node holds addresses", async || {
            Ok(stage.allocation("n0").await?.spec.addresses() > 0)
        })
        .await?;
        burst(&stage, "n0").await
    });
    joined?;
    println!("a burst on one node while the others come: {:.1} s", took_burst?);
    until(&stage, "all nodes hold addresses", async || all_ready(&stage, nodes).await).await?;
    let took = began.elapsed();
    cost = cost.next("all nodes come", took, world, &operator).await?;

    tokio::time::sleep(IDLE).await;
    cost = cost.next("idle", IDLE, world, &operator).await?;

    let began = Instant::now();
    println!("a burst on one node afterwards: {:.1} s", burst(&stage, "n1").await?);
    cost.next("a burst", began.elapsed(), world, &operator).await?;

    operator.kill()?;
    let leases = Api::<Lease>::namespaced(stage.client.clone(), NAMESPACE);
    leases.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    operator = Process::start(&stage, plane)?;
    let cost = Cost::so_far(world, &operator).await?;
    let began = Instant::now();
    until(&stage, "the next operator has looked at every node", async || {
        let seen = metrics::Metrics::scrape(&stage).await?;
        let ok = [r#"controller="node""#, r#"outcome="ok""#];
        Ok(seen.sum("vnetpool_operator_reconciles_total", &ok) >= nodes as f64)
    })
    .await?;
    cost.next("a restart", began.elapsed(), world, &operator).await?;
    operator.kill()
}

/// Of a subscription of its own, with room for every node.
fn azure(index: usize) -> Result<Config> {
    let vnet = VnetConfig {
        name: "vnet".into(),
        address_prefixes: vec!["10.0.0.0/8".parse()?],
        subnets: vec![("nodes".into(), "10.16.0.0/13".parse()?)],
    };
    let subscription = format!("00000000-0000-0000-0000-{:012}", index + 1);
    Ok(Config { vnets: vec![vnet], subscription, ..Config::default() })
}

async fn neighbours(stage: &Stage<'_>, subscriptions: usize) -> Result<Vec<Sim>> {
    let mut others = vec![];
    for index in 1..subscriptions {
        let other = Sim::start(azure(index)?).await?;
        stage.sim.join(&other);
        others.push(other);
    }
    Ok(others)
}

/// Seconds from the first of many pods on a node until the node is offered an address for each.
async fn burst(stage: &Stage<'_>, node: &str) -> Result<f64> {
    let began = Instant::now();
    stage.bind(node, BURST).await?;
    until(stage, "the burst is served", async || {
        Ok(stage.allocation(node).await?.spec.addresses() as usize >= BURST)
    })
    .await?;
    Ok(began.elapsed().as_secs_f64())
}

/// What the pool's status says of its nodes.
async fn all_ready(stage: &Stage<'_>, nodes: usize) -> Result<bool> {
    let status = stage.node_pool("default").await?.status.unwrap_or_default();
    Ok(status.nodes as usize == nodes && condition::is_true(&status.conditions, condition::READY))
}

async fn until(stage: &Stage<'_>, what: &str, is: impl AsyncFn() -> Result<bool>) -> Result<()> {
    // An endpoint may not be up yet.
    let seen = eventually(what, PATIENCE, || async { Ok(is().await?.then_some(())) }).await;
    if seen.is_err() {
        println!("{:?}", stage.node_pool("default").await?.status);
    }
    seen
}
