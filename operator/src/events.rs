//! The Events that the operator publishes, one constructor each: on the Node, which people read first, and on
//! our own kind.

use std::collections::BTreeMap;

use crate::azure::{Attached, ResourceId};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc::{self, UnboundedSender};
use tracing::warn;

use vnetpool_crds::reason::{Loudness, Reason};
use vnetpool_crds::refusal::{self, Refusal, Service};
use vnetpool_crds::verdict::name_some;

/// Publishes Events about objects. No task waits for it: a pod may be waiting for the next step.
pub struct Events {
    queue: UnboundedSender<Said>,
}

/// An Event and the objects it is about.
type Said = (Vec<ObjectReference>, Event);

/// When so many Events of one reason wait for nodes of one pool, one Event of the pool replaces them: they
/// would trail by minutes, and people don't read thousands.
const MANY: usize = 50;
/// So many of their nodes are named.
const NAMED: usize = 5;

impl Events {
    /// The publisher, and the task that delivers its Events in order; the task ends when all are delivered
    /// and no publisher is left. An Event that can't be delivered is logged and given up: it changes nothing.
    /// `instance` distinguishes replicas; `pool_of` gives the pool of a node.
    pub fn new<P>(
        client: Client,
        instance: &str,
        pool_of: P,
    ) -> (Events, impl Future<Output = ()> + Send + use<P>)
    where
        P: Fn(&str) -> Option<ObjectReference> + Send + Sync,
    {
        let reporter =
            Reporter { controller: vnetpool_crds::names::OPERATOR.into(), instance: Some(instance.into()) };
        let recorder = Recorder::new(client, reporter);
        let (queue, mut said) = mpsc::unbounded_channel::<Said>();
        let deliver = async move {
            let mut waiting = vec![];
            while said.recv_many(&mut waiting, usize::MAX).await > 0 {
                for (about, event) in summed_up(std::mem::take(&mut waiting), &pool_of) {
                    publish(&recorder, &about, &event).await;
                }
            }
        };
        (Events { queue }, deliver)
    }

    pub fn say(&self, about: &[ObjectReference], event: Event) {
        // Fails only when the operator is ending.
        let _ = self.queue.send((about.to_vec(), event));
    }
}

/// The same, with one of a pool for each reason that many of its nodes have.
fn summed_up(said: Vec<Said>, pool_of: impl Fn(&str) -> Option<ObjectReference>) -> Vec<Said> {
    if said.len() < MANY {
        return said;
    }
    let node = |about: &[ObjectReference]| {
        let own = about.iter().find(|one| one.kind.as_deref() == Some("NodeIPAllocation"))?;
        own.name.clone()
    };
    let mut alike: BTreeMap<(String, String), (ObjectReference, Vec<usize>)> = BTreeMap::new();
    for (at, (about, event)) in said.iter().enumerate() {
        if let Some(pool) = node(about).and_then(|node| pool_of(&node)) {
            let key = (event.reason.clone(), pool.name.clone().unwrap_or_default());
            alike.entry(key).or_insert_with(|| (pool, vec![])).1.push(at);
        }
    }
    alike.retain(|_, (_, all)| all.len() >= MANY);
    let mut of_pools: BTreeMap<usize, Option<Said>> = BTreeMap::new();
    for (pool, all) in alike.into_values() {
        let [first, ..] = all[..] else { continue };
        let names = name_some(all.iter().map(|at| node(&said[*at].0).unwrap_or_default()), NAMED);
        let (_, event) = &said[first];
        let note = event.note.as_deref().unwrap_or_default();
        let note = short(format!("{} times, of the nodes {names}; the first time: {note}", all.len()));
        of_pools.extend(all.iter().map(|at| (*at, None)));
        let event = Event {
            type_: event.type_,
            reason: event.reason.clone(),
            action: event.action.clone(),
            note: Some(note),
            secondary: None,
        };
        of_pools.insert(first, Some((vec![pool], event)));
    }
    let all = said.into_iter().enumerate();
    all.filter_map(|(at, one)| of_pools.remove(&at).unwrap_or(Some(one))).collect()
}

