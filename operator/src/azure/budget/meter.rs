//! Azure's published limits, and how much of each is left to us. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Account, Kind, Lane, Priority, Provider};

/// The meters that calls share with many others. There are a few of each subscription: its providers' of
/// each region.
pub(super) type Shared = Vec<Meter>;

/// A meter by which Azure counts calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Meter {
    /// ARM's own, for a subscription and identity.
    Arm { subscription: String, writes: bool },
    /// The network resource provider's, for a subscription and region. Calls about resources whose region
    /// isn't known yet, the first read of each, share a meter without a region.
    Network { subscription: String, region: String, writes: bool },
    /// The compute resource provider's.
    Compute { subscription: String, region: String, writes: bool },
    /// The compute resource provider's for one resource or operation.
    Resource { path: String, kind: Kind },
    /// That of one action, such as `microsoft.network/networkinterfaces/write`, in a region. Azure publishes
    /// no such limit, but closes one.
    Action { subscription: String, region: String, action: String, writes: bool },
}

/// How much of a meter is left to us.
pub(super) struct Level {
    gauge: Gauge,
    /// Azure has asked us to wait until then.
    closed_until: Option<Instant>,
    spent: u64,
    /// Of those, how many were given back and not used since: a counter never goes down.
    unused: u64,
}

enum Gauge {
    /// How much there is isn't known.
    Unlimited,
    /// Refills steadily up to `capacity`.
    Bucket { capacity: f64, per_second: f64, tokens: f64, at: Instant },
    /// At most `capacity` in any `span`.
    Window { capacity: usize, span: Duration, used: VecDeque<Instant>, others: Others, care: Option<Care> },
}

/// Calls that Azure counts in a window beside ours. Azure doesn't report when they were made.
#[derive(Default)]
struct Others {
    /// So many were made about then, between two answers with counts.
    dated: VecDeque<(Instant, usize)>,
    /// So many are of an unknown time before that. They are taken to leave the window evenly.
    undated: usize,
    since: Option<Instant>,
    /// When Azure counted last.
    counted: Option<Instant>,
}

impl Others {
    /// So many are in the window at that moment, as far as is known now.
    fn count(&self, span: Duration, at: Instant) -> usize {
        let age = |since: Instant| at.saturating_duration_since(since);
        let dated = self.dated.iter().filter(|(made, _)| age(*made) < span).map(|(_, count)| count);
        let part = self.since.map_or(0.0, |since| age(since).as_secs_f64() / span.as_secs_f64());
        let gone = (self.undated as f64 * part.min(1.0)) as usize;
        dated.sum::<usize>() + self.undated - gone
    }

    /// Azure's newest count holds.
    fn correct(&mut self, count: usize, span: Duration, now: Instant) {
        self.dated.retain(|(made, _)| now.saturating_duration_since(*made) < span);
        let dated: usize = self.dated.iter().map(|(_, count)| count).sum();
        let undated = self.count(span, now) - dated;
        let is_close = self.counted.is_some_and(|last| now.saturating_duration_since(last) < CLOSE);
        self.counted = Some(now);
        if count >= dated + undated {
            let more = count - dated - undated;
            if is_close {
                self.dated.extend((more > 0).then_some((now, more)));
            } else {
                (self.undated, self.since) = (undated + more, Some(now));
            }
            return;
        }
        let mut fewer = dated + undated - count;
        if undated > 0 {
            (self.undated, self.since) = (undated.saturating_sub(fewer), Some(now));
            fewer = fewer.saturating_sub(undated);
        }
        while let Some((_, oldest)) = self.dated.front_mut().filter(|_| fewer > 0) {
            let gone = fewer.min(*oldest);
            (*oldest, fewer) = (*oldest - gone, fewer - gone);
            if *oldest == 0 {
                self.dated.pop_front();
            }
        }
    }
}

/// How calls go for a while after Azure has throttled one, since others draw on the window, too: a few at a
/// time, and more with each answer. What others do is only known by answers.
struct Care {
    until: Instant,
    /// So many may be under way.
    most: usize,
    under_way: usize,
    answered: Option<Instant>,
    /// The last call or answer.
    moved: Instant,
}

