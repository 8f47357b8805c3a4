//! How urgent a call is, and until when.

use std::fmt;
use std::future::pending;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::Priority;

/// Why a call is made. Before its turn within Azure's limits has come, its node may come to need something
/// more urgent; and when it has come, the caller may have to agree once more. If the call is no longer
/// wanted, it gives its place up and ends as [`super::Error::Outgrown`] or [`super::Error::Unconfirmed`]:
/// nothing was sent and nothing paid.
#[derive(Clone)]
pub struct Urgency {
    pub(crate) priority: Priority,
    outgrown: Option<Shared<BoxFuture<'static, ()>>>,
    confirm: Option<MaySend>,
}

/// Whether a write may still be sent, asked when its turn has come.
type MaySend = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

impl Urgency {
    /// An urgency of this priority until `outgrown` ends.
    pub fn until(priority: Priority, outgrown: impl Future<Output = ()> + Send + 'static) -> Urgency {
        Urgency { priority, outgrown: Some(outgrown.boxed().shared()), confirm: None }
    }

    /// The same for a write that is sent only if `confirm` agrees, once its turn has come.
    pub fn confirmed<F>(self, confirm: impl Fn() -> F + Send + Sync + 'static) -> Urgency
    where
        F: Future<Output = bool> + Send + 'static,
    {
        Urgency { confirm: Some(Arc::new(move || confirm().boxed())), ..self }
    }

    pub(super) async fn is_confirmed(&self) -> bool {
        match &self.confirm {
            Some(confirm) => confirm().await,
            None => true,
        }
    }

    /// The same, but at most until `then` ends.
    pub fn at_most_until(self, then: impl Future<Output = ()> + Send + 'static) -> Urgency {
        let before = self.clone();
        let either = async move {
            tokio::select! {
                () = before.outgrown() => {}
                () = then => {}
            }
        };
        Urgency { outgrown: Some(either.boxed().shared()), ..self }
    }

    /// Ends when the call is no longer urgent enough. It may never end.
    pub async fn outgrown(&self) {
        match &self.outgrown {
            Some(outgrown) => outgrown.clone().await,
            None => pending().await,
        }
    }

    /// Whether it isn't any more.
    pub(super) fn is_outgrown(&self) -> bool {
        self.outgrown().now_or_never().is_some()
    }
}

impl From<&Urgency> for Urgency {
    fn from(urgency: &Urgency) -> Urgency {
        urgency.clone()
    }
}

impl From<Priority> for Urgency {
    fn from(priority: Priority) -> Urgency {
        Urgency { priority, outgrown: None, confirm: None }
    }
}

impl fmt::Debug for Urgency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Urgency").field("priority", &self.priority).finish_non_exhaustive()
    }
}
