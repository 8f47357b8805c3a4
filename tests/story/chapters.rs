//! The main job: the demo's steps, as assertions.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_azure_sim::LogEntry;
use vnetpool_azure_sim::schema::{Coverage, Documents};
use vnetpool_crds::condition;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::workload::ProbePod;

pub const MINIMUM: usize = 8;
const PODS: u32 = 60;
const ENOUGH_WRITES: usize = 10;

/// The seconds that a write takes Azure here, but for the chapter about a burst, and as it is known to take.
pub const QUICK: u32 = 3;
const TRUE: u32 = 10;

pub async fn writes_take(cluster: &Cluster, seconds: u32) -> Result<()> {
    cluster.azure.admin("PATCH", "/settings", json!({ "write_seconds": seconds })).await.map(drop)
}

/// The pool's waits are shortened so that a test can see addresses go back.
pub async fn shorten_the_pools_waits(cluster: &Cluster) -> Result<()> {
    let sizing = json!({ "minimum": MINIMUM, "warm": 4, "batch": 4, "maximum": 255, "releaseAfter": "5s" });
    cluster.patch_pool(json!({ "cooldown": "4s", "sizing": sizing })).await
}

/// Sixty pods, unless they run already.
async fn sixty_pods(cluster: &Cluster) -> Result<Vec<ProbePod>> {
    if cluster.pods("web").await?.len() == PODS as usize {
        return cluster.running("web", PODS as usize, Duration::from_secs(60)).await;
    }
    cluster.deploy("web", 0, None).await?;
    Ok(cluster.grow("web", PODS).await?.0)
}

pub async fn each_node_holds_the_minimum_and_reports_it(cluster: &Cluster) -> Result<()> {
    cluster.undeploy("web").await?;
    cluster.settled(MINIMUM, Duration::from_secs(120)).await?;
    for node in &cluster.state.nodes {
        // Its agent has yet to take up the operator's last word.
        vnetpool_tests::eventually(
            &format!("{} reports its minimum", node.name),
            Duration::from_secs(30),
            || async {
                let status = cluster.allocation(&node.name).await?.status.context("no status")?;
                ensure!(condition::is_true(&status.conditions, condition::READY), "{:?}", status.conditions);
                ensure!(status.free as usize == MINIMUM, "{} are free", status.free);
                Ok(Some(()))
            },
        )
        .await?;
    }
    Ok(())
}

pub async fn sixty_pods_run_with_addresses_their_nics_hold_and_reach_each_other(
    cluster: &Cluster,
) -> Result<()> {
    let pods = sixty_pods(cluster).await?;
    let nodes: BTreeSet<_> = pods.iter().map(|pod| &pod.node).collect();
    ensure!(nodes.len() == 3, "the pods run on {nodes:?} only");
    let pairs = cluster.all_pairs(&pods).await?;
    ensure!(pairs.total == 3540);
    ensure!(
        pairs.failures.is_empty(),
        "{} not reached:\n{}",
        pairs.failures.len(),
        pairs.failures.join("\n")
    );
    Ok(())
}

pub async fn a_pod_and_a_vm_see_each_others_own_addresses_and_the_internet_sees_the_nodes(
    cluster: &Cluster,
) -> Result<()> {
    let pods = sixty_pods(cluster).await?;
    let vm = cluster.host("vm-1")?;
    for node in &cluster.state.nodes {
        let pod = pods.iter().find(|pod| pod.node == node.name).context("no pod on a node")?;
        let by_vm = cluster.seen_from_pod(pod, &vm.name).await?;
        ensure!(by_vm == pod.address.to_string(), "the VM sees {} as {by_vm}", pod.address);
        let by_pod = cluster.seen_by_pod(&vm.name, pod).await?;
        ensure!(by_pod == vm.address, "{} sees the VM {} as {by_pod}", pod.address, vm.address);
        let by_internet = cluster.seen_from_pod(pod, "internet").await?;
        ensure!(by_internet == node.address, "the internet sees {} as {by_internet}", pod.address);
    }
    Ok(())
}

