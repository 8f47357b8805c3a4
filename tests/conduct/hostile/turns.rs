//! How often conditions have turned, to compare that with the Events.

use crate::stage::Stage;
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use vnetpool_crds::condition::{FULL, SUBNET_EXHAUSTING};
use vnetpool_crds::reason::Reason;
use vnetpool_crds::{NodeIPAllocation, NodeIPPool};
use vnetpool_process::lock::lock;

/// How often a condition of an object has turned to a reason, or an Event with it was published: by the
/// object's kind and name, and the reason.
type Seen = BTreeMap<(String, String, String), usize>;

/// What Events of ours are about.
const ABOUT: [&str; 4] = ["Node", "NodeIPAllocation", "NodeIPPool", "Pod"];

/// Counts the turns of conditions, to compare them with the published Events.
pub struct Turns {
    seen: Arc<Mutex<Seen>>,
}

impl Turns {
    pub fn watch(stage: &Stage<'_>) -> Turns {
        let seen = Arc::<Mutex<Seen>>::default();
        stage.follow(counting(seen.clone(), |object: &NodeIPAllocation| object.conditions().to_vec()));
        stage.follow(counting(seen.clone(), |pool: &NodeIPPool| {
            pool.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
        }));
        Turns { seen }
    }

    /// Whether Events about a state were published of each of these kinds.
    pub async fn are_published(stage: &Stage<'_>, kinds: &[&str]) -> Result<bool> {
        let published = Turns::published(stage).await?;
        Ok(kinds.iter().all(|kind| published.keys().any(|(about, ..)| about == kind)))
    }

    /// How often each Event about a state was published.
    async fn published(stage: &Stage<'_>) -> Result<Seen> {
        let events = Api::<Event>::all(stage.client.clone()).list(&ListParams::default()).await?;
        let mut published = Seen::new();
        for event in &events {
            let about = &event.involved_object;
            let (Some(kind), Some(name), Some(reason)) = (&about.kind, &about.name, &event.reason) else {
                continue;
            };
            ensure!(ABOUT.contains(&kind.as_str()), "an Event about a {kind}: {event:?}");
            let times = event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
            // Others report an action, and not a state.
            let is_of_state = [FULL, SUBNET_EXHAUSTING].iter().any(|type_| type_.name() == reason)
                || Reason::of(reason).is_some_and(|reason| !reason.row().conditions.is_empty());
            if is_of_state {
                let what = (kind.clone(), name.clone(), reason.clone());
                *published.entry(what).or_default() += usize::try_from(times)?;
            }
        }
        Ok(published)
    }

    /// No Event was published more often than its condition turned, or, of a pod, than there were leaders,
    /// and there are some about each of these kinds.
    pub async fn audit(&self, stage: &Stage<'_>, leaders: usize, kinds: &[&str]) -> Result<()> {
        let published = Turns::published(stage).await?;
        let turned = lock(&self.seen).clone();
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
        for kind in kinds {
            ensure!(published.keys().any(|(about, ..)| about == kind), "no Event is about any {kind}");
        }
        Ok(())
    }
}

/// Counts in `seen` how often conditions of these objects turn.
fn counting<K: Resource<DynamicType = ()>>(
    seen: Arc<Mutex<Seen>>,
    conditions: impl Fn(&K) -> Vec<Condition>,
) -> impl FnMut(K) {
    let mut last: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
    move |object: K| {
        for one in conditions(&object) {
            let now = (one.status.clone(), one.reason.clone());
            if last.insert((object.name_any(), one.type_.clone()), now.clone()).as_ref() == Some(&now) {
                continue;
            }
            // The Events of these have the type for their reason, whatever the cause is.
            let goes_by_type = [FULL, SUBNET_EXHAUSTING].iter().any(|type_| type_.name() == one.type_);
            let reason = if goes_by_type && one.status == "True" { one.type_ } else { now.1 };
            *lock(&seen).entry((K::kind(&()).into(), object.name_any(), reason)).or_default() += 1;
        }
    }
}
