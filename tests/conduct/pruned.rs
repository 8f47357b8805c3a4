//! Pools, objects and kinds that a tool prunes: deletions in the background, in the foreground and of
//! orphans.

use crate::Test;
use crate::attachments::{attached, backend_pool, balancer, kept};
use crate::machines::until_served;
use crate::stage::{Stage, find, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, CustomResourceExt, Resource, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};
use vnetpool_azure_sim::Effect;
use vnetpool_crds::condition::{ATTACHED, READY, SELECTED};
use vnetpool_crds::names::{BACKEND_POOLS, FINALIZER, PUBLIC_ADDRESS, RELEASE};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::{eventually, throughout};

pub const LONG: &[Test] = crate::tests![
    a_pool_that_a_tool_prunes_in_any_way_takes_nothing_of_a_pod_and_ends_by_annotation,
    an_object_that_a_tool_prunes_in_any_way_is_made_again_and_takes_nothing_of_a_pod,
    an_object_that_another_client_holds_is_made_again_with_all_that_it_recorded,
];

/// It needs an API server of its own, and takes minutes.
pub const NIGHTLY: &[Test] =
    crate::tests![kinds_that_a_tool_prunes_take_nothing_of_a_pod_and_are_as_before_when_they_are_back];

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

/// What there is of a pod that has a public address and a place in a backend pool.
struct Living {
    pod: String,
    addresses: BTreeSet<String>,
    public: String,
}

impl Living {
    /// Its node, `n1`, holds an address more than its pod needs.
    async fn on(stage: &Stage<'_>) -> Result<Living> {
        balancer(stage, "web", json!([])).await?;
        stage.pool("default", policy()).await?;
        stage.start_with(|config| config.waits.grace = HOUR).await?;
        stage.node("n1", None).await?;
        let pod = stage.pod("n1", json!({ BACKEND_POOLS: "web", PUBLIC_ADDRESS: "true" })).await?;
        stage.until_condition("n1", ATTACHED, "Attached").await?;
        stage.until_holds("n1", 2).await?;
        let addresses = until_served(stage, "n1", 1).await?;
        let kept = kept(&stage.allocation("n1").await?).context("no address is kept for the pod")?;
        stage.sim.clear_log();
        Ok(Living { pod, addresses, public: kept.public_address.context("no public address")?.id })
    }

    /// The pod has all of it in Azure, and no one has touched that meanwhile.
    async fn has_all(&self, stage: &Stage<'_>) -> Result<()> {
        let nic = stage.nic("n1");
        let all = nic["properties"]["ipConfigurations"].as_array().context("no ipConfigurations")?;
        for address in &self.addresses {
            let has = |one: &&Value| one["properties"]["privateIPAddress"] == **address;
            let one = all.iter().find(has).with_context(|| format!("{address} has left the NIC"))?;
            let both = attached(stage, "n1", one["name"].as_str().unwrap_or_default())?;
            ensure!(both[0].is_string() && both[1].is_string(), "{both}");
        }
        ensure!(stage.exists(&self.public).await?, "{} is gone", self.public);
        let deleted: Vec<_> = stage.asked().into_iter().filter(|one| one.method == "DELETE").collect();
        ensure!(deleted.is_empty(), "{deleted:?}");
        Ok(())
    }
}

fn policy() -> Value {
    json!({
        "sizing": { "minimum": 2, "warm": 1, "batch": 1, "releaseAfter": "0s" },
        "cooldown": "0s",
        "attachments": {
            "publicAddressNamespaces": ["default"],
            "backendPools": [{ "name": "web", "id": backend_pool("web") }],
        },
    })
}

