//! NICs that a node has left: what `spec` is to record of them, and when they are asked for. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use vnetpool_apiserver::doubled;
use vnetpool_crds::allocation::{Interface, NodeIPAllocationSpec};

use crate::azure::ResourceId;

const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
/// Why a NIC that no other machine has isn't emptied.
pub const IN_USE: &str = "the node's agent reports that a pod has an address of it";

/// By their ids, in lower case.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// What has become of those that are done with, until `spec` doesn't name them any more.
    over: BTreeMap<String, Over>,
    /// What Azure has refused of others.
    refused: BTreeMap<String, Refused>,
    /// Those that a person has given to another machine.
    given_away: BTreeSet<String>,
    /// NICs beside the serving one that the node's VM doesn't have any more, until `spec` names them as left.
    departed: Vec<ResourceId>,
}

/// Why nothing more is to be done about a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// It holds nothing of ours any more, and its public addresses are deleted.
    Emptied,
    /// Another machine has it, and is known to have all that it holds.
    Used,
}

#[derive(Clone, Debug)]
struct Refused {
    /// How often in a row.
    times: u32,
    until: Instant,
    /// `None`: nothing but a second answer is lacking.
    why: Option<String>,
}

impl Left {
    /// The NICs that the next `spec` is to name as left: those that it names so far, those of its own that
    /// have been `left` since, and of those that have departed no more than the id. And others, which aren't
    /// the node's to empty any more, but whose public addresses still are its own: the one that is `serving`
    /// again, and one that another machine has.
    pub fn record(
        &self,
        before: &NodeIPAllocationSpec,
        left: &[ResourceId],
        serving: Option<&Interface>,
    ) -> (Vec<Interface>, Vec<Interface>) {
        let is_new = |nic: &&Interface| left.iter().any(|id| nic.id.eq_ignore_ascii_case(id.as_str()));
        let all = before.left_interfaces.iter().chain(before.interfaces.iter().filter(is_new));
        let departed =
            self.departed.iter().map(|id| Interface { id: id.to_string(), ..Interface::default() });
        let (mut named, mut others): (Vec<Interface>, Vec<Interface>) = (vec![], vec![]);
        for nic in all.cloned().chain(departed) {
            let is_it = |one: &Interface| one.id.eq_ignore_ascii_case(&nic.id);
            match self.over.get(&nic.id.to_lowercase()) {
                Some(Over::Emptied) => {}
                Some(Over::Used) => others.push(nic),
                None if serving.is_some_and(is_it) => others.push(nic),
                None if named.iter().any(is_it) => {}
                None => named.push(nic),
            }
        }
        (named, others)
    }

    /// What is known of NICs that `spec` doesn't name any more counts for nothing: the node may come to leave
    /// one anew.
    pub fn published(&mut self, spec: &NodeIPAllocationSpec) {
        self.over.retain(|id, _| spec.left(id).is_some());
        self.refused.retain(|id, _| spec.left(id).is_some());
        self.given_away.retain(|id| spec.left(id).is_some());
        let serves =
            |id: &ResourceId| spec.serving().is_some_and(|nic| nic.id.eq_ignore_ascii_case(id.as_str()));
        self.departed.retain(|id| spec.left(id.as_str()).is_none() && !serves(id));
    }

    /// This one was beside the serving one, and the node's VM doesn't have it any more.
    pub fn depart(&mut self, nic: ResourceId) {
        let id = nic.as_str().to_lowercase();
        self.over.remove(&id);
        if !self.departed.contains(&nic) {
            self.departed.push(nic);
        }
    }

    /// Whether this one is recorded as left, and goes on to be.
    pub fn covers(&self, spec: &NodeIPAllocationSpec, nic: &ResourceId) -> bool {
        spec.left(nic.as_str()).is_some() && !self.over.contains_key(&nic.as_str().to_lowercase())
    }

