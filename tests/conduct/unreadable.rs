//! Objects that can't be read, left from before the schema had bounds or by a newer release: each costs its
//! own node only, and of that, nothing is written, replaced or released.

use crate::Test;
use crate::attachments::kept;
use crate::operator::until_ready;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vnetpool_azure_sim::LogEntry;
use vnetpool_crds::condition::{self, OBJECTS_READABLE};
use vnetpool_crds::names::{BACKEND_POOLS, DNS_LABEL, PAUSED, PUBLIC_ADDRESS};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    an_allocation_that_can_not_be_read_costs_only_its_own_node,
    of_a_node_that_is_gone_nothing_is_given_back_before_its_allocation_can_be_read,
    a_pool_of_a_newer_release_leaves_its_nodes_their_addresses,
    a_node_and_a_pod_with_garbage_cost_only_themselves,
];

const PATIENCE: Duration = Duration::from_secs(30);
/// Promised: how soon others are served by an operator that runs, or that has started and is ready.
const OTHERS: Duration = Duration::from_secs(2);

async fn an_allocation_that_can_not_be_read_costs_only_its_own_node(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    for node in ["n1", "n2"] {
        stage.node(node, None).await?;
        stage.until_holds(node, 2).await?;
    }
    let object = Raw::<NodeIPAllocation>::of(&stage, "n1");
    object
        .store("/status/properties/held/maximum", json!({ "status": { "held": 5_000_000_000_u64 } }))
        .await?;

    // First while the operator runs, then for one that starts.
    served(&stage, "n2", 3).await?;
    restart(&stage).await?;
    stage.sim.clear_log();
    stage.bind("n1", 4).await?;
    served(&stage, "n2", 4).await?;
    eventually("Node and pool name the object", PATIENCE, || async {
        let pool = stage.node_pool("default").await?;
        let status = pool.status.context("no status")?;
        let condition = condition::find(&status.conditions, OBJECTS_READABLE).context("no condition")?;
        ensure!(
            condition.status == "False" && condition.message.contains("NodeIPAllocation n1"),
            "{condition:?}"
        );
        let events = stage.events("n1", "Unreadable").await?;
        Ok(events.iter().any(|(kind, _)| kind == "Node").then_some(()))
    })
    .await?;
    let writes = stage.writes("n1");
    ensure!(writes.is_empty(), "the NIC of a node that nobody can judge was written: {writes:?}");
    let spec = object.get().await?["spec"].clone();
    let held = spec["interfaces"][0]["ipConfigurations"].as_array().map(Vec::len);
    ensure!(held == Some(2) && stage.held("n1").len() == 2, "{spec}");

    object.patch(json!({ "status": { "held": 2 } })).await?;
    stage.until_holds("n1", 4).await
}

async fn of_a_node_that_is_gone_nothing_is_given_back_before_its_allocation_can_be_read(
    plane: &ControlPlane,
) -> Result<()> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let offers = json!({ "publicAddressNamespaces": ["default"] });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing, "attachments": offers })).await?;
    for node in ["n1", "n2"] {
        stage.node(node, None).await?;
    }
    let pod = stage.pod("n1", json!({ "vnetpool.io/public-address": "true" })).await?;
    let named = |seen: &NodeIPAllocation| kept(seen)?.public_address;
    let public = stage.until("the pod has a public address", "n1", |seen| {
        named(seen).filter(|public| !public.address.as_ref().is_none_or(String::is_empty))
    });
    let public = public.await?.id;
    stage.until_holds("n1", 1).await?;
    let object = Raw::<NodeIPAllocation>::of(&stage, "n1");
    object
        .store("/status/properties/held/maximum", json!({ "status": { "held": 5_000_000_000_u64 } }))
        .await?;
    stage.sim.clear_log();
    stage.remove("n1", &pod).await?;
    stage.sim.delete_vm("n1", true).await?;
    stage.delete_node("n1").await?;
    // First for the operator that has read it once, then for one that starts.
    served(&stage, "n2", 1).await?;
    restart(&stage).await?;
    served(&stage, "n2", 2).await?;
    let is_about = |one: &&LogEntry| one.path.contains("/n1-nic") || one.path.contains("/publicIPAddresses/");
    let asked = stage.asked();
    let written: Vec<_> = asked.iter().filter(is_about).filter(|one| one.method != "GET").collect();
    ensure!(written.is_empty(), "of a node that nobody can judge: {written:?}");
    ensure!(stage.exists(&public).await? && stage.held("n1").len() == 1, "{:?}", stage.asked());
    ensure!(
        object.get().await?["spec"]["interfaces"][0]["ipConfigurations"].is_array(),
        "the record is gone"
    );

    object.patch(json!({ "status": { "held": 1 } })).await?;
    stage.until_gone("n1").await?;
    ensure!(!stage.exists(&public).await? && stage.held("n1").is_empty(), "something is left");
    Ok(())
}

