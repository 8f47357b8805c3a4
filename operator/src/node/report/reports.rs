//! What this process remembers of what it has reported of a node. All of it can be lost.

use std::time::{Duration, Instant};

use super::sandboxes::Outlived;
use crate::node::lag::{AGENT_GRACE, Lag};

#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// Since when the agent lags behind `spec`.
    behind_since: Option<Instant>,
    /// When the conditions were last written.
    pub written: Option<Instant>,
    pub outlived: Outlived,
}

impl Reports {
    /// Starts or stops the clock of an agent that lags behind.
    pub fn run_clock(&mut self, lag: &Lag, now: Instant) {
        self.behind_since = if *lag == Lag::None { None } else { Some(self.behind_since.unwrap_or(now)) };
    }

    pub fn behind_for(&self, now: Instant) -> Duration {
        self.behind_since.map(|since| now.saturating_duration_since(since)).unwrap_or_default()
    }

    /// How long until an agent that lags behind is worth a word.
    pub fn grace_left(&self, now: Instant) -> Option<Duration> {
        self.behind_since?;
        Some(AGENT_GRACE.saturating_sub(self.behind_for(now))).filter(|rest| !rest.is_zero())
    }
}
