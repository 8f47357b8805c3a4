//! Requests of a node outside of its service: about the NIC of a node that is gone, or one that doesn't
//! serve. None is sent while others are known to be refused the same.
//!
//! A subscription or resource group that Azure doesn't know is asked for by each all the same: a record goes
//! only when Azure has answered twice about it itself.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use kube::ResourceExt;
use vnetpool_crds::NodeIPAllocation;

use crate::azure::{self, Change, Kind, Matter, Nic, ResourceId, Urgency, Written};
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
    pub of_all: Option<OfAll>,
}

/// A refusal that holds up others, too.
#[derive(Clone, Debug)]
pub enum OfAll {
    /// Of a request to these sites.
    Scope { refusals: Arc<Mutex<Refusals>>, matter: Matter, sites: Vec<String> },
    /// Of the deletion of this public address.
    Deletion(ResourceId),
}

impl OfAll {
    /// Whether the node still waits until it may try, or another has.
    pub fn stands(&self, ctx: &Context, node: &str) -> bool {
        match self {
            OfAll::Scope { refusals, matter, sites } => lock(refusals).waits(matter, (node, sites)),
            OfAll::Deletion(id) => ctx.azure.refusal_of_public_address(Kind::Delete, id).is_some(),
        }
    }
}

impl From<azure::Error> for Refused {
    fn from(error: azure::Error) -> Refused {
        Refused { error, of_all: None }
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

    /// Takes reservations and groups of ours off a NIC. An answer alone releases nothing: this fails if the
    /// NIC shows them still.
    pub async fn take_off(
        &self,
        nic: &Nic,
        change: &Change,
        urgency: impl Into<Urgency>,
    ) -> Result<Written<Nic>, Refused> {
        let write = |urgency| self.ctx.azure.update(&nic.id, change, urgency);
        let sites = [nic.id.key(), nic.subnet.key()];
        let was_sent = |written: &Written<Nic>| written.was_sent;
        let written = self.ask(&self.ctx.refusals.writes, &sites, urgency.into(), write, was_sent).await?;
        let is_held = written.ip_configurations.iter().any(|one| change.release.contains(&one.name));
        if is_held || written.groups.iter().any(|group| change.leave.contains(group)) {
            return Err(azure::Error::WithoutEffect { resource: nic.id.to_string() }.into());
        }
        Ok(written)
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
        let of_all = |matter| OfAll::Scope { refusals: refusals.clone(), matter, sites: sites.to_vec() };
        // Its turn there, if it has one, shows nothing.
        let leave = |now| {
            if self.turns == Turns::Taken {
                self.ctx.wake(&lock(refusals).left_at(sites, node, now));
            }
        };
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
            Some((matter, error)) => {
                let error = error.about(sites.first().map(String::as_str).unwrap_or_default());
                return Err(Refused { error, of_all: Some(of_all(matter)) });
            }
        };
        let result = request(urgency).await;
        let now = Instant::now();
        match &result {
            Ok(done) if has_asked(done) => self.ctx.wake(&lock(refusals).passed(sites, now)),
            Ok(_) => leave(now),
            Err(error) if error.is_given_up() => {}
            // A record goes only when Azure has answered about it itself: this holds up no other.
            Err(azure::Error::ScopeMissing { .. }) => leave(now),
            Err(error) => {
                let failed = lock(refusals).failed(error, (node, sites), now);
                match failed {
                    None => leave(now),
                    Some((_, false)) => {}
                    Some((matter, true)) => {
                        return Err(Refused { error: error.clone(), of_all: Some(of_all(matter)) });
                    }
                }
            }
        }
        result.map_err(Refused::from)
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

    fn group(name: &str) -> String {
        format!("/subscriptions/s/resourcegroups/{name}")
    }

    /// Whether a write of this node to its NIC in a group is sent. Azure answers this.
    async fn is_sent_to(
        (ctx, in_group): (&Context, &str),
        node: &str,
        turns: Turns,
        answer: Result<(), Error>,
    ) -> bool {
        let site = format!("{in_group}/providers/microsoft.network/networkinterfaces/{node}");
        let mut is_sent = false;
        let request = |_| {
            is_sent = true;
            async { answer }
        };
        let urgency = Priority::GiveBack.into();
        let _ = asking(ctx, node, turns).ask(&ctx.refusals.writes, &[site], urgency, request, |_| true).await;
        is_sent
    }

    async fn is_sent(ctx: &Context, node: &str, turns: Turns, answer: Result<(), Error>) -> bool {
        is_sent_to((ctx, &group("g")), node, turns, answer).await
    }

    fn locked_in(scope: &str) -> Result<(), Error> {
        Err(Error::Locked { resource: "nic".into(), scope: scope.into(), message: "m".into() })
    }

    fn locked() -> Result<(), Error> {
        locked_in(&group("g"))
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
    async fn a_node_that_is_gone_keeps_its_turn_in_a_group_whatever_becomes_of_its_nic_in_another() {
        let [g, h] = ["g", "h"].map(group);
        let gone = || Err(Error::NotFound { resource: "nic".into(), message: "m".into() });
        for of_g in [locked_in(&g), gone()] {
            let ctx = Context::sample();
            for group in [&g, &h] {
                assert!(is_sent_to((&ctx, group), "n0", Turns::Taken, locked_in(group)).await);
                assert!(!is_sent_to((&ctx, group), "n1", Turns::Taken, Ok(())).await);
            }
            let later = Instant::now() + Duration::from_secs(100);
            assert_eq!(lock(&ctx.refusals.writes).tick(later), ["n1", "n1"]);
            assert!(is_sent_to((&ctx, &g), "n1", Turns::Taken, of_g.clone()).await);
            assert!(is_sent_to((&ctx, &h), "n1", Turns::Taken, locked_in(&h)).await, "{of_g:?}");
        }
        // It has its turn in one of them only.
        let ctx = Context::sample();
        for group in [&g, &h] {
            assert!(is_sent_to((&ctx, group), "n0", Turns::Taken, locked_in(group)).await);
        }
        assert!(!is_sent_to((&ctx, &h), "n1", Turns::Taken, Ok(())).await);
        let later = Instant::now() + Duration::from_secs(100);
        lock(&ctx.refusals.writes).tick(later);
        assert!(!is_sent_to((&ctx, &g), "n1", Turns::Taken, Ok(())).await);
        assert!(is_sent_to((&ctx, &h), "n1", Turns::Taken, Ok(())).await, "the other has taken its turn");
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
