//! The ways to Services and from Azure to pods once more, with an engine's rules on them: policies let in
//! exactly the traffic that comes that way, and then other traffic.

use crate::inside::cluster_ip;
use crate::policy::until_reached;
use crate::{SERVED, SOON, World, attached, balanced, gateway, ingress, inside, names};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vnetpool_tests::engine::{block, lets_in, lets_through, pods};
use vnetpool_tests::eventually;
use vnetpool_tests::place::{Place, Seen, until_dropped, until_seen};
use vnetpool_tests::workload::{PORT, ProbePod};

/// Where Azure's resolver answers, and where the probes of its load balancers come from.
const PLATFORM: &str = "168.63.129.16";

/// Gives the pods with the label `app` a policy, and waits until the engine holds one of them to it: the
/// stranger is dropped.
async fn hold(world: &World, app: &str, policy: Value, pod: &ProbePod, stranger: &Place) -> Result<()> {
    world.cluster.rule(app, policy).await?;
    until_dropped(stranger, pod.address, PORT).await
}

pub async fn a_cluster_ip_leads_to_a_pod_whose_policy_lets_in_its_caller_and_to_no_other(
    world: &World,
) -> Result<()> {
    // The pod's own node is always let in: its kubelet has to be.
    let callers = [pods("near"), pods("away"), block(&world.nodes[1].address)];
    hold(world, "web", lets_in(callers), &world.web, &world.vm).await?;
    inside::a_cluster_ip_leads_to_a_pod_that_sees_its_callers_own_address(world).await?;
    let address = cluster_ip(&world.serve("web", "web", json!({})).await?)?;
    let (near, away) = (Place::pod(&world.near)?, Place::pod(&world.away)?);
    until_seen(&near, &address, SERVED, &Seen::new(&near.address, world.web.address)).await?;
    world.cluster.rule("web", lets_in([pods("away")])).await?;
    until_dropped(&near, &address, SERVED).await?;
    until_seen(&away, &address, SERVED, &Seen::new(&away.address, world.web.address)).await?;
    world.unserve("web").await?;
    world.cluster.unrule("web").await
}

pub async fn a_pod_on_the_nodes_network_reaches_a_cluster_ip_where_a_policy_lets_in_its_node(
    world: &World,
) -> Result<()> {
    hold(world, "web", lets_in([block(&world.nodes[1].address)]), &world.web, &world.vm).await?;
    inside::a_pod_on_the_nodes_network_reaches_a_cluster_ip_under_the_nodes_address(world).await?;
    world.cluster.unrule("web").await
}

pub async fn a_pod_reaches_itself_through_its_own_service_only_where_its_policy_lets_it_in(
    world: &World,
) -> Result<()> {
    hold(world, "web", lets_in([pods("web")]), &world.web, &world.vm).await?;
    inside::a_pod_reaches_itself_through_its_own_service(world).await?;
    let address = cluster_ip(&world.serve("web", "web", json!({})).await?)?;
    let web = Place::pod(&world.web)?;
    until_seen(&web, &address, SERVED, &Seen::new(&world.nodes[0].address, &web.address)).await?;
    world.cluster.rule("web", lets_in([pods("near")])).await?;
    until_dropped(&web, &address, SERVED).await?;
    world.unserve("web").await?;
    world.cluster.unrule("web").await
}

pub async fn an_affinity_keeps_a_client_with_one_pod_where_a_policy_lets_it_in(world: &World) -> Result<()> {
    world.cluster.rule("many", lets_in([pods("near")])).await?;
    inside::an_affinity_keeps_a_client_with_one_pod(world).await?;
    world.cluster.unrule("many").await
}

pub async fn a_vm_reaches_the_pods_of_a_headless_service_where_a_policy_lets_it_in(
    world: &World,
) -> Result<()> {
    let near = Place::pod(&world.near)?;
    hold(world, "away", lets_in([block(&world.vm.address)]), &world.away, &near).await?;
    inside::a_headless_service_names_the_pods_addresses_and_a_vm_reaches_them(world).await?;
    world.cluster.unrule("away").await
}

/// CoreDNS' pods, for a policy of any namespace.
fn dns() -> Value {
    json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
        "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } } })
}

/// Lets CoreDNS be asked by the pods of `default`, and ask Azure and the API server.
async fn hold_coredns(world: &World) -> Result<()> {
    let asked = json!([{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }]);
    let from =
        json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "default" } } });
    let server = ["get", "endpointslice", "kubernetes", "--output=jsonpath={.endpoints[0].addresses[0]}"];
    let server = world.cluster.kubectl(&server).await?;
    let spec = json!({ "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
        "policyTypes": ["Ingress", "Egress"], "ingress": [{ "from": [from], "ports": asked }],
        "egress": [{ "to": [block(PLATFORM)], "ports": asked }, { "to": [block(&server)] }] });
    let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "coredns", "namespace": "kube-system" }, "spec": spec });
    world.cluster.apply(&policy.to_string()).await?;
    // Its health page: for its kubelet only.
    until_dropped(&world.vm, names::coredns_address(world).await?, 8080).await
}

