//! Azure and the API server at their worst: the fate of each request is drawn at random, while nodes and pods
//! come and go. Then all heals, and nothing of it may be left.
//!
//! A seed that fails is run again by `HOSTILE_SEEDS=17 cargo test --workspace --test conduct --
//! hostile::seed_17`.

use crate::Test;
use crate::gateway::Gateway;
use crate::machines::held;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vnetpool_azure_sim::{Config, Draws};
use vnetpool_crds::condition::{self, FULL, SUBNET_EXHAUSTING};
use vnetpool_crds::names::BACKEND_POOLS;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_operator::azure::codes;
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    one_seed_of_random_answers_leaves_nothing_leaked_doubled_or_said_twice,
    another_seed_of_random_answers_leaves_nothing_leaked_doubled_or_said_twice,
];

/// No seed takes longer than this on a machine that does nothing else: half a minute of trouble, and
/// [`RECOVERY`].
pub const LONGEST: Duration = Duration::from_secs(240);

/// Further seeds, each to be a test of its own: those that `HOSTILE_SEEDS` names, as `make nightly` does.
pub fn further_seeds() -> Result<Vec<u64>> {
    let named = std::env::var("HOSTILE_SEEDS").unwrap_or_default();
    named
        .split_whitespace()
        .map(|seed| seed.parse().with_context(|| format!("HOSTILE_SEEDS: {seed}")))
        .collect()
}

async fn one_seed_of_random_answers_leaves_nothing_leaked_doubled_or_said_twice(
    plane: &ControlPlane,
) -> Result<()> {
    survive(plane, 1).await
}

async fn another_seed_of_random_answers_leaves_nothing_leaked_doubled_or_said_twice(
    plane: &ControlPlane,
) -> Result<()> {
    survive(plane, 2).await
}

const NODES: usize = 10;
/// How many things happen to nodes and pods meanwhile.
const STEPS: usize = 40;
const BETWEEN: Duration = Duration::from_millis(500);
/// Promised: a refusal of Azure's that only a person ends is tried again after a minute, and the second time
/// after two. An edit of the pool ends that wait for a node, and not for one that is gone.
const RECOVERY: Duration = Duration::from_secs(140);
const MOMENT: Duration = Duration::from_secs(5);

pub async fn survive(plane: &ControlPlane, seed: u64) -> Result<()> {
    // The free addresses of the subnet are always reported as few, so that the pool has a condition to
    // report, too.
    let pool = |minimum: u32| {
        let sizing = json!({ "minimum": minimum, "warm": 0, "batch": 1, "releaseAfter": "0s" });
        json!({ "sizing": sizing, "subnetExhaustingPercent": 100 })
    };
    let mut stage = Stage::empty(plane, Config { limits: false, ..quick() }).await?;
    let gateway = Gateway::start(plane).await?;
    stage.api_server_at(format!("http://{}", gateway.address).parse()?);
    stage.pool("default", pool(0)).await?;
    stage.start().await?;
    let turns = Turns::watch(&stage);
    let mut world = World { draws: Draws::of(seed), pods: BTreeMap::new(), starts: 1 };
    for index in 0..NODES {
        let node = format!("n{index:02}");
        stage.node(&node, None).await?;
        stage.bind(&node, 1).await?;
        world.pods.insert(node, 1);
    }
    for node in world.pods.keys() {
        stage.until_holds(node, 1).await?;
    }
    stage.sim.be_hostile(seed, codes());
    gateway.be_hostile(Some(seed));
    for step in 0..STEPS {
        world.happen(&stage, step).await?;
        tokio::time::sleep(BETWEEN).await;
    }
    stage.sim.heal();
    let drawn = gateway.be_hostile(None);
    ensure!(drawn > STEPS, "little was asked of the API server: {drawn}");
    // Some of Azure's refusals only a person ends, and an edit of the pool has them tried again.
    stage.pool("default", pool(1)).await?;
    let World { pods, starts, .. } = world;
    let wanted: BTreeMap<String, usize> = pods.into_iter().map(|(node, pods)| (node, pods.max(1))).collect();
    eventually("every node has what it wants and nothing else is held", RECOVERY, || async {
        audit(&stage, &wanted).await?;
        Ok(Some(()))
    })
    .await?;
    // The watch here shows it a moment later.
    eventually("each Event was said for a turn", MOMENT, || async {
        turns.audit(&stage, starts).await?;
        Ok(Some(()))
    })
    .await
}

