//! Follows a long-running operation of ARM to its end, and keeps its result.
//!
//! We follow it ourselves, because the pollers of the SDKs lose the error's code and body, wait 30 s if Azure
//! names no interval, have no time limit and follow whatever host a header names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use reqwest::Url;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::ResourceId;
use super::budget::Kind;
use super::error::{ArmError, Effect, Error, classify};
use super::transport::{Answer, Call, Transport, retry_after};
use crate::lock::lock;

/// The interval of polls if Azure names none. Azure's is used within the bounds below.
const INTERVAL: Duration = Duration::from_secs(10);
/// When to poll first if Azure names no time, for pods may wait and most writes take seconds. A `Retry-After`
/// in the answer to the write names the time: ARM's contract is that clients poll no sooner, and throttles
/// those that do. The one recording of a running VM's NIC has 10 s there, so that in practice pods wait for
/// 10 s.
const FIRST: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);
/// A NIC write takes seconds; one that takes this long won't end well.
const GIVE_UP: Duration = Duration::from_secs(20 * 60);

/// How long to put off a write to a resource that another operation is changing. Such operations take
/// seconds.
const UNSETTLED: Duration = Duration::from_secs(5);

/// Why a resource can't be written while its state isn't final: Azure would cancel the operation under way,
/// ours or another client's, in favour of this write.
pub(super) fn unsettled(resource: &ResourceId) -> Error {
    Error::Busy {
        resource: resource.to_string(),
        message: "an operation on it is still under way".to_owned(),
        retry_after: UNSETTLED,
    }
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Operation {
    /// Used as it came: its query is signed.
    url: Url,
    wait: Duration,
}

/// What has shown that an operation has ended well.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    Operation,
    /// The resource: it is there, and no operation is under way.
    Resource,
}

/// The result of one poll.
#[derive(Debug)]
enum Progress {
    Underway,
    Succeeded,
    Ended(ArmError),
}

impl Operation {
    /// The operation that an answer to a write names; `None` if the write is complete. If ARM only answers
    /// that the resource is still being updated, the resource itself is polled at `resource`.
    pub(super) fn of(answer: &Answer, resource: &Url, call: &Call) -> Result<Option<Operation>, Error> {
        let wait = pace(retry_after(&answer.headers).or(Some(FIRST)));
        if let Some(header) = answer.headers.get("azure-asyncoperation") {
            let url = header.to_str().ok().and_then(|url| Url::parse(url).ok());
            let url =
                url.ok_or_else(|| Error::unexpected(&call.resource, "Azure-AsyncOperation isn't a URL"))?;
            return Ok(Some(Operation { url, wait }));
        }
        let body = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        Ok(match Progress::read(&body) {
            Progress::Underway => Some(Operation { url: resource.clone(), wait }),
            Progress::Succeeded => None,
            Progress::Ended(error) => {
                return Err(classify(None, &error, None, &call.resource, Effect::Write));
            }
        })
    }

