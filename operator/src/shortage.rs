//! Subnets and virtual networks that have run out of addresses: which node may ask next, and for how many.
//! Pure: `now` is an argument.
//!
//! One refusal holds back the growth of every node there. From then on one node at a time asks, for no more
//! than is believed to be there: half of what was refused, one after a wait, twice what was granted, and what
//! our own nodes have given back. Releases are never held back, because they help. Once there is enough for
//! all nodes that want some, it is over.
//!
//! The order is that of need: nodes with pods that lack an address come first, among them the one that holds
//! least for what it needs. A node that has asked in vain goes behind its equals. A turn has its end from the
//! moment its node is woken. A node that doesn't use its turn is out until it asks again: a node that can't
//! act holds no other up.
//!
//! All of it can be lost: it saves requests, and the next refusal begins it anew.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::causes::Causes;
use crate::lock::lock;
use crate::woken::Woken;

/// Where the addresses come from. Ids are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A subnet may have single addresses and yet no block, so each sort runs out separately. `grain` is how
    /// many addresses an ipConfiguration brings: 1, or 16 if it is a block.
    Subnet { id: String, grain: u32 },
    /// A virtual network takes so many ipConfigurations in all, and a block counts like a single address.
    Network { id: String },
}

/// A node's request. In addresses, except for `units`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The need of its pods.
    pub pods: u32,
    pub held: u32,
    pub wanted: u32,
    /// How many ipConfigurations it would ask for now.
    pub units: u32,
    /// How many addresses each of them brings.
    pub grain: u32,
}

/// A node's permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is no shortage.
    Free,
    /// Ask for so many ipConfigurations.
    Now(u32),
    /// Wait to be woken, because of this source and Azure's answer about it.
    Later(Source, Answer),
}

/// Azure's answer about a source that has run out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The subnet as Azure named it; empty where it spoke of the virtual network.
    pub subnet: String,
    pub message: String,
}

/// Every shortage there is.
#[derive(Debug, Default)]
pub struct Shortages {
    all: HashMap<Source, Shortage>,
    /// A source has run out.
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct Shortage {
    answer: Answer,
    /// How many ipConfigurations may be there: the size of the next request.
    believed: u32,
    /// No more than this many are there, as far as refusals show.
    at_most: u32,
    /// With nothing believed to be there, one is asked for at this time.
    probe_at: Instant,
    /// From the next refusal to the next probe.
    wait: Duration,
    wants: BTreeMap<String, Waiter>,
    turn: Option<Given>,
    /// Edits of pools that were taken for a reason to try at once.
    causes: Causes,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    want: Want,
    /// Turns it had in vain.
    misses: u32,
}

#[derive(Debug)]
struct Given {
    node: String,
    until: Instant,
}

/// The first wait after the last address was refused, and the longest. There is one probe for all of a
/// source.
const PROBE: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(600);
/// A node that hasn't written its NIC by then has lost its turn. A node that is still writing does no harm.
const TURN: Duration = Duration::from_secs(30);

impl Shortages {
    /// The node's permission to grow now. It needs the turn of each source that has run out, and leaves all
    /// the others where it lacks one.
    pub fn ask(&mut self, sources: &[Source], node: &str, want: Want, now: Instant) -> (Turn, Woken) {
        let (mut woken, mut units) = (vec![], None);
        for source in sources {
            let Some(shortage) = self.all.get_mut(source) else { continue };
            match shortage.ask(node, want, now) {
                (Some(share), next) => {
                    woken.extend(next);
                    units = Some(units.map_or(share, |least: u32| least.min(share)));
                }
                (None, next) => {
                    let answer = shortage.answer.clone();
                    woken.extend(next);
                    for other in sources.iter().filter(|other| *other != source) {
                        woken.extend(self.leave(other, node, now));
                    }
                    return (Turn::Later(source.clone(), answer), woken);
                }
            }
        }
        (units.map_or(Turn::Free, Turn::Now), woken)
    }

    /// Whether one of these has run out.
    pub fn has_any(&self, sources: &[Source]) -> bool {
        sources.iter().any(|source| self.all.contains_key(source))
    }

    /// Whether the node may ask of this one, which has run out.
    pub fn is_turn_of(&self, source: &Source, node: &str) -> bool {
        let turn = self.all.get(source).and_then(|shortage| shortage.turn.as_ref());
        turn.is_some_and(|given| given.node == node)
    }