/// What there is while nothing can be relied on.
struct World {
    draws: Draws,
    /// How many pods each node has.
    pods: BTreeMap<String, usize>,
    /// How often an operator was started.
    starts: usize,
}

impl World {
    /// One event: pods come or go, a machine makes room for another, the operator is killed.
    async fn happen(&mut self, stage: &Stage<'_>, step: usize) -> Result<()> {
        let World { draws, pods: nodes, starts } = self;
        let node = nodes.keys().nth(draws.below(nodes.len(), "node")).context("no node")?.clone();
        let pods = nodes[&node];
        match draws.below(20, "event") {
            0..10 => {
                let more = 1 + draws.below(4, "pods");
                // Some ask for a service that their pool doesn't offer: they run without it, and get an
                // Event.
                let asks = json!({ BACKEND_POOLS: "not-offered" });
                let annotations = if draws.below(3, "asks") == 0 { asks } else { json!({}) };
                stage.bind_annotated(&node, more, annotations).await?;
                nodes.insert(node, pods + more);
            }
            10..17 => {
                let less = pods.min(1 + draws.below(4, "pods"));
                stage.unbind(&node, less).await?;
                nodes.insert(node, pods - less);
            }
            17..19 => {
                // Its NIC stays half of the time.
                stage.unbind(&node, pods).await?;
                stage.sim.delete_vm(&node, draws.below(2, "NIC") == 0).await?;
                stage.delete_node(&node).await?;
                nodes.remove(&node);
                let new = format!("m{step:02}");
                stage.node(&new, None).await?;
                nodes.insert(new, 0);
            }
            _ => {
                stage.kill().await?;
                stage.start().await?;
                *starts += 1;
            }
        }
        Ok(())
    }
}

/// Every node holds as many addresses as it wants, `spec` shows those of its NIC and no others, each pod has
/// an address of its own, and no NIC of a machine that is gone has any.
async fn audit(stage: &Stage<'_>, wanted: &BTreeMap<String, usize>) -> Result<()> {
    let state = stage.sim.state();
    let ids = state["nics"].as_array().into_iter().flatten().filter_map(|nic| nic["id"].as_str());
    let node = |id: &str| id.rsplit('/').next().unwrap_or_default().trim_end_matches("-nic").to_owned();
    let on_nics: BTreeMap<String, BTreeMap<String, String>> =
        ids.map(|id| (node(id), held(stage, id))).collect();
    let addresses: Vec<&String> = on_nics.values().flat_map(BTreeMap::values).collect();
    ensure!(addresses.len() == addresses.iter().collect::<BTreeSet<_>>().len(), "doubled: {on_nics:?}");
    let objects = Api::<NodeIPAllocation>::all(stage.client.clone()).list(&ListParams::default()).await?;
    let mut assigned = BTreeSet::new();
    for object in &objects {
        let node = object.name_any();
        let wanted = *wanted.get(&node).with_context(|| format!("{node} is gone and its object isn't"))?;
        let on_nic: BTreeSet<&String> = on_nics.get(&node).into_iter().flat_map(BTreeMap::keys).collect();
        let shown: BTreeSet<&String> = object.spec.ip_configurations().map(|one| &one.name).collect();
        ensure!(on_nic == shown, "{node} has {on_nic:?} on its NIC and {shown:?} in spec");
        let says = || object.status.as_ref().map(|status| json!(status.conditions).to_string());
        ensure!(shown.len() == wanted, "{node} holds {} of {wanted}: {:?}", shown.len(), says());
        let settled =
            condition::find(object.conditions(), condition::WRITING).is_some_and(|one| one.status == "False");
        ensure!(settled, "{node} is being written");
        let served = stage.agents.addresses(&node);
        let on_nic: BTreeSet<&String> = on_nics.get(&node).into_iter().flat_map(BTreeMap::values).collect();
        for address in served.values().map(ToString::to_string) {
            ensure!(on_nic.contains(&address), "{node} lacks {address}, which a pod has: {on_nic:?}");
            ensure!(assigned.insert(address.clone()), "{address} has two pods");
        }
        let pods = stage.pods_bound(&node).await?;
        ensure!(served.len() == pods, "{node} has addresses for {} of {pods} pods", served.len());
    }
    ensure!(objects.items.len() == wanted.len(), "{} objects of {} nodes", objects.items.len(), wanted.len());
    let left: Vec<_> =
        on_nics.iter().filter(|(node, held)| !wanted.contains_key(*node) && !held.is_empty()).collect();
    ensure!(left.is_empty(), "leaked: {left:?}");
    Ok(())
}

