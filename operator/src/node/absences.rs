//! What Azure says isn't there, and since when. Pure.
//!
//! One 404 proves nothing: Azure gives it during incidents, and for a moment after changes elsewhere. A
//! NodeIPAllocation is the only record of what its NIC holds of ours, so it goes only on proof.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::azure::{Error, Scope};

/// How long Azure must not have known a NIC's resource group before that is believed. That a subscription is
/// unknown is believed for no time at all: whoever has lost the access to it, or its tenant, sees the same.
const BELIEVED: Duration = Duration::from_secs(24 * 3600);

/// By what is absent, in lower case: when Azure first said so. A restart of the operator begins to count
/// anew.
#[derive(Clone, Debug, Default)]
pub struct Absences(BTreeMap<String, Instant>);

impl Absences {
    /// Takes note of an error. One that isn't about something absent shows that what was missed is there.
    pub fn note(&mut self, error: &Error, now: Instant) {
        match absent(error) {
            Some(what) => {
                self.0.entry(what).or_insert(now);
            }
            None => self.clear(),
        }
    }

    /// This resource has been found.
    pub fn found(&mut self, id: &str) {
        self.0.remove(&id.to_lowercase());
    }

    /// Everything that was asked for has been found, or has been believed to be gone.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether this error proves that what was asked for is gone. Of a NIC it does `second_read`
    /// after the first answer. Of a subscription or resource group a person may say so, too: `is_said`.
    pub fn prove(&self, error: &Error, second_read: Duration, is_said: bool, now: Instant) -> bool {
        let needed = match error {
            Error::ScopeMissing { .. } if is_said => return true,
            Error::ScopeMissing { scope: Scope::Group, .. } => BELIEVED,
            Error::ScopeMissing { .. } => return false,
            _ => second_read,
        };
        let since = absent(error).and_then(|what| self.0.get(&what).copied());
        since.is_some_and(|since| now.saturating_duration_since(since) >= needed)
    }
}

/// What an error says Azure doesn't find: a resource, or the subscription and resource group of one.
fn absent(error: &Error) -> Option<String> {
    match error {
        Error::NotFound { resource, .. } => Some(resource.to_lowercase()),
        Error::ScopeMissing { resource, .. } => {
            Some(resource.to_lowercase().split('/').take(5).collect::<Vec<_>>().join("/"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn id(group: &str, nic: &str) -> String {
        format!("/subscriptions/s/resourceGroups/{group}/providers/p/t/{nic}")
    }

    fn scope(group: &str) -> Error {
        Error::ScopeMissing { resource: id(group, "n"), scope: Scope::Group, message: "m".into() }
    }

    fn nic(nic: &str) -> Error {
        Error::NotFound { resource: id("g", nic), message: "m".into() }
    }

    fn noted(errors: &[Error], now: Instant) -> Absences {
        let mut absences = Absences::default();
        errors.iter().for_each(|error| absences.note(error, now));
        absences
    }

    #[test]
    fn a_nic_is_gone_when_a_second_read_a_minute_later_does_not_find_it_either() {
        let start = Instant::now();
        let absences = noted(&[nic("A")], start);
        let prove = |error: &Error, after| absences.prove(error, MINUTE, false, start + after);
        assert!(!Absences::default().prove(&nic("a"), MINUTE, false, start), "the first look");
        assert!(!prove(&nic("a"), MINUTE - Duration::from_secs(1)));
        assert!(prove(&nic("a"), MINUTE));
        assert!(!prove(&nic("b"), MINUTE), "another NIC");
    }

    #[test]
    fn two_nics_are_missed_side_by_side_and_any_other_answer_counts_anew() {
        let start = Instant::now();
        let both = noted(&[nic("a"), nic("b")], start);
        assert!([nic("a"), nic("b")].iter().all(|one| both.prove(one, MINUTE, false, start + MINUTE)));
        let mut found = both.clone();
        found.found(&id("G", "A"));
        assert!(!found.prove(&nic("a"), MINUTE, false, start + MINUTE), "it was seen in between");
        assert!(found.prove(&nic("b"), MINUTE, false, start + MINUTE));
        let answered = Error::Stale { resource: id("g", "a") };
        let anew = noted(&[nic("a"), answered], start);
        assert!(!anew.prove(&nic("a"), MINUTE, false, start + MINUTE));
    }

    #[test]
    fn a_missing_resource_group_is_believed_after_a_day_and_not_before() {
        let start = Instant::now();
        let absences = noted(&[scope("G")], start);
        let prove = |error: &Error, after| absences.prove(error, MINUTE, false, start + after);
        assert!(!prove(&scope("g"), BELIEVED - Duration::from_secs(1)));
        assert!(prove(&scope("g"), BELIEVED));
        assert!(!prove(&scope("other"), BELIEVED));
    }

    #[test]
    fn a_missing_subscription_is_believed_after_no_time() {
        let start = Instant::now();
        let missing =
            Error::ScopeMissing { resource: id("g", "n"), scope: Scope::Subscription, message: "m".into() };
        let absences = noted(std::slice::from_ref(&missing), start);
        assert!(!absences.prove(&missing, MINUTE, false, start + 365 * BELIEVED));
        assert!(absences.prove(&missing, MINUTE, true, start), "a person says so");
    }

    #[test]
    fn a_person_says_that_a_missing_resource_group_is_gone_and_of_nothing_else() {
        let now = Instant::now();
        let denied = Error::Denied { action: "a".into(), scope: "s".into(), message: "m".into() };
        let prove = |error: &Error| Absences::default().prove(error, MINUTE, true, now);
        assert!(prove(&scope("g")));
        assert!(!prove(&nic("a")) && !prove(&denied));
    }
}
