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
            "nodeInfo": {"bootID": "b"}}
    })
}

fn interface(id: &str) -> Value {
    json!({
        "id": id, "mac": "m", "secondary": true, "primaryAddress": "10.0.0.4",
        "subnet": {"id": "s", "prefixes": ["10.0.0.0/16"]}, "applicationSecurityGroups": ["g"],
        "ipConfigurations": [{"name": "vnp-1", "address": "10.244.0.0/24", "attachedTo": "u",
            "backendPools": ["b"], "publicAddress": {"id": "i", "address": "1.2.3.4", "dnsName": "d"}}]
    })
}

fn allocation(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "3", "generation": 2,
            "annotations": {"vnetpool.io/gone": "true", "vnetpool.io/release": "true"}},
        "spec": {"nodeUID": name, "bootID": "b", "pool": "p", "mode": "Route", "routeTableID": "t", "wiring": "Routed",
            "target": 8, "cooldown": "30s", "warm": 8, "reportHolders": true, "snatExclusions": ["10.0.0.0/8"], "elsewhere": 1,
            "takenOffAt": ["2026-01-01T00:00:00Z"], "podMetadataAccess": "None", "detachedPublicAddresses": ["d"], "strayInterfaces": ["n"],
            "sizing": {"minimum": 1, "warm": 1, "maximum": 20, "batch": 1, "releaseAfter": "5m"},
            "interfaces": [interface("nic")], "leftInterfaces": [interface("left")]},
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
            "subnets": [{"id": "s", "nodes": 1, "held": 8, "onLeftInterfaces": 1, "size": 11, "free": 3}],
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
            fields
                .iter()
                .for_each(|(name, inner)| places(inner, &format!("{path}/{}", name.replace('/', "~1")), all));
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
            pods_allowed: view.node(name).and_then(|node| node.pods_allowed()),
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
        crate::pool::status::roll_up(
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
    let is_known = || view.allocation("bad").is_some_and(|object| object.spec.ip_configurations().any(names));
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
    let mut intake = Intake::new(&Unknown::default(), &store, writer, |_: &mut Node| {});
    let mut take = |event: Event<Value>| {
        let event = match event {
            Event::InitApply(value) => Event::InitApply(serde_json::from_value(value).unwrap()),
            Event::Init => Event::Init,
            _ => Event::InitDone,
        };
        intake.take(event);
        let mut all: Vec<(String, String)> =
            store.state().iter().map(|node| (node.name_any(), node.provider_id().to_owned())).collect();
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
    for (crd, of) in [(NodeIPPool::crd(), pool as fn(&str) -> Value), (NodeIPAllocation::crd(), allocation)] {
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
        for (place, value) in all.iter().flat_map(|place| garbage().into_iter().map(move |one| (place, one)))
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