    /// Azure has no such number of ipConfigurations.
    pub fn refused(
        &mut self,
        source: &Source,
        (node, want): (&str, Want),
        asked: u32,
        answer: Answer,
        now: Instant,
    ) -> Woken {
        let known = self.all.get(source).map(|shortage| shortage.believed);
        if known.is_none() {
            self.news.send_replace(());
        }
        let shortage = self.all.entry(source.clone()).or_insert_with(|| Shortage::new(now));
        shortage.answer = answer;
        shortage.at_most = shortage.at_most.min(asked.saturating_sub(1));
        shortage.believed = known.unwrap_or(u32::MAX).min(asked / 2).min(shortage.at_most);
        // A refusal of a request sent before all was known to be gone brings no news.
        if known != Some(0) {
            shortage.wait_if_empty(now);
        }
        let misses = shortage.wants.get(node).map_or(0, |waiting| waiting.misses);
        shortage.wants.insert(node.to_owned(), Waiter { want, misses: misses + 1 });
        shortage.pass_on(node, now)
    }

    /// An operator before this one had found the source empty: its nodes don't all ask at once to learn it
    /// again.
    pub fn recall(&mut self, source: &Source, answer: Answer, now: Instant) {
        self.all.entry(source.clone()).or_insert_with(|| Shortage { answer, ..Shortage::new(now) });
    }

    /// Azure gave a node so many ipConfigurations.
    pub fn granted(&mut self, source: &Source, node: &str, count: u32, now: Instant) -> Woken {
        let Some(shortage) = self.all.get_mut(source) else { return vec![] };
        if shortage.at_most != u32::MAX {
            shortage.at_most = shortage.at_most.saturating_sub(count);
        }
        let more = shortage.believed.saturating_sub(count).max(count.saturating_mul(2));
        shortage.believed = more.min(shortage.at_most);
        shortage.wait = PROBE;
        shortage.wait_if_empty(now);
        if let Some(Waiter { want, .. }) = shortage.wants.get_mut(node) {
            want.held = want.held.saturating_add(count.saturating_mul(want.grain));
            want.units = want.units.saturating_sub(count);
        }
        shortage.wants.retain(|_, waiting| waiting.want.units > 0);
        shortage.wants.values_mut().for_each(|waiting| waiting.misses = 0);
        self.end(source).unwrap_or_else(|| self.with(source, |shortage| shortage.pass_on(node, now)))
    }

    /// So many ipConfigurations have gone back.
    pub fn released(&mut self, source: &Source, count: u32, now: Instant) -> Woken {
        let Some(shortage) = self.all.get_mut(source) else { return vec![] };
        shortage.believed = shortage.believed.saturating_add(count);
        shortage.at_most = shortage.at_most.saturating_add(count);
        shortage.wait = PROBE;
        shortage.wants.values_mut().for_each(|waiting| waiting.misses = 0);
        self.end(source).unwrap_or_else(|| self.with(source, |shortage| shortage.wake_next(now)))
    }

    /// A node's turn was in vain, for a reason that shows nothing of the source.
    pub fn missed(&mut self, source: &Source, node: &str, now: Instant) -> Woken {
        let Some(shortage) = self.all.get_mut(source) else { return vec![] };
        if let Some(waiting) = shortage.wants.get_mut(node) {
            waiting.misses += 1;
        }
        shortage.pass_on(node, now)
    }

    /// A node wants nothing more of any source, or can't ask for it now.
    pub fn withdraw(&mut self, node: &str, now: Instant) -> Woken {
        let sources: Vec<Source> = self.all.keys().cloned().collect();
        sources.iter().flat_map(|source| self.leave(source, node, now)).collect()
    }

    /// There may be new room: a subnet and its virtual network are tried at once. The same `cause` counts
    /// once.
    pub fn try_now(&mut self, subnet: &str, cause: Option<u64>, now: Instant) -> Woken {
        let mut woken = vec![];
        for (_, shortage) in self.all.iter_mut().filter(|(source, _)| source.is_around(subnet)) {
            if cause.is_none_or(|cause| shortage.causes.add(cause)) {
                // Earlier refusals are out of date.
                shortage.at_most = u32::MAX;
                shortage.probe_at = shortage.probe_at.min(now);
                shortage.wait = PROBE;
                woken.extend(shortage.wake_next(now));
            }
        }
        woken
    }

    /// Time has passed: turns end, and probes come due. No other code reads the clock.
    pub fn tick(&mut self, now: Instant) -> Woken {
        let woken = self.all.values_mut().flat_map(|shortage| shortage.tick(now)).collect();
        self.all.retain(|_, shortage| !shortage.wants.is_empty());
        woken
    }

    /// The node stands back; with the last of them the shortage is forgotten.
    fn leave(&mut self, source: &Source, node: &str, now: Instant) -> Woken {
        let Some(shortage) = self.all.get_mut(source) else { return vec![] };
        if shortage.wants.remove(node).is_none() {
            return vec![];
        }
        let woken = shortage.pass_on(node, now);
        if shortage.wants.is_empty() {
            self.all.remove(source);
        }
        woken
    }

    fn with(&mut self, source: &Source, work: impl FnOnce(&mut Shortage) -> Woken) -> Woken {
        self.all.get_mut(source).map(work).unwrap_or_default()
    }

