//! A time limit that counts only the work itself: a wait that another task ends, as for a turn within Azure's
//! limits, has a limit of its own and stops the clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use crate::lock::lock;

tokio::task_local! {
    /// The deadline of the piece of work that is being polled. Work without a limit has none.
    static CLOCK: Arc<Mutex<Clock>>;
}

/// A piece of work reads the clock no more often than this.
const GRANULARITY: Duration = Duration::from_secs(1);

/// The limit has passed; the work was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue;

/// How much of its time a piece of work has used.
struct Clock {
    used: Duration,
    /// Since when it runs. The time before is in `used`.
    since: Instant,
    /// How many waits stop it. The waits of parts that are done side by side overlap.
    stopped_by: usize,
}

impl Clock {
    fn used(&self, now: Instant) -> Duration {
        let running = if self.stopped_by == 0 { now.duration_since(self.since) } else { Duration::ZERO };
        self.used + running
    }

    fn stop(&mut self, now: Instant) {
        self.used = self.used(now);
        self.stopped_by += 1;
    }

    fn go_on(&mut self, now: Instant) {
        self.stopped_by -= 1;
        self.since = now;
    }
}

/// Does the work, or drops it once it has used up its time, a second late at most.
///
/// # Errors
/// When it was dropped.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Overdue> {
    let start = Clock { used: Duration::ZERO, since: Instant::now(), stopped_by: 0 };
    let clock = Arc::new(Mutex::new(start));
    let mut work = std::pin::pin!(CLOCK.scope(clock.clone(), work));
    loop {
        // It can't be used up sooner than this.
        let left = limit.saturating_sub(lock(&clock).used(Instant::now()));
        if left.is_zero() {
            return Err(Overdue);
        }
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = sleep(left.max(GRANULARITY)) => {}
        }
    }
}

/// Waits for an event that another task brings about: from now on the time doesn't count. No `async fn`,
/// which would have room for the wait twice: thousands may wait.
pub fn uncounted<F: Future>(wait: F) -> impl Future<Output = F::Output> {
    let stopped = CLOCK.try_with(Arc::clone).ok().map(Stopped::new);
    wait.map(move |done| {
        drop(stopped);
        done
    })
}

/// Lets the clock go on when dropped.
struct Stopped(Arc<Mutex<Clock>>);

impl Stopped {
    fn new(clock: Arc<Mutex<Clock>>) -> Stopped {
        lock(&clock).stop(Instant::now());
        Stopped(clock)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        lock(&self.0).go_on(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Waits;
    use futures::future::{join, pending};

    const LIMIT: Duration = Waits::FULL.deadline;
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn work_that_takes_longer_than_its_limit_is_dropped_and_other_work_is_not() {
        assert_eq!(within(LIMIT, sleep(LIMIT / 2)).await, Ok(()));
        let begun = Instant::now();
        assert_eq!(within(LIMIT, pending::<()>()).await, Err(Overdue));
        assert_eq!(begun.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_others_does_not_count_and_the_work_after_it_does() {
        let begun = Instant::now();
        let work = async {
            sleep(LIMIT / 2).await;
            uncounted(sleep(HOUR)).await;
            pending::<()>().await;
        };
        assert_eq!(within(LIMIT, work).await, Err(Overdue));
        let late = begun.elapsed() - HOUR - LIMIT;
        assert!(late <= GRANULARITY, "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_waits_side_by_side_the_last_lets_the_clock_go_on() {
        let begun = Instant::now();
        let work = async {
            join(uncounted(sleep(HOUR)), uncounted(sleep(2 * HOUR))).await;
            pending::<()>().await;
        };
        assert_eq!(within(LIMIT, work).await, Err(Overdue));
        assert!(begun.elapsed() - 2 * HOUR - LIMIT <= GRANULARITY, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_lets_the_clock_go_on() {
        let begun = Instant::now();
        let work = async {
            let _ = tokio::time::timeout(HOUR, uncounted(pending::<()>())).await;
            pending::<()>().await;
        };
        assert_eq!(within(LIMIT, work).await, Err(Overdue));
        assert!(begun.elapsed() - HOUR - LIMIT <= GRANULARITY, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn work_without_a_limit_waits_as_ever() {
        assert_eq!(uncounted(async { 5 }).await, 5);
    }
}
