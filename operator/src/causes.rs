//! For which edits something has been tried at once. Pure.
//!
//! Thousands of nodes report the same edit of their pool, and it counts once. With the last one alone, the
//! nodes of two pools that were edited together would have it tried at each turn.

use std::collections::VecDeque;

/// As many pools may be edited together.
const REMEMBERED: usize = 32;

/// The last of them.
#[derive(Clone, Debug, Default)]
pub struct Causes(VecDeque<u64>);

impl Causes {
    /// Remembers it. False if that was done before.
    pub fn add(&mut self, cause: u64) -> bool {
        if self.0.contains(&cause) {
            return false;
        }
        self.0.truncate(REMEMBERED - 1);
        self.0.push_front(cause);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_once_and_the_oldest_are_forgotten() {
        let mut causes = Causes::default();
        assert!((0..REMEMBERED as u64).all(|cause| causes.add(cause)));
        assert!(!(0..REMEMBERED as u64).any(|cause| causes.add(cause)));
        assert!(causes.add(100) && !causes.add(1) && causes.add(0));
        assert_eq!(causes.0.len(), REMEMBERED);
    }
}