impl Care {
    fn is_informed(&self, now: Instant) -> bool {
        self.answered.is_some_and(|last| now.saturating_duration_since(last) < CLOSE)
    }

    /// Whether one more may go, of so many that are left.
    fn lets(&self, left: usize, now: Instant) -> bool {
        let most = if self.is_informed(now) { self.most.min(left / 4).max(1) } else { 1 };
        self.under_way < most
    }

    fn take(&mut self, now: Instant) {
        if !self.is_informed(now) {
            self.most = 1;
        }
        self.under_way += 1;
        self.moved = now;
    }

    fn answered(&mut self, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        self.most += 1;
        (self.answered, self.moved) = (Some(now), now);
    }
}

/// What an answer shows of others is news for so long.
const CLOSE: Duration = Duration::from_secs(10);
/// After so long without a call or an answer those under way are lost.
const LOST: Duration = Duration::from_secs(60);
/// How soon to check again whether an answer has come.
const AGAIN: Duration = Duration::from_millis(100);

/// However small our share is, a bucket has room for one call of each priority; otherwise those at the bottom
/// would never go.
const LEAST: f64 = 2.0;
const FIVE_MINUTES: Duration = Duration::from_secs(300);
/// So many writes the network resource provider takes of a subscription in a region, in five minutes.
pub const NETWORK_WRITES: u32 = 1_000;
const NETWORK_READS: u32 = 10_000;

/// The network resource provider's limit of all its reads, or of all its writes.
pub(super) fn of_network(writes: bool) -> f64 {
    f64::from(if writes { NETWORK_WRITES } else { NETWORK_READS })
}

/// The meters that a call of this lane draws on: those that it shares with many others, ARM's first, and one
/// of its own.
pub(super) fn of(lane: &Lane) -> (Shared, Option<Meter>) {
    let Lane { subscription, provider, region, kind, resource } = lane;
    let (subscription, writes) = (subscription.clone(), kind.writes());
    let region = region.clone().unwrap_or_default();
    let mut shared = vec![Meter::Arm { subscription: subscription.clone(), writes }];
    let mut own = None;
    shared.extend(action(lane).map(|action| Meter::Action {
        subscription: subscription.clone(),
        region: region.clone(),
        action,
        writes,
    }));
    match provider {
        Provider::Network => shared.push(Meter::Network { subscription, region, writes }),
        Provider::Compute => {
            shared.push(Meter::Compute { subscription, region, writes });
            own = Some(Meter::Resource { path: resource.clone(), kind: *kind });
        }
        Provider::Other => {}
    }
    (shared, own)
}

/// What Azure calls such calls. `None` for reads of virtual networks: no node waits for one that Azure
/// throttles, since the known state of the network stays good.
fn action(lane: &Lane) -> Option<String> {
    let (_, path) = lane.resource.rsplit_once("/providers/")?;
    let (namespace, path) = path.split_once('/')?;
    let kind = path.split('/').step_by(2).collect::<Vec<_>>().join("/");
    if namespace == "microsoft.network" && kind.starts_with("virtualnetworks") {
        return None;
    }
    let verb = match lane.kind {
        Kind::Read | Kind::Poll => "read",
        Kind::Write => "write",
        Kind::Delete => "delete",
    };
    Some(format!("{namespace}/{kind}/{verb}"))
}

impl Meter {
    /// Azure's limit: how many calls at once, and how many a second after that (learn.microsoft.com,
    /// "Throttling" of Resource Manager, of the network resource provider, and "Compute throttling limits").
    pub(super) fn limit(&self) -> (f64, f64) {
        let a_minute = |burst: f64, refill: f64| (burst, refill / 60.0);
        match self {
            Meter::Arm { writes: false, .. } => (250.0, 25.0),
            Meter::Arm { writes: true, .. } => (200.0, 10.0),
            Meter::Network { writes, .. } => (of_network(*writes), 0.0),
            // The lowest of its limits for the calls we make: asking for an operation's status; VM updates.
            Meter::Compute { writes: false, .. } => a_minute(15_000.0, 5_000.0),
            Meter::Compute { writes: true, .. } => a_minute(1_500.0, 500.0),
            Meter::Resource { kind: Kind::Read, .. } => a_minute(36.0, 12.0),
            Meter::Resource { kind: Kind::Write | Kind::Delete, .. } => a_minute(12.0, 4.0),
            Meter::Resource { kind: Kind::Poll, .. } => a_minute(45.0, 15.0),
            Meter::Action { .. } => (f64::INFINITY, 0.0),
        }
    }

