//! Work that is done beside the reconciles and ends with the leadership that began it: it holds that one's
//! view of the cluster and of Azure.

use std::sync::Mutex;

use tokio::task::JoinSet;

use crate::lock::lock;

#[derive(Debug, Default)]
pub struct Beside(Mutex<JoinSet<()>>);

impl Beside {
    pub fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut all = lock(&self.0);
        // Of what has ended nothing is kept.
        while all.try_join_next().is_some() {}
        all.spawn(work);
    }

    /// Ends all of it at once, wherever it waits.
    pub async fn end(&self) {
        let mut all = std::mem::take(&mut *lock(&self.0));
        all.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_task_that_waits_for_ever_ends_with_the_leadership_and_drops_its_state() {
        let (beside, view) = (Beside::default(), Arc::new(()));
        for _ in 0..3 {
            let view = view.clone();
            beside.begin(async move {
                pending::<()>().await;
                drop(view);
            });
        }
        assert_eq!(Arc::strong_count(&view), 4);
        beside.end().await;
        assert_eq!(Arc::strong_count(&view), 1);
    }

    #[tokio::test]
    async fn a_task_that_has_ended_takes_no_room() {
        let beside = Beside::default();
        for _ in 0..100 {
            beside.begin(async {});
            tokio::task::yield_now().await;
        }
        assert!(lock(&beside.0).len() < 3, "{}", lock(&beside.0).len());
    }
}
