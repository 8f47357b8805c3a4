//! Whether the process as a whole is stuck, which is all that a restart could cure. An outage of Azure or of
//! the API server doesn't count: a task that waits for an answer still beats.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lock::lock;

/// How often a waiting task reports that it is alive.
const BEAT: Duration = Duration::from_secs(10);
/// A task without a beat for this long is stuck. No single step takes as long: each request ends before.
const STUCK: Duration = Duration::from_secs(120);

/// When each task was last alive, when each watch last brought an event and how often it failed, and since
/// when nodes are being reconciled.
#[derive(Debug, Default)]
pub struct Health {
    beats: Mutex<BTreeMap<&'static str, Instant>>,
    heard: Mutex<BTreeMap<&'static str, Instant>>,
    interrupted: Mutex<BTreeMap<&'static str, u64>>,
    under_way: Mutex<BTreeMap<String, Instant>>,
}

/// A reconcile under way; over when dropped.
pub struct UnderWay<'a>(&'a Health, String);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.under_way).remove(&self.1);
    }
}

impl Health {
    /// Does a task's work to its end, and shows meanwhile that the task is alive.
    pub async fn alive<T>(&self, task: &'static str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = beat.tick() => self.beat(task, Instant::now()),
                done = &mut work => return done,
            }
        }
    }

    fn beat(&self, task: &'static str, now: Instant) {
        lock(&self.beats).insert(task, now);
    }

    /// The watch of this kind has brought an event.
    pub fn heard(&self, kind: &'static str) {
        lock(&self.heard).insert(kind, Instant::now());
    }

    /// The watch of this kind has failed; it is begun anew.
    pub fn interrupted(&self, kind: &'static str) {
        *lock(&self.interrupted).entry(kind).or_default() += 1;
    }

    /// How often each watch has failed.
    pub fn interruptions(&self) -> Vec<(&'static str, u64)> {
        let heard = lock(&self.heard);
        let failed = lock(&self.interrupted);
        let kinds: BTreeSet<_> = heard.keys().chain(failed.keys()).copied().collect();
        kinds.into_iter().map(|kind| (kind, failed.get(kind).copied().unwrap_or_default())).collect()
    }

    /// The tasks that are stuck, and for how long.
    pub fn stuck(&self, now: Instant) -> Vec<(&'static str, Duration)> {
        let beats = lock(&self.beats);
        let ages = beats.iter().map(|(task, last)| (*task, now.saturating_duration_since(*last)));
        ages.filter(|(_, age)| *age >= STUCK).collect()
    }

    /// A node's reconcile begins.
    pub fn begin(&self, node: &str) -> UnderWay<'_> {
        lock(&self.under_way).insert(node.to_owned(), Instant::now());
        UnderWay(self, node.to_owned())
    }

    /// How long the longest reconcile under way has taken so far.
    pub fn longest(&self, now: Instant) -> Duration {
        let begun = lock(&self.under_way).values().min().copied();
        begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun))
    }

    /// How long ago each watch brought an event.
    pub fn silences(&self, now: Instant) -> Vec<(&'static str, Duration)> {
        let heard = lock(&self.heard);
        heard.iter().map(|(kind, last)| (*kind, now.saturating_duration_since(*last))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_for_hours_is_alive_and_one_that_is_held_up_is_stuck() {
        let health = Health::default();
        {
            let wait = health.alive("watch", tokio::time::sleep(Duration::from_secs(3600)));
            assert!(tokio::time::timeout(Duration::from_secs(1800), wait).await.is_err());
            assert_eq!(health.stuck(Instant::now()), []);
        }
        // The task isn't polled any more, as when its thread doesn't come back.
        tokio::time::advance(STUCK - Duration::from_secs(BEAT.as_secs() + 1)).await;
        assert_eq!(health.stuck(Instant::now()), []);
        tokio::time::advance(BEAT * 2).await;
        assert_eq!(health.stuck(Instant::now()).len(), 1);
    }
}
