//! The pods that the node's rules keep from Azure's services on the host, and the report of them. Pure.
//!
//! An image may ask at each start of a pod, so what is reported changes seldom: a pod stays in it for an hour
//! after its last packet, whether it is still there or not.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use vnetpool_crds::refusal::{self, Refusal};
use vnetpool_plugin::ledger::{Ledger, Millis};

use crate::disturbance::is_reported;

/// So many are remembered, of however many pods that have come and gone.
const REMEMBERED: usize = 500;

/// The pods of this node that asked.
#[derive(Debug, Default)]
pub struct Refusals {
    asked: BTreeMap<Refusal, Seen>,
}

/// When packets of a pod's were seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Millis,
    last: Millis,
}

impl Refusals {
    /// The pod has asked since the last inspection.
    pub fn asked(&mut self, refusal: Refusal, now: Millis) {
        self.asked.entry(refusal).or_insert(Seen { first: now, last: now }).last = now;
    }

    /// Forgets pods, each as `namespace/name`, that are no longer on the node nor to be reported, and those
    /// beyond [`REMEMBERED`] that have asked longest ago; returns what was kept of them.
    pub fn forget(&mut self, is_there: impl Fn(&str) -> bool, now: Millis) -> Vec<Refusal> {
        let mut all: Vec<_> = std::mem::take(&mut self.asked).into_iter().collect();
        all.sort_by_key(|(_, asked)| Reverse(asked.last));
        let mut gone = Vec::new();
        for (rank, (refusal, asked)) in all.into_iter().enumerate() {
            match rank < REMEMBERED && (is_reported(asked.last, now) || is_there(&refusal.pod)) {
                true => _ = self.asked.insert(refusal, asked),
                false => gone.push(refusal),
            }
        }
        gone
    }

    /// The message of the condition `MetadataRefused`, if there is anything to report. It has no counts,
    /// since each would be news. `pool` is the node's, if it is of a cluster.
    pub fn message(&self, pool: Option<&str>, now: Millis) -> Option<String> {
        let mut reported: Vec<_> =
            self.asked.iter().filter(|(_, asked)| is_reported(asked.last, now)).collect();
        // Few are named. So those of one namespace, which may be a stranger's, hide none of another's, and
        // nobody hides a pod that has begun to ask behind others that began before.
        reported.sort_by_key(|&(refusal, asked)| (Reverse(asked.first), refusal));
        let mut of_namespace: HashMap<_, usize> = HashMap::new();
        let mut in_turn = |refusal: &Refusal| {
            let namespace = refusal.pod.split_once('/').map(|(namespace, _)| namespace.to_owned());
            let before = of_namespace.entry((refusal.service, namespace)).or_default();
            *before += 1;
            *before
        };
        let mut turns: Vec<_> = reported.iter().map(|&(refusal, _)| (in_turn(refusal), refusal)).collect();
        turns.sort_by_key(|&(turn, _)| turn);
        let all = turns.iter().map(|&(_, refusal)| refusal);
        (!turns.is_empty()).then(|| refusal::message(all, pool))
    }
}

/// Which pods have had the node's addresses since packets were counted last, so that a pod which has ended
/// by the time that its packets are counted is named, and no other in its place.
#[derive(Debug, Default)]
pub struct Tenants {
    /// By address: the last two at most, since of more as of two nobody knows who has sent a packet.
    had: HashMap<Ipv4Addr, Vec<Tenant>>,
}

#[derive(Debug)]
struct Tenant {
    /// As `namespace/name`.
    pod: String,
    /// When it was seen to have left the address.
    left: Option<Millis>,
}

impl Tenants {
    /// Takes in which pods have addresses now.
    pub fn see(&mut self, ledger: &Ledger, now: Millis) {
        let there: HashMap<Ipv4Addr, _> =
            ledger.assignments().map(|(entry, pod)| (entry.address, pod)).collect();
        for (address, tenants) in &mut self.had {
            if !there.contains_key(address) {
                tenants.iter_mut().for_each(|tenant| _ = tenant.left.get_or_insert(now));
            }
        }
        for (address, assigned) in there {
            let (tenants, pod) = (self.had.entry(address).or_default(), assigned.whose());
            match tenants.last_mut().filter(|last| last.pod == pod) {
                Some(last) => last.left = None,
                None => {
                    tenants.iter_mut().for_each(|tenant| _ = tenant.left.get_or_insert(now));
                    tenants.push(Tenant { pod, left: None });
                    tenants.drain(..tenants.len().saturating_sub(2));
                }
            }
        }
    }

    /// The only pod that has had this address.
    pub fn only(&self, address: Ipv4Addr) -> Option<&str> {
        match self.had.get(&address)?.as_slice() {
            [only] => Some(&only.pod),
            _ => None,
        }
    }

