//! How Azure's request limits stand, as metrics that are made at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::azure::{Account, Priority};

/// The meters, and how many requests wait for each purpose.
pub type Standing = (Vec<Account>, [(Priority, usize); Priority::ALL.len()]);

/// Asks for the standing at each scrape.
pub struct Accounts(Box<dyn Fn() -> Option<Standing> + Send + Sync>);

impl Accounts {
    pub fn new(standing: impl Fn() -> Option<Standing> + Send + Sync + 'static) -> Accounts {
        Accounts(Box::new(standing))
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accounts")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    subscription: String,
    /// Empty where Azure doesn't distinguish regions, or while the region isn't known.
    region: String,
    limit: String,
    kind: &'static str,
}

impl Limit {
    fn of(account: &Account) -> Limit {
        Limit {
            subscription: account.subscription.clone(),
            region: account.region.clone(),
            limit: account.limit.clone(),
            kind: if account.writes { "write" } else { "read" },
        }
    }
}

impl Collector for Accounts {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some((accounts, waiting)) = (self.0)() else { return Ok(()) };
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: fn(&Account) -> f64| {
            let kind = ConstGauge::<f64>::new(0.0).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, unit, kind)?;
            // How much a closed action allows isn't known.
            let mut known = accounts.iter().filter(|account| value(account).is_finite());
            known.try_for_each(|account| {
                ConstGauge::new(value(account)).encode(metric.encode_family(&Limit::of(account))?)
            })
        };
        gauge(
            "arm_budget_capacity",
            "Requests that our share of a limit of Azure's allows at once",
            None,
            |account| account.capacity,
        )?;
        gauge(
            "arm_budget_left",
            "Requests that our share of a limit of Azure's allows now",
            None,
            |account| account.left,
        )?;
        gauge(
            "arm_budget_closed",
            "How much longer Azure has asked to be left in peace",
            Some(&Unit::Seconds),
            |account| account.closed_for.as_secs_f64(),
        )?;
        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "Requests paid from our share of a limit of Azure's";
        let mut metric = encoder.encode_descriptor("arm_budget_spent", help, None, kind)?;
        for account in accounts.iter().filter(|account| account.capacity.is_finite()) {
            ConstCounter::new(account.spent).encode(metric.encode_family(&Limit::of(account))?)?;
        }
        let kind = ConstGauge::new(0_i64).metric_type();
        let help = "Requests that wait for their turn, by what they are for";
        let mut metric = encoder.encode_descriptor("arm_waiting", help, None, kind)?;
        for (priority, count) in waiting {
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX))
                .encode(metric.encode_family(&[("priority", priority.as_str())])?)?;
        }
        Ok(())
    }
}
