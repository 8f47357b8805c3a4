//! Azure's published limits: ARM's token buckets, the sliding windows of the network provider, Compute's
//! per-resource buckets.

use crate::reply::Reply;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The kinds of requests that ARM counts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Read,
    Write,
    Delete,
}

impl Kind {
    pub(crate) fn of(method: &str) -> Self {
        match method {
            "GET" | "HEAD" => Self::Read,
            "DELETE" => Self::Delete,
            _ => Self::Write,
        }
    }
}

/// A bucket: full at first, refilled continuously, one token for a request.
#[derive(Debug)]
struct Bucket {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn new(capacity: f64, per_second: f64) -> Self {
        Self { capacity, per_second, tokens: capacity, at: None }
    }

    /// Takes a token. If there is none, returns the time until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.tokens = self.capacity.min(self.tokens + passed.as_secs_f64() * self.per_second);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((1.0 - self.tokens) / self.per_second))
        }
    }
}

/// At most `limit` calls within the last `span`.
#[derive(Debug)]
struct Window {
    limit: usize,
    span: Duration,
    calls: VecDeque<Instant>,
}

impl Window {
    fn new(limit: usize, span: Duration) -> Self {
        Self { limit, span, calls: VecDeque::new() }
    }

    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        while self.calls.front().is_some_and(|first| now.saturating_duration_since(*first) >= self.span) {
            self.calls.pop_front();
        }
        match self.calls.front() {
            Some(first) if self.calls.len() >= self.limit => Err(*first + self.span - now),
            _ => {
                self.calls.push_back(now);
                Ok(())
            }
        }
    }
}

/// All counters of one subscription in one region.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Per principal, of which the simulator has one.
    principal: [Bucket; 3],
    /// Per subscription: fifteen times as much.
    global: [Bucket; 3],
    network_reads: Window,
    network_writes: Window,
    /// Compute: reads of the subscription.
    compute_reads: Bucket,
    /// Compute: reads of one VM or one operation, by its id.
    compute: HashMap<String, Bucket>,
    /// IMDS: requests of one VM, by its address and by whether they are for a token.
    metadata: HashMap<(String, bool), Bucket>,
}

const FIVE_MINUTES: Duration = Duration::from_secs(300);

impl Limits {
    /// With so many reads of the subscription's that Compute takes at once, and so many more a minute.
    pub(crate) fn new((burst, per_minute): (f64, f64)) -> Self {
        let buckets = |factor: f64| {
            [(250.0, 25.0), (200.0, 10.0), (200.0, 10.0)]
                .map(|(capacity, rate)| Bucket::new(capacity * factor, rate * factor))
        };
        Self {
            principal: buckets(1.0),
            global: buckets(15.0),
            network_reads: Window::new(10_000, FIVE_MINUTES),
            network_writes: Window::new(1_000, FIVE_MINUTES),
            compute_reads: Bucket::new(burst, per_minute / 60.0),
            compute: HashMap::new(),
            metadata: HashMap::new(),
        }
    }

    /// ARM's own limits, before a provider sees the request.
    pub(crate) fn arm(&mut self, kind: Kind, subscription: &str, now: Instant) -> Result<(), Reply> {
        let index = kind as usize;
        let (own, global) = (self.principal[index].take(now), self.global[index].take(now));
        own.and(global).map_err(|wait| {
            let seconds = whole_seconds(wait);
            let message = format!(
                "Number of requests for subscription '{subscription}' and operation '{kind:?}' exceeded the limit. \
                 Please try again after '{seconds}' seconds."
            );
            Reply::gateway(429, "SubscriptionRequestsThrottled", message)
                .header("retry-after", seconds.to_string())
        })
    }

    /// The network provider's limits: 1,000 writes and deletes, 10,000 reads in five minutes. It names the
    /// wait only in words.
    pub(crate) fn network(&mut self, kind: Kind, operation: &str, now: Instant) -> Result<(), Reply> {
        let window = if kind == Kind::Read { &mut self.network_reads } else { &mut self.network_writes };
        let limit = window.limit;
        window.take(now).map_err(|wait| {
            let message = format!(
                "Calls to the operation {operation} exceeded throttling limit of {limit} calls within last 5 minutes. \
                 The call can be retried in {} seconds.",
                whole_seconds(wait)
            );
            Reply::retryable("RetryableErrorDueToTooManyCallsToThisOperation", message)
        })
    }

