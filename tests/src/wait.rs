//! The one way to wait: until a condition holds, or for as long as it has to hold.

use anyhow::{Result, bail};
use std::fmt::Write;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long between two checks.
const PAUSE: Duration = Duration::from_millis(250);
/// So many different states of one wait are reported; further ones are only counted.
const REPORTED: usize = 6;
/// So much of a state is reported: some carry whole objects.
const LENGTH: usize = 240;

/// So much longer than usual a step may take at most on a machine with much other work.
const MOST_STRAINED: f64 = 4.0;

/// A limit that runs out more slowly while more processes want to run on this machine than it has cores: a
/// process without processor time can promise nothing.
pub struct Limit {
    left: Duration,
    counted: Instant,
}

impl Limit {
    /// Begins now. `within` is its length on a machine that has enough cores for the running processes.
    pub fn new(within: Duration) -> Limit {
        Limit { left: within, counted: Instant::now() }
    }

    pub fn is_over(&mut self) -> bool {
        let now = Instant::now();
        self.left = self.left.saturating_sub((now - self.counted).div_f64(strain_now()));
        self.counted = now;
        self.left.is_zero()
    }
}

/// The same for code that takes its limit beforehand, by the present load.
pub fn patience(limit: Duration) -> Duration {
    limit.mul_f64(strain_now())
}

fn strain_now() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    strain(load, std::thread::available_parallelism().map_or(1, usize::from))
}

fn strain(load: f64, cores: usize) -> f64 {
    (load / cores as f64).clamp(1.0, MOST_STRAINED)
}

/// Runs `check` until it returns a value, a few times a second. All states before that are printed: a wrong
/// state that passes is no failure, but a reader should see that it was there.
///
/// `within` is a [`Limit`]'s.
///
/// # Errors
/// When it didn't come true in time; with the last state and those before.
pub async fn eventually<T, F, Fut>(what: &str, within: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let begun = Instant::now();
    let mut limit = Limit::new(within);
    let mut before = Changes::default();
    loop {
        let last = match check().await {
            Ok(Some(value)) => {
                if let Some(changes) = before.reported() {
                    println!("{what}: after {:.1} s; before that {changes}", begun.elapsed().as_secs_f64());
                }
                return Ok(value);
            }
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if limit.is_over() {
            let changes = before.reported().map(|changes| format!(" (in the meantime {changes})"));
            let (within, took) = (within.as_secs(), begun.elapsed().as_secs());
            bail!("{what}: not within {within} s, after {took} s: {last}{}", changes.unwrap_or_default());
        }
        before.saw(begun.elapsed(), last);
        sleep(PAUSE).await;
    }
}

/// Runs `check` a few times a second, for so long, and at the very end; it must succeed each time.
///
/// # Errors
/// The first that `check` gave, and after how long.
pub async fn throughout<F, Fut>(what: &str, time: Duration, mut check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let begun = Instant::now();
    loop {
        let is_last = begun.elapsed() >= time;
        if let Err(error) = check().await {
            bail!("{what}: not any more after {:.1} s: {error:#}", begun.elapsed().as_secs_f64());
        }
        if is_last {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// The states that a wait has seen, each as often as it came anew.
#[derive(Default)]
struct Changes {
    reported: Vec<(Duration, String)>,
    last: String,
    more: usize,
}

impl Changes {
    fn saw(&mut self, after: Duration, state: String) {
        if state == self.last {
            return;
        }
        if self.reported.len() < REPORTED {
            let mut short: String = state.chars().take(LENGTH).collect();
            if short.len() < state.len() {
                short.push('…');
            }
            self.reported.push((after, short.replace('\n', " ")));
        } else {
            self.more += 1;
        }
        self.last = state;
    }

    /// Empty where there is nothing to report but the time.
    fn reported(&self) -> Option<String> {
        if self.reported.iter().all(|(_, state)| state == "not yet") {
            return None;
        }
        let mut text = String::new();
        for (after, state) in &self.reported {
            let comma = if text.is_empty() { "" } else { ", then " };
            let _ = write!(text, "{comma}at {:.1} s: {state}", after.as_secs_f64());
        }
        if self.more > 0 {
            let _ = write!(text, ", then {} other states", self.more);
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use anyhow::{anyhow, ensure};
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_ends_in_vain_reports_its_last_and_earlier_observations() {
        let checks = Cell::new(0);
        let waited = eventually("a pod", Duration::from_secs(1), || async {
            checks.set(checks.get() + 1);
            if checks.get() == 1 { Err::<Option<()>, _>(anyhow!("no pod")) } else { bail!("it is Pending") }
        });
        let error = waited.await.unwrap_err().to_string();
        assert!(error.starts_with("a pod: not within 1 s, after "), "{error}");
        assert!(error.contains(" s: it is Pending (in the meantime "), "{error}");
        assert!(error.contains("at 0.0 s: no pod, then at 0.2 s: it is Pending"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_states_before_the_right_one_are_kept_once_each_time_they_come() {
        let mut changes = Changes::default();
        assert_eq!(changes.reported(), None);
        changes.saw(Duration::ZERO, "not yet".to_owned());
        assert_eq!(changes.reported(), None, "nothing to say but that it took its time");
        for state in ["wrong", "wrong", "not yet", "wrong"] {
            changes.saw(Duration::from_secs(1), state.to_owned());
        }
        let reported = changes.reported().unwrap();
        assert_eq!(reported.matches("wrong").count(), 2, "{reported}");
        for number in 0..9 {
            changes.saw(Duration::from_secs(2), format!("{number}{}", "x".repeat(500)));
        }
        let reported = changes.reported().unwrap();
        assert!(reported.ends_with(", then 7 other states") && reported.len() < 2000, "{reported}");
    }

    #[test]
    fn limits_grow_with_the_load_and_only_so_far() {
        assert_eq!(strain(0.3, 2), 1.0);
        assert_eq!(strain(5.0, 2), 2.5);
        assert_eq!(strain(90.0, 2), MOST_STRAINED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_that_has_to_last_fails_on_one_wrong_check() {
        let begun = Instant::now();
        throughout("calm", Duration::from_secs(3), async || Ok(())).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(3));
        let checks = Cell::new(0);
        let held = throughout("calm", Duration::from_secs(3), || async {
            checks.set(checks.get() + 1);
            ensure!(checks.get() != 5, "a storm");
            Ok(())
        });
        let error = held.await.unwrap_err().to_string();
        assert_eq!(error, "calm: not any more after 1.0 s: a storm");
    }
}
