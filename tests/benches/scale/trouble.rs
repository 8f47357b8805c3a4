//! What happens to the many when a few of them, or Azure itself, give trouble.

use crate::world::{AT_ONCE, SMALL, World};
use anyhow::{Context, Result};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use vnetpool_azure_sim::{Effect, Fault, NewVm};

/// ARM answers nothing for so long.
const OUTAGE: Duration = Duration::from_secs(600);
/// So many nodes at most want one more address in the midst of it.
const SAMPLE: usize = 100;
/// So many nodes come to the subnet that is too small for them.
const IN_SMALL: usize = 8;

/// Compares how long pods wait for an address with and without strangers among the nodes: one whose NIC
/// refuses every write, a few in a full subnet, and one subscription that refuses all writes as throttled.
pub async fn strangers(world: &World<'_>) -> Result<Value> {
    let calm = waits(world, &sample(world, 0)).await?;
    let refusal = |status: u16, headers: &[(&str, &str)]| Effect::Status {
        status,
        body: json!({ "error": { "code": "RetryableError", "message": "ordered by the benchmark" } }),
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    };
    let fault = |path: &str, effect: Effect| Fault {
        method: Some("PUT".into()),
        path_contains: Some(path.into()),
        count: None,
        effect,
    };
    let first = &world.stage.sim;
    let flaky = first.order_fault(fault("/n0-nic", refusal(500, &[])));
    // With one subscription there is no other that could go on.
    let last = world.subscriptions().last().filter(|_| world.size.subscriptions > 1);
    let throttled = last.map(|sim| {
        (sim, sim.order_fault(fault("/networkInterfaces/", refusal(429, &[("Retry-After", "60")]))))
    });
    world.start_pod_beyond("n0").await?;
    if throttled.is_some() {
        let some = throttled_nodes(world).step_by((world.size.nodes / SAMPLE).max(1)).take(SAMPLE);
        stream::iter(some)
            .map(async |node| world.start_pod_beyond(&node).await.map(drop))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
    }
    let crowd: Vec<String> = (0..IN_SMALL).map(|index| format!("small-{index}")).collect();
    // All machines first, as long as the subnet has an address for each.
    let mut machines = vec![];
    for node in &crowd {
        let vm = NewVm { name: node.clone(), subnet: Some(SMALL.0.into()), ..NewVm::default() };
        machines.push((node, first.add_vm(vm).await?));
    }
    for (node, vm) in machines {
        world.stage.join(node, &vm.provider_id).await?;
    }
    let troubled = waits(world, &sample(world, 1)).await?;
    let hits = |id: u64, sim: &vnetpool_azure_sim::Sim| {
        sim.faults().iter().find(|one| one.id == id).map(|one| one.hits)
    };
    let struck = (hits(flaky, first), throttled.map(|(sim, id)| hits(id, sim)));
    println!("  refused: {struck:?} writes of the one NIC and of the subscription");
    first.lift_fault(flaky)?;
    if let Some((sim, id)) = throttled {
        sim.lift_fault(id)?;
    }
    // Their machines go, too: the next leader would ask after them.
    for node in &crowd {
        first.delete_vm(node, false).await?;
        world.stage.delete_node(node).await?;
    }
    Ok(json!({ "waits": calm, "waitsAmongStrangers": troubled }))
}

/// Some nodes want one more address while ARM answers nothing; gives how long they wait once it answers
/// again. `measure` takes down what the time without ARM has cost.
pub async fn outage(world: &World<'_>, measure: impl AsyncFnOnce() -> Result<Value>) -> Result<Value> {
    let effect = Effect::Status { status: 503, body: Value::Null, headers: Default::default() };
    let fault = Fault { method: None, path_contains: None, count: None, effect };
    let orders: Vec<_> = world.subscriptions().map(|sim| (sim, sim.order_fault(fault.clone()))).collect();
    let nodes = sample(world, 2);
    let pods = stream::iter(&nodes).map(|node| start(world, node)).buffer_unordered(AT_ONCE);
    let pods: Vec<Waiting> = pods.try_collect().await?;
    sleep(OUTAGE).await;
    let without = measure().await?;
    for (sim, id) in orders {
        sim.lift_fault(id)?;
    }
    let back = Instant::now();
    let waits = pods.into_iter().map(|pod| until_served(world, Waiting { since: back, ..pod }));
    Ok(json!({ "waits": summary(join_all(waits).await)?, "withoutArm": without }))
}

/// The nodes of the last subscription.
fn throttled_nodes(world: &World<'_>) -> impl Iterator<Item = String> {
    let (nodes, subscriptions) = (world.size.nodes, world.size.subscriptions);
    (0..nodes)
        .filter(move |index| index % subscriptions == subscriptions - 1)
        .map(|index| format!("n{index}"))
}

/// Nodes of all subscriptions but the last, if there are several; none is in two samples, and `n0` in none.
fn sample(world: &World<'_>, number: usize) -> Vec<String> {
    let (nodes, subscriptions) = (world.size.nodes, world.size.subscriptions);
    let is_of_others = |index: &usize| subscriptions == 1 || index % subscriptions != subscriptions - 1;
    let all: Vec<usize> = (1..nodes).filter(is_of_others).collect();
    let step = (all.len() / SAMPLE).max(3);
    all.into_iter().skip(number).step_by(step).take(SAMPLE).map(|index| format!("n{index}")).collect()
}

/// One more pod comes to each of these nodes; gives how long they wait for their addresses.
async fn waits(world: &World<'_>, nodes: &[String]) -> Result<Value> {
    let waits = stream::iter(nodes).map(async |node| {
        let waiting = start(world, node).await?;
        Ok::<_, anyhow::Error>(until_served(world, waiting).await)
    });
    summary(waits.buffer_unordered(SAMPLE).try_collect().await?)
}

/// A pod that waits.
struct Waiting {
    node: String,
    uid: String,
    since: Instant,
}

async fn start(world: &World<'_>, node: &str) -> Result<Waiting> {
    let pod = world.start_pod_beyond(node).await?;
    Ok(Waiting { node: node.to_owned(), uid: pod.uid, since: Instant::now() })
}

/// Gives its wait, in seconds.
async fn until_served(world: &World<'_>, Waiting { node, uid, since }: Waiting) -> f64 {
    while !world.stage.agents.addresses(&node).contains_key(&uid) {
        sleep(Duration::from_millis(100)).await;
    }
    since.elapsed().as_secs_f64()
}

/// The shortest, the median and the longest wait, in seconds.
fn summary(mut waits: Vec<f64>) -> Result<Value> {
    waits.sort_by(f64::total_cmp);
    let (first, last) = (waits.first().context("no nodes")?, waits.last().context("no nodes")?);
    let figures =
        json!({ "pods": waits.len(), "least": first, "median": waits[waits.len() / 2], "most": last });
    println!("  waits in seconds: {figures}");
    Ok(figures)
}
