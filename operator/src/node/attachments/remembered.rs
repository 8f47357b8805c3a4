//! The state of a node's attachments so far.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vnetpool_crds::allocation;

use crate::azure::{self, PublicAddress, ResourceId};
use crate::lock::lock;
use crate::node::setback::Setback;
use crate::planner::attachments::Make;

/// What this process remembers of a node's attachments. All of it can be lost.
#[derive(Clone, Debug)]
pub struct Attaching {
    /// Public addresses as Azure reported them; `None`: there is none.
    pub public: HashMap<ResourceId, Option<allocation::PublicAddress>>,
    /// Pods with a wish that Azure has refused, by UID, with their names.
    pub refused: HashMap<String, (String, Setback)>,
    /// The reason why all of the node's attachments wait.
    pub setback: Option<Setback>,
    /// The refusals that were reported to pods, by UID: each Event comes once.
    pub told: HashMap<String, String>,
    /// How many to attach in one write.
    pub batch: usize,
    pub making: Making,
}

/// Public addresses that are made beside the node's reconciles: those under way, and their outcomes.
#[derive(Clone, Debug, Default)]
pub struct Making(Arc<Mutex<HashMap<ResourceId, Option<Made>>>>);

/// The outcome of one attachment.
#[derive(Debug)]
pub struct Made {
    pub asked: Make,
    pub result: Result<PublicAddress, azure::Error>,
}

impl Making {
    pub fn begins(&self, id: &ResourceId) {
        lock(&self.0).insert(id.clone(), None);
    }

    /// One that was given up is as if it had never begun: nothing was sent.
    pub fn ended(&self, made: Made) {
        let (id, is_given_up) =
            (made.asked.id.clone(), made.result.as_ref().is_err_and(azure::Error::is_given_up));
        let mut all = lock(&self.0);
        match is_given_up {
            true => drop(all.remove(&id)),
            false => drop(all.insert(id, Some(made))),
        }
    }

    pub fn under_way(&self) -> HashSet<ResourceId> {
        let all = lock(&self.0);
        all.iter().filter(|(_, made)| made.is_none()).map(|(id, _)| id.clone()).collect()
    }

    /// Takes out those that have ended.
    pub fn take(&self) -> Vec<Made> {
        let mut all = lock(&self.0);
        let ended: Vec<ResourceId> =
            all.iter().filter(|(_, made)| made.is_some()).map(|(id, _)| id.clone()).collect();
        ended.iter().filter_map(|id| all.remove(id).flatten()).collect()
    }
}

impl Default for Attaching {
    fn default() -> Self {
        Attaching {
            public: HashMap::new(),
            refused: HashMap::new(),
            setback: None,
            told: HashMap::new(),
            batch: usize::MAX,
            making: Making::default(),
        }
    }
}

impl Attaching {
    /// How long until a refused wish may be tried again.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let all = self.refused.values().map(|(_, setback)| setback).chain(&self.setback);
        all.filter(|setback| setback.holds(now)).map(|setback| setback.until - now).min()
    }

    pub fn holds(&self, now: Instant) -> bool {
        self.setback.as_ref().is_some_and(|setback| setback.holds(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_before_it_was_sent_is_no_refusal_of_azures() {
        let id: ResourceId =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/publicIPAddresses/p"
                .parse()
                .unwrap();
        let asked = Make { id: id.clone(), uid: "u".into(), pod: "ns/pod".into(), dns_label: None };
        let told_of = |error: azure::Error| {
            let making = Making::default();
            making.begins(&id);
            assert_eq!(making.under_way().len(), 1);
            making.ended(Made { asked: asked.clone(), result: Err(error) });
            assert!(making.under_way().is_empty());
            making.take().len()
        };
        let resource = || id.to_string();
        assert_eq!(told_of(azure::Error::QuotaExceeded { resource: resource(), message: "m".into() }), 1);
        assert_eq!(told_of(azure::Error::Outgrown { resource: resource() }), 0);
        assert_eq!(told_of(azure::Error::Unconfirmed { resource: resource() }), 0);
    }
}
