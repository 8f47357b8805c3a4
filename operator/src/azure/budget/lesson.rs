//! What an answer of Azure shows of its limits. Pure.

use std::time::Duration;

use reqwest::header::HeaderMap;

use super::meter::{self, Meter};
use crate::azure::error::{Error, Limit};

/// What an answer shows of the meters that its call drew on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lesson {
    counters: Vec<(Counter, f64)>,
    /// Azure throttled the call and demands this long a pause.
    pub(super) closed_for: Option<Duration>,
    by: Throttler,
}

/// What an `x-ms-ratelimit-remaining-*` header counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counter {
    /// The subscription's or the tenant's calls of this identity: what [`Meter::Arm`] meters.
    Identity,
    /// The subscription's calls of all identities, fifteen times as many.
    Everybody,
    /// A provider's calls. Azure doesn't report how many it allows in all.
    Provider,
    /// Compute's calls about one resource, likewise.
    Resource,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Throttler {
    #[default]
    Arm,
    Provider,
    /// Compute, for one of its resources.
    Resource,
    /// Any provider, for one action: other calls pass.
    Action,
}

/// ARM's limit for a subscription is this many times that for one identity in it.
const EVERYBODY: f64 = 15.0;
const REMAINING: &str = "x-ms-ratelimit-remaining-";

impl Lesson {
    /// From the headers of an answer to a write or to a read, and from the error if the answer was one.
    pub(in crate::azure) fn of(headers: &HeaderMap, writes: bool, error: Option<&Error>) -> Lesson {
        let counters = headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().strip_prefix(REMAINING)?, value.to_str().ok()?)))
            .flat_map(|(name, value)| counters(name, value, writes))
            .collect();
        match error {
            Some(Error::Throttled { retry_after, limit, message, .. }) => Lesson {
                counters,
                closed_for: Some(*retry_after),
                by: match limit {
                    Limit::Arm => Throttler::Arm,
                    // A limit as high as that of all the provider's calls is no action's own.
                    Limit::Action if allowed(message) >= Some(meter::of_network(writes)) => {
                        Throttler::Provider
                    }
                    Limit::Action => Throttler::Action,
                    // Compute's words; the other kind is "for this subscription".
                    Limit::Provider if message.contains("for this resource") => Throttler::Resource,
                    Limit::Provider => Throttler::Provider,
                },
            },
            _ => Lesson { counters, ..Lesson::default() },
        }
    }

    /// What is left to us of a meter as Azure counts; `None` if the answer doesn't show it.
    pub(super) fn left(&self, meter: &Meter, share: f64) -> Option<f64> {
        let others = meter.limit().0 * (1.0 - share);
        let left = self.counters.iter().filter_map(|(counter, remaining)| match (counter, meter) {
            (Counter::Identity, Meter::Arm { .. }) => Some(remaining - others),
            (Counter::Everybody, Meter::Arm { .. }) => Some(remaining - others * EVERYBODY),
            (Counter::Provider, Meter::Network { .. } | Meter::Compute { .. })
            | (Counter::Resource, Meter::Resource { .. }) => Some(remaining * share),
            _ => None,
        });
        left.reduce(f64::min).map(|left| left.max(0.0))
    }

    /// Whether Azure demands the pause for this meter.
    pub(super) fn closes(&self, meter: &Meter) -> bool {
        match meter {
            Meter::Arm { .. } => self.by == Throttler::Arm,
            Meter::Network { .. } | Meter::Compute { .. } => self.by == Throttler::Provider,
            Meter::Resource { .. } => self.by == Throttler::Resource,
            Meter::Action { .. } => self.by == Throttler::Action,
        }
    }
}

/// How many calls a provider allows by its words: "The operation PutNicOperation exceeded throttling limit of
/// 100 calls within last 5 minutes."
fn allowed(message: &str) -> Option<f64> {
    let (_, after) = message.split_once("limit of ")?;
    after.split_once(" calls")?.0.replace(',', "").parse().ok()
}

