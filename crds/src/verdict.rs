//! What a condition says, before it has a type and a time.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use crate::condition::{self, Type};
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

    fn new(holds: Option<bool>, reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict { holds, reason, message: message.into() }
    }

    pub fn is_false(&self) -> bool {
        self.holds == Some(false)
    }

    /// The condition of this type of an object of this generation, as of `now`.
    pub fn condition(self, type_: Type, generation: Option<i64>, now: Timestamp) -> Condition {
        let status = match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let condition = condition::new(type_, false, self.reason, self.message, generation, now);
        Condition { status: status.into(), ..condition }
    }
}

/// The first `most` of these by name, and how many more there are.
pub fn name_some(names: impl ExactSizeIterator<Item = String>, most: usize) -> String {
    let more = names.len().saturating_sub(most);
    let mut named: Vec<String> = names.take(most).collect();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_are_named_and_the_rest_is_counted() {
        let some = |count: u32| name_some((0..count).map(|n| n.to_string()), 2);
        assert_eq!([some(0), some(2), some(4)], ["", "0, 1", "0, 1, 2 more"]);
    }
}
