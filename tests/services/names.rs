//! Names, by the real CoreDNS: it watches the cluster's Services and asks Azure's resolver for everything
//! else.

use crate::inside::cluster_ip;
use crate::{SERVED, SOON, World};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, until_dropped};
use vnetpool_tests::workload::{PORT, ProbePod, container, target};

/// CoreDNS' pod as the API server has it, once the one that it replaced is gone: until then either may be
/// asked.
async fn coredns(world: &World) -> Result<Value> {
    let pods = ["get", "pods", "--namespace=kube-system", "--selector=k8s-app=kube-dns", "--output=json"];
    eventually("CoreDNS is one pod", 2 * SOON, || async {
        let mut found: Value = serde_json::from_str(&world.cluster.kubectl(&pods).await?)?;
        let found = found["items"].as_array_mut().context("no list")?;
        ensure!(found.len() == 1, "there are {}", found.len());
        Ok(found.pop())
    })
    .await
}

/// The address of the node that CoreDNS runs on.
async fn asking_node(world: &World) -> Result<String> {
    let node = coredns(world).await?["spec"]["nodeName"].as_str().map(str::to_owned);
    Ok(world.cluster.host(&node.context("no pod of CoreDNS")?)?.address)
}

/// The address of its pod.
pub async fn coredns_address(world: &World) -> Result<String> {
    coredns(world).await?["status"]["podIP"].as_str().map(str::to_owned).context("no pod of CoreDNS")
}

/// The address of a name, as a process in the pod resolves it: by the pod's own resolv.conf.
async fn resolved(world: &World, pod: &ProbePod, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
    #[derive(Deserialize)]
    struct Resolution {
        addresses: Option<BTreeSet<Ipv4Addr>>,
        #[serde(default)]
        error: String,
    }
    let url = format!("http://{}/resolve?name={name}", target(pod.address));
    let answer = world.vm.run("curl", &["-sS", "--max-time", "10", &url]).await?;
    let Resolution { addresses, error } = serde_json::from_str(&answer).context(answer)?;
    ensure!(error.is_empty(), "{name} in {}: {error}", pod.name);
    Ok(addresses.unwrap_or_default())
}

/// Waits until a name leads there: changes reach CoreDNS and its cache within seconds.
async fn until_resolved(
    world: &World,
    pod: &ProbePod,
    name: &str,
    wanted: impl IntoIterator<Item = Ipv4Addr>,
) -> Result<()> {
    let wanted: BTreeSet<_> = wanted.into_iter().collect();
    eventually(&format!("{name} in {} leads to {wanted:?}", pod.name), SOON, || async {
        let found = resolved(world, pod, name).await?;
        ensure!(found == wanted, "it leads to {found:?}");
        Ok(Some(()))
    })
    .await
}

/// Waits until a pod's connection to a name comes through; the far end has to see the pod's own address.
async fn calls(world: &World, pod: &ProbePod, name: &str, port: u16) -> Result<()> {
    eventually(&format!("a call of {name}:{port} by {}", pod.name), SOON, || async {
        let dials = world.cluster.dial_from_pod(pod, &[format!("{name}:{port}")]).await?;
        let seen: Vec<_> = dials.iter().map(|dial| &dial.source_seen_by_target).collect();
        ensure!(seen == [&pod.address.to_string()], "{dials:?}");
        Ok(Some(()))
    })
    .await
}

