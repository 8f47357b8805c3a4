use super::*;
use proptest::prelude::*;

const GROUP: &str = "/subscriptions/s/resourcegroups/g";

fn sites(node: usize) -> Vec<String> {
    let network =
        "/subscriptions/s/resourcegroups/net/providers/microsoft.network/virtualnetworks/v/subnets/a";
    vec![
        format!("{GROUP}/providers/microsoft.network/networkinterfaces/{}-nic", name(node)),
        network.to_owned(),
    ]
}

fn name(node: usize) -> String {
    format!("n{node:04}")
}

fn locked(scope: &str) -> Error {
    Error::Locked { resource: sites(0)[0].clone(), scope: scope.into(), message: "locked".into() }
}

fn denied(node: usize) -> Error {
    Error::Denied { action: "nic/write".into(), scope: sites(node)[0].to_uppercase(), message: "no".into() }
}

fn policed(node: usize) -> Error {
    let assignment = "/subscriptions/S/providers/Microsoft.Authorization/policyAssignments/one".to_owned();
    let resource = sites(node)[0].to_uppercase();
    Error::PolicyForbidden { resource, assignment: Some(assignment), message: "no".into() }
}

fn refuse(all: &mut Refusals, node: usize, error: &Error, now: Instant) -> bool {
    let matter = error.matter(&sites(node)).expect("it may concern others");
    all.refused(matter, (&name(node), &sites(node)), error, now)
}

#[test]
fn a_lock_on_a_group_is_met_once_and_tried_by_one_after_the_other() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    assert!(refuse(&mut all, 0, &locked(GROUP), now));
    for node in 1..4 {
        assert!(matches!(all.holds(&sites(node), &name(node), now), Some((_, Error::Locked { .. }))));
    }
    let elsewhere = ["/subscriptions/s/resourcegroups/gg/x".to_owned()];
    assert!(all.holds(&elsewhere, "other", now).is_none());
    for next in [1, 2, 3, 0] {
        assert_eq!(all.tick(now + AGAIN - Duration::from_secs(1)), [""; 0]);
        now += AGAIN;
        assert_eq!(all.tick(now), [name(next)]);
        assert!(all.holds(&sites(next), &name(next), now).is_none());
        refuse(&mut all, next, &locked(GROUP), now);
    }
    now += AGAIN;
    assert_eq!(all.tick(now), [name(1)]);
    assert_eq!(all.passed(&sites(1), now), [0, 1, 2, 3].map(name));
    assert!(all.holds(&sites(2), &name(2), now).is_none());
}

#[test]
fn a_right_that_is_missing_on_one_nic_holds_no_other_up_and_on_three_all_of_their_group() {
    let (mut all, now) = (Refusals::default(), Instant::now());
    for node in 0..2 {
        assert!(!refuse(&mut all, node, &denied(node), now));
        assert!(all.holds(&sites(9), &name(9), now).is_none());
    }
    assert!(refuse(&mut all, 2, &denied(2), now));
    assert!(all.holds(&sites(9), &name(9), now).is_some());
    // A node that may write shows that the others aren't refused because of the group.
    all.passed(&sites(8), now);
    assert!(all.holds(&sites(9), &name(9), now).is_none());
}

#[test]
fn a_policy_that_refuses_three_nics_is_tried_by_one_on_behalf_of_their_group() {
    let (mut all, now) = (Refusals::default(), Instant::now());
    for node in 0..2 {
        assert!(!refuse(&mut all, node, &policed(node), now));
        // Another assignment is another matter.
        let mut other = policed(node + 5);
        let Error::PolicyForbidden { assignment: Some(assignment), .. } = &mut other else { panic!() };
        assignment.push('2');
        assert!(!refuse(&mut all, node + 5, &other, now));
    }
    assert!(all.holds(&sites(9), &name(9), now).is_none());
    assert!(refuse(&mut all, 2, &policed(2), now));
    assert!(all.holds(&sites(9), &name(9), now).is_some());
}

#[test]
fn a_right_that_is_missing_on_the_subnet_concerns_its_nodes_in_any_group() {
    let (mut all, now) = (Refusals::default(), Instant::now());
    let subnet = sites(0)[1].clone();
    let error = Error::Denied { action: "subnets/join/action".into(), scope: subnet, message: "no".into() };
    assert!(refuse(&mut all, 0, &error, now));
    assert!(all.holds(&sites(1), &name(1), now).is_some());
    assert!(all.holds(&sites(1)[..1], &name(1), now).is_none());
}

#[test]
fn a_refusal_that_names_no_scope_concerns_its_node_alone() {
    let (resource, message) = (sites(0)[0].clone(), "m".to_owned());
    let quota = Error::QuotaExceeded { resource: resource.clone(), message: message.clone() };
    let policy = Error::PolicyForbidden { resource, assignment: None, message };
    assert!(quota.matter(&sites(0)).is_none() && policy.matter(&sites(0)).is_none());
    // A text may quote anything where a scope is expected: never all of Azure.
    for scope in ["", "/", "somebody", "/providers/Microsoft.Management/managementGroups/m"] {
        assert!(locked(scope).matter(&sites(0)).is_none(), "{scope}");
    }
}

