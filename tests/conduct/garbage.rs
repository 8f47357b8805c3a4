//! Garbage in the fields that the operator reads, through whole reconciles: a spoilt object costs its own
//! node only. Where it can't be read at all, nothing of that node is written, released or deleted.
//!
//! A seed draws which field of a Node, a NodeIPAllocation, a pool or a Pod is spoilt for each of many nodes,
//! and how. The API server has the objects as they should be, so that agents go on.

use crate::Test;
use crate::attachments::{attached, backend_pool, balancer, kept};
use crate::gateway::{Gateway, Spoilt};
use crate::metrics::Metrics;
use crate::operator::until_ready;
use crate::stage::{Stage, quick};
use crate::unreadable::served;
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::SelectorExt;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use vnetpool_apiserver::reading::Reading;
use vnetpool_azure_sim::{Config, Draws, NewVm};
use vnetpool_crds::condition::ATTACHED;
use vnetpool_crds::names::{BACKEND_POOLS, PUBLIC_ADDRESS};
use vnetpool_crds::{NodeIPAllocation, NodeIPAllocationSpec, NodeIPPool};
use vnetpool_operator::outlook;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::{eventually, throughout};

pub const LONG: &[Test] =
    crate::tests![garbage_in_fields_of_any_kind_costs_only_its_node_through_whole_reconciles];

/// No seed takes longer than this on a machine that does nothing else.
pub const LONGEST: Duration = Duration::from_secs(300);
const NODES: usize = 12;
const ROUNDS: usize = 4;
/// The node that nothing is spoilt of.
const GOOD: &str = "good";
/// What a node wants is wanted by a pod that asks for attachments, and another.
const FIRST: usize = 2;
/// Further pods of a node come and go.
const MORE: usize = 2;
/// For the operator to do what it shouldn't.
const MOMENT: Duration = Duration::from_secs(2);
/// For an operator that starts.
const PATIENCE: Duration = Duration::from_secs(60);
/// Promised: what Azure has refused is tried again after a minute, and the second time after two.
const RECOVERY: Duration = Duration::from_secs(140);

/// As paths name them. Of one node in each round, one after the other.
const KINDS: [&str; 4] = ["nodeipallocations", "nodes", "nodeippools", "pods"];

async fn garbage_in_fields_of_any_kind_costs_only_its_node_through_whole_reconciles(
    plane: &ControlPlane,
) -> Result<()> {
    survive(plane, 1).await
}

/// A node whose objects are spoilt.
struct Victim {
    node: String,
    /// Its pod that asks for attachments.
    asking: String,
    /// Those that come and go.
    more: Vec<String>,
}

pub async fn survive(plane: &ControlPlane, seed: u64) -> Result<()> {
    let mut stage = Stage::empty(plane, Config { limits: false, ..quick() }).await?;
    let gateway = Gateway::start(plane, User::Operator).await?;
    stage.api_server_at(format!("http://{}", gateway.address).parse()?);
    balancer(&stage, "web", json!([])).await?;
    start(&stage).await?;
    join(&stage, GOOD).await?;
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n:02}")).collect();
    let mut victims = try_join_all(names.iter().map(|node| Victim::found(&stage, node))).await?;
    let mut wanted = 2;
    served(&stage, GOOD, wanted).await?;

    let mut draws = Garbled { draws: Draws::of(seed), left: BTreeMap::new() };
    for round in 0..ROUNDS {
        // An operator that starts meets it at once, and another one only later.
        let starts = round % 2 == 1;
        let mut spoilt = vec![];
        for (n, victim) in victims.iter().enumerate() {
            spoilt.push(draws.draw(&stage, victim, KINDS[(n + round) % KINDS.len()]).await?);
        }
        if starts {
            is_without_a_panic(&stage).await?;
            stage.kill().await?;
        }
        let before = try_join_all(victims.iter().map(|victim| record(&stage, victim))).await?;
        gateway.spoil(spoilt.iter().map(|(one, _)| one.clone()).collect());
        touch(&stage, &spoilt, &format!("{round}a")).await?;
        if starts {
            start(&stage).await?;
            until_ready(stage.admin, PATIENCE).await?;
        }
        eventually("the operator has got all of them", PATIENCE, || async {
            let unseen = gateway.unseen();
            ensure!(unseen.is_empty(), "not yet {unseen:?}");
            Ok(Some(()))
        })
        .await?;
        stage.sim.clear_log();
        for victim in &mut victims {
            victim.change(&stage).await?;
        }
        wanted += 1;
        served(&stage, GOOD, wanted).await.with_context(|| format!("beside {spoilt:?}"))?;
        throughout("nothing is lost", MOMENT, async || {
            for ((victim, (one, is_readable)), before) in victims.iter().zip(&spoilt).zip(&before) {
                victim.keeps(&stage, before, *is_readable).await.with_context(|| format!("{one:?}"))?;
            }
            Ok(())
        })
        .await?;

        gateway.spoil(vec![]);
        touch(&stage, &spoilt, &format!("{round}b")).await?;
        for (victim, (one, _)) in victims.iter().zip(&spoilt) {
            victim.goes_on(&stage).await.with_context(|| format!("after {one:?}"))?;
        }
    }
    is_without_a_panic(&stage).await
}

