//! Where a node learns which addresses it holds, and where it reports: its NodeIPAllocation in a cluster, or,
//! on a VM of no cluster, the instance metadata service and a file.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, api::PartialObjectMeta};
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};
use vnetpool_apiserver::answer;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_plugin::ledger::file;

use crate::{
    beat::Beat,
    imds::{
        self, Settings, client,
        listing::{self, Comparison},
    },
    metrics::{Metrics, Watch},
    object::{Objects, Seen},
    report::{
        local,
        publish::{self, Publisher},
    },
    watch as watches,
};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub enum Source {
    /// The object of this name in the API server.
    Cluster {
        client: Client,
        name: String,
    },
    Metadata {
        settings: Settings,
        boot_id: String,
        state_dir: PathBuf,
    },
}

impl Source {
    /// Keeps `objects` current until the process ends, the more eagerly while a pod is `waiting`. Counts the
    /// errors it goes on past.
    pub async fn follow(
        &self,
        objects: Objects,
        waiting: watch::Receiver<bool>,
        metrics: Metrics,
        beat: Beat,
    ) -> anyhow::Result<()> {
        match self {
            Source::Cluster { client, name } => {
                watches::object(Api::all(client.clone()), name.clone(), objects, waiting, metrics).await
            }
            Source::Metadata { settings, boot_id, .. } => {
                let mut retry = FIRST_RETRY;
                loop {
                    match instance(settings, boot_id).await {
                        Ok(object) => {
                            retry = FIRST_RETRY;
                            metrics.heard(Watch::Metadata);
                            let is_news =
                                |seen: &Seen| seen.object().is_none_or(|known| known.spec != object.spec);
                            if is_news(&objects.borrow()) {
                                objects.send_replace(Seen::There(Arc::new(object)));
                            }
                            // Azure publishes no figure for how long a change of a NIC takes to show there,
                            // and allows five requests a second.
                            sleep_until(beat.next()).await;
                        }
                        Err(error) => {
                            metrics.watch_errors.inc();
                            tracing::warn!(
                                error = format!("{error:#}"),
                                "can't learn this VM's addresses; trying again"
                            );
                            sleep(retry).await;
                            retry = (retry * 2).min(LONGEST_RETRY);
                        }
                    }
                }
            }
        }
    }

    /// The object as it is now, with the status reported last. A watch may bring an object that is older than
    /// the node's latest actions; the metadata service knows nothing of these, so its last answer will do.
    pub async fn read(&self, objects: &Objects) -> anyhow::Result<Option<NodeIPAllocation>> {
        match self {
            Source::Cluster { client, name } => {
                let found = answer::read(client, name).await;
                found.with_context(|| format!("can't read NodeIPAllocation {name}"))
            }
            Source::Metadata { state_dir, .. } => {
                let Some(mut object) = objects.borrow().object().cloned() else { return Ok(None) };
                object.status = local::read(state_dir)?;
                Ok(Some(object))
            }
        }
    }

    /// Announces that a ledger is about to be built from this object, and returns it as it is then, see
    /// [`publish::announce`].
    pub async fn announce(&self, object: NodeIPAllocation) -> anyhow::Result<NodeIPAllocation> {
        match self {
            Source::Cluster { client, name } => publish::announce(&Api::all(client.clone()), &object)
                .await
                .with_context(|| format!("can't announce a new ledger in NodeIPAllocation {name}")),
            // Reports go to a file, one after the other.
            Source::Metadata { .. } => Ok(object),
        }
    }

    /// Whether a spec for this UID is for this node: the UID of our Node, which gets a new one when it is
    /// deleted and registers itself anew. The metadata service lists only the VM that asks.
    pub async fn node_uid(&self, spec: &str) -> anyhow::Result<Option<String>> {
        match self {
            Source::Cluster { client, name } => {
                let nodes: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
                let node = nodes.get_opt(name).await.context("can't read our Node")?;
                Ok(node.and_then(|node| node.metadata.uid))
            }
            Source::Metadata { .. } => Ok(Some(spec.to_owned())),
        }
    }

    /// Keeps in `comparison` the reservations that may have left the node's NIC, as far as the node itself
    /// can know. On a VM of no cluster the metadata service is the authority, and there is nothing to compare
    /// it with.
    pub async fn compare(
        &self,
        objects: watch::Receiver<Seen>,
        comparison: watch::Sender<Comparison>,
        beat: Beat,
    ) -> anyhow::Result<()> {
        match self {
            Source::Cluster { .. } => listing::watch(objects, comparison, beat).await,
            Source::Metadata { .. } => std::future::pending().await,
        }
    }

    /// Reports until the process ends.
    pub async fn report(&self, publisher: Publisher) -> anyhow::Result<()> {
        match self {
            Source::Cluster { client, .. } => publisher.run(Api::all(client.clone())).await,
            Source::Metadata { .. } => local::write(publisher).await,
        }
    }
}

/// One answer, as an object whose version is the moment.
async fn instance(settings: &Settings, boot_id: &str) -> anyhow::Result<NodeIPAllocation> {
    let moment = i64::try_from(file::now())?;
    let (instance, seen_as) = client::instance().await?;
    let object: Result<_, imds::Invalid> = instance.allocation(seen_as, settings, boot_id, moment);
    Ok(object?)
}
