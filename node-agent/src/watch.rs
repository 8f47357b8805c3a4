//! The agent's watches: its NodeIPAllocation in the API server, the ledger on the node, and the node's
//! network.

use std::{
    fs,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    net::Ipv4Addr,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use futures::{Stream, StreamExt, TryStreamExt, future};
use inotify::{EventMask, Inotify, WatchMask};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use vnetpool_apiserver::{jittered, reading::Reading};
use vnetpool_crds::NodeIPAllocation;
use vnetpool_plugin::{
    ledger::file::{LEDGER, Store},
    wiring::{self, Events, Uplinks},
};

use crate::{
    metrics::{Metrics, Watch},
    object::{Objects, Seen},
};

/// While a pod waits, the object is read when the watch has been silent for so long.
const SILENT: Duration = Duration::from_secs(5);
/// A wait that goes on may be Azure's fault, and concern thousands of nodes. So each read that shows nothing
/// new doubles that time, up to this.
const LONG_SILENT: Duration = Duration::from_secs(60);

/// Keeps `objects` at the NodeIPAllocation `name`, the only one that is requested. Goes on past errors,
/// waiting longer each time. An object that can't be read is there all the same: its last readable version
/// goes on to hold, and so does the ledger.
pub async fn object(
    api: Api<Reading<NodeIPAllocation>>,
    name: String,
    objects: Objects,
    mut waiting: watch::Receiver<bool>,
    metrics: Metrics,
) -> anyhow::Result<()> {
    metrics.heard(Watch::Object);
    let mut events = pin!(one(api.clone(), &name).default_backoff());
    let mut silence = Silence::new();
    // The version seen last, also of an object that can't be read, and its generation.
    let (mut known, mut supplied) = (0, None);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(object)) => {
                    metrics.heard(Watch::Object);
                    known = object.as_ref().map_or(known, version_of);
                    // Our own reports come by the watch, too, and end no wait.
                    let generation = object.as_ref().and_then(|object| object.meta().generation);
                    if std::mem::replace(&mut supplied, generation) != generation {
                        silence = Silence::new();
                    }
                    take(object, &objects);
                }
                Some(Err(error)) => {
                    metrics.watch_errors.inc();
                    tracing::warn!(%error, "can't watch the node's NodeIPAllocation; trying again");
                }
                None => anyhow::bail!("the watch of NodeIPAllocation {name} has ended"),
            },
            () = silence.lasts(&mut waiting) => {
                silence.lengthen();
                match api.get_opt(&name).await {
                    Ok(Some(object)) if version_of(&object) > known => {
                        (known, supplied) = (version_of(&object), object.meta().generation);
                        silence = Silence::new();
                        tracing::warn!("the watch of the node's NodeIPAllocation has missed a change");
                        take(Some(object), &objects);
                    }
                    // The watch shows whether the object is gone for good.
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "can't read the node's NodeIPAllocation; trying again");
                    }
                }
            }
        }
        silence.heard = Instant::now();
    }
}

/// The object `name`, and `None` while there is none: kube's `watch_object`, but each watch lasts longer.
fn one(
    api: Api<Reading<NodeIPAllocation>>,
    name: &str,
) -> impl Stream<Item = watcher::Result<Option<Reading<NodeIPAllocation>>>> + use<> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(lasting(name));
    let mut is_there = false;
    watcher(api, config).filter_map(move |event| {
        future::ready(match event {
            Ok(Event::Init) => {
                is_there = false;
                None
            }
            Ok(Event::InitApply(object)) => {
                is_there = true;
                Some(Ok(Some(object)))
            }
            Ok(Event::Apply(object)) => Some(Ok(Some(object))),
            Ok(Event::Delete(_)) => Some(Ok(None)),
            Ok(Event::InitDone) => (!is_there).then_some(Ok(None)),
            Err(error) => Some(Err(error)),
        })
    })
}

/// For how many seconds the API server is asked to keep a watch: half an hour to an hour, as it would by
/// itself. With kube's 290 s, 5,000 agents would begin 17 watches a second for ever, and all together some
/// minutes after the API server has started. A peer that is gone is noticed all the same, by the client.
fn lasting(name: &str) -> u32 {
    1800 + (BuildHasherDefault::<DefaultHasher>::default().hash_one(name) % 1800) as u32
}

fn take(object: Option<Reading<NodeIPAllocation>>, objects: &Objects) {
    match object {
        None => {
            objects.send_replace(Seen::Absent);
        }
        Some(Reading(Ok(object))) => {
            objects.send_replace(Seen::There(Arc::new(object)));
        }
        Some(Reading(Err(unreadable))) => {
            tracing::warn!(
                error = unreadable.error,
                "can't read the node's NodeIPAllocation: going on with what is known; correct the field, or upgrade the agent if \
                 a newer operator wrote it"
            );
            if matches!(*objects.borrow(), Seen::Absent) {
                objects.send_replace(Seen::Unknown);
            }
        }
    }
}

