//! When a write that is to mend a fault may be made again, and when an address may be asked for again. Pure.
//!
//! Azure may report a write as a success that hasn't mended anything: the NIC stays Failed, an address or a
//! route isn't there, or another client turns forwarding off again at once. The first such write is made at
//! once, the next ever less often.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use vnetpool_apiserver::doubled;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(600);
/// How long an address that Azure is still freeing is left out of writes at first.
pub const FREEING: Duration = Duration::from_secs(10);
/// How long an address is left out at first that a successful write hasn't brought.
const UNSEEN: Duration = Duration::from_secs(10);
/// How long an address is left out at first that was in a write that Azure refused: Azure may object to it.
pub const REFUSED: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Default)]
pub struct Mending {
    /// How many writes in a row were to mend the same.
    made: u32,
    not_before: Option<Instant>,
    /// Addresses that pods lost and that couldn't be had: they must not keep the node from others.
    withheld: BTreeMap<Ipv4Net, HeldBack>,
}

#[derive(Clone, Debug)]
struct HeldBack {
    /// How often in a row it couldn't be had.
    times: u32,
    until: Instant,
}

impl Mending {
    /// Whether a write that mends may be made.
    pub fn may_write(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|not_before| now >= not_before)
    }

    /// A write that was to mend a fault was a success by Azure's report.
    pub fn written(&mut self, now: Instant) {
        self.not_before = Some(now + doubled(FIRST, self.made, LONGEST));
        self.made += 1;
    }

    /// There is nothing left to mend.
    pub fn mended(&mut self) {
        (self.made, self.not_before) = (0, None);
    }

    /// Leaves these addresses out of the next writes: for so long at first, and ever longer.
    pub fn withhold(&mut self, addresses: Vec<Ipv4Net>, first: Duration, now: Instant) {
        for address in addresses {
            let times = self.withheld.get(&address).map_or(1, |known| known.times + 1);
            let until = now + doubled(first, times - 1, LONGEST);
            self.withheld.insert(address, HeldBack { times, until });
        }
    }

    /// A write that asked for these was a success by Azure's report. Those that the NIC `lacks` aren't there
    /// all the same.
    pub fn restored(&mut self, addresses: &[Ipv4Net], lacks: &[Ipv4Net], now: Instant) {
        self.withheld.retain(|address, _| !addresses.contains(address) || lacks.contains(address));
        self.withhold(lacks.to_vec(), UNSEEN, now);
    }

    /// Whether one of these couldn't be had before.
    pub fn has_withheld(&self, addresses: &[Ipv4Net]) -> bool {
        addresses.iter().any(|address| self.withheld.contains_key(address))
    }

    /// The lost addresses that may be asked for now. Those that couldn't be had are asked for one at a time:
    /// together they would hide to which of them Azure objects.
    pub fn askable(&self, lost: BTreeSet<Ipv4Net>, now: Instant) -> BTreeSet<Ipv4Net> {
        let (known, new): (BTreeSet<_>, _) =
            lost.into_iter().partition(|address| self.withheld.contains_key(address));
        let is_due = |address: &Ipv4Net| self.withheld.get(address).is_some_and(|one| now >= one.until);
        let due = known.into_iter().find(is_due).filter(|_| new.is_empty());
        new.into_iter().chain(due).collect()
    }

    /// How long until more may be written than now.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let all = self.withheld.values().map(|one| one.until).chain(self.not_before);
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
        let lost = lost(&["10.0.0.5/32", "10.0.0.6/32"]);
        let [one, other] = [0, 1].map(|index| *lost.iter().nth(index).unwrap());
        mending.withhold(vec![one], FREEING, now);
        assert_eq!(mending.askable(lost.clone(), now), BTreeSet::from([other]));
        assert_eq!(mending.wait(now), Some(FREEING));
        assert_eq!(mending.askable(BTreeSet::from([one]), now + FREEING), BTreeSet::from([one]));
        mending.restored(&[one], &[], now);
        assert_eq!(mending.askable(lost.clone(), now), lost);
    }

    #[test]
    fn an_address_that_a_success_does_not_bring_is_asked_for_ever_less_often() {
        let (mut mending, mut now) = (Mending::default(), Instant::now());
        let lost = lost(&["10.0.0.5/32", "10.0.0.6/32"]);
        let [one, other] = [0, 1].map(|index| *lost.iter().nth(index).unwrap());
        let mut waits = vec![];
        for _ in 0..4 {
            mending.restored(&[one, other], &[one], now);
            assert_eq!(mending.askable(lost.clone(), now), BTreeSet::from([other]));
            let wait = mending.wait(now).unwrap();
            waits.push(wait.as_secs());
            now += wait;
            assert_eq!(mending.askable(BTreeSet::from([one]), now), BTreeSet::from([one]));
        }
        assert_eq!(waits, [10, 20, 40, 80]);
        mending.restored(&[one], &[], now);
        assert_eq!(mending.askable(lost.clone(), now), lost);
    }

    #[test]
    fn addresses_that_were_refused_are_asked_for_one_by_one_and_ever_less_often() {
        let mut mending = Mending::default();
        let mut now = Instant::now();
        let lost = lost(&["10.0.0.5/32", "10.0.0.6/32"]);
        mending.withhold(lost.iter().copied().collect(), REFUSED, now);
        let (start, mut asked_at) = (now, vec![]);
        while asked_at.len() < 8 {
            let asked = mending.askable(lost.clone(), now);
            if asked.is_empty() {
                now += mending.wait(now).unwrap();
                continue;
            }
            assert_eq!(asked.len(), 1);
            asked_at.push((now - start).as_secs());
            mending.withhold(asked.into_iter().collect(), REFUSED, now);
        }
        assert_eq!(asked_at, [120, 120, 360, 360, 840, 840, 1440, 1440]);
    }

    fn lost(addresses: &[&str]) -> BTreeSet<Ipv4Net> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }
}
