//! Lots that are drawn one after the other by a seed, until none is left; then all of them again. So each
//! comes, and none comes much more often than others.

use vnetpool_azure_sim::Draws;

pub struct Lots<T> {
    all: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Lots<T> {
    pub fn new(all: Vec<T>) -> Self {
        Self { all, left: vec![] }
    }

    /// The next one; none where there are none at all.
    pub fn draw(&mut self, draws: &mut Draws) -> Option<T> {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
        }
        let index = draws.below(self.left.len(), "lot");
        (index < self.left.len()).then(|| self.left.swap_remove(index))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn each_lot_is_drawn_as_often_as_it_is_there_before_any_comes_again() {
        let (mut lots, mut draws) = (Lots::new(vec![1, 2, 2, 3, 4, 5]), Draws::of(7));
        let mut rounds = vec![];
        for _ in 0..3 {
            let round: Vec<i32> = (0..6).map(|_| lots.draw(&mut draws).unwrap()).collect();
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 2, 2, 3, 4, 5]);
            rounds.push(round);
        }
        assert!(rounds[0] != rounds[1] || rounds[1] != rounds[2], "always in the same order: {rounds:?}");
    }

    #[test]
    fn where_there_are_no_lots_none_is_drawn() {
        assert_eq!(Lots::<i32>::new(vec![]).draw(&mut Draws::of(1)), None);
    }
}
