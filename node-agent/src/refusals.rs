//! The pods that the node's rules keep from the metadata service, and the report of them. Pure.

use std::collections::BTreeMap;

use vnetpool_crds::refusal;
use vnetpool_plugin::ledger::Millis;

use crate::disturbance::REPORTED_FOR;

/// The pods of this node that asked, with the moment at which they were seen to last.
#[derive(Debug, Default)]
pub struct Refusals {
    seen: BTreeMap<String, Millis>,
}

impl Refusals {
    /// The pod, as `namespace/name`, has asked since the last inspection.
    pub fn asked(&mut self, pod: &str, now: Millis) {
        self.seen.insert(pod.to_owned(), now);
    }

    /// Forgets pods that are no longer on the node; returns them.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) -> Vec<String> {
        let (seen, gone) = std::mem::take(&mut self.seen).into_iter().partition(|(pod, _)| is_there(pod));
        self.seen = seen;
        let gone: BTreeMap<String, Millis> = gone;
        gone.into_keys().collect()
    }

    /// The message of the condition `MetadataRefused`, if there is anything to report. It has no counts,
    /// since each would be news.
    pub fn message(&self, pool: &str, now: Millis) -> Option<String> {
        let reported_for = REPORTED_FOR.as_millis() as Millis;
        let recent = self.seen.iter().filter(|&(_, &last)| now.saturating_sub(last) < reported_for);
        let mut pods = recent.map(|(pod, _)| pod.as_str()).peekable();
        pods.peek()?;
        Some(refusal::message(pods, pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_ask_are_reported_for_an_hour_and_as_long_as_they_are_there() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.message("default", 0), None);
        refusals.asked("default/b", 0);
        refusals.asked("default/a", 1);
        let message = refusals.message("default", 2).unwrap();
        assert_eq!(refusal::pods(&message).into_iter().collect::<Vec<_>>(), ["default/a", "default/b"]);
        for part in ["NodeIPPool default", "workload identity", "podMetadataAccess: All"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(refusals.keep(|pod| pod == "default/b"), ["default/a"]);
        assert!(refusals.message("default", 2).unwrap().starts_with("default/b: "));
        assert_eq!(refusals.message("default", REPORTED_FOR.as_millis() as Millis), None);
    }
}
