//! The operator's identity while it works: a sign-in that fails and comes back, node resource groups that are
//! locked, nodes of several subscriptions.

use crate::Test;
use crate::operator;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use vnetpool_azure_sim::{Access, Config, DenyAssignment, Effect, Lock, LockLevel, NewVm, Sim, VnetConfig};
use vnetpool_crds::condition::{INTERFACE_FOUND, RESERVED};
use vnetpool_operator::azure::Azure;
use vnetpool_operator::preflight::{self, Subject};
use vnetpool_tests::control_plane::{ControlPlane, User};

/// For so many seconds at least a failed sign-in is the answer to all callers.
const KEPT: f64 = 5.0;

pub const TESTS: &[Test] = crate::tests![
    a_refused_sign_in_is_reported_and_all_nodes_recover_when_it_works_again,
    a_locked_node_resource_group_is_reported_and_nodes_keep_their_addresses,
    nodes_of_several_subscriptions_and_groups_are_served_and_one_that_is_throttled_stops_no_other,
    preflight_reads_a_cluster_with_the_operators_own_rights,
];

async fn a_refused_sign_in_is_reported_and_all_nodes_recover_when_it_works_again(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let body = json!({ "error": "invalid_request", "error_description": "Identity not found" });
    let refused = Effect::Status { status: 400, body, headers: [].into() };
    let fault = stage.fault("GET", "/identity/oauth2/token", None, refused);
    stage.pool("default", json!({ "sizing": { "minimum": 4, "warm": 0 } })).await?;
    stage.start().await?;
    let nodes = ["n1", "n2", "n3"];
    for node in nodes {
        stage.node(node, None).await?;
    }
    for node in nodes {
        let condition = stage.until_condition(node, INTERFACE_FOUND, "CredentialRefused").await?;
        ensure!(
            condition.message.contains("can't sign in") && condition.message.contains("AZURE_CLIENT_ID"),
            "{}",
            condition.message
        );
    }
    ensure!(stage.asked().is_empty(), "ARM was asked without a token");
    // One attempt answers all nodes for some seconds, by Azure's clock: however slow this machine is.
    let log = stage.sim.log();
    let attempts = log.iter().filter(|one| one.path.ends_with("/oauth2/token"));
    let attempts = attempts.map(|one| Ok(one.time.parse::<Timestamp>()?)).collect::<Result<Vec<_>>>()?;
    let pauses = attempts.windows(2).map(|two| two[1].duration_since(two[0]).as_secs_f64());
    let shortest = pauses.fold(f64::INFINITY, f64::min);
    ensure!(!attempts.is_empty() && shortest >= KEPT, "attempts at {attempts:?}");
    stage.sim.lift_fault(fault)?;
    for node in nodes {
        stage.until_holds(node, 4).await?;
    }
    Ok(())
}

async fn a_locked_node_resource_group_is_reported_and_nodes_keep_their_addresses(
    plane: &ControlPlane,
) -> Result<()> {
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    let vm = stage.node("n1", None).await?;
    stage.until_holds("n1", 4).await?;
    let group = vm.vm_id.split("/providers/").next().unwrap_or_default().to_owned();
    // A lock against deletion doesn't hinder the operator, though addresses go.
    let lock = |level| Access { locks: vec![Lock { scope: group.clone(), level }], ..Access::default() };
    stage.sim.control(lock(LockLevel::CanNotDelete));
    stage.bind("n1", 6).await?;
    stage.until_holds("n1", 6).await?;

    let lockdown = DenyAssignment {
        name: "AKS node resource group lockdown".into(),
        scope: group.clone(),
        not_actions: vec!["*/read".into()],
    };
    let table = [
        (lock(LockLevel::ReadOnly), "ResourceLocked", "Remove the lock on"),
        (
            Access { deny_assignments: vec![lockdown], ..Access::default() },
            "DenyAssignment",
            "az aks update --nrg-lockdown-restriction-level Unrestricted",
        ),
    ];
    for (minimum, (access, reason, remedy)) in [7, 8].into_iter().zip(table) {
        stage.sim.control(access);
        let spec = json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1 } });
        stage.pool("default", spec).await?;
        let condition = stage.until_condition("n1", RESERVED, reason).await?;
        ensure!(
            condition.message.contains(remedy) && condition.message.contains(&group),
            "{}",
            condition.message
        );
        ensure!(stage.held("n1").len() == 6, "{:?}", stage.held("n1"));
    }
    // It is read again, more and more rarely; an edit of the pool means that something has changed.
    stage.sim.control(Access::default());
    stage.pool("default", json!({ "sizing": { "minimum": 9, "warm": 0, "batch": 1 } })).await?;
    stage.until_holds("n1", 9).await
}

