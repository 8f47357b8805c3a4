//! Watches in the middle of a leadership that a proxy takes and passes nothing of, while their connections
//! live and everything else is answered. Takes minutes, so only nightly.

use crate::Test;
use crate::gateway::Gateway;
use crate::stage::{Stage, quick};
use anyhow::{Result, ensure};
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher;
use serde_json::json;
use std::time::{Duration, Instant};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_tests::control_plane::{ControlPlane, User};
use vnetpool_tests::{eventually, throughout};

pub const TESTS: &[Test] = crate::tests![
    a_leader_whose_watches_fall_silent_serves_again_once_bookmarks_are_lacking_and_else_begins_none_anew,
];

/// No test here takes longer on a machine that does nothing else.
pub const LONGEST: Duration = Duration::from_secs(420);
/// Longer than a watch may be silent.
const QUIET: Duration = Duration::from_secs(150);
/// Promised: two bookmarks are lacking after 125 s. A backoff and a write come after that.
const SERVED: Duration = Duration::from_secs(140);

async fn a_leader_whose_watches_fall_silent_serves_again_once_bookmarks_are_lacking_and_else_begins_none_anew(
    plane: &ControlPlane,
) -> Result<()> {
    let mut stage = Stage::empty(plane, quick()).await?;
    let gateway = Gateway::start(plane, User::Operator).await?;
    let url: axum::http::Uri = format!("http://{}", gateway.address).parse()?;
    stage.api_server_at(url.clone());
    stage.pool("default", json!({ "sizing": { "minimum": 2, "warm": 0, "batch": 1 } })).await?;
    stage.start().await?;
    stage.node("n1", None).await?;
    stage.until_holds("n1", 2).await?;
    // And one of a single object, as each agent has it.
    let client = vnetpool_apiserver::client::client(kube::Config::new(url))?;
    let agents = tokio::spawn(async move {
        let object = watcher::watch_object(Api::<NodeIPAllocation>::all(client), "n1");
        object.for_each(|_| std::future::ready(())).await;
    });
    eventually("all watches are there", QUIET, || async {
        ensure!(gateway.watches() == 5, "{} are", gateway.watches());
        Ok(Some(()))
    })
    .await?;
    throughout("quiet watches go on", QUIET, async || {
        ensure!(gateway.watches() == 5, "{} watches were begun", gateway.watches() - 5);
        Ok(())
    })
    .await?;
    agents.abort();

    let before = stage.leader().await?;
    gateway.silence_present_watches();
    let begun = Instant::now();
    stage.bind("n1", 4).await?;
    stage.node("n2", None).await?;
    eventually("both nodes are served", SERVED, || async {
        let held = ["n1", "n2"].map(|node| stage.held(node).len());
        ensure!(held == [4, 2], "{held:?}");
        Ok(Some(()))
    })
    .await?;
    eprintln!("full service after {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(stage.leader().await? == before, "the leader has changed");
    Ok(())
}