/// An operator for which what its pools record holds for longer than a test.
async fn start(stage: &Stage<'_>) -> Result<()> {
    stage.start_with(|config| config.waits.grace = PATIENCE * 60).await
}

/// A node with a pool of its own.
async fn join(stage: &Stage<'_>, node: &str) -> Result<()> {
    let spec = json!({
        "nodeSelector": { "matchLabels": { "of": node } },
        "weight": 3,
        "mode": "Address",
        "wiring": "Routed",
        "cooldown": "1s",
        "subnetExhaustingPercent": 10,
        "rollout": { "maxUpdating": "100%" },
        "podMetadataAccess": "None",
        "sizing": { "minimum": 0, "warm": 0, "maximum": 20, "batch": 1, "releaseAfter": "0s" },
        "snat": { "nonMasqueradeCIDRs": ["10.0.0.0/8"] },
        "attachments": {
            "publicAddressNamespaces": ["default"],
            "backendPools": [{ "name": "web", "id": backend_pool("web") }],
        },
    });
    stage.pool(node, spec).await?;
    let vm = stage.sim.add_vm(NewVm { name: node.into(), ..NewVm::default() }).await?;
    stage.join_labelled(node, &vm.provider_id, &[("of", node)]).await
}

impl Victim {
    async fn found(stage: &Stage<'_>, node: &str) -> Result<Victim> {
        join(stage, node).await?;
        let asking = stage.pod(node, json!({ PUBLIC_ADDRESS: "true", BACKEND_POOLS: "web" })).await?;
        stage.bind(node, FIRST - 1).await?;
        stage.until_holds(node, FIRST).await?;
        stage.until_condition(node, ATTACHED, "Attached").await?;
        Ok(Victim { node: node.into(), asking, more: vec![] })
    }

    /// The object of this kind that concerns it.
    fn object(&self, kind: &str) -> &str {
        if kind == "pods" { &self.asking } else { &self.node }
    }

    /// Pods come, or go: the node would be written.
    async fn change(&mut self, stage: &Stage<'_>) -> Result<()> {
        if self.more.is_empty() {
            for _ in 0..MORE {
                self.more.push(stage.pod(&self.node, json!({})).await?);
            }
        } else {
            for pod in self.more.drain(..) {
                stage.remove(&self.node, &pod).await?;
            }
        }
        Ok(())
    }

