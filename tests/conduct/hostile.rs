//! Azure and the API server at their worst: what becomes of each request is drawn at random, while nodes and
//! pods come and go. Then all heals, and nothing may be left of it.
//!
//! A seed that fails is run again by `HOSTILE_SEEDS=17 cargo test --workspace --test conduct --
//! hostile::seed_17`.

use crate::Test;
use crate::gateway::Gateway;
use crate::machines::held;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vnetpool_azure_sim::{Config, Draws};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::{self, FULL};
use vnetpool_crds::reason::Reason;
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
/// Promised: what Azure has refused only a person ends, so it is tried again after a minute, and the second
/// time after two. An edit of the pool ends that wait for a node, and not for one that is gone.
const RECOVERY: Duration = Duration::from_secs(140);
const MOMENT: Duration = Duration::from_secs(5);

pub async fn survive(plane: &ControlPlane, seed: u64) -> Result<()> {
    let pool = |minimum: u32| json!({ "sizing": { "minimum": minimum, "warm": 0, "batch": 1, "releaseAfter": "0s" } });
    let mut stage = Stage::empty(plane, Config { limits: false, ..quick() }).await?;
    let gateway = Gateway::start(plane).await?;
    stage.api_server_at(format!("http://{}", gateway.address).parse()?);
    stage.pool("default", pool(0)).await?;
    stage.start().await?;
    let turns = Turns::watch(&stage);
    let mut draws = Draws::of(seed);
    let mut nodes: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..NODES {
        let node = format!("n{index:02}");
        stage.node(&node, None).await?;
        stage.bind(&node, 1).await?;
        nodes.insert(node, 1);
    }
    for node in nodes.keys() {
        stage.until_holds(node, 1).await?;
    }
    stage.sim.be_hostile(Some(seed));
    gateway.be_hostile(Some(seed));
    for step in 0..STEPS {
        happen(&stage, step, &mut draws, &mut nodes).await?;
        tokio::time::sleep(BETWEEN).await;
    }
    stage.sim.be_hostile(None);
    let drawn = gateway.be_hostile(None);
    ensure!(drawn > STEPS, "little was asked of the API server: {drawn}");
    // Some of what Azure said only a person ends, and so whoever edits the pool has it tried again.
    stage.pool("default", pool(1)).await?;
    let wanted: BTreeMap<String, usize> = nodes.into_iter().map(|(node, pods)| (node, pods.max(1))).collect();
    eventually("every node has what it wants and nothing else is held", RECOVERY, || async {
        audit(&stage, &wanted).await?;
        Ok(Some(()))
    })
    .await?;
    // What the watch here shows comes a moment later.
    eventually("each Event was said for a turn", MOMENT, || async {
        turns.audit(&stage).await?;
        Ok(Some(()))
    })
    .await
}

/// One thing happens: pods come or go, a machine makes room for another, the operator is killed.
async fn happen(
    stage: &Stage<'_>,
    step: usize,
    draws: &mut Draws,
    nodes: &mut BTreeMap<String, usize>,
) -> Result<()> {
    let node = nodes.keys().nth(draws.below(nodes.len(), "node")).context("no node")?.clone();
    let pods = nodes[&node];
    match draws.below(20, "event") {
        0..10 => {
            let more = 1 + draws.below(4, "pods");
            stage.bind(&node, more).await?;
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
        }
    }
    Ok(())
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

/// How often a condition of a node has turned to a reason, as a watch has seen it.
type Seen = BTreeMap<(String, String), usize>;

/// Counts the turns of conditions, to compare them with the Events that were said.
struct Turns {
    seen: Arc<Mutex<Seen>>,
}

impl Turns {
    fn watch(stage: &Stage<'_>) -> Turns {
        let seen = Arc::new(Mutex::new(Seen::new()));
        let counts = seen.clone();
        let mut last: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
        stage.follow(move |object: NodeIPAllocation| {
            for one in object.conditions() {
                let (key, now) =
                    ((object.name_any(), one.type_.clone()), (one.status.clone(), one.reason.clone()));
                if last.insert(key, now.clone()).as_ref() != Some(&now) {
                    // The Event of `Full` has this reason, whatever the cause is.
                    let is_full = one.type_ == FULL && one.status == "True";
                    let reason = if is_full { FULL.name().to_owned() } else { now.1 };
                    *lock(&counts).entry((object.name_any(), reason)).or_default() += 1;
                }
            }
        });
        Turns { seen }
    }

    /// No Event was said more often than its condition turned.
    async fn audit(&self, stage: &Stage<'_>) -> Result<()> {
        let events = Api::<Event>::all(stage.client.clone()).list(&ListParams::default()).await?;
        let mut said = Seen::new();
        for event in &events {
            let about = &event.involved_object;
            let (Some(kind), Some(name), Some(reason)) = (&about.kind, &about.name, &event.reason) else {
                continue;
            };
            let times = event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
            // Others tell what was done, and not of a state.
            let is_of_state = reason == FULL.name()
                || Reason::of(reason).is_some_and(|reason| !reason.row().conditions.is_empty());
            let is_warning = event.type_.as_deref() == Some("Warning");
            if kind == "NodeIPAllocation" && is_warning && is_of_state {
                *said.entry((name.clone(), reason.clone())).or_default() += usize::try_from(times)?;
            }
        }
        let turned = lock(&self.seen).clone();
        for (what, times) in &said {
            let turns = turned.get(what).copied().unwrap_or_default();
            ensure!(*times <= turns, "{what:?} was said {times} times and turned {turns} times");
        }
        ensure!(!said.is_empty(), "nothing was said at all");
        Ok(())
    }
}
