//! Subnets that have run out of addresses: which node may ask next, and for how many. Pure: `now` is an
//! argument.
//!
//! One refusal holds back the growth of every node in the subnet. From then on one node at a time asks, for
//! no more than is believed to be there: half of what was refused, one after a wait, twice what was granted,
//! and what our own nodes have given back. Releases are never held back: they are what helps. Once there is
//! enough for all who want some, it is over.
//!
//! The order is that of need: nodes with pods that lack an address come first, among them the one that holds
//! least for what it needs. Who has asked in vain, or didn't use its turn, goes behind its equals, so nobody
//! keeps the others waiting.
//!
//! All of it can be lost: it saves requests, and the next refusal begins it anew.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

/// Where the addresses come from. A subnet may have single addresses and yet no block, so each sort runs out
/// by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The subnet's id, in lower case.
    pub subnet: String,
    /// How many addresses an ipConfiguration brings: 1, or 16 if it is a block.
    pub grain: u32,
}

/// What a node would have. Addresses, but for `units`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// What its pods need.
    pub pods: u32,
    pub held: u32,
    pub wanted: u32,
    /// How many ipConfigurations it would ask for now.
    pub units: u32,
}

/// What a node may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is no shortage.
    Free,
    /// Ask for so many ipConfigurations.
    Now(u32),
    /// Wait to be called; look again by itself at `at`, if it is given.
    Later { at: Option<Instant> },
}

/// Azure's words about a full subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The subnet as Azure named it.
    pub subnet: String,
    pub message: String,
}

/// Every shortage there is.
#[derive(Debug, Default)]
pub struct Shortages(HashMap<Source, Shortage>);

#[derive(Debug)]
struct Shortage {
    grain: u32,
    said: Said,
    /// How many ipConfigurations may be there: what is asked for next.
    believed: u32,
    /// No more than this many are there, as far as refusals tell.
    at_most: u32,
    /// With nothing believed to be there, one is asked for at this time.
    probe_at: Instant,
    /// From the next refusal to the next probe.
    wait: Duration,
    wants: BTreeMap<String, Waiting>,
    turn: Option<Given>,
    /// The pool's edit that was last taken for a reason to try at once.
    cause: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    want: Want,
    /// Turns it had for nothing.
    misses: u32,
}

#[derive(Debug)]
struct Given {
    node: String,
    until: Instant,
}

/// The first wait after the last address was refused, and the longest. There is one probe for all of a
/// subnet.
const PROBE: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(600);
/// Who hasn't written its NIC by then has lost its turn. One that is still at it does no harm.
const TURN: Duration = Duration::from_secs(30);

/// Nodes that are to be reconciled again.
pub type Woken = Vec<String>;

impl Shortages {
    /// What a node that wants to grow may do now. Whoever it calls has the turn instead.
    pub fn ask(&mut self, source: &Source, node: &str, want: Want, now: Instant) -> (Turn, Woken) {
        let Some(shortage) = self.0.get_mut(source) else { return (Turn::Free, vec![]) };
        shortage.ask(node, want, now)
    }

    /// What Azure said of a source that has run out.
    pub fn said(&self, source: &Source) -> Option<&Said> {
        self.0.get(source).map(|shortage| &shortage.said)
    }

    /// Azure has no such number of ipConfigurations.
    pub fn refused(
        &mut self,
        source: &Source,
        (node, want): (&str, Want),
        asked: u32,
        said: Said,
        now: Instant,
    ) -> Woken {
        let known = self.0.get(source).map(|shortage| shortage.believed);
        let shortage = self.0.entry(source.clone()).or_insert_with(|| Shortage::new(source.grain, now));
        shortage.said = said;
        shortage.at_most = shortage.at_most.min(asked.saturating_sub(1));
        shortage.believed = known.unwrap_or(u32::MAX).min(asked / 2).min(shortage.at_most);
        // One who had asked before all was known to be gone brings no news.
        if known != Some(0) {
            shortage.wait_if_empty(now);
        }
        let misses = shortage.wants.get(node).map_or(0, |waiting| waiting.misses);
        shortage.wants.insert(node.to_owned(), Waiting { want, misses: misses + 1 });
        shortage.pass_on(node)
    }

