//! The node agents' side of the protocol without nodes: each takes up what its NodeIPAllocation offers, gives pods addresses,
//! and gives up what it is asked to, under its own identity.

use anyhow::Result;
use futures::StreamExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use vnetpool_crds::{NodeIPAllocation, names};

/// All agents. Ends with the runtime.
#[derive(Clone, Default)]
pub struct Agents {
    nodes: Arc<Mutex<BTreeMap<String, Agent>>>,
    news: Arc<Notify>,
}

struct Agent {
    client: Client,
    boot: String,
    /// How many pods there are to serve.
    pods: usize,
    /// Names of ipConfigurations that pods have.
    assigned: BTreeSet<String>,
    relinquished: BTreeSet<String>,
    reported: Option<(String, Value)>,
}

impl Agents {
    /// `client` only watches.
    pub fn start(client: Client) -> Agents {
        let agents = Agents::default();
        tokio::spawn(agents.clone().work(client));
        agents
    }

    /// An agent that has just started on a node, with an empty ledger.
    pub fn join(&self, node: &str, boot: &str, client: Client) {
        let pods = self.lock().get(node).map_or(0, |agent| agent.pods);
        let (assigned, relinquished) = Default::default();
        let agent = Agent { client, boot: boot.into(), pods, assigned, relinquished, reported: None };
        self.lock().insert(node.into(), agent);
        self.news.notify_one();
    }

    /// From now on the node has so many pods.
    pub fn serve(&self, node: &str, pods: usize) {
        self.change(node, |agent| agent.pods = pods);
    }

    fn change(&self, node: &str, change: impl FnOnce(&mut Agent)) {
        if let Some(agent) = self.lock().get_mut(node) {
            change(agent);
        }
        self.news.notify_one();
    }

    async fn work(self, client: Client) {
        let mut objects = BTreeMap::new();
        let mut events = watcher(Api::<NodeIPAllocation>::all(client), watcher::Config::default()).boxed();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Apply(object) | Event::InitApply(object))) => drop(objects.insert(object.name_any(), object)),
                    Some(Ok(Event::Delete(object))) => drop(objects.remove(&object.name_any())),
                    Some(Ok(Event::Init | Event::InitDone) | Err(_)) => {}
                    None => return,
                },
                () = self.news.notified() => {}
            }
            for (name, object) in &objects {
                if let Some((client, status)) = self.report(name, object)
                    && publish(client, object, &status).await.is_err()
                {
                    // The object is gone or another by now: the watch tells.
                    self.change(name, |agent| agent.reported = None);
                }
            }
        }
    }

    /// What the agent has to say about this version of its object, if it is news.
    fn report(&self, name: &str, object: &NodeIPAllocation) -> Option<(Client, Value)> {
        let mut nodes = self.lock();
        let agent = nodes.get_mut(name)?;
        let news = Some((object.uid().unwrap_or_default(), agent.take_up(object)?));
        if agent.reported == news {
            return None;
        }
        agent.reported = news;
        agent.reported.clone().map(|(_, status)| (agent.client.clone(), status))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Agent>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    /// None: the object isn't for this boot yet.
    fn take_up(&mut self, object: &NodeIPAllocation) -> Option<Value> {
        if object.spec.boot_id != self.boot {
            return None;
        }
        let names: BTreeSet<String> = object.spec.ip_configurations().map(|one| one.name.clone()).collect();
        self.assigned.retain(|name| names.contains(name));
        self.relinquished.retain(|name| names.contains(name));
        while self.assigned.len() > self.pods {
            self.assigned.pop_last();
        }
        let mut free: BTreeSet<String> = &(&names - &self.assigned) - &self.relinquished;
        while self.assigned.len() < self.pods {
            let Some(name) = free.pop_first() else { break };
            self.assigned.insert(name);
        }
        while self.assigned.len() + free.len() > object.spec.target as usize {
            let Some(name) = free.pop_last() else { break };
            self.relinquished.insert(name);
        }
        Some(json!({
            "observedGeneration": object.metadata.generation,
            "bootID": self.boot,
            "held": self.assigned.len() + free.len(),
            "assigned": self.assigned.len(),
            "free": free.len(),
            "cooling": 0,
            "waiting": self.pods - self.assigned.len(),
            "relinquished": self.relinquished,
        }))
    }
}

async fn publish(client: Client, object: &NodeIPAllocation, status: &Value) -> Result<()> {
    let patch = Patch::Apply(json!({
        "apiVersion": NodeIPAllocation::api_version(&()),
        "kind": NodeIPAllocation::kind(&()),
        "metadata": { "uid": object.uid() },
        "status": status,
    }));
    let api = Api::<NodeIPAllocation>::all(client);
    api.patch_status(&object.name_any(), &PatchParams::apply(names::AGENT).force(), &patch).await?;
    Ok(())
}
