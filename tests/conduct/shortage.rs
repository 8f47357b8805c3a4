//! A subnet that runs out of addresses: what each of its nodes does, and who gets what comes free.

use crate::Test;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use serde_json::json;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::condition::RESERVED;
use vnetpool_tests::control_plane::ControlPlane;

pub const TESTS: &[Test] = crate::tests![
    a_full_subnet_slows_all_its_nodes_at_once_and_shares_what_comes_free_by_need,
    a_full_subnet_is_probed_by_one_node_after_a_restart,
];

/// A /28 gives eleven addresses; three nodes take one each for themselves.
const SMALL: Option<&str> = Some("small");

/// Nodes a, b and c in the small subnet with 4, 3 and 1 addresses, all there are, where c has pods for four;
/// d elsewhere.
async fn full<'a>(plane: &'a ControlPlane) -> Result<Stage<'a>> {
    let sizing = json!({ "minimum": 0, "warm": 0, "batch": 1, "releaseAfter": "0s" });
    let stage = Stage::set(plane, quick(), json!({ "sizing": sizing })).await?;
    for (node, pods) in [("a", 4), ("b", 3)] {
        stage.node(node, SMALL).await?;
        stage.bind(node, pods).await?;
        stage.until_holds(node, pods).await?;
    }
    stage.node("d", None).await?;
    stage.node("c", SMALL).await?;
    stage.bind("c", 4).await?;
    stage.until_holds("c", 1).await?;
    stage.until_says("c", RESERVED, "SubnetFull").await?;
    Ok(stage)
}

async fn a_full_subnet_slows_all_its_nodes_at_once_and_shares_what_comes_free_by_need(
    plane: &ControlPlane,
) -> Result<()> {
    let stage = full(plane).await?;
    let asked: Vec<u16> = stage.writes("c").iter().map(|write| write.status).collect();
    ensure!(asked == [400, 400, 200], "four, two and one were asked for: {asked:?}");

    // a doesn't ask for what c was refused, and says so as c does; another subnet has nothing to do with it.
    let before = stage.writes("a").len();
    stage.bind("a", 2).await?;
    stage.bind("d", 3).await?;
    let says = stage.until_says("a", RESERVED, "SubnetFull").await?;
    ensure!(
        says.message.contains("small (10.240.16.0/28)") && says.message.contains("a-nic"),
        "{}",
        says.message
    );
    stage.until_holds("d", 3).await?;
    ensure!(stage.writes("a").len() == before, "asked all the same: {:?}", stage.writes("a"));

    // Releases go on. c, with 1 of 4, is in greater need than a, with 4 of 6.
    stage.unbind("b", 2).await?;
    stage.until_holds("c", 3).await?;
    stage.until_holds("b", 1).await?;
    ensure!(stage.held("a").len() == 4, "a was not in need first: {:?}", stage.held("a"));
    // Now a is.
    stage.unbind("b", 1).await?;
    stage.until_holds("a", 5).await?;
    ensure!(stage.held("c").len() == 3 && stage.held("b").is_empty(), "{:?}", stage.held("c"));
    let refused = |node: &str| stage.writes(node).iter().filter(|write| write.status == 400).count();
    ensure!((refused("a"), refused("b"), refused("c")) == (0, 0, 2), "asked for what isn't there");

    for node in ["a", "c"] {
        stage.until_told(node, "SubnetFull", &["Node", "NodeIPAllocation"]).await?;
    }
    // The end of it: the pods go, and nobody says anything of a full subnet any more.
    stage.unbind("a", 3).await?;
    stage.until_holds("c", 4).await?;
    stage.until_says("c", RESERVED, "Reserved").await?;
    stage.until_says("a", RESERVED, "Reserved").await?;
    Ok(())
}

async fn a_full_subnet_is_probed_by_one_node_after_a_restart(plane: &ControlPlane) -> Result<()> {
    let stage = full(plane).await?;
    stage.bind("a", 2).await?;
    stage.bind("b", 2).await?;
    for node in ["a", "b"] {
        stage.until_says(node, RESERVED, "SubnetFull").await?;
    }
    stage.kill().await?;
    stage.sim.clear_log();
    stage.start().await?;
    // Every node has been looked at when each has seen another pod come.
    for node in ["a", "b", "c"] {
        stage.bind(node, 1).await?;
    }
    for (node, wanted) in [("a", 7), ("b", 6), ("c", 5)] {
        let seen = |seen: &NodeIPAllocation| (seen.spec.target == wanted).then_some(());
        stage.until("the new pod is seen", node, seen).await?;
    }
    let writes = || ["a", "b", "c"].iter().map(|node| stage.writes(node).len()).sum::<usize>();
    stage.until("one of them asks", "a", |_| (writes() > 0).then_some(())).await?;
    // Another subnet's node goes through all that they would go through.
    stage.bind("d", 1).await?;
    stage.until_holds("d", 1).await?;
    ensure!(writes() == 1, "{} writes for addresses that aren't there", writes());
    Ok(())
}
