//! Writes to route tables. Each table has one writer at a time, which takes along all changes that wait by
//! then.
//!
//! A table takes one write at a time, and each takes seconds. A change that comes while a write is under way
//! waits. The next task to get the table's lock carries out all changes that have gathered, so a hundred new
//! nodes cost two or three writes. If a more urgent change comes while that write still waits for its turn
//! within Azure's limits, the changes are gathered anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use serde_json::Value;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tracing::info;

use super::cache::{Slots, etag, parse};
use super::operation;
use super::route_table::{self, Change, RouteTable};
use super::transport::Call;
use super::{Azure, Error, Kind, Priority, ProvisioningState, ResourceId, Urgency, Written, call};
use crate::deadline::uncounted;
use crate::lock::lock;

/// How long a table that was read is used. Every write sends its ETag.
const KEPT: Duration = Duration::from_secs(60);

/// The cache of each table, and the changes that nodes want in it.
#[derive(Debug, Default)]
pub(super) struct Tables {
    known: Slots<Option<Document>>,
    wanted: Arc<Wants>,
}

/// The changes that nodes want in each table.
#[derive(Debug, Default)]
struct Wants {
    waiting: Mutex<HashMap<String, Vec<Queued>>>,
    /// A change has come, or become more urgent.
    news: Notify,
}

/// A table's document, ready to be edited and sent back.
#[derive(Clone, Debug)]
struct Document {
    table: Arc<RouteTable>,
    etag: String,
    value: Value,
    read: Instant,
}

impl Document {
    fn read(id: &ResourceId, body: &[u8]) -> Result<Document, Error> {
        let value = parse(id, body)?;
        let table = RouteTable::read(&value).ok_or_else(|| Error::Unexpected {
            resource: id.to_string(),
            message: "it has no properties of a route table".to_owned(),
        })?;
        let etag = etag(id, &value)?;
        Ok(Document { table: Arc::new(table), etag, value, read: Instant::now() })
    }
}

/// A change that waits, and where to send its outcome.
#[derive(Debug)]
struct Queued {
    change: Change,
    urgency: Urgency,
    answer: oneshot::Sender<Result<Written<RouteTable>, Error>>,
}

impl Wants {
    fn add(&self, table: &str, wanted: Vec<Queued>) {
        self.lock().entry(table.to_owned()).or_default().extend(wanted);
        self.news.notify_waiters();
    }

    fn take(&self, table: &str) -> Vec<Queued> {
        self.lock().remove(table).unwrap_or_default()
    }

    /// The urgency of a write for all of these, until one of them is outgrown or a more urgent change waits.
    fn urgency(self: &Arc<Self>, table: &str, all: &[Queued]) -> Urgency {
        let priority = all.iter().map(|one| one.urgency.priority).min().unwrap_or(Priority::GiveBack);
        let (wants, table) = (self.clone(), table.to_owned());
        let each = all.iter().map(|one| one.urgency.clone());
        let each: Vec<_> = each.map(|one| async move { one.outgrown().await }.boxed()).collect();
        Urgency::until(priority, async move {
            tokio::select! {
                _ = select_all(each) => {}
                () = wants.more_urgent(&table, priority) => {}
            }
        })
    }

