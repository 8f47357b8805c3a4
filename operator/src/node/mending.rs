//! When a write that is to mend something may be made again, and when an address may be asked for again.
//! Pure.
//!
//! Azure may call a write a success that hasn't mended anything: the NIC stays Failed, or somebody turns
//! forwarding off again at once. The first such write is made at once, the next ever less often.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(600);
/// How long an address is left out of writes that Azure is still freeing.
const FREEING: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default)]
pub struct Mending {
    /// How many writes in a row were to mend the same.
    made: u32,
    not_before: Option<Instant>,
    /// Addresses that pods lost and that Azure is still freeing: when they may be asked for again.
    freed_at: BTreeMap<Ipv4Net, Instant>,
}

impl Mending {
    /// Whether a write that mends may be made.
    pub fn may_write(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|not_before| now >= not_before)
    }

    /// A write that was to mend something was a success, as Azure says.
    pub fn written(&mut self, now: Instant) {
        self.not_before = Some(now + (FIRST * 2_u32.pow(self.made.min(10))).min(LONGEST));
        self.made += 1;
    }

    /// Nothing is to be mended any more.
    pub fn mended(&mut self) {
        (self.made, self.not_before) = (0, None);
    }

    /// Azure is still freeing these addresses.
    pub fn freeing(&mut self, addresses: Vec<Ipv4Net>, now: Instant) {
        self.freed_at.extend(addresses.into_iter().map(|address| (address, now + FREEING)));
    }

    /// Those of the lost addresses that may be asked for.
    pub fn askable(&self, lost: BTreeSet<Ipv4Net>, now: Instant) -> BTreeSet<Ipv4Net> {
        let is_freed = |address: &Ipv4Net| self.freed_at.get(address).is_none_or(|freed_at| now >= *freed_at);
        lost.into_iter().filter(is_freed).collect()
    }

    /// How long until more may be written than now.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let all = self.freed_at.values().copied().chain(self.not_before);
        all.filter(|until| *until > now).min().map(|until| until - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_mends_nothing_is_made_ever_less_often_and_the_next_matter_at_once() {
        let mut mending = Mending::default();
        let mut now = Instant::now();
        let mut waits = vec![];
        for _ in 0..10 {
            assert!(mending.may_write(now));
            mending.written(now);
            assert!(!mending.may_write(now));
            let wait = mending.wait(now).unwrap();
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]);
        mending.mended();
        assert!(mending.may_write(now) && mending.wait(now).is_none());
    }

    #[test]
    fn an_address_that_azure_still_frees_is_left_out_for_seconds_and_no_other() {
        let mut mending = Mending::default();
        let now = Instant::now();
        let lost: BTreeSet<Ipv4Net> =
            ["10.0.0.5/32", "10.0.0.6/32"].iter().map(|text| text.parse().unwrap()).collect();
        let [one, other] = [0, 1].map(|index| *lost.iter().nth(index).unwrap());
        mending.freeing(vec![one], now);
        assert_eq!(mending.askable(lost.clone(), now), BTreeSet::from([other]));
        assert_eq!(mending.wait(now), Some(FREEING));
        assert_eq!(mending.askable(lost.clone(), now + FREEING), lost);
    }
}
