//! Objects that are there and can't be read: unknown, but not absent. The store keeps the last readable
//! version, and nothing is done for the nodes that depend on them. Pure.

use std::collections::{BTreeMap, HashSet};
use std::mem::take;
use std::sync::{Arc, Mutex};

use ipnet::Ipv4Net;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use vnetpool_apiserver::reading::{Reading, Unreadable};
use vnetpool_crds::NodeIPPool;

use super::lock;

/// The unreadable objects of one kind, by name.
#[derive(Clone, Default)]
pub struct Unknown(Arc<Mutex<BTreeMap<String, Arc<Unreadable>>>>);

impl Unknown {
    pub fn get(&self, name: &str) -> Option<Arc<Unreadable>> {
        lock(&self.0).get(name).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Unreadable>> {
        lock(&self.0).values().cloned().collect()
    }
}

/// Takes unreadable objects out of a watch.
pub struct Sieve {
    unknown: Unknown,
    /// The unreadable objects that a list which is under way has shown so far: one that isn't in it went
    /// while the watch was down.
    listed: HashSet<String>,
}

/// The readable rest of an event.
pub struct Sifted<K> {
    /// For code that knows only objects that can be read.
    pub event: Option<Event<K>>,
    /// Objects that have turned readable or unreadable, are unreadable in another way, or were and are gone.
    pub turned: Vec<String>,
}

impl Sieve {
    pub fn new(unknown: Unknown) -> Sieve {
        Sieve { unknown, listed: HashSet::new() }
    }

    /// `read` returns the last readable version of an object, and `keep` stores the rest of the event. An
    /// object that turns readable, or goes, stays unknown until that is done: it is never absent in between.
    pub fn sift<K: Resource<DynamicType = ()> + Clone>(
        &mut self,
        event: Event<Reading<K>>,
        read: impl Fn(&str) -> Option<Arc<K>>,
        mut keep: impl FnMut(Event<K>) -> Event<K>,
    ) -> Sifted<K> {
        let last = |unreadable: &Unreadable| {
            let last = read(&unreadable.name());
            last.filter(|last| last.meta().uid == unreadable.metadata.uid).map(Arc::unwrap_or_clone)
        };
        match event {
            Event::Init => {
                self.listed.clear();
                Sifted { event: Some(keep(Event::Init)), turned: vec![] }
            }
            // The store shows a first list when it is complete.
            Event::InitApply(Reading(Ok(object))) => {
                Sifted { event: Some(keep(Event::InitApply(object))), turned: vec![] }
            }
            Event::InitApply(Reading(Err(unreadable))) => {
                self.listed.insert(unreadable.name());
                let event = last(&unreadable).map(|last| keep(Event::InitApply(last)));
                Sifted { event, turned: self.mark(*unreadable) }
            }
            Event::InitDone => {
                let event = Some(keep(Event::InitDone));
                let listed = take(&mut self.listed);
                let mut unknown = lock(&self.unknown.0);
                let gone: Vec<String> =
                    unknown.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                unknown.retain(|name, _| listed.contains(name));
                Sifted { event, turned: gone }
            }
            Event::Apply(Reading(Ok(object))) => {
                let name = object.name_any();
                Sifted { event: Some(keep(Event::Apply(object))), turned: self.clear(&name) }
            }
            Event::Apply(Reading(Err(unreadable))) => Sifted { event: None, turned: self.mark(*unreadable) },
            Event::Delete(Reading(Ok(object))) => {
                let name = object.name_any();
                Sifted { event: Some(keep(Event::Delete(object))), turned: self.clear(&name) }
            }
            Event::Delete(Reading(Err(unreadable))) => {
                let last = read(&unreadable.name()).map(Arc::unwrap_or_clone);
                let event = last.map(|last| keep(Event::Delete(last)));
                self.clear(&unreadable.name());
                Sifted { event, turned: vec![unreadable.name()] }
            }
        }
    }

