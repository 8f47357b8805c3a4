//! Requests of a node outside of its service: about the NIC of a node that is gone, or one that doesn't
//! serve. None is sent while others are known to be refused the same.
//!
//! A subscription or resource group that Azure doesn't know is asked for by each all the same: a record goes
//! only when Azure has answered twice about it itself.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;

use crate::azure::{self, Change, Nic, ResourceId, Urgency, Written};
use crate::context::Context;
use crate::lock::lock;
use crate::refusals::{self, Refusals};

/// The part of a node in the refusals of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// It waits for a turn to try on behalf of all, and is woken then.
    Taken,
    /// It has waits of its own: then it tries if nobody is known to be refused.
    Left,
}

/// Why a request was in vain.
#[derive(Clone, Debug)]
pub struct Refused {
    pub error: azure::Error,
    /// All of a scope are refused the same, so that one tries on behalf of all.
    pub is_shared: bool,
}

impl From<azure::Error> for Refused {
    fn from(error: azure::Error) -> Refused {
        Refused { error, is_shared: false }
    }
}

/// A node that asks.
#[derive(Clone)]
pub struct Asking<'a> {
    ctx: &'a Context,
    node: String,
    turns: Turns,
}

impl<'a> Asking<'a> {
    pub fn of(ctx: &'a Context, allocation: &NodeIPAllocation, turns: Turns) -> Asking<'a> {
        Asking { ctx, node: allocation.name_any(), turns }
    }

    /// Reads a NIC from Azure.
    pub async fn read(&self, nic: &ResourceId, urgency: impl Into<Urgency>) -> Result<Arc<Nic>, Refused> {
        let read = |urgency| self.ctx.azure.nic(nic, azure::Freshness::Fresh, urgency);
        self.ask(&self.ctx.refusals.reads, &[nic.key()], urgency.into(), read, |_| true).await
    }

    /// Writes a NIC.
    pub async fn write(
        &self,
        nic: &Nic,
        change: &Change,
        urgency: impl Into<Urgency>,
    ) -> Result<Written<Nic>, Refused> {
        let write = |urgency| self.ctx.azure.update(&nic.id, change, urgency);
        let sites = [nic.id.key(), nic.subnet.key()];
        self.ask(&self.ctx.refusals.writes, &sites, urgency.into(), write, |written| written.was_sent).await
    }

    /// Makes a request about these sites, ids in lower case. `has_asked` decides of its result whether a
    /// request was sent, so that it shows something of refusals.
    pub async fn ask<T, F>(
        &self,
        refusals: &Arc<Mutex<Refusals>>,
        sites: &[String],
        urgency: Urgency,
        request: impl FnOnce(Urgency) -> F,
        has_asked: impl FnOnce(&T) -> bool,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<T, azure::Error>>,
    {
        let (node, now) = (self.node.as_str(), Instant::now());
        let held = match self.turns {
            Turns::Taken => lock(refusals).holds(sites, node, now),
            Turns::Left => {
                lock(refusals).refusal_for(sites, node).map(|(of, error)| (of.clone(), error.clone()))
            }
        };
        let urgency = match held {
            None => {
                let held = refusals::until_held(refusals.clone(), sites.to_vec(), node.to_owned());
                urgency.at_most_until(held)
            }
            Some((_, azure::Error::ScopeMissing { .. })) => urgency,
            Some((_, error)) => {
                let error = error.about(sites.first().map(String::as_str).unwrap_or_default());
                return Err(Refused { error, is_shared: true });
            }
        };
        let result = request(urgency).await;
        let now = Instant::now();
        match &result {
            Ok(done) if has_asked(done) => self.ctx.wake(&lock(refusals).passed(sites, now)),
            Ok(_) => {}
            Err(error) if error.is_given_up() => {}
            Err(error) => return Err(self.refused(refusals, sites, error.clone(), now)),
        }
        result.map_err(Refused::from)
    }

    /// Records the meaning of a refusal for others.
    fn refused(
        &self,
        refusals: &Mutex<Refusals>,
        sites: &[String],
        error: azure::Error,
        now: Instant,
    ) -> Refused {
        let matter = match error {
            azure::Error::ScopeMissing { .. } => None,
            _ => error.matter(sites),
        };
        let Some(matter) = matter else {
            if self.turns == Turns::Taken {
                // Its turn, if it has one, shows nothing.
                let woken = lock(refusals).left(&self.node, now);
                self.ctx.wake(&woken);
            }
            return error.into();
        };
        let is_shared = lock(refusals).refused(matter, (&self.node, sites), &error, now);
        Refused { error, is_shared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::{Error, Priority, sample_nic};
    use serde_json::json;
    use std::time::Duration;

    fn asking<'a>(ctx: &'a Context, node: &str, turns: Turns) -> Asking<'a> {
        let object =
            json!({"metadata": {"name": node}, "spec": {"nodeUID": "u", "pool": "p", "cooldown": "30s"}});
        Asking::of(ctx, &serde_json::from_value(object).unwrap(), turns)
    }

    /// Whether a write of this node is sent. Azure answers this.
    async fn is_sent(ctx: &Context, node: &str, turns: Turns, answer: Result<(), Error>) -> bool {
        let site =
            sample_nic(&[]).id.key().replace("/networkinterfaces/", &format!("/networkinterfaces/{node}-"));
        let mut is_sent = false;
        let request = |_| {
            is_sent = true;
            async { answer }
        };
        let urgency = Priority::GiveBack.into();
        let _ = asking(ctx, node, turns).ask(&ctx.refusals.writes, &[site], urgency, request, |_| true).await;
        is_sent
    }

    fn locked() -> Result<(), Error> {
        let scope = sample_nic(&[]).id.group();
        Err(Error::Locked { resource: "nic".into(), scope, message: "m".into() })
    }

    #[tokio::test]
    async fn nodes_that_are_gone_ask_one_on_behalf_of_all_what_their_group_is_refused() {
        let ctx = Context::sample();
        assert!(is_sent(&ctx, "n0", Turns::Taken, locked()).await);
        for turns in [Turns::Taken, Turns::Left] {
            assert!(!is_sent(&ctx, "n1", turns, locked()).await, "{turns:?}");
        }
        let later = Instant::now() + Duration::from_secs(100);
        assert_eq!(lock(&ctx.refusals.writes).tick(later), ["n1"]);
        assert!(!is_sent(&ctx, "n2", Turns::Taken, Ok(())).await);
        assert!(is_sent(&ctx, "n1", Turns::Taken, Ok(())).await);
        assert!(is_sent(&ctx, "n2", Turns::Taken, Ok(())).await, "it has ended");
    }

    #[tokio::test]
    async fn a_group_that_is_missing_is_asked_for_by_each() {
        let ctx = Context::sample();
        for node in ["n0", "n1", "n1"] {
            let missing = Error::ScopeMissing {
                resource: sample_nic(&[]).id.to_string(),
                scope: azure::Scope::Group,
                message: "m".into(),
            };
            assert!(is_sent(&ctx, node, Turns::Taken, Err(missing)).await, "{node}");
        }
    }
}
