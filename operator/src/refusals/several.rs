//! Two refusals that concern the same nodes, some of them or all.

use super::*;
use proptest::prelude::*;

const GROUP: &str = "/subscriptions/s/resourcegroups/g";
const SUBNETS: &str =
    "/subscriptions/s/resourcegroups/net/providers/microsoft.network/virtualnetworks/v/subnets";

fn name(node: usize) -> String {
    format!("n{node:04}")
}

fn locked() -> Error {
    Error::Locked { resource: "nic".into(), scope: GROUP.into(), message: "locked".into() }
}

/// What a node writes that is in the locked group, or in the subnet that no NIC may join.
fn sites_of(node: usize, (in_group, in_subnet): (bool, bool)) -> Vec<String> {
    let group = if in_group { GROUP } else { "/subscriptions/s/resourcegroups/free" };
    let nic = format!("{group}/providers/microsoft.network/networkinterfaces/{}-nic", name(node));
    vec![nic, format!("{SUBNETS}/{}", if in_subnet { "a" } else { "b" })]
}

fn not_joined() -> Error {
    Error::Denied { action: "subnets/join".into(), scope: format!("{SUBNETS}/a"), message: "no".into() }
}

#[test]
fn a_node_refused_for_another_reason_hands_its_attempt_to_a_node_without_that_reason() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    let kinds = [(true, true), (true, true), (true, false)];
    let refuse = |all: &mut Refusals, node: usize, error: &Error, now| {
        let sites = sites_of(node, kinds[node]);
        all.refused(error.matter(&sites).unwrap(), (&name(node), &sites), error, now)
    };
    let holds = |all: &mut Refusals, node: usize, now| {
        all.holds(&sites_of(node, kinds[node]), &name(node), now).is_some()
    };
    refuse(&mut all, 0, &locked(), now);
    assert!(holds(&mut all, 1, now) && holds(&mut all, 2, now));
    now += AGAIN;
    assert_eq!(all.tick(now), [name(1)]);
    // The lock is gone, but it may not join its subnet.
    assert!(!holds(&mut all, 1, now));
    refuse(&mut all, 1, &not_joined(), now);
    assert!(holds(&mut all, 1, now), "it would be refused the same again");
    assert_eq!(all.tick(now), [name(2)]);
    assert!(!holds(&mut all, 2, now));
    // It is there all the same.
    refuse(&mut all, 2, &locked(), now);
    assert_eq!(all.tick(now), [""; 0]);
    now += AGAIN;
    let mut woken = all.tick(now);
    woken.sort();
    assert_eq!(woken, [name(1), name(2)]);
    assert!(!holds(&mut all, 1, now), "it tries for one and is held up by neither");
}

#[test]
fn a_refusal_that_has_gone_is_not_reported_while_another_refuses_the_same_nodes() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    let sites = |node| sites_of(node, (true, true));
    let refuse = |all: &mut Refusals, node: usize, error: &Error, now| {
        all.refused(error.matter(&sites(node)).unwrap(), (&name(node), &sites(node)), error, now)
    };
    refuse(&mut all, 0, &locked(), now);
    assert!(matches!(all.holds(&sites(2), &name(2), now), Some((_, Error::Locked { .. }))));
    now += AGAIN;
    assert_eq!(all.tick(now), [name(2)]);
    assert!(all.holds(&sites(2), &name(2), now).is_none());
    // Instead of the lock it meets a right that is missing.
    refuse(&mut all, 2, &not_joined(), now);
    for node in 0..4 {
        let held = all.holds(&sites(node), &name(node), now);
        assert!(matches!(held, Some((_, Error::Denied { .. }))), "{node}: {held:?}");
    }
    let mut woken = all.tick(now);
    woken.sort();
    assert_eq!(woken, [name(0), name(2)], "they still report the lock");
}

/// Nodes of these kinds, all of which have something to write all the time. A lock on a group, and a right
/// that is missing on a subnet, stand or don't; Azure reports one of them first.
struct Two {
    all: Refusals,
    now: Instant,
    kinds: Vec<(bool, bool)>,
    stands: [bool; 2],
    lock_is_first: bool,
    requests: u64,
}

impl Two {
    /// Why Azure refuses a write of the node.
    fn answer(&self, node: usize) -> Option<Error> {
        let (in_group, in_subnet) = self.kinds[node];
        let locked = (self.stands[0] && in_group).then(locked);
        let denied = (self.stands[1] && in_subnet).then(not_joined);
        if self.lock_is_first { locked.or(denied) } else { denied.or(locked) }
    }

    fn tries(&mut self, node: usize) {
        let sites = sites_of(node, self.kinds[node]);
        if self.all.holds(&sites, &name(node), self.now).is_some() {
            return;
        }
        self.requests += 1;
        match self.answer(node) {
            Some(error) => {
                let matter = error.matter(&sites).expect("it concerns others");
                self.all.refused(matter, (&name(node), &sites), &error, self.now);
                let again = self.all.holds(&sites, &name(node), self.now);
                assert!(again.is_some(), "it would be refused the same again");
            }
            None => {
                let woken = self.all.passed(&sites, self.now);
                // It has nothing more to write.
                self.all.left(&name(node), self.now);
                woken.iter().filter(|one| **one != name(node)).for_each(|one| self.tries(number(one)));
            }
        }
    }

