//! Requests to make a public address that may still be carried out: their answers were lost, or another
//! leader had sent them. Until then no answer to a deletion proves that the public address is gone for good.
//! Pure: `now` is an argument.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::ResourceId;
use crate::lock::lock;

/// For so long after its answer was lost a write may still be carried out: no request is on its way for
/// longer.
pub const LATE: Duration = Duration::from_secs(60);

/// How long such requests may still be carried out.
#[derive(Debug, Default)]
pub(super) struct Late(Mutex<Until>);

#[derive(Debug, Default)]
struct Until {
    /// Another leader's, whatever they ask for. `None`: there was none.
    of_others: Option<Instant>,
    /// Our own, by the id of what they ask for.
    ours: HashMap<String, Instant>,
    /// [`LATE`], but in tests.
    late: Option<Duration>,
}

impl Late {
    /// Until now another leader may have sent some.
    pub(super) fn begin_to_lead(&self, late: Duration, now: Instant) {
        let mut until = lock(&self.0);
        (until.of_others, until.late) = (Some(now + late), Some(late));
    }

    /// The answer to our own request for this public address is lost.
    pub(super) fn lost_answer(&self, id: &ResourceId, now: Instant) {
        let mut until = lock(&self.0);
        let late = until.late.unwrap_or(LATE);
        until.ours.retain(|_, until| now < *until);
        until.ours.insert(id.key(), now + late);
    }

    /// How much longer this public address may still be made.
    pub(super) fn left(&self, id: &ResourceId, now: Instant) -> Option<Duration> {
        let until = lock(&self.0);
        let last = until.of_others.max(until.ours.get(&id.key()).copied())?;
        Some(last.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_id::sample_public_address as id;

    #[test]
    fn a_public_address_may_still_be_made_for_a_minute_after_an_answer_was_lost_or_another_led() {
        let (late, start) = (Late::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(late.left(&id("a"), start), None);
        late.lost_answer(&id("a"), start);
        assert_eq!(late.left(&id("A"), start + 20 * second), Some(40 * second));
        assert_eq!((late.left(&id("b"), start), late.left(&id("a"), start + LATE)), (None, None));
        // A second one whose answer is lost counts anew.
        late.lost_answer(&id("a"), start + 50 * second);
        assert_eq!(late.left(&id("a"), start + LATE), Some(50 * second));
        let new_leader = Late::default();
        new_leader.begin_to_lead(LATE / 2, start);
        assert_eq!(new_leader.left(&id("b"), start), Some(LATE / 2));
        assert_eq!(new_leader.left(&id("b"), start + LATE / 2), None);
    }
}
