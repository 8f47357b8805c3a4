//! Writes the node's report into `NodeIPAllocation.status`, by server-side apply, when it differs and is due
//! ([`super::pace`]).

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, watch},
    time::sleep,
};
use vnetpool_apiserver::{
    answer::{CONFLICT, is_status},
    jittered,
    reading::Reading,
};
use vnetpool_crds::{NodeIPAllocation, NodeIPAllocationStatus, names};

use super::pace::{Pace, difference};
use super::{Report, building, compose};
use crate::{metrics::Metrics, object::Seen, watch::version};

/// Between two writes: a burst of pods costs two a second, and the last state always gets out.
const BETWEEN_WRITES: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Alone in a task, so that an API server out of reach never holds up the node.
pub struct Publisher {
    /// The ledger's folder.
    pub state_dir: PathBuf,
    /// `None` while there is no ledger.
    pub reports: watch::Receiver<Option<Report>>,
    /// The object as watched.
    pub objects: watch::Receiver<Seen>,
    /// Held while writing. The task that builds a ledger from the published status holds it, too, so that no
    /// report of the ledger before can come after.
    pub gate: Arc<Mutex<()>>,
    pub metrics: Metrics,
}

impl Publisher {
    /// Ends only when the agent does.
    pub async fn run(mut self, api: Api<Reading<NodeIPAllocation>>) -> anyhow::Result<()> {
        let (mut written, mut pace) = (None, Pace::default());
        let (mut retry, mut conflict) = (BETWEEN_WRITES, BETWEEN_WRITES);
        loop {
            match self.publish(&api, &mut written, &mut pace).await {
                Ok(outcome) => {
                    (retry, conflict) = (BETWEEN_WRITES, BETWEEN_WRITES);
                    let due = match outcome {
                        Outcome::Written => {
                            sleep(BETWEEN_WRITES).await;
                            None
                        }
                        Outcome::Due(wait) => Some(wait),
                        Outcome::Nothing => None,
                    };
                    tokio::select! {
                        changed = self.reports.changed() => changed?,
                        changed = self.objects.changed() => changed?,
                        () = sleep(due.unwrap_or_default()), if due.is_some() => {}
                    }
                }
                // Another writer has changed the object since it was read: the change comes by the watch,
                // unless that is silent or the object can't be read.
                Err(error) if is_conflict(&error) => {
                    tokio::select! {
                        changed = self.objects.changed() => changed?,
                        () = sleep(jittered(conflict)) => {}
                    }
                    conflict = (conflict * 2).min(LONGEST_RETRY);
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "can't report to the API server; trying again"
                    );
                    sleep(jittered(retry)).await;
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    /// Writes the newest report if it is due, and only onto the version it was made from. `written` is the
    /// object as the last write left it, which may be newer than what the watch has brought.
    async fn publish(
        &mut self,
        api: &Api<Reading<NodeIPAllocation>>,
        written: &mut Option<NodeIPAllocation>,
        pace: &mut Pace,
    ) -> anyhow::Result<Outcome> {
        let _gate = self.gate.lock().await;
        let seen = self.objects.borrow_and_update().clone();
        let report = self.reports.borrow_and_update().clone();
        let (Some(watched), Some(report)) = (seen.object(), report) else { return Ok(Outcome::Nothing) };
        let newest =
            written.as_ref().filter(|written| version(written) > version(watched)).unwrap_or(watched);
        let published = newest.status.as_ref();
        let status = compose(&report, published);
        let difference = difference(&status, published, report.warm);
        match pace.due(difference, Instant::now()) {
            None => return Ok(Outcome::Nothing),
            Some(wait) if !wait.is_zero() => return Ok(Outcome::Due(wait)),
            Some(_) => {}
        }
        let result = apply(api, newest, &status).await;
        if !result.as_ref().is_err_and(is_conflict) {
            self.metrics.count_report(result.is_ok());
        }
        *written = Some(result?);
        pace.written(difference);
        Ok(Outcome::Written)
    }
}

/// The outcome of a report.
enum Outcome {
    Written,
    /// It is to be written in so long.
    Due(Duration),
    /// It equals the published one.
    Nothing,
}

/// Writes into the object, as it was read just now, that a ledger is about to be built, and returns it as it
/// is then. No earlier report can be written any more, however late it arrives: addresses that it gives as
/// relinquished may be free in the new ledger.
///
/// # Errors
/// A conflict if another writer has changed the object since it was read.
pub async fn announce(
    api: &Api<Reading<NodeIPAllocation>>,
    object: &NodeIPAllocation,
) -> anyhow::Result<NodeIPAllocation> {
    let status = building(object.status.as_ref(), object.metadata.generation, Timestamp::now());
    apply(api, object, &status).await
}

/// Applies the agent's part of the status, to exactly this version of the object and to none made anew.
async fn apply(
    api: &Api<Reading<NodeIPAllocation>>,
    object: &NodeIPAllocation,
    status: &NodeIPAllocationStatus,
) -> anyhow::Result<NodeIPAllocation> {
    let params = PatchParams::apply(names::AGENT).force();
    let patch = Patch::Apply(body(object, status));
    Ok(api.patch_status(&object.name_any(), &params, &patch).await?.readable()?)
}

/// What a write sends.
pub(super) fn body(
    NodeIPAllocation { metadata, .. }: &NodeIPAllocation,
    status: &NodeIPAllocationStatus,
) -> Value {
    json!({
        "apiVersion": NodeIPAllocation::api_version(&()),
        "kind": NodeIPAllocation::kind(&()),
        "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version },
        "status": status,
    })
}

fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|error| is_status(error, CONFLICT))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use vnetpool_plugin::ledger::Ledger;

    use super::*;
    use crate::sample;

    /// When each request came.
    type Requests = Arc<std::sync::Mutex<Vec<tokio::time::Instant>>>;

    /// An API server that knows a newer version than each that is written to.
    async fn refusing() -> (kube::Client, Requests) {
        let requests = Requests::default();
        let log = requests.clone();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let refusal = json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure",
            "reason": "Conflict", "code": CONFLICT, "message": "the object has been modified" })
        .to_string();
        let (head, length) = ("HTTP/1.1 409 Conflict\r\ncontent-type: application/json", refusal.len());
        let answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n{refusal}");
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let (log, answer) = (log.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut taken = vec![0; 64 * 1024];
                    while let Ok(1..) = connection.read(&mut taken).await {
                        if taken.starts_with(b"PATCH") {
                            log.lock().unwrap().push(tokio::time::Instant::now());
                            connection.write_all(answer.as_bytes()).await.unwrap();
                        }
                        taken.fill(0);
                    }
                });
            }
        });
        (vnetpool_apiserver::client::client(kube::Config::new(url.parse().unwrap())).unwrap(), requests)
    }

    fn report() -> Report {
        Report {
            ledger: Ledger::rebuild("b", &[], &[], &sample::supply(vec![]), None, 0, true),
            at: 0,
            time: Timestamp::UNIX_EPOCH,
            generation: Some(1),
            warm: 0,
            names_holders: false,
            unlisted: BTreeSet::new(),
            metadata_silent: None,
            conditions: vec![],
        }
    }

    /// Nothing shows the agent what another has written: its watch is silent, on each of thousands of nodes.
    #[tokio::test(start_paused = true)]
    async fn a_report_onto_an_outdated_object_is_tried_ever_more_rarely_until_the_object_comes() {
        let (client, requests) = refusing().await;
        let object = |version: &str| {
            let mut object = NodeIPAllocation::new("node-1", sample::spec());
            object.metadata.uid = Some("u".into());
            object.metadata.resource_version = Some(version.into());
            Seen::There(Arc::new(object))
        };
        let (reports, objects) = (watch::Sender::new(Some(report())), watch::Sender::new(object("7")));
        let publisher = Publisher {
            state_dir: PathBuf::new(),
            reports: reports.subscribe(),
            objects: objects.subscribe(),
            gate: Arc::default(),
            metrics: Metrics::new(Path::new("/nonexistent")),
        };
        tokio::spawn(publisher.run(Api::all(client)));
        sleep(Duration::from_secs(600)).await;
        let times = requests.lock().unwrap().clone();
        assert!((10..=60).contains(&times.len()), "{} writes in ten minutes", times.len());
        let waits: Vec<Duration> = times.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(waits[0] <= BETWEEN_WRITES && waits[6] >= LONGEST_RETRY / 2, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST_RETRY + BETWEEN_WRITES), "{waits:?}");

        objects.send_replace(object("8"));
        sleep(BETWEEN_WRITES).await;
        assert!(requests.lock().unwrap().len() > times.len(), "the newer object is not written to");
    }

    #[test]
    fn a_report_is_written_to_exactly_the_object_and_version_that_were_read() {
        let mut object = NodeIPAllocation::new("node-1", sample::spec());
        object.metadata.uid = Some("of the first".into());
        object.metadata.resource_version = Some("7".into());
        let sent = body(&object, &NodeIPAllocationStatus::default());
        assert_eq!(sent["metadata"], json!({ "uid": "of the first", "resourceVersion": "7" }));
    }
}
