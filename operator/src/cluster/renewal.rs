//! When a watch is begun anew though its connection lives: it lacks an object that a list of the API server
//! shows, and goes on lacking it.
//!
//! A watch may be silent for minutes because nothing has changed. A watch through a proxy that passes nothing
//! any more is silent, too, and TCP notices no dead peer. The client ends a watch without bookmarks after two
//! minutes; a new leader that waited for that would serve no node for so long.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::lock::lock;

/// A watch that lags for longer is dead: the API server has begun any answer, and gone on with it, before
/// the client's own limits end the request, 15 s and 10 s.
const DEAD: Duration = Duration::from_secs(25);

/// Connects the tasks that compare a view with a list to the task that watches; a clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// When the watch was begun anew last, and how long it was given then.
    last: Arc<Mutex<Option<(Instant, Duration)>>>,
    due: Arc<Notify>,
}

impl Renewal {
    /// Since then the view has lacked something that a list shows. Each time the watch has begun anew in vain
    /// the limit doubles, because a long list must be able to end, whichever object is missing then.
    pub fn lags_since(&self, since: Instant) {
        let now = Instant::now();
        let mut last = lock(&self.last);
        let lately = last.filter(|(begun, given)| now.saturating_duration_since(*begun) < *given * 4);
        let (from, given) = lately.map_or((since, DEAD), |(begun, given)| (begun.max(since), given));
        if now.saturating_duration_since(from) >= given {
            *last = Some((now, given * 2));
            self.due.notify_one();
        }
    }

    /// Waits until the watch is to be begun anew.
    pub async fn due(&self) {
        self.due.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_lags_is_begun_anew_after_a_while_and_then_ever_less_often() {
        let renewal = Renewal::default();
        let begun = Instant::now();
        let mut renewed = Vec::new();
        for _ in 0..200 {
            advance(Duration::from_secs(1)).await;
            renewal.lags_since(begun);
            if renewal.due().now_or_never().is_some() {
                renewed.push(begun.elapsed().as_secs());
            }
        }
        assert_eq!(renewed, [25, 75, 175]);
        let is_due_after = async |seconds| {
            let another = Instant::now();
            advance(Duration::from_secs(seconds)).await;
            renewal.lags_since(another);
            renewal.due().now_or_never().is_some()
        };
        assert!(!is_due_after(199).await, "others' lags don't end a list either");
        advance(Duration::from_secs(800)).await;
        assert!(!is_due_after(24).await);
        assert!(is_due_after(25).await, "much later a lag is met as the first was");
    }
}