    /// An operator before this one had found the source empty: its nodes don't all ask at once to learn it
    /// again.
    pub fn recall(&mut self, source: &Source, said: Said, now: Instant) {
        self.0.entry(source.clone()).or_insert_with(|| Shortage { said, ..Shortage::new(source.grain, now) });
    }

    /// Azure gave a node so many ipConfigurations.
    pub fn granted(&mut self, source: &Source, node: &str, count: u32, now: Instant) -> Woken {
        let Some(shortage) = self.0.get_mut(source) else { return vec![] };
        if shortage.at_most != u32::MAX {
            shortage.at_most = shortage.at_most.saturating_sub(count);
        }
        let more = shortage.believed.saturating_sub(count).max(count.saturating_mul(2));
        shortage.believed = more.min(shortage.at_most);
        shortage.wait = PROBE;
        shortage.wait_if_empty(now);
        if let Some(waiting) = shortage.wants.get_mut(node) {
            waiting.want.held = waiting.want.held.saturating_add(count.saturating_mul(source.grain));
            waiting.want.units = waiting.want.units.saturating_sub(count);
        }
        shortage.wants.retain(|_, waiting| waiting.want.units > 0);
        shortage.wants.values_mut().for_each(|waiting| waiting.misses = 0);
        let calls = shortage.pass_on(node);
        self.end(source).unwrap_or(calls)
    }

    /// So many ipConfigurations have gone back.
    pub fn released(&mut self, source: &Source, count: u32) -> Woken {
        let Some(shortage) = self.0.get_mut(source) else { return vec![] };
        shortage.believed = shortage.believed.saturating_add(count);
        shortage.at_most = shortage.at_most.saturating_add(count);
        shortage.wait = PROBE;
        shortage.wants.values_mut().for_each(|waiting| waiting.misses = 0);
        let calls = shortage.front().into_iter().collect();
        self.end(source).unwrap_or(calls)
    }

    /// A node's turn has come to nothing, for a reason that says nothing about the subnet.
    pub fn missed(&mut self, source: &Source, node: &str) -> Woken {
        let Some(shortage) = self.0.get_mut(source) else { return vec![] };
        if let Some(waiting) = shortage.wants.get_mut(node) {
            waiting.misses += 1;
        }
        shortage.pass_on(node)
    }

    /// A node wants nothing more, of any source.
    pub fn content(&mut self, node: &str) -> Woken {
        let mut calls = vec![];
        self.0.retain(|_, shortage| {
            if shortage.wants.remove(node).is_some() {
                calls.extend(shortage.pass_on(node));
            }
            !shortage.wants.is_empty()
        });
        calls
    }

    /// Somebody may have made room: the subnet is tried at once. The same `cause` counts once.
    pub fn try_now(&mut self, subnet: &str, cause: Option<u64>, now: Instant) -> Woken {
        let mut calls = vec![];
        for (_, shortage) in self.0.iter_mut().filter(|(source, _)| source.subnet == subnet) {
            if cause.is_none() || shortage.cause != cause {
                shortage.cause = cause;
                // What refusals have told is of before.
                shortage.at_most = u32::MAX;
                shortage.probe_at = shortage.probe_at.min(now);
                shortage.wait = PROBE;
                calls.extend(shortage.front());
            }
        }
        calls
    }

    /// Ends a shortage when there seems to be enough for all, and calls them.
    fn end(&mut self, source: &Source) -> Option<Woken> {
        let shortage = self.0.get(source)?;
        let wanted: u32 = shortage.wants.values().map(|waiting| waiting.want.units).sum();
        if wanted > shortage.believed {
            return None;
        }
        self.0.remove(source).map(|shortage| shortage.wants.into_keys().collect())
    }
}

