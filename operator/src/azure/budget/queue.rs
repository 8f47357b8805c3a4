//! The calls that wait for one of ARM's own meters, sorted so that a grant needn't visit all of them. Pure.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use super::meter::{Meter, Shared};
use super::{Priority, Ticket};

/// The order of calls: by priority, then those that know their NIC already, then by age.
pub(super) type Rank = (Priority, bool, Ticket);

#[derive(Default)]
pub(super) struct Queue {
    classes: HashMap<Shared, Class>,
    /// How many later calls have gone before the longest-waiting one since a longest-waiting one last had its
    /// turn.
    pub overtaken: u32,
}

/// Calls that draw on the same shared meters. While one of these is short, none of them goes, so they are
/// asked about once.
#[derive(Default)]
struct Class {
    /// With the meter of its own that a call draws on besides.
    calls: BTreeMap<Rank, Option<Meter>>,
    by_age: BTreeMap<Ticket, Rank>,
}

/// A call that waits.
pub(super) struct Next {
    pub shared: Shared,
    pub own: Option<Meter>,
    pub rank: Rank,
}

/// How far a search through the queue has come: which calls of each class have been tried.
#[derive(Default)]
pub(super) struct Tried(HashMap<Shared, Until>);

enum Until {
    /// The next one may go.
    Rank(Rank),
    /// None of the others goes before a shared meter fills.
    End,
}

impl Queue {
    pub(super) fn insert(&mut self, (shared, own): (Shared, Option<Meter>), rank: Rank) {
        let class = self.classes.entry(shared).or_default();
        class.calls.insert(rank, own);
        class.by_age.insert(rank.2, rank);
    }

    pub(super) fn remove(&mut self, shared: &Shared, rank: &Rank) -> bool {
        let Some(class) = self.classes.get_mut(shared) else { return false };
        class.by_age.remove(&rank.2);
        let was_there = class.calls.remove(rank).is_some();
        if class.calls.is_empty() {
            self.classes.remove(shared);
        }
        was_there
    }

    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    pub(super) fn ranks(&self) -> impl Iterator<Item = &Rank> {
        self.classes.values().flat_map(|class| class.calls.keys())
    }

    /// Whether a call waits that came before this one.
    pub(super) fn has_older(&self, than: Ticket) -> bool {
        let mut oldest = self.classes.values().filter_map(|class| class.by_age.keys().next());
        oldest.any(|oldest| *oldest < than)
    }

    /// The first call, in their order, that hasn't been tried.
    pub(super) fn first(&self, tried: &Tried) -> Option<Next> {
        self.pick(tried, |class, after| {
            let (rank, own) = match after {
                Some(after) => class.calls.range((Excluded(*after), Unbounded)).next(),
                None => class.calls.iter().next(),
            }?;
            Some((*rank, own, *rank))
        })
    }

    /// The longest-waiting call, whatever its priority, that hasn't been tried.
    pub(super) fn oldest(&self, tried: &Tried) -> Option<Next> {
        self.pick(tried, |class, after| {
            let (ticket, rank) = match after {
                Some((.., after)) => class.by_age.range((Excluded(*after), Unbounded)).next(),
                None => class.by_age.iter().next(),
            }?;
            Some((*ticket, &class.calls[rank], *rank))
        })
    }

    fn pick<'a, K: Ord>(
        &'a self,
        tried: &Tried,
        next: impl Fn(&'a Class, Option<&Rank>) -> Option<(K, &'a Option<Meter>, Rank)>,
    ) -> Option<Next> {
        let candidates = self.classes.iter().filter_map(|(shared, class)| {
            let after = match tried.0.get(shared) {
                Some(Until::End) => return None,
                Some(Until::Rank(rank)) => Some(rank),
                None => None,
            };
            let (key, own, rank) = next(class, after)?;
            Some((key, shared, own, rank))
        });
        let (_, shared, own, rank) = candidates.min_by(|one, other| one.0.cmp(&other.0))?;
        Some(Next { shared: shared.clone(), own: own.clone(), rank })
    }
}

impl Tried {
    /// A shared meter of its class is short.
    pub(super) fn end(&mut self, shared: Shared) {
        self.0.insert(shared, Until::End);
    }

    /// Only this one can't go.
    pub(super) fn pass(&mut self, shared: Shared, rank: Rank) {
        self.0.insert(shared, Until::Rank(rank));
    }
}
