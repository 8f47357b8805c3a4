//! Pods that come and go on all nodes.

use crate::world::World;
use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use vnetpool_azure_sim::Draws;
use vnetpool_tests::workload::{PORT, container};

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// How many pods a node has at most at high tide, and at low tide: so NICs gain and lose addresses all the
/// while. It turns after so many steps.
const MOST: [usize; 2] = [8, 3];
const TIDE: usize = 100;
const BETWEEN: Duration = Duration::from_millis(400);
/// An API server that stands still holds the churn up no longer.
const REQUEST: Duration = Duration::from_secs(5);
/// By this label of nodes each pod chooses its own.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// The label of all pods here.
pub const LABEL: &str = "app=soak";

pub fn pods(world: &World) -> Api<Pod> {
    Api::namespaced(world.cluster.client.clone(), "default")
}

/// After so many steps the pods are read anew: a store that is set back has other ones.
const READ: usize = 20;

/// Makes and deletes pods until then. Pods that the API server doesn't take are left out.
pub async fn run(world: &World, seed: u64, until: Instant) -> Result<()> {
    let (mut draws, api) = (Draws::of(seed), pods(world));
    let mut there: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for number in 0_usize.. {
        if Instant::now() >= until {
            break;
        }
        if number.is_multiple_of(READ)
            && let Ok(Ok(pods)) = timeout(REQUEST, api.list(&ListParams::default().labels(LABEL))).await
        {
            there = by_node(&pods.items);
        }
        let node = NODES[draws.below(NODES.len(), "node")];
        let pods = there.entry(node.to_owned()).or_default();
        let most = MOST[number / TIDE % MOST.len()];
        if pods.len() < most && (pods.is_empty() || draws.below(5, "comes") < 3) {
            let pod = serde_json::from_value(pod(&format!("soak-{number}"), node))?;
            if let Ok(Ok(made)) = timeout(REQUEST, api.create(&PostParams::default(), &pod)).await {
                pods.extend(made.metadata.name);
            }
        } else if !pods.is_empty() {
            // Any: some pods live through many faults.
            let name = pods.swap_remove(draws.below(pods.len(), "goes"));
            // Now and then as by `kubectl delete --force`.
            let grace = if draws.below(4, "force") == 0 { 0 } else { 1 };
            let how = DeleteParams::default().grace_period(grace);
            match timeout(REQUEST, api.delete(&name, &how)).await {
                Ok(Ok(_)) => {}
                // It went with its node.
                Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {}
                _ => pods.push(name),
            }
        }
        sleep(BETWEEN).await;
    }
    Ok(())
}

/// Deletes them all.
pub async fn end(world: &World) -> Result<()> {
    let all = ListParams::default().labels(LABEL);
    pods(world).delete_collection(&DeleteParams::default().grace_period(1), &all).await?;
    Ok(())
}

/// The names of pods that aren't ending, by the node that they were made for.
fn by_node(pods: &[Pod]) -> BTreeMap<String, Vec<String>> {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
        let node = selector.and_then(|selector| selector.get(HOSTNAME)).cloned();
        named.entry(node.unwrap_or_default()).or_default().extend(pod.metadata.name.clone());
    }
    named
}

fn pod(name: &str, node: &str) -> serde_json::Value {
    json!({
        "metadata": { "name": name, "labels": { "app": "soak" } },
        "spec": {
            "nodeSelector": { HOSTNAME: node },
            // A node that is full or just booting has the pod all the same.
            "tolerations": [{ "operator": "Exists" }],
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [container(PORT)],
        },
    })
}
