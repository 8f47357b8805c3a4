//! When a report is worth a write. Facts on which others act go out at once; counts, which every pod changes
//! and people read, wait. Pure: `now` is an argument.
//!
//! At once means as soon as the object's newest version has stood for a moment: a report is applied only to
//! the version it was made from, and the operator writes `spec` and conditions one right after the other.
//!
//! With a report for each change, every pod's start, end and cooldown would write its node's object. With one
//! a minute, it still would where a node replaces a pod a minute, as thousands of nodes do. So counts that go
//! on changing a little are written ever less often, and `countedAt` shows how old they are.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use vnetpool_apiserver::jittered;
use vnetpool_crds::{
    NodeIPAllocation, NodeIPAllocationStatus,
    allocation::COUNTED_WITHIN,
    condition,
    condition::{FULL, METADATA_REFUSED},
    refusal,
};

use super::{is_published, ours, without_conditions};
use crate::watch::version;

/// So long a version must have stood before a report is written to it: as a rule the next is there within
/// milliseconds, or doesn't come.
const STANDS: Duration = Duration::from_millis(100);
/// Where versions go on following one another more closely, a report waits no longer than this. It also waits
/// so long for an object's first conditions: these are sure to come, and a busy operator is late with them.
const LONGEST_SERIES: Duration = Duration::from_millis(500);
/// Counts are written after half of this, or all of it: nodes on which a rollout has begun together don't
/// report together.
const FIRST: Duration = Duration::from_secs(60);
/// Counts that go on changing a little wait twice as long each time, up to this; they wait as in the
/// beginning once they have stood still for as long.
const LONGEST: Duration = COUNTED_WITHIN;
/// A change by so many addresses is little also in a pool with fewer warm ones: a pod that is replaced
/// changes a count by one or two. The operator grows a node by the pods that are bound to it or wait.
const FEW: u32 = 2;
/// Names wait longer, since those of an image whose pods ask at each start never stand still.
const LONGEST_OF_NAMES: Duration = COUNTED_WITHIN.saturating_mul(2);
/// So many pods that asked the metadata service may be unnamed for long: a report names a third more.
const FEW_NAMES: usize = refusal::NAMED * 3 / 4;

/// The difference between a report and the published one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    None,
    /// In facts that people read: counts, and names of pods that asked the metadata service. Either waits by
    /// itself, and a write has both.
    Unhurried {
        counts: Moved,
        names: Moved,
    },
    /// In facts on which the operator or a person acts.
    News,
}

/// How much such facts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    Not,
    /// By no more than half of the pool's warm addresses or two, or by `FEW_NAMES`.
    Little,
    Much,
}

/// The news of a report beside the published one. `warm` is `spec.warm`.
pub fn difference(
    status: &NodeIPAllocationStatus,
    published: Option<&NodeIPAllocationStatus>,
    warm: u32,
) -> Difference {
    if is_published(status, published) {
        return Difference::None;
    }
    let Some(published) = published else { return Difference::News };
    let uncounted = |status: &NodeIPAllocationStatus| NodeIPAllocationStatus {
        assigned: 0,
        cooling: 0,
        free: 0,
        waiting: 0,
        pods: 0,
        counted_at: None,
        ..without_conditions(status)
    };
    let turned = |count: fn(&NodeIPAllocationStatus) -> u32| (count(status) == 0) != (count(published) == 0);
    let few = (warm / 2).max(FEW);
    let is_news = uncounted(status) != uncounted(published)
        || !condition::same(&unnamed(status), &unnamed(published))
        || turned(|status| status.waiting)
        || status.waiting > published.waiting.saturating_add((warm / 2).max(1))
        || free_turned(status, published, warm)
        || status.cooling > published.cooling.saturating_add(few)
        // A node that a pool has left, or that is to release its addresses, waits for its last pod.
        || (status.assigned == 0 && published.assigned > 0)
        // Addresses that have cooled after many pods went may be given back.
        || (status.cooling == 0 && published.cooling > few);
    if is_news {
        return Difference::News;
    }
    let moved = [
        (status.assigned, published.assigned),
        (status.cooling, published.cooling),
        (status.free, published.free),
        (status.waiting, published.waiting),
    ];
    let most = moved.iter().map(|(now, before)| now.abs_diff(*before)).max().unwrap_or_default();
    let (now, before) = (refused(status), refused(published));
    let names = Moved::by(now != before, now.difference(&before).count() > FEW_NAMES);
    // Whatever else differs is written with the counts.
    let counts = Moved::by(most > 0 || names == Moved::Not, most > few);
    Difference::Unhurried { counts, names }
}

