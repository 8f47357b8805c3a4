//! The reports of a node that this process remembers. All of it can be lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use vnetpool_crds::NodeIPAllocationStatus;
use vnetpool_crds::condition::{self, METADATA_REFUSED};
use vnetpool_crds::refusal::{self, Refusal};

use super::outlived::Outlived;
use crate::node::lag::{AGENT_GRACE, Lag};
use crate::node::setback::Setback;

/// How long a runtime may take to find a configuration, and the kubelet to report it: ten seconds as a rule.
const RUNTIME_GRACE: Duration = Duration::from_secs(60);
/// How much older a report's counts may be than its publication, by the operator's clock. They are as of the
/// agent's last reconcile, of which there is one every half a minute.
const COUNTED_BEFORE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// Since when the agent lags behind `spec`.
    behind_since: Option<Instant>,
    /// Since when the runtime has had no network though our configuration is installed.
    networkless_since: Option<Instant>,
    pub outlived: Outlived,
    /// The pods that the node's agent named last as kept from a service of Azure's on the host; `None` before
    /// the first report.
    refused: Option<BTreeSet<Refusal>>,
    /// Until the API server has answered.
    pub unanswered: Option<Box<Turn>>,
}

/// A write of the operator's conditions, with all that its Events are made of.
#[derive(Clone, Debug)]
pub struct Turn {
    pub before: Vec<Condition>,
    pub next: Vec<Condition>,
    /// What held writes back then.
    pub setback: Option<Setback>,
}

impl Reports {
    /// Starts or stops the clock of an agent that lags behind.
    pub fn run_clock(&mut self, lag: &Lag, now: Instant) {
        self.behind_since = if *lag == Lag::None { None } else { Some(self.behind_since.unwrap_or(now)) };
    }

    /// Starts or stops the clock of a runtime that has no network though its node's agent has installed one.
    /// Returns whether it has had time enough, or how long until it has.
    pub fn networkless(&mut self, is_so: bool, now: Instant) -> (bool, Option<Duration>) {
        self.networkless_since = is_so.then(|| self.networkless_since.unwrap_or(now));
        let Some(since) = self.networkless_since else { return (false, None) };
        let left = RUNTIME_GRACE.saturating_sub(now.saturating_duration_since(since));
        (left.is_zero(), Some(left).filter(|left| !left.is_zero()))
    }

    /// The pods that the agent names now and didn't name before. The leader before this one, which led until
    /// `unled_since`, has published Events about the first report that this one sees, unless that came later.
    pub fn news_of_refused(
        &mut self,
        status: &NodeIPAllocationStatus,
        unled_since: Option<Timestamp>,
    ) -> Vec<Refusal> {
        let condition =
            condition::find(&status.conditions, METADATA_REFUSED).filter(|one| one.status == "True");
        let now = condition.map(|one| refusal::refusals(&one.message)).unwrap_or_default();
        let counted_at = status.counted_at.as_ref().map(|at| at.0);
        let was_led = counted_at.zip(unled_since).is_some_and(|(at, since)| at + COUNTED_BEFORE < since);
        let reported = || if was_led { now.clone() } else { BTreeSet::new() };
        let before = self.refused.take().unwrap_or_else(reported);
        let news = now.difference(&before).cloned().collect();
        self.refused = Some(now);
        news
    }

    pub fn behind_for(&self, now: Instant) -> Duration {
        self.behind_since.map(|since| now.saturating_duration_since(since)).unwrap_or_default()
    }

    /// How long until an agent that lags behind is worth a report.
    pub fn grace_left(&self, now: Instant) -> Option<Duration> {
        self.behind_since?;
        Some(AGENT_GRACE.saturating_sub(self.behind_for(now))).filter(|rest| !rest.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use vnetpool_crds::reason::Reason;
    use vnetpool_crds::refusal::Service;
    use vnetpool_crds::verdict::Verdict;

    #[test]
    fn a_runtime_has_a_minute_to_find_a_new_configuration() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(reports.networkless(false, start), (false, None));
        assert_eq!(reports.networkless(true, start), (false, Some(RUNTIME_GRACE)));
        assert_eq!(reports.networkless(true, start + RUNTIME_GRACE - second), (false, Some(second)));
        assert_eq!(reports.networkless(true, start + RUNTIME_GRACE), (true, None));
        assert_eq!(reports.networkless(false, start + RUNTIME_GRACE), (false, None));
        assert_eq!(reports.networkless(true, start + RUNTIME_GRACE), (false, Some(RUNTIME_GRACE)));
    }

    fn refusal(service: Service, pod: &str) -> Refusal {
        Refusal { service, pod: pod.to_owned() }
    }

    /// The status of a node whose agent names these, with counts of so many seconds after the epoch.
    fn status(refusals: &[&Refusal], counted_at: i64) -> NodeIPAllocationStatus {
        let message = refusal::message(refusals.iter().copied(), Some("default"));
        let asked =
            Verdict::yes(Reason::PodsAsk, message).condition(METADATA_REFUSED, None, Timestamp::now());
        NodeIPAllocationStatus {
            counted_at: Some(Time(Timestamp::from_second(counted_at).unwrap())),
            conditions: if refusals.is_empty() { vec![] } else { vec![asked] },
            ..Default::default()
        }
    }

    #[test]
    fn a_pods_refusal_at_the_metadata_service_is_reported_once() {
        let (a, b) = (refusal(Service::Metadata, "default/a"), refusal(Service::Metadata, "default/b"));
        let other = refusal(Service::WireServer, "default/a");
        let mut reports = Reports::default();
        let mut news = |refusals: &[&Refusal]| reports.news_of_refused(&status(refusals, 0), None);
        assert_eq!(news(&[&a]), vec![a.clone()]);
        assert!(news(&[&a]).is_empty());
        assert_eq!(news(&[&a, &b]), vec![b.clone()]);
        assert!(news(&[&a, &b]).is_empty());
        assert_eq!(news(&[&a, &b, &other]), vec![other.clone()], "the same pod, and another service");
        assert!(news(&[&b]).is_empty(), "one has gone");
        assert!(news(&[]).is_empty());
        assert_eq!(news(&[&b]), vec![b.clone()], "it asks again");
    }

    #[test]
    fn a_new_leader_reports_the_pods_that_asked_while_nobody_led_and_none_of_before() {
        let (a, b) = (refusal(Service::Metadata, "default/a"), refusal(Service::Metadata, "default/b"));
        let led_until = Timestamp::from_second(1000).unwrap();
        let first = |counted_at| {
            let mut reports = Reports::default();
            let news = reports.news_of_refused(&status(&[&a], counted_at), Some(led_until));
            // Later ones are news in any case.
            let both = status(&[&a, &b], counted_at);
            assert_eq!(reports.news_of_refused(&both, Some(led_until)), vec![b.clone()]);
            news.len()
        };
        assert_eq!(first(900), 0, "the leader before has reported it");
        assert_eq!(first(980), 1, "it may not have seen it");
        assert_eq!(first(1010), 1);
    }
}
