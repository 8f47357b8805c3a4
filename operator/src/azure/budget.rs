//! What Azure lets us ask for, and who may ask first. Pure: `now` is an argument; [`gate`] waits on it.
//!
//! ARM meters each subscription and identity with a token bucket for reads and one for writes; the network
//! resource provider allows so many writes in any five minutes per subscription and region.
//! Vnetpool uses at most [`OUR_SHARE`] of each and leaves the rest to the subscription's other clients.

pub(super) mod gate;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Why a call is made, highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Pods wait for an address.
    WaitingPods,
    /// A node has none yet.
    NewNode,
    /// Addresses held ready for pods to come.
    WarmRefill,
    /// Addresses nobody wants any more, and re-checks.
    GiveBack,
}

/// What sort of call Azure meters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
    /// Asking how a long-running operation gets on; Azure meters it as a read.
    Poll,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Poll => "poll",
        }
    }
}

/// What calls have in common that are metered together. Subscription and region in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Lane {
    pub subscription: String,
    /// The region of the resource; `None` while it isn't known, or not the network provider's.
    pub region: Option<String>,
    pub writes: bool,
}

/// Of every limit we use this part at most.
const OUR_SHARE: f64 = 0.8;

impl Priority {
    /// The part of our share that calls of this priority leave to those above.
    fn leaves(self) -> f64 {
        match self {
            Priority::WaitingPods => 0.0,
            Priority::NewNode => 0.1,
            Priority::WarmRefill => 0.25,
            Priority::GiveBack => 0.5,
        }
    }
}

/// The meters, what is left of each, and who waits.
#[derive(Default)]
pub(super) struct Budget {
    meters: HashMap<Meter, Level>,
    waiting: BTreeMap<Priority, HashMap<Lane, VecDeque<Ticket>>>,
    last: Ticket,
}

/// One call's place in the queue; later calls have greater ones.
pub(super) type Ticket = u64;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Meter {
    Arm { subscription: String, writes: bool },
    NetworkWrites { subscription: String, region: String },
}

/// How much of a meter is left to us.
struct Level {
    gauge: Gauge,
    /// Azure has told us to stay away until then.
    closed_until: Option<Instant>,
}

enum Gauge {
    /// Refills steadily up to `capacity`.
    Bucket { capacity: f64, per_second: f64, tokens: f64, at: Instant },
    /// At most `capacity` in any `span`.
    Window { capacity: usize, span: Duration, used: VecDeque<Instant> },
}

/// What an answer said about the meters.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Lesson {
    /// The least of the `x-ms-ratelimit-remaining-*` that count this call's sort.
    pub remaining: Option<f64>,
    /// Azure throttled the call and wants this much peace.
    pub closed_for: Option<Duration>,
    /// It was the network provider that throttled, not ARM.
    pub by_provider: bool,
}

impl Budget {
    /// Takes a place in the queue. A later [`Budget::grant`] calls it.
    pub(super) fn ask(&mut self, lane: Lane, priority: Priority) -> Ticket {
        self.last += 1;
        self.waiting.entry(priority).or_default().entry(lane).or_default().push_back(self.last);
        self.last
    }

    /// Who may go now, by priority and then in order of asking; and when to ask again if somebody still
    /// waits.
    pub(super) fn grant(&mut self, now: Instant) -> (Vec<Ticket>, Option<Instant>) {
        let mut granted = vec![];
        let mut again: Option<Instant> = None;
        let mut waiting = std::mem::take(&mut self.waiting);
        for (&priority, lanes) in &mut waiting {
            let mut open: Vec<(&Lane, &mut VecDeque<Ticket>)> = lanes.iter_mut().collect();
            // The lane whose first has waited longest goes first; a lane that can't go doesn't hold up the
            // others.
            while let Some(index) = (0..open.len()).min_by_key(|&index| open[index].1.front().copied()) {
                let (lane, queue) = &mut open[index];
                let Some(&ticket) = queue.front() else {
                    open.swap_remove(index);
                    continue;
                };
                match self.draw(lane, priority, now) {
                    Ok(()) => {
                        queue.pop_front();
                        granted.push(ticket);
                    }
                    Err(ready) => {
                        again = Some(again.map_or(ready, |again| again.min(ready)));
                        open.swap_remove(index);
                    }
                }
            }
            lanes.retain(|_, queue| !queue.is_empty());
        }
        waiting.retain(|_, lanes| !lanes.is_empty());
        self.waiting = waiting;
        (granted, again)
    }

