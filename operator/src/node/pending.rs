//! What Azure has refused of the resources that a node leaves behind. Each waits until it may be asked for
//! again, and for none of the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use vnetpool_apiserver::jittered;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::reason::Reason;

use super::absences::is_confirmed_gone;
use super::asking::{OfAll, Refused};
use super::setback::{Setback, Stage};
use crate::context::Context;

/// What others try on the node's behalf, too, is asked for by itself this seldom: the resource may have gone.
const ALONE: Duration = Duration::from_secs(1800);
/// A node that others try for is woken when it may try. It is reconciled this often all the same.
const MISSED: Duration = Duration::from_secs(600);
/// What is due within so long is asked for together.
const TOGETHER: Duration = Duration::from_secs(5);
/// Nobody is woken to try to delete public addresses on behalf of all: who comes first does.
const FIRST_COME: Duration = Duration::from_secs(120);

/// By the resource's id, in lower case.
#[derive(Clone, Debug, Default)]
pub struct Pending(BTreeMap<String, Deferred>);

#[derive(Clone, Debug)]
struct Deferred {
    refused: Refused,
    own: Setback,
    /// When it was refused.
    at: Instant,
}

impl Pending {
    /// This resource was refused. It is asked for again after `wait`, if that is known.
    pub fn refused(&mut self, id: &str, refused: &Refused, wait: Option<Duration>, now: Instant) {
        let id = id.to_lowercase();
        let last = self.0.get(&id).filter(|last| last.refused.of_all.is_none()).map(|last| &last.own);
        let mut own = Setback::after(last, Stage::Find, &refused.error, now);
        if let Some(wait) = wait {
            own.until = now + wait;
        }
        self.0.insert(id, Deferred { refused: refused.clone(), own, at: now });
    }

    /// Nothing more is to be asked of this resource.
    pub fn ended(&mut self, id: &str) {
        self.0.remove(&id.to_lowercase());
    }

    /// Why this resource isn't asked for now.
    pub fn refusal(
        &self,
        id: &str,
        (ctx, allocation): (&Context, &NodeIPAllocation),
        now: Instant,
    ) -> Option<&Refused> {
        let waiting = self.0.get(&id.to_lowercase())?;
        let until = waiting.until((ctx, allocation), now)?;
        (now < until).then_some(&waiting.refused)
    }

