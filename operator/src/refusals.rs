//! Refusals that concern more nodes than the one that met them: one node tries on behalf of all. Pure: `now`
//! is an argument.
//!
//! What follows is true of reads, too, which have refusals of their own: a lock refuses no read.
//!
//! A lock on a resource group, a subscription that is disabled or a right that is missing on a subnet refuses
//! the writes of every node there. Each trying for itself would use up the request limits of all others in
//! the subscription. So from the first such refusal on the nodes of that scope wait, and one after the other
//! tries, until one succeeds: then all go on. A right that is missing on a NIC shows nothing of the others at
//! first; when the same is missing on three, it counts for their resource group.
//!
//! Several may be refused the same write. Then a node that tries because of one of them is held up by none of
//! the others, or it would need the turns of all at once to try at all; and a node that no other refusal
//! holds tries first, since only its write can show that this one has ended.
//!
//! All of it can be lost: it saves requests, and the next refusal begins it anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::azure::{Error, Matter};
use crate::causes::Causes;
use crate::lock::lock;
use crate::woken::Woken;

/// Every refusal that is known. What is read, and what is written, each has refusals of its own: a success of
/// one shows nothing of the other.
#[derive(Debug, Default)]
pub struct Known {
    pub reads: Arc<Mutex<Refusals>>,
    pub writes: Arc<Mutex<Refusals>>,
}

impl Known {
    pub fn all(&self) -> [&Mutex<Refusals>; 2] {
        [&self.reads, &self.writes]
    }
}

/// The refusals of one kind of request that may concern many.
#[derive(Debug, Default)]
pub struct Refusals {
    all: HashMap<Matter, Refusal>,
    /// Nodes that waited because of one of them which was forgotten for another.
    overtaken: Woken,
    /// A node that may have been about to write may not any more.
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct Refusal {
    error: Error,
    /// The nodes that were refused since a write there has last succeeded.
    met: BTreeSet<String>,
    /// So many refused nodes speak for all of the scope.
    alike: usize,
    /// When a write has last shown that those refusals didn't hold for all nodes.
    disproved: Option<Instant>,
    /// The nodes that would write, but for this, and the ids of what.
    waiting: BTreeMap<String, Vec<String>>,
    turn: Option<Given>,
    /// The node that has tried last.
    last: String,
    again_at: Instant,
    /// Before that only who is held up by nothing else tries: another has met something else.
    shared_at: Instant,
    /// Edits of pools that were taken for a reason to try at once.
    causes: Causes,
}

#[derive(Debug)]
struct Given {
    node: String,
    /// The node has come to ask: its call may wait for its turn at Azure.
    is_used: bool,
    until: Instant,
}

/// From one attempt to the next. A change takes effect within a minute and a half, and half a minute later
/// for each turn in a row that no node uses.
const AGAIN: Duration = Duration::from_secs(80);
/// A node that hasn't come to try within this time has lost its turn.
const TURN: Duration = Duration::from_secs(30);
/// A node without an answer so long after that has lost it, too: in a rush a call waits for minutes.
const CALL: Duration = Duration::from_secs(300);
/// So many NICs that are refused alike speak for their group.
const ALIKE: usize = 3;
/// A node that was refused counts for longer than it waits before it tries again alone.
const KEPT: Duration = Duration::from_secs(900);
/// A refusal that was shown not to hold for all needs more proof for so long.
const DOUBTED: Duration = Duration::from_secs(3600);

impl Refusals {
    /// Why a node may not write now, if others are known to be refused the same. `sites` are the ids of the
    /// resources that it writes and refers to, in lower case.
    pub fn refusal_for(&self, sites: &[String], node: &str) -> Option<(&Matter, &Error)> {
        let mut around = self.all.iter().filter(|(matter, one)| one.concerns(matter, sites)).peekable();
        let (matter, refusal) = *around.peek()?;
        (!around.any(|(_, one)| one.is_turn_of(node))).then_some((matter, &refusal.error))
    }