    /// The packets that were sent until `then` are counted.
    pub fn counted(&mut self, then: Millis) {
        self.had.retain(|_, tenants| {
            tenants.retain(|tenant| tenant.left.is_none_or(|left| left >= then));
            !tenants.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use vnetpool_crds::refusal::{NAMED, Service};

    const HOUR: Millis = crate::disturbance::REPORTED_FOR.as_millis() as Millis;

    fn refusal(service: Service, pod: &str) -> Refusal {
        Refusal { service, pod: pod.to_owned() }
    }

    fn named(refusals: &Refusals, now: Millis) -> BTreeSet<Refusal> {
        let message = refusals.message(Some("default"), now);
        message.map(|message| refusal::refusals(&message)).unwrap_or_default()
    }

    #[test]
    fn pods_that_ask_are_reported_for_an_hour_whether_they_are_there_or_not() {
        let (a, b) = (refusal(Service::Metadata, "default/a"), refusal(Service::Metadata, "default/b"));
        let other = refusal(Service::WireServer, "default/a");
        let all = BTreeSet::from([a.clone(), b.clone(), other.clone()]);
        let mut refusals = Refusals::default();
        assert_eq!(refusals.message(Some("default"), 0), None);
        all.iter().for_each(|one| refusals.asked(one.clone(), 0));
        refusals.asked(b.clone(), 5);
        assert!(refusals.message(Some("blue"), 5).unwrap().contains("NodeIPPool blue"));
        assert!(refusals.forget(|_| false, HOUR - 1).is_empty(), "none is there");
        assert_eq!(named(&refusals, HOUR - 1), all);
        assert_eq!(named(&refusals, HOUR), BTreeSet::from([b.clone()]));
        assert_eq!(refusals.forget(|_| false, HOUR), [a, other]);
        assert!(refusals.forget(|_| true, HOUR + 5).is_empty(), "its count goes on");
        assert_eq!(refusals.message(Some("default"), HOUR + 5), None);
        assert_eq!(refusals.forget(|_| false, HOUR + 5), [b]);
    }

    #[test]
    fn pods_of_one_namespace_hide_none_of_another_and_old_ones_hide_no_new_one() {
        let mut refusals = Refusals::default();
        let victim = refusal(Service::Metadata, "victim/web");
        refusals.asked(victim.clone(), 0);
        let pod = |n: usize| refusal(Service::Metadata, &format!("a/{n:03}"));
        for n in 0..3 * NAMED {
            // Those that began before go on asking.
            (0..=n).for_each(|before| refusals.asked(pod(before), n as Millis + 1));
            let named = named(&refusals, 100);
            assert!(named.contains(&victim) && named.contains(&pod(n)), "{named:?}");
            assert_eq!(named.len(), (n + 2).min(NAMED));
        }
        // However many ask the one service, those that ask the other are named.
        let other = refusal(Service::WireServer, "a/last");
        refusals.asked(other.clone(), 0);
        assert!(named(&refusals, 100).contains(&other));
    }

    #[test]
    fn of_pods_that_come_and_go_so_many_are_remembered() {
        let mut refusals = Refusals::default();
        let pod = |n: usize| refusal(Service::Metadata, &format!("ci/{n}"));
        let mut gone = Vec::new();
        for n in 0..REMEMBERED + 7 {
            refusals.asked(pod(n), n as Millis);
            gone.extend(refusals.forget(|_| true, n as Millis));
        }
        assert_eq!(gone, (0..7).map(pod).collect::<Vec<_>>());
    }

    mod tenants {
        use super::*;
        use crate::sample;
        use std::time::Duration;
        use vnetpool_plugin::ledger::{Claim, Entry, Pod, Sandbox, Supply};

        const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

        fn ledger() -> Ledger {
            let entry = Entry { name: "vnp-5".into(), address: ADDRESS, attached_to: None };
            let supply = Supply { cooldown: Duration::ZERO, ..sample::supply(vec![entry]) };
            Ledger::rebuild("b", &[], &[], &supply, None, 0, true)
        }

        fn sandbox(name: &str) -> Sandbox {
            Sandbox { container_id: name.into(), ifname: "eth0".into() }
        }

        fn assign(ledger: &mut Ledger, name: &str) {
            let pod = Pod { namespace: "ci".into(), name: name.into(), uid: name.into() };
            ledger.assign(&Claim::wired(&sandbox(name), &pod, ""), 0);
        }

        #[test]
        fn a_pod_that_has_ended_is_known_until_its_packets_are_counted() {
            let (mut ledger, mut tenants) = (ledger(), Tenants::default());
            tenants.see(&ledger, 0);
            assert_eq!(tenants.only(ADDRESS), None);
            assign(&mut ledger, "job");
            tenants.see(&ledger, 1);
            tenants.counted(2);
            assert_eq!(tenants.only(ADDRESS), Some("ci/job"));
            ledger.free(&sandbox("job"), 3);
            tenants.see(&ledger, 3);
            tenants.counted(3);
            assert_eq!(tenants.only(ADDRESS), Some("ci/job"), "it may have sent something just before");
            tenants.counted(4);
            assert_eq!(tenants.only(ADDRESS), None);
        }

        #[test]
        fn of_two_pods_that_have_had_an_address_in_turn_neither_is_named() {
            let (mut ledger, mut tenants) = (ledger(), Tenants::default());
            for (at, name) in (1..).zip(["a", "b", "c"]) {
                assign(&mut ledger, name);
                tenants.see(&ledger, 10 * at);
                ledger.free(&sandbox(name), 0);
                if name == "b" {
                    tenants.see(&ledger, 10 * at + 1);
                }
            }
            assert_eq!(tenants.only(ADDRESS), None);
            tenants.counted(15);
            assert_eq!(tenants.only(ADDRESS), None);
            tenants.counted(25);
            assert_eq!(tenants.only(ADDRESS), Some("ci/c"));
        }

        #[test]
        fn a_pod_that_comes_back_under_its_name_is_the_same() {
            let (mut ledger, mut tenants) = (ledger(), Tenants::default());
            for at in 1..4 {
                assign(&mut ledger, "web-0");
                tenants.see(&ledger, at);
                ledger.free(&sandbox("web-0"), 0);
                tenants.see(&ledger, at);
            }
            assert_eq!(tenants.only(ADDRESS), Some("ci/web-0"));
        }
    }
}
