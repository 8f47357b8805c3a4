//! A panic ends the work on one object, not the process: the next leader would meet the same object, and
//! panic, too. Nor does work that never ends keep its object from ever being tried again.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt;
use kube::runtime::controller::Action;
use tracing::{error, warn};
use vnetpool_apiserver::jittered;

use crate::context::Context;
use crate::deadline::{Overdue, within};

/// An object about which the operator has panicked is tried again after this, or when it changes.
const LATER: Duration = Duration::from_secs(60);
/// An object whose reconcile the API server or its deadline has ended is tried again after this.
pub const RETRY: Duration = Duration::from_secs(8);

/// The work has panicked. The log has the panic's message and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("panicked, which is a bug; the log has its place")]
pub struct Panicked;

/// Does the work. State that it may have changed half counts as lost: the caller doesn't use it again. No
/// `async fn`, which would have room for the work twice: thousands may be under way.
///
/// # Errors
/// When it panicked.
pub fn caught<T>(work: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
    AssertUnwindSafe(work).catch_unwind().map(|done| done.map_err(|_| Panicked))
}

/// Reconciles an object within the deadline, or leaves it for later: the next attempt begins anew.
///
/// # Errors
/// The reconcile's own.
pub async fn or_later<E>(
    ctx: &Context,
    (controller, object): (&'static str, &str),
    reconcile: impl Future<Output = Result<Action, E>>,
) -> Result<Action, E> {
    let (started, limit) = (Instant::now(), ctx.waits.deadline);
    let counted = |outcome| ctx.metrics.reconciled(controller, outcome, started.elapsed());
    match within(limit, caught(reconcile)).await {
        Ok(Ok(done)) => done,
        Ok(Err(panicked)) => {
            counted("Panicked");
            error!(controller, object, error = %panicked, "reconcile ended");
            Ok(Action::requeue(LATER))
        }
        Err(Overdue) => {
            counted("Overdue");
            warn!(controller, object, took_seconds = limit.as_secs_f64(), "reconcile dropped");
            Ok(Action::requeue(jittered(RETRY)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test]
    async fn a_panic_ends_the_work_and_nothing_else() {
        let (ctx, index) = (Context::sample(), 3);
        let work = async |values: &[u8]| {
            tokio::task::yield_now().await;
            values[index]
        };
        assert_eq!(caught(work(&[0, 1, 2])).await, Err(Panicked));
        assert_eq!(caught(work(&[0, 1, 2, 3])).await, Ok(3));
        let bad = or_later(&ctx, ("pool", "a"), async {
            Ok::<_, ()>(Action::requeue(Duration::from_secs(u64::from(work(&[]).await))))
        });
        assert_eq!(bad.await, Ok(Action::requeue(LATER)));
        assert_eq!(or_later(&ctx, ("pool", "a"), async { Err::<Action, _>(1) }).await, Err(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_never_ends_is_dropped_counted_and_tried_again() {
        let (ctx, begun) = (Context::sample(), tokio::time::Instant::now());
        let done = or_later(&ctx, ("admit", "a"), pending::<Result<Action, ()>>()).await;
        assert!(done.is_ok_and(|again| again != Action::await_change()));
        assert_eq!(begun.elapsed(), ctx.waits.deadline);
        let counted = r#"reconciles_total{controller="admit",outcome="Overdue"} 1"#;
        let metrics = ctx.metrics.render().unwrap();
        assert!(metrics.contains(counted), "{metrics}");
    }
}
