//! The pods that the node's rules keep from Azure's services on the host, and the report of them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use vnetpool_crds::refusal::{self, Refusal};
use vnetpool_plugin::ledger::Millis;

use crate::disturbance::REPORTED_FOR;

/// The pods of this node that asked, with the moment at which they were seen to last.
#[derive(Debug, Default)]
pub struct Refusals {
    seen: BTreeMap<Refusal, Millis>,
}

impl Refusals {
    /// The pod has asked since the last inspection.
    pub fn asked(&mut self, refusal: Refusal, now: Millis) {
        self.seen.insert(refusal, now);
    }

    /// Forgets pods, each as `namespace/name`, that are no longer on the node; returns what was kept of them.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) -> Vec<Refusal> {
        let is_there = |(refusal, _): &(Refusal, Millis)| is_there(&refusal.pod);
        let (seen, gone) = std::mem::take(&mut self.seen).into_iter().partition(is_there);
        self.seen = seen;
        let gone: BTreeMap<Refusal, Millis> = gone;
        gone.into_keys().collect()
    }

    /// The message of the condition `MetadataRefused`, if there is anything to report. It has no counts,
    /// since each would be news. `pool` is the node's, if it is of a cluster.
    pub fn message(&self, pool: Option<&str>, now: Millis) -> Option<String> {
        let reported_for = REPORTED_FOR.as_millis() as Millis;
        let recent = self.seen.iter().filter(|&(_, &last)| now.saturating_sub(last) < reported_for);
        let recent: BTreeSet<Refusal> = recent.map(|(refusal, _)| refusal.clone()).collect();
        (!recent.is_empty()).then(|| refusal::message(&recent, pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnetpool_crds::refusal::Service;

    #[test]
    fn pods_that_ask_are_reported_for_an_hour_and_as_long_as_they_are_there() {
        let refusal = |service, pod: &str| Refusal { service, pod: pod.to_owned() };
        let (a, b) = (refusal(Service::Metadata, "default/a"), refusal(Service::Metadata, "default/b"));
        let other = refusal(Service::WireServer, "default/a");
        let mut refusals = Refusals::default();
        let pool = Some("default");
        assert_eq!(refusals.message(pool, 0), None);
        refusals.asked(b.clone(), 0);
        refusals.asked(a.clone(), 1);
        refusals.asked(other.clone(), 1);
        let message = refusals.message(pool, 2).unwrap();
        assert_eq!(refusal::refusals(&message), BTreeSet::from([a.clone(), b.clone(), other.clone()]));
        assert!(message.contains("NodeIPPool default"), "{message}");
        assert_eq!(refusals.keep(|pod| pod == "default/b"), [a, other]);
        assert_eq!(refusal::refusals(&refusals.message(pool, 2).unwrap()), BTreeSet::from([b]));
        assert_eq!(refusals.message(pool, REPORTED_FOR.as_millis() as Millis), None);
    }
}
