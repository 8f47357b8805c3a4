//! A proxy in the cluster that connects to pods at their own addresses, as ingress controllers do: HAProxy,
//! which learns them from CoreDNS.

use crate::{SERVED, SOON, World};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use vnetpool_tests::eventually;
use vnetpool_tests::place::Place;
use vnetpool_tests::workload::{PORT, ProbePod};

/// A pod's view of a request that came through a proxy.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Forwarded {
    pub source: String,
    pub local: String,
    /// `X-Forwarded-For`.
    #[serde(default)]
    pub forwarded_for: String,
}

/// Requests a probe's page.
pub async fn called(from: &Place, url: &str) -> Result<Forwarded> {
    let answer = from.run("curl", &["-sS", "--max-time", "3", url]).await?;
    serde_json::from_str(&answer).with_context(|| format!("{url} answered {answer:?}"))
}

/// Waits until requests to the ingress come to each of these pods and to no other, each from the ingress and
/// in the VM's name.
async fn until_reached(world: &World, ingress: &ProbePod, pods: &[ProbePod]) -> Result<()> {
    let url = format!("http://{}:{SERVED}/whoami", ingress.address);
    let wanted: BTreeSet<_> = pods.iter().map(|pod| pod.address.to_string()).collect();
    eventually(&format!("{wanted:?} reached through the ingress"), 2 * SOON, || async {
        let mut reached = BTreeSet::new();
        for _ in 0..4 * wanted.len() {
            let Forwarded { source, local, forwarded_for } = called(&world.vm, &url).await?;
            ensure!(source == ingress.address.to_string(), "the pod is called by {source}");
            ensure!(forwarded_for == world.vm.address, "the pod is called in the name of {forwarded_for}");
            reached.insert(local);
        }
        ensure!(reached == wanted, "it reaches {reached:?}");
        Ok(Some(()))
    })
    .await
}

/// Brings the ingress and one pod for it to reach, and waits until it does.
pub async fn bring_ingress(world: &World) -> Result<ProbePod> {
    let cluster = &world.cluster;
    cluster.load("haproxy").await?;
    let named = json!([{ "name": "http", "port": PORT, "targetPort": PORT }]);
    world.serve("shop", "shop", json!({ "clusterIP": "None", "ports": named })).await?;
    cluster.deploy("shop", 1, None).await?;
    let first = cluster.running("shop", 1, SOON).await?;
    cluster.apply(include_str!("ingress.yaml")).await?;
    let ingress = cluster.running("ingress", 1, SOON).await?.pop().context("no ingress")?;
    until_reached(world, &ingress, &first).await?;
    Ok(ingress)
}

/// Pods that come are used, pods that go aren't.
pub async fn follows(world: &World, ingress: &ProbePod) -> Result<()> {
    for pods in [3, 1] {
        world.cluster.scale("shop", pods).await?;
        until_reached(world, ingress, &world.cluster.running("shop", pods as usize, SOON).await?).await?;
    }
    Ok(())
}

pub async fn take_ingress_away(world: &World) -> Result<()> {
    for name in ["ingress", "shop"] {
        world.cluster.undeploy(name).await?;
    }
    world.cluster.kubectl(&["delete", "configmap", "ingress"]).await?;
    world.unserve("shop").await
}

pub async fn an_ingress_calls_pods_at_their_own_addresses_and_follows_them(world: &World) -> Result<()> {
    let ingress = bring_ingress(world).await?;
    follows(world, &ingress).await?;
    take_ingress_away(world).await
}