async fn publish(recorder: &Recorder, about: &[ObjectReference], event: &Event) {
    for object in about {
        if let Err(error) = recorder.publish(event, object).await {
            warn!(object = object.name, reason = event.reason, %error, "Event not published");
        }
    }
}

pub fn reserved(count: u32, held: u32, nic: &str) -> Event {
    event(
        Reason::AddressesReserved,
        "Reserve",
        format!("reserved {count} addresses on {nic}, which holds {held} now"),
    )
}

/// Another client, an upgrade of a scale set's model perhaps, had taken addresses off the NIC that pods use.
pub fn restored(count: u32, nic: &str) -> Event {
    event(
        Reason::AddressesRestored,
        "Restore",
        format!("{count} addresses in use had left {nic} without Vnetpool's doing; they are back on it"),
    )
}

pub fn released(count: u32, held: u32, nic: &str) -> Event {
    event(
        Reason::AddressesReleased,
        "Release",
        format!("released {count} addresses from {nic}, which holds {held} now"),
    )
}

/// A field of the NIC that isn't ours was changed.
pub fn forwarding(nic: &str) -> Event {
    let note = format!(
        "turned on enableIPForwarding of {nic}, without which Azure delivers no packet for an address of a pod CIDR; it stays \
         on when the node leaves mode Route"
    );
    event(Reason::ForwardingEnabled, "Reserve", note)
}

pub fn mended(table: &str) -> Event {
    let note = format!("put the node's route in {table} right, which somebody else had changed or removed");
    event(Reason::RouteMended, "Reserve", note)
}

/// A NIC has joined and left application security groups, as its pool asks for.
pub fn regrouped(join: &[ResourceId], leave: &[ResourceId], nic: &str) -> Event {
    let names = |groups: &[ResourceId]| groups.iter().map(ResourceId::name).collect::<Vec<_>>().join(", ");
    let said = [("joined", join), ("left", leave)];
    let said = said.iter().filter(|(_, groups)| !groups.is_empty());
    let said: Vec<String> = said.map(|(does, groups)| format!("has {does} {}", names(groups))).collect();
    let note = format!("{nic} {}: application security groups of its pool's", said.join(" and "));
    event(Reason::SecurityGroupsChanged, "Join", note)
}

/// The ipConfigurations of others are gone from a NIC, as the pool asked for.
pub fn adopted(names: &[String], nic: &str) -> Event {
    event(
        Reason::OthersRemoved,
        "Adopt",
        format!(
            "removed {} ipConfigurations that others had made from {nic}: {}",
            names.len(),
            names.join(", ")
        ),
    )
}

/// Work is stopped until a person changes something.
pub fn stuck(reason: Reason, action: &str, message: &str) -> Event {
    Event { type_: EventType::Warning, ..event(reason, action, message.to_owned()) }
}

/// The same, of a condition that has turned: with its reason and its message.
pub fn turned(condition: &Condition, action: &str) -> Event {
    let (reason, message) = (&condition.reason, &condition.message);
    of(EventType::Warning, reason, action, message.to_owned())
}

/// A write would be made, were this not a dry run.
pub fn dry_run(message: &str) -> Event {
    event(Reason::DryRun, "Plan", message.to_owned())
}

/// On a pod.
pub fn attached(attached: &Attached) -> Event {
    let pools = attached.backend_pools.iter().map(|pool| format!("backend pool {pool}"));
    let all: Vec<String> = pools
        .chain(attached.public_address.iter().map(|public| format!("public address {public}")))
        .collect();
    event(Reason::Attached, "Attach", format!("attached to the pod's address: {}", all.join(", ")))
}