impl Moved {
    fn by(at_all: bool, much: bool) -> Moved {
        match (at_all, much) {
            (_, true) => Moved::Much,
            (true, false) => Moved::Little,
            (false, false) => Moved::Not,
        }
    }
}

/// Whether the last address has been taken, or there is a free one again, and the operator acts on that: a
/// node at its limit gets no more pods while it has no free address. That is so only where pods have the warm
/// addresses. Where those merely cool, each pod that is replaced takes the last free address, and nobody does
/// anything about it. So a pool with no warm addresses has no such news: there a pod that waits is the news,
/// and, on a node that is reported full, the first free address.
fn free_turned(status: &NodeIPAllocationStatus, published: &NodeIPAllocationStatus, warm: u32) -> bool {
    let is_used_up = |one: &NodeIPAllocationStatus| one.free == 0 && one.cooling < warm;
    let is_full = condition::is_true(&published.conditions, FULL);
    (published.free > 0 && is_used_up(status))
        || (status.free > 0 && (is_used_up(published) || (is_full && published.free == 0)))
}

/// The agent's conditions, with no pod that asked one of Azure's services named, but only the service: an
/// image may ask at each start of a pod.
fn unnamed(status: &NodeIPAllocationStatus) -> Vec<Condition> {
    let mut conditions = ours(status);
    for one in conditions.iter_mut().filter(|one| one.type_ == METADATA_REFUSED) {
        let refusals = refusal::refusals(&one.message).into_iter();
        one.message = format!("{:?}", refusals.map(|refusal| refusal.service).collect::<BTreeSet<_>>());
    }
    conditions
}

/// The pods that are named.
fn refused(status: &NodeIPAllocationStatus) -> BTreeSet<String> {
    let condition = condition::find(&status.conditions, METADATA_REFUSED);
    let refusals = condition.map(|one| refusal::refusals(&one.message)).unwrap_or_default();
    refusals.into_iter().map(|refusal| refusal.pod).collect()
}

/// One node's.
#[derive(Debug)]
pub struct Pace {
    newest: Option<Newest>,
    counts: Wait,
    names: Wait,
}

/// The object's newest version.
#[derive(Debug)]
struct Newest {
    version: u64,
    came: Instant,
    stands: Duration,
    /// When the first of the series came: of versions that didn't stand before the next was there.
    begun: Instant,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { newest: None, counts: Wait::up_to(LONGEST), names: Wait::up_to(LONGEST_OF_NAMES) }
    }
}

impl Pace {
    /// The object's newest version, whether or not it was seen before.
    pub fn saw(&mut self, object: &NodeIPAllocation, now: Instant) {
        let version = version(object);
        let begun = match &self.newest {
            Some(newest) if newest.version == version => return,
            Some(newest) if now.saturating_duration_since(newest.came) < newest.stands => newest.begun,
            _ => now,
        };
        let is_reported = object.conditions().iter().any(condition::is_operators);
        let stands = if is_reported { STANDS } else { LONGEST_SERIES };
        self.newest = Some(Newest { version, came: now, stands, begun });
    }

    /// In how long to write; None if there is nothing to write.
    pub fn due(&mut self, difference: Difference, now: Instant) -> Option<Duration> {
        let stands_in = self.newest.as_ref().map_or(Duration::ZERO, |newest| newest.stands_in(now));
        let (counts, names) = match difference {
            Difference::None => (Moved::Not, Moved::Not),
            Difference::News => return Some(stands_in),
            Difference::Unhurried { counts, names } => (counts, names),
        };
        let due = [self.counts.due(counts, now), self.names.due(names, now)].into_iter().flatten().min();
        due.map(|wait| wait.max(stands_in))
    }

