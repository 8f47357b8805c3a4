//! Paths inside of the cluster: pods, their nodes, the kubelet; and the traffic that goes on without the
//! agent.

use crate::World;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_tests::place::{Place, Seen};
use vnetpool_tests::{eventually, throughout, workload};

const PATIENCE: Duration = Duration::from_secs(60);

pub async fn pods_reach_each_other_on_a_node_and_across_under_their_own_addresses(
    world: &World,
) -> Result<()> {
    world.cluster.deploy("neighbour", 1, Some("node-1")).await?;
    let neighbours = world.cluster.running("neighbour", 1, PATIENCE).await?;
    let neighbour = neighbours.first().context("no pod")?;
    for (from, to) in [
        (&world.pods[0], neighbour),
        (neighbour, &world.pods[0]),
        (&world.pods[0], &world.pods[1]),
        (&world.pods[1], neighbour),
    ] {
        let seen = Place::pod(from)?.seen_by(to.address).await?;
        ensure!(seen == Seen::new(from.address, to.address), "{} to {}: {seen:?}", from.address, to.address);
    }
    world.cluster.undeploy("neighbour").await
}

pub async fn a_pod_and_its_own_node_reach_each_other(world: &World) -> Result<()> {
    let (pod, node) = (world.pod(0)?, world.node(0)?);
    let seen = node.seen_by(&pod.address).await?;
    ensure!(seen == Seen::new(&node.address, &pod.address), "the pod sees its node as {seen:?}");
    let _server =
        node.command(vnetpool_tests::project::tool("probe")).args(["serve", "--listen", ":8088"]).spawn()?;
    let seen = eventually("the node's own server", PATIENCE, || async {
        pod.seen_at(&node.address, 8088).await.map(Some)
    })
    .await?;
    ensure!(seen == Seen::new(&pod.address, &node.address), "the node sees its pod as {seen:?}");
    Ok(())
}

/// A deployment of one probe on a node, with more fields for its pod and for its container.
pub fn one_probe(name: &str, node: &str, port: u16, pod: Value, container: Value) -> Value {
    let labels = json!({ "app": name });
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "enableServiceLinks": false,
        "nodeSelector": { "kubernetes.io/hostname": node },
        "containers": [workload::container(port)],
    });
    for (target, more) in [("", pod), ("/containers/0", container)] {
        let target = if target.is_empty() { Some(&mut spec) } else { spec.pointer_mut(target) };
        if let (Some(Value::Object(target)), Value::Object(more)) = (target, more) {
            target.extend(more);
        }
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name, "namespace": "default" },
        "spec": { "replicas": 1, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec } },
    })
}

/// Where the probe on node-2's own network listens.
pub const ON_HOST: u16 = 8089;

pub async fn a_pod_on_the_nodes_own_network_and_a_pod_reach_each_other(world: &World) -> Result<()> {
    let manifest = one_probe("hosted", "node-2", ON_HOST, json!({ "hostNetwork": true }), json!({}));
    world.cluster.apply(&manifest.to_string()).await?;
    let hosted = world.cluster.running("hosted", 1, PATIENCE).await?;
    let hosted = hosted.first().context("no pod")?;
    let node = world.node(1)?;
    ensure!(
        hosted.address.to_string() == node.address,
        "it has {}, its node {}",
        hosted.address,
        node.address
    );
    // From another node and from the same one.
    for index in [0, 1] {
        let pod = world.pod(index)?;
        let seen = pod.seen_at(&node.address, ON_HOST).await?;
        ensure!(seen == Seen::new(&pod.address, &node.address), "it sees the pod as {seen:?}");
        let seen = node.seen_by(&pod.address).await?;
        ensure!(seen == Seen::new(&node.address, &pod.address), "the pod sees it as {seen:?}");
    }
    world.cluster.undeploy("hosted").await
}

pub async fn the_kubelet_probes_a_pod_at_its_address(world: &World) -> Result<()> {
    const FAILURES: u64 = 3;
    let http = json!({ "httpGet": { "path": "/whoami", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 1,
        "failureThreshold": FAILURES });
    let probes = json!({ "readinessProbe": http, "livenessProbe": http });
    let manifest = one_probe("probed", "node-1", 8080, json!({}), probes);
    world.cluster.apply(&manifest.to_string()).await?;
    // Ready means that its readiness probe was answered. Had its liveness probe not been, the kubelet would
    // end it once that had failed so many times, each a second and a time-out after the other.
    world.cluster.running("probed", 1, PATIENCE).await?;
    let enough = Duration::from_secs(2 * FAILURES + 2);
    throughout("a pod that is Ready and was never restarted", enough, || async {
        world.cluster.running("probed", 1, Duration::ZERO).await?;
        let pods = world.cluster.pods("probed").await?;
        let status = pods.first().and_then(|pod| pod.status.as_ref()).context("no status")?;
        let restarts = status.container_statuses.iter().flatten().map(|one| one.restart_count).sum::<i32>();
        ensure!(restarts == 0, "the liveness probe ended it {restarts} times");
        Ok(())
    })
    .await?;
    world.cluster.undeploy("probed").await
}

pub async fn flows_and_new_pods_go_on_while_the_agent_is_down(world: &World) -> Result<()> {
    let pod = world.pod(0)?;
    let mut flow = pod.flow_to(&world.far.place.address).await?;
    ensure!(flow.source == pod.address, "the far end sees {}", flow.source);
    world.cluster.agent_away("node-1").await?;
    flow.goes_on().await?;
    world.cluster.deploy("late", 1, Some("node-1")).await?;
    let late = world.cluster.running("late", 1, PATIENCE).await?;
    let late = Place::pod(late.first().context("no pod")?)?;
    late.is_seen_as(&late.address, &world.far.place.address, Duration::from_secs(10)).await?;
    // Packets that leave the VNet are translated as usual.
    let (node, internet) = (world.node(0)?.address, &world.internet.address);
    late.is_seen_as(&node, internet, Duration::from_secs(10)).await?;
    flow.goes_on().await?;
    world.cluster.agent_back("node-1").await?;
    flow.goes_on().await?;
    world.cluster.undeploy("late").await
}