/// Each propagation policy, with the finalizer by which Kubernetes' collector of garbage has its turn.
fn policies() -> [(DeleteParams, Option<&'static str>); 3] {
    [
        (DeleteParams::background(), None),
        (DeleteParams::foreground(), Some("foregroundDeletion")),
        (DeleteParams::orphan(), Some("orphan")),
    ]
}

/// Deletes an object so, and does what the collector does. It runs here, too, but comes to know our kinds
/// only half a minute after they were made: from then on it may be the first.
async fn prune<K>(stage: &Stage<'_>, name: &str, (params, turn): (DeleteParams, Option<&str>)) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + serde::de::DeserializeOwned,
{
    let api = Api::<K>::all(stage.client.clone());
    let answer = api.delete(name, &params).await?;
    let Some(turn) = turn else { return Ok(()) };
    let deleted = answer.left().context("the API server has deleted it without its finalizers")?;
    ensure!(deleted.finalizers().iter().any(|one| one == turn), "{:?}", deleted.meta());
    eventually("the collector has had its turn", PATIENCE, || async {
        let found = api.get_opt(name).await?.filter(|found| found.uid() == deleted.uid());
        let found = found.filter(|found| found.finalizers().iter().any(|one| one == turn));
        let Some(object) = found else { return Ok(Some(())) };
        let rest: Vec<_> = object.finalizers().iter().filter(|one| *one != turn).collect();
        let patch =
            json!({ "metadata": { "resourceVersion": object.resource_version(), "finalizers": rest } });
        api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(Some(()))
    })
    .await
}

async fn a_pool_that_a_tool_prunes_in_any_way_takes_nothing_of_a_pod_and_ends_by_annotation(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let pod = Living::on(&stage).await?;
    for policy in policies() {
        prune::<NodeIPPool>(&stage, "default", policy).await?;
        stage.until_condition("n1", SELECTED, "NoPool").await?;
        stage.nothing_was_written()?;
        pod.has_all(&stage).await?;
        stage.pool("default", self::policy()).await?;
        let is_selected = |seen: &NodeIPAllocation| find(seen, SELECTED).is_none().then_some(());
        stage.until("the pool is back", "n1", is_selected).await?;
    }
    // The documented end.
    prune::<NodeIPPool>(&stage, "default", policies()[1].clone()).await?;
    stage.until_condition("n1", SELECTED, "NoPool").await?;
    stage.annotate::<NodeIPAllocation>("n1", RELEASE, Some("true")).await?;
    stage.until_holds("n1", 1).await?;
    pod.has_all(&stage).await?;
    stage.unbind("n1", 1).await?;
    stage.until_gone("n1").await?;
    ensure!(stage.held("n1").is_empty() && !stage.exists(&pod.public).await?, "{:?}", stage.held("n1"));
    Ok(())
}

async fn an_object_that_a_tool_prunes_in_any_way_is_made_again_and_takes_nothing_of_a_pod(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let pod = Living::on(&stage).await?;
    for policy in policies() {
        let before = stage.allocation("n1").await?.uid();
        prune::<NodeIPAllocation>(&stage, "n1", policy).await?;
        let again = |seen: &NodeIPAllocation| (seen.uid() != before).then_some(());
        stage.until("it is made again", "n1", again).await?;
        ensure!(until_served(&stage, "n1", 1).await? == pod.addresses);
        stage.until_condition("n1", ATTACHED, "Attached").await?;
        stage.until_holds("n1", 2).await?;
        pod.has_all(&stage).await?;
    }
    let writes = stage.writes("n1");
    ensure!(writes.is_empty(), "{writes:?}");
    Ok(())
}

/// Its finalizer may stay for hours. Meanwhile a public address of a pod that is gone is in no other record.
async fn an_object_that_another_client_holds_is_made_again_with_all_that_it_recorded(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = Stage::empty(plane, quick()).await?;
    let pod = Living::on(&stage).await?;
    let error = json!({ "code": "PublicIPAddressCannotBeDeleted", "message": "It is still allocated." });
    let effect = Effect::Status { status: 400, body: json!({ "error": error }), headers: Default::default() };
    let fault = stage.fault("DELETE", &pod.public, None, effect);
    stage.remove("n1", &pod.pod).await?;
    stage.until_condition("n1", ATTACHED, "AzureRefused").await?;
    let api = Api::<NodeIPAllocation>::all(stage.client.clone());
    let holds = async |finalizers: &[&str]| {
        let patch = Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
        api.patch_metadata("n1", &PatchParams::default(), &patch).await
    };
    let before = holds(&[FINALIZER, "example.com/audit"]).await?.uid();
    stage.delete_allocation("n1").await?;
    let held = stage.until_condition("n1", READY, "HeldByOthers").await?;
    ensure!(held.message.contains("example.com/audit"), "{}", held.message);
    stage.sim.lift_fault(fault)?;
    holds(&[FINALIZER]).await?;
    let again = |seen: &NodeIPAllocation| (seen.uid() != before).then_some(());
    stage.until("it is made again", "n1", again).await?;
    eventually("the public address is deleted", PATIENCE, || async {
        Ok((!stage.exists(&pod.public).await?).then_some(()))
    })
    .await?;
    stage.until_holds("n1", 2).await
}

/// On a control plane of its own, which no other test finds without the kinds.
async fn kinds_that_a_tool_prunes_take_nothing_of_a_pod_and_are_as_before_when_they_are_back(
    _: &ControlPlane,
) -> Result<()> {
    let plane = ControlPlane::up("conduct-pruned")?;
    let stage = Stage::empty(&plane, quick()).await?;
    let pod = Living::on(&stage).await?;
    let kinds = Api::<CustomResourceDefinition>::all(stage.client.clone());
    let begun = Instant::now();
    for kind in [NodeIPPool::crd_name(), NodeIPAllocation::crd_name()] {
        kinds.delete(kind, &DeleteParams::background()).await?;
    }
    eventually("both kinds are gone", PATIENCE, || async {
        for kind in [NodeIPPool::crd_name(), NodeIPAllocation::crd_name()] {
            let there = kinds.get_opt(kind).await?;
            ensure!(there.is_none(), "{kind} is there: {:?}", there.and_then(|one| one.status));
        }
        Ok(Some(()))
    })
    .await?;
    eprintln!("both kinds were gone after {:.1} s", begun.elapsed().as_secs_f64());
    throughout("the pod has all it had", Duration::from_secs(5), async || pod.has_all(&stage).await).await?;
    if let Some(why) = stage.ended() {
        anyhow::bail!("the operator has ended: {why}");
    }

    vnetpool_operator::crds::apply(stage.client.clone()).await?;
    stage.pool("default", policy()).await?;
    eventually("it is recorded again", PATIENCE, || async {
        let seen = stage.allocation("n1").await?;
        let kept = kept(&seen).context("no address is kept for the pod")?;
        ensure!(kept.public_address.is_some_and(|one| one.id == pod.public), "{:?}", seen.spec);
        Ok(Some(()))
    })
    .await?;
    stage.bind("n1", 1).await?;
    stage.until_holds("n1", 3).await?;
    let after = until_served(&stage, "n1", 2).await?;
    ensure!(after.is_superset(&pod.addresses), "{:?} became {after:?}", pod.addresses);
    pod.has_all(&stage).await
}
