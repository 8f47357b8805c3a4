//! A panic ends the work on one object, not the process: the next leader would meet the same object, and
//! panic, too.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use kube::runtime::controller::Action;
use tracing::error;

/// An object about which the operator has panicked is tried again after this, or when it changes.
const LATER: Duration = Duration::from_secs(60);

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

/// Reconciles an object, or leaves it for later.
///
/// # Errors
/// The reconcile's own.
pub async fn or_later<E>(
    object: &str,
    reconcile: impl Future<Output = Result<Action, E>>,
) -> Result<Action, E> {
    caught(reconcile).await.unwrap_or_else(|panicked| {
        error!(object, error = %panicked, "reconcile ended");
        Ok(Action::requeue(LATER))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_work_and_nothing_else() {
        let index = 3;
        let work = async |values: &[u8]| {
            tokio::task::yield_now().await;
            values[index]
        };
        assert_eq!(caught(work(&[0, 1, 2])).await, Err(Panicked));
        assert_eq!(caught(work(&[0, 1, 2, 3])).await, Ok(3));
        let bad = or_later("a", async {
            Ok::<_, ()>(Action::requeue(Duration::from_secs(u64::from(work(&[]).await))))
        });
        assert_eq!(bad.await, Ok(Action::requeue(LATER)));
        assert_eq!(or_later("a", async { Err::<Action, _>(1) }).await, Err(1));
    }
}
