//! Work that is repeated for each of many resources, such as reading it once a minute. One that waits, for
//! Azure's limits or for another's write, keeps none of the others from its next round.

use std::collections::HashSet;
use std::future::pending;
use std::hash::Hash;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// The work that is under way, at most one for each resource `K`. It gives its resource when it ends.
pub struct Rounds<K, F> {
    under_way: HashSet<K>,
    work: FuturesUnordered<F>,
}

impl<K: Clone + Eq + Hash, F: Future<Output = K>> Rounds<K, F> {
    pub fn new() -> Rounds<K, F> {
        Rounds { under_way: HashSet::new(), work: FuturesUnordered::new() }
    }

    /// Begins the next round of this resource, unless its last is still under way. It goes on only while
    /// somebody waits in [`Rounds::ended`]. A pause that Azure asks for belongs to the round.
    pub fn begin(&mut self, of: K, work: impl FnOnce(K) -> F) {
        if self.under_way.insert(of.clone()) {
            self.work.push(work(of));
        }
    }

    /// Whether a round of this resource is under way.
    pub fn has(&self, of: &K) -> bool {
        self.under_way.contains(of)
    }

    /// Waits until the work on one of them has ended; for ever if none is under way. Nothing is lost if this
    /// is dropped.
    pub async fn ended(&mut self) {
        match self.work.next().await {
            Some(of) => self.under_way.remove(&of),
            None => pending().await,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[tokio::test]
    async fn one_that_waits_for_ever_keeps_no_other_from_its_next_round_and_is_begun_once() {
        let begun = RefCell::new(vec![]);
        let mut rounds = Rounds::new();
        for _ in 0..3 {
            for of in ["waits", "ends"] {
                let begun = &begun;
                rounds.begin(of, |of| async move {
                    begun.borrow_mut().push(of);
                    if of == "waits" {
                        pending::<()>().await;
                    }
                    of
                });
            }
            rounds.ended().await;
            assert!(rounds.has(&"waits") && !rounds.has(&"ends"));
        }
        begun.borrow_mut().sort_unstable();
        assert_eq!(*begun.borrow(), ["ends", "ends", "ends", "waits"]);
    }
}