impl Shortage {
    fn new(grain: u32, now: Instant) -> Shortage {
        Shortage {
            grain,
            said: Said::default(),
            believed: 0,
            at_most: u32::MAX,
            probe_at: now,
            wait: PROBE,
            wants: BTreeMap::new(),
            turn: None,
            cause: None,
        }
    }

    fn ask(&mut self, node: &str, want: Want, now: Instant) -> (Turn, Woken) {
        let misses = self.wants.get(node).map_or(0, |waiting| waiting.misses);
        self.wants.insert(node.to_owned(), Waiting { want, misses });
        if let Some(late) = self.turn.take_if(|given| given.until <= now)
            && let Some(waiting) = self.wants.get_mut(&late.node)
        {
            waiting.misses += 1;
        }
        if self.believed == 0 && self.probe_at <= now {
            (self.believed, self.at_most) = (1, u32::MAX);
        }
        match &self.turn {
            Some(given) if given.node == node => return (Turn::Now(self.share(node)), vec![]),
            Some(given) => {
                let is_next = self.first_but(&given.node).as_deref() == Some(node);
                return (Turn::Later { at: is_next.then_some(given.until) }, vec![]);
            }
            None => {}
        }
        match self.front() {
            Some(front) if front != node => {
                let calls = if self.believed > 0 { vec![front] } else { vec![] };
                (Turn::Later { at: None }, calls)
            }
            _ if self.believed == 0 => (Turn::Later { at: Some(self.probe_at) }, vec![]),
            _ => {
                self.turn = Some(Given { node: node.to_owned(), until: now + TURN });
                (Turn::Now(self.share(node)), vec![])
            }
        }
    }

    /// With nothing left to ask for, time must bring it.
    fn wait_if_empty(&mut self, now: Instant) {
        if self.believed == 0 {
            self.probe_at = now + self.wait;
            self.wait = (self.wait * 2).min(LONGEST);
        }
    }

    /// Takes the turn from `node`, if it has it, and calls whoever comes next.
    fn pass_on(&mut self, node: &str) -> Woken {
        if self.turn.as_ref().is_some_and(|given| given.node != node) {
            return vec![];
        }
        self.turn = None;
        self.front().into_iter().collect()
    }

    fn front(&self) -> Option<String> {
        self.first_but("")
    }

    /// Who is in the greatest need, a node left out.
    fn first_but(&self, left_out: &str) -> Option<String> {
        let others = self.wants.iter().filter(|(name, _)| *name != left_out);
        others
            .min_by_key(|(name, waiting)| (waiting.need(0, self.grain), *name))
            .map(|(name, _)| name.clone())
    }

    /// How many of those believed to be there are for this node, when each goes to whoever is then in the
    /// greatest need: at least one, for somebody must try.
    fn share(&self, node: &str) -> u32 {
        let grain = self.grain;
        let mut got: HashMap<&str, u32> = HashMap::new();
        let mut queue: BinaryHeap<_> = self
            .wants
            .iter()
            .map(|(name, waiting)| Reverse((waiting.need(0, grain), name.as_str())))
            .collect();
        for _ in 0..self.believed {
            let Some(Reverse((_, name))) = queue.pop() else { break };
            let count = got.entry(name).or_default();
            *count += 1;
            let waiting = &self.wants[name];
            if *count < waiting.want.units {
                queue.push(Reverse((waiting.need(*count, grain), name)));
            }
        }
        got.get(node).copied().unwrap_or_default().max(1)
    }
}

/// Less is more in need: has its pods served, turns in vain, what it holds of what it needs in 1/65,536.
type Need = (bool, u32, u64);

impl Waiting {
    /// With `units` more of `grain` addresses each.
    fn need(&self, units: u32, grain: u32) -> Need {
        let Want { pods, held, wanted, .. } = self.want;
        let held = held.saturating_add(units.saturating_mul(grain));
        let is_served = held >= pods;
        let needs = if is_served { wanted } else { pods };
        (is_served, self.misses, u64::from(held) * 65_536 / u64::from(needs.max(1)))
    }
}

#[cfg(test)]
mod tests;
