//! How urgent a call is, and until when.

use std::future::pending;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::Priority;

/// Why a call is made. Before its turn within Azure's limits has come, its node may come to need something
/// more urgent. Then the call gives its place up and ends as [`super::Error::Outgrown`]: nothing was sent and
/// nothing paid.
#[derive(Clone, Debug)]
pub struct Urgency {
    pub(super) priority: Priority,
    outgrown: Option<Shared<BoxFuture<'static, ()>>>,
}

impl Urgency {
    /// An urgency of this priority until `outgrown` ends.
    pub fn until(priority: Priority, outgrown: impl Future<Output = ()> + Send + 'static) -> Urgency {
        Urgency { priority, outgrown: Some(outgrown.boxed().shared()) }
    }

    /// Ends when the call is no longer urgent enough. It may never end.
    pub(super) async fn outgrown(&self) {
        match &self.outgrown {
            Some(outgrown) => outgrown.clone().await,
            None => pending().await,
        }
    }

    /// Whether that has been noticed.
    pub(super) fn is_outgrown(&self) -> bool {
        self.outgrown.as_ref().is_some_and(|outgrown| outgrown.peek().is_some())
    }
}

impl From<&Urgency> for Urgency {
    fn from(urgency: &Urgency) -> Urgency {
        urgency.clone()
    }
}

impl From<Priority> for Urgency {
    fn from(priority: Priority) -> Urgency {
        Urgency { priority, outgrown: None }
    }
}