/// How often a condition of an object has turned to a reason, or an Event with it was said: by the object's
/// kind and name, and the reason.
type Seen = BTreeMap<(String, String, String), usize>;

/// What Events of ours are about.
const ABOUT: [&str; 4] = ["Node", "NodeIPAllocation", "NodeIPPool", "Pod"];

/// Counts the turns of conditions, to compare them with the published Events.
struct Turns {
    seen: Arc<Mutex<Seen>>,
}

impl Turns {
    fn watch(stage: &Stage<'_>) -> Turns {
        let seen = Arc::<Mutex<Seen>>::default();
        stage.follow(counting(seen.clone(), |object: &NodeIPAllocation| object.conditions().to_vec()));
        stage.follow(counting(seen.clone(), |pool: &NodeIPPool| {
            pool.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
        }));
        Turns { seen }
    }

    /// No Event was published more often than its condition turned, or, of a pod, than an operator has
    /// started: an Event of a pod is recorded nowhere else.
    async fn audit(&self, stage: &Stage<'_>, starts: usize) -> Result<()> {
        let events = Api::<Event>::all(stage.client.clone()).list(&ListParams::default()).await?;
        let mut said = Seen::new();
        for event in &events {
            let about = &event.involved_object;
            let (Some(kind), Some(name), Some(reason)) = (&about.kind, &about.name, &event.reason) else {
                continue;
            };
            ensure!(ABOUT.contains(&kind.as_str()), "an Event about a {kind}: {event:?}");
            let times = event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
            // Others report an action, and not a state.
            let is_of_state = [FULL, SUBNET_EXHAUSTING].iter().any(|type_| type_.name() == reason)
                || Reason::of(reason).is_some_and(|reason| !reason.row().conditions.is_empty());
            if is_of_state {
                let what = (kind.clone(), name.clone(), reason.clone());
                *said.entry(what).or_default() += usize::try_from(times)?;
            }
        }
        let turned = lock(&self.seen).clone();
        for ((kind, name, reason), times) in &said {
            // What is said of a Node stands in its NodeIPAllocation.
            let stands = if kind == "Node" { "NodeIPAllocation" } else { kind.as_str() };
            let turns = turned.get(&(stands.to_owned(), name.clone(), reason.clone())).copied();
            let most = if kind == "Pod" { starts } else { turns.unwrap_or_default() };
            ensure!(
                *times <= most,
                "{reason} of {kind} {name} was said {times} times, at most {most} are right"
            );
        }
        for kind in ABOUT {
            ensure!(said.keys().any(|(about, ..)| about == kind), "nothing was said of any {kind}");
        }
        Ok(())
    }
}

/// Counts in `seen` how often conditions of these objects turn.
fn counting<K: Resource<DynamicType = ()>>(
    seen: Arc<Mutex<Seen>>,
    conditions: impl Fn(&K) -> Vec<Condition>,
) -> impl FnMut(K) {
    let mut last: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
    move |object: K| {
        for one in conditions(&object) {
            let now = (one.status.clone(), one.reason.clone());
            if last.insert((object.name_any(), one.type_.clone()), now.clone()).as_ref() == Some(&now) {
                continue;
            }
            // The Events of these have the type for their reason, whatever the cause is.
            let goes_by_type = [FULL, SUBNET_EXHAUSTING].iter().any(|type_| type_.name() == one.type_);
            let reason = if goes_by_type && one.status == "True" { one.type_ } else { now.1 };
            *lock(&seen).entry((K::kind(&()).into(), object.name_any(), reason)).or_default() += 1;
        }
    }
}
