//! Paths out of the cluster: the VNet, its peers, premises, the internet and the platform.

use crate::World;
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use std::time::{Duration, Instant};
use vnetpool_crds::condition;
use vnetpool_crds::refusal::{Refusal, Service, refusals};
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Machine, PREMISES, Place, Seen, peer};
use vnetpool_tests::secrets::{AIMS, are_kept_from, ask, asks_in_vain};
use vnetpool_tests::workload::{PORT, ProbePod};

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
        ensure!(answer == "10.240.0.99", "the resolver answers {answer:?}");
    }
    Ok(())
}

pub async fn pods_get_no_token_of_their_nodes_identity_unless_the_pool_allows_it(
    world: &World,
) -> Result<()> {
    for index in [0, 1] {
        are_kept_from(&world.pod(index)?, &world.node(index)?).await?;
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
        asks_in_vain(&pod, AIMS[1]).await.context("the pool has nothing of the goal state")?;
    }
    world.cluster.patch_pool(json!({ "podMetadataAccess": "None" })).await
}

pub async fn a_pod_that_asks_for_a_token_is_counted_and_named_once(world: &World) -> Result<()> {
    let (pod, node, ProbePod { name, node: host, .. }) = (world.pod(0)?, world.node(0)?, &world.pods[0]);
    let named = format!("default/{name}");
    // The pool may just have let pods ask.
    eventually("the pod asks in vain", SOON, || async {
        try_join_all(AIMS.map(|url| asks_in_vain(&pod, url))).await.map(Some)
    })
    .await?;
    // Some event of the network has the agent inspect its node now, instead of half a minute later.
    node.run("ip", &["address", "add", "192.0.2.1/32", "dev", "lo"]).await?;
    for service in Service::ALL {
        let series =
            format!("vnetpool_agent_refused_packets_total{{pod=\"{named}\",target=\"{}\"}} ", service.word());
        eventually(&series, SOON, || async {
            let metrics = node.run("curl", &["-sS", "http://127.0.0.1:9471/metrics"]).await?;
            let count = metrics.lines().find_map(|line| line.strip_prefix(&series));
            // The pod's kernel repeats what isn't answered.
            Ok(count.and_then(|count| count.parse::<u32>().ok()).filter(|count| *count >= 2))
        })
        .await?;
    }
    let condition = eventually("the condition names the pod", SOON, || async {
        let status = world.cluster.allocation(host).await?.status.context("no status")?;
        let found = condition::find(&status.conditions, condition::METADATA_REFUSED).cloned();
        let is_named = |one: &Condition| {
            let refusals = refusals(&one.message);
            Service::ALL.iter().all(|&service| refusals.contains(&Refusal { service, pod: named.clone() }))
        };
        Ok(found.filter(is_named))
    })
    .await?;
    ensure!((condition.status.as_str(), condition.reason.as_str()) == ("True", "PodsAsk"), "{condition:?}");
    // About the Node and its NodeIPAllocation, one of each for each service.
    let events = eventually("the Events about the pod", SOON, || async {
        let all = Api::<Event>::all(world.cluster.client.clone()).list(&ListParams::default()).await?.items;
        let is_about = |one: &Event| {
            let related = one.related.as_ref().and_then(|related| related.name.as_ref());
            one.reason.as_deref() == Some("PodsAsk") && related == Some(name)
        };
        let events: Vec<Event> = all.into_iter().filter(is_about).collect();
        ensure!(events.len() >= 4, "there are {}", events.len());
        Ok(Some(events))
    })
    .await?;
    for event in &events {
        let (times, note) = (event.series.as_ref(), event.message.as_deref().unwrap_or_default());
        let names_all = note.contains(&named) && note.contains("the host network");
        ensure!(events.len() == 4 && times.is_none() && names_all, "{} Events: {event:?}", events.len());
    }
    node.run("ip", &["address", "delete", "192.0.2.1/32", "dev", "lo"]).await.map(drop)
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
