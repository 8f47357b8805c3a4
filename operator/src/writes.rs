//! How many writes to the API server are under way at once, and whether this process may still write.

use std::future::pending;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::warn;

use crate::deadline::uncounted;
use crate::leader::Tenure;

/// How many writes of each sort are under way at once. An edit of a pool concerns thousands of nodes in the
/// same moment, and each request that is under way has a connection of its own.
///
/// Who may lead no more writes nothing: conditions are applied whatever the version, so nothing else would
/// stop them. Such a write waits for ever, since the process is about to end.
pub struct Writes {
    announcements: Semaphore,
    urgent: Semaphore,
    reports: Semaphore,
    tenure: Tenure,
}

const AT_ONCE: usize = 32;

impl Writes {
    pub fn new(tenure: Tenure) -> Writes {
        let [announcements, urgent, reports] = [(); 3].map(|()| Semaphore::new(AT_ONCE));
        Writes { announcements, urgent, reports, tenure }
    }

    /// For what a write to Azure waits for, in its turn: it isn't to stand behind an edit of a pool.
    pub async fn announcement(&self) -> Option<SemaphorePermit<'_>> {
        self.turn(&self.announcements).await
    }

    /// For what nodes wait for: `spec`, and the object itself.
    pub async fn urgent(&self) -> Option<SemaphorePermit<'_>> {
        self.turn(&self.urgent).await
    }

    /// For what people read.
    pub async fn report(&self) -> Option<SemaphorePermit<'_>> {
        self.turn(&self.reports).await
    }

    async fn turn<'a>(&self, of: &'a Semaphore) -> Option<SemaphorePermit<'a>> {
        // It is never closed.
        let turn = uncounted(of.acquire()).await.ok();
        if !self.tenure.is_sure() {
            warn!("nothing is written: another may lead by now");
            return pending().await;
        }
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::LEASE;
    use tokio::time::{Instant, advance, timeout};

    #[tokio::test(start_paused = true)]
    async fn who_may_lead_no_more_writes_neither_spec_nor_conditions() {
        let writes = Writes::new(Tenure::new(Instant::now()));
        assert!(writes.urgent().await.is_some() && writes.report().await.is_some());
        assert!(writes.announcement().await.is_some());
        advance(LEASE).await;
        assert!(timeout(LEASE, writes.announcement()).await.is_err());
        assert!(timeout(LEASE, writes.urgent()).await.is_err());
        assert!(timeout(LEASE, writes.report()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_lost_its_lease_writes_nothing_though_it_was_renewed_a_moment_ago() {
        let tenure = Tenure::new(Instant::now());
        let writes = Writes::new(tenure.clone());
        assert!(writes.urgent().await.is_some());
        tenure.end();
        assert!(!tenure.is_sure());
        assert!(timeout(LEASE, writes.urgent()).await.is_err());
        assert!(timeout(LEASE, writes.report()).await.is_err());
    }
}