    async fn more_urgent(&self, table: &str, than: Priority) {
        loop {
            let news = self.news.notified();
            let is = |one: &Queued| {
                one.urgency.priority < than || (than > Priority::WaitingPods && one.urgency.is_outgrown())
            };
            if self.lock().get(table).is_some_and(|all| all.iter().any(is)) {
                return;
            }
            news.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Queued>>> {
        lock(&self.waiting)
    }
}

impl Azure {
    /// A route table, no older than a minute.
    pub async fn route_table(
        &self,
        id: &ResourceId,
        urgency: impl Into<Urgency>,
    ) -> Result<Arc<RouteTable>, Error> {
        let slot = self.tables.known.slot(id);
        let mut known = uncounted(slot.lock()).await;
        let document = self.known_table(id, known.take(), urgency).await?;
        let table = document.table.clone();
        *known = Some(document);
        Ok(table)
    }

    /// A route table as last read, however long ago; `None` if it never was, or is being read or written now.
    pub fn known_route_table(&self, id: &ResourceId) -> Option<Arc<RouteTable>> {
        let slot = self.tables.known.slot(id);
        let known = slot.try_lock().ok()?;
        known.as_ref().map(|document| document.table.clone())
    }

    /// Carries out a change in a route table, together with those of others, and gives the table after it.
    /// Sends nothing if there is nothing to do.
    ///
    /// # Errors
    /// [`Error::Routes`] if the table can't take this change, which doesn't concern other nodes. Otherwise
    /// Azure's error, for all changes of the write. If that leaves open whether the table has changed, the
    /// table is read again.
    pub async fn change_routes(
        &self,
        id: &ResourceId,
        change: Change,
        urgency: impl Into<Urgency>,
    ) -> Result<Written<RouteTable>, Error> {
        let Tables { known, wanted } = &self.tables;
        let (table, urgency) = (id.key(), urgency.into());
        let (answer, mut outcome) = oneshot::channel();
        wanted.add(&table, vec![Queued { change, urgency: urgency.clone(), answer }]);
        let (slot, mut is_outgrown) = (known.slot(id), false);
        loop {
            let mut known = tokio::select! {
                biased;
                outcome = &mut outcome => return outcome.unwrap_or_else(|_| Err(Error::OutcomeUnknown {
                    resource: id.to_string(),
                    message: "whoever was writing it has been stopped".to_owned(),
                })),
                // No writer has taken it along yet.
                known = uncounted(slot.lock()) => known,
                () = urgency.outgrown(), if !is_outgrown => {
                    is_outgrown = true;
                    wanted.news.notify_waiters();
                    continue;
                }
            };
            self.write_for_all(id, &mut known, wanted.take(&table)).await;
        }
    }

    /// One write for all of these; each gets the outcome. If the write was outgrown before its turn, nothing
    /// was sent: only the changes that are outgrown themselves get this outcome, and the others wait again.
    async fn write_for_all(&self, id: &ResourceId, known: &mut Option<Document>, all: Vec<Queued>) {
        // A change that is outgrown before anything is sent has no part in the write of the others.
        let (outgrown, all): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.urgency.is_outgrown());
        for one in outgrown {
            let _ = one.answer.send(Err(Error::Outgrown { resource: id.to_string() }));
        }
        // The previous holder of the lock has answered just before it passed the lock on.
        if all.is_empty() {
            return;
        }
        let changes: Vec<Change> = all.iter().map(|one| one.change.clone()).collect();
        let urgency = self.tables.wanted.urgency(&id.key(), &all);
        let written = self.write_table(id, known, &changes, &urgency).await;
        let all = match &written {
            Err(error) if error.is_given_up() => {
                let (outgrown, others): (Vec<_>, Vec<_>) =
                    all.into_iter().partition(|one| one.urgency.is_outgrown());
                self.tables.wanted.add(&id.key(), others);
                outgrown
            }
            _ => all,
        };
        for (index, Queued { answer, .. }) in all.into_iter().enumerate() {
            let outcome = match &written {
                Ok((written, outcomes)) => match &outcomes[index] {
                    Ok(()) => Ok(written.clone()),
                    Err(source) => Err(Error::Routes { table: id.to_string(), source: source.clone() }),
                },
                Err(error) => Err(error.clone()),
            };
            // A receiver that is gone needs no answer.
            let _ = answer.send(outcome);
        }
    }

    async fn known_table(
        &self,
        id: &ResourceId,
        known: Option<Document>,
        urgency: impl Into<Urgency>,
    ) -> Result<Document, Error> {
        match known {
            Some(document) if document.read.elapsed() < KEPT => Ok(document),
            _ => self.read_table(id, &call(Kind::Read, urgency, id)).await,
        }
    }

    async fn read_table(&self, id: &ResourceId, call: &Call) -> Result<Document, Error> {
        let answer = self.transport.send(call, self.url(id, &self.versions.network), None, None).await?;
        Document::read(id, &answer.body)
    }

    /// One write for all `changes`. Returns the outcome of each.
    async fn write_table(
        &self,
        id: &ResourceId,
        known: &mut Option<Document>,
        changes: &[Change],
        urgency: &Urgency,
    ) -> Result<(Written<RouteTable>, Vec<Result<(), route_table::Refusal>>), Error> {
        // Forget the cached document first, so that any early return leaves the resource unknown.
        let begun = Instant::now();
        let mut before = self.known_table(id, known.take(), urgency).await?;
        let (mut after, mut outcomes) = route_table::edit(&before.value, changes);
        if outcomes.iter().any(Result::is_err) && before.read < begun {
            // The obstacle may be gone since the cached table was read.
            before = self.read_table(id, &call(Kind::Read, urgency, id)).await?;
            (after, outcomes) = route_table::edit(&before.value, changes);
        }
        if after == before.value {
            let table = before.table.clone();
            *known = Some(before);
            return Ok((Written { after: table, was_sent: false }, outcomes));
        }
        if before.table.state == ProvisioningState::Updating {
            return Err(operation::unsettled(id));
        }
        let mut call = call(Kind::Write, urgency, id);
        call.region = Some(before.table.location.clone()).filter(|region| !region.is_empty());
        let (started, url) = (Instant::now(), self.url(id, &self.versions.network));
        let body = after.to_string().into_bytes();
        let accepted = match self.transport.send(&call, url.clone(), Some(&before.etag), Some(body)).await {
            Ok(accepted) => accepted,
            Err(error) => {
                if error.left_all_as_it_was() {
                    *known = Some(before);
                }
                return Err(error);
            }
        };
        let document = Document::read(id, &self.complete(&call, url, accepted).await?)?;
        let (nodes, routes) = (changes.len(), document.table.routes.len());
        let took_seconds = started.elapsed().as_secs_f64();
        info!(route_table = %id, nodes, routes, took_seconds, "route table written");
        let table = document.table.clone();
        *known = Some(document);
        Ok((Written { after: table, was_sent: true }, outcomes))
    }
}