    /// Its pods have the addresses they had. Of a node with an object that can't be read nothing was written
    /// at all, and its pod has what is attached to it: an object that can be read may ask for anything.
    async fn keeps(&self, stage: &Stage<'_>, before: &Record, is_readable: bool) -> Result<()> {
        let node = &self.node;
        let nic = stage.nic(node);
        let all = nic["properties"]["ipConfigurations"].as_array().into_iter().flatten();
        let on_nic: BTreeSet<&str> =
            all.filter_map(|one| one["properties"]["privateIPAddress"].as_str()).collect();
        for address in stage.agents.addresses(node).values() {
            ensure!(on_nic.contains(address.to_string().as_str()), "a pod of {node} has lost {address}");
        }
        if !is_readable {
            let both = attached(stage, node, &before.name)?;
            ensure!(both[0].is_string() && both[1].is_string(), "{node} has lost attachments: {both}");
            ensure!(stage.exists(&before.public).await?, "{} is deleted", before.public);
            ensure!(stage.writes(node).is_empty(), "{node} is written: {:?}", stage.writes(node));
            let now = stage.allocation(node).await?;
            ensure!(now.metadata.uid == before.uid, "the record of {node} is another one");
            ensure!(now.spec == before.spec, "{node} is recorded as {:?}, was {:?}", now.spec, before.spec);
        }
        Ok(())
    }

    /// It gets what its pods want.
    async fn goes_on(&self, stage: &Stage<'_>) -> Result<()> {
        let (node, wanted) = (&self.node, FIRST + self.more.len());
        eventually(
            &format!("{node} has {wanted} addresses, and its pod all it asks for"),
            RECOVERY,
            || async {
                let before = record(stage, self).await?;
                let shown: BTreeSet<_> =
                    before.spec.ip_configurations().map(|one| one.name.clone()).collect();
                let held = stage.held(node);
                ensure!(held.len() == wanted && held == shown, "held {held:?}, recorded {shown:?}");
                let both = attached(stage, node, &before.name)?;
                ensure!(both[0].is_string() && both[1].is_string(), "{both}");
                let served = stage.agents.addresses(node).len();
                ensure!(served == wanted, "{served} pods have addresses");
                Ok(Some(()))
            },
        )
        .await
    }
}

/// What there is of a node before.
struct Record {
    uid: Option<String>,
    spec: NodeIPAllocationSpec,
    /// The ipConfiguration with attachments.
    name: String,
    public: String,
}

async fn record(stage: &Stage<'_>, victim: &Victim) -> Result<Record> {
    let NodeIPAllocation { metadata, spec, status } = stage.allocation(&victim.node).await?;
    let seen = NodeIPAllocation { metadata: metadata.clone(), spec: spec.clone(), status };
    let kept = kept(&seen).context("no address is kept for its pod")?;
    let public = kept.public_address.context("no public address")?.id;
    Ok(Record { uid: metadata.uid, spec, name: kept.name, public })
}