    /// Ends a shortage when there seems to be enough for all, and wakes all waiting nodes.
    fn end(&mut self, source: &Source) -> Option<Woken> {
        let shortage = self.all.get(source)?;
        let wanted: u32 = shortage.wants.values().map(|waiting| waiting.want.units).sum();
        if wanted > shortage.believed {
            return None;
        }
        self.all.remove(source).map(|shortage| shortage.wants.into_keys().collect())
    }
}

/// Ends when one of these has run out.
pub async fn until_short(shortages: Arc<Mutex<Shortages>>, sources: Vec<Source>) {
    let mut news = lock(&shortages).news.subscribe();
    while !lock(&shortages).has_any(&sources) {
        if news.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Source {
    /// Whether addresses of this subnet come from it.
    fn is_around(&self, subnet: &str) -> bool {
        match self {
            Source::Subnet { id, .. } => id == subnet,
            Source::Network { id } => {
                subnet.strip_prefix(id.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
        }
    }
}

impl Shortage {
    fn new(now: Instant) -> Shortage {
        Shortage {
            answer: Answer::default(),
            believed: 0,
            at_most: u32::MAX,
            probe_at: now,
            wait: PROBE,
            wants: BTreeMap::new(),
            turn: None,
            causes: Causes::default(),
        }
    }

    /// How many the node may ask for; `None`: it has to wait.
    fn ask(&mut self, node: &str, want: Want, now: Instant) -> (Option<u32>, Woken) {
        let known = self.wants.get(node).map_or(0, |waiting| waiting.misses);
        let was_late = self.take_late(now).is_some_and(|late| late == node);
        self.wants.insert(node.to_owned(), Waiter { want, misses: known + u32::from(was_late) });
        let mut woken = self.wake_next(now);
        // The node that asks needs no waking.
        woken.retain(|woken| woken != node);
        let has_turn = self.turn.as_ref().is_some_and(|given| given.node == node);
        (has_turn.then(|| self.share(node)), woken)
    }

    /// Takes the turn from a node that hasn't used it, and gives it to the next.
    fn tick(&mut self, now: Instant) -> Woken {
        self.take_late(now);
        self.wake_next(now)
    }

    /// A node that has let its turn run out is left out until it asks again.
    fn take_late(&mut self, now: Instant) -> Option<String> {
        let late = self.turn.take_if(|given| given.until <= now)?.node;
        self.wants.remove(&late);
        Some(late)
    }

    /// Gives the turn to the node in the greatest need, unless another has it or there is nothing to ask for.
    fn wake_next(&mut self, now: Instant) -> Woken {
        if self.turn.is_some() {
            return vec![];
        }
        if self.believed == 0 && self.probe_at <= now {
            (self.believed, self.at_most) = (1, u32::MAX);
        }
        if self.believed == 0 {
            return vec![];
        }
        let front = self.wants.iter().min_by_key(|(name, waiting)| (waiting.need(0), *name));
        let front = front.map(|(name, _)| name.clone());
        self.turn = front.clone().map(|node| Given { node, until: now + TURN });
        front.into_iter().collect()
    }

    /// With nothing left to ask for, time must bring it.
    fn wait_if_empty(&mut self, now: Instant) {
        if self.believed == 0 {
            self.probe_at = now + self.wait;
            self.wait = (self.wait * 2).min(LONGEST);
        }
    }

    /// Takes the turn from `node`, if it has it, and wakes the next node.
    fn pass_on(&mut self, node: &str, now: Instant) -> Woken {
        self.turn = self.turn.take().filter(|given| given.node != node);
        self.wake_next(now)
    }

    /// How many of those believed to be there are for this node, when each goes to the node that is then in
    /// the greatest need: at least one, for some node must try.
    fn share(&self, node: &str) -> u32 {
        let mut got: HashMap<&str, u32> = HashMap::new();
        let mut queue: BinaryHeap<_> =
            self.wants.iter().map(|(name, waiting)| Reverse((waiting.need(0), name.as_str()))).collect();
        for _ in 0..self.believed {
            let Some(Reverse((_, name))) = queue.pop() else { break };
            let count = got.entry(name).or_default();
            *count += 1;
            let waiting = &self.wants[name];
            if *count < waiting.want.units {
                queue.push(Reverse((waiting.need(*count), name)));
            }
        }
        got.get(node).copied().unwrap_or_default().max(1)
    }
}

/// Less is more in need: whether its pods are served, its turns in vain, and the held part of its need in
/// 1/65,536.
type Need = (bool, u32, u64);

impl Waiter {
    /// With so many more ipConfigurations.
    fn need(&self, units: u32) -> Need {
        let Want { pods, held, wanted, grain, .. } = self.want;
        let held = held.saturating_add(units.saturating_mul(grain));
        let is_served = held >= pods;
        let needs = if is_served { wanted } else { pods };
        (is_served, self.misses, u64::from(held) * 65_536 / u64::from(needs.max(1)))
    }
}

#[cfg(test)]
mod tests;
