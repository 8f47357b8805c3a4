//! How each event of a watch is handled: the store takes it, and the objects that it concerns are woken.

use std::collections::{HashMap, HashSet};
use std::mem::take;
use std::time::Instant;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::core::Selector;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use tokio::sync::watch;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};

use super::changes::Changes;
use super::unreadable::{Sieve, Sifted, Unknown};
use super::wakeups::Waker;
use super::{Cluster, kept, lock};
use crate::demand::pod::{self, Decoded};
use crate::pod_cidr;

/// Keeps the store of one kind at what the API server has, stripped.
struct Intake<K: Resource<DynamicType = ()> + Clone + PartialEq + 'static> {
    sieve: Sieve,
    shelf: Shelf<K>,
    strip: fn(&mut K),
}

impl<K: Resource<DynamicType = ()> + Clone + PartialEq + 'static> Intake<K> {
    fn new(unknown: &Unknown, store: &Store<K>, writer: Writer<K>, strip: fn(&mut K)) -> Self {
        let shelf = Shelf { store: store.clone(), writer, is_listed: false, listed: HashSet::new() };
        Intake { sieve: Sieve::new(unknown.clone()), shelf, strip }
    }

    /// Stores the object of an event, and returns the wakeups that follow.
    fn take(&mut self, event: Event<Reading<K>>) -> Sifted<K> {
        let (store, shelf, strip) = (self.shelf.store.clone(), &mut self.shelf, self.strip);
        let keep = |event: Event<K>| {
            let event = event.modify(strip);
            shelf.keep(&event);
            event
        };
        self.sieve.sift(event, |name| store.get(&ObjectRef::new(name)), keep)
    }
}

/// A store that has each object once, also while a list is made anew: kube's own writer would build a second
/// store beside the first.
struct Shelf<K: Resource<DynamicType = ()> + Clone + PartialEq + 'static> {
    store: Store<K>,
    writer: Writer<K>,
    /// The first list is complete.
    is_listed: bool,
    /// The names that a later list has shown so far.
    listed: HashSet<String>,
}

impl<K: Resource<DynamicType = ()> + Clone + PartialEq + 'static> Shelf<K> {
    fn keep(&mut self, event: &Event<K>) {
        match event {
            _ if !self.is_listed => {
                self.writer.apply_watcher_event(event);
                self.is_listed = matches!(event, Event::InitDone);
            }
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                self.listed.insert(object.name_any());
                let known = self.store.get(&ObjectRef::from(object));
                // Not by their versions: a store that was set back gives a version a second time.
                if known.is_none_or(|known| *known != *object) {
                    self.writer.apply_watcher_event(&Event::Apply(object.clone()));
                }
            }
            // Whatever isn't listed went while the watch was down. Nothing is absent before.
            Event::InitDone => {
                let listed = take(&mut self.listed);
                for gone in self.store.state().iter().filter(|one| !listed.contains(&one.name_any())) {
                    self.writer.apply_watcher_event(&Event::Delete((**gone).clone()));
                }
            }
            Event::Apply(_) | Event::Delete(_) => self.writer.apply_watcher_event(event),
        }
    }
}

pub fn nodes(view: Cluster, waker: Waker, writer: Writer<Node>) -> impl FnMut(Event<Reading<Node>>) + Send {
    let mut intake = Intake::new(&view.unknown_nodes, &view.nodes, writer, kept::strip_node);
    let mut changes = Changes::new(kept::node_digest);
    move |event| {
        let Sifted { event, turned } = intake.take(event);
        if let Some(event) = &event {
            changes.apply(event).iter().for_each(|name| waker.node(name));
            view.pools_about(event).iter().for_each(|pool| waker.pool(pool));
        }
        wake_turned(&view, &waker, &view.unknown_nodes, &turned);
    }
}

