//! The two things the agent watches: its NodeIPAllocation in the API server and the ledger on the node.

use std::{fs, path::PathBuf, pin::pin, sync::Arc};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use inotify::{EventMask, Inotify, WatchMask};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::{Notify, watch};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_plugin::ledger::file::LEDGER;

/// Keeps `objects` at the NodeIPAllocation `name`, the only one that is asked for; None while there is none. Goes on past
/// errors, waiting longer each time.
pub async fn object(
    api: Api<NodeIPAllocation>,
    name: String,
    objects: watch::Sender<Option<Arc<NodeIPAllocation>>>,
) -> anyhow::Result<()> {
    let mut events = pin!(watcher::watch_object(api, &name).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(object) => {
                objects.send_replace(object.map(Arc::new));
            }
            Err(error) => tracing::warn!(%error, "can't watch the node's NodeIPAllocation; trying again"),
        }
    }
    anyhow::bail!("the watch of NodeIPAllocation {name} has ended")
}

/// The object's place in the order of all versions of this kind's objects, which a deleted object and its successor under
/// the same name share (comparable since Kubernetes 1.35); 0 if it isn't a number.
pub fn version(object: &NodeIPAllocation) -> u64 {
    object.metadata.resource_version.as_ref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Notifies when the ledger in `dir` is replaced, written to or removed, or the folder itself is.
pub async fn ledger(dir: PathBuf, changed: Arc<Notify>) -> anyhow::Result<()> {
    let mask = WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    loop {
        fs::create_dir_all(&dir).with_context(|| format!("can't make the state folder {}", dir.display()))?;
        let inotify = Inotify::init()?;
        inotify.watches().add(&dir, mask).with_context(|| format!("can't watch {}", dir.display()))?;
        // For whatever happened before the watch was there.
        changed.notify_one();
        let mut events = inotify.into_event_stream([0; 4096])?;
        while let Some(event) = events.try_next().await? {
            // The folder is gone: another may be made in its place, which this watch doesn't see.
            if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                break;
            }
            // Locks are taken on other files in here, and logs written to them.
            if event.name.is_some_and(|name| name == LEDGER) || event.mask.contains(EventMask::Q_OVERFLOW) {
                changed.notify_one();
            }
        }
    }
}