    /// After a write, which had all of it.
    pub fn written(&mut self, difference: Difference) {
        let (counts, names) = match difference {
            Difference::None | Difference::News => (Moved::Not, Moved::Not),
            Difference::Unhurried { counts, names } => (counts, names),
        };
        self.counts.written(counts);
        self.names.written(names);
    }
}

impl Newest {
    fn stands_in(&self, now: Instant) -> Duration {
        (self.came + self.stands).min(self.begun + LONGEST_SERIES).saturating_duration_since(now)
    }
}

/// How long one sort of such facts waits.
#[derive(Debug)]
struct Wait {
    /// It never waits longer than this.
    most: Duration,
    /// How long a little of it waits now, at most.
    longest: Duration,
    /// Since when the report differs from the published one, and how long it waits.
    waiting: Option<(Instant, Duration)>,
    /// When it differed last.
    stirred: Option<Instant>,
}

impl Wait {
    fn up_to(most: Duration) -> Wait {
        Wait { most, longest: FIRST, waiting: None, stirred: None }
    }

    fn due(&mut self, moved: Moved, now: Instant) -> Option<Duration> {
        if moved == Moved::Not {
            self.waiting = None;
            return None;
        }
        if self.stirred.is_some_and(|last| now.duration_since(last) >= LONGEST) {
            self.longest = FIRST;
        }
        self.stirred = Some(now);
        let (since, wait) = *self.waiting.get_or_insert_with(|| (now, jittered(self.longest)));
        let wait = if moved == Moved::Much { wait.min(FIRST) } else { wait };
        Some((since + wait).saturating_duration_since(now))
    }