async fn is_without_a_panic(stage: &Stage<'_>) -> Result<()> {
    let metrics = Metrics::scrape(stage).await?;
    let panics = metrics.sum("vnetpool_operator_reconciles_total", &[r#"outcome="Panicked""#]);
    ensure!(panics == 0.0, "{panics} reconciles have panicked");
    Ok(())
}

/// Draws fields and values.
struct Garbled {
    draws: Draws,
    /// The places of each kind that weren't drawn since all were.
    left: BTreeMap<&'static str, Vec<String>>,
}

impl Garbled {
    /// A field of a node's object of this kind, and whether the object can still be read.
    async fn draw(
        &mut self,
        stage: &Stage<'_>,
        victim: &Victim,
        kind: &'static str,
    ) -> Result<(Spoilt, bool)> {
        let name = victim.object(kind).to_owned();
        let sound = get(stage, kind, &name).await?;
        let mut object = sound.clone();
        let mut all = vec![];
        places(&object, "", &mut all);
        let left = self.left.entry(kind).or_default();
        left.retain(|place| all.contains(place));
        if left.is_empty() {
            *left = all;
        }
        let place = left.swap_remove(self.draws.below(left.len(), "place"));
        let mut garbage = garbage()?;
        // The API server sees to it that these are texts.
        let is_text = place.starts_with("/metadata/");
        garbage.retain(|one| Some(one) != sound.pointer(&place) && (one.is_string() || !is_text));
        // A pool that takes others' nodes is one that a person could have made.
        let takes_others = |object: &Value| {
            let pool = serde_json::from_value::<NodeIPPool>(object.clone()).ok();
            let labels = BTreeMap::from([("of".to_owned(), GOOD.to_owned())]);
            let selector = pool.and_then(|pool| pool.spec.selector().ok());
            kind == "nodeippools" && selector.is_some_and(|selector| selector.matches(&labels))
        };
        let value = loop {
            let value = garbage.swap_remove(self.draws.below(garbage.len(), "value"));
            *object.pointer_mut(&place).context("no such field")? = value.clone();
            if !takes_others(&object) {
                break value;
            }
        };
        let is_readable = match kind {
            "nodeipallocations" => can_be_read::<NodeIPAllocation>(&object)?,
            "nodes" => can_be_read::<outlook::Node>(&object)?,
            "nodeippools" => can_be_read::<NodeIPPool>(&object)?,
            // Of a Pod each field is read alone.
            _ => true,
        };
        Ok((Spoilt { resource: kind, name, place, value }, is_readable))
    }
}

fn can_be_read<K: DeserializeOwned + Resource<DynamicType = ()>>(content: &Value) -> Result<bool> {
    Ok(serde_json::from_value::<Reading<K>>(content.clone())?.0.is_ok())
}

fn garbage() -> Result<Vec<Value>> {
    let values = r#"[null, true, -1, 5000000000, 4294967295, 1.5, 1e300, "", "1k", "Teleport", "0.0.0.0/0",
        "10.0.0.0/99", "../..", [], [null], {}, {"a": 1}, [[]], "2026-99-99T00:00:00Z", "-9999999h"]"#;
    Ok(serde_json::from_str(values)?)
}

/// Texts that any client may write.
const TEXTS: [&str; 2] = ["/metadata/annotations/", "/metadata/labels/"];
/// By which an object is known, or a Pod's node, and what no program reads.
const SOUND: [&str; 4] = ["/apiVersion", "/kind", "/spec/containers", "/spec/nodeName"];

/// The place of each value in an object that can hold garbage.
fn places(value: &Value, path: &str, all: &mut Vec<String>) {
    if SOUND.contains(&path) {
        return;
    }
    let is_metadata = path == "/metadata" || path.starts_with("/metadata/");
    if !path.is_empty() && (!is_metadata || TEXTS.iter().any(|text| path.starts_with(text))) {
        all.push(path.to_owned());
    }
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            places(inner, &format!("{path}/{name}"), all);
        }),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, inner)| places(inner, &format!("{path}/{at}"), all))
        }
        _ => {}
    }
}

fn api(stage: &Stage<'_>, kind: &str) -> Api<DynamicObject> {
    let client = || stage.client.clone();
    match kind {
        "nodes" => Api::all_with(client(), &ApiResource::erase::<Node>(&())),
        "nodeipallocations" => Api::all_with(client(), &ApiResource::erase::<NodeIPAllocation>(&())),
        "nodeippools" => Api::all_with(client(), &ApiResource::erase::<NodeIPPool>(&())),
        _ => Api::namespaced_with(client(), "default", &ApiResource::erase::<Pod>(&())),
    }
}

async fn get(stage: &Stage<'_>, kind: &str, name: &str) -> Result<Value> {
    Ok(serde_json::to_value(api(stage, kind).get(name).await?)?)
}

/// Changes these objects, so that watches show them.
async fn touch(stage: &Stage<'_>, all: &[(Spoilt, bool)], word: &str) -> Result<()> {
    let touch = Patch::Merge(json!({ "metadata": { "annotations": { "touched": word } } }));
    for (one, _) in all {
        api(stage, one.resource).patch_metadata(&one.name, &PatchParams::default(), &touch).await?;
    }
    Ok(())
}