    /// Takes one call's worth from each of the lane's meters, or says when that will be possible.
    fn draw(&mut self, lane: &Lane, priority: Priority, now: Instant) -> Result<(), Instant> {
        let meters = lane.meters();
        let ready =
            meters.iter().map(|meter| self.level(meter, now).ready(priority, now)).max().unwrap_or(now);
        if ready > now {
            return Err(ready);
        }
        for meter in &meters {
            self.level(meter, now).take(now);
        }
        Ok(())
    }

    /// Takes in what an answer to a call of this lane said.
    pub(super) fn learn(&mut self, lane: &Lane, lesson: &Lesson, now: Instant) {
        for meter in lane.meters() {
            let arm = matches!(meter, Meter::Arm { .. });
            let level = self.level(&meter, now);
            if let (true, Some(remaining)) = (arm, lesson.remaining) {
                level.lower(remaining);
            }
            if let (true, Some(peace)) = (arm != lesson.by_provider, lesson.closed_for) {
                level.closed_until = level.closed_until.max(Some(now + peace));
            }
        }
    }

    /// The meter's level as of `now`.
    fn level(&mut self, meter: &Meter, now: Instant) -> &mut Level {
        let level = self.meters.entry(meter.clone()).or_insert_with(|| meter.full(now));
        level.settle(now);
        level
    }
}

impl Lane {
    fn meters(&self) -> Vec<Meter> {
        let arm = Meter::Arm { subscription: self.subscription.clone(), writes: self.writes };
        let provider = self.region.as_ref().filter(|_| self.writes).map(|region| Meter::NetworkWrites {
            subscription: self.subscription.clone(),
            region: region.clone(),
        });
        std::iter::once(arm).chain(provider).collect()
    }
}

impl Meter {
    /// Our share of Azure's published limits (learn.microsoft.com, "Throttling" of Resource Manager and of
    /// the network resource provider). The provider's reads, 10,000 in five minutes, are more than ARM's let
    /// through.
    fn full(&self, now: Instant) -> Level {
        let bucket = |capacity: f64, per_second: f64| Gauge::Bucket {
            capacity: capacity * OUR_SHARE,
            per_second: per_second * OUR_SHARE,
            tokens: capacity * OUR_SHARE,
            at: now,
        };
        let gauge = match self {
            Meter::Arm { writes: false, .. } => bucket(250.0, 25.0),
            Meter::Arm { writes: true, .. } => bucket(200.0, 10.0),
            Meter::NetworkWrites { .. } => Gauge::Window {
                capacity: (1000.0 * OUR_SHARE) as usize,
                span: Duration::from_secs(300),
                used: VecDeque::new(),
            },
        };
        Level { gauge, closed_until: None }
    }
}

impl Level {
    /// Brings it up to `now`.
    fn settle(&mut self, now: Instant) {
        match &mut self.gauge {
            Gauge::Bucket { capacity, per_second, tokens, at } => {
                *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * *per_second).min(*capacity);
                *at = now;
            }
            Gauge::Window { span, used, .. } => {
                while used.front().is_some_and(|&first| now.duration_since(first) >= *span) {
                    used.pop_front();
                }
            }
        }
    }

    /// The first moment, not before `now`, at which a call of this priority may go.
    fn ready(&self, priority: Priority, now: Instant) -> Instant {
        let open = self.closed_until.map_or(now, |until| until.max(now));
        let filled = match &self.gauge {
            Gauge::Bucket { capacity, per_second, tokens, .. } => {
                let lacking = capacity * priority.leaves() + 1.0 - tokens;
                // A microsecond more than it takes, so that rounding doesn't find it a hair short then.
                if lacking <= 0.0 { now } else { now + Duration::from_secs_f64(lacking / per_second + 1e-6) }
            }
            Gauge::Window { capacity, span, used } => {
                let allowed = (*capacity as f64 * (1.0 - priority.leaves())) as usize;
                match (used.len() + 1).checked_sub(allowed) {
                    None | Some(0) => now,
                    // So many of the oldest have to fall out of the window first.
                    Some(excess) => used.get(excess - 1).map_or(now, |&last| last + *span),
                }
            }
        };
        open.max(filled)
    }

    fn take(&mut self, now: Instant) {
        match &mut self.gauge {
            Gauge::Bucket { tokens, .. } => *tokens -= 1.0,
            Gauge::Window { used, .. } => used.push_back(now),
        }
    }

    /// Azure counts fewer left than we do: others draw on it as well.
    fn lower(&mut self, remaining: f64) {
        if let Gauge::Bucket { capacity, tokens, .. } = &mut self.gauge {
            let others = *capacity / OUR_SHARE - *capacity;
            *tokens = tokens.min((remaining - others).max(0.0));
        }
    }
}

#[cfg(test)]
mod tests;