    /// How long nothing is to be asked for; `None`: something may be, now. Whatever is refused alike is asked
    /// for together, for each time what isn't refused is looked at once more.
    pub fn wait(&self, (ctx, allocation): (&Context, &NodeIPAllocation), now: Instant) -> Option<Duration> {
        let waits = self.0.values().map(|waiting| waiting.until((ctx, allocation), now));
        let all: Vec<Instant> = waits.collect::<Option<_>>()?;
        let soonest = *all.iter().min()?;
        let last = all.into_iter().filter(|until| *until <= soonest + TOGETHER).max()?;
        last.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Whether others try on the node's behalf, as it does on theirs.
    pub fn is_shared(&self) -> bool {
        self.0.values().any(|waiting| waiting.refused.of_all.is_some())
    }
}

impl Deferred {
    /// When it may be asked for, or is to be looked at again; `None`: at once. A person's annotation ends the
    /// wait for what that confirms.
    fn until(&self, (ctx, allocation): (&Context, &NodeIPAllocation), now: Instant) -> Option<Instant> {
        let Some(of_all) = &self.refused.of_all else {
            let is_ended = self.own.reason == Reason::ScopeMissing || self.own.is_in_use;
            return Some(self.own.until).filter(|_| !(is_ended && is_confirmed_gone(allocation)));
        };
        if !of_all.stands(ctx, &allocation.name_any()) {
            return None;
        }
        let again = match of_all {
            OfAll::Scope { .. } => MISSED,
            OfAll::Deletion(_) => jittered(FIRST_COME),
        };
        Some((self.at + ALONE).min(now + again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure;
    use crate::lock::lock;
    use serde_json::json;

    const GROUP: &str = "/subscriptions/s/resourcegroups/g";

    fn nic(name: &str) -> String {
        format!("{GROUP}/providers/microsoft.network/networkinterfaces/{name}")
    }

    fn object() -> NodeIPAllocation {
        let object =
            json!({"metadata": {"name": "n"}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        serde_json::from_value(object).unwrap()
    }

    fn denied(nic: &str) -> azure::Error {
        azure::Error::Denied { action: "read".into(), scope: nic.into(), message: "m".into() }
    }

    #[tokio::test]
    async fn each_resource_that_is_refused_waits_for_itself() {
        let (ctx, object, now) = (Context::sample(), object(), Instant::now());
        let (mut pending, at) = (Pending::default(), (&ctx, &object));
        assert_eq!(pending.wait(at, now), None);
        pending.refused(&nic("A"), &denied(&nic("a")).into(), None, now);
        let own = pending.wait(at, now).unwrap();
        pending.refused(&nic("b"), &denied(&nic("b")).into(), Some(own / 2), now);
        assert_eq!(pending.wait(at, now), Some(own / 2));
        assert!([nic("a"), nic("b")].iter().all(|id| pending.refusal(id, at, now).is_some()));
        // One of them may be asked for, and the other not yet.
        assert_eq!(pending.wait(at, now + own / 2), None);
        let waits = |id| pending.refusal(id, at, now + own / 2).is_some();
        assert_eq!((waits(&nic("a")), waits(&nic("b"))), (true, false));
        pending.ended(&nic("B"));
        assert_eq!(pending.wait(at, now + own / 2), Some(own / 2));
        // What is refused one after the other is asked for together.
        pending.refused(&nic("c"), &denied(&nic("c")).into(), Some(own / 2), now + TOGETHER);
        pending.refused(&nic("b"), &denied(&nic("b")).into(), Some(own / 2), now);
        assert_eq!(pending.wait(at, now), Some(own / 2 + TOGETHER));
        assert_eq!(pending.wait(at, now + own / 2 + TOGETHER), None);
        ["b", "c"].iter().for_each(|name| pending.ended(&nic(name)));
        // It is asked for ever less often.
        pending.refused(&nic("a"), &denied(&nic("a")).into(), None, now);
        assert_eq!(pending.wait(at, now), Some(2 * own));
    }

    #[tokio::test]
    async fn what_one_asks_for_on_behalf_of_all_waits_until_it_is_answered() {
        let (ctx, object, now) = (Context::sample(), object(), Instant::now());
        let (mut pending, at) = (Pending::default(), (&ctx, &object));
        let locked = azure::Error::Locked { resource: nic("o"), scope: GROUP.into(), message: "m".into() };
        let (others, sites) = ([nic("o")], vec![nic("a")]);
        let refusals = ctx.refusals.writes.clone();
        let (matter, _) = lock(&refusals).failed(&locked, ("other", &others), now).unwrap();
        let of_all = Some(OfAll::Scope { refusals: refusals.clone(), matter, sites });
        pending.refused(&nic("a"), &Refused { error: locked, of_all }, None, now);
        assert!(pending.is_shared());
        for after in [Duration::ZERO, ALONE / 2] {
            assert!(pending.wait(at, now + after).is_some_and(|wait| wait <= MISSED));
        }
        assert_eq!(pending.wait(at, now + ALONE), None, "the resource may have gone");
        assert_eq!(lock(&refusals).tick(now + Duration::from_secs(300)), ["n"]);
        assert_eq!(pending.wait(at, now), None, "it is its turn");
        lock(&refusals).left("n", now);
        assert!(pending.wait(at, now).is_some());
        assert_eq!(lock(&refusals).passed(&others, now).iter().filter(|one| *one == "n").count(), 1);
        assert_eq!(pending.wait(at, now), None);
    }
}