    /// Whether this is refused to all of a scope that one of the sites is in.
    pub fn stands(&self, matter: &Matter, sites: &[String]) -> bool {
        self.all.get(matter).is_some_and(|one| one.concerns(matter, sites))
    }

    /// The same as [`Refusals::refusal_for`] of one that is about to write: held up it waits to be woken, and
    /// otherwise its turn is used.
    pub fn holds(&mut self, sites: &[String], node: &str, now: Instant) -> Option<(Matter, Error)> {
        let refusal = self.refusal_for(sites, node);
        let held = refusal.map(|(matter, error)| (matter.clone(), error.clone()));
        for (_, refusal) in self.all.iter_mut().filter(|(matter, one)| one.concerns(matter, sites)) {
            match &mut refusal.turn {
                Some(given) if given.node == node => {
                    if held.is_none() && !given.is_used {
                        (given.is_used, given.until) = (true, now + CALL);
                    }
                }
                _ => {
                    refusal.waiting.insert(node.to_owned(), sites.to_vec());
                }
            }
        }
        if held.is_some() {
            // It has something else to do first, and can't: its turns go to others.
            for (_, refusal) in self.all.iter_mut().filter(|(of, one)| one.is_turn_at(of, (node, sites))) {
                (refusal.turn, refusal.again_at, refusal.shared_at) = (None, now + AGAIN, now + AGAIN);
            }
        }
        held
    }

    /// Whether a node that this was refused to still waits until it may try again: it isn't its turn there,
    /// and the refusal stands. The sites are those that it will ask for.
    pub fn waits(&mut self, matter: &Matter, (node, sites): (&str, &[String])) -> bool {
        if self.all.iter().any(|(of, one)| one.is_turn_at(of, (node, sites))) {
            return false;
        }
        let known = self.all.get_mut(matter);
        let Some(refusal) = known.filter(|one| matter.is_wide || one.speaks_for_all()) else { return false };
        refusal.waiting.entry(node.to_owned()).or_insert_with(|| sites.to_vec());
        true
    }

    /// Takes in the error of a node's request to these sites. Returns what is refused, and whether that holds
    /// up all of a scope from now on; `None`: it shows nothing of others.
    pub fn failed(
        &mut self,
        error: &Error,
        (node, sites): (&str, &[String]),
        now: Instant,
    ) -> Option<(Matter, bool)> {
        let matter = error.matter(sites)?;
        let holds_all = self.refused(matter.clone(), (node, sites), error, now);
        Some((matter, holds_all))
    }

    /// A node's write to these sites was refused. Returns whether that holds up all of a scope from now on.
    fn refused(
        &mut self,
        matter: Matter,
        (node, sites): (&str, &[String]),
        error: &Error,
        now: Instant,
    ) -> bool {
        let is_wide = matter.is_wide;
        let is_other = |(other, one): &(&Matter, &Refusal)| **other != matter && one.concerns(other, sites);
        let tried = self.all.iter().filter(is_other).filter(|(_, one)| one.is_turn_of(node));
        let tried: Vec<Matter> = tried.map(|(other, _)| other.clone()).collect();
        // Whichever of them it tried for, it has its answer.
        for (_, refusal) in self.all.iter_mut().filter(|(of, one)| one.is_turn_at(of, (node, sites))) {
            if now < refusal.shared_at {
                // The last has met something else, too: those who seem to be held up by nothing else are.
                refusal.again_at = now + AGAIN;
            }
            (refusal.turn, refusal.shared_at) = (None, now + AGAIN);
        }
        let refusal = self.all.entry(matter).or_insert_with(|| Refusal::of(error, now));
        refusal.error = error.clone();
        refusal.met.insert(node.to_owned());
        node.clone_into(&mut refusal.last);
        refusal.again_at = now + AGAIN;
        let holds_all = is_wide || refusal.speaks_for_all();
        if holds_all {
            refusal.waiting.insert(node.to_owned(), sites.to_vec());
            self.news.send_replace(());
        }
        for other in tried {
            self.forget_if_nobody_lacks(&other);
        }
        holds_all
    }

