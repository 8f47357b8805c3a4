//! The reports of a node that this process remembers. All of it can be lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use vnetpool_crds::condition::{self, METADATA_REFUSED};
use vnetpool_crds::refusal::{self, Refusal};

use super::outlived::Outlived;
use crate::node::lag::{AGENT_GRACE, Lag};

/// How long a runtime may take to find a configuration, and the kubelet to report it: ten seconds as a rule.
const RUNTIME_GRACE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// Since when the agent lags behind `spec`.
    behind_since: Option<Instant>,
    /// Since when the runtime has had no network though our configuration is installed.
    networkless_since: Option<Instant>,
    pub outlived: Outlived,
    /// The pods that the node's agent named last as kept from a service of Azure's on the host; `None` before
    /// the first report, so that an operator that starts doesn't repeat another's Events.
    refused: Option<BTreeSet<Refusal>>,
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

    /// The pods that the agent names now and didn't name before.
    pub fn news_of_refused(&mut self, conditions: &[Condition]) -> Vec<Refusal> {
        let condition = condition::find(conditions, METADATA_REFUSED).filter(|one| one.status == "True");
        let now = condition.map(|one| refusal::refusals(&one.message)).unwrap_or_default();
        let before = self.refused.replace(now.clone()).unwrap_or_else(|| now.clone());
        now.difference(&before).cloned().collect()
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
    use k8s_openapi::jiff::Timestamp;
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

    #[test]
    fn a_pods_refusal_at_the_metadata_service_is_reported_once() {
        let refusal = |service, pod: &str| Refusal { service, pod: pod.to_owned() };
        let (a, b) = (refusal(Service::Metadata, "default/a"), refusal(Service::Metadata, "default/b"));
        let other = refusal(Service::WireServer, "default/a");
        let conditions = |refusals: &[&Refusal]| {
            let message = refusal::message(&refusals.iter().copied().cloned().collect(), Some("default"));
            [Verdict::yes(Reason::PodsAsk, message).condition(METADATA_REFUSED, None, Timestamp::now())]
        };
        let mut reports = Reports::default();
        let mut news = |refusals: &[&Refusal]| reports.news_of_refused(&conditions(refusals));
        assert!(news(&[&a]).is_empty(), "another operator has reported it");
        assert!(news(&[&a]).is_empty());
        assert_eq!(news(&[&a, &b]), vec![b.clone()]);
        assert!(news(&[&a, &b]).is_empty());
        assert_eq!(news(&[&a, &b, &other]), vec![other.clone()], "the same pod, and another service");
        assert!(news(&[&b]).is_empty(), "one has gone");
        assert!(reports.news_of_refused(&[]).is_empty());
        assert_eq!(reports.news_of_refused(&conditions(&[&b])), vec![b.clone()], "it asks again");
    }
}
