//! What goes on all the while: a connection, pods that come and go, and an auditor.

use crate::world::{LABEL, NODES, STARTED, World};
use anyhow::{Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use vnetpool_tests::audit::excuses::Excuses;
use vnetpool_tests::audit::observer::Observer;
use vnetpool_tests::eventually;
use vnetpool_tests::workload::{PORT, ProbePod, container};

/// Between two observations of the auditor.
const BETWEEN: Duration = Duration::from_secs(2);

/// Does `work` while pods come and go on all nodes, each of which has to start, and no address is doubled.
pub async fn during(world: &World, work: impl Future<Output = Result<()>>) -> Result<()> {
    let is_over = Cell::new(false);
    let work = async {
        work.await?;
        is_over.set(true);
        anyhow::Ok(())
    };
    let churns = try_join_all(NODES.map(|node| churn(world, node, &is_over)));
    let (started, (), ()) = tokio::try_join!(churns, work, audit(world, &is_over))?;
    let pods: usize = started.iter().map(|(count, _)| count).sum();
    let longest = started.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    println!("{pods} pods started, within {:.1} s each; {}", longest.as_secs_f64(), world.connection.sum());
    world.connection.goes_on()
}

/// Starts one pod after the other on a node, and at least one: how many, and how long one took at most.
async fn churn(world: &World, node: &str, is_over: &Cell<bool>) -> Result<(usize, Duration)> {
    let api: Api<Pod> = Api::namespaced(world.cluster.client.clone(), "default");
    let (mut count, mut longest) = (0, Duration::ZERO);
    while count == 0 || !is_over.get() {
        let name = format!("churn-{}", world.number());
        let made = Instant::now();
        api.create(&PostParams::default(), &serde_json::from_value(pod(&name, node))?).await?;
        eventually(&format!("{name} runs on {node}"), STARTED, || async {
            Ok(ProbePod::of(&api.get(&name).await?))
        })
        .await?;
        (count, longest) = (count + 1, longest.max(made.elapsed()));
        api.delete(&name, &DeleteParams::default().grace_period(1)).await?;
        eventually(&format!("{name} gone from {node}"), STARTED, || async {
            Ok(api.get_opt(&name).await?.is_none().then_some(()))
        })
        .await?;
    }
    Ok((count, longest))
}

fn pod(name: &str, node: &str) -> serde_json::Value {
    json!({
        "metadata": { "name": name, "labels": { LABEL: "churn" } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [container(PORT)],
        },
    })
}

/// Observes again and again, until all could be read once at least. Places that are read one after the other
/// may change in between: only what two observations show, one after the other, is a violation.
async fn audit(world: &World, is_over: &Cell<bool>) -> Result<()> {
    let (observer, excuses) = (Observer::of(&world.cluster, LABEL), Excuses::default());
    let (mut suspected, mut whole) = (BTreeSet::new(), 0);
    while whole == 0 || !is_over.get() {
        let seen = observer.observe().await?;
        whole += usize::from(seen.unread().is_empty());
        let found = seen.found(&excuses).violations;
        let doubled: Vec<_> = found.intersection(&suspected).collect();
        ensure!(doubled.is_empty(), "{doubled:?}");
        suspected = found;
        world.connection.goes_on()?;
        sleep(BETWEEN).await;
    }
    Ok(())
}
