//! What the agent watches: its NodeIPAllocation in the API server, the ledger on the node, and the node's network.

use std::{fs, path::PathBuf, pin::pin, sync::Arc, thread};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use inotify::{EventMask, Inotify, WatchMask};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::{Notify, oneshot, watch};
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_plugin::{
    ledger::file::LEDGER,
    wiring::{Events, Uplinks},
};

/// Keeps `objects` at the NodeIPAllocation `name`, the only one that is asked for; None while there is none. Goes on past
/// errors, waiting longer each time. One that can't be read is there all the same: what was read last goes on to hold, and so
/// does the ledger.
pub async fn object(
    api: Api<Reading<NodeIPAllocation>>,
    name: String,
    objects: watch::Sender<Option<Arc<NodeIPAllocation>>>,
) -> anyhow::Result<()> {
    let mut events = pin!(watcher::watch_object(api, &name).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(None) => {
                objects.send_replace(None);
            }
            Ok(Some(Reading(Ok(object)))) => {
                objects.send_replace(Some(Arc::new(object)));
            }
            Ok(Some(Reading(Err(unreadable)))) => tracing::warn!(
                error = unreadable.error,
                "can't read the node's NodeIPAllocation: going on with what is known; correct the field, or upgrade the agent if a \
                 newer operator wrote it"
            ),
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

/// Notifies when somebody has changed what pods need of the node's network: one multicast socket, and pods that come and go
/// don't stir it. `uplinks` are the links they get out by.
pub async fn kernel(uplinks: watch::Receiver<Uplinks>, disturbed: Arc<Notify>) -> anyhow::Result<()> {
    let events = Events::open()?;
    let (ended, end) = oneshot::channel();
    // A thread of its own, which ends with the process: tokio offers nothing safe to wait for a netlink socket with, and
    // waits itself for its blocking tasks when it ends.
    thread::Builder::new().name("kernel-events".to_owned()).spawn(move || {
        let error = loop {
            match events.wait() {
                Ok(heard) if heard.concerns(&uplinks.borrow()) => disturbed.notify_one(),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        // Nobody listens any more when the agent ends.
        let _ = ended.send(error);
    })?;
    Err(end.await?).context("can't hear the kernel's network events")
}
