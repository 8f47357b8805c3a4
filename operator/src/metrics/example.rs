//! One of every series, for the reference page and for tests.

use std::time::Duration;

use vnetpool_crds::NodeIPPoolStatus;
use vnetpool_crds::pool::SubnetUse;

use super::{Metrics, budget, collect, conditions};
use crate::azure::{Account, Kind, Priority, RequestRecord};

impl Metrics {
    /// With one of every series.
    pub fn example() -> Metrics {
        let metrics = Metrics::default();
        let second = Duration::from_secs(1);
        metrics.reconciled("node", "ok", second);
        metrics.nic_written("ok", second);
        let (kind, priority) = (Kind::Read, Priority::NewNode);
        let sent = RequestRecord { kind, priority, status: Some(200), waited: second, took: second };
        metrics.requested(&sent);
        let subnet = SubnetUse {
            id: "/subscriptions/s/resourcegroups/g/providers/microsoft.network/virtualnetworks/v/subnets/nodes".into(),
            nodes: 3,
            held: 24,
            size: Some(251),
            free: Some(200),
            ..SubnetUse::default()
        };
        let status = NodeIPPoolStatus {
            nodes: 3,
            held: 24,
            assigned: 4,
            free: 20,
            subnets: vec![subnet],
            ..Default::default()
        };
        metrics.pool("default", &status);
        metrics.leading(true);
        metrics.health.heard("Pod");
        metrics.health.interrupted("Pod");
        let account = Account {
            subscription: "s".into(),
            region: "r".into(),
            limit: "network".into(),
            writes: true,
            capacity: 800.0,
            left: 800.0,
            spent: 0,
            closed_for: Duration::ZERO,
        };
        let waiting = Priority::ALL.map(|priority| (priority, 0));
        collect(&metrics, budget::Accounts::new(move || Some((vec![account.clone()], waiting))));
        let counts = [(["NodeIPPool", "Ready", "True", "Ready"], 1)];
        collect(&metrics, conditions::Conditions::new(move || counts.into()));
        metrics
    }
}

/// The operator's answer at `/metrics`, with one of every series.
///
/// # Errors
/// Never for the text format's own sake.
pub fn text() -> Result<String, std::fmt::Error> {
    Metrics::example().render()
}