    fn written(&mut self, moved: Moved) {
        self.waiting = None;
        if moved == Moved::Little {
            self.longest = (self.longest * 2).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusals::Refusals;
    use crate::report::{Report, compose, publish::body};
    use crate::sample;
    use k8s_openapi::jiff::Timestamp;
    use std::net::Ipv4Addr;
    use vnetpool_crds::reason::Reason;
    use vnetpool_crds::refusal::{Refusal, Service};
    use vnetpool_crds::verdict::Verdict;
    use vnetpool_plugin::ledger::{Claim, Entry, Ledger, Millis, Pod, Sandbox};

    const LITTLE: Difference = Difference::Unhurried { counts: Moved::Little, names: Moved::Not };
    const MUCH: Difference = Difference::Unhurried { counts: Moved::Much, names: Moved::Not };
    const FEW_NAMED: Difference = Difference::Unhurried { counts: Moved::Not, names: Moved::Little };
    const MANY_NAMED: Difference = Difference::Unhurried { counts: Moved::Not, names: Moved::Much };

    fn status(assigned: u32, cooling: u32, free: u32) -> NodeIPAllocationStatus {
        let held = 40;
        NodeIPAllocationStatus { held, assigned, cooling, free, pods: assigned, ..Default::default() }
    }

    #[test]
    fn the_end_of_the_last_pod_is_news_and_the_coming_of_the_first_is_not() {
        let (none, one) = (status(0, 0, 40), status(1, 0, 39));
        assert_eq!(difference(&none, Some(&one), 8), Difference::News);
        assert_eq!(difference(&one, Some(&none), 8), LITTLE);
    }

    #[test]
    fn a_change_that_others_act_on_is_news_and_other_counts_are_not() {
        let before = status(20, 2, 18);
        let from = |now: &NodeIPAllocationStatus| difference(now, Some(&before), 8);
        assert_eq!(from(&before), Difference::None);
        assert_eq!(from(&NodeIPAllocationStatus { counted_at: None, ..before.clone() }), Difference::None);
        assert_eq!(from(&status(21, 1, 18)), LITTLE);
        assert_eq!(from(&status(25, 2, 13)), MUCH);
        assert_eq!(from(&status(16, 6, 18)), LITTLE);
        assert_eq!(from(&status(15, 7, 18)), Difference::News, "more than half of warm are cooling anew");
        assert_eq!(from(&status(38, 2, 0)), Difference::News, "nothing is free any more");
        assert_eq!(difference(&status(22, 0, 18), Some(&before), 8), LITTLE);
        let cooled = difference(&status(15, 0, 25), Some(&status(15, 7, 18)), 8);
        assert_eq!(cooled, Difference::News, "many have cooled");
        assert_eq!(difference(&before, Some(&status(38, 2, 0)), 8), Difference::News);
        let waiting = |before, now| {
            let [before, now] =
                [before, now].map(|waiting| NodeIPAllocationStatus { waiting, ..status(40, 0, 0) });
            difference(&now, Some(&before), 8)
        };
        assert_eq!(waiting(1, 5), LITTLE);
        assert_eq!(waiting(1, 6), Difference::News, "more than half of warm wait anew");
        assert_eq!(waiting(50, 1), MUCH);
        assert_eq!(waiting(1, 0), Difference::News);
        let holder = vnetpool_crds::allocation::Holder { address: "10.0.0.5".into(), ..Default::default() };
        let true_ = |generation| {
            let at = Timestamp::UNIX_EPOCH;
            vec![Verdict::yes(Reason::Supplied, "").condition(condition::SUPPLIED, Some(generation), at)]
        };
        for news in [
            NodeIPAllocationStatus { waiting: 1, ..before.clone() },
            NodeIPAllocationStatus { observed_generation: Some(2), ..before.clone() },
            NodeIPAllocationStatus { boot_id: "b".into(), ..before.clone() },
            NodeIPAllocationStatus { held: 41, ..before.clone() },
            NodeIPAllocationStatus { relinquished: vec!["vnp-1".into()], ..before.clone() },
            NodeIPAllocationStatus { unlisted: vec!["vnp-1".into()], ..before.clone() },
            NodeIPAllocationStatus { metadata_silent: true, ..before.clone() },
            NodeIPAllocationStatus { lost: vec![holder.clone()], ..before.clone() },
            NodeIPAllocationStatus { confirmed: vec![holder.clone()], ..before.clone() },
            NodeIPAllocationStatus { leases: vec![holder.clone()], ..before.clone() },
            NodeIPAllocationStatus { holders: vec![holder.clone()], ..before.clone() },
            NodeIPAllocationStatus { conditions: true_(1), ..before.clone() },
        ] {
            assert_eq!(from(&news), Difference::News, "{news:?}");
        }
        assert_eq!(difference(&before, None, 8), Difference::News);
    }

    #[test]
    fn the_last_free_address_is_news_where_pods_have_the_warm_ones_and_not_where_those_cool() {
        let from = |before, now, warm| difference(&now, Some(&before), warm);
        let (one, none) = (status(39, 0, 1), status(40, 0, 0));
        let (cools, cooled) = (status(39, 1, 0), status(39, 0, 1));
        for warm in [1, 2, 8] {
            assert_eq!(from(one.clone(), none.clone(), warm), Difference::News, "warm {warm}");
            assert_eq!(from(none.clone(), one.clone(), warm), Difference::News, "warm {warm}");
        }
        for (before, now) in [(&one, &none), (&none, &one), (&cooled, &cools), (&cools, &cooled)] {
            assert_eq!(from(before.clone(), now.clone(), 0), LITTLE);
        }
        assert_eq!(from(cooled.clone(), cools.clone(), 1), LITTLE);
        assert_eq!(from(cools.clone(), cooled.clone(), 1), LITTLE);
        // The operator takes the taint of a full node off by it.
        let full = Verdict::yes(Reason::MaximumReached, "").condition(FULL, None, Timestamp::UNIX_EPOCH);
        let full = NodeIPAllocationStatus { conditions: vec![full], ..cools };
        assert_eq!(from(full.clone(), cooled, 0), Difference::News);
        assert_eq!(from(full, none.clone(), 0), LITTLE, "there still is none");
        // A pod that finds none is news in each pool.
        let waits = NodeIPAllocationStatus { waiting: 1, ..none.clone() };
        assert_eq!(from(none, waits, 0), Difference::News);
    }

    #[test]
    fn that_pods_ask_the_metadata_service_is_news_and_which_ones_is_not() {
        let of_service = |service: Service, pods: std::ops::Range<usize>| {
            let pods = pods.map(|n| Refusal { service, pod: format!("ci/{n}") });
            let (pods, at): (Vec<_>, _) = (pods.collect(), Timestamp::UNIX_EPOCH);
            let text = refusal::message(&pods, Some("p"));
            let asked = Verdict::yes(Reason::PodsAsk, text).condition(METADATA_REFUSED, Some(1), at);
            NodeIPAllocationStatus {
                conditions: if pods.is_empty() { vec![] } else { vec![asked] },
                ..status(20, 2, 18)
            }
        };
        let of = |pods| of_service(Service::Metadata, pods);
        let from = |before, now| difference(&of(now), Some(&of(before)), 8);
        assert_eq!(from(0..0, 0..1), Difference::News);
        assert_eq!(from(0..1, 0..0), Difference::News);
        assert_eq!(from(0..1, 0..1), Difference::None);
        assert_eq!(from(0..1, 0..16), FEW_NAMED);
        assert_eq!(from(0..1, 0..17), MANY_NAMED, "a report doesn't name many more");
        let fewer_pods = NodeIPAllocationStatus { pods: 19, ..of(0..1) };
        assert_eq!(difference(&fewer_pods, Some(&of(0..1)), 8), LITTLE);
        assert_eq!(from(0..20, 0..1), FEW_NAMED, "they have gone");
        let other = of_service(Service::WireServer, 0..1);
        assert_eq!(difference(&other, Some(&of(0..1)), 8), Difference::News, "another service");
    }

    #[test]
    fn a_report_waits_until_no_version_has_come_for_a_moment_but_no_longer_than_half_a_second() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut comes = |version: u64, milliseconds| {
            pace.saw(&sample::object(version, true), after(milliseconds));
            pace.due(Difference::News, after(milliseconds)).map(|wait| wait.as_millis())
        };
        assert_eq!(comes(7, 0), Some(100));
        assert_eq!(comes(7, 60), Some(40), "it is seen once more");
        assert_eq!(comes(8, 60), Some(100), "conditions have followed");
        assert_eq!(comes(8, 160), Some(0));
        // Another client writes the object all the time.
        let waits: Vec<_> = (0..10).map(|n| comes(9 + n, 1000 + 60 * n)).collect();
        assert!(waits[..7].iter().all(|wait| *wait == Some(100)), "{waits:?}");
        assert_eq!(waits[7..], [Some(80), Some(20), Some(0)]);
        assert_eq!(comes(30, 5000), Some(100), "and has ended");
    }

    #[test]
    fn the_first_report_waits_longer_for_conditions_that_the_operator_has_yet_to_write() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut comes = |version, has_conditions, milliseconds| {
            let now = start + Duration::from_millis(milliseconds);
            pace.saw(&sample::object(version, has_conditions), now);
            pace.due(Difference::News, now).map(|wait| wait.as_millis())
        };
        assert_eq!(comes(7, false, 0), Some(500));
        assert_eq!(comes(8, true, 300), Some(100));
        assert_eq!(comes(8, true, 400), Some(0));
    }

