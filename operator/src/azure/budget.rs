//! Azure's request limits as a budget, and the order in which calls draw on it. Pure: `now` is an argument;
//! [`gate`] does the waiting.
//!
//! Every request to ARM is paid here, once and before it is sent: each page of a list, each poll. Calls for
//! nodes with waiting pods go first, but one call in ten goes to the one that has waited longest, whatever it
//! is for, so that a rush of pods on some nodes never shuts the others out. Writes that have begun are
//! followed to their end before others begin: in a rush, nodes are served one after the other rather than all
//! of them by halves.

pub(super) mod gate;
pub(super) mod lesson;
mod meter;
mod queue;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

pub use lesson::Lesson;
pub use meter::NETWORK_WRITES;
use meter::{Level, Meter};
use queue::{Next, Queue, Rank, Tried};

use crate::priority::Priority;

/// A kind of call as Azure meters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Read,
    Write,
    Delete,
    /// Polling a long-running operation. ARM meters it as a read.
    Poll,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Delete => "delete",
            Kind::Poll => "poll",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::Delete)
    }
}

/// The resource provider behind ARM that answers a call, and meters it once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Provider {
    Network,
    Compute,
    Other,
}

/// The properties that calls share which are metered together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    /// In lower case.
    pub subscription: String,
    pub provider: Provider,
    /// The region of the resource, in lower case; `None` while it isn't known.
    pub region: Option<String>,
    pub kind: Kind,
    /// The resource's path in lower case: Compute also meters each of its resources.
    pub resource: String,
}

impl Lane {
    /// A VM is read to find its NIC. All other calls follow that.
    fn is_first_step(&self) -> bool {
        self.provider == Provider::Compute && self.kind == Kind::Read
    }
}

/// The meters, the remainder of each, and the waiting calls.
pub(super) struct Budget {
    /// The part of Azure's limits that is ours.
    share: f64,
    levels: HashMap<Meter, Level>,
    /// When there are this many levels, the full ones are dropped: a full level is the same as none.
    tidy_at: usize,
    /// By ARM's own meter, on which each call draws: one subscription's reads or writes don't wait for
    /// others.
    queues: BTreeMap<Line, Queue>,
    last: Ticket,
    /// How often the budget has checked whether a call may go.
    #[cfg(test)]
    draws: u64,
}

/// A call's number in the queue. Later calls have greater ones.
pub(super) type Ticket = u64;

/// The key of a queue: a subscription, and whether its calls are writes.
type Line = (String, bool);

fn queue_of(lane: &Lane) -> Line {
    (lane.subscription.clone(), lane.kind.writes())
}

fn rank(lane: &Lane, priority: Priority, ticket: Ticket) -> Rank {
    (priority, lane.is_first_step(), ticket)
}

/// After this many later calls the longest-waiting call has its turn.
const TURN: u32 = 9;
const TIDY_AT: usize = 1024;

/// How one of Azure's limits stands, as far as it is ours. For metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub subscription: String,
    /// Empty if Azure has one limit for all regions, or while the region isn't known.
    pub region: String,
    /// Whose limit it is: `arm`, `network` or `compute`, or the action that Azure has closed.
    pub limit: String,
    pub writes: bool,
    /// How many calls we may make at once when nothing has been used; infinite for an action.
    pub capacity: f64,
    pub left: f64,
    /// How many calls it has paid for.
    pub spent: u64,
    /// How much longer Azure has asked us to wait.
    pub closed_for: Duration,
}

impl Budget {
    /// `percent` of Azure's limits, from 1 to 100, are ours; the rest is left to the subscription's other
    /// clients.
    pub(super) fn new(percent: u8) -> Budget {
        Budget {
            share: f64::from(percent.clamp(1, 100)) / 100.0,
            levels: HashMap::new(),
            tidy_at: TIDY_AT,
            queues: BTreeMap::new(),
            last: 0,
            #[cfg(test)]
            draws: 0,
        }
    }

    /// Puts a call into the queue. A later [`Budget::grant`] grants it.
    pub(super) fn ask(&mut self, lane: &Lane, priority: Priority) -> Ticket {
        self.last += 1;
        let queue = self.queues.entry(queue_of(lane)).or_default();
        queue.insert(meter::of(lane), rank(lane, priority, self.last));
        self.last
    }

    /// Takes the call out of the queue: it won't be made. False if it has been granted, and so paid, before.
    pub(super) fn withdraw(&mut self, lane: &Lane, priority: Priority, ticket: Ticket) -> bool {
        let queue = self.queues.get_mut(&queue_of(lane));
        queue.is_some_and(|queue| queue.remove(&meter::of(lane).0, &rank(lane, priority, ticket)))
    }

    /// The calls that may go now, and when to ask again if some still wait. They go by priority and then by
    /// age, except for the turns of the longest-waiting ones. A call that is held up by a narrower limit
    /// doesn't hold up the others.
    pub(super) fn grant(&mut self, now: Instant) -> (Vec<Ticket>, Option<Instant>) {
        let mut granted = vec![];
        let mut again: Option<Instant> = None;
        let mut queues = std::mem::take(&mut self.queues);
        for queue in queues.values_mut() {
            let ready = self.serve(queue, now, &mut granted);
            again = again.into_iter().chain(ready).min();
        }
        queues.retain(|_, queue| !queue.is_empty());
        self.queues = queues;
        self.tidy(now);
        (granted, again)
    }

