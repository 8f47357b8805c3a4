//! `make demo`: the main job on a real cluster in simulated Azure, narrated step by step and verified.
//!
//! With a terminal the cluster stays up for a look around; without one it is taken down. The observations are
//! written to `target/demo.json` either way, also when a step failed. Exit code 0 only if every step held.
//!
//! With the argument `glimpse` it shows the part that needs no cluster. With `pictured` a Prometheus scrapes
//! both programs meanwhile, and what the dashboards have shown is kept for `plots`.

use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::json;
use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::glimpse;
use vnetpool_tests::panels;
use vnetpool_tests::place::Place;
use vnetpool_tests::project::{root, tool};
use vnetpool_tests::prometheus::Prometheus;
use vnetpool_tests::secrets;
use vnetpool_tests::story::Observed;

const NODES: u32 = 3;
const PODS: u32 = 60;
/// Addresses each node holds in this demo when it has no pods.
const MINIMUM: usize = 8;

#[tokio::main]
async fn main() -> Result<()> {
    if std::env::args().nth(1).is_some_and(|first| first == "glimpse") {
        step(
            "A first glimpse: one node's NIC in simulated Azure, without a cluster, which is still to be built",
        );
        return glimpse::show().await;
    }
    let is_pictured = std::env::args().nth(1).is_some_and(|first| first == "pictured");
    let mut observed = Observed::default();
    let outcome = run(&mut observed, is_pictured).await;
    let file = root().join("target/demo.json");
    std::fs::write(&file, serde_json::to_string_pretty(&observed)? + "\n")?;
    println!("\nWhat was observed is in target/demo.json.");
    outcome
}