    /// Forgets a refusal that a node tried for and didn't meet, if something else holds all who wait because
    /// of it: it may have ended, and none of them could show that. Until then they would go on to report it.
    fn forget_if_nobody_lacks(&mut self, matter: &Matter) {
        let is_held_elsewhere = |sites: &Vec<String>| {
            self.all.iter().any(|(other, one)| other != matter && one.concerns(other, sites))
        };
        let waiting = self.all.get(matter).map(|refusal| refusal.waiting.values());
        if waiting.is_some_and(|mut sites| sites.all(is_held_elsewhere)) {
            let forgotten = self.all.remove(matter);
            self.overtaken.extend(forgotten.into_iter().flat_map(|one| one.waiting.into_keys()));
        }
    }

    /// A write has succeeded: nothing refuses all of these, though some may still be refused alone.
    pub fn passed(&mut self, sites: &[String], now: Instant) -> Woken {
        let mut woken = vec![];
        self.all.retain(|matter, refusal| {
            if !matter.is_around(sites) {
                return true;
            }
            woken.extend(std::mem::take(&mut refusal.waiting).into_keys());
            refusal.turn = None;
            if !matter.is_wide && refusal.speaks_for_all() {
                refusal.alike = refusal.alike.saturating_mul(4);
                refusal.disproved = Some(now);
            }
            refusal.met.clear();
            refusal.is_doubted(now)
        });
        woken
    }

    /// A part of what is to be read has been read. One that concerns single resources doesn't hold for all; a
    /// wide one may still refuse the rest, and each node that has read a part would wake all.
    pub fn passed_in_part(&mut self, sites: &[String], now: Instant) -> Woken {
        let wide: Vec<_> = self.all.extract_if(|matter, _| matter.is_wide).collect();
        let woken = self.passed(sites, now);
        self.all.extend(wide);
        woken
    }

    /// A node has nothing to write, or can't.
    pub fn left(&mut self, node: &str, now: Instant) -> Woken {
        self.leave(|_| true, node, now)
    }

    /// A node has nothing to write to these sites, or can't.
    pub fn left_at(&mut self, sites: &[String], node: &str, now: Instant) -> Woken {
        self.leave(|waits| is_part(waits, sites), node, now)
    }

    /// Takes a node out of those who wait, where what it waits to write is to be `left`.
    fn leave(&mut self, left: impl Fn(&[String]) -> bool, node: &str, now: Instant) -> Woken {
        let mut free = vec![];
        for (matter, refusal) in &mut self.all {
            if !refusal.waiting.get(node).is_none_or(|sites| left(sites)) {
                continue;
            }
            refusal.waiting.remove(node);
            if refusal.is_turn_of(node) {
                refusal.turn = None;
                free.push(matter.clone());
            }
        }
        self.wake_next(free, now)
    }

    /// A person may have ended it: it is tried at once. The same `cause` counts once.
    pub fn try_now(&mut self, sites: &[String], cause: u64, now: Instant) -> Woken {
        // Of a new node only the VM is known, and its NIC may be what is refused.
        let around = self.all.iter_mut().filter(|(matter, _)| matter.contains(sites));
        let mut tried = vec![];
        for (matter, refusal) in around {
            if refusal.causes.add(cause) {
                refusal.again_at = refusal.again_at.min(now);
                tried.push(matter.clone());
            }
        }
        self.wake_next(tried, now)
    }

    /// Time has passed: turns end, and attempts come due.
    pub fn tick(&mut self, now: Instant) -> Woken {
        let mut has_ended = false;
        for refusal in self.all.values_mut() {
            if let Some(late) = refusal.turn.take_if(|given| given.until <= now) {
                has_ended = true;
                refusal.waiting.remove(&late.node);
            }
        }
        let due =
            self.all.iter().filter(|(_, refusal)| refusal.is_due(now)).map(|(matter, _)| matter.clone());
        let mut woken = self.wake_next(due.collect(), now);
        woken.append(&mut self.overtaken);
        if has_ended {
            // A call that is still queued at Azure has lost its turn, too.
            self.news.send_replace(());
        }
        // No node is concerned any more.
        self.all.retain(|_, refusal| {
            !refusal.waiting.is_empty() || now < refusal.again_at + KEPT || refusal.is_doubted(now)
        });
        woken
    }

