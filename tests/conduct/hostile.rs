//! Azure and the API server at their worst: the fate of each request is drawn at random, while nodes and pods
//! come and go. Then all heals, and nothing of it may be left.
//!
//! ```text
//!   world   the nodes and pods, and what happens to them meanwhile
//!   audit   what has to be true of them, of NICs and of public addresses in the end
//!   turns   how often conditions have turned, to compare that with the Events
//! ```
//! A seed that fails is run again by `HOSTILE_SEEDS=17 cargo test --workspace --test conduct --
//! hostile::seed_17`.

mod audit;
mod turns;
mod world;

use crate::Test;
use crate::gateway::Gateway;
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use turns::Turns;
use vnetpool_azure_sim::Config;
use vnetpool_operator::azure::codes;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;
pub use world::Scene;
use world::World;

pub const LONG: &[Test] = crate::tests![
    one_seed_of_random_answers_leaves_nothing_leaked_doubled_or_reported_twice,
    another_seed_of_random_answers_leaves_nothing_leaked_doubled_or_reported_twice,
];

/// No seed takes longer than this on a machine that does nothing else: half a minute of trouble, and
/// [`RECOVERY`].
pub const LONGEST: Duration = Duration::from_secs(240);

/// Further seeds, each to be a test of its own for each [`Scene`], one of garbage, and one of a trace of the
/// model: those that `HOSTILE_SEEDS` names, as `make nightly` does.
pub fn further_seeds() -> Result<Vec<u64>> {
    let named = std::env::var("HOSTILE_SEEDS").unwrap_or_default();
    named
        .split_whitespace()
        .map(|seed| seed.parse().with_context(|| format!("HOSTILE_SEEDS: {seed}")))
        .collect()
}

async fn one_seed_of_random_answers_leaves_nothing_leaked_doubled_or_reported_twice(
    plane: &ControlPlane,
) -> Result<()> {
    survive(plane, 1, Scene::Addresses).await
}

async fn another_seed_of_random_answers_leaves_nothing_leaked_doubled_or_reported_twice(
    plane: &ControlPlane,
) -> Result<()> {
    survive(plane, 2, Scene::Blocks).await
}

const NODES: usize = 10;
/// How many things happen to nodes and pods meanwhile.
const STEPS: usize = 40;
/// And how many at most, until the operator has reported trouble. It may lose its Lease for most of the time.
const MOST_STEPS: usize = 120;
const BETWEEN: Duration = Duration::from_millis(500);
/// Promised: a refusal of Azure's that only a person ends is tried again after a minute, and the second time
/// after two. An edit of the pool ends that wait for a node, and not for one that is gone.
const RECOVERY: Duration = Duration::from_secs(140);
/// For the nodes' first addresses and attachments, before the trouble.
const BEGINNING: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_secs(5);

pub async fn survive(plane: &ControlPlane, seed: u64, scene: Scene) -> Result<()> {
    let mut stage = Stage::empty(plane, Config { limits: false, ..quick() }).await?;
    let gateway = Gateway::start(plane, User::Operator).await?;
    stage.api_server_at(format!("http://{}", gateway.address).parse()?);
    let mut world = World::found(&stage, scene, seed).await?;
    stage.start().await?;
    let turns = Turns::watch(&stage);
    for index in 0..NODES {
        let node = format!("n{index:02}");
        world.join(&stage, &node).await?;
        world.bind_first(&stage, &node, index).await?;
    }
    until_well(&stage, &world, BEGINNING).await?;
    stage.sim.clear_log();
    stage.sim.be_hostile(seed, codes());
    gateway.be_hostile(Some(seed));
    for step in 0..MOST_STEPS {
        world.happen(&stage, step).await?;
        world.report_addresses(&stage).await?;
        tokio::time::sleep(BETWEEN).await;
        if step + 1 >= STEPS && Turns::are_published(&stage, scene.kinds_with_events()).await? {
            break;
        }
    }
    stage.sim.heal();
    let drawn = gateway.be_hostile(None);
    ensure!(drawn > STEPS, "little was asked of the API server: {drawn}");
    // Some of Azure's refusals only a person ends, and an edit of the pool has them tried again.
    world.edit_pools(&stage).await?;
    until_well(&stage, &world, RECOVERY).await?;
    ensure!(world.has_met_attachments(&stage), "Azure was asked for nothing about public addresses");
    // Each leader may report of a pod what the one before has reported: it is recorded nowhere else.
    let (_, transitions) = stage.leader().await?;
    let leaders = 1 + usize::try_from(transitions.unwrap_or_default())?;
    // The watch here shows it a moment later.
    eventually("each Event was reported for a turn", MOMENT, || async {
        turns.audit(&stage, leaders, scene.kinds_with_events()).await?;
        Ok(Some(()))
    })
    .await
}

async fn until_well(stage: &Stage<'_>, world: &World, within: Duration) -> Result<()> {
    eventually("every node has what it wants and nothing else is held", within, || async {
        world.report_addresses(stage).await?;
        audit::audit(stage, world).await?;
        Ok(Some(()))
    })
    .await
}