pub async fn a_name_of_a_private_zone_resolves_in_a_pod_and_azure_is_asked_by_the_nodes_primary_address(
    world: &World,
) -> Result<()> {
    let address: Ipv4Addr = world.vm.address.parse()?;
    // A name for each: CoreDNS doesn't ask again for a name in its cache.
    let names = ["db.corp.example", "queue.corp.example", "late.corp.example"];
    let zone: serde_json::Map<_, _> =
        names.map(|name| (name.to_owned(), json!(address))).into_iter().collect();
    world.cluster.azure.admin("PUT", "/names", zone.into()).await?;
    let asker = asking_node(world).await?;
    let [first, second, last] = names;
    for (name, pod) in [(first, &world.near), (second, &world.away)] {
        is_asked_for(world, pod, name, address, &asker).await?;
    }
    // Azure answers no other address, so this holds even if no other traffic is to be translated.
    world.cluster.patch_pool(json!({ "snat": { "nonMasqueradeCIDRs": ["0.0.0.0/0"] } })).await?;
    let untranslated = async {
        for pod in [&world.near, &world.away] {
            until_dropped(&Place::pod(pod)?, &world.internet.address, PORT).await?;
        }
        // One that starts anew: flows that were translated before go on as they are.
        world.cluster.roll_out_coredns("restart").await?;
        world.cluster.roll_out_coredns("status").await?;
        is_asked_for(world, &world.near, last, address, &asking_node(world).await?).await
    };
    let outcome = untranslated.await;
    // Also after a failure: other tests need the internet.
    world.cluster.patch_pool(json!({ "snat": { "nonMasqueradeCIDRs": null } })).await?;
    outcome
}

/// A name leads to an address that answers, and Azure's resolver is asked for it by nodes only, the node of
/// CoreDNS among them: a pod of CoreDNS that is ending may still answer on another.
async fn is_asked_for(
    world: &World,
    pod: &ProbePod,
    name: &str,
    address: Ipv4Addr,
    asker: &str,
) -> Result<()> {
    until_resolved(world, pod, name, [address]).await?;
    calls(world, pod, name, PORT).await?;
    let questions = world.cluster.azure.admin("GET", "/questions", json!({})).await?;
    let questions = questions.as_array().context("no questions")?;
    let from = questions.iter().filter(|one| one["name"] == name).filter_map(|one| one["from"].as_str());
    let from: BTreeSet<_> = from.collect();
    let nodes: BTreeSet<_> = world.nodes.iter().map(|node| node.address.as_str()).collect();
    let is_of_nodes = from.is_subset(&nodes) && from.contains(asker);
    ensure!(is_of_nodes, "{name} was asked for by {from:?}, not by {asker}, of {nodes:?}");
    Ok(())
}

pub async fn a_service_is_called_by_its_name(world: &World) -> Result<()> {
    let address: Ipv4Addr = cluster_ip(&world.serve("web", "web", json!({})).await?)?.parse()?;
    for pod in [&world.near, &world.away] {
        for name in ["web", "web.default.svc.cluster.local"] {
            until_resolved(world, pod, name, [address]).await?;
            calls(world, pod, name, SERVED).await?;
        }
    }
    world.unserve("web").await
}

pub async fn a_headless_service_gives_names_to_its_pods_that_lead_to_their_own_addresses(
    world: &World,
) -> Result<()> {
    world.serve("set", "set", json!({ "clusterIP": "None" })).await?;
    let spec = json!({ "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "containers": [container(PORT)] });
    let set = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": "set", "namespace": "default" },
        "spec": { "serviceName": "set", "replicas": 2, "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": { "app": "set" } },
            "template": { "metadata": { "labels": { "app": "set" } }, "spec": spec } } });
    world.cluster.apply(&set.to_string()).await?;
    let pods = world.cluster.running("set", 2, 3 * SOON).await?;
    until_resolved(world, &world.near, "set", pods.iter().map(|pod| pod.address)).await?;
    for pod in &pods {
        let name = format!("{}.set", pod.name);
        until_resolved(world, &world.near, &name, [pod.address]).await?;
        calls(world, &world.near, &name, PORT).await?;
        let seen = Place::pod(&world.near)?.seen_by(pod.address).await?;
        ensure!(seen == Seen::new(world.near.address, pod.address), "{name} sees {seen:?}");
    }
    // The last one goes first, and its name with it.
    world.cluster.kubectl(&["scale", "statefulset", "set", "--replicas=1"]).await?;
    let first = pods.iter().find(|pod| pod.name == "set-0").context("no first pod")?;
    until_resolved(world, &world.near, "set", [first.address]).await?;
    world.cluster.kubectl(&["delete", "statefulset", "set"]).await?;
    world.cluster.no_pods("set").await?;
    world.unserve("set").await
}