/// The counters in one header, by the rest of its name, that count this sort of call.
///
/// `subscription-reads`, `subscription-global-reads` and `tenant-reads`, likewise `-writes`, are ARM's;
/// `subscription-resource-requests` and `tenant-resource-requests` are a provider's. `resource` is Compute's:
/// a list of policies, each with its own count, such as `Microsoft.Compute/GetVMScaleSet3Min;197`. It is an
/// assumption that a policy with "Resource" in its name counts one resource's calls. If the assumption is
/// wrong, only the subscription's level doesn't fall before Azure throttles.
fn counters(name: &str, value: &str, writes: bool) -> Vec<(Counter, f64)> {
    let one = |counter| value.trim().parse().ok().map(|left| (counter, left)).into_iter().collect();
    let sort = if writes { "writes" } else { "reads" };
    match name.rsplit_once('-') {
        None if name == "resource" => value
            .split(',')
            .filter_map(|policy| {
                let (policy, left) = policy.rsplit_once(';')?;
                let is_one = policy.contains("Resource");
                let counter = if is_one { Counter::Resource } else { Counter::Provider };
                Some((counter, left.trim().parse().ok()?))
            })
            .collect(),
        Some(("subscription" | "tenant", counted)) if counted == sort => one(Counter::Identity),
        Some(("subscription-global" | "tenant-global", counted)) if counted == sort => {
            one(Counter::Everybody)
        }
        Some(("subscription-resource" | "tenant-resource", "requests")) => one(Counter::Provider),
        _ => vec![],
    }
}

#[cfg(test)]
impl Lesson {
    pub(super) fn left_to_all(remaining: f64) -> Lesson {
        Lesson { counters: vec![(Counter::Identity, remaining)], ..Lesson::default() }
    }

    pub(super) fn left_at_provider(remaining: f64) -> Lesson {
        Lesson { counters: vec![(Counter::Provider, remaining)], ..Lesson::default() }
    }

    pub(super) fn closed_by_arm(peace: Duration) -> Lesson {
        Lesson { closed_for: Some(peace), ..Lesson::default() }
    }

    pub(super) fn closed_by_provider(peace: Duration) -> Lesson {
        Lesson { by: Throttler::Provider, ..Lesson::closed_by_arm(peace) }
    }

