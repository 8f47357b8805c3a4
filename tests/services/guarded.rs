//! Our table beside a kube-proxy that changes its own all the while, and after a flush that takes all tables.

use crate::inside::cluster_ip;
use crate::{SERVED, SOON, World};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vnetpool_crds::condition;
use vnetpool_tests::place::{Place, Seen, until_seen};
use vnetpool_tests::wait::patience;
use vnetpool_tests::workload::{PORT, ProbePod, container};
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

/// Until the condition of the node's object has this status and these words.
async fn until_reported(world: &World, status: &str, words: &str) -> Result<()> {
    eventually(&format!("the node's object is {status} and has {words:?}"), 3 * SOON, || async {
        world.cluster.have_inspected("node-1").await?;
        let seen = world.cluster.allocation("node-1").await?.status.context("no status")?;
        let found = condition::find(&seen.conditions, condition::UNDISTURBED).context("no condition")?;
        ensure!(found.status == status && found.message.contains(words), "{}", found.message);
        Ok(Some(()))
    })
    .await
}

/// Until our table is on the node again. Returns how long it took.
async fn until_back(node: &Place) -> Result<Duration> {
    let gone = Instant::now();
    while !has_table(node).await? {
        let waited = gone.elapsed();
        ensure!(waited < patience(Duration::from_secs(1)), "it isn't back after {waited:?}");
    }
    Ok(gone.elapsed())
}

pub async fn a_deleted_table_of_ours_is_back_within_a_second_beside_a_busy_kube_proxy(
    world: &World,
) -> Result<()> {
    let (node, before) = (&world.nodes[0], restored(world).await?);
    let mut slowest = Duration::ZERO;
    let delete = async {
        for _ in 0..TIMES {
            node.run("nft", &["delete", "table", "inet", "vnetpool"]).await?;
            slowest = slowest.max(until_back(node).await?);
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
    // A repair is no obstacle.
    until_reported(world, "True", "put Vnetpool's nftables table back").await?;
    world.vm.seen_by(world.web.address).await.map(drop)
}

const HOST_PORT: u16 = 8188;

/// A pod on node-1 that is reached at the node's address.
async fn start_with_host_port(world: &World) -> Result<ProbePod> {
    let mut container = container(PORT);
    container["ports"] = json!([{ "containerPort": PORT, "hostPort": HOST_PORT }]);
    let more = json!({ "containers": [container] });
    let pod = world.pod_with("hosted", "node-1", PORT, json!({}), more).await?;
    let seen = Seen::new(&world.vm.address, pod.address);
    until_seen(&world.vm, &world.nodes[0].address, HOST_PORT, &seen).await?;
    Ok(pod)
}

async fn end_with_host_port(world: &World) -> Result<()> {
    world.cluster.kubectl(&["delete", "pod", "hosted"]).await?;
    world.cluster.no_pods("hosted").await
}

/// As `systemctl restart nftables` does with Debian's configuration: kube-proxy's tables go, and portmap's.
pub async fn after_a_flush_of_all_tables_ours_is_back_within_a_second_and_lost_host_ports_are_named(
    world: &World,
) -> Result<()> {
    let (node, web) = (&world.nodes[0], Place::pod(&world.web)?);
    start_with_host_port(world).await?;
    let known = world.cluster.host("node-1")?.path("/run/vnetpool/host-ports");
    eventually("the agent knows of the host port", 3 * SOON, || async {
        world.cluster.have_inspected("node-1").await?;
        Ok(std::fs::read_to_string(&known).is_ok_and(|marks| !marks.is_empty()).then_some(()))
    })
    .await?;
    node.run("nft", &["flush", "ruleset"]).await?;
    println!("our table was back after {} ms", until_back(node).await?.as_millis());
    let outside = &world.internet.address;
    until_seen(&web, outside, PORT, &Seen::new(&node.address, outside)).await?;
    world.vm.seen_by(world.web.address).await?;
    // kube-proxy makes its tables anew when it starts. Without them the agent reaches no API server.
    for proxy in world.cluster.host("node-1")?.processes("kube-proxy") {
        kill(Pid::from_raw(proxy.try_into()?), Signal::SIGKILL)?;
    }
    until_reported(world, "False", "the hostPort of pods default/hosted leads nowhere").await?;
    // As the message asks for.
    end_with_host_port(world).await?;
    start_with_host_port(world).await?;
    end_with_host_port(world).await?;
    until_reported(world, "True", "put Vnetpool's nftables table back").await?;
    let address = cluster_ip(&world.serve("web", "web", json!({})).await?)?;
    let near = Place::pod(&world.near)?;
    until_seen(&near, &address, SERVED, &Seen::new(&near.address, world.web.address)).await?;
    world.unserve("web").await
}