async fn nodes_of_several_subscriptions_and_groups_are_served_and_one_that_is_throttled_stops_no_other(
    plane: &ControlPlane,
) -> Result<()> {
    let stage =
        Stage::set(plane, quick(), json!({ "sizing": { "minimum": 4, "warm": 0, "batch": 1 } })).await?;
    let vnet = VnetConfig {
        name: "spoke".into(),
        address_prefixes: vec!["10.241.0.0/16".parse()?],
        subnets: vec![("nodes".into(), "10.241.0.0/24".parse()?)],
    };
    let subscription = "00000000-0000-0000-0000-000000000002".to_owned();
    let elsewhere = Sim::start(Config { subscription, vnets: vec![vnet], ..quick() }).await?;
    stage.sim.join(&elsewhere);
    let in_group = |name: &str, group: &str| NewVm {
        name: name.into(),
        resource_group: Some(group.into()),
        ..NewVm::default()
    };
    for (sim, node, group) in
        [(&stage.sim, "n1", "vnetpool"), (&stage.sim, "n2", "pool-b"), (&elsewhere, "n3", "pool-c")]
    {
        let vm = sim.add_vm(in_group(node, group)).await?;
        stage.join(node, &vm.provider_id).await?;
    }
    stage.until_holds("n1", 4).await?;
    stage.until_holds("n2", 4).await?;
    let shown = stage.until_offers("n3", 4).await?;
    let addresses: Vec<_> = shown.spec.ip_configurations().map(|one| one.address.clone()).collect();
    ensure!(addresses.iter().all(|address| address.starts_with("10.241.0.")), "{addresses:?}");

    // Azure throttles the first subscription's writes for a minute.
    let body = json!({ "error": { "code": "SubscriptionRequestsThrottled", "message": "slow down" } });
    let headers = [("retry-after".to_owned(), "60".to_owned())].into();
    stage.fault("PUT", "networkInterfaces", None, Effect::Status { status: 429, body, headers });
    stage.bind("n1", 5).await?;
    stage.until_condition("n1", RESERVED, "Throttled").await?;
    stage.bind("n2", 5).await?;
    stage.bind("n3", 5).await?;
    stage.until_offers("n3", 5).await?;
    ensure!(stage.held("n1").len() == 4 && stage.held("n2").len() == 4);
    // The addresses that are used up in one subnet are not asked for again, by none of its nodes.
    let refused = stage.asked().iter().filter(|one| one.status == 429).count();
    ensure!(refused == 1, "{refused} writes into a closed door");
    Ok(())
}

/// Nodes, pools and kube-proxy's ConfigMap, as an API server gives them to an identity with the chart's
/// roles.
async fn preflight_reads_a_cluster_with_the_operators_own_rights(plane: &ControlPlane) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    stage.node("n1", None).await?;
    let web =
        stage.put("Microsoft.Network/applicationSecurityGroups/web", json!({ "properties": {} })).await?;
    stage.pool("default", json!({ "applicationSecurityGroups": { "ids": [web] } })).await?;
    let proxies = Api::<ConfigMap>::namespaced(stage.client.clone(), "kube-system");
    let proxy = json!({ "metadata": { "name": "kube-proxy" },
        "data": { "config.conf": "clusterCIDR: 10.244.0.0/16\ndetectLocalMode: \"\"\n" } });
    proxies.create(&PostParams::default(), &serde_json::from_value(proxy)?).await?;

    let arm = stage.sim.arm_url();
    let config = operator::config(arm.parse()?, arm.parse()?, stage.admin, stage.new_identity());
    let azure = Azure::new(&config.azure)?;
    let client = Client::try_from(plane.config(User::Operator).await?)?;
    let report = preflight::run(&azure, Subject::Nodes, async || Ok(client)).await;
    proxies.delete("kube-proxy", &DeleteParams::default()).await?;
    let report = report?;
    ensure!(report.lacks() == 0, "{report}");
    let (text, join) =
        (report.to_string(), "Microsoft.Network/applicationSecurityGroups/joinIpConfiguration");
    ensure!(text.starts_with("Read: node n1, NodeIPPool default."), "{text}");
    ensure!(text.contains("Microsoft.Network/networkInterfaces/write") && text.contains(join), "{text}");
    ensure!(text.contains("kube-proxy: it takes 10.244.0.0/16 for pods"), "{text}");
    Ok(())
}
