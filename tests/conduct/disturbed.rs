//! An API server that doesn't answer, stops in the middle or hangs up: the operator serves nodes again within
//! a stated time.

use crate::Test;
use crate::gateway::{Gateway, Trouble};
use crate::metrics::Metrics;
use crate::proxy::{Fault, Proxy};
use crate::stage::{Stage, quick};
use anyhow::{Context, Result, bail, ensure};
use axum::http::StatusCode;
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vnetpool_azure_sim::Effect;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::{eventually, throughout};

pub const TESTS: &[Test] = crate::tests![
    answers_that_never_come_hold_a_node_up_no_longer_than_a_request_may_take,
    watches_that_are_cut_cost_a_moment,
    errors_of_the_api_server_cost_no_more_than_their_backoff,
    an_api_server_that_is_busy_is_asked_again_at_its_retry_time,
    lists_and_watches_that_are_refused_cost_no_more_than_their_backoff,
    watches_whose_version_is_too_old_are_listed_anew,
    a_turn_of_conditions_is_reported_once_though_the_answer_to_their_write_is_lost,
];

pub const LONG: &[Test] = crate::tests![
    a_list_that_stops_in_the_middle_holds_the_operator_up_no_longer_than_a_request_may_take,
    one_of_two_api_servers_that_dies_without_a_word_is_missed_for_less_than_a_minute,
    an_outage_of_the_api_server_ends_a_leadership_and_restarts_nothing,
];

/// Promised, as [`STALLED`] and [`DEAD`] are. A lost answer: the time a request may take, and the wait before
/// it is made again.
const LOST: Duration = Duration::from_secs(30);
/// Connections that stall: each that was opened meanwhile may cost a request, one after the other, or silence
/// a watch later, which a new leader finds out after 25 s.
const STALLED: Duration = Duration::from_secs(90);
/// A connection that is quiet is found dead after 20 s, a request on it after 15 s, and each may cost two
/// tries.
const DEAD: Duration = Duration::from_secs(60);
/// A Lease that its last holder couldn't renew is free after 15 s, asked for every 5 s; caches are listed
/// anew within that time.
const OUTAGE: Duration = Duration::from_secs(30);
/// Three waits that double from two seconds on.
const ERRORS: Duration = Duration::from_secs(20);
/// Three times what the answer asks for.
const BUSY: Duration = Duration::from_secs(12);
/// So many kinds does an operator watch.
const KINDS: usize = 4;
/// As the watches' backoff has it at first, and a write of Azure's.
const MOMENT: Duration = Duration::from_secs(10);

/// A cluster whose operator reaches its API server through a proxy, and a node that holds two addresses.
async fn set(plane: &ControlPlane) -> Result<(Stage<'_>, Proxy)> {
    let mut stage = Stage::empty(plane, quick()).await?;
    let url = plane.config(User::Administrator).await?.cluster_url;
    let server = url.authority().context("no address")?.as_str().parse()?;
    let proxy = Proxy::start(server)?;
    stage.api_server_at(format!("https://{}", proxy.address).parse()?);
    serve(&stage).await?;
    Ok((stage, proxy))
}

/// The same through a gateway, with a proxy before it.
async fn set_gateway(plane: &ControlPlane) -> Result<(Stage<'_>, Proxy, Gateway)> {
    let mut stage = Stage::empty(plane, quick()).await?;
    let gateway = Gateway::start(plane, User::Operator).await?;
    let proxy = Proxy::start(gateway.address)?;
    stage.api_server_at(format!("http://{}", proxy.address).parse()?);
    serve(&stage).await?;
    Ok((stage, proxy, gateway))
}

async fn serve(stage: &Stage<'_>) -> Result<()> {
    stage.pool("default", sizing()).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await
}

fn sizing() -> Value {
    json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })
}

/// Ends every connection.
async fn cut(proxy: &Proxy) -> Result<()> {
    let before = proxy.met();
    proxy.fault(Fault::Cut);
    eventually("connections end", Duration::from_secs(5), || async {
        Ok((proxy.met() >= before + 4).then_some(()))
    })
    .await?;
    proxy.fault(Fault::None);
    Ok(())
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
    cut(&proxy).await?;
    stage.bind("n1", 4).await?;
    served_within(&stage, 4, MOMENT).await
}

async fn an_outage_of_the_api_server_ends_a_leadership_and_restarts_nothing(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, proxy) = set(plane).await?;
    let is_well = async || {
        if let Some(why) = stage.ended() {
            bail!("it has ended: {why}");
        }
        let answer = reqwest::get(format!("http://{}/healthz", stage.admin)).await?;
        ensure!(answer.status().is_success(), "{}: {}", answer.status(), answer.text().await?);
        Ok(())
    };
    proxy.fault(Fault::Cut);
    stage.bind("n1", 4).await?;
    Metrics::until_standby(&stage).await?;
    throughout("it is well", Duration::from_secs(10), is_well).await?;
    proxy.fault(Fault::None);
    served_within(&stage, 4, OUTAGE).await?;
    is_well().await
}

