//! What a test waits for: states of objects, of Azure's faults, and Events.

use super::{PATIENCE, POOLS_PATIENCE, Stage, find};
use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use vnetpool_crds::condition::{self, Type};
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_tests::eventually;
use vnetpool_tests::wait::Limit;

impl Stage<'_> {
    /// Waits until a node's NodeIPAllocation shows the wanted state, and returns it.
    pub async fn until<T>(
        &self,
        what: &str,
        node: &str,
        shows: impl Fn(&NodeIPAllocation) -> Option<T>,
    ) -> Result<T> {
        let mut limit = Limit::new(PATIENCE);
        loop {
            let seen = self.allocation(node).await;
            if let Some(shown) = seen.as_ref().ok().and_then(&shows) {
                return Ok(shown);
            }
            if let Some(why) = self.ended() {
                bail!("{what}: the operator has ended by itself: {why}");
            }
            if limit.is_over() {
                let seen = seen.map_or_else(
                    |error| error.to_string(),
                    |seen| json!({ "spec": seen.spec, "status": seen.status }).to_string(),
                );
                bail!("{what}: not within {} s; {node} shows {seen}", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a condition of the operator's has this reason, and gives it.
    pub async fn until_condition(&self, node: &str, type_: Type, reason: &str) -> Result<Condition> {
        let with_reason = |seen: &NodeIPAllocation| find(seen, type_).filter(|one| one.reason == reason);
        self.until(&format!("{type_} is {reason}"), node, with_reason).await
    }

    /// Waits until a node's NIC and its `spec` hold the same so many addresses, and no write is under way.
    pub async fn until_holds(&self, node: &str, count: usize) -> Result<()> {
        let what = format!("{node} holds {count} on its NIC ({}) and in spec", json!(self.held(node)));
        let held = |seen: &NodeIPAllocation| {
            let shown: BTreeSet<_> = seen.spec.ip_configurations().map(|one| one.name.clone()).collect();
            let settled = find(seen, condition::WRITING).is_some_and(|one| one.status == "False");
            (settled && shown.len() == count && shown == self.held(node)).then_some(())
        };
        self.until(&what, node, held).await
    }

    /// How many addresses, counting those of blocks, `spec` offers.
    pub async fn until_offers(&self, node: &str, count: u32) -> Result<NodeIPAllocation> {
        self.until(&format!("{node} is offered {count} addresses"), node, |seen| {
            (seen.spec.addresses() == count).then(|| seen.clone())
        })
        .await
    }

    /// Waits until so many pods of a node have addresses.
    pub async fn until_assigned(&self, node: &str, pods: u32) -> Result<()> {
        self.until(&format!("{pods} pods have addresses"), node, |seen| {
            (seen.status.as_ref()?.assigned == pods).then_some(())
        })
        .await
    }

    /// Waits until a pool shows the wanted state, and returns it.
    pub async fn until_pool<T>(
        &self,
        what: &str,
        name: &str,
        shows: impl Fn(&NodeIPPool) -> Option<T>,
    ) -> Result<T> {
        eventually(what, POOLS_PATIENCE, || async {
            let seen = self.node_pool(name).await?;
            shows(&seen).map(Some).with_context(|| json!(seen.status).to_string())
        })
        .await
    }

    /// Waits until a node's NodeIPAllocation is gone.
    pub async fn until_gone(&self, node: &str) -> Result<()> {
        let api = Api::<NodeIPAllocation>::all(self.client.clone());
        eventually(&format!("{node} is gone"), PATIENCE, || async {
            match api.get_opt(node).await? {
                Some(seen) => bail!("it is there: {:?}", seen.status),
                None => Ok(Some(())),
            }
        })
        .await
    }

    /// Waits until a fault has struck so many times.
    pub async fn until_struck(&self, fault: u64, times: u64) -> Result<()> {
        eventually(&format!("the fault strikes {times} times"), PATIENCE, || async {
            let hits = self.sim.faults().iter().find(|one| one.id == fault).map(|one| one.hits);
            ensure!(hits >= Some(times), "{hits:?}");
            Ok(Some(()))
        })
        .await
    }

    /// Waits until Events with this reason are there about a node and its NodeIPAllocation, or a pod: about
    /// objects of these kinds, in the order of their names, and each published once. Events are written
    /// beside the work, so they can't be found at once.
    pub async fn until_reported(&self, node: &str, reason: &str, kinds: &[&str]) -> Result<()> {
        let events = self.until_events(node, reason, kinds.len()).await?;
        let once: Vec<_> = kinds.iter().map(|kind| ((*kind).to_owned(), 1)).collect();
        ensure!(events == once, "{reason} of {node}: {events:?}");
        Ok(())
    }

    /// Waits until so many Events at least have this reason, and gives them.
    pub async fn until_events(&self, node: &str, reason: &str, count: usize) -> Result<Vec<(String, i32)>> {
        eventually(&format!("{count} Events {reason} about {node}"), PATIENCE, || async {
            let mut events = self.events(node, reason).await?;
            ensure!(events.len() >= count, "there are {events:?}");
            events.sort();
            Ok(Some(events))
        })
        .await
    }

    /// The Events about a node or its NodeIPAllocation with this reason, with how often each was published.
    pub async fn events(&self, node: &str, reason: &str) -> Result<Vec<(String, i32)>> {
        let events = Api::<Event>::all(self.client.clone()).list(&ListParams::default()).await?;
        let about = events.into_iter().filter(|event| {
            event.involved_object.name.as_deref() == Some(node) && event.reason.as_deref() == Some(reason)
        });
        let times = |event: &Event| event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
        Ok(about
            .map(|event| (event.involved_object.kind.clone().unwrap_or_default(), times(&event)))
            .collect())
    }
}