/// The right to write three NICs is missing, which speaks for their group.
fn three_denied() -> (Refusals, Instant) {
    let (mut all, now) = (Refusals::default(), Instant::now());
    for node in 0..3 {
        refuse(&mut all, node, &denied(node), now);
    }
    (all, now)
}

#[test]
fn a_write_that_succeeds_shows_nothing_of_resources_of_another_type() {
    let (mut all, now) = three_denied();
    let table = format!("{GROUP}/providers/microsoft.network/routetables/t");
    assert!(all.holds(std::slice::from_ref(&table), "routed", now).is_none());
    assert_eq!(all.passed(&[table], now), [""; 0]);
    assert!(all.holds(&sites(9), &name(9), now).is_some());
}

#[test]
fn a_node_that_was_refused_waits_for_its_turn_or_for_the_end_of_the_refusal() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    refuse(&mut all, 0, &locked(GROUP), now);
    let matter = locked(GROUP).matter(&sites(0)).unwrap();
    let waits = |all: &mut Refusals, node: usize| all.waits(&matter, (&name(node), &sites(node)));
    assert!(waits(&mut all, 0) && waits(&mut all, 1));
    now += AGAIN;
    assert_eq!(all.tick(now), [name(1)], "it waits though it has never asked");
    assert!(waits(&mut all, 0) && !waits(&mut all, 1));
    all.passed(&sites(1), now);
    assert!(!waits(&mut all, 0));
    // One that concerns its node alone has waits of its own.
    let own = denied(5).matter(&sites(5)).unwrap();
    refuse(&mut all, 5, &denied(5), now);
    assert!(!all.waits(&own, (&name(5), &sites(5))));
}

#[test]
fn an_edit_has_it_tried_at_once_and_once() {
    let (mut all, now) = (Refusals::default(), Instant::now());
    refuse(&mut all, 0, &locked(GROUP), now);
    all.holds(&sites(1), &name(1), now);
    assert_eq!(all.try_now(&sites(0), 7, now), [name(1)]);
    assert_eq!(all.try_now(&sites(1), 7, now), [""; 0]);
    refuse(&mut all, 1, &locked(GROUP), now);
    assert_eq!(all.try_now(&sites(1), 7, now), [""; 0]);
    // Another pool that was edited with it, whose nodes come in turn with the first one's.
    all.holds(&sites(2), &name(2), now);
    assert_eq!(all.try_now(&sites(2), 8, now).len(), 1);
    refuse(&mut all, 2, &locked(GROUP), now);
    all.holds(&sites(1), &name(1), now);
    for cause in [7, 8, 7] {
        assert_eq!(all.try_now(&sites(1), cause, now), [""; 0]);
    }
}

#[test]
fn an_edit_of_a_node_whose_nic_is_not_known_has_the_nics_of_its_group_tried() {
    let (mut all, now) = three_denied();
    let vm = format!("{GROUP}/providers/microsoft.compute/virtualmachines/vm");
    assert_eq!(all.try_now(&[vm], 7, now), [name(2)]);
}

#[test]
fn a_refusal_of_a_referenced_resource_does_not_concern_its_resource_group() {
    let group = format!("{GROUP}/providers/Microsoft.Network/applicationSecurityGroups/web");
    let join = "Microsoft.Network/applicationSecurityGroups/joinIpConfiguration/action".to_owned();
    let error = Error::Denied { action: join, scope: group, message: "no".into() };
    assert!(error.matter(&sites(0)).is_none());
    // A lock on the scale set is one on its instances' NICs.
    let set = format!("{GROUP}/providers/Microsoft.Compute/virtualMachineScaleSets/p");
    let nic = format!("{set}/virtualMachines/0/networkInterfaces/n").to_ascii_lowercase();
    assert!(locked(&set).matter(&[nic]).is_some());
}

#[test]
fn three_are_alike_though_they_come_minutes_apart() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    for node in 0..3 {
        assert!(all.holds(&sites(node), &name(node), now).is_none());
        if !refuse(&mut all, node, &denied(node), now) {
            // Its own setback holds it.
            all.left(&name(node), now);
        }
        for _ in 0..300 {
            now += Duration::from_secs(1);
            all.tick(now);
        }
    }
    assert!(all.holds(&sites(9), &name(9), now).is_some());
    now += KEPT;
    all.left(&name(9), now);
    all.left(&name(2), now);
    all.tick(now);
    assert!(all.holds(&sites(9), &name(9), now).is_none(), "long ago");
}

#[test]
fn twenty_nics_with_locks_of_their_own_hold_their_group_up_twice_and_no_more() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    let (mut held, bad) = (0, 20);
    for _ in 0..30 {
        for node in 0..bad {
            if all.holds(&sites(node), &name(node), now).is_none() {
                held += u32::from(refuse(&mut all, node, &denied(node), now));
            }
        }
        now += AGAIN;
        all.tick(now);
        all.passed(&sites(900), now);
    }
    assert_eq!(held, 2);
    assert!((0..1000).all(|node| all.refusal_for(&sites(node), &name(node)).is_none()));
}

