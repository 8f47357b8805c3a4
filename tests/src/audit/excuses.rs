//! What others have done, which the product can only notice after a while: addresses that were taken off a
//! NIC, and a store of the API server that was set back.

use super::Observation;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// A NIC that others have written is noticed within this time. Until then an address that it lost while it
/// was free may still be given to a pod.
pub const NOTICED: Duration = Duration::from_secs(180);
/// The same of a NIC with blocks: there are fewer reservations, and its node asks for them more rarely.
pub const BLOCKS_NOTICED: Duration = Duration::from_secs(900);
/// Within this time after the store was set back, Pods show again what runs.
const AGREED: Duration = Duration::from_secs(180);

/// The state of all that.
///
/// Azure may give an address away that was taken off a NIC, so each is excused until it is back on that NIC,
/// or until that could be noticed and it leads to no pod of that node, or to a new one.
#[derive(Debug)]
pub struct Excuses {
    noticed: Duration,
    /// The nodes whose NIC is being written.
    under_way: BTreeSet<String>,
    /// By node and address.
    taken: BTreeMap<(String, Ipv4Addr), Taken>,
    /// When the store was set back, until Pods and kernels agree again.
    set_back: Option<Instant>,
}

/// An address that was taken off its NIC.
#[derive(Debug)]
struct Taken {
    /// When it was gone.
    at: Instant,
    /// The namespaces of the pods that have had it until that could be noticed.
    pods: BTreeSet<String>,
    /// An observation has shown all of them.
    is_complete: bool,
}

impl Default for Excuses {
    fn default() -> Self {
        Self::new(NOTICED)
    }
}

impl Excuses {
    pub fn new(noticed: Duration) -> Self {
        Self { noticed, under_way: BTreeSet::new(), taken: BTreeMap::new(), set_back: None }
    }

    /// How long it takes to notice what others have done to a NIC.
    pub fn noticed(&self) -> Duration {
        self.noticed
    }

    /// Another client is about to write this node's NIC.
    pub fn begin(&mut self, node: &str) {
        self.under_way.insert(node.to_owned());
    }

    /// These addresses are gone from it.
    pub fn taken(&mut self, node: &str, addresses: &[Ipv4Addr], now: Instant) {
        self.under_way.remove(node);
        let taken = || Taken { at: now, pods: BTreeSet::new(), is_complete: false };
        self.taken.extend(addresses.iter().map(|&address| ((node.to_owned(), address), taken())));
    }

    /// The API server's store is an earlier one from now on: Pods that have ended are back, and others that
    /// run aren't there, until the kubelets have seen to both.
    pub fn set_back(&mut self, now: Instant) {
        self.set_back = Some(now);
    }

    /// An observation that began then has seen this.
    pub fn end(&mut self, began: Instant, observation: &Observation) {
        let is_back = |(node, address): &(String, Ipv4Addr)| {
            observation.nics.get(node).is_some_and(|held| held.contains(address))
        };
        // A kernel that couldn't be read may still send it to a pod.
        let is_unused = |(node, address): &(String, Ipv4Addr)| {
            let is_read = observation.wired.contains_key(node) && observation.inside.contains_key(node);
            is_read && !observation.used(node).contains(address)
        };
        let noticed = self.noticed;
        self.taken.retain(|one, taken| {
            if taken.at > began {
                return true;
            }
            let is_noticed = began.saturating_duration_since(taken.at) > noticed;
            let pods = observation.inside.get(&one.0).map(|pods| having(one.1, pods));
            // The first one after that may show a pod that has just got it before.
            let is_new = taken.is_complete && pods.as_ref().is_some_and(|pods| !pods.is_subset(&taken.pods));
            taken.is_complete |= is_noticed && pods.is_some();
            taken.pods.extend(pods.into_iter().flatten());
            !is_back(one) && !is_new && (!is_noticed || !is_unused(one))
        });
        let agree = observation.pods_agree(self);
        self.set_back = self.set_back.filter(|&at| began <= at || (began - at <= AGREED && !agree));
    }

    /// Whether this address of this node was taken by others.
    pub fn cover(&self, node: &str, address: Ipv4Addr) -> bool {
        self.under_way.contains(node) || self.taken.contains_key(&(node.to_owned(), address))
    }

    /// Whether nothing can be concluded from the addresses of Pods.
    pub fn suspend_pods(&self) -> bool {
        self.set_back.is_some()
    }
}