pub async fn names_are_resolved_and_called_where_policies_let_the_questions_through(
    world: &World,
) -> Result<()> {
    let (vm, internet) = (block(&world.vm.address), block(&world.internet.address));
    let called = [dns(), pods("web"), pods("set"), vm.clone(), internet];
    // The VM has them send requests.
    let policy = lets_through([vm], called);
    let web = Place::pod(&world.web)?;
    tokio::try_join!(
        hold_coredns(world),
        hold(world, "near", policy.clone(), &world.near, &web),
        hold(world, "away", policy, &world.away, &web),
        hold(world, "web", lets_in([pods("near"), pods("away")]), &world.web, &world.vm),
        world.cluster.rule("set", lets_in([pods("near")])),
    )?;
    names::a_name_of_a_private_zone_resolves_in_a_pod_and_azure_is_asked_by_the_nodes_primary_address(world)
        .await?;
    names::a_service_is_called_by_its_name(world).await?;
    names::a_headless_service_gives_names_to_its_pods_that_lead_to_their_own_addresses(world).await?;
    for app in ["near", "away", "web", "set"] {
        world.cluster.unrule(app).await?;
    }
    let coredns = ["delete", "networkpolicy", "coredns", "--namespace=kube-system"];
    world.cluster.kubectl(&coredns).await.map(drop)
}

/// The source under which a Service's client may reach `web`: its own address, or, by way of the other node,
/// that node's.
fn vm_by_any_node(world: &World) -> Value {
    lets_in([block(&world.vm.address), block(&world.nodes[1].address)])
}

pub async fn a_node_port_leads_to_a_pod_whose_policy_lets_in_its_client_and_to_no_other(
    world: &World,
) -> Result<()> {
    hold(world, "web", vm_by_any_node(world), &world.web, &Place::pod(&world.near)?).await?;
    balanced::a_node_port_leads_from_any_node_or_keeps_the_clients_address(world).await?;
    let local = json!({ "type": "NodePort", "externalTrafficPolicy": "Local" });
    let port = balanced::node_port(&world.serve("port", "web", local).await?)?;
    let node = &world.nodes[0].address;
    until_seen(&world.vm, node, port, &Seen::new(&world.vm.address, world.web.address)).await?;
    // That its node may come in is no use to a client that keeps its address.
    world.cluster.rule("web", lets_in([pods("near"), block(node)])).await?;
    until_dropped(&world.vm, node, port).await?;
    world.unserve("port").await?;
    world.cluster.unrule("web").await
}

pub async fn a_load_balancer_leads_to_a_pod_whose_policy_lets_in_its_client_and_to_no_other(
    world: &World,
) -> Result<()> {
    hold(world, "web", vm_by_any_node(world), &world.web, &Place::pod(&world.near)?).await?;
    balanced::a_load_balancer_leads_from_any_node_or_keeps_the_clients_address(world).await?;
    balanced::bring_front(world).await?;
    // The balancer's probe comes to the node, so it is well; but the client comes under its own address.
    world.cluster.rule("web", lets_in([pods("near"), block(PLATFORM)])).await?;
    until_dropped(&world.vm, balanced::FRONTEND, SERVED).await?;
    balanced::take_front_away(world).await?;
    world.cluster.unrule("web").await
}

pub async fn a_pod_straight_behind_a_load_balancer_lets_in_its_client_and_the_probe(
    world: &World,
) -> Result<()> {
    world.cluster.rule("balanced", lets_in([block(&world.vm.address), block(PLATFORM)])).await?;
    attached::a_pod_straight_behind_a_load_balancer_sees_its_client(world).await?;
    world.cluster.unrule("balanced").await
}

pub async fn a_pod_with_a_public_address_connects_and_is_reached_as_its_policy_allows(
    world: &World,
) -> Result<()> {
    let (vm, internet) = (block(&world.vm.address), block(&world.internet.address));
    world.cluster.rule("public", lets_through([internet.clone()], [internet, vm])).await?;
    attached::a_pod_with_a_public_address_leaves_by_it_and_is_reached_under_it(world).await?;
    world.cluster.unrule("public").await
}

pub async fn an_ingress_calls_the_pods_that_let_it_in_and_no_other(world: &World) -> Result<()> {
    let vm = block(&world.vm.address);
    world.cluster.rule("shop", lets_in([pods("ingress")])).await?;
    world.cluster.rule("ingress", lets_through([vm.clone()], [dns(), pods("shop")])).await?;
    let proxy = ingress::bring_ingress(world).await?;
    ingress::follows(world, &proxy).await?;
    // Its client may come to them, but it itself may not.
    world.cluster.rule("shop", lets_in([vm])).await?;
    eventually("an ingress without a pod to call", 2 * SOON, || async {
        let url = format!("http://{}:{SERVED}/whoami", proxy.address);
        let curl = ["-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let code = world.vm.run("curl", &curl).await?;
        ensure!(code == "503", "it answers {code}");
        Ok(Some(()))
    })
    .await?;
    let shop = world.cluster.running("shop", 1, SOON).await?.pop().context("no pod")?;
    until_reached(&world.vm, shop.address).await?;
    ingress::take_ingress_away(world).await?;
    world.cluster.unrule("ingress").await?;
    world.cluster.unrule("shop").await
}

pub async fn an_application_gateway_calls_the_pods_that_let_in_its_subnet(world: &World) -> Result<()> {
    let policy = || lets_in([block(gateway::SUBNET)]);
    tokio::try_join!(
        hold(world, "near", policy(), &world.near, &world.vm),
        hold(world, "away", policy(), &world.away, &world.vm),
    )?;
    gateway::an_application_gateway_in_another_subnet_calls_pods_at_their_own_addresses(world).await?;
    world.cluster.unrule("near").await?;
    world.cluster.unrule("away").await
}