    fn mark(&mut self, unreadable: Unreadable) -> Vec<String> {
        let (name, error) = (unreadable.name(), unreadable.error.clone());
        let before = lock(&self.unknown.0).insert(name.clone(), Arc::new(unreadable));
        if before.is_some_and(|before| before.error == error) { vec![] } else { vec![name] }
    }

    fn clear(&mut self, name: &str) -> Vec<String> {
        lock(&self.unknown.0).remove(name).map(|_| name.to_owned()).into_iter().collect()
    }
}

/// The pool as far as it specifies which nodes it is for; `None` if that can't be read either.
pub fn claim(pool: &Unreadable) -> Option<NodeIPPool> {
    let spec = &pool.content["spec"];
    let part = |field: &str| {
        if spec[field].is_null() { None } else { Some((field.to_owned(), spec[field].clone())) }
    };
    let parts: serde_json::Map<String, Value> =
        ["nodeSelector", "weight"].into_iter().filter_map(part).collect();
    serde_json::from_value(json!({"metadata": {"name": pool.name()}, "spec": parts})).ok()
}

/// The pool that an allocation names.
pub fn pool_of(allocation: &Unreadable) -> Option<String> {
    allocation.content["spec"]["pool"].as_str().map(str::to_owned)
}

/// The range that an allocation in mode Route names: its node's pods may use it.
pub fn range_of(allocation: &Unreadable) -> Vec<Ipv4Net> {
    let spec = &allocation.content["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let reservations = list(&spec["interfaces"]).into_iter().flat_map(|nic| list(&nic["ipConfigurations"]));
    let ranges = reservations.filter_map(|one| one["address"].as_str()?.parse().ok());
    if spec["routeTableID"].is_null() { vec![] } else { ranges.collect() }
}

/// Names object, cause, effect and remedy.
pub fn message(unreadable: &Unreadable) -> String {
    let Unreadable { kind, error, .. } = unreadable;
    let name = unreadable.name();
    let (whose, resource) = match kind.as_str() {
        "NodeIPPool" => ("The nodes it is for keep".to_owned(), format!("nodeippool {name}")),
        "NodeIPAllocation" => {
            (format!("Node {name} keeps"), format!("nodeipallocation {name} --subresource=status"))
        }
        _ => (format!("Node {name} keeps"), format!("node {name}")),
    };
    format!(
        "{kind} {name} can't be read: {error}. {whose} the addresses there are; none is reserved, released, attached or detached. \
         Correct the field (kubectl edit {resource}), or upgrade the operator if a newer release wrote it."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_object::Node;
    use serde::de::DeserializeOwned;
    use std::fmt::Debug;
    use vnetpool_crds::NodeIPAllocation;

    fn reading(name: &str, uid: &str, is_readable: bool) -> Reading<Node> {
        let spec = if is_readable { json!({"providerID": "azure:///x"}) } else { json!({"providerID": 5}) };
        serde_json::from_value(json!({"metadata": {"name": name, "uid": uid}, "spec": spec})).unwrap()
    }

    fn sieve() -> (Sieve, Unknown) {
        let unknown = Unknown::default();
        (Sieve::new(unknown.clone()), unknown)
    }

    #[test]
    fn the_last_readable_version_outlives_a_list_in_which_an_object_is_unreadable() {
        let (mut sieve, unknown) = sieve();
        let known = reading("n", "u", true).0.unwrap();
        let read = |_: &str| Some(Arc::new(known.clone()));
        sieve.sift(Event::<Reading<Node>>::Init, read, |event| event);
        let sifted = sieve.sift(Event::InitApply(reading("n", "u", false)), read, |event| event);
        assert!(matches!(sifted.event, Some(Event::InitApply(node)) if node == known));
        assert_eq!(sifted.turned, ["n"]);
        sieve.sift(Event::<Reading<Node>>::InitDone, read, |event| event);
        assert!(unknown.get("n").is_some());
        // Nothing was read of another object under the same name.
        let sifted = sieve.sift(Event::InitApply(reading("n", "v", false)), read, |event| event);
        assert!(sifted.event.is_none());
    }

    #[test]
    fn an_unreadable_object_is_reported_once_and_again_when_it_is_readable() {
        let (mut sieve, unknown) = sieve();
        let mut turned = |event| sieve.sift(event, |_| None::<Arc<Node>>, |event| event).turned;
        assert_eq!(turned(Event::Apply(reading("n", "u", false))), ["n"]);
        assert!(turned(Event::Apply(reading("n", "u", false))).is_empty());
        assert!(turned(Event::Apply(reading("m", "u", true))).is_empty());
        assert_eq!(turned(Event::Apply(reading("n", "u", true))), ["n"]);
        assert!(unknown.all().is_empty());
    }

    #[test]
    fn one_that_is_deleted_or_went_unseen_is_absent() {
        let (mut sieve, unknown) = sieve();
        let mut turned = |event| sieve.sift(event, |_| None::<Arc<Node>>, |event| event).turned;
        turned(Event::Apply(reading("a", "u", false)));
        turned(Event::Apply(reading("b", "u", false)));
        assert_eq!(turned(Event::Delete(reading("a", "u", false))), ["a"]);
        turned(Event::Init);
        assert_eq!(turned(Event::InitDone), ["b"]);
        assert!(unknown.all().is_empty());
    }

    #[test]
    fn an_object_that_turns_readable_is_unknown_until_the_store_shows_it() {
        let (mut sieve, unknown) = sieve();
        let mut sift = |event| {
            let kept = |event| {
                assert!(unknown.get("n").is_some(), "it is neither stored nor unknown");
                event
            };
            sieve.sift(event, |_| None::<Arc<Node>>, kept).turned
        };
        sift(Event::Apply(reading("n", "u", false)));
        assert!(sift(Event::Init).is_empty());
        assert!(sift(Event::InitApply(reading("n", "u", true))).is_empty());
        assert_eq!(sift(Event::InitDone), ["n"]);
        assert!(unknown.all().is_empty());
        sift(Event::Apply(reading("n", "u", false)));
        assert_eq!(sift(Event::Apply(reading("n", "u", true))), ["n"]);
    }

    fn unreadable<K: Resource<DynamicType = ()> + DeserializeOwned + Debug>(content: Value) -> Unreadable {
        let reading: Reading<K> = serde_json::from_value(content).unwrap();
        *reading.0.unwrap_err()
    }

    #[test]
    fn a_pool_of_a_newer_release_still_shows_its_node_selector() {
        let spec = json!({"mode": "Teleport", "weight": 7, "nodeSelector": {"matchLabels": {"a": "b"}}});
        let pool = unreadable::<NodeIPPool>(json!({"metadata": {"name": "p"}, "spec": spec}));
        let claim = claim(&pool).unwrap();
        assert_eq!((claim.name_any().as_str(), claim.spec.weight), ("p", 7));
        assert!(claim.spec.node_selector.is_some());
        let message = message(&pool);
        for part in ["NodeIPPool p", "spec.mode: unknown variant `Teleport`", "kubectl edit nodeippool p"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_range_of_a_node_counts_though_the_rest_can_not_be_read() {
        let interfaces = json!([5, {"ipConfigurations": [{"name": 1, "address": "10.244.3.0/24"}, "x"]}]);
        let spec = json!({"mode": "Route", "routeTableID": "t", "pool": "p", "interfaces": interfaces});
        let object = unreadable::<NodeIPAllocation>(json!({"metadata": {"name": "n"}, "spec": spec}));
        assert_eq!(range_of(&object), ["10.244.3.0/24".parse().unwrap()]);
        assert_eq!(pool_of(&object).as_deref(), Some("p"));
    }
}