/// The namespaces with this address.
fn having(address: Ipv4Addr, namespaces: &BTreeMap<String, BTreeSet<Ipv4Addr>>) -> BTreeSet<String> {
    let those = namespaces.iter().filter(|(_, inside)| inside.contains(&address));
    those.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::audit::Found;
    use crate::audit::tests::{address, answer, ready, sound, taken, violations};

    const LOST: &str = "10.0.0.1 is that of a pod on node-1, whose NIC doesn't hold it";

    #[test]
    fn only_addresses_that_others_took_off_a_nic_are_excused() {
        let (now, mut excuses) = (Instant::now(), Excuses::default());
        let outward: BTreeSet<String> = ["node-2".to_owned()].into();
        let excused = Found { excused: 1, outward, ..Found::default() };
        excuses.begin("node-1");
        assert_eq!(taken().found(&excuses), excused);
        excuses.taken("node-1", &[address(3)], now);
        assert!(violations(&taken(), &excuses).contains(&LOST.to_owned()));
        excuses.taken("node-1", &[address(1)], now);
        let mut observation = taken();
        assert_eq!(observation.found(&excuses), excused);
        observation.nics.get_mut("node-2").unwrap().remove(&address(2));
        assert_eq!(
            violations(&observation, &excuses),
            ["10.0.0.2 is that of a pod on node-2, whose NIC doesn't hold it"]
        );
    }

    #[test]
    fn an_excuse_ends_when_its_address_is_back_or_could_have_been_noticed_and_leads_to_no_pod() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let (noticed, blocks_noticed) = (later + NOTICED, later + BLOCKS_NOTICED);
        let mut free = taken();
        free.wired.insert("node-1".to_owned(), BTreeSet::new());
        free.inside.insert("node-1".to_owned(), BTreeMap::new());
        let mut unread = free.clone();
        unread.inside.remove("node-1");
        for (noticed_within, began, seen, is_excused) in [
            // An observation that began before may have seen the state before.
            (NOTICED, now.checked_sub(Duration::from_secs(1)).unwrap(), sound(), true),
            (NOTICED, later, taken(), true),
            (NOTICED, noticed, taken(), true),
            // Its node has not noticed yet, and may give it to the next pod.
            (NOTICED, later, free.clone(), true),
            (NOTICED, noticed, free.clone(), false),
            (NOTICED, noticed, unread, true),
            (BLOCKS_NOTICED, noticed, free.clone(), true),
            (BLOCKS_NOTICED, blocks_noticed, free, false),
            (NOTICED, later, sound(), false),
        ] {
            let mut excuses = Excuses::new(noticed_within);
            excuses.taken("node-1", &[address(1)], now);
            excuses.end(began, &seen);
            assert_eq!(excuses.cover("node-1", address(1)), is_excused, "{seen:?}");
        }
    }

    #[test]
    fn an_excuse_ends_when_a_new_pod_gets_its_address_after_it_could_have_been_noticed() {
        let now = Instant::now();
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        let given_to = |namespace: &str| {
            let mut observation = taken();
            let inside = [(namespace.to_owned(), [address(1)].into())].into();
            observation.inside.insert("node-1".to_owned(), inside);
            observation
        };
        let mut unread = taken();
        unread.inside.remove("node-1");
        let limit = NOTICED.as_secs();
        for (last, is_excused) in [
            // Both had it before; the second was first seen just after that.
            ([(1, given_to("cni-a")), (limit + 1, given_to("cni-b")), (limit + 2, given_to("cni-a"))], true),
            ([(1, given_to("cni-a")), (limit + 1, given_to("cni-a")), (limit + 2, given_to("cni-b"))], false),
            ([(1, given_to("cni-a")), (limit + 1, unread), (limit + 2, given_to("cni-b"))], true),
            ([(1, given_to("cni-a")), (limit - 2, given_to("cni-b")), (limit - 1, given_to("cni-c"))], true),
        ] {
            let mut excuses = Excuses::default();
            excuses.taken("node-1", &[address(1)], now);
            last.iter().for_each(|(seconds, seen)| excuses.end(at(*seconds), seen));
            assert_eq!(excuses.cover("node-1", address(1)), is_excused, "{last:?}");
        }
    }

    #[test]
    fn after_the_store_was_set_back_pods_count_again_once_they_agree_or_after_a_while() {
        // Pod `a` is back, and another has its address by now.
        let mut stale = sound();
        stale.answers.insert(address(1), answer("c"));
        let mut unwired = sound();
        unwired.wired.clear();
        let mut silent = sound();
        silent.answers.remove(&address(2));
        let mut unread = sound();
        unread.are_pods_read = false;
        (unread.before, unread.after) = Default::default();
        let now = Instant::now();
        let (later, late) = (now + Duration::from_secs(1), now + AGREED + Duration::from_secs(1));
        for (began, seen, is_suspended) in [
            (now, sound(), true),
            (later, stale.clone(), true),
            (later, unwired, true),
            (later, silent, true),
            (later, unread, true),
            (later, sound(), false),
            (late, stale, false),
        ] {
            let mut excuses = Excuses::default();
            excuses.set_back(now);
            excuses.end(began, &seen);
            assert_eq!(excuses.suspend_pods(), is_suspended, "{seen:?}");
        }
    }

    #[test]
    fn after_the_store_was_set_back_nics_and_kernels_still_count_and_pods_do_not() {
        let mut excuses = Excuses::default();
        excuses.set_back(Instant::now());
        let mut observation = sound();
        observation.answers.insert(address(1), answer("c"));
        observation.after = ready(&[("a", "node-1", 1), ("b", "node-2", 1)]);
        assert_eq!(observation.found(&excuses), Found { is_suspended: true, ..Found::default() });
        assert!(violations(&taken(), &excuses).contains(&LOST.to_owned()));
    }
}
