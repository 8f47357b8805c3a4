//! Paths out of the cluster: the VNet, its peers, premises, the internet and the platform.

use crate::World;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Machine, PREMISES, Place, Seen, peer};
use vnetpool_tests::workload::PORT;

/// How long a pool's change takes to reach the rules of each node, at most.
pub const SOON: Duration = Duration::from_secs(20);
/// A VNet is read once a minute; then a node's rules follow.
const NEXT_READ: Duration = Duration::from_secs(70);

pub async fn a_pod_and_a_vm_of_the_vnet_reach_each_other_under_their_own_addresses(
    world: &World,
) -> Result<()> {
    // One in the nodes' subnet and one in another.
    for vm in [&world.vm, &world.appliance.place] {
        for index in [0, 1] {
            let pod = world.pod(index)?;
            let seen = pod.seen_by(&vm.address).await?;
            ensure!(seen == Seen::new(&pod.address, &vm.address), "the VM sees {seen:?}");
            let seen = vm.seen_by(&pod.address).await?;
            ensure!(seen == Seen::new(&vm.address, &pod.address), "the pod sees {seen:?}");
        }
    }
    Ok(())
}

pub async fn premises_behind_the_gateway_see_the_pods_own_address(world: &World) -> Result<()> {
    let pod = world.pod(0)?;
    pod.is_seen_as(&pod.address, PREMISES, SOON).await?;
    let seen = world.premises.place.seen_by(&pod.address).await?;
    ensure!(seen == Seen::new(PREMISES, &pod.address), "the pod sees {seen:?}");
    Ok(())
}

pub async fn the_internet_and_the_platform_see_the_nodes_primary_address(world: &World) -> Result<()> {
    world.cluster.azure.admin("PUT", "/names", json!({ "db.corp.example": "10.240.0.99" })).await?;
    for index in [0, 1] {
        let (pod, node) = (world.pod(index)?, world.node(index)?);
        let seen = pod.seen_by(&world.internet.address).await?;
        ensure!(seen == Seen::new(&node.address, &world.internet.address), "the internet sees {seen:?}");
        // The resolver answers primary addresses only.
        let answer = pod.resolve("db.corp.example").await?;
        ensure!(answer == "10.240.0.99", "the resolver says {answer:?}");
    }
    Ok(())
}

/// An attacker's aims in a pod: a token of the node's identity, which by default is the operator's, and the
/// machine's goal state.
pub async fn pods_get_no_token_of_their_nodes_identity_unless_the_pool_allows_it(
    world: &World,
) -> Result<()> {
    let token = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01\
                 &resource=https://management.azure.com/";
    let ask = async |place: &Place, url: &str| {
        place.run("curl", &["-sS", "--fail", "--max-time", "3", "-H", "metadata: true", url]).await
    };
    let goal_state = "http://168.63.129.16/machine?comp=goalstate";
    for index in [0, 1] {
        let (pod, node) = (world.pod(index)?, world.node(index)?);
        for url in [token, goal_state] {
            ask(&node, url).await?;
            let answer = ask(&pod, url).await;
            let is_dropped =
                answer.as_ref().is_err_and(|error| error.to_string().contains("Connection timed out"));
            ensure!(is_dropped, "a pod asks for {url}: {answer:?}");
        }
    }
    world.cluster.patch_pool(json!({ "podMetadataAccess": "All" })).await?;
    for index in [0, 1] {
        let (pod, node) = (world.pod(index)?, world.node(index)?);
        // The service answers each client with the client's machine.
        let url = "http://169.254.169.254/metadata/instance/compute/name?api-version=2021-02-01&format=text";
        eventually("the metadata service answers a pod", SOON, || async {
            let name = ask(&pod, url).await?;
            ensure!(name == world.pods[index].node, "the metadata service takes the pod for {name}");
            Ok(Some(()))
        })
        .await?;
        let log = world.cluster.azure.raw_log().await?;
        let asked = |entry: &&serde_json::Value| entry["path"] == "/metadata/instance/compute/name";
        let last = log.as_array().into_iter().flatten().rfind(asked).map(|entry| entry["caller"].clone());
        ensure!(last == Some(json!(node.address)), "the metadata service was called by {last:?}");
        ensure!(ask(&pod, goal_state).await.is_err(), "the pool says nothing of the goal state");
    }
    world.cluster.patch_pool(json!({ "podMetadataAccess": "None" })).await
}

/// Each under its own address, as soon as the nodes' rules have followed.
pub async fn a_peer_and_the_pods_reach_each_other(
    world: &World,
    far: &Place,
    within: Duration,
) -> Result<()> {
    for pod in [world.pod(0)?, world.pod(1)?] {
        pod.is_seen_as(&pod.address, &far.address, within).await?;
        let seen = far.seen_by(&pod.address).await?;
        ensure!(seen == Seen::new(&far.address, &pod.address), "the pod sees {seen:?}");
    }
    Ok(())
}

pub async fn a_new_peering_is_followed_within_the_next_read_and_disturbs_no_flow(
    world: &World,
) -> Result<()> {
    let (one, two) = (world.pod(0)?, world.pod(1)?);
    let new = Machine::far(&world.cluster, "new", "10.61.0.0/16").await?;
    let far = &world.far.place;
    // Connections of every kind go on meanwhile: also to one that has been a peer for longer.
    a_peer_and_the_pods_reach_each_other(world, far, NEXT_READ).await?;
    let mut flows = Vec::new();
    for pod in [&one, &two] {
        pod.is_dropped(&new.place.address, PORT).await.context("without a peering")?;
        flows.push(pod.flow_to(&far.address).await?);
        flows.push(pod.flow_to(PREMISES).await?);
    }
    let begun = Instant::now();
    peer(&world.cluster, "new").await?;
    a_peer_and_the_pods_reach_each_other(world, &new.place, NEXT_READ).await?;
    println!("the rules of both nodes followed {:.1} s after the peering", begun.elapsed().as_secs_f64());
    for flow in &mut flows {
        flow.goes_on().await?;
    }
    Ok(())
}