    #[test]
    fn a_small_change_waits_half_a_minute_to_a_minute_and_the_next_ever_longer() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let second = Duration::from_secs(1);
        let mut waits = vec![];
        let mut now = start;
        for _ in 0..8 {
            let wait = pace.due(LITTLE, now).unwrap();
            waits.push(wait);
            now += wait;
            assert_eq!(pace.due(LITTLE, now), Some(Duration::ZERO));
            pace.written(LITTLE);
            now += second;
        }
        assert!((FIRST / 2..=FIRST).contains(&waits[0]), "{waits:?}");
        assert!(waits[..4].is_sorted() && (LONGEST / 2..=LONGEST).contains(&waits[7]), "{waits:?}");
        // A rollout is seen within a minute all the same, and news at once.
        assert!(pace.due(MUCH, now).unwrap() <= FIRST);
        assert_eq!(pace.due(Difference::News, now), Some(Duration::ZERO));
        // An unchanged value is no news, and a quiet node begins anew.
        assert_eq!(pace.due(Difference::None, now), None);
        assert!(pace.due(LITTLE, now + LONGEST + second).unwrap() <= FIRST);
    }

    /// Counts that come and go would else be written whenever names have waited for long.
    #[test]
    fn names_and_counts_wait_each_by_itself_and_a_write_has_both() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let both = Difference::Unhurried { counts: Moved::Little, names: Moved::Little };
        let [of_names, second] = [pace.due(FEW_NAMED, start).unwrap(), Duration::from_secs(1)];
        let later = start + of_names - second;
        let due = pace.due(both, later).unwrap();
        assert_eq!(due, second, "the names' time comes, while the counts have just begun to wait");
        pace.written(both);
        assert!(pace.due(LITTLE, later).unwrap() >= FIRST, "both wait anew, twice as long");
        assert_eq!(pace.due(MANY_NAMED, later + FIRST), Some(FIRST), "many names do so for a minute at most");
    }

    /// Milliseconds.
    const INSPECTED_EVERY: Millis = 32_800;

    /// A node on which now and then a pod is replaced by another, for half a day.
    struct Churn {
        warm: u32,
        ledger: Ledger,
        pods: u32,
        at: Millis,
        /// Of pods that ask the metadata service when they start.
        refusals: Option<Refusals>,
        /// Those whose packets are yet to be counted.
        asked: Vec<Refusal>,
    }

    impl Churn {
        fn new((addresses, warm): (u8, u32), pods: u32, refusals: Option<Refusals>) -> Churn {
            let entry = |n| Entry {
                name: format!("vnp-{n}"),
                address: Ipv4Addr::new(10, 0, 0, n),
                attached_to: None,
            };
            let supply = sample::supply((1..=addresses).map(entry).collect());
            let ledger = Ledger::rebuild("b", &[], &[], &supply, None, 0, true);
            let mut churn = Churn { warm, ledger, pods: 0, at: 0, refusals, asked: vec![] };
            (0..pods).for_each(|_| churn.start());
            churn
        }

        fn sandbox(n: u32) -> Sandbox {
            Sandbox { container_id: format!("{n:064x}"), ifname: "eth0".into() }
        }

        fn start(&mut self) {
            let pod = Pod {
                namespace: "shop".into(),
                name: format!("web-{}", self.pods),
                uid: format!("{:036}", self.pods),
            };
            self.ledger.assign(&Claim::wired(&Churn::sandbox(self.pods), &pod, ""), self.at);
            self.asked.push(Refusal { service: Service::Metadata, pod: pod.to_string() });
            self.pods += 1;
        }

        /// An inspection counts packets.
        fn inspect(&mut self) {
            let asked = self.asked.drain(..);
            if let Some(refusals) = &mut self.refusals {
                asked.for_each(|refusal| refusals.asked(refusal, self.at));
                refusals.forget(|_| false, self.at);
            }
        }

        fn end(&mut self, n: u32) {
            self.ledger.free(&Churn::sandbox(n), self.at);
        }

        fn report(&self) -> NodeIPAllocationStatus {
            let named = self.refusals.as_ref().and_then(|refusals| refusals.message(Some("p"), self.at));
            let refused = named.map(|named| {
                Verdict::yes(Reason::PodsAsk, named).condition(
                    METADATA_REFUSED,
                    Some(1),
                    Timestamp::UNIX_EPOCH,
                )
            });
            let time = Timestamp::from_millisecond(1_000_000_000_000 + self.at as i64).unwrap();
            let report = Report {
                ledger: self.ledger.clone(),
                at: self.at,
                time,
                generation: Some(1),
                warm: self.warm,
                names_holders: false,
                unlisted: BTreeSet::new(),
                metadata_silent: None,
                conditions: conditions().into_iter().chain(refused).collect(),
            };
            compose(&report, None)
        }
    }

    /// Those of a node that has all it needs.
    fn conditions() -> Vec<Condition> {
        let ruled = "forwarding is on and table inet vnetpool is in place";
        let backed = "every pod's address is reserved for this node";
        let installed =
            "10-vnetpool.conflist of the folder /etc/cni/net.d chains vnetpool, portmap, bandwidth";
        [
            (condition::SUPPLIED, Reason::Supplied, "the ledger has the addresses of spec.interfaces"),
            (condition::RULES_APPLIED, Reason::Applied, ruled),
            (condition::CNI_INSTALLED, Reason::Installed, installed),
            (condition::ASSIGNMENTS_BACKED, Reason::Backed, backed),
        ]
        .map(|(type_, reason, message)| {
            Verdict::yes(reason, message).condition(type_, Some(1), Timestamp::UNIX_EPOCH)
        })
        .into()
    }

    /// The bytes of a write of this status, without the request's head.
    fn bytes(status: &NodeIPAllocationStatus) -> usize {
        let mut object = NodeIPAllocation::new("node-1", sample::spec());
        object.metadata.uid = Some(format!("{:036}", 1));
        object.metadata.resource_version = Some(format!("{:08}", 1));
        body(&object, status).to_string().len()
    }

    /// How many status writes there are for each pod that starts, and how many bytes, when one of so many is
    /// replaced every `every` seconds and takes two seconds to be. `addresses` are those held and `warm`.
    fn writes_a_start(every: u64, addresses: (u8, u32), pods: u32, refusals: Option<Refusals>) -> (f64, f64) {
        let mut churn = Churn::new(addresses, pods, refusals);
        let (mut pace, epoch) = (Pace::default(), Instant::now());
        let (mut published, mut writes, mut sent, mut inspected) = (churn.report(), 0, 0, 0);
        let starts = 43_200 / every;
        for n in 0..starts {
            for second in (0..every).step_by(2) {
                churn.at += 2000;
                match second {
                    0 => churn.end(n as u32),
                    2 => churn.start(),
                    _ if second % 10 == 0 => {}
                    _ => continue,
                }
                if churn.at / INSPECTED_EVERY > inspected {
                    inspected = churn.at / INSPECTED_EVERY;
                    churn.inspect();
                }
                let now = epoch + Duration::from_millis(churn.at);
                let status = churn.report();
                let difference = difference(&status, Some(&published), addresses.1);
                if pace.due(difference, now).is_some_and(|wait| wait.is_zero()) {
                    sent += bytes(&status);
                    (published, writes) = (status, writes + 1);
                    pace.written(difference);
                }
            }
        }
        (f64::from(writes) / starts as f64, sent as f64 / starts as f64)
    }

    #[test]
    fn pods_that_come_and_go_cost_a_tenth_of_a_write_each_at_most() {
        // A node of 5,000 when fifty pods a second start, and one that is as busy as ten of them. A node of a
        // pool with few warm addresses or none holds more because of its minimum, or since some have cooled.
        let nodes = [(120, 8, 110), (120, 2, 110), (120, 1, 110), (120, 0, 110), (12, 0, 8), (111, 0, 110)];
        for (held, warm, pods) in nodes {
            for every in [100, 10] {
                if every == 10 && held == 111 {
                    // Pods would wait for one that has cooled.
                    continue;
                }
                let (writes, sent) = writes_a_start(every, (held, warm), pods, None);
                let node =
                    format!("{pods} pods, {held} addresses, {warm} warm, one replaced every {every} s");
                println!("{node}: {writes:.3} status writes a start, {sent:.0} bytes");
                assert!(writes <= 0.1, "{node}: {writes} writes a start");
                assert!(sent <= 250.0, "{node}: {sent} bytes a start");
            }
        }
    }

    #[test]
    fn pods_that_ask_the_metadata_service_when_they_start_cost_a_tenth_of_a_write_each_at_most() {
        for every in [100, 10] {
            let (writes, sent) = writes_a_start(every, (120, 8), 110, Some(Refusals::default()));
            println!("a pod that asks every {every} s: {writes:.3} status writes a start, {sent:.0} bytes");
            assert!(writes <= 0.1, "{writes} writes a start");
            assert!(sent <= 400.0, "{sent} bytes a start");
        }
    }

    /// It has counts, and names no pod that needs nothing of others.
    #[test]
    fn a_status_write_is_as_short_with_110_pods_as_with_ten() {
        let [few, many] = [10, 110].map(|pods| bytes(&Churn::new((120, 8), pods, None).report()));
        assert!(few.abs_diff(many) <= 4 && many <= 2000, "{few} and {many} bytes");
    }
}
