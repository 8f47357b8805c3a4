//! When the agent does what comes every so often without an occasion: all of it at the same moments, so that
//! an idle agent seldom wakes.

use std::time::Duration;

use tokio::time::Instant;

/// Between two beats, about half a minute. The runtime keeps its timers in slots of powers of two, in
/// milliseconds since it started, and wakes at the begin of a slot that holds one. So a sleep that ends at a
/// beat is one wakeup, and any other of this length up to three.
pub const EVERY: Duration = Duration::from_millis(1 << 15);

/// The beats of a process.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    first: Instant,
}

impl Beat {
    /// For a runtime that is started now.
    pub fn begin() -> Beat {
        Beat { first: Instant::now() }
    }

    /// Whether it began less than a millisecond ago. A runtime that was started since has these beats in its
    /// slots: it rounds the end of a sleep up to a millisecond.
    pub fn has_just_begun(self) -> bool {
        self.first.elapsed() < Duration::from_millis(1)
    }

    /// The next beat.
    pub fn next(self) -> Instant {
        self.after(Instant::now())
    }

    fn after(self, now: Instant) -> Instant {
        let gone = now.saturating_duration_since(self.first).as_millis() / EVERY.as_millis();
        self.first + EVERY * u32::try_from(gone + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_come_evenly_whenever_one_asks_for_the_next() {
        let beat = Beat { first: Instant::now() };
        let next = |after: Duration| beat.after(beat.first + after) - beat.first;
        let almost = EVERY - Duration::from_micros(1);
        for (after, expected) in
            [(Duration::ZERO, 1), (almost, 1), (EVERY, 2), (EVERY + almost, 2), (EVERY * 1000, 1001)]
        {
            assert_eq!(next(after), EVERY * expected, "{after:?}");
        }
    }
}
