//! The states that a wait has seen, for its report. The plugin's tests include this file, too.

use std::fmt::Write;
use std::time::Duration;

/// So many different states of one wait are reported; further ones are only counted.
const REPORTED: usize = 6;
/// So much of a state is reported: some carry whole objects.
const LENGTH: usize = 240;
/// The state of a check that doesn't name one.
pub const NOT_YET: &str = "not yet";

/// Each state as often as it came anew.
#[derive(Default)]
pub struct States {
    reported: Vec<(Duration, String)>,
    last: String,
    more: usize,
}

impl States {
    /// A wrong state was seen so long after the wait's begin.
    pub fn saw(&mut self, after: Duration, state: String) {
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

    /// The report of a wait whose condition has come to hold; `None` if only time has passed.
    pub fn before_success(&self, what: &str, after: Duration) -> Option<String> {
        let before = self.reported()?;
        Some(format!("{what}: after {:.1} s; before that {before}", after.as_secs_f64()))
    }

    /// The report of a wait that has ended in vain, in the state `last`.
    pub fn in_vain(&self, what: &str, within: Duration, after: Duration, last: &str) -> String {
        let before = self.reported().map(|before| format!(" (in the meantime {before})")).unwrap_or_default();
        let (within, after) = (within.as_secs(), after.as_secs());
        format!("{what}: not within {within} s, after {after} s: {last}{before}")
    }

    fn reported(&self) -> Option<String> {
        if self.reported.iter().all(|(_, state)| state == NOT_YET) {
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