async fn a_pool_of_a_newer_release_leaves_its_nodes_their_addresses(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    let other =
        json!({ "sizing": sizing, "weight": 1, "nodeSelector": { "matchLabels": { "of": "other" } } });
    stage.pool("other", other).await?;
    stage.node("n1", None).await?;
    let vm = stage.sim.add_vm(vnetpool_azure_sim::NewVm { name: "n2".into(), ..Default::default() }).await?;
    stage.join_labelled("n2", &vm.provider_id, &[("of", "other")]).await?;
    stage.until_holds("n1", 2).await?;
    stage.until_holds("n2", 2).await?;
    let pool = Raw::<NodeIPPool>::of(&stage, "default");
    pool.store("/spec/properties/wiring/enum", json!({ "spec": { "wiring": "Teleport" } })).await?;

    restart(&stage).await?;
    stage.sim.clear_log();
    stage.bind("n1", 4).await?;
    stage.node("n3", None).await?;
    served(&stage, "n2", 3).await?;
    eventually("the pool is named", PATIENCE, || async {
        Ok((!stage.events("default", "Unreadable").await?.is_empty()).then_some(()))
    })
    .await?;
    ensure!(stage.writes("n1").is_empty() && stage.held("n1").len() == 2, "{:?}", stage.asked());
    ensure!(stage.allocation("n3").await.is_err(), "a node got a pool that nobody can judge");

    pool.patch(json!({ "spec": { "wiring": "Routed" } })).await?;
    stage.until_holds("n1", 4).await?;
    stage.until_holds("n3", 2).await
}

async fn a_node_and_a_pod_with_garbage_cost_only_themselves(plane: &ControlPlane) -> Result<()> {
    let sizing = json!({ "minimum": 2, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    // As far as an API server takes it.
    let node = json!({
        "metadata": { "name": "odd", "annotations": { PAUSED: "perhaps" } },
        "spec": { "providerID": "azure:///subscriptions/%00/virtualMachines/../..//" },
        "status": { "allocatable": { "pods": "9E" }, "nodeInfo": { "bootID": "\u{7}" } },
    });
    let nodes = Api::<Node>::all(stage.client.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    stage.bind("odd", 1).await?;
    let annotations =
        json!({ BACKEND_POOLS: ",/../,\u{7}", PUBLIC_ADDRESS: "perhaps", DNS_LABEL: "-".repeat(300) });
    let pod = stage.pod("n1", annotations).await?;

    served(&stage, "n1", 3).await?;
    stage.until_reported(&pod, "Unavailable", &["Pod"]).await?;
    restart(&stage).await?;
    served(&stage, "n1", 4).await?;
    let is_odd = |one: &LogEntry| one.path.contains("%00") || one.path.contains("..");
    let asked: Vec<_> = stage.asked().into_iter().filter(is_odd).collect();
    ensure!(asked.is_empty(), "Azure was asked for garbage: {asked:?}");
    Ok(())
}

/// Another operator, until it is ready.
pub async fn restart(stage: &Stage<'_>) -> Result<()> {
    stage.kill().await?;
    stage.start().await?;
    until_ready(stage.admin, PATIENCE).await
}

/// Binds as many pods as it takes for the node to want so many addresses, and waits for the write that brings
/// them, which must come as soon as others are served.
pub async fn served(stage: &Stage<'_>, node: &str, count: usize) -> Result<()> {
    let (held, bound) = (stage.held(node).len(), stage.pods_bound(node).await?);
    let begun = Instant::now();
    stage.bind(node, count - bound).await?;
    eventually(&format!("{node} holds more than {held}"), OTHERS, || async {
        Ok((stage.held(node).len() > held).then_some(()))
    })
    .await?;
    eprintln!("{node} is served after {:.1} s", begun.elapsed().as_secs_f64());
    stage.until_holds(node, count).await
}

/// An object beside its type.
pub struct Raw<'a, K> {
    stage: &'a Stage<'a>,
    /// Whose edits these are.
    client: Client,
    name: &'static str,
    kind: std::marker::PhantomData<K>,
}

impl<'a, K: kube::CustomResourceExt> Raw<'a, K> {
    pub fn of(stage: &'a Stage<'a>, name: &'static str) -> Self {
        Self::edited_by(stage.client.clone(), stage, name)
    }

    /// For what only this client may write.
    pub fn edited_by(client: Client, stage: &'a Stage<'a>, name: &'static str) -> Self {
        Self { stage, client, name, kind: std::marker::PhantomData }
    }

    fn api(&self) -> Api<DynamicObject> {
        let resource: ApiResource = K::api_resource();
        Api::all_with(self.client.clone(), &resource)
    }

    async fn get(&self) -> Result<Value> {
        Ok(self.api().get(self.name).await?.data)
    }

    pub async fn patch(&self, content: Value) -> Result<()> {
        let (params, patch) = (PatchParams::default(), Patch::Merge(&content));
        match content.get("status") {
            Some(_) => self.api().patch_status(self.name, &params, &patch).await?,
            None => self.api().patch(self.name, &params, &patch).await?,
        };
        Ok(())
    }

    /// Stores an object that the schema forbids, as if it had been there before: for a moment, the schema
    /// lacks the bound at `path`.
    pub async fn store(&self, path: &str, content: Value) -> Result<()> {
        let definitions = Api::<CustomResourceDefinition>::all(self.stage.client.clone());
        let name = K::crd_name();
        let given = definitions.get(name).await?;
        let mut open = serde_json::to_value(&given)?;
        let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties{path}");
        let (place, bound) = path.rsplit_once('/').context("no path")?;
        let schema = open.pointer_mut(place).and_then(Value::as_object_mut).context("no such field")?;
        // Without a bound there is nothing to take away.
        schema.remove(bound);
        let put = async |definition: &CustomResourceDefinition| {
            let mut definition = definition.clone();
            definition.metadata.resource_version = definitions.get(name).await?.metadata.resource_version;
            definitions.replace(name, &PostParams::default(), &definition).await
        };
        put(&serde_json::from_value(open)?).await?;
        let stored = eventually("the schema lets it through", PATIENCE, || async {
            self.patch(content.clone()).await?;
            Ok(Some(()))
        })
        .await;
        put(&given).await?;
        stored
    }
}