pub fn allocations(
    view: Cluster,
    waker: Waker,
    writer: Writer<NodeIPAllocation>,
) -> impl FnMut(Event<Reading<NodeIPAllocation>>) + Send {
    let mut intake =
        Intake::new(&view.unknown_allocations, &view.allocations, writer, kept::strip_allocation);
    let mut changes = Changes::new(kept::allocation_digest);
    let mut readiness = Changes::new(kept::readiness_digest);
    let mut served_by = HashMap::new();
    move |event| {
        let Sifted { event, turned } = intake.take(event);
        if let Some(event) = &event {
            view.catch_up(event);
            // A condition of ours on a node is news to its pool only.
            for name in readiness.apply(event) {
                view.allocation(&name).iter().for_each(|allocation| waker.pool(&allocation.spec.pool));
            }
            for name in changes.apply(event) {
                // Also its Node: one whose object is gone gets another.
                waker.node(&name);
                let now = view.allocation(&name).map(|allocation| allocation.spec.pool.clone());
                let before = match &now {
                    Some(pool) => served_by.insert(name, pool.clone()),
                    None => served_by.remove(&name),
                };
                [now, before].iter().flatten().for_each(|pool| waker.pool(pool));
            }
        }
        wake_turned(&view, &waker, &view.unknown_allocations, &turned);
    }
}

/// A Node or a NodeIPAllocation has become readable or unreadable: wakes its node and its pool.
fn wake_turned(view: &Cluster, waker: &Waker, unknown: &Unknown, turned: &[String]) {
    for name in turned {
        waker.unreadable(unknown.get(name));
        waker.node(name);
        view.pool_named(name).iter().for_each(|pool| waker.pool(pool));
    }
}

/// What a pool has claimed, when it was seen last.
#[derive(Default)]
struct Claim {
    /// Of mode Route.
    range: Option<Ipv4Net>,
    selector: Option<Selector>,
}

impl Claim {
    fn of(pool: &NodeIPPool) -> Claim {
        Claim { range: pod_cidr::cidr(pool), selector: pool.spec.selector().ok() }
    }
}

pub fn pools(
    view: Cluster,
    waker: Waker,
    writer: Writer<NodeIPPool>,
) -> impl FnMut(Event<Reading<NodeIPPool>>) + Send {
    let mut intake = Intake::new(&view.unknown_pools, &view.pools, writer, kept::strip_pool);
    let mut changes = Changes::new(kept::pool_digest);
    let mut claims = HashMap::new();
    move |event| {
        let Sifted { event, turned } = intake.take(event);
        for name in event.iter().flat_map(|event| changes.apply(event)) {
            let before = match view.pool(&name).map(|pool| Claim::of(&pool)) {
                Some(claim) => claims.insert(name.clone(), claim),
                None => claims.remove(&name),
            };
            let before = before.unwrap_or_default();
            // A node may have waited for its place in this pool, which its object doesn't name yet.
            let concerned = view.nodes_about(&name, before.selector.as_ref());
            // An object that is gone, or made anew, may have been in the way of others.
            let others = before.range.map(|range| view.pools_overlapping(range, &name)).unwrap_or_default();
            let of_others = others.iter().flat_map(|pool| view.nodes_about(pool, None));
            concerned.into_iter().chain(of_others).for_each(|node| waker.node(&node));
            others.iter().chain([&name]).for_each(|pool| waker.pool(pool));
        }
        for name in turned {
            waker.unreadable(view.unknown_pools.get(&name));
            waker.pool(&name);
            // Any node may be one that it is for, or was; so may an allocation whose Node is gone.
            view.nodes.state().iter().for_each(|node| waker.node(&node.name_any()));
            view.allocations.state().iter().for_each(|one| waker.allocation(&one.name_any()));
        }
    }
}