    /// Gives the turns of these, where one is due, to those who haven't tried for longest: of those whom
    /// nothing else holds up, if there are any.
    fn wake_next(&mut self, matters: Vec<Matter>, now: Instant) -> Woken {
        let mut woken = vec![];
        for matter in matters {
            let is_held_elsewhere = |sites: &[String]| {
                self.all.iter().any(|(other, one)| *other != matter && one.concerns(other, sites))
            };
            let next = self.all.get(&matter).filter(|one| one.is_due(now)).and_then(|one| {
                let free = one.next(|sites| !is_held_elsewhere(sites));
                free.or_else(|| one.next(|_| true).filter(|_| now >= one.shared_at)).cloned()
            });
            let Some((next, refusal)) = next.zip(self.all.get_mut(&matter)) else { continue };
            next.clone_into(&mut refusal.last);
            refusal.turn = Some(Given { node: next.clone(), is_used: false, until: now + TURN });
            woken.push(next);
        }
        woken
    }
}

/// Ends when the node may no longer write, because others are refused the same or its turn to try has ended.
pub async fn until_held(refusals: Arc<Mutex<Refusals>>, sites: Vec<String>, node: String) {
    let mut news = lock(&refusals).news.subscribe();
    while lock(&refusals).refusal_for(&sites, &node).is_none() {
        if news.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Refusal {
    fn of(error: &Error, now: Instant) -> Refusal {
        Refusal {
            error: error.clone(),
            met: BTreeSet::new(),
            alike: ALIKE,
            disproved: None,
            waiting: BTreeMap::new(),
            turn: None,
            last: String::new(),
            again_at: now,
            shared_at: now,
            causes: Causes::default(),
        }
    }

    fn concerns(&self, matter: &Matter, sites: &[String]) -> bool {
        (matter.is_wide || self.speaks_for_all()) && matter.is_around(sites)
    }

    fn speaks_for_all(&self) -> bool {
        self.met.len() >= self.alike
    }

    fn is_doubted(&self, now: Instant) -> bool {
        self.disproved.is_some_and(|at| now.saturating_duration_since(at) < DOUBTED)
    }

    fn is_turn_of(&self, node: &str) -> bool {
        self.turn.as_ref().is_some_and(|given| given.node == node)
    }

    /// The same of the node's request to these sites. A node that is gone makes several, which don't depend
    /// on each other: what is refused to one shows nothing of the turn that it has for another.
    fn is_turn_at(&self, matter: &Matter, (node, sites): (&str, &[String])) -> bool {
        let is_about = || self.waiting.get(node).is_none_or(|waits| is_part(waits, sites));
        self.is_turn_of(node) && (self.concerns(matter, sites) || is_about())
    }

    /// Whether a node may try.
    fn is_due(&self, now: Instant) -> bool {
        self.turn.is_none() && now >= self.again_at
    }

    /// The one after the last that has tried, of those that may by what they write.
    fn next(&self, may: impl Fn(&[String]) -> bool) -> Option<&String> {
        let after = self.waiting.range::<str, _>((Bound::Excluded(self.last.as_str()), Bound::Unbounded));
        after.chain(&self.waiting).find(|(_, sites)| may(sites)).map(|(node, _)| node)
    }
}

/// Whether two requests are about the same: all that one of them is about is a part of the other.
fn is_part(one: &[String], other: &[String]) -> bool {
    let is_in = |all: &[String], of: &[String]| all.iter().all(|site| of.contains(site));
    is_in(one, other) || is_in(other, one)
}

#[cfg(test)]
mod several;
#[cfg(test)]
mod tests;
