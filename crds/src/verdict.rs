//! The content of a condition, before it has a type and a time.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::condition::{LONGEST_MESSAGE, Type};
use crate::reason::Reason;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `None`: it can't be known now.
    pub holds: Option<bool>,
    pub reason: Reason,
    pub message: String,
}

impl Verdict {
    pub fn yes(reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict::new(Some(true), reason, message)
    }

    pub fn no(reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict::new(Some(false), reason, message)
    }

    pub fn unknown(reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict::new(None, reason, message)
    }

    pub fn new(holds: Option<bool>, reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict { holds, reason, message: message.into() }
    }

    pub fn is_false(&self) -> bool {
        self.holds == Some(false)
    }

    /// The condition of this type, observed on an object of this generation. It turned at `now`.
    pub fn condition(self, type_: Type, generation: Option<i64>, now: Timestamp) -> Condition {
        let Verdict { holds, reason, message } = self;
        let is_listed = reason.row().conditions.contains(&type_);
        // These two repeat the reason of the part that fails.
        let repeats = matches!(type_, Type::Ready | Type::AgentReporting);
        debug_assert!(is_listed || repeats, "the table of reasons doesn't have {reason} for {type_}");
        let status = match holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        Condition {
            type_: type_.name().into(),
            status: status.into(),
            reason: reason.name().into(),
            message: bounded(message),
            observed_generation: generation,
            last_transition_time: Time(now),
        }
    }
}

/// The message, cut where the API server would refuse all of the status for it.
fn bounded(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        let cut = " … (cut: the whole is longer than a condition can be)";
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE - cut.len()));
        message.push_str(cut);
    }
    message
}

/// The first `most` of these by name, and whether there are more. How many would be news each time.
pub fn name_some(names: impl ExactSizeIterator<Item = String>, most: usize) -> String {
    let more = if names.len() > most { " and more" } else { "" };
    names.take(most).collect::<Vec<_>>().join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::{READY, WRITING};

    #[test]
    #[should_panic(expected = "doesn't have Throttled for Writing")]
    fn a_reason_that_the_table_does_not_have_for_a_type_can_not_be_set() {
        Verdict::yes(Reason::Throttled, "").condition(WRITING, None, Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn a_message_too_long_for_the_api_server_is_cut_with_a_note() {
        let written = |message: String| {
            Verdict::yes(Reason::Ready, message).condition(READY, None, Timestamp::UNIX_EPOCH).message
        };
        let most = "ü".repeat(LONGEST_MESSAGE / 2);
        assert_eq!(written(most.clone()), most);
        for more in ["ü", "x", "x".repeat(LONGEST_MESSAGE).as_str()] {
            let cut = written(format!("{most}{more}"));
            assert!((LONGEST_MESSAGE - 3..=LONGEST_MESSAGE).contains(&cut.len()), "{}", cut.len());
            assert!(
                cut.starts_with("üü")
                    && cut.ends_with("ü … (cut: the whole is longer than a condition can be)")
            );
        }
    }

    #[test]
    fn the_first_few_are_named_and_the_rest_is_not_counted() {
        let some = |count: u32| name_some((0..count).map(|n| n.to_string()), 2);
        assert_eq!([some(0), some(2), some(3), some(4)], ["", "0, 1", "0, 1 and more", "0, 1 and more"]);
    }
}