async fn run(observed: &mut Observed, is_pictured: bool) -> Result<()> {
    let dir = root().join("target/cluster/demo");
    step("Simulated Azure, a control plane, three nodes and a plain VM, each machine a network namespace");
    let start = Instant::now();
    let mut cluster = Cluster::up(&dir, NODES, 1).await?;
    if std::io::stdout().is_terminal() {
        cluster.keep();
        print_access(&cluster);
    }
    step("helm install vnetpool");
    // Without it the metrics are for the nodes themselves.
    cluster.install_with(&["--set", &format!("monitoring.expose={is_pictured}")]).await?;
    observed.seconds_cluster_up = Some(seconds(start));
    // The demo shortens the pool's waits so that one can watch addresses go back; Azure's own times stay as
    // they are.
    cluster
        .patch_pool(
            json!({ "cooldown": "5s", "sizing": { "minimum": MINIMUM, "warm": 4, "releaseAfter": "5s" } }),
        )
        .await?;
    cluster.settled(MINIMUM, Duration::from_secs(120)).await?;
    show(&cluster).await?;
    let begin = Timestamp::now();
    let prometheus = if is_pictured { Some(Prometheus::start(&cluster).await?) } else { None };

    step("A deployment grows from 0 to 60 pods");
    cluster.deploy("web", 0, None).await?;
    let growing = cluster.grow("web", PODS);
    tokio::pin!(growing);
    let (pods, took) = loop {
        tokio::select! {
            grown = &mut growing => break grown?,
            () = tokio::time::sleep(Duration::from_secs(5)) => show(&cluster).await?,
        }
    };
    (observed.pods_running, observed.seconds_60_pods) = (Some(pods.len()), Some(took));
    show(&cluster).await?;
    println!("{} pods Running after {took:.1} s, each with an address its node's NIC holds", pods.len());

    step("Each pod opens TCP to each other one, on its own node and across nodes");
    let pairs = cluster.all_pairs(&pods).await?;
    (observed.pairs_total, observed.pairs_reachable) = (Some(pairs.total), Some(pairs.reachable));
    println!("{} of {} pairs connect, each seen under the pod's own address", pairs.reachable, pairs.total);
    ensure!(pairs.failures.is_empty(), "not reached:\n{}", pairs.failures.join("\n"));

    step("Pod and plain VM, both ways; pod and internet");
    let pod = &pods[0];
    let (vm, node) = (&cluster.state.vms[0], cluster.host(&pod.node)?);
    let by_vm = cluster.seen_from_pod(pod, &vm.name).await?;
    let by_pod = cluster.seen_by_pod(&vm.name, pod).await?;
    let by_internet = cluster.seen_from_pod(pod, &cluster.state.internet.name).await?;
    println!("pod {} on {} ({}):", pod.address, node.name, node.address);
    println!("  the VM {} sees it as {by_vm}, and is seen by it as {by_pod}", vm.address);
    println!("  the internet host {} sees it as {by_internet}", cluster.state.internet.address);
    observed.pod_source_seen_by_vm = Some(by_vm.clone());
    observed.vm_source_seen_by_pod = Some(by_pod.clone());
    observed.internet_source_seen = Some(by_internet.clone());
    ensure!(by_vm == pod.address.to_string(), "the VM should see the pod's own address");
    ensure!(by_pod == vm.address, "the pod should see the VM's own address");
    ensure!(by_internet == node.address, "the internet should see the node's address");
    secrets::are_kept_from(&Place::pod(pod)?, &Place::host(&node)).await?;
    println!("  its node gets a token of its identity and the machine's goal state, and it gets neither");

    step("kubectl describe nodeipallocation node-1");
    println!("{}", cluster.kubectl(&["describe", "nodeipallocation", "node-1"]).await?);

    step("Back to 0 pods: the addresses cool, are relinquished, and go back to Azure");
    cluster.scale("web", 0).await?;
    cluster.no_pods("web").await?;
    show(&cluster).await?;
    cluster.settled(MINIMUM, Duration::from_secs(180)).await?;
    show(&cluster).await?;

    step("kubectl patch nodeippool default: a minimum of 12 instead of 8, and back");
    cluster.patch_pool(json!({ "sizing": { "minimum": 12 } })).await?;
    cluster.settled(12, Duration::from_secs(120)).await?;
    show(&cluster).await?;
    cluster.patch_pool(json!({ "sizing": { "minimum": MINIMUM } })).await?;
    cluster.settled(MINIMUM, Duration::from_secs(180)).await?;

    step("A burst of 60 pods onto node-3, which holds 8 addresses");
    let burst = cluster.burst("burst", "node-3", PODS).await?;
    observed.burst_nic_writes = Some(burst.nic_writes);
    println!(
        "{} NIC writes; bound within {} s, Running after {:.1} s",
        burst.nic_writes, burst.bound_within, burst.seconds
    );
    ensure!(burst.nic_writes <= 2, "a burst should cost one NIC write, two at the very most");

    step("The agent of node-2 is taken away: pods go on starting and stopping there");
    // Meanwhile node-3 ends its sixty pods, which takes its kubelet a while.
    let ((), started) = tokio::try_join!(cluster.undeploy("burst"), cluster.without_agent("node-2"))?;
    observed.pods_started_with_agent_down = Some(started);
    println!("{started} pods started and stopped, and no agent process existed there all the while");

    step("Everything settles");
    cluster.undeploy("web").await?;
    let settled = cluster.settled(MINIMUM, Duration::from_secs(180)).await;
    observed.addresses_held_after_settle = Some(cluster.held().await?);
    observed.addresses_wanted_after_settle = Some(MINIMUM * NODES as usize);
    observed.leaked_records = Some(cluster.assigned_records()?);
    settled?;
    show(&cluster).await?;
    ensure!(observed.leaked_records == Some(0), "records are left in the ledgers");
    if let Some(prometheus) = &prometheus {
        let shown = panels::record(prometheus, "node-1", begin).await?;
        std::fs::write(root().join(panels::RECORDED), serde_json::to_string(&shown)?)?;
    }
    if std::io::stdout().is_terminal() {
        step("The cluster stays up");
        print_access(&cluster);
    }
    Ok(())
}

fn print_access(cluster: &Cluster) {
    println!("To look around:       export KUBECONFIG={}", cluster.state.kubeconfig.display());
    println!("A kubectl for it:     {}", tool("kubectl").display());
    println!("To take it all down:  make demo-down");
}

fn step(what: &str) {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("\n=== {:.0} s: {what}", seconds(*BEGUN));
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

async fn show(cluster: &Cluster) -> Result<()> {
    let table = cluster.kubectl(&["get", "nodeippools,nodeipallocations"]).await?;
    println!("$ kubectl get nodeippools,nodeipallocations\n{table}");
    Ok(())
}