/// The watch's.
struct Silence {
    heard: Instant,
    /// When the object was read last because of it.
    read: Option<Instant>,
    /// After so long the object is read, and the same before it was made random.
    bearable: Duration,
    doubled: Duration,
}

impl Silence {
    fn new() -> Silence {
        Silence { heard: Instant::now(), read: None, bearable: SILENT, doubled: SILENT }
    }

    /// Waits until a pod waits and the watch was silent for too long.
    async fn lasts(&mut self, waiting: &mut watch::Receiver<bool>) {
        loop {
            if waiting.wait_for(|waiting| *waiting).await.is_err() {
                // The agent ends.
                std::future::pending::<()>().await;
            }
            // A pod's ADD ends after 20 s, and the next one goes on with its wait. This wait is another.
            if self.read.is_some_and(|read| read.elapsed() > LONG_SILENT) {
                *self = Silence { heard: self.heard, ..Silence::new() };
            }
            sleep_until(self.heard + self.bearable).await;
            if *waiting.borrow() {
                return;
            }
        }
    }

    fn lengthen(&mut self) {
        self.read = Some(Instant::now());
        self.doubled = (self.doubled * 2).min(LONG_SILENT);
        self.bearable = jittered(self.doubled);
    }
}

/// The object's place in the order of all versions of this kind's objects, which a deleted object and its
/// successor under the same name share (comparable since Kubernetes 1.35); 0 if it isn't a number.
pub fn version(object: &NodeIPAllocation) -> u64 {
    version_of(object)
}

fn version_of<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_ref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// How often the ledger is checked where its changes can't be watched.
const BLIND: Duration = Duration::from_secs(1);

