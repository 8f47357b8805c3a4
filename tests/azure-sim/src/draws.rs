//! Numbers drawn at random, and the same ones again for the same seed.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// One seed's draws. A number depends on the seed, on its purpose and on how often it was drawn for that,
/// never on the clock. So a seed that shows a fault shows it again, as far as the same is asked.
#[derive(Debug)]
pub struct Draws {
    seed: u64,
    drawn: BTreeMap<String, u64>,
}

impl Draws {
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, drawn: BTreeMap::new() }
    }

    /// The next number for this.
    pub fn next(&mut self, what: &str) -> u64 {
        let count = self.drawn.entry(what.to_owned()).or_default();
        *count += 1;
        BuildHasherDefault::<DefaultHasher>::default().hash_one((self.seed, what, *count))
    }

    /// The next number for this that is below `limit`.
    pub fn below(&mut self, limit: usize, what: &str) -> usize {
        (self.next(what) % limit.max(1) as u64) as usize
    }

    /// How many numbers were drawn.
    #[must_use]
    pub fn count(&self) -> usize {
        self.drawn.values().map(|&count| count as usize).sum()
    }
}