    /// One that may be asked for now, by its id. None that serves, and none that holds an address of these,
    /// which pods use though the node has left it: in doubt an address is in use.
    pub fn due<'a>(
        &self,
        spec: &'a NodeIPAllocationSpec,
        in_use: &[Ipv4Addr],
        now: Instant,
    ) -> Option<&'a Interface> {
        let may_be_asked = |nic: &&Interface| {
            let id = nic.id.to_lowercase();
            let waits = self.refused.get(&id).is_some_and(|refused| now < refused.until);
            let serves = spec.serving().is_some_and(|one| one.id.eq_ignore_ascii_case(&nic.id));
            !waits && !serves && !self.over.contains_key(&id) && !holds_any(nic, in_use)
        };
        spec.left_interfaces.iter().find(may_be_asked)
    }

    /// Those that a person gives away since they were put off are asked for at once, and wait anew from then.
    pub fn heed(&mut self, spec: &NodeIPAllocationSpec, is_given_away: impl Fn(&str) -> bool) {
        for nic in spec.left_interfaces.iter().filter(|nic| is_given_away(&nic.id)) {
            if self.given_away.insert(nic.id.to_lowercase()) {
                self.refused.remove(&nic.id.to_lowercase());
            }
        }
    }

    /// How long until one of those that were refused may be asked for.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.refused.values().filter_map(|refused| refused.until.checked_duration_since(now)).min()
    }

    /// Nothing more is to be done about this one.
    pub fn over(&mut self, id: &str, how: Over) {
        let id = id.to_lowercase();
        self.refused.remove(&id);
        self.over.insert(id, how);
    }

    /// Azure has refused something of this one, or it is in use. It is tried ever less often, and not before
    /// Azure's `pause` is over.
    pub fn put_off(&mut self, id: &str, why: String, pause: Duration, now: Instant) {
        let id = id.to_lowercase();
        let times = self.refused.get(&id).map_or(0, |last| last.times + 1);
        let until = now + doubled(FIRST, times, LONGEST).max(pause);
        self.refused.insert(id, Refused { times, until, why: Some(why) });
    }

    /// Azure has answered once about this one, or something was more urgent: it is asked for again so much
    /// later.
    pub fn ask_again(&mut self, id: &str, after: Duration, now: Instant) {
        let until = now + after;
        let asked = self.refused.entry(id.to_lowercase());
        asked.and_modify(|one| one.until = until).or_insert(Refused { times: 0, until, why: None });
    }

    /// Which of them still hold something, and why: a pod reports one of these addresses, the agent `lags`,
    /// or Azure's answer.
    pub fn reasons<'a>(
        &'a self,
        spec: &'a NodeIPAllocationSpec,
        in_use: &[Ipv4Addr],
        lags: bool,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        spec.left_interfaces.iter().filter_map(move |nic| {
            let id = nic.id.to_lowercase();
            let why = match self.refused.get(&id) {
                _ if self.over.contains_key(&id) => return None,
                _ if holds_any(nic, in_use) => IN_USE,
                _ if lags => "it waits until the node's agent has taken up that the node has another",
                refused => refused?.why.as_deref()?,
            };
            Some((nic.id.as_str(), why))
        })
    }
}

fn holds_any(nic: &Interface, addresses: &[Ipv4Addr]) -> bool {
    let mut ranges = nic.ip_configurations.iter().filter_map(|one| one.address.parse().ok());
    ranges.any(|range: Ipv4Net| addresses.iter().any(|address| range.contains(address)))
}

