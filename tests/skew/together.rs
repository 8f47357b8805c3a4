//! Each mixture of the two releases serves: addresses come and go with pods, whoever is of which.

use crate::marks;
use crate::traffic::during;
use crate::world::{Later, NODES, SETTLED, SIZING, World};
use anyhow::{Context, Result, ensure};
use vnetpool_tests::later::NAME;
use vnetpool_tests::snippets;

/// The node whose addresses grow and shrink.
const NODE: &str = "node-3";
/// More pods than a node holds addresses for as long as it has few.
const MORE: u32 = 12;

/// As the documents have it typed, by the later release's chart; the commands of a rollback need none.
pub async fn an_upgrade_to_the_later_release_and_a_rollback_go_unnoticed(world: &World) -> Result<()> {
    world.run(Later::NONE).await?;
    let snippets = snippets::of("upgrade")?;
    ensure!(snippets.len() == 2, "{snippets:?}");
    let source = format!("cd '{}'", world.later.folder().display());
    let sides = [(source.as_str(), Later::ALL), ("", Later::NONE)];
    for (snippet, (before, later)) in snippets.iter().zip(sides) {
        during(world, async {
            world.cluster.type_in(snippet, &[("VERSION", "later")], before).await?;
            world.rolled_out().await?;
            serve(world, later).await
        })
        .await
        .with_context(|| snippet.place.clone())?;
        world.agree().await?;
    }
    Ok(())
}

pub async fn later_agents_go_on_with_our_operator(world: &World) -> Result<()> {
    go_on(world, Later { operator: false, ..Later::ALL }).await
}

pub async fn a_later_operator_goes_on_with_our_agents(world: &World) -> Result<()> {
    go_on(world, Later { operator: true, ..Later::NONE }).await
}

/// As it is between an agent's start and its first inspection, after a rollback.
pub async fn a_later_plugin_goes_on_under_our_agent(world: &World) -> Result<()> {
    go_on(world, Later { plugin: true, ..Later::NONE }).await
}

/// The same after an upgrade.
pub async fn our_plugin_goes_on_under_a_later_agent(world: &World) -> Result<()> {
    go_on(world, Later { plugin: false, ..Later::ALL }).await
}

/// From whatever mixture the chapter before has left.
async fn go_on(world: &World, later: Later) -> Result<()> {
    during(world, async {
        world.run(later).await?;
        serve(world, later).await
    })
    .await?;
    world.agree().await
}

/// The programs are of these releases. A node gets addresses for its pods, by all three of them, and gives
/// them back; kubectl's plugin, which is ours, understands its agent.
async fn serve(world: &World, later: Later) -> Result<()> {
    let cluster = &world.cluster;
    for node in NODES {
        marks::installed(world, node, later.agent).await?;
    }
    let before = world.reserved(NODE).await?;
    cluster.deploy("more", MORE, Some(NODE)).await?;
    let pods = cluster.running("more", MORE as usize, SETTLED).await?;
    cluster.addresses_are_held(&pods).await?;
    marks::started(world, &pods, later).await?;
    marks::written(world, NODE, later).await?;
    let mut new = world.reserved(NODE).await?;
    new.retain(|name| !before.contains(name));
    let are_so = new.iter().all(|name| name.starts_with(NAME) == later.operator);
    ensure!(!new.is_empty() && are_so, "{later:?}, and new ipConfigurations are {new:?}");
    let pod = pods.first().context("no pod")?;
    let (_, printed) = cluster.vnetpool(&["who", &pod.address.to_string()]).await?;
    ensure!(printed.contains(&pod.name), "{printed}");
    cluster.undeploy("more").await?;
    cluster.settled(SIZING.minimum, SETTLED).await
}