#[test]
fn a_turn_that_is_used_lasts_while_its_call_waits_at_azure() {
    let (mut all, mut now) = (Refusals::default(), Instant::now());
    refuse(&mut all, 0, &locked(GROUP), now);
    all.holds(&sites(1), &name(1), now);
    now += AGAIN;
    assert_eq!(all.tick(now), [name(1)]);
    assert!(all.holds(&sites(1), &name(1), now).is_none());
    for _ in 1..CALL.as_secs() {
        now += Duration::from_secs(1);
        assert_eq!(all.tick(now), [""; 0]);
        assert!(all.refusal_for(&sites(1), &name(1)).is_none());
    }
    now += Duration::from_secs(1);
    assert_eq!(all.tick(now), [name(0)], "not for ever");
}

#[tokio::test]
async fn a_queued_call_is_given_up_when_others_are_refused_or_its_turn_has_ended() {
    let all = Arc::new(Mutex::new(Refusals::default()));
    let (mut now, moment) = (Instant::now(), Duration::from_millis(50));
    let queued = |node| until_held(all.clone(), sites(node), name(node));
    let (mut one, mut two) = (Box::pin(queued(1)), Box::pin(queued(2)));
    assert!(tokio::time::timeout(moment, &mut one).await.is_err());
    refuse(&mut lock(&all), 0, &locked(GROUP), now);
    assert!(
        tokio::time::timeout(moment, &mut one).await.is_ok()
            && tokio::time::timeout(moment, &mut two).await.is_ok()
    );
    lock(&all).holds(&sites(1), &name(1), now);
    now += AGAIN;
    assert_eq!(lock(&all).tick(now), [name(1)]);
    assert!(lock(&all).holds(&sites(1), &name(1), now).is_none());
    let mut tries = Box::pin(queued(1));
    assert!(tokio::time::timeout(moment, &mut tries).await.is_err());
    now += CALL;
    lock(&all).tick(now);
    assert!(tokio::time::timeout(moment, &mut tries).await.is_ok());
}

/// Nodes as reconciles have them act: each asks before it writes, and stands back when only it is held.
struct Fleet {
    all: Refusals,
    now: Instant,
    refusal: fn(usize) -> Error,
    deaf: Vec<bool>,
    requests: u64,
}

impl Fleet {
    fn tries(&mut self, node: usize) {
        let error = (self.refusal)(node);
        if self.all.holds(&sites(node), &name(node), self.now).is_none() {
            self.requests += 1;
            if !refuse(&mut self.all, node, &error, self.now) {
                self.all.left(&name(node), self.now);
            }
        }
    }

    /// A second passes; returns the nodes that are woken and can act.
    fn woken(&mut self) -> Vec<usize> {
        self.now += Duration::from_secs(1);
        let woken = self.all.tick(self.now).into_iter().map(|name| name[1..].parse().unwrap());
        woken.filter(|node: &usize| !self.deaf[*node]).collect()
    }

    fn runs(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.woken().into_iter().for_each(|node| self.tries(node));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However many nodes there are, whenever they come and however many of them can't act, about one request
    /// in a minute and a half is made for all. A change takes effect for all nodes that can act within that
    /// time, and half a minute for each in a row that can't.
    #[test]
    fn thousands_of_nodes_without_a_right_cost_as_many_requests_as_one(
        deaf in prop::collection::vec(prop::bool::weighted(0.2), 3..1000),
        refusal in prop::sample::select(vec![denied as fn(usize) -> Error, policed, |_| locked(GROUP)]),
        apart in 0..4_u64, minutes in 1..120_u64,
    ) {
        let (all, now, start) = (Refusals::default(), Instant::now(), Instant::now());
        let count = deaf.len();
        let mut fleet = Fleet { all, now, refusal, deaf, requests: 0 };
        for node in 0..count {
            fleet.tries(node);
            fleet.runs(apart);
        }
        fleet.runs(minutes * 60);
        let rounds = fleet.now.duration_since(start).as_secs() / AGAIN.as_secs();
        prop_assert!(fleet.requests <= ALIKE as u64 + rounds + 1, "{} in {rounds} rounds", fleet.requests);
        // The right is granted. The operator isn't notified.
        let longest = fleet.deaf.split(|deaf| !deaf).map(<[bool]>::len).max().unwrap_or_default() as u64;
        let at_most = AGAIN + TURN * (2 * longest as u32 + 1);
        let mut free = vec![];
        for _ in 0..at_most.as_secs() {
            for node in fleet.woken() {
                free.extend(fleet.all.passed(&sites(node), fleet.now));
            }
        }
        let everybody_may = (0..count).all(|node| fleet.all.refusal_for(&sites(node), &name(node)).is_none());
        prop_assert!(everybody_may || fleet.deaf.iter().all(|deaf| *deaf), "{} were woken", free.len());
    }
}