/// The rules of a node keep this pod from a service of Azure's on the host. The pod is related to the Event,
/// which makes each pod's another one, and so does the action for each service.
pub fn refused(refusal: Refusal, pool: &str) -> Event {
    let (namespace, name) = refusal.pod.split_once('/').unwrap_or(("", refusal.pod.as_str()));
    let related = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        ..Default::default()
    };
    let action = match refusal.service {
        Service::Metadata => "DropMetadata",
        Service::WireServer => "DropWireServer",
    };
    let note = refusal::message(&[refusal].into(), pool);
    Event { secondary: Some(related), ..event(Reason::PodsAsk, action, note) }
}

pub fn full(message: &str) -> Event {
    event(Reason::Full, "Reserve", message.to_owned())
}

pub fn left_behind(nic: &str, vm: &str) -> Event {
    event(
        Reason::InterfaceLeft,
        "Release",
        format!(
            "the node has another NIC now; {nic} is attached to {vm} and keeps its reserved addresses until that VM's own \
             Node appears or the NIC is deleted"
        ),
    )
}

fn event(reason: Reason, action: &str, note: String) -> Event {
    let type_ = match reason.row().event {
        Some(Loudness::Normal) => EventType::Normal,
        Some(Loudness::Warning) | None => EventType::Warning,
    };
    of(type_, reason.name(), action, note)
}

fn of(type_: EventType, reason: &str, action: &str, note: String) -> Event {
    Event { type_, reason: reason.into(), note: Some(short(note)), action: action.into(), secondary: None }
}

/// The API takes at most 1 KiB.
fn short(note: String) -> String {
    note.chars().take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str) -> ObjectReference {
        ObjectReference { kind: Some(kind.into()), name: Some(name.into()), ..ObjectReference::default() }
    }

    fn said(node: usize, event: Event) -> Said {
        let name = format!("n{node}");
        (vec![object("Node", &name), object("NodeIPAllocation", &name)], event)
    }

    /// The object of each Event, and its note.
    fn told(said: Vec<Said>) -> Vec<(String, String)> {
        let pool_of = |node: &str| Some(object("NodeIPPool", if node == "n0" { "other" } else { "default" }));
        let about = |about: &[ObjectReference]| {
            let names = about
                .iter()
                .map(|one| format!("{} {}", one.kind.as_deref().unwrap(), one.name.as_deref().unwrap()));
            names.collect::<Vec<_>>().join(", ")
        };
        let all = summed_up(said, pool_of);
        all.into_iter().map(|(objects, event)| (about(&objects), event.note.unwrap())).collect()
    }

    #[test]
    fn what_many_nodes_of_a_pool_say_at_once_is_said_once_of_the_pool() {
        let mut all: Vec<Said> = (0..=MANY).map(|node| said(node, reserved(4, 8, "nic"))).collect();
        all.insert(3, said(7, full("no address is left")));
        let told = told(all);
        let [(about, note), pool, full] = &told[..] else { panic!("{told:?}") };
        assert_eq!(
            (about.as_str(), note.as_str()),
            ("Node n0, NodeIPAllocation n0", "reserved 4 addresses on nic, which holds 8 now")
        );
        assert_eq!(pool.0, "NodeIPPool default");
        for part in ["50 times", "n1, n2, n3, n4, n5, 45 more", "reserved 4 addresses"] {
            assert!(pool.1.contains(part), "{}", pool.1);
        }
        assert_eq!(full.0, "Node n7, NodeIPAllocation n7");
    }

    #[test]
    fn what_a_few_nodes_say_is_said_of_each() {
        let few: Vec<Said> = (1..MANY).map(|node| said(node, reserved(4, 8, "nic"))).collect();
        assert_eq!(told(few).len(), MANY - 1);
        let pods: Vec<Said> = (0..2 * MANY).map(|_| (vec![object("Pod", "p")], full("none"))).collect();
        assert_eq!(told(pods).len(), 2 * MANY);
    }
}