    pub(super) fn closed_for_action(peace: Duration) -> Lesson {
        Lesson { by: Throttler::Action, ..Lesson::closed_by_arm(peace) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::budget::Kind;

    const SUBSCRIPTION: &str = "s";

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn arm(writes: bool) -> Meter {
        Meter::Arm { subscription: SUBSCRIPTION.into(), writes }
    }

    fn compute() -> Meter {
        Meter::Compute { subscription: SUBSCRIPTION.into(), region: String::new(), writes: false }
    }

    fn vm() -> Meter {
        Meter::Resource { path: "vm".into(), kind: Kind::Read }
    }

    fn throttled(message: &str, limit: Limit) -> Error {
        let retry_after = Duration::from_secs(9);
        Error::Throttled { resource: "r".into(), message: message.into(), retry_after, limit }
    }

    #[test]
    fn the_least_of_arms_counters_for_a_sort_of_call_counts() {
        let headers = headers(&[
            ("x-ms-ratelimit-remaining-subscription-writes", "150"),
            ("x-ms-ratelimit-remaining-tenant-writes", "90"),
            ("x-ms-ratelimit-remaining-subscription-global-writes", "2999"),
            ("x-ms-ratelimit-remaining-subscription-reads", "57"),
            ("x-ms-ratelimit-remaining-subscription-deletes", "1"),
            ("x-ms-ratelimit-remaining-resource", "Microsoft.Compute/x;3"),
            ("x-ms-request-charge", "1"),
        ]);
        // 40 of 200 writes and 50 of 250 reads are the others'.
        assert_eq!(Lesson::of(&headers, true, None).left(&arm(true), 0.8).unwrap().round(), 50.0);
        assert_eq!(Lesson::of(&headers, false, None).left(&arm(false), 0.8).unwrap().round(), 7.0);
        assert_eq!(Lesson::of(&HeaderMap::new(), true, None).left(&arm(true), 0.8), None);
    }

    #[test]
    fn a_subscription_that_its_other_identities_use_up_is_noticed() {
        let headers = headers(&[
            ("x-ms-ratelimit-remaining-subscription-writes", "199"),
            ("x-ms-ratelimit-remaining-subscription-global-writes", "610"),
        ]);
        // Of 3,000 in all 600 are the others'.
        assert_eq!(Lesson::of(&headers, true, None).left(&arm(true), 0.8).unwrap().round(), 10.0);
    }

    #[test]
    fn computes_counters_lower_its_own_meters_and_not_arms() {
        let headers = headers(&[(
            "x-ms-ratelimit-remaining-resource",
            "Microsoft.Compute/GetVMScaleSet3Min;197,Microsoft.Compute/GetVMScaleSet30Min;100,Microsoft.Compute/GetVMResource;10",
        )]);
        let lesson = Lesson::of(&headers, false, None);
        assert_eq!(lesson.left(&compute(), 0.5), Some(50.0));
        assert_eq!(lesson.left(&vm(), 0.5), Some(5.0));
        assert_eq!(lesson.left(&arm(false), 0.5), None);
    }

    #[test]
    fn a_providers_count_of_requests_lowers_its_meter() {
        let headers = headers(&[("x-ms-ratelimit-remaining-subscription-resource-requests", "40")]);
        assert_eq!(Lesson::of(&headers, false, None).left(&compute(), 0.5), Some(20.0));
    }

    #[test]
    fn a_header_that_makes_no_sense_teaches_nothing() {
        let headers = headers(&[
            ("x-ms-ratelimit-remaining-subscription-reads", "many"),
            ("x-ms-ratelimit-remaining-resource", "Microsoft.Compute/x"),
            ("x-ms-ratelimit-remaining-", "1"),
        ]);
        assert_eq!(Lesson::of(&headers, false, None), Lesson::default());
    }

    #[test]
    fn throttling_closes_the_meter_of_the_service_that_throttled() {
        let closed = |error: &Error| {
            let lesson = Lesson::of(&HeaderMap::new(), false, Some(error));
            assert_eq!(lesson.closed_for, Some(Duration::from_secs(9)));
            [arm(false), compute(), vm()].map(|meter| lesson.closes(&meter))
        };
        assert_eq!(
            closed(&throttled("Number of requests for subscription", Limit::Arm)),
            [true, false, false]
        );
        assert_eq!(
            closed(&throttled("too many requests … for this subscription.", Limit::Provider)),
            [false, true, false]
        );
        assert_eq!(
            closed(&throttled("too many requests … for this resource.", Limit::Provider)),
            [false, false, true]
        );
    }

    fn network(writes: bool) -> Meter {
        Meter::Network { subscription: SUBSCRIPTION.into(), region: "westeurope".into(), writes }
    }

    fn action() -> Meter {
        let (subscription, region) = (SUBSCRIPTION.into(), "westeurope".into());
        Meter::Action { subscription, region, action: "a".into(), writes: true }
    }

    #[test]
    fn a_limit_of_one_action_closes_neither_arms_nor_a_providers_meter() {
        let message =
            "Number of requests for action 'Microsoft.Network/networkInterfaces/write' exceeded the limit";
        let lesson = Lesson::of(&HeaderMap::new(), true, Some(&throttled(message, Limit::Action)));
        assert_eq!(lesson.closed_for, Some(Duration::from_secs(9)));
        let closed = [action(), network(true), arm(true), compute(), vm()].map(|meter| lesson.closes(&meter));
        assert_eq!(closed, [true, false, false, false, false]);
    }

    #[test]
    fn an_operation_that_has_a_lower_limit_than_all_of_the_provider_closes_that_action_alone() {
        let closed = |writes, calls: &str| {
            let message =
                format!("PutNicOperation exceeded throttling limit of {calls} within last 5 minutes.");
            let lesson = Lesson::of(&HeaderMap::new(), writes, Some(&throttled(&message, Limit::Action)));
            [action(), network(writes), arm(writes)].map(|meter| lesson.closes(&meter))
        };
        let (alone, all) = ([true, false, false], [false, true, false]);
        assert_eq!([closed(true, "100 calls"), closed(true, "many calls"), closed(true, "100")], [alone; 3]);
        assert_eq!([closed(true, "1000 calls"), closed(false, "1000 calls")], [all, alone]);
        assert_eq!([closed(true, "1,000 calls"), closed(false, "1,000 calls")], [all, alone]);
        assert_eq!(closed(false, "10000 calls"), all);
    }
}