    fn runs(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.all.tick(self.now).iter().for_each(|one| self.tries(number(one)));
        }
    }

    fn held(&self) -> Vec<usize> {
        let is_held =
            |node: &usize| self.all.refusal_for(&sites_of(*node, self.kinds[*node]), &name(*node)).is_some();
        (0..self.kinds.len()).filter(is_held).collect()
    }
}

fn number(name: &str) -> usize {
    name[1..].parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A lock on a group and a right that is missing on a subnet, which concern some nodes both and some
    /// one by one: they cost what two cost, and once one of them ends, all whom nothing else holds up go
    /// on within two attempts; so they do with the other.
    #[test]
    fn two_refusals_of_the_same_nodes_hold_no_node_longer_than_each_does(
        kinds in prop::collection::vec(
            prop_oneof![Just((true, true)), Just((true, false)), Just((false, true))], 2..60),
        lock_is_first in prop::bool::ANY, lock_ends_first in prop::bool::ANY,
        apart in 0..40_u64, minutes in prop::array::uniform2(1..90_u64),
    ) {
        let start = Instant::now();
        let mut two = Two { all: Refusals::default(), now: start, kinds, stands: [true; 2], lock_is_first, requests: 0 };
        for node in 0..two.kinds.len() {
            two.tries(node);
            two.runs(apart);
        }
        two.runs(minutes[0] * 60);
        let rounds = two.now.duration_since(start).as_secs() / AGAIN.as_secs();
        prop_assert!(two.requests <= 2 * (rounds + 2), "{} in {rounds} rounds", two.requests);
        let at_most = 2 * (AGAIN + TURN).as_secs();
        let order = if lock_ends_first { [0, 1] } else { [1, 0] };
        two.stands[order[0]] = false;
        two.runs(at_most);
        let held = two.held();
        prop_assert!(held.iter().all(|node| two.answer(*node).is_some()), "{held:?} are held for nothing");
        two.runs(minutes[1] * 60);
        two.stands[order[1]] = false;
        two.runs(at_most);
        prop_assert_eq!(two.held(), [0; 0]);
    }
}

/// What is read of a node: its VM, and then the NIC, too.
fn read_of(node: usize) -> [String; 2] {
    let of = |type_: &str| format!("{GROUP}/providers/{type_}/{}", name(node));
    [of("microsoft.compute/virtualmachines"), of("microsoft.network/networkinterfaces")]
}

fn unread(site: &str) -> Error {
    Error::Denied { action: "read".into(), scope: site.to_owned(), message: "no".into() }
}

fn refuse_read(all: &mut Refusals, node: usize, sites: &[String], now: Instant) -> Matter {
    let error = unread(sites.last().unwrap());
    let matter = error.matter(sites).unwrap();
    all.refused(matter.clone(), (&name(node), sites), &error, now);
    matter
}

#[test]
fn a_node_that_cannot_use_its_turn_waits_like_the_others() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    for node in 3..6 {
        refuse_read(&mut all, node, &read_of(node), now);
    }
    let vms = (0..3).map(|node| refuse_read(&mut all, node, &read_of(node)[..1], now)).last().unwrap();
    now += AGAIN;
    let mut woken = all.tick(now);
    woken.sort();
    assert_eq!(woken, [name(2), name(5)]);
    // It must read its VM before its NIC.
    let vm = &read_of(5)[..1];
    assert!(all.holds(vm, &name(5), now).is_some());
    assert!(all.waits(&vms, (&name(5), vm)), "it would ask again at once, ten times a second");
    assert_eq!(all.tick(now + Duration::from_secs(1)), [""; 0], "the next would do the same");
}

/// All are known to wait for their VMs, and nothing shows that their NICs would be refused, too.
#[test]
fn what_has_ended_is_not_tried_ever_again_by_nodes_that_meet_something_else() {
    let (mut all, mut now, nodes) = (Refusals::default(), Instant::now(), 20);
    all.refused(locked().matter(&read_of(0)).unwrap(), (&name(0), &read_of(0)[..1]), &locked(), now);
    assert!((1..nodes).all(|node| all.holds(&read_of(node)[..1], &name(node), now).is_some()));
    let mut requests = 0;
    for _ in 0..3600 {
        now += Duration::from_secs(1);
        for node in all.tick(now).iter().map(|woken| number(woken)) {
            let sites = read_of(node);
            if [&sites[..1], &sites].iter().all(|sites| all.holds(sites, &name(node), now).is_none()) {
                requests += 1;
                refuse_read(&mut all, node, &sites, now);
            }
        }
    }
    assert!(requests <= 3 * 3600 / AGAIN.as_secs(), "{requests}");
}