pub async fn kubectl_shows_the_sums_of_addresses_and_the_holder_of_each(cluster: &Cluster) -> Result<()> {
    sixty_pods(cluster).await?;
    let table = vnetpool_tests::eventually("the pool's sums", Duration::from_secs(120), || async {
        let table = cluster.kubectl(&["get", "nodeippools"]).await?;
        let row: Vec<_> =
            table.lines().nth(1).unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        ensure!(row.get(6).map(String::as_str) == Some("60"), "{table}");
        Ok(Some(table))
    })
    .await?;
    let has_columns = |table: &str, columns: &str| {
        let header: Vec<_> = table.lines().next().unwrap_or_default().split_whitespace().collect();
        ensure!(header.join(" ") == columns, "{table}");
        Ok(())
    };
    has_columns(&table, "NAME MODE NODES NODES-READY UPDATED HELD ASSIGNED FREE READY REASON AGE")?;
    let table = cluster.kubectl(&["get", "nodeipallocations", "-o", "wide"]).await?;
    has_columns(&table, "NAME POOL HELD ASSIGNED FREE COOLING WAITING COUNTED READY REASON AGE NIC SUBNET")?;
    // The holders of addresses stand in the Pods, as the node's own ledger has them.
    let node = "node-1";
    let ledger = cluster.host(node)?.ledger()?;
    let assigned = ledger.assignments().map(|(entry, one)| format!("{} {}", one.pod.name, entry.address));
    let assigned: BTreeSet<String> = assigned.collect();
    let of_node = format!("spec.nodeName={node},spec.hostNetwork=false");
    let line = r#"jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}"#;
    let shown = cluster.kubectl(&["get", "pods", "-A", "--field-selector", &of_node, "-o", line]).await?;
    let shown: BTreeSet<String> = shown.lines().map(str::to_owned).collect();
    ensure!(shown == assigned && shown.len() >= PODS as usize / 4, "{shown:?}, in the ledger {assigned:?}");
    Ok(())
}

pub async fn addresses_go_back_to_azure_when_the_pods_are_gone(cluster: &Cluster) -> Result<()> {
    sixty_pods(cluster).await?;
    cluster.undeploy("web").await?;
    cluster.settled(MINIMUM, Duration::from_secs(180)).await?;
    ensure!(cluster.held().await? == 3 * MINIMUM);
    ensure!(cluster.assigned_records()? == 0, "records are left in the ledgers");
    Ok(())
}

pub async fn a_changed_pool_changes_the_nodes_addresses(cluster: &Cluster) -> Result<()> {
    cluster.undeploy("web").await?;
    cluster.patch_pool(json!({ "sizing": { "minimum": 12 } })).await?;
    cluster.settled(12, Duration::from_secs(120)).await?;
    cluster.patch_pool(json!({ "sizing": { "minimum": MINIMUM } })).await?;
    cluster.settled(MINIMUM, Duration::from_secs(180)).await
}

pub async fn a_burst_of_sixty_pods_costs_two_nic_writes_at_most(cluster: &Cluster) -> Result<()> {
    cluster.undeploy("web").await?;
    cluster.settled_on("node-3", MINIMUM, Duration::from_secs(180)).await?;
    writes_take(cluster, TRUE).await?;
    let burst = cluster.burst("burst", "node-3", PODS).await?;
    writes_take(cluster, QUICK).await?;
    println!(
        "{} NIC writes, bound within {} s, Running after {:.1} s",
        burst.nic_writes, burst.bound_within, burst.seconds
    );
    // The operator takes pods that are bound within two seconds for one burst. A scheduler that needs longer,
    // on a busy machine, has made several: the cost of each is the same.
    let bursts = 1 + usize::try_from(burst.bound_within)? / 5;
    let most = 2 * bursts;
    ensure!(
        (1..=most).contains(&burst.nic_writes),
        "{} NIC writes for pods that were bound over {} s",
        burst.nic_writes,
        burst.bound_within
    );
    cluster.undeploy("burst").await?;
    cluster.settled_on("node-3", MINIMUM, Duration::from_secs(180)).await
}

pub async fn pods_start_and_stop_while_the_agent_is_down(cluster: &Cluster) -> Result<()> {
    cluster.undeploy("web").await?;
    ensure!(cluster.without_agent("node-2").await? == 6);
    cluster.settled_on("node-2", MINIMUM, Duration::from_secs(180)).await?;
    ensure!(cluster.assigned_records()? == 0, "records are left in the ledgers");
    Ok(())
}

/// Every body our operator sent and every body it was answered, against the official OpenAPI documents.
pub async fn every_exchange_with_azure_keeps_to_its_documents(cluster: &Cluster) -> Result<()> {
    let documents = Documents::beside_project()?.context("../shared/azure-spec went away")?;
    // Run alone, it makes the exchanges of the main job first.
    if cluster.azure.log().await?.iter().filter(|exchange| exchange.method == "PUT").count() <= ENOUGH_WRITES
    {
        addresses_go_back_to_azure_when_the_pods_are_gone(cluster).await?;
        a_changed_pool_changes_the_nodes_addresses(cluster).await?;
    }
    let log: Vec<LogEntry> = serde_json::from_value(cluster.azure.raw_log().await?)?;
    let (mut validated, mut wrong) = (0, vec![]);
    for exchange in &log {
        match documents.validate(exchange) {
            Ok(Coverage::Validated) => validated += 1,
            Ok(Coverage::Undocumented(_)) => {}
            Err(errors) => {
                wrong.push(format!("{} {}: {}", exchange.method, exchange.path, errors.join("; ")))
            }
        }
    }
    println!("{validated} of {} exchanges validated, the others have no document", log.len());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let writes = log.iter().filter(|exchange| exchange.method == "PUT").count();
    ensure!(
        writes > ENOUGH_WRITES && validated * 10 > log.len() * 9,
        "only {validated} of {} exchanges validated; {writes} are writes",
        log.len()
    );
    Ok(())
}