    fn serve(&mut self, queue: &mut Queue, now: Instant, granted: &mut Vec<Ticket>) -> Option<Instant> {
        let mut again: Option<Instant> = None;
        // If no call can use the turn now, none can later at the same moment.
        let mut gives_turns = true;
        let mut tried = Tried::default();
        loop {
            if gives_turns && queue.overtaken >= TURN {
                let longest = self.take_turn(queue, now);
                gives_turns = longest.is_some();
                granted.extend(longest);
            }
            let Some(next) = queue.first(&tried) else { return again };
            match self.draw(&next, next.rank.0, now) {
                Ok(()) => {
                    queue.remove(&next.shared, &next.rank);
                    let overtakes = queue.has_older(next.rank.2);
                    queue.overtaken = if overtakes { queue.overtaken + 1 } else { 0 };
                    granted.push(next.rank.2);
                }
                Err(Shut { ready, whom }) => {
                    again = Some(again.map_or(ready, |again| again.min(ready)));
                    match whom {
                        Whom::All => return again,
                        Whom::Class => tried.end(next.shared),
                        Whom::One => tried.pass(next.shared, next.rank),
                    }
                }
            }
        }
    }

    /// The longest-waiting call that could go now, whatever its priority.
    fn take_turn(&mut self, queue: &mut Queue, now: Instant) -> Option<Ticket> {
        let mut tried = Tried::default();
        loop {
            let next = queue.oldest(&tried)?;
            match self.draw(&next, Priority::WaitingPods, now) {
                Ok(()) => {
                    queue.remove(&next.shared, &next.rank);
                    queue.overtaken = 0;
                    return Some(next.rank.2);
                }
                Err(Shut { whom: Whom::All, .. }) => return None,
                Err(Shut { whom: Whom::Class, .. }) => tried.end(next.shared),
                Err(Shut { whom: Whom::One, .. }) => tried.pass(next.shared, next.rank),
            }
        }
    }

    /// Takes one call's worth from each meter, or returns when that will be possible.
    fn draw(&mut self, next: &Next, priority: Priority, now: Instant) -> Result<(), Shut> {
        #[cfg(test)]
        {
            self.draws += 1;
        }
        let mut latest = Shut { ready: now, whom: Whom::One };
        let shared = next
            .shared
            .iter()
            .map(|meter| (meter, if matches!(meter, Meter::Arm { .. }) { Whom::All } else { Whom::Class }));
        for (meter, whom) in shared.chain(next.own.iter().map(|meter| (meter, Whom::One))) {
            let ready = self.level(meter, now).ready(priority, now);
            if ready > latest.ready {
                latest = Shut { ready, whom };
            }
        }
        if latest.ready > now {
            return Err(latest);
        }
        for meter in next.shared.iter().chain(&next.own) {
            self.level(meter, now).take(now);
        }
        Ok(())
    }

    /// A call that was granted at `taken` isn't made.
    pub(super) fn give_back(&mut self, lane: &Lane, taken: Instant, now: Instant) {
        let (shared, own) = meter::of(lane);
        for meter in shared.iter().chain(&own) {
            self.level(meter, now).give_back(taken);
        }
    }

    /// Learns from an answer to a call of this lane.
    pub(super) fn learn(&mut self, lane: &Lane, lesson: &Lesson, now: Instant) {
        let share = self.share;
        let (shared, own) = meter::of(lane);
        for meter in shared.into_iter().chain(own) {
            let left = lesson.left(&meter, share);
            let closed_for = lesson.closes(&meter).then_some(lesson.closed_for).flatten();
            let level = self.level(&meter, now);
            if let Some(left) = left {
                level.lower(left, now);
            }
            match closed_for {
                Some(peace) => level.close(now + peace, now),
                None => level.answered(now),
            }
        }
    }

    /// The state of the limits. The meters of single VMs and operations are left out: there are too many.
    pub(super) fn accounts(&mut self, now: Instant) -> Vec<Account> {
        let mut accounts: Vec<Account> = self
            .levels
            .iter_mut()
            .filter_map(|(meter, level)| {
                level.settle(now);
                level.account(meter, now)
            })
            .collect();
        let key =
            |one: &Account| (one.subscription.clone(), one.limit.clone(), one.region.clone(), one.writes);
        accounts.sort_by_key(key);
        accounts
    }

    /// How many calls of each priority wait.
    pub(super) fn waiting(&self) -> [(Priority, usize); Priority::ALL.len()] {
        let ranks = || self.queues.values().flat_map(Queue::ranks);
        Priority::ALL.map(|priority| (priority, ranks().filter(|(one, ..)| *one == priority).count()))
    }

    /// The meter's level as of `now`.
    fn level(&mut self, meter: &Meter, now: Instant) -> &mut Level {
        let share = self.share;
        let level = self.levels.entry(meter.clone()).or_insert_with(|| meter.full(share, now));
        level.settle(now);
        level
    }

    fn tidy(&mut self, now: Instant) {
        if self.levels.len() < self.tidy_at {
            return;
        }
        self.levels.retain(|meter, level| {
            level.settle(now);
            !(matches!(meter, Meter::Resource { .. }) && level.is_full(now))
        });
        self.tidy_at = (2 * self.levels.len()).max(TIDY_AT);
    }
}

/// Why a call can't go yet.
struct Shut {
    ready: Instant,
    /// Whom the meter that is short holds up.
    whom: Whom,
}

/// Which of the later calls in a queue can't go either.
#[derive(Clone, Copy)]
enum Whom {
    /// All: ARM's own meter is short.
    All,
    /// The calls that draw on the same shared meters.
    Class,
    One,
}

#[cfg(test)]
mod tests;
