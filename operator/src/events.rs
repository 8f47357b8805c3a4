//! The Events that the operator publishes, one constructor each: on the Node, which people read first, and on
//! our own kind.

mod digest;
mod publisher;

use crate::azure::{Attached, ResourceId};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::runtime::events::{Event, EventType};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::{Instant, sleep_until};

use vnetpool_crds::reason::{Loudness, Reason};
use vnetpool_crds::refusal::{self, Refusal, Service};

use digest::{Digest, Reported, node_of};
use publisher::Publisher;

/// Publishes Events about objects. No task waits for it: a pod may be waiting for the next step.
pub struct Events {
    queue: UnboundedSender<Reported>,
}

impl Events {
    /// The queue, and the task that publishes its Events in order, each once; the task ends when all are
    /// published and no queue is left. `instance` distinguishes replicas; `pool_of` gives the pool of a node.
    pub fn new<P>(
        client: Client,
        instance: &str,
        pool_of: P,
    ) -> (Events, impl Future<Output = ()> + Send + use<P>)
    where
        P: Fn(&str) -> Option<ObjectReference> + Send + Sync,
    {
        let mut publisher = Publisher::new(client, instance);
        let (queue, mut reported) = mpsc::unbounded_channel::<Reported>();
        let deliver = async move {
            let (mut digest, mut news) = (Digest::default(), vec![]);
            loop {
                tokio::select! {
                    count = reported.recv_many(&mut news, usize::MAX) => if count == 0 { break },
                    () = until(digest.due()) => {
                        publish(&mut publisher, digest.ended(Instant::now())).await;
                        continue;
                    }
                }
                // All that wait are of one window, however long it takes to publish the first of them.
                let now = Instant::now();
                let admitted = news.drain(..).filter_map(|next| {
                    let pool = node_of(&next.0).and_then(&pool_of);
                    digest.admit(next, pool, now)
                });
                publish(&mut publisher, admitted.collect::<Vec<_>>()).await;
            }
            publish(&mut publisher, digest.rest()).await;
        };
        (Events { queue }, deliver)
    }

    pub fn report(&self, about: &[ObjectReference], event: Event) {
        // Fails only when the operator is ending.
        let _ = self.queue.send((about.to_vec(), event));
    }
}

/// Waits for ever if there is no such time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn publish(publisher: &mut Publisher, events: impl IntoIterator<Item = Reported>) {
    for (about, event) in events {
        for object in about {
            publisher.publish(&event, &object).await;
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
    let changes = [("joined", join), ("left", leave)];
    let changes = changes.iter().filter(|(_, groups)| !groups.is_empty());
    let changes: Vec<String> =
        changes.map(|(does, groups)| format!("has {does} {}", names(groups))).collect();
    let note = format!("{nic} {}: application security groups of its pool's", changes.join(" and "));
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
    let note = refusal::message(&[refusal], Some(pool));
    Event { secondary: Some(related), ..event(Reason::PodsAsk, action, note) }
}

pub fn full(message: &str) -> Event {
    event(Reason::Full, "Reserve", message.to_owned())
}

/// A NIC was left to another VM. `spec` forgets the NIC right after, so there is this Event and no condition.
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

/// An object that somebody has deleted can't go yet, and serves its node meanwhile.
pub fn deletion_waits(ids: &[&str]) -> Event {
    event(
        Reason::DeletionWaits,
        "Delete",
        format!(
            "somebody deleted this object while its Node lives; it serves the node as long as no other object names these: \
             public addresses, until they are deleted or on its NIC, and NICs that the node has left, until they are empty: {}",
            ids.join(", ")
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
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::http::{Request, Response};
    use kube::client::Body;

    fn object(kind: &str, name: &str) -> ObjectReference {
        ObjectReference { kind: Some(kind.into()), name: Some(name.into()), ..ObjectReference::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_api_server_is_slow_the_events_of_many_nodes_are_few() {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let server = tower::service_fn(move |_: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<_, Infallible>(Response::new(Body::from(br#"{"metadata":{}}"#.to_vec())))
            }
        });
        let pool_of = |_: &str| Some(object("NodeIPPool", "default"));
        let (events, deliver) = Events::new(Client::new(server, "default"), "us", pool_of);
        for node in 0..1000 {
            let name = format!("n{node}");
            events.report(&[object("Node", &name), object("NodeIPAllocation", &name)], reserved(4, 8, "nic"));
        }
        drop(events);
        deliver.await;
        let requests = requests.load(Ordering::Relaxed);
        assert!((100..=110).contains(&requests), "{requests}");
    }
}