async fn one_of_two_api_servers_that_dies_without_a_word_is_missed_for_less_than_a_minute(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, proxy) = set(plane).await?;
    // Much at once leaves many connections open, and each of them is dead afterwards.
    let others = ["n2", "n3", "n4", "n5", "n6", "n7", "n8"];
    try_join_all(others.iter().map(|node| stage.node(node, None))).await?;
    try_join_all(others.iter().map(|node| stage.until_holds(node, 2))).await?;
    let before = stage.leader().await?;
    proxy.fault(Fault::Die);
    eventually("connections are dead", Duration::from_secs(5), || async {
        Ok((proxy.met() >= 8).then_some(()))
    })
    .await?;
    proxy.fault(Fault::None);
    stage.bind("n1", 4).await?;
    served_within(&stage, 4, DEAD).await?;
    ensure!(stage.leader().await? == before, "the leader has changed");
    Ok(())
}

async fn errors_of_the_api_server_cost_no_more_than_their_backoff(plane: &ControlPlane) -> Result<()> {
    refused(plane, Trouble::Refuse(StatusCode::INTERNAL_SERVER_ERROR, None), ERRORS).await
}

async fn an_api_server_that_is_busy_is_asked_again_at_its_retry_time(plane: &ControlPlane) -> Result<()> {
    refused(plane, Trouble::Refuse(StatusCode::TOO_MANY_REQUESTS, Some(2)), BUSY).await
}

/// Three writes meet this trouble, and the node is served all the same, by the same leader.
async fn refused(plane: &ControlPlane, trouble: Trouble, within: Duration) -> Result<()> {
    let (stage, _proxy, gateway) = set_gateway(plane).await?;
    let before = stage.leader().await?;
    gateway.trouble(trouble, 3);
    stage.bind("n1", 4).await?;
    served_within(&stage, 4, within).await?;
    ensure!(gateway.left() == 0, "{} writes haven't met it", gateway.left());
    ensure!(stage.leader().await? == before, "the leader has changed");
    Ok(())
}

async fn lists_and_watches_that_are_refused_cost_no_more_than_their_backoff(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, proxy, gateway) = set_gateway(plane).await?;
    let unavailable = Trouble::RefuseToShow(StatusCode::SERVICE_UNAVAILABLE);
    // Each of four watches twice, on average.
    gateway.trouble(unavailable, 8);
    cut(&proxy).await?;
    stage.bind("n1", 4).await?;
    served_within(&stage, 4, ERRORS).await?;
    until_refused(&gateway).await?;
    // An operator that starts lists first.
    gateway.trouble(unavailable, 8);
    stage.kill().await?;
    stage.start().await?;
    stage.bind("n1", 2).await?;
    served_within(&stage, 6, ERRORS).await?;
    until_refused(&gateway).await
}

async fn until_refused(gateway: &Gateway) -> Result<()> {
    eventually("all were refused", ERRORS, || async {
        ensure!(gateway.left() == 0, "{} weren't", gateway.left());
        Ok(Some(()))
    })
    .await
}

async fn watches_whose_version_is_too_old_are_listed_anew(plane: &ControlPlane) -> Result<()> {
    let (stage, proxy, gateway) = set_gateway(plane).await?;
    let before = stage.leader().await?;
    gateway.trouble(Trouble::Expire, KINDS);
    cut(&proxy).await?;
    stage.bind("n1", 4).await?;
    served_within(&stage, 4, MOMENT).await?;
    // The back-off of a watch that was cut before goes on.
    eventually("every watch has met it and was listed", Duration::from_secs(40), || async {
        ensure!(gateway.left() == 0, "{} of {KINDS} haven't", gateway.left());
        Ok(Some(()))
    })
    .await?;
    ensure!(stage.leader().await? == before, "the leader has changed");
    Ok(())
}

async fn a_turn_of_conditions_is_reported_once_though_the_answer_to_their_write_is_lost(
    plane: &ControlPlane,
) -> Result<()> {
    let (stage, _proxy, gateway) = set_gateway(plane).await?;
    let body = json!({ "error": { "code": "OutOfTheOrdinary", "message": "not today" } });
    let refusal = Effect::Status { status: 400, body, headers: Default::default() };
    let fault = stage.fault("PUT", "/n1-nic", None, refusal);
    gateway.lose_answers(r#""reason":"AzureRefused""#, 1);
    stage.bind("n1", 4).await?;
    let on_both = ["Node", "NodeIPAllocation"];
    stage.until_reported("n1", "AzureRefused", &on_both).await?;
    ensure!(gateway.losing() == 0, "no answer was lost");
    stage.sim.lift_fault(fault)?;
    // The pool's own conditions, and an edit that has Azure asked again.
    gateway.lose_answers(r#""reason":"NodesLeave""#, 1);
    let mut elsewhere = sizing();
    elsewhere["nodeSelector"] = json!({ "matchLabels": { "there": "no" } });
    stage.pool("default", elsewhere).await?;
    stage.until_reported("default", "NodesLeave", &["NodeIPPool"]).await?;
    ensure!(gateway.losing() == 0, "no answer was lost");
    stage.pool("default", sizing()).await?;
    stage.until_holds("n1", 4).await?;
    stage.until_reported("default", "NodesLeave", &["NodeIPPool"]).await?;
    stage.until_reported("n1", "AzureRefused", &on_both).await
}