/// Notifies when the ledger in `dir` is replaced, written to or removed, or the folder itself is. Where that
/// can't be watched, for instance because others have used all of the node's inotify up, it notifies every
/// second, and `unwatched` has the reason.
pub async fn ledger(
    dir: PathBuf,
    changed: Arc<Notify>,
    unwatched: watch::Sender<Option<String>>,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let mask = WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    loop {
        fs::create_dir_all(&dir).with_context(|| format!("can't make the state folder {}", dir.display()))?;
        let watched = Inotify::init().and_then(|inotify| {
            inotify.watches().add(&dir, mask)?;
            inotify.into_event_stream([0; 4096])
        });
        let problem = watched.as_ref().err().map(|error| format!("can't watch {}: {error}", dir.display()));
        unwatched.send_if_modified(|before| std::mem::replace(before, problem.clone()) != problem);
        // For events before the watch was there.
        changed.notify_one();
        let Ok(mut events) = watched else {
            sleep(BLIND).await;
            continue;
        };
        metrics.heard(Watch::Ledger);
        while let Some(event) = events.try_next().await? {
            metrics.heard(Watch::Ledger);
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

/// Notifies when another program has changed a part of the node's network that pods need: one multicast
/// socket, and pods that come and go don't wake it. `uplinks` are the links they get out by.
pub async fn kernel(
    uplinks: watch::Receiver<Uplinks>,
    store: Store,
    disturbed: Arc<Notify>,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let events = Events::open()?;
    metrics.heard(Watch::Network);
    let is_wired = move |address| may_be_wired(&store, address);
    let (ended, end) = oneshot::channel();
    // A thread of its own, which ends with the process: tokio offers nothing safe to wait for a netlink
    // socket with, and waits itself for its blocking tasks when it ends.
    thread::Builder::new().name("kernel-events".to_owned()).spawn(move || {
        let error = loop {
            match events.wait() {
                Ok(heard) => {
                    metrics.heard(Watch::Network);
                    if heard.concerns(&uplinks.borrow().clone(), &is_wired) {
                        disturbed.notify_one();
                    }
                }
                Err(error) => break error,
            }
        };
        // The receiver is dropped only when the agent ends.
        let _ = ended.send(error);
    })?;
    Err(end.await?).context("can't hear the kernel's network events")
}

/// Whether a pod may be wired with the address. It may if the ledger or the link can't be read.
fn may_be_wired(store: &Store, address: Ipv4Addr) -> bool {
    store.peek().map_or(true, |ledger| wiring::is_wired(&ledger, address).unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alone::{self, this_test};
    use serde_json::json;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// An API server whose watches send nothing. The object's version is `version`, and a version above 100
    /// can't be read.
    async fn server(version: Arc<AtomicU64>) -> kube::Client {
        recorded(version).await.0
    }

    /// The head of each request, and when it came.
    type Requests = Arc<Mutex<Vec<(Instant, String)>>>;

    /// Such a server, with the requests that it gets.
    async fn recorded(version: Arc<AtomicU64>) -> (kube::Client, Requests) {
        let requests = Requests::default();
        let log = requests.clone();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let (version, log) = (version.clone(), log.clone());
                tokio::spawn(async move {
                    let mut taken = vec![0; 8192];
                    while let Ok(count @ 1..) = connection.read(&mut taken).await {
                        let line = String::from_utf8_lossy(&taken[..count]).into_owned();
                        log.lock().unwrap().push((Instant::now(), line.clone()));
                        let version = version.load(Ordering::Relaxed);
                        let pool = if version > 100 { "7" } else { "\"p\"" };
                        let object = format!(
                            r#"{{"apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation",
                            "metadata": {{"name": "n", "resourceVersion": "{version}"}},
                            "spec": {{"nodeUID": "u", "pool": {pool}, "cooldown": "30s"}}}}"#
                        );
                        let list = format!(
                            r#"{{"apiVersion": "v1", "kind": "List", "metadata": {{"resourceVersion": "{version}"}},
                            "items": [{object}]}}"#
                        );
                        let body = if line.contains("/nodeipallocations/n") { object } else { list };
                        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
                        let answer = match line.contains("watch=true") {
                            true => format!("{head}transfer-encoding: chunked\r\n\r\n"),
                            false => format!("{head}content-length: {}\r\n\r\n{body}", body.len()),
                        };
                        connection.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (vnetpool_apiserver::client::client(kube::Config::new(url.parse().unwrap())).unwrap(), requests)
    }

    fn is_there(seen: &Seen) -> bool {
        seen.object().is_some()
    }

    fn metrics() -> Metrics {
        Metrics::new(std::path::Path::new("/nonexistent"))
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_pod_waits_a_silent_watch_is_not_trusted() {
        // tracing remembers that a line had no subscriber. Without one here, a test beside this one that has
        // a subscriber would never see the line.
        let _heard = tracing::subscriber::set_default(tracing_subscriber::fmt().with_test_writer().finish());
        let newest = Arc::new(AtomicU64::new(1));
        let client = server(newest.clone()).await;
        let objects = Objects::default();
        let (waiting, is_waiting) = watch::channel(false);
        let mut seen = objects.subscribe();
        tokio::spawn(object(Api::all(client), "n".into(), objects, is_waiting, metrics()));
        let is = |version: u64| {
            move |seen: &Seen| seen.object().is_some_and(|object| super::version(object) == version)
        };
        seen.wait_for(is(1)).await.unwrap();
        newest.store(2, Ordering::Relaxed);
        let early = tokio::time::timeout(Duration::from_secs(60), seen.wait_for(is(2))).await.is_ok();
        assert!(!early, "nobody waits, so nobody asks");
        let begun = Instant::now();
        waiting.send_replace(true);
        seen.wait_for(is(2)).await.unwrap();
        assert!(begun.elapsed() <= SILENT, "{:?}", begun.elapsed());
        newest.store(3, Ordering::Relaxed);
        let begun = Instant::now();
        seen.wait_for(is(3)).await.unwrap();
        assert!(begun.elapsed() <= SILENT, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_lasts_half_an_hour_to_an_hour_by_the_nodes_name() {
        let (client, requests) = recorded(Arc::new(AtomicU64::new(1))).await;
        let (objects, waiting) = (Objects::default(), watch::Sender::new(false));
        let mut seen = objects.subscribe();
        tokio::spawn(object(Api::all(client), "n".into(), objects, waiting.subscribe(), metrics()));
        seen.wait_for(is_there).await.unwrap();
        sleep(SILENT).await;
        let requests = requests.lock().unwrap();
        let (_, watch) = requests.iter().find(|(_, head)| head.contains("watch=true")).unwrap();
        assert!(watch.contains(&format!("timeoutSeconds={}&", lasting("n"))), "{watch}");
        let lengths: Vec<u32> = (0..1000).map(|number| lasting(&format!("node-{number}"))).collect();
        assert!(lengths.iter().all(|length| (1800..3600).contains(length)), "{lengths:?}");
        let early = lengths.iter().filter(|length| **length < 2700).count();
        assert!((400..600).contains(&early), "{early} of 1,000 nodes are in the first half");
    }

    /// An outage of Azure's has pods wait on each of thousands of nodes.
    #[tokio::test(start_paused = true)]
    async fn while_a_pod_waits_on_the_object_is_read_ever_more_rarely() {
        let _heard = tracing::subscriber::set_default(tracing_subscriber::fmt().with_test_writer().finish());
        let newest = Arc::new(AtomicU64::new(1));
        let (client, requests) = recorded(newest.clone()).await;
        let (objects, waiting) = (Objects::default(), watch::Sender::new(false));
        let mut seen = objects.subscribe();
        tokio::spawn(object(Api::all(client), "n".into(), objects, waiting.subscribe(), metrics()));
        seen.wait_for(is_there).await.unwrap();
        let begun = Instant::now();
        // Each ADD waits for 20 s, and the next one comes soon after.
        for _ in 0..24 {
            waiting.send_replace(true);
            sleep(Duration::from_secs(20)).await;
            waiting.send_replace(false);
            sleep(Duration::from_secs(5)).await;
        }
        let reads = |since: Instant| -> Vec<Duration> {
            let requests = requests.lock().unwrap();
            let reads = requests.iter().filter(|(_, head)| head.contains("/nodeipallocations/n"));
            reads.filter_map(|(at, _)| at.checked_duration_since(since)).collect()
        };
        let of_ten_minutes = reads(begun);
        assert!(of_ten_minutes[0] <= SILENT && of_ten_minutes[1] <= 3 * SILENT, "{of_ten_minutes:?}");
        assert!((6..=24).contains(&of_ten_minutes.len()), "{of_ten_minutes:?}");

        // A change that only a read shows begins anew, and so does another wait, later.
        newest.store(2, Ordering::Relaxed);
        waiting.send_replace(true);
        seen.wait_for(|seen| seen.object().is_some_and(|object| version(object) == 2)).await.unwrap();
        let changed = Instant::now();
        sleep(3 * SILENT).await;
        assert!(!reads(changed).is_empty());
        sleep(10 * LONG_SILENT).await;
        waiting.send_replace(false);
        sleep(2 * LONG_SILENT).await;
        let again = Instant::now();
        waiting.send_replace(true);
        sleep(3 * SILENT).await;
        assert!(!reads(again).is_empty());
    }

    /// Counts the warnings that contain a text.
    #[derive(Clone, Default)]
    struct Warnings(Arc<AtomicU64>);

    impl std::io::Write for Warnings {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            let is_it = String::from_utf8_lossy(line).contains("has missed a change");
            self.0.fetch_add(is_it.into(), Ordering::Relaxed);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_can_not_be_read_is_a_missed_change_once() {
        let warnings = Warnings::default();
        let writer = warnings.clone();
        let heard = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _heard = tracing::subscriber::set_default(heard);
        let newest = Arc::new(AtomicU64::new(1));
        let client = server(newest.clone()).await;
        let (objects, waiting) = (Objects::default(), watch::Sender::new(true));
        let mut seen = objects.subscribe();
        tokio::spawn(object(Api::all(client), "n".into(), objects, waiting.subscribe(), metrics()));
        seen.wait_for(is_there).await.unwrap();
        newest.store(101, Ordering::Relaxed);
        sleep(20 * SILENT).await;
        assert_eq!(warnings.0.load(Ordering::Relaxed), 1);
        assert_eq!(seen.borrow().object().map(version), Some(1), "what was read last holds");
    }

    #[test]
    fn an_object_that_can_not_be_read_is_not_taken_for_an_absent_one() {
        let unreadable = json!({
            "apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation", "metadata": { "name": "n" },
            "spec": { "nodeUID": "u", "pool": 7, "cooldown": "30s" },
        });
        let objects = Objects::default();
        take(None, &objects);
        assert!(matches!(*objects.borrow(), Seen::Absent));
        take(Some(serde_json::from_value(unreadable).unwrap()), &objects);
        assert!(matches!(*objects.borrow(), Seen::Unknown));
    }

    const WITHOUT: &str = "VNETPOOL_TEST_WITHOUT_INOTIFY";

    /// In a user namespace of its own, whose limit is no other's.
    #[tokio::test(start_paused = true)]
    async fn without_inotify_the_ledger_is_checked_every_second_and_that_is_reported() {
        if std::env::var_os(WITHOUT).is_none() {
            let before = "echo 0 > /proc/sys/user/max_inotify_instances";
            let mut again = alone::again(&this_test!(), &[], before);
            again.env(WITHOUT, "1");
            return alone::run(again);
        }
        let (dir, changed, unwatched) =
            (tempfile::tempdir().unwrap(), Arc::new(Notify::new()), watch::Sender::new(None));
        let mut problems = unwatched.subscribe();
        let watching = tokio::spawn(ledger(dir.path().to_owned(), changed.clone(), unwatched, metrics()));
        let begun = Instant::now();
        for _ in 0..3 {
            changed.notified().await;
        }
        assert_eq!(begun.elapsed(), 2 * BLIND);
        let why = problems.borrow_and_update().clone().unwrap();
        assert!(why.contains("can't watch") && why.contains("Too many open files"), "{why}");
        assert!(!watching.is_finished());
        assert!(!problems.has_changed().unwrap(), "reported once");
    }

    #[test]
    fn a_route_that_goes_is_heeded_while_the_ledger_cannot_be_read() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(may_be_wired(&Store::at(dir.path()), Ipv4Addr::new(10, 240, 250, 1)));
    }
}
