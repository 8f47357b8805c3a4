//! The one way to wait: until a condition holds, or for as long as it has to hold.

mod states;

use anyhow::{Result, anyhow, bail};
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::{Instant, sleep};

use states::{NOT_YET, States};

/// How long between two checks.
const PAUSE: Duration = Duration::from_millis(250);
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
    let mut before = States::default();
    loop {
        let last = match check().await {
            Ok(Some(value)) => {
                if let Some(report) = before.before_success(what, begun.elapsed()) {
                    println!("{report}");
                }
                return Ok(value);
            }
            Ok(None) => NOT_YET.to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if limit.is_over() {
            bail!(before.in_vain(what, within, begun.elapsed(), &last));
        }
        before.saw(begun.elapsed(), last);
        sleep(PAUSE).await;
    }
}

/// [`eventually`] in a test without a runtime: observes until the state is right.
///
/// # Errors
/// When none was in time; with the last state and those before.
pub fn eventually_right<S: Debug>(
    what: &str,
    within: Duration,
    observe: impl Fn() -> S,
    is_right: impl Fn(&S) -> bool,
) -> Result<S> {
    let check = async || {
        let state = observe();
        if is_right(&state) { Ok(Some(state)) } else { Err(anyhow!("{state:?}")) }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(eventually(what, within, check))
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
        let mut states = States::default();
        let report = |states: &States| states.before_success("a pod", Duration::from_secs(3));
        assert_eq!(report(&states), None);
        states.saw(Duration::ZERO, NOT_YET.to_owned());
        assert_eq!(report(&states), None, "nothing to report but that it took its time");
        for state in ["wrong", "wrong", "not yet", "wrong"] {
            states.saw(Duration::from_secs(1), state.to_owned());
        }
        let reported = report(&states).unwrap();
        assert_eq!(reported.matches("wrong").count(), 2, "{reported}");
        for number in 0..9 {
            states.saw(Duration::from_secs(2), format!("{number}{}", "x".repeat(500)));
        }
        let reported = report(&states).unwrap();
        assert!(reported.ends_with(", then 7 other states") && reported.len() < 2000, "{reported}");
    }

    #[test]
    fn a_test_without_a_runtime_reports_what_it_observed() {
        let checks = Cell::new(0);
        let observe = || checks.replace(checks.get() + 1);
        assert_eq!(eventually_right("it counts", Duration::from_secs(9), observe, |n| *n == 2).unwrap(), 2);
        let error =
            eventually_right("it stops", Duration::ZERO, observe, |n| *n == 2).unwrap_err().to_string();
        assert_eq!(error, "it stops: not within 0 s, after 0 s: 3");
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