/// The public addresses that the ipConfigurations of a NIC have.
pub fn public_addresses(nic: &Interface) -> impl Iterator<Item = &str> {
    nic.ip_configurations.iter().filter_map(|one| Some(one.public_address.as_ref()?.id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn id(name: &str) -> String {
        format!("/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/{name}")
    }

    fn nic(name: &str) -> Value {
        json!({"id": id(name), "mac": "m", "primaryAddress": "10.0.0.4", "subnet": {"id": "s"},
            "applicationSecurityGroups": ["g"], "ipConfigurations": [{"name": format!("vnp-{name}"),
                "address": "10.0.0.5/32", "publicAddress": {"id": format!("/public/{name}")}}]})
    }

    /// A node on the first of these, which has left the others.
    fn spec(serving: &str, left: &[&str]) -> NodeIPAllocationSpec {
        let left: Vec<Value> = left.iter().map(|name| nic(name)).collect();
        serde_json::from_value(json!({"nodeUID": "u", "pool": "p", "cooldown": "30s",
            "interfaces": [nic(serving)], "leftInterfaces": left}))
        .unwrap()
    }

    fn names(nics: &[Interface]) -> Vec<&str> {
        nics.iter().map(|nic| nic.id.rsplit('/').next().unwrap()).collect()
    }

    #[test]
    fn spec_goes_on_to_record_all_of_a_nic_that_its_node_has_left_until_that_is_done_with() {
        let (mut left, before) = (Left::default(), spec("a", &["b"]));
        let just_left: [ResourceId; 1] = [id("A").parse().unwrap()];
        let serving: Interface = serde_json::from_value(nic("c")).unwrap();
        let (named, others) = left.record(&before, &just_left, Some(&serving));
        assert_eq!((names(&named), others.len()), (vec!["b", "a"], 0));
        assert_eq!(named[1], before.interfaces[0], "its groups and addresses, too");
        // One is empty, and another VM has the other, with its public address.
        left.over(&id("B"), Over::Emptied);
        left.over(&id("a"), Over::Used);
        let (named, others) = left.record(&before, &just_left, Some(&serving));
        assert_eq!((named.len(), names(&others)), (0, vec!["a"]));
        assert_eq!(public_addresses(&others[0]).collect::<Vec<_>>(), ["/public/a"]);
        // If the node leaves it anew, it is looked at anew.
        left.published(&spec("c", &[]));
        assert_eq!(names(&left.record(&before, &just_left, Some(&serving)).0), ["b", "a"]);
    }

    #[test]
    fn a_nic_that_serves_its_node_again_is_not_emptied_and_its_public_addresses_are_not_forgotten() {
        let (left, before) = (Left::default(), spec("b", &["a"]));
        let again: Interface = serde_json::from_value(nic("A")).unwrap();
        let just_left: [ResourceId; 1] = [id("b").parse().unwrap()];
        let (named, others) = left.record(&before, &just_left, Some(&again));
        assert_eq!((names(&named), names(&others)), (vec!["b"], vec!["a"]));
    }

    #[test]
    fn a_nic_that_its_node_has_left_stays_recorded_when_it_is_the_vms_again_and_does_not_serve() {
        let (left, before) = (Left::default(), spec("b", &["a"]));
        let serving: Interface = serde_json::from_value(nic("b")).unwrap();
        let mut as_primary = before.clone();
        as_primary.interfaces.push(Interface { id: id("a"), ..Interface::default() });
        for before in [before, as_primary] {
            let (named, others) = left.record(&before, &[], Some(&serving));
            assert_eq!((&named, others.len()), (&before.left_interfaces, 0), "its groups, too");
            assert_eq!(left.due(&before, &[], Instant::now()).map(|nic| &nic.id), Some(&id("a")));
        }
        // Once it serves, its groups are the service's to leave.
        assert_eq!(left.due(&spec("A", &["a"]), &[], Instant::now()), None);
    }

    #[test]
    fn a_nic_beside_the_serving_one_that_the_vm_has_no_more_is_recorded_as_left_by_its_id() {
        let (mut left, before) = (Left::default(), spec("b", &[]));
        let serving: Interface = serde_json::from_value(nic("b")).unwrap();
        ["a", "A", "b"].iter().for_each(|name| left.depart(id(name).parse().unwrap()));
        let named = left.record(&before, &[], Some(&serving)).0;
        assert_eq!(names(&named), ["a"]);
        // A `spec` that was written meanwhile, and doesn't name it, makes nobody forget it.
        left.published(&before);
        assert_eq!(names(&left.record(&before, &[], Some(&serving)).0), ["a"]);
        let next = NodeIPAllocationSpec { left_interfaces: named, ..before.clone() };
        left.published(&next);
        assert!(left.covers(&next, &id("A").parse().unwrap()));
        assert_eq!(left.record(&before, &[], Some(&serving)).0.len(), 0, "`spec` knows it by itself");
        left.over(&id("a"), Over::Emptied);
        assert!(!left.covers(&next, &id("a").parse().unwrap()));
    }

    #[test]
    fn what_a_nic_that_its_node_has_left_waits_for_is_reported_though_azure_has_refused_nothing() {
        let (mut left, spec) = (Left::default(), spec("c", &["a"]));
        let why = |left: &Left, in_use: &[&str], lags| {
            let in_use: Vec<Ipv4Addr> = in_use.iter().map(|one| one.parse().unwrap()).collect();
            left.reasons(&spec, &in_use, lags).map(|(_, why)| why.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(why(&left, &[], false), Vec::<String>::new());
        assert_eq!(why(&left, &["10.0.0.5"], true), [IN_USE]);
        assert!(why(&left, &[], true)[0].contains("agent"));
        left.put_off(&id("a"), "locked".into(), Duration::ZERO, Instant::now());
        assert_eq!(why(&left, &[], false), ["locked"]);
        left.over(&id("a"), Over::Emptied);
        assert_eq!(why(&left, &["10.0.0.5"], true), Vec::<String>::new());
    }

    #[test]
    fn a_nic_that_its_node_has_left_keeps_what_a_pod_reports_as_its_own() {
        let (left, spec, now) = (Left::default(), spec("c", &["a"]), Instant::now());
        let is_due = |in_use: &[&str]| {
            let in_use: Vec<Ipv4Addr> = in_use.iter().map(|one| one.parse().unwrap()).collect();
            left.due(&spec, &in_use, now).is_some()
        };
        assert!(is_due(&[]) && is_due(&["10.0.0.6"]) && !is_due(&["10.0.0.6", "10.0.0.5"]));
    }

    #[test]
    fn a_nic_that_a_person_gives_away_is_asked_for_at_once_and_once() {
        let (mut left, spec, now) = (Left::default(), spec("c", &["a", "b"]), Instant::now());
        for name in ["a", "b"] {
            left.put_off(&id(name), "another VM has it".into(), Duration::ZERO, now);
        }
        let due = |left: &Left| left.due(&spec, &[], now).map(|nic| nic.id.clone());
        left.heed(&spec, |nic| nic == id("b"));
        assert_eq!(due(&left), Some(id("b")));
        left.put_off(&id("b"), "locked".into(), Duration::ZERO, now);
        left.heed(&spec, |nic| nic == id("b"));
        assert_eq!(due(&left), None, "it waits like any other");
    }

    #[test]
    fn of_nics_that_a_node_has_left_each_waits_by_itself_and_ever_longer() {
        let (mut left, spec, start) = (Left::default(), spec("c", &["a", "b"]), Instant::now());
        let due = |left: &Left, now| left.due(&spec, &[], now).map(|nic| nic.id.clone());
        assert_eq!((due(&left, start), left.wait(start)), (Some(id("a")), None));
        left.put_off(&id("A"), "locked".into(), Duration::ZERO, start);
        assert_eq!((due(&left, start), left.wait(start)), (Some(id("b")), Some(FIRST)));
        let locked = [(id("a"), "locked")];
        assert!(left.reasons(&spec, &[], false).eq(locked.iter().map(|(id, why)| (id.as_str(), *why))));
        left.ask_again(&id("b"), FIRST / 2, start);
        assert_eq!((due(&left, start), left.wait(start)), (None, Some(FIRST / 2)));
        assert_eq!(left.reasons(&spec, &[], false).count(), 1, "one answer is no news");
        assert_eq!(due(&left, start + FIRST / 2), Some(id("b")));
        left.over(&id("b"), Over::Emptied);
        assert_eq!((due(&left, start), left.wait(start)), (None, Some(FIRST)));
        left.put_off(&id("a"), "locked".into(), Duration::ZERO, start);
        assert_eq!(left.wait(start), Some(2 * FIRST));
        left.put_off(&id("a"), "busy".into(), 10 * FIRST, start);
        assert_eq!(left.wait(start), Some(10 * FIRST), "as Azure asks for");
    }
}