    /// Compute's limit for reads of one resource: `burst` at once, `per_minute` after that.
    pub(crate) fn compute(
        &mut self,
        resource: &str,
        (burst, per_minute): (f64, f64),
        now: Instant,
    ) -> Result<(), Reply> {
        let new = || Bucket::new(burst, per_minute / 60.0);
        let bucket = self.compute.entry(resource.to_lowercase()).or_insert_with(new);
        bucket.take(now).map_err(|wait| too_many("resource", resource, wait))
    }

    /// Compute's limit for reads of all of the subscription ("Compute throttling limits").
    pub(crate) fn compute_of_all(&mut self, now: Instant) -> Result<(), Reply> {
        self.compute_reads.take(now).map_err(|wait| too_many("subscription", "HighCostGet", wait))
    }

    /// IMDS: 5 requests a second for each VM, 20 for tokens. Returns whether the request may pass.
    pub(crate) fn metadata(&mut self, caller: &str, token: bool, now: Instant) -> bool {
        let rate = if token { 20.0 } else { 5.0 };
        let bucket = self.metadata.entry((caller.to_owned(), token));
        bucket.or_insert_with(|| Bucket::new(rate, rate)).take(now).is_ok()
    }

    /// The counters ARM sends with an answer.
    pub(crate) fn headers(&self, kind: Kind) -> [(&'static str, String); 2] {
        let [own, global] = match kind {
            Kind::Read => [
                "x-ms-ratelimit-remaining-subscription-reads",
                "x-ms-ratelimit-remaining-subscription-global-reads",
            ],
            Kind::Write => [
                "x-ms-ratelimit-remaining-subscription-writes",
                "x-ms-ratelimit-remaining-subscription-global-writes",
            ],
            Kind::Delete => [
                "x-ms-ratelimit-remaining-subscription-deletes",
                "x-ms-ratelimit-remaining-subscription-global-deletes",
            ],
        };
        let left = |bucket: &Bucket| (bucket.tokens.floor() as u64).to_string();
        [(own, left(&self.principal[kind as usize])), (global, left(&self.global[kind as usize]))]
    }
}

/// Compute's words.
fn too_many(of: &str, target: &str, wait: Duration) -> Reply {
    let seconds = whole_seconds(wait);
    let message = format!(
        "The server rejected the request because too many requests have been received for this {of}."
    );
    let details = serde_json::json!([{ "code": "TooManyRequests", "target": target,
        "message": format!("Retry after {seconds} seconds.") }]);
    Reply::nrp(429, "OperationNotAllowed", message, details).header("retry-after", seconds.to_string())
}

fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil().max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::new((15_000.0, 5_000.0))
    }

    #[test]
    fn a_burst_of_writes_is_stopped_after_200_and_goes_on_at_10_a_second() {
        let (mut limits, start) = (limits(), Instant::now());
        for _ in 0..200 {
            limits.arm(Kind::Write, "s", start).unwrap();
        }
        let refused = limits.arm(Kind::Write, "s", start).unwrap_err();
        assert_eq!((refused.status, refused.code()), (429, Some("SubscriptionRequestsThrottled")));
        assert!(refused.headers.contains(&("retry-after".into(), "1".into())));
        limits.arm(Kind::Read, "s", start).expect("reads are counted apart");
        let later = start + Duration::from_secs(1);
        let passed = (0..20).filter(|_| limits.arm(Kind::Write, "s", later).is_ok()).count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn the_network_provider_takes_1000_writes_in_five_minutes() {
        let (mut limits, start) = (limits(), Instant::now());
        for second in 0..1000 {
            limits.network(Kind::Write, "PutNicOperation", start + Duration::from_millis(second)).unwrap();
        }
        let soon = start + Duration::from_secs(299);
        let refused = limits.network(Kind::Delete, "DeleteNicOperation", soon).unwrap_err();
        assert_eq!((refused.status, refused.code()), (429, Some("RetryableError")));
        limits.network(Kind::Write, "PutNicOperation", start + FIVE_MINUTES).unwrap();
    }

    #[test]
    fn the_counters_fall_with_each_request() {
        let mut limits = limits();
        limits.arm(Kind::Read, "s", Instant::now()).unwrap();
        let values = limits.headers(Kind::Read).map(|(_, value)| value);
        assert_eq!(values, ["249", "3749"]);
    }

    #[test]
    fn a_vm_may_ask_for_its_metadata_five_times_a_second() {
        let (mut limits, now) = (limits(), Instant::now());
        let passed = (0..10).filter(|_| limits.metadata("10.0.0.4", false, now)).count();
        assert_eq!(passed, 5);
        assert!(limits.metadata("10.0.0.5", false, now), "another VM has its own count");
    }
}
