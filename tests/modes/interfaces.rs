//! Several NICs: a pool with `subnetID` has its pods on the node's NIC in that subnet.

use crate::{MOVES, PATIENCE, World};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, id, put_subnet};
use vnetpool_tests::workload::{PORT, ProbePod};

/// Values of `rp_filter`; a new node of the test cluster has the second.
const STRICT: u32 = 1;
const LOOSE: u32 = 2;

/// Has pods of node-3 on its second NIC, once that serves alone.
async fn serve(world: &World) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let subnet = id("virtualNetworks/vnet/subnets/small");
    let spec = json!({ "subnetID": subnet, "cooldown": "1s", "sizing": sizing, "podMetadataAccess": "All" });
    world.pool("second", &["node-3"], spec).await?;
    let first = world.cluster.host("node-3")?.nic_id;
    eventually("the second NIC serves alone", MOVES, || async {
        let nics = world.cluster.azure.nics().await?;
        let of = |id: &str| nics.get(&id.to_lowercase()).map(|nic| nic.pod_addresses().len());
        let second = of(&id("networkInterfaces/node-3-nic-1")).context("no second NIC")?;
        let held = (of(&first), second);
        ensure!(held == (Some(0), 2), "the NICs hold {held:?}");
        Ok(Some(()))
    })
    .await
}

/// node-3's first NIC holds nothing of ours any more, its second, `eth1`, the pods' addresses. Simulated
/// Azure drops packets that leave by a NIC without their source; so a far end that sees the pod's own address
/// shows by which NIC the packet came.
pub async fn packets_of_a_second_nics_pods_leave_by_it_under_strict_reverse_path_filters(
    world: &World,
) -> Result<()> {
    let cluster = &world.cluster;
    let node = world.node("node-3")?;
    filter_reverse_paths(&node, STRICT).await?;
    serve(world).await?;
    let pods = world.start("second", "node-3", 2).await?;
    for pod in &pods {
        let pod = Place::pod(pod)?;
        ensure!(pod.address.starts_with("10.240.16."), "{} isn't of the second NIC's subnet", pod.address);
        // Both ways: a VM in the first NIC's subnet, and one in a peered VNet.
        for end in [&world.vm, &world.far.place] {
            let seen = pod.seen_by(&end.address).await?;
            ensure!(seen == Seen::new(&pod.address, &end.address), "{} sees {seen:?}", end.address);
            let seen = end.seen_by(&pod.address).await?;
            ensure!(seen == Seen::new(&end.address, &pod.address), "the pod sees {seen:?}");
        }
        let seen = pod.seen_by(&world.internet.address).await?;
        ensure!(seen == Seen::new(&world.second, &world.internet.address), "the internet sees {seen:?}");
        let seen = node.seen_by(&pod.address).await?;
        ensure!(seen.local == pod.address, "the node doesn't reach its pod: {seen:?}");
        // Only the first NIC's primary address is answered.
        let url = "http://169.254.169.254/metadata/instance/compute/name?api-version=2021-02-01&format=text";
        let name = pod.run("curl", &["-sS", "--max-time", "3", "-H", "metadata: true", url]).await?;
        ensure!(name == "node-3", "the metadata service takes the pod for {name}");
    }
    let pairs = cluster.all_pairs(&pods).await?;
    ensure!(pairs.total == 2 && pairs.failures.is_empty(), "{}", pairs.failures.join("\n"));
    node_ports_lead_to_them(world, &node, &pods).await?;
    a_rule_that_a_daemon_removes_is_back(&node).await?;
    world.end(&["second"]).await?;
    filter_reverse_paths(&node, LOOSE).await
}

/// kube-proxy leads connections to them that come by the first NIC, and by the second Azure takes no answer
/// under the first one's address.
async fn node_ports_lead_to_them(world: &World, node: &Place, pods: &[ProbePod]) -> Result<()> {
    let cluster = &world.cluster;
    for policy in ["Local", "Cluster"] {
        let service = json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "second", "namespace": "default" },
            "spec": { "type": "NodePort", "externalTrafficPolicy": policy, "selector": { "app": "second" },
                "ports": [{ "port": 80, "targetPort": PORT }] } });
        cluster.apply(&service.to_string()).await?;
        let path = "jsonpath={.spec.ports[0].nodePort}";
        let port = cluster.kubectl(&["get", "service", "second", "-o", path]).await?.trim().parse()?;
        for end in [&world.vm, &world.far.place] {
            let source = if policy == "Local" { &end.address } else { &node.address };
            eventually(&format!("{policy}: {} comes to a pod", end.address), PATIENCE, || async {
                let seen = end.seen_at(&node.address, port).await?;
                let is_there = pods.iter().any(|pod| pod.address.to_string() == seen.local);
                ensure!(is_there && seen.source == *source, "a pod sees {seen:?}");
                Ok(Some(()))
            })
            .await?;
        }
    }
    cluster.kubectl(&["delete", "service", "second"]).await.map(drop)
}

/// A network daemon removes rules that it doesn't know; the agent hears of it.
async fn a_rule_that_a_daemon_removes_is_back(node: &Place) -> Result<()> {
    let rules = node.run("ip", &["rule", "list"]).await?;
    // They lead to the table of ours, 176.
    let ours: Vec<&str> = rules.lines().filter(|rule| rule.contains("lookup 176")).collect();
    ensure!(!ours.is_empty(), "there are only {rules}");
    for rule in &ours {
        let priority = rule.split(':').next().unwrap_or_default();
        node.run("ip", &["rule", "delete", "priority", priority]).await?;
    }
    eventually("the rules are back", PATIENCE, || async {
        let now = node.run("ip", &["rule", "list"]).await?;
        ensure!(now == rules, "there are {now}");
        Ok(Some(()))
    })
    .await
}

pub async fn a_service_endpoint_sees_the_primary_address_of_the_nic_that_pods_use(
    world: &World,
) -> Result<()> {
    const SUBNET: &str = "vnet/subnets/small";
    let storage = &world.storage.place.address;
    let endpoint = json!({ "serviceEndpoints": [{ "service": "Microsoft.Storage" }] });
    serve(world).await?;
    put_subnet(&world.cluster, SUBNET, endpoint).await?;
    for pod in world.start("second", "node-3", 2).await? {
        Place::pod(&pod)?.is_seen_as(&world.second, storage, PATIENCE).await?;
    }
    put_subnet(&world.cluster, SUBNET, json!({})).await?;
    world.end(&["second"]).await
}

async fn filter_reverse_paths(node: &Place, how: u32) -> Result<()> {
    for link in ["all", "eth0", "eth1"] {
        node.run("sysctl", &["-q", "-w", &format!("net.ipv4.conf.{link}.rp_filter={how}")]).await?;
    }
    Ok(())
}
