//! The API server's clients in Vnetpool's programs: each request ends, a request that failed for many isn't
//! repeated by all at once, and one object that can't be read costs only itself.

pub mod answer;
pub mod client;
mod lean;
pub mod reading;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Between half of `wait` and all of it.
pub fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    wait / 2 + (wait / 2).mul_f64(random as f64 / u64::MAX as f64)
}

/// The wait after so many attempts in vain: `first`, and each time twice the one before, up to `longest`.
pub fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_wait_doubles_up_to_the_longest_however_often_it_was_in_vain() {
        let wait = |times| doubled(Duration::from_secs(5), times, Duration::from_secs(60)).as_secs();
        assert_eq!([0, 1, 2, 3, 4, 40, u32::MAX].map(wait), [5, 10, 20, 40, 60, 60, 60]);
    }

    #[test]
    fn a_wait_with_jitter_lies_between_half_and_whole_and_differs_each_time() {
        let wait = Duration::from_secs(8);
        let waits: HashSet<Duration> = (0..100).map(|_| jittered(wait)).collect();
        assert!(waits.iter().all(|one| (wait / 2..=wait).contains(one)));
        assert!(waits.len() > 90);
    }
}
