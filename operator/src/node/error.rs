//! How a reconcile may fail.

use std::time::Duration;

use crate::api_server::{CONFLICT, is_status};
use crate::azure;
use crate::caught::Panicked;
use crate::cluster::proof::Unproved;

/// Why a reconcile ended early, by the stage that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Find(#[source] azure::Error),
    #[error("{0}")]
    Write(#[source] azure::Error),
    #[error("spec not applied: {0}")]
    Publish(#[source] kube::Error),
    #[error("conditions not applied: {0}")]
    Report(#[source] kube::Error),
    #[error("object not removed: {0}")]
    Delete(#[source] kube::Error),
    /// An object that was to be made again.
    #[error("the object hasn't gone yet")]
    StillThere,
    #[error("taint not changed: {0}")]
    Taint(#[source] kube::Error),
    #[error("{0}")]
    Pods(#[from] Unproved),
    /// It was dropped.
    #[error("dropped after {} s, waits for Azure's limits and operations not counted", limit.as_secs())]
    Overdue { limit: Duration },
    #[error("{0}")]
    Panicked(#[from] Panicked),
}

impl Error {
    /// A label from a fixed few, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Find(error) | Error::Write(error) => error.reason().name(),
            _ if self.is_conflict() => "Conflict",
            Error::Publish(_)
            | Error::Report(_)
            | Error::Delete(_)
            | Error::StillThere
            | Error::Taint(_)
            | Error::Pods(Unproved::Asked(_)) => "APIServer",
            Error::Pods(Unproved::Behind) => "Behind",
            Error::Overdue { .. } => "Overdue",
            Error::Panicked(_) => "Panicked",
        }
    }

    /// A write that waited for its turn at Azure gave its place up: nothing was sent, and the node is planned
    /// anew.
    pub fn is_given_up(&self) -> bool {
        matches!(self, Error::Find(error) | Error::Write(error) if error.is_given_up())
    }

    /// A write that failed like this has sent nothing to Azure: it gave its place up, or wasn't announced.
    pub fn has_sent_nothing(&self) -> bool {
        self.is_given_up() || !matches!(self, Error::Write(_))
    }

    /// The object had been changed since it was read: nothing is wrong, the plan was made from the past.
    pub fn is_conflict(&self) -> bool {
        match self {
            Error::Publish(error) | Error::Report(error) | Error::Delete(error) | Error::Taint(error) => {
                is_status(error, CONFLICT)
            }
            Error::StillThere => true,
            Error::Find(_)
            | Error::Write(_)
            | Error::Pods(_)
            | Error::Overdue { .. }
            | Error::Panicked(_) => false,
        }
    }
}