    /// Waits until the operation has ended. `call` is the write's own.
    ///
    /// A poll that gets no answer, or fails because Azure is busy, shows nothing of the operation: it is
    /// tried again. A refused poll shows nothing either: then the resource at `resource` is polled instead
    /// until it is settled, and `tracking` remembers a missing permission. Fails with the operation's own
    /// error, or with [`Error::OutcomeUnknown`] when it takes too long.
    pub(super) async fn finish(
        mut self,
        transport: &Transport,
        call: &Call,
        resource: &Url,
        tracking: &Tracking,
    ) -> Result<End, Error> {
        let started = Instant::now();
        if self.url != *resource && tracking.is_denied(&call.resource, started) {
            self.url = resource.clone();
        }
        loop {
            if started.elapsed() + self.wait > GIVE_UP {
                return Err(Error::OutcomeUnknown {
                    resource: call.resource.clone(),
                    message: format!("the operation hasn't ended within {} minutes", GIVE_UP.as_secs() / 60),
                });
            }
            tokio::time::sleep(self.wait).await;
            let follows_operation = self.url != *resource;
            let kind = if follows_operation { Kind::Poll } else { Kind::Read };
            let poll = call.following(kind);
            match transport.send(&poll, self.url.clone(), None, None).await {
                Ok(answer) => {
                    if follows_operation {
                        tracking.allowed(&call.resource);
                    }
                    self.wait = pace(retry_after(&answer.headers));
                    let body = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
                    match Progress::read(&body) {
                        Progress::Underway => {}
                        Progress::Succeeded if follows_operation => return Ok(End::Operation),
                        Progress::Succeeded => return Ok(End::Resource),
                        Progress::Ended(error) => {
                            return Err(classify(None, &error, None, &call.resource, Effect::Write));
                        }
                    }
                }
                Err(
                    error @ (Error::Throttled { retry_after, .. }
                    | Error::Busy { retry_after, .. }
                    | Error::Unavailable { retry_after, .. }),
                ) => {
                    debug!(resource = call.resource, %error, "couldn't poll, trying again");
                    self.wait = pace(Some(retry_after));
                }
                Err(
                    error @ (Error::Denied { .. }
                    | Error::NotFound { .. }
                    | Error::ScopeMissing { .. }
                    | Error::Arm { .. }),
                ) if follows_operation => {
                    warn!(resource = call.resource, %error, "can't follow the operation, reading the resource instead");
                    self.url = resource.clone();
                    self.wait = SHORTEST;
                    if matches!(error, Error::Denied { .. }) {
                        tracking.denied(&call.resource, error, Instant::now());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Where operations may be followed, as far as known. The right to read them is granted for a subscription or
/// a resource group, never for one operation.
#[derive(Debug, Default)]
pub(super) struct Tracking(Mutex<HashMap<String, Seen>>);

#[derive(Clone, Debug)]
enum Seen {
    Allowed,
    Denied { error: Arc<Error>, since: Instant },
}

/// A permission takes minutes to work once it is granted, and until then each refused poll is a wasted
/// request.
const DENIED_FOR: Duration = Duration::from_secs(600);

impl Tracking {
    /// The last result for writes in the scope of this resource: `None` if none was followed yet.
    pub(super) fn seen(&self, resource: &str) -> Option<Result<(), Arc<Error>>> {
        self.lock().get(&scope(resource)).map(|seen| match seen {
            Seen::Allowed => Ok(()),
            Seen::Denied { error, .. } => Err(error.clone()),
        })
    }

    fn is_denied(&self, resource: &str, now: Instant) -> bool {
        let seen = self.lock().get(&scope(resource)).cloned();
        matches!(seen, Some(Seen::Denied { since, .. }) if now.duration_since(since) < DENIED_FOR)
    }

    fn allowed(&self, resource: &str) {
        self.lock().insert(scope(resource), Seen::Allowed);
    }

    fn denied(&self, resource: &str, error: Error, since: Instant) {
        self.lock().insert(scope(resource), Seen::Denied { error: Arc::new(error), since });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        lock(&self.0)
    }
}

/// Subscription and resource group, in lower case.
fn scope(resource: &str) -> String {
    let parts: Vec<&str> = resource.split('/').take(5).collect();
    parts.join("/").to_ascii_lowercase()
}

impl Progress {
    /// Reads an operation's status document, or the resource's own.
    fn read(body: &Value) -> Progress {
        let status =
            body["status"].as_str().or(body["properties"]["provisioningState"].as_str()).unwrap_or_default();
        match status.to_ascii_lowercase().as_str() {
            "succeeded" => Progress::Succeeded,
            "failed" | "canceled" | "cancelled" => Progress::Ended(match body.get("error") {
                Some(error) if !error.is_null() => ArmError::of(error),
                _ => ArmError::bare(status),
            }),
            _ => Progress::Underway,
        }
    }
}

fn pace(asked: Option<Duration>) -> Duration {
    asked.unwrap_or(INTERVAL).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pace_is_azures_within_limits() {
        let table = [(None, 10), (Some(0), 1), (Some(25), 25), (Some(86_400), 120)];
        for (after, seconds) in table {
            assert_eq!(pace(after.map(Duration::from_secs)), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn an_operation_that_ended_badly_keeps_its_code() {
        let body =
            json!({"status": "Failed", "error": {"code": "SubnetIsFull", "message": "Subnet s is full."}});
        let Progress::Ended(error) = Progress::read(&body) else { panic!("still under way") };
        let error = classify(None, &error, None, "nic", Effect::Write);
        assert!(matches!(error, Error::SubnetFull { .. }), "{error:?}");
    }

    #[test]
    fn an_operation_canceled_without_a_reason_was_superseded() {
        let Progress::Ended(error) = Progress::read(&json!({"status": "Canceled"})) else {
            panic!("under way")
        };
        let error = classify(None, &error, None, "nic", Effect::Write);
        assert!(matches!(error, Error::Superseded { .. }), "{error:?}");
    }

    #[test]
    fn a_status_that_is_not_an_end_is_under_way() {
        for body in [json!({"status": "InProgress"}), json!({"status": "Novel"}), json!({}), Value::Null] {
            assert!(matches!(Progress::read(&body), Progress::Underway), "{body}");
        }
    }
}