    /// With nothing of our share used.
    pub(super) fn full(&self, share: f64, now: Instant) -> Level {
        let (most, per_second) = self.limit();
        let capacity = (most * share).max(LEAST);
        let gauge = match self {
            Meter::Action { .. } => Gauge::Unlimited,
            Meter::Network { .. } => Gauge::Window {
                capacity: capacity as usize,
                span: FIVE_MINUTES,
                used: VecDeque::new(),
                others: Others::default(),
                care: None,
            },
            _ => Gauge::Bucket { capacity, per_second: per_second * share, tokens: capacity, at: now },
        };
        Level { gauge, closed_until: None, spent: 0, unused: 0 }
    }
}

impl Level {
    /// Brings it up to `now`.
    pub(super) fn settle(&mut self, now: Instant) {
        match &mut self.gauge {
            Gauge::Unlimited => {}
            Gauge::Bucket { capacity, per_second, tokens, at } => {
                *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * *per_second).min(*capacity);
                *at = now;
            }
            Gauge::Window { span, used, care, .. } => {
                *care = care.take().filter(|care| now < care.until);
                if let Some(care) = care
                    && now.saturating_duration_since(care.moved) >= LOST
                {
                    care.under_way = 0;
                }
                while used.front().is_some_and(|&first| now.duration_since(first) >= *span) {
                    used.pop_front();
                }
            }
        }
    }

    /// The first moment, not before `now`, at which a call of this priority may go.
    pub(super) fn ready(&self, priority: Priority, now: Instant) -> Instant {
        let open = self.closed_until.map_or(now, |until| until.max(now));
        let filled = match &self.gauge {
            Gauge::Unlimited => now,
            Gauge::Bucket { capacity, per_second, tokens, .. } => {
                let lacking = capacity * priority.leaves() + 1.0 - tokens;
                // A microsecond more than needed, so that rounding doesn't leave it a hair short then.
                if lacking <= 0.0 { now } else { now + Duration::from_secs_f64(lacking / per_second + 1e-6) }
            }
            Gauge::Window { capacity, span, used, others, care } => {
                let allowed = (*capacity as f64 * (1.0 - priority.leaves())) as usize;
                let beside = others.count(*span, now);
                let taken = used.len() + beside;
                match (taken + 1).checked_sub(allowed) {
                    None | Some(0) => match care {
                        Some(care) if !care.lets(allowed - taken, now) => now + AGAIN,
                        _ => now,
                    },
                    // This many of the oldest calls have to fall out of the window first.
                    Some(excess) if beside == 0 => used.get(excess - 1).map_or(now, |&last| last + *span),
                    Some(excess) => {
                        let ours = |at: Instant| used.partition_point(|&call| call + *span <= at);
                        let theirs = |at: Instant| beside - others.count(*span, at);
                        soonest(now, now + *span, |at| ours(at) + theirs(at) >= excess)
                    }
                }
            }
        };
        open.max(filled)
    }

    pub(super) fn take(&mut self, now: Instant) {
        match self.unused.checked_sub(1) {
            Some(rest) => self.unused = rest,
            None => self.spent += 1,
        }
        match &mut self.gauge {
            Gauge::Unlimited => {}
            Gauge::Bucket { tokens, .. } => *tokens -= 1.0,
            Gauge::Window { used, care, .. } => {
                used.push_back(now);
                care.iter_mut().for_each(|care| care.take(now));
            }
        }
    }

    /// The tokens taken at `taken` weren't used.
    pub(super) fn give_back(&mut self, taken: Instant) {
        self.unused += 1;
        match &mut self.gauge {
            Gauge::Unlimited => {}
            Gauge::Bucket { capacity, tokens, .. } => *tokens = (*tokens + 1.0).min(*capacity),
            Gauge::Window { used, care, .. } => {
                if let Ok(at) = used.binary_search(&taken) {
                    used.remove(at);
                }
                care.iter_mut().for_each(|care| care.under_way = care.under_way.saturating_sub(1));
            }
        }
    }

    /// Azure counts fewer left than we do, since others draw on it as well.
    pub(super) fn lower(&mut self, left: f64, now: Instant) {
        match &mut self.gauge {
            Gauge::Unlimited => {}
            Gauge::Bucket { tokens, .. } => *tokens = tokens.min(left),
            Gauge::Window { capacity, span, used, others, care } => {
                let count = capacity.saturating_sub(used.len()).saturating_sub(left as usize);
                others.correct(count, *span, now);
                for care in care.iter_mut().filter(|_| count > 0) {
                    care.until = care.until.max(now + 2 * *span);
                }
            }
        }
    }

    /// Azure has answered a call, and not by throttling it.
    pub(super) fn answered(&mut self, now: Instant) {
        if let Gauge::Window { care: Some(care), .. } = &mut self.gauge {
            care.answered(now);
        }
    }

    /// Azure has throttled a call. A moment that is earlier than the known one opens nothing.
    pub(super) fn close(&mut self, until: Instant, now: Instant) {
        self.closed_until = self.closed_until.max(Some(until));
        if let Gauge::Window { span, care, .. } = &mut self.gauge {
            let until = until + 2 * *span;
            *care = Some(Care { until, most: 1, under_way: 0, answered: None, moved: now });
        }
    }

    /// Nothing is used and nothing forbidden, as of the last [`Level::settle`].
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let unused = match &self.gauge {
            Gauge::Unlimited => true,
            Gauge::Bucket { capacity, tokens, .. } => tokens >= capacity,
            Gauge::Window { used, others, span, .. } => used.is_empty() && others.count(*span, now) == 0,
        };
        unused && self.closed_until.is_none_or(|until| until <= now)
    }

    /// As of the last [`Level::settle`]; `None` for a single resource's, and for an action that isn't closed.
    pub(super) fn account(&self, meter: &Meter, now: Instant) -> Option<Account> {
        let closed_for =
            self.closed_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let (subscription, region, limit, writes) = match meter {
            Meter::Arm { subscription, writes } => (subscription, "", "arm", writes),
            Meter::Network { subscription, region, writes } => {
                (subscription, region.as_str(), "network", writes)
            }
            Meter::Compute { subscription, region, writes } => {
                (subscription, region.as_str(), "compute", writes)
            }
            Meter::Action { subscription, region, action, writes } if !closed_for.is_zero() => {
                (subscription, region.as_str(), action.as_str(), writes)
            }
            Meter::Action { .. } | Meter::Resource { .. } => return None,
        };
        let (capacity, left) = match &self.gauge {
            Gauge::Unlimited => (f64::INFINITY, f64::INFINITY),
            Gauge::Bucket { capacity, tokens, .. } => (*capacity, *tokens),
            Gauge::Window { capacity, used, span, others, .. } => {
                let taken = used.len() + others.count(*span, now);
                (*capacity as f64, capacity.saturating_sub(taken) as f64)
            }
        };
        Some(Account {
            subscription: subscription.clone(),
            region: region.to_owned(),
            limit: limit.to_owned(),
            writes: *writes,
            capacity,
            left,
            spent: self.spent,
            closed_for,
        })
    }
}

/// The first moment from `now` on, to the millisecond, at which a condition holds. The condition stays true
/// once it is, and is true at `latest`.
fn soonest(now: Instant, latest: Instant, holds: impl Fn(Instant) -> bool) -> Instant {
    let (mut before, mut after) = (now, latest);
    if holds(before) {
        return before;
    }
    while after.duration_since(before) > Duration::from_millis(1) {
        let middle = before + after.duration_since(before) / 2;
        if holds(middle) {
            after = middle;
        } else {
            before = middle;
        }
    }
    after
}