/// Pods aren't stored; `listed` turns true once all were seen.
pub fn pods(
    view: Cluster,
    waker: Waker,
    listed: watch::Sender<bool>,
) -> impl FnMut(Event<Reading<Decoded>>) + Send {
    move |event| {
        let Some(event) = pod::read(event) else { return };
        let is_complete = matches!(event, Event::InitDone);
        let concerned = lock(&view.demand).apply(event, Instant::now());
        concerned.iter().for_each(|node| waker.allocation(node));
        if is_complete {
            listed.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{unreadable, wakeups};
    use crate::planner::sizing::{Demand, wanted};
    use kube::CustomResourceExt;
    use kube::runtime::reflector;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};
    use std::hint::black_box;
    use vnetpool_crds::allocation::IpConfiguration;

    /// All of the four kinds as two nodes have them, with every field that is read.
    fn node(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "3", "labels": {"a": "b"}},
            "spec": {"providerID": "azure:///x", "taints": [{"key": "vnetpool.io/full", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"pods": "110"},
                "conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "NetworkReady=false"}],
                "nodeInfo": {"bootID": "b", "kernelVersion": "", "architecture": "",
                "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
                "operatingSystem": "", "osImage": "", "systemUUID": ""}}
        })
    }

    fn allocation(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "3", "generation": 2,
                "annotations": {"vnetpool.io/gone": "true", "vnetpool.io/release": "true"}},
            "spec": {"nodeUID": name, "bootID": "b", "pool": "p", "mode": "Route", "routeTableID": "t", "wiring": "Routed",
                "target": 8, "cooldown": "30s", "warm": 8, "reportHolders": true, "snatExclusions": ["10.0.0.0/8"], "elsewhere": 1,
                "takenOffAt": ["2026-01-01T00:00:00Z"], "podMetadataAccess": "None", "detachedPublicAddresses": ["d"], "strayInterfaces": ["n"],
                "sizing": {"minimum": 1, "warm": 1, "maximum": 20, "batch": 1, "releaseAfter": "5m"}, "interfaces": [{
                    "id": "nic", "mac": "m", "secondary": true, "primaryAddress": "10.0.0.4",
                    "subnet": {"id": "s", "prefixes": ["10.0.0.0/16"]}, "applicationSecurityGroups": ["g"],
                    "ipConfigurations": [{"name": "vnp-1", "address": "10.244.0.0/24", "attachedTo": "u",
                        "backendPools": ["b"], "publicAddress": {"id": "i", "address": "1.2.3.4", "dnsName": "d"}}]}]},
            "status": {"observedGeneration": 2, "bootID": "b", "held": 8, "assigned": 2, "cooling": 1, "free": 5, "waiting": 1,
                "countedAt": "2026-01-01T00:00:00Z", "pods": 2, "relinquished": ["vnp-2"], "unlisted": ["vnp-1"], "metadataSilent": true,
                "lost": [{"address": "10.244.0.6", "pod": "a/b", "podUID": "u", "sandbox": "s/eth0", "netns": "n"}],
                "confirmed": [{"address": "10.244.0.7", "pod": "a/b", "podUID": "u", "sandbox": "s/eth0", "netns": "n"}],
                "leases": [{"address": "10.244.0.8", "pod": "a/b", "podUID": "u", "sandbox": "s/eth0", "netns": "n"}],
                "holders": [{"address": "10.244.0.5", "pod": "a/b", "podUID": "u", "sandbox": "s/eth0", "netns": "n"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m",
                    "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        })
    }

    fn pool(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "3", "generation": 1},
            "spec": {"nodeSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
                "weight": 3, "mode": "Route", "wiring": "Bridge", "cooldown": "30s", "adopt": "Secondaries",
                "subnetID": "s", "subnetExhaustingPercent": 10, "rollout": {"maxUpdating": "5%"}, "podMetadataAccess": "All",
                "route": {"podCIDR": "10.244.0.0/16", "nodePrefixLength": 24, "routeTableID": "t"},
                "sizing": {"minimum": 1, "warm": 1, "maximum": 20, "batch": 1, "releaseAfter": "5m"},
                "snat": {"nonMasqueradeCIDRs": ["10.0.0.0/8"]},
                "attachments": {"backendPools": [{"name": "web", "id": "i"}], "publicAddressNamespaces": ["shop"]},
                "applicationSecurityGroups": {"ids": ["g"], "onSharedNIC": true}},
            "status": {"observedGeneration": 1, "countedAt": "2026-01-01T00:00:00Z", "nodes": 1, "nodesReady": 1, "updatedNodes": 1,
                "held": 8,
                "assigned": 2, "cooling": 1, "free": 5, "waiting": 1,
                "subnets": [{"id": "s", "nodes": 1, "held": 8, "size": 11, "free": 3}],
                "networks": [{"id": "v", "limit": 65536, "used": 9}],
                "scarceWrites": [{"subscription": "s", "coarseness": 2}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m",
                    "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        })
    }

    fn pod(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "d", "uid": name, "resourceVersion": "3",
                "annotations": {"vnetpool.io/backend-pools": "web", "vnetpool.io/public-address": "true",
                    "vnetpool.io/dns-label": "shop", "kubernetes.io/config.mirror": "u"}},
            "spec": {"nodeName": "bad", "hostNetwork": false, "containers": []}, "status": {"phase": "Running", "podIP": "10.244.0.5"}
        })
    }

    /// In an allocation, the id of its pod's.
    const PUBLIC_ADDRESS: &str = "/spec/interfaces/0/ipConfigurations/0/publicAddress/id";

    const KINDS: [fn(&str) -> Value; 4] = [node, allocation, pool, pod];

    /// The place of each value in the object, except those that identify the object.
    fn places(value: &Value, path: &str, all: &mut Vec<String>) {
        if !["", "/metadata", "/metadata/name", "/metadata/uid"].contains(&path) {
            all.push(path.to_owned());
        }
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, inner)| {
                    places(inner, &format!("{path}/{}", name.replace('/', "~1")), all)
                });
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(at, inner)| places(inner, &format!("{path}/{at}"), all));
            }
            _ => {}
        }
    }

    fn garbage() -> Vec<Value> {
        let values = r#"[null, true, -1, 5000000000, 4294967295, 1.5, 1e300, "", "1k", "Teleport", "0.0.0.0/0", "10.0.0.0/99", [], [null],
            {}, {"a": 1}, [[]], "2026-99-99T00:00:00Z", "-9999999h"]"#;
        serde_json::from_str(values).unwrap()
    }

    fn feed<K: DeserializeOwned + Resource<DynamicType = ()>>(
        mut take: impl FnMut(Event<Reading<K>>),
        of: fn(&str) -> Value,
        bad: &Value,
    ) {
        let reading = |value: Value| -> Reading<K> { serde_json::from_value(value).unwrap() };
        take(Event::Init);
        take(Event::InitApply(reading(bad.clone())));
        take(Event::InitApply(reading(of("good"))));
        take(Event::InitDone);
        take(Event::Apply(reading(of("bad"))));
        take(Event::Apply(reading(bad.clone())));
        take(Event::Init);
        take(Event::InitApply(reading(bad.clone())));
        take(Event::InitApply(reading(of("good"))));
        take(Event::InitDone);
    }

    /// Gives the operator a garbled object of one kind among good ones, and checks what it makes of it.
    fn meet(kind: usize, bad: Value) {
        let ((nodes, node_writer), (allocations, allocation_writer), (pools, pool_writer)) =
            (reflector::store(), reflector::store(), reflector::store());
        let (listed, pods_listed) = watch::channel(false);
        let view = Cluster::new(nodes, allocations, pools, pods_listed);
        let (waker, mut wakeups) = wakeups::channels();
        let of = |each: usize| if each == kind { bad.clone() } else { KINDS[each]("bad") };
        let mut see_node = super::nodes(view.clone(), waker.clone(), node_writer);
        feed(&mut see_node, node, &of(0));
        feed(super::allocations(view.clone(), waker.clone(), allocation_writer), allocation, &of(1));
        feed(super::pools(view.clone(), waker.clone(), pool_writer), pool, &of(2));
        feed(super::pods(view.clone(), waker.clone(), listed), pod, &of(3));

        assert!(view.node("good").is_some() && view.allocation("good").is_some());
        assert!(view.pools.get(&ObjectRef::new("good")).is_some());
        for name in ["good", "bad"] {
            // The pool named bad may be the one that serves both.
            assert!(kind == 2 || name == "bad" || view.unreadable(name).is_none());
            let served_by = view.node(name).and_then(|node| view.pool_of(&node));
            let status =
                view.allocation(name).and_then(|allocation| allocation.status.clone()).unwrap_or_default();
            let demand = Demand {
                bound: view.bound(name).0,
                assigned: status.assigned,
                waiting: status.waiting,
                cooling: status.cooling,
                pods_allowed: view.node(name).and_then(|node| kept::pods_allowed(&node)),
            };
            served_by.iter().for_each(|pool| {
                black_box(wanted(&pool.spec.sizing, &demand, pool.spec.grain(), 255));
            });
            view.allocation(name).iter().for_each(|allocation| {
                black_box(allocation.spec.addresses());
            });
            let _ = (
                view.bound_pods(name),
                view.wishes(name),
                view.unreadable_of(name),
                view.unreadable_ranges(name),
            );
        }
        let served = view.allocations.state();
        let all = view.pools.state();
        for pool in &all {
            crate::pool::roll_up(
                pool,
                served.iter().map(AsRef::as_ref),
                None,
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            );
        }
        // An object that was readable once is there, or is known to be unreadable: never absent.
        assert!(kind != 0 || view.node("bad").is_some());
        assert!(kind != 1 || view.allocation("bad").is_some());
        // The public address that it names is that of a pod, whatever else it holds.
        let names = |one: &IpConfiguration| one.public_address.as_ref().is_some_and(|one| one.id == "i");
        let is_known =
            || view.allocation("bad").is_some_and(|object| object.spec.ip_configurations().any(names));
        assert!(of(1).pointer(PUBLIC_ADDRESS) != Some(&json!("i")) || is_known());
        // Nor is it absent when its Node goes: nothing is given back of what can't be read.
        let is_unknown = || view.unreadable("bad").is_some_and(|one| one.kind == "NodeIPAllocation");
        let was_unknown = is_unknown();
        see_node(Event::Delete(serde_json::from_value(of(0)).unwrap()));
        assert!(view.node("bad").is_none() && is_unknown() == was_unknown);
        assert_eq!(was_unknown, kind == 1 && !can_be_read::<NodeIPAllocation>(&bad));
        while let Ok(unreadable) = wakeups.unreadable.try_recv() {
            assert!(unreadable::message(&unreadable).contains(" bad "), "{unreadable:?}");
        }
    }

    #[test]
    fn a_list_that_is_made_anew_shows_each_change_and_takes_away_what_has_gone_when_it_is_complete() {
        let (store, writer) = reflector::store();
        let (unknown, strip) = (Unknown::default(), kept::strip_node as fn(&mut Node));
        let mut intake = Intake::new(&unknown, &store, writer, strip);
        let mut take = |event: Event<Value>| {
            let event = match event {
                Event::InitApply(value) => Event::InitApply(serde_json::from_value(value).unwrap()),
                Event::Init => Event::Init,
                _ => Event::InitDone,
            };
            intake.take(event);
            let mut all: Vec<(String, String)> = store
                .state()
                .iter()
                .map(|node| (node.name_any(), kept::provider_id(node).to_owned()))
                .collect();
            all.sort();
            all
        };
        let at = |name: &str, machine: &str| {
            let mut node = node(name);
            node["spec"]["providerID"] = json!(machine);
            Event::InitApply(node)
        };
        let is = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(name, machine)| ((*name).into(), (*machine).into())).collect()
        };
        for event in [Event::Init, at("a", "1"), at("b", "1"), at("c", "1")] {
            assert!(take(event).is_empty(), "a first list shows nothing before it is complete");
        }
        assert_eq!(take(Event::InitDone), is(&[("a", "1"), ("b", "1"), ("c", "1")]));
        // The same version with another content, as of a store that was set back.
        take(Event::Init);
        take(at("a", "1"));
        assert_eq!(take(at("b", "2")), is(&[("a", "1"), ("b", "2"), ("c", "1")]));
        // A list that broke off is made anew.
        take(Event::Init);
        take(at("b", "2"));
        assert_eq!(take(at("d", "1")).len(), 4);
        assert_eq!(take(Event::InitDone), is(&[("b", "2"), ("d", "1")]));
    }

    fn can_be_read<K: DeserializeOwned + Resource<DynamicType = ()>>(content: &Value) -> bool {
        serde_json::from_value::<Reading<K>>(content.clone()).unwrap().0.is_ok()
    }

    /// The properties of a schema that a sample lacks.
    fn lacks(schema: &Value, sample: &Value, path: &str) -> Vec<String> {
        let inner = schema["properties"].as_object().into_iter().flatten();
        let of_items = schema.get("items").map(|items| lacks(items, &sample[0], &format!("{path}/0")));
        let of_fields = inner.flat_map(|(name, schema)| match sample.get(name) {
            Some(inner) => lacks(schema, inner, &format!("{path}/{name}")),
            None => vec![format!("{path}/{name}")],
        });
        of_fields.chain(of_items.into_iter().flatten()).collect()
    }

    #[test]
    fn a_pool_that_goes_or_selects_others_wakes_the_nodes_that_waited_for_it() {
        let (nodes, node_writer) = reflector::store();
        let (pools, pool_writer) = reflector::store();
        let view = Cluster::new(nodes, reflector::store().0, pools, watch::channel(true).1);
        let (waker, mut wakeups) = wakeups::channels();
        let reading = |value: Value| serde_json::from_value(value).unwrap();
        super::nodes(view.clone(), waker.clone(), node_writer)(Event::Apply(
            serde_json::from_value(node("n")).unwrap(),
        ));
        let mut see_pool = super::pools(view, waker, pool_writer);
        let mut woken = |event| {
            while wakeups.nodes.try_recv().is_ok() {}
            see_pool(event);
            wakeups.nodes.try_recv().ok().map(|node| node.name)
        };
        let mut others = pool("p");
        others["metadata"]["generation"] = json!(2);
        others["spec"]["nodeSelector"] = json!({"matchLabels": {"a": "c"}});
        let n = || Some("n".to_owned());
        assert_eq!(woken(Event::Apply(reading(pool("p")))), n());
        assert_eq!(woken(Event::Apply(reading(others.clone()))), n(), "it selects others");
        assert_eq!(woken(Event::Delete(reading(others))), None, "it hasn't selected the node any more");
        assert_eq!(woken(Event::Apply(reading(pool("p")))), n());
        assert_eq!(woken(Event::Delete(reading(pool("p")))), n(), "it is gone");
    }

    #[test]
    fn every_field_of_our_kinds_is_one_that_gets_garbage() {
        for (crd, of) in
            [(NodeIPPool::crd(), pool as fn(&str) -> Value), (NodeIPAllocation::crd(), allocation)]
        {
            let schema = json!(crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take();
            for part in ["spec", "status"] {
                let missing = lacks(&schema["properties"][part], &of("bad")[part], part);
                assert!(missing.is_empty(), "{missing:?}");
            }
        }
    }

    #[test]
    fn garbage_in_any_one_field_costs_only_its_object() {
        for (kind, of) in KINDS.iter().enumerate() {
            let mut all = vec![];
            places(&of("bad"), "", &mut all);
            for (place, value) in
                all.iter().flat_map(|place| garbage().into_iter().map(move |one| (place, one)))
            {
                let mut bad = of("bad");
                *bad.pointer_mut(place).unwrap() = value;
                meet(kind, bad);
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_in_several_fields_costs_only_its_object(
            kind in 0..KINDS.len(),
            spoilt in proptest::collection::vec((any::<Index>(), any::<Index>()), 1..6),
        ) {
            let mut bad = KINDS[kind]("bad");
            for (place, value) in spoilt {
                let mut all = vec![];
                places(&bad, "", &mut all);
                let garbage = garbage();
                if let Some(spot) = bad.pointer_mut(place.get(&all[..]).as_str()) {
                    *spot = value.get(&garbage).clone();
                }
            }
            meet(kind, bad);
        }
    }
}
