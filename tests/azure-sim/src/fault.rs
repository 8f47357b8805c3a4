//! Faults that a test sets up: refused, delayed, held or cut-off requests.

mod hostile;

use crate::lock::lock;
use crate::request::Request;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::sync::watch;

pub(crate) use hostile::Hostile;

/// Which requests a fault strikes, how often, and its effect. A condition that is absent matches everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Compared without regard to letter case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_contains: Option<String>,
    /// How many requests it strikes; without it, all until it is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    pub effect: Effect,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// Answers this and doesn't apply the request.
    Status {
        status: u16,
        #[serde(default)]
        body: Value,
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// Applies the request and withholds the answer until the fault is deleted.
    Hold,
    /// Withholds the request itself until the fault is deleted.
    HoldBefore,
    /// Cuts the connection, without further effect.
    CutBeforeApply,
    /// Applies the request and cuts the connection instead of answering.
    CutAfterApply,
    /// Applies the request and cuts the connection in the middle of the answer's body.
    CutBody,
    /// Applies the request and answers 200 with this.
    Garble { body: Value },
    /// Applies the request; the operation that it starts ends with this status and error.
    OperationEnds { status: Ending, error: Value },
    /// Applies the request after so many milliseconds.
    Delay { ms: u64 },
}

/// How an operation ends that doesn't succeed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Ending {
    Failed,
    Canceled,
}

/// The state of a fault.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    pub id: u64,
    pub hits: u64,
    #[serde(flatten)]
    pub fault: Fault,
}

/// The effect of a fault on the request that it strikes.
pub(crate) struct Strike {
    pub(crate) effect: Effect,
    lifted: watch::Receiver<()>,
}

impl Strike {
    /// Waits until the fault is deleted.
    pub(crate) async fn lifted(mut self) {
        // The sender only ever goes away, it sends nothing.
        while self.lifted.changed().await.is_ok() {}
    }
}

#[derive(Default)]
pub(crate) struct Faults(Mutex<Ordered>);

#[derive(Default)]
struct Ordered {
    last: u64,
    /// With the end of the requests that it holds, when it is dropped.
    hostile: Option<(Hostile, watch::Sender<()>)>,
    standing: BTreeMap<u64, (Standing, watch::Sender<()>)>,
}

impl Faults {
    fn lock(&self) -> std::sync::MutexGuard<'_, Ordered> {
        lock(&self.0)
    }

    pub(crate) fn order(&self, fault: Fault) -> u64 {
        let mut ordered = self.lock();
        ordered.last += 1;
        let id = ordered.last;
        ordered.standing.insert(id, (Standing { id, hits: 0, fault }, watch::Sender::new(())));
        id
    }

    /// Deletes a fault; the requests that it holds go on. Returns whether there was one.
    pub(crate) fn lift(&self, id: u64) -> bool {
        self.lock().standing.remove(&id).is_some()
    }

    /// From now on the fate of each request is drawn. Without `hostile` the drawing ends, and requests that
    /// were held go on.
    pub(crate) fn draw(&self, hostile: Option<Hostile>) {
        self.lock().hostile = hostile.map(|hostile| (hostile, watch::Sender::new(())));
    }

    pub(crate) fn standing(&self) -> Vec<Standing> {
        self.lock().standing.values().map(|(standing, _)| standing.clone()).collect()
    }

    /// The first fault that strikes this request.
    pub(crate) fn strike(&self, request: &Request) -> Option<Strike> {
        let path = request.path.to_lowercase();
        let mut ordered = self.lock();
        let found = ordered.standing.values_mut().find(|(standing, _)| {
            let Fault { method, path_contains, count, effect: _ } = &standing.fault;
            method.as_ref().is_none_or(|method| method.eq_ignore_ascii_case(&request.method))
                && path_contains.as_ref().is_none_or(|part| path.contains(&part.to_lowercase()))
                && count.is_none_or(|count| standing.hits < count)
        });
        let Some((standing, sender)) = found else {
            // Actions of the subscription's owner are the test's.
            let is_clients = path.starts_with("/subscriptions/")
                && request.header("authorization") != Some("Bearer owner");
            let (hostile, held) = ordered.hostile.as_mut().filter(|_| is_clients)?;
            return Some(Strike { effect: hostile.draw(request)?, lifted: held.subscribe() });
        };
        standing.hits += 1;
        Some(Strike { effect: standing.fault.effect.clone(), lifted: sender.subscribe() })
    }
}
