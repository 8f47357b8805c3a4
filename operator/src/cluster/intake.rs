//! How each event of a watch is handled: the store takes it, and the objects that it concerns are woken.

use std::collections::{HashMap, HashSet};
use std::mem::take;
use std::time::Instant;

use ipnet::Ipv4Net;
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
use crate::node_object::{Node, Shared};
use crate::pod_cidr;

/// Keeps the store of one kind at what the API server has, stripped.
struct Intake<K: Resource<DynamicType = ()> + Clone + PartialEq + 'static> {
    sieve: Sieve,
    shelf: Shelf<K>,
    strip: Box<dyn FnMut(&mut K) + Send>,
}

impl<K: Resource<DynamicType = ()> + Clone + PartialEq + 'static> Intake<K> {
    /// `strip` takes from an object what isn't kept of it.
    fn new(
        unknown: &Unknown,
        store: &Store<K>,
        writer: Writer<K>,
        strip: impl FnMut(&mut K) + Send + 'static,
    ) -> Self {
        let shelf = Shelf { store: store.clone(), writer, is_listed: false, listed: HashSet::new() };
        Intake { sieve: Sieve::new(unknown.clone()), shelf, strip: Box::new(strip) }
    }

    /// Stores the object of an event, and returns the wakeups that follow.
    fn take(&mut self, event: Event<Reading<K>>) -> Sifted<K> {
        let (store, shelf, strip) = (self.shelf.store.clone(), &mut self.shelf, &mut self.strip);
        let keep = |event: Event<K>| {
            let event = event.modify(&mut *strip);
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
    let mut labels = Shared::default();
    let share = move |node: &mut Node| node.share(&mut labels);
    let mut intake = Intake::new(&view.unknown_nodes, &view.nodes, writer, share);
    let mut changes = Changes::new(kept::node_digest);
    move |event| {
        let Sifted { event, turned } = intake.take(event);
        if let Some(event) = &event {
            let changed = changes.apply(event);
            let mut was_alone = false;
            for name in &changed {
                waker.node(name);
                let is_alone = view.node(name).is_some_and(|node| view.leaves_alone(&node));
                was_alone |= lock(&view.served).leave_alone(name, is_alone) && !is_alone;
            }
            if !changed.is_empty() {
                view.pools_about(event, was_alone).iter().for_each(|pool| waker.pool(pool));
            }
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
                let object = view.allocation(&name);
                let pools = lock(&view.served).take(&name, object.as_deref());
                pools.iter().for_each(|pool| waker.pool(pool));
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
mod fuzz;
#[cfg(test)]
mod tests;
