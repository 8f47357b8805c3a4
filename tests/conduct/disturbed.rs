//! An API server that doesn't answer, stops in the middle or hangs up: the operator serves nodes again within
//! a stated time.

use crate::Test;
use crate::proxy::{Fault, Proxy};
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::eventually;

pub const TESTS: &[Test] = crate::tests![
    answers_that_never_come_hold_a_node_up_no_longer_than_a_request_may_take,
    a_list_that_stops_in_the_middle_holds_the_operator_up_no_longer_than_a_request_may_take,
    watches_that_are_cut_cost_a_moment,
];

/// A lost answer: the time a request may take, and the wait before it is made again.
const LOST: Duration = Duration::from_secs(30);
/// Connections that stall: each that was opened meanwhile may cost a request, one after the other.
const STALLED: Duration = Duration::from_secs(60);
/// As the watches' backoff has it at first, and a write of Azure's.
const MOMENT: Duration = Duration::from_secs(10);

/// A cluster whose operator reaches its API server through a proxy, and a node that holds two addresses.
async fn set(plane: &ControlPlane) -> Result<(Stage<'_>, Proxy)> {
    let mut stage = Stage::empty(plane, quick()).await?;
    let url = plane.config(User::Administrator).await?.cluster_url;
    let server = url.authority().context("no address")?.as_str().parse()?;
    let proxy = Proxy::start(server).await?;
    stage.api_server_at(proxy.address);
    stage.pool("default", sizing()).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    Ok((stage, proxy))
}

fn sizing() -> Value {
    json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })
}

/// Waits until the node holds so many addresses; gives how long that took.
async fn served_within(stage: &Stage<'_>, count: usize, within: Duration) -> Result<()> {
    let begun = Instant::now();
    eventually(&format!("n1 is offered {count}"), within, || async {
        let offered = stage.allocation("n1").await?.spec.addresses() as usize;
        ensure!(offered == count, "{offered} are offered");
        Ok(Some(()))
    })
    .await?;
    eprintln!("full service after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

async fn answers_that_never_come_hold_a_node_up_no_longer_than_a_request_may_take(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, proxy) = set(plane).await?;
    proxy.fault(Fault::LoseAnswers);
    stage.bind("n1", 4).await?;
    // One may be the Lease's renewal; so long a loss that costs the Lease is another matter.
    eventually("two requests were taken", Duration::from_secs(8), || async {
        Ok((proxy.met() >= 2).then_some(()))
    })
    .await?;
    proxy.fault(Fault::None);
    served_within(&stage, 4, LOST).await?;
    stage.until_holds("n1", 4).await
}

async fn a_list_that_stops_in_the_middle_holds_the_operator_up_no_longer_than_a_request_may_take(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, proxy) = set(plane).await?;
    stage.kill().await?;
    stage.bind("n1", 4).await?;
    // More than a handshake and less than the list of pods.
    proxy.fault(Fault::StallAfter(6000));
    stage.start().await?;
    eventually("connections stall", Duration::from_secs(20), || async {
        Ok((proxy.met() >= 2).then_some(()))
    })
    .await?;
    proxy.fault(Fault::None);
    served_within(&stage, 4, STALLED).await
}

async fn watches_that_are_cut_cost_a_moment(plane: &ControlPlane) -> Result<()> {
    let (stage, proxy) = set(plane).await?;
    proxy.fault(Fault::Cut);
    eventually("connections end", Duration::from_secs(5), || async { Ok((proxy.met() >= 4).then_some(())) })
        .await?;
    proxy.fault(Fault::None);
    stage.bind("n1", 4).await?;
    served_within(&stage, 4, MOMENT).await
}
