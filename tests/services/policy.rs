//! NetworkPolicy by a real engine, Calico's Felix: allowed traffic keeps its paths, denied traffic doesn't
//! pass.

use crate::{SOON, World};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;
use vnetpool_tests::engine::{block, lets_in, lets_out, pods};
use vnetpool_tests::eventually;
use vnetpool_tests::node::host_link;
use vnetpool_tests::place::{Place, Seen, until_dropped, until_seen};
use vnetpool_tests::workload::{PORT, ProbePod, container};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the probe at `address` sees the client under the client's own address.
pub async fn until_reached(from: &Place, address: impl Display) -> Result<()> {
    until_seen(from, &address.to_string(), PORT, &Seen::new(&from.address, &address)).await
}

pub async fn the_engine_finds_the_link_of_every_pod(world: &World) -> Result<()> {
    for (pod, node) in [(&world.web, "node-1"), (&world.near, "node-1"), (&world.away, "node-2")] {
        // A chain for packets to the workload behind this link, and it is there.
        let (chain, link) = (format!("-g cali-tw-{}", host_link(pod)), host_link(pod));
        eventually(&format!("Felix's chain for {}", pod.name), SOON, || async {
            Ok(world.cluster.run_on(node, &["iptables-nft-save"]).await?.contains(&chain).then_some(()))
        })
        .await?;
        let links = world.cluster.run_on(node, &["ip", "-o", "link", "show", &link]).await?;
        ensure!(links.contains(&format!(" default {}", pod.name)), "{link}: {links}");
    }
    Ok(())
}

pub async fn with_an_engine_and_without_a_policy_every_path_is_as_ever(world: &World) -> Result<()> {
    let (web, near, away) = (Place::pod(&world.web)?, Place::pod(&world.near)?, Place::pod(&world.away)?);
    for (from, to) in [(&near, &web), (&web, &near), (&away, &web), (&web, &away)] {
        until_reached(from, &to.address).await?;
    }
    for place in [&world.nodes[0], &world.nodes[1], &world.vm] {
        until_reached(place, &web.address).await?;
    }
    until_reached(&web, &world.vm.address).await?;
    beyond(world, &web).await?;
    // The node's own server.
    let probe = vnetpool_tests::project::tool("probe");
    let _server = world.nodes[0].command(probe).args(["serve", "--listen", ":8088"]).spawn()?;
    let node = &world.nodes[0].address;
    until_seen(&web, node, 8088, &Seen::new(&web.address, node)).await
}

/// The internet and the platform see the node's primary address, and answer.
async fn beyond(world: &World, pod: &Place) -> Result<()> {
    let internet = &world.internet.address;
    let node = &world.nodes[0].address;
    until_seen(pod, internet, PORT, &Seen::new(node, internet)).await?;
    world.cluster.azure.admin("PUT", "/names", json!({ "db.corp.example": "10.240.0.99" })).await?;
    let answer = pod.resolve("db.corp.example").await?;
    ensure!(
        answer == "10.240.0.99",
        "the resolver, which answers primary addresses only, answers {answer:?}"
    );
    Ok(())
}

pub async fn only_packets_that_a_policy_lets_in_arrive_with_their_own_address(world: &World) -> Result<()> {
    let (web, near, away) = (&world.web.address, Place::pod(&world.near)?, Place::pod(&world.away)?);
    world.cluster.rule("web", lets_in([pods("near")])).await?;
    tokio::try_join!(
        until_dropped(&away, web, PORT),
        until_dropped(&world.vm, web, PORT),
        until_dropped(&world.nodes[1], web, PORT),
        until_reached(&near, web),
    )?;
    // Ingress rules don't concern the pod's own connections, and their answers come.
    until_reached(&Place::pod(&world.web)?, &world.vm.address).await?;
    beyond(world, &Place::pod(&world.web)?).await?;
    // The other way about: a pod of another node, and a VM by its address.
    world.cluster.rule("web", lets_in([pods("away"), block(&world.vm.address)])).await?;
    until_dropped(&near, web, PORT).await?;
    until_reached(&away, web).await?;
    until_reached(&world.vm, web).await?;
    world.cluster.unrule("web").await?;
    until_reached(&near, web).await
}

