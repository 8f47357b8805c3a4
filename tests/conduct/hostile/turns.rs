//! How often conditions have turned, and when, to compare that with the Events.

use crate::stage::Stage;
use anyhow::{Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vnetpool_crds::condition::{
    ADDRESSES_KEPT, FULL, INTERFACE_FOUND, OPERATIONS_TRACKED, SUBNET_EXHAUSTING, Type, VALID,
};
use vnetpool_crds::names::OPERATOR;
use vnetpool_crds::reason::Reason;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_process::lock::lock;

/// An object's kind and name, and a reason.
type What = (String, String, String);

/// A condition of an object has turned to a reason.
struct Turn {
    what: What,
    /// Whether it has an Event for certain.
    is_event: bool,
    at: Instant,
}

/// What Events of ours are about.
const ABOUT: [&str; 4] = ["Node", "NodeIPAllocation", "NodeIPPool", "Pod"];
/// Conditions whose Events have the type for their reason, whatever the cause is.
const BY_TYPE: [Type; 2] = [FULL, SUBNET_EXHAUSTING];
/// What a leader before has written last may show after the next has begun.
const LATE: Duration = Duration::from_secs(3);

/// Notes the turns of conditions, to compare them with the published Events.
pub struct Turns {
    seen: Arc<Mutex<Vec<Turn>>>,
    /// Since when the present leader has led.
    led_since: Arc<Mutex<Instant>>,
}

impl Turns {
    pub fn watch(stage: &Stage<'_>) -> Turns {
        let (seen, led_since) = (Arc::<Mutex<Vec<Turn>>>::default(), Arc::new(Mutex::new(Instant::now())));
        stage.follow(noting(seen.clone(), |object: &NodeIPAllocation| object.conditions().to_vec()));
        stage.follow(noting(seen.clone(), |pool: &NodeIPPool| {
            pool.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
        }));
        let (since, mut last) = (led_since.clone(), None);
        stage.follow(move |lease: Lease| {
            let is_operators = lease.name_any() == OPERATOR;
            let led =
                lease.spec.map(|spec| (spec.holder_identity, spec.lease_transitions, spec.acquire_time));
            if is_operators && led != last {
                *lock(&since) = Instant::now();
                last = led;
            }
        });
        Turns { seen, led_since }
    }

    /// No Event was published more often than its condition turned, or, of a pod, than there were leaders,
    /// and there are some about each of these kinds. Those of the last leader's turns were all published: an
    /// operator that is killed, or loses its Lease, may take some with it.
    pub async fn audit(&self, stage: &Stage<'_>, leaders: usize, kinds: &[&str]) -> Result<()> {
        let published = published(stage).await?;
        let (mut turned, mut due) = (BTreeMap::<What, usize>::new(), BTreeMap::<What, usize>::new());
        let last_leaders = *lock(&self.led_since) + LATE;
        for Turn { what, is_event, at } in lock(&self.seen).iter() {
            *turned.entry(what.clone()).or_default() += 1;
            if *is_event && *at > last_leaders {
                *due.entry(what.clone()).or_default() += 1;
            }
        }
        for ((kind, name, reason), times) in &published {
            // What is published about a Node stands in its NodeIPAllocation.
            let stands = if kind == "Node" { "NodeIPAllocation" } else { kind.as_str() };
            let turns = turned.get(&(stands.to_owned(), name.clone(), reason.clone())).copied();
            let most = if kind == "Pod" { leaders } else { turns.unwrap_or_default() };
            ensure!(
                *times <= most,
                "{reason} of {kind} {name} was published {times} times, at most {most} are right"
            );
        }
        for ((stands, name, reason), least) in &due {
            let about = if stands == "NodeIPAllocation" {
                &["Node", "NodeIPAllocation"][..]
            } else {
                &["NodeIPPool"]
            };
            for kind in about {
                let times = published.get(&((*kind).to_owned(), name.clone(), reason.clone())).copied();
                ensure!(
                    times >= Some(*least),
                    "{reason} of {kind} {name} was published {times:?} times, at least {least} are right"
                );
            }
        }
        for kind in kinds {
            ensure!(published.keys().any(|(about, ..)| about == kind), "no Event is about any {kind}");
        }
        eprintln!(
            "{} Events of {} turns are due of the last leader",
            due.values().sum::<usize>(),
            lock(&self.seen).len()
        );
        Ok(())
    }
}

/// How often each Event of a state was published. Others report an action.
async fn published(stage: &Stage<'_>) -> Result<BTreeMap<What, usize>> {
    let events = Api::<Event>::all(stage.client.clone()).list(&ListParams::default()).await?;
    let mut published = BTreeMap::new();
    for event in &events {
        let about = &event.involved_object;
        let (Some(kind), Some(name), Some(reason)) = (&about.kind, &about.name, &event.reason) else {
            continue;
        };
        ensure!(ABOUT.contains(&kind.as_str()), "an Event about a {kind}: {event:?}");
        let times = event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
        let is_of_state = BY_TYPE.iter().any(|type_| type_.name() == reason)
            || Reason::of(reason).is_some_and(|reason| !reason.row().conditions.is_empty());
        if is_of_state {
            let what = (kind.clone(), name.clone(), reason.clone());
            *published.entry(what).or_default() += usize::try_from(times)?;
        }
    }
    Ok(published)
}

/// Notes in `seen` when conditions of these objects turn.
fn noting<K: Resource<DynamicType = ()>>(
    seen: Arc<Mutex<Vec<Turn>>>,
    conditions: impl Fn(&K) -> Vec<Condition>,
) -> impl FnMut(K) {
    let mut last: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
    move |object: K| {
        for one in conditions(&object) {
            let now = (one.status.clone(), one.reason.clone());
            let was = last.insert((object.name_any(), one.type_.clone()), now.clone());
            if was.as_ref() == Some(&now) {
                continue;
            }
            let goes_by_type = BY_TYPE.iter().any(|type_| type_.name() == one.type_) && one.status == "True";
            // A pool's Event is of another status, whatever the reason.
            let is_another =
                K::kind(&()) != "NodeIPPool" || was.is_none_or(|(status, _)| status != one.status);
            let is_event = is_another && has_event(&one);
            let reason = if goes_by_type { one.type_ } else { now.1 };
            let what = (K::kind(&()).into(), object.name_any(), reason);
            lock(&seen).push(Turn { what, is_event, at: Instant::now() });
        }
    }
}

/// Whether a condition that turns so has an Event in any case. One about growth has it only where a person is
/// needed, and what is about to be begun has none.
fn has_event(condition: &Condition) -> bool {
    let is_one_of = |types: &[Type]| types.iter().any(|type_| type_.name() == condition.type_);
    let passes = ["Pending", "NoInterface"].contains(&condition.reason.as_str());
    match condition.status.as_str() {
        "False" => is_one_of(&[INTERFACE_FOUND, OPERATIONS_TRACKED, ADDRESSES_KEPT, VALID]) && !passes,
        _ => is_one_of(&BY_TYPE),
    }
}
