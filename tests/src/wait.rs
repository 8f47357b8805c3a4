//! The one way to wait: until something is so, or for as long as it has to stay so.

use anyhow::{Result, bail};
use std::fmt::Write;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// So many different states are told of one wait; what comes after them is only counted.
const TOLD: usize = 6;
/// So much of a state is told: some carry whole objects.
const LENGTH: usize = 240;

/// So much longer than usual things may take at most on a machine that does much else.
const MOST_STRAINED: f64 = 4.0;

/// A limit that runs out more slowly while more processes want to run on this machine than it has cores:
/// what gets no processor time promises nothing.
pub struct Limit {
    left: Duration,
    counted: Instant,
}

impl Limit {
    /// Begins now. `within` is how long it lasts on a machine that has the cores for what runs.
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

/// The same for what takes its limit beforehand, by what runs now.
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

/// Looks until `look` gives something, a few times a second. Whatever it saw before that is printed: a wrong
/// state that passes is no failure, but nobody should have to guess that it was there.
///
/// `within` is a [`Limit`]'s.
///
/// # Errors
/// When it didn't come true in time; with what was seen last and before.
pub async fn eventually<T, F, Fut>(what: &str, within: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let begun = Instant::now();
    let mut limit = Limit::new(within);
    let mut before = Changes::default();
    loop {
        let last = match look().await {
            Ok(Some(value)) => {
                if let Some(changes) = before.told() {
                    println!("{what}: after {:.1} s; before that {changes}", begun.elapsed().as_secs_f64());
                }
                return Ok(value);
            }
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if limit.is_over() {
            let changes = before.told().map(|changes| format!(" (in the meantime {changes})"));
            let (within, took) = (within.as_secs(), begun.elapsed().as_secs());
            bail!("{what}: not within {within} s, after {took} s: {last}{}", changes.unwrap_or_default());
        }
        before.saw(begun.elapsed(), last);
        sleep(PAUSE).await;
    }
}

/// Looks a few times a second, for so long, and at the very end; `look` must succeed each time.
///
/// # Errors
/// The first that `look` gave, and after how long.
pub async fn throughout<F, Fut>(what: &str, time: Duration, mut look: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let begun = Instant::now();
    loop {
        let is_last = begun.elapsed() >= time;
        if let Err(error) = look().await {
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
    told: Vec<(Duration, String)>,
    last: String,
    more: usize,
}

impl Changes {
    fn saw(&mut self, after: Duration, state: String) {
        if state == self.last {
            return;
        }
        if self.told.len() < TOLD {
            let mut short: String = state.chars().take(LENGTH).collect();
            if short.len() < state.len() {
                short.push('…');
            }
            self.told.push((after, short.replace('\n', " ")));
        } else {
            self.more += 1;
        }
        self.last = state;
    }

    /// Nothing where there is nothing to say but that it took its time.
    fn told(&self) -> Option<String> {
        if self.told.iter().all(|(_, state)| state == "not yet") {
            return None;
        }
        let mut text = String::new();
        for (after, state) in &self.told {
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
    async fn a_wait_that_ends_in_vain_tells_what_it_saw_last_and_before() {
        let looks = Cell::new(0);
        let waited = eventually("a pod", Duration::from_secs(1), || async {
            looks.set(looks.get() + 1);
            if looks.get() == 1 { Err::<Option<()>, _>(anyhow!("no pod")) } else { bail!("it is Pending") }
        });
        let error = waited.await.unwrap_err().to_string();
        assert!(error.starts_with("a pod: not within 1 s, after "), "{error}");
        assert!(error.contains(" s: it is Pending (in the meantime "), "{error}");
        assert!(error.contains("at 0.0 s: no pod, then at 0.2 s: it is Pending"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_states_before_the_right_one_are_kept_once_each_time_they_come() {
        let mut changes = Changes::default();
        assert_eq!(changes.told(), None);
        changes.saw(Duration::ZERO, "not yet".to_owned());
        assert_eq!(changes.told(), None, "nothing to say but that it took its time");
        for state in ["wrong", "wrong", "not yet", "wrong"] {
            changes.saw(Duration::from_secs(1), state.to_owned());
        }
        let told = changes.told().unwrap();
        assert_eq!(told.matches("wrong").count(), 2, "{told}");
        for number in 0..9 {
            changes.saw(Duration::from_secs(2), format!("{number}{}", "x".repeat(500)));
        }
        let told = changes.told().unwrap();
        assert!(told.ends_with(", then 7 other states") && told.len() < 2000, "{told}");
    }

    #[test]
    fn limits_grow_with_the_load_and_only_so_far() {
        assert_eq!(strain(0.3, 2), 1.0);
        assert_eq!(strain(5.0, 2), 2.5);
        assert_eq!(strain(90.0, 2), MOST_STRAINED);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_to_hold_throughout_fails_on_one_wrong_look() {
        let begun = Instant::now();
        throughout("calm", Duration::from_secs(3), async || Ok(())).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(3));
        let looks = Cell::new(0);
        let held = throughout("calm", Duration::from_secs(3), || async {
            looks.set(looks.get() + 1);
            ensure!(looks.get() != 5, "a storm");
            Ok(())
        });
        let error = held.await.unwrap_err().to_string();
        assert_eq!(error, "calm: not any more after 1.0 s: a storm");
    }
}