pub async fn a_policy_lets_out_only_its_packets_and_these_leave_as_before(world: &World) -> Result<()> {
    let near = Place::pod(&world.near)?;
    let (web, away, internet) = (&world.web.address, &world.away.address, &world.internet.address);
    world.cluster.rule("near", lets_out([pods("away"), block(internet)])).await?;
    tokio::try_join!(
        until_dropped(&near, web, PORT),
        until_dropped(&near, &world.vm.address, PORT),
        until_reached(&near, away),
    )?;
    until_seen(&near, internet, PORT, &Seen::new(&world.nodes[0].address, internet)).await?;
    // Egress rules don't concern connections of others.
    until_reached(&world.vm, &near.address).await?;
    world.cluster.rule("near", lets_out([pods("web"), block(&world.vm.address)])).await?;
    tokio::try_join!(
        until_dropped(&near, away, PORT),
        until_dropped(&near, internet, PORT),
        until_reached(&near, web),
    )?;
    until_reached(&near, &world.vm.address).await?;
    world.cluster.unrule("near").await
}

/// A StatefulSet of one probe on node-1, with more fields for its container.
async fn stateful(world: &World, name: &str, grace: u32, more: Value) -> Result<ProbePod> {
    let labels = json!({ "app": name });
    let mut container = container(PORT);
    if let (Value::Object(container), Value::Object(more)) = (&mut container, more) {
        container.extend(more);
    }
    let spec = json!({ "terminationGracePeriodSeconds": grace, "automountServiceAccountToken": false,
        "nodeSelector": { "kubernetes.io/hostname": "node-1" }, "containers": [container] });
    let set = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "replicas": 1, "serviceName": name, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec } } });
    world.cluster.apply(&set.to_string()).await?;
    let running = world.cluster.running(name, 1, PATIENCE).await?;
    running.into_iter().next().context("no pod")
}

pub async fn the_kubelet_probes_a_pod_that_a_policy_closes(world: &World) -> Result<()> {
    world.cluster.rule("probed", json!({ "policyTypes": ["Ingress", "Egress"] })).await?;
    let http = json!({ "httpGet": { "path": "/whoami", "port": PORT }, "periodSeconds": 1 });
    // Ready means that its probe was answered.
    let probed = stateful(world, "probed", 1, json!({ "readinessProbe": http })).await?;
    let pod = Place::pod(&probed)?;
    tokio::try_join!(
        until_dropped(&world.vm, probed.address, PORT),
        until_dropped(&pod, &world.vm.address, PORT),
    )?;
    until_reached(&world.nodes[0], probed.address).await?;
    world.cluster.kubectl(&["delete", "statefulset", "probed"]).await?;
    world.cluster.no_pods("probed").await?;
    world.cluster.unrule("probed").await
}

pub async fn a_policy_holds_for_a_pod_of_the_name_of_one_that_was_deleted_by_force(
    world: &World,
) -> Result<()> {
    world.cluster.rule("kept", lets_in([pods("near")])).await?;
    let first = stateful(world, "kept", 30, json!({})).await?;
    let near = Place::pod(&world.near)?;
    until_reached(&near, first.address).await?;
    world.cluster.kubectl(&["delete", "pod", "kept-0", "--force", "--grace-period=0"]).await?;
    let second = eventually("another pod of that name", PATIENCE, || async {
        let running = world.cluster.running("kept", 1, Duration::from_secs(1)).await?;
        Ok(running.into_iter().next().filter(|pod| pod.address != first.address))
    })
    .await?;
    until_reached(&near, second.address).await?;
    until_dropped(&world.vm, second.address, PORT).await?;
    world.cluster.kubectl(&["delete", "statefulset", "kept"]).await?;
    world.cluster.no_pods("kept").await?;
    world.cluster.unrule("kept").await
}

pub async fn the_engine_and_the_agent_do_not_disturb_each_other(world: &World) -> Result<()> {
    // Something for the agent to repair: then it inspects everything.
    let route = format!("{}/32", world.web.address);
    world.cluster.run_on("node-1", &["ip", "route", "delete", &route]).await?;
    until_reached(&Place::pod(&world.near)?, world.web.address).await?;
    let condition = eventually("the agent reports it", PATIENCE, || async {
        let status = world.cluster.allocation("node-1").await?.status.context("no status")?;
        let mut conditions = status.conditions.into_iter().filter(|one| one.type_ == "Undisturbed");
        Ok(conditions.next().filter(|one| one.message.contains("restored the route")))
    })
    .await?;
    ensure!(condition.status == "True", "{}", condition.message);
    // It was the only repair besides forwarding, which a node starts without.
    for (node, routes) in [("node-1", 1), ("node-2", 0)] {
        let mut repairs = world.repairs(node).await?;
        repairs.retain(|kind, count| kind != "forwarding" && *count > 0);
        let expected = (routes > 0).then(|| ("route".to_owned(), routes));
        ensure!(repairs == BTreeMap::from_iter(expected), "{node}: {repairs:?}");
    }
    Ok(())
}
