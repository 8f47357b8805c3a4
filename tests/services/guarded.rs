//! Our table beside a kube-proxy that changes its own all the while.

use crate::{SOON, World};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vnetpool_crds::condition;
use vnetpool_tests::place::Place;
use vnetpool_tests::wait::patience;
use vnetpool_tests::workload::PORT;
use vnetpool_tests::{eventually, throughout};

/// Services of the pod `web`, with so many ports each.
const SERVICES: u16 = 20;
const PORTS: u16 = 50;
/// kube-proxy has an element of its map for each, with chains and rules behind it.
const ELEMENTS: usize = SERVICES as usize * PORTS as usize;

/// How often our table is deleted.
const TIMES: u32 = 3;
/// A daemon that fights with the agent is fought once in this time.
const APART: Duration = Duration::from_secs(1);

fn services() -> Value {
    let port = |number: u16| json!({ "name": format!("p{number}"), "port": number, "targetPort": PORT });
    let service = |number: u16| {
        json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": format!("many-{number}"), "namespace": "default", "labels": { "of": "many" } },
            "spec": { "selector": { "app": "web" }, "ports": Vec::from_iter((1..=PORTS).map(port)) } })
    };
    json!({ "apiVersion": "v1", "kind": "List", "items": Vec::from_iter((0..SERVICES).map(service)) })
}

/// Makes all these Services and deletes them again, and waits until kube-proxy has followed.
async fn keep_kube_proxy_busy(world: &World) -> Result<()> {
    let elements = async || -> Result<usize> {
        let map = world.nodes[0].run("nft", &["list", "map", "ip", "kube-proxy", "service-ips"]).await?;
        Ok(map.matches("default/many-").count())
    };
    let until = async |count: usize| {
        eventually(&format!("kube-proxy has {count} of these ports"), SOON, || async {
            let elements = elements().await?;
            ensure!(elements == count, "it has {elements}");
            Ok(Some(()))
        })
        .await
    };
    world.cluster.apply(&services().to_string()).await?;
    until(ELEMENTS).await?;
    world.cluster.kubectl(&["delete", "services", "--selector=of=many"]).await?;
    until(0).await
}

async fn has_table(node: &Place) -> Result<bool> {
    Ok(node.run("nft", &["list", "tables", "inet"]).await?.contains("table inet vnetpool"))
}

/// How often the agent has put our table back.
async fn restored(world: &World) -> Result<u32> {
    world.repairs("node-1").await?.remove("table").context("the agent doesn't count tables")
}

/// Until the node's object names the repair and calls the node undisturbed, since it was one.
async fn until_reported(world: &World) -> Result<()> {
    eventually("the node's object names the table", SOON, || async {
        let status = world.cluster.allocation("node-1").await?.status.context("no status")?;
        let found = condition::find(&status.conditions, condition::UNDISTURBED).context("no condition")?;
        ensure!(found.status == "True", "{}", found.message);
        ensure!(found.message.contains("put Vnetpool's nftables table back"), "{}", found.message);
        Ok(Some(()))
    })
    .await
}

pub async fn a_deleted_table_of_ours_is_back_within_a_second_beside_a_busy_kube_proxy(
    world: &World,
) -> Result<()> {
    let (node, before) = (&world.nodes[0], restored(world).await?);
    let mut slowest = Duration::ZERO;
    let delete = async {
        for _ in 0..TIMES {
            node.run("nft", &["delete", "table", "inet", "vnetpool"]).await?;
            let deleted = Instant::now();
            while !has_table(node).await? {
                let waited = deleted.elapsed();
                ensure!(waited < patience(Duration::from_secs(1)), "it isn't back after {waited:?}");
            }
            slowest = slowest.max(deleted.elapsed());
            throughout("the table", APART, || async {
                ensure!(has_table(node).await?, "it has gone by itself");
                Ok(())
            })
            .await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(keep_kube_proxy_busy(world), delete)?;
    println!("the slowest of {TIMES} was back after {} ms", slowest.as_millis());
    let restored = restored(world).await? - before;
    ensure!(restored == TIMES, "it was deleted {TIMES} times, and put back {restored} times");
    until_reported(world).await?;
    world.vm.seen_by(world.web.address).await.map(drop)
}
